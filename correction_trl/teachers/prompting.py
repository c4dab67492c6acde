"""What a model that teaches is asked, and how its reply is read: a Jinja file that users can edit, with a version."""

import hashlib
import re
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..data_utils import message_text
from ..errors import BadInput
from ..functions import Prompt
from .store import CORRECTED, UNCHANGED, UNPARSABLE


TEMPLATES = Path(__file__).parents[1] / "templates"


class TeacherPrompt:
    """
    A correction prompt: a Jinja file with the blocks `system` (optional) and `user`, and optionally a `reply_tag`.

    `correction_trl/templates/minimal_correction.jinja` says in its head what such a file may use.

    Example:

    ```python
    >>> prompt = TeacherPrompt()
    >>> prompt.messages({"prompt": "1 + 1 =", "response": "3"})[0]["role"]
    'system'
    >>> prompt.read("<corrected_response>2</corrected_response>", response="3")
    ('corrected', '2', None)
    ```

    Args:
        template (`str` or `Path`, *optional*, defaults to `"minimal_correction"`):
            Name of a template of this package, or a file.

    Attributes:
        version (`str`):
            The first 12 digits of the SHA-256 of the file: part of the key of every correction.
        columns (`set[str]`):
            The dataset's columns that the template uses, where a row has them.

    Raises:
        BadInput: If the file does not exist or is no valid template.
    """

    called = "correction prompt"  # in messages

    def __init__(self, template: str | Path = "minimal_correction"):
        self.path = Path(template)
        if not self.path.suffix:
            self.path = TEMPLATES / f"{template}.jinja"
        try:
            source = self.path.read_text(encoding="utf-8")
        except OSError as error:
            ready = ", ".join(sorted(path.stem for path in TEMPLATES.glob("*.jinja")))
            raise BadInput(
                f"The {self.called} {str(template)!r} cannot be read ({error.strerror}); name a file that ends in "
                f".jinja, or one of {ready}."
            ) from None
        self.version = hashlib.sha256(source.encode()).hexdigest()[:12]
        environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
        try:
            self.tree = environment.parse(source)
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise BadInput(f"The {self.called} {self.path} is no valid template: {error}.") from None
        self.columns = meta.find_undeclared_variables(self.tree) - {"prompt", "response"}
        self.reply_tag = next(
            (node.node.as_const() for node in self.tree.find_all(nodes.Assign) if node.target.name == "reply_tag"),
            None,
        )
        if "user" not in self._template.blocks:
            raise BadInput(f"The {self.called} {self.path} has no block 'user'.")

    def messages(self, variables: dict[str, Any]) -> list[dict[str, str]]:
        """
        The messages to send.

        Args:
            variables (`dict`):
                `prompt` (plain or messages), `response` and the further columns.

        Raises:
            BadInput: If the template uses a variable that is not there.
        """
        context = self._template.new_context({**variables, "prompt": written_out(variables["prompt"])})
        messages = []
        for role in ("system", "user"):
            if role in self._template.blocks:
                try:
                    text = "".join(self._template.blocks[role](context)).strip()
                except jinja2.TemplateError as error:
                    raise BadInput(
                        f"The {self.called} {self.path} cannot be filled in: {error}; the row has the columns "
                        f"{', '.join(variables)}."
                    ) from None
                if text:
                    messages.append({"role": role, "content": text})
        return messages

    def read(self, reply: str, response: str) -> tuple[str, str | None, str | None]:
        """
        The corrected response in a reply. Thoughts of a reasoning model are left out; white space at the two ends is
        the response's, so that it does not pass for an edit.

        Args:
            reply (`str`):
                What the model replied.
            response (`str`):
                The response that it was to correct.

        Returns:
            `tuple`: Status (`"corrected"`, `"unchanged"` or `"unparsable"`), the correction or `None`, and the reason
            why there is none, or `None`.
        """
        text = without_thinking(reply, self.reply_tag)
        if text is None:
            return UNPARSABLE, None, "the model's thoughts do not end"
        if self.reply_tag:
            opening, closing = f"<{self.reply_tag}>", f"</{self.reply_tag}>"
            if text.count(opening) != 1 or text.count(closing) != 1:
                return UNPARSABLE, None, f"the reply holds not exactly one {opening} ... {closing}"
            inside, _, behind = text.partition(opening)[2].partition(closing)
            if closing in text.partition(opening)[0] or behind.strip():
                return UNPARSABLE, None, f"something follows {closing}"
            text = inside
        text = text.strip()
        if not text:
            return UNPARSABLE, None, "the corrected response is empty"
        if text == response.strip():
            return UNCHANGED, response, None
        start = response[: len(response) - len(response.lstrip())]
        end = response[len(response.rstrip()) :] if response.strip() else ""
        return CORRECTED, start + text + end, None


def without_thinking(reply: str, reply_tag: str | None = None) -> str | None:
    """
    A reply without a reasoning model's thoughts; `None` if they do not end.

    Args:
        reply (`str`):
            The reply; its thoughts end with `</think>` and need not begin with `<think>`, which some chat templates
            have already written.
        reply_tag (`str`, *optional*):
            Where the corrected response begins; a `</think>` behind that is the response's own.
    """
    thoughts, end, rest = reply.partition("</think>")
    if not end:
        return None if re.match(r"\s*<think>", reply) else reply
    if reply_tag and f"<{reply_tag}>" in thoughts and "<think>" not in thoughts:
        return reply
    return rest


def written_out(prompt: Prompt) -> str:
    """A prompt as text: a single message is its text, a longer conversation is written out with its roles."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return message_text(prompt)
    return "\n\n".join(f"{message['role'].capitalize()}: {message_text([message])}" for message in prompt)
