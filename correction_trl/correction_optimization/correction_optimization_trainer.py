import contextlib
import itertools
import json
import math
import textwrap
import threading
import time
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute
import torch
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from datasets.fingerprint import Hasher
from peft import PeftConfig, PeftModel
from transformers import (
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
)
from trl import DPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import get_config_model_id, global_then_local_main_first, use_adapter

from ..checkpoints import CheckpointTrainerMixin
from ..data_utils import (
    IMAGE_COLUMNS,
    NOT_FOR_THE_TEACHER,
    PAIR_TOKEN_COLUMNS,
    PROMPTS,
    chat_template_kwargs,
    dataset_kind,
    message_text,
    to_preference_columns,
    with_checked_rows,
)
from ..errors import BadInput, TeacherFailed
from ..evaluation.metrics import edit_ratio
from ..functions import call_teacher, call_value_function, teacher_name
from ..policy.attention import unsupported_reason
from ..policy.completions import CompletionEncoder
from ..policy.generation import Sampler, numbered
from ..policy.micro_batches import MicroBatches, MicroBatchTrainerMixin
from ..policy.quantization import keep_trainable_on_cpu
from ..policy.reference import (
    check_model_to_train,
    check_reference,
    copy_policy_to_reference,
    reference_cause,
    reference_of,
)
from ..policy.rollout import Rollouts
from ..policy.tokenization import (
    check_prompts,
    check_tokenizer,
    decode,
    generation_config_of,
    stop_token_ids,
    tokenize_prompt,
)
from ..reporting.terminal import print_examples
from ..reporting.trackers import log_examples
from ..reporting.trainer_card import ModelCardMixin
from ..teachers.base import Teacher
from ..teachers.collection import StoringTeacher
from ..teachers.policy import PolicyTeacher
from .callbacks import DisplacementCallback
from .correction_optimization_config import PRIOR_WEIGHTS, CorrectionOptimizationConfig
from .input_checks import check_batch_size, check_data, check_replay, check_reward_funcs, check_settings
from .length_prior import make_length_prior
from .losses import (
    cpl_loss,
    dpop_loss,
    edit_weighted_scores,
    hinge_loss,
    ipo_loss,
    length_prior_anchor_weights,
    length_prior_score_term,
    linear_loss,
    nll_anchor,
    sigmoid_loss,
)
from .pair_batch import NOT_FOR_THE_MODEL, PAIR_COLUMNS, PairCollator, PairLogProbs, gather_tokens, row_index
from .replay import ReplayMixin
from .shared_prefix import packed_forward, self_check
from .stored_pairs import tokenize_pair
from .vllm_rollouts import VLLMRollouts


logger = get_logger(__name__)


@dataclass
class _Rollout:
    """Responses that were sampled at one step and wait for their corrections."""

    rows: list[dict[str, Any]]
    columns: dict[str, list]  # what the teacher and the value functions get beside the prompt
    rendered: list[tuple[str, list[int]]]  # text and ids of the prompts
    response_ids: list[list[int]]
    responses: list[str]
    step: int
    seconds: float  # that the sampling took


class CorrectionOptimizationTrainer(
    CheckpointTrainerMixin, ModelCardMixin, ReplayMixin, MicroBatchTrainerMixin, DPOTrainer
):
    r"""
    Trainer for correction optimization: a policy π learns to need less correction by a teacher, a human or a more
    capable model. For a prompt x the policy writes y, the teacher corrects it to y', and the policy minimises the
    amount of correction

    $$ \min_\pi \; \mathbb{E}\left[\log P(y|x) - \log P(y'|x)\right], \qquad P = \pi \ \text{or} \ P = \pi / \pi_{old}
    $$

    (times a length prior l in P, where one is set), as proposed by Praveen Hegde
    ([model card](https://huggingface.co/prhegde/aligned-merge-aanaphi-phi2-orage-3b)). With `loss_type="sigmoid"` and
    the reference it is DPO ([paper](https://huggingface.co/papers/2305.18290)) with y rejected and y' chosen;
    reference-free it is CPL ([paper](https://huggingface.co/papers/2310.13639)).

    **How it departs from its source.** The linear loss has no lower bound and, on pairs that are used again, destroys
    the policy (measured in `results/`); the default is therefore the bounded sigmoid loss with an NLL anchor on y'.
    `loss_type="linear", nll_weight=0.0, reference_free=True` is the note's objective as written.

    **Stored pairs or on-policy.** A dataset with the columns `prompt`, `response`, `correction` (or TRL's `prompt`,
    `rejected`, `chosen`) is trained on as it is. With a `prompt` column and a `teacher`, the current policy samples
    the responses of an update just before it, the teacher corrects them, and the loss steps, inside one run with one
    optimizer.

    **What is in the loss.** The tokens of y and y', their stop token included; never the prompt or padding. y is
    trained as the ids that were sampled. A sampled y that hit the length limit carries no stop token (see
    `mask_truncated_completions`). Pairs whose correction is missing or longer than the limit are counted and left out;
    pairs with y' = y likewise, unless `unchanged_pairs="keep"`. The loss is the mean over the pairs that count, of the
    whole update: over accumulation steps and processes, so that it does not depend on how an update is split.

    **What it overrides.** Both modes need a reference policy, its log-probs, PEFT and quantization handling, and
    tokenised pairs; only one needs sampling. `DPOTrainer` has all of the former and `RLOOTrainer`/`GRPOTrainer` only
    the latter, tied to reward functions and to groups of at least two samples per prompt, so this class extends
    `DPOTrainer` and adds the sampling: `_prepare_dataset`, `_set_signature_columns_if_needed`,
    `_precompute_ref_logps`, `compute_ref_log_probs`, `get_batch_samples`, `_prepare_inputs`, `evaluate`,
    `train`, `compute_loss`, `log`, `_save_checkpoint` and `_load_optimizer_and_scheduler`.

    Example:

    ```python
    from datasets import load_dataset
    from correction_trl import CorrectionOptimizationConfig, CorrectionOptimizationTrainer


    def teacher(prompts, responses, answer, **columns):
        return answer  # the gold answer, as the corrected response


    trainer = CorrectionOptimizationTrainer(
        model="data/tiny-carry-chat",
        args=CorrectionOptimizationConfig(output_dir="out", max_completion_length=16, bf16=False),
        train_dataset=load_dataset("data/carry_addition", split="train"),
        teacher=teacher,
    )
    trainer.train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy: a Hub id, a folder, or a loaded causal language model.
        args ([`CorrectionOptimizationConfig`], *optional*):
            Configuration. If `None`, a default one is used.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Stored pairs, or prompts (map-style only); plain text or conversational.
        eval_dataset ([`~datasets.Dataset`] or `dict[str, Dataset]`, *optional*):
            Likewise; prompts only where `train_dataset` holds prompts too, since they need its `teacher`.
        teacher (`Callable` or object with a method `correct`, *optional*):
            Gets `prompts`, `responses` (text) and the dataset's further columns; returns the corrected responses,
            `None` where it has none. A function, or one of `correction_trl/teachers/`: with `max_staleness` of 1 or
            more, the policy trains while a server corrects.
        reward_funcs (`Callable` or `list[Callable]`, *optional*):
            Value functions with TRL's signature. They are logged for y and y', and are in no loss.
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            π_old. By default the policy as it is before training (with `peft_config`: the adapter off; with a
            [`~peft.PeftModel`]: a frozen copy of its adapter).
        processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`], *optional*):
            Tokenizer, or processor for stored pairs with images. By default loaded with the model.
        callbacks (`list[TrainerCallback]`, *optional*):
            Further callbacks.
        optimizers (`tuple`, *optional*):
            An optimizer and a scheduler of your own, as in [`~transformers.Trainer`].
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            For loading `model` quantized; with `peft_config`: QLoRA.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter to train.
        replay_dataset ([`~datasets.Dataset`], *optional*):
            General data against forgetting: `prompt` and `completion`, or `messages`, of which the last one is the
            completion. A share of each update's rows is taken from it, and fine-tuned on; see `replay_share`.

    Raises:
        BadInput: If the data, the teacher or the settings cannot work together; the message names the row, the column
        or
            the setting.
    """

    loss_is_scaled_for_ga = True

    _recorded = ("_metrics", "_sums")
    _tag_names = ["trl", "correction_trl", "correction-optimization"]
    _name = "Correction optimization"
    _paper = {
        "title": "Correction optimization (model card of aligned-merge-aanaphi-phi2-orage-3b)",
        "url": "https://huggingface.co/prhegde/aligned-merge-aanaphi-phi2-orage-3b",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @misc{hegde2024correction,
                title        = {Aligned merge aanaphi phi2 orage 3b: alignment by minimising the amount of correction},
                author       = {Praveen Hegde},
                year         = 2024,
                howpublished = {https://huggingface.co/prhegde/aligned-merge-aanaphi-phi2-orage-3b},
            }"""),
    }

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        args: CorrectionOptimizationConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        teacher: Any = None,
        reward_funcs: Callable | list[Callable] | None = None,
        ref_model: PreTrainedModel | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        replay_dataset: Dataset | None = None,
    ):
        if args is None:
            model_name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = CorrectionOptimizationConfig(f"{model_name.split('/')[-1]}-correction-optimization")

        # Everything that can be wrong is said before a model is loaded.
        check_model_to_train(model, peft_config, processing_class)
        eval_datasets = eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset}
        on_policy = check_data(args, train_dataset, eval_datasets, teacher)
        check_settings(args, on_policy, ref_model)
        check_batch_size(args, train_dataset)
        check_replay(args, replay_dataset)

        if set(IMAGE_COLUMNS) & set(next(iter(train_dataset))):
            # DPOTrainer hands pairs with images to its collator as they are, which knows TRL's names
            train_dataset = to_preference_columns(train_dataset)
            renamed = {name: None if d is None else to_preference_columns(d) for name, d in eval_datasets.items()}
            eval_dataset = renamed if isinstance(eval_dataset, dict) else renamed["eval_dataset"]

        asked = self._set_up_teacher(args, teacher if on_policy else None)
        self._generation_config = generation_config_of(model, args.model_init_kwargs)
        self.reward_funcs = check_reward_funcs(args, reward_funcs)
        self.reward_func_names = [getattr(f, "__name__", type(f).__name__) for f in self.reward_funcs]
        self.length_prior = make_length_prior(args.length_prior, PRIOR_WEIGHTS[args.loss_type])
        self._prompt_dataset_columns = []  # columns of the datasets that hold prompts only, kept for the teacher
        self._ready = deque()  # microbatches of sampled and corrected pairs that are waiting for their step
        self._at_the_teacher = deque()  # before them: rollouts, the sizes of their microbatches, and their futures
        self._n_to_skip = 0  # after a resume: microbatches of the data loader that `_ready` already covers
        self._sums = {"train": defaultdict(lambda: [0.0, 0.0]), "eval": defaultdict(lambda: [0.0, 0.0])}
        self._examples_to_print = []
        self._eval_batch = 0
        # A stream is dealt out to the processes as tensors: its batches stay as they come, judged row by row
        self._has_stream = any(isinstance(d, IterableDataset) for d in (train_dataset, *eval_datasets.values()))
        self._stored = []  # stored pairs as they were given, for the value functions: `(first number, dataset)`
        self._stored_values = {}  # of those that were judged, by their number

        # For full fine-tuning DPOTrainer loads a second copy of the model as the reference, unless the reference
        # log-probs are precomputed. Reference-free needs neither, so it is told the latter, and
        # `_precompute_ref_logps` does nothing.
        args.precompute_ref_log_probs = args.precompute_ref_log_probs or args.reference_free
        self._reference_checked = args.reference_free or ref_model is not None
        zero_3 = args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3
        if ref_model is None and not args.precompute_ref_log_probs and not zero_3:
            ref_model = reference_of(model, peft_config)
        super().__init__(
            model=model,
            ref_model=ref_model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        self._set_up_reference(peft_config)
        self.add_callback(DisplacementCallback())
        self._wrap_collator()
        self._share_prefix_where_exact()
        needs_list = (self.teacher is None and self._counts_tokens()) or self.reward_funcs
        self.data_collator.waits = bool(needs_list) and not self._has_stream
        self._set_up_generation()
        self._set_up_replay(replay_dataset)
        if isinstance(asked, PolicyTeacher):
            self._lend_the_policy(asked)

    def _set_up_teacher(self, args: CorrectionOptimizationConfig, teacher: Any) -> Any:
        """Returns the teacher that is asked, without the store around it."""
        if args.correction_store is not None and teacher is not None and not isinstance(teacher, StoringTeacher):
            teacher = StoringTeacher(teacher, args.correction_store)
        self.teacher = teacher
        self._n_uncorrected = 0  # responses, until the teacher has corrected one; `None` after that
        asked = teacher.teacher if isinstance(teacher, StoringTeacher) else teacher
        waits_for_a_server = isinstance(asked, Teacher) and asked.waits_for_a_server
        self._overlaps = args.max_staleness > 0 and (
            waits_for_a_server if args.overlap_teacher is None else args.overlap_teacher
        )
        return asked

    def _set_up_reference(self, peft_config: PeftConfig | None) -> None:
        args = self.args
        if args.reference_free:
            args.precompute_ref_log_probs = self.precompute_ref_logps = False
            self.ref_model = None
        if self.accelerator.device.type == "cpu":
            keep_trainable_on_cpu(self.model)
        if is_peft_model(self.model) and "ref" in self.model.peft_config:
            copy_policy_to_reference(self.model)
        if getattr(peft_config, "init_lora_weights", True) is False and not self._reference_checked:
            self._reference_checked = True
            logger.warning(
                "The adapter starts at random values (`init_lora_weights=False`): the reference is the model without "
                "it, which is not the policy before training."
            )

    # ------------------------------------------------------------------ data

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        columns = next(iter(dataset)).keys()
        conversational = isinstance(next(iter(dataset)).get("prompt"), list)
        check_tokenizer(self._tokenizer, conversational)
        # The functions below must not close over `self`: datasets pickles what they close over, and that holds the
        # model
        tokenizer, reward_funcs, max_length = self._tokenizer, self.reward_funcs, args.max_length
        map_kwargs = {"num_proc": args.dataset_num_proc} if isinstance(dataset, Dataset) else {}

        if dataset_kind(dataset) == PROMPTS:
            check_prompts(tokenizer, dataset, f"the {dataset_name} dataset")
            self._prompt_dataset_columns += [
                column for column in columns if column not in self._prompt_dataset_columns
            ]
            if max_length is not None:
                limit = max_length - args.max_completion_length
                if limit < 1:
                    raise BadInput(
                        f"`max_length={max_length}` leaves no room for a prompt beside `max_completion_length="
                        f"{args.max_completion_length}`; raise the former or lower the latter."
                    )
                n_rows = len(dataset)
                dataset = dataset.filter(
                    lambda row: (
                        len(tokenize_prompt(tokenizer, row["prompt"], **chat_template_kwargs(row))[1]) <= limit
                    ),
                    desc=f"Checking prompt lengths of the {dataset_name} dataset",
                    **map_kwargs,
                )
                self._report_dropped(
                    n_rows - len(dataset),
                    n_rows,
                    dataset_name,
                    f"their prompt is longer than `max_length` - `max_completion_length` = {limit} tokens",
                )
            return dataset

        n_rows = len(dataset) if isinstance(dataset, Dataset) else None
        dataset = to_preference_columns(with_checked_rows(dataset, f"the {dataset_name} dataset"))
        if not set(PAIR_TOKEN_COLUMNS) <= set(columns):  # pairs that were sampled come as the ids they were sampled as
            stop_ids = stop_token_ids(tokenizer, self._generation_config)
            encode = CompletionEncoder(tokenizer, stop_ids, args.missing_thoughts)
            with global_then_local_main_first():
                dataset = dataset.map(
                    tokenize_pair, with_indices=True, fn_kwargs={"encode": encode, "name": dataset_name}, **map_kwargs
                )

        first = sum(len(given) for _, given in self._stored)
        row_by_row = self._has_stream
        if reward_funcs and not row_by_row:
            self._stored.append((first, dataset.remove_columns(PAIR_TOKEN_COLUMNS)))

        def pair_numbers(row, number):
            response, correction = message_text(row["rejected"]), message_text(row["chosen"])
            n_prompt, n_response = len(row["prompt_ids"]), len(row["rejected_ids"])
            numbers = {  # all of PAIR_COLUMNS: a column of that name in the user's data must not pass for ours
                "pair_weight": 1.0,
                "missing": 0.0,
                "correction_truncated": 0.0,
                "values": [],
                "unchanged": float(row["chosen_ids"] == row["rejected_ids"]),
                "edit_ratio": edit_ratio(response, correction),
                "response_truncated": float(max_length is not None and n_prompt + n_response > max_length),
            }
            if reward_funcs and not row_by_row:
                numbers["pair_number"] = first + number
            elif reward_funcs:
                others = {
                    key: [value]
                    for key, value in row.items()
                    if key
                    not in (*NOT_FOR_THE_TEACHER, "chosen", "rejected", "prompt_ids", "chosen_ids", "rejected_ids")
                }
                numbers["values"] = [
                    [
                        _nan_if_none(call_value_function(function, [row["prompt"]], [text], others)[0])
                        for text in (response, correction)
                    ]
                    for function in reward_funcs
                ]
            return numbers

        dataset = dataset.map(pair_numbers, with_indices=True, **map_kwargs)
        if max_length is not None:
            fits = dataset.filter(
                lambda row: len(row["prompt_ids"]) + len(row["chosen_ids"]) <= max_length, **map_kwargs
            )
            if isinstance(dataset, Dataset):
                self._report_dropped(
                    n_rows - len(fits),
                    n_rows,
                    dataset_name,
                    f"their prompt and correction exceed `max_length={max_length}` tokens, and a correction "
                    "that is cut off would teach never to stop",
                )
            dataset = fits
        return dataset

    def _report_dropped(self, n_dropped, n_rows, dataset_name, reason):
        if n_dropped == n_rows:
            raise BadInput(f"No row of the {dataset_name} dataset can be used: {reason}. Raise `max_length`.")
        if n_dropped:
            logger.warning(f"{n_dropped} of {n_rows} rows of the {dataset_name} dataset are left out: {reason}.")

    def _set_signature_columns_if_needed(self):
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            self._signature_columns = [
                *self._signature_columns,
                *PAIR_COLUMNS,
                "values",
                "pair_number",
                *self._prompt_dataset_columns,
            ]

    def _wrap_collator(self):
        if not isinstance(self.data_collator, PairCollator):
            self.data_collator = PairCollator(self.data_collator, self.args, self.model.config.get_text_config())

    def _precompute_ref_logps(self, dataset, name, batch_size):
        if self.args.reference_free:
            return dataset
        self._wrap_collator()  # this runs inside DPOTrainer's __init__
        # DPOTrainer keeps the scores in a file, and takes them from there for the same model and pairs. They are the
        # loss's own: `ipo` has means, `ddpo` weighs the tokens, with `credit` only some count
        model_hash = self._precompute_model_hash
        self._precompute_model_hash = Hasher.hash(
            (model_hash, self.args.loss_type, self.args.ddpo_gamma, self.args.credit)
        )
        try:
            return super()._precompute_ref_logps(dataset, name, batch_size)
        finally:
            self._precompute_model_hash = model_hash

    # ------------------------------------------------------------------ shared prefix

    def _share_prefix_where_exact(self):
        """Whether batches may be packed at all; `_check_shared_prefix` then looks at the first one."""
        self._shared_prefix_checked = False
        if self.args.shared_prefix is False or self.args.loss_type == "sft":
            return
        models = [self.model] if self.ref_model is None else [self.model, self.ref_model]
        reasons = [unsupported_reason(model, self.args.max_length) for model in models]
        if self._is_vision_dataset:
            reasons.append("its pairs hold images")
        if self.aux_loss_enabled:
            reasons.append("its load-balancing loss would count the tokens of the common prefix once instead of twice")
        reason = next((reason for reason in reasons if reason is not None), None)
        if reason is None:
            self.data_collator.shared_prefix = self.args.shared_prefix
        elif self.args.shared_prefix is True:
            raise BadInput(
                f"`shared_prefix=True` is not possible for {type(self.model).__name__}: {reason}. Set "
                "`shared_prefix: auto` (two rows per pair)."
            )
        else:
            logger.info(f"Pairs are computed in two rows: {reason}.")

    def _check_shared_prefix(self, examples: list[dict[str, Any]]):
        """Compare packed rows with two rows on the first examples of a run, on this very model."""
        if self._shared_prefix_checked or self.data_collator.shared_prefix is False:
            return
        # Pairs with y' = y have no second branch: they would pass on any model
        examples = [example for example in examples if example["chosen_ids"] != example["rejected_ids"]]
        ready = torch.tensor(float(len(examples) > 0), device=self.accelerator.device)
        if self.accelerator.reduce(ready, reduction="sum") < self.accelerator.num_processes:
            return  # all processes check, or none: a sharded model's forward needs them all
        self._shared_prefix_checked = True
        pairs = self.data_collator.pairs(examples[: self.args.per_device_train_batch_size])
        with self.accelerator.autocast():
            reason = self_check(self.model, pairs, self._tokenizer.pad_token_id)
        if reason is not None:
            if self.args.shared_prefix is True:
                raise BadInput(
                    f"`shared_prefix=True` failed its check on the first batch: {reason}. Set `shared_prefix: false`."
                )
            self.data_collator.shared_prefix = False
            warnings.warn(f"Pairs are computed in two rows, because {reason}.", stacklevel=2)

    def _check_shared_prefix_on(self, dataset: Dataset | IterableDataset):
        if self._shared_prefix_checked or self.data_collator.shared_prefix is False:
            return
        if dataset_kind(dataset) != PROMPTS:  # prompts are checked when they have become pairs
            head = itertools.islice(dataset, 1000)
            changed = (row for row in head if row["chosen_ids"] != row["rejected_ids"])
            self._check_shared_prefix(list(itertools.islice(changed, self.args.per_device_train_batch_size)))

    # ------------------------------------------------------------------ on-policy responses

    def _set_up_generation(self):
        args = self.args
        self.rollouts = Rollouts(args.rollout, args.rollout_weights, args.generation_batch_size)
        self._sampler = self._make_sampler(args.max_completion_length, args.temperature)
        self._encode = CompletionEncoder(self._tokenizer, self._sampler.stop_ids, args.missing_thoughts)
        self._vllm = None
        if args.use_vllm and self.teacher is not None:
            self._vllm = VLLMRollouts(self)

    def card_notes(self) -> dict[str, Any]:
        args = self.args
        return {
            "description": "The policy learns to need less correction by a teacher: it minimises "
            f"log P(y|x) - log P(y'|x) under the loss `{args.loss_type}`.",
            "departures": [
                f"Loss `{args.loss_type}` (beta {args.beta}, NLL anchor {args.nll_weight}, "
                f"{'no ' if args.reference_free else ''}reference policy); the source minimises the bare difference, "
                "which has no lower bound.",
                *self._replay_notes(),
            ],
        }

    def _make_sampler(self, max_new_tokens: int, temperature: float) -> Sampler:
        args = self.args
        return Sampler(
            self.model,
            self._tokenizer,
            max_new_tokens,
            temperature,
            args.top_p,
            args.top_k,
            args.generation_kwargs,
            seed=args.seed,
            trainer=self,
            engine=self.rollouts,
        )

    def _sample(self, prompt_ids: list[list[int]], names: list[tuple]) -> list[list[int]]:
        """Responses of the current policy. A resumed run samples what the uninterrupted one did: the names hold the
        step."""
        if self._vllm is not None:
            return self._vllm(prompt_ids, self.state.global_step)
        return self._sampler(prompt_ids, names).ids

    def _places(self, batches: list[list[dict[str, Any]]], size: int, first: int = 0) -> list[int]:
        """Places of this process's rows among those of all, batch by batch, where a batch has at most `size` rows per
        process: one process with twice the batch has the same."""
        n_processes, process = self.accelerator.num_processes, self.accelerator.process_index
        return [
            ((first + number) * n_processes + process) * size + i
            for number, batch in enumerate(batches)
            for i in range(len(batch))
        ]

    def _lend_the_policy(self, teacher: PolicyTeacher):
        if self._overlaps:
            raise BadInput("`overlap_teacher`: the policy cannot correct and be trained at the same time.")
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise BadInput("The policy can be its own teacher only unsharded: use DDP or one process.")
        base = Path(get_config_model_id(self.model.config) or "model").name

        def name():
            return (
                f"{base} without adapter" if is_peft_model(self.model) else f"{base} at step {self.state.global_step}"
            )

        sampler = self._make_sampler(
            teacher.max_tokens or self.args.max_completion_length, teacher.sampling["temperature"]
        )

        def reply(prompt_ids: list[list[int]], teacher: PolicyTeacher) -> list[list[int]]:
            with self._adapter_off():
                # By what it is asked alone, so that it does not matter with what else
                return sampler(
                    prompt_ids, numbered([("teacher", self.state.global_step, *ids) for ids in prompt_ids])
                ).ids

        teacher.bind(reply, self._tokenizer, sampler.stop_ids, name)

    def _sample_responses(self, rows: list[dict[str, Any]], names: list[tuple]) -> _Rollout:
        """A response to each prompt, drawn with the random numbers of its name."""
        columns = {key: [row[key] for row in rows] for key in rows[0] if key not in NOT_FOR_THE_TEACHER}
        rendered = [tokenize_prompt(self._tokenizer, row["prompt"], **chat_template_kwargs(row)) for row in rows]
        start = time.perf_counter()
        response_ids = self._sample([ids for _, ids in rendered], names)
        responses = decode(self._tokenizer, response_ids)
        seconds = time.perf_counter() - start
        return _Rollout(rows, columns, rendered, response_ids, responses, self.state.global_step, seconds)

    def _ask_teacher(self, rollout: _Rollout) -> tuple[list[str | None], float]:
        """Corrections, and the seconds that they took. Touches neither the model nor the trainer's state: it may run
        in another thread."""
        start = time.perf_counter()
        prompts = [row["prompt"] for row in rollout.rows]
        try:
            corrections = call_teacher(self.teacher, prompts, rollout.responses, rollout.columns)
        except (BadInput, TeacherFailed) as error:
            resume = " Training can go on from the last checkpoint with `resume_from_checkpoint`."
            saved = any(Path(self.args.output_dir).glob("checkpoint-*"))
            raise TeacherFailed(f"Step {rollout.step}: {error}{resume if saved else ''}") from error
        return corrections, time.perf_counter() - start

    def _ask_teacher_meanwhile(self, rollout: _Rollout) -> Future:
        """The same in a thread, one rollout after the other. The thread does not keep the process from ending."""
        before = self._at_the_teacher[-1][2] if self._at_the_teacher else None
        answer = Future()

        def ask():
            if before is not None:
                before.exception()  # wait
            try:
                answer.set_result(self._ask_teacher(rollout))
            except BaseException as error:
                answer.set_exception(error)

        threading.Thread(target=ask, daemon=True).start()
        return answer

    def _pairs(self, rollout: _Rollout, answer: tuple[list[str | None], float], mode: str) -> list[dict[str, Any]]:
        """Examples for the collator."""
        corrections, teacher_seconds = answer
        seconds = {"time/generation": rollout.seconds, "time/teacher": teacher_seconds}
        self._count(mode, seconds | self.rollouts.pop_metrics(), count=1)
        rows, columns, rendered = rollout.rows, rollout.columns, rollout.rendered
        response_ids, responses = rollout.response_ids, rollout.responses
        prompts = [row["prompt"] for row in rows]

        stop_ids = self._sampler.stop_ids
        values = [
            list(
                zip(
                    call_value_function(function, prompts, responses, columns),
                    call_value_function(
                        function,
                        prompts,
                        [c if c is not None else r for c, r in zip(corrections, responses, strict=True)],
                        columns,
                    ),
                    strict=True,
                )
            )
            for function in self.reward_funcs
        ]
        if self.args.verify_corrections:
            corrections = [
                correction if correction == response or (None not in judged and judged[1] > judged[0]) else None
                for correction, response, judged in zip(corrections, responses, values[0], strict=True)
            ]
        # With nothing to correct, or no correction, y stands in for y', so that the pair has no gradient
        correction_ids, corrections = self._encode.corrections(
            prompts, rendered, [chat_template_kwargs(row) for row in rows], response_ids, responses, corrections
        )
        examples = []
        for i, (response, correction) in enumerate(zip(responses, corrections, strict=True)):
            too_long = len(correction_ids[i]) > self.args.max_completion_length
            truncated = not response_ids[i] or response_ids[i][-1] not in stop_ids
            example = {
                "prompt_ids": rendered[i][1],
                "rejected_ids": response_ids[i],
                "chosen_ids": correction_ids[i][: self.args.max_completion_length],
                "unchanged": float(correction == response),
                "missing": float(correction is None),
                "edit_ratio": edit_ratio(response, correction) if correction is not None else 0.0,
                "response_truncated": float(truncated),
                "correction_truncated": float(too_long),
            }
            if too_long or correction is None or (truncated and self.args.mask_truncated_completions):
                example["pair_weight"] = 0.0
            if values:
                example["values"] = [[_nan_if_none(value) for value in of_function[i]] for of_function in values]
            examples.append(example)
        if self.args.mask_truncated_completions and all(example["response_truncated"] for example in examples):
            logger.warning_once(
                f"All {len(examples)} responses were cut off at `max_completion_length="
                f"{self.args.max_completion_length}`, and nothing is learned from them. Raise it; or, for a teacher "
                "that writes whole answers, set `mask_truncated_completions: false`."
            )
        self._examples_to_print = [
            {"prompt": prompt, "response": response, "correction": correction}
            for prompt, response, correction in zip(prompts, responses, corrections, strict=True)
        ][:4]
        return examples

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor]:
        # All pairs of an update are sampled at once (with `max_staleness`, those of the next updates too), from the
        # policy as it is before the update. The number of pairs that count in the update, over accumulation steps and
        # processes, is what its loss is divided by.
        if self._n_to_skip:
            super().get_batch_samples(epoch_iterator, self._n_to_skip, device)
            self._n_to_skip = 0
        self._check_shared_prefix_on(self.train_dataset)
        self._fill_ready(epoch_iterator, num_batches, device)
        while len(self._ready) < num_batches and self._at_the_teacher:
            self._fetch_from_the_teacher()
        batch_samples = [self._ready.popleft() for _ in range(min(num_batches, len(self._ready)))]
        if batch_samples and isinstance(batch_samples[0], list):
            self._judge_stored([example for step in batch_samples for example in step])
            batch_samples = self._micro_batches(batch_samples)
        batches = [batch for step in batch_samples for batch in (step if isinstance(step, MicroBatches) else [step])]
        n_pairs = torch.tensor(sum(float(batch["pair_weight"].sum()) for batch in batches), device=device)
        n_pairs = self.accelerator.reduce(n_pairs, reduction="sum")
        if self.teacher is not None and batches and self._n_uncorrected is not None:
            self._check_that_the_teacher_corrects(torch.cat([batch["missing"] for batch in batches]), device)
        return self._with_replay(batch_samples), n_pairs

    def _check_that_the_teacher_corrects(self, missing: torch.Tensor, device: torch.device):
        """A teacher that has no correction for anything is noticed: at the first update by a warning; by an error at
        the end of the first logging window with 32 responses, or of the run. The same on every process."""
        asked, corrected = self.accelerator.reduce(
            torch.tensor([len(missing), float((1 - missing).sum())], device=device), reduction="sum"
        ).tolist()
        if corrected:
            self._n_uncorrected = None
            return
        self._n_uncorrected += int(asked)
        teacher = self.teacher.teacher if isinstance(self.teacher, StoringTeacher) else self.teacher
        better = ", or none that was rated above its response" if self.args.verify_corrections else ""
        what = (
            f"The teacher {teacher_name(teacher)!r} has returned no correction{better}, for any of "
            f"{self._n_uncorrected} responses: nothing was trained so far"
        )
        n_updates = self.state.global_step + 1
        if n_updates >= self.state.max_steps or (n_updates >= self.state.logging_steps and self._n_uncorrected >= 32):
            raise TeacherFailed(f"{what}. Look at what it returns for a few prompts and responses.")
        if n_updates == 1:
            logger.warning(f"{what}.")

    def _fill_ready(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> None:
        """Sample, or take from the data loader, until the next update's pairs are ready or at the teacher."""
        # A group of updates is sampled at once. With overlap a second group is at the teacher while the first one
        # trains: the last of its updates comes 2 * group - 1 <= max_staleness updates after its sampling.
        group, enough = self.args.max_staleness + 1, num_batches
        if self._overlaps:
            group = group // 2
            enough = group * num_batches + 1
        n_waiting = len(self._ready) + sum(len(sizes) for _, sizes, _ in self._at_the_teacher)
        n_ahead = 0  # groups that were sampled at this step
        while n_waiting < enough:
            n_to_come = self.state.max_steps - self.state.global_step - math.ceil(n_waiting / num_batches)
            n_updates = min(group, n_to_come)
            if n_updates <= 0:
                break
            batches, _ = super().get_batch_samples(epoch_iterator, num_batches * n_updates, device)
            if not batches:
                break
            n_waiting += len(batches)
            if self.teacher is None:
                self._ready.extend(batches)
                continue
            places = self._places(batches, self.args.per_device_train_batch_size)
            names = [(self.state.global_step, n_ahead, place) for place in places]
            rollout = self._sample_responses([row for batch in batches for row in batch], names)
            n_ahead += 1
            sizes = [len(batch) for batch in batches]
            if self._overlaps:
                self._at_the_teacher.append((rollout, sizes, self._ask_teacher_meanwhile(rollout)))
            else:
                self._make_ready(rollout, sizes, self._ask_teacher(rollout))

    def _make_ready(self, rollout: _Rollout, sizes: list[int], answer: tuple[list[str | None], float]):
        examples = self._pairs(rollout, answer, "train")
        self._check_shared_prefix(examples)
        for example in examples:
            example["sampled_at"] = float(rollout.step)
        for size in sizes:
            self._ready.append([examples.pop(0) for _ in range(size)])

    def _judge_stored(self, examples: list[dict[str, Any]]) -> None:
        """Values of stored pairs, of an update or a batch at once; a pair that comes again is not judged again."""
        if not self.reward_funcs:
            return
        wanted = {example["pair_number"] for example in examples if "pair_number" in example}
        for first, given in self._stored:
            numbers = sorted(n for n in wanted - self._stored_values.keys() if first <= n < first + len(given))
            if not numbers:
                continue
            rows = given[[number - first for number in numbers]]
            sides = [[message_text(text) for text in rows[name]] for name in ("rejected", "chosen")]
            others = {
                key: values for key, values in rows.items() if key not in (*NOT_FOR_THE_TEACHER, "chosen", "rejected")
            }
            values = [
                [call_value_function(function, rows["prompt"], texts, others) for texts in sides]
                for function in self.reward_funcs
            ]
            for i, number in enumerate(numbers):
                self._stored_values[number] = [[_nan_if_none(side[i]) for side in judged] for judged in values]
        for example in examples:
            if "pair_number" in example:
                example["values"] = self._stored_values[example["pair_number"]]

    def _micro_batches(self, steps: list[list[dict[str, Any]]]) -> list:
        """The pairs of an update as the model gets them: per step, or, cut by tokens, all with the last step."""
        if not self._counts_tokens():
            return [self.data_collator.collate(examples) for examples in steps]
        collator = self.data_collator
        examples = [example for step in steps for example in step]
        lengths = collator.lengths(examples)
        longest = self._as_long_as_can_be(examples[max(range(len(examples)), key=lengths.__getitem__)])
        self._find_max_tokens(
            lambda n: (collator.collate([longest] * n), n * collator.lengths([longest])[0]), len(examples)
        )
        return self._cut(
            lengths,
            lambda rows: collator.collate([examples[row] for row in rows]),
            len(steps),
            at_most=collator.max_tokens(lengths),
        )

    def _as_long_as_can_be(self, example: dict[str, Any]) -> dict[str, Any]:
        """A pair as long as one of this run can become, to try its size."""
        if self.teacher is not None:
            limits = dict.fromkeys(("chosen_ids", "rejected_ids"), self.args.max_completion_length)
        else:
            columns = self.train_dataset.with_format("arrow")
            limits = {
                name: pyarrow.compute.max(pyarrow.compute.list_value_length(columns[name])).as_py()
                for name in ("prompt_ids", "chosen_ids", "rejected_ids")
            }
        fill = self._tokenizer.eos_token_id
        stretched = {name: [*example[name], *[fill] * limit][:limit] for name, limit in limits.items()}
        return {**example, **stretched, "pair_weight": 1.0}

    def _fetch_from_the_teacher(self):
        rollout, sizes, answer = self._at_the_teacher[0]
        start = time.perf_counter()
        corrections = answer.result()  # raises what the teacher raised
        self._count("train", {"time/waiting_for_teacher": time.perf_counter() - start}, count=1)
        self._at_the_teacher.popleft()
        self._make_ready(rollout, sizes, corrections)

    def _prepare_inputs(self, inputs):
        if isinstance(inputs, list) and "chosen_ids" in inputs[0]:  # evaluation on pairs, by a collator that waits
            self._judge_stored(inputs)
            inputs = self.data_collator.collate(inputs)
        if isinstance(inputs, list):  # evaluation on prompts: sample and correct here
            places = self._places([inputs], self.args.per_device_eval_batch_size, self._eval_batch)
            self._eval_batch += 1
            rollout = self._sample_responses(inputs, [("eval", place) for place in places])
            examples = self._pairs(rollout, self._ask_teacher(rollout), "eval")
            self._check_shared_prefix(examples)
            inputs = self.data_collator.collate(examples)
        return super()._prepare_inputs(inputs)

    def evaluate(self, *args, **kwargs):
        self._eval_batch = 0  # every evaluation sees the same random numbers
        # An evaluation may come before the first update
        eval_datasets = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        for dataset in (self.train_dataset, *eval_datasets):
            if dataset is not None:
                self._check_shared_prefix_on(dataset)
        return super().evaluate(*args, **kwargs)

    # ------------------------------------------------------------------ log-probs and loss

    def _pair_log_probs(self, model, inputs, with_entropy: bool) -> tuple[PairLogProbs, Any]:
        """Per-token log-probs of y and y' from one forward, and the model's output."""
        if "shift_labels" in inputs:  # one packed row
            outputs, index = packed_forward(model, inputs), inputs
            n_tokens = inputs["input_ids"].size(1)
        else:  # two rows, as TRL lays them out
            model_inputs = {key: value for key, value in inputs.items() if key not in NOT_FOR_THE_MODEL}
            if self.aux_loss_enabled and with_entropy:
                model_inputs["output_router_logits"] = True
            labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
            outputs = model(**model_inputs, labels=labels, use_cache=False, fused_lm_head=True)
            sides = ("correction",) if "response_mask" in inputs else ("correction", "response")  # y' alone, or both
            index = {**inputs, **row_index(inputs["completion_mask"], sides)}
            n_tokens = inputs["input_ids"].size(1) - 1  # prompt-learning PEFT puts virtual tokens in front

        def tokens_of(name, per_token):  # from the model's rows (R, T) to one row per pair (B, L)
            if f"{name}_index" not in index:
                return None
            return gather_tokens(per_token[:, -n_tokens:], index[f"{name}_index"], index[f"{name}_mask"])

        return (
            PairLogProbs(
                response=tokens_of("response", outputs.log_probs),
                response_mask=index["response_mask"],
                correction=tokens_of("correction", outputs.log_probs),
                correction_mask=index["correction_mask"],
                response_entropy=tokens_of("response", outputs.entropy.detach()) if with_entropy else None,
            ),
            outputs,
        )

    def _scores(self, log_probs: PairLogProbs, inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """log P of y and of y' as the loss weighs their tokens: sums, for IPO means, for DDPO edit-weighted means; of
        the tokens that get credit."""

        def score(of_tokens, mask, marked):
            if self.args.loss_type == "ddpo":
                return edit_weighted_scores(of_tokens, mask, marked, self.args.ddpo_gamma)
            if marked is not None:
                of_tokens, mask = of_tokens * marked, mask * marked
            if self.args.loss_type == "ipo":
                return of_tokens.sum(1) / mask.sum(1).clamp(min=1)
            return of_tokens.sum(1)  # (B,)

        response = None
        if log_probs.response is not None:
            response = score(log_probs.response, log_probs.response_mask, inputs.get("response_marked"))
        return response, score(log_probs.correction, log_probs.correction_mask, inputs.get("correction_marked"))

    def _adapter_off(self):
        """With an adapter: the base model, or the frozen copy of an adapter that was given; else nothing changes."""
        if not is_peft_model(self.model):
            return contextlib.nullcontext()
        unwrapped = self.accelerator.unwrap_model(self.model)
        return use_adapter(unwrapped, adapter_name="ref" if "ref" in unwrapped.peft_config else None)

    def _reference_log_probs(self, model, inputs) -> PairLogProbs:
        adapter_off = self._adapter_off() if self.ref_model is None else contextlib.nullcontext()
        with (
            torch.no_grad(),
            disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
            adapter_off,
            self.accelerator.autocast(),
        ):
            return self._pair_log_probs(model, inputs, with_entropy=False)[0]

    def compute_ref_log_probs(self, model, inputs):
        # Called by `_precompute_ref_logps`, with the model that is the reference
        response, correction = self._scores(self._reference_log_probs(model, inputs), inputs)
        return correction, response

    def _check_reference(self, model, inputs, reference: PairLogProbs | None, ref_scores: tuple[torch.Tensor, ...]):
        """On the first batch of a run (not of a resumed one), where the reference was not given."""
        if self._reference_checked or self.state.global_step > 0:
            return
        self._reference_checked = True

        def difference():
            policy = self._pair_log_probs(model, inputs, with_entropy=False)[0]
            if reference is not None:
                sides = ((policy.response, reference.response), (policy.correction, reference.correction))
                n_tokens = policy.response_mask.sum() + policy.correction_mask.sum()
                return sum((own - other).abs().sum() for own, other in sides) / n_tokens.clamp(min=1)
            n_tokens = [1, 1]
            if self.args.loss_type not in ("ipo", "ddpo"):  # whose scores are per token
                n_tokens = [policy.response_mask.sum(1), policy.correction_mask.sum(1)]
            differences = [
                ((own - other) / n).abs().max()
                for own, other, n in zip(self._scores(policy, inputs), ref_scores, n_tokens, strict=True)
            ]
            return torch.stack(differences).max()

        exact = self.accelerator.mixed_precision == "no" and self.model.dtype == torch.float32
        with self.accelerator.autocast():
            check_reference(
                model,
                difference,
                # Log-probs that were computed beforehand come from batches of another shape
                tolerance=1e-3 if exact else 2e-2 if reference is not None else 5e-2,
                reduce=lambda value: self.accelerator.gather(value.detach().reshape(1)).max(),
                cause=reference_cause(self.accelerator.unwrap_model(self.model)),
            )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if return_outputs:
            raise ValueError("The CorrectionOptimizationTrainer does not return outputs; set `prediction_loss_only`.")
        args = self.args
        if "replayed" in inputs:
            return self._replay_loss(model, inputs)
        log_probs, outputs = self._pair_log_probs(model, inputs, with_entropy=True)
        scores, reference, ref_scores = self._scores(log_probs, inputs), None, None
        if not args.reference_free:
            if self.precompute_ref_logps:
                ref_scores = inputs["ref_rejected_logps"], inputs["ref_chosen_logps"]
            else:
                reference = self._reference_log_probs(self.ref_model or self.model, inputs)
                ref_scores = self._scores(reference, inputs)
            self._check_reference(model, inputs, reference, ref_scores)
        losses, margins = self._losses(log_probs, scores, ref_scores)

        weights = inputs["pair_weight"]
        if num_items_in_batch is None:
            loss = (losses * weights).sum() / weights.sum().clamp(min=1)
        else:
            # Distributed training averages the gradients of the processes; this divisor already counts them all
            loss = (losses * weights).sum() / num_items_in_batch.clamp(min=1) * self.accelerator.num_processes
        loss = self._share_of_pairs() * loss
        if self.aux_loss_enabled:
            n_steps = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / n_steps
            aux_loss = self.accelerator.reduce(outputs.aux_loss.detach(), reduction="mean").item()
            self._count("train" if self.model.training else "eval", {"aux_loss": aux_loss}, count=1)
        self._record(inputs, log_probs, reference, margins, losses.detach())
        return loss

    def _losses(
        self,
        log_probs: PairLogProbs,
        scores: tuple[torch.Tensor | None, torch.Tensor],
        ref_scores: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        The losses of a batch's pairs, and their margins (`None` for fine-tuning, which has none); each `(B,)`.
        """
        args = self.args
        response_scores, correction_scores = scores
        anchor = nll_anchor(correction_scores)
        if args.loss_type == "sft":
            return anchor, None
        if ref_scores is not None:
            response_scores = response_scores - ref_scores[0]
            correction_scores = correction_scores - ref_scores[1]

        response_offset = correction_offset = torch.zeros_like(response_scores)  # (B,), what the length prior adds
        if self.length_prior is not None:
            lengths = [mask.sum(1).tolist() for mask in (log_probs.response_mask, log_probs.correction_mask)]
            offsets = torch.tensor(self.length_prior(itertools.chain(*lengths)), dtype=torch.float32)
            response_offset, correction_offset = offsets.to(response_scores.device).chunk(2)
            if self.length_prior.form == "attract":
                anchor = anchor * length_prior_anchor_weights(response_offset - correction_offset)

        margins = (correction_scores + correction_offset) - (response_scores + response_offset)
        if args.loss_type == "linear":
            losses = linear_loss(response_scores, correction_scores)
            if self.length_prior is not None:
                prior_gap = response_offset - correction_offset
                losses = losses + length_prior_score_term(log_probs.response.sum(1), prior_gap)
        elif args.loss_type in ("sigmoid", "ddpo"):
            losses = sigmoid_loss(margins, args.beta, args.label_smoothing)
        elif args.loss_type == "hinge":
            losses = hinge_loss(margins, args.beta)
        elif args.loss_type == "ipo":
            losses = ipo_loss(margins, args.beta)
        elif args.loss_type == "dpop":
            losses = dpop_loss(margins, correction_scores, args.beta, args.dpop_lambda)
        elif args.loss_type == "cpl":
            losses = cpl_loss(
                response_scores + response_offset, correction_scores + correction_offset, args.beta, args.cpl_bias
            )
        if args.nll_weight:
            losses = losses + args.nll_weight * anchor
        return losses, margins.detach()

    # ------------------------------------------------------------------ metrics

    @torch.no_grad()
    def _record(self, inputs, log_probs: PairLogProbs, reference: PairLogProbs | None, margins, losses):
        mode = "train" if self.model.training else "eval"
        weights, missing = inputs["pair_weight"], inputs["missing"]
        corrected = (1 - missing) * (1 - inputs["correction_truncated"])  # y' is there, and whole
        correction = log_probs.correction.sum(1)
        n_response, n_correction = log_probs.response_mask.sum(1), log_probs.correction_mask.sum(1)
        everything = torch.ones_like(weights)
        changed = corrected * (1 - inputs["unchanged"])
        # name: (values, weights); each is logged as the weighted mean over the pairs of all processes since the last
        # log
        columns = {
            "logps/correction": (correction, corrected),
            "correction_edit_ratio": (inputs["edit_ratio"], corrected),
            "corrections/unchanged": (inputs["unchanged"], everything),
            "corrections/missing": (missing, everything),
            "corrections/truncated": (inputs["correction_truncated"], everything),
            "corrections/in_loss": (weights, everything),
            "responses/truncated": (inputs["response_truncated"], everything),
            "lengths/response": (n_response.float(), everything),
            "lengths/correction": (n_correction.float(), corrected),
            "tokens": (inputs["n_tokens"], everything),
        }
        if log_probs.response is not None:
            response = log_probs.response.sum(1)
            columns |= {
                "logps/response": (response, corrected),
                "correction_amount": (response - correction, corrected),
                "entropy": (log_probs.response_entropy.sum(1) / n_response.clamp(min=1), n_response.float()),
            }
        if margins is not None:
            columns |= {
                "margins/mean": (margins, changed),
                "margins/accuracy": ((margins > 0).float(), changed),
            }
        if mode == "eval":
            columns["loss"] = (losses, weights)
        if reference is not None:
            columns["kl"] = (response - reference.response.sum(1), everything)
        if "sampled_at" in inputs:
            columns["staleness"] = (self.state.global_step - inputs["sampled_at"], everything)
        if "values" in inputs:
            for i, name in enumerate(self.reward_func_names):
                for j, kind in enumerate(("response", "correction")):
                    values = inputs["values"][:, i, j]
                    judged = (~values.isnan()).float() * (corrected if kind == "correction" else 1)
                    columns[f"rewards/{name}/{kind}"] = (values.nan_to_num(), judged)
        totals = torch.stack([torch.stack([(v * w).sum(), w.sum()]).float() for v, w in columns.values()])
        totals = self.accelerator.reduce(totals, reduction="sum").tolist()
        for name, (total, count) in zip(columns, totals, strict=True):
            if name == "tokens":
                if mode == "train":  # kept in the state, as in GRPOTrainer: a resumed run goes on counting
                    self.state.num_input_tokens_seen += int(round(total))
            else:
                self._count(mode, {name: total}, count)

    def _count(self, mode: str, totals: dict[str, float], count: float):
        for name, total in totals.items():
            self._sums[mode][name][0] += total
            self._sums[mode][name][1] += count

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        if mode == "eval" and "loss" in self._sums[mode]:
            # Trainer's own average over batches counts a batch without a pair in the loss as a loss of 0
            total, count = self._sums[mode].pop("loss")
            logs.update({key: total / max(count, 1) for key in logs if key.endswith("_loss")})
        if self._sums[mode]:
            for name, (total, count) in self._sums[mode].items():
                if count:
                    self._metrics[mode][name] = [total / count]
            self._metrics[mode]["num_tokens"] = [self.state.num_input_tokens_seen]
            self._sums[mode].clear()
        super().log(logs, start_time)
        if mode == "train" and "logps/correction" in logs:
            if self.args.log_completions and self.accelerator.is_main_process and self._examples_to_print:
                print_examples(self._examples_to_print, self.state.global_step)
                log_examples(self, "completions", self._examples_to_print)

    # ------------------------------------------------------------------ checkpoints

    def train(self, *args, **kwargs):
        self._ready.clear()  # an earlier call may have ended before it used all of its pairs
        self._at_the_teacher.clear()
        self._n_to_skip = 0
        return super().train(*args, **kwargs)

    def _side_files(self) -> list[str]:
        # Pairs that were sampled ahead (`max_staleness`) came from a policy that no longer exists
        return [self._ready_file()] if self.teacher is not None and self.args.max_staleness else []

    def _write_side_files(self, folder: Path):
        while self._at_the_teacher:
            self._fetch_from_the_teacher()
        for name in self._side_files():
            (folder / name).write_text(json.dumps(list(self._ready)), encoding="utf-8")

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        file = Path(checkpoint) / self._ready_file()
        if file.is_file():
            self._ready.extend(json.loads(file.read_text(encoding="utf-8")))
            self._n_to_skip = len(self._ready)

    def _ready_file(self) -> str:
        return f"pairs_sampled_ahead_{self.accelerator.process_index}.json"


def _nan_if_none(value: float | None) -> float:
    return float("nan") if value is None else value
