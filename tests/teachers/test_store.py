"""Corrections that were stored are there, whole and once, whatever happens to the process, the disk and the file."""

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from correction_trl.errors import BadInput
from correction_trl.teachers import Correction, CorrectionStore, correction_key
from correction_trl.teachers.store import STATUSES, main, rescue


def record(i=0, **values):
    prompt, response = values.pop("prompt", f"{i} + 1 ="), values.pop("response", "0")
    key = correction_key(prompt, response, teacher="t")
    return Correction(
        **{
            "key": key,
            "prompt": prompt,
            "response": response,
            "correction": str(i + 1),
            "teacher": "t",
            "columns": {"answer": str(i + 1)},
            **values,
        }
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "corrections.sqlite"


@pytest.fixture
def store(path):
    with CorrectionStore(path) as store:
        yield store


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | TEXT,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(TEXT, children, max_size=3),
    max_leaves=6,
)


@given(
    prompt=TEXT | st.lists(st.fixed_dictionaries({"role": TEXT, "content": TEXT}), max_size=3),
    response=TEXT,
    correction=TEXT,
    reply=st.none() | TEXT,
    sampling=st.dictionaries(TEXT, JSON, max_size=3),
    columns=st.dictionaries(TEXT, JSON, max_size=3),
    tokens=st.integers(0, 2**40),
    cost=st.floats(0, 1e6),
)
def test_a_record_comes_back_as_it_was(
    tmp_path_factory, prompt, response, correction, reply, sampling, columns, tokens, cost
):
    path = tmp_path_factory.mktemp("store") / "s.sqlite"
    written = record(
        prompt=prompt,
        response=response,
        correction=correction,
        reply=reply,
        sampling=sampling,
        columns=columns,
        tokens_in=tokens,
        cost=cost,
    )
    with CorrectionStore(path) as store:
        assert store.add([written]) == 1
    with CorrectionStore(path) as store:
        assert list(store) == [written] and store.get([written.key]) == {written.key: written}


QUESTION = st.tuples(TEXT, TEXT, TEXT, TEXT, st.dictionaries(TEXT, st.integers()), st.dictionaries(TEXT, TEXT))


@given(QUESTION, QUESTION)
def test_keys_are_equal_for_equal_questions_and_for_no_others(a, b):
    assert (correction_key(*a) == correction_key(*b)) == (a == b)


def test_a_key_does_not_depend_on_the_process_or_the_order_of_a_dict():
    key = correction_key("p", "r", "t", "v", {"temperature": 0.5, "top_p": 1}, {"answer": "ü"})
    assert key == correction_key("p", "r", "t", "v", {"top_p": 1, "temperature": 0.5}, {"answer": "ü"})
    code = "print(correction_key('p', 'r', 't', 'v', {'temperature': 0.5, 'top_p': 1}, {'answer': 'ü'}))"
    printed = subprocess.run(
        [sys.executable, "-c", f"from correction_trl.teachers.store import correction_key\n{code}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert printed.stdout.strip() == key


def test_an_answer_is_stored_once_and_a_failure_gives_way(store):
    first = record(correction=None, status="failed", reason="timed out")
    assert store.add([first, record(1)]) == 2
    assert store.missing([first.key, record(1).key, first.key]) == [first.key]
    assert store.add([record(correction=None, status="skipped")]) == 1
    assert store.add([record(correction="one")]) == 1
    assert store.add([record(correction="two"), record(correction=None, status="failed")]) == 0
    assert store.get([first.key])[first.key].correction == "one"
    assert store.missing([first.key]) == [] and len(store) == 2
    assert store.counts() == {**dict.fromkeys(STATUSES, 0), "corrected": 2}
    assert store.add([record(correction="three")], replace=True) == 1
    assert store.get([first.key])[first.key].correction == "three" and len(store) == 2


def test_a_record_says_what_it_is():
    with pytest.raises(ValueError, match="Unknown status 'done'"):
        record(status="done")
    for status, correction in (("unparsable", "x"), ("corrected", None)):
        with pytest.raises(ValueError, match=status):
            record(status=status, correction=correction)


def test_a_batch_is_stored_whole_or_not_at_all(store):
    with pytest.raises(BadInput, match="Image has no JSON form"):
        store.add([record(0), record(1, columns={"image": type("Image", (), {})()})])
    with pytest.raises(BadInput, match="holds text that is no valid Unicode"):
        store.add([record(0), record(1, reply="half \ud800")])
    assert len(store) == 0


def test_threads_share_a_store(store):
    def add(worker):
        for i in range(40):
            store.add([record(i, annotator=str(worker))])
            store.get([record(i).key])

    threads = [threading.Thread(target=add, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store) == 40 and {r.correction for r in store} == {str(i + 1) for i in range(40)}


def _work(path, worker, ready):
    both_have_some = False
    with CorrectionStore(path) as store:
        ready.wait()
        keys = [record(i).key for i in range(100)]
        while missing := store.missing(keys):
            for key in store.claim(missing, limit=7):
                store.add([record(keys.index(key), annotator=str(worker), correction=f"{worker}")])
            if not both_have_some:
                ready.wait()
                both_have_some = True


def test_processes_divide_the_work_and_store_nothing_twice(path):
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(2)
    workers = [context.Process(target=_work, args=(path, worker, ready)) for worker in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    with CorrectionStore(path) as store:
        assert len(store) == 100
        assert {r.annotator for r in store} == {"0", "1"}


def test_a_claim_holds_for_others_until_it_is_answered_released_or_over(store, path):
    keys = [record(i).key for i in range(4)]
    assert store.claim(keys, "ann", limit=2) == keys[:2]
    assert store.claim(keys, "bob") == keys[2:]
    assert store.claim(keys, "ann") == keys[:2]  # renewed
    store.release(keys, "bob")
    assert store.claim(keys, "eve", limit=1) == keys[2:3]
    store.add([record(0)])
    assert store.claim(keys, "ann") == [keys[1], keys[3]]
    assert store.claim(keys, "dan", seconds=-1) == [] and store.claim(keys[1:2], "ann", seconds=-1) == keys[1:2]
    assert store.claim(keys[1:2], "dan") == keys[1:2]  # ann's time is over
    with CorrectionStore(path) as other:
        assert other.claim(keys, "ann") == [keys[3]]


def _claim_and_die(path, key):
    CorrectionStore(path).claim([key])
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_claim_ends_with_its_process(path):
    key = record().key
    worker = multiprocessing.get_context("spawn").Process(target=_claim_and_die, args=(path, key))
    worker.start()
    worker.join(120)
    assert worker.exitcode == -signal.SIGKILL
    with CorrectionStore(path) as store:
        assert store.claim([key]) == [key]


KILLED = """
import sys
from correction_trl.teachers import Correction, CorrectionStore, correction_key

store = CorrectionStore(sys.argv[1])
for i in range(int(sys.argv[2]), 10**6):
    key = correction_key(f"{i}", "r", "t")
    store.add([Correction(key, f"{i}", "r", "c" * 500, teacher="t")])
    print(i, flush=True)
"""


def test_what_add_returned_for_survives_a_kill_at_any_moment(path):
    stored = 0
    for round_ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path), str(stored)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(5):
            process.stdout.readline()
        time.sleep(0.007 * round_)
        process.kill()
        lines = process.stdout.read().split()
        process.wait()
        with CorrectionStore(path) as store:
            prompts = [record.prompt for record in store]
        assert len(prompts) > stored and len(set(prompts)) == len(prompts)
        # The last one may have been stored without a word of it
        assert not lines or len(prompts) - 1 in (int(lines[-1]), int(lines[-1]) + 1)
        stored = len(prompts)


def test_a_full_disk_is_told_and_costs_nothing_that_was_stored(store, path):
    store.add([record(i) for i in range(20)])
    store._connection.execute(
        f"PRAGMA max_page_count = {store._connection.execute('PRAGMA page_count').fetchone()[0]}"
    )
    with pytest.raises(BadInput, match="the disk is full .* was stored is intact; make room") as caught:
        store.add([record(i, reply="x" * 1000) for i in range(20, 60)])
    assert "\n" not in str(caught.value)
    store.close()
    with CorrectionStore(path) as again:
        assert {r.prompt for r in again} == {f"{i} + 1 =" for i in range(20)}
        again.add([record(20)])


FULL = """
import resource, signal, sys
from correction_trl.teachers import Correction, CorrectionStore, correction_key
from correction_trl.errors import BadInput

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = CorrectionStore(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    for i in range(10**6):
        store.add([Correction(correction_key(f"{i}", "r", "t"), f"{i}", "r", "c" * 500, teacher="t")])
        print(i, flush=True)
except BadInput as error:
    print(error)
"""


def test_a_file_that_cannot_grow_keeps_what_it_has(path):
    process = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True)
    *stored, sentence = process.stdout.splitlines()
    assert len(stored) > 10 and "cannot be written: the disk is full or fails" in sentence
    with CorrectionStore(path) as store:
        assert [r.prompt for r in store] == stored


def test_a_locked_store_is_told(store, path):
    store.add([record(0)])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with CorrectionStore(path, timeout=0.1) as waiting:
        assert len(waiting) == 1  # reading goes on
        with pytest.raises(BadInput, match="another process has kept it locked for 0.1 seconds"):
            waiting.add([record(1)])
        other.execute("ROLLBACK")
        assert waiting.add([record(1)]) == 1
    other.close()


def test_a_torn_last_record_is_given_up_and_the_others_are_there(store, path):
    for i in range(5):
        store.add([record(i)])
    wal = path.with_name(path.name + "-wal").read_bytes()
    copy = path.with_name("copy.sqlite")
    copy.write_bytes(path.read_bytes())
    copy.with_name("copy.sqlite-wal").write_bytes(wal[:-100])  # the machine lost power in the middle of a write
    with CorrectionStore(copy) as found:
        assert [r.prompt for r in found] == [f"{i} + 1 =" for i in range(4)]


def damage(path, what, replacement):
    raw = path.read_bytes()
    assert raw.count(what) == 1 and len(what) == len(replacement)
    path.write_bytes(raw.replace(what, replacement))


def test_a_changed_record_is_found_and_the_others_are_rescued(path, capsys):
    with CorrectionStore(path) as store:
        store.add([record(i, correction=f"correction number {i}") for i in range(9)])
    damage(path, b"correction number 8", b"correction number 9")
    with pytest.raises(BadInput, match=r"is damaged \(1 of 9 corrections\).* rescue") as caught:
        CorrectionStore(path)
    assert "\n" not in str(caught.value)
    new = path.with_name("new.sqlite")
    main(["rescue", str(path), str(new)])
    assert "8 corrections were copied" in capsys.readouterr().out
    with CorrectionStore(new) as store:
        assert [r.correction for r in store] == [f"correction number {i}" for i in range(8)]
    with pytest.raises(SystemExit, match="exists already"):
        main(["rescue", str(path), str(new)])


def test_a_lost_page_costs_what_was_on_it(path):
    with CorrectionStore(path) as store:
        store.add([record(i, reply="y" * 1500) for i in range(60)])
    raw = bytearray(path.read_bytes())
    page = 4096 * (len(raw) // 4096 // 2)
    raw[page : page + 4096] = os.urandom(4096)
    path.write_bytes(raw)
    with pytest.raises(BadInput, match="damaged"):
        CorrectionStore(path)
    copied, lost = rescue(path, path.with_name("new.sqlite"))
    assert 50 <= copied < 60 and lost >= 1
    with CorrectionStore(path.with_name("new.sqlite")) as store:
        assert len(list(store)) == copied


def test_what_is_no_store_is_left_alone(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("not a database, but some text that is long enough to be taken for one" * 20)
    with pytest.raises(BadInput, match="not a database"):
        CorrectionStore(text)
    other = tmp_path / "other.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE mine (a)")
    connection.close()
    before = other.read_bytes()
    with pytest.raises(BadInput, match="is no store of corrections"):
        CorrectionStore(other)
    assert other.read_bytes() == before
    with pytest.raises(BadInput, match="cannot be opened"):
        CorrectionStore(text / "below" / "a.sqlite")


@pytest.mark.parametrize("pairs", ["plain_pairs", "chat_pairs"])
def test_it_exports_to_what_the_trainers_read(store, pairs, request, tiny_model, tmp_path):
    from trl import DPOConfig, DPOTrainer  # not above: the processes that the other tests start would import it too

    from correction_trl.data_utils import check_dataset, to_preference_columns

    rows = list(request.getfixturevalue(pairs).select(range(8)))
    texts = [
        {n: row[n] if isinstance(row[n], str) else row[n][-1]["content"] for n in ("response", "correction")}
        for row in rows
    ]
    store.add(
        [record(prompt=row["prompt"], **text, columns={"source": "s"}) for row, text in zip(rows, texts, strict=True)]
    )
    store.add(
        [record(99, correction=None, status="unparsable", reply="?"), record(98, response="99", status="unchanged")]
    )
    dataset = store.to_dataset(["corrected"])
    assert dataset.column_names == ["prompt", "response", "correction", "source", "teacher", "status", "key"]
    assert dataset["prompt"][:] == [row["prompt"] for row in rows]
    assert dataset["correction"][:] == [text["correction"] for text in texts]
    check_dataset(dataset, "train_dataset")
    preference = to_preference_columns(dataset)
    args = DPOConfig(
        str(tmp_path / "dpo"), max_steps=1, per_device_train_batch_size=2, bf16=False, use_cpu=True, report_to="none"
    )
    DPOTrainer(tiny_model, args=args, train_dataset=preference).train()


def test_an_export_names_what_is_wrong(store):
    with pytest.raises(BadInput, match="holds no records with the status corrected or unchanged"):
        store.to_dataset()
    store.add([record(0, columns={"answer": 1}), record(1, columns={"answer": "one"})])
    with pytest.raises(BadInput, match="The column 'answer' of the corrections holds values of different types"):
        store.to_dataset()


def test_columns_that_only_some_rows_have_are_empty_for_the_others(store):
    store.add([record(0, columns={"a": 1}), record(1, columns={"b": "x"})])
    dataset = store.to_dataset()
    assert dataset["a"][:] == [1, None] and dataset["b"][:] == [None, "x"]
