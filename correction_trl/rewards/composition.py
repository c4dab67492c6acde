"""
Value functions made of value functions: weighted sums, gates, and terms for the form of a completion.

Each is a small object that is called like any other value function. TRL adds several reward functions up by itself
(`reward_weights`); these are for where one function is wanted (a pair pool, an evaluation), or one depends on another.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .common import after_thinking, completion_text


ValueFunction = Callable[..., list[float | None]]


@dataclass(frozen=True)
class WeightedSum:
    """
    Value function: the weighted sum of others; `None` where any with a weight other than 0 is `None`.

    Args:
        functions (`tuple[Callable, ...]`):
            Value functions.
        weights (`tuple[float, ...]`):
            One weight each.

    Example:

    ```python
    >>> from correction_trl.rewards import FinalAnswer, FormatTerm, WeightedSum

    >>> value = WeightedSum((FinalAnswer(), FormatTerm(r"(?s)<think>.*</think>.*")), (1.0, 0.1))
    >>> value(completions=[r"<think>1 + 1</think>\\boxed{2}"], answer=["2"])
    [1.1]
    ```
    """

    functions: tuple[ValueFunction, ...]
    weights: tuple[float, ...]

    __name__ = "weighted_sum"

    def __post_init__(self):
        if len(self.functions) != len(self.weights):
            raise ValueError(f"WeightedSum got {len(self.functions)} functions and {len(self.weights)} weights.")

    def __call__(self, completions: list, **columns: Any) -> list[float | None]:
        """One value per completion."""
        parts = [function(completions=completions, **columns) for function in self.functions]
        sums: list[float | None] = []
        for values in zip(*parts, strict=True):
            counted = [(value, weight) for value, weight in zip(values, self.weights, strict=True) if weight != 0]
            unknown = any(value is None for value, _ in counted)
            sums.append(None if unknown else sum(value * weight for value, weight in counted))
        return sums


@dataclass(frozen=True)
class Gate:
    """
    Value function: the value of `function` where `condition` reaches `at_least`, else `otherwise`; `None` where the
    condition is. `function` is asked only about the completions that pass: an expensive judge behind a cheap gate.

    Args:
        condition (`Callable`):
            Value function that opens the gate.
        function (`Callable`):
            Value function behind it.
        at_least (`float`, *optional*, defaults to `1.0`):
            Value of the condition from which on the gate is open.
        otherwise (`float`, *optional*, defaults to `0.0`):
            Value where it is closed.
    """

    condition: ValueFunction
    function: ValueFunction
    at_least: float = 1.0
    otherwise: float = 0.0

    __name__ = "gate"

    def __call__(self, completions: list, **columns: Any) -> list[float | None]:
        """One value per completion."""
        rows = len(completions)
        conditions = self.condition(completions=completions, **columns)
        values: list[float | None] = [None if value is None else self.otherwise for value in conditions]
        opened = [row for row, value in enumerate(conditions) if value is not None and value >= self.at_least]
        if opened:
            # Columns are lists with one entry per row; whatever else the trainer hands over stays as it is.
            chosen = {
                name: [column[row] for row in opened] if isinstance(column, list) and len(column) == rows else column
                for name, column in columns.items()
            }
            behind = self.function(completions=[completions[row] for row in opened], **chosen)
            for row, value in zip(opened, behind, strict=True):
                values[row] = value
        return values


@dataclass(frozen=True)
class FormatTerm:
    """
    Value function: 1 if a completion has a given form, else 0.

    Args:
        pattern (`str`):
            Regular expression that the whole completion must match.
        thinking (`bool`, *optional*, defaults to `True`):
            Whether the completion is matched with its thoughts (up to `</think>`) or without.

    Example:

    ```python
    >>> FormatTerm(r"(?s).*\\\\boxed\\{.+\\}.*")(completions=[r"It is \\boxed{2}.", "It is 2."])
    [1.0, 0.0]
    ```
    """

    pattern: str
    thinking: bool = True

    __name__ = "format_term"

    def __call__(self, completions: list, **columns: Any) -> list[float | None]:
        """One value per completion: 1.0 or 0.0."""
        texts = [completion_text(completion) for completion in completions]
        if not self.thinking:
            texts = [after_thinking(text) for text in texts]
        return [float(re.fullmatch(self.pattern, text) is not None) for text in texts]


@dataclass(frozen=True)
class LengthTerm:
    """
    Value function: 0 up to a length, then falling in a straight line to -1 at another, as the soft overlong punishment
    of [DAPO](https://huggingface.co/papers/2503.14476), in characters.

    Args:
        free (`int`):
            Characters without a cost.
        limit (`int`):
            Characters from which on the value is -1.
    """

    free: int
    limit: int

    __name__ = "length_term"

    def __post_init__(self):
        if not 0 <= self.free < self.limit:
            raise ValueError(f"LengthTerm needs 0 <= free < limit, got free={self.free}, limit={self.limit}.")

    def __call__(self, completions: list, **columns: Any) -> list[float | None]:
        """One value per completion, in [-1, 0]."""
        lengths = [len(completion_text(completion)) for completion in completions]
        return [-min(max(length - self.free, 0) / (self.limit - self.free), 1.0) for length in lengths]
