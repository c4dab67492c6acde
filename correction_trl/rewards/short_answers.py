"""Short answers to open-domain questions: exact match and F1 against any of several right answers, as in SQuAD."""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .common import after_thinking, completion_text, read_column, report_unjudged


MATCHES = ("exact", "contains", "f1")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# "The answer to the question is Paris", "Answer: Paris"
_SAID = re.compile(
    r"(?:\banswer\b[^.\n:?]{0,60}?\b(?:is|was|are|were|would be)\b|^[^\w\n]*(?:final[ \t]+)?answer[^\w\n]{0,4}?:)"
    r"[\s:]*(\S[^\n]*)",
    re.IGNORECASE | re.MULTILINE,
)
# A full stop that ends a sentence, and not "St. Louis" or "Lyndon B. Johnson"
_SENTENCE_END = re.compile(
    r"(?<![\s.(][A-Z])(?<!^[A-Z])(?<!\bSt)(?<!\bDr)(?<!\bMr)(?<!\bMs)(?<!\bMt)(?<!\bFt)(?<!\bJr)(?<!\bMrs)(?<!\bvs)"
    r"[.!?](?=\s|$)"
)


def normalize_short_answer(text: str) -> str:
    """SQuAD's normal form of an answer: lower case, without punctuation, articles and superfluous space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def short_answer(response: str) -> str | None:
    """
    The short answer of a response: what follows its last "the answer is" or "Answer:", up to the end of the sentence;
    otherwise its first line where that is short (at most 8 words), else its last. A reasoning model's thoughts do not
    count.

    Args:
        response (`str`):
            The response.

    Returns:
        `str` or `None`: The answer as it is written there; `None` for an empty response.
    """
    lines = [line.strip() for line in after_thinking(response).splitlines() if line.strip(" \t*_`#\"'")]
    if not lines:
        return None
    said = _SAID.findall("\n".join(lines))
    if said:
        line = said[-1].strip(" \t*_`\"'")
        end = _SENTENCE_END.search(line)
        line = line[: end.start()] if end and end.start() else line
    else:
        line = lines[0] if len(lines[0].split()) <= 8 else lines[-1]
    return line.strip(" \t*_`#\"'“”.") or None


def gold_answers(gold: Any) -> list[str]:
    """
    The right answers that a dataset's cell holds.

    Args:
        gold (`str`, `Sequence[str]` or `dict`):
            One answer; several; TriviaQA's `{"value", "aliases"}`; or SQuAD's `{"text"}`.

    Raises:
        ValueError: If it is something else.
    """
    if gold is None:
        return []
    if isinstance(gold, str):
        return [gold] if gold.strip() else []
    if isinstance(gold, Mapping):
        if not gold.keys() & {"value", "aliases", "text"}:
            raise ValueError(f"a gold answer with the keys {', '.join(map(str, gold))} is of no known form.")
        return [text for key in ("value", "aliases", "text") for text in gold_answers(gold.get(key))]
    if isinstance(gold, Sequence) and all(isinstance(text, str) for text in gold):
        return [text for text in gold if text.strip()]
    raise ValueError(
        f"a gold answer is text, a list of texts, or a dict with `value` and `aliases`, not {gold!r:.80}."
    )


@dataclass(frozen=True)
class ShortAnswer:
    """
    Value function: how well the short answer of a completion matches the best of the right ones.

    `None` where there is no right answer to compare with.

    Args:
        match (`str`, *optional*, defaults to `"exact"`):
            `"exact"`: 1 if one is equal in SQuAD's normal form. `"contains"`: 1 if the words of one stand in the
            answer (ProCo's code counts like this, by letters). `"f1"`: the harmonic mean of the shares of common
            words, which is a number between 0 and 1.
        gold_column (`str`, *optional*, defaults to `"answer"`):
            Dataset column of the right answers, in one of the forms that [`gold_answers`] reads.
        extract (`Callable`, *optional*):
            From the text of a completion to its answer; by default [`short_answer`].

    Example:

    ```python
    >>> from correction_trl.rewards import ShortAnswer

    >>> value = ShortAnswer("f1")
    >>> value(completions=["The answer is the Martin Freeman."], answer=[["Ian Holm", "Freeman"]])
    [0.6666666666666666]
    ```
    """

    match: str = "exact"
    gold_column: str = "answer"
    extract: Callable[[str], str | None] = short_answer

    def __post_init__(self):
        if self.match not in MATCHES:
            raise ValueError(f"match must be one of {', '.join(MATCHES)}, got {self.match!r}.")

    @property
    def __name__(self) -> str:
        return f"short_answer_{self.match}"

    def __call__(
        self, completions: list, log_metric: Callable[[str, float], None] | None = None, **columns: Any
    ) -> list[float | None]:
        """One value per completion."""
        golds = read_column(self.gold_column, self.__name__, columns, len(completions))
        values = []
        for completion, gold in zip(completions, golds, strict=True):
            right = [form for form in map(normalize_short_answer, gold_answers(gold)) if form]
            answer = normalize_short_answer(self.extract(completion_text(completion)) or "")
            values.append(max((self._compare(answer, form) for form in right), default=None))
        reasons = ["it has no gold answer"] * len(values)
        return report_unjudged(self.__name__, values, reasons, log_metric)

    def feedback(self, completions: list, **columns: Any) -> list[str]:
        """One text per completion: whether its answer is right; empty where it could not be judged."""
        texts = []
        for completion, value in zip(completions, self(completions, **columns), strict=True):
            answer = self.extract(completion_text(completion))
            if value is None:
                texts.append("")
            elif value == 1:
                texts.append("The answer is right.")
            else:
                texts.append("No answer was found." if answer is None else f"The answer, “{answer}”, is wrong.")
        return texts

    def _compare(self, answer: str, right: str) -> float:
        if self.match == "exact":
            return float(answer == right)
        if self.match == "contains":
            return float(f" {right} " in f" {answer} ")
        words, right_words = answer.split(), right.split()
        common = sum((Counter(words) & Counter(right_words)).values())
        return 2 * common / (len(words) + len(right_words))


short_answer_exact = ShortAnswer()
short_answer_contains = ShortAnswer("contains")
short_answer_f1 = ShortAnswer("f1")
