"""Replay: a share of every update's rows is general data, fine-tuned on, so that the policy keeps what it could do."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from datasets import Dataset
from trl.trainer.utils import global_then_local_main_first, pad

from ..data_utils import chat_template_kwargs, message_text
from ..errors import BadInput
from .completions import CompletionEncoder
from .micro_batches import MicroBatches
from .tokenization import tokenize_prompt


logger = get_logger(__name__)


class Replay:
    """
    The replayed rows of each update, as micro-batches beside those of the method.

    An update of B rows per process gets R = round(B s / (1 − s)) more of them, at least one, so that their share of
    all is s. Which ones depends on the seed and the number of the update alone: the dataset is gone through in one
    random order after another. A resumed run goes on with the rows of the run that was not killed, and two processes
    with half the batch each have the rows of one (where R is even).

    Args:
        dataset ([`~datasets.Dataset`]):
            `prompt` and `completion`, plain text or messages; or `messages`, of which the last one is the completion.
        encode ([`CompletionEncoder`]):
            Completions are trained as the ids that the policy would have written, with their end.
        share (`float`):
            s, in (0, 1).
        n_rows (`int`):
            B.
        max_length (`int`, *optional*):
            Most tokens of a row; longer ones are left out, and counted in a warning.
        seed (`int`, *optional*, defaults to `0`):
            Of the order.
        n_processes (`int`, *optional*, defaults to `1`), process_index (`int`, *optional*, defaults to `0`):
            Of the run.
        pad_to_multiple_of (`int`, *optional*):
            Of the length of a batch.

    Raises:
        BadInput: If a row cannot be trained on; the message names it.
    """

    def __init__(
        self,
        dataset: Dataset,
        encode: CompletionEncoder,
        share: float,
        n_rows: int,
        max_length: int | None = None,
        seed: int = 0,
        n_processes: int = 1,
        process_index: int = 0,
        pad_to_multiple_of: int | None = None,
    ):
        self.share, self.n_rows = share, max(1, round(n_rows * share / (1 - share)))
        self._seed, self._n_processes, self._process_index = seed, n_processes, process_index
        self._pad_token_id, self._pad_to_multiple_of = encode.tokenizer.pad_token_id, pad_to_multiple_of
        self._order: tuple[int, np.ndarray] | None = None  # of one pass over the dataset
        if not isinstance(dataset, Dataset) or len(dataset) == 0:
            raise BadInput("`replay_dataset` must be a map-style `datasets.Dataset` with rows.")
        columns = set(dataset.column_names)
        if not {"prompt", "completion"} <= columns and "messages" not in columns:
            raise BadInput(
                f"`replay_dataset` needs the columns 'prompt' and 'completion', or 'messages'; its columns are "
                f"{', '.join(dataset.column_names)}."
            )
        with global_then_local_main_first():
            rows = dataset.map(
                tokenize_row, with_indices=True, fn_kwargs={"encode": encode}, remove_columns=dataset.column_names
            )
        if max_length is not None:
            rows = rows.filter(lambda row: len(row["prompt_ids"]) + len(row["completion_ids"]) <= max_length)
            n_dropped = len(dataset) - len(rows)
            if not len(rows):
                raise BadInput(f"No row of `replay_dataset` fits into `max_length={max_length}` tokens; raise it.")
            if n_dropped:
                logger.warning(
                    f"{n_dropped} of {len(dataset)} rows of `replay_dataset` are left out: they exceed "
                    f"`max_length={max_length}` tokens."
                )
        self.rows = rows

    def rows_of(self, step: int) -> list[int]:
        """
        The rows of this process.

        Args:
            step (`int`):
                Number of the update.
        """
        first = (step * self._n_processes + self._process_index) * self.n_rows
        return [self._row(place) for place in range(first, first + self.n_rows)]

    def _row(self, place: int) -> int:
        number, place = divmod(place, len(self.rows))
        if self._order is None or self._order[0] != number:
            self._order = number, np.random.default_rng([self._seed, number]).permutation(len(self.rows))
        return int(self._order[1][place])

    def beside(
        self, batches: list, step: int, rows_per_batch: int, cut: Callable[..., list[MicroBatches]]
    ) -> list[MicroBatches]:
        """
        An update with its replayed rows: empty steps, and a last one with all micro-batches.

        Args:
            batches (`list`):
                The update of the method: a batch per step, or [`MicroBatches`].
            step (`int`):
                Number of the update.
            rows_per_batch (`int`):
                Most replayed rows of a forward, where the update was not cut by tokens.
            cut (`Callable`):
                The trainer's, which cuts by tokens.
        """
        examples = [self.rows[row] for row in self.rows_of(step)]

        def collate(rows: Sequence[int]) -> dict[str, torch.Tensor]:
            return self.collate([examples[row] for row in rows])

        if isinstance(batches[0], MicroBatches):
            lengths = [len(example["prompt_ids"]) + len(example["completion_ids"]) for example in examples]
            replayed = cut(lengths, collate, 1)[0]
            own = [batch for step in batches for batch in step]
        else:
            places = range(len(examples))
            replayed = [collate(places[i : i + rows_per_batch]) for i in places[::rows_per_batch]]
            own = batches
        return [MicroBatches() for _ in batches[1:]] + [MicroBatches([*own, *replayed])]

    def collate(self, examples: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """
        Args:
            examples (`list[dict]`):
                With `prompt_ids` and `completion_ids`.

        Returns:
            `dict[str, torch.Tensor]`: `replayed` of shape `(B,)`, by which such a batch is known, and `input_ids`,
            `attention_mask` and `completion_mask` of shape `(B, T)`, padded on the right.
        """
        ids = [torch.tensor([*example["prompt_ids"], *example["completion_ids"]]) for example in examples]
        masks = [
            torch.tensor([0] * len(example["prompt_ids"]) + [1] * len(example["completion_ids"]))
            for example in examples
        ]
        options = {"padding_side": "right", "pad_to_multiple_of": self._pad_to_multiple_of}
        return {
            "replayed": torch.ones(len(examples)),
            "input_ids": pad(ids, padding_value=self._pad_token_id, **options),
            "attention_mask": pad([torch.ones_like(row) for row in ids], padding_value=0, **options),
            "completion_mask": pad(masks, padding_value=0, **options),
        }


def tokenize_row(row: dict[str, Any], index: int, encode: CompletionEncoder) -> dict[str, list[int]]:
    """
    Args:
        row (`dict`):
            Of a `replay_dataset`; see [`Replay`].
        index (`int`):
            Its number, for messages.
        encode ([`CompletionEncoder`]):
            With the policy's tokenizer.

    Returns:
        `dict[str, list[int]]`: `prompt_ids` and `completion_ids`.

    Raises:
        BadInput: If it cannot be trained as it is; the message names it.
    """
    try:
        prompt, completion = _parts(row)
        kwargs = chat_template_kwargs(row)
        prompt_text, prompt_ids = tokenize_prompt(encode.tokenizer, prompt, **kwargs)
        completion_ids = encode.reply(prompt, prompt_text, prompt_ids, completion, kwargs)
    except BadInput as error:
        raise BadInput(f"Row {index} of `replay_dataset`: {error}") from error
    return {"prompt_ids": prompt_ids, "completion_ids": completion_ids}


def _parts(row: dict[str, Any]) -> tuple[Any, Any]:
    if "completion" in row:
        prompt, completion = row["prompt"], row["completion"]
    else:
        messages = row["messages"]
        if not isinstance(messages, list) or len(messages) < 2 or messages[-1].get("role") != "assistant":
            raise BadInput("its `messages` do not end with the assistant's, after another; correct or remove the row.")
        prompt, completion = messages[:-1], messages[-1:]
    for name, value in (("prompt", prompt), ("completion", completion)):
        if not isinstance(value, str | list) or not value:
            raise BadInput(f"its {name} is empty or no text; correct or remove the row.")
    if isinstance(prompt, str) and not isinstance(completion, str):
        raise BadInput("its completion is a list of messages and its prompt is text; write both alike.")
    text = completion if isinstance(completion, str) else message_text(completion)
    if not (text or "").strip() and not (isinstance(completion, list) and completion[-1].get("tool_calls")):
        raise BadInput("its completion is empty; correct or remove the row.")
    return prompt, completion
