"""The notebooks: clean, portable, and of names that exist. `.ci/notebooks.py` runs them with small budgets."""

import ast
import importlib
import json
import re

import pytest
from helpers import ROOT


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
REPOSITORY = "https://github.com/correction-trl/correction_trl/blob/main/"

assert NOTEBOOKS, "notebooks/ is missing"  # without it every test here would be skipped

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path, kind):
    found = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]
    return ["".join(cell["source"]) for cell in found]


def test_a_notebook_is_committed_without_outputs(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(code) > 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_what_a_notebook_imports_exists(path):
    tree = ast.parse("\n".join(cells(path, "code")))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for alias in node.names:
                getattr(module, alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)


def test_only_a_hosted_notebook_installs(path):
    """In its first cell, and nowhere else; a shell line would do it on the reader's own machine too."""
    first, *rest = cells(path, "code")
    installs = [node for node in ast.parse(first).body if "install" in ast.unparse(node)]
    assert len(installs) == 1 and isinstance(installs[0], ast.If) and "hosted" in ast.unparse(installs[0].test)
    assert not any(re.search(r"pip|^\s*[%!]", cell, flags=re.MULTILINE) for cell in rest)


def test_a_notebook_names_no_path_of_a_machine_and_no_token(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"""["'( ](/(?!/)\w+/|~/|[A-Z]:\\)""", text)
    assert not re.search(r"\b(hf_\w{16,}|sk-\w{16,}|[0-9a-f]{40})\b", text)
    assert 'QUICK = "CI" in os.environ' in text.replace('\\"', '"')


def test_links_of_a_notebook_lead_somewhere(path):
    links = re.findall(r"\]\(([^)]+)\)", "\n".join(cells(path, "markdown")))
    ours = [link.removeprefix(REPOSITORY) for link in links if link.startswith(REPOSITORY)]
    assert ours and all(link.startswith("https://") for link in links)
    for target in ours:
        assert (ROOT / target).is_file(), target


def test_the_docs_name_a_notebook(path):
    assert f"notebooks/{path.name}" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
