"""The docs: every page of a method has one order, and links lead somewhere."""

import ast
import importlib
import os
import re

import pytest
import yaml
from helpers import ROOT


METHODS = ["correction_optimization", "corrector_sft", "score", "self_correction_dpo", "proco", "self_checking"]
ORDER = [
    "What it is",
    "Quick start in Python",
    "Quick start by recipe",
    "Dataset format",
    "Settings",
    "What is logged",
    "How it departs from its paper",
    "Results",
    "References",
]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_its_page_in_the_one_order(method):
    text = (ROOT / "docs" / f"{method}.md").read_text(encoding="utf-8")
    code_free = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"^## (.+)$", code_free, flags=re.MULTILINE) == ORDER


def test_links_lead_somewhere():
    for page in [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\((?!https?://|mailto:)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def blocks(language):
    found = []
    for page in sorted((ROOT / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        found += [
            pytest.param(block[1], id=f"{page.stem}:{text[: block.start()].count(chr(10)) + 1}")
            for block in re.finditer(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
        ]
    return found


@pytest.mark.parametrize("block", blocks("python"))
def test_what_a_python_block_imports_from_us_exists(block):
    """Training runs take too long for a test of each block; what the trainers do has tests of its own."""
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "correction_trl":
            module = importlib.import_module(node.module)
            for alias in node.names:
                getattr(module, alias.name)


@pytest.mark.parametrize("block", blocks("yaml"))
def test_a_yaml_block_is_settings(block):
    assert isinstance(yaml.safe_load(block), dict)


def test_every_page_is_in_the_navigation_of_the_site():
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert f": {page.relative_to(ROOT / 'docs').as_posix()}\n" in settings, page.name


def test_a_setting_that_troubleshooting_names_exists():
    from correction_trl import CorrectionOptimizationConfig, SCoReConfig
    from correction_trl.recipe import ScriptArguments
    from correction_trl.teachers.arguments import TeacherArguments

    classes = (CorrectionOptimizationConfig, SCoReConfig, ScriptArguments, TeacherArguments)
    known = {name for kind in classes for name in kind.__dataclass_fields__}
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    named = re.findall(r"`(?:--)?([a-z_]+): ", text) + re.findall(r"`--([a-z_]+) ", text)
    assert len(named) > 8 and set(named) <= known, set(named) - known


def test_workflows_parse_and_what_they_call_is_there():
    """Nothing runs them here; what they leave to `.ci` is run by CI."""
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    assert {path.stem for path in workflows} == {"tests", "docs", "publish", "newest-trl"}
    for path in workflows:
        text = path.read_text(encoding="utf-8")
        for job in yaml.safe_load(text)["jobs"].values():
            assert job["timeout-minutes"] <= 60
        for script in re.findall(r"run: (\.ci/\w+)", text):
            assert os.access(ROOT / script, os.X_OK), script
