"""Trackers get the corrections and the pictures, nothing secret, and cannot lose a run."""

import html
import importlib.util
import sys
from types import SimpleNamespace

import pytest
from helpers import make_args
from small_run import HUB_TOKEN
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from correction_trl import CorrectionOptimizationConfig, CorrectionOptimizationTrainer
from correction_trl.errors import BadInput
from correction_trl.reporting import check_trackers, example_row, guard_trackers, log_report, run_pages
from correction_trl.reporting.trackers import Tracker, trackers_of


def needs(package):
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed: pip install {package}")


EXAMPLES = [
    {"prompt": "2+2?", "response": "it is 5, I think", "correction": "it is 4, I think"},
    {"prompt": "a | b", "response": f"*{HUB_TOKEN}*\nyes", "correction": None},
]


@pytest.fixture
def make_trainer(tmp_path, tiny_model, plain_prompts):
    def make(report_to, teacher=lambda prompts, responses, answer, **columns: answer, **settings):
        args = CorrectionOptimizationConfig(
            **make_args(tmp_path, report_to=report_to, max_steps=2, log_completions=True, **settings)
        )
        return CorrectionOptimizationTrainer(tiny_model, args, train_dataset=plain_prompts, teacher=teacher)

    return make


def run(trainer, tmp_path):
    """As a recipe: the examples before, the training, the report."""
    from matplotlib.figure import Figure

    guard_trackers(trainer, keep_open=True, examples=EXAMPLES)
    trainer.train()
    Figure().savefig(tmp_path / "output" / "learning_curves.png")
    pages = run_pages(trainer)
    log_report(trainer, EXAMPLES[:1], tmp_path / "output")
    return pages


def test_the_edits_of_a_row_are_marked_and_secrets_are_not_in_it():
    first, second = map(example_row, EXAMPLES)
    assert first["edits"] == "it is [-5-]{+4+}, I think"
    assert second["correction"] == second["edits"] == "(none)" and HUB_TOKEN not in second["response"]
    assert example_row(EXAMPLES[0] | {"correction": EXAMPLES[0]["response"]})["edits"] == EXAMPLES[0]["response"]


@needs("tensorboard")
def test_tensorboard_has_tables_and_pictures_in_its_event_files(make_trainer, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer("tensorboard")
    assert run(trainer, tmp_path) == {}  # its page is on this machine
    found = EventAccumulator(str(next((tmp_path / "output" / "runs").iterdir()))).Reload()
    tables = {tag.removesuffix("/text_summary"): found.Tensors(tag) for tag in found.Tags()["tensors"]}
    assert {"corrections/before", "corrections/after", "completions"} <= tables.keys()
    assert [event.step for event in tables["completions"]] == [1, 2]
    assert [event.step for event in tables["corrections/after"]] == [2]
    before = tables["corrections/before"][0].tensor_proto.string_val[0].decode()
    assert [len(line.split(" | ")) for line in before.splitlines()] == [5] * 4, "a text has broken the table"
    assert "it is [-5-]{+4+}, I think" in html.unescape(before) and HUB_TOKEN not in html.unescape(before)
    assert found.Tags()["images"] == ["pictures/learning_curves"]
    assert "train/logps/correction" in found.Tags()["scalars"]


@needs("trackio")
def test_trackio_has_one_run_with_tables_and_pictures(make_trainer, tmp_path):
    import trackio
    from trackio import context_vars
    from trackio.sqlite_storage import SQLiteStorage

    trainer = make_trainer("trackio", project="corrections", run_name="first")
    assert run(trainer, tmp_path) == {}
    assert context_vars.current_run.get() is None, "the run was not ended"
    (tracked,) = trackio.Api().runs("corrections")
    assert tracked.name == "first"
    logged = {}
    for entry in SQLiteStorage.get_logs("corrections", "first"):
        for key, value in entry.items():
            logged.setdefault(key, []).append(value)
    assert [row["edits"] for row in logged["corrections/before"][0]["_value"]] == [
        "it is [-5-]{+4+}, I think", "(none)",
    ]  # fmt: skip
    assert len(logged["completions"]) == 2 and len(logged["corrections/after"]) == 1
    assert logged["pictures/learning_curves"][0]["_type"] == "trackio.image"
    assert HUB_TOKEN not in str(logged)


@needs("wandb")
@pytest.mark.slow
def test_wandb_offline_has_tables_and_pictures(make_trainer, tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    trainer = make_trainer("wandb")
    assert run(trainer, tmp_path) == {}  # it has no page
    wandb.finish()
    (media,) = tmp_path.glob("wandb/offline-run-*/files/media")
    files = {path.relative_to(media).as_posix() for path in media.rglob("*") if path.is_file()}
    for start in (
        "table/completions",
        "table/corrections/before",
        "table/corrections/after",
        "images/pictures/learning_curves",
    ):
        assert any(file.startswith(start) for file in files), (start, files)
    texts = [path.read_text() for path in media.rglob("*.json")]
    assert any("[-5-]{+4+}" in text for text in texts) and not any(HUB_TOKEN in text for text in texts)


class FailingTracker(TensorBoardCallback):
    """A tracker whose server goes away in the middle of a run."""

    def __init__(self):
        self.tb_writer = None
        self.logged = 0

    def on_train_begin(self, *args, **kwargs):
        pass

    def on_log(self, *args, **kwargs):
        self.logged += 1
        raise ConnectionError(f"no route to host, key {HUB_TOKEN}")

    def on_train_end(self, *args, **kwargs):
        raise AssertionError("a tracker that has failed is asked no more")


def test_a_tracker_that_fails_loses_its_records_and_not_the_run(make_trainer, tmp_path, caplog):
    trainer = make_trainer("none")
    failing = FailingTracker()
    trainer.add_callback(Tracker(failing, keep_open=True, examples=EXAMPLES))
    with caplog.at_level("WARNING", logger="correction_trl.reporting.trackers"):
        run(trainer, tmp_path)
    assert trainer.state.global_step == 2 and failing.logged <= 1
    warnings = [r.getMessage() for r in caplog.records if r.name == "correction_trl.reporting.trackers"]
    assert len(warnings) == 1 and "TensorBoard failed" in warnings[0] and HUB_TOKEN not in warnings[0]


def test_a_tracker_that_cannot_start_ends_the_run_in_one_sentence(make_trainer):
    class NotLoggedIn(FailingTracker):
        def on_train_begin(self, *args, **kwargs):
            raise RuntimeError(f"api_key not configured: {HUB_TOKEN}\nmore")

    trainer = make_trainer("none")
    trainer.add_callback(Tracker(NotLoggedIn()))
    with pytest.raises(BadInput, match="^TensorBoard could not be started .*leave it out of `report_to`") as caught:
        trainer.train()
    assert HUB_TOKEN not in str(caught.value)


def test_without_a_tracker_nothing_is_sent_and_no_process_but_the_first_sends(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer("none")
    assert run(trainer, tmp_path) == {} and trackers_of(trainer) == []
    trainer.add_callback(Tracker(FailingTracker()))
    assert len(trackers_of(trainer)) == 1
    monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
    assert trackers_of(trainer) == []


def test_a_tracker_that_is_not_there_is_one_sentence_with_the_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput, match="needs the package trackio: pip install trackio"):
        check_trackers(["trackio"])
    with pytest.raises(BadInput, match="`report_to: tensorbord` is no tracker .*tensorboard"):
        check_trackers(["tensorbord"])
    check_trackers([], {"token": HUB_TOKEN})
    with pytest.raises(BadInput, match="`model_init_kwargs` holds a `token`") as caught:
        check_trackers(["tensorboard"], {"torch_dtype": "auto", "token": HUB_TOKEN})
    assert HUB_TOKEN not in str(caught.value)


def test_a_page_is_linked_where_others_can_open_it_and_without_its_key(monkeypatch):
    of_wandb, of_trackio = (Tracker(kind.__new__(kind)) for kind in (WandbCallback, TrackioCallback))
    wandb = SimpleNamespace(run=None)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert of_wandb.page() is None
    address = "https://wandb.ai/me/corrections/runs/1"
    wandb.run = SimpleNamespace(offline=False, url=f"{address}?apiKey={HUB_TOKEN}")
    assert of_wandb.page() == ("Weights & Biases", address)
    wandb.run.offline = True
    assert of_wandb.page() is None
    assert of_trackio.page() is None
    space = "https://me-board.hf.space?project=my project&runs=1"
    monkeypatch.setattr("correction_trl.reporting.trackers.get_trackio_space_url", lambda: space)
    assert of_trackio.page() == ("trackio", space.replace(" ", "%20"))


class Page(Tracker):
    def _url(self):
        return "https://wandb.ai/me/my project/runs/1"


def test_the_card_links_the_runs_page(make_trainer, tmp_path):
    from huggingface_hub import ModelCard

    trainer = make_trainer("none")
    trainer.create_model_card()
    assert "As it was tracked" not in ModelCard.load(tmp_path / "output" / "README.md").content
    tracker = Page(FailingTracker())
    trainer.add_callback(tracker)
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "output" / "README.md").content
    assert "As it was tracked: [" in card and "](https://wandb.ai/me/my%20project/runs/1)." in card
