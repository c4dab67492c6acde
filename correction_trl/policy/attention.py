"""Which models mix tokens through masked attention alone, so that rows may be packed, and continued from a cache: a
token's hidden state then depends on the tokens that its mask shows and on their positions, and on nothing else."""

from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel


# How a causal language model of transformers 5.23 hands a ready-made mask to its layers, by class. A class is listed
# after reading its forward, and tests/correction_optimization/test_shared_prefix.py compares each with two rows.

# One mask for all layers, which all see the whole context.
FULL_ATTENTION = {
    "ArceeForCausalLM",
    "CohereForCausalLM",
    "Ernie4_5ForCausalLM",
    "GPT2LMHeadModel",
    "GPTNeoXForCausalLM",
    "GemmaForCausalLM",
    "Glm4ForCausalLM",
    "GlmForCausalLM",
    "GraniteForCausalLM",
    "HeliumForCausalLM",
    "LlamaForCausalLM",
    "NemotronForCausalLM",
    "Olmo2ForCausalLM",
    "OlmoForCausalLM",
    "PhiForCausalLM",
    "SeedOssForCausalLM",
    "StableLmForCausalLM",
}
# One mask for all layers, which all see a window of `config.sliding_window` tokens if that is set.
UNIFORM_WINDOW = {
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "Phi3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "Starcoder2ForCausalLM",
}
# A dict with one mask for each of `config.layer_types`.
MASK_PER_LAYER_TYPE = {
    "Cohere2ForCausalLM",
    "Exaone4ForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "MinistralForCausalLM",
    "Olmo3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3ForCausalLM",
    "SmolLM3ForCausalLM",
}

# PEFT methods that work token by token. Others put tokens of their own before each row or attend to them.
TOKENWISE_PEFT = {"LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "VERA"}


def unwrap_causal_lm(model: nn.Module) -> PreTrainedModel:
    """The model inside wrappers for distributed training and adapters."""
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    return model.get_base_model() if isinstance(model, PeftModel) else model


def unsupported_reason(model: nn.Module, max_length: int | None = None) -> str | None:
    """
    Why a model cannot compute pairs from packed rows exactly, or `None` if it can.

    Only what is known to be exact passes: listed model classes of transformers itself, with settings under which a
    token depends on the tokens that the mask shows and on their positions, and on nothing else.

    Args:
        model ([`~transformers.PreTrainedModel`], [`~peft.PeftModel`], or either wrapped for distributed training):
            The policy or the reference.
        max_length (`int`, *optional*):
            Most tokens of a prompt and response together. Models whose rotary frequencies change with the longest
            sequence of a batch are exact only up to a limit.

    Returns:
        `str` or `None`: The reason, naming the family, as a clause that can follow "because ".
    """
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    if isinstance(model, PeftModel):
        reason = _unsupported_adapter(model)
        if reason is not None:
            return reason
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel):
        return f"{type(model).__name__} is not a transformers model"
    return _unsupported_family(model) or _unsupported_settings(model) or _unsupported_positions(model, max_length)


def _unsupported_adapter(model: PeftModel) -> str | None:
    for adapter in model.peft_config.values():
        if adapter.is_prompt_learning:
            return f"the PEFT method {adapter.peft_type.value} is prompt learning: it puts tokens before each row"
        if adapter.peft_type.value not in TOKENWISE_PEFT:
            return f"the PEFT method {adapter.peft_type.value} has not been checked for packed rows"
        if adapter.peft_type.value == "LORA" and adapter.alora_invocation_tokens is not None:
            return "an activated LoRA switches on at a place in the row, which packing moves"
    return None


def _unsupported_layers(model: PreTrainedModel) -> str | None:
    layer_types = model.config.to_dict().get("layer_types") or []
    others = sorted(set(layer_types) - {"full_attention", "sliding_attention"})
    if others:
        return f"{type(model).__name__} has layers of type {', '.join(others)}, which do not follow an attention mask"
    return None


def _unsupported_family(model: PreTrainedModel) -> str | None:
    family, config = type(model).__name__, model.config
    known = FULL_ATTENTION | UNIFORM_WINDOW | MASK_PER_LAYER_TYPE
    if family in known and type(model).__module__.startswith("transformers.models."):
        return None
    if config.is_encoder_decoder:
        return f"{family} is an encoder-decoder model"
    if config.get_text_config() is not config:
        return f"{family} takes more than text, and its forward builds masks and positions of its own"
    reason = _unsupported_layers(model)
    if reason is not None:
        return reason
    if any(name.endswith("sinks") for name, _ in model.named_parameters()):
        return f"{family} has attention sinks"
    return f"{family} is not among the model classes that were checked for packed rows"


def _unsupported_settings(model: PreTrainedModel) -> str | None:
    family, implementation = type(model).__name__, model.config._attn_implementation
    settings = model.config.to_dict()
    if implementation not in ("eager", "sdpa", "flex_attention"):
        return (
            f"{implementation} (`attn_implementation`) cannot take the mask of packed rows; 'sdpa', 'eager' and "
            "'flex_attention' can"
        )
    if implementation == "flex_attention" and model.device.type == "cpu":
        return "FlexAttention has no backward pass on a CPU"
    reason = _unsupported_layers(model)
    if reason is not None:
        return reason
    if settings.get("is_causal") is False or settings.get("use_bidirectional_attention"):
        return f"{family} is configured to attend in both directions"
    if settings.get("add_cross_attention"):
        return f"{family} is configured with cross-attention"
    if settings.get("output_router_logits"):
        return f"the load-balancing loss of {family} (`output_router_logits`) counts every token of a row"
    return None


def _unsupported_positions(model: PreTrainedModel, max_length: int | None) -> str | None:
    settings = model.config.to_dict()
    # Plain RoPE has its settings at the top, RoPE per layer type one level down.
    rope = settings.get("rope_parameters") or {}
    for parameters in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        rope_type = parameters.get("rope_type") or "default"
        if rope_type == "longrope" or "dynamic" in rope_type:
            limit = parameters.get("original_max_position_embeddings") or settings["max_position_embeddings"]
            if max_length is None or max_length > limit:
                return (
                    f"the rotary frequencies of {type(model).__name__} ({rope_type}) change with the longest sequence "
                    f"of a batch beyond {limit} tokens, and `max_length` is {max_length}"
                )
    return None
