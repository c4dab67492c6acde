"""The packs' configs as a user runs them, on a random model of 23,000 parameters and a few rows of each kind."""

import importlib.util
import json
import sys
from functools import cache

import pytest
from helpers import ROOT


# What makes a config for a GPU one for this test; the pack's own settings stay
SMALL = {
    "corrector_sft": "--max_steps 1 --train_rows 6 --test_rows 2 --samples_per_prompt 4 --temperature 2 --top_p 1 "
    "--per_device_train_batch_size 2 --gradient_accumulation_steps 1 --exploration_steps 1 --exploration_samples 1 "
    "--max_completion_length 8 --per_device_eval_batch_size 8 --generation_batch_size 8 --save_strategy no "
    "--use_cpu true --bf16 false --dtype float32 --use_peft false --attn_implementation eager "
    "--gradient_checkpointing false --rollout eager",
    "evaluate": "--test_rows 2 --max_completion_length 8 --batch_size 8 --dtype float32 --attn_implementation eager",
}


@cache
def recipe(stem):
    spec = importlib.util.spec_from_file_location(f"pack_{stem}", ROOT / "recipes" / f"{stem}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def launch(tmp_path, tiny_model, monkeypatch):
    """A shipped config on the tiny model and rows in a file; returns what `metrics.json` holds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda *_, **__: True)

    def launch(stem, config, rows, *arguments):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        argv = ["--config", str(ROOT / "recipes" / "configs" / stem / f"{config}.yaml"), *SMALL[stem].split()]
        argv += ["--model_name_or_path", tiny_model, "--dataset_name", "rows.jsonl", "--output_dir", "out", *arguments]
        recipe(stem).main(*recipe(stem).parse_arguments(argv))
        return json.loads((tmp_path / "out" / "metrics.json").read_text())

    return launch


TOXICITY = [{"prompt": {"text": text, "toxicity": 0.1}} for text in ("so i", "then he", "we", "you", "they", "it")]
WORD_LIST = ["--value_function", "correction_trl.tasks.toxicity:word_list_non_toxicity"]


def test_detoxification(launch, tiny_model):
    found = launch(
        "evaluate",
        "toxicity",
        TOXICITY,
        *WORD_LIST,
        *("--corrector", tiny_model, "--samples", "3"),
        *("--feedback_function", "correction_trl.tasks.toxicity:word_list_strongest", "--table_settings"),
        json.dumps({"scorer": WORD_LIST[1], "fluency_model": tiny_model}),
    )
    name = tiny_model.rpartition("/")[2]
    table = {"max_toxicity", "any_toxic", f"fluency/{name}", "distinct-2", "distinct-3"}
    assert {f"{column}@t{turn}" for column in table for turn in (1, 4)} <= set(found["after"])
    assert found["after"]["max_toxicity@t1"]["mean"] == 0.0 and found["after"]["distinct-2@t1"]["n"] == 2


def any_value(completions, **columns):
    """A value with which the random model's samples make pairs."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [sum(map(ord, text)) % 97 / 97 for text in texts]


CORRECTORS = {
    "toxicity": TOXICITY,
    "commongen": [
        {"concepts": [word, "run"], "target": f"a {word} runs"} for word in ("dog", "cat", "man", "cow", "boy")
    ],
    "e2e": [
        {"mr": f"name[{name}], food[Thai]", "ref": f"{name} is thai"} for name in ("bar", "inn", "pub", "den", "hut")
    ],
}


@pytest.mark.parametrize("config", CORRECTORS)
def test_a_corrector_trains_on_it(config, launch):
    more = ["--value_function", "test_pack_runs:any_value", "--dataset_test_split", "train"]
    if config == "toxicity":
        more += ["--pair_feedback_function", "correction_trl.tasks.toxicity:word_list_fallen"]
        more += ["--feedback_function", "correction_trl.tasks.toxicity:word_list_strongest"]
    found = launch("corrector_sft", config, CORRECTORS[config], *more, "--test_dataset_name", "rows.jsonl")
    assert found["after"]["acc@t1"]["n"] == 2 and "acc@t4" in found["after"]
