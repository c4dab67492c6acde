"""Talking to a model: conversations that grow by a message and a reply at a time, answered in batches.

[`LocalChat`] holds a model in this process; [`~inference.ServerChat`] asks a server. A strategy
(`strategy.py`) does not see the difference.
"""

from collections.abc import Callable, Hashable, Sequence
from itertools import groupby
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig, get_quantization_config

from ..functions import Prompt
from ..policy.attempts import FollowUps
from ..policy.generation import Sampler
from ..policy.loading import load_policy
from ..policy.rollout import Rollouts
from ..policy.tokenization import check_tokenizer, stop_token_ids, tokenize_prompt


class Conversation:
    """
    One conversation with one model.

    Args:
        chat ([`Chat`]):
            The model.
        prompt (`str` or `list[dict]`):
            How it begins: plain text, or messages up to a user's.
        temperature (`float`, *optional*):
            Of its replies, 0 for greedy decoding; by default the chat's.
        max_tokens (`int`, *optional*):
            Most tokens of a reply; by default the chat's.
        chat_template_kwargs (`dict`, *optional*):
            Arguments of the chat template (`enable_thinking`, ...).
        on_reply (`Callable`, *optional*):
            Called as `on_reply(tokens, cut_off)` at each reply.

    Attributes:
        messages (`list[dict]`): What was said so far.
        replies (`list[str]`): What the model said.
        tokens (`int`): How many tokens were generated for that.
        failure (`str` or `None`): Why it did not reply, if it was asked and did not.
        ids (`list[int]` or `None`): Of a local model, the conversation as token ids.
        name (`Hashable`): Where replies are sampled, those of a name draw the same random numbers again; given by
            [`~inference.strategy.run`], or by the chat.
    """

    def __init__(
        self,
        chat: "Chat",
        prompt: Prompt,
        temperature: float | None = None,
        max_tokens: int | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        on_reply: Callable[[int, bool], None] | None = None,
    ):
        self.chat = chat
        self.prompt = prompt
        self.temperature = chat.temperature if temperature is None else temperature
        self.max_tokens = chat.max_tokens if max_tokens is None else max_tokens
        self.chat_template_kwargs = chat_template_kwargs or {}
        self.on_reply = on_reply
        self.messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        self.replies: list[str] = []
        self.tokens = 0
        self.failure: str | None = None
        self.ids: list[int] | None = None
        self.name: Hashable = None
        self.last_reply_ids: list[int] = []

    def say(self, message: str) -> "Conversation":
        """The user's next message; returns the conversation, to be yielded."""
        self.messages.append({"role": "user", "content": message})
        return self

    def fork(self) -> "Conversation":
        """A conversation that goes on from here on its own, such as a check that a later attempt must not see."""
        fork = Conversation(
            self.chat, self.prompt, self.temperature, self.max_tokens, self.chat_template_kwargs, self.on_reply
        )
        fork.messages = list(self.messages)
        fork.replies = list(self.replies)
        fork.ids, fork.last_reply_ids = None if self.ids is None else list(self.ids), self.last_reply_ids
        return fork

    def take(self, reply: str, tokens: int, cut_off: bool = False) -> None:
        """
        The model's reply; called by the chat.

        Args:
            reply (`str`):
                Its text.
            tokens (`int`):
                How many tokens were generated for it.
            cut_off (`bool`, *optional*, defaults to `False`):
                Whether it reached the limit of tokens.
        """
        if self.messages[-1]["role"] == "assistant":
            raise RuntimeError("A conversation was asked for a reply twice; `say` something in between.")
        self.messages.append({"role": "assistant", "content": reply})
        self.replies.append(reply)
        self.tokens += tokens
        if self.on_reply is not None:
            self.on_reply(tokens, cut_off)


class Chat(Protocol):
    """A model that replies.

    Attributes:
        temperature (`float`): Of replies, where a conversation does not say otherwise; 0 is greedy decoding.
        max_tokens (`int`): Most tokens of a reply, where a conversation does not say otherwise.
        window (`int`): How many conversations to keep going, so that it is never short of work.
    """

    temperature: float
    max_tokens: int
    window: int

    def reply(self, conversations: Sequence[Conversation]) -> None:
        """Reply in each of the conversations, by [`Conversation.take`]; or set its `failure`."""
        ...


class LocalChat:
    """
    A model in this process. Replies are generated in batches of conversations of like length; a later reply goes on
    from the ids of the earlier ones, which are never decoded and rendered again.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model, unwrapped.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        temperature (`float`, *optional*, defaults to `0.0`):
            Of the replies; 0 is greedy decoding.
        max_tokens (`int`, *optional*, defaults to `256`):
            Most tokens of a reply.
        batch_size (`int`, *optional*, defaults to `64`):
            Conversations per call of `generate`.
        seed (`int`, *optional*, defaults to `0`):
            Of the samples.
        top_p (`float`, *optional*, defaults to `1.0`), top_k (`int`, *optional*, defaults to `0`):
            Where replies are sampled: nucleus sampling, and the most likely tokens to sample from (0: all).
        rollouts ([`~policy.rollout.Rollouts`], *optional*):
            How responses are sampled; by default the fastest way that the model and the device allow.

    Example:

    ```python
    from correction_trl.inference import Conversation, LocalChat

    chat = LocalChat(model, tokenizer, max_tokens=16)
    talk = Conversation(chat, [{"role": "user", "content": "188597027936 + 192071902361 ="}])
    chat.reply([talk])
    chat.reply([talk.say("There might be an error in the answer above. Please correct it.")])
    print(talk.replies)
    ```
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        temperature: float = 0.0,
        max_tokens: int = 256,
        batch_size: int = 64,
        seed: int = 0,
        top_p: float = 1.0,
        top_k: int = 0,
        rollouts: Rollouts | None = None,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.batch_size = batch_size
        self.window = 4 * batch_size  # to put conversations of one length together
        self.stop_ids = stop_token_ids(tokenizer, model.generation_config)
        self.seed, self.top_p, self.top_k = seed, top_p, top_k
        self.rollouts = rollouts or Rollouts(resident=True)
        self._n_named = 0
        self._follow_ups = FollowUps(tokenizer, self.stop_ids)

    def reply(self, conversations: Sequence[Conversation]) -> None:
        """
        Args:
            conversations (`Sequence[Conversation]`):
                Those that wait for a reply; each gets one.

        Raises:
            BadInput: If the chat template cannot render a conversation.
        """
        for conversation in conversations:
            if conversation.name is None:
                conversation.name, self._n_named = self._n_named, self._n_named + 1
            self._encode(conversation)
        settings = lambda c: (c.temperature, c.max_tokens)
        groups = groupby(sorted(conversations, key=settings), key=settings)
        for (temperature, max_tokens), group in [(key, list(group)) for key, group in groups]:
            sampler = Sampler(
                self.model,
                self.tokenizer,
                max_tokens,
                temperature,
                self.top_p,
                self.top_k,
                batch_size=self.batch_size,
                seed=self.seed,
                engine=self.rollouts,
            )
            found = sampler([c.ids for c in group], [(c.name, len(c.replies)) for c in group])
            for conversation, ids, text, cut_off in zip(group, found.ids, found.texts, found.cut_off, strict=True):
                conversation.ids.extend(ids)
                conversation.last_reply_ids = ids
                conversation.take(text, tokens=len(ids), cut_off=cut_off)

    def _encode(self, conversation: Conversation) -> None:
        if conversation.ids is None:
            check_tokenizer(self.tokenizer, not isinstance(conversation.prompt, str))
            kwargs = conversation.chat_template_kwargs
            conversation.ids = list(tokenize_prompt(self.tokenizer, conversation.prompt, **kwargs)[1])
            return
        follow_up = self._follow_ups.of(conversation.prompt, conversation.chat_template_kwargs)
        conversation.ids.extend(follow_up(conversation.last_reply_ids, conversation.messages[-1]["content"]))


def load_model(
    name: str, model_args: ModelConfig, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    A model or an adapter on its base, to be asked and not to be trained.

    Args:
        name (`str`):
            Hub id or folder.
        model_args ([`~trl.ModelConfig`]):
            Data type, attention, quantization, and the revision of `model_name_or_path`.
        device (`torch.device`):
            Where to put it.

    Raises:
        BadInput: If it cannot be loaded.
    """
    quantization_config = get_quantization_config(model_args)
    is_named_in_args = name == model_args.model_name_or_path
    model, tokenizer = load_policy(
        name,
        revision=model_args.model_revision if is_named_in_args else None,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
        quantization_config=quantization_config,
        device_map={"": device} if quantization_config is not None else None,
    )
    return (model if quantization_config is not None else model.to(device)).eval(), tokenizer
