"""Rounds of sampling and training, from Python."""

import json

import pytest
from datasets import Dataset, load_dataset
from helpers import make_args
from transformers import AutoModelForCausalLM

from correction_trl import CorrectionOptimizationConfig
from correction_trl.carry_addition import embedded_path, exact_match
from correction_trl.errors import BadInput
from correction_trl.self_correction_dpo import train_rounds


INSTRUCTION = "There might be an error in the answer above. Please correct it."


@pytest.fixture
def train(tmp_path):
    problems = load_dataset(embedded_path("carry_addition"), split="validation[:60]")

    def train(more=(), **kwargs):
        settings = make_args(
            tmp_path, max_completion_length=16, learning_rate=1e-4, save_strategy="steps", save_steps=1
        )
        settings["max_steps"] = 1
        return train_rounds(
            **{
                "model": embedded_path("tiny-carry-chat"),
                "args": CorrectionOptimizationConfig(**{**settings, **dict(more)}),
                "train_dataset": problems,
                "value_function": exact_match,
                "instruction": INSTRUCTION,
                **kwargs,
            }
        )

    return train


def test_each_round_begins_with_the_model_of_the_one_before(train, tmp_path):
    problems = load_dataset(embedded_path("carry_addition"), split="test[:8]")
    done = train(rounds=2, pair_prompt="both", eval_dataset=problems)
    assert [counts["round"] for counts in done.counts] == [1, 2]
    assert [entry["step"] for entry in done.log_history if "loss" in entry] == [1, 2]
    assert done.before.metrics["acc@t2"]["n"] == done.after.metrics["acc@t2"]["n"] == 8
    out = tmp_path / "output"
    assert done.trainer.args.output_dir == str(out) and (out / "model.safetensors").is_file()
    for number, counts in enumerate(done.counts, start=1):
        assert json.loads((out / f"round_{number}" / "pairs.json").read_text()) == counts
        pairs = Dataset.from_parquet(str(out / f"round_{number}" / "pairs.parquet"))
        assert len(pairs) == counts["pairs"] == 2 * (counts["i->c"] + counts["c->i"])
    # The second round is measured from the first round's model, not from the base
    reference = dict(done.trainer.ref_model.named_parameters())
    first, base = (
        AutoModelForCausalLM.from_pretrained(f) for f in (out / "round_1", embedded_path("tiny-carry-chat"))
    )
    assert all(reference[name].equal(value) for name, value in first.named_parameters())
    assert not all(reference[name].equal(value) for name, value in base.named_parameters())


def test_a_run_goes_on_in_its_second_round(train, tmp_path):
    whole = train(rounds=2)
    assert (tmp_path / "output" / "round_2" / "checkpoint-1" / "trainer_state.json").is_file()
    one_row = load_dataset(embedded_path("carry_addition"), split="validation[:1]")
    resumed = train({"resume_from_checkpoint": "true", "max_steps": 2}, rounds=2, train_dataset=one_row)
    assert resumed.counts == whole.counts  # neither round was sampled again, from one row
    assert resumed.trainer.state.global_step == 2


@pytest.mark.parametrize(
    ("more", "kwargs", "sentence"),
    [
        ({}, {"rounds": 0}, "must be at least 1"),
        ({}, {"pair_prompt": "answer"}, "pair_prompt"),
        ({"resume_from_checkpoint": "elsewhere/checkpoint-1"}, {}, "cannot be resumed from"),
        ({}, {"correct_threshold": 2.0}, "No transcript makes a pair"),
    ],
)
def test_what_cannot_be_trained_is_said(train, more, kwargs, sentence):
    with pytest.raises(BadInput, match=sentence):
        train(more, **kwargs)
