"""What the README shows works: CI runs its first two blocks as they stand; the others are checked here."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def parse_arguments(argv):
    spec = importlib.util.spec_from_file_location(
        "recipe_of_the_readme", ROOT / "recipes" / "correction_optimization.py"
    )
    recipe = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = recipe
    spec.loader.exec_module(recipe)
    return recipe.parse_arguments(argv)


def test_the_first_two_blocks_are_one_command_each():
    run, test, *_ = blocks("bash")
    for block in (run, test):
        assert len(block.strip().splitlines()) == 1
        assert block.startswith("pip install -c constraints.txt -e ")
    assert "accelerate launch recipes/correction_optimization.py" in run
    assert test.strip().endswith("pytest -n auto --dist worksteal")
    assert "readme_block 1" in (ROOT / ".ci" / "run").read_text()


def test_the_qlora_command_parses(monkeypatch):
    monkeypatch.chdir(ROOT)
    command = shlex.split(blocks("bash")[2].replace("\\\n", " "))
    assert (ROOT / command[command.index("--config_file") + 1]).is_file()
    recipe = command.index("recipes/correction_optimization.py")
    # The tests have no GPU, on which bfloat16 is refused by default
    _, teacher, training, model = parse_arguments([*command[recipe + 1 :], "--use_cpu", "true"])
    assert teacher.teacher == "my_teacher:correct"
    assert training.push_to_hub and training.hub_model_id == "your-name/your-adapter"
    assert model.load_in_4bit and model.use_peft and model.dtype == "bfloat16"


@pytest.mark.slow
def test_the_python_example_runs(tmp_path):
    """In a process of its own, with the paths of a clone, as a reader would run it."""
    example = blocks("python")[1].replace('output_dir="outputs/example"', f"output_dir={str(tmp_path)!r}")
    done = subprocess.run(
        [sys.executable, "-c", example],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "logps/correction" in done.stdout


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
