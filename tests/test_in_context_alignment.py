"""The synthetic experiment of CaC: its construction, its loss, and that the docs show what was measured."""

import importlib
import json
import math

import pytest
import torch
from helpers import ROOT


@pytest.fixture
def experiment(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("in_context_alignment")


def batch(experiment, noise, n=400):
    return experiment.Batch(n, noise, torch.Generator().manual_seed(3))


def test_responses_mix_the_right_one_and_a_wrong_one(experiment):
    found = batch(experiment, 0.0)
    assert found.responses.shape == (400, 15, 5) and torch.equal(found.scores, found.quality)
    # y = r Wx + (1 - r) Vx: the wrong response that each implies is the same one, and not the right one
    share = found.quality[..., None]
    wrong = (found.responses - share * found.right[:, None]) / (1 - share)
    certain = found.quality < 0.9
    spread = (wrong - wrong[:, :1]).norm(dim=2)
    assert spread[certain & certain[:, :1]].max() < 1e-3
    assert torch.cosine_similarity(wrong[:, 0], found.right).mean().abs() < 0.1
    assert found.right.var().item() == pytest.approx(5, rel=0.2)  # each of Wx's coordinates sums 5 products


@pytest.mark.parametrize("noise", [0.0, 0.25, 1.0])
def test_noise_replaces_that_share_of_the_scores(experiment, noise):
    found = batch(experiment, noise)
    assert (found.scores != found.quality).float().mean().item() == pytest.approx(noise, abs=0.02)
    assert torch.equal(found.responses, batch(experiment, 0.0).responses)  # the same responses to all critics
    if noise == 1.0:
        assert torch.corrcoef(torch.stack([found.scores.flatten(), found.quality.flatten()]))[0, 1].abs() < 0.05


def test_the_plackett_luce_loss_is_that_of_the_formula(experiment):
    torch.manual_seed(0)
    answers, responses, scores = torch.randn(2, 4, 5), torch.randn(2, 4, 5), torch.rand(2, 4)
    found = experiment.plackett_luce_loss(answers, responses, scores)
    for row in range(2):
        for n in range(1, 5):
            strengths = [math.exp(torch.cosine_similarity(answers[row, n - 1], y, dim=0)) for y in responses[row]]
            ranked = sorted(range(n), key=lambda i: -scores[row, i])
            naive = sum(-math.log(strengths[i] / sum(strengths[j] for j in ranked[k:])) for k, i in enumerate(ranked))
            assert found[row, n - 1].item() == pytest.approx(naive, abs=1e-5)
    assert found[:, 0].abs().max() < 1e-6
    answers.requires_grad_()
    loss = experiment.plackett_luce_loss(answers, responses, scores).sum()
    assert torch.isfinite(torch.autograd.grad(loss, answers)[0]).all()


def test_a_line_through_exact_scores_is_the_right_response(experiment):
    found = experiment.without_a_model(batch(experiment, 0.0, n=100))
    assert found["line_through_the_scores"] == pytest.approx(1, abs=1e-3)
    assert found["best_by_the_critic"] == found["best_in_context"] > 0.95
    assert found["mean_response"] < found["best_in_context"]


def test_an_answer_sees_no_later_response(experiment):
    torch.manual_seed(0)
    model = experiment.InContextAligner(2, 2, 16).eval()
    one, other = batch(experiment, 0.0, n=3), batch(experiment, 0.0, n=3)
    other.responses = torch.cat([one.responses[:, :7], torch.randn(3, 8, 5)], dim=1)
    with torch.no_grad():
        first, second = model(one), model(other)
    assert torch.allclose(first[:, :7], second[:, :7], atol=1e-6) and not torch.allclose(first[:, 7], second[:, 7])


def test_it_runs(experiment, tmp_path, monkeypatch, capsys):
    held_out = experiment.held_out
    monkeypatch.setattr(experiment, "held_out", lambda noise: held_out(noise, 20))
    file = tmp_path / "x.jsonl"
    argv = [
        "--seeds",
        "0",
        "--results",
        str(file),
        "--steps",
        "2",
        "--batch_size",
        "4",
        "--layers",
        "1",
        "--width",
        "8",
    ]
    monkeypatch.setattr("sys.argv", ["in_context_alignment.py", *argv])
    experiment.main()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["loss"] for line in lines[1:]] == ["plackett_luce", "plain", "plain"]
    assert all(len(curve) == 15 for curve in lines[1]["cosine"].values()) and set(lines[0]["base"]) == set(
        lines[1]["cosine"]
    )
    assert "| best in context, by the critic |" in capsys.readouterr().out


def test_the_page_shows_the_committed_results(experiment):
    study = importlib.import_module("study")
    results = study.Study(ROOT / "results" / "in_context_alignment.jsonl", experiment.IDENTITY)
    page = (ROOT / "docs" / "self_checking.md").read_text(encoding="utf-8")
    assert results.seeds == [0, 1, 2] and all(line in page for line in experiment.table(results))
