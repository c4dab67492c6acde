"""A model behind a server that speaks the OpenAI chat protocol, to talk to."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import BadInput, TeacherFailed
from ..teachers.base import Item
from ..teachers.server import ServerTeacher
from ..teachers.store import CORRECTED, Correction
from .chat import Conversation


class ServerChat:
    """
    A model behind an OpenAI-compatible server (vLLM, `transformers serve`, llama.cpp, ...). Retries, waiting, time
    limits and what ends a run are those of [`~teachers.ServerTeacher`].

    What differs from a local model: the server renders the conversation with its own chat template, which may leave
    the reasoning of earlier turns out; and plain prompts become a user's message. Tokens are counted as the server
    reports them.

    Args:
        model (`str`):
            Name of the model, as the server knows it.
        base_url (`str`, *optional*, defaults to `"http://localhost:8000/v1"`):
            Address up to, and without, `/chat/completions`.
        temperature (`float`, *optional*, defaults to `0.0`):
            Of the replies.
        max_tokens (`int`, *optional*, defaults to `1024`):
            Most tokens of a reply.
        concurrency (`int`, *optional*, defaults to `32`):
            Most requests at a time.
        **client:
            Further arguments of [`~teachers.ServerTeacher`]: `timeout`, `retries`, `first_pause`,
            `api_key_variable`, `extra_body`.

    Raises:
        BadInput: If the address cannot be right.
    """

    def __init__(
        self,
        model: str,
        base_url: str = "http://localhost:8000/v1",
        temperature: float = 0.0,
        max_tokens: int = 1024,
        concurrency: int = 32,
        **client: Any,
    ):
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.window = 8 * concurrency  # a slow reply holds back a few others only
        self._client = {"model": model, "base_url": base_url, "concurrency": concurrency, **client}
        self._clients: dict[tuple, ServerTeacher] = {}
        self._client_for(temperature, max_tokens, {})  # what is wrong with the address is said now

    def reply(self, conversations: Sequence[Conversation]) -> None:
        """
        Args:
            conversations (`Sequence[Conversation]`):
                Those that wait for a reply. A request that fails for good leaves its reason in `failure`.

        Raises:
            TeacherFailed: If the server is down, refuses the key or does not know the model.
        """
        groups: dict[tuple, list[int]] = {}
        for index, conversation in enumerate(conversations):
            kwargs = json.dumps(conversation.chat_template_kwargs, sort_keys=True)
            groups.setdefault((conversation.temperature, conversation.max_tokens, kwargs), []).append(index)
        for (temperature, max_tokens, kwargs), indices in groups.items():
            items = [Item("", "", {"messages": conversations[index].messages, "index": index}) for index in indices]

            def keep(records: list[Correction]):
                for record in records:
                    _hand_over(record, conversations[record.columns["index"]])

            try:
                self._client_for(temperature, max_tokens, json.loads(kwargs)).answer(items, keep)
            except (BadInput, TeacherFailed) as error:
                raise type(error)(_about_the_server(str(error))) from None

    def _client_for(self, temperature: float, max_tokens: int, chat_template_kwargs: dict[str, Any]) -> ServerTeacher:
        key = temperature, max_tokens, json.dumps(chat_template_kwargs, sort_keys=True)
        if key not in self._clients:
            settings = {"temperature": temperature, "max_tokens": max_tokens, "reply_retries": 0, **self._client}
            if chat_template_kwargs:
                extra_body = settings.get("extra_body") or {}
                settings["extra_body"] = {**extra_body, "chat_template_kwargs": chat_template_kwargs}
            try:
                client = ServerTeacher(**settings)
            except BadInput as error:
                raise BadInput(_about_the_server(str(error))) from None
            client.prompt = _MessagesAsTheyAre()
            self._clients[key] = client
        return self._clients[key]


@dataclass(frozen=True)
class _MessagesAsTheyAre:
    """In the place of a correction prompt: what is sent is the conversation, and every reply will do."""

    columns = frozenset({"messages", "index"})

    def messages(self, variables: dict[str, Any]) -> list[dict[str, Any]]:
        return variables["messages"]

    def read(self, reply: str, response: str) -> tuple[str, str, None]:
        return CORRECTED, reply, None


def _hand_over(record: Correction, conversation: Conversation) -> None:
    if record.status == CORRECTED:
        conversation.take(record.reply, record.tokens_out)
    elif record.reply is not None:  # empty, or cut off: what the model said all the same
        conversation.take(record.reply, record.tokens_out, cut_off="cut off" in record.reason)
    else:
        conversation.failure = record.reason


def _about_the_server(sentence: str) -> str:
    """The client's sentences speak of a teacher and of its settings."""
    for old, new in (
        ("The teacher's server", "The server"),
        ("The teacher's ", "The server's "),
        ("teacher_", "server_"),
    ):
        sentence = sentence.replace(old, new)
    return sentence
