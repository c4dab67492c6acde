"""Two processes on a CPU do what one does: the same gradient on stored pairs, and whole recipe runs."""

import json

import distributed_runs
import pytest
import torch
from helpers import ROOT, launch


pytestmark = pytest.mark.slow

LOGGED = {
    "pairs": ["loss", "logps/response", "logps/correction", "corrections/in_loss", "margins/mean", "num_tokens"],
    "replay": ["loss", "replay/loss", "logps/replay", "logps/correction", "num_tokens"],
    "score": ["loss", "reward/t2", "delta(i->c)", "kl/t1", "entropy/t2", "beta_2", "lengths/t1", "num_tokens"],
}


@pytest.fixture(scope="module")
def places(tmp_path_factory, tiny_model, plain_pairs, plain_prompts):
    """What `distributed_runs` is given: one launch on two processes makes every run."""
    folder = tmp_path_factory.mktemp("distributed")
    rows = plain_pairs.to_list()[:24]
    rows[3]["correction"] = rows[3]["response"]
    type(plain_pairs).from_list(rows).save_to_disk(folder / "pairs")
    plain_prompts.save_to_disk(folder / "prompts")
    places = [tiny_model, str(folder / "pairs"), str(folder / "prompts"), str(folder)]
    launch([distributed_runs.__file__, *places, "2"], n_processes=2, cwd=folder)
    return places


@pytest.mark.parametrize("name", distributed_runs.RUNS)
def test_two_processes_train_as_one(places, name):
    distributed_runs.run(name, *places, 1, 1)
    one, *others = (
        torch.load(f"{places[-1]}/{name}_{n_processes}_{accumulation}.pt", weights_only=True)
        for n_processes, accumulation in ((1, 1), (2, 1), (2, 2))
    )
    for other in others:
        for entry, expected in zip(other["log"], one["log"], strict=True):
            for key in LOGGED[name]:
                assert entry[key] == pytest.approx(expected[key], rel=1e-3 if name == "score" else 1e-4, abs=1e-5), key
        for key, tensor in one["weights"].items():
            torch.testing.assert_close(other["weights"][key], tensor, rtol=1e-3, atol=2e-5)


def test_the_recipe_runs_on_two_processes(tmp_path):
    launch(
        [
            str(ROOT / "recipes" / "correction_optimization.py"),
            *"--max_steps 2 --per_device_train_batch_size 8 --test_rows 41 --output_dir out".split(),
        ],
        n_processes=2,
        cwd=tmp_path,
    )
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["before"].keys() == metrics["after"].keys()
    assert metrics["after"]["acc@t1"]["n"] == 41


def test_the_score_recipe_runs_on_two_processes(tmp_path):
    launch(
        [
            str(ROOT / "recipes" / "score.py"),
            *"--max_steps 2 --per_device_train_batch_size 8 --num_generations 4".split(),
            *"--test_rows 41 --output_dir out".split(),
        ],
        n_processes=2,
        cwd=tmp_path,
    )
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["before"].keys() == metrics["after"].keys()
    assert metrics["after"]["acc@t2"]["n"] == 41
