"""
Whether two final answers are the same, numbers and LaTeX alike, by `math-verify` in a pool of worker processes.

math-verify bounds its time with an alarm signal, which fails outside the main thread and cannot interrupt a big power;
silent zeros and hung trainings came of it (Math-Verify#65, verl#5839). Here the parent keeps the time and kills.
"""

import functools
import json
import logging
import os
import queue
import re
import select
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

from ..sandbox.local import usable_cpus
from .answer_extraction import NUMBER


logger = logging.getLogger(__name__)

START_SECONDS = 120.0  # to import sympy on a busy machine
JOBS_PER_WORKER = 5000  # then it is replaced: sympy's caches grow


def answers_equal(
    golds: Sequence[str], answers: Sequence[str], timeout: float = 5.0, workers: int | None = None
) -> list[bool | None]:
    r"""
    Compares answers with gold answers, pairwise.

    Args:
        golds (`list[str]`), answers (`list[str]`):
            Answers as they are written, without `\boxed` or dollar signs around.
        timeout (`float`, *optional*, defaults to `5.0`):
            Seconds for one pair. A worker that takes longer is killed and replaced.
        workers (`int`, *optional*):
            Worker processes. Defaults to the number of CPUs this process may use, at most 8.

    Returns:
        `list[bool | None]`: `None` where it could not be judged: the time was up, the worker died, or the gold answer
        cannot be read.

    Raises:
        ImportError: If math-verify is not installed and a pair needs it.

    Example:

    ```python
    >>> answers_equal([r"\frac{1}{2}", "18"], ["0.5", "17"])
    [True, False]
    ```
    """
    verdicts: list[bool | None] = [quick_verdict(gold, answer) for gold, answer in zip(golds, answers, strict=True)]
    hard = [index for index, verdict in enumerate(verdicts) if verdict is None]
    if hard:
        count = workers or min(usable_cpus(), 8)
        pairs = [(golds[index], answers[index]) for index in hard]
        for index, verdict in zip(hard, worker_pool(count, os.getpid()).judge(pairs, timeout), strict=True):
            verdicts[index] = verdict
    return verdicts


def quick_verdict(gold: str, answer: str) -> bool | None:
    """Decides without a parser what needs none: equal writing, and two plain numbers. `None`: needs a closer look."""
    gold, answer = tidy(gold), tidy(answer)
    if gold == answer:
        return True
    if not answer or len(answer) > max(2000, 10 * len(gold)):
        return False  # nobody's idea of an answer, and too long to read
    gold_number, answer_number = plain_number(gold), plain_number(answer)
    if gold_number is not None and answer_number is not None:
        return gold_number == answer_number
    if gives_two_answers(gold, answer):
        return False
    # math-verify drops the base of a numeral and the power of a unit: 2516_8 and 2516_9 would be the same.
    for pattern in (r"\d_\{?(\d+)\}?$", r"\\(?:text|mbox|mathrm)\{[^{}]*\}(\^\{?\d\}?)$"):
        found = [re.search(pattern, text) for text in (gold, answer)]
        if all(found) and found[0].group(1).strip("^{}") != found[1].group(1).strip("^{}"):
            return False
    return None


def gives_two_answers(gold: str, answer: str) -> bool:
    r"""
    Whether an answer hedges in a way that math-verify reads as the last or best of its parts: `17 \lor 18`, `17 = 18`,
    two lines, or a negation.
    """
    for sign in (r"\lor", r"\vee", r"\neg", r"\lnot", "$"):
        if sign in answer and sign not in gold:
            return True
    if r"\\" in answer and r"\begin" not in answer:
        return True
    if re.search(r"\d \d", answer) and not re.search(r"\d \d", gold):
        return True  # read as a product
    sides = answer.split("=")
    if len(sides) > 1 and "=" not in gold:
        # 12^2 = 144 says one thing; 17 = 18 says two.
        numbers = {plain_number(side) for side in sides} - {None}
        return len(numbers) > 1
    return False


def tidy(text: str) -> str:
    """One writing for what means the same in print: sizes, spaces, dollars, a point at the end."""
    text = text.strip().strip("$").strip()
    # Between digits a space means something, unless it parts thousands.
    text = re.sub(r"(?<=\d)(?:\s|\\,|\\ |~)+(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<=\d)(?:\s|\\[,;:! ]|\\q?quad|~)+(?=\d)", " ", text)
    text = re.sub(r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[,;:!]|\\q?quad(?![A-Za-z])|\\ (?!\d)|~", "", text)
    text = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)
    text = re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text)
    return text.rstrip(".").replace("−", "-")


def plain_number(tidied: str) -> Fraction | None:
    """The value of a plainly written number (signs, thousands, a currency sign, a unit in words), or `None`."""
    found = re.fullmatch(rf"([-+]?)(?:\\?[$€£])?({NUMBER})(?:[A-Za-z]{{3,}}|\\text\{{[A-Za-z.]+\}})?", tidied)
    if found is None:
        return None
    digits = found.group(2)
    # Commas must stand between thousands: 1,2,3 is a list.
    if "," in digits and not re.fullmatch(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d*)?", digits):
        return None
    if len(digits) > 1000:
        return None
    try:
        return Fraction(f"{found.group(1)}{digits.replace(',', '').rstrip('.')}")
    except ValueError:  # two signs
        return None


class Worker:
    """One worker process. `judge` returns its verdict, or `None` after killing it."""

    def __init__(self):
        self.process = None
        self.jobs = 0

    def start(self):
        self.stop()
        command = [sys.executable, "-B", str(Path(__file__).with_name("math_worker.py"))]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        self.jobs = 0
        if self.read(START_SECONDS) != json.dumps("ready"):
            self.stop()
            raise ImportError("The math worker did not start: install math-verify with `pip install math-verify`.")

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            try:
                self.process.stdin.close()
            except OSError:
                pass  # what it did not read
            self.process.stdout.close()
            self.process = None

    def read(self, timeout: float) -> str:
        """One line, or an empty one if none came in time or the worker died."""
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        return self.process.stdout.readline().decode().rstrip() if ready else ""

    def judge(self, pair: tuple[str, str], timeout: float) -> bool | None:
        if self.process is None or self.process.poll() is not None or self.jobs >= JOBS_PER_WORKER:
            self.start()
        self.jobs += 1
        try:
            self.process.stdin.write((json.dumps(pair) + "\n").encode())
            self.process.stdin.flush()
            line = self.read(timeout)
        except OSError:
            line = ""
        if not line:
            logger.warning("math-verify did not judge an answer within %g seconds, or died of it.", timeout)
            self.stop()
            return None
        return json.loads(line)


class WorkerPool:
    """Worker processes that start when needed and end with this process (their standard input closes)."""

    def __init__(self, count: int):
        self.count = count
        self.idle = queue.SimpleQueue()
        for _ in range(count):
            self.idle.put(Worker())

    def judge(self, pairs: Sequence[tuple[str, str]], timeout: float) -> list[bool | None]:
        def one(pair):
            worker = self.idle.get()
            try:
                return worker.judge(pair, timeout)
            finally:
                self.idle.put(worker)

        with ThreadPoolExecutor(max_workers=min(self.count, len(pairs))) as threads:
            return list(threads.map(one, pairs))


@functools.lru_cache
def worker_pool(count: int, process_id: int) -> WorkerPool:
    """The pool of this process; `process_id` is there because a forked child must not share its parent's workers."""
    return WorkerPool(count)
