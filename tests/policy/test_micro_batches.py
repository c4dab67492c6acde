"""Cutting an update by tokens: every row once, within the budget, as few micro-batches as sorting allows."""

from hypothesis import given
from hypothesis import strategies as st

from correction_trl.policy.micro_batches import cut_by_tokens


LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=30)


@given(lengths=LENGTHS, budget=st.integers(1, 300), n_at_least=st.integers(1, 40))
def test_every_row_is_in_one_micro_batch_within_the_budget(lengths, budget, n_at_least):
    groups = cut_by_tokens(lengths, budget, n_at_least)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    assert all(groups)
    assert len(groups) >= min(n_at_least, len(lengths))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[row] for row in group) <= budget


@given(lengths=LENGTHS, budget=st.integers(50, 300))
def test_a_larger_budget_never_needs_more(lengths, budget):
    assert len(cut_by_tokens(lengths, 2 * budget)) <= len(cut_by_tokens(lengths, budget))


def test_by_hand():
    assert cut_by_tokens([3, 10, 4, 9], 20) == [[1, 3], [2, 0]]
    assert cut_by_tokens([3, 10, 4, 9], 40) == [[1, 3, 2, 0]]
    assert cut_by_tokens([3, 10, 4, 9], 5) == [[1], [3], [2], [0]]
    assert cut_by_tokens([3, 10, 4, 9], 40, n_at_least=3) == [[1], [3], [2, 0]]
    assert cut_by_tokens([5], 1, n_at_least=2) == [[0]]
