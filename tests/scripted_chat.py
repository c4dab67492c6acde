"""A model that says what a test wrote down, and remembers what it was asked."""

from collections.abc import Callable

from correction_trl.inference import Conversation


class ScriptedChat:
    """
    Replies from a script; one "token" per character.

    Args:
        script (`list[str]` or `Callable`):
            The replies in order, or a function from the messages of a conversation to the reply. A reply of `None` is
            a server's failure; one that ends with `…` was cut off.
    """

    temperature = 0.0
    max_tokens = 64

    def __init__(self, script: list[str | None] | Callable[[list[dict]], str | None]):
        self.script = script
        self.asked: list[list[dict]] = []  # the messages at each request, in order
        self.options: list[tuple[float, int]] = []  # temperature and limit of tokens of each
        self.batches: list[int] = []  # how many were asked together

    def reply(self, conversations: list[Conversation]) -> None:
        self.batches.append(len(conversations))
        for conversation in conversations:
            self.asked.append([dict(message) for message in conversation.messages])
            self.options.append((conversation.temperature, conversation.max_tokens))
            reply = self.script(conversation.messages) if callable(self.script) else self.script.pop(0)
            if reply is None:
                conversation.failure = "the script ends here"
            else:
                conversation.take(reply, tokens=len(reply), cut_off=reply.endswith("…"))

    @property
    def messages(self) -> list[str]:
        """The last message of each request."""
        return [messages[-1]["content"] for messages in self.asked]
