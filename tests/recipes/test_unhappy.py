"""Ordinary mistakes, in files and on the command line: each ends in one sentence with the culprit and the remedy."""

import importlib.util
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from correction_trl.errors import BadInput
from correction_trl.recipe import run


ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
STEMS = sorted(path.stem for path in RECIPES.glob("*.py"))
TRAINING = ["correction_optimization", "corrector_sft", "score", "self_correction_dpo"]


@cache
def recipe(stem):
    spec = importlib.util.spec_from_file_location(f"unhappy_{stem}", RECIPES / f"{stem}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def sentence_of(call) -> str:
    with pytest.raises(SystemExit) as stopped:
        call()
    sentence = stopped.value.code
    assert isinstance(sentence, str) and "\n" not in sentence and "Traceback" not in sentence
    return sentence


def launch(stem, *arguments):
    module = recipe(stem)
    run(module.main, *module.parse_arguments(list(arguments)))


@pytest.fixture
def parse(tmp_path):
    """What a recipe makes of the text of a YAML file."""

    def parse(text, stem="correction_optimization"):
        file = tmp_path / "mine.yaml"
        file.write_text(text)
        return recipe(stem).parse_arguments(["--config", str(file)])

    return parse


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("text", "culprit", "remedy"),
    [
        ("temperature: null\n", "`temperature: null` must be a number", "Leave the line out"),
        ("beta: [0.1]\n", "`beta: [0.1]` must be a number", ""),
        ("beta: true\n", "`beta: true` must be a number", ""),
        ("beta: .nan\n", "`beta=nan` must be positive", "loss_type: linear"),
        ("max_steps: 2.5\n", "`max_steps: 2.5` must be a whole number", ""),
        ("reference_free: 2\n", "`reference_free: 2` must be true or false", ""),
        ("reference_free: maybe\n", "reference_free", "yes/no"),
        ("loss_type: dpo\n", "dpo", "sigmoid"),
        ("teacher: {a: 1}\n", "`teacher: {a: 1}` must be text", ""),
        ("beta: 0.1\nbeta: 0.2\n", "the key 'beta' is given twice", "mine.yaml"),
        ("generation_kwargs: {top_k: 1, top_k: 2}\n", "the key 'top_k' is given twice", ""),
        ("3: 4\n", "the key 3", "no name of a setting"),
        ("null: 4\n", "the key None", "no name of a setting"),
        ("? [a, b]\n: 1\n", "no valid YAML", "unhashable key"),
        ("- beta\n- 0.1\n", "must hold settings", "`name: value`"),
        ("", "must hold settings", "`name: value`"),
        ("beta: 0.1\n\tloss_type: sigmoid\n", "no valid YAML", "line 4"),
        ("env: PATH\n", "`env` must hold", "`NAME: value`"),
        ("learning_rate: .nan\n", "`learning_rate` is not a number", ""),
        ("learning_rate: -1.0e-5\n", "`learning_rate=-1e-05` must be a positive number", "1e-5"),
        ("learning_rate: .inf\n", "`learning_rate=inf` must be a positive number", "1e-5"),
        ("seed: -1\n", "`seed=-1` must lie between 0 and", ""),
        ("data_seed: -1\n", "`data_seed=-1` must lie between 0 and", ""),
        ("save_strategy: sometimes\n", "sometimes", "'steps'"),
        ("save_strategy: true\n", "true", "'steps'"),
        ("learning_rat: 1\n", "`learning_rat` is unknown", "`learning_rate`"),
        ("vllm_server_port: 8000\n", "`vllm_server_port` is gone", "`vllm_server_base_url"),
        ("threshold: 0.5\n", "`threshold` is gone", "`correct_threshold`"),
    ],
)
def test_a_file_with_a_mistake(parse, text, culprit, remedy):
    if text and text[0] not in "-?":
        text = f"bf16: false\noutput_dir: out\n{text}"
    sentence = sentence_of(lambda: parse(text))
    assert culprit in sentence and remedy in sentence


def test_what_yaml_reads_differently_is_read_as_it_was_meant(parse):
    _, _, args, model_args = parse(
        "bf16: off\noutput_dir: 2026\nsave_strategy: no\neval_strategy: off\nlearning_rate: 1e-4\nbeta: 1\n"
        "shared_prefix: false\nlora_target_modules: all-linear\nhub_token: 12\n"
    )
    assert args.output_dir == "2026" and args.save_strategy == "no" and args.eval_strategy == "no"
    assert args.learning_rate == 1e-4 and args.beta == 1.0 and isinstance(args.beta, float)
    assert args.shared_prefix is False and args.bf16 is False and model_args.lora_target_modules == "all-linear"


@pytest.mark.parametrize("stem", STEMS)
def test_a_config_that_is_none(stem, tmp_path):
    module = recipe(stem)
    assert "is a folder" in sentence_of(lambda: module.parse_arguments(["--config", str(tmp_path)]))
    assert "no such file" in sentence_of(lambda: module.parse_arguments([f"--config={tmp_path}/x.yaml"]))
    assert "needs the name" in sentence_of(lambda: module.parse_arguments(["--config"]))
    assert "needs the name" in sentence_of(lambda: module.parse_arguments(["--config", "--seed", "1"]))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "binary.yaml" in sentence_of(lambda: module.parse_arguments(["--config", str(tmp_path / "binary.yaml")]))


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--alpah", "3"], "`--alpah` is unknown"),
        (["--seed", "many"], "invalid int value"),
        (["--seed=-1"], "`seed=-1` must lie between"),
        (["stray"], "belongs to no argument"),
    ],
)
def test_a_mistyped_argument(stem, arguments, sentence):
    assert sentence in sentence_of(lambda: recipe(stem).parse_arguments(arguments))


# ---------------------------------------------------------------- models and addresses


@pytest.mark.parametrize("stem", TRAINING)
def test_a_model_that_is_not_there(stem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    functions = {"score": "reward_funcs"}.get(stem, "value_function")
    (tmp_path / "data.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    arguments = ["--output_dir", "out", "--bf16", "false", "--dataset_name", "data.jsonl"]
    arguments += [f"--{functions}", "correction_trl.carry_addition:exact_match"]
    if stem == "correction_optimization":
        arguments += ["--teacher", "correction_trl.carry_addition:right_answer_teacher"]
    sentence = sentence_of(lambda: launch(stem, "--model_name_or_path", "outptus/score", *arguments))
    assert "`model_name_or_path='outptus/score'` cannot be loaded" in sentence and "config.json" in sentence
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    sentence = sentence_of(lambda: launch(stem, "--model_name_or_path", "adapter", *arguments))
    assert "The base None of the adapter 'adapter' cannot be loaded" in sentence and "adapter_config.json" in sentence


@pytest.mark.parametrize(
    "url", ["http://[::1/v1", "localhost:8000", "http://", "ftp://host/v1", "http://host:port/v1"]
)
def test_an_address_that_is_none(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teacher = ["--teacher", "server", "--teacher_model", "tiny", "--teacher_base_url", url, "--rows", "2"]
    (tmp_path / "data.jsonl").write_text('{"prompt": "1+1=", "response": "3"}\n')
    sentence = sentence_of(lambda: launch("collect_corrections", *teacher, "--dataset_name", "data.jsonl"))
    assert url in sentence
    model = ["--model_name_or_path", "tiny", "--server_base_url", url, "--test_rows", "2", "--output_dir", "out"]
    assert url in sentence_of(lambda: launch("evaluate", *model))


@pytest.mark.slow
def test_a_reader_that_ends_early():
    """`correct.py | head -n 1`: no traceback."""
    command = f"{sys.executable} {RECIPES / 'correct.py'} --batch_size 1 --max_corrections 1 | head -n 1"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.count("\n") == 1 and "Traceback" not in done.stderr
    assert "what reads the output has ended" in done.stderr


# ---------------------------------------------------------------- the adapter's learning rate


@pytest.mark.parametrize(
    ("stem", "rate"), [("correction_optimization", 1e-4), ("corrector_sft", 2e-4), ("score", 5e-5)]
)
def test_an_adapter_learns_faster_by_default(stem, rate, capsys):
    common = ["--model_name_or_path", "any", "--output_dir", "out", "--bf16", "false"]

    def learning_rate(*arguments):
        parts = recipe(stem).parse_arguments([*common, *arguments])
        return next(part.learning_rate for part in parts if hasattr(part, "learning_rate"))

    assert learning_rate("--use_peft") == pytest.approx(rate)
    assert f"`learning_rate` is not set: {rate:g} for the adapter" in capsys.readouterr().out
    assert learning_rate() == pytest.approx(rate / 10)
    assert learning_rate("--use_peft", "--learning_rate", "3e-3") == 3e-3
    assert learning_rate("--use_peft=false") == pytest.approx(rate / 10)
    assert capsys.readouterr().out == ""


# ---------------------------------------------------------------- anything


def keys(stem):
    parts = recipe(stem).parse_arguments(["--model_name_or_path", "m", *no_bf16(stem)])
    return sorted({name for part in parts for name in vars(part) if not name.startswith("_")})


def no_bf16(stem):
    return ["--bf16", "false", "--output_dir", "out"] if stem in TRAINING else []


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(), st.text(max_size=12), st.dates(),
    st.sampled_from(["no", "1e-4", "-1", "module:function", "{}", '{"a": 1}', "[1", "auto", "true"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS.filter(bool), inner, max_size=2),
    max_leaves=4,
)
# What a value of these would do has nothing to do with the parser: other programs, other files
OF_OTHERS = {"deepspeed", "fsdp", "fsdp_config", "parallelism_config", "env", "config", "use_cpu"}


@pytest.mark.parametrize("stem", ["correction_optimization", "evaluate"])
def test_any_yaml_value_parses_or_is_one_sentence(stem, tmp_path):
    names = [name for name in keys(stem) if name not in OF_OTHERS]

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.dictionaries(st.sampled_from(names), VALUES, min_size=1, max_size=2))
    @example({"temperature": None})
    @example({"learning_rate": float("nan"), "seed": -1})
    def attempt(config):
        file = tmp_path / "any.yaml"
        base = {"bf16": False, "output_dir": "out"} if stem in TRAINING else {}
        try:
            file.write_text(yaml.dump({**base, **config}, allow_unicode=True), encoding="utf-8")
        except (UnicodeEncodeError, yaml.YAMLError):  # half a character is no text
            return
        try:
            recipe(stem).parse_arguments(["--config", str(file)])
        except (SystemExit, BadInput) as stopped:
            message = str(stopped)
            assert message and "\n" not in message

    attempt()
