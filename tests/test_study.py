"""The frame of the studies: nothing runs twice, runs of other settings stay out, docs show what was measured."""

import importlib
import json

import pytest
from helpers import ROOT


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    return importlib.import_module("study")


CELLS = [{"arm": arm, "seed": seed} for seed in (0, 1) for arm in ("a", "b, of two words")]


def test_a_cell_is_run_once(study, tmp_path, capsys):
    asked = []

    def measure(cell):
        asked.append(cell)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return {"acc": {"mean": cell["seed"]}, "summary": "done"}

    results = study.Study(tmp_path / "new" / "x.jsonl", ("arm", "seed"))
    results.begin("python x.py", lambda: {"acc": 0.5}, steps=3)
    with pytest.raises(KeyboardInterrupt):
        results.run(CELLS, measure)
    again = study.Study(tmp_path / "new" / "x.jsonl", ("arm", "seed"))
    again.begin("python x.py", pytest.fail, steps=3)  # the base is not measured again
    again.run(CELLS, measure)
    assert asked == [*CELLS[:3], *CELLS[2:]]
    assert "b, of two words 0 done" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "new" / "x.jsonl").read_text().splitlines()]
    assert lines[0]["base"] == {"acc": 0.5} and lines[0]["command"] == "python x.py" and len(lines) == 5
    assert [run["acc"]["mean"] for run in again.where(arm="a")] == [0, 1] and again.seeds == [0, 1]
    assert "summary" not in lines[1] and lines[1]["seconds"] >= 0


def test_processes_share_the_cells(study, tmp_path):
    for part in ("0/2", "1/2"):
        results = study.Study(tmp_path / "x.jsonl", ("arm", "seed"))
        results.begin("x")
        results.run(CELLS, lambda cell, part=part: {"part": part}, part)
    runs = study.Study(tmp_path / "x.jsonl", ("arm", "seed")).runs
    assert [run["part"] for run in runs] == ["0/2", "0/2", "1/2", "1/2"]
    assert sorted((run["seed"], run["arm"]) for run in runs) == [(cell["seed"], cell["arm"]) for cell in CELLS]


def test_runs_of_other_settings_are_refused(study, tmp_path):
    study.Study(tmp_path / "x.jsonl", ("seed",)).begin("x", steps=3)
    with pytest.raises(SystemExit, match="holds runs with another steps; name other --results"):
        study.Study(tmp_path / "x.jsonl", ("seed",)).begin("x", steps=4)


def test_numbers_and_tables(study):
    assert study.mean_std([0.5]) == (0.5, 0)
    assert study.plus_minus([0.25, 0.75]) == "50.0 ± 35.4"
    assert study.table(["", "a"], [["x", "1"], ["y", ""]]) == ["| | a |", "|---|---|", "| x | 1 |", "| y | |"]


@pytest.mark.parametrize(
    "name", ["loss_study", "two_lengths_study", "length_prior_study", "corrector_study", "score_study"]
)
def test_the_docs_show_the_committed_results(study, name, tmp_path, monkeypatch):
    module = importlib.import_module(name)
    attribute = "TABLES" if name in ("corrector_study", "score_study") else "TABLE"
    committed = getattr(module, attribute)
    monkeypatch.setattr(module, attribute, tmp_path / "table.md")
    for drawing in ("draw", "write_picture"):
        monkeypatch.setattr(module, drawing, lambda *_: None, raising=False)
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--tables"])
    module.main()
    assert (tmp_path / "table.md").read_text() == committed.read_text()


def test_the_page_of_scl_shows_the_committed_results(study):
    module = importlib.import_module("scl_study")
    results = study.Study(ROOT / "results" / "scl_study.jsonl", ("arm", "learning_rate", "seed"))
    page = (ROOT / "docs" / "self_correction_dpo.md").read_text()
    assert all(line in page for line in module.table(results))


def test_the_table_of_replay_is_what_was_measured(study):
    runs = study.Study(ROOT / "results" / "replay_study.jsonl", ("share", "seed"))
    docs = (ROOT / "docs" / "correction_optimization.md").read_text(encoding="utf-8")
    for share in (0.0, 0.05, 0.1, 0.3):
        found = runs.where(share=share)
        assert [run["seed"] for run in found] == [0, 1, 2]
        cells = (study.plus_minus(run[name]["mean"] for run in found) for name in ("taught", "others"))
        assert f"| {share:g} | {' | '.join(cells)} |" in docs
    base = runs.settings["base"]
    cells = (f"{100 * base[name]['mean']:.1f}" for name in ("taught", "others"))
    assert f"| before training | {' | '.join(cells)} |" in docs
