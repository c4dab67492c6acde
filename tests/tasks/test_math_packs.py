"""MATH's and the math programs' packs on their real files: gold is right, that of the next problem is wrong."""

import re
from pathlib import Path

import pytest
from datasets import Dataset

from correction_trl.data_utils import load_split
from correction_trl.errors import BadInput
from correction_trl.sandbox import local
from correction_trl.tasks import competition_math, math_programs


DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not (DATA / "math").exists(), reason="the data files are not on this machine")
PROBLEMS = {isolation: local.try_isolation(isolation) for isolation in ("namespaces", "bubblewrap")}
needs_sandbox = pytest.mark.skipif(all(PROBLEMS.values()), reason=f"no isolation here: {PROBLEMS}")


@needs_data
def test_the_answers_of_math_are_right_and_those_of_the_next_problem_are_not():
    rows = load_split(str(DATA / "math/math500_test.json"), None, "test", data_function=competition_math.problems)
    assert len(rows) == 500 and rows[0]["prompt"][0]["content"].count(competition_math.FORMAT) == 1
    rows = rows.select(range(0, 500, 10))  # of all 500: 500 right, and 3 of the shifted ones
    said = [f"Final Answer: The final answer is ${gold}$. I hope it is correct." for gold in rows["answer"]]
    right = competition_math.accuracy(completions=said, answer=rows["answer"])
    wrong = competition_math.accuracy(completions=said[1:] + said[:1], answer=rows["answer"])
    assert sum(right) == 50 and sum(wrong) <= 2
    assert None not in [competition_math.answer(text) for text in said]


def test_a_solution_holds_the_answer_where_there_is_no_column_of_it():
    rows = competition_math.problems(Dataset.from_list([{"problem": "Half?", "solution": r"It is $\boxed{0.5}$."}]))
    said = [r"The final answer is $\frac{1}{2}$. I hope it is correct."]
    assert competition_math.accuracy(completions=said, answer=rows["answer"]) == [1.0]
    assert competition_math.INSTRUCTION.endswith(competition_math.FORMAT)
    with pytest.raises(BadInput, match="no data of MATH"):
        competition_math.problems(Dataset.from_dict({"question": ["1 + 1?"]}))


@needs_data
@needs_sandbox
def test_gsm8k_s_own_calculations_are_right_programs():
    published = load_split(str(DATA / "gsm8k/test.jsonl"), None, "test", 30)
    rows = math_programs.problems(published)
    steps = [re.findall(r"<<([^=<>]+)=", answer) for answer in rows["answer"]]
    programs = [f"answer = {step[-1]}" if step else "" for step in steps]
    right = math_programs.accuracy(completions=programs, answer=rows["answer"])
    wrong = math_programs.accuracy(completions=programs[1:] + programs[:1], answer=rows["answer"])
    assert sum(right) >= 25 and sum(wrong) <= 3
    assert math_programs.computed("```python\nanswer = 6 * 7\n```") == "42" and math_programs.computed("no") is None


@needs_data
def test_multiarith_and_gsm8k_have_the_same_columns():
    files = [DATA / "mawps/multiarith.jsonl", DATA / "gsm8k/test.jsonl"]
    sets = [load_split(str(file), None, "test", data_function=math_programs.problems) for file in files]
    assert [len(rows) for rows in sets] == [600, 1319] and sets[0].column_names == sets[1].column_names
    assert sets[0][0]["answer"] == "39" and sets[0][0]["question"] in sets[0][0]["prompt"][0]["content"]
    hub = math_programs.problems(Dataset.from_dict({"question": ["1 + 1?"], "final_ans": ["2"]}))
    assert hub[0]["answer"] == "2"
