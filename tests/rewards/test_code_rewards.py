"""Code tests and math programs: the real data sets' gold passes, everything else does not, and feedback says why."""

import gzip
import json
import re
from pathlib import Path

import pytest
from helpers import takes_less_than
from rewards.program_forms import misjudged

from correction_trl.rewards import CodeTests, MathProgram, extract_code
from correction_trl.rewards.code_extraction import complete
from correction_trl.sandbox import Limits, LocalSandbox, Result, local


DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the data files are not at {DATA}")
PROBLEMS = {isolation: local.try_isolation(isolation) for isolation in ("namespaces", "bubblewrap")}
pytestmark = pytest.mark.skipif(all(PROBLEMS.values()), reason=f"no isolation here: {PROBLEMS}")
SANDBOX = LocalSandbox(Limits(cpu_seconds=10, wall_seconds=20.0))  # the machine may be busy

MBPP = {
    "test_list": [
        ["assert similar((3, 4, 5), (5, 4)) == {4, 5}", "assert similar((1,), (2,)) == set()"],
        ["assert sum(10, 15) == 6", "assert sum(100, 150) == 93"],
    ],
    "test_imports": [[], ["import math"]],
}
MBPP_GOLD = [
    "def similar(a, b):\n    return set(a) & set(b)",
    "def sum(a, b):\n    return __builtins__['sum'](i for i in range(1, min(a, b)) if a % i == 0 and b % i == 0)",
]


def humaneval():
    with gzip.open(DATA / "humaneval/HumanEval.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def columns(data):
    return {name: [row[name] for row in data] for name in ("prompt", "test", "entry_point")}


class TestExtractCode:
    @pytest.mark.parametrize(
        ("text", "code"),
        [
            ("Here:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
            ("```\nx = 1\n```\nor better\n```py\nx = 2\n```\n```bash\nls\n```", "x = 2\n"),
            ("```python\nx = 1", "x = 1"),
            ("[BEGIN]\nx = 1\n[DONE]\nmore", "x = 1\n"),
            ("x = 1\n[DONE]", "x = 1\n"),
            ("    return 1", "    return 1"),
            ("<think>```python\nx = 0\n```</think>```python\nx = 1\n```", "x = 1\n"),
        ],
    )
    def test_forms(self, text, code):
        assert extract_code(text) == code

    def test_every_form_is_judged_by_its_program(self):
        """Over a hundred forms, each with a right and with a wrong program."""
        assert misjudged() == []

    def test_the_block_that_defines_the_tested_name_wins(self):
        text = "```python\nsize = 3\n```\n```python\ndef f(x):\n    return size\n```\n```python\nprint(f(1))\n```"
        assert extract_code(text, ["f"]) == "size = 3\n\ndef f(x):\n    return size\n"
        # Where no name is given, the last program, with what it calls.
        assert extract_code(text) == "size = 3\n\ndef f(x):\n    return size\n\nprint(f(1))\n"
        assert extract_code("```python\nx = 1\n```\n```python\nprint(2)\n```", ["g"]) == "print(2)\n"

    @pytest.mark.parametrize(
        "part",
        ["```", " ", "\n ", "> ", "- ", "1. ", "~", "`", "```python\n", "~~~ \n", "x:", "x: ", "a[", "a.", "[BEGIN]",
         "\t", "except ", "from ", "import a ", "```\na = b\n```\n", "(", "-", "not ", "{", "f(a,", "def f(x):\n", "'",
         "x = 1\n", '"""', "\\", ">>> ", "<answer>", "lambda:", "#", "if x:\n", "[a:", "async ", "    return x\n",
         "```md\n", "```x```", "1+"],
    )  # fmt: skip
    def test_takes_linear_time(self, part):
        """10^5 characters, behind an opening fence, behind code, and alone."""
        many = part * (100_000 // len(part))
        for text in (many, f"```{many}", f"```python\n{many}", f"x{many}", f"def f(x):\n{many}\nwords here"):
            assert takes_less_than(1, lambda text: complete("def f(x):\n", extract_code(text, ["f"]), "f"), text), (
                text[:20]
            )


class TestHumanEval:
    @needs_data
    @pytest.mark.slow
    def test_canonical_solutions_and_empty_ones(self):
        data = humaneval()
        value = CodeTests(kind="humaneval", sandbox=SANDBOX)
        bodies = [row["canonical_solution"] for row in data]
        assert value(completions=bodies, **columns(data)) == [1.0] * 164
        assert value(completions=["    pass\n"] * 164, **columns(data)) == [0.0] * 164

    @needs_data
    def test_whole_functions_in_a_fenced_block(self):
        data = humaneval()[:40:2]
        whole = [f"Sure:\n```python\n{row['prompt']}{row['canonical_solution']}```" for row in data]
        # Without the prompt's imports and helpers: they are there all the same.
        bare = [f"```python\n{'def' + text.split('def', 1)[1]}" for text in whole]
        value = CodeTests(kind="humaneval", sandbox=SANDBOX)
        assert value(completions=whole, **columns(data)) == [1.0] * 20
        assert value(completions=bare, **columns(data)) == [1.0] * 20

    @needs_data
    def test_the_helpers_in_the_tests_are_the_prompts(self):
        """HumanEval/32 judges a root by `poly`, which the prompt gives and a program could replace."""
        row = humaneval()[32]
        cheat = "    return 0.0\n\ndef poly(xs, x):\n    return 0.0\n"
        assert CodeTests(kind="humaneval", sandbox=SANDBOX)(completions=[cheat], **columns([row])) == [0.0]

    def test_a_helper_that_the_tests_do_not_import_is_the_standard_librarys(self):
        row = {
            "prompt": "def f(x):\n",
            "test": "def check(candidate):\n    assert isclose(candidate(2), 4)",
            "entry_point": "f",
        }
        programs = ["    return 2 * x\n", "    return 0\n\ndef isclose(*a):\n    return True\n"]
        value = CodeTests(kind="humaneval", sandbox=SANDBOX)
        assert value(completions=programs, **columns([row, row])) == [1.0, 0.0]


class TestMBPP:
    def test_an_assert_in_a_loop_counts_once(self):
        """Right for the first number of each loop alone: nothing of three is right."""
        tests = [[f"for x in (0, {n}):\n    assert f(x) == x" for n in (1, 2, 3)]]
        assert CodeTests(share=True, sandbox=SANDBOX)(completions=["def f(x):\n    return 0"], test_list=tests) == [
            0.0
        ]
        equal = [["assert f(0) == 0"] * 3 + ["assert f(1) == 1"]]
        assert CodeTests(share=True, sandbox=SANDBOX)(completions=["def f(x):\n    return 0"], test_list=equal) == [
            0.5
        ]

    def test_what_cannot_be_compared_is_none(self):
        ratio = "class R:\n    def __init__(s, a, b):\n        s.a, s.b = a, b\n"
        ratio += "    def __eq__(s, o):\n        return s.a * o.b == s.b * o.a\ndef f():\n    return R(1, 2)"
        tests = {"test_list": [["assert f() == R(2, 4)"]]}
        assert CodeTests(sandbox=SANDBOX)(completions=[ratio], **tests) == [None]
        assert CodeTests(sandbox=SANDBOX).feedback(completions=[ratio], **tests) == [""]

    @pytest.mark.parametrize(
        "program",
        [
            "raise ValueError('\\ud800')",
            "def f(x):\n    raise KeyError('\\ud800')",
            "def f(x):\n    return '\\udfff'",
            "def f(x):\n    return {'\\ud800': [b'', '\\ud83d\\ude00']}",
            "class \u00c4\ud800: pass",
            "def f(x):\n    raise type('\\ud800', (Exception,), {})('\\ud800')",
            "import sys\nsys.stdout.reconfigure(errors='surrogatepass')\nprint('\\ud800')",
        ],
    )
    def test_feedback_holds_whole_characters(self, program):
        text = CodeTests(sandbox=SANDBOX).feedback(completions=[program], test_list=[["assert f(1) == 2"]])[0]
        assert text and text.encode()  # no half of a character, which no tokenizer can read

    def test_values(self):
        value = CodeTests(sandbox=SANDBOX)
        assert value(completions=MBPP_GOLD, **MBPP) == [1.0, 1.0]
        wrong = ["def similar(a, b):\n    return set(a) & {5}", "def sum(a, b):\n    return 6"]
        assert value(completions=wrong, **MBPP) == [0.0, 0.0]
        assert CodeTests(share=True, sandbox=SANDBOX)(completions=wrong, **MBPP) == [0.5, 0.5]

    def test_feedback(self):
        completions = [
            "def similar(a, b):\n    return set(a) & {5}",
            "def sum(a, b):\n    return divide(a, 0)\ndef divide(a, b):\n    return a / b",
        ]
        first, second = CodeTests(sandbox=SANDBOX).feedback(completions=completions, **MBPP)
        assert first == (
            "1 of 2 tests passed. This test failed: assert similar((3, 4, 5), (5, 4)) == {4, 5}\n"
            "The call ((3, 4, 5), (5, 4)) returned {5}."
        )
        assert "ZeroDivisionError" in second and "line 4, in divide" in second and len(second) < 600

    def test_feedback_without_the_tests(self):
        completions = ["def similar(a, b):\n    return set(a) & {5}", "def sum(a, b):\n    return 6"]
        texts = CodeTests(sandbox=SANDBOX, show_tests=False).feedback(completions=completions, **MBPP)
        assert not any("assert" in text or "93" in text for text in texts)
        assert texts[1] == "1 of 2 tests passed. A test failed.\nThe call (100, 150) returned 6."

    def test_feedback_on_a_program_that_does_not_load(self):
        text = CodeTests(sandbox=SANDBOX).feedback(completions=["def f(:", ""], **MBPP)
        assert text[0].startswith("The program failed: SyntaxError") and "TypeError" in text[1]

    def test_equal_completions_run_once(self):
        class Counting:
            jobs = 0

            def run(self, jobs):
                self.jobs += len(jobs)
                return SANDBOX.run(jobs)

        counting = Counting()
        value = CodeTests(sandbox=counting)
        tests = {"test_list": [MBPP["test_list"][0]] * 4}
        assert value(completions=[MBPP_GOLD[0]] * 3 + [""], **tests) == [1.0, 1.0, 1.0, 0.0]
        value.feedback(completions=[MBPP_GOLD[0]] * 3 + [""], **tests)
        assert counting.jobs == 2

    def test_a_failing_sandbox_gives_none(self, caplog):
        class Broken:
            def run(self, jobs):
                return [Result(status="sandbox_error", error="no connection")] * len(jobs)

        metrics = {}
        value = CodeTests(sandbox=Broken())
        assert value(completions=MBPP_GOLD, log_metric=metrics.__setitem__, **MBPP) == [None, None]
        assert metrics == {"code_tests/unjudged": 1.0} and "no connection" in caplog.text
        assert value.feedback(completions=MBPP_GOLD, **MBPP) == ["", ""]

    def test_a_row_without_tests_is_not_judged(self):
        assert CodeTests(sandbox=SANDBOX)(completions=["x = 1"], test_list=[[]]) == [None]

    def test_humaneval_columns_as_the_trainer_hands_them_over(self):
        prompt = 'def double(x):\n    """Twice x."""\n'
        rows = {"test": ["def check(candidate):\n    assert candidate(2) == 4"] * 2, "entry_point": ["double"] * 2}
        value, bodies = CodeTests(kind="humaneval", sandbox=SANDBOX), ["    return 2 * x", "    return x"]
        assert value(prompts=[prompt] * 2, completions=bodies, trainer_state=None, **rows) == [1.0, 0.0]
        chat = [[{"role": "user", "content": prompt}]] * 2
        assert value(prompts=chat, completions=bodies, code_prompt=[prompt] * 2, **rows) == [1.0, 0.0]
        with pytest.raises(ValueError, match="needs the dataset column 'prompt'"):
            value(prompts=chat, completions=bodies, **rows)

    def test_bad_kind(self):
        with pytest.raises(ValueError, match="kind must be"):
            CodeTests(kind="apps")


class TestMathProgram:
    @needs_data
    @pytest.mark.slow
    def test_gsm8k_programs(self):
        """GSM8K's own calculator marks, as programs: `<<16-3-4=9>>` is one step. Right, and wrong by one."""
        lines = (DATA / "gsm8k/test.jsonl").read_text().splitlines()[:150]
        programs, golds = [], []
        for line in lines:
            answer = json.loads(line)["answer"]
            steps = re.findall(r"<<([0-9+\-*/(). ]+)=[^<>]*>>", answer)
            if steps and re.search(r"<<[^<>]*=([^<>]*)>>(?![^#]*<<)", answer).group(1) == answer.split("#### ")[1]:
                programs.append("".join(f"step_{i} = {plain(step)}\n" for i, step in enumerate(steps)))
                programs[-1] += f"answer = step_{len(steps) - 1}"
                golds.append(answer)
        assert len(programs) > 100
        value = MathProgram(sandbox=SANDBOX)
        right = value(completions=programs, answer=golds)
        # A few marks of the data are rounded by hand (1/3=.33).
        assert right.count(1.0) >= 0.97 * len(right) and right.count(None) == 0
        wrong = [f"```python\n{program} + 1\nprint(answer)\n```" for program in programs]
        assert sum(MathProgram(sandbox=SANDBOX)(completions=wrong, answer=golds)) == 0

    @pytest.mark.parametrize(
        ("program", "gold", "value", "feedback"),
        [
            ("answer = 16 - 3 - 4", 9, 1.0, "The program gives the right value."),
            ("print('It is', 16 - 3 - 4, 'eggs')", "#### 9", 1.0, "The program gives the right value."),
            ("answer = 0.1 + 0.2", "0.3", 1.0, "The program gives the right value."),
            ("answer = 1e-07 * 10", "0.000001", 1.0, "The program gives the right value."),
            ("answer = 10.0 ** 20", str(10**20), 1.0, "The program gives the right value."),
            (
                "from fractions import Fraction\nanswer = Fraction(1, 2)",
                r"\frac{1}{2}",
                1.0,
                "The program gives the right value.",
            ),
            ("answer = [9]", 9.0, 1.0, "The program gives the right value."),
            ("answer = 9.001", 9, 0.0, "The program gives 9.001, which is wrong."[:30]),
            ("answer = 8", 9, 0.0, "The program gives 8, which is wrong."),
            ("answer = True", 1, 0.0, "The program gives True, which is wrong."),
            ("answer = float('nan')", 9, 0.0, "The program gives nan, which is wrong."),
            ("x = 9", 9, 0.0, "The program gives no value: set the variable `answer` or print it."),
            ("answer = 9 / 0", 9, 0.0, "The program failed: ZeroDivisionError: division by zero."),
            ("answer = 9\nraise SystemExit", 9, 0.0, "The program failed: SystemExit."),
            ("while True: pass", 9, 0.0, "The program failed: "),
            (
                "class Yes:\n    def __eq__(s, o): return True\n    __repr__ = lambda s: '9'\nanswer = Yes()",
                8,
                0.0,
                "The program gives 9",
            ),
        ],
    )
    def test_values_and_feedback(self, program, gold, value, feedback):
        judge = MathProgram(sandbox=LocalSandbox(Limits(cpu_seconds=2, wall_seconds=5.0)))
        assert judge(completions=[program], answer=[gold]) == [value]
        assert judge.feedback(completions=[program], answer=[gold])[0].startswith(feedback)

    def test_gold_is_told_only_when_asked(self):
        question = {"completions": ["answer = 8"], "answer": [937]}
        assert "937" not in MathProgram(sandbox=SANDBOX).feedback(**question)[0]
        assert "937" in MathProgram(sandbox=SANDBOX, show_gold=True).feedback(**question)[0]

    def test_missing_gold_is_none(self):
        assert MathProgram(sandbox=SANDBOX)(completions=["answer = 8"], answer=[None]) == [None]


def plain(step):
    """A calculator mark as Python: no leading zeros."""
    return re.sub(r"(?<![\d.])0+(?=\d)", "", step)
