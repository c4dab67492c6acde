"""The packs' configs as a user runs them, on a random model of 23,000 parameters and a few rows of each kind."""

import importlib.util
import json
import sys
from functools import cache

import pytest
from datasets import Dataset
from helpers import ROOT
from PIL import Image
from tiny_vision_models import build_llava

from correction_trl.errors import BadInput


pytestmark = pytest.mark.slow

# What makes a config for a GPU one for this test; the pack's own settings stay
TRAINING = (
    "--max_steps 1 --train_rows 6 --test_rows 2 --max_completion_length 8 --per_device_train_batch_size 4 "
    "--gradient_accumulation_steps 1 --per_device_eval_batch_size 8 --generation_batch_size 8 --save_strategy no "
    "--use_cpu true --bf16 false --dtype float32 --use_peft false --load_in_4bit false --attn_implementation eager "
    "--gradient_checkpointing false --optim adamw_torch --rollout eager"
)
SMALL = {
    "corrector_sft": f"{TRAINING} --samples_per_prompt 4 --temperature 2 --top_p 1 --exploration_steps 1 "
    "--exploration_samples 1",
    "score": f"{TRAINING} --max_steps 2 --num_generations 4 --keep_best_reward false",
    "self_correction_dpo": f"{TRAINING} --temperature 2",
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
        metrics = tmp_path / "out" / "metrics.json"
        return json.loads(metrics.read_text()) if metrics.exists() else None

    return launch


TOXICITY = [{"prompt": {"text": text, "toxicity": 0.1}} for text in ("so i", "then he", "we", "you", "they", "it") * 3]
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


E2E = [
    {"meaning_representation": f"name[Bar {n}], food[{food}]", "human_reference": f"Bar {n} serves {food} food."}
    for n, food in enumerate(["French", "Indian", "English"] * 2)
]
WORDS = [
    {"concepts": [noun, "run"], "target": f"a {noun} runs"} for noun in ("dog", "cat", "man", "girl", "boy", "cow")
]
PROGRAMS = [{"question": f"{n} + 1?", "answer": f"It is {n + 1}. #### {n + 1}"} for n in range(6)]


@pytest.mark.parametrize(
    ("config", "rows"),
    [
        ("toxicity", TOXICITY),
        ("math_programs", PROGRAMS),
        ("e2e", E2E),
        ("commongen", WORDS),
    ],
)
def test_a_corrector_trains_on_it(config, rows, launch):
    more = ["--value_function", "test_pack_runs:any_value", "--dataset_test_split", "train"]
    if config == "toxicity":
        more += ["--pair_feedback_function", "correction_trl.tasks.toxicity:word_list_fallen"]
        more += ["--feedback_function", "correction_trl.tasks.toxicity:word_list_strongest", "--test_rows", "9"]
    elif config == "math_programs":  # the pack's own functions comment, in the sandbox
        more += ["--feedback_function", "correction_trl.tasks.math_programs:what_went_wrong"]
    found = launch("corrector_sft", config, rows, *more, "--test_dataset_name", "rows.jsonl")
    assert found["after"]["acc@t1"]["n"] == 2  # of the 18 prompts for detoxification, rows 0 and 10 are held out
    assert ("acc@t4" in found["after"]) == (config != "math_programs")  # three corrections, and one


ROWS = [{"concepts": ["dog", "run"], "target": "a dog runs"}, {"concepts": ["cat"], "target": "a cat"}]


def test_descriptions_of_restaurants(launch, tiny_model):
    settings = json.dumps({"fluency_model": tiny_model})
    found = launch("evaluate", "e2e", E2E, "--corrector", tiny_model, "--table_settings", settings)
    assert found["after"]["coverage@t1"]["mean"] == 0.0 and found["after"]["acc@t4"]["n"] == 2


def test_constrained_generation(launch, tiny_model):
    settings = json.dumps({"fluency_model": tiny_model})
    found = launch("evaluate", "commongen", ROWS, "--corrector", tiny_model, "--table_settings", settings)
    assert found["after"]["coverage@t1"]["mean"] == found["after"]["all_covered@t4"]["mean"] == 0.0
    assert found["after"][f"fluency/{tiny_model.rpartition('/')[2]}@t4"]["n"] == 2


MBPP = [{"task_id": n, "text": "double it", "test_list": [f"assert f({n}) == {2 * n}"]} for n in range(6)]
HUMANEVAL = [
    {"task_id": f"HumanEval/{n}", "prompt": "def f(x):\n", "entry_point": "f", "test": TEST}
    for n, TEST in enumerate(["def check(candidate):\n    assert candidate(1) == 2\n"] * 2)
]


def test_score_trains_on_mbpp_and_is_tested_on_humaneval(launch, tmp_path):
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in HUMANEVAL))
    found = launch("score", "mbpp", MBPP, "--test_dataset_name", "test.jsonl")
    assert found["after"]["acc@t2"]["n"] == 2 and found["after"]["acc@t2"]["mean"] == 0.0
    assert found["config"]["instruction"].startswith("There might be an error in the")


def test_the_inference_compute_curve_is_drawn_for_ones_own_model(launch, tmp_path):
    settings = json.dumps({name: {"samples": 4} for name in ("parallel", "parallel_corrected")})
    rows = [{"problem": "1 + 1?", "answer": "2"}, {"problem": "1 + 2?", "answer": "3"}]
    found = launch("evaluate", "inference_compute", rows, "--strategy_settings", settings)
    assert set(found["strategies"]["after"]) == {"parallel", "parallel_corrected"}
    assert {name for name in found["after"] if name.startswith("acc@")} == {
        "acc@t1",
        "acc@t2",
    }  # of 2 and of 4 samples
    assert (tmp_path / "out" / "inference_compute.png").exists()
    assert not (tmp_path / "out" / "accuracy_by_turn.png").exists()


def test_stored_attempts_are_repaired(launch):
    rows = [
        {**row, "first_attempt": f"def f(x): return {x}"} for row, x in zip(HUMANEVAL, ("2 * x", "x"), strict=True)
    ]
    found = launch("evaluate", "humaneval", rows, "--strategies", "repair", "--controls", "false")
    assert found["after"]["acc@t1"]["mean"] == 0.5 and found["after"]["acc@t2"]["mean"] == 0.0


def test_scl_builds_its_pairs_in_the_paper_s_format(launch, tmp_path):
    rows = [{"question": f"{n} + 1?", "options": ["A)1", "B)2", "C)3"], "correct": "ABC"[n % 3]} for n in range(6)]
    more = ["--only_pairs", "true", "--value_function", "test_pack_runs:any_value", "--correct_threshold", "0.5"]
    assert launch("self_correction_dpo", "aqua", rows, *more) is None  # nothing was trained
    pairs = Dataset.from_parquet(str(tmp_path / "out" / "round_1" / "pairs.parquet"))
    counts = json.loads((tmp_path / "out" / "round_1" / "pairs.json").read_text())
    assert len(pairs) == counts["pairs"] > 0
    assert all("A. 1\nB. 2\nC. 3 Explain your reasoning" in row["prompt"][0]["content"] for row in pairs)


def test_scl_builds_pairs_from_images(launch, tmp_path):
    """MMBench-shaped rows through the pack's config on a random vision-language model."""
    model, processor = build_llava()
    model.save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    colors = ["red", "green", "blue", "white", "black", "yellow"]
    columns = {
        "question": [f"Which colour is it, {n}?" for n in range(6)], "hint": ["nan"] * 6, "answer": list("ABABAB"),
        "A": colors, "B": colors[::-1], "C": ["nan"] * 6, "D": ["nan"] * 6,
        "image": [Image.new("RGB", (28, 28), color) for color in colors],
    }  # fmt: skip
    (tmp_path / "data").mkdir()
    Dataset.from_dict(columns).to_parquet(tmp_path / "data" / "dev.parquet")
    more = ["--only_pairs", "true", "--value_function", "test_pack_runs:any_value", "--correct_threshold", "0.5"]
    more += ["--model_name_or_path", "llava", "--dataset_name", "data", "--dataset_train_split", "validation"]
    more += ["--test_dataset_name", "data", "--dataset_test_split", "validation"]
    assert launch("self_correction_dpo", "mmbench", [], *more) is None
    pairs = Dataset.from_parquet(str(tmp_path / "out" / "round_1" / "pairs.parquet"))
    assert len(pairs) > 0 and "image" in pairs.column_names
    assert "Which colour is it" in str(pairs[0]["prompt"])


def test_a_reference_model_that_is_not_there_is_said_before_anything_is_sampled(launch, tiny_model, monkeypatch):
    monkeypatch.setattr("correction_trl.inference.chat.LocalChat.reply", lambda *_: pytest.fail("it was asked"))
    settings = json.dumps({"fluency_model": "no/such-model"})
    with pytest.raises(BadInput, match="reference language model 'no/such-model' cannot be loaded"):
        launch("evaluate", "commongen", ROWS, "--corrector", tiny_model, "--table_settings", settings)
    with pytest.raises(BadInput, match="'table' has no setting 'fluency'; it has fluency_model, device"):
        launch("evaluate", "commongen", ROWS, "--corrector", tiny_model, "--table_settings", '{"fluency": "x"}')
