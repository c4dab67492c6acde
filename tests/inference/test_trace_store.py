"""Traces on disk: nothing that was finished is lost, whatever happened to the process."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from correction_trl.errors import BadInput
from correction_trl.inference import Trace, TraceStore
from correction_trl.inference.trace_store import model_version, trace_key


def trace(text):
    return Trace([text], [len(text)], 1, 0, "last turn", [[{"role": "user", "content": text}]])


def test_what_was_added_is_there_again(tmp_path):
    with TraceStore(tmp_path) as store:
        assert store.get("a") is None
        store.add("a", trace("line\nbreak  \ud800 é"))
        assert store.get("a") == trace("line\nbreak  \ud800 é")
    with TraceStore(tmp_path) as store:
        assert len(store) == 1 and store.get("a") == trace("line\nbreak  \ud800 é")


def test_each_process_reads_what_all_wrote(tmp_path):
    with TraceStore(tmp_path, 0) as first, TraceStore(tmp_path, 1) as second:
        first.add("a", trace("x"))
        second.add("b", trace("y"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["traces-0.jsonl", "traces-1.jsonl"]
    with TraceStore(tmp_path, 0) as store:
        assert store.get("a") == trace("x") and store.get("b") == trace("y")


@given(st.integers(0, 400))
def test_a_file_that_was_cut_anywhere_keeps_its_finished_lines(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("store")
    with TraceStore(folder) as store:
        for key in "abc":
            store.add(key, trace(key * 5))
    path = folder / "traces-0.jsonl"
    content = path.read_bytes()[:cut]
    path.write_bytes(content)
    finished = content.count(b"\n")
    with TraceStore(folder, 1) as other:  # another process does not touch the file
        assert len(other) == finished and path.read_bytes() == content
    with TraceStore(folder) as store:
        assert [key for key in "abc" if store.get(key)] == list("abc")[:finished]
        store.add("d", trace("d"))
    with TraceStore(folder) as store:
        assert len(store) == finished + 1 and store.get("d") == trace("d")


def test_what_cannot_be_read_is_named(tmp_path):
    with TraceStore(tmp_path) as store:
        store.add("a", trace("x"))
    path = tmp_path / "traces-0.jsonl"
    path.write_text(path.read_text() + '{"key": "b", "response": 1}\n' + path.read_text())
    with pytest.raises(BadInput, match=r"traces-0\.jsonl, line 2, is no trace; remove the line"):
        TraceStore(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be read and written"):
        TraceStore(tmp_path / "file")


def test_a_key_depends_on_everything_and_on_no_order():
    assert trace_key(a=1, b={"x": 1, "y": 2}) == trace_key(b={"y": 2, "x": 1}, a=1)
    assert len({trace_key(a=a, b=b) for a in (1, 2, None) for b in ("x", ["x"])}) == 6


def test_a_model_that_was_trained_again_is_another_one(tmp_path):
    assert model_version("org/model", "main") != model_version("org/model", "other")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    first = model_version(str(tmp_path))
    assert first == model_version(str(tmp_path)) and str(tmp_path) not in str(first)
    weights.write_bytes(b"other")
    assert model_version(str(tmp_path)) != first


def test_what_was_judged_is_kept_with_its_verdicts(tmp_path):
    with TraceStore(tmp_path) as store:
        store.add("a", trace("x"))
        store.add("b", trace("y"))
        store.get("a").gold, store.get("a").right = "x", [1.0]
    line = json.loads((tmp_path / "traces-0.jsonl").read_text().splitlines()[0])
    assert line["key"] == "a" and line["gold"] == "x" and line["right"] == [1.0]
    # A run with other processes finds them, judges the rest, and keeps what it judged itself
    with TraceStore(tmp_path, 1) as store:
        assert store.get("a").right == [1.0] and store.get("b").right == []
        store.get("b").right = [None]
    assert len((tmp_path / "traces-0.jsonl").read_text().splitlines()) == 2
    with TraceStore(tmp_path) as store:
        assert store.get("b").right == [None] and len(store) == 2


def test_a_trace_from_before_there_were_verdicts_is_read(tmp_path):
    old = {"responses": ["x"], "tokens": [1], "replies": 1, "cut_off": 0, "stop": "", "conversations": []}
    (tmp_path / "traces-0.jsonl").write_text(json.dumps({"key": "a", **old}) + "\n")
    with TraceStore(tmp_path) as store:
        assert store.get("a").responses == ["x"] and store.get("a").right == []
