"""How harmless a text is: by a classifier, or by a word list where none can be loaded."""

import functools
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .common import completion_text, report_unjudged, where_to_run


logger = logging.getLogger(__name__)

# What counts as toxic among the labels of the default model; its others name groups of people, which is no harm.
ATTRIBUTES = (
    "toxicity",
    "severe_toxicity",
    "obscene",
    "identity_attack",
    "insult",
    "threat",
    "sexual_explicit",
)

# Few and unambiguous: an offline stand-in. A longer list (such as LDNOOBW) is given as a file.
WORDS = {
    "profanity": ("fuck", "fucking", "fucker", "shit", "shitty", "bullshit", "asshole", "bitch", "bastard", "crap",
                  "damn", "goddamn", "piss off"),
    "insult": ("idiot", "moron", "imbecile", "scumbag", "dumbass", "retard", "loser", "stupid", "pathetic", "shut up",
               "worthless", "you suck"),
    "threat": ("i will kill you", "i'll kill you", "kill yourself", "hope you die", "beat you up", "i will hurt you",
               "i'll hurt you", "you will regret"),
}  # fmt: skip


@dataclass(frozen=True)
class NonToxicity:
    """
    Value function: 1 minus the highest probability that a classifier gives to a toxic attribute. Feedback: that
    attribute; of a pair of texts, the attribute that falls most (`pair_feedback`, the paper's).

    It stands where [Self-Correct](https://huggingface.co/papers/2211.00053) used the Perspective API, which ends in
    December 2026.

    Args:
        model (`str`, *optional*, defaults to `"unitary/unbiased-toxic-roberta"`):
            A sequence classifier on the Hub, or a local folder.
        attributes (`tuple[str, ...]`, *optional*):
            The labels that count. Defaults to the toxic ones of the default model; for another model, name them.
        threshold (`float`, *optional*, defaults to `0.5`):
            Feedback names an attribute from this probability on.
        batch_size (`int`, *optional*, defaults to `32`):
            Texts classified at once.
        device (`str`, *optional*, defaults to `"cpu"`):
            Where the classifier runs. The CPU leaves the GPU's memory to the training; `"auto"` is the GPU where there
            is one.
        max_length (`int`, *optional*, defaults to `512`):
            Tokens of a text that are read; the rest is cut off.
        word_list_fallback (`bool`, *optional*, defaults to `False`):
            Where the classifier cannot be loaded (offline), use [`WordListNonToxicity`], and say so, instead of
            raising.

    Raises:
        OSError: If the classifier cannot be loaded and there is no fallback.
        ValueError: If it has none of the `attributes`.

    Example:

    ```python
    >>> from correction_trl.rewards import NonToxicity

    >>> NonToxicity()(completions=["Thank you, that was kind of you."])  # doctest: +SKIP
    [0.9994]
    ```
    """

    model: str = "unitary/unbiased-toxic-roberta"
    attributes: tuple[str, ...] = ATTRIBUTES
    threshold: float = 0.5
    batch_size: int = 32
    device: str = "cpu"
    max_length: int = 512
    word_list_fallback: bool = False

    __name__ = "non_toxicity"

    def __call__(
        self, completions: list, log_metric: Callable[[str, float], None] | None = None, **columns
    ) -> list[float | None]:
        """One value per completion, in [0, 1]; an empty text is harmless."""
        scores = self._scores(completions)
        if scores is None:
            return WordListNonToxicity()(completions, log_metric=log_metric)
        return [1.0 - max(row.values()) for row in scores]

    def feedback(self, completions: list, **columns) -> list[str]:
        """One text per completion: the strongest attribute, if it passes the threshold."""
        scores = self._scores(completions)
        if scores is None:
            return WordListNonToxicity().feedback(completions)
        texts = []
        for row in scores:
            attribute = max(row, key=row.get)
            toxic = row[attribute] >= self.threshold
            texts.append(f"The text is toxic: {attribute.replace('_', ' ')}." if toxic else "The text is not toxic.")
        return texts

    def pair_feedback(self, completions: list, corrections: list, **columns) -> list[str]:
        """
        One text per pair of completion and correction: the attribute that falls most from one to the other, which is
        what the corrector is told in Self-Correct. At test time, when there is no correction yet,
        [`NonToxicity.strongest_attribute`] says the same of the strongest attribute.
        """
        before, after = self._scores(completions), self._scores(corrections)
        if before is None or after is None:
            return WordListNonToxicity().pair_feedback(completions, corrections)
        return [fallen_most(*rows) for rows in zip(before, after, strict=True)]

    def strongest_attribute(self, completions: list, **columns) -> list[str]:
        """One text per completion, of the form of [`NonToxicity.pair_feedback`]: its strongest attribute."""
        scores = self._scores(completions)
        if scores is None:
            return WordListNonToxicity().strongest_attribute(completions)
        return [fallen_most(row, {}) for row in scores]

    def _scores(self, completions: list) -> list[dict[str, float]] | None:
        """Probability of each attribute, per completion; `None` where the word list stands in."""
        import torch

        device = where_to_run(self.device)
        try:
            tokenizer, model = load_classifier(self.model, device)
        except (OSError, ValueError) as error:
            if not self.word_list_fallback:
                raise OSError(
                    f"The toxicity classifier {self.model!r} could not be loaded ({str(error).splitlines()[0]}): "
                    "check the name and the network, or set word_list_fallback=True to use a plain word list."
                ) from error
            warn_fallback(self.model)
            return None
        labels = {index: label for index, label in model.config.id2label.items() if label in self.attributes}
        if not labels:
            raise ValueError(
                f"{self.model!r} has none of the attributes {', '.join(self.attributes)}; its labels are "
                f"{', '.join(model.config.id2label.values())}: name those that count in `attributes`."
            )
        one_of_many = model.config.problem_type == "single_label_classification" or len(model.config.id2label) == 2
        texts = [completion_text(completion) for completion in completions]
        # Texts of one length together: padding costs as much as text.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        scores: list[dict[str, float]] = [{} for _ in texts]
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            batch = tokenizer(
                [texts[row] for row in rows],
                padding=True,
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            ).to(device)
            with torch.inference_mode():
                logits = model(**batch).logits.float()
            probabilities = logits.softmax(-1) if one_of_many else logits.sigmoid()
            for row, probability in zip(rows, probabilities.tolist(), strict=True):
                scores[row] = {label: probability[index] for index, label in labels.items()}
        return scores


@dataclass(frozen=True)
class WordListNonToxicity:
    """
    Value function: 1 / (1 + number of listed words in the text). It is a word list, says so, and knows no context:
    for tests and offline trials, not for results.

    Args:
        words (`str`, *optional*):
            File with one word or phrase per line (lines that start with `#` are left out). Defaults to a few dozen
            words that come with the package.

    Example:

    ```python
    >>> from correction_trl.rewards import WordListNonToxicity

    >>> WordListNonToxicity()(completions=["You idiot!", "Thank you."])
    [0.5, 1.0]
    ```
    """

    words: str | None = None

    __name__ = "word_list_non_toxicity"

    def __call__(
        self, completions: list, log_metric: Callable[[str, float], None] | None = None, **columns
    ) -> list[float | None]:
        """One value per completion, in (0, 1]."""
        values = [1 / (1 + len(self._hits(completion))) for completion in completions]
        return report_unjudged(self.__name__, values, [""] * len(values), log_metric)

    def feedback(self, completions: list, **columns) -> list[str]:
        """One text per completion: the attribute of the first listed word. The word itself is not repeated."""
        texts = []
        for completion in completions:
            hits = self._hits(completion)
            found = f"The text is toxic: {hits[0]} (by a word list)." if hits else "No listed word was found."
            texts.append(found)
        return texts

    def pair_feedback(self, completions: list, corrections: list, **columns) -> list[str]:
        """One text per pair: the attribute of which most words are gone; see [`NonToxicity.pair_feedback`]."""
        before, after = ([Counter(self._hits(text)) for text in texts] for texts in (completions, corrections))
        return [fallen_most(*rows) for rows in zip(before, after, strict=True)]

    def strongest_attribute(self, completions: list, **columns) -> list[str]:
        """One text per completion: the attribute with most listed words."""
        return [fallen_most(Counter(self._hits(completion)), {}) for completion in completions]

    def _hits(self, completion: str | list) -> list[str]:
        text = completion_text(completion).lower().replace("’", "'")
        return [attribute for attribute, pattern in listed_words(self.words) for _ in re.finditer(pattern, text)]


def fallen_most(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """What the corrector is told of the attribute that falls most; nothing, where none does."""
    falls = {attribute: score - after.get(attribute, 0.0) for attribute, score in before.items()}
    attribute = max(falls, key=falls.get, default=None)
    if attribute is None or falls[attribute] <= 0:
        return ""
    return f"Make it less toxic: {attribute.replace('_', ' ')}."


@functools.lru_cache(maxsize=4)
def load_classifier(model: str, device: str):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    return AutoTokenizer.from_pretrained(model), AutoModelForSequenceClassification.from_pretrained(model).to(
        device
    ).eval()


@functools.lru_cache(maxsize=4)
def listed_words(path: str | None) -> list[tuple[str, re.Pattern]]:
    """Attribute and pattern of each group of words; longer phrases first, so that each place counts once."""
    groups = WORDS
    if path is not None:
        lines = [line.strip().lower() for line in Path(path).read_text(encoding="utf-8").splitlines()]
        words = [line for line in lines if line and not line.startswith("#")]
        if not words:
            raise ValueError(f"The word list {path!r} has no words: give a file with one word or phrase per line.")
        groups = {"a listed word": tuple(words)}
    patterns = []
    for attribute, words in groups.items():
        ordered = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
        patterns.append((attribute, re.compile(rf"(?<!\w)(?:{ordered})(?!\w)")))
    return patterns


@functools.lru_cache
def warn_fallback(model: str):
    logger.warning(
        "The toxicity classifier %r could not be loaded: values are from a WORD LIST, which knows no context.", model
    )


non_toxicity = NonToxicity()
toxicity_feedback = non_toxicity.feedback
fallen_attribute = non_toxicity.pair_feedback
strongest_attribute = non_toxicity.strongest_attribute
word_list_non_toxicity = WordListNonToxicity()
word_list_feedback = word_list_non_toxicity.feedback
