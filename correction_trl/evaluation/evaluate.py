"""How good a policy's responses are, how much correction they need, and whether a second attempt is better than the
first: measured on problems it was not trained on."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.utils import pad, selective_log_softmax

from ..data_utils import check_dataset
from ..errors import BadInput
from ..functions import Prompt, call_teacher, call_value_function
from ..inference.answers import whole_text
from ..inference.strategy import Trace
from ..policy.attempts import FollowUp, sample_attempts
from ..policy.generation import generate_completions, sampling_config
from ..policy.tokenization import (
    NOT_FOR_THE_TEACHER,
    chat_template_kwargs,
    check_tokenizer,
    decode,
    encode_completion,
    end_of_turn_token_id,
    stop_token_ids,
    tokenize_prompt,
)
from .metrics import attempt_metrics, edit_distance_ratio, edit_ratio, summarize


logger = logging.getLogger(__name__)


@dataclass
class Evaluation:
    """
    What an evaluation found.

    Attributes:
        metrics (`dict[str, dict]`):
            Per metric its mean over problems, 95 % bootstrap interval and number of problems: `{"mean", "low", "high",
            "n"}`.
        per_problem (`dict[str, list[float | None]]`):
            The same metrics per problem, in the order of the dataset; `None` where a problem could not be judged.
        examples (`list[dict]`):
            `prompt`, `response` and `correction` of some problems whose response needed one; of attempts, the first
            and the last, and all of them as `attempts` with their `right`.
        counts (`dict[str, int]`):
            Of attempts: how many `responses` there were, and how many of them were `unparsable` (counted as wrong) or
            `unjudged` (left out); how many replies were `truncated`; how many problems' samples are `missing` (left
            out); and how often a strategy stopped for which reason.
        right (`list[list[list[float | None]]]`):
            Of attempts: whether each is right, by problem, sample and attempt.
    """

    metrics: dict[str, dict[str, float]]
    per_problem: dict[str, list[float | None]]
    examples: list[dict[str, Any]]
    counts: dict[str, int] = field(default_factory=dict)
    right: list[list[list[float | None]]] = field(default_factory=list)


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
) -> Evaluation:
    """
    Evaluate a policy on held-out prompts.

    The keys: `acc@t1` (mean value of the greedy response) and `acc@t1/sampled` (of one sampled response), if a value
    function is given; and, over the *sampled* responses y ∼ π(·|x) and their corrections y', which is what correction
    optimization minimises in expectation, `correction_amount` (log π(y|x) − log π(y'|x), nats),
    `correction_edit_ratio` (Levenshtein distance of the texts over the longer length), `logps/response`,
    `logps/correction` (nats) and `corrections/unchanged`.

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

    Returns:
        [`Evaluation`].

    Raises:
        BadInput: If the dataset, the teacher or the value function is at fault; the message names the row.
    """
    check_dataset(dataset, "the evaluation dataset", teacher or value_function)
    conversational = not isinstance(dataset[0]["prompt"], str)
    check_tokenizer(tokenizer, conversational)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    stop_ids = stop_token_ids(tokenizer, model.generation_config)
    end_of_turn = end_of_turn_token_id(tokenizer, stop_ids, conversational)
    greedy = sampling_config(tokenizer, stop_ids, max_completion_length, temperature=0)
    sampled = sampling_config(tokenizer, stop_ids, max_completion_length, temperature)

    was_training = model.training
    model.eval()
    state = PartialState()
    records = []
    with state.split_between_processes(list(range(len(dataset)))) as rows:
        for start in range(0, len(rows), batch_size):
            batch = dataset[rows[start] : rows[min(start + batch_size, len(rows)) - 1] + 1]
            prompts = batch["prompt"]
            columns = {key: values for key, values in batch.items() if key not in NOT_FOR_THE_TEACHER}
            rendered = [
                tokenize_prompt(tokenizer, row["prompt"], **chat_template_kwargs(row))
                for row in (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))
            ]
            prompt_ids = [ids for _, ids in rendered]
            n_problems = len(prompts)
            accuracy = sampled_accuracy = [None] * n_problems
            if value_function is not None:
                greedy_texts = decode(tokenizer, generate_completions(model, prompt_ids, greedy))
                accuracy = call_value_function(value_function, prompts, greedy_texts, columns)
            with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
                torch.manual_seed(seed + rows[start])
                response_ids = generate_completions(model, prompt_ids, sampled)
            responses = decode(tokenizer, response_ids)
            if value_function is not None:
                sampled_accuracy = call_value_function(value_function, prompts, responses, columns)
            corrections = [None] * n_problems
            if teacher is not None:
                corrections = call_teacher(teacher, prompts, responses, columns)
            correction_ids = [
                response_ids[i]
                if corrections[i] in (None, responses[i])
                else encode_completion(tokenizer, prompts[i], *rendered[i], corrections[i], end_of_turn)
                for i in range(n_problems)
            ]
            logps = sequence_log_probs(model, prompt_ids * 2, response_ids + correction_ids, tokenizer.pad_token_id)
            for i in range(n_problems):
                record = {
                    "acc@t1": accuracy[i],
                    "acc@t1/sampled": sampled_accuracy[i],
                    "correction_amount": logps[i] - logps[n_problems + i],
                    "correction_edit_ratio": None,
                    "logps/response": logps[i],
                    "logps/correction": logps[n_problems + i],
                    "corrections/unchanged": float(corrections[i] == responses[i]),
                }
                if corrections[i] is None:
                    record.update(dict.fromkeys(("correction_amount", "logps/correction", "corrections/unchanged")))
                else:
                    record["correction_edit_ratio"] = edit_ratio(responses[i], corrections[i])
                texts = {"prompt": prompts[i], "response": responses[i], "correction": corrections[i]}
                records.append((record, texts))
    model.train(was_training)
    if state.num_processes > 1:
        records = gather_object(records)

    names = [name for name in records[0][0] if value_function is not None or not name.startswith("acc@")]
    if teacher is None:
        names = [name for name in names if "correction" not in name]
    per_problem = {name: [record[name] for record, _ in records] for name in names}
    examples = [texts for _, texts in records if texts["correction"] not in (None, texts["response"])]
    return Evaluation(
        metrics={name: summarize(values) for name, values in per_problem.items()},
        per_problem=per_problem,
        examples=examples[:n_examples],
    )


def evaluate_attempts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    value_function: Callable,
    instruction: str,
    n_turns: int = 2,
    temperature: float = 0.0,
    samples: int = 1,
    max_completion_length: int = 256,
    batch_size: int = 64,
    seed: int = 0,
    n_examples: int = 8,
    threshold: float = 1.0,
    extract_answer: Callable[[str], str | None] = whole_text,
    template_kwargs: dict[str, Any] | None = None,
) -> Evaluation:
    """
    Evaluate a policy that is asked to correct itself: the problem, its attempt, the instruction, its next attempt, and
    so on in one conversation. Nothing tells it whether an attempt was right.

    The keys are those of [`evaluate_traces`]: `acc@t1`, `acc@t2`, `delta(t1,t2)`, `delta(i->c)`, `delta(c->i)`, ... as
    fractions of all problems.

    All processes of a distributed run share the work and get the same result.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy, unwrapped.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        dataset ([`~datasets.Dataset`]):
            Column `prompt`, and whatever the value function needs.
        value_function (`Callable`):
            With TRL's `reward_funcs` signature. It judges each attempt alone.
        instruction (`str`):
            What the user says after each attempt but the last.
        n_turns (`int`, *optional*, defaults to `2`):
            Attempts per problem.
        temperature (`float`, *optional*, defaults to `0.0`):
            Of all attempts; 0 is greedy decoding.
        samples (`int`, *optional*, defaults to `1`):
            Independent conversations per problem; a problem's metrics are means over them.
        max_completion_length (`int`, *optional*, defaults to `256`):
            Most tokens of an attempt.
        batch_size (`int`, *optional*, defaults to `64`):
            Conversations per batch.
        seed (`int`, *optional*, defaults to `0`):
            Of the samples.
        n_examples (`int`, *optional*, defaults to `8`):
            How many examples to keep; those whose verdict changed first.
        threshold (`float`, *optional*, defaults to `1.0`):
            A response is right if its value is at least this.
        extract_answer (`Callable`, *optional*):
            From the text of a response to its answer, `None` if there is none to be found (see
            `inference/answers.py`). By default the whole text is the answer, and an empty one is none.
        template_kwargs (`dict`, *optional*):
            Arguments of the chat template for all rows; a row's own come first.

    Returns:
        [`Evaluation`].

    Raises:
        BadInput: If the dataset, the chat template or the value function is at fault.

    Example:

    ```python
    instruction = "There might be an error in the answer above. Please correct it."
    evaluation = evaluate_attempts(model, tokenizer, dataset, exact_match, instruction, max_completion_length=16)
    print(evaluation.metrics["acc@t1"], evaluation.metrics["delta(i->c)"])
    ```
    """
    check_dataset(dataset, "the evaluation dataset", value_function)
    if samples > 1 and temperature == 0:
        raise BadInput(f"`samples={samples}` greedy samples are all the same; set a `temperature`, or one sample.")
    conversational = not isinstance(dataset[0]["prompt"], str)
    check_tokenizer(tokenizer, conversational)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    stop_ids = stop_token_ids(tokenizer, model.generation_config)
    config = sampling_config(tokenizer, stop_ids, max_completion_length, temperature)
    follow_ups: dict[str, FollowUp] = {}
    was_training = model.training
    model.eval()
    records = []
    with PartialState().split_between_processes(list(range(len(dataset)))) as rows:
        prompts = {}
        for row in rows:
            kwargs = {**(template_kwargs or {}), **chat_template_kwargs(dataset[row])}
            key = json.dumps(kwargs, sort_keys=True)
            if key not in follow_ups:
                follow_ups[key] = FollowUp(tokenizer, stop_ids, conversational, kwargs)
            prompts[row] = tokenize_prompt(tokenizer, dataset[row]["prompt"], **kwargs)[1], follow_ups[key]
        # By length, so that little is padded
        conversations = sorted(
            ((row, sample) for row in rows for sample in range(samples)), key=lambda c: len(prompts[c[0]][0])
        )
        for start in range(0, len(conversations), batch_size):
            batch = conversations[start : start + batch_size]

            def next_turn(turn, attempt_ids, batch=batch):
                return [prompts[row][1](ids, instruction) for (row, _), ids in zip(batch, attempt_ids, strict=True)]

            with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
                torch.manual_seed(seed + len(dataset) * PartialState().process_index + start)
                turns, _ = sample_attempts(model, [prompts[row][0] for row, _ in batch], next_turn, n_turns, config)
            texts = [decode(tokenizer, attempts) for attempts in turns]
            traces = {
                key: Trace(
                    responses=[attempts[i] for attempts in texts],
                    tokens=[len(attempts[i]) for attempts in turns],
                    replies=n_turns,
                    cut_off=sum(attempts[i][-1] not in stop_ids for attempts in turns),
                )
                for i, key in enumerate(batch)
            }
            records += _judge(dataset, traces, value_function, extract_answer, threshold)
    model.train(was_training)
    return _summarize(dataset, records, n_examples, n_turns)


def evaluate_traces(
    dataset: Dataset,
    traces: Mapping[tuple[int, int], Trace],
    value_function: Callable,
    n_examples: int = 8,
    threshold: float = 1.0,
    extract_answer: Callable[[str], str | None] = whole_text,
    n_turns: int = 1,
) -> Evaluation:
    """
    Judge what a strategy of [`inference`] did.

    The keys, as fractions of all problems: `acc@t1`, ..., `acc@tk` (the response after each attempt is right; a
    strategy that stopped early keeps its last one), `delta(t1,t2)`, `delta(i->c)`, `delta(c->i)`, `fix_rate` and the
    same with `@t3`, ... for later attempts (see [`~metrics.attempt_metrics`]); `edit_distance_ratio` and
    `answer_changed` between the first response and the second (a warning of collapse if they go to 0); `tokens@t1`,
    ..., `tokens` (generated for each attempt, and in all); `responses/unparsable`, `responses/truncated`,
    `responses/unjudged`.

    A response without an answer that can be parsed is wrong, whatever its value. A response that the value function
    cannot judge (`None`) is neither right nor wrong: its sample is left out of the accuracies and of what follows from
    them, and is counted.

    All processes of a distributed run judge their own traces and get the same result.

    Args:
        dataset ([`~datasets.Dataset`]):
            Column `prompt`, and whatever the value function needs.
        traces (`dict[tuple[int, int], Trace]`):
            This process's traces by row and sample. Problems of no process's traces are not judged.
        value_function, n_examples, threshold, extract_answer:
            See [`evaluate_attempts`].
        n_turns (`int`, *optional*, defaults to `1`):
            Report at least so many attempts, also where no trace has as many.

    Returns:
        [`Evaluation`].

    Raises:
        BadInput: If the value function is at fault.
    """
    records = _judge(dataset, traces, value_function, extract_answer, threshold)
    return _summarize(dataset, records, n_examples, n_turns)


def _judge(
    dataset: Dataset,
    traces: Mapping[tuple[int, int], Trace],
    value_function: Callable,
    extract_answer: Callable[[str], str | None],
    threshold: float,
) -> list[dict[str, Any]]:
    """Per trace whether its responses are right. A problem's equal responses are judged once."""
    if not traces:
        return []
    distinct = list(dict.fromkeys((row, text) for (row, _), trace in traces.items() for text in trace.responses))
    rows = [row for row, _ in distinct]
    batch = dataset[rows]
    columns = {key: values for key, values in batch.items() if key not in NOT_FOR_THE_TEACHER}
    values = call_value_function(value_function, batch["prompt"], [text for _, text in distinct], columns)
    answers = {text: extract_answer(text) for _, text in distinct}
    right = {}
    for (row, text), value in zip(distinct, values, strict=True):
        verdict = None if value is None else float(value >= threshold)
        right[row, text] = 0.0 if answers[text] is None else verdict
    return [
        {
            "key": (row, sample),
            "trace": trace,
            "right": [right[row, text] for text in trace.responses],
            "answers": [answers[text] for text in trace.responses],
        }
        for (row, sample), trace in traces.items()
    ]


def _summarize(dataset: Dataset, records: list[dict[str, Any]], n_examples: int, n_turns: int) -> Evaluation:
    """Puts together what all processes found."""
    if PartialState().num_processes > 1:
        records = gather_object(records)
    if not records:
        raise BadInput("There is nothing to evaluate: no problem has a response.")
    by_key = {record["key"]: record for record in records}
    n_turns = max(n_turns, *(len(record["right"]) for record in records))
    n_samples = 1 + max(sample for _, sample in by_key)

    def filled(values: list, length: int = n_turns) -> list:
        """A strategy that stopped early keeps its last response."""
        return values + values[-1:] * (length - len(values))

    right, measured = [], {}
    for row in range(len(dataset)):
        samples = [by_key.get((row, sample)) for sample in range(n_samples)]
        right.append([filled(record["right"]) if record else [None] * n_turns for record in samples])
        values = [_measure(record, n_turns, filled) for record in samples if record]
        for name in _measure(records[0], n_turns, filled):
            column = [value[name] for value in values]
            measured.setdefault(name, []).append(sum(column) / len(column) if column else None)
    metrics, per_problem = attempt_metrics(right)
    metrics |= {name: summarize(values) for name, values in measured.items()}
    counts = {
        "responses": sum(len(record["right"]) for record in records),
        "unparsable": sum(answer is None for record in records for answer in record["answers"]),
        "unjudged": sum(verdict is None for record in records for verdict in record["right"]),
        "truncated": sum(record["trace"].cut_off for record in records),
    }
    if counts["unparsable"] or counts["unjudged"]:
        logger.warning(
            "Of %d responses, %d hold no answer that can be parsed (counted as wrong); %d were not judged (left out).",
            counts["responses"], counts["unparsable"], counts["unjudged"],
        )  # fmt: skip
    counts["missing"] = len(dataset) * n_samples - len(by_key)
    stops = Counter(record["trace"].stop for record in records if record["trace"].stop)
    changed = sorted(by_key, key=lambda key: (len(set(by_key[key]["right"])) == 1, key))
    return Evaluation(
        metrics=metrics,
        per_problem=per_problem | measured,
        examples=[_example(dataset[row]["prompt"], by_key[row, sample]) for row, sample in changed[:n_examples]],
        counts=counts | {f"stop: {reason}": count for reason, count in sorted(stops.items())},
        right=right,
    )


def _measure(record: dict[str, Any], n_turns: int, filled: Callable) -> dict[str, float]:
    """What is measured on one trace beside right and wrong."""
    trace = record["trace"]
    responses, answers = filled(trace.responses), filled(record["answers"])
    tokens = trace.tokens + [0] * (n_turns - len(trace.tokens))
    measured = {}
    if n_turns > 1:
        measured["edit_distance_ratio"] = edit_distance_ratio(responses[0], responses[1])
        measured["answer_changed"] = float(answers[0] != answers[1])
    measured |= {f"tokens@t{t}": float(count) for t, count in enumerate(tokens, start=1)}
    measured["tokens"] = float(sum(tokens))
    n_responses = len(record["right"])
    measured["responses/unparsable"] = sum(answer is None for answer in record["answers"]) / n_responses
    measured["responses/truncated"] = trace.cut_off / trace.replies
    measured["responses/unjudged"] = sum(verdict is None for verdict in record["right"]) / n_responses
    return measured


def _example(prompt: Prompt, record: dict[str, Any]) -> dict[str, Any]:
    responses = record["trace"].responses
    return {
        "prompt": prompt,
        "response": responses[0],
        "correction": responses[-1] if len(responses) > 1 else None,
        "attempts": responses,
        "right": record["right"],
    }


@torch.no_grad()
def sequence_log_probs(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    pad_token_id: int,
) -> list[float]:
    """
    log π(completion | prompt), summed over the completion's tokens, in nats.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The policy.
        prompt_ids (`Sequence[Sequence[int]]`):
            Token ids of the prompts; none empty.
        completion_ids (`Sequence[Sequence[int]]`):
            Token ids of the completions, stop token included; none empty.
        pad_token_id (`int`):
            Id to pad with.

    Returns:
        `list[float]`, one per completion.
    """
    rows = [
        torch.tensor([*prompt, *completion]) for prompt, completion in zip(prompt_ids, completion_ids, strict=True)
    ]
    input_ids = pad(rows, padding_value=pad_token_id, padding_side="left").to(model.device)
    attention_mask = pad([torch.ones_like(row) for row in rows], padding_value=0, padding_side="left").to(model.device)
    n_kept = max(len(completion) for completion in completion_ids)
    logits = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=(attention_mask.cumsum(1) - 1).clamp(min=0),
        logits_to_keep=n_kept + 1,  # only what predicts a completion token reaches the LM head
        use_cache=False,
    ).logits[:, :-1]
    log_probs = selective_log_softmax(logits, input_ids[:, -n_kept:])
    lengths = torch.tensor([len(completion) for completion in completion_ids], device=model.device)
    mask = torch.arange(n_kept, device=model.device) >= n_kept - lengths[:, None]
    return (log_probs.float() * mask).sum(1).tolist()
