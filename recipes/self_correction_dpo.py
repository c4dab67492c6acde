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

from dataclasses import dataclass, field
from pathlib import Path

from trl import ModelConfig

from correction_trl.recipe import ScriptArguments, TrainingRun, parse, run


QUICKSTART = Path(__file__).parent / "configs" / "self_correction_dpo" / "quickstart.yaml"


@dataclass
class SelfCorrectionScriptArguments(ScriptArguments):
    """Arguments of this recipe, beside those of the trainer and the model."""

    value_function: str | None = field(
        default=None, metadata={"help": "`module:function` that rates answers, with TRL's reward signature."}
    )
    correct_threshold: float = field(default=1.0, metadata={"help": "An answer with at least this value is right."})
    instruction: str | None = field(
        default=None, metadata={"help": "What asks for the second answer, or `module:TEXT`. By default SCoRe's."}
    )
    pair_prompt: str = field(
        default="question",
        metadata={
            "help": "What both answers of a pair answer to: the bare question, the two turns, or a pair of each.",
            "choices": ["question", "two_turns", "both"],
        },
    )
    samples_per_prompt: int = field(default=1, metadata={"help": "Two-turn dialogues per problem and round."})
    only_pairs: bool = field(default=False, metadata={"help": "Build the pairs of a round, and train nothing."})
    rounds: int = field(default=1, metadata={"help": "Rounds of sampling and training."})


def main(script_args, training_args, model_args):
    from accelerate import PartialState

    from correction_trl.errors import BadInput
    from correction_trl.functions import named_text
    from correction_trl.policy.attempts import SELF_CORRECTION_INSTRUCTION
    from correction_trl.reporting import CORRECTION_OPTIMIZATION_NUMBERS
    from correction_trl.self_correction_dpo import train_rounds

    if script_args.regression is not None:
        raise BadInput("`regression` is not measured here; run lm-eval on both models (docs/evaluation.md).")
    job = TrainingRun(script_args, training_args, model_args)
    value_function = job.function(
        "value_function", embedded="correction_trl.carry_addition:exact_match", required=True
    )
    PartialState().print(job.summary(len(job.train)))
    done = train_rounds(
        value_function=value_function,
        rounds=script_args.rounds,
        samples_per_prompt=script_args.samples_per_prompt,
        pair_prompt=script_args.pair_prompt,
        instruction=named_text(script_args.instruction or SELF_CORRECTION_INSTRUCTION, "instruction"),
        correct_threshold=script_args.correct_threshold,
        eval_dataset=job.test,
        only_pairs=script_args.only_pairs,
        **job.trainer_kwargs(CORRECTION_OPTIMIZATION_NUMBERS),
    )
    if script_args.only_pairs:
        return PartialState().destroy_process_group()
    job.finish(done.trainer, done.before, done.after, log_history=done.log_history, rounds=done.counts)


def parse_arguments(argv=None):
    from correction_trl import CorrectionOptimizationConfig

    return parse((SelfCorrectionScriptArguments, CorrectionOptimizationConfig, ModelConfig), QUICKSTART, argv)


if __name__ == "__main__":
    run(main, *parse_arguments())
