"""Conversations of several attempts, as token ids.

A second attempt is asked for by appending ids to the ids that were sampled: the first attempt is never decoded and
rendered again, because chat templates may change it on the way (Qwen3's drops the reasoning of earlier turns), and a
policy must be trained on, and asked to go on from, what it really wrote.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from jinja2.exceptions import TemplateError
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.utils import pad

from ..correction_optimization.shared_prefix import unsupported_reason
from ..errors import BadInput


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
        ids = self._ids_after_answer(message)
        if ids and ids[0] in self.stop_ids and attempt_ids and attempt_ids[-1] in self.stop_ids:
            ids = ids[1:]  # the attempt ended its turn itself
        return list(ids)

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
            text = self.tokenizer.apply_chat_template(
                conversation, tokenize=False, add_generation_prompt=True, **self.chat_template_kwargs
            )
        except TemplateError as error:
            raise BadInput(
                f"The chat template refuses a second user message ({error}); use another template."
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
        ids = self.tokenizer(after, add_special_tokens=False)["input_ids"]
        closing = next((i for i, token in enumerate(ids) if token in self.stop_ids), None)
        # Some templates put white space between an answer and its end token; the model's own answers have none
        if closing and not self.tokenizer.decode(ids[:closing]).strip():
            ids = ids[closing:]
        return tuple(ids)


def _rewrites_history(tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: dict[str, Any]) -> bool:
    conversation = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": f"<think>\nwhy-so\n</think>\n\n{_ANSWER}"},
        {"role": "user", "content": "b"},
    ]
    try:
        text = tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=True, **chat_template_kwargs
        )
    except TemplateError:
        return False  # `FollowUp` says so when it is used
    return _ANSWER in text and "why-so" not in text


@torch.no_grad()
def sample_attempts(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    next_turn: Callable[[int, list[list[int]]], list[list[int]]],
    n_turns: int,
    generation_config: GenerationConfig,
    model_inputs: Callable[[torch.Tensor, torch.Tensor], dict[str, Any]] | None = None,
) -> tuple[list[list[list[int]]], list[list[list[int]]]]:
    """
    Several attempts at each prompt, each going on from the one before it in the same conversation.

    Where the model's attention allows it (every layer sees everything, no recurrent state), a later attempt continues
    from the key-value cache of the earlier ones, and only what is new is computed; elsewhere it starts again from the
    ids. Both give the same distribution.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The policy, unwrapped.
        prompt_ids (`Sequence[Sequence[int]]`):
            Token ids of the prompts; none empty.
        next_turn (`Callable`):
            Called as `next_turn(turn, attempt_ids)` after turn `turn` (1-based) with the attempts of that turn;
            returns the ids to append to each before the next attempt, as [`FollowUp`] makes them.
        n_turns (`int`):
            Number of attempts.
        generation_config ([`~transformers.GenerationConfig`]):
            Sampling parameters; `max_new_tokens` holds per attempt.
        model_inputs (`Callable`, *optional*):
            For prompts with images: called with the ids and their attention mask (left-padded) before each attempt;
            returns the model's further inputs, such as `pixel_values`. Each attempt then starts again from the ids.

    Returns:
        `tuple` of two lists over turns. Attempts: `attempts[t][i]` are the ids that prompt i got in turn t, up to and
        including the first stop token. Follow-ups: `follow_ups[t][i]` are the ids between `attempts[t][i]` and
        `attempts[t + 1][i]`.
    """
    stop_ids = generation_config.eos_token_id
    stop = torch.tensor([stop_ids] if isinstance(stop_ids, int) else list(stop_ids), device=model.device)
    pad_token_id = generation_config.pad_token_id
    cacheable = n_turns > 1 and model_inputs is None and generation_config.cache_implementation is None
    cacheable = cacheable and unsupported_reason(model) is None
    cache = DynamicCache(config=model.config) if cacheable else None
    # A sliding window would count the padding inside the rows
    with_cache = cache is not None and not any(layer.is_sliding for layer in cache.layers)

    def padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
        ids = pad(tensors, padding_value=pad_token_id, padding_side="left")
        mask = pad([torch.ones_like(t) for t in tensors], padding_value=0, padding_side="left")
        return ids.to(model.device), mask.to(model.device)

    input_ids, attention_mask = padded(prompt_ids)
    attempts, follow_ups = [], []
    for turn in range(1, n_turns + 1):
        output = model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=generation_config,
            **({"past_key_values": cache} if with_cache else {}),
            **(model_inputs(input_ids, attention_mask) if model_inputs is not None else {}),
        )
        new = output[:, input_ids.size(1) :]
        ends = torch.isin(new, stop).long()
        kept = (ends.cumsum(1) - ends) == 0  # up to and including the first stop token
        attempts.append([ids[mask].tolist() for ids, mask in zip(new.cpu(), kept.cpu(), strict=True)])
        if turn == n_turns:
            break
        follow_ups.append(next_turn(turn, attempts[-1]))
        if with_cache:
            # Padding now also lies inside the rows; the attention mask hides it and `generate` counts positions by it
            appended_ids, appended_mask = padded(follow_ups[-1])
            input_ids = torch.cat([output, appended_ids], dim=1)
            attention_mask = torch.cat([attention_mask, kept.long(), appended_mask], dim=1)
        else:
            rows = [list(prompt) for prompt in prompt_ids]
            for done, appended in zip(attempts, follow_ups, strict=True):
                rows = [row + a + f for row, a, f in zip(rows, done, appended, strict=True)]
            input_ids, attention_mask = padded(rows)
    return attempts, follow_ups
