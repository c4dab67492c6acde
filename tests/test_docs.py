"""The docs: every page of a method has one order, and links lead somewhere."""

import re

import pytest
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
