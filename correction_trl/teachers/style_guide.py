"""A house style as a teacher: a file of rules that corrects texts in place, with as few edits as the rules ask for."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..data_utils import message_text
from ..errors import BadInput, first_line


_SECTIONS = ("drop", "replace", "patterns")
_MOST_ROUNDS = 20
# Words that follow an adjective only where it is no attribute: "a vast and empty plain", "the room is bright."
_NO_NOUN = frozenset(
    "and or of in on to for with that which is are was were as at by from but the a an it its their this than "
    "through".split()
)
_LINKING = frozenset("and or so very more most is are was were be been being".split())
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_ARTICLE = re.compile(r"(?i)\b(an?)(\s+)$")
# What is read first of the word behind an article, and where its sound is not its letter's
_NEXT = re.compile(r"[\"'“‘(*_]*([^\W_]+)")
_SOUNDS_LIKE_A_CONSONANT = re.compile(
    r"(?i)uni(?![nmd])|unid|us[aeiu]|ut[ei]|eu|ewe|on(?:e|ce)(?![a-z])|ubiq|ur[aio]|uk|ufo"
)
_SOUNDS_LIKE_A_VOWEL = re.compile(r"(?i)hour|heir|honest|honou?r|8|1[18](?!\d)")


@dataclass(frozen=True)
class Edit:
    """
    What one rule changes: the text between `start` and `end` becomes `new`.

    Attributes:
        start, end (`int`):
            Places in the text, in characters.
        new (`str`):
            What stands there afterwards.
        rule (`str`):
            Which rule asks for it.
    """

    start: int
    end: int
    new: str
    rule: str


class StyleGuide:
    """
    A style guide that corrects: a teacher for correction optimization, a value function and a feedback function.

    The file has up to three sections:

    ```yaml
    drop: [vibrant, truly]             # words that are left out where they stand before a noun
    replace: {don't: do not, color: colour}   # words; a capital stays one
    patterns:                          # regular expressions, and what stands there afterwards
      - {find: ',(?= and\\b)', replace: ''}
    ```

    A word that is dropped takes the white space after it along, and a capital goes to the next word. It stays where it
    is no attribute ("the sea is vibrant"). `a` and `an` before an edit are made to fit what follows it, by sound.

    Args:
        rules (`str`, `Path` or `dict`):
            A YAML file, or what is in it.

    Raises:
        BadInput: If the file cannot be read, a rule is none, or the rules never come to an end; the message names the
            rule.

    Example:

    ```python
    from correction_trl.teachers import StyleGuide

    guide = StyleGuide({"drop": ["stunning"], "replace": {"don't": "do not"}})
    guide.apply("It is a stunning island. Don't go.")  # "It is an island. Do not go."
    ```
    """

    def __init__(self, rules: str | Path | dict[str, Any]):
        self.name = "style guide" if isinstance(rules, dict) else Path(rules).name
        rules = rules if isinstance(rules, dict) else _read(Path(rules))
        unknown = set(rules) - set(_SECTIONS)
        if unknown or not any(rules.get(section) for section in _SECTIONS):
            what = f"has the unknown section {sorted(map(str, unknown))[0]!r}" if unknown else "has no rules"
            raise BadInput(f"The style guide {self.name} {what}; its sections are {', '.join(_SECTIONS)}.")
        self.drop = frozenset(word.lower() for word in self._words(rules, "drop", list))
        self.replace = {
            word.lower().replace("’", "'"): new for word, new in self._words(rules, "replace", dict).items()
        }
        self.patterns = self._patterns(rules.get("patterns") or [])

    def _words(self, rules: dict[str, Any], section: str, kind: type) -> Any:
        words = rules.get(section) or kind()
        if not isinstance(words, kind):
            raise BadInput(
                f"The style guide {self.name}: `{section}` must be a {'list' if kind is list else 'mapping'}."
            )
        for word in words:
            if not isinstance(word, str) or not _WORD.fullmatch(word):
                hint = (
                    "; YAML reads yes, no, on and off as true and false: write it in quotes"
                    if word in (True, False)
                    else ""
                )
                raise BadInput(f"The style guide {self.name}, `{section}`: {word!r} is not one word{hint}.")
            if kind is dict and not (isinstance(words[word], str) and words[word].strip()):
                raise BadInput(
                    f"The style guide {self.name}, `{section}`: {word!r} becomes {words[word]!r}, which is no text; a "
                    "word that is to go belongs to `drop` or a pattern."
                )
        return words

    def _patterns(self, patterns: Any) -> list[tuple[re.Pattern, str]]:
        made = []
        for i, pattern in enumerate(patterns if isinstance(patterns, list) else [patterns]):
            if not isinstance(pattern, dict) or set(pattern) != {"find", "replace"}:
                raise BadInput(
                    f"The style guide {self.name}, pattern {i}: must have `find` and `replace`, and no more."
                )
            if not all(isinstance(value, str) for value in pattern.values()):
                raise BadInput(
                    f"The style guide {self.name}, pattern {i}: {pattern!r} is no text; nothing is written ''."
                )
            try:
                found = re.compile(pattern["find"])
                found.sub(pattern["replace"], "")
            except (re.error, IndexError) as error:
                raise BadInput(
                    f"The style guide {self.name}, pattern {i}: {pattern['find']!r} -> {pattern['replace']!r} is no "
                    f"regular expression with its replacement ({error})."
                ) from error
            if found.match(""):
                raise BadInput(f"The style guide {self.name}, pattern {i}: {pattern['find']!r} matches an empty text.")
            made.append((found, pattern["replace"]))
        return made

    def edits(self, text: str) -> list[Edit]:
        """The edits that the rules ask for in a text as it is, in order, without overlap."""
        found = []
        for pattern, new in self.patterns:
            found += [Edit(*match.span(), match.expand(new), pattern.pattern) for match in pattern.finditer(text)]
        words = list(_WORD.finditer(text))
        for i, match in enumerate(words):
            word = match.group().lower().replace("’", "'")
            if word in self.replace:
                found.append(Edit(*match.span(), _like(match.group(), self.replace[word]), word))
            elif word in self.drop and (edit := self._dropped(text, words, i)):
                found.append(edit)
        kept = []
        for edit in sorted((_with_article(text, edit) for edit in found), key=lambda edit: (edit.start, edit.end)):
            end = kept[-1].end if kept else -1
            # A word that is dropped right behind another edit looks again at what that has left: a new article
            if text[edit.start : edit.end] != edit.new and edit.start >= end + (edit.rule in self.drop):
                kept.append(edit)
        return kept

    def _dropped(self, text: str, words: list[re.Match], i: int) -> Edit | None:
        word = words[i]
        before, after = words[i - 1] if i else None, words[i + 1] if i + 1 < len(words) else None
        if after is None or not re.fullmatch(r",?\s+", text[word.end() : after.start()]):
            return None
        if after.group().lower() in _NO_NOUN:
            return None
        linked = before is not None and text[before.end() : word.start()].isspace()
        if linked and before.group().lower() in _LINKING:
            return None
        rule = word.group().lower()
        if word.group()[0].isupper() and after.group()[0].islower():
            return Edit(word.start(), after.start() + 1, after.group()[0].upper(), rule)
        return Edit(word.start(), after.start(), "", rule)

    def apply(self, text: str) -> str:
        """
        The text in the house style. Once more, it changes nothing.

        Raises:
            BadInput: If a rule makes what another one changes, and they never come to an end.
        """
        return self._corrected(text)[0]

    def n_edits(self, text: str) -> int:
        """How many edits it takes to bring a text into the house style; 0 if it is."""
        return self._corrected(text)[1]

    def _corrected(self, text: str) -> tuple[str, int]:
        n_edits, longest = 0, 10 * len(text) + 1000
        for _ in range(_MOST_ROUNDS):
            edits = self.edits(text)
            if not edits:
                return text, n_edits
            for edit in reversed(edits):
                text = text[: edit.start] + edit.new + text[edit.end :]
            n_edits += len(edits)
            if len(text) > longest:
                break
        raise BadInput(
            f"The style guide {self.name} never comes to an end: the rule {edits[0].rule!r} asks again and again."
        )

    def correct(self, prompts: Sequence[Any], responses: Sequence[str], **columns: Any) -> list[str]:
        """The corrected responses: what a teacher is asked for."""
        return [self.apply(response) for response in responses]

    def clean(self, completions: Sequence[Any], **columns: Any) -> list[float]:
        """1 where nothing is to be edited, else 0: the signature of a value function."""
        return [float(not self.edits(message_text(completion))) for completion in completions]

    def feedback(self, completions: Sequence[Any], **columns: Any) -> list[str]:
        """What is to be edited, in words; empty where nothing is: the signature of a feedback function."""
        return [
            "; ".join(_in_words(message_text(completion), edit) for edit in self.edits(message_text(completion)))
            for completion in completions
        ]


def _read(path: Path) -> dict[str, Any]:
    try:
        rules = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"The style guide {path} cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"The style guide {path} is no YAML ({' '.join(first_line(error).split())}).") from error
    if not isinstance(rules, dict):
        raise BadInput(f"The style guide {path} has no sections {', '.join(_SECTIONS)}.")
    return rules


def _like(old: str, new: str) -> str:
    """With the old word's capitals: all of them, or the first."""
    if len(old) > 1 and old.isupper():
        return new.upper()
    return new[:1].upper() + new[1:] if old[:1].isupper() else new


def _with_article(text: str, edit: Edit) -> Edit:
    """The edit, and that of an article before it which does not fit any more."""
    article, following = _ARTICLE.search(text[: edit.start]), _NEXT.match(edit.new + text[edit.end :])
    if article is None or following is None:
        return edit
    fitting = _article(following[1])
    if article[1].lower() == fitting:
        return edit
    return Edit(article.start(), edit.end, _like(article[1][:1], fitting) + article[2] + edit.new, edit.rule)


def _article(word: str) -> str:
    """`a` or `an`, by the sound with which a word, a number or an abbreviation begins."""
    if len(word) > 1 and word.isupper():
        return "an" if word[0] in "AEFHILMNORSX" else "a"
    if _SOUNDS_LIKE_A_CONSONANT.match(word):
        return "a"
    return "an" if word[0].lower() in "aeiou" or _SOUNDS_LIKE_A_VOWEL.match(word) else "a"


def _in_words(text: str, edit: Edit) -> str:
    old, new = text[edit.start : edit.end].strip(), edit.new.strip()
    return f'write "{new}" for "{old}"' if new else f'leave out "{old}"'
