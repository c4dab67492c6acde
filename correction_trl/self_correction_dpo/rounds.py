"""The algorithm of Self-Correction Learning: sample two answers to each problem, make pairs of them, train, again."""

import gc
import json
import os
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from peft import PeftConfig, PeftModel
from transformers import (
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
)
from trl.trainer.utils import create_model_from_path

from ..checkpoints import checkpoint_to_resume_from
from ..correction_optimization.correction_optimization_config import CorrectionOptimizationConfig
from ..correction_optimization.correction_optimization_trainer import CorrectionOptimizationTrainer
from ..data_utils import IMAGE_COLUMNS
from ..errors import BadInput
from ..evaluation.evaluate import Evaluation
from ..policy.attempts import SELF_CORRECTION_INSTRUCTION
from ..policy.quantization import keep_trainable_on_cpu
from ..policy.rollout import Rollouts
from ..reporting.terminal import show_readable_progress
from ..reporting.trackers import guard_trackers
from .pairs import Transcript, evaluate_transcripts, make_pairs, sample_transcripts


class SelfCorrectionDPOTrainer(CorrectionOptimizationTrainer):
    """
    The trainer of one round: correction optimization on the pairs, with the model card of SCL.

    Args:
        instruction (`str`):
            What asked for the second answers.
        pair_prompt (`str`):
            What both answers of a pair answer to.
        rounds (`int`):
            Rounds of sampling and training.
        **kwargs:
            Of the [`CorrectionOptimizationTrainer`].
    """

    _tag_names = ["trl", "correction_trl", "scl"]
    _name = "Self-Correction Learning (SCL)"
    _paper = {
        "title": "Self-Correction is More than Refinement",
        "id": "2410.04055",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @article{he2024selfcorrection,
                title   = {Self-Correction is More than Refinement:
                           A Learning Framework for Visual and Language Reasoning Tasks},
                author  = {Jiayi He and Hehai Lin and Qingyun Wang and Yi Fung and Heng Ji},
                year    = 2024,
                journal = {arXiv preprint arXiv:2410.04055},
            }"""),
    }

    def __init__(self, *, instruction: str, pair_prompt: str, rounds: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.instruction, self.pair_prompt, self.rounds = instruction, pair_prompt, rounds

    def card_notes(self) -> dict[str, Any]:
        args = self.args
        return {
            "description": "The model answered, was asked to review its answer, and learned to prefer the right one "
            f"of the two. It was asked with: {self.instruction!r}",
            "departures": [
                f"{self.rounds} round(s) of sampling and training; the pairs' prompt is `{self.pair_prompt}` (the "
                "paper's: `question`).",
                f"Loss `{args.loss_type}`, beta {args.beta}, weight {args.nll_weight} of the NLL of the preferred "
                "answer, summed over its tokens (the authors' code: beta 0.1, weight 0.1 of the mean).",
            ],
        }


@dataclass
class TrainedRounds:
    """
    What [`train_rounds`] leaves in memory.

    Attributes:
        trainer ([`SelfCorrectionDPOTrainer`]):
            The last round's, with the trained model.
        counts (`list[dict[str, int]]`):
            Of each round, from [`make_pairs`].
        log_history (`list[dict]`):
            Of all rounds that were trained now; the steps go on from round to round.
        before, after ([`~evaluation.Evaluation`], *optional*):
            The model before the first round and after the last, if there was an `eval_dataset`.
    """

    trainer: SelfCorrectionDPOTrainer | None = None
    counts: list[dict[str, int]] = field(default_factory=list)
    log_history: list[dict[str, float]] = field(default_factory=list)
    before: Evaluation | None = None
    after: Evaluation | None = None


def train_rounds(
    model: str,
    args: CorrectionOptimizationConfig,
    train_dataset: Dataset,
    value_function: Callable,
    rounds: int = 1,
    samples_per_prompt: int = 1,
    pair_prompt: str = "question",
    instruction: str = SELF_CORRECTION_INSTRUCTION,
    correct_threshold: float = 1.0,
    eval_dataset: Dataset | None = None,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
    quantization_config: BitsAndBytesConfig | None = None,
    peft_config: PeftConfig | None = None,
    callbacks: list[TrainerCallback] | None = None,
    only_pairs: bool = False,
) -> TrainedRounds:
    """
    Self-Correction Learning ([paper](https://huggingface.co/papers/2410.04055)): in each round the model answers every
    problem and reviews its answer ([`sample_transcripts`]), the answers of which exactly one is right become
    preference pairs ([`make_pairs`]), and the model is trained on them; the next round begins with the model of this
    one.

    Each round has a folder `round_1`, `round_2`, ... in `args.output_dir`, with its pairs (`pairs.parquet`), their
    counts (`pairs.json`) and its checkpoints; the last round's model is in `args.output_dir` itself. With
    `args.resume_from_checkpoint` (a checkpoint in one of those folders, or `True` for the newest) the rounds before
    are taken as done, and the pairs of its round are those on the disk.

    Args:
        model (`str`):
            Hub id or folder of a causal language model, or of a vision-language model.
        args ([`CorrectionOptimizationConfig`]):
            Of each round; its sampling settings and `max_completion_length` are those of the answers, its `seed` that
            of everything. `args.model_init_kwargs` say how the model is loaded.
        train_dataset ([`~datasets.Dataset`]):
            Column `prompt`, `image` or `images` where there are any, and whatever the value function needs.
        value_function (`Callable`):
            Says which answers are right, with TRL's `reward_funcs` signature.
        rounds (`int`, *optional*, defaults to `1`):
            Rounds of sampling and training.
        samples_per_prompt (`int`, *optional*, defaults to `1`):
            Two-turn dialogues per problem and round.
        pair_prompt (`str`, *optional*, defaults to `"question"`):
            What both answers of a pair answer to; see [`make_pairs`].
        instruction (`str`, *optional*, defaults to `SELF_CORRECTION_INSTRUCTION`):
            What asks for the second answer. It must not tell whether the first was right.
        correct_threshold (`float`, *optional*, defaults to `1.0`):
            An answer with at least this value is right.
        eval_dataset ([`~datasets.Dataset`], *optional*):
            Problems that the model answers and reviews greedily before the first round and after the last.
        processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`], *optional*):
            By default loaded with the model.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            For loading the model quantized; with `peft_config`: QLoRA.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter to train, one for all rounds.
        callbacks (`list[TrainerCallback]`, *optional*):
            Further callbacks of each round's trainer.
        only_pairs (`bool`, *optional*, defaults to `False`):
            Build the pairs of the first round, and train on nothing: `round_1/pairs.parquet` is a preference dataset.

    Returns:
        [`TrainedRounds`].

    Raises:
        BadInput: If the settings cannot work together, the weights are sharded, or no pair comes of a round.
    """
    if not isinstance(model, str):
        raise BadInput(
            "Each round loads the model again: give its name, not a model. An adapter has to be merged into its base "
            "(`merge_and_unload()`) and saved with its tokenizer in a folder first."
        )
    _check_rounds(args, rounds, samples_per_prompt)
    state = PartialState()
    load_kwargs = {
        **(args.model_init_kwargs or {}),
        "quantization_config": quantization_config,
        "trust_remote_code": args.trust_remote_code,
        "device_map": {"": state.device} if state.device.type == "cuda" else None,
    }
    args.model_init_kwargs = None  # the trainer gets loaded models
    if processing_class is None:
        processing_class = AutoProcessor.from_pretrained(model, revision=load_kwargs.get("revision"))
    load = partial(_load_policy, model, load_kwargs, peft_config is not None)

    def sample(dataset: Dataset, temperature: float, seed: int, n_samples: int = 1) -> list[Transcript]:
        sampling = {name: getattr(args, name) for name in ("top_p", "top_k")}
        return sample_transcripts(
            policy,
            processing_class,
            dataset,
            value_function,
            instruction,
            n_samples,
            temperature,
            args.max_completion_length,
            {**sampling, **(args.generation_kwargs or {})} if temperature else None,
            args.generation_batch_size or args.per_device_eval_batch_size,
            seed,
            Rollouts(args.rollout, args.rollout_weights),
        )

    def evaluate(when: str) -> Evaluation | None:
        if eval_dataset is None:
            return None
        state.print(f"Evaluating {when} training ...")
        transcripts = sample(eval_dataset, 0.0, args.seed)
        return evaluate_transcripts(eval_dataset, transcripts, value_function, correct_threshold)

    output_dir = Path(args.output_dir)
    checkpoint = checkpoint_to_resume_from(args.resume_from_checkpoint, output_dir, weights_only=args.save_only_model)
    resumed_round = _round_of(checkpoint)
    images = train_dataset if set(IMAGE_COLUMNS) & set(train_dataset.column_names) else None
    policy = load(None)
    done = TrainedRounds(before=None if only_pairs else evaluate("before"))
    folder = None  # of the model that a round begins with
    for number in range(1, rounds + 1):
        round_dir = output_dir / f"round_{number}"
        pairs_file, counts_file = round_dir / "pairs.parquet", round_dir / "pairs.json"
        if resumed_round is not None and number < resumed_round:
            done.counts.append(json.loads(counts_file.read_text()))
            folder = str(round_dir)
            continue
        if folder is not None:
            policy = trainer = done.trainer = None  # before the next model is loaded
            gc.collect()
            torch.cuda.empty_cache()
            policy = load(folder)
        if number == resumed_round:
            pairs, counts = Dataset.from_parquet(str(pairs_file)), json.loads(counts_file.read_text())
        else:
            state.print(f"Round {number}: sampling {samples_per_prompt} x {len(train_dataset)} dialogues ...")
            transcripts = sample(train_dataset, args.temperature, args.seed + number, samples_per_prompt)
            pairs, counts = make_pairs(transcripts, pair_prompt, correct_threshold, instruction, images)
            counts = {"round": number, **counts}
            _save_pairs(pairs, counts, pairs_file, counts_file)
        done.counts.append(counts)
        found = ", ".join(f"{name} {count}" for name, count in counts.items() if count and name != "round")
        if only_pairs:
            state.print(f"{found}: {pairs_file}")
            return done
        state.print(f"Round {number}: {found}; training ...")
        args.output_dir = str(round_dir)
        done.trainer = trainer = SelfCorrectionDPOTrainer(
            model=policy,
            ref_model=None if peft_config is not None or args.reference_free else load(folder),
            args=args,
            train_dataset=pairs,
            processing_class=processing_class,
            peft_config=peft_config if folder is None else None,
            callbacks=callbacks,
            instruction=instruction,
            pair_prompt=pair_prompt,
            rounds=rounds,
        )
        show_readable_progress(trainer)
        guard_trackers(trainer, keep_open=number == rounds, examples=done.before.examples if done.before else [])
        trainer.train(resume_from_checkpoint=checkpoint if number == resumed_round else None)
        policy = _without_reference(trainer.accelerator.unwrap_model(trainer.model))
        folder = str(output_dir if number == rounds else round_dir)
        trainer.save_model(folder)
        steps = done.log_history[-1]["step"] if done.log_history else 0
        done.log_history += [{**entry, "step": steps + entry["step"]} for entry in trainer.state.log_history]
    args.output_dir = str(output_dir)
    done.after = evaluate("after")
    return done


def _check_rounds(args: CorrectionOptimizationConfig, rounds: int, samples_per_prompt: int) -> None:
    sharded = args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3
    if sharded or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise BadInput("Sampling needs the whole model in each process; use DDP or ZeRO-2 instead of FSDP or ZeRO-3.")
    if rounds < 1 or samples_per_prompt < 1:
        raise BadInput("`rounds` and `samples_per_prompt` must be at least 1.")


def _without_reference(policy: "PreTrainedModel | PeftModel") -> "PreTrainedModel | PeftModel":
    """Without DPOTrainer's frozen copy of the adapter that the round began with."""
    if isinstance(policy, PeftModel) and "ref" in policy.peft_config:
        policy.delete_adapter("ref")
    return policy


def _save_pairs(pairs: Dataset, counts: dict[str, int], pairs_file: Path, counts_file: Path) -> None:
    if PartialState().is_main_process:
        pairs_file.parent.mkdir(parents=True, exist_ok=True)
        pairs.to_parquet(pairs_file)
        counts_file.write_text(json.dumps(counts))


def _round_of(checkpoint: str | None) -> int | None:
    if checkpoint is None:
        return None
    found = re.fullmatch(r"round_(\d+)", Path(checkpoint).resolve().parent.name)
    if found is None:
        raise BadInput(f"`resume_from_checkpoint={checkpoint!r}` is no checkpoint of a round: name one in round_N.")
    return int(found[1])


def _load_policy(
    model: str, load_kwargs: dict[str, Any], is_adapter: bool, folder: str | None
) -> "PreTrainedModel | PeftModel":
    """The policy that was saved in a folder; without one, the model that the first round begins with."""
    if folder is not None and not is_adapter:
        return create_model_from_path(folder, **{**load_kwargs, "revision": "main"})
    base = create_model_from_path(model, **load_kwargs)
    if PartialState().device.type == "cpu":
        keep_trainable_on_cpu(base)
    return base if folder is None else PeftModel.from_pretrained(base, folder, is_trainable=True)
