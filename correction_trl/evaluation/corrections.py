"""How good a policy's responses are, and how much correction they need: on problems that it was not trained on."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, is_peft_model
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.utils import use_adapter

from ..data_utils import (
    NOT_FOR_THE_TEACHER,
    chat_template_kwargs,
    check_dataset,
    dataset_problem_ids,
    share_of_process,
)
from ..functions import call_teacher, call_value_function
from ..policy.completions import CompletionEncoder
from ..policy.generation import Sampler, policy_for_generation
from ..policy.log_probs import sequence_log_probs
from ..policy.rollout import Rollouts
from ..policy.tokenization import check_tokenizer, tokenize_prompt
from .evaluate import Evaluation
from .metrics import edit_ratio, is_rate, summarize


@torch.no_grad()
def evaluate_corrections(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    teacher: Any = None,
    value_function: Callable | None = None,
    max_completion_length: int = 256,
    temperature: float = 1.0,
    batch_size: int = 64,
    seed: int = 0,
    n_examples: int = 8,
    top_p: float = 1.0,
    top_k: int = 0,
    rollouts: Rollouts | None = None,
    missing_thoughts: str = "own",
    base_model: PreTrainedModel | None = None,
) -> Evaluation:
    """
    Evaluate a policy on held-out prompts.

    The keys: `acc@t1` (mean value of the greedy response) and `acc@t1/sampled` (of one sampled response), if a value
    function is given; and, over the *sampled* responses y ∼ π(·|x) and their corrections y', which is what correction
    optimization minimises in expectation, `correction_amount` (log π(y|x) − log π(y'|x), nats),
    `correction_edit_ratio` (Levenshtein distance of the texts over the longer length), `logps/response`,
    `logps/correction` (nats) and `corrections/unchanged`.

    Whether the text is still one is not seen by any of these. Three more keys of the sampled responses show it:
    `fluency` (mean log-probability per token under the policy before training, nats: it falls where the text leaves
    what the base would write), `distinct_2` (share of different ones among the pairs of neighbouring tokens; `None`
    below two tokens) and `length` (tokens).

    All processes of a distributed run share the work and get the same result.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy, unwrapped.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        dataset ([`~datasets.Dataset`]):
            Column `prompt`, and whatever the teacher and the value function need.
        teacher (`Callable` or object with a method `correct`, *optional*):
            Corrects the sampled responses. Without one, `logps/response` is the only key of the second group.
        value_function (`Callable`, *optional*):
            With TRL's `reward_funcs` signature.
        max_completion_length (`int`, *optional*, defaults to `256`):
            Most tokens of a response.
        temperature (`float`, *optional*, defaults to `1.0`):
            Of the sampled responses.
        batch_size (`int`, *optional*, defaults to `64`):
            Prompts per batch.
        seed (`int`, *optional*, defaults to `0`):
            Of the samples; the same seed draws with the same random numbers.
        n_examples (`int`, *optional*, defaults to `8`):
            How many examples to keep.
        top_p (`float`, *optional*, defaults to `1.0`), top_k (`int`, *optional*, defaults to `0`):
            Of the sampled responses: nucleus sampling, and the most likely tokens to sample from (0: all).
        rollouts ([`~policy.rollout.Rollouts`], *optional*):
            How responses are sampled; by default the fastest way that the model and the device allow.
        missing_thoughts (`str`, *optional*, defaults to `"own"`):
            As in [`CorrectionOptimizationConfig`]. A correction that cannot be completed counts as missing.
        base_model ([`~transformers.PreTrainedModel`], *optional*):
            The policy before training, for `fluency`; not needed for an adapter, which is switched off. Without either
            there is no `fluency`.

    Returns:
        [`Evaluation`].

    Raises:
        BadInput: If the dataset, the teacher or the value function is at fault; the message names the row.
    """
    check_dataset(dataset, "the evaluation dataset", teacher or value_function)
    conversational = not isinstance(dataset[0]["prompt"], str)
    check_tokenizer(tokenizer, conversational)
    rollouts = rollouts or Rollouts()
    greedy = Sampler(model, tokenizer, max_completion_length, temperature=0, engine=rollouts)
    sampled = Sampler(model, tokenizer, max_completion_length, temperature, top_p, top_k, seed=seed, engine=rollouts)
    encode = CompletionEncoder(tokenizer, sampled.stop_ids, missing_thoughts)

    records = []
    rows = share_of_process(range(len(dataset)))
    for start in range(0, len(rows), batch_size):
        batch = dataset[rows[start : start + batch_size]]
        prompts = batch["prompt"]
        columns = {key: values for key, values in batch.items() if key not in NOT_FOR_THE_TEACHER}
        template_kwargs = [
            chat_template_kwargs(dict(zip(batch, values, strict=True))) for values in zip(*batch.values(), strict=True)
        ]
        rendered = [
            tokenize_prompt(tokenizer, prompt, **kwargs)
            for prompt, kwargs in zip(prompts, template_kwargs, strict=True)
        ]
        prompt_ids = [ids for _, ids in rendered]
        n_problems = len(prompts)
        accuracy = sampled_accuracy = [None] * n_problems
        if value_function is not None:
            accuracy = call_value_function(value_function, prompts, greedy(prompt_ids).texts, columns)
        found = sampled(prompt_ids, [(row, 0) for row in rows[start : start + batch_size]])
        response_ids, responses = found.ids, found.texts
        if value_function is not None:
            sampled_accuracy = call_value_function(value_function, prompts, responses, columns)
        corrections = [None] * n_problems
        if teacher is not None:
            corrections = call_teacher(teacher, prompts, responses, columns)
        correction_ids, corrections = encode.corrections(
            prompts, rendered, template_kwargs, response_ids, responses, corrections
        )
        with policy_for_generation(model):
            logps = sequence_log_probs(model, prompt_ids * 2, response_ids + correction_ids, tokenizer.pad_token_id)
        with _before_training(model, base_model) as base:
            base_logps = [None] * n_problems
            if base is not None:
                base_logps = sequence_log_probs(base, prompt_ids, response_ids, tokenizer.pad_token_id)
        for i in range(n_problems):
            record = {
                "acc@t1": accuracy[i],
                "acc@t1/sampled": sampled_accuracy[i],
                **_needed_correction(responses[i], corrections[i], logps[i], logps[n_problems + i]),
                **_drift(response_ids[i], base_logps[i]),
            }
            texts = {"prompt": prompts[i], "response": responses[i], "correction": corrections[i]}
            records.append((record, texts))
    if PartialState().num_processes > 1:
        records = gather_object(records)

    has_base = base_model is not None or is_peft_model(model)
    without = ["acc@"] * (value_function is None) + ["correction"] * (teacher is None) + ["fluency"] * (not has_base)
    names = [name for name in records[0][0] if not any(part in name for part in without)]
    per_problem = {name: [record[name] for record, _ in records] for name in names}
    examples = [texts for _, texts in records if texts["correction"] not in (None, texts["response"])]
    return Evaluation(
        metrics={name: summarize(values, rate=is_rate(name)) for name, values in per_problem.items()},
        per_problem=per_problem,
        examples=examples[:n_examples],
        problems=dataset_problem_ids(dataset),
    )


def _needed_correction(
    response: str, correction: str | None, response_logp: float, correction_logp: float
) -> dict[str, float | None]:
    """How much correction a response needs; without a correction nobody knows."""
    missing = correction is None
    return {
        "correction_amount": None if missing else response_logp - correction_logp,
        "correction_edit_ratio": None if missing else edit_ratio(response, correction),
        "logps/response": response_logp,
        "logps/correction": None if missing else correction_logp,
        "corrections/unchanged": None if missing else float(correction == response),
    }


@contextlib.contextmanager
def _before_training(model: PreTrainedModel, base_model: PreTrainedModel | None):
    """The policy before training, if there is one at hand."""
    if base_model is not None:
        with policy_for_generation(base_model):
            yield base_model
    elif is_peft_model(model):
        with policy_for_generation(model), use_adapter(model, "ref" if "ref" in model.peft_config else None):
            yield model
    else:
        yield None


def _drift(response_ids: list[int], base_logp: float | None) -> dict[str, float | None]:
    """What shows that a text has been ruined, or that it has become another."""
    pairs = list(zip(response_ids, response_ids[1:], strict=False))
    return {
        "fluency": None if base_logp is None else base_logp / len(response_ids),
        "distinct_2": len(set(pairs)) / len(pairs) if pairs else None,
        "length": float(len(response_ids)),
    }
