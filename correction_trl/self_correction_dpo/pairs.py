"""Preference pairs from a model's own self-corrections: answer, second look, keep what one of the two got right.

Self-Correction Learning, SCL ([paper](https://huggingface.co/papers/2410.04055)): the model answers a question and is
asked to review its answer. Where exactly one of its two answers is right, that one is preferred to the other. No
teacher writes anything; a value function says what is right. Pairs are trained on as the ids that were sampled.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from trl import prepare_multimodal_messages

from ..data_utils import (
    IMAGE_COLUMNS,
    NOT_FOR_THE_TEACHER,
    chat_template_kwargs,
    check_dataset,
    message_text,
    share_of_process,
)
from ..errors import BadInput
from ..evaluation.evaluate import Evaluation, evaluate_traces
from ..functions import Prompt, call_value_function
from ..inference.strategy import Trace
from ..policy.attempts import SELF_CORRECTION_INSTRUCTION, FollowUps
from ..policy.generation import Sampler, numbered
from ..policy.rollout import Rollouts
from ..policy.tokenization import check_tokenizer, tokenize_prompt


PAIR_PROMPTS = ("question", "two_turns", "both")
# Inputs of a processor that follow from the token ids
_PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


@dataclass
class Transcript:
    """
    Two attempts of a model at one problem, as the token ids that are trained on; [`Transcript.trace`] is the record
    that is judged.

    Attributes:
        row (`int`):
            Row of the problem in the dataset.
        prompt (`str` or `list[dict]`):
            The problem.
        first, second (`str`):
            The attempts, decoded.
        first_value, second_value (`float`, *optional*):
            What they are worth; `None` where the value function could not judge.
        prompt_ids, first_ids, second_ids (`list[int]`):
            The problem as the model saw it and the attempts as it sampled them.
        follow_up_ids (`list[int]`):
            What stood between the attempts: the end of the turn, the instruction, the beginning of the next turn.
        first_complete, second_complete (`bool`):
            Whether the attempt ended by itself instead of at the length limit.
    """

    row: int
    prompt: Prompt
    first: str
    second: str
    first_value: float | None
    second_value: float | None
    prompt_ids: list[int]
    first_ids: list[int]
    follow_up_ids: list[int]
    second_ids: list[int]
    first_complete: bool
    second_complete: bool

    def trace(self) -> Trace:
        """The attempts as those of any other strategy."""
        return Trace(
            responses=[self.first, self.second],
            tokens=[len(self.first_ids), len(self.second_ids)],
            replies=2,
            cut_off=2 - self.first_complete - self.second_complete,
        )


@torch.no_grad()
def sample_transcripts(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    dataset: Dataset,
    value_function: Callable,
    instruction: str = SELF_CORRECTION_INSTRUCTION,
    n_samples: int = 1,
    temperature: float = 1.0,
    max_completion_length: int = 256,
    generation_kwargs: dict[str, Any] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    rollouts: Rollouts | None = None,
) -> list[Transcript]:
    """
    Have a model answer and review its answer. All processes of a distributed run share the work and get all results.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy, unwrapped.
        processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]):
            Its tokenizer, or its processor where the dataset has images.
        dataset ([`~datasets.Dataset`]):
            Column `prompt`, `image` or `images` where there are any, and whatever the value function needs.
        value_function (`Callable`):
            With TRL's `reward_funcs` signature.
        instruction (`str`, *optional*, defaults to `SELF_CORRECTION_INSTRUCTION`):
            What asks for the second answer. It must not tell whether the first was right.
        n_samples (`int`, *optional*, defaults to `1`):
            Transcripts per problem.
        temperature (`float`, *optional*, defaults to `1.0`):
            Of both answers; 0 is greedy.
        max_completion_length (`int`, *optional*, defaults to `256`):
            Most tokens of an answer.
        generation_kwargs (`dict`, *optional*):
            Further arguments of [`~transformers.GenerationConfig`].
        batch_size (`int`, *optional*, defaults to `64`):
            Transcripts per batch.
        seed (`int`, *optional*, defaults to `0`):
            Of the samples.
        rollouts ([`~policy.rollout.Rollouts`], *optional*):
            How responses are sampled; by default the fastest way that the model and the device allow.

    Returns:
        `list[`[`Transcript`]`]`, in the order of the dataset, those of one problem side by side.

    Raises:
        BadInput: If the dataset, the tokenizer or the value function is at fault; the message names the row.
    """
    check_dataset(dataset, "the dataset of problems", value_function)
    with_images = bool(set(IMAGE_COLUMNS) & set(dataset.column_names))
    conversational = not isinstance(dataset[0]["prompt"], str)
    tokenizer = processing_class.tokenizer if isinstance(processing_class, ProcessorMixin) else processing_class
    chat = tokenizer
    if with_images:
        chat, reserved = _chat_with_images(processing_class, conversational)
        generation_kwargs = {**(generation_kwargs or {}), "suppress_tokens": reserved}
    check_tokenizer(chat, conversational)
    rollouts = rollouts or Rollouts()
    sampler = Sampler(
        model,
        tokenizer,
        max_completion_length,
        temperature,
        generation_kwargs=generation_kwargs,
        seed=seed,
        engine=rollouts,
    )
    follow_ups = FollowUps(chat, sampler.stop_ids)
    transcripts = []
    state = PartialState()
    lengths = [len(message_text(prompt)) for prompt in dataset["prompt"]]
    by_length = sorted(range(len(dataset)), key=lengths.__getitem__)  # so that little is padded
    samples = share_of_process(numbered([row for row in by_length for _ in range(n_samples)]))
    with rollouts.hold():
        for start in range(0, len(samples), batch_size):
            names = samples[start : start + batch_size]
            batch = [dataset[row] for row, _ in names]
            if with_images:
                prompt_ids, model_inputs = _render_with_images(processing_class, batch, model.device)
            else:
                model_inputs = None
                prompt_ids = [
                    tokenize_prompt(tokenizer, row["prompt"], **chat_template_kwargs(row))[1] for row in batch
                ]

            def ask_again(turn, attempts, batch=batch):
                of_rows = [follow_ups.of(row["prompt"], chat_template_kwargs(row)) for row in batch]
                return [of(ids, instruction) for of, ids in zip(of_rows, attempts, strict=True)]

            (first, second), (between,) = sampler.attempts(prompt_ids, ask_again, 2, names, model_inputs)
            prompts = [row["prompt"] for row in batch]
            columns = {key: [row[key] for row in batch] for key in batch[0] if key not in NOT_FOR_THE_TEACHER}
            values = [call_value_function(value_function, prompts, of.texts, columns) for of in (first, second)]
            for i in range(len(batch)):
                transcripts.append(
                    Transcript(
                        row=names[i][0],
                        prompt=prompts[i],
                        first=first.texts[i],
                        second=second.texts[i],
                        first_value=values[0][i],
                        second_value=values[1][i],
                        prompt_ids=prompt_ids[i],
                        first_ids=first.ids[i],
                        follow_up_ids=between[i],
                        second_ids=second.ids[i],
                        first_complete=not first.cut_off[i],
                        second_complete=not second.cut_off[i],
                    )
                )
    if state.num_processes > 1:
        transcripts = gather_object(transcripts)
    return sorted(transcripts, key=lambda transcript: transcript.row)


def make_pairs(
    transcripts: Sequence[Transcript],
    pair_prompt: str = "question",
    correct_threshold: float = 1.0,
    instruction: str = SELF_CORRECTION_INSTRUCTION,
    images: Dataset | None = None,
) -> tuple[Dataset, dict[str, int]]:
    """
    Turn transcripts into preference pairs for the [`CorrectionOptimizationTrainer`].

    Wrong first and right second (i->c): the second is preferred. Right first and wrong second (c->i): the first is.
    Both right (c->c) or both wrong (i->i): no pair. Pairs whose preferred answer was cut off by the length limit (it
    would teach never to stop), whose other answer is empty, and exact repetitions are left out as well; everything is
    counted.

    Args:
        transcripts (`Sequence[`[`Transcript`]`]`):
            From [`sample_transcripts`].
        pair_prompt (`str`, *optional*, defaults to `"question"`):
            What both answers of a pair answer to. `"question"`, the paper's: the bare question, so that the model
            becomes right at once. `"two_turns"`: the question, the first answer and the instruction, so that it
            becomes better at correcting; after a wrong first answer the correction is preferred to repeating it,
            after a right one repeating it to the wrong correction. `"both"`: a pair of each.
        correct_threshold (`float`, *optional*, defaults to `1.0`):
            An answer with at least this value is right.
        instruction (`str`, *optional*, defaults to `SELF_CORRECTION_INSTRUCTION`):
            The one that the transcripts were sampled with, for the readable prompt of `"two_turns"`.
        images (`Dataset`, *optional*):
            The dataset that the transcripts were sampled from, if it has images. Pairs with images are tokenised by
            the trainer from their text, the others are trained on as the ids that were sampled.

    Returns:
        `tuple[Dataset, dict[str, int]]`: The pairs (`prompt`, `response`, `correction`, `transition`, and
        `prompt_ids`, `rejected_ids`, `chosen_ids`, or the images); and the counts `transcripts`, `i->c`, `c->i`,
        `c->c`, `i->i`, `unjudged`, `cut_off`, `empty`, `repeated` and `pairs`.

    Raises:
        BadInput: If `pair_prompt` is unknown, or nothing remains to train on; the message says why.
    """
    if pair_prompt not in PAIR_PROMPTS:
        raise BadInput(f"`pair_prompt={pair_prompt!r}` is unknown; use one of {', '.join(PAIR_PROMPTS)}.")
    counts = Counter()
    pairs, seen = [], set()
    for transcript in transcripts:
        values = (transcript.first_value, transcript.second_value)
        if None in values:
            counts["unjudged"] += 1
            continue
        first_right, second_right = (value >= correct_threshold for value in values)
        transition = f"{'ic'[first_right]}->{'ic'[second_right]}"
        counts[transition] += 1
        if first_right == second_right:
            continue
        first = (transcript.first, transcript.first_ids, transcript.first_complete)
        second = (transcript.second, transcript.second_ids, transcript.second_complete)
        (right, right_ids, complete), (wrong, wrong_ids, _) = (second, first) if second_right else (first, second)
        if not complete:
            counts["cut_off"] += 1
            continue
        if not wrong.strip() or not right.strip():
            counts["empty"] += 1
            continue
        asked = []
        if pair_prompt != "two_turns":
            asked.append((transcript.prompt, transcript.prompt_ids))
        if pair_prompt != "question":
            context_ids = [*transcript.prompt_ids, *transcript.first_ids, *transcript.follow_up_ids]
            asked.append((_two_turn_prompt(transcript.prompt, transcript.first, instruction), context_ids))
        for prompt, prompt_ids in asked:
            key = (transcript.row, tuple(prompt_ids), tuple(wrong_ids), tuple(right_ids))
            if key in seen:
                counts["repeated"] += 1
                continue
            seen.add(key)
            pair = {"prompt": prompt, "response": wrong, "correction": right, "transition": transition}
            if images is None:
                pair |= {"prompt_ids": prompt_ids, "rejected_ids": wrong_ids, "chosen_ids": right_ids}
            else:
                pair["row"] = transcript.row
            pairs.append(pair)
    names = ("i->c", "c->i", "c->c", "i->i", "unjudged", "cut_off", "empty", "repeated")
    counts = {"transcripts": len(transcripts), **{name: counts[name] for name in names}, "pairs": len(pairs)}
    if not pairs:
        found = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
        raise BadInput(
            f"No transcript makes a pair to train on ({found}). The two answers have to differ in being right, and "
            "the right one has to end by itself: sample more problems, at a higher temperature, problems that the "
            "model sometimes gets right, or with a larger `max_completion_length`."
        )
    dataset = Dataset.from_list(pairs)
    if images is not None:
        rows = images.select(dataset["row"]).select_columns([c for c in IMAGE_COLUMNS if c in images.column_names])
        dataset = concatenate_datasets([dataset.remove_columns("row"), rows], axis=1)
    return dataset, counts


def evaluate_transcripts(
    dataset: Dataset, transcripts: Sequence[Transcript], value_function: Callable, correct_threshold: float = 1.0
) -> Evaluation:
    """
    The metrics of [`~evaluation.evaluate_attempts`] for transcripts, so for problems with images too.

    Args:
        dataset ([`~datasets.Dataset`]):
            What they were sampled from.
        transcripts (`Sequence[`[`Transcript`]`]`):
            One per problem, the same on all processes.
        value_function (`Callable`):
            With TRL's `reward_funcs` signature.
        correct_threshold (`float`, *optional*, defaults to `1.0`):
            An answer with at least this value is right.

    Returns:
        [`~evaluation.Evaluation`]: `acc@t1`, `acc@t2`, `delta(t1,t2)`, `delta(i->c)`, `delta(c->i)`, ...
    """
    state = PartialState()
    own = transcripts[state.process_index :: state.num_processes]
    traces = {(transcript.row, 0): transcript.trace() for transcript in own}
    return evaluate_traces(dataset, traces, value_function, correct_threshold=correct_threshold)


def _two_turn_prompt(prompt: Prompt, first: str, instruction: str) -> Prompt:
    if isinstance(prompt, str):
        return f"{prompt}{first}\n\n{instruction}\n\n"
    if isinstance(prompt[-1]["content"], list):  # one form of content in all messages, as datasets wants it
        first, instruction = [{"type": "text", "text": first}], [{"type": "text", "text": instruction}]
    return [*prompt, {"role": "assistant", "content": first}, {"role": "user", "content": instruction}]


# --------------------------------------------------------------------------------------------------------------------
# Images
# --------------------------------------------------------------------------------------------------------------------


class _ProcessorChat:
    """A processor seen as a tokenizer, for the text between two attempts: its chat template wants lists of parts."""

    def __init__(self, processor: ProcessorMixin):
        self.processor = processor
        self.eos_token_id = processor.tokenizer.eos_token_id
        self.chat_template = processor.chat_template or processor.tokenizer.chat_template

    def apply_chat_template(self, messages: list[dict[str, Any]], **kwargs: Any) -> str:
        return self.processor.apply_chat_template(prepare_multimodal_messages(messages), **kwargs)

    def __call__(self, text: str, **kwargs: Any) -> dict[str, list[int]]:
        return self.processor.tokenizer(text, **kwargs)

    def decode(self, ids: list[int]) -> str:
        return self.processor.tokenizer.decode(ids)


def _chat_with_images(
    processing_class: PreTrainedTokenizerBase | ProcessorMixin, conversational: bool
) -> tuple[_ProcessorChat, list[int]]:
    """What renders conversations with images, and the tokens that no answer may hold."""
    if not isinstance(processing_class, ProcessorMixin):
        raise BadInput("The dataset has images, but the model has a tokenizer and no processor; use a vision model.")
    if not conversational:
        raise BadInput("Prompts with images must be conversational (lists of messages).")
    # A place holder that the model writes itself would be one without an image in the second turn
    reserved = [*processing_class.image_token_ids, *processing_class.video_token_ids]
    return _ProcessorChat(processing_class), [token for token in reserved if token is not None]


def _render_with_images(
    processor: ProcessorMixin, rows: list[dict[str, Any]], device: torch.device
) -> tuple[list[list[int]], Callable[[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]]:
    """Prompt ids with the images' place holders, and the model's further inputs for them."""
    images = [row["images"] if "images" in row else [row["image"]] for row in rows]
    texts = [
        processor.apply_chat_template(
            prepare_multimodal_messages(row["prompt"], images=of_row),
            tokenize=False,
            add_generation_prompt=True,
            **chat_template_kwargs(row),
        )
        for row, of_row in zip(rows, images, strict=True)
    ]
    inputs = processor(
        images=images if any(images) else None,
        text=texts,
        padding=True,
        padding_side="left",
        return_tensors="pt",
        add_special_tokens=False,  # the chat template writes them
    )
    of_prompt = inputs["attention_mask"].bool()
    prompt_ids = [ids[mask].tolist() for ids, mask in zip(inputs["input_ids"], of_prompt, strict=True)]
    of_images = {key: value.to(device) for key, value in inputs.items() if key not in _PER_TOKEN}
    token_types = {
        key: [types[mask] for types, mask in zip(inputs[key], of_prompt, strict=True)]
        for key in ("token_type_ids", "mm_token_type_ids")
        if key in inputs
    }

    def model_inputs(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        extended = {}
        for key, of_rows in token_types.items():  # what follows a prompt is text: type 0
            extended[key] = torch.zeros_like(input_ids)
            for i, (types, start) in enumerate(zip(of_rows, attention_mask.argmax(1).tolist(), strict=True)):
                extended[key][i, start : start + len(types)] = types.to(device)
        return {**of_images, **extended}

    return prompt_ids, model_inputs
