"""What the recipes report, as pure functions: one number per problem in, a mean with its interval out.

A **summary** is the one shape every metric has, in `metrics.json`, in the tables and in the pictures:
`{"mean": float, "low": float, "high": float, "n": int}`, where `low` and `high` bound the 95 % interval of the mean
and `n` is the number of problems it was computed on. What is right or wrong (1 or 0) for each problem has a score
interval: Wilson's, and Tango's for the difference of two on the same problems. (Resampling 0 right of 5 problems finds
nothing but 0, and rare events escape it.) What is measured on a scale (edits, tokens, nats) has a bootstrap interval.

A problem whose value is `None` or NaN was *not judged* (the value function gave no verdict, the teacher no
correction). It is left out of the mean, and `n` is smaller for it: the number of problems asked minus `n` is how many
were left out.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from rapidfuzz.distance import Levenshtein


# Resamples are drawn in blocks of at most this many numbers, so that 100,000 problems need megabytes, not gigabytes.
_BLOCK_SIZE = 4_000_000


def bootstrap_interval(
    values: Sequence[float | bool | None], confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """
    The percentile bootstrap interval of a mean over problems: problems are drawn with replacement, the mean is taken
    each time, and the middle `confidence` of those means is returned. The same arguments give the same interval, and
    two metrics of the same problems are resampled with the same draws.

    What it does not cover: it describes the choice of problems, not the training seed. If all values are equal (none
    of 50 problems was right) the interval has no width, which says nothing about the next 50; at 0 of n, 3/n is a
    better upper bound.

    Args:
        values (`Sequence[float | bool | None]` of shape `(n,)`):
            One value per problem; `None` and NaN are left out.
        confidence (`float`, *optional*, defaults to `0.95`):
            Share of the resampled means inside the interval, in (0, 1).
        resamples (`int`, *optional*, defaults to `2000`):
            Number of resampled means.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.

    Returns:
        `tuple[float, float]`: `(low, high)`. `(nan, nan)` for fewer than two judged values: one value has no spread,
        and an interval of no width would claim certainty.

    Raises:
        `ValueError`: if `values` is not one-dimensional or `confidence` is not in (0, 1).
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"`confidence` must lie between 0 and 1, got {confidence}; use 0.95 for a 95 % interval.")
    values = _judged(values)
    if len(values) < 2:
        return float("nan"), float("nan")

    means = _resampled_means(values, resamples, seed)
    low, high = np.quantile(means, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return float(low), float(high)


def _resampled_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """The mean of each resample; the same seed draws the same problems out of equally many."""
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK_SIZE // len(values))
    means = np.empty(resamples)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        draws = generator.integers(len(values), size=(size, len(values)))  # (resamples, problems)
        means[start : start + size] = values[draws].mean(axis=1)
    return means


def wilson_interval(right: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """
    Wilson's score interval of a share: all shares that a test of `right` out of `n` would not reject. For 0 of 5 it is
    [0, 0.43].

    Args:
        right (`int`), n (`int`):
            How many of how many; `n` is at least 1.
        confidence (`float`, *optional*, defaults to `0.95`):
            Confidence level.

    Returns:
        `tuple[float, float]`: `(low, high)`, with `right / n` between them.
    """
    z2 = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2
    share = right / n
    center = (share + z2 / (2 * n)) / (1 + z2 / n)
    half_width = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # Rounding may leave 1e-17 beside 0 and 1
    return max(0.0, min(share, center - half_width)), min(1.0, max(share, center + half_width))


def paired_interval(gained: int, lost: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """
    Tango's score interval of the difference of two shares on the same problems (Statistics in Medicine 17, 1998): all
    differences that a test of what was seen would not reject. Without a change in any of 5 problems it is
    [-0.43, 0.43].

    Args:
        gained (`int`), lost (`int`), n (`int`):
            Problems that became right, that became wrong, and all; `n` is at least 1.
        confidence (`float`, *optional*, defaults to `0.95`):
            Confidence level.

    Returns:
        `tuple[float, float]`: `(low, high)`, with `(gained - lost) / n` between them.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    difference = (gained - lost) / n

    def score(delta: float) -> float:
        """How many standard errors the difference that was seen is from `delta`."""
        # The likeliest share of lost problems under that difference solves 2n q^2 + b q + c = 0
        b = (2 * n - gained + lost) * delta - gained - lost
        c = -lost * delta * (1 - delta)
        share_lost = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
        variance = n * (2 * share_lost + delta * (1 - delta))
        return abs(gained - lost - n * delta) / math.sqrt(variance) if variance > 0 else math.inf

    def bound(inside: float, outside: float) -> float:
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if score(middle) < z else (inside, middle)
        return (inside + outside) / 2

    return bound(difference, -1.0), bound(difference, 1.0)


def is_rate(name: str) -> bool:
    """Whether a metric is 0 or 1 for each problem, or the mean of that over its samples: by the metric's name."""
    name = name.removesuffix("/sampled")
    return name.startswith(
        ("acc@", "acc_", "asr@", "over_refusal@", "contains@", "delta(", "corrections/", "responses/", "regression/")
    ) or name in ("fix_rate", "answer_changed")


def summarize(
    values: Sequence[float | bool | None],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    rate: bool = True,
) -> dict[str, float | int]:
    """
    The mean of one value per problem, with its interval.

    Args:
        values (`Sequence[float | bool | None]` of shape `(n,)`):
            One value per problem; `None` and NaN are left out.
        confidence, resamples, seed:
            See [`bootstrap_interval`].
        rate (`bool`, *optional*, defaults to `True`):
            Whether values that are nothing but 0 and 1 are verdicts, with [`wilson_interval`]. Where they would be a
            coincidence (edits, tokens, nats), or if there are others, the interval is the bootstrap's.

    Returns:
        `dict`: `{"mean", "low", "high", "n"}`; `n` counts the judged problems. Without any, `mean` is NaN; without
        two, there is no interval (NaN).

    Raises:
        `ValueError`: if `values` is not one-dimensional.
    """
    judged = _judged(values)
    mean = float(judged.mean()) if len(judged) else float("nan")
    if rate and len(judged) > 1 and np.isin(judged, (0, 1)).all():
        low, high = wilson_interval(int(judged.sum()), len(judged), confidence)
    else:
        low, high = bootstrap_interval(judged, confidence, resamples, seed)
    return {"mean": mean, "low": low, "high": high, "n": len(judged)}


def summarize_difference(
    differences: Sequence[float | None],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    rate: bool = True,
) -> dict[str, float | int]:
    """
    The mean of one difference per problem, with its interval: as [`summarize`], but of verdicts (differences that are
    nothing but -1, 0 and 1) with [`paired_interval`].
    """
    judged = _judged(differences)
    summary = summarize(judged, confidence, resamples, seed, rate=False)
    if rate and len(judged) > 1 and np.isin(judged, (-1, 0, 1)).all():
        gained, lost = int((judged == 1).sum()), int((judged == -1).sum())
        summary["low"], summary["high"] = paired_interval(gained, lost, len(judged), confidence)
    return summary


def paired_difference(
    before: Sequence[float | bool | None],
    after: Sequence[float | bool | None],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    rate: bool = True,
) -> dict[str, float | int]:
    """
    The mean of `after - before` on the same problems, with its interval. Pairing removes the spread that comes from
    some problems being harder than others, so this interval can exclude 0 where the two separate intervals still
    overlap.

    Args:
        before (`Sequence[float | bool | None]` of shape `(n,)`):
            One value per problem before training.
        after (`Sequence[float | bool | None]` of shape `(n,)`):
            One value per problem after training, in the same order. A problem that either side leaves unjudged
            (`None`, NaN) is left out.
        confidence, resamples, seed:
            See [`bootstrap_interval`].
        rate (`bool`, *optional*, defaults to `True`):
            Whether values that are nothing but 0 and 1 are verdicts, with [`paired_interval`]; see [`summarize`].

    Returns:
        `dict`: `{"mean", "low", "high", "n"}`; `n` counts the problems judged on both sides.

    Raises:
        `ValueError`: if the two do not have the same length.
    """
    first, second = _same_problems("before", before, "after", after)
    verdicts = np.isin(np.concatenate([_judged(first), _judged(second)]), (-1, 0, 1)).all()
    return summarize_difference(second - first, confidence, resamples, seed, rate=rate and bool(verdicts))


def self_correction_metrics(
    correct_t1: Sequence[float | bool | None],
    correct_t2: Sequence[float | bool | None],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, dict[str, float | int]]:
    """
    The self-correction metrics of SCoRe ([paper](https://huggingface.co/papers/2409.12917)), as fractions of **all**
    problems:

    * `acc@t1`, `acc@t2`: first, second attempt right
    * `delta(t1,t2)`: `acc@t2 - acc@t1`
    * `delta(i->c)`: wrong at the first attempt and right at the second
    * `delta(c->i)`: right at the first attempt and wrong at the second

    `delta(t1,t2) = delta(i->c) - delta(c->i)` holds exactly for the means. One more number is a fraction of the
    problems whose first attempt was wrong (its `n` says how many those are):

    * `fix_rate`: second attempt right, given that the first was wrong

    Args:
        correct_t1 (`Sequence[float | bool | None]` of shape `(n,)`):
            Whether the first attempt is right: `True`/`False` or 1/0.
        correct_t2 (`Sequence[float | bool | None]` of shape `(n,)`):
            Whether the second attempt is right, same problems in the same order. A problem that is unjudged (`None`,
            NaN) at either attempt is left out of every metric, or the identity would not hold.
        confidence, resamples, seed:
            See [`bootstrap_interval`].

    Returns:
        `dict[str, dict]`: the summary of each metric, by the names above.

    Raises:
        `ValueError`: if the lengths differ, or if a value is neither 0 nor 1 (threshold graded values first).
    """
    first, second = _same_problems("correct_t1", correct_t1, "correct_t2", correct_t2)
    for name, values in (("correct_t1", first), ("correct_t2", second)):
        graded = values[~np.isnan(values) & (values != 0) & (values != 1)]
        if len(graded):
            raise ValueError(
                f"`{name}` holds {graded[0]:g}, but an attempt is right (1) or wrong (0); apply a threshold to graded"
                " values first."
            )
    judged = ~np.isnan(first) & ~np.isnan(second)
    first, second = first[judged], second[judged]

    per_problem = {
        "acc@t1": first,
        "acc@t2": second,
        "delta(t1,t2)": second - first,
        "delta(i->c)": (1 - first) * second,
        "delta(c->i)": first * (1 - second),
        "fix_rate": second[first == 0],
    }
    metrics = {
        name: (summarize_difference if name == "delta(t1,t2)" else summarize)(values, confidence, resamples, seed)
        for name, values in per_problem.items()
    }
    # a/n - b/n and (a - b)/n differ in the last bit. The first is taken, so that the printed identity is exact.
    metrics["delta(t1,t2)"]["mean"] = metrics["delta(i->c)"]["mean"] - metrics["delta(c->i)"]["mean"]
    return metrics


def attempt_metrics(
    right: Sequence[Sequence[Sequence[float | bool | None]]],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[dict[str, dict[str, float | int]], dict[str, list[float | None]]]:
    """
    [`self_correction_metrics`] for any number of attempts and samples: what holds for a problem is the mean over its
    samples, and the interval is over problems.

    * `acc@t1`, ..., `acc@tk`: the attempt right
    * `delta(t1,t2)`, `delta(i->c)`, `delta(c->i)`, `fix_rate`: as there, between the first attempt and the second
    * `delta(t1,t3)`, `delta(i->c)@t3`, `delta(c->i)@t3`, ...: the same between the first attempt and a later one

    `delta(t1,t) = delta(i->c)@t - delta(c->i)@t = acc@t - acc@t1`, for each problem and for the means. `fix_rate` is a
    ratio of sums: second attempts right after a wrong first one, over wrong first attempts.

    Args:
        right (`Sequence` of shape `(n, samples, attempts)`):
            Whether each attempt is right: `True`/`False` or 1/0. A sample with an attempt that could not be judged
            (`None`, NaN) is left out of every metric, or the identity would not hold; a problem without a judged
            sample is not judged.
        confidence, resamples, seed:
            See [`bootstrap_interval`].

    Returns:
        `tuple` of two dicts: the summary of each metric; and its values per problem, in order, `None` where it is not
        defined (not judged; for `fix_rate`, no wrong first attempt).

    Raises:
        `ValueError`: if the problems differ in their number of samples or attempts, or a value is neither 0 nor 1.
    """
    values = np.asarray(right, dtype=float)  # (problems, samples, attempts); None becomes NaN
    if values.ndim != 3:
        raise ValueError(
            f"`right` must be of shape (problems, samples, attempts), got {values.shape}; every sample needs the same "
            "number of attempts."
        )
    graded = values[~np.isnan(values) & (values != 0) & (values != 1)]
    if len(graded):
        raise ValueError(
            f"`right` holds {graded[0]:g}, but an attempt is right (1) or wrong (0); apply a threshold to graded"
            " values first."
        )
    # A sample with one attempt that was not judged counts nowhere: the deltas are to add up
    values[np.isnan(values).any(axis=2)] = np.nan
    judged = (~np.isnan(values[:, :, :1])).sum(axis=1).squeeze(1)  # (problems,): how many samples count

    def per_problem(sample_values: np.ndarray) -> np.ndarray:
        """From (problems, samples) to (problems,): the mean over the samples that count."""
        with np.errstate(invalid="ignore"):
            return np.where(judged > 0, np.nansum(sample_values, axis=1) / judged, np.nan)

    first = values[:, :, 0]  # (problems, samples)
    columns = {f"acc@t{t}": per_problem(values[:, :, t - 1]) for t in range(1, values.shape[2] + 1)}
    summaries = {}
    for t in range(2, values.shape[2] + 1):
        later, at = values[:, :, t - 1], "" if t == 2 else f"@t{t}"
        columns[f"delta(t1,t{t})"] = per_problem(later - first)
        columns[f"delta(i->c){at}"] = fixed = per_problem((1 - first) * later)
        columns[f"delta(c->i){at}"] = per_problem(first * (1 - later))
        if t == 2:
            wrong = 1 - columns["acc@t1"]
            columns["fix_rate"] = np.divide(fixed, wrong, out=np.full_like(fixed, np.nan), where=wrong > 0)
            summaries["fix_rate"] = summarize_ratio(fixed * judged, wrong * judged, confidence, resamples, seed)
    for name, column in columns.items():
        if name.startswith("delta(t1,t"):  # both gains and losses
            summaries[name] = summarize_difference(column, confidence, resamples, seed)
        elif name != "fix_rate":
            summaries[name] = summarize(column, confidence, resamples, seed)
    for t in range(2, values.shape[2] + 1):
        # a/n - b/n and (a - b)/n differ in the last bit. The first is taken, so that the printed identity is exact.
        at = "" if t == 2 else f"@t{t}"
        gain, loss = summaries[f"delta(i->c){at}"], summaries[f"delta(c->i){at}"]
        summaries[f"delta(t1,t{t})"]["mean"] = gain["mean"] - loss["mean"]
    return (
        {name: summaries[name] for name in columns},
        {name: [None if np.isnan(value) else float(value) for value in column] for name, column in columns.items()},
    )


def summarize_ratio(
    numerators: Sequence[float | None],
    denominators: Sequence[float | None],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, float | int]:
    """
    The ratio of two sums over problems, with its bootstrap interval: problems are drawn with replacement and both sums
    are taken over the same draw. Where every problem counts as much as the others and is nothing but 0 or 1, or where
    all are 0 or all 1, it is a share, with [`wilson_interval`].

    Args:
        numerators (`Sequence[float | None]` of shape `(n,)`):
            One value per problem.
        denominators (`Sequence[float | None]` of shape `(n,)`):
            One value per problem, none negative. A problem that lacks either (`None`, NaN) is left out.
        confidence, resamples, seed:
            See [`bootstrap_interval`].

    Returns:
        `dict`: `{"mean", "low", "high", "n"}`; `n` counts the problems whose denominator is not 0; without any, `mean`
        is NaN.

    Raises:
        `ValueError`: if the two do not have the same length.
    """
    a, b = _same_problems("numerators", numerators, "denominators", denominators)
    judged = ~np.isnan(a) & ~np.isnan(b)
    a, b = a[judged], b[judged]
    n = int((b > 0).sum())
    if n == 0:
        return {"mean": float("nan"), "low": float("nan"), "high": float("nan"), "n": 0}
    low = high = float("nan")
    shares = a[b > 0] / b[b > 0]
    equally_weighted = np.ptp(b[b > 0]) == 0 or np.ptp(shares) == 0
    if n > 1 and equally_weighted and np.isin(shares, (0, 1)).all():
        low, high = wilson_interval(int(shares.sum()), n, confidence)
    elif n > 1:
        sums = _resampled_means(b, resamples, seed)
        ratios = _resampled_means(a, resamples, seed)[sums > 0] / sums[sums > 0]
        low, high = map(float, np.quantile(ratios, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0]))
    return {"mean": float(a.sum() / b.sum()), "low": low, "high": high, "n": n}


def edit_ratio(a: str | Sequence[int], b: str | Sequence[int]) -> float:
    """
    How much of a sequence has to be edited to become the other: Levenshtein(a, b) / max(|a|, |b|). Over a response
    and its correction this is `correction_edit_ratio`.

    Args:
        a (`str` or `Sequence[int]`):
            A text (compared by character) or token ids (compared by token).
        b (`str` or `Sequence[int]`):
            The same kind as `a`.

    Returns:
        `float` in [0, 1]: 0 if the two are equal (two empty ones are), 1 if nothing of either remains.

    Raises:
        `TypeError`: if one is a text and the other is not.
    """
    a, b = _comparable(a, b)
    return Levenshtein.distance(a, b) / max(len(a), len(b), 1)


def edit_distance_ratio(y1: str | Sequence[int], y2: str | Sequence[int]) -> float:
    """
    SCoRe's edit-distance ratio between two attempts ([paper](https://huggingface.co/papers/2409.12917), figure 6):
    Levenshtein(y1, y2) / (|y1| + |y2|). Near 0 for all problems, the second attempt has collapsed to a copy of the
    first.

    Args:
        y1 (`str` or `Sequence[int]`):
            The first attempt, as a text (compared by character) or as token ids (compared by token).
        y2 (`str` or `Sequence[int]`):
            The second attempt, the same kind as `y1`.

    Returns:
        `float` in [0, 1]: 0 if the two are equal (two empty ones are), 1 if exactly one is empty. Two attempts of the
        same length reach 0.5 at most.

    Raises:
        `TypeError`: if one is a text and the other is not.
    """
    y1, y2 = _comparable(y1, y2)
    return Levenshtein.distance(y1, y2) / max(len(y1) + len(y2), 1)


def _as_floats(name: str, values: Sequence[float | bool | None] | np.ndarray) -> np.ndarray:
    floats = np.asarray(values, dtype=float)  # None becomes NaN
    if floats.ndim != 1:
        raise ValueError(
            f"`{name}` must hold one value per problem, got an array of shape {floats.shape}; flatten it."
        )
    return floats


def _judged(values: Sequence[float | bool | None] | np.ndarray) -> np.ndarray:
    floats = _as_floats("values", values)
    return floats[~np.isnan(floats)]


def _same_problems(name_a: str, a: Sequence, name_b: str, b: Sequence) -> tuple[np.ndarray, np.ndarray]:
    a, b = _as_floats(name_a, a), _as_floats(name_b, b)
    if len(a) != len(b):
        raise ValueError(
            f"`{name_a}` has {len(a)} values and `{name_b}` has {len(b)}; give both for the same problems in the same"
            " order, with NaN where a problem was not judged."
        )
    return a, b


def _comparable(a: str | Sequence[int], b: str | Sequence[int]) -> tuple[str | list, str | list]:
    if isinstance(a, str) != isinstance(b, str):
        raise TypeError(
            f"Cannot compare a {type(a).__name__} with a {type(b).__name__}; give two texts or two lists of token ids."
        )
    # Token ids may come as arrays or tensors, whose elements do not compare by value inside rapidfuzz.
    return (a, b) if isinstance(a, str) and isinstance(b, str) else (np.asarray(a).tolist(), np.asarray(b).tolist())
