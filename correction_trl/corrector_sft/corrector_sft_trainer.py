import inspect
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from datasets import Dataset
from peft import PeftConfig, PeftModel
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
)
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import get_config_model_id

from ..checkpoints import CheckpointTrainerMixin
from ..data_utils import NOT_FOR_THE_TEACHER, chat_template_kwargs, check_dataset, share_of_process
from ..errors import BadInput
from ..evaluation.corrector import evaluate_corrector
from ..evaluation.evaluate import Evaluation
from ..functions import Prompt, import_function, try_feedback_function, try_value_function
from ..policy.completions import CompletionEncoder
from ..policy.corrector_prompt import CorrectorPrompt
from ..policy.generation import Sampler, numbered
from ..policy.loading import load_policy
from ..policy.micro_batches import MicroBatchTrainerMixin
from ..policy.quantization import keep_trainable_on_cpu
from ..policy.reference import check_model_to_train
from ..policy.rollout import Rollouts
from ..policy.tokenization import check_prompts, check_tokenizer, tokenize_prompt
from ..reporting.trainer_card import ModelCardMixin
from .corrector_sft_config import CorrectorSFTConfig
from .pair_pool import CORRECTOR, GOLD, PairPool, Record


logger = get_logger(__name__)

POOL_FILE = "pair_pool.parquet"
USAGE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer
from correction_trl.policy.corrector_prompt import template_of
from correction_trl.inference import correct_iteratively

name = "{name}"
model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
prompts, responses = [[{"role": "user", "content": "Your question"}]], ["Your model's response"]
traces = correct_iteratively(model, tokenizer, prompts, responses, message_template=template_of(name))
print(traces[0].responses[-1])"""
NOT_FOR_FUNCTIONS = (*NOT_FOR_THE_TEACHER, "prompt_ids", "generations")


class CorrectorSFTTrainer(CheckpointTrainerMixin, ModelCardMixin, MicroBatchTrainerMixin, SFTTrainer):
    r"""
    Trainer for a corrector, a model that improves another model's responses (or its own): Self-Correct
    ([paper](https://huggingface.co/papers/2211.00053)).

    A generator answers each prompt x several times; the responses y with their values v(y) and feedback f(y) are a
    pool. The corrector minimises

    $$ -\log p_\theta(y' \mid y, x, f(y)) $$

    on the tokens of y' alone, over pairs with v(y) < v(y') drawn from the pool in proportion to
    $\exp(\alpha (v(y') - v(y)) + \beta s(y, y'))$, s being their similarity (see [`PairPool`]). Every
    `exploration_steps` updates it corrects responses of the pool, and its corrections join the pool: learning and
    exploration alternate inside one run, with one optimizer.

    **How it departs from the paper.** Equal responses to a prompt are merged. The similarity is the normalised edit
    distance; the paper names none. α, β and the sizes are not published: the defaults are this package's. The loss is
    the mean over the tokens of an update, as in `SFTTrainer`. Responses longer than the context, and corrections that
    were cut off, are in no pair. With `pair_filter="non_decreasing"` the corrector also learns to leave right
    responses alone.

    **Baselines** are settings of it (see `recipes/configs/corrector_sft/`): Pair-SFT and STaR as in SCoRe
    ([paper](https://huggingface.co/papers/2409.12917)), STaSC ([paper](https://huggingface.co/papers/2503.08681)),
    plain fine-tuning on gold.

    **What it overrides.** `_prepare_dataset`, `_set_signature_columns_if_needed`, `get_batch_samples`, `save_model`,
    `_save_checkpoint` and `_load_optimizer_and_scheduler` of `SFTTrainer`. The data loader only sets the pace: one
    epoch is as many pairs as there are prompts.

    Example:

    ```python
    from datasets import load_dataset
    from correction_trl import CorrectorSFTConfig, CorrectorSFTTrainer
    from correction_trl.carry_addition import right_digits

    trainer = CorrectorSFTTrainer(
        model="data/tiny-carry-chat",
        args=CorrectorSFTConfig(output_dir="out", max_completion_length=16, max_steps=10, bf16=False),
        train_dataset=load_dataset("data/carry_addition", split="train[:100]"),
        value_function=right_digits,
    )
    trainer.train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The corrector: a Hub id, a folder, or a loaded causal language model.
        args ([`CorrectorSFTConfig`], *optional*):
            Configuration. If `None`, a default one is used.
        train_dataset ([`~datasets.Dataset`]):
            Column `prompt` (plain or conversational) and what the functions need. A column `generations` (a list of
            texts per row) holds responses that a generator gave elsewhere.
        value_function (`Callable`):
            v, with the signature of TRL's reward functions. A row on which it returns `None` or NaN, or raises, is
            counted and in no pair.
        feedback_function (`Callable`, *optional*):
            f: the same inputs, one text each. The corrector then reads it, in training and when it is used.
        generator (`str` or [`~transformers.PreTrainedModel`], *optional*):
            Samples the first responses. By default the model as it is before training.
        generator_processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The generator's tokenizer; by default loaded with it.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The corrector's tokenizer; by default loaded with it.
        callbacks (`list[TrainerCallback]`, *optional*):
            Further callbacks.
        optimizers (`tuple`, *optional*):
            An optimizer and a scheduler of your own, as in [`~transformers.Trainer`].
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            For loading `model` quantized; with `peft_config`: QLoRA.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter to train.
        pair_feedback_function (`Callable`, *optional*):
            f(y, y'): called with `corrections` as well, the better responses of the pairs, and read in training in
            place of f(y), where the paper's feedback tells what changes. At test time, and in explorations, there is
            no y' yet and `feedback_function` speaks.

    Raises:
        BadInput: If the data, the functions or the settings cannot work together; the message names the row, the
            column or the setting.
    """

    _recorded = ("_metrics", "_total_train_tokens")
    _tag_names = ["trl", "correction_trl", "corrector-sft"]
    _name = "Self-Correct (corrector SFT)"
    _paper = {
        "title": "Generating Sequences by Learning to Self-Correct",
        "id": "2211.00053",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @inproceedings{welleck2023generating,
                title        = {{Generating Sequences by Learning to Self-Correct}},
                author       = {Sean Welleck and Ximing Lu and Peter West and Faeze Brahman and Tianxiao Shen and
                                Daniel Khashabi and Yejin Choi},
                year         = 2023,
                booktitle    = {The Eleventh International Conference on Learning Representations},
                url          = {https://openreview.net/forum?id=hH36JeQZDaO},
            }"""),
    }

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        args: CorrectorSFTConfig | None = None,
        train_dataset: Dataset | None = None,
        value_function: Callable | None = None,
        feedback_function: Callable | None = None,
        generator: str | PreTrainedModel | None = None,
        generator_processing_class: PreTrainedTokenizerBase | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        pair_feedback_function: Callable | None = None,
    ):
        if args is None:
            model_name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = CorrectorSFTConfig(f"{model_name.split('/')[-1]}-corrector-sft")

        # Everything that can be wrong with the data is said before a model is loaded.
        check_model_to_train(model, peft_config, processing_class)
        _check_inputs(args, train_dataset, value_function, feedback_function, generator)
        self._has_generations = "generations" in train_dataset.column_names
        _check_pair_feedback(pair_feedback_function, train_dataset.column_names)
        self.value_function, self.feedback_function = value_function, feedback_function
        self.pair_feedback_function = pair_feedback_function
        self._generator, self._generator_tokenizer = generator, generator_processing_class
        self._quantization_config = quantization_config
        super().__init__(
            model=model,
            args=args,
            data_collator=list,  # the pairs of an update come from the pool
            train_dataset=train_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        if args.restart and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise BadInput("`restart` needs the whole weights in each process: not with FSDP or DeepSpeed.")
        if self.accelerator.device.type == "cpu":
            keep_trainable_on_cpu(self.model)
        self._initial_weights = None
        if args.restart:
            parameters = self.model.named_parameters()
            self._initial_weights = {name: p.detach().cpu().clone() for name, p in parameters if p.requires_grad}
        self._prompt_ids_column = self.train_dataset.select_columns("prompt_ids")
        self._set_up_sampling()  # gives a tokenizer without a padding token (GPT-2's) one
        self._pad = DataCollatorForLanguageModeling(
            self._tokenizer.pad_token_id, pad_to_multiple_of=args.pad_to_multiple_of
        )
        self.pool = PairPool(
            n_prompts=len(self.train_dataset),
            alpha=args.alpha,
            beta=args.beta,
            similarity=import_function(args.similarity, "similarity"),
            pairing=args.pairing,
            pair_filter=args.pair_filter,
            correct_threshold=args.correct_threshold,
            max_per_prompt=args.max_per_prompt,
            drop=args.pool_drop,
        )
        if args.initial_pool is not None:
            self.pool.load(args.initial_pool)

    # ------------------------------------------------------------------ data

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        conversational = not isinstance(dataset[0]["prompt"], str)
        check_tokenizer(self._tokenizer, conversational)
        tokenizer, common = self._tokenizer, args.chat_template_kwargs or {}  # datasets would pickle the trainer
        check_prompts(tokenizer, dataset, "train_dataset", **common)

        def prompt_ids(row):
            return {"prompt_ids": tokenize_prompt(tokenizer, row["prompt"], **common | chat_template_kwargs(row))[1]}

        dataset = dataset.map(prompt_ids, num_proc=args.dataset_num_proc, desc="Tokenizing prompts")
        if args.max_length is None:
            return dataset
        n_completions = 2 if args.show_response else 1
        limit = args.max_length - n_completions * args.max_completion_length
        fits = dataset.filter(lambda row: len(row["prompt_ids"]) <= limit, num_proc=args.dataset_num_proc)
        if not len(fits):
            raise BadInput(
                f"No prompt leaves room for {n_completions} completions of `max_completion_length="
                f"{args.max_completion_length}` tokens within `max_length={args.max_length}`; raise the latter."
            )
        if len(fits) < len(dataset):
            logger.warning(
                f"{len(dataset) - len(fits)} of {len(dataset)} prompts are left out: they are longer than "
                f"`max_length` - {n_completions} `max_completion_length` = {limit} tokens."
            )
        return fits

    def _set_signature_columns_if_needed(self):
        self._signature_columns = ["prompt_ids"]

    def _prompt_ids(self, numbers: list[int]) -> list[list[int]]:
        return self._prompt_ids_column[numbers]["prompt_ids"]

    def _rows(self, numbers: list[int]) -> tuple[list, dict[str, list]]:
        """Prompts of the dataset, and the columns for the value and feedback functions."""
        batch = self.train_dataset[numbers]
        return batch["prompt"], {key: values for key, values in batch.items() if key not in NOT_FOR_FUNCTIONS}

    # ------------------------------------------------------------------ sampling

    def _set_up_sampling(self):
        args = self.args
        conversational = not isinstance(self.train_dataset[0]["prompt"], str)
        self.rollouts = Rollouts(args.rollout, args.rollout_weights, args.generation_batch_size)
        self._sampler = self._make_sampler(self.model, self._tokenizer, self.rollouts, trainer=self)
        stop_ids = self._sampler.stop_ids
        self._encode_completion = CompletionEncoder(self._tokenizer, stop_ids, missing_thoughts="empty")
        self.corrector_prompt = CorrectorPrompt(
            self._tokenizer, stop_ids, conversational, args.message_template, args.chat_template_kwargs
        )
        if args.show_response:  # what is wrong with a template is said before anything is sampled
            told = self.feedback_function or self.pair_feedback_function
            self.corrector_prompt([], [], None if told is None else "feedback")

    def _make_sampler(
        self, model, tokenizer: PreTrainedTokenizerBase, rollouts: Rollouts, trainer: Trainer | None = None
    ) -> Sampler:
        args = self.args
        return Sampler(
            model,
            tokenizer,
            args.max_completion_length,
            args.temperature,
            args.top_p,
            args.top_k,
            args.generation_kwargs,
            seed=args.seed,
            trainer=trainer,
            engine=rollouts,
        )

    def _names(self, what: str, numbers: list[int]) -> list[tuple]:
        """What the samples of this step are called: a resumed run samples what the uninterrupted one did."""
        return [(what, self.state.global_step, number, sample) for number, sample in numbered(numbers)]

    def _sample_from_generator(self, numbers: list[int]) -> list[tuple[str, list[int], bool]]:
        """Text, ids for the corrector, and whether it is whole, of one response of the generator to each prompt."""
        if self._generator is None:
            found = self._sampler(self._prompt_ids(numbers), self._names("generator", numbers))
            return [(text, ids, not cut) for text, ids, cut in zip(found.texts, found.ids, found.cut_off, strict=True)]
        generator, tokenizer = self._generator, self._generator_tokenizer
        if isinstance(generator, str):
            generator, own_tokenizer = load_policy(generator, dtype="auto")
            tokenizer = tokenizer or own_tokenizer
        elif tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(get_config_model_id(generator.config))
        prompts = self.train_dataset[numbers]["prompt"]
        check_tokenizer(tokenizer, not isinstance(prompts[0], str))
        generator = generator.to(self.accelerator.device).eval()
        prompt_ids = [ids for *_, ids in self._render(numbers, tokenizer)]
        rollouts = Rollouts(self.args.rollout, self.args.rollout_weights, self.args.generation_batch_size)
        found = self._make_sampler(generator, tokenizer, rollouts)(prompt_ids, self._names("generator", numbers))
        ids = self._encode(numbers, found.texts)  # of the corrector's tokenizer
        return [(text, one, not cut) for text, one, cut in zip(found.texts, ids, found.cut_off, strict=True)]

    def _encode(self, numbers: list[int], texts: list[str]) -> list[list[int]]:
        """Ids of responses that are given as text."""
        return [
            self._encode_completion(prompt, prompt_text, prompt_ids, text, kwargs)
            for (prompt, kwargs, prompt_text, prompt_ids), text in zip(
                self._render(numbers, self._tokenizer), texts, strict=True
            )
        ]

    def _render(
        self, numbers: list[int], tokenizer: PreTrainedTokenizerBase
    ) -> list[tuple[Prompt, dict[str, Any], str, list[int]]]:
        """Prompts, the arguments of their chat template, their texts and ids."""
        common = self.args.chat_template_kwargs or {}
        rows = [self.train_dataset[n] for n in numbers]
        kwargs = [common | chat_template_kwargs(row) for row in rows]
        return [
            (row["prompt"], of_row, *tokenize_prompt(tokenizer, row["prompt"], **of_row))
            for row, of_row in zip(rows, kwargs, strict=True)
        ]

    # ------------------------------------------------------------------ the pool

    def fill_pool(self):
        """Put the generator's responses and the gold ones into the pool. Training does it where the pool is empty."""
        args, step = self.args, self.state.global_step
        mine = share_of_process(range(len(self.train_dataset)))
        records = []
        if self._has_generations:
            given = [(n, text) for n in mine for text in self.train_dataset[n]["generations"] if text]
            numbers, texts = [n for n, _ in given], [text for _, text in given]
            ids = self._encode(numbers, texts) if given else []
            records += [Record(n, text, i, None, step=step) for n, text, i in zip(numbers, texts, ids, strict=True)]
        elif args.samples_per_prompt:
            numbers = [n for n in mine for _ in range(args.samples_per_prompt)]
            for n, (text, ids, whole) in zip(numbers, self._sample_from_generator(numbers), strict=True):
                records.append(Record(n, text, ids, None, step=step, can_be_target=whole))
        if args.gold_column is not None:
            gold = self.train_dataset[mine][args.gold_column]
            known = [(n, text) for n, text in zip(mine, gold, strict=True) if text]
            ids = self._encode([n for n, _ in known], [text for _, text in known]) if known else []
            for (n, text), one in zip(known, ids, strict=True):
                records.append(Record(n, text, one, None, source=GOLD, step=step))
        self._judge_and_add(records, "generator")

    def _correct_pool(self):
        """Exploration: the model corrects responses of the pool."""
        args, step = self.args, self.state.global_step
        rng = np.random.default_rng([args.seed, step, 1])
        prompts = np.arange(self.pool.n_prompts)
        if args.exploration_prompts is not None and args.exploration_prompts < len(prompts):
            prompts = rng.choice(prompts, args.exploration_prompts, replace=False)
        hypotheses = share_of_process(self.pool.hypotheses(prompts, args.exploration_hypotheses, rng).tolist())
        hypotheses = [i for i in hypotheses for _ in range(args.exploration_samples)]
        numbers = self.pool.prompt[hypotheses].tolist()
        prompt_ids = self._prompt_ids(numbers) if numbers else []
        inputs = [
            self.corrector_prompt(of_prompt, self.pool.ids(i), self.pool.feedback[i])
            for of_prompt, i in zip(prompt_ids, hypotheses, strict=True)
        ]
        found = self._sampler(inputs, self._names("corrector", hypotheses))
        records = [
            Record(n, text, ids, None, source=CORRECTOR, step=step, parent=i, can_be_target=not cut_off)
            for n, i, text, ids, cut_off in zip(
                numbers, hypotheses, found.texts, found.ids, found.cut_off, strict=True
            )
        ]
        values = self.pool.value  # the columns are replaced when responses are added
        records = self._judge_and_add(records, "corrector")
        gains = np.array([r.value - values[r.parent] for r in records if r.value is not None])
        gains = gains[~np.isnan(gains)]
        if len(gains):
            self._metrics["train"]["exploration/value_gain"].append(float(gains.mean()))
            self._metrics["train"]["exploration/improved"].append(float((gains > 0).mean()))
            self._metrics["train"]["exploration/worsened"].append(float((gains < 0).mean()))

    def _judge_and_add(self, records: list[Record], what: str) -> list[Record]:
        """Rate this process's new responses, comment on them, and put those of all processes into the pool."""
        prompts, columns = self._rows([record.prompt for record in records]) if records else ([], {})
        texts = [record.text for record in records]
        failures = {}
        values, failures["value"] = try_value_function(self.value_function, prompts, texts, columns)
        feedback = [None] * len(records)
        if self.feedback_function is not None:
            feedback, failures["feedback"] = try_feedback_function(self.feedback_function, prompts, texts, columns)
        prompt_ids = self._prompt_ids([record.prompt for record in records]) if records else []
        for record, value, text, ids in zip(records, values, feedback, prompt_ids, strict=True):
            record.value, record.feedback = value, text
            if self.args.max_length is not None:
                read = self.corrector_prompt(ids, record.ids, text) if self.args.show_response else ids
                record.can_be_hypothesis = len(read) + self.args.max_completion_length <= self.args.max_length
                record.can_be_target &= len(record.ids) <= self.args.max_completion_length
        for function, problems in failures.items():
            if problems:
                warnings.warn(
                    f"Step {self.state.global_step}: {len(problems)} of {len(records)} responses got no {function}; "
                    f"they are kept{', and are in no pair' if function == 'value' else ''}. The first: {problems[0]}",
                    stacklevel=2,
                )
        if self.accelerator.num_processes > 1:
            records = gather_object(records)
        if what == "generator" and records and not any(record.can_be_hypothesis for record in records):
            raise BadInput(
                f"No response leaves room for a correction within `max_length={self.args.max_length}` "
                "tokens, its feedback included; raise `max_length` or shorten the feedback."
            )
        unjudged = sum(record.value is None for record in records)
        cut_off = sum(not record.can_be_target for record in records)
        metrics = self._metrics["train"]
        metrics[f"{what}/unjudged"].append(unjudged / max(len(records), 1))
        metrics[f"{what}/truncated"].append(cut_off / max(len(records), 1))
        self.pool.add(records)
        return records

    def _explore_if_due(self):
        step, args = self.state.global_step, self.args
        start = not len(self.pool)
        due = (
            bool(args.exploration_steps) and step % args.exploration_steps == 0 and (step > 0 or args.pairing == "own")
        )
        if not start and not due:
            return
        began = time.perf_counter()
        if start:
            self.fill_pool()
            if self.accelerator.is_main_process:  # its samples may have taken hours: `initial_pool` starts from them
                self.pool.save(Path(args.output_dir) / POOL_FILE)
        if due:
            previous = None if args.accumulate else self.pool.copy()
            if args.evolving_generator and step > 0:
                if not args.accumulate:
                    self.pool.keep(np.zeros(len(self.pool), bool))
                self.fill_pool()
            elif not args.accumulate:
                self.pool.keep(self.pool.source != CORRECTOR)
            self._correct_pool()
            if previous is not None and step > 0 and not self.pool.has_pairs():
                warnings.warn(
                    f"Step {step}: this round of exploration found no pair; training goes on with the last round's.",
                    stacklevel=2,
                )
                self.pool = previous
            if self._initial_weights is not None and step > 0:
                self._restart()
        metrics = self._metrics["train"]
        for name, value in self.pool.statistics().items():
            metrics[f"pool/{name}"].append(value)
        for name, share in self.rollouts.pop_metrics().items():
            metrics[name].append(share)
        metrics["time/exploration"].append(time.perf_counter() - began)

    def _restart(self):
        """The initial weights, and an optimizer that has seen nothing."""
        with torch.no_grad():
            for name, parameter in self.accelerator.unwrap_model(self.model).named_parameters():
                if name in self._initial_weights:
                    parameter.copy_(self._initial_weights[name])
        self.optimizer.optimizer.state.clear()

    # ------------------------------------------------------------------ learning

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | None]:
        # The data loader says how many batches; what is in them is drawn from the pool. The pairs of an update depend
        # on the seed, the step and the pool alone, and the processes share them.
        num_batches = len(super().get_batch_samples(epoch_iterator, num_batches, device)[0])
        if not num_batches:
            return [], None
        self._explore_if_due()
        size, n_processes = self.args.per_device_train_batch_size, self.accelerator.num_processes
        rng = np.random.default_rng([self.args.seed, self.state.global_step, 0])
        pairs = self.pool.sample(num_batches * n_processes * size, rng)
        self._metrics["train"]["pairs/similarity"].append(float(pairs.similarity.mean()))
        self._metrics["train"]["pairs/value_gain"].append(float(pairs.value_gain.mean()))
        shape = num_batches, n_processes, size  # (A, P, B): every process draws all pairs and keeps its column
        hypotheses = pairs.hypothesis.reshape(shape)[:, self.accelerator.process_index]
        targets = pairs.target.reshape(shape)[:, self.accelerator.process_index]
        if self._counts_tokens():
            examples = self._examples(hypotheses.ravel().tolist(), targets.ravel().tolist())
            lengths = [len(example["input_ids"]) for example in examples]
            longest = max(examples, key=lambda example: len(example["input_ids"]))
            self._find_max_tokens(lambda n: (self._pad([longest] * n), n * max(lengths)), len(examples))
            batches = self._cut(lengths, lambda rows: self._pad([examples[row] for row in rows]), num_batches)
            return batches, self._get_num_items_in_batch(batches[-1], device)
        batches = [
            self._pad(self._examples(*both)) for both in zip(hypotheses.tolist(), targets.tolist(), strict=True)
        ]
        return batches, self._get_num_items_in_batch(batches, device)

    def _examples(self, hypotheses: list[int], targets: list[int]) -> list[dict[str, list[int]]]:
        prompts = self._prompt_ids(self.pool.prompt[hypotheses].tolist())
        feedback = self._feedback_on_pairs(hypotheses, targets)
        examples = []
        for ids, hypothesis, target, told in zip(prompts, hypotheses, targets, feedback, strict=True):
            if self.args.show_response:
                ids = self.corrector_prompt(ids, self.pool.ids(hypothesis), told)
            correction = self.pool.ids(target)
            # The loss is on y' alone, not on x, y and the instruction
            examples.append({"input_ids": [*ids, *correction], "labels": [-100] * len(ids) + correction})
        return examples

    def _feedback_on_pairs(self, hypotheses: list[int], targets: list[int]) -> list[str | None]:
        """What the corrector is told of each pair: f(y), or what a function says that sees y' as well."""
        if self.pair_feedback_function is None:
            return [self.pool.feedback[i] for i in hypotheses]
        prompts, columns = self._rows(self.pool.prompt[hypotheses].tolist())
        responses, corrections = ([self.pool.text[i] for i in of] for of in (hypotheses, targets))
        columns["corrections"] = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, corrections, strict=True)
        ]
        feedback, problems = try_feedback_function(self.pair_feedback_function, prompts, responses, columns)
        if problems:
            warnings.warn(
                f"Step {self.state.global_step}: {len(problems)} of {len(feedback)} pairs got no feedback. The first: "
                f"{problems[0]}",
                stacklevel=2,
            )
        return feedback

    # ------------------------------------------------------------------ evaluation and card

    def evaluate_corrector(
        self, dataset: Dataset, generator: str | None = None, max_corrections: int = 3, **kwargs: Any
    ) -> Evaluation:
        """
        [`~correction_trl.evaluation.evaluate_corrector`] of the model as it is now, with the run's settings.

        Args:
            dataset ([`~datasets.Dataset`]):
                Column `prompt`, and what the functions need.
            generator (`str`, *optional*):
                Hub id or folder of the model that answers first, loaded as this one was; by default the model itself.
            max_corrections (`int`, *optional*, defaults to `3`):
                Most corrections of a response; none, if it was trained without seeing responses (`show_response`).
            **kwargs:
                Passed on.
        """
        args, corrector = self.args, self.accelerator.unwrap_model(self.model)
        answers, tokenizer = corrector, self._tokenizer
        if generator is not None:
            answers, tokenizer = load_policy(
                generator,
                dtype=(args.model_init_kwargs or {}).get("dtype", "auto"),
                quantization_config=self._quantization_config,
                device_map={"": str(self.accelerator.device)},
            )
        return evaluate_corrector(
            corrector,
            self._tokenizer,
            answers,
            tokenizer,
            dataset,
            self.value_function,
            self.feedback_function,
            **{
                "max_corrections": max_corrections if args.show_response else 0,
                "message_template": args.message_template,
                "max_completion_length": args.max_completion_length,
                "batch_size": args.per_device_eval_batch_size,
                "seed": args.seed,
                "correct_threshold": args.correct_threshold,
                "chat_template_kwargs": args.chat_template_kwargs,
                "rollouts": self.rollouts,
                **kwargs,
            },
        )

    def card_notes(self) -> dict[str, Any]:
        args, feedback = self.args, self.feedback_function
        feedback = self.pair_feedback_function or feedback
        comments = "none" if feedback is None else getattr(feedback, "__name__", type(feedback).__name__)
        notes = {
            "description": "It corrects responses: it minimises -log p(y'|y, x, f(y)) on pairs of responses y, y' to "
            f"a prompt x of which y' is better (pairs: {args.pairing}, {args.pair_filter}; feedback: {comments}). "
            "`acc@t1` is the generator alone, `acc@t2` after one correction. The message between response and "
            "correction is in `corrector_message.jinja`.",
            "departures": [
                "Equal responses to a prompt are merged; the similarity is the normalised edit distance (the paper "
                f"names none); alpha {args.alpha} and beta {args.beta} are this package's."
            ],
        }
        return {**notes, "usage": USAGE} if args.show_response else notes

    # ------------------------------------------------------------------ checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        super().save_model(output_dir, _internal_call)
        if (
            self.args.should_save and not _internal_call and len(self.pool)
        ):  # a checkpoint has the pool from `_save_checkpoint`
            self.pool.save(Path(output_dir or self.args.output_dir) / POOL_FILE)
        if self.args.should_save and self.args.show_response:  # who corrects with the model needs its instruction
            self.corrector_prompt.save(output_dir or self.args.output_dir)

    def _side_files(self) -> list[str]:
        return [POOL_FILE]

    def _write_side_files(self, folder: Path):
        if self.accelerator.is_main_process:
            self.pool.save(folder / POOL_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.pool.load(Path(checkpoint) / POOL_FILE)


def _check_inputs(
    args: CorrectorSFTConfig,
    train_dataset: Dataset | None,
    value_function: Callable | None,
    feedback_function: Callable | None,
    generator: str | PreTrainedModel | None,
) -> None:
    if train_dataset is None:
        raise BadInput("`train_dataset` is required: prompts, and what the value function needs.")
    if not isinstance(train_dataset, Dataset):
        raise BadInput("A corrector needs a map-style dataset; load it with `streaming=False`.")
    if not callable(value_function):
        raise BadInput("`value_function` is required: a function that rates responses, not a model id.")
    if feedback_function is not None and not callable(feedback_function):
        raise BadInput("`feedback_function` must be a function that returns one text per response.")
    check_dataset(train_dataset, "train_dataset", value_function)
    columns = train_dataset.column_names
    if args.gold_column is not None and args.gold_column not in columns:
        raise BadInput(f"`gold_column={args.gold_column!r}` is no column; there are {', '.join(columns)}.")
    for setting, function in (("value_function", value_function), ("feedback_function", feedback_function)):
        if function is not None:
            _check_arguments(setting, function, columns)
    has_generations = "generations" in columns
    if has_generations and (generator is not None or args.evolving_generator):
        raise BadInput(
            "The dataset brings its `generations`; drop that column, or `generator` and `evolving_generator`."
        )
    if generator is not None and args.evolving_generator:
        raise BadInput("With `evolving_generator` the model itself is the generator; drop `generator`.")
    if not (args.samples_per_prompt or has_generations or args.gold_column or args.initial_pool):
        raise BadInput("There is nothing to learn from: set `samples_per_prompt` or `gold_column`.")
    if {"image", "images"} & set(columns):
        raise BadInput("A corrector reads text; drop the column with images.")
    if args.accelerator_config.split_batches:
        raise BadInput("`split_batches` is not supported: every process draws its own share of the pairs.")


def _check_pair_feedback(function: Callable | None, columns: list[str]) -> None:
    if function is None:
        return
    if not callable(function):
        raise BadInput("`pair_feedback_function` must be a function that returns one text per pair.")
    if "corrections" in columns:
        raise BadInput(
            "`train_dataset`: rename the column 'corrections'; `pair_feedback_function` gets an argument of that name."
        )
    _check_arguments("pair_feedback_function", function, columns, corrections=[])


def _check_arguments(setting: str, function: Callable, columns: list[str], **more: list) -> None:
    """See that a function can be called with the columns of the dataset, before anything is sampled for it."""
    arguments = {column: [] for column in columns if column not in NOT_FOR_FUNCTIONS} | more
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C do not tell
        return
    try:
        signature.bind(prompts=[], completions=[], **arguments)
    except TypeError as error:
        raise BadInput(
            f"The `{setting}` cannot be called with `prompts`, `completions` and the dataset's columns "
            f"({', '.join(arguments) or 'none'}): {error}."
        ) from None
