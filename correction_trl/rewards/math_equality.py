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
from .answer_writing import plain_text, tidy
from .number_reading import (
    TRIGONOMETRY,
    decimal_form,
    exact_value,
    number_in_words,
    quantities_equal,
    read_quantity,
    same_unit,
    split_unit,
)


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
        pairs = [(formula(golds[index]), formula(answers[index])) for index in hard]
        for index, verdict in zip(hard, worker_pool(count, os.getpid()).judge(pairs, timeout), strict=True):
            verdicts[index] = verdict
    return verdicts


def quick_verdict(gold: str, answer: str) -> bool | None:
    """Decides without a parser what needs none: equal writing, numbers, words. `None`: needs a closer look."""
    if len(answer) > max(2000, 10 * len(gold)):
        return gold.strip() == answer.strip()  # nobody's idea of an answer, and too long to read
    gold, answer = tidy(gold), tidy(answer)
    if not answer:
        return False if gold else None
    try:
        return compare(gold, answer)
    except RecursionError:  # a thousand brackets, or relation signs
        return None


def compare(gold: str, answer: str) -> bool | None:
    """The same of two answers in one writing."""
    if without_spaces(gold) == without_spaces(answer):
        return True
    decimals = decimal_form(gold), decimal_form(answer)
    if None not in decimals:
        return decimals[0] == decimals[1]
    quantities = read_quantity(gold), read_quantity(answer)
    if (quantities[0] is None) != (quantities[1] is None) and any(
        quantity and quantity.unit for quantity in quantities
    ):
        # 5m is a product, unless the other answer has a unit as well.
        quantities = tuple(read_quantity(NUMBER_AND_LETTER.sub(r"\1 \2", text)) for text in (gold, answer))
    if None not in quantities:
        return quantities_equal(*quantities)
    for reading in (compare_numerals, compare_words, compare_times, compare_relations, compare_lists):
        verdict = reading(gold, answer)
        if verdict is not None:
            return verdict
    if gives_two_answers(gold, answer) or says_more(gold) != says_more(answer):
        return False
    units = split_unit(gold), split_unit(answer)
    if same_unit(units[0][1], units[1][1]) is False:
        return False
    if units[0][1] or units[1][1]:
        cores = [core for core, _, _ in units]
        return True if without_spaces(cores[0]) == without_spaces(cores[1]) else None
    return None


NUMBER_AND_LETTER = re.compile(r"(\d)([A-Za-z])$")


def without_spaces(text: str) -> str:
    """Spaces part digits from digits and words from words; elsewhere they mean nothing, as capitals of words do."""
    return CAPITALISED.sub(lambda match: match.group().lower(), MEANS_NOTHING.sub("", text))


CAPITALISED = re.compile(r"(?<![A-Za-z\\])[A-Z][a-z]{2,}")
MEANS_NOTHING = re.compile(r"(?<![\dA-Za-z]) | (?![\dA-Za-z])|(?<=\d) (?=[A-Za-z])|(?<=[A-Za-z]) (?=\d)")
BASE = re.compile(
    r"(?<![\dA-Fa-f])(?=[A-Fa-f]*\d)([\dA-Fa-f]+)"
    r"(?:_ ?\{?\(?(?:\\text\{)?\(?(\d{1,2}|[a-z]{3,8})\)?\}{0,2}|(?: \\text\{| )base[ -]?(\d{1,2})\}?)"
)
SUBSCRIPTED_DIGIT = re.compile(r"\d ?_")


def compare_numerals(gold: str, answer: str) -> bool | None:
    """Numerals with a base, 2516_8, of which math-verify reads the digits alone."""
    found = [BASE.fullmatch(text) for text in (gold, answer)]
    if all(found):
        bases = [match.group(2) or match.group(3) for match in found]
        bases = [base if base.isdigit() else str(number_in_words(base)) for base in bases]
        return bases[0] == bases[1] and found[0].group(1).upper() == found[1].group(1).upper()
    return False if any(found) or any(SUBSCRIPTED_DIGIT.search(text) for text in (gold, answer)) else None


LETTERS = re.compile(r"[A-Za-z]+")
VARIABLES = re.compile(r"[a-d]+|[i-n]+|[p-t]+|[u-z]+|[^aeiou]{1,4}")
CHOICE = re.compile(r"(?:\\text\{)?\(?([A-Z])\)?\}?(?:[.:) ].*)?")


def compare_words(gold: str, answer: str) -> bool | None:
    """Answers in words, by their letters; BAC and ABC are not the same, and neither are A and a."""
    words = [plain_text(text) for text in (gold, answer)]
    if None not in words:
        if words[0] == words[1]:
            return True
        if all(word.isalpha() and word.islower() and VARIABLES.fullmatch(word) for word in words):
            return None if sorted(words[0]) == sorted(words[1]) else False  # xyz and zyx are one product
        return False
    named = [NAMED.sub("", text) for text in (gold, answer)]
    if any(word is not None and len(word) > 2 and not VARIABLES.fullmatch(word) for word in words):
        return False  # a word and a formula
    if all(LETTERS.fullmatch(name.strip()) for name in named) and named[0].strip().isupper():
        return named[0].strip() == named[1].strip() if gold != named[0] and answer != named[1] else None
    return None


NAMED = re.compile(r"\\(?:angle|triangle|overline|vec|text)\{?|[{}]|^angle |^triangle ")
TIME = re.compile(r"(\d{1,2})(?::([0-5]\d))?(?: ?(?:\\text\{ ?)?([AaPp])\.? ?[Mm]\.?\}?)?")
RATIO = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?(?::|to|\\text\{to\}) ?(\d{1,9}(?:\.\d{1,9})?)")


def compare_times(gold: str, answer: str) -> bool | None:
    """Times of day and ratios: 3:45 is no number, and 3:4 is 6:8."""
    times = [TIME.fullmatch(text) for text in (gold, answer)]
    if all(times) and any(time.group(2) for time in times):
        clocks = [(int(time.group(1)), int(time.group(2) or 0)) for time in times]
        halves = {time.group(3).lower() for time in times if time.group(3)}
        return clocks[0] == clocks[1] and len(halves) < 2
    if any(times) and any(time and time.group(2) for time in times):
        return False
    ratios = [RATIO.fullmatch(text) for text in (gold, answer)]
    if any(ratios):
        shares = [
            ratio and Fraction(ratio.group(2)) and Fraction(ratio.group(1)) / Fraction(ratio.group(2))
            for ratio in ratios
        ]
        for place, text in enumerate((gold, answer)):
            if ratios[place] is None and ("/" in text or "frac" in text or "." in text):
                shares[place] = exact_value(text)
        return None not in shares and shares[0] == shares[1]
    return None


RELATION = re.compile(r"\\(?:ne|le|ge|approx|sim|in|notin|neg|cong|equiv)(?![A-Za-z])|[<>=]")
HEDGE = re.compile(
    r"(?i)(?:\\text\{)?(not|at least|at most|less than|more than|greater than|about|approximately|fewer than|over"
    r"|under|up to)\b"
)
SUBJECT = re.compile(
    r"(?:[A-Za-z]{1,20}|\\text\{[^{}=]{1,60}\}|(?:m ?)?\\[A-Za-z]{1,12} ?[A-Z]{0,3}|[A-Za-z]_\{?\w{1,3}\}?"
    r"|[A-Za-z] ?\([A-Za-z]\)|\([a-z](?:, ?[a-z]){1,3}\))"
    r" ?(?:=|\\in(?![A-Za-z])) ?(?=[^=])"
)


SWAPPED = re.compile(r"([^=<>a-zA-Z]{1,200})=([a-z])")


def compare_relations(gold: str, answer: str) -> bool | None:
    r"""`\ne 17` and `< 17` are not 17, which math-verify reads in them; `x = 17` is, and so is `6 \cdot 7 = 42`."""
    for pattern in (LEADING_RELATION, HEDGE):
        heads = [pattern.match(text) for text in (gold, answer)]
        if any(heads):
            if not all(heads) or heads[0].group().strip().lower() != heads[1].group().strip().lower():
                return False
            return compare(gold[heads[0].end() :].strip(), answer[heads[1].end() :].strip())
    for mark in (r"\approx", r"\sim"):
        if (mark in gold) != (mark in answer):
            return False
    relations = [RELATION.search(text) for text in (gold, answer)]
    if bool(relations[0]) == bool(relations[1]):
        return None
    text, other = (gold, answer) if relations[0] else (answer, gold)
    if swapped := SWAPPED.fullmatch(text):
        text = f"{swapped.group(2)}={swapped.group(1)}"  # 12 = x
    if (ranges := intervals(text)) and other[:1] in ("(", "["):
        return (
            in_any_order(ranges, other.split(r"\cup")) if relations[0] else in_any_order(other.split(r"\cup"), ranges)
        )
    subject = SUBJECT.match(text)
    if subject and not RELATION.search(text, subject.end()):
        rest = text[subject.end() :]
        return compare(rest, other) if relations[0] else compare(other, rest)
    if "=" in text and "," not in text and not LIST_SPLIT.search(text):
        # 12^2 = 144 says one thing; 17 = 18 says two.
        values = [exact_value(side) for side in text.split("=")]
        if None not in values:
            verdict = len(set(values)) == 1
            return compare(other, text.split("=")[-1]) if verdict else False
    return None


RANGE = re.compile(r"(?:([^<>=\\]{1,60}|-?\\infty ?)(<|\\le) ?)?([a-z]) ?(<|>|\\le|\\ge) ?([^<>=]{1,60})")


def intervals(text: str) -> list[str] | None:
    r"""`x < -2 or x > 3` as `(-\infty,-2)` and `(3,\infty)`; `None` if it is anything else."""
    found = [RANGE.fullmatch(part) for part in OR.split(text)]
    if not all(found) or len({match.group(3) for match in found}) > 1:
        return None
    ranges = []
    for low, low_sign, _, sign, high in (match.groups() for match in found):
        if low is None and sign in (">", r"\ge"):
            low, low_sign, high, sign = high, "<" if sign == ">" else r"\le", r"\infty", "<"
        elif sign in (">", r"\ge"):
            return None
        ends = "(" if low_sign in (None, "<") else "[", ")" if sign == "<" else "]"
        ranges.append(f"{ends[0]}{(low or '-' + INFINITY).strip()},{high.strip()}{ends[1]}")
    return ranges


INFINITY = r"\infty"
OR = re.compile(r" ?(?:\\text\{ ?or ?\}|(?<![A-Za-z\\])or(?![A-Za-z])) ?")
LEADING_RELATION = re.compile(r" ?(?:\\(?:ne|le|ge|approx|sim|neg|not|notin)(?![A-Za-z])|[<>~]) ?")
AND_OR = r"(?:\\text\{ ?|(?<![A-Za-z\\]))(?:and|or)(?: ?\}|(?![A-Za-z]))"
LIST_SPLIT = re.compile(rf" ?(?:[,;] ?(?:{AND_OR})?|{AND_OR}) ?")
SET_BUILDER = re.compile(r"\\\{ ?[a-z] ?(?:\\in ?(?:\\mathbb\{?R\}?|R) ?)?[:|] ?(.{1,200})\\\}")
BRACKETS = {"(": ")", "[": "]"}


def compare_lists(gold: str, answer: str) -> bool | None:
    """Pairs and intervals of the same brackets part by part, in their order; lists and sets in any."""
    built = [SET_BUILDER.fullmatch(text) for text in (gold, answer)]
    if any(built):
        gold, answer = (
            match.group(1).strip() if match else text for match, text in zip(built, (gold, answer), strict=True)
        )
        return compare(gold, answer)
    brackets = [bracketed(text) for text in (gold, answer)]
    if all(brackets):
        if brackets[0][0] != brackets[1][0]:
            # Beside infinity, either bracket means the same; ]1,2[ is left to math-verify.
            return False if r"\infty" not in gold + answer else None
        return in_order(brackets[0][1], brackets[1][1])
    if any(brackets) and any(text.startswith(r"\{") and text.endswith(r"\}") for text in (gold, answer)):
        return False
    return compare_parts(gold, answer)


def compare_parts(gold: str, answer: str) -> bool | None:
    """Lists and sets, each part once and in any order; `None` where neither is one."""
    parts = [parts_of(text) for text in (gold, answer)]
    if max(map(len, parts)) < 2:
        return None
    subjects = {SUBJECT.match(part).group() if SUBJECT.match(part) else "" for side in parts for part in side}
    if "" in subjects and len(subjects) == 2:
        parts = [
            [part[SUBJECT.match(part).end() :] if SUBJECT.match(part) else part for part in side] for side in parts
        ]
    parts = [list(dict.fromkeys(side)) for side in parts]
    if any(RELATION.search(part) for side in parts for part in side) and len(parts[0]) != len(parts[1]):
        return False if min(map(len, parts)) > 0 and "=" in gold + answer else None
    if len(parts[0]) != len(parts[1]):
        return False
    return in_any_order(*parts)


def bracketed(text: str) -> tuple[str, list[str]] | None:
    """The brackets and the parts of `(1,2)` or `[1,2)`; `None` for anything else."""
    if len(text) < 3 or text[0] not in "([" or text[-1] not in ")]":
        return None
    parts = split_outside(text[1:-1], ",;")
    return None if parts is None or len(parts) < 2 else (text[0] + text[-1], parts)


def split_outside(text: str, signs: str) -> list[str] | None:
    """Splits at signs outside all brackets; `None` if brackets do not match up."""
    parts, depth, start = [], 0, 0
    for place, sign in enumerate(text):
        if sign in "([{":
            depth += 1
        elif sign in ")]}":
            depth -= 1
            if depth < 0:
                return None
        elif depth == 0 and sign in signs:
            parts.append(text[start:place].strip())
            start = place + 1
    return [*parts, text[start:].strip()] if depth == 0 else None


def parts_of(text: str) -> list[str]:
    r"""The parts of `1, 2 and 3` or `\{1, 2, 3\}`, with both signs of `\pm`; one part for anything else."""
    if text.startswith(r"\{") and text.endswith(r"\}"):
        text = text[2:-2]
    text = LIST_SPLIT.sub(lambda match: "," if match.group().strip() not in ",;" else match.group().strip(), text)
    parts = split_outside(text, ",;")
    if parts is None:
        return [text]
    parts = [part for part in parts if part]
    if sum(part.count(r"\pm") for part in parts) <= 8:
        signed = []
        for part in parts:
            signs = "+-" if part.count(r"\pm") == 1 and r"\mp" not in part else ""
            signed += [
                part.replace(r"\pm", sign).replace("= +", "= ").strip().removeprefix("+").strip() for sign in signs
            ]
            signed += [] if signs else [part]
        parts = signed
    return parts


def in_order(gold: list[str], answer: list[str]) -> bool | None:
    if len(gold) != len(answer):
        return False
    verdicts = [compare(*pair) if all(pair) else False for pair in zip(gold, answer, strict=True)]
    return False if False in verdicts else None if None in verdicts else True


def in_any_order(gold: list[str], answer: list[str]) -> bool | None:
    """Each part once; `None` as soon as two parts need a closer look."""
    if len(gold) > 30:
        return None
    left = list(answer)
    for part in gold:
        verdicts = [compare(part, other) for other in left]
        if True in verdicts:
            left.pop(verdicts.index(True))
        else:
            return None if None in verdicts else False
    return True


def gives_two_answers(gold: str, answer: str) -> bool:
    r"""
    Whether an answer hedges in a way that math-verify reads as the last or best of its parts: `17 \lor 18`, `17 = 18`,
    two lines, or a negation.
    """
    for sign in (r"\lor", r"\neg", "$", "?", "\n"):
        if sign in answer and sign not in gold:
            return True
    if r"\\" in answer and r"\begin" not in answer:
        return True
    return bool(TWO_NUMBERS.search(answer)) and not TWO_NUMBERS.search(gold)  # read as a product


TWO_NUMBERS = re.compile(r"\d \d")
COMMANDS_AND_NAMES = re.compile(
    r"\\[A-Za-z]+|(?<![A-Za-z])(?:arc)?(?:sin|cos|tan|cot|sec|csc|log|ln|exp|max|min|gcd|lcm|det|mod|sqrt)(?:h)?(?![A-Za-z])"
)
LONG_WORD = re.compile(r"[A-Za-z]{3,}|[A-Z]{2,}")


def says_more(text: str) -> tuple[str, ...]:
    """Words that math-verify would read as products of their letters, sorted; a unit at the end is none."""
    if r"\begin" in text:
        return ()
    core = COMMANDS_AND_NAMES.sub(" ", split_unit(text)[0])
    return tuple(sorted(word for word in LONG_WORD.findall(core) if not VARIABLES.fullmatch(word)))


def formula(answer: str) -> str:
    """What of an answer goes to the parser: without its unit, and with words as names."""
    core, unit, scale = split_unit(tidy(answer))
    core = core if scale == 1 else tidy(answer)
    if (built := SET_BUILDER.fullmatch(core)) is not None:
        core = built.group(1)
    if TRIGONOMETRY.search(core):
        core = DEGREES.sub(r"(\1\\pi/180)", core)
    return UPPER_NAME.sub(r"\\text{\1}", core) if r"\begin" not in core else core


DEGREES = re.compile(r"(?<![\d.])(\d{1,9}(?:\.\d{1,9})?) ?\^\\circ")
UPPER_NAME = re.compile(r"(?<![\\A-Za-z{])([A-Z]{2,})(?![A-Za-z}])")


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
