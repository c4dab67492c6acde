"""Iterative correction: what the corrector is asked, when it stops, and that nothing depends on the batch."""

import pytest
from helpers import build_model

from correction_trl.errors import BadInput
from correction_trl.inference import correct_iteratively
from correction_trl.policy import generation


@pytest.fixture
def model(tiny_tokenizer):
    return build_model(tiny_tokenizer)


@pytest.fixture
def scripted(monkeypatch, tiny_tokenizer):
    """Replies in place of a model's; returns what was asked, one list of texts per call."""
    asked = []

    def replies_with(*rounds):
        rounds = [list(replies) for replies in rounds]

        def generate(model, prompt_ids, *settings, **more):
            asked.append([tiny_tokenizer.decode(ids) for ids in prompt_ids])
            replies = rounds.pop(0)
            assert len(replies) == len(prompt_ids)
            return [tiny_tokenizer(text, add_special_tokens=False)["input_ids"] + [2] for text in replies]

        monkeypatch.setattr(generation, "generate_completions", generate)
        return asked

    return replies_with


MESSAGE = (
    "<unk>here might be an error in the answer above. <unk>lease correct it."  # no capitals in the tiny vocabulary
)


def test_each_correction_is_asked_for_with_the_last_response_alone(model, tiny_tokenizer, scripted):
    asked = scripted(["b", "y"], ["c", "z"])
    prompts = [[{"role": "user", "content": "one"}], [{"role": "user", "content": "two"}]]
    traces = correct_iteratively(model, tiny_tokenizer, prompts, ["a", "x"], max_corrections=2)
    assert asked == [
        [f"<bos><user>{x}<eos><assistant>{y}<eos><user>{MESSAGE}<eos><assistant>" for x, y in (("one", a), ("two", b))]
        for a, b in (("a", "x"), ("b", "y"))
    ]
    assert [trace.responses for trace in traces] == [["a", "b", "c"], ["x", "y", "z"]]
    assert [trace.stop for trace in traces] == ["max corrections"] * 2
    assert traces[0].tokens == [2, 2, 2] and traces[0].replies == 3 and traces[0].cut_off == 0
    assert [message["content"] for message in traces[0].conversations[1]] == [
        "one", "b", "There might be an error in the answer above. Please correct it.", "c",
    ]  # fmt: skip


def test_what_does_not_change_is_not_asked_again(model, tiny_tokenizer, scripted):
    asked = scripted(["a", "y"], ["z"])
    traces = correct_iteratively(model, tiny_tokenizer, ["one ", "two "], ["a", "x"], max_corrections=2)
    assert [len(texts) for texts in asked] == [2, 1]
    assert [trace.responses for trace in traces] == [["a", "a"], ["x", "y", "z"]]
    assert [trace.stop for trace in traces] == ["unchanged", "max corrections"]


def test_feedback_is_in_the_message_and_its_absence_may_stop(model, tiny_tokenizer, scripted):
    asked = scripted(["b"])

    def feedback(prompts, completions, hint):
        return [None if text == "b" else f"{text} is wrong, {h}" for text, h in zip(completions, hint, strict=True)]

    (trace,) = correct_iteratively(
        model, tiny_tokenizer, ["one "], ["a"], {"hint": ["add 1"]}, feedback_function=feedback,
        stop_without_feedback=True,
    )  # fmt: skip
    assert "a is wrong, add 1" in asked[0][0] and len(asked) == 1
    assert trace.responses == ["a", "b"] and trace.stop == "no feedback"


def test_a_good_value_stops(model, tiny_tokenizer, scripted):
    asked = scripted(["b", "y"], ["c"])

    def value(completions, answer, **columns):
        return [None if text == "?" else float(text == a) for text, a in zip(completions, answer, strict=True)]

    traces = correct_iteratively(
        model, tiny_tokenizer, ["1 ", "2 ", "3 "], ["a", "x", "?"], {"answer": ["c", "x", "y"]},
        value_function=value, max_corrections=3,
    )  # fmt: skip
    assert [len(texts) for texts in asked] == [2, 1]
    assert [trace.responses for trace in traces] == [["a", "b", "c"], ["x"], ["?", "y"]]
    assert [trace.stop for trace in traces] == ["good value"] * 3


def test_what_does_not_fit_is_left_as_it_is(model, tiny_tokenizer, scripted):
    scripted(["b"])
    traces = correct_iteratively(
        model, tiny_tokenizer, ["x" * 300, "one "], ["a", "a"], max_corrections=1, max_completion_length=20,
        max_length=200,
    )  # fmt: skip
    assert [(trace.responses, trace.stop) for trace in traces] == [
        (["a"], "too long"), (["a", "b"], "max corrections"),
    ]  # fmt: skip


def test_batches_do_not_matter(model, tiny_tokenizer):
    prompts, responses = [f"what is {i}? " for i in range(7)], [str(10**i) for i in range(7)]
    settings = {"max_corrections": 2, "max_completion_length": 8}
    whole = correct_iteratively(model, tiny_tokenizer, prompts, responses, **settings)
    split = correct_iteratively(model, tiny_tokenizer, prompts, responses, batch_size=2, **settings)
    alone = [
        correct_iteratively(model, tiny_tokenizer, [x], [y], **settings)[0]
        for x, y in zip(prompts, responses, strict=True)
    ]
    assert [t.responses for t in whole] == [t.responses for t in split] == [t.responses for t in alone]
    assert len({tuple(t.responses) for t in whole}) == 7


def test_samples_are_those_of_their_seed(model, tiny_tokenizer):
    def sample(seed):
        traces = correct_iteratively(
            model, tiny_tokenizer, ["one "] * 4, ["a"] * 4, max_corrections=1, temperature=1.0, seed=seed,
            max_completion_length=8,
        )  # fmt: skip
        return [trace.responses for trace in traces]

    assert sample(0) == sample(0) != sample(1)


def test_nothing_to_correct(model, tiny_tokenizer):
    assert correct_iteratively(model, tiny_tokenizer, [], []) == []
    (trace,) = correct_iteratively(model, tiny_tokenizer, ["one "], ["a"], max_corrections=0)
    assert trace.responses == ["a"]
    with pytest.raises(BadInput, match="needs a `feedback_function`"):
        correct_iteratively(model, tiny_tokenizer, ["one "], ["a"], stop_without_feedback=True)
    with pytest.raises(BadInput, match="must not be negative"):
        correct_iteratively(model, tiny_tokenizer, ["one "], ["a"], max_corrections=-1)
