"""How much a corrector improves a generator's responses, on problems that it was not trained on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data_utils import NOT_FOR_THE_TEACHER, check_dataset, share_of_process
from ..inference.iterative import correct_iteratively
from ..inference.strategy import Trace
from ..policy.generation import Sampler
from ..policy.rollout import Rollouts
from ..policy.tokenization import check_tokenizer, tokenize_prompt
from .evaluate import Evaluation, evaluate_traces


def evaluate_corrector(
    corrector: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    generator: PreTrainedModel,
    generator_tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    value_function: Callable,
    feedback_function: Callable | None = None,
    max_corrections: int = 3,
    oracle: bool = False,
    temperature: float = 0.0,
    message_template: str | Path | None = None,
    max_completion_length: int = 256,
    batch_size: int = 64,
    seed: int = 0,
    n_examples: int = 8,
    correct_threshold: float = 1.0,
    chat_template_kwargs: dict[str, Any] | None = None,
    top_p: float = 1.0,
    top_k: int = 0,
    rollouts: Rollouts | None = None,
) -> Evaluation:
    """
    The generator answers, and the corrector corrects that up to `max_corrections` times.

    The keys are those of [`~correction_trl.evaluation.evaluate_traces`]: `acc@t1` is the generator alone,
    `acc@t2` after one correction, and so on. All processes of a distributed run share the work and get the
    same result.

    Args:
        corrector ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The corrector, unwrapped.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        generator ([`~transformers.PreTrainedModel`]):
            Answers first; may be the corrector itself, or a model that it was not trained with.
        generator_tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        dataset ([`~datasets.Dataset`]):
            Column `prompt`, and whatever the functions need.
        value_function (`Callable`):
            With TRL's `reward_funcs` signature.
        feedback_function (`Callable`, *optional*):
            f, for a corrector that was trained with it.
        max_corrections (`int`, *optional*, defaults to `3`):
            Most corrections of a response; `0`: the generator alone.
        oracle (`bool`, *optional*, defaults to `False`):
            Whether the value function stops the correction of right responses. That uses the gold answer at test time:
            mark such results.
        temperature (`float`, *optional*, defaults to `0.0`):
            Of the first responses; 0 is greedy decoding. Corrections are greedy.
        message_template (`str` or `Path`, *optional*):
            See [`~correction_trl.inference.correct_iteratively`].
        max_completion_length (`int`, *optional*, defaults to `256`):
            Most tokens of a response and of a correction.
        batch_size (`int`, *optional*, defaults to `64`):
            Problems per batch.
        seed (`int`, *optional*, defaults to `0`):
            Of the samples.
        n_examples (`int`, *optional*, defaults to `8`):
            How many examples to keep.
        correct_threshold (`float`, *optional*, defaults to `1.0`):
            A response is right if its value is at least this.
        chat_template_kwargs (`dict`, *optional*):
            Passed to the chat templates.
        top_p (`float`, *optional*, defaults to `1.0`), top_k (`int`, *optional*, defaults to `0`):
            Of the first responses, where they are sampled.
        rollouts ([`~policy.rollout.Rollouts`], *optional*):
            How the corrector is sampled, and with the same settings the generator; by default the fastest way that the
            models and the device allow.

    Returns:
        [`~correction_trl.evaluation.Evaluation`].

    Raises:
        BadInput: If the dataset or one of the functions is at fault.
    """
    check_dataset(dataset, "the evaluation dataset", value_function)
    check_tokenizer(generator_tokenizer, not isinstance(dataset[0]["prompt"], str))
    rollouts = rollouts or Rollouts()
    engine = rollouts if generator is corrector else Rollouts(rollouts.rollout, rollouts.weights)
    sampler = Sampler(
        generator, generator_tokenizer, max_completion_length, temperature, top_p, top_k, seed=seed, engine=engine
    )
    kwargs = chat_template_kwargs or {}
    traces: dict[tuple[int, int], Trace] = {}
    rows = share_of_process(range(len(dataset)))
    for start in range(0, len(rows), batch_size):
        numbers = rows[start : start + batch_size]
        batch = dataset[numbers]
        prompt_ids = [tokenize_prompt(generator_tokenizer, prompt, **kwargs)[1] for prompt in batch["prompt"]]
        responses = sampler(prompt_ids, [(row, 0) for row in numbers]).texts
        corrected = correct_iteratively(
            corrector,
            tokenizer,
            batch["prompt"],
            responses,
            {key: values for key, values in batch.items() if key not in NOT_FOR_THE_TEACHER},
            max_corrections=max_corrections,
            feedback_function=feedback_function,
            value_function=value_function if oracle else None,
            correct_threshold=correct_threshold,
            message_template=message_template,
            max_completion_length=max_completion_length,
            batch_size=batch_size,
            chat_template_kwargs=chat_template_kwargs,
            rollouts=rollouts,
        )
        for row, trace in zip(numbers, corrected, strict=True):
            # What is not corrected any further stays as it is, so that every evaluation has the same keys
            n_left = max_corrections + 1 - len(trace.responses)
            trace.responses += trace.responses[-1:] * n_left
            trace.tokens += [0] * n_left
            traces[row, 0] = trace
    return evaluate_traces(dataset, traces, value_function, n_examples=n_examples, correct_threshold=correct_threshold)
