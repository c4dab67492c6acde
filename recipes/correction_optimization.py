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

import time
from dataclasses import dataclass, field
from pathlib import Path


QUICKSTART = Path(__file__).parent / "configs" / "correction_optimization" / "quickstart.yaml"


@dataclass
class CorrectionScriptArguments:
    """Arguments of this recipe, beside those of the trainer and the model."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub id, folder or file. By default the embedded task."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_validation_split: str = field(
        default="validation", metadata={"help": "Split for the trainer's evaluations, with `eval_strategy`."}
    )
    dataset_test_split: str = field(default="test", metadata={"help": "Split to evaluate on, before and after."})
    test_dataset_name: str | None = field(
        default=None,
        metadata={"help": "Where the test split is, if not in `dataset_name`; needed if that is a single file."},
    )
    train_rows: int | None = field(default=None, metadata={"help": "Train on the first so many rows."})
    test_rows: int | None = field(default=None, metadata={"help": "Evaluate on the first so many rows."})
    value_function: str | None = field(
        default=None, metadata={"help": "`module:function` that rates responses, with TRL's reward signature."}
    )
    evaluation_temperature: float = field(
        default=1.0, metadata={"help": "Temperature of the sampled responses in the evaluation."}
    )


def main(script_args, teacher_args, training_args, model_args):
    from trl import get_peft_config, get_quantization_config

    from correction_trl import CorrectionOptimizationTrainer
    from correction_trl.carry_addition import embedded_path
    from correction_trl.data_utils import PROMPTS, dataset_kind
    from correction_trl.errors import BadInput
    from correction_trl.evaluation import evaluate_corrections
    from correction_trl.functions import import_function
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
    from correction_trl.teachers.arguments import make_teacher
    from correction_trl.teachers.collection import StoringTeacher

    start = time.time()
    output_dir = Path(training_args.output_dir)
    check_folders(output_dir, training_args.resume_from_checkpoint)
    push_to, hub_token = take_over_push(training_args)
    embedded = script_args.dataset_name is None
    dataset_name = embedded_path("carry_addition") if embedded else script_args.dataset_name
    model_name = model_args.model_name_or_path or embedded_path("tiny-carry-chat")
    if embedded and teacher_args.teacher is None:
        teacher_args.teacher = "correction_trl.carry_addition:right_answer_teacher"
    if embedded and script_args.value_function is None:
        script_args.value_function = "correction_trl.carry_addition:exact_match"
    if teacher_args.teacher == "human":
        raise BadInput("People cannot keep pace with a training; collect with recipes/collect_corrections.py first.")
    teacher = make_teacher(teacher_args)
    if teacher is not None and training_args.correction_store is not None:
        teacher = StoringTeacher(teacher, training_args.correction_store)
    value_function = (
        import_function(script_args.value_function, "value_function") if script_args.value_function else None
    )

    def split(name, max_rows=None):
        return load_split(dataset_name, script_args.dataset_config, name, max_rows)

    train_dataset = split(script_args.dataset_train_split, script_args.train_rows)
    on_policy = dataset_kind(train_dataset) == PROMPTS
    validation = None
    if training_args.eval_strategy != "no":
        if Path(dataset_name).is_file():
            raise BadInput(
                f"`eval_strategy` is set, but all of the file {dataset_name} is trained on; give a folder or a Hub "
                "dataset with a validation split, or set `eval_strategy: 'no'`."
            )
        validation = split(script_args.dataset_validation_split)
    # Without a teacher nobody can correct new responses; they can still be rated
    test_dataset, test_name = None, script_args.test_dataset_name
    if test_name is None and not Path(dataset_name).is_file():  # a file holds what is trained on, and nothing else
        test_name = dataset_name
    if test_name is not None and (teacher is not None or value_function is not None):
        test_dataset = load_split(
            test_name,
            script_args.dataset_config if test_name == dataset_name else None,
            script_args.dataset_test_split,
            script_args.test_rows,
        )

    set_model_init_kwargs(training_args, model_args)
    trainer = CorrectionOptimizationTrainer(
        model=model_name,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=validation,
        teacher=teacher if on_policy else None,
        reward_funcs=value_function,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    say = trainer.accelerator.print

    def evaluate():
        if test_dataset is None:
            return None
        return evaluate_corrections(
            trainer.accelerator.unwrap_model(trainer.model),
            trainer.processing_class,
            test_dataset,
            teacher,
            value_function,
            max_completion_length=training_args.max_completion_length,
            temperature=script_args.evaluation_temperature,
            batch_size=training_args.per_device_eval_batch_size,
            seed=training_args.seed,
        )

    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        # Sharded weights would have to be gathered for each batch, by all processes in step
        test_dataset = None
        say("Sharded training: nothing is evaluated before and after. Evaluate the saved model on its own.")
    n_test = f"{len(test_dataset)} test problems" if test_dataset is not None else "not evaluated (no test problems)"
    say(
        f"{public_name(model_name, 'model')} on {public_name(dataset_name, 'data')}: {len(train_dataset)} rows, "
        f"{n_test}"
    )
    if test_dataset is not None:
        say("Evaluating before training ...")
    before = evaluate()
    say(f"Training {'on-policy' if on_policy else 'on stored pairs'}, loss {training_args.loss_type!r} ...")
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    if test_dataset is not None:
        say("Evaluating after training ...")
    after = evaluate()

    if trainer.accelerator.is_main_process:
        write_report(
            output_dir,
            log_history=trainer.state.log_history,
            before=before,
            after=after,
            seconds=time.time() - start,
            config=as_dict(script_args, teacher_args, training_args, model_args),
            base_model=model_name,
            dataset_name=dataset_name,
            method={
                "name": trainer._name,
                "tag": "correction-optimization",
                "url": "https://huggingface.co/prhegde/aligned-merge-aanaphi-phi2-orage-3b",
                "citation": trainer._paper["citation"],
                "description": "The policy learns to need less correction by a teacher: it minimises "
                f"log P(y|x) - log P(y'|x) under the loss `{training_args.loss_type}`.",
                "departures": [
                    f"Loss `{training_args.loss_type}` (beta {training_args.beta}, NLL anchor "
                    f"{training_args.nll_weight}, {'no ' if training_args.reference_free else ''}reference policy); "
                    "the source minimises the bare difference, which has no lower bound."
                ],
            },
            license="apache-2.0" if embedded and model_args.model_name_or_path is None else None,
            hub_model_id=push_to,
            peft=model_args.use_peft,
        )
        if push_to:
            push_folder(training_args.output_dir, push_to, training_args.hub_private_repo, hub_token)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


def parse_arguments(argv=None):
    from trl import ModelConfig

    from correction_trl import CorrectionOptimizationConfig
    from correction_trl.recipe import parse
    from correction_trl.teachers.arguments import TeacherArguments

    arguments = (CorrectionScriptArguments, TeacherArguments, CorrectionOptimizationConfig, ModelConfig)
    return parse(arguments, QUICKSTART, argv)


if __name__ == "__main__":
    from correction_trl.recipe import run

    run(main, *parse_arguments())
