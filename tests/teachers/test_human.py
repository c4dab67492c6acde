"""The human teacher: who is shown what and what is stored (no browser), then the page in a real headless browser."""

import _thread
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from correction_trl.errors import BadInput
from correction_trl.teachers import CorrectionStore, HumanCollection, ask_people, correction_key, human
from correction_trl.teachers.human import _with_line_ends_of
from correction_trl.teachers.store import CORRECTED, SKIPPED, UNCHANGED


def item(prompt, response, **columns):
    key = correction_key(prompt, response, teacher="human")
    return {"key": key, "prompt": prompt, "response": response, "columns": columns}


def sums(n):
    return [item(f"{i} + 1 =", str(i), row=i) for i in range(n)]


@pytest.fixture
def store(tmp_path):
    with CorrectionStore(tmp_path / "corrections.sqlite") as store:
        yield store


def key_of(view):
    return view["item"] and view["item"]["key"]


# ---------------------------------------------------------------- one person


def test_answers_go_to_the_store_in_the_order_of_the_items(store):
    items = sums(4)
    people = HumanCollection(store, items)
    assert key_of(people.next("ann")) == items[0]["key"]
    assert key_of(people.save("ann", items[0]["key"], "1", name=" Ann ")) == items[1]["key"]
    assert key_of(people.right("ann", items[1]["key"])) == items[2]["key"]
    view = people.skip("ann", items[2]["key"])
    assert key_of(view) == items[3]["key"]
    assert view["progress"] == {"total": 4, "answered": 2, "corrected": 1, "unchanged": 1, "yours": 2}

    first, second, third = store
    assert (first.prompt, first.response, first.correction, first.status) == ("0 + 1 =", "0", "1", CORRECTED)
    assert (first.teacher, first.annotator, first.columns) == ("human", "Ann", {"row": 0})
    assert (second.correction, second.status, second.annotator) == ("1", UNCHANGED, None)
    assert (third.correction, third.status) == (None, SKIPPED)


def test_an_answer_is_on_the_disk_before_the_next_response_is_given_out(store, monkeypatch):
    items = sums(2)
    people = HumanCollection(store, items)
    people.next("ann")
    seen = []
    claim = store.claim

    def spy(keys, **arguments):
        with CorrectionStore(store.path) as reader:  # a connection of its own: what is on the disk
            seen.append([record.correction for record in reader])
        return claim(keys, **arguments)

    monkeypatch.setattr(store, "claim", spy)
    people.save("ann", items[0]["key"], "1")
    assert seen == [["1"]]


def test_what_is_stored_is_not_asked_again_and_skips_are(store):
    items = sums(3)
    people = HumanCollection(store, items)
    people.save("ann", items[0]["key"], "1")
    people.skip("ann", items[1]["key"])

    later = HumanCollection(store, items)
    assert later.remaining == 2
    assert key_of(later.next("ann")) == items[1]["key"]
    assert key_of(later.right("ann", items[1]["key"])) == items[2]["key"]
    view = later.right("ann", items[2]["key"])
    assert view["item"] is None and view["done"] and later.finished.is_set()
    assert store.missing([i["key"] for i in items]) == []


def test_a_response_that_comes_twice_is_asked_once(store):
    items = sums(1) * 3
    people = HumanCollection(store, items)
    people.next("ann")
    assert people.right("ann", items[0]["key"])["progress"]["total"] == 1
    assert people.finished.is_set()


def test_a_saved_text_without_changes_is_stored_as_unchanged(store):
    (only,) = sums(1)
    HumanCollection(store, [only]).save("ann", only["key"], only["response"])
    assert store.get([only["key"]])[only["key"]].status == UNCHANGED


@pytest.mark.parametrize(("text", "problem"), [("", "empty"), (" \n\t", "empty"), ("a \ud83d b", "half a character")])
def test_what_cannot_be_trained_on_or_stored_is_refused(store, text, problem):
    (only,) = sums(1)
    people = HumanCollection(store, [only])
    people.next("ann")
    with pytest.raises(BadInput, match=problem):
        people.save("ann", only["key"], text)
    assert len(store) == 0 and key_of(people.next("ann", only["key"])) == only["key"]


def test_back_shows_the_last_answer_and_saving_replaces_it(store):
    items = sums(3)
    people = HumanCollection(store, items)
    assert not people.next("ann")["can_go_back"]
    people.save("ann", items[0]["key"], "7")
    people.skip("ann", items[1]["key"])

    view = people.back("ann", items[2]["key"])  # to the skipped one
    assert (key_of(view), view["earlier"], view["can_go_back"]) == (items[1]["key"], None, True)
    view = people.back("ann", items[1]["key"])  # to the answered one
    assert (key_of(view), view["earlier"], view["can_go_back"]) == (items[0]["key"], "7", False)
    assert key_of(people.save("ann", items[0]["key"], "1")) == items[1]["key"]
    assert [r.correction for r in store] == ["1", None]
    assert people.next("ann")["progress"]["answered"] == 1


def test_a_failing_store_costs_nothing(store, monkeypatch):
    items = sums(2)
    people = HumanCollection(store, items)
    people.next("ann")
    add = store.add

    def full(*args, **kwargs):
        raise BadInput("The store cannot be written: the disk is full.")

    monkeypatch.setattr(store, "add", full)
    for answer in (lambda: people.save("ann", items[0]["key"], "1"), lambda: people.skip("ann", items[0]["key"])):
        with pytest.raises(BadInput, match="disk is full"):
            answer()
    monkeypatch.setattr(store, "add", add)
    assert key_of(people.next("ann", items[0]["key"])) == items[0]["key"]
    assert key_of(people.save("ann", items[0]["key"], "1")) == items[1]["key"]


def test_a_page_of_an_earlier_run_with_other_responses_is_told(store):
    with pytest.raises(BadInput, match="reload the page"):
        HumanCollection(store, sums(1)).right("ann", "no such key")


# ---------------------------------------------------------------- several people


def test_no_two_people_are_given_the_same_response(store):
    items = sums(3)
    people = HumanCollection(store, items)
    assert [key_of(people.next(session)) for session in ("ann", "ben", "cem", "dan")] == [
        *(i["key"] for i in items),
        None,
    ]
    view = people.next("dan")
    assert (view["elsewhere"], view["done"]) == (3, False)
    assert key_of(people.next("ben", items[1]["key"])) == items[1]["key"]  # a reload
    people.skip("ann", items[0]["key"])
    assert key_of(people.next("dan")) == items[0]["key"]  # what one skips another may know


def test_a_session_holds_one_response_at_a_time(store):
    items = sums(2)
    people = HumanCollection(store, items)
    people.next("ann")
    assert key_of(people.next("ben")) == items[1]["key"]
    people.skip("ann", items[0]["key"])
    assert key_of(people.next("ben")) == items[0]["key"]  # a page that has forgotten what it had
    assert key_of(people.next("cem")) == items[1]["key"]


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["next", "save", "right", "skip", "back", "again"])),
        max_size=40,
    )
)
def test_whatever_people_do_nothing_is_shown_twice_or_lost(steps):
    items = sums(5)
    keys = [i["key"] for i in items]
    with tempfile.TemporaryDirectory() as folder, CorrectionStore(Path(folder) / "store.sqlite") as store:
        people = HumanCollection(store, items)
        shown, answers = {}, {}
        for session, step in steps:
            key = shown.get(session)
            if step in ("save", "right", "skip") and key is None:
                continue
            if step == "save":
                view = people.save(session, key, f"by {session}")
            elif step in ("right", "skip"):
                view = getattr(people, step)(session, key)
            elif step == "again":
                view = people.again(session)
            else:
                view = getattr(people, step)(session, key)
            if step in ("save", "right"):
                answers[key] = f"by {session}" if step == "save" else items[keys.index(key)]["response"]
            shown[session] = key_of(view)
            unanswered = [k for k in shown.values() if k is not None and k not in answers]
            assert len(unanswered) == len(set(unanswered))
            assert view["progress"]["answered"] == len(answers)
            assert view["done"] == (len(answers) == len(items))
        stored = {r.key: r.correction for r in store if r.status != SKIPPED}
        assert stored == answers


def test_a_response_left_open_goes_back_after_a_while(store):
    (only,) = sums(1)
    people = HumanCollection(store, [only], seconds=0.3)
    assert key_of(people.next("ann")) == only["key"]
    assert key_of(people.next("ben")) is None
    threading.Event().wait(0.35)
    assert key_of(people.next("ben")) == only["key"]


def test_signs_of_life_keep_a_response_open(store):
    (only,) = sums(1)
    people = HumanCollection(store, [only], seconds=0.6)
    people.next("ann")
    for _ in range(4):
        threading.Event().wait(0.25)
        people.keep("ann", only["key"])
        assert key_of(people.next("ben")) is None


def test_the_second_answer_to_a_response_does_not_overwrite_the_first_unasked(store):
    (only,) = sums(1)
    people = HumanCollection(store, [only], seconds=0.0)  # every claim has run out at once
    people.next("ann")
    people.next("ben")
    people.save("ben", only["key"], "1", name="Ben")
    view = people.save("ann", only["key"], "one", name="Ann")
    assert key_of(view) == only["key"] and view["conflict"] == {"name": "Ben", "correction": "1"}
    assert store.get([only["key"]])[only["key"]].correction == "1"
    people.save("ann", only["key"], "one", name="Ann", replace=True)
    assert store.get([only["key"]])[only["key"]].annotator == "Ann"


def test_skipping_leaves_the_answer_that_somebody_else_gave(store):
    (only,) = sums(1)
    people = HumanCollection(store, [only], seconds=0.0)
    people.next("ann")
    people.save("ben", only["key"], "1")
    assert people.skip("ann", only["key"])["progress"]["corrected"] == 1
    assert store.get([only["key"]])[only["key"]].correction == "1"


def test_two_programs_can_share_a_store(store):
    items = sums(4)
    here = HumanCollection(store, items)
    with CorrectionStore(store.path) as other_store:
        there = HumanCollection(other_store, items)
        here.next("ann")
        assert key_of(there.next("ben")) == items[1]["key"]
        assert key_of(there.save("ben", items[1]["key"], "2")) == items[2]["key"]
        view = here.save("ann", items[0]["key"], "1")
        assert key_of(view) == items[3]["key"]
        assert view["progress"] == {"total": 4, "answered": 2, "corrected": 2, "unchanged": 0, "yours": 1}


def test_the_end_can_be_declared_when_only_skipped_responses_are_left(store):
    items = sums(2)
    people = HumanCollection(store, items)
    people.next("ann")
    people.next("ben")
    view = people.skip("ann", items[0]["key"])
    assert (view["item"], view["elsewhere"], view["skipped"]) == (None, 1, 1)
    assert not people.finish("ann")["done"] and not people.finished.is_set()  # Ben is still at one
    people.right("ben", items[1]["key"])
    assert people.again("ann")["elsewhere"] == 1  # now Ben has the other, which he has not skipped
    people.skip("ben", items[0]["key"])
    assert people.finish("ben")["done"] and people.finished.is_set()


# ---------------------------------------------------------------- line ends


texts = st.text(st.sampled_from("ab \n\r"), max_size=30)


def in_a_browser(text):
    return text.replace("\r\n", "\n").replace("\r", "\n")


@given(texts)
def test_a_text_comes_back_from_the_browser_as_it_was(response):
    assert _with_line_ends_of(response, in_a_browser(response)) == response


@given(texts, texts)
def test_line_ends_are_all_that_is_put_back(response, typed):
    assert in_a_browser(_with_line_ends_of(response, in_a_browser(typed))) == in_a_browser(typed)


def test_an_edited_line_keeps_the_line_ends_around_it():
    assert _with_line_ends_of("a\r\nb\r\nc", "a\nB\nd\nc") == "a\r\nB\r\nd\r\nc"
    assert _with_line_ends_of("a\nb\r\nc\n", "a\nb\nC\n") == "a\nb\r\nC\n"


# ---------------------------------------------------------------- before a page is opened


def test_nothing_is_opened_when_everything_is_answered(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    items = sums(2)
    HumanCollection(store, items).right("ann", items[0]["key"])
    HumanCollection(store, items).right("ann", items[1]["key"])
    ask_people(store, items)


def test_without_gradio_one_sentence_says_how_to_get_it(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(BadInput, match=r"pip install 'correction-trl\[human\]'") as caught:
        ask_people(store, sums(1))
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- the page, without a browser


@pytest.fixture
def serve(store):
    """Serve items as `collect` does; ends with the test."""
    pytest.importorskip("gradio", reason="the page needs Gradio (extra `human`)")
    pages = []

    def start(items, **arguments):
        people = HumanCollection(store, items, **arguments)
        people.password = human._password_of(store)
        page, launch = human._build_page(people, people.password)
        pages.append(page)
        people.address = f"{page.launch(**launch)[1]}{people.password}/"
        people.stop = lambda: page.close(verbose=False)
        return people

    yield start
    for page in pages:
        page.close(verbose=False)


def test_the_page_is_for_this_machine_and_for_who_has_its_address_only(serve):
    people = serve(sums(1))
    assert people.address.startswith("http://127.0.0.1:")
    port, password = urlsplit(people.address).port, people.password
    own = f"127.0.0.1:{port}"

    def ask(path=f"/{password}/config", host=own, method="GET", **headers):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request(method, path, headers={"Host": host, **headers})
        response = connection.getresponse()
        return response.status, response.headers, response.read()

    def status(*arguments, **options):
        return ask(*arguments, **options)[0]

    code, headers, config = ask()
    assert code == 200 and "default-src 'self'" in headers["content-security-policy"]
    assert headers["referrer-policy"] == "same-origin" and json.loads(config)["analytics_enabled"] is False

    # Without the password, or with another one, nothing is shown and nothing is taken
    wrong = password[:-1] + ("a" if password[-1] != "a" else "b")
    paths = ["/", "/config", f"/config?password={password}", f"/{wrong}/config", f"/{password}x/config", "//config"]
    paths += [f"/{password[:-1]}/config", f"/{password.upper()}/config", "/gradio_api/queue/join", "/gradio_api/info"]
    for path in [*paths, f"/{wrong}", "/gradio_api/startup-events/../queue/join", "/gradio_api/heartbeat/x", "/%ff"]:
        for method in ("GET", "POST", "HEAD", "PUT"):
            code, _, body = ask(path, method=method)
            assert code == 401 and (method == "HEAD" or b"the whole address" in body), (path, method)
    assert status(f"/{password}") == 307

    # Other sites, and pages of other programs on this machine
    assert status(host="localhost:8000") == 200  # through an SSH tunnel
    assert status(host="localhost:8000", Origin="http://localhost:8000") == 200
    assert status(Origin=f"http://{own}") == 200
    for host in ("rebound.example", f"rebound.example:{port}", "", "127.0.0.1.rebound.example", "[::1", "0.0.0.0"):
        assert status(host=host) in (400, 403)
    another = [f"http://127.0.0.1:{port + 1}", "http://127.0.0.1", "http://localhost", f"http://localhost:{port}"]
    another += [f"https://{own}", "null", "http://elsewhere.example", f"http://{own}.elsewhere.example", "file://"]
    for origin in another:
        assert status(Origin=origin) == status("/config", Origin=origin) == 403, origin

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: asks which address of ours would be used
        except OSError:
            return
        own_address = probe.getsockname()[0]
    with pytest.raises(OSError):
        socket.create_connection((own_address, port), timeout=5)


def test_the_password_is_kept_and_no_one_elses_to_read(store, tmp_path):
    password, file = human._password_of(store), store.path.with_name(f"{store.path.name}.page-password")
    assert len(password) == 22 and file.stat().st_mode & 0o777 == 0o600
    assert human._password_of(store) == password  # a page that lies open goes on
    for spoil in (lambda: file.chmod(0o644), lambda: file.write_text(""), lambda: file.write_bytes(b"\xff" * 22)):
        spoil()
        new = human._password_of(store)
        assert new != password and len(new) == 22 and file.stat().st_mode & 0o777 == 0o600
        password = new


def test_the_browser_is_sent_to_the_page_without_its_password_on_the_command_line(store, monkeypatch):
    pytest.importorskip("gradio", reason="the page needs Gradio (extra `human`)")
    opened = []

    def browser(url):
        file = Path(urlsplit(url).path)
        opened.append((url, file.read_text(), file.stat().st_mode & 0o777, file))
        people = HumanCollection(store, sums(1))
        people.right("ann", sums(1)[0]["key"])
        threading.Timer(1, _thread.interrupt_main).start()

    monkeypatch.setattr(human.webbrowser, "open", browser)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        ask_people(store, sums(2))
    finally:
        signal.signal(signal.SIGINT, before)
    ((url, text, mode, file),) = opened
    password = human._password_of(store)
    assert password not in url and f"/{password}/" in text and mode == 0o600 and not file.exists()


def test_a_port_that_is_taken_is_named(store):
    pytest.importorskip("gradio", reason="the page needs Gradio (extra `human`)")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=f"127.0.0.1:{port} .*name another port"):
            ask_people(store, sums(1), port=port, open_browser=False)


def test_ctrl_c_ends_the_collection_in_order(store, capsys):
    pytest.importorskip("gradio", reason="the page needs Gradio (extra `human`)")
    # Where the tests run in the background of a shell, Python finds SIGINT ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        waiting = threading.Timer(3, _thread.interrupt_main)
        waiting.start()
        ask_people(store, sums(2), open_browser=False)
        waiting.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert "Stopped with 2 responses to go" in capsys.readouterr().out


# ---------------------------------------------------------------- the page, in a browser


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser test needs playwright")
    found = (os.environ.get("CHROMIUM"), *map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    executable = next(filter(None, found), None)
    if executable is None:
        pytest.skip("the browser test needs Chromium on the PATH, or its path in CHROMIUM")
    with playwright.sync_playwright() as driver:
        # Chromium's own sandbox needs rights that containers lack; the page under test is ours
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


class Person:
    """One person's browser, at the page."""

    def __init__(self, chromium, address):
        self.context = chromium.new_context(viewport={"width": 1280, "height": 800})
        self.requests, self.errors = [], []
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.address = address
        self.page.goto(address)
        self.wait_until_loaded()

    def wait_until_loaded(self):
        self.page.wait_for_selector('[data-is="work"]:not([hidden]), [data-is="rest"]:not([hidden])', timeout=60_000)

    def part(self, name):
        return self.page.locator(f'[data-is="{name}"]')

    def text(self, name):
        return self.part(name).evaluate("part => part.value ?? part.textContent")

    def wait_for(self, name, text):
        """Until a part of the page holds a text, somewhere."""
        self.page.wait_for_function(
            """([name, text]) => {
                const part = document.querySelector(`[data-is="${name}"]`);
                return !part.closest("[hidden]") && (part.value ?? part.textContent).includes(text);
            }""",
            arg=[name, text],
            timeout=30_000,
        )

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def highlights(self):
        return self.page.locator("del").all_text_contents(), self.page.locator("ins").all_text_contents()


@pytest.fixture
def visit(chromium):
    people = []

    def start(address):
        people.append(Person(chromium, address))
        return people[-1]

    yield start
    for person in people:
        person.context.close()
        assert person.errors == []
        # Nothing is loaded from, or sent to, anywhere else
        assert [url for url in person.requests if not url.startswith((person.address, "data:", "blob:"))] == []


def records(store):
    with CorrectionStore(store.path) as reader:
        return {record.prompt: record for record in reader}


def test_changes_are_highlighted_while_typing_and_saved(serve, visit, store):
    items = [item("How far is the Moon?", "About 30,000 km, on average.\nIt varies."), item("2 + 2 =", "4")]
    ann = visit(serve(items).address)
    assert ann.text("prompt") == "promptHow far is the Moon?"
    assert ann.text("response") == ann.text("editor") == items[0]["response"]
    assert ann.part("save").is_disabled() and ann.part("back").is_disabled()

    ann.part("name").fill("Ann")
    ann.part("name").press("Escape")
    ann.press("e", "Control+Home", *["ArrowRight"] * 7)
    ann.page.keyboard.type("8")
    assert ann.highlights() == ([], ["8"])
    ann.press("Delete")
    assert ann.highlights() == (["0"], ["8"])
    assert ann.text("edits") == "1 change"
    ann.press("Control+End", *["Backspace"] * len("It varies."))
    assert ann.highlights() == (["0", "It varies."], ["8"])
    assert ann.text("edits") == "2 changes"
    assert ann.part("right").is_disabled() and ann.part("save").is_enabled()

    ann.press("Control+Enter")
    ann.wait_for("prompt", "2 + 2 =")
    record = records(store)["How far is the Moon?"]
    assert record.correction == "About 38,000 km, on average.\n"
    assert (record.status, record.annotator) == (CORRECTED, "Ann")
    assert ann.text("answered") == "1 of 2 answered" and ann.part("bar").get_attribute("aria-valuenow") == "1"


def test_right_as_it_is_skip_back_and_undo_with_keys_and_buttons(serve, visit, store):
    people = serve(sums(5))
    ann = visit(people.address)
    ann.press("r")
    ann.wait_for("prompt", "1 + 1 =")
    ann.part("right").click()
    ann.wait_for("prompt", "2 + 1 =")
    ann.press("s")
    ann.wait_for("prompt", "3 + 1 =")
    ann.part("skip").click()
    ann.wait_for("prompt", "4 + 1 =")

    ann.press("b")
    ann.wait_for("prompt", "3 + 1 =")
    ann.part("back").click()
    ann.wait_for("prompt", "2 + 1 =")
    ann.press("b")
    ann.wait_for("prompt", "1 + 1 =")
    ann.wait_for("notice", "saving replaces your answer")

    # In the text, letters are letters
    ann.press("e", "Control+End")
    ann.page.keyboard.type("rsbu")
    assert ann.text("editor") == "1rsbu"
    ann.press("Escape", "r")
    ann.wait_for("notice", "You have changed the text")
    ann.press("u")
    assert ann.text("editor") == "1" and ann.highlights() == ([], [])

    ann.press("e", "Control+a", "Delete", "Control+Enter")
    ann.wait_for("notice", "An empty correction cannot be trained on")
    ann.page.keyboard.type("2")
    ann.press("Control+Enter")
    ann.wait_for("prompt", "2 + 1 =")
    ann.press("Control+Shift+Enter")
    ann.wait_for("prompt", "3 + 1 =")
    stored = records(store)
    assert {p: (r.status, r.correction) for p, r in stored.items()} == {
        "0 + 1 =": (UNCHANGED, "0"),
        "1 + 1 =": (CORRECTED, "2"),
        "2 + 1 =": (UNCHANGED, "2"),
        "3 + 1 =": (SKIPPED, None),
    }


NASTY = (
    "<img src=x onerror=\"document.title='run'\"> & <b>bold</b> &amp; ${1 + 1} {{this}}\r\n"
    "\ttab,  two spaces, \u00a0no-break, e\u0301 \u00e9, 日本語、العربية, 👩‍👩‍👧 🏳️‍🌈\n"
    "</textarea><script>document.title='run'</script>\u2028 \u0000 end \r\n\n"
)


def test_any_text_is_shown_as_text_and_comes_back_as_it_was(serve, visit, store):
    chat = [
        {"role": "system", "content": "<i>Be brief.</i>"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": NASTY}]},
    ]
    items = [item(chat, NASTY, note="<u>x</u>", scores=[1, 2]), item("edit", NASTY), item("last", "x")]
    ann = visit(serve(items).address)
    assert ann.page.locator("[data-is=work] :is(img, b, i, u, script)").count() == 0
    assert ann.text("response") == in_a_browser(NASTY)
    assert ann.text("prompt") == f"system<i>Be brief.</i>user[image]\n{NASTY}"
    assert ann.text("columns") == "note<u>x</u>scores[1, 2]"
    assert ann.highlights() == ([], [])
    ann.press("r")
    ann.wait_for("prompt", "edit")
    ann.press("e", "Control+End")
    ann.page.keyboard.type("Ω\n")
    ann.press("Control+Enter")
    ann.wait_for("prompt", "last")
    assert ann.page.title() == "Correct the responses"
    kept, changed = store.get([items[0]["key"]]), store.get([items[1]["key"]])
    assert kept[items[0]["key"]].correction == NASTY and kept[items[0]["key"]].prompt == chat
    assert changed[items[1]["key"]].correction == NASTY + "Ω\r\n"


def test_a_very_long_response_can_be_edited(serve, visit, store):
    long = "".join(f"Line {i}: {'the quick brown fox jumps over the lazy dog, ' * 4}\n" for i in range(600))
    ann = visit(serve([item("long", long), item("next", "x")]).address)
    assert ann.text("response") == long and len(long) > 100_000
    ann.press("e", "Control+End")
    ann.page.keyboard.insert_text("The end.")
    ann.press("Control+Home")
    ann.page.keyboard.insert_text("The beginning. ")
    ann.wait_for("edits", "2 changes")
    # "Line 0" becomes "The beginning. Line 0": by words, also in a long text
    assert ann.highlights() == ([], ["The beginning. ", "The end."])
    # The highlights lie under what is typed: both break the same lines
    heights = ann.page.evaluate(
        "() => ['editor', 'highlights'].map(name => document.querySelector(`[data-is=${name}]`).scrollHeight)"
    )
    assert abs(heights[0] - heights[1]) <= 1
    ann.press("Control+Enter")
    ann.wait_for("prompt", "next")
    assert records(store)["long"].correction == f"The beginning. {long}The end."


def test_two_people_share_the_work(serve, visit, store):
    people = serve(sums(3))
    ann, ben = visit(people.address), visit(people.address)
    assert ann.text("prompt") == "prompt0 + 1 =" and ben.text("prompt") == "prompt1 + 1 ="
    ben.press("r")
    ben.wait_for("prompt", "2 + 1 =")
    ben.press("r")
    ben.wait_for("rest-title", "Nothing left for you")
    ben.wait_for("rest-text", "1 response open on other pages")
    assert ben.part("finish").is_hidden()
    ann.press("s")
    ben.wait_for("prompt", "0 + 1 =")  # without anything done: the page asks again by itself
    ann.wait_for("rest-text", "1 response open on other pages")
    ben.press("e", "Control+a")
    ben.page.keyboard.type("1")
    ben.press("Control+Enter")
    ben.wait_for("rest-title", "Thank you, that was all.")
    ann.wait_for("rest-title", "Thank you, that was all.")
    ann.wait_for("rest-text", "3 responses answered: 1 corrected, 2 right as they were")
    assert people.finished.is_set() and store.missing([i["key"] for i in sums(3)]) == []


def test_skipped_responses_can_be_looked_at_again_or_left(serve, visit, store):
    people = serve(sums(1))
    ann = visit(people.address)
    ann.press("s")
    ann.wait_for("rest-text", "You skipped 1 response")
    ann.part("again").click()
    ann.wait_for("prompt", "0 + 1 =")
    ann.press("s")
    ann.wait_for("rest-text", "You skipped 1 response")
    ann.part("finish").click()
    ann.wait_for("rest-title", "Thank you")
    assert people.finished.is_set() and [r.status for r in store] == [SKIPPED]


def test_a_reload_shows_the_same_response_with_what_was_typed(serve, visit):
    people = serve(sums(3))
    ann = visit(people.address)
    ann.press("r")
    ann.wait_for("prompt", "1 + 1 =")
    ann.press("e", "Control+End")
    ann.page.keyboard.type(" or 2")
    ann.page.reload()
    ann.wait_until_loaded()
    assert ann.text("prompt") == "prompt1 + 1 =" and ann.text("editor") == "1 or 2"
    assert ann.highlights() == ([], [" or 2"])
    second_tab = ann.context.new_page()  # another session of the same browser
    second_tab.goto(people.address)
    second_tab.wait_for_selector('[data-is="work"]:not([hidden])', timeout=60_000)
    assert second_tab.locator('[data-is="prompt"]').text_content() == "prompt2 + 1 ="


def test_somebody_who_was_away_too_long_is_asked_before_anything_is_replaced(serve, visit, store):
    people = serve(sums(2), seconds=0.0)
    ann = visit(people.address)
    people.next("ben")
    people.save("ben", sums(1)[0]["key"], "one", name="Ben")
    ann.press("e", "Control+a")
    ann.page.keyboard.type("1")
    ann.press("Control+Enter")
    ann.wait_for("notice", "Ben has answered it meanwhile")
    assert ann.text("editor") == "1" and "one" in ann.text("notice")
    ann.press("Control+Enter")
    ann.wait_for("prompt", "1 + 1 =")
    assert records(store)["0 + 1 ="].correction == "1"


def test_a_store_that_fails_is_told_and_nothing_typed_is_lost(serve, visit, store, monkeypatch):
    ann = visit(serve(sums(2)).address)

    def full(*args, **kwargs):
        raise BadInput("The store cannot be written: the disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(store, "add", full)
        ann.press("e", "Control+a")
        ann.page.keyboard.type("1")
        ann.press("Control+Enter")
        ann.wait_for("notice", "the disk is full")
    assert ann.text("editor") == "1"
    ann.press("Control+Enter")
    ann.wait_for("prompt", "1 + 1 =")


PROGRAM = """
import sys
from correction_trl.teachers import CorrectionStore, ask_people, correction_key
items = [{"key": correction_key(f"{i} + 1 =", str(i), teacher="human"), "prompt": f"{i} + 1 =", "response": str(i),
          "columns": {}} for i in range(3)]
with CorrectionStore(sys.argv[1]) as store:
    ask_people(store, items, port=int(sys.argv[2]), open_browser=False)
"""


def test_a_killed_program_goes_on_where_it_was(visit, tmp_path):
    pytest.importorskip("gradio", reason="the page needs Gradio (extra `human`)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def start():
        nonlocal address
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "store.sqlite"), str(port)]
        program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = program.stdout.readline()
        address = re.search(rf"http://127.0.0.1:{port}/[\w-]{{22}}/", line)[0]
        return program, line

    address = None
    program, line = start()
    try:
        assert line.startswith("3 responses to correct")
        ann = visit(address)
        ann.press("r")
        ann.wait_for("prompt", "1 + 1 =")
        ann.press("e", "Control+a")
        ann.page.keyboard.type("2")
        program.send_signal(signal.SIGKILL)
        program.wait()
        ann.press("Control+Enter")
        ann.wait_for("notice", "The program does not answer")
        assert ann.text("editor") == "2"

        program, line = start()
        assert line.startswith("2 responses to correct")
        ann.page.reload()
        ann.wait_until_loaded()
        assert ann.text("prompt") == "prompt1 + 1 =" and ann.text("editor") == "2"
        ann.press("Control+Enter")
        ann.wait_for("prompt", "2 + 1 =")
        ann.press("r")
        ann.wait_for("rest-title", "Thank you, that was all.")
        assert program.wait(timeout=30) == 0
    finally:
        program.kill()
        program.stdout.close()
    with CorrectionStore(tmp_path / "store.sqlite") as store:
        assert [r.correction for r in store] == ["0", "2", "2"]


# ---------------------------------------------------------------- the highlighted changes


DIFF = Path(human.__file__).with_name("human_page_diff.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def changes(chromium):
    page = chromium.new_page()
    page.evaluate(f"() => {{ {DIFF}; window.changes = changes; }}")
    yield lambda pairs: page.evaluate("pairs => pairs.map(([a, b]) => changes(a, b))", pairs)
    page.close()


def test_changes_lead_from_the_old_text_to_the_new_one(changes):
    words = st.lists(
        st.sampled_from(["a", "bc", " ", "  ", "\n", "12", "é", "👩‍👩‍👧", "日本", "don't", ".", ""]), max_size=25
    )
    pairs = []

    @settings(max_examples=200)
    @given(words, words)
    def gather(old, new):
        pairs.append(["".join(old), "".join(new)])

    gather()
    for (old, new), parts in zip(pairs, changes(pairs), strict=True):
        assert "".join(text for kind, text in parts if kind in "=-") == old
        assert "".join(text for kind, text in parts if kind in "=+") == new
        assert all(text for _, text in parts)
        assert all(a[0] + b[0] in ("=-", "=+", "-+", "-=", "+=") for a, b in zip(parts, parts[1:], strict=False))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("", "", []),
        ("same", "same", [["=", "same"]]),
        ("the cat sat", "the dog sat", [["=", "the "], ["-", "cat"], ["+", "dog"], ["=", " sat"]]),
        ("a big dog ran", "a small cat ran", [["=", "a "], ["-", "big dog"], ["+", "small cat"], ["=", " ran"]]),
        ("= 123456", "= 123956", [["=", "= 123"], ["-", "4"], ["+", "9"], ["=", "56"]]),
        ("don't go", "don’t go", [["-", "don't"], ["+", "don’t"], ["=", " go"]]),
        ("one\ntwo\nthree", "one\nthree", [["=", "one\n"], ["-", "two\n"], ["=", "three"]]),
        ("我爱猫", "我爱狗", [["=", "我爱"], ["-", "猫"], ["+", "狗"]]),
        ("ok 👩‍👩‍👧", "ok 👩‍👩‍👦", [["=", "ok "], ["-", "👩‍👩‍👧"], ["+", "👩‍👩‍👦"]]),
        ("cafe\u0301s", "caf\u00e9s", [["-", "cafe\u0301s"], ["+", "caf\u00e9s"]]),
    ],
)
def test_changes_are_those_a_reader_would_name(changes, old, new, expected):
    assert changes([[old, new]]) == [expected]


def test_texts_without_anything_in_common_are_replaced_as_a_whole(changes):
    old, new = " ".join(f"a{i}" for i in range(3000)), " ".join(f"b{i}" for i in range(3000))
    assert [kind for kind, _ in changes([[old, new]])[0]][:2] == ["-", "+"]
