"""
How similar two responses are, for the pair pool's s(y, y') and for edit ratios: 0 (nothing shared) to 1 (equal).

From [Self-Correct](https://huggingface.co/papers/2211.00053), equation 4; the paper names no particular measure.
"""

import re


WORD = re.compile(r"\w+")
WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")


def edit_similarity(source: str, target: str) -> float:
    """
    1 minus the Levenshtein distance in characters over the length of the longer text.

    Example:

    ```python
    >>> edit_similarity("16 - 3 = 13", "16 - 4 = 12")
    0.8181818181818181
    ```
    """
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.normalized_similarity(source, target)


def word_similarity(source: str, target: str) -> float:
    """
    The same over words: a changed word costs one, however long it is. Punctuation marks are words.

    Example:

    ```python
    >>> word_similarity("the cat sat", "the dog sat")
    0.6666666666666667
    ```
    """
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.normalized_similarity(WORD_OR_MARK.findall(source), WORD_OR_MARK.findall(target))


def line_similarity(source: str, target: str) -> float:
    """
    The same over lines, for programs: indentation counts, trailing spaces and empty lines do not.

    Example:

    ```python
    >>> line_similarity("a = 1\\nb = 2", "a = 1\\nb = 3")
    0.5
    ```
    """
    from rapidfuzz.distance import Levenshtein

    lines = [[line.rstrip() for line in text.splitlines() if line.strip()] for text in (source, target)]
    return Levenshtein.normalized_similarity(*lines)


def bag_similarity(source: str, target: str) -> float:
    """
    Share of words in common, whatever their order (the Dice coefficient of the two bags of words), for texts that
    may say the same in another order.

    Example:

    ```python
    >>> bag_similarity("a dog and a cat", "a cat and a dog")
    1.0
    ```
    """
    from collections import Counter

    bags = [Counter(WORD.findall(text.lower())) for text in (source, target)]
    total = bags[0].total() + bags[1].total()
    return 2 * (bags[0] & bags[1]).total() / total if total else 1.0
