"""
Forms in which models write programs. Each is a function from code to a completion, so that the same form can be filled
with a right program (value 1) and with a wrong one (value 0).

`python tests/rewards/program_forms.py` prints how many of them are judged wrong.
"""

import textwrap

from correction_trl.rewards import CodeTests
from correction_trl.sandbox import Limits, LocalSandbox


PROMPT = 'from typing import List\n\n\ndef peaks(xs: List[int]) -> List[int]:\n    """Running maximum of xs."""\n'
TESTS = ["assert peaks([1, 3, 2]) == [1, 3, 3]", "assert peaks([]) == []"]
HUMANEVAL_TEST = "def check(candidate):\n" + textwrap.indent("\n".join(TESTS).replace("peaks", "candidate"), "    ")
HEAD = "def peaks(xs):\n"
RIGHT = "    best, seen = [], []\n    for x in xs:\n        seen.append(x)\n        best.append(max(seen))\n"
RIGHT += "    return best\n"
WRONG = RIGHT.replace("max", "min")
PRE = "import itertools\n\n"
HELPER = "def largest(seen):\n    return max(seen)\n"


def indent(code, by="    "):
    return textwrap.indent(code, by)


def fenced(code, info="python", fence="```"):
    return f"{fence}{info}\n{code}{fence}\n"


# Whole programs: MBPP and, with the prompt before them, HumanEval.
WHOLE = {
    "bare": lambda c: c,
    "fenced": lambda c: fenced(c),
    "no language": lambda c: fenced(c, ""),
    "capital language": lambda c: fenced(c, "Python"),
    "python3.11": lambda c: fenced(c, "python3.11"),
    "title attribute": lambda c: fenced(c, 'python title="a.py"'),
    "pandoc attributes": lambda c: fenced(c, "{.python .numberLines}"),
    "space before the language": lambda c: fenced(c, " python"),
    "file name as language": lambda c: fenced(c, "solution.py"),
    "language and file name": lambda c: fenced(c, "python:src/solution.py"),
    "unknown language": lambda c: fenced(c, "starlark"),
    "tildes": lambda c: fenced(c, "python", "~~~"),
    "tildes around backticks": lambda c: fenced('"""\n```\nx\n```\n"""\n' + c, "python", "~~~"),
    "four backticks": lambda c: fenced(c, "python", "````"),
    "markdown around it": lambda c: fenced("# Solution\n\n" + fenced(c), "markdown", "````"),
    "in a list": lambda c: "1. Solution:\n\n" + indent(fenced(c), "   ") + "\n2. Done.\n",
    "behind a list's mark": lambda c: "- " + indent(fenced(c), "  ").lstrip(),
    "deep in a list": lambda c: "* a\n    * b\n\n" + indent(fenced(c), "        "),
    "tab before the fence": lambda c: indent(fenced(c), "\t"),
    "closing fence less deep": lambda c: "  ```python\n" + indent(c, "  ") + "```\n",
    "in a quote": lambda c: indent(fenced(c), "> "),
    "fence behind words": lambda c: "Here is the code: ```python\n" + c + "```\nDone.",
    "closed behind the code": lambda c: "```python\n" + c.rstrip() + "```\nDone.",
    "never closed": lambda c: "```python\n" + c,
    "first block never closed": lambda c: "```python\n" + c + "\nUsage:\n```python\nprint(peaks([1]))\n```\n",
    "windows line ends": lambda c: fenced(c).replace("\n", "\r\n"),
    "usage block after it": lambda c: fenced(c) + "Usage:\n" + fenced("print(peaks([1, 2]))\n"),
    "usage with imports": lambda c: fenced(c) + fenced("from solution import peaks\nprint(peaks([1]))\n"),
    "test block after it": lambda c: fenced(c) + fenced("assert peaks([2, 1]) == [2, 2]\n"),
    "output block after it": lambda c: fenced(c) + "Output:\n" + fenced("[1, 3, 3]\n", ""),
    "both unnamed, output last": lambda c: fenced(c, "") + "Output:\n" + fenced("[1, 3, 3]\n", ""),
    "shell block after it": lambda c: fenced(c) + "Run:\n" + fenced("python solution.py\n", "bash"),
    "json block after it": lambda c: fenced(c) + fenced('{"peaks": [1]}\n', "json"),
    "signature after it": lambda c: fenced(c) + "Signature:\n" + fenced("def peaks(xs): ...\n"),
    "draft before it": lambda c: fenced(HEAD + "    return xs\n") + "Wait, no. Corrected:\n" + fenced(c),
    "broken draft after it": lambda c: fenced(c) + "Or:\n```python\ndef peaks(xs):\n    return [max(",
    "helper in a block before": lambda c: fenced(HELPER) + fenced(c.replace("max(", "largest(")),
    "helper in a block after": lambda c: fenced(c.replace("max(", "largest(")) + "where\n" + fenced(HELPER),
    "imports in a block before": lambda c: fenced(PRE)
    + fenced(c.replace("max(seen)", "max(itertools.chain(seen))")),
    "class in a block before": lambda c: fenced("class Box:\n    def __init__(self):\n        self.items = []\n")
    + fenced(c.replace("best, seen = [], []", "best, seen = Box().items, []")),
    "words before and after": lambda c: "Here is the function.\n\n" + c + "\nIt keeps a running maximum.",
    "words between imports and code": lambda c: "First:\n\nimport itertools\n\nThen the function:\n\n"
    + c.replace("max(seen)", "max(itertools.chain(seen))") + "\nHope this helps!",
    "code outside, shell in a fence": lambda c: c + "\nRun it with\n\n" + fenced("python a.py\n", "sh"),
    "[BEGIN]": lambda c: "[BEGIN]\n" + c + "[DONE]\n",
    "[PYTHON]": lambda c: "[PYTHON]\n" + c + "[/PYTHON]\n",
    "answer tags": lambda c: "<answer>\n" + c + "</answer>",
    "answer tags around a fence": lambda c: "<answer>\n" + fenced(c) + "</answer>",
    "after thoughts": lambda c: "<think>\n" + fenced(HEAD + "    return xs\n") + "</think>\n" + fenced(c),
    "all of it indented": lambda c: fenced(indent(c)),
    "interactive session": lambda c: fenced(
        "".join(f"{'...' if line[:1] == ' ' else '>>>'} {line}\n" for line in c.splitlines()) + ">>> peaks([1])\n[1]\n"
    ),
    "notebook commands": lambda c: fenced("!pip install numpy\n%matplotlib inline\n" + c),
    "non-breaking spaces": lambda c: fenced(c.replace("    ", "\u00a0" * 4)),
    "a fence in the docstring": lambda c: fenced(
        c.replace(HEAD, HEAD + '    """\n    ```\n    peaks([1])\n    ```\n    """\n')
    ),
    "a lambda": lambda c: fenced(c.replace("def peaks", "def inner") + "\npeaks = lambda xs: inner(xs)\n"),
    "a main block": lambda c: fenced(c + '\nif __name__ == "__main__":\n    print(peaks(input()))\n'),
    "own examples": lambda c: fenced(c + "\nprint(peaks([1]))\n"),
    "defined within if": lambda c: fenced("if True:\n" + indent(c)) + fenced("peaks([1])\n"),
    "future import": lambda c: fenced("from __future__ import annotations\n" + c),
}  # fmt: skip

# Bodies alone, for HumanEval.
BODIES = {
    "body": lambda b: b,
    "fenced body": lambda b: fenced(b),
    "body without its first indentation": lambda b: b.lstrip(),
    "body without any": lambda b: textwrap.dedent(b),
    "fenced, without its first": lambda b: fenced(b.lstrip()),
    "fenced, without any": lambda b: fenced(textwrap.dedent(b)),
    "two spaces": lambda b: b.replace("    ", "  "),
    "two spaces, without its first": lambda b: b.replace("    ", "  ").lstrip(),
    "tabs": lambda b: b.replace("    ", "\t"),
    "too deep": lambda b: indent(b),
    "words after it": lambda b: b + "\nThis keeps a running maximum.\n",
    "no indentation, words after it": lambda b: textwrap.dedent(b) + "\nThis keeps a running maximum.\n",
    "first indentation lost, words after it": lambda b: b.lstrip() + "\nThis keeps a running maximum.\n",
    "another function after it": lambda b: b + "\n\ndef other(x):\n    return x\n",
    "own test after it": lambda b: b + "\n\nassert peaks([]) == []\n",
    "first indentation lost, own test after it": lambda b: b.lstrip() + "\n\nassert peaks([]) == []\n",
    "empty line before it": lambda b: "\n" + b,
    "a comment first": lambda b: "    # one pass\n" + b,
    "one line, no indentation": lambda b: (
        f"return [{'max' if 'max' in b else 'min'}(xs[:i + 1]) for i in range(len(xs))]"
    ),
    "an inner function": lambda b: indent(HELPER) + b.replace("max(", "largest("),
}  # fmt: skip


def rows():
    """`(name, kind, right completion, wrong completion)` of every form."""
    for name, form in WHOLE.items():
        for kind in ("mbpp", "humaneval"):
            yield f"{kind}: {name}", kind, form(HEAD + RIGHT), form(HEAD + WRONG)
    for name, form in BODIES.items():
        yield f"humaneval: {name}", "humaneval", form(RIGHT), form(WRONG)


def misjudged() -> list[str]:
    """What is judged otherwise than it should be."""
    sandbox = LocalSandbox(Limits(cpu_seconds=10, wall_seconds=20.0))
    found = []
    for kind in ("mbpp", "humaneval"):
        forms = [row for row in rows() if row[1] == kind]
        completions = [text for row in forms for text in row[2:]]
        columns = {"test_list": [TESTS] * len(completions)}
        if kind == "humaneval":
            columns = {"prompt": PROMPT, "test": HUMANEVAL_TEST, "entry_point": "peaks"}
            columns = {name: [value] * len(completions) for name, value in columns.items()}
        values = CodeTests(kind=kind, sandbox=sandbox)(completions=completions, **columns)
        for position, (name, *_) in enumerate(forms):
            for what, expected, value in zip(("right", "wrong"), (1.0, 0.0), values[2 * position :], strict=False):
                if value != expected:
                    found.append(f"{name}, {what}: {value}")
    return found


if __name__ == "__main__":
    wrong = misjudged()
    print("\n".join(wrong))
    print(f"{len(wrong)} of {2 * len(list(rows()))} misjudged")
