import json
import math
import textwrap
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather, gather_object, is_peft_model
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import RLOOTrainer
from trl.models import prepare_fsdp
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model, get_config_model_id, pad, use_adapter

from ..checkpoints import CheckpointTrainerMixin
from ..data_utils import chat_template_kwargs, check_dataset, message_text, with_checked_rows
from ..errors import BadInput
from ..evaluation.attempts import evaluate_attempts
from ..evaluation.metrics import edit_distance_ratio
from ..functions import as_value_function, call_value_function
from ..inference.answers import whole_text
from ..policy.attempts import FollowUp, FollowUps
from ..policy.generation import Sampler, seed_of, seeded
from ..policy.micro_batches import MicroBatches, MicroBatchTrainerMixin
from ..policy.quantization import keep_trainable_on_cpu
from ..policy.reference import (
    check_model_to_train,
    check_reference,
    copy_policy_to_reference,
    reference_cause,
    reference_of,
    reference_parameters,
)
from ..policy.rollout import Rollouts
from ..policy.tokenization import check_prompts, check_tokenizer, decode, tokenize_prompt
from ..reporting.trainer_card import ModelCardMixin
from .score_config import SCoReConfig
from .turn_credit import leave_one_out, multi_turn_loss, turn_returns, turn_sums


# What a checkpoint holds beside Trainer's files
STATE_FILE, REFERENCE_FILE = "score_state.json", "reference.safetensors"


class SCoReTrainer(CheckpointTrainerMixin, ModelCardMixin, MicroBatchTrainerMixin, RLOOTrainer):
    r"""
    Trainer for SCoRe, multi-turn reinforcement learning of self-correction
    ([paper](https://huggingface.co/papers/2409.12917)). A policy π answers x with y₁, is told that there might be an
    error, and answers again with y₂. With a reward r that is known at training time only:

    $$ \text{Stage I:} \quad \max_\pi \; \mathbb{E}\left[r(y_2) - \beta_2 KL_1 - \beta_1 (KL_1 + KL_2)\right] $$

    $$ \text{Stage II:} \quad \max_\pi \; \mathbb{E}\left[r(y_1) + r(y_2) + \alpha (r(y_2) - r(y_1)) - \beta_1 (KL_1 +
    KL_2)\right] $$

    where KL_t is the divergence of attempt t from the reference policy. Credit is per attempt (γ = 0): the tokens of
    y₁ are reinforced with r(y₁) alone (in Stage I with nothing: they see only the KL), the tokens of y₂ with r(y₂) and
    the bonus. The baseline is, per attempt, the mean of the other rollouts of the prompt (RLOO,
    [paper](https://huggingface.co/papers/2402.14740)).

    **How it departs from its paper.** The paper publishes neither the number of rollouts per prompt, nor the
    baseline, nor the estimator of the KL, nor how the steps are split between the stages; here these are
    `num_generations`, leave-one-out, `kl_estimator` (by default the score function, unbiased) and `stage_1_fraction`.
    Of what the paper calls possible, adaptive β₂ (`first_attempt_kl_target`) and more than two attempts (`turns`) are
    there; first attempts from the base model and alternating stages are not. The stage switches within a run; the
    optimizer goes on.

    **Tokens.** Both attempts are trained as the ids that were sampled, from one forward over one row `[x, y1,
    instruction, y2]`; the second prompt is those ids, never a re-rendered conversation. Instruction, template and
    padding tokens are in no loss. A second attempt continues from the first one's key-value cache where the model's
    attention allows it.

    **Rewards.** Functions with TRL's signature, several with `reward_weights`, async ones too. Each attempt is judged
    on its own; an attempt that no function judges (`None`) has no reward term and is in no baseline, and neither has a
    second attempt whose bonus needs it (the KL still holds both). A function that raises stops the run with the row.

    **What it overrides.** `RLOOTrainer` gives the groups of rollouts, the reference, PEFT and quantization, reward
    functions, vLLM and logging. Overridden: `training_step` (an update's rollouts are trained on together, cut by
    tokens), `_prepare_inputs` (sampling seeded by step, so that a resumed run samples
    what the uninterrupted one did, except with vLLM), `_generate_and_score_completions` (several attempts),
    `_calculate_rewards` (names the row that raised), `_compute_loss` (credit per attempt), `evaluate` (all
    self-correction metrics), `log`, `train` (ends with the best checkpoint, with `keep_best_reward`),
    `_save_checkpoint` and `_load_optimizer_and_scheduler` (β₂, the reference, the best reward).
    With `steps_per_generation` above `gradient_accumulation_steps`, a run that is resumed between two generations
    samples anew there.

    Example:

    ```python
    from datasets import load_dataset
    from correction_trl import SCoReConfig, SCoReTrainer
    from correction_trl.carry_addition import exact_match

    trainer = SCoReTrainer(
        model="data/tiny-carry-chat",
        reward_funcs=exact_match,
        args=SCoReConfig(
            output_dir="outputs/example",
            instruction="There might be an error in the answer above. Please correct it.",
            max_completion_length=16,
            max_steps=4,
            bf16=False,
        ),
        train_dataset=load_dataset("data/carry_addition", split="train"),
    )
    trainer.train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy: a Hub id, a folder, or a loaded causal language model.
        reward_funcs (`Callable` or `list[Callable]`):
            Value functions with TRL's `reward_funcs` signature; the paper's is 1 for right and 0 for wrong.
        args ([`SCoReConfig`], *optional*):
            Configuration. If `None`, a default one is used.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Column `prompt`, plain text or conversational; further columns go to the reward functions.
        eval_dataset ([`~datasets.Dataset`] or `dict[str, Dataset]`, *optional*):
            Likewise.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer. By default loaded with the model.
        callbacks (`list[TrainerCallback]`, *optional*):
            Further callbacks.
        optimizers (`tuple`, *optional*):
            Optimizer and scheduler, as in [`~transformers.Trainer`].
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            For loading `model` quantized; with `peft_config`: QLoRA.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter to train.
        extract_answer (`Callable`, *optional*):
            From the text of an attempt to its answer, `None` if there is none to be found (see
            `inference/answers.py`): what `answer_changed` compares, and, in evaluations, what an attempt must hold to
            be right. By default the whole text is the answer.

    Raises:
        BadInput: If the data, the chat template, a reward function or the settings cannot work together; the message
            names the row, the column or the setting.
    """

    _recorded = ("_metrics", "_sums", "_first_attempt_kl")
    _tag_names = ["trl", "correction_trl", "score"]
    _name = "SCoRe"
    _paper = {
        "title": "Training Language Models to Self-Correct via Reinforcement Learning",
        "id": "2409.12917",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @inproceedings{kumar2025training,
                title        = {{Training Language Models to Self-Correct via Reinforcement Learning}},
                author       = {Aviral Kumar and Vincent Zhuang and Rishabh Agarwal and Yi Su and others},
                year         = 2025,
                booktitle    = {The Thirteenth International Conference on Learning Representations},
                url          = {https://arxiv.org/abs/2409.12917},
            }"""),
    }

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        reward_funcs: Callable | list[Callable],
        args: SCoReConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        extract_answer: Callable[[str], str | None] = whole_text,
    ):
        if args is None:
            model_name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = SCoReConfig(f"{model_name.split('/')[-1]}-SCoRe")
        reward_funcs = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
        # Everything that can be wrong with the inputs is said before a model is loaded
        _check_inputs(args, reward_funcs, train_dataset, eval_dataset)
        check_model_to_train(model, peft_config, processing_class)
        train_dataset = with_checked_rows(train_dataset, "train_dataset")
        self._extract_answer = extract_answer
        first = next(iter(train_dataset))

        self._needs_reference = args.beta_1 > 0 or (args.beta_2 > 0 and args.stage != "2")
        # RLOOTrainer keeps a reference if its single `beta` is not 0; here the weights are per attempt and per stage
        args.beta = 1.0 if self._needs_reference else 0.0
        reference = None  # of a model in memory, a copy; otherwise RLOOTrainer makes the right one
        if self._needs_reference and args.deepspeed_plugin is None:
            reference = reference_of(model, peft_config)
            args.beta = args.beta if reference is None else 0.0
        self._reference_checked = getattr(peft_config, "init_lora_weights", True) is False
        super().__init__(
            model=model,
            reward_funcs=reward_funcs,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        args.beta = None
        if reference is not None:
            self._take_reference(reference)
        elif is_peft_model(self.model) and "ref" in self.model.peft_config:
            self._copy_policy_to_reference()
        if self._is_vlm:
            raise BadInput("SCoRe takes text models; pass the tokenizer, not a processor, as `processing_class`.")
        keep_trainable_on_cpu(self.model)

        check_tokenizer(self._tokenizer, conversational=not isinstance(first["prompt"], str))
        check_prompts(self._tokenizer, train_dataset, "train_dataset", **self.chat_template_kwargs)
        self._follow_ups = FollowUps(self._tokenizer, self.eos_token_ids)
        if args.turns > 1:  # refuses the template now, not later
            self._follow_up_of(first)([self._tokenizer.eos_token_id], args.instruction)
        self._check_lengths(train_dataset)
        self.rollouts = Rollouts(args.rollout, args.rollout_weights)
        self._sampler = Sampler(
            self.model,
            self._tokenizer,
            self.max_completion_length,
            self.temperature,
            self.top_p,
            self.top_k,
            args.generation_kwargs,
            stop_ids=self.eos_token_ids,
            seed=args.seed,
            trainer=self,
            engine=self.rollouts,
        )
        if args.reference == "stage_1" and is_peft_model(self.model) and "ref" not in self.model.peft_config:
            self.model.add_adapter("ref", self.model.peft_config["default"])
            self._copy_policy_to_reference()

        self._sums = {mode: defaultdict(lambda: [0.0, 0.0]) for mode in ("train", "eval")}
        self._stage: int | None = None  # of the last update
        self._max_steps_before: int | None = None  # of the run that is resumed
        self._slices: list[dict[str, torch.Tensor]] = []  # rollouts of an update that wait for its last step
        self._beta_2 = args.beta_2
        self._first_attempt_kl = [0.0, 0.0]  # sum and count since the last adaptation of beta_2
        self._reward_since_save = [0.0, 0]  # sum and count of attempts

    def _take_reference(self, reference: PreTrainedModel):
        """Prepare a reference as RLOOTrainer prepares its own."""
        if self.args.disable_dropout:
            disable_dropout_in_model(reference)
        add_fused_lm_head(reference, temperature=self.temperature)
        if self.is_fsdp_enabled:
            self.ref_model = prepare_fsdp(reference, self.accelerator)
        else:
            self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)

    def _check_lengths(self, dataset: Dataset | IterableDataset):
        """A row of all attempts has to fit the model; looked at for the longest prompts, before the first step."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is None or isinstance(dataset, IterableDataset):
            return
        n_instruction = 0
        if self.args.turns > 1:
            n_instruction = len(self._follow_up_of(dataset[0])([], self.args.instruction))
        n_new = self.args.turns * self.max_completion_length + (self.args.turns - 1) * n_instruction
        texts = [message_text(prompt) for prompt in dataset["prompt"]]
        for row in sorted(range(len(texts)), key=lambda i: -len(texts[i]))[:16]:
            n_prompt = len(self._prompt_ids(dataset[row]))
            if n_prompt + n_new > limit:
                raise BadInput(
                    f"`train_dataset` row {row}: its prompt has {n_prompt} tokens, and {self.args.turns} attempts of "
                    f"up to {self.max_completion_length} tokens with their instructions need {n_new} more, but the "
                    f"model takes {limit}; lower `max_completion_length`, or drop the row."
                )

    def _template_kwargs(self, row: dict[str, Any]) -> dict[str, Any]:
        return {**self.chat_template_kwargs, **chat_template_kwargs(row)}

    def _prompt_ids(self, row: dict[str, Any]) -> list[int]:
        return tokenize_prompt(self._tokenizer, row["prompt"], **self._template_kwargs(row))[1]

    def _follow_up_of(self, row: dict[str, Any]) -> FollowUp:
        return self._follow_ups.of(row["prompt"], self._template_kwargs(row))

    # ------------------------------------------------------------------ rollouts

    def training_step(self, model, inputs, num_items_in_batch=None):
        if not self._counts_tokens():
            return super().training_step(model, inputs, num_items_in_batch)
        # An update's rollouts come in one slice per step of the accumulation; with the last one all are trained on
        start = time.perf_counter()
        model.train()
        self._slices.append(self._prepare_inputs(inputs))
        self._step += 1
        loss = torch.zeros((), device=self.accelerator.device)
        if self.accelerator.sync_gradients:
            loss = super().training_step(model, self._cut_rollouts(self._slices), num_items_in_batch)
            self._slices = []
        self._current_train_step_time += time.perf_counter() - start
        if self._step % self.current_gradient_accumulation_steps == 0:
            self._metrics["train"]["step_time"].append(self._current_train_step_time)
            self._current_train_step_time = 0.0
        return loss

    def _run_micro_batch(self, model, batch, num_items_in_batch):
        # Past RLOOTrainer, which counts a step of the accumulation per call
        return super(RLOOTrainer, self).training_step(model, batch, num_items_in_batch)

    def _cut_rollouts(self, slices: list[dict[str, torch.Tensor]]) -> MicroBatches:
        multiple = self.pad_to_multiple_of
        rollouts = {name: torch.cat([part[name] for part in slices]) for name in slices[0]}
        n_rollouts = rollouts["input_ids"].size(0)
        lengths = rollouts["attention_mask"].sum(1).tolist()
        micro_batches = self._cut(lengths, lambda rows: _rows_of(rollouts, rows, multiple), n_steps=1)[-1]
        for batch in micro_batches:
            # `Trainer` averages the means of the micro-batches, which differ in size
            weight = batch["input_ids"].size(0) * len(micro_batches) / n_rollouts
            batch["mean_weight"] = torch.tensor(weight, device=self.accelerator.device)
        return micro_batches

    def _prepare_inputs(self, generation_batch):
        if isinstance(generation_batch, dict):  # rollouts that were cut into micro-batches
            return generation_batch
        # Rollouts are shuffled with random numbers of the step and the process alone; the surrounding random state is
        # left as it was
        names = (self.state.global_step, self.accelerator.process_index, self.model.training)
        seed = seed_of(self.args.seed, *names, *self._micro_step())
        with seeded(seed, self.accelerator.device):
            return super()._prepare_inputs(generation_batch)

    def _micro_step(self) -> list[int]:
        """Tells apart several generations within one update (`steps_per_generation` below the accumulation)."""
        micro_step = self._step % self.args.gradient_accumulation_steps
        return [micro_step] if micro_step else []

    def _sample_attempts(
        self, prompt_ids: list[list[int]], follow_ups_of: list[FollowUp]
    ) -> tuple[list[list[list[int]]], list[list[list[int]]]]:
        """Attempts and follow-ups per turn of the policy as it is."""
        n_turns = self.args.turns

        def next_turn(turn, attempt_ids):
            return [of(ids, self.args.instruction) for of, ids in zip(follow_ups_of, attempt_ids, strict=True)]

        if self.use_vllm:
            if self.state.global_step != self._last_loaded_step:
                self.vllm_generation.sync_weights()
                self._last_loaded_step = self.state.global_step
            rows, attempts, follow_ups = [list(ids) for ids in prompt_ids], [], []
            for turn in range(1, n_turns + 1):
                attempts.append(self.vllm_generation.generate(prompts=rows, images=None, num_generations=1)[1])
                if turn < n_turns:
                    follow_ups.append(next_turn(turn, attempts[-1]))
                    rows = [r + a + f for r, a, f in zip(rows, attempts[-1], follow_ups[-1], strict=True)]
            return attempts, follow_ups

        # By the place among the rollouts of all processes
        first = self.accelerator.process_index * len(prompt_ids)
        step = (self.state.global_step, *self._micro_step())
        names = [(*step, first + i) for i in range(len(prompt_ids))]
        turns, follow_ups = self._sampler.attempts(prompt_ids, next_turn, n_turns, names)
        return [responses.ids for responses in turns], follow_ups

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        args, device = self.args, self.accelerator.device
        mode = "train" if self.model.training else "eval"
        n_turns, n_local = args.turns, len(inputs)
        group_size = self.num_generations if mode == "train" else self.num_generations_eval
        stage = args.stage_at(self.state.global_step, self.state.max_steps) if mode == "train" else 2
        if mode == "train":
            self._enter_stage(stage)
            self._adapt_beta_2(stage)

        start = time.perf_counter()
        prompt_ids = [self._prompt_ids(row) for row in inputs]
        attempts, follow_ups = self._sample_attempts(prompt_ids, [self._follow_up_of(row) for row in inputs])
        texts = [decode(self._tokenizer, turn_attempts) for turn_attempts in attempts]
        sampled = time.perf_counter()
        for name, share in self.rollouts.pop_metrics().items():
            self._metrics[mode][name].append(share)

        # B rollouts of this process, R of all processes, S turns, F reward functions. An attempt is compared with the
        # others of its group, which may lie on several processes: rewards and advantages are those of all rollouts
        rewards, rewards_per_func = self._rewards_of(mode, inputs, attempts, texts)  # (R, S), S times (R, F)
        returns = turn_returns(rewards, stage, args.alpha, args.gamma)
        all_advantages = leave_one_out(returns, group_size) if group_size > 1 else torch.zeros_like(returns)
        judged = time.perf_counter()

        batch = self._to_batch(prompt_ids, attempts, follow_ups)  # each (B, T)
        local = slice(self.accelerator.process_index * n_local, (self.accelerator.process_index + 1) * n_local)
        batch["advantages"] = all_advantages[local]  # (B, S)
        kl_weights = torch.full((n_local, n_turns), args.beta_1, device=device)
        if stage == 1:
            kl_weights[:, 0] += self._beta_2
        batch["kl_weights"] = kl_weights

        n_rows = args.per_device_train_batch_size if mode == "train" else args.per_device_eval_batch_size
        if mode == "train" and self._counts_tokens():
            longest = max(range(n_local), key=lambda i: len(prompt_ids[i]))
            between = [follow_ups[turn][longest] for turn in range(n_turns - 1)]
            self._find_max_tokens(lambda n: self._longest_rollouts(prompt_ids[longest], between, n), n_local)
        with torch.no_grad(), disable_gradient_checkpointing(self.model, args.gradient_checkpointing_kwargs):
            if args.beta_1 > 0 or (stage == 1 and self._beta_2 > 0):
                batch["ref_log_probs"] = self._reference_log_probs(batch, n_rows)  # (B, T - 1)
                self._check_reference(batch, n_rows)
            # Rollouts that serve more than one update need the policy that sampled them
            if args.steps_per_generation > args.gradient_accumulation_steps or self.num_iterations > 1:
                log_probs = self._in_chunks(self.model, batch, n_rows)
                batch["old_turn_log_probs"] = turn_sums(log_probs, batch["turn_ids"][:, 1:], n_turns)  # (B, S)
        self._record_rollouts(mode, stage, inputs, batch, attempts, texts, rewards, rewards_per_func, all_advantages)
        now = time.perf_counter()
        for name, seconds in (
            ("generation", sampled - start),
            ("rewards", judged - sampled),
            ("reference", now - judged),
        ):
            self._metrics[mode][f"time/{name}"].append(seconds)
        return batch

    def _rewards_of(
        self, mode: str, inputs: list[dict[str, Any]], attempts: list[list[list[int]]], texts: list[list[str]]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Rewards of all processes' attempts: weighed together `(R, S)`, and each turn's per function `(R, F)`."""
        prompts = [row["prompt"] for row in inputs]
        rewards_per_func = []
        for turn in range(self.args.turns):
            completions = [
                text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
                for prompt, text in zip(prompts, texts[turn], strict=True)
            ]
            rewards_per_func.append(self._calculate_rewards(inputs, prompts, completions, attempts[turn]))
            self._flush_logs_of_rewards(mode, turn + 1, len(inputs))
        weights = self.reward_weights.to(self.accelerator.device)
        # An attempt that no function judged is unjudged; otherwise those that did are summed
        rewards = [
            torch.where(values.isnan().all(1), torch.nan, (values * weights).nansum(1)) for values in rewards_per_func
        ]
        return torch.stack(rewards, dim=1), rewards_per_func

    def _flush_logs_of_rewards(self, mode: str, turn: int, n_local: int):
        """What the reward functions logged (`log_metric`, `log_extra`) for this attempt, as RLOOTrainer does it; names
        are sorted so that all processes gather in the same order."""
        for name in sorted(set(gather_object(list(self._pending_metrics)))):
            values = self._pending_metrics.get(name, [])
            stats = torch.tensor([sum(values), len(values)], dtype=torch.float32, device=self.accelerator.device)
            total, count = self.accelerator.gather(stats).view(-1, 2).sum(0).tolist()
            self._metrics[mode][f"{name}/t{turn}"].append(total / count)
        for column in sorted(set(gather_object(list(self._pending_extra_logs)))):
            values = gather_object(self._pending_extra_logs.get(column, [None] * n_local))
            if self.log_completions:
                self._logs["extra"][f"{column} t{turn}"].extend(values)
        self._pending_metrics.clear()
        self._pending_extra_logs.clear()

    def _to_batch(self, prompt_ids, attempts, follow_ups) -> dict[str, torch.Tensor]:
        """One row `[x, y1, follow-up, y2, ...]` per rollout, padded on the right: `(B, T)`. `turn_ids` has the attempt
        (from 1) that a token belongs to, and 0 where it is in no loss."""
        rows, turn_ids = [], []
        for i, prompt in enumerate(prompt_ids):
            row, turns = list(prompt), [0] * len(prompt)
            for turn in range(self.args.turns):
                ids = attempts[turn][i]
                truncated = not ids or ids[-1] not in self.eos_token_ids
                in_loss = not (self.mask_truncated_completions and truncated)
                row += ids
                turns += [turn + 1 if in_loss else 0] * len(ids)
                if turn < self.args.turns - 1:
                    row += follow_ups[turn][i]
                    turns += [0] * len(follow_ups[turn][i])
            rows.append(torch.tensor(row))
            turn_ids.append(torch.tensor(turns))
        multiple = self.pad_to_multiple_of
        input_ids = pad(rows, padding_value=self._tokenizer.pad_token_id, pad_to_multiple_of=multiple)
        attention_mask = pad([torch.ones_like(row) for row in rows], padding_value=0, pad_to_multiple_of=multiple)
        turn_ids = pad(turn_ids, padding_value=0, pad_to_multiple_of=multiple)
        device = self.accelerator.device
        return {
            "input_ids": input_ids.to(device),
            "attention_mask": attention_mask.to(device),
            "turn_ids": turn_ids.to(device),
        }

    def _longest_rollouts(self, prompt: list[int], follow_ups: list[list[int]], n: int):
        """n rollouts as long as they can become, to try their size; and their tokens."""
        n_turns = self.args.turns
        attempt = [self.eos_token_ids[0]] * self.max_completion_length
        batch = self._to_batch([prompt] * n, [[attempt] * n] * n_turns, [[ids] * n for ids in follow_ups])
        batch["advantages"] = torch.ones(n, n_turns, device=batch["input_ids"].device)
        batch["kl_weights"] = torch.ones_like(batch["advantages"])
        batch["ref_log_probs"] = torch.zeros(n, batch["input_ids"].size(1) - 1, device=batch["input_ids"].device)
        return batch, batch["input_ids"].numel()

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        try:
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        except Exception as error:
            # Call each function again, row by row, to say which row it was
            columns = {key: [row[key] for row in inputs] for key in inputs[0] if key != "prompt"}
            texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
            for function in self.reward_funcs:
                try:
                    # The ids as they were sampled; of single rows, to find the one that fails, those of the text
                    def completion_ids(some):
                        return completion_ids_list if len(some) == len(texts) else self._completion_ids(some)

                    value_function = as_value_function(function, completion_ids, self.state)
                    call_value_function(value_function, prompts, texts, columns)
                except BadInput as located:
                    if isinstance(located.__cause__, type(error)):
                        raise located from error
            raise BadInput(f"A reward function failed: {type(error).__name__}: {error}") from error
        if rewards.isinf().any():
            row, function = rewards.isinf().nonzero()[0].tolist()
            raise BadInput(
                f"The reward function {self.reward_func_names[function]!r} returned {rewards[row, function].item()} "
                f"for rollout {row}; return a finite number, or None for what cannot be judged."
            )
        return rewards

    def _completion_ids(self, texts: list[str]) -> list[list[int]]:
        return self._tokenizer(texts, add_special_tokens=False)["input_ids"]

    # ------------------------------------------------------------------ stages

    def _enter_stage(self, stage: int):
        max_steps = self.state.max_steps
        if self._stage is None and self.args.stage == "both":
            stages = [self.args.stage_at(step, max_steps) for step in range(max_steps)]
            if stages[0] == stages[-1]:
                raise BadInput(
                    f"{max_steps} steps are too few for two stages with "
                    f"`stage_1_fraction={self.args.stage_1_fraction}`; train longer, or set `stage`."
                )
        if self._max_steps_before not in (None, max_steps) and self.args.stage == "both":
            raise BadInput(
                f"The checkpoint is of a run of {self._max_steps_before} steps and this run has {max_steps}, so its "
                "stages lie elsewhere; resume with the same number of steps, or start from the checkpoint as a model."
            )
        if stage == 2 and self._stage == 1 and self.args.reference == "stage_1" and self._needs_reference:
            self._copy_policy_to_reference()
        self._stage = stage

    def _reference_parameters(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """name -> (reference parameter, policy parameter)."""
        unwrap = self.accelerator.unwrap_model
        return reference_parameters(unwrap(self.model), None if self.ref_model is None else unwrap(self.ref_model))

    def _copy_policy_to_reference(self):
        unwrap = self.accelerator.unwrap_model
        copy_policy_to_reference(unwrap(self.model), None if self.ref_model is None else unwrap(self.ref_model))

    def _check_reference(self, batch: dict[str, torch.Tensor], n_rows: int):
        """On the first batch of a run, not of a resumed one."""
        if self._reference_checked or self.state.global_step > 0:
            return
        self._reference_checked = True
        n_tokens = (batch["turn_ids"] > 0).sum().clamp(min=1)
        exact = self.accelerator.mixed_precision == "no" and self.model.dtype == torch.float32
        check_reference(
            self.model,
            lambda: (self._in_chunks(self.model, batch, n_rows) - batch["ref_log_probs"]).abs().sum() / n_tokens,
            tolerance=1e-3 if exact else 2e-2,
            reduce=lambda value: self.accelerator.gather(value.reshape(1)).max(),
            cause=reference_cause(self.accelerator.unwrap_model(self.model)),
        )

    def _adapt_beta_2(self, stage: int):
        """A proportional controller on log beta_2, moving it by at most 10 % per update of the policy."""
        total, count = self._first_attempt_kl
        target = self.args.first_attempt_kl_target
        if stage == 1 and target is not None and count:
            error = max(-1.0, min(1.0, total / count / target - 1))
            self._beta_2 *= 1 + 0.1 * error
        self._first_attempt_kl = [0.0, 0.0]

    # ------------------------------------------------------------------ log-probs and loss

    def _forward(self, model: nn.Module, batch: dict[str, torch.Tensor]):
        """Log-probs and entropies of the attempts' tokens, of shape `(B, L - 1)` and 0 elsewhere; and the MoE loss."""
        labels = batch["input_ids"].masked_fill(batch["turn_ids"] == 0, -100)  # the LM head skips the rest
        with self.accelerator.autocast():
            outputs = model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                labels=labels,
                fused_lm_head=True,
                **({"output_router_logits": True} if self.aux_loss_enabled else {}),
            )
        n_positions = labels.size(1) - 1  # prompt learning puts tokens before the row
        entropy = None if outputs.entropy is None else outputs.entropy[:, -n_positions:]
        return outputs.log_probs[:, -n_positions:], entropy, outputs.aux_loss if self.aux_loss_enabled else None

    def _in_chunks(self, model: nn.Module, batch: dict[str, torch.Tensor], n_rows: int) -> torch.Tensor:
        """Log-probs of shape `(B, L - 1)`, by forwards of `n_rows` rows, or of as many tokens as in training."""
        n_all, length = batch["input_ids"].shape
        if self._counts_tokens() and self.model.training:
            chunks = self._cut(batch["attention_mask"].sum(1).tolist(), list, n_steps=1)[-1]
        else:
            chunks = [list(range(start, min(start + n_rows, n_all))) for start in range(0, n_all, n_rows)]
        rollouts = {name: batch[name] for name in ("input_ids", "attention_mask", "turn_ids")}
        log_probs = None
        for rows in chunks:
            part = self._forward(model, _rows_of(rollouts, rows, self.pad_to_multiple_of))[0]
            if log_probs is None:
                log_probs = part.new_zeros(n_all, length - 1)
            log_probs[rows, : part.size(1)] = part
        return log_probs

    def _reference_log_probs(self, batch: dict[str, torch.Tensor], n_rows: int) -> torch.Tensor:
        if self.ref_model is not None:
            return self._in_chunks(self.ref_model, batch, n_rows)
        model = self.accelerator.unwrap_model(self.model)
        with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
            return self._in_chunks(self.model, batch, n_rows)

    def _compute_loss(self, model, inputs):
        log_probs, entropy, aux_loss = self._forward(model, inputs)  # (B, T - 1)
        turn_ids = inputs["turn_ids"][:, 1:]  # (B, T - 1), of the tokens that are predicted
        ref_log_probs = inputs.get("ref_log_probs")
        losses = multi_turn_loss(
            log_probs,
            turn_ids,
            inputs["advantages"],
            ref_log_probs,
            inputs["kl_weights"],
            self.args.kl_estimator,
            inputs.get("old_turn_log_probs"),
            self.epsilon_low,
            self.epsilon_high,
        )
        loss = losses.mean() * inputs.get("mean_weight", 1.0)
        mode = "train" if self.model.training else "eval"
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * aux_loss
        self._record_loss(mode, log_probs.detach(), ref_log_probs, entropy.detach(), inputs)
        return loss

    # ------------------------------------------------------------------ metrics

    @torch.no_grad()
    def _record_loss(self, mode, log_probs, ref_log_probs, entropy, inputs):
        n_turns, turn_ids = self.args.turns, inputs["turn_ids"][:, 1:]
        n_tokens = turn_sums(torch.ones_like(log_probs), turn_ids, n_turns)
        n_attempts = (n_tokens > 0).float()
        kl = torch.zeros_like(n_tokens)
        if ref_log_probs is not None:
            kl = turn_sums(log_probs - ref_log_probs, turn_ids, n_turns)
        sums = torch.stack(
            [kl.sum(0), n_attempts.sum(0), turn_sums(entropy, turn_ids, n_turns).sum(0), n_tokens.sum(0)]
        )
        kl, n_attempts, entropy, n_tokens = self.accelerator.reduce(sums, reduction="sum").tolist()
        for turn in range(n_turns):
            if n_attempts[turn]:
                if ref_log_probs is not None:
                    self._count(mode, f"kl/t{turn + 1}", kl[turn], n_attempts[turn])
                self._count(mode, f"entropy/t{turn + 1}", entropy[turn], n_tokens[turn])
        if "old_turn_log_probs" in inputs:
            ratio = (turn_sums(log_probs, turn_ids, n_turns) - inputs["old_turn_log_probs"]).exp()
            clipped = ((ratio < 1 - self.epsilon_low) | (ratio > 1 + self.epsilon_high)).float().sum(0)
            for turn, count in enumerate(self.accelerator.reduce(clipped, reduction="sum").tolist()):
                self._count(mode, f"clip_ratio/t{turn + 1}", count, n_attempts[turn])
        if mode == "train" and ref_log_probs is not None:
            self._first_attempt_kl[0] += kl[0]
            self._first_attempt_kl[1] += n_attempts[0]

    def _count(self, mode: str, name: str, total: float, count: float):
        self._sums[mode][name][0] += total
        self._sums[mode][name][1] += count

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # Means over all tokens or attempts since the last log, however they were split into batches
        mode = "train" if self.model.training else "eval"
        for name, (total, count) in self._sums[mode].items():
            if count:
                self._metrics[mode][name] = [total / count]
        self._sums[mode].clear()
        steps = self._metrics[mode].get("step_time")
        if steps:  # forward, backward and the optimizer: the rest of the step
            other = sum(sum(self._metrics[mode][f"time/{n}"]) for n in ("generation", "rewards", "reference"))
            self._metrics[mode]["time/training"] = [(sum(steps) - other) / len(steps)]
        super().log(logs, start_time)

    @torch.no_grad()
    def _record_rollouts(self, mode, stage, inputs, batch, attempts, texts, rewards, rewards_per_func, advantages):
        args, metrics = self.args, self._metrics[mode]
        n_turns, device = args.turns, self.accelerator.device

        def add(name: str, values: torch.Tensor):
            judged = values[~values.isnan()]
            if len(judged):
                metrics[name].append(judged.float().mean().item())

        right = torch.where(rewards.isnan(), torch.nan, (rewards >= args.correct_threshold).float())
        for turn in range(n_turns):
            add(f"acc@t{turn + 1}", right[:, turn])
            add(f"reward/t{turn + 1}", rewards[:, turn])
            add(f"abs_advantage/t{turn + 1}", advantages[:, turn].abs())
            groups = advantages[:, turn].view(-1, self.num_generations if mode == "train" else 1)
            add(f"frac_reward_zero_std/t{turn + 1}", (groups == 0).all(1).float())  # prompts that teach nothing
            for i, name in enumerate(self.reward_func_names):
                add(f"rewards/{name}/t{turn + 1}", rewards_per_func[turn][:, i])
        if n_turns > 1:
            first, second = right[:, 0], right[:, 1]
            add("delta(t1,t2)", second - first)
            add("delta(i->c)", (1 - first) * second)
            add("delta(c->i)", first * (1 - second))
            add("bonus", (args.alpha if stage == 2 else 0.0) * (rewards[:, 1] - rewards[:, 0]))
        add("rewards/unjudged", rewards.isnan().any(1).float())

        columns = {}  # of this process's rollouts, still to be gathered
        for turn in range(n_turns):
            columns[f"lengths/t{turn + 1}"] = [float(len(ids)) for ids in attempts[turn]]
            columns[f"truncated/t{turn + 1}"] = [
                float(not ids or ids[-1] not in self.eos_token_ids) for ids in attempts[turn]
            ]
        if n_turns > 1:
            pairs = list(zip(texts[0], texts[1], strict=True))
            columns["edit_distance_ratio"] = [edit_distance_ratio(a, b) for a, b in pairs]
            columns["answer_changed"] = [
                float(self._extract_answer(first) != self._extract_answer(second)) for first, second in pairs
            ]
        gathered = gather(torch.tensor(list(columns.values()), device=device).T.contiguous())
        for name, values in zip(columns, gathered.unbind(1), strict=True):
            add(name, values)
        if mode == "train" and (stage == 2 or args.stage == "1"):
            judged = rewards[~rewards.isnan()]
            self._reward_since_save[0] += judged.sum().item()
            self._reward_since_save[1] += judged.numel()
        metrics["stage"].append(float(stage))
        metrics["beta_2"].append(self._beta_2 if stage == 1 else 0.0)

        if mode == "train":
            n_tokens = torch.tensor([batch["attention_mask"].sum()], device=device)
            self.state.num_input_tokens_seen += gather(n_tokens).sum().item()
        metrics["num_tokens"] = [self.state.num_input_tokens_seen]

        if self.log_completions:
            conversations = []
            for i in range(len(inputs)):
                messages = []
                for turn in range(n_turns):
                    messages.append({"role": "assistant", "content": texts[turn][i]})
                    if turn < n_turns - 1:
                        messages.append({"role": "user", "content": args.instruction})
                conversations.append(messages)
            self._logs["prompt"].extend(gather_object([row["prompt"] for row in inputs]))
            self._logs["completion"].extend(gather_object(conversations))
            for turn in range(n_turns):
                self._logs["rewards"][f"reward t{turn + 1}"].extend(rewards[:, turn].tolist())
            self._logs["advantages"].extend(advantages[:, -1].tolist())

    # ------------------------------------------------------------------ evaluation

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """
        Measure greedy and sampled attempts on the evaluation dataset with
        [`~correction_trl.evaluation.evaluate_attempts`]. The sampled metrics end in `/sampled`; samples are
        drawn at `temperature` from the whole distribution (`top_p`, `top_k` and `generation_kwargs` are training's
        alone).

        Returns:
            `dict[str, float]`: the means, logged and usable as `metric_for_best_model` (`eval_acc@t2`).
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = self.eval_dataset[dataset]
        if dataset is None:
            raise BadInput("Evaluation needs an `eval_dataset`.")
        if isinstance(dataset, dict):
            metrics = {}
            for name, part in dataset.items():
                metrics.update(self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}"))
            return metrics
        metrics = {}
        start = time.perf_counter()
        for temperature, ending in ((0.0, ""), (self.temperature, "/sampled")):
            found = self.evaluate_attempts(dataset, temperature).metrics
            metrics.update({f"{metric_key_prefix}_{name}{ending}": value["mean"] for name, value in found.items()})
        metrics[f"{metric_key_prefix}_runtime"] = time.perf_counter() - start
        was_training = self.model.training
        self.model.eval()  # `log` adds the metrics of training to entries of training
        self.log(metrics)
        self.model.train(was_training)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def card_notes(self) -> dict[str, Any]:
        args = self.args
        attempts = "one attempt per problem"
        if args.turns > 1:
            attempts = f"{args.turns} attempts per problem, later ones asked for with: {args.instruction!r}"
        stages = {
            "1": "Stage I alone",
            "2": "Stage II alone",
            "both": f"{args.stage_1_fraction:.0%} of the steps in Stage I",
        }[args.stage]
        return {
            "description": f"The policy learns by reinforcement from {attempts}.",
            "departures": [
                f"{args.num_generations} rollouts per prompt with a leave-one-out baseline per attempt, the KL by the "
                f"{args.kl_estimator} estimator, {stages}: the paper does not publish its own."
            ],
        }

    def evaluate_attempts(self, dataset: Dataset, temperature: float = 0.0, **kwargs: Any):
        """
        [`~correction_trl.evaluation.evaluate_attempts`] of the policy as it is now, with the run's settings.

        Args:
            dataset ([`~datasets.Dataset`]):
                Column `prompt`, and what the reward functions need.
            temperature (`float`, *optional*, defaults to `0.0`):
                0 is greedy.
            **kwargs:
                Passed on.

        Returns:
            [`~correction_trl.evaluation.Evaluation`].
        """
        return evaluate_attempts(
            self.accelerator.unwrap_model(self.model),
            self._tokenizer,
            dataset,
            self._value,
            **{
                "instruction": self.args.instruction,
                "n_turns": self.args.turns,
                "temperature": temperature,
                "max_completion_length": self.max_completion_length,
                "batch_size": self.args.per_device_eval_batch_size,
                "seed": self.args.seed,
                "correct_threshold": self.args.correct_threshold,
                "template_kwargs": self.chat_template_kwargs,
                "rollouts": self.rollouts,
                "extract_answer": self._extract_answer,
                **kwargs,
            },
        )

    def _value(self, prompts, completions, **columns) -> list[float | None]:
        """The weighted sum of the reward functions, as one value function."""
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        values = [
            call_value_function(as_value_function(function, self._completion_ids, self.state), prompts, texts, columns)
            for function in self.reward_funcs
        ]
        weights = self.reward_weights.tolist()
        totals = []
        for row in zip(*values, strict=True):
            judged = [w * v for w, v in zip(weights, row, strict=True) if v is not None]
            totals.append(sum(judged) if judged else None)
        return totals

    # ------------------------------------------------------------------ checkpoints

    def train(self, *args, **kwargs):
        result = super().train(*args, **kwargs)
        if self.args.keep_best_reward and self.state.best_model_checkpoint is not None:
            self.accelerator.print(
                f"Kept {Path(self.state.best_model_checkpoint).name}, with the highest training reward "
                f"({self.state.best_metric:.4g})."
            )
            self._load_best_model()
        return result

    def _save_checkpoint(self, model, trial):
        total, count = self._reward_since_save
        self._reward_since_save = [0.0, 0]
        best = self.state.best_metric
        if self.args.keep_best_reward and count and (best is None or total / count > best):
            # Trainer makes the checkpoint of this step the best one, and rotates others
            self.state.best_metric, self.state.best_global_step = total / count, self.state.global_step
        super()._save_checkpoint(model, trial)

    def _side_files(self) -> list[str]:
        return [STATE_FILE, REFERENCE_FILE] if self._keeps_reference() else [STATE_FILE]

    def _keeps_reference(self) -> bool:
        """Whether the reference is one that training made, and that a resumed run cannot make again."""
        return self.args.reference == "stage_1" and self._needs_reference

    def _write_side_files(self, folder: Path):
        if not self.accelerator.is_main_process:
            return
        state = {
            "stage": self._stage,
            "max_steps": self.state.max_steps,
            "beta_2": self._beta_2,
            "first_attempt_kl": self._first_attempt_kl,
        }
        (folder / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
        if self._keeps_reference():
            reference = {name: parameter for name, (parameter, _) in self._reference_parameters().items()}
            save_file({n: p.detach().cpu().contiguous() for n, p in reference.items()}, folder / REFERENCE_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        state_file, reference_file = (Path(checkpoint) / name for name in (STATE_FILE, REFERENCE_FILE))
        if not state_file.is_file():  # saved with `save_only_model`
            return
        state = json.loads(state_file.read_text())
        self._stage, self._max_steps_before = state["stage"], state["max_steps"]
        self._beta_2, self._first_attempt_kl = state["beta_2"], state["first_attempt_kl"]
        if self._keeps_reference():
            saved = load_file(reference_file)
            for name, (parameter, _) in self._reference_parameters().items():
                parameter.data = saved[name].to(parameter.device, parameter.dtype)


def _rows_of(batch: dict[str, torch.Tensor], rows: list[int], multiple: int | None) -> dict[str, torch.Tensor]:
    """Some rows of a batch that is padded on the right, without the columns in which all of them are padding."""
    width = batch["input_ids"].size(1)
    n_columns = int(batch["attention_mask"][rows].sum(1).max())
    n_columns = min(width, math.ceil(n_columns / (multiple or 1)) * (multiple or 1))
    part = {name: values[rows] for name, values in batch.items()}
    for name in ("input_ids", "attention_mask", "turn_ids"):
        part[name] = part[name][:, :n_columns]
    if "ref_log_probs" in part:  # one of each token but the first
        part["ref_log_probs"] = part["ref_log_probs"][:, : n_columns - 1]
    return part


def _check_inputs(
    args: SCoReConfig,
    reward_funcs: list[Callable],
    train_dataset: Dataset | IterableDataset | None,
    eval_dataset: Dataset | dict[str, Dataset] | None,
) -> None:
    if not reward_funcs:
        raise BadInput("`reward_funcs` is empty; SCoRe needs at least one.")
    for function in reward_funcs:
        if isinstance(function, nn.Module) or not callable(function):
            raise BadInput(
                f"`reward_funcs` holds {function!r:.80}; pass functions (or callable objects), not models or ids."
            )
    if train_dataset is None:
        raise BadInput("`train_dataset` is required: a column `prompt`, and what the reward functions need.")
    eval_datasets = eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset}
    for name, dataset in {"train_dataset": train_dataset, **eval_datasets}.items():
        if dataset is None:
            continue
        check_dataset(dataset, name, reward_funcs)
        if name != "train_dataset" and isinstance(dataset, IterableDataset):
            raise BadInput(f"`{name}` is a stream; evaluation needs a map-style dataset (`streaming=False`).")
    if {"image", "images"} & set(next(iter(train_dataset))):
        raise BadInput("SCoRe takes text only; drop the columns with images.")
    sharded = args.deepspeed_plugin is not None or args.fsdp_plugin_args is not None
    if args.reference == "stage_1" and sharded:
        raise BadInput("`reference: stage_1` copies weights, which sharded training does not allow; use `base`.")
    if args.eval_strategy != "no" and sharded:
        raise BadInput(
            "Evaluation would have to gather the sharded weights for each batch; set `eval_strategy: 'no'` and "
            "evaluate the saved model with recipes/evaluate.py."
        )
