"""Length priors l(·): how much a target domain likes a response of a given length, in tokens.

A prior is a function from a list of lengths to a list of log-probabilities. [`make_length_prior`] builds the one that
a configuration names.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence

from ..errors import BadInput
from ..functions import import_function


LengthPrior = Callable[[Sequence[int]], list[float]]


def normal_length_prior(mean: float, std: float) -> LengthPrior:
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


def lognormal_length_prior(mean: float, std: float) -> LengthPrior:
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


def fitted_length_prior(observed: Sequence[int], bandwidth: float | None = None) -> LengthPrior:
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
        raise BadInput("A fitted length prior needs at least one observed length; set `length_prior_lengths`.")
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


def make_length_prior(
    name: str | None,
    mean: float | None = None,
    std: float | None = None,
    lengths: Sequence[int] | None = None,
) -> LengthPrior | None:
    """
    The prior that `CorrectionOptimizationConfig.length_prior` names.

    Args:
        name (`str`, *optional*):
            `None` (no prior), `"normal"`, `"lognormal"`, `"fitted"`, or `"module:function"`, a function from a list of
            lengths to a list of log-probabilities.
        mean (`float`, *optional*):
            Mean length, in tokens, for the first two.
        std (`float`, *optional*):
            Standard deviation of the length, in tokens, for the first two.
        lengths (`Sequence[int]`, *optional*):
            Observed lengths, in tokens, for `"fitted"`.

    Raises:
        BadInput: If the name is unknown, a parameter is missing or not positive, or the function cannot be imported.
    """
    if name is None:
        return None
    if name in ("normal", "lognormal"):
        if mean is None or std is None or std <= 0 or (name == "lognormal" and mean <= 0):
            raise BadInput(
                f"`length_prior={name!r}` needs `length_prior_mean` and `length_prior_std`, both in tokens and "
                f"positive; got {mean} and {std}."
            )
        return normal_length_prior(mean, std) if name == "normal" else lognormal_length_prior(mean, std)
    if name == "fitted":
        return fitted_length_prior(lengths or [])
    if ":" in name:
        return import_function(name, "length_prior")
    raise BadInput(f"Unknown `length_prior={name!r}`: expected 'normal', 'lognormal', 'fitted', or 'module:function'.")
