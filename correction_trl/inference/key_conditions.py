"""Key conditions of a question: finding one, masking it, and putting it back.

ProCo ([paper](https://huggingface.co/papers/2405.14092)) verifies an answer by hiding a condition of the question and
asking what it must have been if the answer is right. A condition is a number in a word problem, an entity in an
open-domain question, a concept in a commonsense question. Everything here works on the text alone, without a model; a
phrase that a model named is found by [`locate`].
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, count

from rapidfuzz import fuzz

from ..errors import BadInput


KINDS = ("number", "entity", "concept")
MASK = "[X]"


@dataclass(frozen=True)
class KeyCondition:
    """
    A question with one of its conditions masked. It holds everything that is needed to restore the question.

    Attributes:
        kind (`str`):
            `"number"`, `"entity"` or `"concept"`.
        masked_question (`str`):
            The question with the mask in the place of the condition.
        mask (`str`):
            What stands there, `"[X]"` unless the question has one of its own.
        replaced (`tuple[tuple[int, str], ...]`):
            Where in `masked_question` a mask stands and what it replaced, from left to right. A number has one place;
            an entity or a concept is masked wherever it occurs, or the question would give it away.
        value (`str`, *optional*):
            Value of a number, as an integer or a fraction: `"1500"`, `"5/2"`. It is that of the masked words: 20 for
            the `20` of `20%`.
    """

    kind: str
    masked_question: str
    mask: str
    replaced: tuple[tuple[int, str], ...]
    value: str | None = None

    @property
    def text(self) -> str:
        """The condition as the question words it."""
        return self.replaced[0][1]

    @property
    def question(self) -> str:
        """The question as it was."""
        question = self.masked_question
        for start, text in reversed(self.replaced):
            question = question[:start] + text + question[start + len(self.mask) :]
        return question

    @property
    def number(self) -> Fraction | None:
        """The value of a number, exactly."""
        return None if self.value is None else Fraction(self.value)


def key_condition(question: str, kind: str, mask: str | None = None) -> KeyCondition | None:
    """
    Mask the key condition of a question, by rules.

    Args:
        question (`str`):
            The question.
        kind (`str`):
            `"number"`: the number in the sentence that shares most with what is asked. `"entity"`: the last name,
            title or date; in a question in lower case, the longest phrase that may be one. `"concept"`: the longest
            phrase that reads like a noun.
        mask (`str`, *optional*, defaults to `"[X]"`):
            What to put in its place. Where the question contains it, another one is taken.

    Returns:
        [`KeyCondition`], or `None` if the question has no such condition.

    Raises:
        BadInput: If `kind` is unknown.

    Example:

    ```python
    >>> condition = key_condition("Sara had 12 apples and ate 5 of them. How many apples are left?", "number")
    >>> condition.masked_question, condition.value
    ('Sara had [X] apples and ate 5 of them. How many apples are left?', '12')
    ```
    """
    if kind not in KINDS:
        raise BadInput(f"`kind={kind!r}` is no kind of key condition; use one of {', '.join(KINDS)}.")
    if kind == "number":
        numbers = rank_numbers(question)
        return mask_spans(question, kind, [numbers[0].span], mask, str(numbers[0].value)) if numbers else None
    phrases = (find_entities(question) or find_names_in_lower_case(question)) if kind == "entity" else []
    phrases = phrases or find_concepts(question)
    spans = next(filter(None, (_occurrences(question, phrase) for phrase in phrases)), None)
    return mask_spans(question, kind, spans, mask) if spans else None


def mask_spans(
    question: str, kind: str, spans: list[tuple[int, int]], mask: str | None = None, value: str | None = None
) -> KeyCondition:
    """
    Mask the given places of a question.

    Args:
        question (`str`):
            The question.
        kind (`str`):
            Of condition.
        spans (`list[tuple[int, int]]`):
            Start and end of each place, from left to right, not overlapping.
        mask (`str`, *optional*, defaults to `"[X]"`):
            Where the question contains it, another one is taken.
        value (`str`, *optional*):
            Of a number.
    """
    candidates = chain([mask or MASK, "[Y]", "[Z]"], (f"[X{n}]" for n in count(1)))
    mask = next(candidate for candidate in candidates if candidate not in question)
    masked, replaced, end_of_last = "", [], 0
    for start, end in spans:
        masked += question[end_of_last:start]
        replaced.append((len(masked), question[start:end]))
        masked += mask
        end_of_last = end
    return KeyCondition(kind, masked + question[end_of_last:], mask, tuple(replaced), value)


def locate(
    question: str, phrase: str, kind: str = "entity", threshold: float = 80.0, mask: str | None = None
) -> KeyCondition | None:
    """
    Mask a phrase that somebody else named, a model for instance, even if it does not copy the question letter by
    letter.

    Args:
        question (`str`):
            The question.
        phrase (`str`):
            What was named.
        kind (`str`, *optional*, defaults to `"entity"`):
            Of condition; a number is found by its value.
        threshold (`float`, *optional*, defaults to `80.0`):
            Least similarity, in percent, of a place that does not match exactly. ProCo's 0.8.
        mask (`str`, *optional*):
            See [`key_condition`].

    Returns:
        [`KeyCondition`], or `None` if nothing in the question resembles the phrase.
    """
    phrase = phrase.strip().strip("\"'()[].,;:").strip()
    if kind == "number":
        wanted = last_number(phrase)
        found = next((n for n in rank_numbers(question) if n.value == wanted), None) if wanted is not None else None
        return None if found is None else mask_spans(question, kind, [found.span], mask, str(found.value))
    if not phrase:
        return None
    spans = _occurrences(question, phrase)
    if not spans:
        alignment = fuzz.partial_ratio_alignment(phrase.lower(), question.lower(), score_cutoff=threshold)
        if alignment is None or len(question.lower()) != len(question):
            return None
        start, end = alignment.dest_start, alignment.dest_end
        while start > 0 and question[start - 1].isalnum():
            start -= 1
        while end < len(question) and question[end].isalnum():
            end += 1
        snapped = question[start:end].strip(" \t\n\"'()[].,;:?!")
        spans = _occurrences(question, snapped) if snapped else []
    return mask_spans(question, kind, spans, mask) if spans else None


def _occurrences(question: str, phrase: str) -> list[tuple[int, int]]:
    pattern = rf"(?<!\w){re.escape(phrase)}(?!\w)"
    return [match.span() for match in re.finditer(pattern, question, re.IGNORECASE)]


# --------------------------------------------------------------------------------------------------------------------
# Numbers
# --------------------------------------------------------------------------------------------------------------------

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_PARTS = {
    "half": 2,
    "halves": 2,
    "third": 3,
    "quarter": 4,
    "fourth": 4,
    "fifth": 5,
    "sixth": 6,
    "eighth": 8,
    "tenth": 10,
}
_MULTIPLIERS = {"twice": 2, "double": 2, "thrice": 3, "triple": 3}
_WORDS = {word: i for i, word in enumerate(_UNITS)} | {word: 10 * (i + 2) for i, word in enumerate(_TENS)}


def _one_of(words) -> str:
    return "(?:" + "|".join(sorted(words, key=len, reverse=True)) + ")"


_BELOW_100 = rf"(?:{_one_of(_TENS)}(?:[-\s]{_one_of(_UNITS[1:10])})?|{_one_of(_UNITS)})"
_BELOW_1000 = rf"(?:(?:{_BELOW_100}|a)[-\s]hundred(?:(?:\s+and)?\s+{_BELOW_100})?|{_BELOW_100})"
_LARGE = "(?:thousand|million|billion|trillion)"
_IN_WORDS = (
    rf"(?:(?:{_BELOW_1000}|a)[-\s]{_LARGE}(?:,?(?:\s+and)?\s+{_BELOW_1000}[-\s]{_LARGE})*"
    rf"(?:,?(?:\s+and)?\s+{_BELOW_1000})?|{_BELOW_1000})"
)
_PART = rf"{_one_of([*_PARTS, *(part + 's' for part in _PARTS if part not in ('half', 'halves'))])}"
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
# What stands before a number that is only a piece of something: a name (B12), a date, a time, a range, an exponent
_NOT_BEFORE = r"(?<![\w/^~])(?<!\d[.,:–−-])(?<![A-Za-z][–−-])"
_NOT_AFTER = r"(?![\d/^]|[.,:–−-]\d|(?:st|nd|rd|th|s)\b)"
_NUMBER = re.compile(
    rf"""
    {_NOT_BEFORE}(?:
        (?P<mixed>\d+\s\d+/\d+)
      | (?P<fraction>\d+\s?/\s?\d+)
      | (?P<scaled>{_DIGITS}[-\s]{_one_of(_SCALES)}\b)
      | (?P<digits>(?:(?<![\w)\]])[-−])?{_DIGITS})
    ){_NOT_AFTER}
  | \b(?:
        (?P<half_dozen>half\s(?:a\s)?dozen)
      | (?P<parts>(?:{_BELOW_100}|a)[-\s]{_PART})
      | (?P<dozens>(?:(?:{_IN_WORDS}|a)\s)?dozen)
      | (?P<words>{_IN_WORDS})
      | (?P<part>half)
      | (?P<multiplier>{_one_of(_MULTIPLIERS)})
    )\b
    """,
    re.VERBOSE | re.IGNORECASE,
)
# Words around an "a", "one", "third" or "second" that is no quantity
_PRONOUN_BEFORE = re.compile(
    r"\b(?:which|each|this|that|the|every|no|any|another|other|first|last|only|bigger)\s$", re.I
)
_PRONOUN_AFTER = re.compile(
    r"^\s(?:another|day\b|night\b|morning\b|evening\b|of\s(?:the|his|her|their|these|those)\b)", re.I
)


@dataclass(frozen=True)
class Number:
    """
    A number in a text.

    Attributes:
        span (`tuple[int, int]`):
            Where it stands.
        value (`Fraction`):
            Its value.
        in_doubt (`int`):
            0: a plain quantity. 1: a share, a multiple or a year, which is often not what is counted. 2: an "one" that
            may be a pronoun.
    """

    span: tuple[int, int]
    value: Fraction
    in_doubt: int


def find_numbers(text: str) -> list[Number]:
    """
    The numbers of a text in their order: integers, decimals, thousands with commas, fractions, mixed numbers, amounts
    of money and percentages (the sign stays outside), numbers in words, dozens, shares ("half", "two thirds"), years.
    Not: ordinals, times of day, dates, ranges, exponents, and digits inside a name.

    Args:
        text (`str`):
            The text.

    Returns:
        `list[`[`Number`]`]`.
    """
    numbers = []
    for match in _NUMBER.finditer(text):
        kind, words = match.lastgroup, match.group().lower()
        value, in_doubt = _number_value(kind, words), 0
        if value is None:
            continue
        before, after = text[: match.start()], text[match.end() :]
        if kind in ("part", "parts", "multiplier") or (
            kind == "digits"
            and re.fullmatch(r"1[5-9]\d\d|20\d\d", words)
            and re.search(r"\b(?:in|since|of|by|year)\s$", before, re.I)
        ):
            in_doubt = 1
        if words == "one":
            in_doubt = 2
            if _PRONOUN_BEFORE.search(before) or _PRONOUN_AFTER.search(after):
                continue
        if kind == "parts" and words.startswith("a ") and re.match(r"\s(?!of\b)\w", after) and "third" in words:
            continue  # "a third friend" is an ordinal
        numbers.append(Number(match.span(), value, in_doubt))
    return numbers


def _number_value(kind: str, text: str) -> Fraction | None:
    text = text.replace("−", "-")
    if kind == "digits":
        return Fraction(text.replace(",", ""))
    if kind in ("fraction", "mixed"):
        *whole, part = re.sub(r"\s*/\s*", "/", text).split()
        numerator, _, denominator = part.partition("/")
        if int(denominator) == 0:
            return None
        return Fraction(int(numerator), int(denominator)) + (int(whole[0]) if whole else 0)
    if kind == "scaled":
        number, scale = re.fullmatch(r"(.+)[-\s](\w+)", text).groups()
        return Fraction(number.replace(",", "")) * _SCALES[scale]
    if kind == "half_dozen":
        return Fraction(6)
    if kind == "multiplier":
        return Fraction(_MULTIPLIERS[text])
    if kind == "part":
        return Fraction(1, 2)
    if kind == "dozens":
        return 12 * (_words_value(text.removesuffix("dozen")) or 1)
    if kind == "parts":
        count, part = re.fullmatch(r"(.+)[-\s](\w+)", text).groups()
        part = part if part in _PARTS else part.removesuffix("s")
        return Fraction(1 if count == "a" else _words_value(count)) / _PARTS[part]
    return _words_value(text)


def _words_value(text: str) -> Fraction:
    total = group = 0
    for word in re.findall(r"[a-z]+", text):
        if word == "a":
            group += 1
        elif word == "hundred":
            group *= 100
        elif word in _SCALES:
            total, group = total + group * _SCALES[word], 0
        elif word != "and":
            group += _WORDS[word]
    return Fraction(total + group)


def last_number(text: str) -> Fraction | None:
    """The last number of a text; `None` if it has none. What follows an equals sign counts as a number too."""
    numbers = find_numbers(re.sub(r"[=≈]", " ", text))
    return numbers[-1].value if numbers else None


def rank_numbers(question: str) -> list[Number]:
    """
    The numbers of a word problem, the key condition first.

    Plain quantities come before shares, multiples and years; then those in a sentence before the one that asks; then
    those whose unit (the words behind them) and whose sentence share most words with what is asked, since they are
    most likely needed for the answer; then from left to right.

    Args:
        question (`str`):
            The problem.

    Returns:
        `list[`[`Number`]`]`.
    """
    sentences = [match.span() for match in re.finditer(r"\S.*?(?:[.?!](?=\s|$)|$)", question, re.DOTALL)]
    asking = [span for span in sentences if question[slice(*span)].rstrip().endswith("?")] or sentences[-1:]
    asked = asking[-1] if asking else (0, 0)
    # Within the sentence that asks, what stands before its question word is a condition ("If 2 cost $3, how many")
    asks_from = re.search(
        r"\b(?:how|what|find|which|when|where)\b(?!.*\b(?:how|what)\b)", question[slice(*asked)], re.I | re.S
    )
    asked = (asked[0] + (asks_from.start() if asks_from else 0), asked[1])
    asked_words = _content_words(question[slice(*asked)])

    def rank(number: Number) -> tuple:
        start, end = number.span
        sentence = next((s for s in sentences if s[0] <= start < s[1]), (0, len(question)))
        unit = _content_words(" ".join(question[end : sentence[1]].split()[:3]))
        shared = 2 * bool(unit & asked_words) + len(_content_words(question[slice(*sentence)]) & asked_words)
        return (number.in_doubt, start >= asked[0], -shared, start)

    return sorted(find_numbers(question), key=rank)


# --------------------------------------------------------------------------------------------------------------------
# Entities and concepts
# --------------------------------------------------------------------------------------------------------------------

_STOP_WORDS = frozenset(
    "a about above after again against all also am an and any are aren't as at be because been before being below "
    "between both but by can can't cannot could did didn't do does doesn't doing don't down during each ever every "
    "few for from further get gets give given go goes had has have having he her here hers him his how i if in into "
    "is isn't it its it's itself just last likely made make makes many may me might more most much must my name "
    "named near need needs next no nor not now of off often on once one only or other our out over own person "
    "people please said same she should so some someone something somebody such take takes tell than that the their "
    "them then there these they thing things this those through to too under until up upon us use used very want "
    "wants was we were what what's when where where's which while who who's whom whose why will with won't would "
    "you your".split()
)
# What a question in lower case asks of a name; participles end in -ed
_VERBS = frozenset(
    "attend become began begin belong born build built buy call come die drink eat end fight find fought found fly "
    "gave grow happen hold invade invent invest involve join kill know lead led left lie lose lost marry mean meet "
    "met own paid pay perform play plays practice ran read represent rule run runs said sang say see sell serve set "
    "sign sing sings sit sold speak spoke spoken stand star start stay stood study sung surrender swim taught teach "
    "think took visit wear went win won work works write written wrote".split()
)
_DETERMINERS = frozenset(
    "a an the his her its their my your our this that these those some any each every no of in on at with from by for "
    "into near".split()
)
_NAME = r"[A-Z][\w'’.-]*[\w]|[A-Z]"
_MONTH = (
    r"(?:(?i:jan(?:uary)?|feb(?:ruary)?|apr(?:il)?|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    r"nov(?:ember)?|dec(?:ember)?)|Mar(?:ch)?|May)\b\.?"
)
_DATE = rf"""(?:
    \d{{1,2}}(?:st|nd|rd|th)?\s(?:of\s)?{_MONTH}(?:,?\s\d{{4}}\b)?
  | {_MONTH}\s\d{{1,2}}(?:st|nd|rd|th)?\b(?!,\d|\s?%)(?:,?\s\d{{4}}\b)?
  | {_MONTH},?\s\d{{4}}\b
  | \d{{4}}-\d{{2}}-\d{{2}}\b
  | \d{{1,2}}/\d{{1,2}}/\d{{2,4}}\b
  | \d{{3}}0s\b
  | \d{{1,2}}(?:st|nd|rd|th)[\s-][Cc]entury\b
)"""
_ENTITIES = re.compile(
    rf"""
    ["“](?P<quoted>[^"“”]+)["”]
  | (?P<date>(?<![\w.,/:-]){_DATE})
  | (?P<name>(?<![\w'’])(?:{_NAME})(?:\s(?:(?:of|the|de|la|van|von|du|del|for)\s){{0,2}}(?:{_NAME}|\d+\b))*)
  | (?P<year>(?<![\w.,/:-])(?:1\d\d\d|20\d\d)(?![\w/:-]|[.,]\d))
    """,
    re.VERBOSE,
)


def _content_words(text: str) -> set[str]:
    """Words that carry meaning, without the plural's ending."""
    words = re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower().replace("’", "'"))
    return {word.removesuffix("'s").removesuffix("s") for word in words if word not in _STOP_WORDS} - {""}


def find_entities(question: str) -> list[str]:
    """
    Names, quoted titles, dates and years of a question, the last one first (ProCo's fallback takes the last entity).
    Names are told by their capitals; the capital that begins a sentence says nothing, so a single word there comes
    last.

    Args:
        question (`str`):
            The question.

    Returns:
        `list[str]`: As the question words them.
    """
    certain, uncertain = [], []
    for match in _ENTITIES.finditer(question):
        if match.lastgroup != "name":
            certain.append(match.group(match.lastgroup).strip())
            continue
        words = match.group().split()
        begins = not question[: match.start()].rstrip() or question[: match.start()].rstrip()[-1] in ".?!:"
        if begins and words[0].lower().strip("'’") in _STOP_WORDS | {"is", "in", "name"}:
            words = words[1:]
            begins = False
            while words and words[0].islower():  # "In the United States"
                words = words[1:]
        name = " ".join(words).removesuffix("'s").removesuffix("’s").rstrip(".")
        if not name or name.lower() in _STOP_WORDS:
            continue
        (uncertain if begins and len(words) == 1 else certain).append(name)
    return [name for name in [*certain[::-1], *uncertain[::-1]] if name and _occurrences(question, name)]


def find_concepts(question: str) -> list[str]:
    """
    Phrases of up to three words that carry meaning, those that read like a noun (behind an article, a possessive or a
    preposition) first, then the longer ones, then from left to right.

    Args:
        question (`str`):
            The question.

    Returns:
        `list[str]`: As the question words them.
    """
    phrases = []
    for previous, run in _runs(question, _STOP_WORDS):
        kept = run[-3:]
        phrase = question[kept[0].start() : kept[-1].end()]
        phrases.append((previous not in _DETERMINERS, -len(kept), kept[0].start(), phrase))
    return [phrase for *_, phrase in sorted(phrases)]


def find_names_in_lower_case(question: str) -> list[str]:
    """
    Phrases of a question without capitals that may be names, what stands between stop words and verbs, as in "what did
    [ben franklin] invent?"; the longest first, and of those the last.

    Args:
        question (`str`):
            The question.

    Returns:
        `list[str]`: As the question words them.
    """
    runs = [run for _, run in _runs(question, _STOP_WORDS | _VERBS, participles=True)]
    runs.sort(key=lambda run: (-len(run), -run[0].start()))
    return [question[run[0].start() : run[-1].end()].removesuffix("'s").removesuffix("’s") for run in runs]


def _runs(question: str, stop_words: frozenset[str], participles: bool = False) -> list[tuple[str, list[re.Match]]]:
    """The runs of words between stop words and punctuation, each with the stop word before it."""
    runs: list[tuple[str, list[re.Match]]] = []
    previous, end, is_open = "", 0, False
    for match in re.finditer(r"[^\W_]+(?:['’-][^\W_]+)*", question):
        word = match.group().lower().replace("’", "'")
        if is_open and question[end : match.start()] != " ":  # punctuation between them
            previous, is_open = "", False
        if word in stop_words or (participles and word.endswith("ed") and word not in ("united", "allied")):
            previous, is_open = word, False
        elif is_open:
            runs[-1][1].append(match)
        else:
            runs.append((previous, [match]))
            is_open = True
        end = match.end()
    return runs
