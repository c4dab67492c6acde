"""Pushing to a local stand-in for the Hub: what arrives is what lies in the folder; a failing push loses nothing."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import build_model, build_tokenizer
from hub_stand_in import TOKEN, HubStandIn, run_online
from peft import LoraConfig, get_peft_model


pytestmark = pytest.mark.slow


RECIPE = Path(__file__).parents[1] / "recipes" / "correction_optimization.py"
PUSH = "from correction_trl.recipe import push_folder; push_folder({folder!r}, {repository!r}, {private}, None)"

# What a push takes along, and what it leaves at home
PUSHED = ["README.md", "adapter_config.json", "adapter_model.safetensors", "metrics.json", "tokenizer.json"]
KEPT_AT_HOME = ["checkpoint-2/adapter_model.safetensors", "training_args.bin", "runs/events.0"]


@pytest.fixture(scope="module")
def hub():
    with HubStandIn() as hub:
        yield hub


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """A finished run: adapter, tokenizer, card, numbers, and what need not be pushed."""
    folder = tmp_path_factory.mktemp("run")
    tokenizer = build_tokenizer()
    model = get_peft_model(build_model(tokenizer), LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n# A model\n")
    (folder / "metrics.json").write_text("{}")
    for name in KEPT_AT_HOME:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not for the Hub")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def push(folder: Path, repository: str, hub: HubStandIn, private: bool | None = None) -> subprocess.CompletedProcess:
    return hub.run(PUSH.format(folder=str(folder), repository=repository, private=private))


def test_a_push_uploads_adapter_tokenizer_and_card(hub, run_folder):
    before = contents(run_folder)
    result = push(run_folder, "tester/adapter", hub, private=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith("/tester/adapter")
    received = hub.repositories["tester/adapter"]
    assert set(PUSHED) <= set(received)
    assert not set(KEPT_AT_HOME) & set(received)
    assert received == {name: before[name] for name in before if name not in KEPT_AT_HOME}
    assert hub.private["tester/adapter"] == "private"
    assert contents(run_folder) == before
    assert any(path.startswith("/objects/") for _, path, _ in hub.requests)  # the weights went as an LFS object
    assert TOKEN not in result.stdout + result.stderr


@pytest.mark.parametrize("local_base", [False, True])
def test_the_advice_after_a_refusal_pushes_what_the_push_would_have(hub, run_folder, tmp_path, local_base):
    folder = tmp_path / "my run"
    shutil.copytree(run_folder, folder)
    (folder / "round_1").mkdir()
    (folder / "round_1" / "model.safetensors").write_bytes(b"not for the Hub")
    if local_base:
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = str(tmp_path)
        (folder / "adapter_config.json").write_text(json.dumps(config))
    before = contents(folder)
    names = [f"{how}-{local_base}" for how in ("pushed", "advised")]
    assert push(folder, f"tester/{names[0]}", hub).returncode == 0
    assert contents(folder) == before
    hub.failures[names[1]] = ("commit", 403, "your storage is full")
    refusal = push(folder, f"tester/{names[1]}", hub).stderr
    del hub.failures[names[1]]
    advice = re.search("`(hf upload [^`]*)`", refusal)[1]
    result = run_online(["bash", "-c", advice], hub.endpoint)
    assert result.returncode == 0, result.stderr
    pushed, advised = (hub.repositories[f"tester/{name}"] for name in names)
    assert advised == pushed
    assert not [
        name for name in pushed if name.startswith(("checkpoint", "round", "runs", "training_args", "to_push"))
    ]
    assert str(tmp_path).encode() not in b"".join(pushed.values())


def test_a_name_without_a_user_is_pushed_to_ones_own_account_and_again(hub, run_folder):
    for metrics in ("{}", '{"after": 1}'):
        (run_folder / "metrics.json").write_text(metrics)
        result = push(run_folder, "mine", hub)
        assert result.returncode == 0, result.stderr
        assert hub.repositories["tester/mine"]["metrics.json"].decode() == metrics


@pytest.mark.parametrize(
    ("step", "status", "reason"),
    [
        ("create", 403, "you may not create repositories here"),
        ("create", 500, "the Hub is out of order"),
        ("commit", 403, "your storage is full"),
        ("lfs", 403, "your storage is full"),
    ],
)
def test_a_refused_push_says_what_to_do_and_loses_nothing(hub, run_folder, step, status, reason):
    name = f"refused-{step}-{status}"
    hub.failures[name] = (step, status, reason)
    before = contents(run_folder)
    result = push(run_folder, f"tester/{name}", hub)
    assert_says_what_to_do(result, run_folder, f"tester/{name}")
    assert str(status) in result.stderr
    assert contents(run_folder) == before
    assert not hub.repositories.get(f"tester/{name}")


def test_a_hub_that_cannot_be_reached_says_what_to_do_and_loses_nothing(run_folder):
    with HubStandIn() as gone:
        endpoint = gone.endpoint
    before = contents(run_folder)
    command = PUSH.format(folder=str(run_folder), repository="tester/unreachable", private=None)
    result = run_online([sys.executable, "-c", command], endpoint)
    assert_says_what_to_do(result, run_folder, "tester/unreachable")
    assert contents(run_folder) == before


def test_a_repository_is_created_before_the_run_or_the_refusal_is_said_then(hub):
    hub.failures["not-mine"] = ("create", 403, "you may not create repositories here")
    command = "from correction_trl.recipe import check_push; check_push({!r}, None, None)"
    result = hub.run(command.format("tester/early"))
    assert result.returncode == 0, result.stderr
    assert hub.repositories["tester/early"] == {}
    result = hub.run(command.format("tester/not-mine"))
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "`push_to_hub` is set, but 'tester/not-mine' cannot be pushed to (403" in result.stderr
    assert TOKEN not in result.stderr


def assert_says_what_to_do(result: subprocess.CompletedProcess, folder: Path, repository: str, copy: str = ""):
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith(f"The push to '{repository}' failed (")
    assert f"Nothing is lost: everything is in {folder}" in message
    assert f"`hf upload {repository} {folder}{copy} ." in message
    assert TOKEN not in result.stdout + result.stderr


def test_a_recipe_whose_push_is_refused_has_everything_on_disk_to_push_again(hub, tmp_path):
    folder = tmp_path / "recipe"
    hub.failures["recipe"] = ("commit", 403, "your storage is full")
    quickstart = RECIPE.parent / "configs" / RECIPE.stem / "quickstart.yaml"
    arguments = "--max_steps 1 --per_device_train_batch_size 4 --train_rows 16 --test_rows 8 --use_peft --push_to_hub"
    arguments += f" --hub_model_id tester/recipe --hub_token {TOKEN} --output_dir {folder}"
    result = run_online(
        [sys.executable, str(RECIPE), "--config", str(quickstart), *arguments.split()], hub.endpoint, token=None
    )
    files = contents(folder)
    assert set(PUSHED) <= set(files), result.stderr
    assert json.loads(files["metrics.json"])["after"]
    assert_says_what_to_do(result, folder, "tester/recipe", copy="/to_push")  # the adapter's base is a local folder
    assert not hub.repositories["tester/recipe"]
    assert TOKEN.encode() not in b"".join(files.values())

    del hub.failures["recipe"]
    result = push(folder, "tester/recipe", hub)
    assert result.returncode == 0, result.stderr
    received = hub.repositories["tester/recipe"]
    adapter_config = json.loads(received["adapter_config.json"])
    assert adapter_config == json.loads(files["adapter_config.json"]) | {"base_model_name_or_path": "tiny-carry-chat"}
    for name in set(PUSHED) - {"adapter_config.json"}:
        assert received[name] == files[name]
    assert str(tmp_path).encode() not in b"".join(received.values())


# A run in Python, whose adapter has a local base; `{how}` begins a push
TRAIN = """
import sys; sys.path.insert(0, {tests!r})
from datasets import Dataset
from helpers import build_model, build_tokenizer, make_args
from peft import LoraConfig
from pathlib import Path
from correction_trl import CorrectionOptimizationConfig, CorrectionOptimizationTrainer
here = Path({here!r})
tokenizer = build_tokenizer()
tokenizer.save_pretrained(here / "base")
build_model(tokenizer).save_pretrained(here / "base")
pairs = Dataset.from_list([dict(prompt="1+1=", response="3", correction="2")] * 4)
args = CorrectionOptimizationConfig(
    **make_args(here, max_steps=2, save_strategy="steps", save_steps=1, hub_model_id={repository!r}, {settings})
)
peft_config = LoraConfig(target_modules=["q_proj"])
trainer = CorrectionOptimizationTrainer(str(here / "base"), args, train_dataset=pairs, peft_config=peft_config)
trainer.train()
{how}
trainer._finish_current_push()
"""


@pytest.mark.parametrize(
    ("name", "settings", "how"),
    [
        ("by-hand", "", "trainer.push_to_hub()"),
        ("in-background", "", "trainer.push_to_hub(blocking=False).result()"),
        ("while-training", "push_to_hub=True, hub_strategy='checkpoint', hub_always_push=True", ""),
    ],
)
def test_what_a_trainer_pushes_names_no_path(hub, tmp_path, name, settings, how):
    names = {"tests": str(Path(__file__).parent), "here": str(tmp_path), "repository": f"tester/{name}"}
    result = hub.run(TRAIN.format(**names, settings=settings, how=how))
    assert result.returncode == 0, result.stderr[-2000:]
    received = hub.repositories[f"tester/{name}"]
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= set(received)
    assert json.loads(received["adapter_config.json"])["base_model_name_or_path"] == "base"
    assert "How this departs" in received["README.md"].decode()  # the card of this package, not PEFT's
    assert str(tmp_path).encode() not in b"".join(received.values())
    assert not [file for file in received if file.endswith("training_args.bin")]
    # To go on training, only where that is asked for
    assert ("last-checkpoint/optimizer.pt" in received) == (name == "while-training")
    assert not {"optimizer.pt", "trainer_state.json"} & set(received)
    on_disk = json.loads((tmp_path / "output" / "adapter_config.json").read_text())
    assert on_disk["base_model_name_or_path"] == str(tmp_path / "base")  # here it must be found
    assert not (tmp_path / "output" / "to_push").exists()
