"""ProCo: hide a condition of the question, ask what it must have been, and answer again where that does not fit.

The method of "Large Language Models Can Self-Correct with Key Condition Verification"
([paper](https://huggingface.co/papers/2405.14092)). It needs no training and no right answer: a wrong answer
is one that does not give the condition back.
"""

import re
from collections.abc import Callable, Generator
from typing import Any

from rapidfuzz.distance import Levenshtein

from ..data_utils import message_text
from ..errors import BadInput
from ..functions import Prompt
from ..rewards.answer_extraction import find_answer
from ..rewards.common import after_thinking
from ._gated_revision import read_verdict
from .answers import whole_text
from .chat import Chat, Conversation
from .key_conditions import KINDS, KeyCondition, find_numbers, key_condition, last_number, locate
from .strategy import Asking, Problem, Trace


# The texts; each can be replaced. {mask} stands for [X].
IDENTIFY = (
    "{question}\n\nWhich {kind} of this question matters most for its answer? List the candidates with a reason each, "
    "then end with: The most relevant {kind} is (copy it from the question) and its category is (category)."
)
VERIFY = (
    "{masked_question} Suppose the answer is {answer}. What is {mask}?{category} Think step by step, then end with: "
    "{mask} refers to: (what it is)"
)
PROPOSITION = (
    'Is this proposition correct? If the answer to the question "{masked_question}" is {answer} when {mask} is '
    '"{condition}", then {mask} could also be "{prediction}". End with one word: CORRECT or INCORRECT.'
)
EXCLUDE = "{question} (The answer is likely not in list [{answers}])"


def number_or_final_answer(response: str) -> str | None:
    """The final answer of a response as it is written there; where it keeps to no form, its last number."""
    text = after_thinking(response)
    answer = find_answer(text).answer
    if answer is None and (numbers := find_numbers(text)):
        answer = text[slice(*numbers[-1].span)]
    return answer


def same_answer(a: str, b: str) -> bool:
    """Whether two answers are the same number, or else the same text but for case and space."""
    values = last_number(a), last_number(b)
    return values[0] == values[1] if None not in values else a.lower().split() == b.lower().split()


def proco(
    chat: Chat,
    problem: Problem,
    kind: str = "number",
    rounds: int = 3,
    ask_for_condition: bool = False,
    extract_answer: Callable[[str], str | None] | None = None,
    question_column: str | None = None,
    mask: str | None = None,
    identify: str = IDENTIFY,
    verify: str = VERIFY,
    proposition: str | None = PROPOSITION,
    exclude: str = EXCLUDE,
) -> Asking:
    """
    Answer; verify the answer by the key condition; where it is refuted, answer again without the refuted answers.

    The strategy stops with an answer that is verified (`verified`), that the model gave before (`repeated`), that
    cannot be verified because it has no answer to be found (`no answer`) or the reply names no condition (`no
    verdict`), because the question has no condition to hide (`no key condition`), or after the last round.

    Departures: the paper finds a number by the similarity of its sentence to what is asked and lets the model name an
    entity or a concept; here both are found by rules (`key_conditions.py`) unless `ask_for_condition` is set. Its code
    takes two names for the same if they differ in at most 5 letters, here in at most 5 and a quarter of the longer
    one. Its code writes the question in lower case; here it stays as it is. The prompts are our own, without examples.

    Args:
        chat ([`Chat`]):
            The model.
        problem ([`Problem`]):
            The problem.
        kind (`str`, *optional*, defaults to `"number"`):
            Of key condition: `"number"` for arithmetic, `"entity"` for open-domain questions, `"concept"` for
            commonsense questions.
        rounds (`int`, *optional*, defaults to `3`):
            Most new answers. The paper's code has 5.
        ask_for_condition (`bool`, *optional*, defaults to `False`):
            Whether the model names the condition; the rules are used where it names none that the question has.
        extract_answer (`Callable`, *optional*):
            From a response to its answer as the prompts shall name it. By default the final answer or last number for
            numbers, the whole text for the others.
        question_column (`str`, *optional*):
            The column with the bare question, if the prompt holds more than that. By default the user's last message.
        mask (`str`, *optional*):
            What hides the condition, by default `[X]`.
        identify, verify, exclude (`str`, *optional*):
            The texts that ask for the condition, for the hidden condition and for another answer, with the places of
            the defaults.
        proposition (`str`, *optional*):
            For entities and concepts: has the model judge a prediction that is not the hidden condition. `None`: such
            a prediction refutes the answer.

    Raises:
        BadInput: If `kind` is unknown, or the problem lacks the column.

    Example:

    ```python
    chat = LocalChat(model, tokenizer)
    problems = [Problem("Sara had 12 apples and ate 5 of them. How many are left?")]
    traces = run([proco(chat, problem) for problem in problems])
    ```
    """
    if kind not in KINDS:
        raise BadInput(f"`kind={kind!r}` is no kind of key condition; use one of {', '.join(KINDS)}.")
    extract_answer = extract_answer or (number_or_final_answer if kind == "number" else whole_text)
    question = question_of(problem, question_column)
    trace = Trace()
    talk = trace.open(chat, problem.prompt, chat_template_kwargs=problem.chat_template_kwargs)
    response = yield talk
    trace.answer(response)
    condition, category = key_condition(question, kind, mask), None
    if ask_for_condition:
        reply = yield _ask(chat, trace, problem, identify.format(question=question, kind=kind))
        condition, category = read_condition(after_thinking(reply), question, kind, mask) or (condition, None)
    if condition is None:
        return trace.end("no key condition")
    answers = []
    for _ in range(rounds):
        answer = extract_answer(response)
        if answer is None:
            return trace.end("no answer")
        if any(same_answer(answer, refuted) for refuted in answers):
            return trace.end("repeated")
        verdict = yield from _verify(chat, trace, problem, condition, category, answer, verify, proposition)
        if verdict is not False:
            return trace.end("verified" if verdict else "no verdict")
        answers.append(answer)
        again = _replace_question(
            problem.prompt, question, exclude.format(question=question, answers=", ".join(answers))
        )
        response = yield trace.open(chat, again, chat_template_kwargs=problem.chat_template_kwargs)
        trace.answer(response)
    return trace.end("last round")


def verify_by_key_condition(
    chat: Chat,
    trace: Trace,
    problem: Problem,
    response: str,
    talk: Conversation,
    kind: str = "number",
    extract_answer: Callable[[str], str | None] | None = None,
    question_column: str | None = None,
    mask: str | None = None,
    verify: str = VERIFY,
    proposition: str | None = PROPOSITION,
) -> Generator[Any, Any, bool | None]:
    """
    ProCo's verification as a check for [`~inference.gated_revision`].

    Args:
        chat, trace, problem, response, talk:
            See `gated_revision.Check`.
        kind, extract_answer, question_column, mask, verify, proposition:
            See [`proco`]; `proposition=None` asks for none.
    """
    extract_answer = extract_answer or (number_or_final_answer if kind == "number" else whole_text)
    answer = extract_answer(response)
    condition = key_condition(question_of(problem, question_column), kind, mask)
    if answer is None or condition is None:
        return None
    return (yield from _verify(chat, trace, problem, condition, None, answer, verify, proposition))


def question_of(problem: Problem, column: str | None = None) -> str:
    """
    The text of a problem's question.

    Args:
        problem ([`Problem`]):
            The problem.
        column (`str`, *optional*):
            Where the bare question is; by default it is the user's last message, or the plain prompt.

    Raises:
        BadInput: If the problem lacks the column.
    """
    if column is not None:
        if column not in problem.columns:
            found = ", ".join(problem.columns) or "none"
            raise BadInput(f"`question_column={column!r}`: the dataset has no such column (its columns: {found}).")
        return str(problem.columns[column])
    return message_text(problem.prompt)


def read_condition(
    reply: str, question: str, kind: str, mask: str | None = None
) -> tuple[KeyCondition, str | None] | None:
    """The key condition that a reply names, with its category; `None` if it names none that the question has."""
    named = re.findall(
        rf"most relevant {kind} is (.+?)(?: and its category is (.+))?$", reply, re.IGNORECASE | re.MULTILINE
    )
    condition = locate(question, named[-1][0], kind, mask=mask) if named else None
    return None if condition is None else (condition, named[-1][1].strip(" .()\"'") or None)


def _ask(chat: Chat, trace: Trace, problem: Problem, text: str) -> Conversation:
    """A conversation of its own, in the form of the problem's."""
    prompt = text if isinstance(problem.prompt, str) else [{"role": "user", "content": text}]
    return trace.open(chat, prompt, chat_template_kwargs=problem.chat_template_kwargs)


def _verify(
    chat: Chat,
    trace: Trace,
    problem: Problem,
    condition: KeyCondition,
    category: str | None,
    answer: str,
    verify: str,
    proposition: str | None,
) -> Generator[Any, Any, bool | None]:
    """Whether the model finds the hidden condition from the answer; `None` if its reply names nothing."""
    asked = {"masked_question": condition.masked_question, "mask": condition.mask, "answer": answer}
    category = "" if category is None else f" (The category of {condition.mask} is {category}.)"
    talk = _ask(chat, trace, problem, verify.format(**asked, category=category))
    n_cut_off = trace.cut_off
    reply = yield talk
    if trace.cut_off > n_cut_off:  # its last line is half a thought
        return None
    prediction = read_prediction(reply, condition.mask)
    if condition.kind == "number":
        numbers = find_numbers(prediction)
        value = numbers[0].value if numbers else last_number(prediction)
        return None if value is None else value == condition.number
    if not prediction:
        return None
    if same_phrase(prediction, condition.text):
        return True
    if proposition is None:
        return False
    text = proposition.format(**asked, condition=condition.text, prediction=prediction)
    return read_verdict((yield _ask(chat, trace, problem, text)))


# "7 + 5 = 12" is 12
_SUM = re.compile(r"^[\d\s.,()$%+*/×÷−-]{1,200}=\s*(?=\S)")


def read_prediction(reply: str, mask: str) -> str:
    """What a reply says the mask stands for: what follows the last `[X] refers to:`, `[X] is` or `[X] =`, else its
    last line."""
    text = after_thinking(reply).strip()
    named = re.findall(rf"{re.escape(mask)}\s*(?:refers to|is|=)\s*:?\s*(\S[^\n]*)", text, re.IGNORECASE)
    if named:
        return _SUM.sub("", named[-1].strip()).rstrip(".")
    return text.splitlines()[-1].strip() if text else ""


def same_phrase(a: str, b: str) -> bool:
    """Whether two names mean the same: equal but for case, articles and punctuation, one within the other, or a few
    letters apart."""
    a, b = (
        " ".join(word for word in re.findall(r"\w+", text.lower()) if word not in ("a", "an", "the"))
        for text in (a, b)
    )
    if not a or not b:
        return False
    if a == b or f" {a} " in f" {b} " or f" {b} " in f" {a} ":
        return True
    return Levenshtein.distance(a, b) <= min(5, max(len(a), len(b)) // 4)


def _replace_question(prompt: Prompt, question: str, new: str) -> Prompt:
    """The prompt with another question; where the prompt does not hold it word for word, behind it."""
    if isinstance(prompt, str):
        return prompt.replace(question, new) if question in prompt else f"{prompt}\n\n{new}"
    content = prompt[-1]["content"]
    if isinstance(content, str):
        return [*prompt[:-1], {**prompt[-1], "content": _replace_question(content, question, new)}]
    parts = [part for part in content if part.get("type") != "text"]
    text = _replace_question(message_text(prompt), question, new)
    return [*prompt[:-1], {**prompt[-1], "content": [*parts, {"type": "text", "text": text}]}]
