"""What a corrector adds to a generator, in numbers that can be checked on paper."""

import pytest
from datasets import Dataset
from helpers import build_model

from correction_trl.carry_addition import exact_match
from correction_trl.evaluation import evaluate_corrector
from correction_trl.policy import generation


@pytest.fixture
def evaluate(monkeypatch, tiny_tokenizer):
    """Four problems: the generator is right on the first; the corrector spoils that one and repairs the next two."""
    dataset = Dataset.from_list([{"prompt": f"{i} ", "answer": str(i)} for i in range(4)])
    corrections = {"0": "9", "9": "9", "a1": "1", "1": "1", "a2": "2", "2": "2", "a3": "b3", "b3": "c3", "c3": "d3"}

    def reply(texts):
        return [tiny_tokenizer(text, add_special_tokens=False)["input_ids"] + [2] for text in texts]

    def generator(prompt_ids):
        numbers = [tiny_tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in prompt_ids]
        return reply("0" if number == "0" else f"a{number}" for number in numbers)

    def corrector(prompt_ids):
        texts = [tiny_tokenizer.decode(ids).removeprefix("<bos>") for ids in prompt_ids]
        return reply(corrections[text[2:].partition("<")[0]] for text in texts)

    models = {build_model(tiny_tokenizer): corrector, build_model(tiny_tokenizer): generator}
    monkeypatch.setattr(
        generation, "generate_completions", lambda model, prompt_ids, *settings, **more: models[model](prompt_ids)
    )
    trained, generating = models

    def evaluate(**settings):
        found = evaluate_corrector(
            trained, tiny_tokenizer, generating, tiny_tokenizer, dataset, exact_match, batch_size=3, **settings
        )
        return {name: summary["mean"] for name, summary in found.metrics.items()}

    return evaluate


def test_accuracies_and_changes(evaluate):
    metrics = evaluate(max_corrections=3)
    assert [metrics[f"acc@t{t}"] for t in (1, 2, 3, 4)] == [0.25, 0.5, 0.5, 0.5]
    assert metrics["delta(i->c)"] == 0.5 and metrics["delta(c->i)"] == 0.25 and metrics["delta(t1,t2)"] == 0.25


def test_an_oracle_protects_what_is_right(evaluate):
    metrics = evaluate(max_corrections=3, oracle=True)
    assert metrics["acc@t2"] == 0.75 and metrics["delta(c->i)"] == 0.0
    assert evaluate(max_corrections=3).keys() == metrics.keys()


def test_without_corrections_the_generator_alone_is_measured(evaluate):
    metrics = evaluate(max_corrections=0)
    assert metrics["acc@t1"] == 0.25 and "acc@t2" not in metrics
