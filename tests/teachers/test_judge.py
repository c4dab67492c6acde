"""A judge behind a server: what it says, what of it counts, and that nothing is asked twice."""

import json

import pytest
from misbehaving_server import running

from correction_trl import CorrectionOptimizationConfig, CorrectionOptimizationTrainer
from correction_trl.errors import BadInput, ServerFailed
from correction_trl.named_functions import named_function
from correction_trl.recipe import DataArguments
from correction_trl.teachers import JudgePrompt, ServerJudge


def make_judge(url, **settings):
    return ServerJudge("tiny", url, **{"timeout": 1.0, "first_pause": 0.01, **settings})


def prompts(n):
    return [f"item {i}" for i in range(n)]


def test_values_lie_between_the_templates_numbers_and_feedback_is_of_the_same_judgement():
    with running(judge=1) as server:
        judge = make_judge(server.url)
        asked = {"prompts": prompts(22), "completions": [f"response {i}" for i in range(22)]}
        assert judge(**asked) == [i % 11 / 10 for i in range(22)]
        assert judge.feedback(**asked) == [f"It is off by {i}." for i in range(22)]
        messages = [{"role": "assistant", "content": "response 3"}]
        assert judge([messages], prompts=[[{"role": "user", "content": "item 3"}]]) == [0.3]
        assert server.stats()["asked"] == {i: 1 + (i == 3) for i in range(22)}  # a conversation is another question


def test_no_judgement_is_bought_twice_by_another_run(tmp_path):
    with running(judge=1) as server:
        for answer in (None, ["4", "5"], ["4", "5"]):
            judge = make_judge(server.url, store=tmp_path / "judgements.sqlite")
            columns = {} if answer is None else {"answer": answer, "source": ["a", "b"]}
            assert judge(["x", "y"], prompts=prompts(2), **columns) == [0.0, 0.1]
        assert server.stats()["asked"] == {
            0: 2,
            1: 2,
        }  # the gold answer is part of what is asked; other columns are not
        judge = make_judge(server.url, store=tmp_path / "judgements.sqlite", template="verdict")
        assert judge(["x"], prompts=prompts(1)) == [None]  # another rubric is another question
        assert server.stats()["asked"][0] > 2


def test_what_cannot_be_read_is_asked_for_again_and_then_not_judged(caplog, tmp_path):
    faults = {"faults": "wrong_format", "share": 1.0}
    with running(judge=1, stubborn=0.0, **faults) as server:
        assert make_judge(server.url)(["x"] * 4, prompts=prompts(4)) == [0.0, 0.1, 0.2, 0.3]
        assert all(count > 1 for count in server.stats()["asked"].values())
    metrics = {}
    with running(judge=1, stubborn=1.0, **faults) as server:
        store = tmp_path / "judgements.sqlite"
        judge = make_judge(server.url, store=store)
        log_metric = metrics.__setitem__
        assert judge(["x"] * 2, prompts=prompts(2), log_metric=log_metric) == [None, None]
        assert judge.feedback(["x"] * 2, prompts=prompts(2)) == ["", ""]
        assert server.stats()["asked"] == {0: 3, 1: 3}  # bought and of no use: not bought again
    assert metrics == {"judge/unjudged": 1.0}
    assert "the judge gave no value" in caplog.text


def test_a_server_that_is_not_there_ends_the_run_in_a_sentence():
    with pytest.raises(ServerFailed, match="The judge's server http://127.0.0.1:9/v1 has given no answer"):
        make_judge("http://127.0.0.1:9/v1", retries=0)(["x"], prompts=["item 1"])


READABLE = {
    "<score>7</score>": 0.7,
    "Fine.\n<score> 10 </score>\n": 1.0,
    "<think>maybe <score>3</score></think><score>0</score>": 0.0,
    "<feedback>none</feedback><score>2.5</score>": 0.25,
}
UNREADABLE = [
    "7", "<score>7/10</score>", "<score>seven</score>", "<score>11</score>", "<score>-1</score>", "<score></score>",
    "<score>7</score> or so", "<score>7</score><score>8</score>", "</score>7<score>", "<think><score>7</score>",
    "<score>nan</score>", "<score>1e1</score>", "<score>7</score", "",
]  # fmt: skip


@pytest.mark.parametrize(("reply", "value"), READABLE.items())
def test_a_number_is_read(reply, value):
    assert JudgePrompt().judgement(reply)[0].value == value


@pytest.mark.parametrize("reply", UNREADABLE)
def test_nothing_is_guessed(reply):
    judgement, problem = JudgePrompt().judgement(reply)
    assert judgement is None and problem


def test_verdicts():
    prompt = JudgePrompt("verdict")
    judgement, _ = prompt.judgement("<feedback> The sum. </feedback>\n<score>Wrong</score>")
    assert (judgement.value, judgement.feedback) == (0.0, "The sum.")
    assert prompt.judgement("<score>right</score>")[0].value == 1.0
    assert prompt.judgement("<score>0</score>")[1] == "'0' is none of 'right', 'wrong'"


@pytest.mark.parametrize(
    ("head", "sentence"),
    [
        ("", "must set `lowest` and `highest`, between which it asks for a number, or `verdicts`"),
        ("{% set lowest = 5 %}{% set highest = 5 %}", "must set `lowest` and `highest`"),
        ("{% set highest = prompt %}", "`highest` must be a constant"),
        ('{% set verdicts = {"good": 2} %}', "two words or more with their values from 0 to 1"),
    ],
)
def test_a_rubric_that_asks_for_nothing_is_refused(tmp_path, head, sentence):
    file = tmp_path / "rubric.jinja"
    file.write_text(head + "{% block user %}{{ prompt }}{{ response }}{% endblock %}")
    with pytest.raises(BadInput, match=sentence):
        ServerJudge("tiny", template=file)


def test_what_is_set_wrong_is_named():
    with pytest.raises(BadInput, match="A judge has no setting 'temprature'"):
        ServerJudge("tiny", temprature=1.0)
    with pytest.raises(BadInput, match="judge's prompt 'judgee' cannot be read"):
        ServerJudge("tiny", template="judgee")
    with pytest.raises(BadInput, match="The judge's address 'localhost:8000' must begin with http"):
        ServerJudge("tiny", "localhost:8000")
    with pytest.raises(BadInput, match="needs to know what was asked: pass `prompts`"):
        ServerJudge("tiny")(["x"])


def arguments(**settings):
    data = DataArguments(dataset_name="x", **settings)
    data.value_function, data.feedback_function = "judge", "judge:feedback"
    return data


def test_recipes_name_it_and_value_and_feedback_share_it(tmp_path):
    with running(judge=1) as server:
        settings = {"model": "tiny", "base_url": server.url, "timeout": 1.0, "first_pause": 0.01}
        for judge in (settings, json.dumps(settings)):
            value, feedback = (
                named_function(arguments(judge=judge), f"{name}_function") for name in ("value", "feedback")
            )
            assert value(["x"], prompts=["item 7"]) == [0.7] and feedback(["x"], prompts=["item 7"]) == [
                "It is off by 7."
            ]
        assert server.stats()["asked"] == {7: 1}
    with pytest.raises(BadInput, match="needs the setting `judge`, a mapping with a `model`, for example"):
        named_function(arguments(), "value_function")
    with pytest.raises(BadInput, match="`judge` is no JSON"):
        named_function(arguments(judge="{model: x"), "value_function")


def test_it_verifies_corrections_in_training(tmp_path, tiny_model):
    """The better ones are judged 0.7, all other texts 0.5; a correction counts only if it is judged higher."""
    from datasets import Dataset

    class Judge:
        __name__ = "judge"

        def __init__(self, url):
            self.judge = make_judge(url)

        def __call__(self, completions, prompts, **columns):
            asked = [f"{p} {'item 7' if c.endswith('better') else 'item 5'}"[-6:] for p, c in
                     zip(prompts, completions, strict=True)]  # fmt: skip
            return self.judge(completions, prompts=asked)

    def teacher(prompts, responses, **columns):
        return [r + (" better" if i % 2 else " worse") for i, r in enumerate(responses)]

    with running(judge=1) as server:
        args = CorrectionOptimizationConfig(
            str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=4, max_completion_length=4, use_cpu=True,
            bf16=False, report_to="none", save_strategy="no", logging_steps=1, verify_corrections=True,
            max_length=None, gradient_checkpointing=False, mask_truncated_completions=False, disable_tqdm=True,
        )  # fmt: skip
        dataset = Dataset.from_dict({"prompt": [f"task {i}" for i in range(4)]})
        trainer = CorrectionOptimizationTrainer(
            tiny_model, args, train_dataset=dataset, teacher=teacher, reward_funcs=Judge(server.url)
        )
        trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert entry["corrections/missing"] == 0.5
    assert entry["rewards/judge/response"] == 0.5
