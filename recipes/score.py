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

from dataclasses import dataclass, field
from pathlib import Path

from trl import ModelConfig

from correction_trl.named_functions import function_or_judge
from correction_trl.recipe import ScriptArguments, TrainingRun, parse, run


QUICKSTART = Path(__file__).parent / "configs" / "score" / "quickstart.yaml"


@dataclass
class SCoReScriptArguments(ScriptArguments):
    """Arguments of this recipe, beside those of the trainer and the model."""

    reward_funcs: list[str] | None = field(
        default=None, metadata={"help": "`module:function` of each reward function; see docs/rewards.md."}
    )
    extract_answer: str | None = field(
        default=None,
        metadata={
            "help": "`module:function` from an attempt to its answer, which `answer_changed` compares; default: the "
            "whole text (docs/evaluation.md)."
        },
    )
    evaluation_turns: int = field(default=2, metadata={"help": "Attempts in the evaluation."})
    evaluation_temperature: float = field(
        default=1.0, metadata={"help": "Temperature of the sampled attempts in the evaluation."}
    )


def main(script_args, training_args, model_args):
    from correction_trl import SCoReTrainer
    from correction_trl.errors import BadInput
    from correction_trl.evaluation import Evaluation
    from correction_trl.functions import named_text
    from correction_trl.reporting import SCORE_NUMBERS, SCORE_PANELS

    job = TrainingRun(script_args, training_args, model_args)
    if script_args.reward_funcs is None:
        if not job.embedded:
            raise BadInput("`reward_funcs` is not set; name at least one, for example `my_rewards:is_right`.")
        script_args.reward_funcs = ["correction_trl.carry_addition:exact_match"]
    reward_funcs = [function_or_judge(script_args, name, "reward_funcs") for name in script_args.reward_funcs]
    extractor = job.function("extract_answer")
    training_args.instruction = named_text(training_args.instruction, "instruction")
    trainer = SCoReTrainer(
        reward_funcs=reward_funcs,
        eval_dataset=job.validation,
        **({} if extractor is None else {"extract_answer": extractor}),
        **job.trainer_kwargs(SCORE_NUMBERS),
    )

    def evaluation(problems):
        greedy, sampled = (
            trainer.evaluate_attempts(problems, temperature, n_turns=script_args.evaluation_turns)
            for temperature in (0.0, script_args.evaluation_temperature)
        )
        names = [name for name in greedy.metrics if not name.startswith(("tokens", "responses/"))]
        both = {"": greedy, "/sampled": sampled}
        return Evaluation(
            metrics={f"{name}{end}": found.metrics[name] for end, found in both.items() for name in names},
            per_problem={f"{name}{end}": found.per_problem[name] for end, found in both.items() for name in names},
            examples=greedy.examples,
        )

    before = job.evaluate(trainer, "before", evaluation)
    trainer.accelerator.print(f"Training, stage {training_args.stage}, {training_args.turns} attempts per rollout ...")
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    after = job.evaluate(trainer, "after", evaluation)
    job.finish(trainer, before, after, panels=SCORE_PANELS)


def parse_arguments(argv=None):
    from correction_trl import SCoReConfig

    return parse((SCoReScriptArguments, SCoReConfig, ModelConfig), QUICKSTART, argv)


if __name__ == "__main__":
    run(main, *parse_arguments())
