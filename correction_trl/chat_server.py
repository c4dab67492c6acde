"""A model behind a server that speaks the OpenAI chat protocol: ask, wait, try again.

vLLM, `transformers serve`, llama.cpp, Ollama, TGI, SGLang, OpenAI, Hugging Face Inference Providers and others do. One
event loop in a thread of its own sends the requests; a request gives its place to the next one when its reply has been
taken (a teacher's: is on the disk), so that no more replies than there are places can be lost, whatever happens.

Nothing that a server sends is trusted: bodies are read up to a limit, unpacked ones too, and what is no chat
completion costs the request that got it.
"""

import asyncio
import json
import os
import random
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import urlsplit

import aiohttp

from .errors import BadInput, ServerFailed
from .functions import whole_characters


_HEADERS = {"Content-Type": "application/json", "Accept-Encoding": "gzip"}
_PACKED = ("gzip", "x-gzip", "deflate")
_LARGEST_BODY = 8 * 2**20  # bytes, unpacked: the text of some two million tokens
_RETRIED_STATUSES = {408, 409, 425, 429, *range(500, 600)}
_LONGEST_PAUSE = 30.0  # seconds between two attempts, where the server does not ask for more
_LONGEST_ASKED_PAUSE = 600.0  # a server that asks for a longer one has no capacity for this run
_SHORTEST_SECRET = 8


@dataclass
class Request:
    """
    One request.

    Args:
        messages (`list[dict]`):
            The conversation.
        fields (`dict`, *optional*):
            Further fields of the request's body: `temperature`, `max_tokens`, ...
        subject (*optional*):
            Whatever the asker wants to have back with the reply.
    """

    messages: list[dict[str, Any]]
    fields: dict[str, Any] = field(default_factory=dict)
    subject: Any = None


@dataclass
class Reply:
    """
    What became of a request.

    Attributes:
        text (`str` or `None`):
            What the model said last; `None` if it said nothing.
        tokens (`int`):
            Tokens that it generated, all attempts together, as the server reports them.
        finish_reason (`str` or `None`):
            Why that ended, as the server says: `"stop"`, `"length"` (cut off at the limit of tokens), ...
        tokens_in (`int`):
            Tokens that it read, all attempts together.
        problem (`str` or `None`):
            Why there is no text, or why the text is of no use; `None` if it is.
        content (*optional*):
            What the asker's `read` made of the text; the text itself without one.
    """

    text: str | None = None
    tokens: int = 0
    finish_reason: str | None = None
    tokens_in: int = 0
    problem: str | None = None
    content: Any = None


class ChatServer:
    """
    An OpenAI-compatible server: `POST {base_url}/chat/completions`.

    What goes wrong with one request costs that request alone. Time-outs, cut connections, replies that are no chat
    completion, and the statuses 408, 409, 425, 429 and 5xx are tried again, with exponential backoff and jitter or
    after the time that the server asks for (`Retry-After`); so are replies that are empty, cut off or of no use to the
    asker, but less often, since each of them costs tokens. A server that was never reached, refuses the key, does not
    know the model, or has not answered for a whole round of requests ends the run with one sentence.

    The API key is read from an environment variable when requests begin, and is in no attribute. It is struck out of
    messages, whole and before they are cut; never out of a reply, which is data: a reply that holds it is refused. Of
    keys with fewer than 8 characters neither is done: they are what local servers are given because some key must be
    (`0`, `test`, `EMPTY`), protect nothing, and stand in many a reply by chance.

    Args:
        model (`str`):
            Name of the model, as the server knows it.
        base_url (`str`, *optional*, defaults to `"http://localhost:8000/v1"`):
            Address up to, and without, `/chat/completions`.
        concurrency (`int`, *optional*, defaults to `32`):
            Most requests at a time.
        timeout (`float`, *optional*, defaults to `120.0`):
            Seconds that a request may take from its beginning to the end of the reply.
        retries (`int`, *optional*, defaults to `6`):
            Further attempts after a failure.
        reply_retries (`int`, *optional*, defaults to `2`):
            How many of them may be spent on replies that are empty, cut off or of no use.
        first_pause (`float`, *optional*, defaults to `0.5`):
            Seconds before the second attempt; doubled for each further one, up to 30, and shortened at random by up
            to a half. Where the server says how long to wait, that is done instead, for at most ten minutes in all.
        api_key_variable (`str`, *optional*, defaults to `"SERVER_API_KEY"`):
            Name of the environment variable that holds the API key; without one, none is sent.
        role (`str`, *optional*, defaults to `"server"`):
            What messages call it: `"server"`, `"teacher"` or `"judge"`. Settings in messages begin with it
            (`server_base_url`).

    Raises:
        BadInput: If the address, the name of the variable or a number cannot be right.
    """

    def __init__(
        self,
        model: str,
        base_url: str = "http://localhost:8000/v1",
        concurrency: int = 32,
        timeout: float = 120.0,
        retries: int = 6,
        reply_retries: int = 2,
        first_pause: float = 0.5,
        api_key_variable: str = "SERVER_API_KEY",
        role: Literal["server", "teacher", "judge"] = "server",
    ):
        _check_address(base_url, role)
        if not re.fullmatch(r"[A-Za-z_]\w*", api_key_variable):
            raise BadInput(
                f"`{role}_api_key_variable` is the name of an environment variable, such as OPENAI_API_KEY, not the "
                "key itself."
            )
        if concurrency < 1 or not timeout > 0 or retries < 0 or reply_retries < 0 or not first_pause >= 0:
            raise BadInput(
                f"A {role}'s `concurrency` must be at least 1, its `timeout` positive, and its `retries`, "
                "`reply_retries` and `first_pause` not negative."
            )
        self.model, self.base_url = model, base_url.rstrip("/")
        self.concurrency, self.timeout = concurrency, timeout
        self.retries, self.reply_retries, self.first_pause = retries, reply_retries, first_pause
        self.api_key_variable, self.role = api_key_variable, role

    def ask(
        self,
        requests: Iterable[Request],
        take: Callable[[list[tuple[Request, Reply]]], None],
        read: Callable[[Request, str], tuple[Any, str | None]] = lambda request, text: (text, None),
    ) -> None:
        """
        Send requests and wait for all replies, in whatever order they come.

        Args:
            requests (`Iterable[Request]`):
                Taken one by one, as there is room.
            take (`Callable`):
                Gets each request with its reply. A request keeps its place until that returns; called from one thread
                at a time, which is not the caller's.
            read (`Callable`, *optional*):
                `read(request, text)` returns what is in a text, which becomes the reply's `content`, and `None`; or
                why it is of no use, so that the model is asked again.

        Raises:
            ServerFailed: If the server is down, refuses the key, or does not know the model.
        """
        run = _Run(self, iter(requests), take, read, self._read_key())
        # A thread of its own: a notebook's cells run inside an event loop already
        thread = threading.Thread(target=run.start, daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(0.2)  # in small pieces, so that Ctrl-C is heard
        except BaseException:
            run.stop()
            thread.join(10)
            raise
        if run.error is not None:
            raise run.error

    def _read_key(self) -> str:
        key = os.environ.get(self.api_key_variable, "").strip()
        if not key.isascii() or not key.isprintable() or " " in key:
            raise BadInput(f"The environment variable {self.api_key_variable} holds characters that no API key has.")
        return key


def _check_address(base_url: str, role: str) -> None:
    try:
        address = urlsplit(base_url)
        port_is_wrong = address.port == 0  # the property raises for others that cannot be
        host = address.hostname or ""
        host.encode("idna")
    except ValueError as error:
        raise BadInput(f"The {role}'s address {base_url!r:.100} cannot be right ({error}).") from None
    if address.scheme not in ("http", "https") or not host:
        raise BadInput(f"The {role}'s address {base_url!r:.100} must begin with http:// or https://.")
    if address.username or address.password or address.query:
        raise BadInput(
            f"The {role}'s address holds a user name, a password or a query; give an API key in the environment "
            f"variable that `{role}_api_key_variable` names."
        )
    if port_is_wrong or address.fragment or re.search(r"[\s\\<>\"]", base_url):
        raise BadInput(
            f"The {role}'s address {base_url!r:.100} cannot be right; it looks like http://localhost:8000/v1."
        )


@dataclass
class _Failure(Exception):
    """Why an attempt has no reply, whether another may help, and what the server wants waited for."""

    reason: str
    again: bool = True
    pause: float | None = None
    text: str | None = None  # of a reply that was read and is of no use


class _Run:
    """One call of [`ChatServer.ask`]: its event loop, its places and its counts."""

    def __init__(self, server: ChatServer, requests: Iterator[Request], take, read, key: str):
        self.server, self.requests, self.take, self.read = server, requests, take, read
        self.error: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._key = key
        self._random = random.Random()  # jitter must neither draw from nor depend on a training's seed
        self._succeeded = False  # whether any request ever was
        self._lost_in_a_row = 0  # requests that got no reply since the last one that did
        self._task = None
        self._called = "The server" if server.role == "server" else f"The {server.role}'s server"

    def start(self):
        try:
            self._task = self._loop.create_task(self._main())
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            self.error = KeyboardInterrupt()
        except BaseException as error:
            self.error = error
        finally:
            self._loop.close()

    def stop(self):
        if self._task is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._task.cancel)

    async def _main(self):
        answered: asyncio.Queue = asyncio.Queue()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        host = urlsplit(self.server.base_url).hostname
        is_local = host in ("localhost", "::1") or host.startswith("127.")
        async with aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=self.server.concurrency),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self.server.timeout),
            trust_env=not is_local,  # the proxy that the environment names
            auto_decompress=False,  # `_read_body` does it, up to a limit
        ) as client:
            taker = asyncio.create_task(self._take_replies(answered))
            places = [asyncio.create_task(self._place(client, answered)) for _ in range(self.server.concurrency)]
            try:
                await _all_or_first_error([*places], taker)
            finally:
                for task in places:
                    task.cancel()
                await asyncio.gather(*places, return_exceptions=True)
                answered.put_nowait(None)  # what has arrived is taken, even now
                await asyncio.gather(taker, return_exceptions=True)
            if taker.exception() is not None:
                raise taker.exception()

    async def _place(self, client, answered: asyncio.Queue):
        for request in self.requests:
            reply = await self._ask(client, request)
            taken = self._loop.create_future()
            answered.put_nowait(((request, reply), taken))
            await taken

    async def _take_replies(self, answered: asyncio.Queue):
        """Replies are taken by one thread: as many as have arrived while the last ones were."""
        with ThreadPoolExecutor(1) as taker:
            while (first := await answered.get()) is not None:
                waiting, last = [first], False
                while not answered.empty() and not last:
                    waiting.append(answered.get_nowait())
                    last = waiting[-1] is None
                waiting = [each for each in waiting if each is not None]
                await self._loop.run_in_executor(taker, self.take, [pair for pair, _ in waiting])
                for _, taken in waiting:
                    if not taken.done():
                        taken.set_result(None)
                if last:
                    return

    async def _ask(self, client, request: Request) -> Reply:
        """One request, with all its attempts."""
        server = self.server
        content = json.dumps({"model": server.model, "messages": request.messages, **request.fields}).encode()
        reply = Reply()
        attempts, replies_left, waited = 0, server.reply_retries, 0.0
        while True:
            try:
                text = await self._attempt(client, content, reply)
                reply.content, problem = self.read(request, text)
                if problem is not None:
                    raise _Failure(problem, text=text)
                self._lost_in_a_row = 0
                reply.text = text
                return reply
            except _Failure as failure:
                pause = self._pause(failure, attempts)
                waited += failure.pause or 0
                if failure.pause is None or failure.pause < 1:  # to be asked to wait is no failed attempt
                    attempts += 1
                if failure.text is not None:
                    failure.again = replies_left > 0
                    replies_left -= 1
                if not failure.again or attempts > server.retries or waited > _LONGEST_ASKED_PAUSE:
                    self._count_lost(failure)
                    reply.text = failure.text
                    reply.problem = failure.reason if attempts < 2 else f"{failure.reason} (attempt {attempts})"
                    return reply
                await asyncio.sleep(pause)

    async def _attempt(self, client, content: bytes, reply: Reply) -> str:
        """One attempt: the text. What it cost, and how it ended, is noted in the reply."""
        reply.finish_reason = None
        url = f"{self.server.base_url}/chat/completions"
        try:
            async with client.post(url, data=content, headers=_HEADERS, allow_redirects=False) as response:
                status, headers, body = response.status, response.headers, await _read_body(response)
        except TimeoutError:
            raise _Failure(f"no reply within {self.server.timeout:g} seconds") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            text = self._short(str(error))
            raise _Failure(f"the connection failed ({text or type(error).__name__})") from None
        if status != 200:
            raise self._refusal(status, headers, body)
        try:
            answer = json.loads(body)
            choice = answer["choices"][0]
            text = choice["message"].get("content") or ""
            usage = answer.get("usage") or {}
            tokens = _n_tokens(usage.get("prompt_tokens")), _n_tokens(usage.get("completion_tokens"))
            if not isinstance(text, str):
                raise TypeError
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
            raise _Failure(f"the reply is no chat completion: {self._short(_readable(body))!r}") from None
        self._succeeded = True
        reply.tokens_in += tokens[0]
        reply.tokens += tokens[1]
        reply.finish_reason = choice.get("finish_reason") if isinstance(choice.get("finish_reason"), str) else None
        if self._key in text and len(self._key) >= _SHORTEST_SECRET:
            raise _Failure("the reply holds the API key that was sent, and is not kept", again=False)
        text = whole_characters(text)
        if reply.finish_reason == "length":
            raise _Failure(f"the reply was cut off at the token limit (`{self.server.role}_max_tokens`)", text=text)
        if reply.finish_reason == "content_filter":
            raise _Failure("the server's content filter withheld the reply", again=False)
        if not text.strip():
            raise _Failure("the reply is empty", text=text)
        return text

    def _refusal(self, status: int, headers: Mapping[str, str], body: bytes) -> _Failure:
        """What a status other than 200 means."""
        server = self.server
        message, code = _error_message(body)
        message = self._short(message).rstrip(".")
        reason = f"status {status}{f': {message}' if message else ''}"
        out_of_credit = status == 402 or code == "insufficient_quota"
        if not self._succeeded or out_of_credit:  # nothing was ever right: it is not the request's fault
            if out_of_credit:
                raise ServerFailed(f"{self._called} wants to be paid first ({reason}).")
            if status in (401, 403):
                was = "was sent" if self._key else "is in"
                raise ServerFailed(
                    f"{self._called} refused the request ({reason}); the API key that {was} the environment "
                    f"variable {server.api_key_variable} is {'not accepted' if self._key else 'missing'}."
                )
            if status == 404 or 300 <= status < 400:
                raise ServerFailed(
                    f"{server.base_url}/chat/completions does not serve the model {server.model!r} ({reason}); check "
                    f"`{server.role}_base_url` (it usually ends in /v1) and `{server.role}_model`."
                )
        if status not in _RETRIED_STATUSES and status not in (401, 403, 404):
            return _Failure(reason, again=False)
        pause = _asked_pause(headers)
        if pause is not None and pause > _LONGEST_ASKED_PAUSE:
            return _Failure(f"{reason}; the server asks to wait {pause:.0f} seconds", again=False)
        return _Failure(reason, pause=pause)

    def _pause(self, failure: _Failure, attempts: int) -> float:
        if failure.pause is not None:
            return failure.pause + self._random.uniform(0, 0.1 + 0.1 * failure.pause)
        return min(self.server.first_pause * 2**attempts, _LONGEST_PAUSE) * self._random.uniform(0.5, 1)

    def _count_lost(self, failure: _Failure) -> None:
        """One request is lost for good: whether that is its own fault, or the server does not answer any more."""
        if failure.text is not None or not failure.again:
            self._lost_in_a_row = 0
            return
        self._lost_in_a_row += 1
        url = self.server.base_url
        if not self._succeeded:
            raise ServerFailed(
                f"{self._called} {url} has given no answer ({failure.reason}); is it running, and is "
                f"`{self.server.role}_base_url` right?"
            )
        if self._lost_in_a_row >= max(self.server.concurrency, 16):
            raise ServerFailed(
                f"{self._called} {url} does not answer any more: {self._lost_in_a_row} items in a row failed (the "
                f"last one: {failure.reason}). What it answered before is kept; start again to go on."
            )

    def _short(self, text: str) -> str:
        """The beginning of what a server sent, for a message: in one line, without the API key."""
        if len(self._key) >= _SHORTEST_SECRET:  # before it is cut: half a key is a secret too
            text = text.replace(self._key, "***").replace(json.dumps(self._key)[1:-1], "***")
        return whole_characters(" ".join(text.split())[:200])


async def _all_or_first_error(places: list[asyncio.Task], taker: asyncio.Task):
    waiting = {*places, taker}
    while waiting - {taker}:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()  # raises what the task raised


async def _read_body(response: aiohttp.ClientResponse) -> bytes:
    """The body, unpacked: piece by piece, so that neither a long one nor one that unpacks to a long one fills the
    memory."""
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity", *_PACKED):
        raise _Failure(f"the reply is packed as {encoding!r:.40}, which was not asked for", again=False)
    unpack = zlib.decompressobj(wbits=47) if encoding in _PACKED else None  # 47: with the header of gzip or of zlib
    pieces, size = [], 0
    async for piece in response.content.iter_any():
        try:
            pieces.append(piece if unpack is None else unpack.decompress(piece, _LARGEST_BODY + 1 - size))
        except zlib.error:
            raise _Failure("the reply cannot be unpacked") from None
        size += len(pieces[-1])
        if size > _LARGEST_BODY:
            raise _Failure(f"the reply is larger than {_LARGEST_BODY // 2**20} MiB", again=False)
    return b"".join(pieces)


def _n_tokens(value: Any) -> int:
    """A number of tokens as a server reports it (`None`: not at all); raises where it cannot be one."""
    count = int(value or 0)
    if count >= 2**53:
        raise OverflowError
    return max(0, count)


def _readable(body: bytes) -> str:
    """What a server sent, as text; JSON without its escapes, so that an API key in it is found."""
    try:
        return json.dumps(json.loads(body), ensure_ascii=False)
    except (ValueError, RecursionError):
        return body.decode("utf-8", "replace")


def _error_message(body: bytes) -> tuple[str, str | None]:
    """What servers write under "error" or "detail", and the code that goes with it."""
    try:
        answer = json.loads(body)
        error = answer.get("error") or answer.get("detail") or answer if isinstance(answer, dict) else answer
        code = error.get("code") or error.get("type") if isinstance(error, dict) else None
        message = error.get("message") if isinstance(error, dict) else error
        return message if isinstance(message, str) else json.dumps(error, ensure_ascii=False), code
    except (ValueError, RecursionError):
        return body.decode("utf-8", "replace"), None


def _asked_pause(headers: Mapping[str, str]) -> float | None:
    """Seconds that `Retry-After` asks for: a number, or a date."""
    value = headers.get("Retry-After")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None
