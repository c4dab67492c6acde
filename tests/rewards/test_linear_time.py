"""
Every regular expression of the value functions takes time in proportion to the text: a completion is untrusted, and a
pattern that looks at each place again from each place stops a training for minutes.
"""

import ast
import importlib
import re
import time
from pathlib import Path

import pytest
from helpers import takes_less_than

from correction_trl import rewards
from correction_trl.rewards.answer_extraction import choice_patterns, find_answer
from correction_trl.rewards.constraints import E2E_WAYS
from correction_trl.rewards.toxicity import listed_words


FOLDER = Path(rewards.__file__).parent
# The patterns of code_extraction are matched at the beginning of a line alone; test_code_rewards times them so.
MODULES = sorted(
    path.stem
    for path in FOLDER.glob("*.py")
    if path.stem not in ("__init__", "math_worker") and not path.stem.startswith("code_")
)
LENGTH = 100_000
# What the patterns repeat, or begin with. Each is repeated up to LENGTH, alone and before an end that lets a match
# fail late.
PIECES = [
    " ",
    "\n",
    "\t",
    "\n ",
    " \n\n",
    "a",
    "A",
    "ab ",
    "1",
    "1,",
    "1.",
    "1 ",
    ".",
    ",",
    "-",
    "+1",
    "_",
    "*",
    "**",
    "** ",
    "`",
    "```",
    "```\n",
    "~~~\n",
    "#",
    "####",
    "#### ",
    "\n#### ",
    "$",
    "$$",
    "$1",
    "\\",
    "\\\\",
    "\\$",
    "\\,",
    "\\ ",
    "\\(",
    "\\[",
    "(",
    "((1",
    ")",
    "[",
    "[a",
    "[a]",
    "{",
    "{{",
    "}",
    "{}",
    "\\boxed",
    "\\boxed{",
    "\\boxed{1}",
    "\\text{",
    "\\text{a}",
    "\\frac",
    "\\frac{1}{",
    "\\overline{",
    "^{",
    "^{a",
    "_{1",
    "^\\circ",
    "<",
    "<a",
    "<think>",
    "</think>",
    "<answer>",
    "<|im_end|>",
    "answer",
    "answer ",
    "answer is ",
    "the answer is: ",
    "final answer\n",
    "answer of a ",
    "answer to a ",
    "a is the ",
    "a is the correct ",
    "answer:\n",
    "Question: ",
    "\nQuestion: ",
    "\nQuestion 1: ",
    "option ",
    "(A) ",
    "A or ",
    "and ",
    "or ",
    "x=",
    "e1",
    "1e1",
    "not ",
    "not a",
    "very ",
    "price ",
    "1/",
    "1 1/",
    "million ",
    "cm",
    "cm^2 ",
    "%",
    ":",
    "1:",
    "'s",
    "def f(\n",
    "import a\n",
    ">>> ",
    "|",
    "é",
    "½",
]
ENDS = ["", "!", "x\x00"]


def patterns_of(value):
    """The compiled patterns in a module's variable, in containers too."""
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, dict):
        yield from patterns_of([*value.keys(), *value.values()])
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from patterns_of(item)


def all_patterns():
    found = {}
    for module in MODULES:
        for name, value in vars(importlib.import_module(f"correction_trl.rewards.{module}")).items():
            for pattern in patterns_of(value):
                found.setdefault(pattern.pattern, (f"{module}.{name}", pattern))
    for pattern in choice_patterns("ABCDE"):
        found[pattern.pattern] = ("choice_patterns", pattern)
    for slot, way in E2E_WAYS.items():
        found[way] = (f"E2E_WAYS {slot}", re.compile(way))
    for attribute, pattern in listed_words(None):
        found[pattern.pattern] = (f"listed_words {attribute}", pattern)
    return [pytest.param(pattern, id=name) for name, pattern in found.values()]


def seconds(pattern, piece, end, length):
    text = piece * (length // len(piece)) + end
    start = time.process_time()
    for _ in pattern.finditer(text):
        pass
    pattern.fullmatch(text)
    return time.process_time() - start


@pytest.mark.parametrize("pattern", all_patterns())
def test_a_pattern_is_linear(pattern):
    """The slowest texts in turn at more of the length, so that a pattern that is not linear fails before it hangs."""
    texts = [(piece, end) for piece in PIECES for end in ENDS]
    for length, limit, kept in ((LENGTH // 40, 0.25, 8), (LENGTH // 10, 0.25, 3), (LENGTH, 1.0, 0)):
        took = {text: seconds(pattern, *text, length) for text in texts}
        slowest = max(took, key=took.get)
        assert took[slowest] < limit or any(seconds(pattern, *slowest, length) < limit for _ in range(2)), slowest
        texts = sorted(texts, key=took.get)[-kept:]


def seconds_to_find(style, piece, length):
    start = time.process_time()
    find_answer(piece * (length // len(piece)), style)
    return time.process_time() - start


@pytest.mark.parametrize("style", ["auto", "boxed", "gsm8k", "choice", "last_number"])
def test_an_answer_is_found_in_linear_time(style):
    """The slowest pieces in turn at the whole length, as above."""
    pieces = PIECES
    for length, kept in ((LENGTH // 20, 12), (LENGTH, 0)):
        for piece in pieces:
            assert takes_less_than(1, seconds_to_find, style, piece, length), piece
        pieces = sorted(pieces, key=lambda piece: seconds_to_find(style, piece, length))[-kept:] if kept else []


@pytest.mark.parametrize("module", MODULES)
def test_no_pattern_hides_in_a_function(module):
    """They are compiled where the test above finds them (or in a function that it calls)."""
    tree = ast.parse((FOLDER / f"{module}.py").read_text(encoding="utf-8"))
    hidden = []
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.Lambda)) and getattr(function, "name", "") not in KNOWN:
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                    owner, name = call.func.value, call.func.attr
                    literal = call.args and isinstance(call.args[0], (ast.Constant, ast.JoinedStr))
                    if isinstance(owner, ast.Name) and owner.id == "re" and name != "escape" and literal:
                        hidden.append(f"{module}.py, line {call.lineno}")
    assert not hidden


KNOWN = {"choice_patterns", "listed_words", "as_it_is"}
