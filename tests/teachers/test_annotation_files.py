import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from correction_trl.errors import BadInput
from correction_trl.teachers import (
    CorrectionStore,
    HumanCollection,
    correction_key,
    read_annotations,
    write_argilla,
    write_jsonl,
)
from correction_trl.teachers.store import CORRECTED, SKIPPED, UNCHANGED


def item(prompt, response, **columns):
    key = correction_key(prompt, response, teacher="human")
    return {"key": key, "prompt": prompt, "response": response, "columns": columns}


CHAT = [{"role": "user", "content": "Say hi."}]
ITEMS = [item("1 + 1 =", "3", answer="2"), item("2 + 2 =", "4", answer="4"), item(CHAT, "Hallo\r\n\u2028", answer="")]


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def answers(corrections):
    return [(c.prompt, c.response, c.correction, c.status, c.annotator, c.columns) for c in corrections]


# ---------------------------------------------------------------- there and back


def test_jsonl_goes_out_and_comes_back_with_the_answers(tmp_path):
    path = tmp_path / "out" / "items.jsonl"
    write_jsonl(ITEMS, path)
    rows = lines_of(path)
    assert rows[0] == {
        "key": ITEMS[0]["key"],
        "prompt": "1 + 1 =",
        "response": "3",
        "correction": None,
        "status": None,
        "annotator": None,
        "answer": "2",
    }
    assert read_annotations(path) == []  # nobody has answered yet

    rows[0].update(correction="2", annotator="Ann")
    rows[1].update(correction="4")
    rows[2].update(status="skipped")
    write_lines(path, rows)
    assert answers(read_annotations(path)) == [
        ("1 + 1 =", "3", "2", CORRECTED, "Ann", {"answer": "2"}),
        ("2 + 2 =", "4", "4", UNCHANGED, None, {"answer": "4"}),
        (CHAT, "Hallo\r\n\u2028", None, SKIPPED, None, {"answer": ""}),
    ]


def test_what_was_answered_elsewhere_is_not_asked_on_the_page(tmp_path):
    write_jsonl(ITEMS, tmp_path / "items.jsonl")
    rows = lines_of(tmp_path / "items.jsonl")
    rows[0]["correction"] = "2"
    write_lines(tmp_path / "answers.jsonl", rows)
    with CorrectionStore(tmp_path / "store.sqlite") as store:
        assert store.add(read_annotations(tmp_path / "answers.jsonl")) == 1
        assert HumanCollection(store, ITEMS).next("ann")["item"]["key"] == ITEMS[1]["key"]
        assert store.to_dataset()[0]["correction"] == "2"


@given(
    st.lists(
        st.tuples(st.text(min_size=1), st.text(), st.text().filter(str.strip)),
        min_size=1,
        unique_by=lambda row: row[:2],
    )
)
def test_any_text_survives(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("annotations")
    items = [item(prompt, response) for prompt, response, _ in rows]
    corrections = [correction for *_, correction in rows]

    write_jsonl(items, folder / "items.jsonl")
    filled = [{**row, "correction": c} for row, c in zip(lines_of(folder / "items.jsonl"), corrections, strict=True)]
    write_lines(folder / "answers.jsonl", filled)

    write_argilla(items, folder / "items.json")
    records = json.loads((folder / "items.json").read_text(encoding="utf-8"))
    for record, correction in zip(records, corrections, strict=True):
        record["responses"] = {"correction": [{"value": correction, "user_id": "u"}]}
    (folder / "answers.json").write_text(json.dumps(records), encoding="utf-8")

    for name in ("answers.jsonl", "answers.json"):
        read = read_annotations(folder / name)
        assert [(c.key, c.prompt, c.response, c.correction) for c in read] == [
            (i["key"], i["prompt"], i["response"], c) for i, c in zip(items, corrections, strict=True)
        ]


def test_a_file_with_answers_is_never_written_over(tmp_path):
    for write, name in ((write_jsonl, "a.jsonl"), (write_argilla, "a.json")):
        (tmp_path / name).write_text("mine")
        with pytest.raises(BadInput, match="exists already"):
            write(ITEMS, tmp_path / name)
        assert (tmp_path / name).read_text() == "mine"


def test_columns_that_cannot_be_written_are_named(tmp_path):
    with pytest.raises(BadInput, match="Row 1: rename the column 'status'"):
        write_jsonl([ITEMS[0], item("a", "b", status="x")], tmp_path / "a.jsonl")
    for write in (write_jsonl, write_argilla):
        with pytest.raises(BadInput, match="Row 1 has no JSON form .*remove the column"):
            write([ITEMS[0], item("a", "b", picture=b"x")], tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- Argilla


def argilla_record(n, responses=(), **changed):
    """As argilla 2.8 writes it with `Dataset.records.to_json`."""
    own = ITEMS[n]
    return {
        "id": own["key"],
        "fields": {"prompt": own["prompt"], "response": own["response"]},
        "metadata": own["columns"],
        "suggestions": {"correction": {"value": own["response"], "score": None, "agent": None}},
        "responses": {"correction": list(responses)} if responses else {},
        "vectors": {},
        "status": "pending",
        "_server_id": None,
        **changed,
    }


def flat_record(n, values=(), users=(), statuses=()):
    """As argilla 2.8 gives it with `Dataset.records.to_list(flatten=True)`."""
    own = ITEMS[n]
    answered = {
        "correction.responses": list(values),
        "correction.responses.users": list(users),
        "correction.responses.status": list(statuses),
    }
    return {
        "id": own["key"],
        "status": "pending",
        "_server_id": None,
        "prompt": own["prompt"],
        "response": own["response"],
        **own["columns"],
        **(answered if values else dict.fromkeys(answered)),
        "correction.suggestion": own["response"],
        "correction.suggestion.score": None,
        "correction.suggestion.agent": None,
    }


def test_argilla_records_start_from_the_response(tmp_path):
    write_argilla(ITEMS, tmp_path / "items.json")
    first, _, chat = json.loads((tmp_path / "items.json").read_text(encoding="utf-8"))
    assert first["fields"] == {"prompt": "1 + 1 =", "response": "3"} and first["id"] == ITEMS[0]["key"]
    assert first["suggestions"]["correction"]["value"] == "3" and first["metadata"] == {"answer": "2"}
    assert chat["fields"]["prompt"] == CHAT
    assert read_annotations(tmp_path / "items.json") == []


def test_nested_argilla_records_are_read(tmp_path):
    two_agree = [{"value": "2", "user_id": "u1"}, {"value": "2", "user_id": "u2"}]
    records = [argilla_record(0, two_agree), argilla_record(1), argilla_record(2, [{"value": "Hi", "user_id": "u1"}])]
    (tmp_path / "answers.json").write_text(json.dumps(records))
    assert answers(read_annotations(tmp_path / "answers.json")) == [
        ("1 + 1 =", "3", "2", CORRECTED, "u1", {"answer": "2"}),
        (CHAT, "Hallo\r\n\u2028", "Hi", CORRECTED, "u1", {"answer": ""}),
    ]


@pytest.mark.parametrize("as_lines", [True, False])
def test_flat_argilla_records_are_read_with_drafts_and_discarded_answers(tmp_path, as_lines):
    rows = [
        flat_record(0, ["9", "2"], ["u1", "u2"], ["draft", "submitted"]),
        flat_record(1, ["7"], ["u1"], ["discarded"]),
        flat_record(2),
    ]
    path = tmp_path / "answers.json"
    if as_lines:
        write_lines(path, rows)
    else:
        path.write_text(json.dumps(rows, indent=1))
    assert answers(read_annotations(path)) == [
        ("1 + 1 =", "3", "2", CORRECTED, "u2", {"answer": "2"}),
        ("2 + 2 =", "4", None, SKIPPED, None, {"answer": "4"}),
    ]


def test_an_id_that_argilla_made_up_is_no_key(tmp_path):
    record = argilla_record(0, [{"value": "2", "user_id": "u"}], id="c0ffee00-0000-4000-8000-000000000000")
    (tmp_path / "answers.json").write_text(json.dumps([record]))
    assert read_annotations(tmp_path / "answers.json")[0].key == ITEMS[0]["key"]


def test_people_who_disagree_are_named(tmp_path):
    record = argilla_record(1, [{"value": "5", "user_id": "u1"}, {"value": "6", "user_id": "u2"}])
    (tmp_path / "answers.json").write_text(json.dumps([argilla_record(0), record]))
    with pytest.raises(
        BadInput, match=r"answers.json, record 2 of 2: 2 different corrections \(of the users u1, u2\)"
    ):
        read_annotations(tmp_path / "answers.json")


@pytest.mark.parametrize("changed", [{"fields": "text"}, {"responses": {"correction": "2"}}, {"metadata": [1]}])
def test_something_else_than_an_argilla_record_is_named(tmp_path, changed):
    (tmp_path / "answers.json").write_text(json.dumps([{**argilla_record(0), **changed}]))
    with pytest.raises(BadInput, match="record 1 of 1: not a record as argilla's `to_json` writes it"):
        read_annotations(tmp_path / "answers.json")


def test_an_answer_to_another_kind_of_question_is_named(tmp_path):
    (tmp_path / "answers.json").write_text(json.dumps([argilla_record(0, [{"value": ["a"], "user_id": "u"}])]))
    with pytest.raises(BadInput, match="record 1 of 1: an answer to the question 'correction' is no text"):
        read_annotations(tmp_path / "answers.json")


# ---------------------------------------------------------------- bad rows: one sentence, with the row


GOOD = {"prompt": "a", "response": "b", "correction": "c"}


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"prompt": None}, "the prompt is missing"),
        ({"prompt": 7}, "the prompt is missing, or neither text"),
        ({"response": None}, "the response is missing"),
        ({"correction": 7}, "the correction is not text but int"),
        ({"correction": " \n"}, "the correction is empty"),
        ({"status": "done"}, "the status 'done' is none of corrected, unchanged, skipped"),
        ({"correction": None, "status": "corrected"}, "the status is 'corrected', but there is no correction"),
        ({"status": "skipped"}, "the status is 'skipped', but there is a correction"),
        ({"key": "0" * 64}, "the prompt or the response is not the one that was exported"),
        ({"note": "\ud83d"}, "a text holds half of a character"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path, changed, problem):
    path = tmp_path / "answers.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{json.dumps({**GOOD, 'prompt': 'x', **changed})}\n")
    with pytest.raises(BadInput, match=f"^{re.escape(str(path))}, line 3: {problem}") as caught:
        read_annotations(path)
    assert "\n" not in str(caught.value)


def test_a_response_that_a_tool_has_trimmed_is_found(tmp_path):
    write_jsonl([item("a", "b \n")], tmp_path / "items.jsonl")
    (row,) = lines_of(tmp_path / "items.jsonl")
    write_lines(tmp_path / "answers.jsonl", [{**row, "response": "b", "correction": "c"}])
    with pytest.raises(BadInput, match="line 1: .*tools that trim spaces or line ends do that"):
        read_annotations(tmp_path / "answers.jsonl")


def test_two_answers_to_one_response_must_agree(tmp_path):
    path = tmp_path / "answers.jsonl"
    write_lines(path, [GOOD, GOOD])
    assert [c.correction for c in read_annotations(path)] == ["c"]
    write_lines(path, [GOOD, {**GOOD, "correction": "d"}])
    with pytest.raises(BadInput, match="line 2 answers the same response as .*line 1, differently"):
        read_annotations(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b'{"prompt": "a"}\n{"prompt": ', r"line 2: no JSON \(.*, column 12\)"),
        (b'[\n{"prompt": "a"},\n{]', "line 3: no JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b'{"prompt": ' + b"[" * 100_000, "line 1: cannot be read as JSON"),
        (b'{"prompt": "a", "n": ' + b"1" * 5000 + b"}", "line 1: cannot be read as JSON"),
        (b'{"prompt": "a"}\n{"prompt": "\xff"}', "line 2: not UTF-8"),
        (b'{"prompt": "a"}\n7', "line 2: not an object with columns but int"),
        (b"[7]", "record 1 of 1: not an object"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_line(tmp_path, content, problem):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=f"^{re.escape(str(path))},? {problem}"):
        read_annotations(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadInput, match="nowhere.jsonl cannot be read"):
        read_annotations(tmp_path / "nowhere.jsonl")


def test_a_byte_order_mark_does_no_harm(tmp_path):
    (tmp_path / "answers.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert [c.correction for c in read_annotations(tmp_path / "answers.jsonl")] == ["c"]
