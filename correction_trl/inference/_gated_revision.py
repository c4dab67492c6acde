"""Gated revision: only what the model's own check refutes is revised, so that right answers are left alone."""

import re
from collections.abc import Callable, Generator
from typing import Any

from ..policy.attempts import SELF_CORRECTION_INSTRUCTION
from ..rewards.common import after_thinking
from .answers import whole_text
from .chat import Chat, Conversation
from .strategy import Asking, Problem, Trace


# check(chat, trace, problem, response, talk) -> True (the response holds), False (it is refuted) or None (no verdict);
# `talk` is the conversation that ends with the response
Check = Callable[[Chat, Trace, Problem, str, Conversation], Generator[Any, Any, bool | None]]

QUESTION = (
    "Check the answer above step by step. Then end with one word on a line of its own: CORRECT if the answer is "
    "right, WRONG if it is not."
)


def ask_whether_right(
    chat: Chat, trace: Trace, problem: Problem, response: str, talk: Conversation, question: str = QUESTION
) -> Generator[Any, Any, bool | None]:
    """
    A check: the model is asked, in a conversation that a revision does not see, whether its answer is right.

    Args:
        chat, trace, problem, response, talk:
            See `Check`.
        question (`str`, *optional*):
            It should ask for CORRECT or WRONG; [`read_verdict`] understands other words as well. A check that was cut
            off has no verdict.
    """
    n_cut_off = trace.cut_off
    reply = yield trace.fork(talk).say(question)
    return None if trace.cut_off > n_cut_off else read_verdict(reply)  # half a check has not come to its verdict


_NOT = r"(?:not|never|cannot|no\s+longer|(?:is|was|are|were|does|do|did|has|have|ca|could|wo|would)n['\u2019]t"
_NOT += r"|hardly|barely|scarcely|far\s+from)"
_FAULT = r"(?:errors?|mistakes?|flaws?|inaccurac(?:y|ies))"
_WORDS = r"(?:\w+\s+){0,3}?"
_NOT_NO = r"(?:(?!(?:no|not|without|free|zero)\b)\w+\s+){0,3}?"
_RIGHT, _WRONG = r"(?:correct|right|true|accurate|valid)", r"(?:wrong|incorrect|false|mistaken)"
_THINK = r"(?:think|believe|consider|feel|agree)"
_NONE_OF = r"(?:no|without(?:\s+any)?|free\s+of|zero|not\s+(?:find|see|contain)(?:\s+any)?)"
_SOME = r"(?:an?|some|one|two|three|several|the|this|\d+)"
# Whether the answer holds: yes, no, or `None` where the words say nothing about it. A phrase stands before the words
# within it, so that it is read first.
_VERDICTS: list[tuple[str, bool | None]] = [
    (r"\b(?:to|must|should|please|can|will|would)\s+correct\b(?!\s*[.!?]|\s*$)", None),
    (r"\b(?:correct|right)\s+(?:final\s+)?(?:answer|result|value|solution)s?\s+(?:is|are|was|would|should)\b", None),
    (r"\b(?:correct|right|true|false|wrong)\s+(?:side|hand|triangle|angles?|order|digits?)\b", None),
    (r"\b(?:correct|right|true)\s+or\s+(?:wrong|incorrect|not|false)\b", None),
    (rf"\b{_NONE_OF}\s+{_WORDS}(?:{_FAULT}|issues?|problems?|changes?|corrections?|revisions?)\b", True),
    (r"\bnothing\s+(?:is\s+|was\s+)?(?:wrong|incorrect|amiss|to\s+(?:correct|change|fix|revise))\b", True),
    (rf"\b{_NOT}\s+(?:\w+\s+){{0,5}}?{_FAULT}\b", True),
    (rf"\b{_NOT}\s+{_WORDS}{_WRONG}\b", True),
    (rf"\b{_NOT}\s+{_WORDS}{_RIGHT}\b", False),
    (rf"\b{_NOT}\s+{_THINK}\s+(?:\w+\s+){{0,8}}?{_WRONG}\b", True),
    (rf"\b{_NOT}\s+{_THINK}\s+(?:\w+\s+){{0,8}}?{_RIGHT}\b", False),
    (rf"\b{_SOME}\s+{_NOT_NO}{_FAULT}\b", False),
    (rf"\b(?:there\s+(?:are|is|were|was)|contains?|has|have|made|makes)\s+{_NOT_NO}{_FAULT}\b", False),
    (r"\blooks\s+(?:good|fine|ok|okay)\b", True),
    (r"\b(?:all|every|everything)\s+(?:\w+\s+){0,2}?(?:is|are)\s+(?:good|fine|valid|sound|ok|okay)\b", True),
    (r"\b(?:correct|right|yes|true|accurate)\b", True),
    (r"\b(?:wrong|incorrect|false|mistaken|inaccurate|invalid|erroneous)\b", False),
    (r"\bno\b(?=\s*(?:[.,;:!?\n]|$))", False),
]
_ANY_VERDICT = re.compile("|".join(f"({pattern})" for pattern, _ in _VERDICTS), re.IGNORECASE)
_FIRST_WORD = re.compile(
    r"[\W_]*(yes|no|correct|incorrect|right|wrong|true|false)\s*(?:[.,;:!\u2014-]|$)", re.IGNORECASE
)
_IS_RIGHT = {"yes": True, "correct": True, "right": True, "true": True}


def read_verdict(reply: str) -> bool | None:
    """
    Whether a reply says that an answer holds; `None` if it does not say.

    A last line that is a verdict and nothing else decides, then a first word that is one ("Yes, ..."), then the last
    phrase that speaks of it. "Not quite right" refutes, "no errors" and "nothing is wrong" do not.
    """
    text = after_thinking(reply).strip()
    lines = text.splitlines()
    last = lines[-1].strip(" \t*_`#.!\"'()[]").lower() if lines else ""
    last = last.removeprefix("verdict:").removeprefix("answer:").strip(" *_`")
    if last in ("yes", "no", "correct", "incorrect", "right", "wrong", "true", "false"):
        return _IS_RIGHT.get(last, False)
    first = _FIRST_WORD.match(text)
    if first:
        return _IS_RIGHT.get(first[1].lower(), False)
    verdicts = [_VERDICTS[match.lastindex - 1][1] for match in _ANY_VERDICT.finditer(text)]
    return next((verdict for verdict in reversed(verdicts) if verdict is not None), None)


def samples_agree(
    chat: Chat,
    trace: Trace,
    problem: Problem,
    response: str,
    talk: Conversation,
    samples: int = 1,
    share: float = 1.0,
    temperature: float = 1.0,
    extract_answer: Callable[[str], str | None] = whole_text,
) -> Generator[Any, Any, bool | None]:
    """
    A check for models that cannot judge in words: fresh samples give the same answer.

    Args:
        chat, trace, problem, response, talk:
            See `Check`.
        samples (`int`, *optional*, defaults to `1`):
            Fresh samples.
        share (`float`, *optional*, defaults to `1.0`):
            The response holds if at least this share of them agrees.
        temperature (`float`, *optional*, defaults to `1.0`):
            Of the samples.
        extract_answer (`Callable`, *optional*):
            See `answers.py`; by default the whole text.
    """
    kwargs = problem.chat_template_kwargs
    talks = [
        trace.open(chat, problem.prompt, temperature=temperature, chat_template_kwargs=kwargs) for _ in range(samples)
    ]
    replies = yield talks
    agreeing = sum(extract_answer(reply) == extract_answer(response) for reply in replies)
    return agreeing >= share * samples


def gated_revision(
    chat: Chat,
    problem: Problem,
    rounds: int = 1,
    check: Check = ask_whether_right,
    instruction: str = SELF_CORRECTION_INSTRUCTION,
) -> Asking:
    """
    An attempt; a check; where that refutes the attempt, a revision in the same conversation, and so on. A check
    without a verdict changes nothing.

    Args:
        chat ([`Chat`]):
            The model.
        problem ([`Problem`]):
            The problem.
        rounds (`int`, *optional*, defaults to `1`):
            Most revisions.
        check (`Callable`, *optional*, defaults to `ask_whether_right`):
            [`ask_whether_right`], [`samples_agree`], ProCo's verification, or one's own; settings are bound with
            `functools.partial`.
        instruction (`str`, *optional*):
            Asks for the revision.
    """
    trace = Trace()
    talk = trace.open(chat, problem.prompt, chat_template_kwargs=problem.chat_template_kwargs)
    response = yield talk
    trace.answer(response)
    for _ in range(rounds):
        verdict = yield from check(chat, trace, problem, response, talk)
        if verdict is not False:
            return trace.end("held" if verdict else "no verdict")
        response = yield talk.say(instruction)
        trace.answer(response)
    return trace.end("last round")
