"""The two-turn evaluation under Inspect AI, with a mock model."""

import math

import pytest
from datasets import Dataset


pytest.importorskip("inspect_ai", reason="pip install inspect-ai")

from inspect_ai import eval as run_task  # noqa: E402
from inspect_ai.model import ModelOutput, get_model  # noqa: E402

from correction_trl.errors import BadInput  # noqa: E402
from correction_trl.evaluation.inspect_task import self_correction  # noqa: E402


def is_answer(completions, answer, **_):
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [None if text == "?" else float(text == right) for text, right in zip(texts, answer, strict=True)]


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    monkeypatch.setenv("INSPECT_LOG_DIR", str(tmp_path / "logs"))

    def evaluate(replies, **settings):
        rows = [{"prompt": [{"role": "user", "content": f"problem {i}"}], "answer": str(i)} for i in range(4)]
        Dataset.from_list(rows).to_json(tmp_path / "problems.jsonl")
        task = self_correction(
            str(tmp_path / "problems.jsonl"), value_function="test_inspect_task:is_answer", **settings
        )
        outputs = [ModelOutput.from_content("mock", reply) for reply in replies]
        (log,) = run_task(
            task, model=get_model("mockllm/model", custom_outputs=outputs), display="none", max_samples=1
        )
        assert log.status == "success", log.error
        return log, {name: metric.value for name, metric in log.results.scores[0].metrics.items()}

    return evaluate


def test_two_turns_have_the_metrics_of_our_evaluation(evaluate):
    # right -> right, right -> wrong, wrong -> right, wrong -> wrong
    log, metrics = evaluate("001xx2yy", instruction="Again.")
    assert metrics == pytest.approx(
        {
            "acc@t1": 0.5,
            "acc@t2": 0.5,
            "delta(t1,t2)": 0.0,
            "delta(i->c)": 0.25,
            "delta(c->i)": 0.25,
            "fix_rate": 0.5,
        }
    )
    said = [message.text for message in log.samples[0].messages]
    assert said == ["problem 0", "0", "Again.", "0"]
    assert log.samples[2].scores["attempts"].metadata["right"] == [0, 1]


def test_what_cannot_be_judged_or_parsed(evaluate):
    _, metrics = evaluate(["0", "?", "1", "1", "", "2", "3", "3"])
    # The first problem is left out; the empty response is wrong
    assert metrics["acc@t1"] == pytest.approx(2 / 3) and metrics["acc@t2"] == 1
    _, metrics = evaluate("????????")
    assert math.isnan(metrics["acc@t1"])


def test_more_turns(evaluate):
    _, metrics = evaluate("xx01112223yy", turns=3)
    assert metrics["acc@t3"] == 0.75 and metrics["delta(i->c)@t3"] == metrics["delta(c->i)@t3"] == 0.25


def test_bad_input_is_said_before_the_run(tmp_path):
    Dataset.from_list([{"question": "?"}]).to_json(tmp_path / "problems.jsonl")
    with pytest.raises(BadInput, match="no column 'prompt'"):
        self_correction(str(tmp_path / "problems.jsonl"))
    with pytest.raises(BadInput, match="there is no module 'nowhere'"):
        self_correction(value_function="nowhere:f")
