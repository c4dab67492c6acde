"""A model behind a server that speaks the OpenAI chat protocol, as a teacher.

vLLM, `transformers serve`, llama.cpp, Ollama, TGI, SGLang, OpenAI, Hugging Face Inference Providers and others do. One
event loop in a thread of its own sends the requests; a request gives its place to the next one when its answer is on
the disk, so that no more answers than there are places can be lost, whatever happens.
"""

import asyncio
import json
import os
import random
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from ..errors import BadInput, TeacherFailed
from .base import Item, Keep, Teacher
from .prompting import TeacherPrompt
from .store import FAILED, UNPARSABLE, Correction


_JSON = {"Content-Type": "application/json"}
_RETRIED_STATUSES = {408, 409, 425, 429, *range(500, 600)}
_LONGEST_PAUSE = 30.0  # seconds between two attempts, where the server does not ask for more
_LONGEST_ASKED_PAUSE = 600.0  # a server that asks for a longer one has no capacity for this run


class ServerTeacher(Teacher):
    """
    A teacher behind an OpenAI-compatible server: `POST {base_url}/chat/completions`.

    What goes wrong with one request costs that item alone. Time-outs, cut connections, replies that are no JSON, and
    the statuses 408, 409, 425, 429 and 5xx are tried again, with exponential backoff and jitter or after the time that
    the server asks for (`Retry-After`); so are replies that are empty, cut off or not in the form asked for, but less
    often, since each of them costs tokens. Such a reply that remains is kept as `"unparsable"`, everything else as
    `"failed"`, with the reason. A server that was never reached, refuses the key, does not know the model, or has not
    answered for a whole round of requests ends the run with one sentence.

    The API key is read from an environment variable when a run begins. It is in no attribute, and is struck out of
    whatever the server sends back.

    Example:

    ```python
    teacher = ServerTeacher("Qwen/Qwen2.5-72B-Instruct", "http://localhost:8000/v1", concurrency=64)
    corrections = teacher.correct(prompts=["What is 1 + 1?"], responses=["It is 3."])
    ```

    Args:
        model (`str`):
            Name of the model, as the server knows it. With the template and the sampling parameters it identifies the
            teacher; the address does not, so that a server may move.
        base_url (`str`, *optional*, defaults to `"http://localhost:8000/v1"`):
            Address up to, and without, `/chat/completions`.
        template (`str`, *optional*, defaults to `"minimal_correction"`):
            Correction prompt: see [`TeacherPrompt`].
        temperature (`float`, *optional*, defaults to `0.0`):
            Sampling temperature; `None` leaves it to the server.
        top_p (`float`, *optional*):
            Nucleus sampling; by default as the server has it.
        max_tokens (`int`, *optional*, defaults to `2048`):
            Most tokens of a reply, thoughts included. Not part of the key.
        extra_body (`dict`, *optional*):
            Further fields of a request; a `None` removes a field (`{"max_tokens": None, "max_completion_tokens":
            4096}`).
        concurrency (`int`, *optional*, defaults to `32`):
            Most requests at a time.
        timeout (`float`, *optional*, defaults to `120.0`):
            Seconds that a request may take from its beginning to the end of the reply.
        retries (`int`, *optional*, defaults to `6`):
            Further attempts after a failure.
        reply_retries (`int`, *optional*, defaults to `2`):
            How many of them may be spent on replies that are empty, cut off or not in the form asked for.
        first_pause (`float`, *optional*, defaults to `0.5`):
            Seconds before the second attempt; doubled for each further one, up to 30, and shortened at random by up
            to a half. Where the server says how long to wait, that is done instead, for at most ten minutes in all.
        price_in, price_out (`float`, *optional*, defaults to `0.0`):
            Price of a million tokens read and written.
        api_key_variable (`str`, *optional*, defaults to `"TEACHER_API_KEY"`):
            Name of the environment variable that holds the API key; without one, none is sent.

    Raises:
        BadInput: If the address, the name of the variable or the template cannot be right.
    """

    waits_for_a_server = True

    def __init__(
        self,
        model: str,
        base_url: str = "http://localhost:8000/v1",
        template: str = "minimal_correction",
        temperature: float | None = 0.0,
        top_p: float | None = None,
        max_tokens: int = 2048,
        extra_body: dict[str, Any] | None = None,
        concurrency: int = 32,
        timeout: float = 120.0,
        retries: int = 6,
        reply_retries: int = 2,
        first_pause: float = 0.5,
        price_in: float = 0.0,
        price_out: float = 0.0,
        api_key_variable: str = "TEACHER_API_KEY",
    ):
        super().__init__()
        address = urlsplit(base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise BadInput(f"The teacher's address {base_url!r:.100} must begin with http:// or https://.")
        if address.username or address.password or address.query:
            raise BadInput(
                "The teacher's address holds a user name, a password or a query; give an API key in the environment "
                "variable that `teacher_api_key_variable` names."
            )
        if not re.fullmatch(r"[A-Za-z_]\w*", api_key_variable):
            raise BadInput(
                "`teacher_api_key_variable` is the name of an environment variable, such as OPENAI_API_KEY, not the "
                "key itself."
            )
        if concurrency < 1 or timeout <= 0 or retries < 0 or reply_retries < 0 or max_tokens < 1:
            raise BadInput(
                "A teacher's `concurrency` and `max_tokens` must be at least 1, its `timeout` positive, and its "
                "`retries` and `reply_retries` not negative."
            )
        self.name = f"server:{model}"
        self.model, self.base_url = model, base_url.rstrip("/")
        self.prompt = TeacherPrompt(template)
        self.template_version = self.prompt.version
        sampling = {"temperature": temperature, "top_p": top_p, **(extra_body or {})}
        limits = {"max_tokens": max_tokens, "max_completion_tokens": None}
        self._fields = {name: value for name, value in {**limits, **sampling}.items() if value is not None}
        self.sampling = {name: value for name, value in sampling.items() if value is not None and name not in limits}
        self.concurrency, self.timeout = concurrency, timeout
        self.retries, self.reply_retries, self.first_pause = retries, reply_retries, first_pause
        self.price_in, self.price_out = price_in, price_out
        self.api_key_variable = api_key_variable

    def seen_columns(self, columns: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in columns.items() if name in self.prompt.columns}

    def _read_key(self) -> str:
        key = os.environ.get(self.api_key_variable, "").strip()
        if not key.isascii() or not key.isprintable() or " " in key:
            raise BadInput(f"The environment variable {self.api_key_variable} holds characters that no API key has.")
        return key

    def answer(self, items: Iterable[Item], keep: Keep) -> None:
        run = _Run(self, iter(items), keep, self._read_key())
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


@dataclass
class _Failure(Exception):
    """Why an attempt has no correction, whether another may help, and what the server wants waited for."""

    reason: str
    again: bool = True
    pause: float | None = None
    reply: str | None = None  # a reply that was read and is of no use


class _Run:
    """One call of [`ServerTeacher.answer`]: its event loop, its places and its counts."""

    def __init__(self, teacher: ServerTeacher, items: Iterator[Item], keep: Keep, key: str):
        self.teacher, self.items, self.keep = teacher, items, keep
        self.error: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._key = key
        self._random = random.Random()  # jitter must neither draw from nor depend on a training's seed
        self._succeeded = False  # whether any request ever was
        self._lost_in_a_row = 0  # items that got no answer since the last one that did
        self._task = None

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
        answers: asyncio.Queue = asyncio.Queue()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        host = urlsplit(self.teacher.base_url).hostname
        is_local = host in ("localhost", "::1") or host.startswith("127.")
        async with aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=self.teacher.concurrency),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self.teacher.timeout),
            trust_env=not is_local,  # the proxy that the environment names
        ) as client:
            keeper = asyncio.create_task(self._keep_answers(answers))
            places = [asyncio.create_task(self._place(client, answers)) for _ in range(self.teacher.concurrency)]
            try:
                await _all_or_first_error([*places], keeper)
            finally:
                for task in places:
                    task.cancel()
                await asyncio.gather(*places, return_exceptions=True)
                answers.put_nowait(None)  # what has arrived is kept, even now
                await asyncio.gather(keeper, return_exceptions=True)
            if keeper.exception() is not None:
                raise keeper.exception()

    async def _place(self, client, answers: asyncio.Queue):
        for item in self.items:
            record = await self._ask(client, item)
            kept = self._loop.create_future()
            answers.put_nowait((record, kept))
            await kept

    async def _keep_answers(self, answers: asyncio.Queue):
        """Answers are kept by one thread: as many as have arrived while the last ones were written."""
        with ThreadPoolExecutor(1) as writer:
            while (first := await answers.get()) is not None:
                waiting, last = [first], False
                while not answers.empty() and not last:
                    waiting.append(answers.get_nowait())
                    last = waiting[-1] is None
                waiting = [each for each in waiting if each is not None]
                await self._loop.run_in_executor(writer, self.keep, [record for record, _ in waiting])
                for _, kept in waiting:
                    if not kept.done():
                        kept.set_result(None)
                if last:
                    return

    async def _ask(self, client, item: Item) -> Correction:
        teacher = self.teacher
        body = {
            "model": teacher.model,
            "messages": teacher.prompt.messages({**item.columns, "prompt": item.prompt, "response": item.response}),
            **teacher._fields,
        }
        content = json.dumps(body).encode()
        used = {"tokens_in": 0, "tokens_out": 0}
        attempts, replies_left, waited = 0, teacher.reply_retries, 0.0
        while True:
            try:
                reply = await self._request(client, content, used)
                status, correction, reason = teacher.prompt.read(reply, item.response)
                if status == UNPARSABLE:
                    raise _Failure(reason, reply=reply)
                return self._record(item, correction, status, used, reply=reply)
            except _Failure as failure:
                pause = self._pause(failure, attempts)
                waited += failure.pause or 0
                if failure.pause is None or failure.pause < 1:  # to be asked to wait is no failed attempt
                    attempts += 1
                if failure.reply is not None:
                    failure.again = replies_left > 0
                    replies_left -= 1
                if not failure.again or attempts > teacher.retries or waited > _LONGEST_ASKED_PAUSE:
                    return self._without_correction(item, failure, used, attempts)
                await asyncio.sleep(pause)

    async def _request(self, client, content: bytes, used: dict[str, int]) -> str:
        """One attempt: the text of the reply."""
        url = f"{self.teacher.base_url}/chat/completions"
        try:
            async with client.post(url, data=content, headers=_JSON, allow_redirects=False) as response:
                status, headers, body = response.status, response.headers, await response.read()
        except TimeoutError:
            raise _Failure(f"no reply within {self.teacher.timeout:g} seconds") from None
        except (aiohttp.ClientError, OSError) as error:
            text = " ".join(self._public(str(error)).split())
            raise _Failure(f"the connection failed ({text or type(error).__name__})") from None
        if status != 200:
            raise self._refusal(status, headers, body)
        try:
            answer = json.loads(body)
            choice = answer["choices"][0]
            reply = choice["message"].get("content") or ""
            usage = answer.get("usage") or {}
            tokens = (int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
            if not isinstance(reply, str):
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            shown = self._public(_text(body))
            raise _Failure(f"the reply is no chat completion: {shown!r}") from None
        self._succeeded = True
        used["tokens_in"] += tokens[0]
        used["tokens_out"] += tokens[1]
        reply = self._public(reply)
        if choice.get("finish_reason") == "length":
            raise _Failure("the reply was cut off at the token limit (`teacher_max_tokens`)", reply=reply)
        if choice.get("finish_reason") == "content_filter":
            raise _Failure("the server's content filter withheld the reply", again=False)
        if not reply.strip():
            raise _Failure("the reply is empty", reply=reply)
        return reply

    def _refusal(self, status: int, headers: Mapping[str, str], body: bytes) -> _Failure:
        """What a status other than 200 means."""
        teacher = self.teacher
        message, code = _error_message(body)
        message = self._public(message)
        reason = f"status {status}{f': {message}' if message else ''}"
        out_of_credit = status == 402 or code == "insufficient_quota"
        if not self._succeeded or out_of_credit:  # nothing was ever right: it is not the item's fault
            if out_of_credit:
                raise TeacherFailed(f"The teacher's server wants to be paid first ({reason}).")
            if status in (401, 403):
                was = "was sent" if self._key else "is in"
                raise TeacherFailed(
                    f"The teacher's server refused the request ({reason}); the API key that {was} the environment "
                    f"variable {teacher.api_key_variable} is {'not accepted' if self._key else 'missing'}."
                )
            if status == 404 or 300 <= status < 400:
                raise TeacherFailed(
                    f"{teacher.base_url}/chat/completions does not serve the model {teacher.model!r} ({reason}); "
                    "check `teacher_base_url` (it usually ends in /v1) and `teacher_model`."
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
        return min(self.teacher.first_pause * 2**attempts, _LONGEST_PAUSE) * self._random.uniform(0.5, 1)

    def _record(self, item: Item, correction: str | None, status: str, used: dict[str, int], **values) -> Correction:
        self._lost_in_a_row = 0
        teacher = self.teacher
        cost = (used["tokens_in"] * teacher.price_in + used["tokens_out"] * teacher.price_out) / 1e6
        return teacher.record(item, correction, status, cost=cost, **used, **values)

    def _without_correction(self, item: Item, failure: _Failure, used: dict[str, int], attempts: int) -> Correction:
        reason = failure.reason if attempts < 2 else f"{failure.reason} (attempt {attempts})"
        if failure.reply is not None:
            return self._record(item, None, UNPARSABLE, used, reply=failure.reply, reason=reason)
        if not failure.again:  # it is this item's fault
            return self._record(item, None, FAILED, used, reason=reason)
        lost = self._lost_in_a_row + 1
        record = self._record(item, None, FAILED, used, reason=reason)
        self._lost_in_a_row = lost
        if not self._succeeded:
            raise TeacherFailed(
                f"The teacher's server {self.teacher.base_url} has given no answer ({reason}); is it running, and is "
                "`teacher_base_url` right?"
            )
        if lost >= max(self.teacher.concurrency, 16):
            raise TeacherFailed(
                f"The teacher's server {self.teacher.base_url} does not answer any more: {lost} items in a row failed "
                f"(the last one: {reason}). What it answered before is stored; start again to go on."
            )
        return record

    def _public(self, text: str) -> str:
        """A text that the server sent, without the API key and without half characters, which cannot be stored."""
        if self._key:
            text = text.replace(self._key, "***")
        return text.encode("utf-8", "replace").decode()


async def _all_or_first_error(places: list[asyncio.Task], keeper: asyncio.Task):
    waiting = {*places, keeper}
    while waiting - {keeper}:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()  # raises what the task raised


def _text(body: bytes) -> str:
    """The beginning of what a server sent, in one line."""
    return " ".join(body[:1000].decode("utf-8", "replace").split())[:200]


def _error_message(body: bytes) -> tuple[str, str | None]:
    """What servers write under "error" or "detail", in one line."""
    try:
        answer = json.loads(body)
    except ValueError:
        return _text(body), None
    error = answer.get("error") or answer.get("detail") or answer if isinstance(answer, dict) else answer
    code = error.get("code") or error.get("type") if isinstance(error, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    text = message if isinstance(message, str) else json.dumps(error)
    return " ".join(text.split())[:200].rstrip("."), code


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
    except (TypeError, ValueError):
        return None
