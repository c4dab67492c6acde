"""Weights, gates, format terms; similarities; and the promises that all value functions share."""

import doctest
import importlib
import inspect
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trl.trainer.utils import get_callable_name, is_async_callable

import correction_trl.rewards as rewards
from correction_trl.rewards import (
    FinalAnswer,
    FormatTerm,
    Gate,
    LengthTerm,
    WeightedSum,
    bag_similarity,
    edit_similarity,
    line_similarity,
    word_similarity,
)


ROOT = Path(__file__).parents[2]
MODULES = sorted(set(rewards._PUBLIC.values()))


def length(completions, **columns):
    return [float(len(text)) if text else None for text in completions]


def number(completions, numbers, **columns):
    assert len(numbers) == len(completions)
    return [float(n) for n in numbers]


class TestComposition:
    def test_weighted_sum(self):
        value = WeightedSum((length, number), (0.5, 2.0))
        assert value(completions=["ab", "", "abcd"], numbers=[1, 2, 3]) == [3.0, None, 8.0]
        assert WeightedSum((length, number), (0.0, 1.0))(completions=["", "a"], numbers=[1, 2]) == [1.0, 2.0]
        with pytest.raises(ValueError, match="2 functions and 1 weights"):
            WeightedSum((length, number), (1.0,))

    def test_gate_asks_only_about_what_passes(self):
        asked = []

        def judge(completions, numbers, shared, **columns):
            asked.append((completions, numbers, shared))
            return [n * 10.0 for n in numbers]

        gate = Gate(FormatTerm("x+"), judge, otherwise=-1.0)
        values = gate(completions=["x", "y", "xx"], numbers=[1, 2, 3], shared="state")
        assert values == [10.0, -1.0, 30.0] and asked == [(["x", "xx"], [1, 3], "state")]
        assert gate(completions=["y"], numbers=[1], shared="state") == [-1.0] and len(asked) == 1
        assert Gate(length, number)(completions=["", "ab"], numbers=[5, 6]) == [None, 6.0]
        assert Gate(length, number, at_least=3)(completions=["ab", "abc"], numbers=[5, 6]) == [0.0, 6.0]

    def test_format_and_length(self):
        think = FormatTerm(r"<think>.*</think>\s*\S.*")
        assert think(completions=["<think>a</think> b", "b", "<think>a</think>"]) == [1.0, 0.0, 0.0]
        assert FormatTerm(r"\d+", thinking=False)(completions=["<think>a</think>12", "a12"]) == [1.0, 0.0]
        assert LengthTerm(2, 4)(completions=["a", "abc", "abcd", "abcdef"]) == [0.0, -0.5, -1.0, -1.0]
        with pytest.raises(ValueError, match="0 <= free < limit"):
            LengthTerm(4, 4)

    def test_nested(self):
        value = WeightedSum((Gate(FormatTerm(r"####.*"), FinalAnswer()), LengthTerm(10, 20)), (1.0, 1.0))
        assert value(completions=["#### 4", "4", "#### 4" + " " * 9], answer=[4, 4, 4]) == [1.0, 0.0, 0.5]


SIMILARITIES = [edit_similarity, word_similarity, line_similarity, bag_similarity]


class TestSimilarity:
    @pytest.mark.parametrize("similarity", SIMILARITIES)
    @given(a=st.text(max_size=30), b=st.text(max_size=30))
    def test_bounds_and_symmetry(self, similarity, a, b):
        assert 0 <= similarity(a, b) <= 1
        assert similarity(a, b) == similarity(b, a)
        assert similarity(a, a) == 1

    def test_a_small_edit_is_nearer_than_a_rewrite(self):
        source = "def f(x):\n    y = x + 1\n    return y\n"
        small, rewrite = source.replace("+ 1", "+ 2"), "f = lambda value: value * 3 - 7"
        for similarity in SIMILARITIES:
            assert similarity(source, small) > similarity(source, rewrite)


class TestPromises:
    @pytest.mark.parametrize("module", MODULES)
    def test_docstring_examples(self, module):
        """Every example of a docstring gives what it says (fences are no part of it)."""
        loaded = importlib.import_module(f"correction_trl.rewards.{module}")
        runner, tried = doctest.DocTestRunner(), 0
        for test in doctest.DocTestFinder().find(loaded):
            text = re.sub(r"^\s*```\w*$", "", test.docstring or "", flags=re.MULTILINE)
            runner.run(doctest.DocTestParser().get_doctest(text, test.globs, test.name, test.filename, 0))
            tried += 1
        assert tried and runner.failures == 0

    def test_trl_can_name_pickle_and_call_them(self):
        for module in MODULES:
            loaded = importlib.import_module(f"correction_trl.rewards.{module}")
            for name, kind in inspect.getmembers(loaded, inspect.isclass):
                if (
                    kind.__module__ != loaded.__name__
                    or "completions" not in inspect.signature(kind.__call__).parameters
                ):
                    continue
                parameters = inspect.signature(kind.__call__).parameters.values()
                assert any(p.kind is p.VAR_KEYWORD for p in parameters), f"{name} must take any further column"
                instance = object.__new__(kind)
                called = kind.__dict__["__name__"]
                called = called.fget(instance) if isinstance(called, property) else called
                assert isinstance(called, str) and get_callable_name(instance) == called
                assert not is_async_callable(instance)
            for name, ready in vars(loaded).items():
                if callable(ready) and get_callable_name(ready) and type(ready).__module__ == loaded.__name__:
                    assert type(pickle.loads(pickle.dumps(ready))) is type(ready), name

    def test_importing_the_package_is_light(self):
        code = (
            "import sys, correction_trl.rewards, correction_trl.sandbox\n"
            "heavy = {'torch', 'transformers', 'trl', 'math_verify', 'sympy', 'simplemma', 'rapidfuzz'}\n"
            "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)

    def test_every_public_name_loads(self):
        for name in rewards.__all__:
            assert callable(getattr(rewards, name))
        with pytest.raises(AttributeError, match="no attribute 'Perspective'"):
            rewards.Perspective  # noqa: B018
