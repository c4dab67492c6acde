"""A model behind an OpenAI-compatible server, as a teacher."""

from collections.abc import Iterable
from typing import Any

from ..chat_server import ChatServer, Reply, Request
from ..errors import BadInput
from .base import Item, Keep, Teacher
from .prompting import TeacherPrompt
from .store import FAILED, UNPARSABLE, Correction


class ServerTeacher(Teacher):
    """
    A teacher behind an OpenAI-compatible server: vLLM, `transformers serve`, llama.cpp, Ollama, TGI, SGLang, OpenAI,
    Hugging Face Inference Providers and others. Waiting, retries, the API key and what ends a run are those of
    [`~chat_server.ChatServer`].

    What goes wrong with one request costs that item alone. A reply that is empty, cut off or not in the form asked for
    is asked for again; one that remains so is kept as `"unparsable"`, everything else as `"failed"`, with the reason.

    Example:

    ```python
    from correction_trl.teachers import ServerTeacher

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
            Seconds before the second attempt; see [`~chat_server.ChatServer`].
        price_in, price_out (`float`, *optional*, defaults to `0.0`):
            Price of a million tokens read and written.
        api_key_variable (`str`, *optional*, defaults to `"TEACHER_API_KEY"`):
            Name of the environment variable that holds the API key; without one, none is sent.

    Raises:
        BadInput: If the address, the name of the variable or the template cannot be right.
    """

    waits_for_a_server = True
    _role = "teacher"  # in messages

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
        if max_tokens < 1:
            raise BadInput(f"A {self._role}'s `max_tokens` must be at least 1.")
        self.server = ChatServer(
            model,
            base_url,
            concurrency=concurrency,
            timeout=timeout,
            retries=retries,
            reply_retries=reply_retries,
            first_pause=first_pause,
            api_key_variable=api_key_variable,
            role=self._role,
        )
        self.model, self.base_url, self.concurrency, self.timeout = model, base_url, concurrency, timeout
        self.name = f"server:{model}"
        self.prompt = TeacherPrompt(template)
        self.template_version = self.prompt.version
        sampling = {"temperature": temperature, "top_p": top_p, **(extra_body or {})}
        limits = {"max_tokens": max_tokens, "max_completion_tokens": None}
        self._fields = {name: value for name, value in {**limits, **sampling}.items() if value is not None}
        self.sampling = {name: value for name, value in sampling.items() if value is not None and name not in limits}
        self.price_in, self.price_out = price_in, price_out

    def seen_columns(self, columns: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in columns.items() if name in self.prompt.columns}

    def answer(self, items: Iterable[Item], keep: Keep) -> None:
        def request(item: Item) -> Request:
            variables = {**item.columns, "prompt": item.prompt, "response": item.response}
            return Request(self.prompt.messages(variables), self._fields, subject=item)

        self.server.ask(
            map(request, items),
            take=lambda answered: keep([self._record_reply(asked.subject, reply) for asked, reply in answered]),
            read=self._read,
        )

    def _read(self, asked: Request, text: str) -> tuple[tuple[str, str | None], str | None]:
        status, correction, problem = self.prompt.read(text, asked.subject.response)
        return (status, correction), problem

    def _record_reply(self, item: Item, reply: Reply) -> Correction:
        status, correction = FAILED if reply.text is None else UNPARSABLE, None
        if reply.problem is None:
            status, correction = reply.content
        return self.record(
            item,
            correction,
            status,
            reply=reply.text,
            reason=reply.problem,
            tokens_in=reply.tokens_in,
            tokens_out=reply.tokens,
            cost=(reply.tokens_in * self.price_in + reply.tokens * self.price_out) / 1e6,
        )
