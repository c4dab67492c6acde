"""Programs whose value is the answer to a math problem (Self-Correct's mathematical program synthesis)."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction

from ..sandbox import Job, LocalSandbox, Result, Sandbox
from .answer_extraction import NUMBER, gold_answer
from .answer_writing import tidy
from .code_extraction import extract_code
from .common import LastBatch, completion_text, read_column, report_unjudged
from .math_equality import answers_equal
from .number_reading import plain_number


@dataclass(frozen=True)
class MathProgram:
    """
    Value function: 1 if the program in a completion computes the gold answer, else 0. A program's value is its
    variable `answer`, or the last number that it prints.

    From [Generating Sequences by Learning to Self-Correct](https://huggingface.co/papers/2211.00053), where the value
    of a program is whether it is right.

    Args:
        gold_column (`str`, *optional*, defaults to `"answer"`):
            Dataset column of the gold answer: a number, or text with one (`... #### 18`).
        tolerance (`float`, *optional*, defaults to `1e-6`):
            Relative difference up to which two numbers are equal (programs compute with floats).
        sandbox (`Sandbox`, *optional*):
            Defaults to `LocalSandbox()`.
        show_gold (`bool`, *optional*, defaults to `False`):
            Whether feedback may tell the gold answer.

    Example:

    ```python
    >>> from correction_trl.rewards import MathProgram

    >>> value = MathProgram()
    >>> value(completions=["answer = 16 - 3 - 4", "answer = 16 - 3"], answer=[9, 9])
    [1.0, 0.0]
    >>> value.feedback(completions=["answer = 16 - 3"], answer=[9])
    ['The program gives 13, which is wrong.']
    ```
    """

    gold_column: str = "answer"
    tolerance: float = 1e-6
    sandbox: Sandbox = field(default_factory=LocalSandbox)
    show_gold: bool = False
    last_batch: LastBatch = field(default_factory=LastBatch, init=False, repr=False, compare=False)

    __name__ = "math_program"

    def __call__(
        self, completions: list, log_metric: Callable[[str, float], None] | None = None, **columns
    ) -> list[float | None]:
        """One value per completion: 1.0, 0.0, or `None` where the sandbox failed or the gold answer is missing."""
        values, reasons = [], []
        for result, _, gold, verdict in self._judge(completions, columns):
            values.append(None if verdict is None else float(verdict))
            reasons.append(result.error or ("the gold answer is missing" if not gold else "it could not be compared"))
        return report_unjudged(self.__name__, values, reasons, log_metric)

    def feedback(self, completions: list, **columns) -> list[str]:
        """One text per completion: the error, or the value that the program gave; empty where not judged."""
        texts = []
        for result, value, gold, verdict in self._judge(completions, columns):
            if verdict is None:
                text = ""
            elif verdict:
                text = "The program gives the right value."
            elif value is not None:
                text = f"The program gives {value}, which is wrong."
            elif result.error:
                text = f"The program failed: {result.error}.\n{result.traceback}".strip()
            else:
                text = "The program gives no value: set the variable `answer` or print it."
            if self.show_gold and verdict is False:
                text += f" The right value is {gold}."
            texts.append(text)
        return texts

    def _judge(self, completions: list, columns: dict) -> list[tuple[Result, str | None, str, bool | None]]:
        golds = read_column(self.gold_column, self.__name__, columns, len(completions))
        golds = ["" if gold is None else gold_answer(gold) for gold in golds]
        codes = [extract_code(completion_text(completion)) for completion in completions]
        results = self.last_batch.judge([Job(program=code) for code in codes], self.sandbox.run)
        judged = []
        for result, gold in zip(results, golds, strict=True):
            value = program_value(result)
            if not result.judged or not gold:
                verdict = None
            elif value is None:
                verdict = False
            else:
                verdict = self._equal(gold, value)
            judged.append((result, value, gold, verdict))
        return judged

    def _equal(self, gold: str, value: str) -> bool | None:
        gold_number, number = plain_number(tidy(gold)), plain_number(tidy(value))
        if gold_number is not None and number is not None:
            return abs(gold_number - number) <= Fraction(self.tolerance) * max(abs(gold_number), abs(number))
        return answers_equal([gold], [value])[0]


def program_value(result: Result) -> str | None:
    """What a program that ran to its end computed, as text; `None` if it failed or gave nothing."""
    if result.status != "finished" or (result.error and result.answer is None):
        return None
    answer = result.answer
    while isinstance(answer, (list, tuple)) and len(answer) == 1:
        answer = answer[0]
    if isinstance(answer, (bool, int, Fraction, Decimal)):
        try:
            return str(answer)
        except ValueError:
            return "a number of too many digits"
    if isinstance(answer, float):
        # Written out: 1e-05 and 1e+16 are numbers like others.
        return format(Decimal(repr(answer)), "f") if math.isfinite(answer) else str(answer)
    if answer is not None:
        return str(answer)[:1000]
    lines = [line.strip() for line in result.stdout.splitlines() if line.strip()]
    if not lines:
        return None
    numbers = re.findall(NUMBER, lines[-1])
    return numbers[-1].strip(",").rstrip(".") if numbers else lines[-1][:1000]


math_program_accuracy = MathProgram()
math_program_feedback = math_program_accuracy.feedback
