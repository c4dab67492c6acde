# /// script
# dependencies = ["correction-trl"]
# ///
"""
Correction optimization: the policy answers, a teacher corrects, the policy learns to need less correction.

    # The embedded task and model, on a CPU, in minutes
    accelerate launch recipes/correction_optimization.py

    # QLoRA on one 24 GB card, on your prompts and your teacher
    accelerate launch --config_file recipes/accelerate_configs/single_gpu.yaml recipes/correction_optimization.py \
        --config recipes/configs/correction_optimization/qlora_24gb.yaml

On-policy with a teacher (`--teacher module:function`, or a server, a local model, the policy itself), or on stored
pairs (columns `prompt`, `response`, `correction`). Departs from its source, the note in the model card of
prhegde/aligned-merge-aanaphi-phi2-orage-3b, in the default loss: bounded, with a reference and an NLL anchor.
`--config recipes/configs/correction_optimization/linear.yaml` is the note as written.
"""

from dataclasses import dataclass, field
from pathlib import Path

from trl import ModelConfig

from correction_trl.recipe import ReplayArguments, ScriptArguments, TrainingRun, parse, run


QUICKSTART = Path(__file__).parent / "configs" / "correction_optimization" / "quickstart.yaml"


@dataclass
class CorrectionScriptArguments(ReplayArguments, ScriptArguments):
    """Arguments of this recipe, beside those of the teacher, the trainer and the model."""

    value_function: str | None = field(
        default=None, metadata={"help": "`module:function` that rates responses, with TRL's reward signature."}
    )
    evaluation_temperature: float = field(
        default=1.0, metadata={"help": "Temperature of the sampled responses in the evaluation."}
    )


def main(script_args, teacher_args, training_args, model_args):
    from correction_trl import CorrectionOptimizationTrainer
    from correction_trl.data_utils import PROMPTS, dataset_kind
    from correction_trl.errors import BadInput
    from correction_trl.evaluation import evaluate_corrections
    from correction_trl.reporting import CORRECTION_OPTIMIZATION_NUMBERS
    from correction_trl.teachers import StoringTeacher
    from correction_trl.teachers.arguments import make_teacher

    if teacher_args.teacher == "human":
        raise BadInput("People cannot keep pace with a training; collect with recipes/collect_corrections.py first.")
    job = TrainingRun(script_args, training_args, model_args, teacher_args)
    if job.embedded and teacher_args.teacher is None:
        teacher_args.teacher = "correction_trl.carry_addition:right_answer_teacher"
    teacher = make_teacher(teacher_args)
    if teacher is not None and training_args.correction_store is not None:
        teacher = StoringTeacher(teacher, training_args.correction_store)
    value_function = job.function("value_function", embedded="correction_trl.carry_addition:exact_match")
    on_policy = dataset_kind(job.train) == PROMPTS
    if teacher is None and value_function is None:
        job.test = None  # nobody could correct or rate new responses

    trainer = CorrectionOptimizationTrainer(
        teacher=teacher if on_policy else None,
        reward_funcs=value_function,
        eval_dataset=job.validation,
        replay_dataset=script_args.load_replay(),
        **job.trainer_kwargs(CORRECTION_OPTIMIZATION_NUMBERS),
    )

    def evaluation(problems):
        return evaluate_corrections(
            trainer.accelerator.unwrap_model(trainer.model),
            trainer.processing_class,
            problems,
            teacher,
            value_function,
            max_completion_length=training_args.max_completion_length,
            temperature=script_args.evaluation_temperature,
            batch_size=training_args.per_device_eval_batch_size,
            seed=training_args.seed,
            rollouts=trainer.rollouts,
            missing_thoughts=training_args.missing_thoughts,
            base_model=None if training_args.sync_ref_model else trainer.ref_model,
        )

    before = job.evaluate(trainer, "before", evaluation)
    where = "on-policy" if on_policy else "on stored pairs"
    trainer.accelerator.print(f"Training {where}, loss {training_args.loss_type!r} ...")
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    after = job.evaluate(trainer, "after", evaluation)
    job.finish(trainer, before, after)


def parse_arguments(argv=None):
    from correction_trl import CorrectionOptimizationConfig
    from correction_trl.teachers.arguments import TeacherArguments

    arguments = (CorrectionScriptArguments, TeacherArguments, CorrectionOptimizationConfig, ModelConfig)
    return parse(arguments, QUICKSTART, argv)


if __name__ == "__main__":
    run(main, *parse_arguments())
