"""Several attempts at each problem: against a naive evaluation, and against numbers that can be checked on paper."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import build_model, build_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from correction_trl.errors import BadInput
from correction_trl.evaluation import evaluate_attempts, evaluate_traces
from correction_trl.evaluation.metrics import attempt_metrics, self_correction_metrics, summarize_ratio
from correction_trl.inference import Trace
from correction_trl.rewards.answer_extraction import find_answer


LIMIT = 6
INSTRUCTION = "correct it."


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    return build_model(tiny_tokenizer).eval()


def even_length(completions, **_):
    """Right if the completion has an even number of characters."""
    return [float(len(c if isinstance(c, str) else c[0]["content"]) % 2 == 0) for c in completions]


def evaluate(model, tokenizer, dataset, value_function=even_length, **kwargs):
    kwargs = {"instruction": INSTRUCTION, "max_completion_length": LIMIT, "batch_size": 5, **kwargs}
    return evaluate_attempts(model, tokenizer, dataset, value_function, **kwargs)


@torch.no_grad()
def naive_attempts(model, tokenizer, prompt, n_turns):
    """Greedy attempts, one token and one forward over the whole conversation at a time."""
    chat = not isinstance(prompt, str)
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True) if chat else None
    ids = ids["input_ids"] if chat else tokenizer(prompt)["input_ids"]
    eos = tokenizer.eos_token_id
    texts, lengths = [], []
    for _ in range(n_turns):
        attempt = []
        while len(attempt) < LIMIT and eos not in attempt:
            attempt.append(model(torch.tensor([ids + attempt])).logits[0, -1].argmax().item())
        texts.append(tokenizer.decode(attempt, skip_special_tokens=True))
        lengths.append(len(attempt))
        if chat:
            ended = attempt[-1] == eos
            follow_up = f"{'' if ended else '<eos>'}<user>{INSTRUCTION}<eos><assistant>"
        else:
            # A stop token that the policy wrote stays where it is
            follow_up = f"\n\n{INSTRUCTION}\n\n"
        ids = ids + attempt + tokenizer(follow_up, add_special_tokens=False)["input_ids"]
    return texts, lengths


@pytest.mark.parametrize("fixture", ["plain_prompts", "chat_prompts"])
@pytest.mark.parametrize("n_turns", [1, 3])
def test_it_equals_a_naive_evaluation(model, tiny_tokenizer, fixture, n_turns, request):
    dataset = request.getfixturevalue(fixture).select(range(12))
    evaluation = evaluate(model, tiny_tokenizer, dataset, n_turns=n_turns, n_examples=12)
    naive = [naive_attempts(model, tiny_tokenizer, prompt, n_turns) for prompt in dataset["prompt"]]
    assert len({text for texts, _ in naive for text in texts}) > 6, "the attempts should differ"
    for t in range(n_turns):
        right = [float(len(texts[t]) % 2 == 0 and bool(texts[t].strip())) for texts, _ in naive]
        assert evaluation.per_problem[f"acc@t{t + 1}"] == right
        assert evaluation.per_problem[f"tokens@t{t + 1}"] == [lengths[t] for _, lengths in naive]
        assert evaluation.metrics[f"acc@t{t + 1}"]["mean"] == pytest.approx(sum(right) / 12)
    by_prompt = {str(example["prompt"]): example["attempts"] for example in evaluation.examples}
    assert by_prompt == {str(p): texts for p, (texts, _) in zip(dataset["prompt"], naive, strict=True)}
    assert evaluation.counts["responses"] == 12 * n_turns
    if n_turns == 1:
        assert not any(name.startswith(("delta", "fix", "edit", "answer")) for name in evaluation.metrics)


@pytest.mark.parametrize("batch_size", [1, 64])
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "samples": 3, "top_p": 0.9}], ids=["greedy", "sampled"])
def test_attempts_do_not_depend_on_the_batch(model, tiny_tokenizer, chat_prompts, batch_size, settings):
    dataset = chat_prompts.select(range(9))
    other = evaluate(model, tiny_tokenizer, dataset, batch_size=batch_size, **settings)
    assert other.per_problem == evaluate(model, tiny_tokenizer, dataset, **settings).per_problem


def test_a_row_draws_the_same_whatever_stands_behind_it(model, tiny_tokenizer, chat_prompts):
    settings = {"temperature": 1.0, "n_examples": 9}
    few, all_rows = (
        evaluate(model, tiny_tokenizer, chat_prompts.select(range(n)), **settings).examples for n in (4, 9)
    )
    attempts = {str(example["prompt"]): example["attempts"] for example in all_rows}
    assert all(attempts[str(example["prompt"])] == example["attempts"] for example in few)


def test_the_smallest_nucleus_is_greedy(model, tiny_tokenizer, chat_prompts):
    dataset = chat_prompts.select(range(5))
    greedy = evaluate(model, tiny_tokenizer, dataset, n_examples=5).examples
    for cut in ({"top_p": 1e-6}, {"top_k": 1}):
        assert evaluate(model, tiny_tokenizer, dataset, n_examples=5, temperature=1.0, **cut).examples == greedy


def test_samples_are_means_over_conversations(model, tiny_tokenizer, chat_prompts):
    dataset = chat_prompts.select(range(6))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    evaluation = evaluate(model, tiny_tokenizer, dataset, temperature=1.0, samples=4, seed=3)
    assert torch.get_rng_state().equal(state)
    assert np.shape(evaluation.right) == (6, 4, 2)
    for problem, value in zip(evaluation.right, evaluation.per_problem["acc@t2"], strict=True):
        assert value == sum(second for _, second in problem) / 4
    assert any(0 < value < 1 for value in evaluation.per_problem["acc@t1"])
    assert evaluation.metrics["acc@t1"]["n"] == 6
    assert evaluate(model, tiny_tokenizer, dataset, temperature=1.0, samples=4, seed=3).examples == evaluation.examples
    assert evaluate(model, tiny_tokenizer, dataset, temperature=1.0, samples=4, seed=4).right != evaluation.right


def test_the_model_is_left_as_it_was(tiny_tokenizer, chat_prompts):
    model = build_model(tiny_tokenizer, attention_dropout=0.5).train()
    dataset = chat_prompts.select(range(4))
    without_dropout = evaluate(model, tiny_tokenizer, dataset).examples
    assert model.training
    assert without_dropout == evaluate(model.eval(), tiny_tokenizer, dataset).examples
    assert not model.training


def test_a_model_that_never_stops_is_cut_off_and_counted(tiny_tokenizer, chat_prompts):
    model = build_model(tiny_tokenizer)
    eos = torch.tensor([tiny_tokenizer.eos_token_id])
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits.index_fill(-1, eos, -math.inf))
    evaluation = evaluate(model, tiny_tokenizer, chat_prompts.select(range(4)))
    assert evaluation.counts["truncated"] == 8 and evaluation.metrics["responses/truncated"]["mean"] == 1
    assert evaluation.per_problem["tokens"] == [2 * LIMIT] * 4


# ---------------------------------------------------------------------------------------------------------------------
# Judging
# ---------------------------------------------------------------------------------------------------------------------

PROBLEMS = Dataset.from_list([{"prompt": f"problem {i}", "answer": str(i)} for i in range(4)])


def is_answer(completions, answer, **_):
    """`?` cannot be judged."""
    return [None if text == "?" else float(text == right) for text, right in zip(completions, answer, strict=True)]


def traces(*responses):
    """One trace per problem: its responses, a token per character."""
    return {
        (row, 0): Trace(list(texts), [len(text) for text in texts], replies=len(texts))
        for row, texts in enumerate(responses)
    }


def test_the_metrics_of_four_problems_on_paper():
    # right -> right, right -> wrong, wrong -> right, wrong -> wrong (unchanged)
    found = evaluate_traces(PROBLEMS, traces("00", "1x", "x2", "yy"), is_answer)
    means = {name: summary["mean"] for name, summary in found.metrics.items()}
    assert means == pytest.approx(
        {
            "acc@t1": 0.5,
            "acc@t2": 0.5,
            "delta(t1,t2)": 0.0,
            "delta(i->c)": 0.25,
            "delta(c->i)": 0.25,
            "fix_rate": 0.5,
            "edit_distance_ratio": 0.25,  # 1 edit over 2 characters, in two of four problems
            "answer_changed": 0.5,
            "tokens@t1": 1.0,
            "tokens@t2": 1.0,
            "tokens": 2.0,
            "responses/unparsable": 0.0,
            "responses/truncated": 0.0,
            "responses/unjudged": 0.0,
        }
    )
    assert found.per_problem["fix_rate"] == [None, None, 1.0, 0.0] and found.metrics["fix_rate"]["n"] == 2
    assert found.right == [[[1, 1]], [[1, 0]], [[0, 1]], [[0, 0]]]
    # Examples begin with those whose verdict changed
    assert [example["attempts"] for example in found.examples] == [["1", "x"], ["x", "2"], ["0", "0"], ["y", "y"]]


def test_what_cannot_be_judged_is_left_out_and_never_right():
    found = evaluate_traces(PROBLEMS, traces("00", "1?", "?2", "x3"), is_answer)
    assert found.per_problem["acc@t1"] == [1, None, None, 0] and found.per_problem["acc@t2"] == [1, None, None, 1]
    assert found.metrics["acc@t1"]["n"] == found.metrics["delta(i->c)"]["n"] == 2
    assert found.counts == {"responses": 8, "unparsable": 0, "unjudged": 2, "truncated": 0, "missing": 0}
    assert found.metrics["responses/unjudged"]["mean"] == 0.25
    assert found.metrics["answer_changed"]["n"] == 4


def test_nothing_can_be_judged():
    found = evaluate_traces(PROBLEMS, traces("??", "??", "??", "??"), is_answer)
    assert math.isnan(found.metrics["acc@t1"]["mean"]) and found.metrics["acc@t1"]["n"] == 0


def test_an_answer_that_cannot_be_parsed_is_wrong_and_counted(caplog):
    def generous(completions, **_):
        return [None if text == "?" else 1.0 for text in completions]

    found = evaluate_traces(PROBLEMS, traces(["", "0"], ["  ", "?"], "2?", "33"), generous)
    assert found.right == [[[0, 1]], [[0, None]], [[1, None]], [[1, 1]]]
    assert found.counts["unparsable"] == 2 and found.counts["unjudged"] == 2
    assert "2 hold no answer that can be parsed (counted as wrong); 2 were not judged" in caplog.text

    digits = lambda text: "".join(filter(str.isdigit, text)) or None
    found = evaluate_traces(PROBLEMS, traces("?0", "1?", "2x", "33"), generous, extract_answer=digits)
    assert found.right == [[[0, 1]], [[1, 0]], [[1, 0]], [[1, 1]]] and found.counts["unjudged"] == 0
    # Whether an answer changed is asked of the answers, not of the words around them
    found = evaluate_traces(PROBLEMS, traces(["a0", "b0"]), generous, extract_answer=digits)
    assert found.per_problem["answer_changed"] == [0, None, None, None]


def test_a_strategy_that_stops_early_keeps_its_response():
    found = evaluate_traces(PROBLEMS, traces("0", "xx1", "2x", "x"), is_answer)
    assert found.per_problem["acc@t1"] == [1, 0, 1, 0]
    assert found.per_problem["acc@t2"] == [1, 0, 0, 0]
    assert found.per_problem["acc@t3"] == [1, 1, 0, 0]
    assert found.metrics["delta(i->c)@t3"]["mean"] == found.metrics["delta(c->i)@t3"]["mean"] == 0.25
    assert found.per_problem["tokens@t3"] == [0, 1, 0, 0] and found.per_problem["tokens"] == [1, 3, 2, 1]


def test_problems_without_a_trace_and_reasons_to_stop_are_counted():
    some = traces("00", "12")
    some[0, 0].stop = some[1, 0].stop = "last turn"
    found = evaluate_traces(PROBLEMS, some, is_answer, n_turns=3)
    assert found.counts["missing"] == 2 and found.counts["stop: last turn"] == 2
    assert found.per_problem["acc@t1"] == [1, 1, None, None] and found.metrics["acc@t1"]["n"] == 2
    assert found.per_problem["tokens"] == [2, 2, None, None]
    assert found.per_problem["acc@t3"] == found.per_problem["acc@t2"]


def test_equal_responses_are_judged_once():
    asked = []

    def value(completions, **_):
        asked.extend(completions)
        return [1.0] * len(completions)

    evaluate_traces(PROBLEMS, traces("00", "12"), value)
    assert asked == ["0", "1", "2"]


def test_graded_values_are_right_from_the_threshold_on():
    graded = lambda completions, **_: [int(text) / 10 for text in completions]
    rows = traces("59", "91", "94", "55")
    assert evaluate_traces(PROBLEMS, rows, graded, correct_threshold=0.5).per_problem["acc@t2"] == [1, 0, 0, 1]
    assert evaluate_traces(PROBLEMS, rows, graded).per_problem["acc@t2"] == [0, 0, 0, 0]


def test_what_is_wrong_is_said_in_one_sentence(model, tiny_tokenizer, chat_prompts):
    with pytest.raises(ValueError, match="`the evaluation dataset` is empty"):
        evaluate(model, tiny_tokenizer, chat_prompts.select([]))
    with pytest.raises(ValueError, match="`samples=2` greedy samples are all the same; set a `temperature`"):
        evaluate(model, tiny_tokenizer, chat_prompts, samples=2)
    with pytest.raises(ValueError, match="The message between two attempts is empty"):
        evaluate(model, tiny_tokenizer, chat_prompts.select(range(2)), instruction=" ")
    with pytest.raises(ValueError, match="raised KeyError on row 0"):
        evaluate(
            model, tiny_tokenizer, chat_prompts.select(range(2)), value_function=lambda **columns: columns["gold"]
        )
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        evaluate(model, tokenizer, chat_prompts)
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate_traces(PROBLEMS, {}, is_answer)


# ---------------------------------------------------------------------------------------------------------------------
# Identities
# ---------------------------------------------------------------------------------------------------------------------

VERDICT = st.sampled_from([True, False, None])


@st.composite
def outcomes(draw):
    samples, attempts = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    sample = st.lists(VERDICT, min_size=attempts, max_size=attempts)
    return draw(st.lists(st.lists(sample, min_size=samples, max_size=samples), min_size=1, max_size=8))


@given(outcomes())
def test_identities_hold_for_problems_and_means(right):
    metrics, per_problem = attempt_metrics(right, resamples=20)
    n_attempts = len(right[0][0])
    for t in range(2, n_attempts + 1):
        at = "" if t == 2 else f"@t{t}"
        names = f"delta(t1,t{t})", f"delta(i->c){at}", f"delta(c->i){at}", f"acc@t{t}", "acc@t1"
        for delta, gain, loss, later, first in zip(*(per_problem[name] for name in names), strict=True):
            assert (delta is None) == (first is None)
            if delta is not None:
                assert delta == pytest.approx(gain - loss) == pytest.approx(later - first)
        delta, gain, loss, later, first = (metrics[name] for name in names)
        assert len({summary["n"] for summary in (delta, gain, loss, later, first)}) == 1
        if delta["n"]:
            assert delta["mean"] == gain["mean"] - loss["mean"] == pytest.approx(later["mean"] - first["mean"])
    judged = [[s for s in problem if None not in s] for problem in right]
    assert per_problem["acc@t1"] == [pytest.approx(np.mean([s[0] for s in p])) if p else None for p in judged]
    if n_attempts > 1 and metrics["fix_rate"]["n"] and all(len(p) == len(judged[0]) for p in judged):
        gain, first = metrics["delta(i->c)"]["mean"], metrics["acc@t1"]["mean"]
        assert metrics["fix_rate"]["mean"] == pytest.approx(gain / (1 - first))


@given(st.lists(st.tuples(VERDICT, VERDICT), min_size=1, max_size=20))
def test_two_attempts_and_one_sample_are_the_metrics_of_score(pairs):
    metrics, _ = attempt_metrics([[pair] for pair in pairs], resamples=50)
    expected = self_correction_metrics(*zip(*pairs, strict=True), resamples=50)
    for name, summary in expected.items():
        assert metrics[name]["n"] == summary["n"], name
        assert metrics[name]["mean"] == pytest.approx(summary["mean"], nan_ok=True), name


def test_the_interval_of_a_ratio_is_that_of_the_delta_method():
    generator = np.random.default_rng(0)
    wrong = generator.random(2000) < 0.4
    fixed = wrong & (generator.random(2000) < 0.3)
    summary = summarize_ratio(fixed, wrong, resamples=8000)
    ratio = fixed.sum() / wrong.sum()
    half_width = 1.96 * math.sqrt(ratio * (1 - ratio) / wrong.sum())  # of a share of the wrong ones
    assert summary["mean"] == pytest.approx(ratio) and summary["n"] == wrong.sum()
    assert (summary["low"], summary["high"]) == pytest.approx((ratio - half_width, ratio + half_width), abs=0.003)


def test_a_ratio_without_a_denominator():
    assert math.isnan(summarize_ratio([0, 0], [0, 0])["mean"])
    one = summarize_ratio([1, 0, None], [2, 0, 5])
    assert one["mean"] == 0.5 and one["n"] == 1 and math.isnan(one["low"])


@pytest.mark.parametrize("right", [[[1, 0]], [[[0.5, 1]]]])
def test_other_shapes_and_values_are_refused(right):
    with pytest.raises(ValueError, match="must be of shape|apply a threshold"):
        attempt_metrics(right)


def test_an_extractor_that_returns_no_text_is_refused():
    """`find_answer` returns an object, also where it found nothing: every response would hold an answer."""
    dataset = Dataset.from_list([{"prompt": "p", "answer": "1"}])
    for extractor, kind in ((find_answer, "Extraction"), (lambda text: 3, "int"), (lambda text: [text], "list")):
        with pytest.raises(
            BadInput, match=rf"`extract_answer` \(.+\) returned {kind} for a response to row 0; .* text"
        ):
            evaluate_traces(dataset, traces(["1"]), is_answer, extract_answer=extractor)


def test_a_judged_trace_knows_its_gold_answer_and_verdicts():
    class Exact:
        gold_column, __name__ = "solution", "exact"

        def __call__(self, completions, solution, **_):
            pairs = zip(completions, solution, strict=True)
            return [None if text == "?" else float(text == right) for text, right in pairs]

    dataset = Dataset.from_list([{"prompt": "p", "solution": str(i), "id": f"problem-{i}"} for i in range(2)])
    judged = traces(["1", "0"], ["?", "1"])
    evaluation = evaluate_traces(dataset, judged, Exact())
    assert [(trace.gold, trace.right) for trace in judged.values()] == [("0", [0.0, 1.0]), ("1", [None, 1.0])]
    assert evaluation.problems == ["problem-0", "problem-1"]
