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
from ..errors import BadInput, first_line
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
GENERATE_PASSAGE = "Write a background document that helps to answer this question.\n\n{question}"
READ_PASSAGES = "Passage: {passages}\n\nRefer to the passage above to answer this question.\n\nQuestion: {question}"


def number_or_final_answer(response: str) -> str | None:
    """The final answer of a response as it is written there; where it keeps to no form, its last number."""
    text = after_thinking(response)
    answer = find_answer(text).answer
    if answer is None and (numbers := find_numbers(text)):
        answer = text[slice(*numbers[-1].span)]
    return answer


def same_answer(a: str, b: str, kind: str = "number") -> bool:
    """Whether two answers are the same text but for case and space; or, to problems with numbers, the same number."""
    values = (last_number(a), last_number(b)) if kind == "number" else (None,)
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
    passages: str | Callable[[str], list[str]] | None = None,
    generate_passage: str = GENERATE_PASSAGE,
    read_passages: str = READ_PASSAGES,
    choices_column: str | None = None,
) -> Asking:
    """
    Answer; verify the answer by the key condition; where it is refuted, answer again without the refuted answers.

    With `passages` each answer, the first and every new one, is given from a passage of its own: GenRead's generated
    document, or what a function retrieves. With `rounds: 0` that is GenRead, or retrieval, alone; so is the first
    response of a trace.

    The strategy stops with an answer that is verified (`verified`), that the model gave before (`repeated`), that
    cannot be verified because it has no answer to be found (`no answer`) or no check can be read (`no verdict`),
    because the question has no condition to hide (`no key condition`), or after the last round. To an entity or a
    concept a check that cannot be read goes on to the proposition, with "None" for what it named, as in the authors'
    code.

    Departures: the authors' code asks for the proposition first and compares names after it; here it is asked only
    where the names differ, which decides the same with fewer tokens. The paper finds a number by the similarity of
    its sentence to what is asked and lets the model name an entity or a concept; here both are found by rules
    (`key_conditions.py`) unless `ask_for_condition` is set. The authors' code takes two names for the same if they
    differ in at most 5 letters, here in at most 5 and a quarter of the longer one. It writes the question in lower
    case; here it stays as it is. The prompts are our own, without examples.

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
        passages (`str` or `Callable`, *optional*):
            `"generate"`: the model first writes a background document, as in GenRead. A function from a question to a
            list of passages: retrieval. It gets the question of the round, which names the refuted answers.
        generate_passage, read_passages (`str`, *optional*):
            The texts that ask for the document, and for an answer from passages, with the places of the defaults.
        choices_column (`str`, *optional*):
            For multiple choice: the column with the texts of the choices in the order of their letters. An answer that
            is a letter is named by its text, since a letter says nothing in a verification.

    Raises:
        BadInput: If `kind` is unknown, the problem lacks a column, or the function of passages returns none.

    Example:

    ```python
    chat = LocalChat(model, tokenizer)
    problems = [Problem("Sara had 12 apples and ate 5 of them. How many are left?")]
    traces = run([proco(chat, problem) for problem in problems])
    ```
    """
    if kind not in KINDS:
        raise BadInput(f"`kind={kind!r}` is no kind of key condition; use one of {', '.join(KINDS)}.")
    if isinstance(passages, str) and passages != "generate":
        raise BadInput(f"`passages={passages!r}` is neither 'generate' nor a function 'module:function'.")
    extract_answer = _answer_reader(problem, kind, extract_answer, choices_column)
    question = question_of(problem, question_column)
    trace = Trace()

    def attempt(asked: str) -> Generator[Any, Any, str]:
        if passages is not None:
            if callable(passages):
                found = _retrieved(passages, asked)
            else:
                found = yield _ask(chat, trace, problem, generate_passage.format(question=asked))
                found = after_thinking(found).strip()
            asked = read_passages.format(passages=found, question=asked)
        prompt = problem.prompt if asked == question else _replace_question(problem.prompt, question, asked)
        response = yield trace.open(chat, prompt, chat_template_kwargs=problem.chat_template_kwargs)
        trace.answer(response)
        return response

    response = yield from attempt(question)
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
        if any(same_answer(answer, refuted, kind) for refuted in answers):
            return trace.end("repeated")
        verdict = yield from _verify(chat, trace, problem, condition, category, answer, verify, proposition)
        if verdict is not False:
            return trace.end("verified" if verdict else "no verdict")
        answers.append(answer)
        response = yield from attempt(exclude.format(question=question, answers=", ".join(answers)))
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
    choices_column: str | None = None,
) -> Generator[Any, Any, bool | None]:
    """
    ProCo's verification as a check for [`~inference.gated_revision`].

    Args:
        chat, trace, problem, response, talk:
            See `gated_revision.Check`.
        kind, extract_answer, question_column, mask, verify, proposition, choices_column:
            See [`proco`]; `proposition=None` asks for none.
    """
    answer = _answer_reader(problem, kind, extract_answer, choices_column)(response)
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


def _answer_reader(
    problem: Problem, kind: str, extract_answer: Callable[[str], str | None] | None, choices_column: str | None
) -> Callable[[str], str | None]:
    """From a response to its answer, as a verification shall name it."""
    extract_answer = extract_answer or (number_or_final_answer if kind == "number" else whole_text)
    if choices_column is None:
        return extract_answer
    choices = problem.columns.get(choices_column)
    if not isinstance(choices, list | tuple) or not all(isinstance(text, str) for text in choices):
        found = ", ".join(problem.columns) or "none"
        raise BadInput(
            f"`choices_column={choices_column!r}`: the dataset has no such column with a list of texts (its columns: "
            f"{found})."
        )
    of_letter = dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", choices, strict=False))

    def named(response: str) -> str | None:
        answer = extract_answer(response)
        return of_letter.get(answer, answer)

    return named


def _retrieved(function: Callable[[str], list[str]], question: str) -> str:
    """What a user's function finds for a question, as one text."""
    name = getattr(function, "__name__", type(function).__name__)
    try:
        passages = function(question)
    except Exception as error:
        reason = f"{type(error).__name__} on the question {question!r:.200}: {first_line(error)}"
        raise BadInput(f"`passages`: {name!r} raised {reason}") from error
    if not isinstance(passages, list | tuple) or not passages or not all(isinstance(text, str) for text in passages):
        returned = "nothing" if passages is None or passages in ([], ()) else f"{passages!r:.80}"
        raise BadInput(
            f"`passages`: {name!r} returned {returned} for the question {question!r:.200}; it has to return a list "
            'of texts, and [""] where it finds none.'
        )
    return "\n\n".join(passages)


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
    """Whether the model finds the hidden condition from the answer; `None` if no check can be read."""
    asked = {"masked_question": condition.masked_question, "mask": condition.mask, "answer": answer}
    category = "" if category is None else f" (The category of {condition.mask} is {category}.)"
    talk = _ask(chat, trace, problem, verify.format(**asked, category=category))
    n_cut_off = trace.cut_off
    reply = yield talk
    # Where it is cut off, its last line is half a thought
    prediction = "" if trace.cut_off > n_cut_off else read_prediction(reply, condition.mask)
    if condition.kind == "number":
        numbers = find_numbers(prediction)
        value = numbers[0].value if numbers else last_number(prediction)
        return None if value is None else value == condition.number
    if prediction and same_phrase(prediction, condition.text):
        return True
    if proposition is None:
        return False if prediction else None
    prediction = prediction or "None"
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
