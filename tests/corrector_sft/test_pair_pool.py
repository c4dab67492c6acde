"""The pool of responses: which pairs there are, how often each is drawn, and that nothing gets lost."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from correction_trl.corrector_sft.pair_pool import CORRECTOR, GENERATOR, GOLD, PairPool, Record
from correction_trl.errors import BadInput


def record(prompt, text, value, **more):
    return Record(prompt, text, ids=[ord(c) for c in text] + [2], value=value, **more)


def pool_of(*records, n_prompts=None, **settings):
    pool = PairPool(n_prompts or 1 + max(one.prompt for one in records), **settings)
    pool.add(records)
    return pool


def drawn(pool, n=4000, seed=0):
    """Share of each pair of texts among n draws."""
    pairs = pool.sample(n, np.random.default_rng(seed))
    texts = [(pool.text[y], pool.text[target]) for y, target in zip(pairs.hypothesis, pairs.target, strict=True)]
    return {pair: count / n for pair, count in Counter(texts).items()}


# ------------------------------------------------------------------ which pairs, and how often


def test_pairs_gain_value_and_share_their_prompt():
    pool = pool_of(record(0, "a", 0), record(0, "b", 1), record(1, "c", 0), record(1, "d", 0.5), record(2, "e", 1))
    assert set(drawn(pool)) == {("a", "b"), ("c", "d")}


def test_frequencies_are_those_of_equation_4():
    # y = "aaaa" (0); "aaab" (0.5, similarity 3/4); "bbbb" (1, similarity 0)
    alpha, beta = 2.0, 3.0
    pool = pool_of(record(0, "aaaa", 0), record(0, "aaab", 0.5), record(0, "bbbb", 1), alpha=alpha, beta=beta)
    near, far = math.exp(alpha * 0.5 + beta * 0.75), math.exp(alpha * 1 + beta * 0)
    expected = {
        # Each of the two hypotheses that can be improved is drawn half of the time
        ("aaaa", "aaab"): 0.5 * near / (near + far),
        ("aaaa", "bbbb"): 0.5 * far / (near + far),
        ("aaab", "bbbb"): 0.5,
    }
    found = drawn(pool, n=40_000)
    assert found.keys() == expected.keys()
    for pair, share in expected.items():
        assert found[pair] == pytest.approx(share, abs=0.01)


def test_without_weights_corrections_are_uniform():
    texts = "aaaa", "aaab", "abbb", "bbbb"
    pool = pool_of(*(record(0, text, i / 3) for i, text in enumerate(texts)), alpha=0.0, beta=0.0)
    found = drawn(pool, n=30_000)
    for target in texts[1:]:
        assert found["aaaa", target] == pytest.approx(1 / 9, abs=0.01)


def test_prompts_are_uniform_however_many_responses_they_have():
    many = [record(0, f"response {i}", i) for i in range(30)]
    found = drawn(pool_of(*many, record(1, "worse", 0), record(1, "better", 1)))
    assert found["worse", "better"] == pytest.approx(0.5, abs=0.03)


def test_non_decreasing_keeps_what_is_right():
    records = record(0, "right", 1), record(0, "other", 1), record(0, "wrong", 0.5), record(0, "bad", 0.5)
    pairs = set(drawn(pool_of(*records, pair_filter="non_decreasing", alpha=0.0, beta=0.0)))
    right = {("right", "right"), ("right", "other"), ("other", "right"), ("other", "other")}
    assert pairs == right | {(y, target) for y in ("wrong", "bad") for target in ("right", "other")}
    assert set(drawn(pool_of(*records, alpha=0.0, beta=0.0))) == pairs - right


def test_own_pairs_are_a_response_and_a_correction_sampled_for_it():
    pool = pool_of(record(0, "a", 0), record(0, "b", 0.2), n_prompts=1, pairing="own", alpha=0.0, beta=0.0)
    assert not pool.has_pairs()
    corrections = [record(0, "c", 1, parent=0, source=CORRECTOR), record(0, "d", 0.1, parent=1, source=CORRECTOR)]
    pool.add(corrections)
    # Not (b, c), and not (b, d), which is worse
    assert set(drawn(pool)) == {("a", "c")}
    # Merged with an equal response, it still is the correction of its own
    pool.add([record(0, "c", 1, parent=1, source=CORRECTOR)])
    assert set(drawn(pool)) == {("a", "c"), ("b", "c")}
    assert len(pool) == 4


def test_a_correction_that_is_sampled_again_is_drawn_no_more_often():
    pool = pool_of(record(0, "a", 0), n_prompts=1, pairing="own", alpha=0.0, beta=0.0)
    pool.add([record(0, text, 1, parent=0, source=CORRECTOR) for text in ("often", "once", *["often"] * 8)])
    pool.add([record(0, "often", 1, parent=0, source=CORRECTOR)])
    assert pool.statistics()["pairs_per_prompt"] == 2
    assert 0.45 < drawn(pool)["a", "often"] < 0.55


def test_cut_off_responses_are_no_targets_and_long_ones_no_hypotheses():
    pool = pool_of(
        record(0, "a", 0, can_be_hypothesis=False), record(0, "b", 0.5), record(0, "c", 1, can_be_target=False),
        record(0, "d", 0.8),
    )  # fmt: skip
    assert set(drawn(pool)) == {("b", "d")}


def test_unjudged_responses_stay_and_are_in_no_pair():
    pool = pool_of(record(0, "a", None), record(0, "b", 0), record(0, "c", 1))
    assert set(drawn(pool)) == {("b", "c")}
    assert len(pool) == 3 and pool.statistics()["unjudged"] == pytest.approx(1 / 3)
    assert pool.to_dataset()["value"] == [None, 0.0, 1.0]


def test_a_pool_without_pairs_says_what_to_do():
    pool = pool_of(record(0, "a", 1), record(0, "b", 1), record(1, "c", 0))
    with pytest.raises(BadInput, match="not one pair.*gold_column") as stopped:
        pool.sample(1, np.random.default_rng(0))
    assert "\n" not in str(stopped.value)


def test_another_similarity_is_used():
    def same_start(source, target):
        return float(source[0] == target[0])

    pool = pool_of(record(0, "ax", 0), record(0, "ay", 1), record(0, "by", 1), beta=50.0, similarity=same_start)
    assert drawn(pool)["ax", "ay"] == 1.0


@st.composite
def pools(draw):
    responses = st.tuples(
        st.integers(0, 3), st.text("ab", max_size=3), st.sampled_from([None, 0.0, 0.25, 0.5, 1.0]), st.booleans(),
        st.booleans(),
    )  # fmt: skip
    records = [
        record(prompt, text, value, can_be_hypothesis=hypothesis, can_be_target=target)
        for prompt, text, value, hypothesis, target in draw(st.lists(responses, min_size=1, max_size=25))
    ]
    pair_filter = draw(st.sampled_from(["improving", "non_decreasing"]))
    return pool_of(*records, n_prompts=4, pair_filter=pair_filter, alpha=0.0, beta=0.0)


@given(pools())
def test_the_pairs_are_those_of_a_double_loop(pool):
    expected = set()
    for y in range(len(pool)):
        for target in range(len(pool)):
            gain = pool.value[target] - pool.value[y]
            kept = gain > 0 or (pool.pair_filter == "non_decreasing" and gain == 0 and pool.value[y] >= 1)
            if kept and pool.prompt[y] == pool.prompt[target]:
                if pool.can_be_hypothesis[y] and pool.can_be_target[target]:
                    expected.add((y, target))
    assert pool.has_pairs() == bool(expected)
    assert pool.statistics()["pairs_per_prompt"] == pytest.approx(len(expected) / 4)
    with_pair = {pool.prompt[y] for y, _ in expected}
    assert pool.statistics()["prompts_without_pair"] == pytest.approx(1 - len(with_pair) / 4)
    if expected:
        pairs = pool.sample(60 * len(expected), np.random.default_rng(0))
        found = set(zip(pairs.hypothesis.tolist(), pairs.target.tolist(), strict=True))
        assert found <= expected
        assert (pairs.value_gain == pool.value[pairs.target] - pool.value[pairs.hypothesis]).all()


# ------------------------------------------------------------------ what is kept


def test_equal_responses_are_one():
    pool = pool_of(record(0, "a", 0), record(0, "a", 0), record(1, "a", 1))
    assert len(pool) == 2
    assert pool.add([record(0, "a", 0), record(0, "b", 1)]) == 1


def test_the_oldest_or_the_lowest_go_and_gold_stays():
    gold = record(0, "gold", 1, source=GOLD)
    samples = [record(0, text, value) for text, value in (("a", 0.9), ("b", 0.1), ("c", 0.5), ("d", None))]
    oldest = pool_of(gold, *samples, max_per_prompt=2)
    assert oldest.text == ["gold", "c", "d"]
    lowest = pool_of(gold, *samples, max_per_prompt=2, drop="lowest")
    assert lowest.text == ["gold", "a", "c"]
    assert [lowest.ids(i) for i in range(3)] == [[ord(c) for c in text] + [2] for text in lowest.text]
    lowest.add([record(0, "b", 0.1)])  # comes back, and goes again
    assert lowest.text == ["gold", "a", "c"]


def test_corrections_follow_their_responses_when_others_go():
    pool = pool_of(record(0, "a", 0), record(0, "b", 0), n_prompts=1, pairing="own")
    pool.add([record(0, "c", 1, parent=1, source=CORRECTOR), record(0, "d", 1, parent=0, source=CORRECTOR)])
    pool.keep(np.array([False, True, True, True]))
    assert set(drawn(pool)) == {("b", "c")}


def test_hypotheses_come_from_every_source_but_gold():
    pool = pool_of(
        record(0, "gold", 1, source=GOLD), record(0, "a", 0), record(0, "b", 1, source=CORRECTOR), record(1, "c", 0)
    )
    rng = np.random.default_rng(0)
    seen = {int(i) for _ in range(50) for i in pool.hypotheses(np.array([0]), 1, rng)}
    assert seen == {1, 2}
    assert pool.hypotheses(np.array([0, 1]), 5, rng).tolist() in ([1, 2, 3], [2, 1, 3])


@settings(max_examples=20)
@given(pools())
def test_a_saved_pool_is_the_same_pool(tmp_path_factory, pool):
    pool.add([record(int(pool.prompt[0]), "correction", 1.0, parent=0, source=CORRECTOR, feedback="no")])
    file = tmp_path_factory.mktemp("pool") / "pool.parquet"
    pool.save(file)
    for pairing in ("all", "own"):
        pool.pairing, pool._pairs = pairing, None
        again = PairPool(4, alpha=0.0, beta=0.0, pairing=pairing, pair_filter=pool.pair_filter)
        again.load(file)
        assert again.text == pool.text and again.feedback == pool.feedback
        assert [again.ids(i) for i in range(len(again))] == [pool.ids(i) for i in range(len(pool))]
        np.testing.assert_array_equal(again.value, pool.value)
        assert again.has_pairs() == pool.has_pairs()
        if pool.has_pairs():
            one, other = (p.sample(50, np.random.default_rng(1)) for p in (pool, again))
            assert one.hypothesis.tolist() == other.hypothesis.tolist()
            assert one.target.tolist() == other.target.tolist()
        assert again.add([record(int(pool.prompt[0]), "correction", 1.0)]) == 0


def test_a_pool_of_other_prompts_is_refused(tmp_path):
    pool_of(record(0, "a", 0), n_prompts=3).save(tmp_path / "pool.parquet")
    with pytest.raises(BadInput, match="of 3 prompts, and there are 5"):
        PairPool(5).load(tmp_path / "pool.parquet")
    with pytest.raises(BadInput, match="nothing.parquet cannot be read"):
        PairPool(5).load(tmp_path / "nothing.parquet")
    (tmp_path / "text").write_text("no parquet")
    with pytest.raises(BadInput, match="cannot be read"):
        PairPool(5).load(tmp_path / "text")


def test_it_exports_responses_and_pairs():
    pool = pool_of(record(0, "a", 0, feedback="wrong", step=3), record(0, "b", 1, source=CORRECTOR))
    dataset = pool.to_dataset(["what?"])
    assert dataset[0] == {
        "prompt": "what?", "response": "a", "value": 0.0, "feedback": "wrong", "source": "generator", "step": 3,
    }  # fmt: skip
    assert dataset["source"] == ["generator", "corrector"] and pool.source.tolist() == [GENERATOR, CORRECTOR]
    assert pool.sample_dataset(["what?"], 2).to_list() == [{"prompt": "what?", "response": "a", "correction": "b"}] * 2
