"""Any dataset trains, or is refused by one sentence."""

import warnings

import pytest
from datasets import Dataset, IterableDataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from correction_trl.correction_optimization.stored_pairs import tokenize_pair
from correction_trl.data_utils import (
    PAIRS,
    chat_template_kwargs,
    check_dataset,
    dataset_kind,
    to_preference_columns,
    with_checked_rows,
)
from correction_trl.errors import BadInput
from correction_trl.functions import call_teacher
from correction_trl.policy.completions import CompletionEncoder
from correction_trl.policy.tokenization import tokenize_prompt


TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["1+1=", "2", "", " \n", "<eos>", "<user>", "\x00", "👩‍🚀 ά é", "{{ prompt }}", "\ufeff"]),
)
ROLES = st.sampled_from(["user", "assistant", "system", "tool", "developer", "human", "", "User"]) | st.none()
PARTS = st.lists(
    st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS | st.none()})
    | st.sampled_from([{"type": "image"}, {"text": "a"}, {"type": "text"}, {}]),
    max_size=2,
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": ROLES, "content": TEXTS | PARTS | st.none() | st.integers()})
    | st.fixed_dictionaries({"role": ROLES, "content": TEXTS})
    | st.fixed_dictionaries({"role": st.just("user"), "content": TEXTS})
    | st.sampled_from([{"role": "user"}, {"content": "a"}, {"role": 1, "content": "a"}]),
    max_size=3,
)
VALUES = st.one_of(
    TEXTS, TEXTS, MESSAGES, MESSAGES, st.none(), st.integers(-9, 9), st.floats(), st.booleans(), st.binary(max_size=3),
    st.lists(st.text(max_size=3) | st.integers(0, 9), max_size=2), st.just({"role": "user", "content": "a"}),
    st.lists(st.lists(st.text(max_size=2), max_size=1), max_size=2), st.just([{"from": "human", "value": "a"}]),
)  # fmt: skip
FURTHER = {
    "tools": st.sampled_from([None, "", "[]", "no JSON", "{}", "7"]),
    "chat_template_kwargs": st.sampled_from([None, {}, {"enable_thinking": False}, "x", {"tokenize": True}]),
    "answer": VALUES,
}
ROWS = st.sampled_from([("response", "correction"), ("rejected", "chosen"), ()]).flatmap(
    lambda names: st.lists(
        st.fixed_dictionaries(dict.fromkeys(names, VALUES), optional={"prompt": VALUES, **FURTHER})
        | st.fixed_dictionaries({"prompt": VALUES, **dict.fromkeys(names, VALUES)}, optional=FURTHER),
        min_size=1,
        max_size=2,
    )
)


def prepare(dataset, tokenizer, teacher):
    """What the trainer does with a dataset before it trains."""
    check_dataset(dataset, "train_dataset", teacher)
    dataset = with_checked_rows(dataset, "train_dataset")
    if dataset_kind(dataset) != PAIRS:
        for row in dataset:
            prompt = row["prompt"]
            assert tokenize_prompt(tokenizer, prompt, **chat_template_kwargs(row))[1]
            call_teacher(teacher, [prompt], ["a"], {k: [v] for k, v in row.items() if k != "prompt"})
        return
    encode = CompletionEncoder(tokenizer, [tokenizer.eos_token_id])
    for index, row in enumerate(to_preference_columns(dataset)):
        ids = tokenize_pair(row, index, encode, "train")
        assert all(isinstance(token, int) for of in ids.values() for token in of) and ids["chosen_ids"]


@pytest.mark.parametrize("as_stream", [False, True])
def test_any_dataset_is_prepared_or_is_one_sentence(tiny_tokenizer, as_stream):
    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(ROWS)
    def attempt(rows):
        if as_stream:
            dataset = IterableDataset.from_generator(lambda: iter(rows))
        else:
            try:
                dataset = Dataset.from_list(rows)
            except Exception:  # no such table
                return
        try:
            prepare(dataset, tiny_tokenizer, lambda prompts, responses, **columns: ["b"])
        except BadInput as error:
            assert str(error) and "\n" not in str(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attempt()
