import torch
from helpers import edit_distance
from hypothesis import given
from hypothesis import strategies as st

from correction_trl.correction_optimization.pair_batch import (
    credited_tokens,
    edited_tokens,
    gather_tokens,
    row_index,
)


ROW = st.tuples(st.integers(0, 5), st.integers(0, 6))  # tokens of the prompt, tokens of the completion
PAIRS = st.lists(st.tuples(ROW, ROW), min_size=1, max_size=5)


@given(pairs=PAIRS, padding=st.integers(2, 4))
def test_gathered_tokens_equal_naive_slices(pairs, padding):
    rows = [correction for _, correction in pairs] + [response for response, _ in pairs]
    width = max(prompt + completion for prompt, completion in rows) + padding
    completion_mask = torch.zeros(len(rows), width, dtype=torch.long)
    for row, (prompt, completion) in zip(completion_mask, rows, strict=True):
        row[prompt : prompt + completion] = 1
    per_token = torch.randn(len(rows), width - 1, dtype=torch.float64).requires_grad_()

    index = row_index(completion_mask)
    for name, offset in (("correction", 0), ("response", len(pairs))):
        tokens = gather_tokens(per_token, index[f"{name}_index"], index[f"{name}_mask"])
        assert tokens.shape == index[f"{name}_mask"].shape
        expected_gradient = torch.zeros_like(per_token)
        for i in range(len(pairs)):
            prompt, completion = rows[offset + i]
            # The token at position p is predicted by output p - 1; one at position 0 by nothing
            predicted = slice(max(prompt - 1, 0), max(prompt + completion - 1, 0))
            expected = per_token[offset + i, predicted]
            assert tokens[i, : len(expected)].tolist() == expected.tolist()
            assert tokens[i, len(expected) :].abs().sum() == 0
            assert index[f"{name}_mask"][i].tolist() == [1] * len(expected) + [0] * (tokens.size(1) - len(expected))
            expected_gradient[offset + i, predicted] = 1
        (gradient,) = torch.autograd.grad(tokens.sum(), per_token)
        assert gradient.equal(expected_gradient)  # nothing reaches the prompt, the padding or the other sequence


def test_a_pair_by_hand():
    # One pair: correction "p p c c", response "p r r r" with one place of padding
    completion_mask = torch.tensor([[0, 0, 1, 1, 0], [0, 1, 1, 1, 0]])
    index = row_index(completion_mask)
    per_token = torch.arange(8.0).view(2, 4)
    assert gather_tokens(per_token, index["correction_index"], index["correction_mask"]).tolist() == [[1, 2]]
    assert gather_tokens(per_token, index["response_index"], index["response_mask"]).tolist() == [[4, 5, 6]]


def cost(response_edited: list[int], correction_edited: list[int]) -> int:
    """Edits that an alignment needs: between two kept tokens, the longer of the two runs of edited ones."""

    def runs(edited):
        lengths = [0]
        for flag in edited:
            if flag:
                lengths[-1] += 1
            else:
                lengths.append(0)
        return lengths

    return sum(map(max, zip(runs(response_edited), runs(correction_edited), strict=True)))


def test_credit_by_hand():
    # a b c d . -> a x c d .; -> a c d . (b deleted); -> a b z c d . (z inserted)
    response = [1, 2, 3, 4, 0]
    for correction, edits, from_edit in (
        ([1, 9, 3, 4, 0], ([0, 1, 0, 0, 0], [0, 1, 0, 0, 0]), ([0, 1, 1, 1, 1], [0, 1, 1, 1, 1])),
        ([1, 3, 4, 0], ([0, 1, 0, 0, 0], [0, 1, 0, 0]), ([0, 1, 1, 1, 1], [0, 1, 1, 1])),
        ([1, 2, 9, 3, 4, 0], ([0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0]), ([0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1])),
        (response, ([0] * 5, [0] * 5), ([0] * 5, [0] * 5)),
        ([1, 2], ([0, 0, 1, 1, 1], [0, 0]), ([0, 0, 1, 1, 1], [0, 0])),  # ends without a stop token
    ):
        assert credited_tokens(response, correction, "edits") == edits
        assert credited_tokens(response, correction, "from_edit") == from_edit


SEQUENCES = st.lists(st.integers(0, 3), max_size=10)


@given(response=SEQUENCES, correction=SEQUENCES)
def test_credit_begins_where_the_sequences_part_and_holds_every_edit(response, correction):
    edited = edited_tokens(response, correction)
    edits, from_edit = (credited_tokens(response, correction, credit) for credit in ("edits", "from_edit"))
    common = 0
    while common < min(len(response), len(correction)) and response[common] == correction[common]:
        common += 1
    for ids, of_edit, of_edits, of_rest in zip((response, correction), edited, edits, from_edit, strict=True):
        assert of_rest == ([0] * common + [1] * (len(ids) - common) if response != correction else [0] * len(ids))
        assert len(of_edits) == len(ids)
        assert all(credit >= edit for credit, edit in zip(of_edits, of_edit, strict=True))
    if response == correction:
        assert not any(edits[0]) and not any(edits[1])


@given(response=SEQUENCES, correction=SEQUENCES)
def test_edited_tokens_turn_one_sequence_into_the_other_with_the_fewest_edits(response, correction):
    response_edited, correction_edited = edited_tokens(response, correction)
    assert len(response_edited) == len(response) and len(correction_edited) == len(correction)
    assert {*response_edited, *correction_edited} <= {0, 1}
    # The kept tokens of the response, with the edited ones of the correction in their places, are the correction
    kept = [token for token, edited in zip(response, response_edited, strict=True) if not edited]
    rebuilt = [token if edited else kept.pop(0) for token, edited in zip(correction, correction_edited, strict=True)]
    assert rebuilt == correction and not kept
    kept = [token for token, edited in zip(correction, correction_edited, strict=True) if not edited]
    rebuilt = [token if edited else kept.pop(0) for token, edited in zip(response, response_edited, strict=True)]
    assert rebuilt == response and not kept
    assert cost(response_edited, correction_edited) == edit_distance(response, correction)


def test_edited_tokens_by_hand():
    assert edited_tokens([1, 2, 3], [1, 2, 3]) == ([0, 0, 0], [0, 0, 0])
    assert edited_tokens([1, 2, 3], [1, 9, 3]) == ([0, 1, 0], [0, 1, 0])
    assert edited_tokens([1, 3], [1, 2, 3]) == ([0, 0], [0, 1, 0])
    assert edited_tokens([1, 2, 3], [1, 3]) == ([0, 1, 0], [0, 0])
    assert edited_tokens([], [4]) == ([], [1])
