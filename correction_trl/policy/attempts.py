"""Conversations of several attempts, as token ids.

A second attempt is asked for by appending ids to the ids that were sampled: the first attempt is never decoded and
rendered again, because chat templates may change it on the way (Qwen3's drops the reasoning of earlier turns), and a
policy must be trained on, and asked to go on from, what it really wrote.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import BadInput
from .completions import assistant_turn, without_leading_space
from .tokenization import render_chat


# SCoRe's instruction (paper 2409.12917), without the sentence about the answer's format: it never says whether the
# first attempt was right.
SELF_CORRECTION_INSTRUCTION = (
    "There might be an error in the solution above because of lack of understanding of the question. Please correct "
    "the error, if any, and rewrite the solution."
)

_ANSWER = "An-Earlier-Answer"  # stands for an attempt when the text around it is looked up


class FollowUp:
    """
    The ids between an attempt and the next one: the end of the assistant's turn, a user's message, and the beginning
    of the assistant's next turn.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        stop_ids (`Sequence[int]`):
            From [`~correction_trl.policy.tokenization.stop_token_ids`].
        conversational (`bool`):
            Whether prompts are lists of messages. After a plain prompt the attempt stays as it was sampled, stop token
            included, and the message follows between blank lines.
        chat_template_kwargs (`dict`, *optional*):
            Passed to the chat template.

    Raises:
        BadInput: If the chat template cannot be continued after an answer; the message says what it does.

    Example:

    ```python
    follow_up = FollowUp(tokenizer, stop_token_ids(tokenizer, model.generation_config), conversational=True)
    second_prompt_ids = prompt_ids + first_ids + follow_up(first_ids, "Are you sure?")
    ```
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: Sequence[int],
        conversational: bool,
        chat_template_kwargs: dict[str, Any] | None = None,
    ):
        self.tokenizer = tokenizer
        self.stop_ids = frozenset(stop_ids)
        self.conversational = conversational
        self.chat_template_kwargs = chat_template_kwargs or {}
        self._end_ids = assistant_turn(tokenizer, stop_ids, conversational, self.chat_template_kwargs).end_ids
        self._ids_after_answer = lru_cache(maxsize=4096)(self._render)
        if conversational and _rewrites_history(tokenizer, self.chat_template_kwargs):
            warnings.warn(
                "The chat template removes the reasoning (`<think>`) of earlier turns. Here earlier attempts stay as "
                "they were sampled; where the model is served with this template it will see them without.",
                stacklevel=2,
            )

    def __call__(self, attempt_ids: Sequence[int], message: str) -> list[int]:
        """
        Args:
            attempt_ids (`Sequence[int]`):
                The attempt as it was sampled. If it was cut off (no stop token), its turn is ended here.
            message (`str`):
                What the user says next.

        Returns:
            `list[int]`: To be appended to the attempt's ids.
        """
        ids, end = self._ids_after_answer(message), self._end_ids
        n = 0
        if tuple(attempt_ids[-len(end) :]) == end:  # the attempt ended its turn itself
            n = next((i for i, (a, b) in enumerate(zip(ids, end, strict=False)) if a != b), min(len(ids), len(end)))
        elif attempt_ids and ids[:1] == (attempt_ids[-1],) and ids[0] in self.stop_ids:
            n = 1
        return list(ids[n:])

    def _render(self, message: str) -> tuple[int, ...]:
        if not message.strip():
            raise BadInput("The message between two attempts is empty; give an instruction.")
        if not self.conversational:
            return tuple(self.tokenizer(f"\n\n{message}\n\n", add_special_tokens=False)["input_ids"])
        conversation = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": _ANSWER},
            {"role": "user", "content": message},
        ]
        try:
            text = render_chat(self.tokenizer, conversation, add_generation_prompt=True, **self.chat_template_kwargs)
        except BadInput as error:
            raise BadInput(
                f"The chat template refuses a second user message; use another template. {error}"
            ) from error
        before, answer, after = text.partition(_ANSWER)
        if not answer or _ANSWER in after:
            raise BadInput(
                "The chat template does not show an earlier answer exactly once in a longer conversation, so a second "
                "attempt cannot be asked for; use another template."
            )
        if message.strip() not in after:
            raise BadInput(
                f"The chat template changes the message {message[:100]!r} of a second user turn, so a second attempt "
                "cannot be asked for; use another template."
            )
        ids = without_leading_space(self.tokenizer, after)
        if ids[0] == self._end_ids[0] or ids[0] in self.stop_ids:
            return tuple(ids)
        return tuple(self.tokenizer(after, add_special_tokens=False)["input_ids"])


class FollowUps:
    """
    The [`FollowUp`] of a conversation. One is made for all conversations with the same arguments of the chat template:
    usually there is one.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        stop_ids (`Sequence[int]`):
            From [`~correction_trl.policy.tokenization.stop_token_ids`].
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int]):
        self.tokenizer, self.stop_ids = tokenizer, stop_ids
        self._made: dict[tuple[bool, str], FollowUp] = {}

    def of(self, prompt: str | list[dict[str, Any]], chat_template_kwargs: dict[str, Any]) -> FollowUp:
        """
        Args:
            prompt (`str` or `list[dict]`):
                What the conversation begins with.
            chat_template_kwargs (`dict`):
                The conversation's arguments of the chat template.
        """
        conversational = not isinstance(prompt, str)
        key = (conversational, repr(sorted(chat_template_kwargs.items())))
        if key not in self._made:
            self._made[key] = FollowUp(self.tokenizer, self.stop_ids, conversational, chat_template_kwargs)
        return self._made[key]


def _rewrites_history(tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: dict[str, Any]) -> bool:
    conversation = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": f"<think>\nwhy-so\n</think>\n\n{_ANSWER}"},
        {"role": "user", "content": "b"},
    ]
    try:
        text = render_chat(tokenizer, conversation, add_generation_prompt=True, **chat_template_kwargs)
    except BadInput:
        return False  # `FollowUp` says so when it is used
    return _ANSWER in text and "why-so" not in text


def sample_attempts(
    complete: Callable[..., tuple[list[list[int]], Any]],
    prompt_ids: Sequence[Sequence[int]],
    next_turn: Callable[[int, list[list[int]]], list[list[int]]] | None,
    n_turns: int,
) -> tuple[list[list[list[int]]], list[list[list[int]]]]:
    """
    Several attempts at each prompt, each going on from the one before it in the same conversation.

    Where the model allows it, a later attempt continues from the key-value cache of the earlier ones, and only what is
    new is computed; elsewhere it starts again from the ids. Both give the same distribution.

    Args:
        complete (`Callable`):
            Called as `complete(ids, turn, continue_from=..., keep=...)`: [`~generation.generate`], bound to a model
            and its settings.
        prompt_ids (`Sequence[Sequence[int]]`):
            Token ids of the prompts; none empty.
        next_turn (`Callable`):
            Called as `next_turn(turn, attempt_ids)` after turn `turn` (1-based) with the attempts of that turn;
            returns the ids to append to each before the next attempt, as [`FollowUp`] makes them.
        n_turns (`int`):
            Number of attempts.

    Returns:
        `tuple` of two lists over turns. Attempts: `attempts[t][i]` are the ids that prompt i got in turn t, up to and
        including the first stop token. Follow-ups: `follow_ups[t][i]` are the ids between `attempts[t][i]` and
        `attempts[t + 1][i]`.
    """
    rows = [list(ids) for ids in prompt_ids]
    attempts, follow_ups, kept = [], [], None
    for turn in range(1, n_turns + 1):
        new_ids = rows if kept is None else follow_ups[-1]
        completions, kept = complete(new_ids, turn, continue_from=kept, keep=turn < n_turns)
        attempts.append(completions)
        if turn < n_turns:
            follow_ups.append(next_turn(turn, completions))
            rows = [row + a + f for row, a, f in zip(rows, completions, follow_ups[-1], strict=True)]
    return attempts, follow_ups
