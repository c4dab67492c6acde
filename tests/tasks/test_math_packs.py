"""MATH's and the math programs' packs on their real files: gold is right, that of the next problem is wrong."""

import re
from pathlib import Path

import pytest
from datasets import Dataset

from correction_trl.chat_server import Reply
from correction_trl.data_utils import load_split
from correction_trl.errors import BadInput, ServerFailed
from correction_trl.functions import try_feedback_function, with_settings
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


def test_hints_are_written_by_a_server_after_three_examples(monkeypatch):
    asked = []

    def ask(server, requests, take):
        for request in requests:
            asked.append((server, request))
            said = request.messages[-1]["content"]
            take([(request, Reply(problem="cut off") if "bad" in said else Reply(text=" Halve it. "))])

    monkeypatch.setattr("correction_trl.chat_server.ChatServer.ask", ask)
    hint = with_settings(
        math_programs.prompted_hint, {"model": "big", "max_tokens": 9}, "feedback_settings", n_given=2
    )
    programs = ["```python\nanswer = 1\n```", "answer = 1", "bad"]
    rows = {"question": ["1 + 1?"] * 3, "answer": ["2"] * 3}
    hints, problems = try_feedback_function(hint, ["1 + 1?"] * 3, programs, rows)
    assert hints == ["Halve it.", "Halve it.", None] and problems == []
    (server, request), _ = asked  # equal programs are one request
    assert server.model == "big" and request.fields == {"temperature": 0.0, "max_tokens": 9}
    assert [message["role"] for message in request.messages] == ["user", "assistant"] * 3 + ["user"]
    assert "1 + 1?" in request.messages[-1]["content"] and "answer = 1" in request.messages[-1]["content"]
    assert not any("2" in message["content"] for message in request.messages[-1:])  # the right number is not told
    with pytest.raises(BadInput, match="Set `feedback_settings: {model: NAME"):
        try_feedback_function(math_programs.prompted_hint, ["p"], ["x"], {"question": ["q"]})


def test_a_server_that_is_down_ends_the_run_at_once(monkeypatch):
    def ask(server, requests, take):
        calls.append(1)
        raise ServerFailed("The server is down.")

    calls = []
    monkeypatch.setattr("correction_trl.chat_server.ChatServer.ask", ask)
    hint = with_settings(math_programs.prompted_hint, {"model": "big"}, "feedback_settings", n_given=2)
    with pytest.raises(ServerFailed, match="is down"):
        try_feedback_function(hint, ["p"] * 8, ["x"] * 8, {"question": ["q"] * 8})
    assert len(calls) == 1
