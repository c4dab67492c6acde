"""Final answers: found where they stand, compared by what they mean, judged within a time limit."""

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rewards.rewritings import equal_rewritings, near_misses

from correction_trl.rewards import FinalAnswer, answers_equal, find_answer, math_equality
from correction_trl.rewards.answer_extraction import gold_answer
from correction_trl.rewards.math_equality import Worker, worker_pool


DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the data files are not at {DATA}")
NEVER_ENDS = "5^{5^{5^{5^{5}}}}"  # Math-Verify#65


def rows(name):
    text = (DATA / name).read_text(encoding="utf-8")
    return json.loads(text) if name.endswith("math500_test.json") else [json.loads(line) for line in text.splitlines()]


class TestExtraction:
    @pytest.mark.parametrize(
        ("style", "text", "answer"),
        [
            ("boxed", r"First \boxed{1}, no: \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
            ("boxed", r"\boxed{\left\{ x \mid x > 2 \right\}}", r"\left\{ x \mid x > 2 \right\}"),
            ("boxed", r"It is \boxed 7.", "7"),
            ("boxed", r"\fbox{3}", "3"),
            ("gsm8k", "16 - 3 = 13\n#### 13", "13"),
            ("gsm8k", "#### 1\nNo.\n#### 1,234. ", "1,234"),
            ("final_answer", "Final Answer: The final answer is $x^2$. I hope it is correct.", "x^2"),
            ("final_answer", r"The final answer is \(3.5\)", "3.5"),
            ("final_answer", "So the answer is 3.5. That was easy.", "3.5"),
            ("final_answer", "the answer is **12**.", "12"),
            ("final_answer", r"The final answer is $\$5$. I hope it is correct.", r"\$5"),
            ("final_answer", "Final Answer: 42", "42"),
            ("choice", "The answer is (B).", "B"),
            ("choice", "the answer is a number, so C fits.\nAnswer: C", "C"),
            ("choice", r"\boxed{\text{(D)}}", "D"),
            ("choice", r"\boxed{B) 12}", "B"),
            ("choice", "Thinking about it.\n(e)", "E"),
            ("choice", "**A**", "A"),
            ("auto", "Final Answer: The final answer is $2$. I hope it is correct.", "2"),
            ("auto", "#### 5", "5"),
            ("auto", r"The answer is 3. \boxed{4}", "4"),
        ],
    )
    def test_found(self, style, text, answer):
        assert find_answer(text, style).answer == answer

    @pytest.mark.parametrize(
        ("style", "text", "problem"),
        [
            ("auto", "I do not know.", ""),
            ("auto", r"It is \boxed{3", "never closed"),
            ("boxed", r"\boxed{}", "empty"),
            ("gsm8k", "####", "Nothing follows"),
            ("boxed", "#### 5", "not in the form asked for"),
            ("gsm8k", r"\boxed{5}", "not in the form asked for"),
            ("choice", "The answer is a dog.", ""),
            ("final_answer", "The final answer is", "Nothing follows"),
        ],
    )
    def test_not_found(self, style, text, problem):
        found = find_answer(text, style)
        assert found.answer is None and problem in found.problem

    @given(
        st.text(alphabet="{}\\boxed$# 1.\n", max_size=60), st.sampled_from(["auto", "boxed", "gsm8k", "final_answer"])
    )
    def test_any_text(self, text, style):
        found = find_answer(text, style)
        assert found.answer is None or found.answer.strip()

    @given(st.text(alphabet="abc123+-^_{} ", min_size=1, max_size=20).filter(str.strip))
    def test_what_is_boxed_is_found(self, inner):
        if inner.count("{") == inner.count("}") and "}" not in inner.split("{")[0]:
            depths = [inner[:i].count("{") - inner[:i].count("}") for i in range(len(inner) + 1)]
            if min(depths) >= 0:
                assert find_answer(rf"So \boxed{{{inner}}} it is.").answer == inner.strip()

    def test_gold(self):
        golds = [18, 43.0, 2.5, "2 + 2 = <<2+2=4>>4\n#### 4", r"Thus \boxed{7}.", r"\frac12"]
        assert [gold_answer(gold) for gold in golds] == ["18", "43", "2.5", "4", "7", r"\frac12"]


class TestEquality:
    @needs_data
    def test_gsm8k(self):
        """Every gold answer is right, and every wrong number is wrong, in each way of stating it."""
        golds = [row["answer"] for row in rows("gsm8k/test.jsonl")]
        assert FinalAnswer(style="gsm8k")(completions=golds, answer=golds) == [1.0] * 1319
        numbers = [int(gold_answer(gold).replace(",", "")) for gold in golds]
        for change in (1, -1, 10, 0.5):
            for say in ("#### {:,}", r"\boxed{{{}}}", "The final answer is ${}$. I hope it is correct."):
                wrong = [say.format(number + change) for number in numbers]
                assert FinalAnswer()(completions=wrong, answer=golds) == [0.0] * 1319
        shuffled = [0.0 if a != b else 1.0 for a, b in zip(numbers, numbers[1:] + numbers[:1], strict=True)]
        assert FinalAnswer()(completions=golds[1:] + golds[:1], answer=golds) == shuffled

    @needs_data
    def test_math500_gold_against_its_solution(self):
        data = rows("math/math500_test.json")
        value = FinalAnswer(style="boxed")
        solutions = [row["solution"] for row in data]
        assert value(completions=solutions, answer=[row["answer"] for row in data]) == [1.0] * 500
        # The same with the solution as the gold column, and with no help from equal writing.
        pairs = [(row["answer"], find_answer(row["solution"]).answer) for row in data[::5]]
        assert worker_pool(2, os.getpid()).judge(pairs, 30.0) == [True] * 100

    @needs_data
    def test_math500_rewritings_and_near_misses(self):
        """A quarter of MATH-500 here; the benchmark counts all of it."""
        golds = [row["answer"] for row in rows("math/math500_test.json")][::4]
        equal = [(gold, text) for gold in golds for _, text in equal_rewritings(gold)]
        missed = [(gold, text) for gold in golds for _, text in near_misses(gold)]
        assert len(equal) > 800 and len(missed) > 1000
        judged = answers_equal(*zip(*equal, strict=True), timeout=30.0)
        assert judged.count(True) >= 0.99 * len(equal), [p for p, v in zip(equal, judged, strict=True) if not v]
        judged = answers_equal(*zip(*missed, strict=True), timeout=30.0)
        assert judged.count(False) == len(missed), [p for p, v in zip(missed, judged, strict=True) if v is not False]

    @needs_data
    def test_aqua(self):
        data = rows("aqua/test.json")
        value = FinalAnswer(style="choice", gold_column="correct")
        correct = [row["correct"] for row in data]
        for say in ("The answer is ({}).", r"Thus \boxed{{\text{{{}}}}}.", "So it must be\n**{})**", "Answer : {}"):
            assert value(completions=[say.format(letter) for letter in correct], correct=correct) == [1.0] * 254
            others = [say.format("ABCDE"[("ABCDE".index(letter) + 1) % 5]) for letter in correct]
            assert value(completions=others, correct=correct) == [0.0] * 254

    @given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
    def test_integers(self, gold, number):
        assert answers_equal([str(gold)], [f"{number:,}"]) == [gold == number]
        assert answers_equal([f"${gold}"], [f"{number} dollars."]) == [gold == number]

    @given(st.decimals(-(10**6), 10**6, places=3), st.decimals(-(10**6), 10**6, places=3))
    def test_decimals(self, gold, number):
        assert answers_equal([f"{gold}"], [f"{number}"]) == [gold == number]
        assert answers_equal([f"{gold}"], [f"{gold}000"]) == [True]

    @pytest.mark.parametrize(
        "hedge",
        [r"17 \lor 18", "17=18", r"17 \\ 18", r"\neg 18", "17 or 18", "17, 18", r"\{17, 18\}", "17 18", "17$ or $18"],
    )
    def test_a_hedge_is_no_answer(self, hedge):
        assert answers_equal(["18"], [hedge]) == [False]

    def test_nothing_to_compare(self):
        assert answers_equal([], []) == []
        assert answers_equal(["18"], [""]) == [False]

    def test_an_endless_answer_is_wrong_at_once(self):
        start = time.monotonic()
        assert answers_equal(["18"], ["1+" * 10**6 + "1"]) == [False]
        assert time.monotonic() - start < 5


class TestTimeLimit:
    def test_a_hanging_answer_costs_itself_alone(self, caplog):
        golds = ["5", r"\frac{1}{2}", "5", r"x+1"]
        answers = [NEVER_ENDS, "0.5", NEVER_ENDS + "+1", "1+x"]
        answers_equal(["x"], ["y"])  # the workers have started
        start = time.monotonic()
        assert answers_equal(golds, answers, timeout=1.0, workers=2) == [None, True, None, True]
        assert time.monotonic() - start < 15
        assert "within 1 seconds" in caplog.text

    def test_outside_the_main_thread(self):
        box = []
        arguments = ([r"\frac{1}{2}", "5"], ["0.5", NEVER_ENDS], 1.0, 2)
        thread = threading.Thread(target=lambda: box.extend(answers_equal(*arguments)))
        thread.start()
        thread.join()
        assert box == [True, None]

    def test_a_crashed_worker_is_replaced(self):
        worker = Worker()
        assert worker.judge(("x+1", "1+x"), 30.0) is True
        first = worker.process.pid
        worker.process.kill()
        worker.process.wait()
        assert worker.judge(("x+1", "x+2"), 30.0) is False
        assert worker.process.pid != first
        worker.stop()

    def test_a_worker_that_dies_at_work(self):
        worker = Worker()
        worker.judge(("1", "2"), 30.0)
        threading.Timer(0.3, worker.process.kill).start()
        assert worker.judge(("5", NEVER_ENDS), 30.0) is None
        assert worker.judge(("x+1", "1+x"), 30.0) is True
        worker.stop()

    def test_without_math_verify(self, monkeypatch):
        worker = Worker()
        monkeypatch.setattr(math_equality.sys, "executable", "/bin/false")
        with pytest.raises(ImportError, match="pip install math-verify"):
            worker.judge(("1", "2"), 5.0)

    def test_workers_end_with_their_parent(self):
        code = (
            "from correction_trl.rewards.math_equality import *\n"
            "answers_equal(['x+1'], ['1+x'], workers=1)\n"
            "print(worker_pool(1, os.getpid()).idle.get().process.pid)"
        )
        root = Path(__file__).parents[2]
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
        deadline = time.monotonic() + 5
        while Path(f"/proc/{run.stdout.strip()}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not Path(f"/proc/{run.stdout.strip()}").exists()


class TestValueAndFeedback:
    def test_conversational_and_thinking(self):
        completions = [
            [{"role": "assistant", "content": r"<think>\boxed{3}?</think> It is \boxed{4}."}],
            [{"role": "assistant", "content": [{"type": "text", "text": r"\boxed{4}"}]}],
            [{"role": "assistant", "content": r"<think>\boxed{4}</think> I do not know."}],
            [{"role": "assistant", "content": None}],
        ]
        assert FinalAnswer()(completions=completions, answer=[4] * 4) == [1.0, 1.0, 0.0, 0.0]

    def test_feedback_says_where_and_how(self):
        completions = ["16 - 3 = 13\n#### 13", "I do not know.", r"It is \boxed{9", "#### 9"]
        texts = FinalAnswer().feedback(completions=completions, answer=["#### 9"] * 4)
        assert texts == [
            "The final answer, “13” in “#### 13”, is wrong.",
            r"No final answer was found. End with the final answer in \boxed{...}.",
            r"The \boxed{ at the end is never closed. End with the final answer in \boxed{...}.",
            "The final answer is right.",
        ]

    def test_feedback_tells_the_gold_answer_only_when_asked(self):
        question = {"completions": ["#### 13", "nothing"], "answer": ["#### 987", "#### 987"]}
        assert not any("987" in text for text in FinalAnswer().feedback(**question))
        assert all("987" in text for text in FinalAnswer(show_gold=True).feedback(**question))

    def test_what_cannot_be_judged_is_none_and_counted(self, caplog):
        metrics = {}
        completions = ["#### 4", "#### 4", f"#### {NEVER_ENDS}", "#### 4"]
        values = FinalAnswer(timeout=1.0)(
            completions=completions,
            answer=["4", None, "4", ""],
            log_metric=lambda name, value: metrics.update({name: value}),
        )
        assert values == [1.0, None, None, None]
        assert metrics == {"final_answer/unjudged": 0.75}
        assert "could not judge 3 of 4 rows" in caplog.text and "row 1" in caplog.text
        assert FinalAnswer(timeout=1.0).feedback(completions=completions[:2], answer=["4", None])[1] == ""

    def test_feedback_after_a_value_is_free(self, monkeypatch):
        value = FinalAnswer()
        question = {"completions": ["#### x+1"] * 3, "answer": ["1+x"] * 3}
        asked = []
        judge = value._judge_all
        object.__setattr__(value, "_judge_all", lambda items: asked.extend(items) or judge(items))
        assert value(**question) == [1.0] * 3
        assert value.feedback(**question) == ["The final answer is right."] * 3
        assert len(asked) == 1

    def test_missing_column(self):
        with pytest.raises(ValueError, match="needs the dataset column 'answer'; the columns given are: solution"):
            FinalAnswer()(completions=["1"], solution=["1"])
        with pytest.raises(ValueError, match="2 completions but 1 values in column 'answer'"):
            FinalAnswer()(completions=["1", "2"], answer=["1"])

    def test_bad_style(self):
        with pytest.raises(ValueError, match="style must be one of"):
            FinalAnswer(style="latex")

    def test_picklable(self):
        copy = pickle.loads(pickle.dumps(FinalAnswer(style="gsm8k")))
        assert copy(completions=["#### 4"], answer=["4"]) == [1.0] and copy.__name__ == "final_answer"
