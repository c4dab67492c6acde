"""Where a completion states its final answer, and in which form."""

import re
from dataclasses import dataclass


STYLES = ("auto", "boxed", "gsm8k", "final_answer", "last_number", "choice")

HOW_TO_END = {
    "auto": r"End with the final answer in \boxed{...}.",
    "boxed": r"End with the final answer in \boxed{...}.",
    "gsm8k": "End with a line `#### ` followed by the final answer.",
    "final_answer": "End with: Final Answer: The final answer is $answer$. I hope it is correct.",
    "last_number": "End with the answer, a number.",
    "choice": "End with the letter of your choice, such as: The answer is (A).",
}

NUMBER = r"[-+−]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


@dataclass(frozen=True)
class Extraction:
    """
    Args:
        answer (`str`, *optional*):
            The final answer as it is written, or `None`.
        place (`str`):
            The words that state it, for feedback.
        problem (`str`):
            What is wrong with the form, where there is no answer; empty where nothing is.
    """

    answer: str | None
    place: str = ""
    problem: str = ""


def find_answer(text: str, style: str = "auto", choices: str = "ABCDE") -> Extraction:
    r"""
    Finds the final answer; the last one, where there are several.

    Args:
        text (`str`):
            The completion.
        style (`str`, *optional*, defaults to `"auto"`):
            `"boxed"`: `\boxed{...}`. `"gsm8k"`: `#### ...`. `"final_answer"`: "The final answer is $...$. I hope it
            is correct." (the prompt of SCoRe and Minerva), or "the answer is ...". `"last_number"`: the last number,
            whatever stands around it. `"choice"`: a letter of `choices`. `"auto"`: the first of `"boxed"`, `"gsm8k"`,
            `"final_answer"` that is there.
        choices (`str`, *optional*, defaults to `"ABCDE"`):
            The letters of a multiple choice.

    Returns:
        [`Extraction`]

    Example:

    ```python
    >>> find_answer(r"So it is $\boxed{\frac{1}{2}}$.").answer
    '\\frac{1}{2}'
    ```
    """
    if style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}, got {style!r}.")
    if style == "choice":
        return find_choice(text, choices)
    finders = {"boxed": find_boxed, "gsm8k": find_gsm8k, "final_answer": find_final_answer}
    if style == "last_number":
        return find_last_number(text)
    if style != "auto":
        found = finders[style](text)
        if found.answer is None and not found.problem:
            other = find_answer(text, "auto")
            if other.answer is not None:
                problem = f"An answer is given in “{other.place}”, but not in the form asked for."
                return Extraction(None, other.place, problem)
        return found
    problems = []
    for find in finders.values():
        found = find(text)
        if found.answer is not None:
            return found
        problems.append(found)
    return next((found for found in problems if found.problem), problems[0])


def find_boxed(text: str) -> Extraction:
    start = max(text.rfind(r"\boxed"), text.rfind(r"\fbox"))
    if start < 0:
        return Extraction(None)
    opening = re.compile(r"\\(?:boxed|fbox)\s*").match(text, start).end()
    if text[opening : opening + 1] != "{":
        # \boxed 5, which TeX reads as a box around one token.
        bare = re.compile(r"[^\s$.,]+").match(text, opening)
        if bare is None:
            return Extraction(None, text[start:][:80], r"The \boxed at the end is empty.")
        return Extraction(bare.group(), text[start : bare.end()])
    depth = 0
    for position in range(opening, len(text)):
        escaped = position > 0 and text[position - 1] == "\\" and (position < 2 or text[position - 2] != "\\")
        if text[position] == "{" and not escaped:
            depth += 1
        elif text[position] == "}" and not escaped:
            depth -= 1
            if depth == 0:
                answer = text[opening + 1 : position].strip()
                place = text[start : position + 1]
                if not answer:
                    return Extraction(None, place, r"The \boxed{} at the end is empty.")
                return Extraction(answer, place)
    return Extraction(None, text[start:][:80], r"The \boxed{ at the end is never closed.")


def find_gsm8k(text: str) -> Extraction:
    found = re.findall(r"####[ \t]*([^\n]*)", text)
    if not found:
        return Extraction(None)
    answer = found[-1].strip().rstrip(".").strip()
    if not answer:
        return Extraction(None, "####", "Nothing follows the `####` at the end.")
    return Extraction(answer, f"#### {found[-1].strip()}")


def find_final_answer(text: str) -> Extraction:
    starts = list(re.finditer(r"(?i)\b(?:final answer|answer)(?:\s+is\b|\s*:)\s*:?\s*", text))
    if not starts:
        return Extraction(None)
    # "Final Answer: The final answer is": the last of the two is the one that states it.
    start = starts[-1]
    rest = text[start.end() :]
    end = re.search(r"\.?\s*I hope it is correct|\n\s*\n", rest)
    rest = (rest[: end.start()] if end else rest.partition("\n")[0]).strip()
    place = f"{start.group().strip()} {rest}"[:200]
    math = re.match(r"\$\$(.+?)\$\$|\$((?:\\\$|[^$])+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", rest, re.DOTALL)
    if math:
        answer = next(group for group in math.groups() if group is not None).strip()
    else:
        # Without math signs, the sentence ends the answer; a point within a number does not.
        answer = re.split(r"\.(?!\d)(?:\s|$)", rest)[0].strip().strip("*").rstrip(".").strip()
    if not answer:
        return Extraction(None, place, "Nothing follows “the final answer is”.")
    return Extraction(answer, place)


def find_last_number(text: str) -> Extraction:
    found = re.findall(rf"(?<![\w.]){NUMBER}", text)
    return Extraction(found[-1].rstrip(",."), found[-1]) if found else Extraction(None)


def find_choice(text: str, choices: str) -> Extraction:
    letter = f"[{re.escape(choices)}{re.escape(choices.lower())}]"
    boxed = find_boxed(text)
    if boxed.answer is not None:
        inner = re.fullmatch(rf"(?:\\text(?:bf)?\{{)?\s*\(?({letter})\)?\.?\s*\}}?(?:\s*[).:].*)?", boxed.answer)
        if inner:
            return Extraction(inner.group(1).upper(), boxed.place)
    # A lower-case letter counts only in brackets: "the answer is a number" states no choice.
    upper = f"[{re.escape(choices)}]"
    asserted = r"(?i:answer|choice|option)\s*(?i:is|:|)\s*:?\s*(?:(?i:option|choice)\s*)?"
    stated = rf"{asserted}\**(?:\(({letter})\)|({upper})\b)"
    lone = rf"^\s*\**(?:\(({letter})\)|({upper})\b[).]?)\**\s*\.?\s*$"
    for pattern in (stated, lone):
        found = list(re.finditer(pattern, text, re.MULTILINE))
        if found:
            answer = next(group for group in found[-1].groups() if group is not None)
            return Extraction(answer.upper(), found[-1].group().strip())
    gsm8k = find_gsm8k(text)
    if gsm8k.answer is not None and re.fullmatch(rf"\(?{letter}\)?", gsm8k.answer):
        return Extraction(gsm8k.answer.strip("()").upper(), gsm8k.place)
    return Extraction(None)


def gsm8k_answer(text: str) -> str | None:
    """The answer in GSM8K's form, `#### 18`; `None` if there is none. For settings that take a text to its answer."""
    return find_answer(text, "gsm8k").answer


def boxed_answer(text: str) -> str | None:
    r"""The answer in `\boxed{...}`; `None` if there is none. For settings that take a text to its answer."""
    return find_answer(text, "boxed").answer


def gold_answer(gold: str | int | float) -> str:
    r"""The answer in a gold column: a number, `... #### N`, a solution with `\boxed{...}`, or the answer itself."""
    if isinstance(gold, float) and gold.is_integer():
        return str(int(gold))
    gold = str(gold)
    if "####" in gold:
        return gold.rpartition("####")[2].strip()
    boxed = find_boxed(gold)
    return boxed.answer if boxed.answer is not None else gold.strip()
