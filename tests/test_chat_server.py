"""A server that speaks the OpenAI chat protocol, and what it may send: a hostile one costs the request that it answers
so, and no more."""

import gzip
import json
import threading
import time
import tracemalloc
import zlib
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from correction_trl.chat_server import ChatServer, Request
from correction_trl.errors import BadInput, ServerFailed, TeacherFailed
from correction_trl.teachers import CorrectionStore, ServerTeacher, collect


KEY = "sk-standin-key-that-must-never-be-shown-0123456789"


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    for name in ("TEACHER_API_KEY", "SERVER_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def completion(text="fine", usage=None, **choice) -> bytes:
    choice = {"message": {"content": text}, "finish_reason": "stop", **choice}
    return json.dumps({"choices": [choice], "usage": usage or {"prompt_tokens": 3, "completion_tokens": 2}}).encode()


@contextmanager
def serving(answer):
    """A server in this process: `answer(last message)` gives a body, or (body, status, headers), or writes itself."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            given = answer(asked["messages"][-1]["content"])
            if callable(given):
                self.close_connection = True
                try:
                    given(self)
                except OSError:
                    pass
                return
            body, status, headers = given if isinstance(given, tuple) else (given, 200, {})
            self.send_response(status)
            for name, value in {"Content-Length": len(body), **headers}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # connections that the client has cut
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()


def ask(url, prompts, **options):
    """Replies by prompt."""
    options = {"concurrency": 4, "timeout": 5.0, "retries": 1, "first_pause": 0.01, **options}
    replies = {}
    ChatServer("m", url, **options).ask(
        (Request([{"role": "user", "content": prompt}], subject=prompt) for prompt in prompts),
        take=lambda answered: replies.update((request.subject, reply) for request, reply in answered),
    )
    return replies


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    piece = b'{"choices": [' + b" " * 2**20
    while True:
        handler.wfile.write(piece)


def usage(text: str) -> bytes:
    return completion(usage={"prompt_tokens": 0}).replace(b'_tokens": 0', b'_tokens": ' + text.encode())


def bomb(mebibytes: int) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    zeros = bytes(2**20)
    return b"".join(packer.compress(zeros) for _ in range(mebibytes)) + packer.flush()


HOSTILE = {
    "nested lists": b"[" * 200_000 + b"]" * 200_000,
    "nested objects": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    "nested usage": completion().replace(b'"usage": {', b'"usage": ' + b"[" * 100_000 + b"]" * 100_000 + b', "x": {'),
    "nested message": b'{"choices": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "infinite tokens": usage("Infinity"),
    "minus infinity": usage("-Infinity"),
    "not a number": usage("NaN"),
    "1e400 tokens": usage("1e400"),
    "10^23 tokens": usage("1" + "0" * 23),
    "10^5000 tokens": usage("1" + "0" * 5000),
    "tokens in words": usage('"many"'),
    "tokens in a list": usage("[3]"),
    "usage is a text": completion().replace(b'"usage": {', b'"usage": "much", "x": {'),
    "null": b"null",
    "a list": b"[]",
    "a number": b"17",
    "no choices": b'{"choices": []}',
    "choices are null": b'{"choices": null}',
    "choices are an object": b'{"choices": {"0": 1}}',
    "a choice is a text": b'{"choices": ["message"]}',
    "no message": b'{"choices": [{}]}',
    "a message is a text": b'{"choices": [{"message": "fine"}]}',
    "the content is a number": completion(7),
    "the content is an object": completion({"text": "fine"}),
    "nothing": b"",
    "no text": b"\xff\xfe\x00",
    "no end": completion()[:-9],
    "no gzip": (b"plain", 200, {"Content-Encoding": "gzip"}),
    "half a gzip": (gzip.compress(completion())[:-20], 200, {"Content-Encoding": "gzip"}),
    "another packing": (b"...", 200, {"Content-Encoding": "br"}),
    "a bomb": (bomb(700), 200, {"Content-Encoding": "gzip"}),
    "a bomb with an error": (bomb(700), 500, {"Content-Encoding": "gzip"}),
    "an endless body": endless,
    "a nested error": (b"[" * 200_000, 400, {}),
    "a nested message of an error": (b'{"error": ' + b"[" * 500 + b"]" * 500 + b"}", 400, {}),
    "an endless pause": (b"{}", 429, {"Retry-After": "inf"}),
    "a pause of 1e400": (b"{}", 429, {"Retry-After": "1e400"}),
    "a pause until the year 0": (b"{}", 400, {"Retry-After": "Mon, 01 Jan 0001 00:00:00 GMT"}),
}


def test_whatever_a_server_sends_costs_one_request_and_little_memory():
    prompts = [name for hostile in HOSTILE for name in (hostile, f"after {hostile}")]
    with serving(lambda prompt: HOSTILE.get(prompt, completion())) as url:
        tracemalloc.start()
        begun = time.monotonic()
        replies = ask(url, ["first", *prompts])
        seconds, (_, peak) = time.monotonic() - begun, tracemalloc.get_traced_memory()
        tracemalloc.stop()
    for name in HOSTILE:
        reply = replies[name]
        assert reply.text is None and reply.problem and "\n" not in reply.problem and len(reply.problem) < 300, name
        assert replies[f"after {name}"].text == "fine"
    assert replies["first"].tokens == 2 and replies["first"].tokens_in == 3
    for name in ("a bomb", "an endless body"):
        assert replies[name].problem == "the reply is larger than 8 MiB"
    assert peak < 200 * 2**20, "four replies of 8 MiB, with their copies, and what was sent"
    assert seconds < 60


def test_a_reply_may_be_packed_large_and_its_token_counts_strange():
    answers = {
        "gzip": (gzip.compress(completion("packed")), 200, {"Content-Encoding": "gzip"}),
        "zlib": (zlib.compress(completion("packed")), 200, {"Content-Encoding": "deflate"}),
        "large": completion("x" * 3_000_000),
        "texts": completion(usage={"prompt_tokens": "12", "completion_tokens": 5.0}),
        "minus": completion(usage={"prompt_tokens": -1, "completion_tokens": None}),
        "none": json.dumps({"choices": [{"message": {"content": "fine"}}]}).encode(),
        "half": b'{"choices": [{"message": {"content": "a\\ud800b \\ud83d\\ude00"}, "finish_reason": {"why": []}}]}',
    }
    with serving(answers.get) as url:
        replies = ask(url, answers)
    assert all(reply.problem is None for reply in replies.values())
    assert replies["gzip"].text == replies["zlib"].text == "packed" and len(replies["large"].text) == 3_000_000
    assert (replies["texts"].tokens_in, replies["texts"].tokens) == (12, 5)
    assert (replies["minus"].tokens_in, replies["none"].tokens, replies["none"].finish_reason) == (0, 0, None)
    assert replies["half"].text == "a�b 😀" and replies["half"].finish_reason is None


def test_how_a_reply_ended_is_a_field_and_no_sentence():
    answers = {
        "cut": completion("It was cut off by nobody.", finish_reason="stop"),
        "long": completion("It was", finish_reason="length"),
        "filtered": completion("", finish_reason="content_filter"),
        "empty": completion(" \n"),
    }
    with serving(answers.get) as url:
        replies = ask(url, answers, reply_retries=1)
    assert {name: reply.finish_reason for name, reply in replies.items()} == {
        "cut": "stop", "long": "length", "filtered": "content_filter", "empty": "stop",
    }  # fmt: skip
    assert replies["long"].text == "It was" and replies["long"].tokens == 4  # asked twice, paid twice
    assert replies["empty"].text == " \n" and replies["filtered"].text is None
    assert replies["cut"].problem is None and all(replies[name].problem for name in ("long", "filtered", "empty"))


@pytest.mark.parametrize("key", ["0", "10", "test", "EMPTY", "not-key"])
def test_a_short_key_is_nobodys_secret_and_data_stay_as_they_are(monkeypatch, key, tmp_path):
    monkeypatch.setenv("TEACHER_API_KEY", key)
    text = f"<corrected_response>The answer is {key}: 10, test, EMPTY.</corrected_response>"
    with serving(lambda prompt: completion(text)) as url, CorrectionStore(tmp_path / "s.sqlite") as store:
        teacher = ServerTeacher("m", url)
        assert teacher.correct(["1"], ["2"]) == [f"The answer is {key}: 10, test, EMPTY."]
        collect(store, teacher, [{"prompt": "1", "response": "2"}])
        assert next(iter(store)).reply == text


@pytest.mark.parametrize("before", [0, 150, 170, 199, 200, 980, 990])
@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize("form", ["text", "json", "escaped"])
def test_a_key_is_struck_out_of_a_message_before_it_is_cut(monkeypatch, before, status, form):
    monkeypatch.setenv("SERVER_API_KEY", KEY)
    body = f"{'x' * before}{KEY} is what you sent, and it is wrong"
    if form != "text":
        body = json.dumps({"error": {"message": body}})
    if form == "escaped":
        body = body.replace("sk-", "\\u0073\\u006b-")
    answers = {"first": completion(), "second": (body.encode(), status, {})}
    with serving(answers.get) as url:
        problem = ask(url, ["first", "second"], retries=0, concurrency=1)["second"].problem
    assert not any(KEY[i : i + 8] in problem for i in range(len(KEY) - 7))
    assert ("***" in problem) == (before < 190)


def test_a_reply_that_holds_the_key_is_not_kept(monkeypatch):
    monkeypatch.setenv("SERVER_API_KEY", KEY)
    answers = {"first": completion(), "second": completion(f"Bearer {KEY} right")}
    with serving(answers.get) as url:
        reply = ask(url, answers)["second"]
    assert reply.text is None and "holds the API key" in reply.problem and KEY not in repr(reply)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000", "", "http://", "http:///v1", "ftp://host/v1", "http://[::1/v1", "http://host:99999/v1",
        "http://host:0/v1", "http://host:port/v1", "http://ho st/v1", "http://host/v1 ", "http://host/v1#part",
        "http://host\\v1", f"http://{'a' * 70}.com/v1", "http://a..b/v1",
    ],
)  # fmt: skip
def test_an_address_that_cannot_be_right_is_told_at_once(url):
    for role in ("server", "teacher"):
        with pytest.raises(BadInput, match=f"The {role}'s address") as caught:
            ChatServer("m", url, role=role)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://localhost:8000/v1/", "https://api.host.com/v1", "http://[::1]:80/v1"])
def test_an_address_that_can_be_right_is_taken(url):
    assert ChatServer("m", url).base_url == url.rstrip("/")


@pytest.mark.parametrize(
    "options", [{"timeout": 0}, {"timeout": float("nan")}, {"retries": -1}, {"first_pause": float("nan")}]
)
def test_numbers_that_cannot_be_right_are_told(options):
    with pytest.raises(BadInput, match="must be at least 1, its `timeout` positive"):
        ChatServer("m", **options)


def test_a_server_that_fails_is_no_teacher():
    assert issubclass(ServerFailed, TeacherFailed)  # a recipe ends with either's sentence
    with serving(lambda prompt: (b"{}", 401, {})) as url:
        with pytest.raises(ServerFailed, match="^The server refused the request .status 401: {}.; the API key"):
            ask(url, ["a"])
        with pytest.raises(ServerFailed, match="^The teacher's server refused the request"):
            ServerTeacher("m", url).correct(["a"], ["b"])
