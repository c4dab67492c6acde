"""The reference policy π_old: made from the policy that is in memory, and checked to be the policy before training.

TRL loads the reference of a full fine-tuning again by the model's name, which is another model where the one in memory
was changed (a merged adapter), and copies an adapter without the parts whose names end in the adapter's (embeddings).
"""

import copy
from collections.abc import Callable

import torch
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel
from trl.trainer.utils import get_config_model_id

from ..errors import BadInput


def check_model_to_train(
    model: "str | PreTrainedModel | PeftModel", peft_config: PeftConfig | None, processing_class: object | None
) -> None:
    """
    Refuse a model in memory that cannot be trained.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            As a trainer gets it.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Likewise.
        processing_class (*optional*):
            Likewise.

    Raises:
        BadInput: If it has no trainable parameter, an adapter of another name than TRL expects, or neither a name nor
            a tokenizer.
    """
    if isinstance(model, str):
        return
    if isinstance(model, PeftModel) and "default" not in model.peft_config:
        names = ", ".join(map(repr, model.peft_config))
        raise BadInput(
            f"The model's adapter is called {names}, and training expects 'default': load it without `adapter_name`, "
            "as `PeftModel.from_pretrained(base, folder, is_trainable=True)`."
        )
    if peft_config is None and not any(parameter.requires_grad for parameter in model.parameters()):
        raise BadInput(
            "The model has no trainable parameter: after merging an adapter call `model.requires_grad_(True)`, load "
            "an adapter with `PeftModel.from_pretrained(base, folder, is_trainable=True)`, or pass a `peft_config`."
        )
    if processing_class is None and not get_config_model_id(model.config):
        raise BadInput("The model has no name to load a tokenizer by; pass `processing_class`.")


def reference_of(model: "str | PreTrainedModel | PeftModel", peft_config: PeftConfig | None) -> PreTrainedModel | None:
    """
    A copy of a model that is in memory and fully fine-tuned; `None` where TRL's own reference is right: a model that
    is loaded by its name, or an adapter.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            As a trainer gets it, before the trainer changes it.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Likewise.
    """
    if isinstance(model, str | PeftModel) or peft_config is not None:
        return None
    reference = copy.deepcopy(model).eval()
    return reference.requires_grad_(False)


def reference_parameters(
    policy: nn.Module, reference: nn.Module | None = None
) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """
    name -> (reference's parameter, policy's parameter), of a reference model, or of the adapter `ref` of the policy.

    Args:
        policy (`nn.Module`):
            Unwrapped.
        reference (`nn.Module`, *optional*):
            Unwrapped.
    """
    own = dict(policy.named_parameters())
    if reference is not None:
        return {name: (parameter, own[name]) for name, parameter in reference.named_parameters()}
    pairs = {}
    for name, parameter in own.items():
        parts = name.split(".")  # `ref` stands in the middle of a name, or at its end (embeddings)
        if "ref" in parts:
            pairs[name] = parameter, own[".".join("default" if part == "ref" else part for part in parts)]
    return pairs


@torch.no_grad()
def copy_policy_to_reference(policy: nn.Module, reference: nn.Module | None = None) -> None:
    """Make the reference (or the adapter `ref`) what the policy is now, frozen."""
    for of_reference, of_policy in reference_parameters(policy, reference).values():
        of_reference.data = of_policy.data.clone()
        of_reference.requires_grad_(False)


def check_reference(
    model: nn.Module,
    difference: Callable[[], torch.Tensor],
    tolerance: float,
    reduce: Callable[[torch.Tensor], torch.Tensor],
    cause: str,
) -> None:
    """
    Stop a run whose reference is not the policy as it is before the first update.

    Args:
        model (`nn.Module`):
            The policy, wrapped; put into evaluation mode meanwhile, so that dropout plays no part.
        difference (`Callable`):
            Gives the mean absolute difference of the log-probs of the policy and of the reference, in nats per token.
        tolerance (`float`):
            What rounding may make of it.
        reduce (`Callable`):
            The largest value of all processes: they stop together.
        cause (`str`):
            Where the reference comes from and what to do, for the message.

    Raises:
        BadInput: If they differ by more.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            differs = float(reduce(difference()))
    finally:
        model.train(was_training)
    if not differs <= tolerance:  # NaN is not
        raise BadInput(
            "The reference policy is not the policy as it is before training: on the first batch their "
            f"log-probabilities differ by {differs:.3g} nats per token. {cause}"
        )


def reference_cause(policy: nn.Module) -> str:
    """What can be wrong with a reference that nobody gave, and the remedy."""
    if not isinstance(policy, PeftModel):
        return (
            "The reference was loaded again by the model's name, and what is in memory is another model: save it to a "
            "folder (with its tokenizer) and train from there, or pass a copy as `ref_model`."
        )
    if "ref" in policy.peft_config:
        return (
            "The reference is a frozen copy of the adapter, and a part of the policy is not in it: merge the adapter "
            "(`merge_and_unload()`), save the model, and train from there with a `peft_config`."
        )
    start = getattr(policy.peft_config["default"], "init_lora_weights", None)
    return (
        "The reference is the model with its adapter off, and the adapter changes the model before it has learned "
        f"anything (`init_lora_weights={start!r}`): use an adapter that starts at zero (`init_lora_weights: true`), "
        "or wrap the model yourself and pass the `PeftModel`, whose adapter is then copied for the reference."
    )
