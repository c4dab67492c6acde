"""A Hugging Face model on this machine, as a teacher."""

import gc
from collections.abc import Iterable
from typing import Any

import torch
from transformers import (
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..data_utils import public_name
from ..errors import BadInput
from ..policy.generation import Sampler
from ..policy.loading import load_policy
from ..policy.rollout import Rollouts
from ..policy.tokenization import check_tokenizer, tokenize_prompt
from .base import Item, Keep, Teacher, batches
from .prompting import TeacherPrompt
from .store import UNPARSABLE, Correction


_WINDOW = 8  # so many batches are sorted by length together


class LocalTeacher(Teacher):
    """
    A Hugging Face model that is loaded when it is asked, and whose memory is given back when it has answered, so that
    student and teacher can share one card.

    Its sampling does not touch the random state of a training, and depends on the questions alone.

    Example:

    ```python
    teacher = LocalTeacher("Qwen/Qwen2.5-14B-Instruct", load_in_4bit=True)
    corrections = teacher.correct(prompts=["What is 1 + 1?"], responses=["It is 3."])
    ```

    Args:
        model (`str`):
            Hub id or folder.
        template (`str`, *optional*, defaults to `"minimal_correction"`):
            Correction prompt: see [`TeacherPrompt`].
        temperature (`float`, *optional*, defaults to `0.0`):
            Sampling temperature; `0.0` or `None`: greedy.
        top_p (`float`, *optional*):
            Nucleus sampling.
        max_tokens (`int`, *optional*, defaults to `2048`):
            Most tokens of a reply, thoughts included. Not part of the key.
        load_in_4bit (`bool`, *optional*, defaults to `False`):
            Load with bitsandbytes' NF4.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Type of the weights; by default as they were saved.
        batch_size (`int`, *optional*, defaults to `16`):
            Most prompts in one call of `generate`; they are put together by length.
        keep_loaded (`bool`, *optional*, defaults to `False`):
            Keep the model in memory between calls.

    Raises:
        BadInput: If the template or the model cannot be used.
    """

    def __init__(
        self,
        model: str,
        template: str = "minimal_correction",
        temperature: float | None = 0.0,
        top_p: float | None = None,
        max_tokens: int = 2048,
        load_in_4bit: bool = False,
        dtype: str = "auto",
        batch_size: int = 16,
        keep_loaded: bool = False,
    ):
        super().__init__()
        self.name = f"local:{public_name(model, 'model')}"
        self.model_name = model
        self.prompt = TeacherPrompt(template)
        self.template_version = self.prompt.version
        sampling = {"temperature": temperature or 0.0, "top_p": top_p, "load_in_4bit": load_in_4bit or None}
        self.sampling = {name: value for name, value in sampling.items() if value is not None}
        self.max_tokens, self.load_in_4bit, self.dtype = max_tokens, load_in_4bit, dtype
        self.batch_size, self.keep_loaded = batch_size, keep_loaded
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None
        self._rollouts = Rollouts()

    def seen_columns(self, columns: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in columns.items() if name in self.prompt.columns}

    def answer(self, items: Iterable[Item], keep: Keep) -> None:
        try:
            for window in batches(items, _WINDOW * self.batch_size):
                model, tokenizer = self._load()
                rendered = [(item, reply_prompt_ids(tokenizer, self._messages(item))) for item in window]
                rendered.sort(key=lambda pair: len(pair[1]))
                with self._rollouts.hold():
                    for batch in batches(rendered, self.batch_size):
                        keep(self._answer(model, tokenizer, batch))
        finally:
            if not self.keep_loaded:
                self.unload()

    def _messages(self, item: Item) -> list[dict[str, str]]:
        return self.prompt.messages({**item.columns, "prompt": item.prompt, "response": item.response})

    def _answer(self, model, tokenizer, batch: list[tuple[Item, list[int]]]) -> list[Correction]:
        sampler = Sampler(
            model,
            tokenizer,
            self.max_tokens,
            self.sampling["temperature"],
            self.sampling.get("top_p", 1.0),
            engine=self._rollouts,
        )
        found = sampler([ids for _, ids in batch], [self.key(item) for item, _ in batch])
        return [
            read_reply(self, item, reply, len(asked), len(ids), not cut_off)
            for (item, asked), reply, ids, cut_off in zip(batch, found.texts, found.ids, found.cut_off, strict=True)
        ]

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if self._loaded is None:
            quantization = None
            if self.load_in_4bit:
                quantization = BitsAndBytesConfig(
                    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
                )
            model, tokenizer = load_policy(
                self.model_name,
                dtype=self.dtype,
                quantization_config=quantization,
                device_map={"": "cuda" if torch.cuda.is_available() else "cpu"},
            )
            check_tokenizer(tokenizer, tokenizer.chat_template is not None)
            self._loaded = model.eval(), tokenizer
        return self._loaded

    def unload(self) -> None:
        """Give the model's memory back; it is loaded again when it is asked."""
        self._loaded, self._rollouts = None, Rollouts()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def reply_prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> list[int]:
    """
    Token ids after which a model writes its reply: by its chat template, or, for a base model, the plain texts.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The model's tokenizer.
        messages (`list[dict]`):
            What the model is asked.
    """
    if tokenizer.chat_template is None:
        return tokenize_prompt(tokenizer, "\n\n".join(message["content"] for message in messages) + "\n\n")[1]
    try:
        return tokenize_prompt(tokenizer, messages)[1]
    except BadInput:  # some templates know no system message
        text = "\n\n".join(message["content"] for message in messages if message["role"] in ("system", "user"))
        return tokenize_prompt(tokenizer, [{"role": "user", "content": text}])[1]


def read_reply(teacher: Teacher, item: Item, reply: str, n_prompt: int, n_reply: int, has_ended: bool) -> Correction:
    """
    The record of a reply that was generated here.

    Args:
        teacher ([`Teacher`]):
            Who replied; has a [`TeacherPrompt`] `prompt`.
        item ([`Item`]):
            To what.
        reply (`str`):
            The reply, without special tokens.
        n_prompt, n_reply (`int`):
            Tokens read and written.
        has_ended (`bool`):
            Whether the reply ends with a stop token; if not, it was cut off.
    """
    status, correction, reason = teacher.prompt.read(reply, item.response)
    if not has_ended:
        status, correction, reason = UNPARSABLE, None, "the reply was cut off at the token limit"
    return teacher.record(item, correction, status, reply=reply, reason=reason, tokens_in=n_prompt, tokens_out=n_reply)
