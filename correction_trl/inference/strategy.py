"""What a strategy of correction at inference time is, and how many of them are run in full batches.

A **strategy** is a generator function for one problem. It yields the conversations in which it wants an answer, is
resumed with the replies, and returns its [`Trace`]:

```python
def ask_again(chat, problem):
    trace = Trace()
    talk = trace.open(chat, problem.prompt)
    trace.answer((yield talk))
    trace.answer((yield talk.say("Are you sure?")))
    return trace.end("asked again")
```

So each strategy reads from top to bottom, and knows nothing of batches: [`run`] keeps many problems going at once,
possibly of several strategies, and asks for all the replies they wait for together.
"""

import logging
from collections import Counter
from collections.abc import Callable, Generator, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ..data_utils import NOT_FOR_THE_TEACHER, chat_template_kwargs
from ..functions import Prompt
from .chat import Chat, Conversation


logger = logging.getLogger(__name__)

Asking = Generator["Conversation | list[Conversation]", Any, "Trace"]
Strategy = Callable[[Chat, "Problem"], Asking]


@dataclass(frozen=True)
class Problem:
    """
    One problem to solve.

    Attributes:
        prompt (`str` or `list[dict]`):
            As it stands in the dataset.
        columns (`dict`):
            The dataset's further columns in this row. They may hold the gold answer: only a strategy that is called an
            oracle may look at it.
        chat_template_kwargs (`dict`):
            Arguments of the chat template for this row.
    """

    prompt: Prompt
    columns: dict[str, Any] = field(default_factory=dict)
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Problem":
        """The problem of a dataset's row."""
        columns = {name: value for name, value in row.items() if name not in NOT_FOR_THE_TEACHER}
        return cls(row["prompt"], columns, chat_template_kwargs(row))


@dataclass
class Trace:
    """
    What a strategy did with one problem.

    Attributes:
        responses (`list[str]`):
            After each attempt, the response that the strategy would give if it stopped there; the last one is its
            result.
        tokens (`list[int]`):
            Tokens that were generated for each of them, from the one before it on; checks and feedback included.
        replies (`int`):
            Replies of a model, checks and feedback included.
        cut_off (`int`):
            How many of them were cut off by the limit of tokens.
        stop (`str`):
            Why the strategy ended.
        conversations (`list[list[dict]]`):
            What was said, as messages.
        strategy (`str`), problem (`int` or `str`), sample (`int`):
            Whose trace it is, where [`solve`] ran it: name of the strategy, `id` or row of the problem, and which of
            its samples.
        gold (`Any`), right (`list[float | None]`):
            The gold answer, and whether each response is right, once [`~evaluation.evaluate_traces`] has judged them.
    """

    responses: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    replies: int = 0
    cut_off: int = 0
    stop: str = ""
    conversations: list[list[dict[str, Any]]] = field(default_factory=list)
    strategy: str = ""
    problem: int | str | None = None
    sample: int = 0
    gold: Any = None
    right: list[float | None] = field(default_factory=list)
    _open_tokens: int = field(default=0, repr=False, compare=False)

    def open(self, chat: Chat, prompt: Prompt, **options: Any) -> Conversation:
        """
        Begin a conversation whose tokens count for this trace.

        Args:
            chat ([`Chat`]):
                The model.
            prompt (`str` or `list[dict]`):
                How it begins: plain text, or messages up to a user's.
            **options:
                Of [`Conversation`]: `temperature`, `max_tokens`, `chat_template_kwargs`.
        """
        conversation = Conversation(chat, prompt, on_reply=self._count, **options)
        self.conversations.append(conversation.messages)
        return conversation

    def fork(self, conversation: Conversation) -> Conversation:
        """A fork of one of this trace's conversations (see [`Conversation.fork`]); its tokens count as well."""
        fork = conversation.fork()
        self.conversations.append(fork.messages)
        return fork

    def answer(self, response: str, tokens: int | None = None) -> None:
        """
        The strategy's present response.

        Args:
            response (`str`):
                The whole text, as the value function shall judge it.
            tokens (`int`, *optional*):
                How many tokens it took. By default all that were generated since the last one; to be given where
                several responses were asked for at once.
        """
        tokens = self._open_tokens if tokens is None else tokens
        self.responses.append(response)
        self.tokens.append(tokens)
        self._open_tokens -= tokens

    def end(self, stop: str) -> "Trace":
        """The end of the strategy, and why. Tokens since the last response count for it."""
        if self.responses and self._open_tokens:
            self.tokens[-1] += self._open_tokens
            self._open_tokens = 0
        self.stop = stop
        return self

    def _count(self, tokens: int, cut_off: bool) -> None:
        self._open_tokens += tokens
        self.replies += 1
        self.cut_off += cut_off

    def to_dict(self) -> dict[str, Any]:
        """For a line of JSON; `Trace(**line)` is the trace again."""
        return {f.name: getattr(self, f.name) for f in fields(self) if not f.name.startswith("_")}


def run(
    askings: Iterable[Asking],
    window: int = 1024,
    on_end: Callable[[int, Trace], None] | None = None,
    names: Sequence[Hashable] | None = None,
) -> list[Trace | None]:
    """
    Run strategies to their end, many at once.

    In each round all replies that the running strategies wait for are asked for together, whatever turn or strategy
    they belong to; a strategy that ends makes room for the next one. So the batches stay full until the last problems.

    Args:
        askings (`Iterable[Generator]`):
            `strategy(chat, problem)` for each problem, of one strategy or several. Taken one by one as there is room.
        window (`int`, *optional*, defaults to `1024`):
            Most strategies at work at once. Several batches' worth, so that replies of one length can be put together.
        on_end (`Callable`, *optional*):
            Called as `on_end(index, trace)` at the end of each one, to store it.
        names (`Sequence`, *optional*):
            What each one is called: where replies are sampled, their random numbers follow from the name and the
            number of the conversation alone. By default the places in `askings`.

    Returns:
        `list[Trace | None]`, in the order of `askings`; `None` where a server gave no reply.
    """
    waiting = enumerate(askings)
    active: dict[int, tuple[Asking, Conversation | list[Conversation]]] = {}
    traces: dict[int, Trace | None] = {}
    n_conversations: Counter[int] = Counter()

    def end(index: int, trace: Trace | None) -> None:
        active.pop(index, None)
        traces[index] = trace
        if on_end is not None and trace is not None:
            on_end(index, trace)

    def advance(index: int, asking: Asking, replies: str | list[str] | None) -> None:
        try:
            active[index] = asking, asking.send(replies)
        except StopIteration as stopped:
            end(index, stopped.value)

    while True:
        while len(active) < window and (upcoming := next(waiting, None)) is not None:
            advance(*upcoming, None)
        if not active:
            return [traces[index] for index in sorted(traces)]
        asked: dict[Chat, list[Conversation]] = {}
        for index, (_, wanted) in active.items():
            for conversation in _as_list(wanted):
                if conversation.name is None:
                    conversation.name = (index if names is None else names[index], n_conversations[index])
                    n_conversations[index] += 1
                asked.setdefault(conversation.chat, []).append(conversation)
        for chat, conversations in asked.items():
            chat.reply(conversations)
        for index, (asking, wanted) in list(active.items()):
            failure = next((c.failure for c in _as_list(wanted) if c.failure is not None), None)
            if failure is not None:
                logger.warning("Problem %d of this run has no result: %s", index, failure)
                asking.close()
                end(index, None)
            elif isinstance(wanted, Conversation):
                advance(index, asking, wanted.replies[-1])
            else:
                advance(index, asking, [conversation.replies[-1] for conversation in wanted])


def _as_list(wanted: Conversation | list[Conversation]) -> list[Conversation]:
    return [wanted] if isinstance(wanted, Conversation) else wanted
