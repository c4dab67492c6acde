"""A person as teacher: a page on this machine on which people correct responses, one after another.

`HumanCollection` decides who is shown which response and what becomes of an answer; it knows no browser. The page
(`human_page.html`, `.css`, `.js`, and `human_page_diff.js` for the highlighted changes) shows it; `ask_people` opens
the page and waits until everything is answered. An answer is on the disk before the next response is shown.
"""

import json
import logging
import os
import re
import secrets
import tempfile
import threading
import time
import webbrowser
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import BadInput
from ..functions import Prompt
from .store import ASKED_AGAIN, CORRECTED, SKIPPED, UNCHANGED, Correction, CorrectionStore


logger = logging.getLogger(__name__)

TEACHER = "human"  # its name in keys and records


class HumanCollection:
    """
    Who is shown which response, and what becomes of an answer.

    A *session* is one person's page. Each is given one response at a time, in order, and no two are given the same
    one; a response that lies open without a sign of life for `seconds` goes back. Every method returns what the page
    shows next. Several threads can call it, and several processes can work on the same store.

    Args:
        store ([`~correction_trl.teachers.CorrectionStore`]):
            Where answers go. What it has answers to is not asked again; skips are.
        items (`Sequence[dict]`):
            `{"key": str, "prompt": str | list[dict], "response": str, "columns": dict}` each, in the order in which to
            show them. A key that comes twice is asked once.
        seconds (`float`, *optional*, defaults to `600.0`):
            After how long an open response goes back.

    Example:

    ```python
    from correction_trl.teachers import CorrectionStore, HumanCollection, correction_key

    key = correction_key("1 + 1 =", "3", teacher="human")
    with CorrectionStore("corrections.sqlite") as store:
        people = HumanCollection(store, [{"key": key, "prompt": "1 + 1 =", "response": "3", "columns": {}}])
        people.next("ann")
        people.save("ann", key, "2", name="Ann")
        print(store.get([key])[key].correction)
    ```
    """

    def __init__(self, store: CorrectionStore, items: Sequence[Mapping[str, Any]], seconds: float = 600.0):
        self.store, self.seconds = store, seconds
        self.finished = threading.Event()
        self._lock = threading.RLock()
        self._items = {}
        for item in items:
            self._items.setdefault(item["key"], item)
        self._statuses = {}
        keys = list(self._items)
        for start in range(0, len(keys), 500):  # records can be long: only their statuses are kept
            self._statuses.update((k, r.status) for k, r in store.get(keys[start : start + 500]).items())
        self._pending = dict.fromkeys(k for k in keys if self._statuses.get(k, SKIPPED) in ASKED_AGAIN)
        self._open: dict[str, tuple[str, float]] = {}  # by session: its response, and until when it is theirs
        self._history: dict[str, list[str]] = {}  # by session: what it answered or skipped, the last one last
        self._skipped: dict[str, set[str]] = {}  # by session
        self._answered_by: dict[str, str] = {}  # by key: the session whose answer is stored
        if not self._pending:
            self.finished.set()

    @property
    def remaining(self) -> int:
        """Number of responses without an answer, skipped ones included."""
        return len(self._pending)

    def next(self, session: str, key: str | None = None) -> dict[str, Any]:
        """
        The next response for a session.

        Args:
            session (`str`):
                Whose page.
            key (`str`, *optional*):
                The response that was open on the page, to go on with it after a reload.
        """
        with self._lock:
            held, _ = self._open.pop(session, (None, 0.0))
            if held is not None and held != key:
                self.store.release([held], owner=session)
            skipped = self._skipped.get(session, set())
            if key not in self._pending or key in skipped or not self._claim(session, [key]):
                key = self._claim_first(session, skipped)
            return self._view(session, key)

    def save(self, session: str, key: str, text: str, name: str = "", replace: bool = False) -> dict[str, Any]:
        """
        Store a correction and go on.

        Args:
            session (`str`):
                Whose page.
            key (`str`):
                Which response.
            text (`str`):
                The corrected response as it stands in the editor. Browsers know one kind of line end; those of the
                response are put back.
            name (`str`, *optional*, defaults to `""`):
                Name of the annotator.
            replace (`bool`, *optional*, defaults to `False`):
                Put it in the place of another person's answer.

        Raises:
            BadInput: If the correction is empty or no valid Unicode, or the store cannot be written.
        """
        if not text.strip():
            raise BadInput("An empty correction cannot be trained on. Skip the response, or write what it should be.")
        text = _with_line_ends_of(self._item(key)["response"], text)
        return self._answer(session, key, text, name, replace)

    def right(self, session: str, key: str, name: str = "", replace: bool = False) -> dict[str, Any]:
        """
        Store that a response is right as it is and go on.

        Args:
            session (`str`):
                Whose page.
            key (`str`):
                Which response.
            name (`str`, *optional*, defaults to `""`):
                Name of the annotator.
            replace (`bool`, *optional*, defaults to `False`):
                Put it in the place of another person's answer.

        Raises:
            BadInput: If the store cannot be written.
        """
        return self._answer(session, key, self._item(key)["response"], name, replace)

    def skip(self, session: str, key: str, name: str = "") -> dict[str, Any]:
        """
        Leave a response to others, or to a later run, and go on.

        Args:
            session (`str`):
                Whose page.
            key (`str`):
                Which response.
            name (`str`, *optional*, defaults to `""`):
                Name of the annotator.

        Raises:
            BadInput: If the store cannot be written.
        """
        with self._lock:
            if self.store.add([self._record(key, None, SKIPPED, name)]):  # an answer that is there stays
                self._statuses[key] = SKIPPED
            self._skipped.setdefault(session, set()).add(key)
            self._remember(session, key)
            return self.next(session)

    def back(self, session: str, key: str | None = None) -> dict[str, Any]:
        """
        The response that the session answered or skipped last, with its answer, to change it.

        Args:
            session (`str`):
                Whose page.
            key (`str`, *optional*):
                The response on the page.
        """
        with self._lock:
            history = self._history.get(session, [])
            while history and history[-1] == key:
                history.pop()
            if not history:
                return self.next(session, key)
            key = history.pop()
            held, _ = self._open.pop(session, (None, 0.0))
            if held is not None:
                self.store.release([held], owner=session)
            if key in self._pending:
                self._skipped[session].discard(key)
                if not self._claim(session, [key]):
                    return {**self.next(session), "notice": "Somebody else is at that response now."}
                return self._view(session, key)
            return self._view(session, key, earlier=self.store.get([key])[key].correction)

    def keep(self, session: str, key: str) -> dict[str, Any]:
        """
        A sign of life: the response stays with the session for another `seconds`.

        Args:
            session (`str`):
                Whose page.
            key (`str`):
                Which response.
        """
        with self._lock:
            if key in self._pending:
                self._claim(session, [key])
            return {"progress": self._progress(session)}

    def again(self, session: str) -> dict[str, Any]:
        """
        Show a session what it skipped once more.

        Args:
            session (`str`):
                Whose page.
        """
        with self._lock:
            self._skipped.pop(session, None)
            return self.next(session)

    def finish(self, session: str) -> dict[str, Any]:
        """
        End the collection although responses were skipped; not while other people are at some.

        Args:
            session (`str`):
                Whose page.
        """
        with self._lock:
            view = self.next(session)
            if view["item"] is None and not view["elsewhere"]:
                self.finished.set()
                view["done"] = True
            return view

    # ------------------------------------------------------------------

    def _answer(self, session: str, key: str, correction: str, name: str, replace: bool) -> dict[str, Any]:
        status = UNCHANGED if correction == self._item(key)["response"] else CORRECTED
        with self._lock:
            replace = replace or self._answered_by.get(key) == session
            if not self.store.add([self._record(key, correction, status, name)], replace=replace):
                # It lay open for too long, went to somebody else, and they were faster.
                return self._view(session, key, conflict=self.store.get([key])[key])
            self._answered_by[key] = session
            self._close(key, status)
            self._remember(session, key)
            return self.next(session)

    def _record(self, key: str, correction: str | None, status: str, name: str) -> Correction:
        item = self._item(key)
        return Correction(
            key,
            item["prompt"],
            item["response"],
            correction,
            status,
            teacher=TEACHER,
            annotator=name.strip() or None,
            columns=dict(item["columns"]),
        )

    def _item(self, key: str) -> Mapping[str, Any]:
        if key not in self._items:
            raise BadInput("The program was started with other responses since this page was opened; reload the page.")
        return self._items[key]

    def _remember(self, session: str, key: str) -> None:
        history = self._history.setdefault(session, [])
        if key in history:
            history.remove(key)
        history.append(key)
        if self._open.get(session, (None,))[0] == key:
            del self._open[session]

    def _close(self, key: str, status: str) -> None:
        self._statuses[key] = status
        self._pending.pop(key, None)
        if not self._pending:
            self.finished.set()

    def _claim(self, session: str, keys: list[str]) -> str | None:
        """The first of the keys that is free, now the session's; what another process answered is taken note of."""
        missing = self.store.missing(keys)
        for key in set(keys) - set(missing):
            self._close(key, self.store.get([key])[key].status)
        for key in self.store.claim(missing, owner=session, seconds=self.seconds, limit=1):
            self._open[session] = (key, time.time() + self.seconds)
            return key
        return None

    def _claim_first(self, session: str, skipped: set[str]) -> str | None:
        keys = [key for key in self._pending if key not in skipped]
        for start in range(0, len(keys), 200):  # not all at once: a long list takes SQLite a while
            key = self._claim(session, keys[start : start + 200])
            if key is not None:
                return key
        return None

    def _view(
        self, session: str, key: str | None, earlier: str | None = None, conflict: Correction | None = None
    ) -> dict[str, Any]:
        skipped = self._skipped.get(session, set())
        now = time.time()
        at_others = {k for other, (k, until) in self._open.items() if other != session and until > now}
        view = {
            "item": None,
            "earlier": earlier,
            "conflict": None,
            "notice": None,
            "can_go_back": any(k != key for k in self._history.get(session, [])),
            "progress": self._progress(session),
            # Of what is not answered: what others have open, and what this session skipped
            "elsewhere": len(self._pending.keys() - skipped) + len(self._pending.keys() & skipped & at_others),
            "skipped": len(self._pending.keys() & skipped),
            "done": self.finished.is_set(),
            "keep_seconds": min(60.0, self.seconds / 4),
        }
        if key is not None:
            item = self._item(key)
            view["item"] = {
                "key": key,
                "prompt": _messages(item["prompt"]),
                "response": item["response"],
                "columns": [[name, _as_text(value)] for name, value in item["columns"].items()],
            }
        if conflict is not None:
            view["conflict"] = {"name": conflict.annotator, "correction": conflict.correction}
        return view

    def _progress(self, session: str) -> dict[str, int]:
        statuses = list(self._statuses.values())
        return {
            "total": len(self._items),
            "answered": len(self._items) - len(self._pending),
            "corrected": statuses.count(CORRECTED),
            "unchanged": statuses.count(UNCHANGED),
            "yours": list(self._answered_by.values()).count(session),
        }


def ask_people(
    store: CorrectionStore,
    items: Sequence[Mapping[str, Any]],
    port: int | None = None,
    open_browser: bool = True,
    seconds: float = 600.0,
) -> None:
    """
    Open the page and wait until every response is answered, somebody ends the collection on the page, or Ctrl-C.

    The page is served to this machine only (127.0.0.1, no share link), to whoever has its address: that holds a
    password, random and the same for a store each time (a file beside it that only its user can read). It loads
    nothing from elsewhere and sends nothing anywhere. Everything is in the store when this returns.

    Args:
        store ([`~correction_trl.teachers.CorrectionStore`]):
            Where answers go. What it has answers to is not asked again.
        items (`Sequence[dict]`):
            `{"key": str, "prompt": str | list[dict], "response": str, "columns": dict}` each, in the order in which to
            show them; the keys from `correction_key(prompt, response, teacher="human")`.
        port (`int`, *optional*):
            Port of the page. By default a free one.
        open_browser (`bool`, *optional*, defaults to `True`):
            Open the page in the browser.
        seconds (`float`, *optional*, defaults to `600.0`):
            After how long a response that lies open without a sign of life goes to somebody else.

    Raises:
        BadInput: If Gradio is not installed, or the page cannot be served (the port is taken).
    """
    people = HumanCollection(store, items, seconds)
    if not people.remaining:
        return
    password = _password_of(store)
    page, launch = _build_page(people, password)
    try:
        _, address, _ = page.launch(server_port=port, **launch)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"The page cannot be served on 127.0.0.1{'' if port is None else f':{port}'} "
            f"({str(error).strip().splitlines()[0]}); name another port."
        ) from None
    address = f"{address}{password}/"
    pointer = _open_in_browser(address, store.path.parent) if open_browser else None
    try:
        print(
            f"{people.remaining} responses to correct at {address} (this machine only, and only with this address; "
            "several people, or tabs, can open it). Every answer is kept at once; Ctrl-C ends.",
            flush=True,
        )
        while not people.finished.wait(0.2):
            pass
        time.sleep(3.5)  # so that the other pages, which ask every three seconds, hear of the end
    except KeyboardInterrupt:
        print(f"Stopped with {people.remaining} responses to go. What was answered is kept: start again to go on.")
    finally:
        page.close(verbose=False)
        if pointer is not None:
            pointer.unlink(missing_ok=True)


def _password_of(store: CorrectionStore) -> str:
    """The password in the page's address. It is kept, so that a page that lies open goes on when the program is
    started again."""
    file = store.path.with_name(f"{store.path.name}.page-password")
    try:
        password = file.read_text(encoding="ascii")
        if file.stat().st_mode & 0o077 == 0 and re.fullmatch(r"[\w-]{22}", password):
            return password
        file.unlink()
    except (FileNotFoundError, UnicodeDecodeError):
        file.unlink(missing_ok=True)
    password = secrets.token_urlsafe(16)
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as new:
        new.write(password)
    return password


def _open_in_browser(address: str, folder: Path) -> Path:
    """Through a file that only this user can read: other users of the machine see a browser's command line."""
    handle, name = tempfile.mkstemp(suffix=".html", prefix="open-the-page-", dir=folder)
    with open(handle, "w", encoding="utf-8") as file:
        file.write(f'<!doctype html><meta http-equiv="refresh" content="0;url={address}">')
    webbrowser.open(Path(name).resolve().as_uri())
    return Path(name)


def _build_page(people: HumanCollection, password: str) -> tuple[Any, dict[str, Any]]:
    """The Gradio page and the arguments of its `launch`."""
    try:
        import gradio as gr
    except ImportError as error:
        raise BadInput(
            f"The page for human teachers needs Gradio ({error}): pip install 'correction-trl[human]'."
        ) from error
    from starlette.middleware import Middleware

    methods = {
        name: getattr(people, name) for name in ("next", "save", "right", "skip", "back", "keep", "again", "finish")
    }

    def act(request: dict) -> dict:
        try:
            return methods[request["method"]](**request["arguments"])
        except BadInput as error:
            logger.warning("%s", error)
            return {"error": str(error)}

    folder = Path(__file__).parent
    read = lambda name: (folder / name).read_text(encoding="utf-8")
    with gr.Blocks(title="Correct the responses", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(
            html_template=read("human_page.html"),
            js_on_load=read("human_page_diff.js") + read("human_page.js"),
            apply_default_css=False,
            server_functions=[act],
        )
    return page, {
        "server_name": "127.0.0.1",
        "root_path": f"/{password}",
        "share": False,
        "prevent_thread_lock": True,
        "quiet": True,
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        # Fonts of the machine: the default theme's come from Google
        "theme": gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        "css": read("human_page.css"),
        "app_kwargs": {"middleware": [Middleware(_OnlyThisPage, password=password)]},
    }


class _OnlyThisPage:
    """Middleware: only who has the address with the password gets anything; another site, or another program's page on
    this machine, that is open in the browser cannot talk to the server; and the page can load from and talk to nothing
    else."""

    _OWN = ("127.0.0.1", "localhost")
    _ASKED_BY_GRADIO = "/gradio_api/startup-events"  # by `launch`, without the password; does nothing a second time
    # Gradio runs a component's script from a string
    _HEADERS = (
        (
            b"content-security-policy",
            b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
            b"img-src 'self' data:; font-src 'self' data:; frame-ancestors 'none'",
        ),
        (b"referrer-policy", b"same-origin"),  # the address is a secret
    )

    def __init__(self, app, password: str):
        self.app, self.password = app, password.encode()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        host, origin = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
        if not _is_host(host, self._OWN) or (origin and origin.lower() != f"http://{host.lower()}"):
            return await _refuse(scope, send, 403, b"This page is for this machine only.")
        password, slash, rest = scope["path"][1:].partition("/")
        if scope["path"] != self._ASKED_BY_GRADIO:
            if not secrets.compare_digest(password.encode(), self.password):
                return await _refuse(scope, send, 401, b"Open the whole address that the program printed.")
            if not slash:  # what the page loads has addresses relative to its own
                return await _refuse(scope, send, 307, b"", (b"location", b"/" + self.password + b"/"))
            scope = {**scope, "path": f"/{rest}", "raw_path": f"/{rest}".encode()}

        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *self._HEADERS]}
            await send(message)

        await self.app(scope, receive, send_with_policy)


def _is_host(host: str, names: Sequence[str]) -> bool:
    try:
        return urlsplit(f"//{host}").hostname in names
    except ValueError:
        return False


async def _refuse(scope, send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    if scope["type"] == "websocket":
        return await send({"type": "websocket.close", "code": 1008})
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    """A prompt as the page shows it: role and text of each message."""
    if isinstance(prompt, str):
        return [{"role": "prompt", "text": prompt}]
    return [{"role": str(m.get("role")), "text": _content(m.get("content"))} for m in prompt]


def _content(content: Any) -> str:
    if isinstance(content, list):  # parts; what is no text is named
        return "\n".join(p["text"] if p.get("text") else f"[{p.get('type', 'part')}]" for p in content)
    return content or ""


def _as_text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 5000 else text[:5000] + " ..."


_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")  # not `splitlines`, which knows other line ends too


def _with_line_ends_of(response: str, text: str) -> str:
    """
    A browser's editor turns every line end into a newline. Unchanged lines get theirs back, new ones that of the
    response's first line, so that they are not taken for edits.
    """
    if "\r" not in response:
        return text
    text = re.sub(r"\r\n?", "\n", text)
    old, new = _LINE.findall(response), _LINE.findall(text)
    plain = [line.rstrip("\r\n") for line in old]
    first_end = old[0][len(plain[0]) :]
    lines = [line.removesuffix("\n") + (first_end if line.endswith("\n") else "") for line in new]
    matcher = SequenceMatcher(a=plain, b=[line.removesuffix("\n") for line in new], autojunk=False)
    for i, j, size in matcher.get_matching_blocks():
        for k in range(size):
            # The last line of either may have no end: that is the person's decision
            if new[j + k].endswith("\n") and old[i + k] != plain[i + k]:
                lines[j + k] = old[i + k]
    return "".join(lines)
