"""The policy as its own teacher: it answers again, its adapter off, and is shown what it does not see in training."""

from collections.abc import Callable, Iterable
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..data_utils import message_text
from ..errors import BadInput
from ..policy.tokenization import decode
from .base import Item, Keep, Teacher
from .local import read_reply, reply_prompt_ids
from .prompting import TeacherPrompt


class PolicyTeacher(Teacher):
    """
    The policy itself, without a second model in memory: with an adapter, the base model (the adapter is off while it
    teaches); in full fine-tuning, the policy as it is. It is shown privileged context: a reference answer, feedback,
    the output of tests, whatever columns the template names.

    The wrong response is not shown by default: a model that sees it copies its mistakes (SDPO,
    [paper](https://huggingface.co/papers/2601.20802), measured a lower accuracy with it). Models below some 1.5
    billion parameters gain little from teaching themselves.

    Only `CorrectionOptimizationTrainer` can use it, which lends it the model.

    Example:

    ```python
    trainer = CorrectionOptimizationTrainer(
        model="Qwen/Qwen2.5-7B-Instruct",
        train_dataset=dataset,  # columns `prompt` and `answer`
        teacher=PolicyTeacher(),
        peft_config=LoraConfig(),
    )
    ```

    Args:
        template (`str`, *optional*, defaults to `"policy_correction"`):
            What it is asked: see [`TeacherPrompt`]. The block `user` takes the place of the last message.
        show_response (`bool`, *optional*, defaults to `False`):
            Show the response as well.
        temperature (`float`, *optional*, defaults to `0.0`):
            Sampling temperature; `0.0` or `None`: greedy.
        max_tokens (`int`, *optional*):
            Most tokens of a reply; by default the trainer's `max_completion_length`.

    Raises:
        BadInput: If the template cannot be used, or a row has none of the columns that it shows.
    """

    def __init__(
        self,
        template: str = "policy_correction",
        show_response: bool = False,
        temperature: float | None = 0.0,
        max_tokens: int | None = None,
    ):
        super().__init__()
        self.prompt = TeacherPrompt(template)
        self.template_version = self.prompt.version
        self.show_response = show_response
        self.sampling = {"temperature": temperature or 0.0, "show_response": show_response}
        self.max_tokens = max_tokens
        self._generate = None

    def bind(
        self,
        generate: Callable[[list[list[int]], "PolicyTeacher"], list[list[int]]],
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: list[int],
        name: Callable[[], str],
    ) -> None:
        """
        Called by the trainer.

        Args:
            generate (`Callable`):
                From token ids of prompts to those of the replies, stop token included.
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
                The policy's.
            stop_ids (`list[int]`):
                Tokens that end a reply.
            name (`Callable[[], str]`):
                Who the policy is now: without an adapter it changes with every step.
        """
        self._generate, self._tokenizer, self._stop_ids, self._name = generate, tokenizer, set(stop_ids), name

    @property
    def name(self) -> str:
        if self._generate is None:
            raise BadInput(
                "The policy can be its own teacher only in a CorrectionOptimizationTrainer, which lends it the model."
            )
        return f"policy:{self._name()}"

    def seen_columns(self, columns: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in columns.items() if name in self.prompt.columns}

    def answer(self, items: Iterable[Item], keep: Keep) -> None:
        items = list(items)
        if not items:
            return
        prompt_ids = [reply_prompt_ids(self._tokenizer, self._messages(item)) for item in items]
        reply_ids = self._generate(prompt_ids, self)
        replies = decode(self._tokenizer, reply_ids)
        keep(
            [
                read_reply(self, item, reply, len(asked), len(ids), bool(ids) and ids[-1] in self._stop_ids)
                for item, reply, asked, ids in zip(items, replies, prompt_ids, reply_ids, strict=True)
            ]
        )

    def _messages(self, item: Item) -> list[dict[str, Any]]:
        shown = {name: value for name, value in item.columns.items() if value is not None}
        if not self.prompt.columns & set(shown):
            raise BadInput(
                f"The policy cannot teach itself without being shown more than the prompt: a row has none of the "
                f"columns {', '.join(sorted(self.prompt.columns))} that {self.prompt.path.name} names (it has "
                f"{', '.join(shown) or 'no further columns'})."
            )
        if self.show_response:
            shown["response"] = item.response
        if isinstance(item.prompt, str):
            return self.prompt.messages({**shown, "prompt": item.prompt})
        *before, last = item.prompt
        return [*before, *self.prompt.messages({**shown, "prompt": message_text([last])})]
