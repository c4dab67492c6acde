"""Code that must pass tests, in the form of HumanEval or of MBPP, judged in a sandbox."""

from collections.abc import Callable
from dataclasses import dataclass, field

from ..sandbox import Job, LocalSandbox, Result, Sandbox
from .code_extraction import complete, extract_code, stub, tested_names
from .common import LastBatch, completion_text, read_column, report_unjudged


@dataclass(frozen=True)
class CodeTests:
    """
    Value function: whether the program in a completion passes its tests, or which share of them.

    The program runs in a sandbox, in another process than its tests: it cannot see them, exit for them,
    patch them or hand them an object that is equal to everything.

    Args:
        kind (`str`, *optional*, defaults to `"mbpp"`):
            `"mbpp"`: columns `test_list`, and `test_imports` or `test_setup_code` where there are any.
            `"humaneval"`: columns `prompt` (or `code_prompt`, as the trainer keeps `prompt` for itself), `test` (which
            defines `check(candidate)`) and `entry_point`; a completion is the whole function or only its body.
        share (`bool`, *optional*, defaults to `False`):
            Value is the share of tests passed instead of all or nothing. A test is an `assert` statement, counted once
            however often it runs.
        sandbox (`Sandbox`, *optional*):
            Defaults to `LocalSandbox()`.
        show_tests (`bool`, *optional*, defaults to `True`):
            Whether feedback quotes the failing assertion, which holds the expected result. Without, it tells the error
            and what the program did.

    Example:

    ```python
    >>> from correction_trl.rewards import CodeTests

    >>> completions = ["def double(x):\\n    return x + 2"]
    >>> test_list = [["assert double(2) == 4", "assert double(3) == 6"]]
    >>> CodeTests()(completions=completions, test_list=test_list)
    [0.0]
    >>> CodeTests(share=True)(completions=completions, test_list=test_list)
    [0.5]
    >>> print(CodeTests().feedback(completions=completions, test_list=test_list)[0])
    1 of 2 tests passed. This test failed: assert double(3) == 6
    The call (3) returned 5.
    ```
    """

    kind: str = "mbpp"
    share: bool = False
    sandbox: Sandbox = field(default_factory=LocalSandbox)
    show_tests: bool = True
    last_batch: LastBatch = field(default_factory=LastBatch, init=False, repr=False, compare=False)

    __name__ = "code_tests"

    def __post_init__(self):
        if self.kind not in ("mbpp", "humaneval"):
            raise ValueError(f"kind must be 'mbpp' or 'humaneval', got {self.kind!r}.")

    def __call__(
        self, completions: list, log_metric: Callable[[str, float], None] | None = None, **columns
    ) -> list[float | None]:
        """One value per completion, in [0, 1]; `None` where the sandbox failed or the tests cannot judge."""
        results = self._run(completions, columns)
        values = []
        for result in results:
            if not result.judged:
                values.append(None)
            elif self.share and result.total:
                values.append(result.passed / result.total)
            else:
                values.append(float(result.all_passed))
        return report_unjudged(self.__name__, values, [result.error for result in results], log_metric)

    def feedback(self, completions: list, **columns) -> list[str]:
        """One text per completion: the first failing assertion with a short traceback; empty where not judged."""
        return [self._explain(result) for result in self._run(completions, columns)]

    def _explain(self, result: Result) -> str:
        if not result.judged:
            return ""
        if result.all_passed:
            return "All tests passed."
        if not result.failures:
            text = f"The program failed: {result.error}."
            return f"{text}\n{result.traceback}".strip() if result.traceback else text
        failure = result.failures[0]
        counted = f"{result.passed} of {result.total} tests passed."
        if self.show_tests:
            text = f"{counted} This test failed: {failure.test}"
        else:
            text = f"{counted} A test failed."
        if failure.error not in ("", "AssertionError"):
            # The message of an assert is written by the test's author and may hold what was expected.
            told = failure.error if self.show_tests else failure.error.partition(":")[0]
            text += f"\n{told}"
        if failure.call:
            text += f"\nThe call {failure.call}."
        return f"{text}\n{failure.traceback}".strip() if failure.traceback else text

    def _run(self, completions: list, columns: dict) -> list[Result]:
        texts = [completion_text(completion) for completion in completions]
        rows = len(texts)
        if self.kind == "humaneval":
            prompts = read_column(
                "code_prompt" if "code_prompt" in columns else "prompt", self.__name__, prompt_column(columns), rows
            )
            tests = read_column("test", self.__name__, columns, rows)
            entry_points = read_column("entry_point", self.__name__, columns, rows)
            jobs = [
                Job(
                    program=complete(prompt, extract_code(text, [entry_point]), entry_point),
                    # The prompt's helpers (`poly` of HumanEval/32) are the tests' too, in a version the model has not
                    # touched.
                    setup=f"{stub(prompt)}\n{test}",
                    tests=("check(candidate)",),
                    entry_point=entry_point,
                )
                for prompt, text, test, entry_point in zip(prompts, texts, tests, entry_points, strict=True)
            ]
        else:
            test_lists = read_column("test_list", self.__name__, columns, rows)
            setups = [""] * rows
            for name in ("test_imports", "test_setup_code"):
                if name in columns:
                    more = read_column(name, self.__name__, columns, rows)
                    more = ["\n".join(lines) if isinstance(lines, list) else lines or "" for lines in more]
                    setups = [f"{setup}\n{lines}".strip() for setup, lines in zip(setups, more, strict=True)]
            jobs = [
                Job(program=extract_code(text, tested_names([setup, *tests])), tests=tuple(tests), setup=setup)
                for text, tests, setup in zip(texts, test_lists, setups, strict=True)
            ]
        return self.last_batch.judge(jobs, self.sandbox.run)


def prompt_column(columns: dict) -> dict:
    """TRL hands the column `prompt` to reward functions as `prompts`; conversational prompts are no code."""
    if "code_prompt" not in columns and "prompt" not in columns and "prompts" in columns:
        prompts = columns["prompts"]
        if all(isinstance(prompt, str) for prompt in prompts):
            return {**columns, "prompt": prompts}
    return columns


mbpp_tests = CodeTests(kind="mbpp")
mbpp_feedback = mbpp_tests.feedback
humaneval_tests = CodeTests(kind="humaneval")
humaneval_feedback = humaneval_tests.feedback
