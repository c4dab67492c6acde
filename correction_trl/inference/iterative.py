"""Iterative correction with a trained corrector: y_t is drawn from p(. | y_{t-1}, x, f(y_{t-1})), up to T times.

From [Self-Correct](https://huggingface.co/papers/2211.00053). The first response may come from any model: only its
text is needed.
"""

import warnings
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import BadInput
from ..functions import Prompt, try_feedback_function, try_value_function
from ..policy.completions import CompletionEncoder
from ..policy.corrector_prompt import CorrectorPrompt
from ..policy.generation import Sampler
from ..policy.rollout import Rollouts
from ..policy.tokenization import check_tokenizer, tokenize_prompt
from .strategy import Trace


def correct_iteratively(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    columns: dict[str, list] | None = None,
    max_corrections: int = 3,
    feedback_function: Callable | None = None,
    stop_without_feedback: bool = False,
    value_function: Callable | None = None,
    correct_threshold: float = 1.0,
    stop_when_unchanged: bool = True,
    message_template: str | Path | None = None,
    max_completion_length: int = 256,
    max_length: int | None = None,
    temperature: float = 0.0,
    batch_size: int = 64,
    seed: int = 0,
    chat_template_kwargs: dict[str, Any] | None = None,
    top_p: float = 1.0,
    top_k: int = 0,
    names: Sequence[Hashable] | None = None,
    rollouts: Rollouts | None = None,
) -> list[Trace]:
    """
    Correct responses again and again.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The corrector, unwrapped.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompts (`Sequence[str | list[dict]]`):
            The prompts, all plain or all conversational.
        responses (`Sequence[str]`):
            One response to each.
        columns (`dict[str, list]`, *optional*):
            Further columns, for the feedback function and the value function.
        max_corrections (`int`, *optional*, defaults to `3`):
            T: most corrections of a response.
        feedback_function (`Callable`, *optional*):
            f, for a corrector that was trained with it.
        stop_without_feedback (`bool`, *optional*, defaults to `False`):
            Whether a response without feedback (empty, or `None`) is left as it is.
        value_function (`Callable`, *optional*):
            v, to stop at a response that is good enough. A value function that knows the gold answer makes this an
            oracle: mark its results as such.
        correct_threshold (`float`, *optional*, defaults to `1.0`):
            Value from which a response is good enough.
        stop_when_unchanged (`bool`, *optional*, defaults to `True`):
            Whether to stop where the corrector repeats the response. Under greedy decoding nothing would change any
            more.
        message_template (`str` or `Path`, *optional*):
            File with the instruction, or the folder of a trained corrector, which has it. By default the package's.
        max_completion_length (`int`, *optional*, defaults to `256`):
            Most tokens of a correction.
        max_length (`int`, *optional*):
            Most tokens of the whole conversation; by default what the model's configuration allows.
        temperature (`float`, *optional*, defaults to `0.0`):
            Sampling temperature; `0`: greedy.
        batch_size (`int`, *optional*, defaults to `64`):
            Responses per batch.
        seed (`int`, *optional*, defaults to `0`):
            Of the samples.
        chat_template_kwargs (`dict`, *optional*):
            Passed to the chat template.
        top_p (`float`, *optional*, defaults to `1.0`), top_k (`int`, *optional*, defaults to `0`):
            Where corrections are sampled: nucleus sampling, and the most likely tokens to sample from (0: all).
        names (`Sequence`, *optional*):
            What the responses are called; where corrections are sampled, a response draws the same random numbers
            under the same name. By default their places.
        rollouts ([`~policy.rollout.Rollouts`], *optional*):
            How responses are sampled; by default the fastest way that the model and the device allow.

    Returns:
        `list[Trace]`: One per response, in their order. `responses` are y_0, y_1, ...; `conversations` what the
        corrector read and wrote for each; `stop` is `"max corrections"`, `"good value"`, `"no feedback"`,
        `"unchanged"`, or `"too long"` (prompt, response and feedback leave no room for a correction).

    Raises:
        BadInput: If the tokenizer, the template or one of the functions cannot be used.

    Example:

    ```python
    traces = correct_iteratively(model, tokenizer, ["2 + 2 ="], ["5"], max_corrections=2)
    print(traces[0].responses, traces[0].stop)  # ["5", "4", "4"] unchanged
    ```
    """
    if not len(prompts):
        return []
    if max_corrections < 0:
        raise BadInput(f"`max_corrections={max_corrections}` must not be negative.")
    if stop_without_feedback and feedback_function is None:
        raise BadInput("`stop_without_feedback` needs a `feedback_function`.")
    names = range(len(prompts)) if names is None else names
    conversational = not isinstance(prompts[0], str)
    check_tokenizer(tokenizer, conversational)
    sampler = Sampler(
        model,
        tokenizer,
        max_completion_length,
        temperature,
        top_p,
        top_k,
        batch_size=batch_size,
        seed=seed,
        engine=rollouts or Rollouts(),
    )
    stop_ids = sampler.stop_ids
    corrector_prompt = CorrectorPrompt(tokenizer, stop_ids, conversational, message_template, chat_template_kwargs)
    max_length = max_length or getattr(model.config.get_text_config(), "max_position_embeddings", None)

    batch = _Batch(tokenizer, stop_ids, prompts, responses, columns, chat_template_kwargs)

    for correction in range(max_corrections):
        if value_function is not None:
            values = batch.ask(try_value_function, value_function, "value")
            batch.stop([value is not None and value >= correct_threshold for value in values], "good value")
        feedback = dict.fromkeys(batch.open)
        if feedback_function is not None:
            texts = batch.ask(try_feedback_function, feedback_function, "feedback")
            feedback = dict(zip(batch.open, texts, strict=True))
            if stop_without_feedback:
                batch.stop([not text for text in texts], "no feedback")
        inputs = {i: corrector_prompt(batch.prompt_ids[i], batch.response_ids[i], feedback[i]) for i in batch.open}
        if max_length is not None:
            room = max_length - max_completion_length
            batch.stop([len(ids) > room for ids in inputs.values()], "too long")
        rows = batch.open
        if not rows:
            break
        found = sampler([inputs[i] for i in rows], [(names[i], correction) for i in rows])
        if stop_when_unchanged:
            last = [batch.traces[i].responses[-1] for i in rows]
            batch.stop([text == before for text, before in zip(found.texts, last, strict=True)], "unchanged")
        for i, ids, text, cut_off in zip(rows, found.ids, found.texts, found.cut_off, strict=True):
            batch.add(i, corrector_prompt.message(feedback[i]), ids, text, cut_off)
    batch.stop([True] * len(batch.open), "max corrections")
    return batch.traces


class _Batch:
    """Responses that are corrected again and again, and what became of them."""

    def __init__(self, tokenizer, stop_ids, prompts, responses, columns, chat_template_kwargs):
        encode = CompletionEncoder(tokenizer, stop_ids, missing_thoughts="empty")
        self.prompts, self.columns = prompts, columns or {}
        self.prompt_ids: list[list[int]] = []
        self.response_ids: list[list[int]] = []  # of the last responses
        self.traces: list[Trace] = []
        for prompt, response in zip(prompts, responses, strict=True):
            text, ids = tokenize_prompt(tokenizer, prompt, **(chat_template_kwargs or {}))
            self.prompt_ids.append(ids)
            self.response_ids.append(encode(prompt, text, ids, response, chat_template_kwargs))
            self.traces.append(Trace(responses=[response], tokens=[len(self.response_ids[-1])], replies=1))

    @property
    def open(self) -> list[int]:
        """Rows that are corrected further."""
        return [i for i, trace in enumerate(self.traces) if not trace.stop]

    def ask(self, call: Callable, function: Callable, what: str) -> list:
        """What a function of the user says about the last responses of the open rows; `None` where it fails."""
        rows = self.open
        of_rows = {key: [column[i] for i in rows] for key, column in self.columns.items()}
        texts = [self.traces[i].responses[-1] for i in rows]
        found, problems = call(function, [self.prompts[i] for i in rows], texts, of_rows)
        if problems:
            warnings.warn(f"{len(problems)} of {len(rows)} responses got no {what}: {problems[0]}", stacklevel=3)
        return found

    def stop(self, where: list[bool], reason: str) -> None:
        """Close those of the open rows where this is true."""
        for i, stops in zip(self.open, where, strict=True):
            if stops:
                self.traces[i].stop = reason

    def add(self, i: int, message: str, ids: list[int], text: str, cut_off: bool) -> None:
        """A correction, and what was said for it."""
        prompt, trace = self.prompts[i], self.traces[i]
        before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        said = [("assistant", trace.responses[-1]), ("user", message), ("assistant", text)]
        trace.conversations.append([*before, *({"role": role, "content": content} for role, content in said)])
        trace.responses.append(text)
        trace.tokens.append(len(ids))
        trace.replies += 1
        trace.cut_off += cut_off
        self.response_ids[i] = ids
