"""Tables, pictures and card entries of an evaluation whose numbers can be checked on paper."""

import io
import json

import matplotlib.image
import numpy as np
import pytest
from datasets import Dataset
from huggingface_hub import ModelCard
from rich.console import Console

from correction_trl.evaluation import evaluate_traces
from correction_trl.inference import Trace
from correction_trl.reporting.strategies_report import (
    against,
    card_section,
    eval_results,
    last_turn,
    plot_accuracy_by_turn,
    plot_accuracy_tokens,
    plot_inference_compute,
    plot_transitions,
    print_strategies,
    strategy_rows,
    update_card,
    write_card_entry,
    write_evaluation,
)


PROBLEMS = Dataset.from_list([{"prompt": f"problem {i}", "answer": str(i)} for i in range(4)])
GAIN, LOSS, GREY = (77, 138, 87), (163, 38, 27), (200, 204, 208)


def is_answer(completions, answer, **_):
    return [None if text == "?" else float(text == right) for text, right in zip(completions, answer, strict=True)]


def evaluation(*responses, stop="last turn"):
    traces = {
        (row, 0): Trace(list(texts), [10] * len(texts), len(texts), stop=stop) for row, texts in enumerate(responses)
    }
    return evaluate_traces(PROBLEMS, traces, is_answer)


@pytest.fixture(scope="module")
def found():
    return {
        "intrinsic": evaluation("00", "11", "x2", "yy"),
        "best_of_n_oracle": evaluation("00", "11", "x2", "y3"),
        "resample": evaluation("0x", "1x", "x2", "?3"),
    }


def shares(path):
    """Share of the picture's pixels by the colours of its flows."""
    pixels = (matplotlib.image.imread(path)[:, :, :3] * 255).astype(int).reshape(-1, 3)
    # Flows are drawn over white with an alpha of 0.85
    mixed = {name: 0.85 * np.array(c) + 0.15 * 255 for name, c in (("gain", GAIN), ("loss", LOSS))}
    return {name: (np.abs(pixels - color).max(axis=1) <= 2).mean() for name, color in mixed.items()}


def test_the_rows_of_the_table(found):
    rows = {row[0]: row[1:] for row in strategy_rows(found, "intrinsic")}
    assert rows["intrinsic"][0].startswith("50.0% [") and rows["intrinsic"][1].startswith("75.0% [")
    assert rows["intrinsic"][2].startswith("25.0%") and rows["intrinsic"][3].startswith("0.0%")
    assert rows["intrinsic"][4:] == ["20", "-", "4"]
    # Three judged problems: the oracle is no better on them, resampling loses two
    assert rows["best_of_n_oracle"][5].startswith("+25.0 pp") and rows["resample"][5].startswith("-66.7 pp")
    assert rows["resample"][-1] == "3"
    assert against(found, "intrinsic")["resample"]["n"] == 3
    assert last_turn(found["intrinsic"]) == 2


def test_the_printed_table_says_what_was_not_counted(found):
    text = io.StringIO()
    print_strategies(found, "intrinsic", "model on data", Console(file=text, width=170))
    assert "model on data; with 95% intervals" in text.getvalue()
    assert "against intrinsic" in text.getvalue()
    assert "resample: 1 responses that were not judged (left out)" in text.getvalue()
    assert "stopped" not in text.getvalue(), "all for the same reason"
    narrow = io.StringIO()
    print_strategies(found, "intrinsic", "model on data", Console(file=narrow, width=80))
    assert "75.0%" in narrow.getvalue()


def test_transitions_show_what_was_gained_and_lost(tmp_path):
    gained = plot_transitions({"gained": evaluation("x0", "x1", "22", "33")}, tmp_path / "gained.png")
    lost = plot_transitions({"lost": evaluation("0x", "1x", "22", "33")}, tmp_path / "lost.png")
    nothing = plot_transitions({"same": evaluation("00", "11", "xx", "xx")}, tmp_path / "same.png")
    assert shares(gained)["gain"] > 0.05 > 0.01 > shares(gained)["loss"]
    assert shares(lost)["loss"] > 0.05 > 0.01 > shares(lost)["gain"]
    assert max(shares(nothing).values()) < 0.01
    more = plot_transitions({"a": evaluation("x01", "x11"), "b": evaluation("00", "11")}, tmp_path / "new" / "two.png")
    assert matplotlib.image.imread(more).shape[1] > matplotlib.image.imread(lost).shape[1]


def test_pictures_of_nothing_are_not_drawn(tmp_path, caplog):
    unjudged, single = evaluation("??", "??"), evaluation("0", "1")
    assert plot_transitions({"unjudged": unjudged, "single": single}, tmp_path / "t.png") is None
    assert plot_accuracy_by_turn({"unjudged": unjudged}, tmp_path / "a.png") is None
    assert plot_accuracy_tokens({"unjudged": unjudged}, tmp_path / "k.png") is None
    assert list(tmp_path.iterdir()) == [] and len(caplog.records) >= 3
    assert plot_accuracy_by_turn({"single": single}, tmp_path / "a.png") is not None


def test_accuracy_pictures(found, tmp_path):
    for plot in (plot_accuracy_by_turn, plot_accuracy_tokens):
        picture = matplotlib.image.imread(plot(found, tmp_path / f"{plot.__name__}.png"))
        assert picture.shape[:2] == (480, 800) and picture.std() > 0.05


def test_a_card_is_updated_and_nothing_else_in_it_is_lost(found, tmp_path):
    section = card_section(found, "intrinsic", "problems (test)", "Greedy, 2 attempts.")
    results = eval_results(found["intrinsic"], "intrinsic", "problems (test)", "custom")
    entry = ModelCard.load(write_card_entry(tmp_path / "entry.md", section, results, "mine"))
    assert entry.data.model_name == "mine"
    assert {r.metric_type for r in entry.data.eval_results} >= {"acc@t1", "acc@t2", "delta(i->c)", "fix_rate"}
    assert not any(r.metric_type.startswith("tokens") for r in entry.data.eval_results)

    path = tmp_path / "README.md"
    path.write_text("---\nlicense: mit\n---\n\n# Mine\n\nSome text.\n")
    update_card(path, section, results, "mine")
    card = ModelCard.load(path)
    assert card.data.license == "mit" and card.text.strip().startswith("# Mine\n\nSome text.\n\n<!-- evaluation")
    path.write_text(path.read_text() + "\nMore text.\n")
    better = {"intrinsic": found["best_of_n_oracle"]}
    update_card(path, card_section(better, "intrinsic", "problems (test)", "Again."), results[:1], "mine")
    update_card(path, card_section(better, "intrinsic", "others (test)", "Elsewhere."), [], "mine")
    card = ModelCard.load(path)
    assert "Greedy, 2 attempts." not in card.text and "Again." in card.text and "Elsewhere." in card.text
    assert "Some text." in card.text and "More text." in card.text
    assert len(card.data.eval_results) == len(results)


def test_nothing_that_is_written_holds_a_path_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["recipes/evaluate.py", "--dataset_name", str(tmp_path / "my data.jsonl")])
    found = {"intrinsic": evaluation(("0", "0"), ("1", "2"), ("2", "2"), ("x", "3"))}
    write_evaluation(
        tmp_path / "out",
        before=found,
        after=found,
        model_name=str(tmp_path / "my-model"),
        compare_with=str(tmp_path / "my-base"),
        dataset_name=str(tmp_path / "my data.jsonl"),
        split="test",
        how="Greedy decoding.",
        seconds=1.0,
        config={"output_dir": str(tmp_path / "out"), "server_base_url": "http://127.0.0.1:8071/v1"},
    )
    entry, metrics = ((tmp_path / "out" / name).read_text() for name in ("card_entry.md", "metrics.json"))
    assert str(tmp_path) not in entry + metrics and "/tmp" not in entry + metrics
    assert "## Evaluation: my data.jsonl (test)" in entry and '"compared_with": "my-base"' in metrics
    assert "http://127.0.0.1:8071/v1" in metrics
    lines = [json.loads(line) for line in (tmp_path / "out" / "per_problem.jsonl").read_text().splitlines()]
    assert [line["problem"] for line in lines] == [0, 1, 2, 3]
    assert [line["after"]["intrinsic"]["acc@t1"] for line in lines] == [1, 1, 1, 0]
    assert [line["before"]["intrinsic"]["acc@t2"] for line in lines] == [1, 0, 1, 1]


def test_the_inference_compute_curve_is_drawn_over_budgets(tmp_path, found, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        "correction_trl.reporting.strategies_report._plot_accuracy",
        lambda evaluations, path, points, *_, **__: drawn.update({n: points(e) for n, e in evaluations.items()}),
    )
    curve = {"parallel": evaluation("xx0", "x11", "x22", "yyy"), "parallel_corrected": evaluation("000", "x11", "2")}
    plot_inference_compute(curve | found, tmp_path / "curve.png")
    assert drawn == {"parallel": [2, 4, 8], "parallel_corrected": [2, 4, 8]}
    assert plot_inference_compute(found, tmp_path / "none.png") is None
