"""Words and slots that a text must realise: CommonGen's concepts, E2E's meaning representations."""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

from .common import after_thinking, completion_text, read_column, report_unjudged


WORD_CLASS = re.compile(r"_[A-Z]$")  # of the early CommonGen
WORD_OR_NUMBER = re.compile(r"[^\W\d_]+|\d+")
SPACE = re.compile(r"\s+")
SLOT = re.compile(r"(?<![^,\[\]])([^,\[\]]+)\[([^\[\]]*)\]")  # name[Blue Spice]


# ---------------------------------------------------------------------------------------------------------- concepts


@dataclass(frozen=True)
class ConceptCoverage:
    """
    Value function: the share of given words that a text has, in any order and any inflected form ("stood" covers
    "stand", "mice" covers "mouse"). Feedback: the words that are missing.

    A word of the text covers a concept if one of its possible base forms is one of the concept's: the word itself, its
    lemma ([simplemma](https://github.com/adbar/simplemma), which knows irregular forms), or its Snowball stem. This is
    the constraint coverage of [Self-Correct](https://huggingface.co/papers/2211.00053) on
    [CommonGen](https://huggingface.co/papers/1911.03705).

    Args:
        concepts (`str`, *optional*, defaults to `"concepts"`):
            Dataset column of the words: a list, or text such as `"field#look#stand"`, with or without the early
            release's `_N` and `_V`. A concept of several words must stand in the text as a phrase.
        language (`str`, *optional*, defaults to `"en"`):
            Language code for the lemmas; the stems are used for English only.

    Raises:
        ImportError: If simplemma or snowballstemmer is not installed.
        ValueError: If the column is missing.

    Example:

    ```python
    >>> from correction_trl.rewards import ConceptCoverage

    >>> value = ConceptCoverage()
    >>> value(completions=["The player stood in the field."], concepts=[["field", "look", "stand"]])
    [0.6666666666666666]
    >>> value.feedback(completions=["The player stood in the field."], concepts=[["field", "look", "stand"]])
    ['Missing words: look.']
    ```
    """

    concepts: str = "concepts"
    language: str = "en"

    __name__ = "concept_coverage"

    def __call__(
        self, completions: list, log_metric: Callable[[str, float], None] | None = None, **columns
    ) -> list[float | None]:
        """One value per completion, in [0, 1]; `None` for a row without concepts."""
        values = [
            (len(concepts) - len(missing)) / len(concepts) if concepts else None
            for concepts, missing in self._missing(completions, columns)
        ]
        return report_unjudged(self.__name__, values, ["it has no concepts"] * len(values), log_metric)

    def feedback(self, completions: list, **columns) -> list[str]:
        """One text per completion: the missing words, in the order given."""
        return [
            "" if not concepts else f"Missing words: {', '.join(missing)}." if missing else "All words are there."
            for concepts, missing in self._missing(completions, columns)
        ]

    def _missing(self, completions: list, columns: dict) -> list[tuple[list[str], list[str]]]:
        rows = read_column(self.concepts, self.__name__, columns, len(completions))
        found = []
        for completion, row in zip(completions, rows, strict=True):
            concepts = concept_list(row)
            text = after_thinking(completion_text(completion))
            found.append((concepts, [concept for concept in concepts if not covers(text, concept, self.language)]))
        return found


def concept_list(row: str | list[str] | None) -> list[str]:
    """The words of a concept set, without the early CommonGen's `_N` and `_V`."""
    words = row.split("#") if isinstance(row, str) else row or []
    return [WORD_CLASS.sub("", word.strip()) for word in words if word.strip()]


def covers(text: str, concept: str, language: str = "en") -> bool:
    """Whether a text has a concept (a word, or a phrase) in some inflected form."""
    words = [base_forms(word, language) for word in words_of(text)]
    wanted = [base_forms(word, language) for word in words_of(concept)]
    places = range(len(words) - len(wanted) + 1)
    return any(all(wanted[i] & words[place + i] for i in range(len(wanted))) for place in places)


def words_of(text: str) -> list[str]:
    return WORD_OR_NUMBER.findall(text.lower().replace("'s", " ").replace("’s", " "))


# Past forms that are also words of their own, which the lemmatiser keeps: with their other base form.
AMBIGUOUS = {
    "axes": "axis", "bases": "basis", "bit": "bite", "bore": "bear", "bound": "bind", "fell": "fall", "felt": "feel",
    "found": "find", "ground": "grind", "laid": "lay", "lay": "lie", "leaves": "leaf", "left": "leave", "rose": "rise",
    "saw": "see", "shook": "shake", "shot": "shoot", "spat": "spit", "stove": "stave", "struck": "strike",
    "thought": "think", "wound": "wind",
}  # fmt: skip


@functools.lru_cache(maxsize=100_000)
def base_forms(word: str, language: str) -> frozenset[str]:
    """The forms under which two words may meet. Marked by kind: a lemma that happens to be a stem is no match."""
    try:
        import simplemma
    except ImportError as error:
        raise ImportError("Concept coverage needs simplemma: install it with `pip install simplemma`.") from error
    lemma = simplemma.lemmatize(word, lang=language).lower()
    forms = {word, lemma}
    if language == "en":
        stem = english_stemmer().stemWord
        forms |= {f"stem {stem(word)}", f"stem {stem(lemma)}"}
        if word in AMBIGUOUS:
            forms.add(AMBIGUOUS[word])
    return frozenset(forms)


@functools.lru_cache(maxsize=1)
def english_stemmer():
    try:
        import snowballstemmer
    except ImportError as error:
        raise ImportError(
            "Concept coverage needs snowballstemmer: install it with `pip install snowballstemmer`."
        ) from error
    return snowballstemmer.stemmer("english")


# ------------------------------------------------------------------------------------------------------------- slots


# How E2E texts say a value; a value not listed must stand in the text as it is. Lower case; `|` and `.` as in regular
# expressions. https://huggingface.co/papers/1706.09254
E2E_WAYS = {
    ("familyfriendly", "yes"): r"(?<!not )(?<!non.)(?:family|families|kid|child|children)s?.?(?:friendly|welcom|are)?",
    ("familyfriendly", "no"): (
        r"(?:not?|non|isn.t|n.t|never|without|adults?.only).{0,30}(?:family|families|kid|child)|adults?.only"
        r"|(?:family|families|kids?|children).{0,20}(?:not|un)(?: be)? ?(?:welcome|allowed|recommended|friendly|suit)"
    ),
    ("pricerange", "cheap"): (
        r"cheap|inexpensive|low.?(?:er)?.?(?:price|cost)|(?:price|cost).{0,15}\blow|affordable|budget"
    ),
    ("pricerange", "moderate"): r"moderate|mid.?(?:range|price)|average.?price|reasonabl|(?:price|cost).{0,15}average",
    ("pricerange", "high"): r"high.{0,12}(?:price|cost|end)|(?:price|cost).{0,20}high|expensive|pricey",
    ("pricerange", "less than £20"): (
        r"(?:less|lower|under|below|cheaper|up to|not exceed).{0,12}£?20|(?:price|cost).{0,15}\blow|cheap"
    ),
    ("pricerange", "£20-25"): r"£?20\s?(?:-|–|to|and)\s?£?25|moderate|mid.?(?:range|price)",
    ("pricerange", "more than £30"): (
        r"(?:more|over|above|higher|excess|upwards).{0,12}£?30|high.{0,12}(?:price|cost)|expensive"
    ),
    ("customer rating", "low"): r"low|poor|\bbad|one.star|1.star|not (?:well|good|highly)",
    ("customer rating", "average"): r"average|mediocre|moderate|decent|(?:rat|review).{0,20}(?:ok|fair)",
    ("customer rating", "high"): r"high|excellent|great|well.{0,3}(?:rated|received)|top.rated|good (?:rat|review)",
    ("customer rating", "1 out of 5"): (
        r"(?:1|one)(?: star)?s? ?(?:out of|of|/) ?(?:5|five)|(?:1|one).star|low.{0,20}rat|poor"
    ),
    ("customer rating", "3 out of 5"): (
        r"(?:3|three)(?: star)?s? ?(?:out of|of|/) ?(?:5|five)|(?:3|three).star|average"
    ),
    ("customer rating", "5 out of 5"): (
        r"(?:5|five)(?: star)?s? ?(?:out of|of|/) ?(?:5|five)|(?:5|five).star|high.{0,20}rat|excellent"
    ),
    ("area", "city centre"): r"city.?cent(?:re|er)|cent(?:re|er) of (?:the )?city|down.?town|central",
    ("area", "riverside"): r"river",
    ("eattype", "coffee shop"): r"coffee|caf[eé]",
    ("eattype", "restaurant"): r"restaurant|diner|eatery|dining|bistro|serv|food",
    ("eattype", "pub"): r"\bpubs?\b|\bbars?\b|tavern",
    ("food", "english"): r"english|british|fish and chips",
    ("food", "fast food"): r"fast.?food|burger",
}  # fmt: skip


@dataclass(frozen=True)
class SlotCoverage:
    """
    Value function: the share of a meaning representation's slots that a text realises, as in the
    [E2E](https://huggingface.co/papers/1706.09254) data. Feedback: the slots that are missing.

    Names, and every value without an entry in `ways`, must stand in the text as they are, up to case; the
    others may be said in any of the ways of `ways`.

    Args:
        slots (`str`, *optional*, defaults to `"meaning_representation"`):
            Dataset column: `"name[The Eagle], food[Japanese]"`, or a dict from slot to value.
        ways (`tuple[tuple[tuple[str, str], str], ...]`, *optional*):
            Pairs of (slot, value), both in lower case, and a regular expression over lower-case text. Defaults to
            those of E2E, `tuple(E2E_WAYS.items())`.

    Example:

    ```python
    >>> from correction_trl.rewards import SlotCoverage

    >>> value = SlotCoverage()
    >>> rows = {"meaning_representation": ["name[The Eagle], food[Japanese], familyFriendly[yes]"]}
    >>> value(completions=["The Eagle is a kid friendly place."], **rows)
    [0.6666666666666666]
    >>> value.feedback(completions=["The Eagle is a kid friendly place."], **rows)
    ['Missing: food[Japanese].']
    ```
    """

    slots: str = "meaning_representation"
    ways: tuple[tuple[tuple[str, str], str], ...] = tuple(E2E_WAYS.items())

    __name__ = "slot_coverage"

    def __call__(
        self, completions: list, log_metric: Callable[[str, float], None] | None = None, **columns
    ) -> list[float | None]:
        """One value per completion, in [0, 1]; `None` for a row without slots."""
        values = [
            (len(slots) - len(missing)) / len(slots) if slots else None
            for slots, missing in self._missing(completions, columns)
        ]
        return report_unjudged(self.__name__, values, ["it has no slots"] * len(values), log_metric)

    def feedback(self, completions: list, **columns) -> list[str]:
        """One text per completion: the missing slots, in the order given."""
        texts = []
        for slots, missing in self._missing(completions, columns):
            shown = ", ".join(f"{slot}[{value}]" for slot, value in missing)
            texts.append("" if not slots else f"Missing: {shown}." if missing else "Everything is said.")
        return texts

    def _missing(self, completions: list, columns: dict) -> list[tuple[list, list]]:
        rows = read_column(self.slots, self.__name__, columns, len(completions))
        ways = dict(self.ways)
        found = []
        for completion, row in zip(completions, rows, strict=True):
            slots = slot_list(row)
            text = SPACE.sub(" ", after_thinking(completion_text(completion)).lower())
            missing = [
                (slot, value)
                for slot, value in slots
                if not re.search(ways.get((slot.lower(), value.lower()), as_it_is(value)), text)
            ]
            found.append((slots, missing))
        return found


def as_it_is(value: str) -> str:
    return rf"(?<!\w){re.escape(value.lower())}(?!\w)"


def slot_list(row: str | dict[str, str] | None) -> list[tuple[str, str]]:
    """Slots and values of a meaning representation, in order."""
    if isinstance(row, dict):
        return [(slot, str(value)) for slot, value in row.items() if value is not None]
    return [(slot.strip(), value.strip()) for slot, value in SLOT.findall(row or "")]


concept_coverage = ConceptCoverage()
missing_concepts = concept_coverage.feedback
slot_coverage = SlotCoverage()
missing_slots = slot_coverage.feedback
