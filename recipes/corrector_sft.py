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

import time
from dataclasses import dataclass, field
from pathlib import Path


QUICKSTART = Path(__file__).parent / "configs" / "corrector_sft" / "quickstart.yaml"


USAGE = """
from transformers import AutoModelForCausalLM, AutoTokenizer
from correction_trl.policy.corrector_prompt import template_of
from correction_trl.inference.iterative import correct_iteratively

name = "{name}"
model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
prompts, responses = [[{{"role": "user", "content": "Your question"}}]], ["Your model's response"]
traces = correct_iteratively(model, tokenizer, prompts, responses, message_template=template_of(name))
print(traces[0].responses[-1])
"""


@dataclass
class CorrectorScriptArguments:
    """Arguments of this recipe, beside those of the trainer and the model."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub id, folder or file. By default the embedded task."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split to evaluate on, before and after."})
    test_dataset_name: str | None = field(
        default=None, metadata={"help": "Where the test split is, if not in `dataset_name`."}
    )
    train_rows: int | None = field(default=None, metadata={"help": "Train on the first so many rows."})
    test_rows: int | None = field(default=None, metadata={"help": "Evaluate on the first so many rows."})
    value_function: str | None = field(
        default=None, metadata={"help": "`module:function` that rates responses, with TRL's reward signature."}
    )
    feedback_function: str | None = field(
        default=None, metadata={"help": "`module:function` that comments on responses, in training and evaluation."}
    )
    generator_name_or_path: str | None = field(
        default=None, metadata={"help": "Model that answers first. By default the model before training."}
    )
    answers_itself: bool = field(
        default=False, metadata={"help": "After training, the trained model also answers first in the evaluation."}
    )
    max_corrections: int = field(default=3, metadata={"help": "Corrections of each response in the evaluation."})


def main(script_args, training_args, model_args):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import get_peft_config, get_quantization_config

    from correction_trl import CorrectorSFTTrainer
    from correction_trl.carry_addition import embedded_path
    from correction_trl.corrector_sft.corrector_sft_trainer import POOL_FILE
    from correction_trl.errors import BadInput
    from correction_trl.evaluation import evaluate_corrector
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
    from correction_trl.reporting import CORRECTOR_SFT_PANELS, write_report

    start = time.time()
    output_dir = Path(training_args.output_dir)
    check_folders(output_dir, training_args.resume_from_checkpoint)
    push_to, hub_token = take_over_push(training_args)
    embedded = script_args.dataset_name is None
    dataset_name = embedded_path("carry_addition") if embedded else script_args.dataset_name
    model_name = model_args.model_name_or_path or embedded_path("tiny-carry-chat")
    generator_name = script_args.generator_name_or_path or model_name
    if embedded and script_args.value_function is None:
        script_args.value_function = "correction_trl.carry_addition:right_digits"
    if script_args.value_function is None:
        raise BadInput("`value_function` is required: `module:function` that rates responses.")
    value_function = import_function(script_args.value_function, "value_function")
    feedback_function = None
    if script_args.feedback_function:
        feedback_function = import_function(script_args.feedback_function, "feedback_function")

    train_dataset = load_split(
        dataset_name, script_args.dataset_config, script_args.dataset_train_split, script_args.train_rows
    )
    test_dataset, test_name = None, script_args.test_dataset_name
    if test_name is None and not Path(dataset_name).is_file():  # a file holds what is trained on, and nothing else
        test_name = dataset_name
    if test_name is not None:
        config_name = script_args.dataset_config if test_name == dataset_name else None
        test_dataset = load_split(test_name, config_name, script_args.dataset_test_split, script_args.test_rows)

    set_model_init_kwargs(training_args, model_args)
    trainer = CorrectorSFTTrainer(
        model=model_name,
        args=training_args,
        train_dataset=train_dataset,
        value_function=value_function,
        feedback_function=feedback_function,
        generator=script_args.generator_name_or_path,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    say = trainer.accelerator.print

    def evaluate(trained):
        if test_dataset is None:
            return None
        corrector = trainer.accelerator.unwrap_model(trainer.model)
        generator, generator_tokenizer = corrector, trainer.processing_class
        # Before training the model is its own generator, unless another was named
        if (trained and not script_args.answers_itself) or script_args.generator_name_or_path:
            generator = AutoModelForCausalLM.from_pretrained(
                generator_name,
                dtype=model_args.dtype,
                quantization_config=get_quantization_config(model_args),
                device_map={"": str(trainer.accelerator.device)},
            )
            generator_tokenizer = AutoTokenizer.from_pretrained(generator_name)
        return evaluate_corrector(
            corrector,
            trainer.processing_class,
            generator,
            generator_tokenizer,
            test_dataset,
            value_function,
            feedback_function,
            max_corrections=script_args.max_corrections if training_args.show_response else 0,
            message_template=training_args.message_template,
            max_completion_length=training_args.max_completion_length,
            batch_size=training_args.per_device_eval_batch_size,
            seed=training_args.seed,
            threshold=training_args.right,
            chat_template_kwargs=training_args.chat_template_kwargs,
        )

    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        # Sharded weights would have to be gathered for each batch, by all processes in step
        test_dataset = None
        say("Sharded training: nothing is evaluated before and after. Evaluate the saved model on its own.")
    n_test = f"{len(test_dataset)} test problems" if test_dataset is not None else "not evaluated (no test problems)"
    say(
        f"{public_name(model_name, 'model')} corrects {public_name(generator_name, 'model')} on "
        f"{public_name(dataset_name, 'data')}: {len(trainer.train_dataset)} prompts, {n_test}"
    )
    if test_dataset is not None:
        say("Evaluating before training ...")
    before = evaluate(trained=False)
    say("Sampling, learning and exploring ...")
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    if test_dataset is not None:
        say("Evaluating after training ...")
    after = evaluate(trained=True)

    if trainer.accelerator.is_main_process:
        trainer.pool.save(output_dir / POOL_FILE)
        write_report(
            output_dir,
            log_history=trainer.state.log_history,
            before=before,
            after=after,
            seconds=time.time() - start,
            config=as_dict(script_args, training_args, model_args),
            panels=CORRECTOR_SFT_PANELS,
            base_model=model_name,
            dataset_name=dataset_name,
            method={
                "name": trainer._name,
                "tag": "corrector-sft",
                "paper_title": trainer._paper["title"],
                "paper_id": trainer._paper["id"],
                "citation": trainer._paper["citation"],
                "description": "It corrects responses: it minimises -log p(y'|y, x, f(y)) on pairs of responses y, "
                f"y' to a prompt x of which y' is better (pairs: {training_args.pairing}, "
                f"{training_args.pair_filter}; feedback: {script_args.feedback_function or 'none'}). `acc@t1` is the "
                "generator alone, `acc@t2` after one correction. The message between response and correction is in "
                "`corrector_message.jinja`.",
                "departures": [
                    "Equal responses to a prompt are merged; the similarity is the normalised edit distance (the "
                    f"paper names none); alpha {training_args.alpha} and beta {training_args.beta} are this package's."
                ],
            },
            license="apache-2.0" if embedded and model_args.model_name_or_path is None else None,
            hub_model_id=push_to,
            peft=model_args.use_peft,
            usage=USAGE.strip().format(name=push_to or "path/to/this/folder") if training_args.show_response else None,
        )
        if push_to:
            push_folder(training_args.output_dir, push_to, training_args.hub_private_repo, hub_token)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


def parse_arguments(argv=None):
    from trl import ModelConfig

    from correction_trl import CorrectorSFTConfig
    from correction_trl.recipe import parse

    return parse((CorrectorScriptArguments, CorrectorSFTConfig, ModelConfig), QUICKSTART, argv)


if __name__ == "__main__":
    from correction_trl.recipe import run

    run(main, *parse_arguments())
