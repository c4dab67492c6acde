"""The regression check: lm-eval's own numbers, with intervals where they are means, and no run lost by it."""

import importlib.util
import json
import sys
import types

import pytest
import torch
from helpers import build_model, make_args
from transformers import AutoModelForCausalLM

from correction_trl import CorrectionOptimizationConfig, CorrectionOptimizationTrainer
from correction_trl.errors import BadInput
from correction_trl.evaluation import RegressionCheck, evaluate_regression
from correction_trl.evaluation.metrics import wilson_interval
from correction_trl.reporting import write_report
from correction_trl.reporting.run_metrics import metric_unit


def found(right, perplexity=3.5):
    """What lm-eval returns of a task with two filters, of a corpus' metric, and of a group."""
    samples = [
        {"doc_id": i, "filter": name, "exact_match": value}
        for name, values in (("strict", right), ("loose", [1.0] * len(right)))
        for i, value in reversed(list(enumerate(values)))
    ]
    words = [{"doc_id": i, "filter": "none", "word_perplexity": [-3.0, 2]} for i in range(4)]
    return {
        "results": {
            "sums": {
                "alias": "sums",
                "sample_len": len(right),
                "exact_match,strict": sum(right) / len(right),
                "exact_match_stderr,strict": 0.1,
                "exact_match,loose": 1.0,
            },
            "wiki": {"sample_len": 4, "word_perplexity,none": perplexity, "word_perplexity_stderr,none": "N/A"},
            "not_asked_for": {"sample_len": 1, "acc,none": 1.0},
        },
        "samples": {"sums": samples, "wiki": words},
        "n-shot": {"sums": 5, "wiki": 0},
        "versions": {"sums": 3.0, "wiki": 1.0},
        "lm_eval_version": "0.4.13",
    }


@pytest.fixture
def lm_eval(monkeypatch):
    """A stand-in that returns, or raises, one answer after another and keeps what it was called with."""
    module, calls = types.ModuleType("lm_eval"), []
    module.answers, module.calls = [], calls

    def simple_evaluate(model, **kwargs):
        calls.append((model, kwargs, model.policy.training))
        torch.rand(1)
        answer = module.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def hflm(pretrained, tokenizer, batch_size):
        return types.SimpleNamespace(policy=pretrained, tokenizer=tokenizer, batch_size=batch_size)

    module.simple_evaluate = simple_evaluate
    for name, attributes in (
        ("lm_eval", vars(module)),
        ("lm_eval.models", {}),
        ("lm_eval.models.huggingface", {"HFLM": hflm}),
        ("lm_eval.tasks", {"TaskManager": lambda include_path: ("manager", include_path)}),
    ):
        part = module if name == "lm_eval" else types.ModuleType(name)
        part.__spec__ = importlib.util.spec_from_loader(name, None)
        vars(part).update(attributes)
        monkeypatch.setitem(sys.modules, name, part)
    return module


@pytest.fixture
def make_trainer(tmp_path, tiny_model, plain_pairs):
    def make():
        args = CorrectionOptimizationConfig(**make_args(tmp_path, max_steps=1))
        return CorrectionOptimizationTrainer(tiny_model, args, train_dataset=plain_pairs)

    return make


def test_means_have_intervals_and_other_numbers_are_lm_evals(lm_eval, tiny_tokenizer):
    lm_eval.answers = [found([1.0, 0.0, 0.0, 1.0, 1.0])]
    model = build_model(tiny_tokenizer).train()
    evaluation = evaluate_regression(model, tiny_tokenizer, ["sums", "wiki"], limit=5, batch_size=3)
    strict = evaluation.metrics["regression/sums/exact_match,strict"]
    assert (strict["mean"], strict["n"]) == (0.6, 5)
    assert (strict["low"], strict["high"]) == pytest.approx(wilson_interval(3, 5, 0.95))
    assert evaluation.per_problem["regression/sums/exact_match,strict"] == [1.0, 0.0, 0.0, 1.0, 1.0]
    wiki = evaluation.metrics["regression/wiki/word_perplexity"]
    assert wiki["mean"] == 3.5 and wiki["n"] == 4 and wiki["low"] != wiki["low"]
    assert len(evaluation.metrics) == 3 and "regression/wiki/word_perplexity" not in evaluation.per_problem
    assert [metric_unit(name) for name in evaluation.metrics] == ["%", "%", ""]
    ((lm, kwargs, was_training),) = lm_eval.calls
    assert not was_training and model.training, "it is evaluated in evaluation mode, and trained on as before"
    assert lm.tokenizer is not tiny_tokenizer and lm.batch_size == 3
    assert kwargs["limit"] == 5 and kwargs["apply_chat_template"] is True


def test_the_random_numbers_of_the_training_go_on_where_they_were(lm_eval, tiny_tokenizer):
    lm_eval.answers = [found([1.0])]
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    evaluate_regression(build_model(tiny_tokenizer), tiny_tokenizer, ["sums"])
    assert torch.equal(torch.rand(2), expected)
    kwargs = lm_eval.calls[0][1]  # of Python and NumPy it is asked to leave alone
    assert [kwargs[f"{name}_seed"] for name in ("random", "numpy_random", "torch_random")] == [None] * 3


def test_both_sides_are_in_the_report_with_their_difference(lm_eval, make_trainer, tmp_path, capsys):
    trainer = make_trainer()
    lm_eval.answers = [found([1.0, 1.0, 1.0, 0.0]), found([1.0, 0.0, 0.0, 0.0], perplexity=4.0)]
    check = RegressionCheck(["sums,wiki"], limit=4)
    assert check.tasks == ["sums", "wiki"] and check.found() is None
    check.measure(trainer, "before")
    check.measure(trainer, "after")
    trainer.train()
    report = write_report(
        tmp_path / "output",
        log_history=trainer.state.log_history,
        before=None,
        after=None,
        seconds=1.0,
        config={},
        more={"regression": check.setup},
        regression=check.found(),
        base_model=None,
        dataset_name=None,
        method={"name": "Plain"},
    )
    name = "regression/sums/exact_match,strict"
    saved = json.loads((tmp_path / "output" / "metrics.json").read_text())
    assert saved["before"][name]["mean"] == 0.75 and saved["difference"][name]["mean"] == -0.5
    assert saved["regression"] == {
        "lm_eval": "0.4.13", "n_shot": {"sums": 5, "wiki": 0}, "task_versions": {"sums": 3.0, "wiki": 1.0}, "limit": 4,
    }  # fmt: skip
    assert "regression/wiki/word_perplexity" not in report["difference"]
    card = (tmp_path / "output" / "README.md").read_text()
    assert "| `regression/sums/exact_match,strict` | 75.0% [" in card and "-50.0 pp" in card
    assert "| `regression/wiki/word_perplexity` | 3.50 | 4.00 | - | 4 |" in card


def test_what_fails_before_ends_the_run_and_what_fails_after_is_said(lm_eval, make_trainer, capsys):
    trainer, check = make_trainer(), RegressionCheck(["nope"])
    lm_eval.answers = [KeyError("Spec 'nope' is not a registered task"), found([1.0]), OSError("no network\nat all")]
    with pytest.raises(BadInput, match="lm-eval cannot run nope .*not a registered task.*`lm_eval ls tasks`"):
        check.measure(trainer, "before")
    check.measure(trainer, "before")
    check.measure(trainer, "after")
    assert "(OSError: no network)" in capsys.readouterr().out and check.found() is None


def test_a_process_that_lm_eval_gives_nothing_goes_on_without(lm_eval, make_trainer):
    trainer, check = make_trainer(), RegressionCheck(["sums"])
    lm_eval.answers = [None, None, None]
    check.measure(trainer, "before")
    check.measure(trainer, "after")
    assert check.found() is None and check.setup == {}
    assert evaluate_regression(trainer.model, trainer.processing_class, ["sums"]) is None


def test_bad_input_is_one_sentence(lm_eval, monkeypatch, tmp_path):
    with pytest.raises(BadInput, match="names no task"):
        RegressionCheck([" , "])
    with pytest.raises(BadInput, match="`regression_path=.*is no folder"):
        RegressionCheck(["gsm8k"], include_path=str(tmp_path / "nowhere"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install 'correction-trl\[regression\]'"):
        RegressionCheck(["gsm8k,ifeval"])


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed: pip install lm-eval"
)
def test_lm_eval_itself_on_a_task_of_ones_own(tmp_path, tiny_model, tiny_tokenizer):
    rows = [{"question": f"what is {i}+1? ", "place": i} for i in range(4)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sums.yaml").write_text(
        f"""task: sums_of_mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/sums.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["1", "2", "3", "4"]
doc_to_target: place
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    evaluation = evaluate_regression(model, tiny_tokenizer, ["sums_of_mine"], include_path=str(tmp_path))
    right = []
    for row in rows:  # the most likely of the four choices, by plain transformers
        prompt = tiny_tokenizer.apply_chat_template(
            [{"role": "user", "content": row["question"]}], add_generation_prompt=True, return_dict=False
        )
        logits = model(torch.tensor([prompt])).logits[0, -1]
        scores = [float(logits[tiny_tokenizer.convert_tokens_to_ids(digit)]) for digit in "1234"]
        right.append(float(scores.index(max(scores)) == row["place"]))
    assert evaluation.per_problem["regression/sums_of_mine/acc"] == right
    assert evaluation.metrics["regression/sums_of_mine/acc"]["n"] == 4
