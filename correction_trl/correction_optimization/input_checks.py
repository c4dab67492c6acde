"""What the trainer is given, checked before a model is loaded."""

from collections.abc import Callable
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel

from ..data_utils import IMAGE_COLUMNS, PROMPTS, check_dataset, dataset_kind
from ..errors import BadInput
from .correction_optimization_config import CorrectionOptimizationConfig


def check_data(
    args: CorrectionOptimizationConfig,
    train_dataset: Dataset | IterableDataset | None,
    eval_datasets: dict[str, Dataset | IterableDataset | None],
    teacher: Any,
) -> bool:
    """The datasets and the teacher. Returns whether training is on-policy."""
    if train_dataset is None:
        raise BadInput("`train_dataset` is required: stored pairs, or prompts with a `teacher`.")
    check_dataset(train_dataset, "train_dataset", teacher)
    on_policy = dataset_kind(train_dataset) == PROMPTS
    if on_policy and isinstance(train_dataset, IterableDataset):
        raise BadInput("On-policy training needs a map-style dataset; load it with `streaming=False`.")
    if not on_policy and teacher is not None:
        raise BadInput(
            "`train_dataset` holds stored corrections and a `teacher` was given as well; drop the `teacher`, or "
            "drop the columns with the responses and corrections to train on-policy."
        )
    for name, dataset in eval_datasets.items():
        if dataset is not None:
            check_dataset(dataset, name, teacher)
    if set(IMAGE_COLUMNS) & set(next(iter(train_dataset))):
        if on_policy:
            raise BadInput(
                "On-policy responses are sampled from text alone, and `train_dataset` has images; sample and "
                "correct first, and train on the stored pairs."
            )
        if args.loss_type == "ddpo" or args.credit != "all":
            name = "loss_type='ddpo'" if args.loss_type == "ddpo" else f"credit={args.credit!r}"
            raise BadInput(f"`{name}` compares token ids before the batch is made; it does not take images.")
    return on_policy


def check_settings(args: CorrectionOptimizationConfig, on_policy: bool, ref_model: PreTrainedModel | None) -> None:
    """Settings that cannot work together, or with what is trained on."""
    if on_policy and args.precompute_ref_log_probs:
        raise BadInput(
            "`precompute_ref_log_probs` needs stored pairs; on-policy responses do not exist before training."
        )
    if on_policy and args.dataloader_num_workers:
        raise BadInput("On-policy training samples in the main process; set `dataloader_num_workers: 0`.")
    if args.loss_type == "linear" and args.length_prior is not None and not on_policy:
        raise BadInput(
            "Under the linear loss a length prior on stored pairs is a constant without a gradient; use a "
            "non-linear `loss_type`, or train on-policy."
        )
    if args.reference_free and ref_model is not None:
        raise BadInput("`reference_free=True` uses no reference; drop `ref_model`, or set `reference_free: false`.")
    if args.reference_free and args.sync_ref_model:
        raise BadInput("`reference_free=True` has no reference to synchronise; drop `sync_ref_model`.")


def check_batch_size(args: CorrectionOptimizationConfig, train_dataset: Dataset | IterableDataset) -> None:
    """Whether a batch can be shared among the processes, and filled."""
    split_batches = args.accelerator_config.split_batches
    if split_batches and args.per_device_train_batch_size % args.world_size:
        raise BadInput(
            f"With `split_batches`, `per_device_train_batch_size={args.per_device_train_batch_size}` is shared by "
            f"{args.world_size} processes and must be a multiple of that number."
        )
    per_batch = args.per_device_train_batch_size * (1 if split_batches else args.world_size)
    if args.dataloader_drop_last and not isinstance(train_dataset, IterableDataset) and len(train_dataset) < per_batch:
        raise BadInput(
            f"`train_dataset` has {len(train_dataset)} rows, fewer than one batch of {per_batch} (all "
            "processes); with `dataloader_drop_last` nothing would be trained. Lower "
            "`per_device_train_batch_size`."
        )


def check_replay(args: CorrectionOptimizationConfig, replay_dataset: Dataset | None) -> None:
    """Whether there is something to replay where it is asked for."""
    if replay_dataset is None and args.replay_share is not None:
        raise BadInput(f"`replay_share={args.replay_share}` needs a `replay_dataset`.")


def check_reward_funcs(
    args: CorrectionOptimizationConfig, reward_funcs: Callable | list[Callable] | None
) -> list[Callable]:
    """The value functions as a list."""
    if args.verify_corrections and not reward_funcs:
        raise BadInput("`verify_corrections` needs a value function: pass `reward_funcs`.")
    reward_funcs = [] if reward_funcs is None else reward_funcs
    reward_funcs = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    for function in reward_funcs:
        if not callable(function):
            raise BadInput(
                f"`reward_funcs` holds {function!r:.80}; pass functions (or callable objects), not model ids."
            )
    return reward_funcs
