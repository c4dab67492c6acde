# /// script
# dependencies = ["correction-trl"]
# ///
"""
SCoRe: the policy learns by reinforcement to correct itself in a second attempt.

    # The embedded task and model, on a CPU, in minutes
    accelerate launch recipes/score.py

    # QLoRA on one 24 GB card, on math problems with their answers
    accelerate launch --config_file recipes/accelerate_configs/single_gpu.yaml recipes/score.py \
        --config recipes/configs/score/qlora_24gb.yaml

Both stages in one run. Baselines are settings: `single_turn.yaml`, `without_stage_1.yaml` and `without_bonus.yaml` in
recipes/configs/score; STaR and Pair-SFT are recipes/corrector_sft.py. Where the trainer departs from the paper
(2409.12917) is said in its docstring: correction_trl/score/score_trainer.py.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path


QUICKSTART = Path(__file__).parent / "configs" / "score" / "quickstart.yaml"


@dataclass
class SCoReScriptArguments:
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
    reward_funcs: list[str] | None = field(
        default=None, metadata={"help": "`module:function` of each reward function; see docs/rewards.md."}
    )
    evaluation_turns: int = field(default=2, metadata={"help": "Attempts in the evaluation."})
    evaluation_temperature: float = field(
        default=1.0, metadata={"help": "Temperature of the sampled attempts in the evaluation."}
    )


def main(script_args, training_args, model_args):
    from trl import get_peft_config, get_quantization_config

    from correction_trl import SCoReTrainer
    from correction_trl.carry_addition import embedded_path
    from correction_trl.errors import BadInput
    from correction_trl.evaluation import Evaluation
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
    from correction_trl.reporting import SCORE_PANELS, write_report

    start = time.time()
    output_dir = Path(training_args.output_dir)
    check_folders(output_dir, training_args.resume_from_checkpoint)
    push_to, hub_token = take_over_push(training_args)
    embedded = script_args.dataset_name is None
    dataset_name = embedded_path("carry_addition") if embedded else script_args.dataset_name
    model_name = model_args.model_name_or_path or embedded_path("tiny-carry-chat")
    if script_args.reward_funcs is None:
        if not embedded:
            raise BadInput("`reward_funcs` is not set; name at least one, for example `my_rewards:is_right`.")
        script_args.reward_funcs = ["correction_trl.carry_addition:exact_match"]
    reward_funcs = [import_function(name, "reward_funcs") for name in script_args.reward_funcs]

    def split(name, max_rows=None):
        return load_split(dataset_name, script_args.dataset_config, name, max_rows)

    train_dataset = split(script_args.dataset_train_split, script_args.train_rows)
    is_file = Path(dataset_name).is_file()  # which holds what is trained on, and nothing else
    if training_args.eval_strategy != "no" and is_file:
        raise BadInput(
            f"`eval_strategy` is set, but all of the file {dataset_name} is trained on; give a folder or a Hub "
            "dataset with a validation split, or set `eval_strategy: 'no'`."
        )
    validation = split(script_args.dataset_validation_split) if training_args.eval_strategy != "no" else None
    test_dataset, test_name = None, script_args.test_dataset_name or (None if is_file else dataset_name)
    if test_name is not None:
        config = script_args.dataset_config if test_name == dataset_name else None
        test_dataset = load_split(test_name, config, script_args.dataset_test_split, script_args.test_rows)

    set_model_init_kwargs(training_args, model_args)
    trainer = SCoReTrainer(
        model=model_name,
        reward_funcs=reward_funcs,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=validation,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    say = trainer.accelerator.print
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        # Sharded weights would have to be gathered for each batch, by all processes in step
        test_dataset = None
        say("Sharded training: nothing is evaluated before and after. Evaluate the saved model with evaluate.py.")

    def evaluate(when):
        if test_dataset is None:
            return None
        say(f"Evaluating {when} training ...")
        greedy, sampled = (
            trainer.evaluate_attempts(test_dataset, temperature, n_turns=script_args.evaluation_turns)
            for temperature in (0.0, script_args.evaluation_temperature)
        )
        names = [name for name in greedy.metrics if not name.startswith(("tokens", "responses/"))]
        both = {"": greedy, "/sampled": sampled}
        return Evaluation(
            metrics={f"{name}{end}": found.metrics[name] for end, found in both.items() for name in names},
            per_problem={f"{name}{end}": found.per_problem[name] for end, found in both.items() for name in names},
            examples=greedy.examples,
        )

    n_test = f"{len(test_dataset)} test problems" if test_dataset is not None else "not evaluated (no test problems)"
    say(
        f"{public_name(model_name, 'model')} on {public_name(dataset_name, 'data')}: {len(train_dataset)} rows, "
        f"{n_test}"
    )
    before = evaluate("before")
    say(f"Training, stage {training_args.stage}, {training_args.turns} attempts per rollout ...")
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    after = evaluate("after")

    stages = {
        "1": "Stage I alone",
        "2": "Stage II alone",
        "both": f"{training_args.stage_1_fraction:.0%} of the steps in Stage I",
    }[training_args.stage]
    attempts = "one attempt per problem"
    if training_args.turns > 1:
        attempts = (
            f"{training_args.turns} attempts per problem, later ones asked for with: {training_args.instruction!r}"
        )
    if trainer.accelerator.is_main_process:
        write_report(
            output_dir,
            log_history=trainer.state.log_history,
            before=before,
            after=after,
            seconds=time.time() - start,
            config=as_dict(script_args, training_args, model_args),
            panels=SCORE_PANELS,
            base_model=model_name,
            dataset_name=dataset_name,
            method={
                "name": trainer._name,
                "tag": "score",
                "paper_title": trainer._paper["title"],
                "paper_id": trainer._paper["id"],
                "citation": trainer._paper["citation"],
                "description": f"The policy learns by reinforcement from {attempts}.",
                "departures": [
                    f"{training_args.num_generations} rollouts per prompt with a leave-one-out baseline per attempt, "
                    f"the KL by the {training_args.kl_estimator} estimator, {stages}: the paper does not publish its "
                    "own."
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

    from correction_trl import SCoReConfig
    from correction_trl.recipe import parse

    return parse((SCoReScriptArguments, SCoReConfig, ModelConfig), QUICKSTART, argv)


if __name__ == "__main__":
    from correction_trl.recipe import run

    run(main, *parse_arguments())
