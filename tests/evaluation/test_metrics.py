import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from correction_trl.evaluation.metrics import (
    attempt_metrics,
    bootstrap_interval,
    edit_distance_ratio,
    edit_ratio,
    paired_difference,
    paired_interval,
    self_correction_metrics,
    summarize,
    wilson_interval,
)


VERDICTS = st.sampled_from([True, False, None])
ATTEMPTS = st.lists(st.tuples(VERDICTS, VERDICTS), max_size=30)
TOKENS = st.lists(st.integers(0, 5), max_size=12)


def naive_levenshtein(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        previous, row = row, [i]
        for j, y in enumerate(b, start=1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (x != y)))
    return row[-1]


class TestBootstrapInterval:
    @pytest.mark.parametrize(("n", "right"), [(2000, 1336), (400, 40)])
    def test_fraction_matches_the_normal_approximation(self, n, right):
        low, high = bootstrap_interval([1] * right + [0] * (n - right), resamples=10_000)
        p = right / n
        half_width = 1.96 * math.sqrt(p * (1 - p) / n)
        assert low == pytest.approx(p - half_width, abs=0.06 * half_width + 1 / n)
        assert high == pytest.approx(p + half_width, abs=0.06 * half_width + 1 / n)

    def test_confidence_is_the_share_inside(self):
        values = np.random.default_rng(0).normal(size=500)
        low, high = bootstrap_interval(values, confidence=0.5, resamples=10_000)
        assert high - low == pytest.approx(2 * 0.6745 * values.std() / math.sqrt(500), rel=0.05)

    def test_matches_a_naive_loop(self):
        values = np.random.default_rng(1).exponential(size=37)
        generator = np.random.default_rng(7)
        means = [np.mean([values[i] for i in generator.integers(37, size=37)]) for _ in range(500)]
        expected = np.quantile(means, [0.05, 0.95])
        assert bootstrap_interval(values, confidence=0.9, resamples=500, seed=7) == pytest.approx(tuple(expected))

    def test_many_problems_are_drawn_in_blocks(self, monkeypatch):
        values = np.random.default_rng(2).random(500)
        whole = bootstrap_interval(values)
        monkeypatch.setattr("correction_trl.evaluation.metrics._BLOCK_SIZE", 7 * 500 + 3)
        assert bootstrap_interval(values) == pytest.approx(whole)

    def test_same_arguments_same_interval(self):
        values = [0.1, 0.7, 0.3, 0.9]
        assert bootstrap_interval(values) == bootstrap_interval(values)
        assert bootstrap_interval(values, seed=1) != bootstrap_interval(np.array(values) ** 2, seed=1)

    @pytest.mark.parametrize("values", [[], [1.0], [None, float("nan")], [None, 3.0]])
    def test_fewer_than_two_judged_values_have_no_interval(self, values):
        assert all(math.isnan(end) for end in bootstrap_interval(values))

    @pytest.mark.parametrize("confidence", [0, 1, 95])
    def test_confidence_outside_0_1(self, confidence):
        with pytest.raises(ValueError, match="`confidence` must lie between 0 and 1"):
            bootstrap_interval([0, 1], confidence=confidence)

    def test_values_of_several_dimensions(self):
        with pytest.raises(ValueError, match=r"one value per problem, got an array of shape \(2, 2\)"):
            bootstrap_interval([[0, 1], [1, 0]])


class TestScoreIntervals:
    # Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I
    @pytest.mark.parametrize(
        ("right", "n", "low", "high"),
        [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
    )
    def test_wilson_as_published(self, right, n, low, high):
        assert wilson_interval(right, n) == pytest.approx((low, high), abs=5e-5)
        assert wilson_interval(n - right, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)

    @given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 40))
    def test_the_ends_of_tango_are_where_the_test_begins_to_reject(self, gained, lost, rest):
        n = gained + lost + rest

        def statistic(delta):
            # the likeliest shares under that difference, by trying them all
            share_lost = np.linspace(max(0, -delta), (1 - delta) / 2, 200_001)[1:-1]
            with np.errstate(divide="ignore", invalid="ignore"):
                likelihood = (
                    gained * np.log(share_lost + delta)
                    + (lost * np.log(share_lost) if lost else 0)
                    + rest * np.log(1 - delta - 2 * share_lost)
                )
            likelihood[np.isnan(likelihood)] = -np.inf
            best = share_lost[likelihood.argmax()]
            return (gained - lost - n * delta) / math.sqrt(n * (2 * best + delta * (1 - delta)))

        low, high = paired_interval(gained, lost, n)
        assert low <= (gained - lost) / n <= high
        assert statistic(low) == pytest.approx(1.96, abs=0.01) and statistic(high) == pytest.approx(-1.96, abs=0.01)

    def test_none_of_five_is_not_certain(self):
        for summary in (
            summarize([0] * 5),
            summarize([False, 0.0, 0, None, 0, 0]),
            paired_difference([0] * 5, [0] * 5),
            paired_difference([1] * 5, [1] * 5),
            self_correction_metrics([0] * 5, [0] * 5)["fix_rate"],
            self_correction_metrics([0] * 5, [0] * 5)["delta(t1,t2)"],
            attempt_metrics([[[0, 0], [0, 0]]] * 5)[0]["acc@t1"],  # two samples of each
            attempt_metrics([[[0, 0], [0, 0]]] * 5)[0]["fix_rate"],
        ):
            assert summary["n"] == 5 and summary["high"] == pytest.approx(0.4345, abs=1e-4)
        assert summarize([1] * 5)["low"] == pytest.approx(1 - 0.4345, abs=1e-4)

    def test_nothing_but_gains_may_still_be_no_gain(self):
        difference = paired_difference([0] * 10, [1, 1] + [0] * 8)
        assert difference["mean"] == 0.2 and difference["low"] < 0 < difference["high"]

    def test_a_scale_is_resampled(self):
        assert summarize([0.0, 0.0, 0.0], rate=False)["high"] == 0  # no response cost a token
        assert summarize([0, 1, 2])["high"] == bootstrap_interval([0, 1, 2])[1]
        assert paired_difference([0.5, 0.25], [0.5, 0.25]) == {"mean": 0, "low": 0, "high": 0, "n": 2}

    def test_the_interval_of_a_rare_event_holds_it(self):
        """Exact coverage: 2 % of 100 problems, over all that may be seen. The bootstrap's is .87."""
        covered = 0.0
        for k in range(101):
            low, high = wilson_interval(k, 100)
            covered += math.comb(100, k) * 0.02**k * 0.98 ** (100 - k) * (low <= 0.02 <= high)
        assert 0.94 < covered < 0.96


class TestSummaries:
    def test_unjudged_problems_are_left_out(self):
        summary = summarize([1.0, None, 0.0, float("nan"), True])
        assert summary["n"] == 3
        assert summary["mean"] == pytest.approx(2 / 3)
        assert summary == summarize([1, 0, 1])

    def test_nothing_judged(self):
        summary = summarize([None])
        assert summary["n"] == 0 and math.isnan(summary["mean"])

    @given(st.lists(st.floats(-100, 100), min_size=2, max_size=30))
    def test_interval_lies_within_the_values(self, values):
        summary = summarize(values, resamples=200, rate=False)
        assert min(values) - 1e-9 <= summary["low"] <= summary["high"] <= max(values) + 1e-9

    def test_pairing_finds_what_separate_intervals_hide(self):
        difficulty = np.random.default_rng(0).normal(scale=10, size=200)
        before, after = difficulty, difficulty + np.random.default_rng(1).normal(loc=0.5, scale=0.5, size=200)
        assert summarize(before)["high"] > summarize(after)["low"]
        difference = paired_difference(before, after)
        assert 0 < difference["low"] < 0.5 < difference["high"] < 1

    def test_pairs_need_both_sides(self):
        difference = paired_difference([1, None, 0, 0], [1, 1, 1, float("nan")])
        assert difference["n"] == 2 and difference["mean"] == 0.5

    def test_pairs_of_different_lengths(self):
        with pytest.raises(ValueError, match="`before` has 2 values and `after` has 3"):
            paired_difference([0, 1], [0, 1, 1])


class TestSelfCorrectionMetrics:
    def test_table_of_the_score_paper(self):
        # Gemini 1.5 Flash on MATH500 before training: 52.6 -> 41.4, i->c 4.6, c->i 15.8 (in percent)
        first = [1] * 263 + [0] * 237
        second = [1] * (263 - 79) + [0] * 79 + [1] * 23 + [0] * (237 - 23)
        means = {name: summary["mean"] for name, summary in self_correction_metrics(first, second).items()}
        assert means == pytest.approx(
            {
                "acc@t1": 0.526,
                "acc@t2": 0.414,
                "delta(t1,t2)": -0.112,
                "delta(i->c)": 0.046,
                "delta(c->i)": 0.158,
                "fix_rate": 23 / 237,
            }
        )

    @given(ATTEMPTS)
    def test_matches_a_naive_loop_and_the_identity_is_exact(self, attempts):
        metrics = self_correction_metrics([a for a, _ in attempts], [b for _, b in attempts], resamples=10)
        judged = [(a, b) for a, b in attempts if a is not None and b is not None]
        counts = {
            "acc@t1": sum(a for a, _ in judged),
            "acc@t2": sum(b for _, b in judged),
            "delta(i->c)": sum(b and not a for a, b in judged),
            "delta(c->i)": sum(a and not b for a, b in judged),
        }
        for name, count in counts.items():
            assert metrics[name]["n"] == len(judged)
            if judged:
                assert metrics[name]["mean"] == pytest.approx(count / len(judged))
        wrong = [b for a, b in judged if not a]
        assert metrics["fix_rate"]["n"] == len(wrong)
        if wrong:
            assert metrics["fix_rate"]["mean"] == pytest.approx(sum(wrong) / len(wrong))
        if judged:
            mean = {name: summary["mean"] for name, summary in metrics.items()}
            assert mean["delta(t1,t2)"] == mean["delta(i->c)"] - mean["delta(c->i)"]
            assert mean["delta(t1,t2)"] == pytest.approx(mean["acc@t2"] - mean["acc@t1"])

    def test_copying_the_first_answer_changes_nothing(self):
        metrics = self_correction_metrics([1, 0, 1], [1, 0, 1])
        high = pytest.approx(1.96**2 / (3 + 1.96**2), abs=1e-4)  # three problems leave much room for a change
        for name in ("delta(i->c)", "delta(c->i)"):
            assert metrics[name] == {"mean": 0, "low": 0, "high": high, "n": 3}
        difference = metrics["delta(t1,t2)"]
        assert difference == {"mean": 0, "low": -difference["high"], "high": high, "n": 3}

    def test_graded_values_are_refused(self):
        with pytest.raises(ValueError, match="`correct_t2` holds 0.5.*threshold"):
            self_correction_metrics([1, 0], [1, 0.5])

    def test_different_lengths(self):
        with pytest.raises(ValueError, match="`correct_t1` has 1 values and `correct_t2` has 2"):
            self_correction_metrics([1], [1, 0])


class TestEdits:
    def test_text(self):
        assert edit_ratio("kitten", "sitting") == 3 / 7
        assert edit_distance_ratio("kitten", "sitting") == 3 / 13

    @given(TOKENS, TOKENS)
    def test_token_ids_match_a_naive_loop(self, a, b):
        distance = naive_levenshtein(a, b)
        assert edit_ratio(a, b) == pytest.approx(distance / max(len(a), len(b), 1))
        assert edit_distance_ratio(a, b) == pytest.approx(distance / max(len(a) + len(b), 1))

    @given(st.text(max_size=15), st.text(max_size=15))
    def test_symmetric_within_0_1_and_0_only_for_equal_texts(self, a, b):
        for ratio in (edit_ratio, edit_distance_ratio):
            assert ratio(a, b) == ratio(b, a)
            assert 0 <= ratio(a, b) <= 1
            assert (ratio(a, b) == 0) == (a == b)

    def test_empty(self):
        assert edit_ratio("", "") == edit_distance_ratio([], []) == 0
        assert edit_ratio("", "abc") == edit_distance_ratio([1, 2], []) == 1

    def test_arrays_compare_by_value(self):
        torch = pytest.importorskip("torch")
        assert edit_ratio(np.array([1, 2, 3]), [1, 2, 4]) == 1 / 3
        assert edit_ratio(torch.tensor([1, 2, 3]), torch.tensor([1, 2, 3])) == 0

    def test_a_text_is_not_compared_with_token_ids(self):
        with pytest.raises(TypeError, match="two texts or two lists of token ids"):
            edit_ratio("abc", [1, 2, 3])
