"""Where a completion states its final answer, and in which form."""

import functools
import re
from dataclasses import dataclass

from .common import after_thinking


STYLES = ("auto", "boxed", "gsm8k", "final_answer", "last_number", "choice")

HOW_TO_END = {
    "auto": r"End with the final answer in \boxed{...}.",
    "boxed": r"End with the final answer in \boxed{...}.",
    "gsm8k": "End with a line `#### ` followed by the final answer.",
    "final_answer": "End with: Final Answer: The final answer is $answer$. I hope it is correct.",
    "last_number": "End with the answer, a number.",
    "choice": "End with the letter of your choice, such as: The answer is (A).",
}

# Completions are untrusted and long: every pattern here takes time in proportion to the text (a test holds them to
# it). A repetition is bounded, or what follows it cannot begin with what it repeats.
NUMBER = r"[-+−]?(?:\d[\d,]*(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
LAST_NUMBER = re.compile(rf"(?<![\w.]){NUMBER}")

# Bold and italics, but no product (2*x, 2**3) and no star of a formula (x^*).
EMPHASIS = re.compile(
    r"(?<![\w)}\]^*])\*{1,3}(?=[^\s*])|(?<=[^\s*^_])\*{1,3}(?=[\s.,;:!?\"'$<)\]]|$)|(?<!\w)__(?=\S)|(?<=\S)__(?!\w)"
)
HTML_TAG = re.compile(r"(?i)</?(?:b|i|u|em|strong|mark|code|span|p|br|div)\s?/?>")
# The mark of a list below "Answer:" is no minus sign
BULLET = re.compile(r"(?<=[:\uff1a]\n)[-*+\u2022][ \t]{1,4}(?=[$\\(\w])")
ANSWER_TAG = re.compile(r"(?i)<(/?)answer>")
# A table's row or column that names the answer
ANSWER_CELL = r"(?:the )?(?:final )?(?:answer|result)s?:?"
ROW_START, ROW_END = r"^[ \t]{0,8}\|[ \t]{0,8}", r"[ \t]{0,8}\|[ \t]{0,8}"
ANSWER_ROW = re.compile(rf"(?im){ROW_START}({ANSWER_CELL}){ROW_END}([^|\n]{{1,200}})\|[ \t]{{0,8}}$")
ANSWER_COLUMN = re.compile(
    rf"(?im){ROW_START}({ANSWER_CELL}){ROW_END}\n[ \t]{{0,8}}\|[ \t:-]{{1,80}}\|[ \t]{{0,8}}\n"
    rf"{ROW_START}([^|\n]{{1,200}})\|[ \t]{{0,8}}$"
)
FULL_WIDTH = {0xFF01 + i: 0x21 + i for i in range(94)} | {0x3002: ". "}  # ＃ and １ of East Asian keyboards
SPECIAL_TOKEN = (
    r"<\|(?:im_start|im_end|user|assistant|eot_id|eom_id|endoftext|end_of_text|end|start_header_id|return)\|>"
    r"|</s>|<eos>|<(?:start|end)_of_turn>|\[/?INST\]"
)
# Where a model goes on with a question of its own. A number (Question 2:) may also mean a step of the solution.
RUN_ON = re.compile(
    r"(?im)^[ \t]{0,8}[#>*_\-]{0,8}[ \t]{0,4}(?:(?:new|next|another|follow-?up)[ \t])?"
    r"(?:question|problem|exercise|example|q|human|user|instruction|input|prompt)"
    r"(?P<number>[ \t]?[#(]?\d{1,4}\)?)?[*_]{0,3}[ \t]?(?::|：)"
    r"|^[ \t]{0,4}#{1,6}[ \t]{0,4}(?:instruction|user|human|question|problem)[ \t]{0,4}$|" + SPECIAL_TOKEN
)

BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s?")
BARE_BOX = re.compile(r"-?(?:\d+(?:\.\d+)?|[^\s$.,{}]+)")
BETWEEN_BOXES = re.compile(r"(?i)[\s$.]{0,4}(,|;|and|or|, and|, or|\\text\{ ?(?:and|or) ?\}|)[\s$]{0,4}")

GSM8K_MARK = re.compile(r"(?<!#)####(?!#)([^\n]*)")
HEADING = re.compile(
    r"(?i)(?:step|part|case|section|phase|stage|method|approach|option|solution|explanation|note|check|verification"
    r"|conclusion|calculations?|summary|given|problem|question|example|reasoning|analysis|setup|result)\b"
    r"|\(?(?:\d{1,3}|[a-z]|[ivx]{1,4})[.)]\s[^\W\d]"
)
ANSWER_HEADING = re.compile(r"(?i)(?:the )?(?:final )?(?:answer|result)s?:?")

# "The final answer to the question is", "Answer:", "**Final Answer**" on a line of its own.
STATEMENT = re.compile(
    r"(?i)\b(?:final[ \t]{1,3})?(?:answers?|ans)\b(?P<of>[ \t](?:to|for|of|in)\b[^.\n:=]{1,80}?)?"
    r"(?:\s{0,3}(?P<sign>:|：|=|→|⇒|->|=>)|\s{1,3}(?P<verb>is|are|was|would be|will be|should be|must be|equals"
    r"|(?:comes?|works?|turns?) out to(?: be)?|comes? to|becomes)\b|\s{1,3}[-–—](?=\s))\s{0,4}:?"
)
LEAD = re.compile(r"(?i)(?:so|thus|therefore|hence)?,?\s?(?:the |my |our )?")
STATEMENT_HEADING = re.compile(r"(?im)^[ \t#>]{0,12}(?:the )?(?:final )?answer[ \t]{0,4}$")
REVERSED_STATEMENT = re.compile(
    r"(?i)(?<!\S)(\S{1,60})\s{1,3}is (?:indeed )?(?:the|my|our) (?:(?:correct|final|right) ){0,2}answer\b"
)
FILLER = re.compile(
    r"(?i)(?:(?:given by|found to be|equal to|simply|just|thus|therefore|then|hence|approximately|about|around|roughly"
    r"|exactly|precisely|indeed|actually|clearly|still|now|definitely|also|to be|the number|the value|the expression)"
    r"\b[ \t:]{0,3}|[:=≈\s]{1,3}){0,4}"
)
# What follows "the answer is" where it speaks about the answer.
COMMENT = re.compile(
    r"(?i)(?:(?:also|indeed|still|now|most|very|quite|absolutely|certainly|probably|likely|definitely|either|already|in"
    r" fact|completely|fully|therefore|thus)\s{1,3}){0,3}(?:(?:in)?correct|right(?! (?:angle|triangle|isosceles))"
    r"|wrong|not|(?:un)?clear|(?:in)?valid"
    r"|verified|confirmed|consistent|reasonable|sensible|plausible|obvious|(?:in)?accurate|(?:in)?complete|fine|good"
    r"|ok|okay|above|below|as follows|given|found|obtained|derived|based|shown|stated|boxed|what|whether|that|because"
    r"|expected|supposed|required|in the|in its|in simplest|in terms|unique|different|the same|close|off|checked"
    r"|presented|written|provided|rounded|simplified|ready|here|wrong|mistaken|sound|easy|simple|straightforward)\b"
)
PRAISE = re.compile(r"(?i)(?:indeed |also |therefore |thus )?(?:correct|right)\b")
SENTENCE_END = re.compile(r"(?<!\b[ap]\.m)[.!?](?=\s|$)|\.(?=\s[A-Z])")
AFTERTHOUGHT = re.compile(
    r"(?i)(?:[,;]?\s(?:because|since|which|as|so|hence|therefore|where|but|i hope)"
    r"|[,;]\s(?:not|and (?:that|this|so|i|the answer)))\b"
)
NEXT_PART = re.compile(r"(?i)\s{0,3}(,(?:\s{0,2}(?:and|or)\b)?|and\b|or\b|&)\s{0,3}")
SCALE = re.compile(r"(?i)\s{0,2}(\\?%|percent\b|(?:hundred|thousand|million|billion|trillion)\b)")
PROSE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{3,}(?=\s)")
IN_BRACKETS = re.compile(r"\s\((?!mod)([^()\\$]{4,200})\)$")
MATH = {"$$": "$$", "$": "$", r"\(": r"\)", r"\[": r"\]"}


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

    A reasoning model's thoughts are left out, finished or not, and so is what follows once a model has answered and
    goes on with a question of its own ("Question: ..."). Markdown does not count, nor do headings (`#### Step 1`) and
    sentences about the answer ("I am sure the answer is correct").

    Args:
        text (`str`):
            The completion.
        style (`str`, *optional*, defaults to `"auto"`):
            `"boxed"`: `\boxed{...}`. `"gsm8k"`: `#### ...`. `"final_answer"`: "The final answer is $...$. I hope it
            is correct." (the prompt of SCoRe and Minerva), or "the answer is ...". `"last_number"`: the last number,
            whatever stands around it. `"choice"`: a letter of `choices`. `"auto"`: the first of `"boxed"`, `"gsm8k"`,
            `"final_answer"` that is there; within `<answer>...</answer>` where that is.
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
    text = without_run_on(without_markup(after_thinking(text)), choices if style == "choice" else "")
    if style == "choice":
        return find_choice(text, choices)
    if style == "last_number":
        return find_last_number(text)
    if style == "auto":
        return find_any(text)
    found = FINDERS[style](text)
    if found.answer is None and not found.problem:
        other = find_any(text)
        if other.answer is not None:
            problem = f"An answer is given in “{other.place}”, but not in the form asked for."
            return Extraction(None, other.place, problem)
    return found


def find_any(text: str) -> Extraction:
    tagged = tagged_answer(text)
    problems = []
    for find in FINDERS.values():
        found = find(text if tagged is None else tagged)
        if found.answer is not None:
            return found
        problems.append(found)
    if tagged is not None and len(tagged) <= 300:
        return Extraction(bare(tagged) or None, f"<answer>{tagged}</answer>")
    return next((found for found in problems if found.problem), problems[0])


def without_markup(text: str) -> str:
    """Without Markdown's and HTML's emphasis, a list's mark after a colon and a table's lines around an answer; with
    plain spaces, and full-width signs as ASCII's."""
    text = text.replace("\r\n", "\n").replace("\u00a0", " ").replace("\u202f", " ").replace("\u200b", "")
    text = HTML_TAG.sub("", EMPHASIS.sub("", text.translate(FULL_WIDTH).replace("`", "")))
    return BULLET.sub("", ANSWER_ROW.sub(r"\1: \2", ANSWER_COLUMN.sub(r"\1: \2", text)))


def without_run_on(text: str, choices: str = "") -> str:
    """Up to where a model that has answered goes on with another question."""
    begin, piece, counts = 0, 0, False
    for mark in RUN_ON.finditer(text):
        # "Question 1:" may be a step of a solution, and then "Question 2:" is: only the forms for final answers count
        # before it. Where the counting begins above 1, the numbers before were the prompt's.
        number = mark.group("number")
        counts = counts or (number is not None and number.strip(" \t#()") in ("0", "1"))
        step = number is not None and counts
        before = text[piece if step else begin : mark.start()]
        finders = [find_boxed, find_gsm8k, find_announced] if step else [find_any]
        if any(find(before).answer is not None for find in finders):
            return text[: mark.start()]
        if choices and find_choice(before, choices).answer is not None:
            return text[: mark.start()]
        piece = mark.start()
        if not step:
            begin = mark.start()
    return text


def find_announced(text: str) -> Extraction:
    """The answer after "The final answer is", which no step has."""
    starts = [match.start() for match in STATEMENT.finditer(text) if match.group().lower().startswith("final")]
    return find_final_answer(text[starts[-1] :]) if starts else Extraction(None)


def tagged_answer(text: str) -> str | None:
    """What stands in the last `<answer>...</answer>`, or after an `<answer>` that was cut off."""
    opening, closing = None, None
    for tag in ANSWER_TAG.finditer(text):
        if not tag.group(1):
            opening, closing = tag.end(), None
        elif opening is not None and closing is None:
            closing = tag.start()
    return None if opening is None else text[opening:closing].strip() or None


# ------------------------------------------------------------------------------------------------------------- boxed


def find_boxed(text: str) -> Extraction:
    starts = [match.start() for match in BOX.finditer(text)]
    if not starts:
        return Extraction(None)
    answer, end = boxed_at(text, starts[-1])
    if answer is None:
        return Extraction(None, text[starts[-1] :][:80], r"The \boxed{ at the end is never closed.")
    place = text[starts[-1] : end]
    if not answer:
        return Extraction(None, place[:80], r"The \boxed{} at the end is empty.")
    # \boxed{17} or \boxed{18}: one answer of two parts.
    first = starts[-1]
    for start in reversed(starts[-20:-1]):
        part, end = boxed_at(text, start)
        between = BETWEEN_BOXES.fullmatch(text[end:first]) if part and end <= first else None
        if between is None or not between.group(1):
            break
        answer = f"{part}{between.group(1) if between.group(1) in ',;' else f' {between.group(1)} '}{answer}"
        place, first = text[start:first] + place, start
    return Extraction(answer, place)


def boxed_at(text: str, start: int) -> tuple[str | None, int]:
    r"""What a `\boxed` holds (`None`: it is never closed; empty: nothing), and where it ends."""
    opening = BOX.match(text, start).end()
    if text[opening : opening + 1] != "{":
        # \boxed 5, which TeX reads as a box around one token.
        found = BARE_BOX.match(text, opening)
        return (found.group(), found.end()) if found else ("", opening)
    depth, position = 0, opening
    for brace in BRACE.finditer(text, opening):
        position = brace.end()
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)  # not those that are escaped
        if depth == 0:
            return text[opening + 1 : position - 1].strip(), position
    return None, len(text)


BRACE = re.compile(r"\\[\s\S]|[{}]")


# ------------------------------------------------------------------------------------------------------------- gsm8k


def find_gsm8k(text: str) -> Extraction:
    problem = Extraction(None)
    for mark in reversed(list(GSM8K_MARK.finditer(text))):
        line = mark.group(1).strip().strip("#").rpartition("####")[2].strip()
        rest = text[mark.end() : mark.end() + 1000].lstrip()
        if stated := STATEMENT.match(line, LEAD.match(line).end()):  # #### So the answer is 42
            line = line[stated.end() :].strip()
        if not line or ANSWER_HEADING.fullmatch(line):
            line = rest.partition("\n")[0].strip()
            rest = rest.partition("\n")[2].strip()
            if line.startswith("#"):
                continue
        if is_heading(line, bool(rest)):
            continue
        answer = bare(line)
        if answer:
            return Extraction(answer, f"#### {line}"[:200])
        if not problem.problem:
            problem = Extraction(None, "####", "Nothing follows the `####` at the end.")
    return problem


def is_heading(line: str, goes_on: bool) -> bool:
    """Whether a line after `####` is a heading of Markdown and no answer."""
    if line.endswith(":") or (goes_on and HEADING.match(line)):
        return True
    words = line.split()
    return goes_on and len(words[0] if words else "") > 1 and words[0].isalpha()


# ---------------------------------------------------------------------------------------------- "the final answer is"


def find_final_answer(text: str) -> Extraction:
    found = [(match.start(), match) for match in STATEMENT.finditer(text)]
    found += [(match.start(), match) for match in STATEMENT_HEADING.finditer(text)]
    found += [(match.start(), match) for match in REVERSED_STATEMENT.finditer(text)]
    vague, last = None, None
    for _, match in sorted(found, key=lambda item: item[0], reverse=True):
        extraction = read_statement(text, match)
        last = last or extraction
        if extraction.answer is None:
            if extraction.problem and last is extraction:
                return extraction  # cut off where the answer should have come
            continue
        # A sentence without a number, such as "the answer is a whole number of days", gives way to one with.
        words = extraction.answer.split()
        if MATH_SIGN.search(extraction.answer) or (len(words) <= 3 and words[0] not in ("a", "an")):
            return extraction
        vague = vague or extraction
    return vague or Extraction(None)


MATH_SIGN = re.compile(r"[\d\\=^]")


def read_statement(text: str, match: re.Match) -> Extraction:
    """The answer that one sentence states; none if it speaks about the answer instead."""
    groups = match.groupdict()
    if match.re is REVERSED_STATEMENT:
        answer = bare(match.group(1).lstrip("(["))
        return Extraction(answer if MATH_SIGN.search(answer) else None, match.group().strip())
    rest = text[match.end() : match.end() + 2000].lstrip()
    place = f"{match.group().strip()} {rest.partition(chr(10))[0]}".strip()[:200]
    if not rest:
        return Extraction(None, place, "Nothing follows “the final answer is”.")
    rest = rest[FILLER.match(rest).end() :]
    if groups.get("verb") and COMMENT.match(rest):
        of = (groups["of"] or "").strip()
        if of.startswith("of ") and MATH_SIGN.search(of) and PRAISE.match(rest):
            return Extraction(bare(of[3:]), place)  # my answer of 42 is correct
        return Extraction(None, place)
    answer = leading_math(rest)
    if answer is None:
        # Without math signs, the sentence ends the answer; a point within a number does not.
        line = SENTENCE_END.split(rest.partition("\n")[0], maxsplit=1)[0]
        cut = AFTERTHOUGHT.search(line)
        answer = bare(line[: cut.start()] if cut else line)
    if not answer:
        return Extraction(None, place, "Nothing follows “the final answer is”.")
    return Extraction(answer, place)


def leading_math(rest: str) -> str | None:
    """The formulas with which a sentence begins (after a few words at most), joined as the sentence joins them."""
    start = min((place for place in (rest.find(sign) for sign in MATH) if place >= 0), default=-1)
    words = rest[: max(start, 0)]
    if start < 0 or len(words.split()) > 6 or any(sign in words for sign in "\n.,;") or re.search(DIGIT, words):
        return None
    answer, end = math_at(rest, start)
    if answer is None:
        return None
    if words.strip().endswith("="):
        answer = words.split()[-2] + "=" + answer if len(words.split()) > 1 else answer
    while (part := NEXT_PART.match(rest, end)) is not None:
        more, after = math_at(rest, part.end())
        if more is None:
            break
        joint = part.group(1)
        answer, end = f"{answer}{joint if joint == ',' else f' {joint} '}{more}", after
    if scale := SCALE.match(rest, end):
        answer = f"{answer} {scale.group(1)}"
    return bare(answer)


DIGIT = re.compile(r"\d")


def math_at(text: str, start: int) -> tuple[str | None, int]:
    """The formula that begins at a place, and where it ends; `None` if none does."""
    opening = next((sign for sign in MATH if text.startswith(sign, start)), None)
    if opening is None:
        return None, start
    inner = start + len(opening)
    end = text.find(MATH[opening], inner)
    while opening == "$" and end > 0 and text[end - 1] == "\\":
        end = text.find("$", end + 1)
    if end <= inner:
        return None, start
    content = text[inner:end]
    prices = content[-1].isspace() and (content[0].isdigit() or PROSE.search(content))
    if opening == "$" and prices:
        return None, start  # two of them, and the words between
    return content.strip(), end + len(MATH[opening])


def bare(answer: str) -> str:
    """Without what stands around an answer: math signs, quotes, a point at the end, an explanation in brackets."""
    answer = answer.strip()
    for _ in range(4):
        before = answer
        answer = answer.strip(" \t\n“”\"'").rstrip(".,;:!").strip()
        for opening, closing in MATH.items():
            inner = answer[len(opening) : -len(closing)]
            if answer.startswith(opening) and answer.endswith(closing) and inner.strip() and closing not in inner:
                answer = inner
        if (box := BOX.match(answer)) and boxed_at(answer, 0)[1] == len(answer) and box.end() < len(answer):
            answer = boxed_at(answer, 0)[0] or ""
        brackets = IN_BRACKETS.search(answer)
        if brackets and PROSE.search(brackets.group(1) + " ") and re.search(DIGIT, answer[: brackets.start()]):
            answer = answer[: brackets.start()]
        if answer == before:
            break
    return answer.strip()


FINDERS = {"boxed": find_boxed, "gsm8k": find_gsm8k, "final_answer": find_final_answer}


# ------------------------------------------------------------------------------------------------- numbers and letters


def find_last_number(text: str) -> Extraction:
    found = LAST_NUMBER.findall(text.replace("{,}", ","))
    return Extraction(found[-1].rstrip(",."), found[-1]) if found else Extraction(None)


def find_choice(text: str, choices: str) -> Extraction:
    boxed_form, stated, fits, lone, hedged = choice_patterns(choices)
    boxed = find_boxed(text)
    if boxed.answer is not None and (inner := boxed_form.fullmatch(boxed.answer)):
        return Extraction(inner.group(1).upper(), boxed.place)
    for pattern in (stated, fits, lone):
        found = list(pattern.finditer(text))
        if found:
            answer = next(group for group in found[-1].groups() if group is not None)
            if pattern is stated and hedged.match(text, found[-1].end()):
                return Extraction(None, found[-1].group().strip(), "More than one choice is given at the end.")
            return Extraction(answer.upper(), found[-1].group().strip())
    gsm8k = find_gsm8k(text)
    if gsm8k.answer is not None and (inner := boxed_form.fullmatch(gsm8k.answer)):
        return Extraction(inner.group(1).upper(), gsm8k.place)
    return Extraction(None)


@functools.lru_cache
def choice_patterns(choices: str) -> tuple[re.Pattern, ...]:
    """A letter in a box, stated ("the answer is (B)"), said to fit ("B is correct"), alone on a line; a second one."""
    letter = f"[{re.escape(choices)}{re.escape(choices.lower())}]"
    upper = f"[{re.escape(choices)}]"  # a lower-case letter counts only in brackets: "the answer is a number"
    text = r"\\(?:text|textbf|mathrm|mathbf|bf)\{"
    math = rf"(?:\$|\\\(|\\boxed\{{|{text}|[\"“'])"
    marked = rf"(?:{math}){{0,3}}(?:[(\[]({letter})[)\]]|({upper})(?![\w'’]))"
    patterns = (
        rf"(?s)(?:{text})?\s?[(\[]?({letter})[)\]]?\.?\s?\}}?(?:\s?[).:,\\].*)?",
        rf"(?i:answer|choice|option)\s{{0,3}}(?i:is|:|)\s{{0,3}}:?\s{{0,3}}(?:(?i:option|choice|letter)\s{{1,2}})?{marked}",
        rf"(?:\(({letter})\)|\b({upper}))\)? is (?:the )?(?:correct|right|best)\b",
        rf"(?m)^[ \t]{{0,8}}(?:\(({letter})\)|({upper})(?:[).](?:[ \t][^\n]{{1,200}})?)?)[ \t]{{0,4}}\.?[ \t]{{0,4}}$",
        rf"[)\]}}$.\s]{{0,4}}\s?(?:/|,?\s?(?i:or|and)\s(?i:option |choice )?){marked}",
    )
    return tuple(re.compile(pattern) for pattern in patterns)


# --------------------------------------------------------------------------------------------- functions for settings


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
