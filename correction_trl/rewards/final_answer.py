r"""
Final answers of math and multiple-choice problems: GSM8K's `#### 18`, `\boxed{...}`, "The final answer is $...$", (B).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from .answer_extraction import HOW_TO_END, STYLES, Extraction, find_answer, gold_answer
from .common import LastBatch, after_thinking, completion_text, read_column, report_unjudged
from .math_equality import answers_equal


@dataclass(frozen=True)
class FinalAnswer:
    r"""
    Value function: 1 if the final answer of a completion equals the gold one, else 0. Numbers and LaTeX are compared
    by what they mean (`\frac{1}{2}` is 0.5), through `math-verify` with a time limit that holds in any thread.

    `None` where it cannot be judged: the gold answer is missing or cannot be read, or the comparison took too long.

    Args:
        style (`str`, *optional*, defaults to `"auto"`):
            Where the answer stands: `"boxed"`, `"gsm8k"` (`#### 18`), `"final_answer"` ("The final answer is $18$. I
            hope it is correct."), `"last_number"`, `"choice"` (a letter), or `"auto"`, the first of the former three
            that is there. A reasoning model's thoughts (up to `</think>`) are left out.
        gold_column (`str`, *optional*, defaults to `"answer"`):
            Dataset column of the gold answer: a number, an expression, a GSM8K answer text, a solution with
            `\boxed{...}`, or a letter.
        show_gold (`bool`, *optional*, defaults to `False`):
            Whether feedback may tell the gold answer.
        choices (`str`, *optional*, defaults to `"ABCDE"`):
            Letters of a multiple choice.
        timeout (`float`, *optional*, defaults to `5.0`):
            Seconds for one comparison.
        workers (`int`, *optional*):
            Processes that compare. Defaults to the number of CPUs, at most 8.

    Example:

    ```python
    >>> from correction_trl.rewards import FinalAnswer

    >>> value = FinalAnswer()
    >>> value(completions=[r"It is \boxed{0.5}.", r"It is \boxed{2}."], answer=[r"\frac{1}{2}", r"\frac{1}{2}"])
    [1.0, 0.0]
    >>> value.feedback(completions=[r"It is \boxed{2}."], answer=[r"\frac{1}{2}"])
    ['The final answer, “2” in “\\boxed{2}”, is wrong.']
    ```
    """

    style: str = "auto"
    gold_column: str = "answer"
    show_gold: bool = False
    choices: str = "ABCDE"
    timeout: float = 5.0
    workers: int | None = None
    last_batch: LastBatch = field(default_factory=LastBatch, init=False, repr=False, compare=False)

    __name__ = "final_answer"

    def __post_init__(self):
        if self.style not in STYLES:
            raise ValueError(f"style must be one of {', '.join(STYLES)}, got {self.style!r}.")

    def __call__(
        self, completions: list, log_metric: Callable[[str, float], None] | None = None, **columns
    ) -> list[float | None]:
        """One value per completion: 1.0, 0.0 or `None`."""
        values, reasons = [], []
        for _, gold, verdict in self._judge(completions, columns):
            values.append(None if verdict is None else float(verdict))
            reasons.append("it could not be compared with the gold answer" if gold else "the gold answer is missing")
        return report_unjudged(self.__name__, values, reasons, log_metric)

    def feedback(self, completions: list, **columns) -> list[str]:
        """One text per completion: what is wrong, and where; empty where it could not be judged."""
        texts = []
        for found, gold, verdict in self._judge(completions, columns):
            if verdict is None:
                text = ""
            elif verdict:
                text = "The final answer is right."
            elif found.answer is not None:
                text = f"The final answer, “{found.answer}” in “{found.place}”, is wrong."
            else:
                text = f"{found.problem or 'No final answer was found.'} {HOW_TO_END[self.style]}"
            if self.show_gold and verdict is False:
                text += f" The right answer is {gold}."
            texts.append(text)
        return texts

    def _judge(self, completions: list, columns: dict) -> list[tuple[Extraction, str, bool | None]]:
        golds = read_column(self.gold_column, self.__name__, columns, len(completions))
        golds = ["" if gold is None else gold_answer(gold) for gold in golds]
        texts = [after_thinking(completion_text(completion)) for completion in completions]
        return self.last_batch.judge(list(zip(texts, golds, strict=True)), self._judge_all)

    def _judge_all(self, items: list[tuple[str, str]]) -> list[tuple[Extraction, str, bool | None]]:
        judged = []
        for text, gold in items:
            found = find_answer(text, self.style, self.choices)
            verdict = None
            if gold and found.answer is None:
                verdict = False
            elif gold and self.style == "choice":
                verdict = found.answer == gold.strip("() .").upper()
            judged.append((found, gold, verdict))
        open_rows = [row for row, (found, gold, verdict) in enumerate(judged) if gold and verdict is None]
        answers = [judged[row][0].answer for row in open_rows]
        golds = [judged[row][1] for row in open_rows]
        for row, verdict in zip(open_rows, answers_equal(golds, answers, self.timeout, self.workers), strict=True):
            judged[row] = (judged[row][0], judged[row][1], verdict)
        return judged


final_answer_accuracy = FinalAnswer()
final_answer_feedback = final_answer_accuracy.feedback
gsm8k_accuracy = FinalAnswer(style="gsm8k")
boxed_accuracy = FinalAnswer(style="boxed")
last_number_accuracy = FinalAnswer(style="last_number")
choice_accuracy = FinalAnswer(style="choice", gold_column="correct")
