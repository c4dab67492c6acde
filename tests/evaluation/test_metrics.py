import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from correction_trl.evaluation.metrics import (
    bootstrap_interval,
    edit_distance_ratio,
    edit_ratio,
    paired_difference,
    self_correction_metrics,
    summarize,
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
        summary = summarize(values, resamples=200)
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
        for name in ("delta(t1,t2)", "delta(i->c)", "delta(c->i)"):
            assert metrics[name] == {"mean": 0, "low": 0, "high": 0, "n": 3}

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
