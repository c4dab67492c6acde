import random

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch.nn.attention.flex_attention import create_mask, flex_attention
from trl.trainer.utils import add_fused_lm_head

from correction_trl.correction_optimization import shared_prefix
from correction_trl.correction_optimization.shared_prefix import (
    attention_mask,
    dense_mask_fits,
    expected_speedup,
    labelled_forward,
    pack_pairs,
    packed_forward,
    self_check,
    sharing_pays,
    token_ratio,
    two_row_difference,
)
from correction_trl.policy.attention import (
    FULL_ATTENTION,
    MASK_PER_LAYER_TYPE,
    UNIFORM_WINDOW,
    unsupported_reason,
)


VOCAB_SIZE = 61
WINDOW = 6
KNOWN = sorted(FULL_ATTENTION | UNIFORM_WINDOW | MASK_PER_LAYER_TYPE)
WINDOWED = sorted(UNIFORM_WINDOW | MASK_PER_LAYER_TYPE)
FEW = ["LlamaForCausalLM", "GPT2LMHeadModel", "Phi3ForCausalLM", "Gemma3ForCausalLM"]  # one of each kind


def tiny_model(family, attn_implementation="sdpa", window=None, std=0.3, **overrides):
    """A random model with two layers, whose log-probs depend visibly on every token of the context."""
    model_class = getattr(transformers, family)
    kwargs = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "attention_dropout": 0.0,
        "residual_dropout": 0.0,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family in UNIFORM_WINDOW:
        kwargs |= {"sliding_window": window, "use_sliding_window": window is not None}
    if family in MASK_PER_LAYER_TYPE:
        kwargs["layer_types"] = ["full_attention" if window is None else "sliding_attention", "full_attention"]
        kwargs["sliding_window"] = window or 4
        kwargs["use_sliding_window"] = window is not None
    if family in ("Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"):
        kwargs |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        kwargs["shared_expert_intermediate_size"] = 16
    if family == "MixtralForCausalLM":
        kwargs["num_local_experts"] = 4
    if family == "GPT2LMHeadModel":
        kwargs |= {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    config = model_class.config_class(**(kwargs | overrides))
    torch.manual_seed(0)
    model = model_class._from_config(config, attn_implementation=attn_implementation).float()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=std)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return model


def make_pair(n_prompt, n_common, n_response_tail, n_correction_tail, rng=random):
    def ids(n):
        return [rng.randrange(3, VOCAB_SIZE) for _ in range(n)]

    common, response_tail, correction_tail = ids(n_common), ids(n_response_tail), ids(n_correction_tail)
    if response_tail and correction_tail and response_tail[0] == correction_tail[0]:
        correction_tail[0] = 3 + (correction_tail[0] - 2) % (VOCAB_SIZE - 3)
    return {
        "prompt_ids": ids(n_prompt),
        "response_ids": common + response_tail,
        "correction_ids": common + correction_tail,
    }


SHAPES = {
    "usual": (5, 10, 7, 9),
    "one-token tails": (20, 3, 1, 1),
    "no common prefix": (3, 0, 2, 8),
    "empty prompt": (0, 4, 3, 2),
    "empty prompt, no common prefix": (0, 0, 5, 4),
    "empty prompt, one token each": (0, 0, 1, 1),
    "y starts y'": (4, 6, 0, 3),
    "y' starts y": (4, 6, 2, 0),
    "equal up to EOS": (4, 6, 1, 0),
    "identical": (4, 5, 0, 0),
    "empty response": (4, 0, 0, 3),
    "nothing at all": (0, 0, 0, 0),
}


def all_shapes():
    rng = random.Random(0)
    return [make_pair(*shape, rng=rng) for shape in SHAPES.values()]


def tokens_of(outputs, batch, name, field="log_probs"):
    return outputs[field].flatten()[batch[f"{name}_index"]] * batch[f"{name}_mask"]


def naive_log_probs(model, pair, name):
    """log π of each token of a sequence, alone in its row, from the full logits; 0 for a token without a predictor."""
    ids = torch.tensor([pair["prompt_ids"] + pair[f"{name}_ids"]], dtype=torch.long)
    n_prompt, n_tokens = len(pair["prompt_ids"]), len(pair[f"{name}_ids"])
    if not n_tokens:
        return torch.zeros(0)
    log_probs = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float().log_softmax(-1)
    before = torch.zeros(1) if n_prompt == 0 else log_probs[0, n_prompt - 1, ids[0, n_prompt]][None]
    places = range(n_prompt, n_prompt + n_tokens - 1)
    return torch.cat([before, *(log_probs[0, place, ids[0, place + 1]][None] for place in places)])


def gradient(model, loss):
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not isinstance(loss, torch.Tensor) or not loss.requires_grad:  # no token was scored
        return torch.zeros(sum(p.numel() for p in parameters))
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat(
        [
            torch.zeros(p.numel()) if g is None else g.float().flatten()
            for g, p in zip(gradients, parameters, strict=True)
        ]
    )


def relative_error(value, expected):
    return ((value - expected).norm() / expected.norm().clamp(min=1e-30)).item()


def compare(model, pairs, forward=packed_forward, **pack_kwargs):
    """
    Largest difference of a log-prob and relative error of the gradient of a loss that weighs every token of every y
    and y' differently, common ones included, against one unpacked row per sequence.
    """
    batch = pack_pairs(pairs, pad_token_id=0, **pack_kwargs)
    outputs = forward(model, batch)
    generator = torch.Generator().manual_seed(0)
    difference, loss, expected_loss = 0.0, 0.0, 0.0
    for name in ("response", "correction"):
        packed = tokens_of(outputs, batch, name)
        for i, pair in enumerate(pairs):
            expected = naive_log_probs(model, pair, name)
            weights = torch.randn(len(expected), generator=generator)
            if len(expected):
                difference = max(difference, (packed[i, : len(expected)] - expected).abs().max().item())
            loss = loss + (packed[i, : len(expected)] * weights).sum()
            expected_loss = expected_loss + (expected * weights).sum()
    return difference, relative_error(gradient(model, loss), gradient(model, expected_loss))


def packed_loss(model, pairs):
    batch = pack_pairs(pairs, pad_token_id=0)
    outputs = packed_forward(model, batch)
    return tokens_of(outputs, batch, "response").sum() - 2 * tokens_of(outputs, batch, "correction").sum()


def two_row_loss(model, pairs):
    return sum(
        naive_log_probs(model, pair, "response").sum() - 2 * naive_log_probs(model, pair, "correction").sum()
        for pair in pairs
    )


class TestPackPairs:
    def test_the_row_of_the_docstring(self):
        pair = {"prompt_ids": [11, 12], "response_ids": [21, 31, 32, 2], "correction_ids": [21, 41, 2]}
        batch = pack_pairs([pair], pad_token_id=0, pad_to_multiple_of=10)
        assert batch["input_ids"].tolist() == [[11, 12, 21, 31, 32, 21, 41, 0, 0, 0]]
        assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 2, 3, 0, 0, 0]]
        assert batch["shift_labels"].tolist() == [[-100, 21, 31, 32, 2, 41, 2, -100, -100, -100]]
        assert batch["response_index"].tolist() == [[1, 2, 3, 4]]
        assert batch["correction_index"].tolist() == [[1, 5, 6]]
        visible = shared_prefix._dense_mask(batch, None, None)[0, 0].int().tolist()
        assert visible == [
            [1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0, 0, 0, 0, 0],
            [1, 1, 1, 1, 0, 0, 0, 0, 0, 0],
            [1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 1, 1, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 0, 1, 0, 0],
            [0, 0, 0, 0, 0, 0, 0, 0, 1, 0],
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        ]

    @settings(max_examples=200, deadline=None)
    @given(
        shapes=st.lists(st.tuples(*[st.integers(0, 6)] * 4), min_size=1, max_size=6),
        multiple=st.sampled_from([None, 8]),
        window=st.sampled_from([None, 1, 3]),
        seed=st.integers(0, 99),
    )
    def test_every_token_sees_its_own_sequence_in_order(self, shapes, multiple, window, seed):
        pairs = [make_pair(*shape, rng=random.Random(seed)) for shape in shapes]
        batch = pack_pairs(pairs, pad_token_id=0, pad_to_multiple_of=multiple)
        n_columns = batch["input_ids"].size(1)
        visible = shared_prefix._dense_mask(batch, window, None)[:, 0]
        assert visible.any(-1).all()  # a softmax over nothing is NaN
        for i, pair in enumerate(pairs):
            for name in ("response", "correction"):
                sequence = pair["prompt_ids"] + pair[f"{name}_ids"]
                assert batch[f"{name}_mask"][i].sum() == max(len(pair[f"{name}_ids"]) - (not pair["prompt_ids"]), 0)
                for j in range(len(pair[f"{name}_ids"])):
                    position = len(pair["prompt_ids"]) + j - 1  # of the token that predicts token j
                    assert batch[f"{name}_mask"][i, j] == (position >= 0)
                    if position < 0:
                        continue
                    row, column = divmod(batch[f"{name}_index"][i, j].item(), n_columns)
                    first = 0 if window is None else max(position + 1 - window, 0)
                    seen = visible[row, column]
                    assert batch["position_ids"][row, seen].tolist() == list(range(first, position + 1))
                    assert batch["input_ids"][row, seen].tolist() == sequence[first : position + 1]
                    assert batch["shift_labels"][row, column] == sequence[position + 1]

    def test_short_pairs_share_rows(self):
        pairs = [make_pair(10, 5, 5, 5), make_pair(2, 2, 2, 2), make_pair(3, 2, 2, 2), make_pair(30, 5, 5, 5)]
        batch = pack_pairs(pairs, pad_token_id=0)
        assert batch["input_ids"].shape == (2, 44)

    def test_without_the_common_prefix(self):
        pair = {"prompt_ids": [11, 12], "response_ids": [21, 31, 2], "correction_ids": [21, 41, 2]}
        batch = pack_pairs([pair], pad_token_id=0, needs_common_prefix=False)
        assert batch["shift_labels"].tolist() == [[-100, -100, 31, 2, 41, 2]]
        assert batch["response_mask"].tolist() == batch["correction_mask"].tolist() == [[0, 1, 1]]

    def test_the_common_prefix_cancels_in_the_difference(self):
        model = tiny_model("LlamaForCausalLM")
        gradients = []
        for needs_common_prefix in (True, False):
            batch = pack_pairs(all_shapes(), pad_token_id=0, needs_common_prefix=needs_common_prefix)
            outputs = packed_forward(model, batch)
            margins = (tokens_of(outputs, batch, "correction") @ torch.ones(batch["correction_mask"].size(1))) - (
                tokens_of(outputs, batch, "response") @ torch.ones(batch["response_mask"].size(1))
            )
            gradients.append(gradient(model, torch.nn.functional.softplus(-0.1 * margins).sum()))
        assert relative_error(gradients[1], gradients[0]) <= 1e-5


class TestExactness:
    @pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
    @pytest.mark.parametrize("family", KNOWN)
    def test_full_attention(self, family, attn_implementation):
        if family == "Gemma2ForCausalLM" and attn_implementation == "sdpa":
            pytest.skip("transformers has no SDPA for Gemma 2")
        model = tiny_model(family, attn_implementation)
        assert unsupported_reason(model) is None
        difference, gradient_error = compare(model, all_shapes())
        assert difference <= 2e-5
        assert gradient_error <= 1e-5

    @pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
    @pytest.mark.parametrize("family", WINDOWED)
    def test_sliding_window(self, family, attn_implementation):
        if family == "Gemma2ForCausalLM" and attn_implementation == "sdpa":
            pytest.skip("transformers has no SDPA for Gemma 2")
        model = tiny_model(family, attn_implementation, window=WINDOW)
        assert unsupported_reason(model) is None
        difference, gradient_error = compare(model, all_shapes())
        assert difference <= 2e-5
        assert gradient_error <= 1e-5

    def test_tied_embeddings(self):
        difference, gradient_error = compare(tiny_model("LlamaForCausalLM", tie_word_embeddings=True), all_shapes())
        assert difference <= 2e-5
        assert gradient_error <= 1e-5

    @pytest.mark.parametrize("family", KNOWN)
    def test_a_wrong_mask_would_be_noticed(self, family, monkeypatch):
        # The comparisons above mean something only if log-probs depend on the mask: let the tails see each other.
        window = WINDOW if family in WINDOWED else None
        model = tiny_model(family, "eager", window=window)
        right = shared_prefix._dense_mask
        for wrong in (
            lambda batch, window, dtype: right(batch | {"hidden_end": batch["hidden_start"]}, window, dtype),
            lambda batch, window, dtype: right(batch, None, dtype),
        ):
            monkeypatch.setattr(shared_prefix, "_dense_mask", wrong)
            assert two_row_difference(model, all_shapes(), 0)[0] > 1e-2
            assert "differ from those of two rows" in self_check(model, all_shapes(), 0)
            if window is None:
                break

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        family=st.sampled_from(FEW),
        shapes=st.lists(st.tuples(*[st.integers(0, 12)] * 4), min_size=1, max_size=4),
        multiple=st.sampled_from([None, 16]),
        seed=st.integers(0, 99),
    )
    def test_any_shape(self, family, shapes, multiple, seed):
        model = tiny_model(family, window=5)
        pairs = [make_pair(*shape, rng=random.Random(seed)) for shape in shapes]
        difference, gradient_error = compare(model, pairs, pad_to_multiple_of=multiple)
        assert difference <= 2e-5
        assert gradient_error <= 1e-5

    @pytest.mark.parametrize("family", FEW)
    def test_bfloat16(self, family):
        pairs = [make_pair(5, 10, 7, 9), make_pair(12, 20, 4, 6)]
        model = tiny_model(family, window=WINDOW, std=0.1)
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16().float()
        expected = gradient(model, packed_loss(model, pairs))
        model.bfloat16()
        packed = gradient(model, packed_loss(model, pairs))
        two_rows = gradient(model, two_row_loss(model, pairs))
        assert relative_error(packed, two_rows) <= 2e-2
        # Two rows are rounded as well; the packed row is not further from the truth.
        assert relative_error(packed, expected) <= 1.3 * relative_error(two_rows, expected)
        assert self_check(model, pairs, 0) is None

    @pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
    def test_autocast(self, attn_implementation):
        pairs = [make_pair(5, 10, 7, 9), make_pair(12, 20, 4, 6)]
        model = tiny_model("LlamaForCausalLM", attn_implementation, std=0.1)
        expected = gradient(model, packed_loss(model, pairs))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert self_check(model, pairs, 0) is None
            value = gradient(model, packed_loss(model, pairs))
        assert relative_error(value, expected) <= 2e-2

    @pytest.mark.parametrize("use_reentrant", [True, False])
    def test_lora_and_gradient_checkpointing(self, use_reentrant):
        model = tiny_model("Qwen2ForCausalLM", window=WINDOW)
        model.enable_input_require_grads()
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
        assert unsupported_reason(model) is None
        model.train()
        expected = gradient(model, packed_loss(model, all_shapes()))
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        packed_loss(model, all_shapes()).backward()
        value = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
        assert relative_error(value, expected) <= 1e-5
        model.gradient_checkpointing_disable()
        difference, gradient_error = compare(model, all_shapes())
        assert difference <= 2e-5
        assert gradient_error <= 1e-5
        with model.disable_adapter():  # the reference
            assert two_row_difference(model, all_shapes(), 0)[0] <= 2e-5

    @pytest.mark.parametrize("family", ["LlamaForCausalLM", "Phi3ForCausalLM", "Gemma3ForCausalLM"])
    def test_flex_attention(self, family, monkeypatch):
        # FlexAttention has no backward pass on a CPU, and compiling it takes long, so only its forward pass is run,
        # through PyTorch's uncompiled kernel.
        monkeypatch.setattr(
            transformers.integrations.flex_attention,
            "compile_friendly_flex_attention",
            lambda query, key, value, training=False, **kwargs: flex_attention(query, key, value, **kwargs),
        )
        expected = tiny_model(family, "eager", window=WINDOW)
        model = tiny_model(family, "flex_attention", window=WINDOW)
        assert "backward" in unsupported_reason(model)
        batch = pack_pairs(all_shapes(), pad_token_id=0)
        with torch.no_grad():
            torch.testing.assert_close(
                packed_forward(model, batch).log_probs, packed_forward(expected, batch).log_probs, atol=2e-5, rtol=0
            )

    @pytest.mark.parametrize("window", [None, 3])
    def test_block_mask_is_the_dense_mask(self, window):
        batch = pack_pairs(all_shapes(), pad_token_id=0, pad_to_multiple_of=128)
        n_rows, n_columns = batch["input_ids"].shape
        visible = create_mask(
            shared_prefix._visible(batch, window), n_rows, 1, n_columns, n_columns, device=torch.device("cpu")
        )
        assert torch.equal(visible, shared_prefix._dense_mask(batch, window, None))


class TestForward:
    def test_labelled_forward_equals_the_fused_head(self):
        model = tiny_model("LlamaForCausalLM")
        batch = pack_pairs(all_shapes(), pad_token_id=0)
        inputs = {
            "input_ids": batch["input_ids"],
            "position_ids": batch["position_ids"],
            "attention_mask": attention_mask(model, batch),
        }
        outputs = labelled_forward(model, batch["shift_labels"], **inputs)
        expected = model(**inputs, shift_labels=batch["shift_labels"], fused_lm_head=True)
        assert not model.model._forward_hooks  # nothing is left behind
        torch.testing.assert_close(outputs.log_probs, expected.log_probs)
        torch.testing.assert_close(outputs.entropy, expected.entropy)
        assert torch.equal(outputs.label_mask, expected.label_mask)

    def test_no_label_at_all_is_a_differentiable_zero(self):
        model = tiny_model("LlamaForCausalLM")
        batch = pack_pairs([make_pair(0, 0, 1, 1)], pad_token_id=0)
        log_probs = packed_forward(model, batch).log_probs
        assert gradient(model, log_probs.sum()).abs().max() == 0

    def test_the_self_check_leaves_the_model_as_it_was(self):
        model = tiny_model("LlamaForCausalLM", attention_dropout=0.5).train()
        model.model.layers[0].eval()
        modes = [module.training for module in model.modules()]
        assert self_check(model, all_shapes(), 0) is None
        assert [module.training for module in model.modules()] == modes
        assert all(p.grad is None for p in model.parameters())

    def test_nan_is_not_agreement(self):
        model = tiny_model("LlamaForCausalLM")
        model.model.norm.weight.data.fill_(float("nan"))
        assert "nan" in self_check(model, all_shapes(), 0)


class Renamed(transformers.LlamaForCausalLM):
    pass


TINY = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": 0,
}
REFUSED = {
    "linear attention": (
        "Qwen3NextForCausalLM",
        TINY
        | {"layer_types": ["linear_attention", "full_attention"], "num_experts": 2, "num_experts_per_tok": 1}
        | {"linear_num_key_heads": 1, "linear_num_value_heads": 1, "moe_intermediate_size": 16}
        | {"shared_expert_intermediate_size": 16},
        "linear_attention",
    ),
    "recurrent": ("MambaForCausalLM", {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 1}, "Mamba"),
    "hybrid": (
        "FalconH1ForCausalLM",
        TINY | {"mamba_d_ssm": 32, "mamba_n_heads": 2, "mamba_d_head": 16, "mamba_d_state": 8},
        "FalconH1",
    ),
    "chunked attention": (
        "Llama4ForCausalLM",
        TINY
        | {"layer_types": ["chunked_attention", "full_attention"], "intermediate_size_mlp": 32}
        | {"num_local_experts": 2},
        "chunked_attention",
    ),
    "attention sinks": (
        "GptOssForCausalLM",
        TINY
        | {"num_local_experts": 2, "num_experts_per_tok": 1, "layer_types": ["sliding_attention", "full_attention"]},
        "sinks",
    ),
    "encoder-decoder": (
        "T5ForConditionalGeneration",
        {"vocab_size": VOCAB_SIZE, "d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2},
        "encoder-decoder",
    ),
    "ALiBi": ("BloomForCausalLM", {"vocab_size": VOCAB_SIZE, "hidden_size": 16, "n_layer": 1, "n_head": 2}, "Bloom"),
    "vision": (
        "Gemma3ForConditionalGeneration",
        {
            "text_config": TINY,
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
        },
        "more than text",
    ),
}


class TestUnsupported:
    @pytest.mark.parametrize("family, settings, reason", REFUSED.values(), ids=REFUSED.keys())
    def test_other_families_are_refused_by_name(self, family, settings, reason):
        model_class = getattr(transformers, family)
        model = model_class(model_class.config_class(**settings))
        assert family in unsupported_reason(model)
        assert reason in unsupported_reason(model)
        if "layer_types" in settings or family == "FalconH1ForCausalLM":
            with pytest.raises(ValueError, match=family):
                attention_mask(model, pack_pairs(all_shapes(), pad_token_id=0))

    def test_subclasses_outside_transformers(self):
        assert "Renamed" in unsupported_reason(Renamed(transformers.LlamaConfig(**TINY)))
        lookalike = type("LlamaForCausalLM", (transformers.LlamaForCausalLM,), {"__module__": "modeling_custom"})
        assert "LlamaForCausalLM" in unsupported_reason(lookalike(transformers.LlamaConfig(**TINY)))
        assert "Linear" in unsupported_reason(torch.nn.Linear(2, 2))

    @pytest.mark.parametrize("attn_implementation", ["flash_attention_2", "kernels-community/vllm-flash-attn3"])
    def test_flash_attention(self, attn_implementation):
        model = tiny_model("LlamaForCausalLM")
        model.config._attn_implementation = attn_implementation
        assert attn_implementation in unsupported_reason(model)

    @pytest.mark.parametrize(
        "family, setting, reason",
        [
            ("Gemma3ForCausalLM", {"use_bidirectional_attention": True}, "both directions"),
            ("GPT2LMHeadModel", {"add_cross_attention": True}, "cross-attention"),
            ("MixtralForCausalLM", {"output_router_logits": True}, "load-balancing"),
        ],
    )
    def test_settings(self, family, setting, reason):
        model = tiny_model(family, **setting)
        assert reason in unsupported_reason(model)

    @pytest.mark.parametrize(
        "family, limit, settings",
        [
            ("LlamaForCausalLM", 128, {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
            (
                "Phi3ForCausalLM",
                64,
                {
                    "rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
                    "original_max_position_embeddings": 64,
                },
            ),
        ],
    )
    def test_rotary_frequencies_that_depend_on_the_batch(self, family, limit, settings):
        model = tiny_model(family, **settings)
        assert unsupported_reason(model, max_length=limit) is None
        assert f"beyond {limit} tokens" in unsupported_reason(model, max_length=limit + 1)
        assert family in unsupported_reason(model)
        difference, gradient_error = compare(model, all_shapes())
        assert difference <= 2e-5
        assert gradient_error <= 1e-5

    def test_prompt_learning(self):
        for config in (
            PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
            PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        ):
            model = get_peft_model(tiny_model("LlamaForCausalLM"), config)
            assert "prompt learning" in unsupported_reason(model)

    def test_activated_lora(self):
        config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], alora_invocation_tokens=[5])
        assert "activated LoRA" in unsupported_reason(get_peft_model(tiny_model("LlamaForCausalLM"), config))


class TestGate:
    def test_token_ratio(self):
        pairs = [make_pair(128, 64, 64, 64)] * 4
        assert token_ratio(pairs) == 2 * 256 / 319
        assert token_ratio([make_pair(0, 0, 8, 8)]) < 1.1  # nothing is shared
        assert token_ratio([make_pair(9, 7, 1, 1)]) == 2 * 17 / 17

    def test_tokens_of_padding_count(self):
        pairs = [make_pair(128, 64, 64, 64), make_pair(8, 4, 8, 8)]
        batch = pack_pairs(pairs, pad_token_id=0)
        assert token_ratio(pairs) == 4 * 256 / batch["input_ids"].numel()

    def test_sharing_pays(self):
        assert sharing_pays([make_pair(128, 64, 64, 64)])
        assert not sharing_pays([make_pair(0, 0, 64, 64)])

    def test_a_longer_row_costs_attention(self):
        # 11 % fewer tokens, but a row of 1,151 instead of 640. Measured at a width of 384: 7 % slower.
        pairs = [make_pair(0, 128, 512, 512)]
        assert token_ratio(pairs) > 1.1
        assert expected_speedup(pairs, hidden_size=384) == pytest.approx(0.95, abs=0.01)
        assert not sharing_pays(pairs, hidden_size=384)
        assert sharing_pays(pairs, hidden_size=4096)

    def test_a_dense_mask_has_a_bound(self, monkeypatch):
        monkeypatch.setattr(shared_prefix, "MAX_DENSE_MASK_ELEMENTS", 100)
        pairs = [make_pair(128, 64, 64, 64)]
        assert not dense_mask_fits(pairs)
        assert not sharing_pays(pairs)
        assert sharing_pays(pairs, attn_implementation="flex_attention")
        with pytest.raises(ValueError, match="flex_attention"):
            packed_forward(tiny_model("LlamaForCausalLM", max_position_embeddings=512), pack_pairs(pairs, 0))
        assert self_check(tiny_model("LlamaForCausalLM", max_position_embeddings=512), pairs, 0) is None
