"""Length priors l(·): how much a target domain likes a response of a given length, in tokens.

A prior is a function from a list of lengths to a list of log-probabilities; a [`LengthPrior`] is what the setting
`length_prior` makes of one: what is added to the score of a response of a given length.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import BadInput
from ..functions import import_function


LogPrior = Callable[[Sequence[int]], list[float]]
FORMS = ("attract", "product")
# What each prior needs beside its name
_PARAMETERS = {"normal": ("mean", "std"), "lognormal": ("mean", "std"), "fitted": ("lengths",)}


@dataclass
class LengthPrior:
    r"""
    What a length prior adds to the score s(y) of a response:

    * `form="attract"`: −w log l(y). The implicit reward of a response is then
      log π(y|x) − log π_old(y|x) − w log l(y), the same for all lengths at π ∝ π_old · l^w: the policy's lengths move
      towards those that l likes. They stop between those and the corrections' own, which y' is fitted to as well.
    * `form="product"`: +w log l(y), the score of the product P(y|x) = π(y|x) l(y)^w, as the note writes it. The
      product is fitted to the teacher, so that π ∝ teacher / l^w: the policy's lengths move *away* from those that l
      likes.

    Args:
        log_prior (`Callable`):
            log l: from a list of lengths in tokens to a list of log-probabilities in nats.
        weight (`float`, *optional*, defaults to `1.0`):
            w > 0.
        form (`str`, *optional*, defaults to `"attract"`):
            `"attract"` or `"product"`.
        name (`str`, *optional*, defaults to `"a function"`):
            For messages.
    """

    log_prior: LogPrior
    weight: float = 1.0
    form: str = "attract"
    name: str = "a function"

    def __call__(self, lengths: Sequence[int]) -> list[float]:
        """
        Args:
            lengths (`Sequence[int]`):
                Lengths in tokens, the stop token counted.

        Returns:
            `list[float]`: What is added to each score, in nats.

        Raises:
            BadInput: If the prior does not return one finite log-probability per length.
        """
        lengths = list(lengths)
        values = self.log_prior(lengths)
        try:
            values = [float(value) for value in values]
            wrong = len(values) != len(lengths) or not all(map(math.isfinite, values))
        except (TypeError, ValueError):
            wrong = True
        if wrong:
            raise BadInput(
                f"`length_prior: {self.name}` must return one finite log-probability per length; for the lengths "
                f"{lengths} it returned {values!r:.200}."
            )
        weight = -self.weight if self.form == "attract" else self.weight
        return [weight * value for value in values]


def normal_length_prior(mean: float, std: float) -> LogPrior:
    """
    Normal prior over lengths: log l(n) = −(n − mean)² / (2 std²) − log(std √(2π)).

    Args:
        mean (`float`):
            Preferred length, in tokens (the end-of-sequence token counts).
        std (`float`):
            Standard deviation > 0, in tokens.
    """

    def log_prior(lengths: Sequence[int]) -> list[float]:
        return [-((n - mean) ** 2) / (2 * std**2) - math.log(std * math.sqrt(2 * math.pi)) for n in lengths]

    return log_prior


def lognormal_length_prior(mean: float, std: float) -> LogPrior:
    """
    Log-normal prior over lengths with the given mean and standard deviation *of the length itself*, in tokens.

    Args:
        mean (`float`):
            Mean length > 0, in tokens.
        std (`float`):
            Standard deviation > 0 of the length, in tokens.
    """
    sigma2 = math.log(1 + (std / mean) ** 2)
    mu = math.log(mean) - sigma2 / 2

    def log_prior(lengths: Sequence[int]) -> list[float]:
        logs = [math.log(max(n, 1)) for n in lengths]
        return [
            -((log_n - mu) ** 2) / (2 * sigma2) - log_n - math.log(math.sqrt(2 * math.pi * sigma2)) for log_n in logs
        ]

    return log_prior


def fitted_length_prior(observed: Sequence[int], bandwidth: float | None = None) -> LogPrior:
    """
    Prior fitted to observed lengths: a kernel density estimate with a normal kernel.

    Args:
        observed (`Sequence[int]`):
            Lengths of wanted responses, in tokens; at least one.
        bandwidth (`float`, *optional*):
            Standard deviation of the kernel, in tokens. Defaults to Silverman's rule, at least 1 token.

    Raises:
        BadInput: If `observed` is empty.
    """
    if not observed:
        raise BadInput("A fitted length prior needs at least one observed length; set `lengths` in `length_prior`.")
    n = len(observed)
    mean = sum(observed) / n
    std = math.sqrt(sum((length - mean) ** 2 for length in observed) / n)
    if bandwidth is None:
        bandwidth = max(1.0, 1.06 * std * n ** (-1 / 5))
    counts = Counter(observed)
    normaliser = math.log(n * bandwidth * math.sqrt(2 * math.pi))

    def log_prior(lengths: Sequence[int]) -> list[float]:
        values = []
        for length in lengths:
            exponents = [math.log(count) - (length - seen) ** 2 / (2 * bandwidth**2) for seen, count in counts.items()]
            largest = max(exponents)  # log-sum-exp: far from every observed length the plain sum underflows to log 0
            values.append(largest + math.log(sum(math.exp(e - largest) for e in exponents)) - normaliser)
        return values

    return log_prior


def make_length_prior(setting: dict[str, Any] | None, weight: float = 1.0) -> LengthPrior | None:
    """
    The prior that `CorrectionOptimizationConfig.length_prior` describes.

    Args:
        setting (`dict`, *optional*):
            `None` (no prior), or `name` (`"normal"`, `"lognormal"`, `"fitted"`, or `"module:function"`, a function
            from a list of lengths to a list of log-probabilities), what the named prior needs (`mean` and `std` in
            tokens for the first two, `lengths` in tokens for the third), and as one likes `weight` and `form`.
        weight (`float`, *optional*, defaults to `1.0`):
            w where the setting has none.

    Raises:
        BadInput: If a key is unknown, a parameter is missing or not positive, or the function cannot be imported.
    """
    if setting is None:
        return None
    example = "for example `length_prior: {name: normal, mean: 120, std: 30}`"
    if not isinstance(setting, dict) or not isinstance(setting.get("name"), str):
        raise BadInput(f"`length_prior: {setting!r:.80}` must be a mapping with a `name`, {example}.")
    setting = dict(setting)
    name, weight, form = setting.pop("name"), setting.pop("weight", weight), setting.pop("form", "attract")
    if name not in _PARAMETERS and ":" not in name:
        raise BadInput(
            f"`length_prior` has the unknown name {name!r}: expected {', '.join(map(repr, _PARAMETERS))}, or "
            "'module:function'."
        )
    needed = _PARAMETERS.get(name, ())
    unknown = [key for key in setting if key not in needed]
    if unknown:
        takes = ", ".join(("name", *needed, "weight", "form"))
        raise BadInput(f"`length_prior: {name}` has no {unknown[0]!r}; it takes {takes}.")
    if not _is_number(weight) or not 0 < weight < math.inf:
        raise BadInput(f"`weight: {weight!r}` of `length_prior` must be a positive number; without a prior, drop it.")
    if form not in FORMS:
        raise BadInput(
            f"`form: {form!r}` of `length_prior` must be 'attract' (towards the lengths that the prior likes) or "
            "'product' (the note's formula as written, which leads away from them)."
        )
    return LengthPrior(_log_prior(name, needed, setting), weight, form, name)


def _log_prior(name: str, needed: tuple[str, ...], setting: dict[str, Any]) -> Callable:
    if needed == ("mean", "std"):
        mean, std = setting.get("mean"), setting.get("std")
        good = all(_is_number(value) and math.isfinite(value) for value in (mean, std))
        if not good or std <= 0 or (name == "lognormal" and mean <= 0):
            raise BadInput(
                f"`length_prior: {name}` needs `mean` and `std`, both in tokens and positive; got {mean!r} and "
                f"{std!r}."
            )
        return normal_length_prior(mean, std) if name == "normal" else lognormal_length_prior(mean, std)
    if name == "fitted":
        lengths = setting.get("lengths") or []
        if not isinstance(lengths, list) or not all(_is_number(n) and 0 < n < math.inf for n in lengths):
            raise BadInput(f"`lengths` of `length_prior: fitted` must be positive numbers; got {lengths!r:.80}.")
        return fitted_length_prior(lengths)
    return import_function(name, "length_prior")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
