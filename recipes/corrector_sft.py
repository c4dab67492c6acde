# /// script
# dependencies = ["correction-trl"]
# ///
"""
Self-Correct: a corrector learns to improve a generator's responses, from pairs that it finds itself.

    # The embedded task and model, on a CPU, in minutes
    accelerate launch recipes/corrector_sft.py

    # QLoRA on one 24 GB card: a small corrector for your model's responses
    accelerate launch --config_file recipes/accelerate_configs/single_gpu.yaml recipes/corrector_sft.py \
        --config recipes/configs/corrector_sft/qlora_24gb.yaml

Pairs of responses of which one is better (by `--value_function module:function`) are drawn from a pool that grows with
the corrector's own corrections; with `--feedback_function` the corrector reads feedback, too. The baselines are
configs of the same recipe: `star.yaml`, `pair_sft.yaml`, `stasc.yaml`, `sft.yaml`. Correct a file of responses with
the result by `recipes/correct.py`.
"""

from dataclasses import dataclass, field
from pathlib import Path

from trl import ModelConfig

from correction_trl.recipe import ScriptArguments, TrainingRun, parse, run


QUICKSTART = Path(__file__).parent / "configs" / "corrector_sft" / "quickstart.yaml"


@dataclass
class CorrectorScriptArguments(ScriptArguments):
    """Arguments of this recipe, beside those of the trainer and the model."""

    value_function: str | None = field(
        default=None, metadata={"help": "`module:function` that rates responses, with TRL's reward signature."}
    )
    feedback_function: str | None = field(
        default=None, metadata={"help": "`module:function` that comments on responses, in training and evaluation."}
    )
    feedback_settings: dict | str | None = field(default=None, metadata={"help": "Its settings, by parameter."})
    pair_feedback_function: str | None = field(
        default=None, metadata={"help": "`module:function` that comments on pairs, in training: it sees y', too."}
    )
    generator_name_or_path: str | None = field(
        default=None, metadata={"help": "Model that answers first. By default the model before training."}
    )
    answers_itself: bool = field(
        default=False, metadata={"help": "After training, the trained model also answers first in the evaluation."}
    )
    max_corrections: int = field(default=3, metadata={"help": "Corrections of each response in the evaluation."})


def main(script_args, training_args, model_args):
    from correction_trl import CorrectorSFTTrainer
    from correction_trl.reporting import CORRECTOR_SFT_NUMBERS, CORRECTOR_SFT_PANELS

    job = TrainingRun(script_args, training_args, model_args)
    trainer = CorrectorSFTTrainer(
        value_function=job.function(
            "value_function", embedded="correction_trl.carry_addition:right_digits", required=True
        ),
        feedback_function=job.function("feedback_function", settings="feedback_settings"),
        pair_feedback_function=job.function("pair_feedback_function"),
        generator=script_args.generator_name_or_path,
        **job.trainer_kwargs(CORRECTOR_SFT_NUMBERS),
    )

    def evaluation(generator):
        return lambda problems: trainer.evaluate_corrector(problems, generator, script_args.max_corrections)

    # Before training the model is its own generator, unless another was named; afterwards it is as it was before
    generator = script_args.generator_name_or_path
    before = job.evaluate(trainer, "before", evaluation(generator))
    trainer.accelerator.print("Sampling, learning and exploring ...")
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    if generator is None and not script_args.answers_itself:
        generator = job.model_name
    after = job.evaluate(trainer, "after", evaluation(generator))
    job.finish(trainer, before, after, panels=CORRECTOR_SFT_PANELS)


def parse_arguments(argv=None):
    from correction_trl import CorrectorSFTConfig

    return parse((CorrectorScriptArguments, CorrectorSFTConfig, ModelConfig), QUICKSTART, argv)


if __name__ == "__main__":
    run(main, *parse_arguments())
