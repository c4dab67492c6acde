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
from ..policy.corrector_prompt import CorrectorPrompt
from ..policy.generation import Sampler
from ..policy.tokenization import (
    check_tokenizer,
    encode_completion,
    end_of_turn_token_id,
    tokenize_prompt,
)
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
        model, tokenizer, max_completion_length, temperature, top_p, top_k, batch_size=batch_size, seed=seed
    )
    stop_ids = sampler.stop_ids
    end_of_turn = end_of_turn_token_id(tokenizer, stop_ids, conversational)
    corrector_prompt = CorrectorPrompt(tokenizer, stop_ids, conversational, message_template, chat_template_kwargs)
    max_length = max_length or getattr(model.config.get_text_config(), "max_position_embeddings", None)

    prompt_ids, response_ids, traces = [], [], []
    for prompt, response in zip(prompts, responses, strict=True):
        text, ids = tokenize_prompt(tokenizer, prompt, **(chat_template_kwargs or {}))
        prompt_ids.append(ids)
        response_ids.append(encode_completion(tokenizer, prompt, text, ids, response, end_of_turn))
        traces.append(Trace(responses=[response], tokens=[len(response_ids[-1])], replies=1))

    def ask(call: Callable, function: Callable, rows: list[int], what: str) -> list:
        of_rows = {key: [column[i] for i in rows] for key, column in (columns or {}).items()}
        texts = [traces[i].responses[-1] for i in rows]
        found, problems = call(function, [prompts[i] for i in rows], texts, of_rows)
        if problems:
            warnings.warn(f"{len(problems)} of {len(rows)} responses got no {what}: {problems[0]}", stacklevel=3)
        return found

    for correction in range(max_corrections):
        open_rows = [i for i, trace in enumerate(traces) if not trace.stop]
        if value_function is not None:
            for i, value in zip(open_rows, ask(try_value_function, value_function, open_rows, "value"), strict=True):
                if value is not None and value >= correct_threshold:
                    traces[i].stop = "good value"
            open_rows = [i for i in open_rows if not traces[i].stop]
        feedback = dict.fromkeys(open_rows)
        if feedback_function is not None:
            feedback = dict(
                zip(open_rows, ask(try_feedback_function, feedback_function, open_rows, "feedback"), strict=True)
            )
        inputs = {}
        for i in open_rows:
            inputs[i] = corrector_prompt(prompt_ids[i], response_ids[i], feedback[i])
            if stop_without_feedback and not feedback[i]:
                traces[i].stop = "no feedback"
            elif max_length is not None and len(inputs[i]) + max_completion_length > max_length:
                traces[i].stop = "too long"
        open_rows = [i for i in open_rows if not traces[i].stop]
        if not open_rows:
            break
        drawn_as = [(names[i], correction) for i in open_rows]
        found = sampler([inputs[i] for i in open_rows], drawn_as)
        for i, ids, text, cut_off in zip(open_rows, found.ids, found.texts, found.cut_off, strict=True):
            trace = traces[i]
            said = [("assistant", trace.responses[-1]), ("user", corrector_prompt.message(feedback[i]))]
            before = [{"role": "user", "content": prompts[i]}] if isinstance(prompts[i], str) else list(prompts[i])
            trace.conversations.append(
                [*before, *({"role": role, "content": content} for role, content in [*said, ("assistant", text)])]
            )
            if stop_when_unchanged and text == trace.responses[-1]:
                trace.stop = "unchanged"
            trace.responses.append(text)
            trace.tokens.append(len(ids))
            trace.replies += 1
            trace.cut_off += cut_off
            response_ids[i] = ids
    for trace in traces:
        trace.stop = trace.stop or "max corrections"
    return traces
