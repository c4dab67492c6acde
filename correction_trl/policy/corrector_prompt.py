"""What a corrector reads, p(y' | x, y, f(y)): the same in training and in inference."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from ..errors import BadInput
from .attempts import FollowUp


FILE_NAME = "corrector_message.jinja"
DEFAULT_TEMPLATE = Path(__file__).parents[1] / "templates" / FILE_NAME


class CorrectorPrompt:
    """
    The conversation x, y, message, as token ids: the prompt, the response as it was sampled, and a user's message made
    of the instruction and the feedback.

    The message is a Jinja template with one variable, `feedback` (text, or empty). It is saved beside a trained
    corrector, and read from there by what corrects with it.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The corrector's tokenizer.
        stop_ids (`Sequence[int]`):
            From [`~correction_trl.policy.tokenization.stop_token_ids`].
        conversational (`bool`):
            Whether prompts are lists of messages. After a plain prompt, the message stands between blank lines.
        template (`str` or `Path`, *optional*):
            File with the message, or a folder that holds `corrector_message.jinja`. By default the one in
            `correction_trl/templates/`.
        chat_template_kwargs (`dict`, *optional*):
            Passed to the chat template.

    Raises:
        BadInput: If the template cannot be read or is no Jinja template.

    Example:

    ```python
    corrector_prompt = CorrectorPrompt(tokenizer, stop_token_ids(tokenizer, model.generation_config), True)
    ids = corrector_prompt(prompt_ids, response_ids, feedback="The third digit is wrong.")
    ```
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: Sequence[int],
        conversational: bool,
        template: str | Path | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ):
        self.path = path = Path(template or DEFAULT_TEMPLATE)
        if path.is_dir():
            path = path / FILE_NAME if (path / FILE_NAME).is_file() else DEFAULT_TEMPLATE
        try:
            self.source = path.read_text(encoding="utf-8")
            self._template = Environment(undefined=StrictUndefined).from_string(self.source)
        except OSError as error:
            raise BadInput(f"The corrector's message template {path} cannot be read ({error.strerror}).") from error
        except TemplateError as error:
            raise BadInput(f"The corrector's message template {path} is no Jinja template ({error}).") from error
        self._follow_up = FollowUp(tokenizer, stop_ids, conversational, chat_template_kwargs)

    def message(self, feedback: str | None) -> str:
        """What the user says after a response with this feedback."""
        try:
            return self._template.render(feedback=feedback or "").strip()
        except TemplateError as error:
            raise BadInput(
                f"The corrector's message template {self.path} cannot be filled in ({error}); it has one variable, "
                "`feedback`."
            ) from error

    def __call__(self, prompt_ids: Sequence[int], response_ids: Sequence[int], feedback: str | None) -> list[int]:
        """
        Args:
            prompt_ids (`Sequence[int]`):
                The prompt, from [`~correction_trl.policy.tokenization.tokenize_prompt`].
            response_ids (`Sequence[int]`):
                The response.
            feedback (`str`, *optional*):
                f(y).

        Returns:
            `list[int]`: After these the corrector starts to write.
        """
        return [*prompt_ids, *response_ids, *self._follow_up(response_ids, self.message(feedback))]

    def save(self, folder: str | Path) -> None:
        """Write the template beside a model, for whoever corrects with it."""
        (Path(folder) / FILE_NAME).write_text(self.source, encoding="utf-8")


def template_of(model_name: str) -> str | None:
    """
    The template that was saved with a corrector.

    Args:
        model_name (`str`):
            Its folder or Hub id.

    Returns:
        `str`: Path of the file; `None` if there is none, which means the package's own.
    """
    return cached_file(
        model_name,
        FILE_NAME,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
