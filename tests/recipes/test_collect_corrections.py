"""The recipe that collects corrections, as a user runs it."""

import importlib.util
import io
import json
import sys
from pathlib import Path

import pytest
from datasets import load_dataset
from hub_stand_in import HubStandIn, run_online
from huggingface_hub import DatasetCard
from misbehaving_server import FAULTS, plan, running
from rich.console import Console

from correction_trl.data_utils import check_dataset
from correction_trl.recipe import run
from correction_trl.teachers import Correction, CorrectionStore, Progress
from correction_trl.teachers.console import ProgressLine, progress_text
from correction_trl.teachers.store import STATUSES


pytestmark = pytest.mark.slow


RECIPE = Path(__file__).parents[2] / "recipes" / "collect_corrections.py"
KEY = "sk-standin-key-that-must-never-be-shown-0123456789"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("recipe_collect_corrections", RECIPE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def collect(recipe, tmp_path, monkeypatch):
    """The recipe with some arguments; returns its output folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TEACHER_API_KEY", raising=False)

    def collect(*arguments):
        argv = ["--output_dir", "out", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", ["recipes/collect_corrections.py", *argv])
        run(recipe.main, *recipe.parse_arguments(argv))
        return tmp_path / "out"

    return collect


@pytest.fixture
def responses(tmp_path):
    """A file with 40 prompts and responses."""
    file = tmp_path / "responses.jsonl"
    rows = [{"prompt": f"item {i}", "response": f"wrong {i}", "answer": f"right {i}"} for i in range(40)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def by_server(server, *more):
    url = ["--teacher_base_url", server.url, "--teacher_concurrency", "8", "--teacher_timeout", "1"]
    return ["--teacher", "server", "--teacher_model", "tiny", *url, *more]


def answers(prompts, responses, answer, **columns):
    return [right if i % 2 else response for i, (right, response) in enumerate(zip(answer, responses, strict=True))]


def test_no_arguments_sample_correct_and_leave_a_dataset(collect, capsys):
    out = collect("--rows", "32")
    assert {"README.md", "metrics.json", "edits.png", "examples.png"} <= {p.name for p in (out / "dataset").iterdir()}
    printed = capsys.readouterr().out
    assert "32/32 done" in printed and "responses were corrected" in printed
    pairs = load_dataset(str(out / "dataset"), split="train")
    check_dataset(pairs, "train_dataset")
    assert pairs["correction"][:] == pairs["answer"][:] and len(pairs) == 32
    preferences = load_dataset(str(out / "dataset"), "preference", split="train")
    n_changed = sum(row["response"] != row["correction"] for row in pairs)
    assert 0 < len(preferences) == n_changed < 32
    assert preferences[0]["chosen"][0]["content"] != preferences[0]["rejected"][0]["content"]
    metrics = json.loads((out / "dataset" / "metrics.json").read_text())
    assert metrics["after"]["correction_edit_ratio"]["n"] == 32 and metrics["counts"]["corrected"] == n_changed
    card = DatasetCard.load(out / "dataset" / "README.md")
    assert [config["config_name"] for config in card.data.to_dict()["configs"]] == ["default", "preference"]
    assert str(out.parent) not in card.content and "right_answer_teacher" in card.content
    # Once more: the same responses, and nobody is asked
    collect("--rows", "32")
    assert "32 of them from the store" in capsys.readouterr().out
    assert load_dataset(str(out / "dataset"), split="train")["key"][:] == pairs["key"][:]
    collect("--rows", "48")  # `load_dataset` does not show its copy of what lay there before
    assert len(load_dataset(str(out / "dataset"), split="train")) == 48


def test_fewer_rows_or_more_have_the_same_responses_and_nothing_is_asked_twice(collect, capsys):
    keys = {}
    for rows in (40, 12, 1, 48):
        out = collect("--rows", str(rows))
        pairs = load_dataset("parquet", data_files=str(out / "dataset" / "data" / "*.parquet"), split="train")
        keys[rows] = pairs["key"][:]
        asked, printed = {40: 40, 48: 8}.get(rows, 0), capsys.readouterr().out
        assert f"{rows}/{rows} done" in printed
        assert (f"{rows - asked} of them from the store" in printed) == (asked < rows)
        assert (f"Sampling {asked} responses" in printed) == (asked > 0)
    assert keys[12] == keys[40][:12] and keys[1] == keys[40][:1] and keys[48][:40] == keys[40]


def test_replies_that_cannot_be_read_are_asked_for_again_only_on_request(collect, responses, capsys):
    few = ["--dataset_name", responses, "--rows", "5"]
    with running(faults="wrong_format", share=1.0, stubborn=1.0) as server:
        with pytest.raises(SystemExit) as stopped:
            collect(*few, *by_server(server))
        message = str(stopped.value)
        assert "items asked have no correction" in message and "only with `retry_unparsable`" in message
        assert "when the run is started again" not in message and "`plain_correction`" in message
        with pytest.raises(
            SystemExit, match="5 replies could not be read .asked for again only with `retry_unparsable`"
        ):
            collect(*few, *by_server(server, "--max_failed_share", "1"))
        # The template without tags can read them all
        out = collect(*few, *by_server(server, "--teacher_template", "plain_correction"))
    capsys.readouterr()
    metrics = json.loads((out / "dataset" / "metrics.json").read_text())
    assert metrics["counts"] == {
        "kept": 5, "corrected": 5, "unchanged": 0, "not_better": 0, "unparsable": 0, "missing": 0,
    }  # fmt: skip
    with running() as server:
        with pytest.raises(SystemExit, match="no correction to write: 5 replies could not be read"):  # asked nothing
            collect(*few, *by_server(server))
        assert not server.stats()["asked"]
        collect(*few, *by_server(server, "--retry_unparsable", "true"))
        assert len(server.stats()["asked"]) == 5


def test_a_server_that_misbehaves_costs_what_it_costs_and_the_run_ends_with_a_summary(
    collect, responses, capsys, monkeypatch
):
    monkeypatch.setenv("TEACHER_API_KEY", KEY)
    with running(faults=",".join(FAULTS), share=0.1, stubborn=0.5, echo_key=8) as server:
        price = ["--teacher_price_in", "2", "--teacher_price_out", "8", "--teacher_retries", "2"]
        out = collect("--dataset_name", responses, "--max_failed_share", "0.6", *by_server(server, *price))
    # A reply that holds the key is not kept, and costs one item: nothing is struck out of a correction
    lost = sum(i % 8 == 0 or plan(i, list(FAULTS), 0.1, 0.5)[1] > 2 for i in range(40))
    printed = capsys.readouterr().out
    assert 3 < lost < 25
    metrics = json.loads((out / "dataset" / "metrics.json").read_text())
    usage = metrics["usage"]
    assert usage["corrected"] == 40 - lost and usage["failed"] + usage["unparsable"] == lost
    assert (
        usage["cost"] == pytest.approx((usage["tokens_in"] * 2 + usage["tokens_out"] * 8) / 1e6) and usage["cost"] > 0
    )
    for words in ("40/40 done", f"{40 - lost} corrected", "tokens", "cost 0.0", " x failed: ", " x unparsable: "):
        assert words in printed
    card = (out / "dataset" / "README.md").read_text()
    assert "reply_tag" in card and "corrections by tiny" in card
    assert KEY not in printed
    for file in out.rglob("*"):
        assert file.is_dir() or KEY.encode() not in file.read_bytes(), file


def test_too_many_failures_end_the_run_with_one_sentence_and_nothing_is_lost(collect, responses):
    with running(faults="500", share=0.5, stubborn=1.0) as server:
        with pytest.raises(SystemExit) as stopped:
            collect("--dataset_name", responses, *by_server(server, "--teacher_retries", "0"))
    message = str(stopped.value)
    assert "more than the share of 10% that is allowed" in message and "status 500" in message and "\n" not in message
    with running() as server:
        out = collect("--dataset_name", responses, *by_server(server))
        asked = server.stats()["asked"]
    with CorrectionStore(out / "corrections.sqlite") as store:
        assert store.counts() == {**dict.fromkeys(STATUSES, 0), "corrected": 40}
    assert set(asked.values()) == {1}


def test_only_corrections_that_are_rated_higher_are_kept_on_request(collect, responses):
    teacher = ["--teacher", f"{__name__}:halves", "--value_function", f"{__name__}:is_right"]
    out = collect("--dataset_name", responses, *teacher)
    pairs = load_dataset(str(out / "dataset"), split="train")
    assert pairs["prompt"][:] == [f"item {i}" for i in range(0, 40, 2)]
    assert json.loads((out / "dataset" / "metrics.json").read_text())["counts"]["not_better"] == 20


def halves(prompts, responses, answer, **columns):
    return [right if int(prompt[5:]) % 2 == 0 else "worse" for prompt, right in zip(prompts, answer, strict=True)]


def is_right(completions, answer, **columns):
    return [float(completion == right) for completion, right in zip(completions, answer, strict=True)]


def test_responses_in_another_column_and_as_messages_are_read(collect, tmp_path):
    rows = [
        {
            "prompt": [{"role": "user", "content": f"item {i}"}],
            "written": [{"role": "assistant", "content": f"wrong {i}"}],
            "answer": f"right {i}",
        }
        for i in range(4)
    ]
    file = tmp_path / "chat.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    out = collect("--dataset_name", file, "--response_column", "written", "--teacher", f"{__name__}:answers")
    pairs = load_dataset(str(out / "dataset"), split="train")
    assert pairs["response"][:] == [f"wrong {i}" for i in range(4)]
    assert pairs["status"][:] == ["unchanged", "corrected"] * 2


def test_people_with_a_tool_of_their_own_get_the_items_and_bring_the_answers(collect, responses, tmp_path, capsys):
    people = ["--teacher", "human", "--dataset_name", responses]
    collect(*people, "--export_items", tmp_path / "items.jsonl")
    assert "40 items were written" in capsys.readouterr().out
    answered = []
    for i, line in enumerate((tmp_path / "items.jsonl").read_text().splitlines()[:10]):
        answered.append(json.dumps({**json.loads(line), "correction": f"right {i}", "status": "corrected"}))
    (tmp_path / "answers.jsonl").write_text("\n".join(answered))
    out = collect(*people, "--import_answers", tmp_path / "answers.jsonl")
    pairs = load_dataset(str(out / "dataset"), split="train")
    assert pairs["correction"][:] == [f"right {i}" for i in range(10)] and set(pairs["teacher"]) == {"human"}


def test_the_page_is_opened_for_people(collect, responses, monkeypatch, capsys):
    import correction_trl.teachers.human as human

    def somebody(store, items, port, open_browser):
        assert port == 7000 and not open_browser and len(items) == 40
        item = items[3]
        store.add([Correction(item["key"], item["prompt"], item["response"], "r", teacher="human", annotator="Ann")])

    monkeypatch.setattr(human, "ask_people", somebody)
    out = collect("--teacher", "human", "--dataset_name", responses, "--port", "7000", "--open_browser", "false")
    assert load_dataset(str(out / "dataset"), split="train")["prompt"][:] == ["item 3"]
    assert "39 have no answer; they are asked again" in capsys.readouterr().out
    assert "| left out: not answered, or passed | 39 |" in (out / "dataset" / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--dataset_name", "{responses}"], "No `teacher` is named"),
        (["--teacher", "policy"], "`teacher: policy` needs a policy that is trained"),
        (["--teacher", "nowhere:f"], "no module 'nowhere'"),
        (["--teacher", "server"], "`teacher: server` needs `teacher_model`"),
        (
            ["--dataset_name", "{responses}", "--teacher", "conftest:teacher", "--response_column", "text"],
            "no column 'text'",
        ),
        (["--import_answers", "a.jsonl"], "are for `teacher: human`"),
        (["--dataset_name", "{empty}", "--teacher", "conftest:teacher"], "the file is empty"),
        (["--correction_store", "{responses}"], "not a database"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(collect, responses, tmp_path, arguments, sentence):
    (tmp_path / "empty.jsonl").write_text("")
    files = {"responses": responses, "empty": tmp_path / "empty.jsonl"}
    with pytest.raises(SystemExit) as stopped:
        collect("--rows", "4", *(argument.format(**files) for argument in arguments))
    assert sentence in str(stopped.value) and "\n" not in str(stopped.value)


def test_a_push_takes_the_dataset_and_its_card_and_nothing_else(tmp_path):
    with HubStandIn() as hub:
        arguments = ["--rows", "8", "--output_dir", str(tmp_path / "out"), "--push_to_hub"]
        command = [sys.executable, str(RECIPE), *arguments, "--hub_dataset_id", "tester/pairs"]
        done = run_online([*command, "--hub_private_repo", "true"], hub.endpoint)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "https://huggingface.co/datasets/tester/pairs" in done.stdout
        received = hub.repositories["tester/pairs"]
    folder = tmp_path / "out" / "dataset"
    local = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert set(received) - {".gitattributes"} == local
    assert {"README.md", "metrics.json", "edits.png", "examples.png"} < local
    assert len([name for name in local if name.endswith(".parquet")]) == 2
    card = received["README.md"].decode()
    assert 'load_dataset("tester/pairs"' in card and str(tmp_path) not in card
    assert hub.private["tester/pairs"] == "private"


def test_progress_says_how_much_is_left():
    progress = Progress(total=100, found=20)
    progress.asked, progress.statuses["corrected"], progress.statuses["failed"] = 40, 39, 1
    progress.tokens_in, progress.tokens_out, progress.cost = 12_000, 3_400, 0.0123
    progress.started -= 10.0
    assert progress.seconds_left == pytest.approx(10.0, abs=0.5)
    assert progress_text(progress) == (
        "60/100 done, 20 of them from the store, 39 corrected, 0 unchanged, 1 failed, 12,000 + 3,400 tokens, "
        "cost 0.0123, 10 s left"
    )
    file = io.StringIO()
    with ProgressLine(Console(file=file, width=200), seconds=1000) as line:
        for _ in range(5):
            line.show(progress)
    assert file.getvalue().count("60/100 done") == 1  # a log file is not flooded, and has the last state
