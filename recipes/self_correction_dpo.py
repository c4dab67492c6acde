# /// script
# dependencies = ["correction-trl"]
# ///
"""
Self-Correction Learning (SCL): the model answers, reviews its answer, and learns to prefer the right one of the two.

    # The embedded task and model, on a CPU, in a minute
    accelerate launch recipes/self_correction_dpo.py

    # QLoRA on one 24 GB card; a vision-language model on questions with images
    accelerate launch --config_file recipes/accelerate_configs/single_gpu.yaml recipes/self_correction_dpo.py \
        --config recipes/configs/self_correction_dpo/qlora_24gb.yaml
    accelerate launch --config_file recipes/accelerate_configs/single_gpu.yaml recipes/self_correction_dpo.py \
        --config recipes/configs/self_correction_dpo/vlm_24gb.yaml

No teacher: a value function says which answers are right. The pairs of each round are kept in the output folder. After
the paper (2410.04055), with DPO and an NLL term on the preferred answer; docs/self_correction_dpo.md has what differs.
"""

import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path


QUICKSTART = Path(__file__).parent / "configs" / "self_correction_dpo" / "quickstart.yaml"
CITATION = textwrap.dedent("""\
    @article{he2024selfcorrection,
        title   = {Self-Correction is More than Refinement:
                   A Learning Framework for Visual and Language Reasoning Tasks},
        author  = {Jiayi He and Hehai Lin and Qingyun Wang and Yi Fung and Heng Ji},
        year    = 2024,
        journal = {arXiv preprint arXiv:2410.04055},
    }""")


@dataclass
class SelfCorrectionScriptArguments:
    """Arguments of this recipe, beside those of the trainer and the model."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub id, folder or file. By default the embedded task."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to sample and train on."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split to evaluate on, before and after."})
    test_dataset_name: str | None = field(
        default=None,
        metadata={"help": "Where the test split is, if not in `dataset_name`; needed if that is a single file."},
    )
    train_rows: int | None = field(default=None, metadata={"help": "Use the first so many rows."})
    test_rows: int | None = field(default=None, metadata={"help": "Evaluate on the first so many rows."})
    value_function: str | None = field(
        default=None, metadata={"help": "`module:function` that rates answers, with TRL's reward signature."}
    )
    threshold: float = field(default=1.0, metadata={"help": "An answer with at least this value is right."})
    instruction: str | None = field(
        default=None, metadata={"help": "What asks for the second answer. By default SCoRe's."}
    )
    pair_prompt: str = field(
        default="question",
        metadata={
            "help": "What both answers of a pair answer to: the bare question, the two turns, or a pair of each.",
            "choices": ["question", "two_turns", "both"],
        },
    )
    samples_per_prompt: int = field(default=1, metadata={"help": "Two-turn dialogues per problem and round."})
    rounds: int = field(default=1, metadata={"help": "Rounds of sampling and training."})


def main(script_args, training_args, model_args):
    import gc
    import json
    import os

    import torch
    from accelerate import PartialState
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoProcessor
    from trl import get_peft_config, get_quantization_config
    from trl.trainer.utils import create_model_from_path

    from correction_trl import CorrectionOptimizationTrainer
    from correction_trl.carry_addition import embedded_path
    from correction_trl.errors import BadInput
    from correction_trl.functions import import_function
    from correction_trl.policy.attempts import SELF_CORRECTION_INSTRUCTION
    from correction_trl.policy.quantization import keep_trainable_on_cpu
    from correction_trl.recipe import (
        as_dict,
        check_folders,
        load_split,
        public_name,
        push_folder,
        set_model_init_kwargs,
        take_over_push,
    )
    from correction_trl.reporting import write_report
    from correction_trl.self_correction_dpo.pairs import evaluate_transcripts, make_pairs, sample_transcripts

    start = time.time()
    output_dir, checkpoint = Path(training_args.output_dir), training_args.resume_from_checkpoint
    check_folders(output_dir, checkpoint)
    push_to, hub_token = take_over_push(training_args)
    sharded = training_args.deepspeed_plugin is not None and training_args.deepspeed_plugin.zero_stage == 3
    if sharded or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise BadInput("Sampling needs the whole model in each process; use DDP or ZeRO-2 instead of FSDP or ZeRO-3.")
    if script_args.rounds < 1 or script_args.samples_per_prompt < 1:
        raise BadInput("`rounds` and `samples_per_prompt` must be at least 1.")
    embedded = script_args.dataset_name is None
    dataset_name = embedded_path("carry_addition") if embedded else script_args.dataset_name
    model_name = model_args.model_name_or_path or embedded_path("tiny-carry-chat")
    if script_args.value_function is None:
        if not embedded:
            raise BadInput("`value_function` is not set; name what tells right answers, as 'module:function'.")
        script_args.value_function = "correction_trl.carry_addition:exact_match"
    value_function = import_function(script_args.value_function, "value_function")
    instruction = script_args.instruction or SELF_CORRECTION_INSTRUCTION

    train_dataset = load_split(
        dataset_name, script_args.dataset_config, script_args.dataset_train_split, script_args.train_rows
    )
    is_file = Path(dataset_name).is_file()  # which holds what is trained on, and nothing else
    test_dataset, test_name = None, script_args.test_dataset_name or (None if is_file else dataset_name)
    if test_name is not None:
        config = script_args.dataset_config if test_name == dataset_name else None
        test_dataset = load_split(test_name, config, script_args.dataset_test_split, script_args.test_rows)

    state = PartialState()
    say = state.print
    processor = AutoProcessor.from_pretrained(model_name, revision=model_args.model_revision)
    set_model_init_kwargs(training_args, model_args)
    load_kwargs = {
        **training_args.model_init_kwargs,
        "quantization_config": get_quantization_config(model_args),
        "trust_remote_code": training_args.trust_remote_code,
        "device_map": {"": state.device} if state.device.type == "cuda" else None,
    }
    training_args.model_init_kwargs = None  # the trainer gets loaded models

    def load(folder):
        """The model of this folder; without one, the base model."""
        if folder is not None and not model_args.use_peft:
            return create_model_from_path(folder, **{**load_kwargs, "revision": "main"})
        model = create_model_from_path(model_name, **load_kwargs)
        if state.device.type == "cpu":
            keep_trainable_on_cpu(model)
        return model if folder is None else PeftModel.from_pretrained(model, folder, is_trainable=True)

    def sample(model, dataset, temperature, seed, n_samples=1):
        sampling = {name: getattr(training_args, name) for name in ("top_p", "top_k", "min_p", "repetition_penalty")}
        return sample_transcripts(
            model,
            processor,
            dataset,
            value_function,
            instruction,
            n_samples,
            temperature,
            training_args.max_completion_length,
            {**sampling, **(training_args.generation_kwargs or {})} if temperature else None,
            training_args.generation_batch_size or training_args.per_device_eval_batch_size,
            seed,
        )

    def evaluate(model, when):
        if test_dataset is None:
            return None
        say(f"Evaluating {when} training ...")
        transcripts = sample(model, test_dataset, 0.0, training_args.seed)
        return evaluate_transcripts(test_dataset, transcripts, value_function, script_args.threshold)

    n_test = f"{len(test_dataset)} test problems" if test_dataset is not None else "not evaluated (no test problems)"
    say(
        f"{public_name(model_name, 'model')} on {public_name(dataset_name, 'data')}: {len(train_dataset)} problems, "
        f"{n_test}"
    )
    model = load(None)
    before = evaluate(model, "before")
    images = train_dataset if {"image", "images"} & set(train_dataset.column_names) else None
    folder, log_history, rounds = None, [], []
    for number in range(1, script_args.rounds + 1):
        round_dir = output_dir / f"round_{number}"
        pairs_file, counts_file = round_dir / "pairs.parquet", round_dir / "pairs.json"
        if checkpoint is not None and number < int(Path(checkpoint).parent.name.removeprefix("round_")):
            rounds.append(json.loads(counts_file.read_text()))  # finished before the run was resumed
            folder = str(round_dir)
            continue
        if folder is not None:
            model = trainer = None
            gc.collect()
            torch.cuda.empty_cache()
            model = load(folder)
        if checkpoint is not None and pairs_file.parent == Path(checkpoint).parent:
            pairs, counts = Dataset.from_parquet(str(pairs_file)), json.loads(counts_file.read_text())
        else:
            say(f"Round {number}: sampling {script_args.samples_per_prompt} x {len(train_dataset)} dialogues ...")
            seed = training_args.seed + number
            transcripts = sample(model, train_dataset, training_args.temperature, seed, script_args.samples_per_prompt)
            pairs, counts = make_pairs(
                transcripts, script_args.pair_prompt, script_args.threshold, instruction, images
            )
            if state.is_main_process:
                round_dir.mkdir(exist_ok=True)
                pairs.to_parquet(pairs_file)
                counts_file.write_text(json.dumps({"round": number, **counts}))
        rounds.append({"round": number, **counts})
        say(
            f"Round {number}: "
            + ", ".join(f"{name} {count}" for name, count in counts.items() if count)
            + "; training ..."
        )
        training_args.output_dir = str(round_dir)
        trainer = CorrectionOptimizationTrainer(
            model=model,
            ref_model=None if model_args.use_peft or training_args.reference_free else load(folder),
            args=training_args,
            train_dataset=pairs,
            processing_class=processor,
            peft_config=get_peft_config(model_args) if folder is None else None,
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        checkpoint = None
        model = trainer.accelerator.unwrap_model(trainer.model)
        if isinstance(model, PeftModel) and "ref" in model.peft_config:
            model.delete_adapter("ref")  # DPOTrainer's frozen copy of the adapter that the round began with
        folder = str(output_dir if number == script_args.rounds else round_dir)
        trainer.save_model(folder)
        steps = log_history[-1]["step"] if log_history else 0
        log_history += [{**entry, "step": steps + entry["step"]} for entry in trainer.state.log_history]
    after = evaluate(model, "after")

    if trainer.accelerator.is_main_process:
        training_args.output_dir = str(output_dir)
        write_report(
            output_dir,
            log_history=log_history,
            before=before,
            after=after,
            seconds=time.time() - start,
            config=as_dict(script_args, training_args, model_args),
            more={"rounds": rounds},
            base_model=model_name,
            dataset_name=dataset_name,
            method={
                "name": "Self-Correction Learning (SCL)",
                "tag": "scl",
                "paper_title": "Self-Correction is More than Refinement",
                "paper_id": "2410.04055",
                "citation": CITATION,
                "description": "The model answered, was asked to review its answer, and learned to prefer the right "
                f"one of the two. It was asked with: {instruction!r}",
                "departures": [
                    f"{script_args.rounds} round(s) of sampling and training; the pairs' prompt is "
                    f"`{script_args.pair_prompt}` (the paper's: `question`).",
                    f"Loss `{training_args.loss_type}`, beta {training_args.beta}, weight {training_args.nll_weight} "
                    "of the NLL per token of the preferred answer (the authors' code: beta 0.1, weight 0.1).",
                ],
            },
            license="apache-2.0" if embedded and model_args.model_name_or_path is None else None,
            hub_model_id=push_to,
            peft=model_args.use_peft,
        )
        if push_to:
            push_folder(str(output_dir), push_to, training_args.hub_private_repo, hub_token)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


def parse_arguments(argv=None):
    from trl import ModelConfig

    from correction_trl import CorrectionOptimizationConfig
    from correction_trl.recipe import parse

    return parse((SelfCorrectionScriptArguments, CorrectionOptimizationConfig, ModelConfig), QUICKSTART, argv)


if __name__ == "__main__":
    from correction_trl.recipe import run

    run(main, *parse_arguments())
