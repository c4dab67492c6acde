"""A teacher behind a server: a local one that misbehaves on purpose, and a real one with a tiny model."""

import asyncio
import importlib.util
import logging
import multiprocessing
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import time

import pytest
from misbehaving_server import FAULTS, plan, running

from correction_trl.errors import BadInput, TeacherFailed
from correction_trl.teachers import CorrectionStore, ServerTeacher, StoringTeacher, collect


KEY = "sk-standin-key-that-must-never-be-shown-0123456789"


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("TEACHER_API_KEY", raising=False)


def rows(n):
    return [{"prompt": f"item {i}", "response": f"wrong {i}", "source": "s"} for i in range(n)]


def make_teacher(url, **options):
    return ServerTeacher("tiny", url, **{"concurrency": 16, "timeout": 1.0, "first_pause": 0.01, **options})


@pytest.fixture
def store(tmp_path):
    with CorrectionStore(tmp_path / "corrections.sqlite") as store:
        yield store


def test_it_corrects_counts_and_asks_no_more_at_a_time_than_it_may(store):
    with running(latency=0.02) as server:
        teacher = make_teacher(server.url, concurrency=8, price_in=3.0, price_out=15.0)
        progress = collect(store, teacher, rows(100))
        stats = server.stats()
    assert stats["most_at_once"] == 8
    assert progress.statuses["corrected"] == progress.asked == 100
    assert (progress.tokens_in, progress.tokens_out) == (10_000, 1_000)
    assert progress.cost == pytest.approx(10_000 * 3e-6 + 1_000 * 15e-6)
    record = next(iter(store))
    item = record.prompt.split()[1]
    assert record.correction == f"right {item}" and record.reply.startswith("Let me see.")
    assert record.teacher == "server:tiny" and record.sampling == {"temperature": 0.0}
    assert record.template_version == teacher.template_version and record.columns == {"source": "s"}


def test_what_is_stored_is_not_asked_again_and_equal_rows_are_asked_once(store):
    with running() as server:
        teacher = make_teacher(server.url)
        collect(store, teacher, rows(20))
        progress = collect(store, teacher, rows(30) + rows(30))
        assert (progress.found, progress.asked) == (50, 10)
        assert set(server.stats()["asked"].values()) == {1}
        # Another question is another key: other sampling, another response, but not another address or limit
        collect(store, make_teacher(server.url.replace("127.0.0.1", "localhost"), max_tokens=7), rows(5))
        assert sum(server.stats()["asked"].values()) == 30
        collect(store, make_teacher(server.url, temperature=0.7), rows(5))
        assert sum(server.stats()["asked"].values()) == 35 and len(store) == 35


@pytest.mark.slow
def test_every_item_that_can_succeed_does_and_the_others_are_told_with_the_reason(store):
    n, share, stubborn = 400, 0.05, 0.2
    with running(latency=0.005, faults=",".join(FAULTS), share=share, stubborn=stubborn) as server:
        teacher = make_teacher(server.url, concurrency=64, retries=3)
        progress = collect(store, teacher, rows(n), max_failed_share=0.3)
        asked = server.stats()["asked"]
    lost = {i: fault for i in range(n) for fault, times in [plan(i, list(FAULTS), share, stubborn)] if times > 3}
    assert set(lost.values()) == set(FAULTS)  # the draw has some of each
    records = {int(record.prompt.split()[1]): record for record in store}
    assert {i for i, record in records.items() if record.correction is None} == set(lost)
    assert all(record.correction == f"right {i}" for i, record in records.items() if i not in lost)
    words = {
        "429": "status 429: slow down",
        "500": "status 500: internal",
        "hang": "no reply within 1 seconds",
        "cut": "the connection failed",
        "not_json": "is no chat completion: '<html>Bad gateway</html>'",
        "empty": "the reply is empty",
        "truncated": "cut off at the token limit",
        "wrong_format": "not exactly one <corrected_response>",
    }
    for i, fault in lost.items():
        record, kept = records[i], fault in ("empty", "truncated", "wrong_format")
        assert words[fault] in record.reason
        assert record.status == ("unparsable" if kept else "failed")
        assert (record.reply is not None) == kept
        assert asked[i] == (3 if kept else 4)  # a reply costs tokens: it is asked for less often
    assert progress.without_correction == len(lost) == sum(progress.failures.values())
    # All attempts are paid for: two of the three of an item that is cut off once in a while
    twice = next(i for i in range(n) if plan(i, list(FAULTS), share, stubborn) == ("truncated", 2))
    assert records[twice].tokens_out == 30 and records[twice].correction == f"right {twice}"


def test_a_run_that_is_started_again_asks_what_failed_and_on_request_what_could_not_be_read(store):
    with running(faults="500,wrong_format", share=0.5, stubborn=1.0) as server:
        teacher = make_teacher(server.url, retries=0, concurrency=2)
        with pytest.raises(TeacherFailed):
            collect(store, teacher, rows(10), max_failed_share=0.1)
        counts = store.counts()
        assert counts["failed"] or counts["unparsable"]
    with running() as server:
        teacher = make_teacher(server.url)
        collect(store, teacher, rows(10), max_failed_share=1.0)
        assert store.counts()["unparsable"] == counts["unparsable"] and store.counts()["failed"] == 0
        assert sum(server.stats()["asked"].values()) == 10 - counts["unparsable"]
        collect(store, teacher, rows(10), retry_unparsable=True)
        assert store.counts()["corrected"] == 10 and set(server.stats()["asked"].values()) == {1}


def test_it_waits_as_long_as_the_server_asks(store):
    with running(faults="429", share=1.0, retry_after="1.2") as server:
        start = time.monotonic()
        collect(store, make_teacher(server.url, retries=0), rows(1))  # to be asked to wait is no failure
        assert time.monotonic() - start >= 1.2
    with running(faults="429", share=1.0, retry_after="3000") as server:
        with pytest.raises(TeacherFailed, match="asks to wait 3000 seconds"):
            collect(store, make_teacher(server.url), rows(2)[1:])


def test_too_many_failures_stop_the_run_before_all_is_paid_for(store):
    with running(faults="wrong_format", share=1.0, stubborn=1.0) as server:
        with pytest.raises(TeacherFailed, match=r"have no correction, more than the share of 10%.*not exactly one"):
            collect(store, make_teacher(server.url, reply_retries=0), rows(10_000))
        assert 50 <= len(server.stats()["asked"]) <= 100
    assert 50 <= store.counts()["unparsable"] <= 100


@pytest.mark.parametrize(
    ("status", "code", "sentence"),
    [
        (401, "", r"refused the request \(status 401: .*; the API key .* TEACHER_API_KEY is missing"),
        (404, "", r"does not serve the model 'tiny' .* `teacher_base_url` \(it usually ends in /v1\)"),
        (402, "", "wants to be paid first"),
        (429, "insufficient_quota", "wants to be paid first"),
    ],
)
def test_what_no_retry_can_change_stops_the_run_at_once(store, status, code, sentence):
    with running(status=status, code=code) as server:
        with pytest.raises(TeacherFailed, match=sentence) as caught:
            collect(store, make_teacher(server.url), rows(100))
    assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there_stops_the_run_with_one_sentence(store):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(TeacherFailed, match=r"has given no answer .*Connect call failed.*is it running") as caught:
            collect(store, make_teacher(url, retries=2), rows(1000))
    assert "\n" not in str(caught.value) and len(store) <= 16


def test_a_server_that_goes_away_stops_the_run_and_what_it_answered_is_stored(store):
    with running(latency=0.01) as server:

        def kill(progress):
            if progress.asked > 50:
                server.process.kill()

        with pytest.raises(TeacherFailed, match=r"does not answer any more: \d+ items in a row failed"):
            collect(store, make_teacher(server.url, retries=1), rows(100_000), on_progress=kill)
    assert store.counts()["corrected"] > 50


def test_a_full_disk_stops_the_run_with_one_sentence(store):
    with running(latency=0.01) as server:
        collect(store, make_teacher(server.url), rows(20))
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(BadInput, match="the disk is full .* was stored is intact"):
            collect(store, make_teacher(server.url), rows(10_000))
    assert store.counts()["corrected"] >= 20


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"url": "localhost:8000"}, "must begin with http:// or https://"),
        ({"url": "http://me:secret@host/v1"}, "holds a user name, a password or a query"),
        ({"api_key_variable": KEY}, "is the name of an environment variable"),
        ({"concurrency": 0}, "must be at least 1"),
        ({"template": "nowhere"}, "'nowhere' cannot be read .* minimal_correction"),
    ],
)
def test_settings_that_cannot_be_right_are_told(options, sentence):
    with pytest.raises(BadInput, match=sentence) as caught:
        make_teacher(**{"url": "http://localhost:1/v1", **options})
    assert "secret" not in str(caught.value) and KEY not in str(caught.value)


def test_the_api_key_is_sent_and_shown_nowhere(store, monkeypatch, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TEACHER_API_KEY", KEY)
    with running(echo_key=1, faults="not_json,wrong_format", share=0.1, stubborn=1.0) as server:
        teacher = make_teacher(server.url, retries=1)
        progress = collect(store, teacher, rows(60), max_failed_share=1.0)
        assert server.stats()["authorizations"] == [f"Bearer {KEY}"]
    seen = [repr(teacher), repr(vars(teacher)), repr(teacher.server), repr(vars(teacher.server)), repr(progress)]
    seen += [caplog.text, *capsys.readouterr()]
    # A reply is data: nothing is struck out of it, so one with the key is not kept
    refused = [record for record in store if "the reply holds the API key" in (record.reason or "")]
    assert len(refused) > 40 and all(record.status == "failed" and record.reply is None for record in refused)
    for status in (401, 500, 400):  # the server repeats the key in its error
        with running(status=status) as server:
            with pytest.raises((TeacherFailed, BadInput)) as caught:
                collect(store, make_teacher(server.url, retries=0), [{"prompt": "item 900", "response": "r"}], 0.0)
        error = caught.value
        while error is not None:
            seen += [str(error), repr(error)]
            error = error.__cause__ or error.__context__
    seen += [caplog.text, *capsys.readouterr(), *map(repr, store)]
    folder = store.path.parent
    store.close()
    assert all(KEY not in text for text in seen)
    files = list(folder.iterdir())
    assert files and all(KEY.encode() not in file.read_bytes() for file in files)
    assert KEY.encode() not in pickle.dumps(teacher.__dict__ | {"prompt": None})


def test_it_works_where_an_event_loop_runs_already():
    async def cell():
        with running() as server:
            return make_teacher(server.url).correct(["item 1", "item 2"], ["wrong 1", "right 2"], source=["s", "s"])

    assert asyncio.run(cell()) == ["right 1", "right 2"]


def test_through_a_store_a_teacher_is_asked_once_for_each_response(store):
    with running() as server:
        teacher = StoringTeacher(make_teacher(server.url), store)
        for _ in range(2):
            assert teacher.correct(["item 1", "item 1"], ["wrong 1", "wrong 1"]) == ["right 1", "right 1"]
        assert server.stats()["asked"] == {1: 1}
        assert teacher.correct(["item 1"], ["right 1"]) == ["right 1"]
    assert store.counts()["unchanged"] == 1


def _collect(path, url, n, ready, go):
    with CorrectionStore(path) as store:
        ready.release()
        go.wait()
        collect(store, make_teacher(url, concurrency=32), rows(n))


@pytest.fixture(scope="module")
def forks():
    """Processes that start at once: copies of one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["correction_trl.teachers.collection", "correction_trl.teachers.server", "pytest"])
    return context


def start_collections(context, n_processes, *arguments):
    ready, go = context.Semaphore(0), context.Event()
    processes = [context.Process(target=_collect, args=(*arguments, ready, go)) for _ in range(n_processes)]
    for process in processes:
        process.start()
    for _ in processes:
        assert ready.acquire(timeout=60)
    go.set()
    return processes


@pytest.mark.slow
def test_twenty_kills_lose_nothing_store_nothing_twice_and_ask_again_only_what_was_in_flight(tmp_path, forks):
    path, n, moments = tmp_path / "s.sqlite", 2000, random.Random(0)
    stored = set()
    with running(latency=0.02) as server:

        def n_requests():
            return sum(server.stats()["asked"].values())

        for _ in range(20):
            enough = n_requests() + moments.randrange(120)
            (process,) = start_collections(forks, 1, path, server.url, n)
            while n_requests() < enough:
                assert process.is_alive(), "killed too late: the collection has come to its end"
            time.sleep(moments.uniform(0, 0.02))
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            with CorrectionStore(path) as store:
                found = [record.prompt for record in store]
            assert len(set(found)) == len(found) and stored <= set(found)
            stored = set(found)
        (process,) = start_collections(forks, 1, path, server.url, n)
        process.join(120)
        assert process.exitcode == 0
        asked = server.stats()["asked"]
    with CorrectionStore(path) as store:
        records = list(store)
    assert len(records) == len({record.prompt for record in records}) == n
    assert all(record.correction == record.prompt.replace("item", "right") for record in records)
    assert 0 < sum(asked.values()) - n <= 20 * 32


def test_two_processes_share_the_work(tmp_path, forks):
    path = tmp_path / "s.sqlite"
    with running(latency=0.02) as server:
        workers = start_collections(forks, 2, path, server.url, 1500)
        for worker in workers:
            worker.join(120)
        assert [worker.exitcode for worker in workers] == [0, 0]
        assert set(server.stats()["asked"].values()) == {1}
        assert server.stats()["most_at_once"] > 32  # both worked
    with CorrectionStore(path) as store:
        assert store.counts()["corrected"] == len(store) == 1500


@pytest.mark.slow
def test_transformers_serve_teaches_end_to_end(tmp_path, tiny_model, store):
    for package in ("fastapi", "uvicorn", "openai"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"`transformers serve` needs {package}: pip install 'transformers[serving]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "serve.log"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve"]
    with open(log, "w") as file:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"], stdout=file, stderr=file
        )
    try:
        url = f"http://127.0.0.1:{port}/v1"
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, log.read_text()[-2000:]
            time.sleep(0.2)
        template = tmp_path / "whole_reply.jinja"
        template.write_text("{% block user %}{{ prompt }}{{ response }}{% endblock %}")
        teacher = ServerTeacher(tiny_model, url, template=template, max_tokens=8, reply_retries=0, concurrency=2)
        progress = collect(
            store, teacher, [{"prompt": f"{i} + 1 =", "response": "0"} for i in range(6)], max_failed_share=1.0
        )
    finally:
        process.kill()
        process.wait()
    # A random model: it may say nothing, or too much, but it has been asked and has answered
    assert progress.statuses["failed"] == 0 and progress.asked == 6, log.read_text()[-2000:]
    assert progress.tokens_in > 0 and progress.tokens_out > 0
    assert any(record.reply for record in store)
