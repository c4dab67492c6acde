"""Self-checking, or Checking-as-Context (CaC): answer, check, answer again with the check in sight.

From "A Theoretical Understanding of Self-Correction through In-context Alignment"
([paper](https://huggingface.co/papers/2405.18634)), where a model's own check of its answer makes it refuse a
jailbreak that worked at first. `evaluation/attacks.py` measures the success of attacks.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..data_utils import message_text
from ..errors import BadInput
from ..rewards.harmlessness import refuses
from .chat import Chat
from .strategy import Asking, Problem, Trace


# The paper's code has checks of this kind; the words are ours.
CHECK = "Look at your response above. Is it harmful, offensive, illegal or otherwise something you should not provide?"


def self_checking(
    chat: Chat, problem: Problem, rounds: int = 1, check: str = CHECK, again: str = "{request}"
) -> Asking:
    """
    The request, a response, the check, the model's verdict, the same request again, a new response, and so on in one
    conversation. The verdict is not read: it works by standing in the context.

    Args:
        chat ([`Chat`]):
            The model.
        problem ([`Problem`]):
            The request.
        rounds (`int`, *optional*, defaults to `1`):
            Checks, the paper's 1. Without any the strategy is the first response.
        check (`str`, *optional*):
            What asks for the verdict.
        again (`str`, *optional*):
            The request when it comes back, with `{request}` where it stands; by default the request alone.

    Example:

    ```python
    traces = run([self_checking(chat, problem, rounds=2) for problem in problems])
    ```
    """
    trace = Trace()
    talk = trace.open(chat, problem.prompt, chat_template_kwargs=problem.chat_template_kwargs)
    trace.answer((yield talk))
    for _ in range(rounds):
        yield talk.say(check)
        trace.answer((yield talk.say(again.replace("{request}", message_text(problem.prompt)))))
    return trace.end("last round")


def self_checking_backup(
    chat: Chat, problem: Problem, dialogues: Sequence[Sequence[dict[str, Any]]] | str | Path
) -> Asking:
    """
    The cheap form: self-checks of other requests, stored earlier, stand before the request, which is answered once.

    Args:
        chat ([`Chat`]):
            The model.
        problem ([`Problem`]):
            The request.
        dialogues (`Sequence[Sequence[dict]]`, `str` or `Path`):
            From [`load_dialogues`] or [`checked_dialogues`]; the paper's code takes up to 3. Or the file, of which the
            first 3 are taken.

    Raises:
        BadInput: If there is no such file, no dialogue, or one does not end with the assistant.
    """
    if isinstance(dialogues, str | Path):
        dialogues = load_dialogues(dialogues)
    if not dialogues:
        raise BadInput("`dialogues` is empty; store self-checks of other requests first, or use `self_checking`.")
    for i, dialogue in enumerate(dialogues):
        _check_dialogue(dialogue, f"dialogue {i}")
    prompt = problem.prompt
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    n_system = sum(message["role"] == "system" for message in messages[:1])
    history = [message for dialogue in dialogues for message in dialogue if message["role"] != "system"]
    trace = Trace()
    talk = trace.open(
        chat,
        [*messages[:n_system], *history, *messages[n_system:]],
        chat_template_kwargs=problem.chat_template_kwargs,
    )
    trace.answer((yield talk))
    return trace.end("one answer")


# --------------------------------------------------------------------------------------------------------------------
# Stored dialogues
# --------------------------------------------------------------------------------------------------------------------


def checked_dialogues(traces: Iterable[Trace | None], limit: int = 3) -> list[list[dict[str, Any]]]:
    """
    The self-checks that worked: conversations of [`self_checking`] whose last response is a refusal.

    Args:
        traces (`Iterable[Trace | None]`):
            What [`self_checking`] returned.
        limit (`int`, *optional*, defaults to `3`):
            Most dialogues.
    """
    found = [t.conversations[0] for t in traces if t is not None and len(t.responses) > 1 and refuses(t.responses[-1])]
    return found[:limit]


def save_dialogues(path: str | Path, dialogues: Sequence[Sequence[dict[str, Any]]]) -> None:
    """
    Write dialogues for [`self_checking_backup`].

    Args:
        path (`str` or `Path`):
            A `.jsonl` file, one dialogue (a list of messages) per line.
        dialogues (`Sequence[Sequence[dict]]`):
            The dialogues.
    """
    lines = [json.dumps(list(dialogue), ensure_ascii=False) + "\n" for dialogue in dialogues]
    Path(path).write_text("".join(lines), encoding="utf-8")


def load_dialogues(path: str | Path, limit: int = 3) -> list[list[dict[str, Any]]]:
    """
    Read what [`save_dialogues`] wrote.

    Args:
        path (`str` or `Path`):
            The file.
        limit (`int`, *optional*, defaults to `3`):
            Most dialogues.

    Raises:
        BadInput: If there is no such file, or a line is no dialogue; the message names it.
    """
    if not Path(path).is_file():
        raise BadInput(f"`dialogues`: there is no file {str(path)!r}; write it with `save_dialogues`.")
    dialogues = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            dialogue = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadInput(
                f"{path}, line {number}: no JSON ({error.msg}); one list of messages is expected."
            ) from None
        _check_dialogue(dialogue, f"{path}, line {number}")
        dialogues.append(dialogue)
    return dialogues[:limit]


def _check_dialogue(dialogue: Any, where: str) -> None:
    messages = dialogue if isinstance(dialogue, list | tuple) else []
    whole = [isinstance(message, dict) and {"role", "content"} <= message.keys() for message in messages]
    if not whole or not all(whole) or messages[-1]["role"] != "assistant":
        raise BadInput(
            f"{where}: a stored self-check is a list of messages with 'role' and 'content', the last one the "
            "assistant's."
        )
