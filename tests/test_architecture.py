"""The house: which room may import which, and that its public faces hold what they name."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from radon.complexity import cc_visit
from radon.visitors import Function


# Floors from the ground up. A module imports from its own room and from the floors below it, never from another room
# of its own floor: so no method imports another, and nothing imports `recipe` but the recipes themselves.
FLOORS = [
    {"errors", "faces", "cli"},
    {"functions", "checkpoints", "signals"},
    {"data_utils", "chat_server"},
    {"carry_addition", "mixtures", "policy"},
    {"sandbox"},
    {"rewards"},
    {"teachers", "inference"},
    {"evaluation"},
    {"tasks"},
    {"reporting"},
    {"correction_optimization", "corrector_sft", "score"},
    {"self_correction_dpo"},
    {"named_functions"},
    {"recipe"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# What reads numbers and nothing else: testable on paper, usable without a model
NO_MODEL_NO_TOKENIZER = [
    "correction_optimization/losses.py",
    "score/turn_credit.py",
    "evaluation/metrics.py",
    "corrector_sft/pair_pool.py",
]
FACES = {
    "correction_trl",
    "correction_trl.teachers",
    "correction_trl.rewards",
    "correction_trl.inference",
    "correction_trl.evaluation",
    "correction_trl.self_correction_dpo",
    "correction_trl.reporting",
    "correction_trl.sandbox",
    "correction_trl.carry_addition",
    "correction_trl.tasks",
    # Each task pack is a face of its own
    *(f"correction_trl.tasks.{file.stem}" for file in (ROOT / "correction_trl" / "tasks").glob("[!_]*.py")),
}


def imports(source: str, module: list[str], is_package: bool) -> list[tuple[list[str], list[str]]]:
    """`(module, names)` of every import of a source file, wherever it stands, with relative ones resolved."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name.split("."), []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module if is_package else module[:-1]
            base = package[: len(package) - node.level + 1] if node.level else []
            found.append((base + (node.module.split(".") if node.module else []), [a.name for a in node.names]))
    return found


def violations(source: str, path: str) -> list[str]:
    """What a source file of the package imports against the rule; `path` is relative to `correction_trl/`."""
    parts = list(Path(path).with_suffix("").parts)
    is_package = parts[-1] == "__init__"
    module = ["correction_trl", *(parts[:-1] if is_package else parts)]
    room = parts[0]
    wrong = []
    for target, names in imports(source, module, is_package):
        if target[0] != "correction_trl":
            if path in NO_MODEL_NO_TOKENIZER and target[0] in ("transformers", "trl", "peft", "tokenizers"):
                wrong.append(f"{path} imports {target[0]}: it is to need no model and no tokenizer")
            continue
        if target != module[:-1]:  # `from . import x`
            private = [name for name in [*target, *names] if name.startswith("_") and not name.startswith("__")]
            # The modules of `inference` begin with `_` so that functions may have their names; they share a room
            if private and not (room == "inference" and target[:2] == ["correction_trl", "inference"]):
                wrong.append(f"{path} imports the private {'.'.join(target)}.{private[0]}")
        rooms = [target[1]] if len(target) > 1 else [name for name in names if name in FLOOR_OF]
        for other in rooms:
            if room not in FLOOR_OF or other == room:
                continue
            if other not in FLOOR_OF:
                wrong.append(f"{path} imports {other}, which has no floor: give it one in FLOORS")
            elif FLOOR_OF[other] >= FLOOR_OF[room]:
                wrong.append(f"{path} (floor {FLOOR_OF[room]}) imports {other} (floor {FLOOR_OF[other]})")
    return wrong


def package_files() -> list[str]:
    package = ROOT / "correction_trl"
    # The sandbox's isolated programs run outside the package, from their own folder
    return sorted(str(path.relative_to(package)) for path in package.rglob("*.py"))


def test_no_import_runs_up_sideways_or_into_another_module():
    wrong = []
    for path in package_files():
        if path != "__init__.py":
            wrong += violations((ROOT / "correction_trl" / path).read_text(encoding="utf-8"), path)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("policy/generation.py", "from ..evaluation.metrics import edit_ratio"),
        ("policy/generation.py", "def f():\n    from correction_trl.score import SCoReConfig"),
        ("score/score_trainer.py", "from ..corrector_sft.pair_pool import PairPool"),
        ("corrector_sft/corrector_sft_trainer.py", "import correction_trl.self_correction_dpo.pairs"),
        ("teachers/base.py", "from ..recipe import run"),
        ("reporting/plots.py", "from .run_report import _save"),
        ("inference/chat.py", "from ..teachers.server import ServerTeacher"),
        ("errors.py", "from . import functions"),
        ("score/turn_credit.py", "from transformers import AutoTokenizer"),
        ("policy/generation.py", "from ..a_new_room import f"),
    ],
)
def test_a_new_violation_is_found(path, source):
    assert len(violations(source, path)) == 1


def test_every_module_has_a_floor():
    package = ROOT / "correction_trl"
    rooms = {p.stem for p in package.glob("*.py")} | {
        p.name for p in package.iterdir() if (p / "__init__.py").is_file()
    }
    assert rooms - {"__init__"} == set(FLOOR_OF)


def test_importing_the_package_is_fast_and_loads_no_torch():
    code = (
        "import sys, time; start = time.perf_counter(); import correction_trl, correction_trl.teachers, "
        "correction_trl.inference, correction_trl.evaluation, correction_trl.self_correction_dpo; "
        "print(time.perf_counter() - start, [m for m in ('torch', 'transformers', 'trl') if m in sys.modules])"
    )
    # The best of three: another process may hold the cores
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    seconds, loaded = min((run.stdout.split(maxsplit=1) for run in runs), key=lambda parts: float(parts[0]))
    assert loaded.strip() == "[]"
    assert float(seconds) < 0.2


@pytest.mark.parametrize("face", sorted(FACES))
def test_every_public_name_can_be_imported(face):
    module = importlib.import_module(face)
    assert module.__all__
    for name in module.__all__:
        assert getattr(module, name) is not None
        assert name.startswith("__") or name in dir(module)


def written_names() -> list[tuple[str, str, str]]:
    """Every `correction_trl...:name` of README, docs and YAML."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "recipes").rglob("*.yaml"))]
    names = []
    for file in files:
        for module, name in re.findall(r"\b(correction_trl(?:\.\w+)*):(\w+)", file.read_text(encoding="utf-8")):
            names.append((str(file.relative_to(ROOT)), module, name))
    return names


def test_every_name_that_is_written_down_resolves():
    names = written_names()
    assert len(names) > 10
    for file, module, name in names:
        assert hasattr(importlib.import_module(module), name), f"{file} names {module}:{name}, which does not exist"


def test_readme_and_docs_import_from_the_faces_only():
    for file in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = file.read_text(encoding="utf-8")
        modules = re.findall(r"^\s*(?:from|import) (correction_trl[\w.]*)", text, flags=re.MULTILINE)
        modules += [module for written, module, _ in written_names() if written == str(file.relative_to(ROOT))]
        inner = sorted(set(modules) - FACES)
        assert not inner, f"{file.name} imports from {inner}; import from {sorted(FACES)}"


def test_no_file_is_a_maze():
    """At most 1,000 lines a file; the trainer of correction optimization is one file on purpose, as TRL's are."""
    for path in package_files():
        source = (ROOT / "correction_trl" / path).read_text(encoding="utf-8")
        n_lines = len(source.splitlines())
        assert n_lines <= (1200 if path.endswith("correction_optimization_trainer.py") else 1000), path


def test_no_function_is_a_maze():
    """A cyclomatic complexity of at most 25, closures included."""
    mazes = set()
    for path in package_files():
        blocks = cc_visit((ROOT / "correction_trl" / path).read_text(encoding="utf-8"))
        functions = [block for block in blocks if isinstance(block, Function)]
        mazes |= {(Path(path).name, block.fullname) for block in functions if block.complexity > 25}
    assert not mazes
