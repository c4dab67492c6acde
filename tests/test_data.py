"""The embedded dataset, tokenizer and model: what everything else relies on when it runs with no arguments."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_dataset
from huggingface_hub import DatasetCard, ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer


DATA = Path(__file__).resolve().parent.parent / "data"
SECOND_TURN = "There might be an error in the answer above. Please correct it."

specification = importlib.util.spec_from_file_location("build_embedded_default", DATA / "build.py")
build = importlib.util.module_from_spec(specification)
specification.loader.exec_module(build)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_dataset(str(DATA / "carry_addition"), cache_dir=str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(DATA / "tiny-carry-chat", local_files_only=True)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(DATA / "tiny-carry-chat", local_files_only=True)


def operands(row):
    (message,) = row["prompt"]
    assert message["role"] == "user"
    a, plus, b, equals = message["content"].split(" ")
    assert (plus, equals) == ("+", "=")
    return a, b


# Dataset


def test_dataset_has_the_documented_splits_and_columns(dataset):
    assert {split: len(rows) for split, rows in dataset.items()} == {
        "train": 16_000,
        "validation": 1_000,
        "test": 2_000,
        "test_hard": 2_000,
    }
    for rows in dataset.values():
        assert rows.column_names == ["prompt", "answer"]


def test_answers_are_exact(dataset):
    for rows in dataset.values():
        for row in rows:
            a, b = operands(row)
            assert len(a) == len(b) == 12
            assert row["answer"] == f"{int(a) + int(b):013d}"


def test_no_problem_occurs_twice_even_commuted(dataset):
    keys = [tuple(sorted(operands(row))) for rows in dataset.values() for row in rows]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(("split", "share"), [("train", 0.5), ("validation", 0.5), ("test", 0.5), ("test_hard", 0.7)])
def test_share_of_columns_that_add_up_to_nine(dataset, split, share):
    pairs = [operands(row) for row in dataset[split]]
    nines = np.mean([int(x) + int(y) == 9 for a, b in pairs for x, y in zip(a, b, strict=True)])
    # A column that is not made to add up to nine still does so by chance in one case of ten.
    assert nines == pytest.approx(share + (1 - share) / 10, abs=0.015)


def test_build_reproduces_the_committed_dataset(tmp_path):
    build.build_dataset(tmp_path / "once", seed=0)
    build.build_dataset(tmp_path / "twice", seed=0)
    for split in build.SPLITS:
        once, twice = tmp_path / "once" / f"{split}.parquet", tmp_path / "twice" / f"{split}.parquet"
        assert once.read_bytes() == twice.read_bytes()
        # By content, since the bytes of the committed file also depend on the version of the Parquet writer.
        rows = [
            load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path))
            for path in (once, DATA / "carry_addition" / f"{split}.parquet")
        ]
        assert rows[0].to_list() == rows[1].to_list()
    assert (tmp_path / "once" / "README.md").read_text() == (DATA / "carry_addition" / "README.md").read_text()


def test_another_seed_gives_other_problems():
    first, second = (build.draw_problems(np.random.default_rng(seed), 8, 0.5, set()) for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_drawing_refuses_problems_that_are_taken():
    drawn = build.draw_problems(np.random.default_rng(0), 8, 0.5, set())
    commuted = np.concatenate([drawn[:, 12:], drawn[:, :12]], axis=1)
    again = build.draw_problems(np.random.default_rng(0), 8, 0.5, {build.problem_key(row) for row in commuted})
    assert not {row.tobytes() for row in drawn} & {row.tobytes() for row in again}


# Tokenizer

BUILT_TOKENIZER = build.build_tokenizer()
pieces = st.sampled_from(
    [
        *"0123456789",
        " ",
        "\n",
        " + ",
        " - ",
        " = ",
        "+",
        "=",
        ".",
        ",",
        ":",
        "?",
        SECOND_TURN,
        "\nFeedback: No, wrong.",
    ]
)


@settings(deadline=None, max_examples=200)
@given(st.lists(pieces, max_size=40).map("".join))
def test_text_survives_encoding_and_decoding(text):
    assert BUILT_TOKENIZER.decode(BUILT_TOKENIZER.encode(text)) == text


def test_sentences_that_instructions_and_feedback_use_are_in_the_vocabulary(tokenizer):
    for text in [
        SECOND_TURN,
        "The answer is wrong. The first digit that is not right is at position 12 from the left.",
        "Feedback: The digits at position 1, 2 and 3 from the left are wrong. Check the carry into the digit.",
        "Is the answer above right? Yes No",
        "Suppose the answer is 0123456789012. What is X? X + 123456789012 =",
    ]:
        ids = tokenizer.encode(text)
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_unknown_text_becomes_the_unknown_token(tokenizer):
    assert tokenizer.encode("1é") == tokenizer.convert_tokens_to_ids(["1", "<unk>"])
    assert tokenizer.encode("elephant") == [tokenizer.unk_token_id]


def test_special_tokens(tokenizer, model):
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.bos_token is None
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 3
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert model.config.vocab_size == len(tokenizer)


def test_committed_tokenizer_is_the_one_that_build_makes(tokenizer):
    assert BUILT_TOKENIZER.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert BUILT_TOKENIZER.chat_template == tokenizer.chat_template


# Chat template

CONVERSATION = [
    {"role": "system", "content": "Please correct the answer."},
    {"role": "user", "content": "123456789012 + 876543210987 ="},
    {"role": "assistant", "content": "0999999999999"},
    {"role": "user", "content": SECOND_TURN},
    {"role": "assistant", "content": "0999999999990"},
    {"role": "user", "content": SECOND_TURN},
    {"role": "assistant", "content": "0999999999999"},
]


def test_chat_template_preserves_prefixes(tokenizer):
    whole = tokenizer.apply_chat_template(CONVERSATION, return_dict=False)
    for end in range(1, len(CONVERSATION)):
        prefix = tokenizer.apply_chat_template(CONVERSATION[:end], return_dict=False)
        assert whole[: len(prefix)] == prefix
        if CONVERSATION[end]["role"] == "assistant":
            prompt = tokenizer.apply_chat_template(CONVERSATION[:end], add_generation_prompt=True, return_dict=False)
            assert whole[: len(prompt)] == prompt
            response = tokenizer.encode(CONVERSATION[end]["content"]) + [tokenizer.eos_token_id]
            assert whole[len(prompt) : len(prompt) + 14] == response


def test_generation_mask_covers_the_answers_and_their_end_tokens(tokenizer):
    output = tokenizer.apply_chat_template(CONVERSATION, return_dict=True, return_assistant_tokens_mask=True)
    masked = [token for token, kept in zip(output["input_ids"], output["assistant_masks"], strict=True) if kept]
    answers = [message["content"] + "<|end|>" for message in CONVERSATION if message["role"] == "assistant"]
    assert tokenizer.decode(masked) == "".join(answers)


def test_chat_template_names_an_unknown_role(tokenizer):
    with pytest.raises(Exception, match="Unknown role: judge"):
        tokenizer.apply_chat_template([{"role": "judge", "content": "1"}])


# Model and cards


def test_cards_are_valid():
    model_card = ModelCard.load(DATA / "tiny-carry-chat" / "README.md").data
    assert (model_card.license, model_card.library_name) == ("apache-2.0", "transformers")
    assert model_card.pipeline_tag == "text-generation"
    assert {result.metric_name for result in model_card.eval_results} == {"acc@t1", "acc@t2", "delta(t1,t2)"}
    assert DatasetCard.load(DATA / "carry_addition" / "README.md").data.license == "apache-2.0"


def test_files_are_small():
    for folder, limit in [("tiny-carry-chat", 2e6), ("carry_addition", 2e6)]:
        files = [path for path in (DATA / folder).rglob("*") if path.is_file()]
        assert sum(os.path.getsize(path) for path in files) < limit


@torch.inference_mode()
def test_first_answers_are_often_wrong_and_second_answers_repeat_them(dataset, tokenizer, model):
    """Through `generate`, with nothing of build.py, as the recipes use the model."""
    rows = dataset["validation"].select(range(256))
    prompts = tokenizer.apply_chat_template(
        rows["prompt"][:], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    first = model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=14, do_sample=False)
    instruction = tokenizer.apply_chat_template(
        [{"role": "user", "content": SECOND_TURN}], add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    second_prompts = torch.cat([first, instruction.expand(len(first), -1)], dim=1)
    second = model.generate(
        second_prompts, attention_mask=torch.ones_like(second_prompts), max_new_tokens=14, do_sample=False
    )
    first_texts = tokenizer.batch_decode(first[:, prompts.shape[1] :], skip_special_tokens=True)
    second_texts = tokenizer.batch_decode(second[:, second_prompts.shape[1] :], skip_special_tokens=True)

    accuracy = np.mean([text == answer for text, answer in zip(first_texts, rows["answer"], strict=True)])
    copies = np.mean([one == two for one, two in zip(first_texts, second_texts, strict=True)])
    assert 0.40 <= accuracy <= 0.75
    assert copies >= 0.95
