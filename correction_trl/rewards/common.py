"""What all value functions share: reading completions and columns, and saying what could not be judged."""

import logging
import re
from collections.abc import Callable, Hashable, Sequence
from typing import Any


logger = logging.getLogger(__name__)

# <think> (DeepSeek, Qwen), [THINK] (Magistral), Kimi's, Seed's and Cohere's marks, gpt-oss's channels.
THOUGHT_MARK = re.compile(
    r"(?i)<\|?(/)?(?:seed:)?(?:think|thinking|thoughts?|reasoning)\|?>|\[(/)?think\]|◁(/)?think▷"
    r"|<\|(?:start|begin|(end))_(?:of_)?(?:think|thinking|thought)\|>"
    r"|<\|channel\|>(?:(final<\|message\|>)|analysis|commentary)"
)


def completion_text(completion: str | list[dict[str, Any]]) -> str:
    """
    The text of a completion, plain or conversational.

    Args:
        completion (`str` or `list[dict]`):
            Text, or messages with `"role"` and `"content"`; of messages, the last assistant message counts. Content
            may be text or a list of blocks, of which those of type `"text"` count.
    """
    if isinstance(completion, str):
        return completion
    for message in reversed(completion):
        if message.get("role", "assistant") == "assistant":
            content = message["content"]
            if isinstance(content, str):
                return content
            return "".join(block["text"] for block in content or [] if block["type"] == "text")
    return ""


def after_thinking(text: str) -> str:
    """
    What a reasoning model says outside its thoughts; answers considered in them are not answers given. Thoughts that
    never end hold everything that follows them.
    """
    spoken = text
    for mark in THOUGHT_MARK.finditer(text):
        if mark.lastindex:  # one of the groups, all of which are marks that end thoughts
            spoken = text[mark.end() :]
    unfinished = THOUGHT_MARK.search(spoken)  # every mark that ends thoughts stands before
    return spoken[: unfinished.start()] if unfinished else spoken


def where_to_run(device: str) -> str:
    """The device that a setting means: `"auto"` is the GPU where there is one."""
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def read_column(name: str, user: str, columns: dict[str, Any], rows: int) -> list:
    """
    A dataset column that a value function needs.

    Raises:
        ValueError: If the column is missing, or has another length than the completions.
    """
    if name not in columns:
        present = ", ".join(sorted(key for key, value in columns.items() if isinstance(value, list))) or "none"
        raise ValueError(f"{user} needs the dataset column {name!r}; the columns given are: {present}.")
    column = columns[name]
    if len(column) != rows:
        raise ValueError(f"{user} got {rows} completions but {len(column)} values in column {name!r}.")
    return list(column)


def report_unjudged(
    name: str,
    values: Sequence[float | None],
    reasons: Sequence[str],
    log_metric: Callable[[str, float], None] | None,
) -> list[float | None]:
    """
    Counts the rows that could not be judged, and says so: in the trainer's metrics (`NAME/unjudged`, their share of
    the batch, through the `log_metric` that TRL hands to reward functions) and in a warning with the first reason.

    Args:
        name (`str`):
            Name of the value function.
        values (`list[float | None]`):
            Its values.
        reasons (`list[str]`):
            One per row; read where the value is `None`.
        log_metric (`callable`, *optional*):
            TRL's, if the function was called by a trainer.

    Returns:
        `list[float | None]`: `values`, unchanged.
    """
    unjudged = [index for index, value in enumerate(values) if value is None]
    if log_metric is not None:
        log_metric(f"{name}/unjudged", len(unjudged) / max(len(values), 1))
    if unjudged:
        first = unjudged[0]
        logger.warning(
            "%s could not judge %d of %d rows (None, not 0); the first is row %d of the batch: %s",
            name, len(unjudged), len(values), first, reasons[first],
        )  # fmt: skip
    return list(values)


class LastBatch:
    """
    Verdicts of the last batch, so that equal items are judged once and the feedback that follows a value is free.

    It never holds more than one batch.
    """

    def __init__(self):
        self.verdicts = {}

    def judge(self, items: Sequence[Hashable], judge_all: Callable[[list], list]) -> list:
        """Verdicts of `items`, in order; `judge_all` is asked for those that are new, each once."""
        known = self.verdicts
        new = [item for item in dict.fromkeys(items) if item not in known]
        fresh = dict(zip(new, judge_all(new), strict=True)) if new else {}
        self.verdicts = {item: fresh[item] if item in fresh else known[item] for item in items}
        return [self.verdicts[item] for item in items]
