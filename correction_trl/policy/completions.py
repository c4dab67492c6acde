"""Completions that are given as text, by a teacher or a dataset, as the token ids that the policy would have written.

What a policy writes begins after the generation prompt and ends with the token at which it stops. Rendering the whole
conversation with the chat template does not give that: some templates delete an answer's thoughts, some add an empty
block of them, some write an end at which no model stops. Here the text itself is encoded, whole, and the template says
only what stands around it.
"""

import bisect
import os.path
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..data_utils import message_text
from ..errors import BadInput
from ..functions import Prompt
from .tokenization import decode, plain_ids, render_chat


# How chat templates and models mark thoughts
THOUGHTS = (
    ("<think>", "</think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
)
MISSING_THOUGHTS = ("own", "empty", "refuse")
_ANSWER = "An-Answer"  # stands for an answer when the text around it is looked up


class MissingThoughts(BadInput):
    """An answer without thoughts under a template that begins every reply with them."""


@dataclass(frozen=True)
class AssistantTurn:
    """
    What a chat template writes around an answer.

    Attributes:
        begin (`str`):
            Between the generation prompt and the answer, an empty block of thoughts aside: gpt-oss' channel.
        close (`str`):
            Closes a block of thoughts that the generation prompt has opened, without thoughts.
        end_ids (`tuple[int, ...]`):
            After the answer, up to and including the token at which the policy stops.
    """

    begin: str
    close: str
    end_ids: tuple[int, ...]


def assistant_turn(
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    conversational: bool,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> AssistantTurn:
    """
    How the policy's turn begins and ends.

    Some families end it with another token than their end-of-sequence token (Gemma's `<end_of_turn>`), some with two
    (Cohere), some with the token that begins the user's next turn (GLM-4): a correction has to end as the policy's own
    responses do.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        stop_ids (`Sequence[int]`):
            From [`~correction_trl.policy.tokenization.stop_token_ids`]. A token at which the model does not stop ends
            no turn; where the template writes no other, the first of these does.
        conversational (`bool`):
            Whether the prompts are lists of messages.
        chat_template_kwargs (`dict`, *optional*):
            Passed to the chat template.
    """
    default = AssistantTurn("", "", (stop_ids[0],))
    if not conversational:
        return default
    prompt, answer, more = (
        {"role": role, "content": text} for role, text in (("user", "a"), ("assistant", _ANSWER), ("user", "b"))
    )
    render = partial(render_chat, tokenizer, **(chat_template_kwargs or {}))
    try:
        turn, generation_prompt = render([prompt, answer]), render([prompt], add_generation_prompt=True)
    except BadInput:  # a template for prompts alone
        return default
    if _ANSWER not in turn:
        return default
    begin, _, end = turn[len(os.path.commonprefix([generation_prompt, turn])) :].partition(_ANSWER)
    close = begin if any(closing in begin for _, closing in THOUGHTS) else ""
    for opening, closing in THOUGHTS:
        begin = re.sub(rf"^\s*(?:{re.escape(opening)})?\s*{re.escape(closing)}\s*", "", begin)
    begin = begin if begin.strip() else ""

    ids = without_leading_space(tokenizer, end)
    place = next((i for i, token in enumerate(ids) if token in stop_ids), None)
    if place is not None:
        return AssistantTurn(begin, close, tuple(ids[: place + 1]))
    try:
        conversation = render([prompt, answer, more], add_generation_prompt=True)
    except BadInput:  # a template for one turn alone
        return AssistantTurn(begin, close, default.end_ids)
    after = without_leading_space(tokenizer, conversation.partition(_ANSWER)[2])
    return AssistantTurn(begin, close, tuple(after[:1]) if after and after[0] in stop_ids else default.end_ids)


def without_leading_space(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Some templates put white space between an answer and its end; the policy's own answers have none."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    n = next((i for i, token in enumerate(ids) if tokenizer.decode([token]).strip()), len(ids))
    return ids[n:]


def opened_thoughts(prompt_text: str) -> tuple[str, str] | None:
    """The marks of the block of thoughts that a rendered prompt has opened; `None` if it opened none."""
    text = prompt_text.rstrip()
    return next((marks for marks in THOUGHTS if text.endswith(marks[0])), None)


class CompletionEncoder:
    """
    Encodes completions that are given as text.

    * The text is encoded as it is, together with its prompt, so that a tokenizer whose pieces depend on what stands
      before them gives the ids that the policy would have written.
    * Control tokens in it (`<|im_end|>`) are text: encoded as such, they neither end the turn nor begin another. One
      at its very end, where many datasets put it, is the end of the turn.
    * Thoughts: where the generation prompt has opened a block of them, or the policy's own response begins with one, a
      text without the block's end is an answer without thoughts. It is completed as `missing_thoughts` says.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        stop_ids (`Sequence[int]`):
            From [`~correction_trl.policy.tokenization.stop_token_ids`].
        missing_thoughts (`str`, *optional*, defaults to `"own"`):
            Before an answer without thoughts stand: the policy's `"own"`, of the response that the answer corrects; an
            `"empty"` block, where the prompt has opened one; or nothing, and it is refused (`"refuse"`).

    Example:

    ```python
    encode = CompletionEncoder(tokenizer, stop_token_ids(tokenizer, model.generation_config))
    prompt_text, prompt_ids = tokenize_prompt(tokenizer, prompt)
    correction_ids = encode(prompt, prompt_text, prompt_ids, "It is 2.", own_ids=response_ids)
    ```
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int], missing_thoughts: str = "own"):
        self.tokenizer, self.stop_ids, self.missing_thoughts = tokenizer, list(stop_ids), missing_thoughts
        self._turns: dict[tuple[bool, str], AssistantTurn] = {}
        self._special = {
            added.content: token for token, added in tokenizer.added_tokens_decoder.items() if added.special
        }
        self._stop_texts = [tokenizer.decode([token]) for token in stop_ids]

    def turn(self, prompt: Prompt, chat_template_kwargs: dict[str, Any] | None = None) -> AssistantTurn:
        """How the policy's turn after this prompt begins and ends."""
        key = (not isinstance(prompt, str), repr(sorted((chat_template_kwargs or {}).items())))
        if key not in self._turns:
            self._turns[key] = assistant_turn(self.tokenizer, self.stop_ids, key[0], chat_template_kwargs)
        return self._turns[key]

    def __call__(
        self,
        prompt: Prompt,
        prompt_text: str,
        prompt_ids: list[int],
        completion: str,
        chat_template_kwargs: dict[str, Any] | None = None,
        own_ids: Sequence[int] | None = None,
    ) -> list[int]:
        """
        Args:
            prompt (`str` or `list[dict]`):
                The prompt as it stands in the dataset.
            prompt_text (`str`):
                The rendered prompt, from [`~correction_trl.policy.tokenization.tokenize_prompt`].
            prompt_ids (`list[int]`):
                Its ids.
            completion (`str`):
                The text to encode.
            chat_template_kwargs (`dict`, *optional*):
                With which the prompt was rendered.
            own_ids (`Sequence[int]`, *optional*):
                The policy's own response, for its thoughts.

        Returns:
            `list[int]`: The ids, the end of the turn included.

        Raises:
            MissingThoughts: If it is an answer without thoughts, and may not or cannot be completed.
            BadInput: If it holds a control token that this tokenizer cannot write as text.
        """
        turn = self.turn(prompt, chat_template_kwargs)
        text = self._without_end(completion, turn)
        marks = opened_thoughts(prompt_text)
        head, as_markup = [], bool(turn.begin) and turn.begin in text
        if marks is not None and marks[1] in text:
            if text.lstrip().startswith(marks[0]):  # the prompt has opened the block already
                space = prompt_text[len(prompt_text.rstrip()) :]
                text = text.lstrip().removeprefix(marks[0]).removeprefix(space)
        elif marks is not None:
            head = self._completed(marks, turn, own_ids)
        elif not as_markup:
            head = self._begun(turn, text, own_ids)
        ids = self._ids(text, prompt, prompt_text, prompt_ids, alone=bool(head), as_markup=as_markup)
        return [*head, *ids, *turn.end_ids]

    def corrections(
        self,
        prompts: Sequence[Prompt],
        rendered: Sequence[tuple[str, list[int]]],
        template_kwargs: Sequence[dict[str, Any]],
        response_ids: Sequence[list[int]],
        responses: Sequence[str],
        corrections: Sequence[str | None],
    ) -> tuple[list[list[int]], list[str | None]]:
        """
        A teacher's corrections of sampled responses.

        Args:
            prompts (`Sequence[Prompt]`), rendered (`Sequence[tuple]`), template_kwargs (`Sequence[dict]`):
                The prompts, their texts and ids, and the arguments of their chat template.
            response_ids (`Sequence[list[int]]`), responses (`Sequence[str]`):
                What the policy wrote.
            corrections (`Sequence[str | None]`):
                What the teacher returned.

        Returns:
            `tuple`: Their ids, where there is no correction or nothing to correct the response's; and the corrections
            with their thoughts, `None` where one without thoughts cannot be completed, because the response has none
            either, and the response itself where nothing but its thoughts was missing.
        """
        ids, kept = list(response_ids), list(corrections)
        for i, correction in enumerate(corrections):
            if correction is None or correction == responses[i]:
                continue
            try:
                ids[i] = self(prompts[i], *rendered[i], correction, template_kwargs[i], response_ids[i])
                text = decode(self.tokenizer, [ids[i]])[0]
                if ids[i] == response_ids[i]:
                    kept[i] = responses[i]
                elif text.endswith(correction):  # with the thoughts in front of it
                    kept[i] = text
            except MissingThoughts as error:
                if self.missing_thoughts == "refuse":
                    raise
                kept[i] = None
                warnings.warn(f"A correction without thoughts is left out. {error}", stacklevel=2)
        return ids, kept

    def reply(
        self,
        prompt: Prompt,
        prompt_text: str,
        prompt_ids: list[int],
        completion: str | list[dict[str, Any]],
        kwargs: dict[str, Any],
        own_ids: Sequence[int] | None = None,
    ) -> list[int]:
        """
        Ids of a completion as it stands in a dataset: a text, a message, or several.

        Args:
            prompt, prompt_text, prompt_ids, own_ids:
                As of [`__call__`].
            completion (`str` or `list[dict]`):
                Plain text, or messages.
            kwargs (`dict`):
                With which the prompt was rendered.

        Raises:
            BadInput: As [`__call__`] and [`messages`].
        """
        if isinstance(completion, str):
            text = completion
        else:
            messages = [{key: value for key, value in message.items() if value is not None} for message in completion]
            if len(messages) > 1 or set(messages[0]) - {"role", "content"}:
                return self.messages(prompt, prompt_text, messages, kwargs)
            text = message_text(messages)
        return self(prompt, prompt_text, prompt_ids, text, kwargs, own_ids)

    def messages(
        self, prompt: list[dict[str, Any]], prompt_text: str, messages: list[dict[str, Any]], kwargs: dict[str, Any]
    ) -> list[int]:
        """
        Ids of a reply of several messages, or with more than a text (tool calls), as the template renders it.

        Args:
            prompt (`list[dict]`):
                The prompt.
            prompt_text (`str`):
                The rendered prompt.
            messages (`list[dict]`):
                The reply.
            kwargs (`dict`):
                Passed to the chat template.

        Raises:
            BadInput: If the template refuses the messages or changes the text of one.
        """
        whole = render_chat(self.tokenizer, [*prompt, *messages], **kwargs)
        reply = whole[len(os.path.commonprefix([prompt_text, whole])) :]
        for message in messages:
            content = message.get("content")
            if isinstance(content, str) and content.strip() not in reply:
                raise BadInput(
                    f"The chat template changes the text {content[:100]!r}, so that something else would be trained; "
                    "use another template, or give the reply as one plain text."
                )
        ids = self.tokenizer(reply, add_special_tokens=False)["input_ids"]
        place = next((i for i in reversed(range(len(ids))) if ids[i] in self.stop_ids), None)
        return [*ids, *self.turn(prompt, kwargs).end_ids] if place is None else ids[: place + 1]

    def _without_end(self, text: str, turn: AssistantTurn) -> str:
        for end in (self.tokenizer.decode(list(turn.end_ids)), *self._stop_texts):
            if end.strip() and text.endswith(end):
                return text.removesuffix(end)
        return text

    def _completed(self, marks: tuple[str, str], turn: AssistantTurn, own_ids: Sequence[int] | None) -> list[int]:
        """What stands between a prompt that has opened a block of thoughts and an answer without any."""
        if self.missing_thoughts == "empty":
            return self.tokenizer(turn.close or f"\n{marks[1]}\n\n", add_special_tokens=False)["input_ids"]
        thoughts = self._thoughts(own_ids or [], marks[1]) if self.missing_thoughts == "own" else None
        if thoughts is None:
            raise MissingThoughts(
                f"The chat template begins every reply with `{marks[0]}`, and the text has no `{marks[1]}`: it would "
                "be trained as thoughts that never end. Give texts with thoughts, "
                + ("" if self.missing_thoughts == "own" else "set `missing_thoughts: own` or ")
                + "set `missing_thoughts: empty`, or switch the thoughts off (for many templates "
                '`chat_template_kwargs: {"enable_thinking": false}` in the rows).'
            )
        return thoughts

    def _begun(self, turn: AssistantTurn, text: str, own_ids: Sequence[int] | None) -> list[int]:
        """The policy's own thoughts, where it wrote some and the text has none; else what the template begins with."""
        if own_ids and self.missing_thoughts == "own":
            own = self.tokenizer.decode(list(own_ids), skip_special_tokens=False)
            for mark in [turn.begin] if turn.begin else [closing for opening, closing in THOUGHTS if opening in own]:
                if mark not in text and (thoughts := self._thoughts(own_ids, mark)) is not None:
                    return thoughts
        return self.tokenizer(turn.begin, add_special_tokens=False)["input_ids"] if turn.begin else []

    def _thoughts(self, ids: Sequence[int], mark: str) -> list[int] | None:
        """The ids up to and including a mark and the white space after it; `None` without it."""
        ids = list(ids)
        decode = partial(self.tokenizer.decode, skip_special_tokens=False)
        if mark not in decode(ids):
            return None
        n = bisect.bisect_left(range(len(ids)), True, key=lambda n: mark in decode(ids[:n]))
        while n < len(ids) and ids[n] not in self.stop_ids and not decode([ids[n]]).strip():
            n += 1
        return ids[:n]

    def _ids(self, text, prompt, prompt_text, prompt_ids, alone: bool, as_markup: bool) -> list[int]:
        tokenize = partial(self.tokenizer, add_special_tokens=False)
        if not as_markup and any(special in text for special in self._special):
            return self._as_text(text)
        if alone:
            return tokenize(text)["input_ids"]
        whole_text = prompt_text + text
        joint = plain_ids(self.tokenizer, whole_text) if isinstance(prompt, str) else tokenize(whole_text)["input_ids"]
        if joint[: len(prompt_ids)] == prompt_ids:
            return joint[len(prompt_ids) :]
        # Tokens merge across the border. Some tokenizers put a space in front of every text: after a line break they
        # do not
        line_break = tokenize("\n")["input_ids"]
        after_line_break = tokenize(f"\n{text}")["input_ids"]
        candidates = [tokenize(text)["input_ids"]]
        if after_line_break[: len(line_break)] == line_break:
            candidates.append(after_line_break[len(line_break) :])
        whole = self.tokenizer.decode(joint)
        return next((ids for ids in candidates if self.tokenizer.decode(prompt_ids + ids) == whole), candidates[0])

    def _as_text(self, text: str) -> list[int]:
        """The ids of a text that holds control tokens, which are text here; marks of thoughts stay what they are."""
        marks = [mark for pair in THOUGHTS for mark in pair]
        ids = []
        for part in filter(None, re.split(f"({'|'.join(map(re.escape, marks))})", text)):
            ids += self.tokenizer(part, add_special_tokens=False, split_special_tokens=part not in marks)["input_ids"]
        allowed = {self._special[mark] for mark in marks if mark in self._special}
        found = [
            name for name, token in self._special.items() if token in ids and token not in allowed and name in text
        ]
        if found:
            raise BadInput(
                f"The text holds the control token `{found[0]}`, which this tokenizer cannot write as text; remove it."
            )
        return ids
