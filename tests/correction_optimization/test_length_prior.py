import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from correction_trl.correction_optimization.length_prior import (
    fitted_length_prior,
    lognormal_length_prior,
    make_length_prior,
    normal_length_prior,
)


def moments(prior, lengths) -> tuple[float, float, float]:
    """Total, mean and standard deviation of a prior over a grid of step 1."""
    weights = [math.exp(value) for value in prior(lengths)]
    total = sum(weights)
    mean = sum(w * n for w, n in zip(weights, lengths, strict=True)) / total
    variance = sum(w * (n - mean) ** 2 for w, n in zip(weights, lengths, strict=True)) / total
    return total, mean, math.sqrt(variance)


@given(mean=st.floats(50, 500), std=st.floats(2, 40))
def test_normal_prior_integrates_to_one_and_has_its_mean_and_std(mean, std):
    assert moments(normal_length_prior(mean, std), range(-400, 1000)) == pytest.approx((1, mean, std), rel=1e-6)


def test_normal_prior_has_the_values_one_computes_by_hand():
    at_mean, one_std_off, other_side = normal_length_prior(100.0, 5.0)([100, 105, 95])
    assert at_mean == pytest.approx(-math.log(5 * math.sqrt(2 * math.pi)))
    assert at_mean - one_std_off == pytest.approx(0.5)
    assert one_std_off == other_side


@given(mean=st.floats(50, 300), ratio=st.floats(0.1, 0.5))
def test_lognormal_prior_takes_mean_and_std_of_the_length_itself(mean, ratio):
    prior = lognormal_length_prior(mean, ratio * mean)
    assert moments(prior, range(1, 6000)) == pytest.approx((1, mean, ratio * mean), rel=2e-3)


def test_lognormal_prior_is_skewed_to_long_responses():
    shorter, longer = lognormal_length_prior(100.0, 50.0)([20, 180])
    assert longer > shorter


@given(observed=st.lists(st.integers(1, 200), min_size=1, max_size=12), bandwidth=st.floats(1, 20))
def test_fitted_prior_is_the_observed_lengths_blurred_by_the_bandwidth(observed, bandwidth):
    total, mean, std = moments(fitted_length_prior(observed, bandwidth), range(-200, 400))
    assert total == pytest.approx(1, rel=1e-6)
    assert mean == pytest.approx(statistics.mean(observed), rel=1e-6)
    assert std == pytest.approx(math.sqrt(statistics.pvariance(observed) + bandwidth**2), rel=1e-6)


def test_fitted_prior_equals_a_naive_kernel_density_estimate():
    observed, bandwidth = [3, 10, 10, 12], 2.0
    naive = sum(math.exp(-((9 - n) ** 2) / (2 * bandwidth**2)) for n in observed)
    naive /= len(observed) * bandwidth * math.sqrt(2 * math.pi)
    assert fitted_length_prior(observed, bandwidth)([9]) == pytest.approx([math.log(naive)])


def test_fitted_prior_chooses_silvermans_bandwidth_and_never_less_than_a_token():
    observed = [10, 20, 30, 40, 50]
    silverman = 1.06 * statistics.pstdev(observed) * 5 ** (-1 / 5)
    assert fitted_length_prior(observed)([17, 33]) == fitted_length_prior(observed, silverman)([17, 33])
    assert fitted_length_prior([30])([30]) == fitted_length_prior([30], 1.0)([30])


def test_priors_far_from_every_wanted_length_are_finite_and_still_fall():
    for prior in (normal_length_prior(10, 1), lognormal_length_prior(10, 1), fitted_length_prior([9, 10, 10])):
        near, far, farther = prior([10, 5_000, 50_000])
        assert math.isfinite(farther) and near > far > farther


def test_make_length_prior_gives_the_named_prior():
    assert make_length_prior(None) is None
    for setting, prior in (
        ({"name": "normal", "mean": 10, "std": 2}, normal_length_prior(10, 2)),
        ({"name": "lognormal", "mean": 10, "std": 2}, lognormal_length_prior(10, 2)),
        ({"name": "fitted", "lengths": [8, 12]}, fitted_length_prior([8, 12])),
    ):
        assert make_length_prior(setting).log_prior([9, 30]) == prior([9, 30])


def test_a_prior_takes_from_the_score_what_it_likes_and_the_product_adds_it():
    """log l(10) - log l(14) is 2 for a mean of 10 and a standard deviation of 2."""
    setting = {"name": "normal", "mean": 10, "std": 2}
    liked, disliked = make_length_prior(setting)([10, 14])
    assert disliked - liked == pytest.approx(2)
    liked, disliked = make_length_prior({**setting, "weight": 0.25})([10, 14])
    assert disliked - liked == pytest.approx(0.5)
    liked, disliked = make_length_prior({**setting, "form": "product", "weight": 3})([10, 14])
    assert liked - disliked == pytest.approx(6)


def test_make_length_prior_imports_a_function(tmp_path, monkeypatch):
    (tmp_path / "my_length_prior.py").write_text(
        "def shorter(lengths):\n    return [-0.5 * n for n in lengths]\n"
        "def one(lengths):\n    return [0.0]\n"
        "def infinite(lengths):\n    return [-float('inf') for n in lengths]\n"
        "def words(lengths):\n    return ['short' for n in lengths]\n"
        "def nothing(lengths):\n    return None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert make_length_prior({"name": "my_length_prior:shorter"})([2, 4]) == [1, 2]
    with pytest.raises(ValueError, match=r"`length_prior='my_length_prior:longer'`: the module .* has no 'longer'"):
        make_length_prior({"name": "my_length_prior:longer"})
    with pytest.raises(ValueError, match="there is no module 'no_such_module_of_mine'; is its folder on PYTHONPATH"):
        make_length_prior({"name": "no_such_module_of_mine:shorter"})
    for name in ("one", "infinite", "words", "nothing"):
        prior = make_length_prior({"name": f"my_length_prior:{name}"})
        with pytest.raises(ValueError, match="one finite log-probability per length; for the lengths .2, 4. it"):
            prior([2, 4])


@pytest.mark.parametrize("name", ["normal", "lognormal"])
@pytest.mark.parametrize(
    ("mean", "std"), [(None, 2.0), (10.0, None), (10.0, 0.0), (10.0, -1.0), ("10", 2), (float("nan"), 1), (True, 2)]
)
def test_a_missing_or_bad_parameter_is_named(name, mean, std):
    with pytest.raises(ValueError, match=f"`length_prior: {name}` needs `mean` and `std`, both in tokens and posi"):
        make_length_prior({"name": name, "mean": mean, "std": std})


def test_a_mean_of_zero_is_no_mean_of_a_lognormal_length():
    with pytest.raises(ValueError, match="in tokens and positive; got 0 and 1"):
        make_length_prior({"name": "lognormal", "mean": 0, "std": 1})


@pytest.mark.parametrize("lengths", [None, []])
def test_a_fitted_prior_without_lengths_says_what_to_set(lengths):
    with pytest.raises(ValueError, match="at least one observed length; set `lengths` in `length_prior`"):
        make_length_prior({"name": "fitted", "lengths": lengths})


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"name": "poisson"}, "the unknown name 'poisson': expected 'normal', 'lognormal', 'fitted', or 'module:func"),
        ({"name": 3}, "must be a mapping with a `name`"),
        (["normal", 1, 2], "must be a mapping with a `name`"),
        (
            {"name": "normal", "mean": 1, "std": 1, "sd": 2},
            "`length_prior: normal` has no 'sd'; it takes name, me",
        ),
        (
            {"name": "fitted", "lengths": [1], "mean": 2},
            "`length_prior: fitted` has no 'mean'; it takes name, le",
        ),
        ({"name": "fitted", "lengths": "many"}, "`lengths` of `length_prior: fitted` must be positive numbers"),
        ({"name": "fitted", "lengths": [3, "4"]}, "`lengths` of `length_prior: fitted` must be positive numbers"),
        ({"name": "normal", "mean": 1, "std": 1, "weight": 0}, "`weight: 0` of `length_prior` must be a positive"),
        (
            {"name": "normal", "mean": 1, "std": 1, "weight": float("nan")},
            "`weight: nan` .* must be a positive number",
        ),
        ({"name": "normal", "mean": 1, "std": 1, "form": "repel"}, "`form: 'repel'` .* must be 'attract' .* or 'pro"),
    ],
    ids=str,
)
def test_what_is_wrong_with_the_mapping_is_one_sentence(setting, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        make_length_prior(setting)
    assert "\n" not in str(caught.value)
