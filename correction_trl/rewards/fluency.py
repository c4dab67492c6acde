"""How fluent a text is: what a reference language model thinks of its tokens."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data_utils import message_text, public_name
from ..errors import BadInput, first_line
from ..functions import Prompt
from .common import completion_text, read_column, report_unjudged, where_to_run


@dataclass(frozen=True)
class Fluency:
    """
    Value function: mean log-probability per token of a text under a reference language model, in nats; `exp` of its
    negative is the text's perplexity. Column "fluency" of the tables of
    [Self-Correct](https://huggingface.co/papers/2211.00053).

    The text is scored as plain text, after the model's beginning-of-sequence token (where it has none, after its
    end-of-sequence token, as GPT-2 was trained). Numbers of two reference models cannot be compared: give
    [`Fluency.name`] beside them.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            The reference model: Hub id, folder, or one that is in memory. Nothing is loaded before the first text.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Its tokenizer; needed for a model in memory.
        given_prompt (`bool`, *optional*, defaults to `False`):
            Score a text as the continuation of its prompt (of a conversation's last message), whose tokens do not
            count.
        batch_size (`int`, *optional*, defaults to `16`):
            Texts in one forward pass.
        device (`str`, *optional*, defaults to `"cpu"`):
            Where a model that is named runs; `"auto"`: on the GPU where there is one.
        max_length (`int`, *optional*, defaults to `1024`):
            Most tokens of prompt and text: further ones of the text are not read, and of a longer prompt the last.

    Raises:
        BadInput: If the model cannot be loaded, or one in memory comes without its tokenizer.

    Example:

    ```python
    >>> from correction_trl.rewards import Fluency

    >>> fluency = Fluency("openai-community/gpt2-large")
    >>> fluency.name
    'openai-community/gpt2-large'
    >>> fluency(completions=["The player stood in the field."])  # doctest: +SKIP
    [-3.7]
    ```
    """

    model: str | PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None = None
    given_prompt: bool = False
    batch_size: int = 16
    device: str = "cpu"
    max_length: int = 1024

    __name__ = "fluency"

    @property
    def name(self) -> str:
        """What the reference model is called, in results."""
        name = self.model if isinstance(self.model, str) else self.model.config._name_or_path
        return public_name(name, "a model in memory")

    def __call__(
        self,
        completions: list,
        prompts: list | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns,
    ) -> list[float | None]:
        """One value per completion, in nats per token; `None` for an empty text."""
        asked = None
        if self.given_prompt:
            asked = read_column("prompts", self.__name__, columns | {"prompts": prompts or []}, len(completions))
        found = self.score([completion_text(completion) for completion in completions], asked)
        values = [total / n if n else None for total, n in found]
        return report_unjudged(self.__name__, values, ["it is empty"] * len(values), log_metric)

    def score(self, texts: Sequence[str], prompts: Sequence[Prompt] | None = None) -> list[tuple[float, int]]:
        """[`Fluency.log_probs`] of responses, as continuations of their prompts where the settings say so."""
        contexts = [message_text(prompt) for prompt in prompts] if self.given_prompt and prompts is not None else None
        return self.log_probs(texts, contexts)

    def log_probs(self, texts: Sequence[str], contexts: Sequence[str] | None = None) -> list[tuple[float, int]]:
        """
        Log-probability of texts, and the tokens it is a sum over.

        Args:
            texts (`Sequence[str]`):
                The texts.
            contexts (`Sequence[str]`, *optional*):
                What each one continues.

        Returns:
            `list[tuple[float, int]]`: One pair per text, in nats; `(0.0, 0)` for a text without tokens.
        """
        from ..policy.log_probs import sequence_log_probs

        model, tokenizer = self._loaded()
        rows = []
        for text, context in zip(texts, contexts or [""] * len(texts), strict=True):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            before = self._start(tokenizer) + tokenizer(context, add_special_tokens=False)["input_ids"]
            room = max(self.max_length - len(ids), 1)
            before = before[:1] + before[1:][-(room - 1) :] if room > 1 else before[:1]
            rows.append((before, ids[: self.max_length - len(before)]))
        # Texts of one length together: padding costs as much as text
        order = [i for i in sorted(range(len(rows)), key=lambda i: len(rows[i][0] + rows[i][1])) if rows[i][1]]
        found = [(0.0, 0)] * len(rows)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            before, ids = zip(*(rows[i] for i in batch), strict=True)
            for i, total in zip(batch, sequence_log_probs(model, before, ids, before[0][0]), strict=True):
                found[i] = total, len(rows[i][1])
        return found

    def _start(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The token that a text begins after: so that its first token has a probability, too."""
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise BadInput(
                f"The tokenizer of the reference model {self.name!r} has neither a beginning-of-sequence token nor an "
                "end-of-sequence token, after which a text could begin; set its `bos_token`."
            )
        return [start]

    def _loaded(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if isinstance(self.model, str):
            return load_language_model(self.model, where_to_run(self.device))
        if self.tokenizer is None:
            raise BadInput("`Fluency` got a model in memory without its tokenizer; pass `tokenizer` as well.")
        return self.model, self.tokenizer


@functools.lru_cache(maxsize=2)
def load_language_model(model: str, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    A reference model and its tokenizer, kept for the next call.

    Args:
        model (`str`):
            Hub id or folder.
        device (`str`):
            Where it runs.

    Raises:
        BadInput: If there is none.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto", use_safetensors=True)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"The reference language model {model!r} cannot be loaded ({first_line(error).rstrip('.')}); name a "
            "folder with its weights, or a Hub id that can be reached."
        ) from error
    return loaded.to(device).eval(), tokenizer
