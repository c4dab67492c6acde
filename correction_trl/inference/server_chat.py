"""A model behind a server that speaks the OpenAI chat protocol, to talk to."""

from collections.abc import Sequence
from typing import Any

from ..chat_server import ChatServer, Reply, Request
from .chat import Conversation


class ServerChat:
    """
    A model behind an OpenAI-compatible server (vLLM, `transformers serve`, llama.cpp, ...). Waiting, retries, the API
    key and what ends a run are those of [`~chat_server.ChatServer`].

    What differs from a local model: the server renders the conversation with its own chat template, which may leave
    the reasoning of earlier turns out; and plain prompts become a user's message. Tokens are counted as the server
    reports them.

    Example:

    ```python
    from correction_trl.inference import Problem, ServerChat, intrinsic, run

    chat = ServerChat("Qwen/Qwen2.5-7B-Instruct", "http://localhost:8000/v1", max_tokens=512)
    traces = run([intrinsic(chat, Problem(prompt)) for prompt in prompts])
    ```

    Args:
        model (`str`):
            Name of the model, as the server knows it.
        base_url (`str`, *optional*, defaults to `"http://localhost:8000/v1"`):
            Address up to, and without, `/chat/completions`.
        temperature (`float`, *optional*, defaults to `0.0`):
            Of the replies.
        max_tokens (`int`, *optional*, defaults to `1024`):
            Most tokens of a reply.
        extra_body (`dict`, *optional*):
            Further fields of a request; a `None` removes a field.
        concurrency (`int`, *optional*, defaults to `32`):
            Most requests at a time.
        **server:
            Further arguments of [`~chat_server.ChatServer`]: `timeout`, `retries`, `first_pause`, `api_key_variable`.

    Raises:
        BadInput: If the address cannot be right.
    """

    def __init__(
        self,
        model: str,
        base_url: str = "http://localhost:8000/v1",
        temperature: float = 0.0,
        max_tokens: int = 1024,
        extra_body: dict[str, Any] | None = None,
        concurrency: int = 32,
        **server: Any,
    ):
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.window = 8 * concurrency  # a slow reply holds back a few others only
        self._extra_body = extra_body or {}
        # What the model says is evaluated as it is, empty or cut off: it is not asked again
        self._server = ChatServer(model, base_url, concurrency=concurrency, **{"reply_retries": 0, **server})

    def reply(self, conversations: Sequence[Conversation]) -> None:
        """
        Args:
            conversations (`Sequence[Conversation]`):
                Those that wait for a reply. A request that fails for good leaves its reason in `failure`.

        Raises:
            ServerFailed: If the server is down, refuses the key or does not know the model.
        """
        self._server.ask(
            (Request(talk.messages, self._fields(talk), subject=talk) for talk in conversations),
            take=lambda answered: [_hand_over(reply, request.subject) for request, reply in answered],
        )

    def _fields(self, conversation: Conversation) -> dict[str, Any]:
        fields = {"temperature": conversation.temperature, "max_tokens": conversation.max_tokens, **self._extra_body}
        if conversation.chat_template_kwargs:
            fields["chat_template_kwargs"] = conversation.chat_template_kwargs
        return {name: value for name, value in fields.items() if value is not None}


def _hand_over(reply: Reply, conversation: Conversation) -> None:
    if reply.text is None:
        conversation.failure = reply.problem
    else:
        conversation.take(reply.text, reply.tokens, cut_off=reply.finish_reason == "length")
