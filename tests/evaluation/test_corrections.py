"""The evaluation against a naive one: every log-prob from a forward over one unpadded sequence."""

import math

import pytest
import torch
from helpers import build_model, build_tokenizer, edit_distance, teacher
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from correction_trl.evaluation.corrections import evaluate_corrections
from correction_trl.policy import generation
from correction_trl.policy.log_probs import sequence_log_probs


LIMIT, BATCH_SIZE = 8, 5


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    return build_model(tiny_tokenizer).eval()


@pytest.fixture
def sampled_ids(monkeypatch):
    """Ids of all completions that the evaluation generates, per kind, in the order of the dataset."""
    seen = {"greedy": [], "sampled": []}

    generate_completions = generation.generate_completions

    def spy(model, prompt_ids, generation_config, *settings, **more):
        completions = generate_completions(model, prompt_ids, generation_config, *settings, **more)
        seen["sampled" if generation_config.do_sample else "greedy"] += completions
        return completions

    monkeypatch.setattr(generation, "generate_completions", spy)
    return seen


def length_value(completions, **_):
    """Value of a response: its length."""
    return [float(len(c if isinstance(c, str) else c[0]["content"])) for c in completions]


def evaluate(model, tokenizer, dataset, teacher=teacher, value_function=length_value, **kwargs):
    kwargs = {"max_completion_length": LIMIT, "batch_size": BATCH_SIZE, **kwargs}
    return evaluate_corrections(model, tokenizer, dataset, teacher, value_function, **kwargs)


@torch.no_grad()
def naive_log_prob(model, prompt: list[int], completion: list[int]) -> float:
    logits = model(torch.tensor([prompt + completion])).logits[0].double()
    return sum(logits[len(prompt) + i - 1].log_softmax(-1)[token].item() for i, token in enumerate(completion))


@pytest.mark.parametrize("positions", ["rotary", "absolute"])
def test_sequence_log_probs_equal_those_of_unpadded_forwards(model, positions):
    if positions == "absolute":  # where padding on the left would shift every position
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = GPT2Config(vocab_size=48, n_positions=64, n_embd=16, n_layer=1, n_head=2, initializer_range=0.5)
            model = GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    prompts, completions = (
        [torch.randint(0, 48, (n,), generator=generator).tolist() for n in lengths]
        for lengths in ([1, 4, 9, 2, 7], [6, 1, 3, 10, 2])
    )
    ours = sequence_log_probs(model, prompts, completions, pad_token_id=0)
    naive = [naive_log_prob(model, p, c) for p, c in zip(prompts, completions, strict=True)]
    assert ours == pytest.approx(naive, abs=1e-4)


@pytest.mark.parametrize("fixture", ["plain_prompts", "chat_prompts"])
def test_metrics_equal_a_naive_evaluation(model, tiny_tokenizer, sampled_ids, fixture, request):
    dataset = request.getfixturevalue(fixture).select(range(12))
    torch.manual_seed(1)
    base = build_model(tiny_tokenizer).eval()
    evaluation = evaluate(model, tiny_tokenizer, dataset, base_model=base)
    assert len(sampled_ids["sampled"]) == len(sampled_ids["greedy"]) == 12
    expected = {name: [] for name in evaluation.per_problem}
    for row, greedy, sampled in zip(dataset, sampled_ids["greedy"], sampled_ids["sampled"], strict=True):
        if isinstance(row["prompt"], str):
            prompt = tiny_tokenizer(row["prompt"])["input_ids"]
        else:
            prompt = tiny_tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)
            prompt = prompt["input_ids"]
        correction = tiny_tokenizer(row["answer"], add_special_tokens=False)["input_ids"] + [
            tiny_tokenizer.eos_token_id
        ]
        text = tiny_tokenizer.decode(sampled, skip_special_tokens=True)
        log_probs = [naive_log_prob(model, prompt, ids) for ids in (sampled, correction)]
        expected["acc@t1"].append(len(tiny_tokenizer.decode(greedy, skip_special_tokens=True)))
        expected["acc@t1/sampled"].append(len(text))
        expected["logps/response"].append(log_probs[0])
        expected["logps/correction"].append(log_probs[1])
        expected["correction_amount"].append(log_probs[0] - log_probs[1])
        distance = edit_distance(list(text), list(row["answer"]))
        expected["correction_edit_ratio"].append(distance / max(len(text), len(row["answer"])))
        expected["corrections/unchanged"].append(float(text == row["answer"]))
        expected["fluency"].append(naive_log_prob(base, prompt, sampled) / len(sampled))
        pairs = [(sampled[i], sampled[i + 1]) for i in range(len(sampled) - 1)]
        expected["distinct_2"].append(len(set(pairs)) / len(pairs) if pairs else None)
        expected["length"].append(len(sampled))
    for name, values in expected.items():
        assert evaluation.per_problem[name] == pytest.approx(values, abs=1e-4), name
        summary, values = evaluation.metrics[name], [value for value in values if value is not None]
        assert summary["mean"] == pytest.approx(sum(values) / len(values), abs=1e-4)
        assert summary["n"] == len(values) >= 10
        assert summary["low"] <= summary["mean"] <= summary["high"]
    assert set(expected) == set(evaluation.metrics)
    # Greedy means greedy, and the samples do vary
    alone = [naive_greedy(model, tiny_tokenizer, row["prompt"]) for row in dataset.select(range(3))]
    assert sampled_ids["greedy"][:3] == alone
    assert len(set(map(tuple, sampled_ids["sampled"]))) == 12


@torch.no_grad()
def naive_greedy(model, tokenizer, prompt) -> list[int]:
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
    else:
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    completion = []
    while len(completion) < LIMIT and tokenizer.eos_token_id not in completion:
        completion.append(model(torch.tensor([ids + completion])).logits[0, -1].argmax().item())
    return completion


def test_without_a_value_function_there_is_no_accuracy_and_nothing_is_decoded_greedily(
    model, tiny_tokenizer, plain_prompts, sampled_ids
):
    evaluation = evaluate(model, tiny_tokenizer, plain_prompts.select(range(4)), value_function=None)
    assert not any(name.startswith("acc@") for name in evaluation.metrics)
    assert sampled_ids["greedy"] == []
    assert evaluation.metrics["correction_amount"]["n"] == 4


def test_without_a_teacher_responses_are_rated_but_not_corrected(model, tiny_tokenizer, plain_prompts):
    dataset = plain_prompts.select(range(4))
    evaluation = evaluate(model, tiny_tokenizer, dataset, teacher=None)
    assert set(evaluation.metrics) == set(evaluation.per_problem) == {
        "acc@t1", "acc@t1/sampled", "logps/response", "distinct_2", "length",
    }  # fmt: skip
    taught = evaluate(model, tiny_tokenizer, dataset)
    assert evaluation.per_problem["acc@t1"] == taught.per_problem["acc@t1"]
    assert evaluation.per_problem["logps/response"] == pytest.approx(taught.per_problem["logps/response"], abs=1e-4)
    assert evaluation.examples == []
    with pytest.raises(ValueError, match="no `teacher` was given"):
        evaluate(model, tiny_tokenizer, dataset, teacher=None, value_function=None)


def test_a_problem_without_a_correction_is_left_out_of_the_correction_metrics_only(
    model, tiny_tokenizer, plain_prompts
):
    dataset = plain_prompts.select(range(6))

    def half_a_teacher(prompts, responses, answer, **_):
        return [None if int(a) % 2 else a for a in answer]

    evaluation = evaluate(model, tiny_tokenizer, dataset, half_a_teacher)
    without = [int(answer) % 2 == 1 for answer in dataset["answer"]]
    assert 0 < sum(without) < 6
    for name in ("correction_amount", "correction_edit_ratio", "logps/correction", "corrections/unchanged"):
        assert [value is None for value in evaluation.per_problem[name]] == without
        assert evaluation.metrics[name]["n"] == 6 - sum(without)
    for name in ("acc@t1", "acc@t1/sampled", "logps/response"):
        assert None not in evaluation.per_problem[name] and evaluation.metrics[name]["n"] == 6
    assert len(evaluation.examples) == 6 - sum(without)


def test_a_problem_that_cannot_be_judged_is_left_out_of_the_accuracy_only(model, tiny_tokenizer, plain_prompts):
    def picky(completions, answer, **_):
        return [None if int(a) % 2 else 1.0 for a in answer]

    dataset = plain_prompts.select(range(6))
    evaluation = evaluate(model, tiny_tokenizer, dataset, value_function=picky)
    judged = [None if int(answer) % 2 else 1.0 for answer in dataset["answer"]]
    assert evaluation.per_problem["acc@t1"] == evaluation.per_problem["acc@t1/sampled"] == judged
    assert evaluation.metrics["acc@t1"]["mean"] == 1 and evaluation.metrics["acc@t1"]["n"] == judged.count(1.0)
    assert evaluation.metrics["correction_amount"]["n"] == 6


def test_a_teacher_that_has_nothing_to_say_leaves_no_number_behind(model, tiny_tokenizer, plain_prompts):
    evaluation = evaluate(model, tiny_tokenizer, plain_prompts.select(range(3)), lambda responses, **_: [None] * 3)
    assert evaluation.metrics["correction_amount"]["n"] == 0
    assert math.isnan(evaluation.metrics["correction_amount"]["mean"])
    assert evaluation.metrics["logps/response"]["n"] == 3
    assert evaluation.examples == []


def test_a_response_that_needs_no_correction_costs_nothing(model, tiny_tokenizer, plain_prompts):
    evaluation = evaluate(model, tiny_tokenizer, plain_prompts.select(range(6)), lambda responses, **_: responses)
    assert evaluation.per_problem["correction_amount"] == pytest.approx([0] * 6, abs=1e-5)
    assert evaluation.per_problem["correction_edit_ratio"] == [0] * 6
    assert evaluation.metrics["corrections/unchanged"]["mean"] == 1
    assert evaluation.examples == []


def test_the_seed_decides_the_samples_and_nothing_else_moves(model, tiny_tokenizer, plain_prompts):
    dataset = plain_prompts.select(range(8))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = evaluate(model, tiny_tokenizer, dataset, seed=3)
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(2)
    assert evaluate(model, tiny_tokenizer, dataset, seed=3) == first
    other = evaluate(model, tiny_tokenizer, dataset, seed=4)
    assert other.per_problem["acc@t1"] == first.per_problem["acc@t1"]
    assert other.per_problem["logps/response"] != first.per_problem["logps/response"]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(tiny_tokenizer, plain_prompts, training):
    model = build_model(tiny_tokenizer, attention_dropout=0.5).train(training)
    dataset = plain_prompts.select(range(4))
    dropout_off = evaluate(model, tiny_tokenizer, dataset)
    assert model.training is training
    assert dropout_off == evaluate(model.eval(), tiny_tokenizer, dataset)


def test_greedy_accuracy_does_not_depend_on_the_batch(model, tiny_tokenizer, plain_prompts):
    dataset = plain_prompts.select(range(9))
    one, many = (evaluate(model, tiny_tokenizer, dataset, batch_size=size) for size in (1, 9))
    assert one.per_problem["acc@t1"] == many.per_problem["acc@t1"]


def test_examples_are_responses_that_needed_a_correction(model, tiny_tokenizer, plain_prompts):
    evaluation = evaluate(model, tiny_tokenizer, plain_prompts, n_examples=3, batch_size=64)
    assert [set(example) for example in evaluation.examples] == [{"prompt", "response", "correction"}] * 3
    for example in evaluation.examples:
        row = plain_prompts["prompt"].index(example["prompt"])
        assert example["correction"] == plain_prompts[row]["answer"] != example["response"]


def test_a_lower_temperature_gives_likelier_responses(model, tiny_tokenizer, plain_prompts):
    hot, cold = (
        evaluate(model, tiny_tokenizer, plain_prompts, temperature=t, batch_size=64, value_function=None)
        for t in (1.0, 0.2)
    )
    assert cold.metrics["logps/response"]["low"] > hot.metrics["logps/response"]["high"]


def test_fluency_is_what_the_model_without_its_adapter_thinks(model, tiny_tokenizer, plain_prompts):
    dataset = plain_prompts.select(range(4))
    before = evaluate(model, tiny_tokenizer, dataset)
    assert "fluency" not in before.metrics  # nobody knows the model before training
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False, lora_alpha=64))
    found = evaluate(adapted, tiny_tokenizer, dataset).per_problem
    own = [logp / n for logp, n in zip(found["logps/response"], found["length"], strict=True)]
    assert max(abs(a - b) for a, b in zip(found["fluency"], own, strict=True)) > 0.1
    adapted.unload()
    again = evaluate(model, tiny_tokenizer, dataset, base_model=model).per_problem
    same = [logp / n for logp, n in zip(again["logps/response"], again["length"], strict=True)]
    assert again["fluency"] == pytest.approx(same, abs=1e-5)


def test_a_tokenizer_without_padding_will_do(model, tiny_tokenizer, plain_prompts):
    tokenizer = build_tokenizer()
    tokenizer.pad_token = None
    dataset = plain_prompts.select(range(5))
    without, with_padding = (evaluate(model, t, dataset) for t in (tokenizer, tiny_tokenizer))
    assert without.per_problem["acc@t1"] == with_padding.per_problem["acc@t1"]
    assert without.per_problem["logps/response"] == pytest.approx(with_padding.per_problem["logps/response"], abs=1e-4)


def test_what_is_wrong_is_said_in_one_sentence(model, tiny_tokenizer, plain_prompts, chat_prompts):
    with pytest.raises(ValueError, match="`the evaluation dataset`, row 1: the prompt is empty"):
        rows = plain_prompts.select(range(2)).to_list()
        evaluate(model, tiny_tokenizer, plain_prompts.from_list([rows[0], {**rows[1], "prompt": ""}]))
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        evaluate(model, tokenizer, chat_prompts)
    with pytest.raises(ValueError, match="returned 1 items for 5 responses"):
        evaluate(model, tiny_tokenizer, plain_prompts, lambda **_: ["2"])
    with pytest.raises(ValueError, match="returned NaN for row 0"):
        evaluate(model, tiny_tokenizer, plain_prompts, value_function=lambda completions, **_: [math.nan] * 5)
