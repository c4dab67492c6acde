import random
import re

import pytest
import torch
import transformers
from bitsandbytes.nn import Linear4bit, Params4bit
from datasets import Dataset
from helpers import build_model, letters, make_args
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from correction_trl import CorrectionOptimizationConfig, CorrectorSFTConfig, SCoReConfig, SCoReTrainer
from correction_trl.errors import BadInput
from correction_trl.policy import rollout
from correction_trl.policy.attention import FULL_ATTENTION, MASK_PER_LAYER_TYPE, UNIFORM_WINDOW
from correction_trl.policy.captured_decoding import CapturedDecoding, Unsupported, length_bucket, row_bucket
from correction_trl.policy.generation import generate
from correction_trl.policy.quantization import keep_trainable_on_cpu
from correction_trl.policy.rollout import Rollouts
from correction_trl.policy.weight_copy import WeightCopy


N_WORDS = 61
STOP = [2, 5, 9]
GREEDY = GenerationConfig(do_sample=False, max_new_tokens=13, pad_token_id=0, eos_token_id=STOP, disable_compile=True)
SAMPLED = GenerationConfig(
    do_sample=True, temperature=0.8, top_p=0.9, top_k=20, max_new_tokens=13, pad_token_id=0, eos_token_id=STOP
)


def random_model(family="LlamaForCausalLM", window=None, **overrides):
    """A random model with two layers, whose greedy completions end at different lengths."""
    kwargs = {
        "vocab_size": N_WORDS,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "sliding_window": window,
        "use_sliding_window": window is not None,
    }
    if family in MASK_PER_LAYER_TYPE:
        kwargs["layer_types"] = ["full_attention" if window is None else "sliding_attention", "full_attention"]
        kwargs["sliding_window"] = window or 4
    if family in ("MixtralForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"):
        kwargs |= {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        kwargs["shared_expert_intermediate_size"] = 16
    model_class = getattr(transformers, family)
    attention = "eager" if family == "Gemma2ForCausalLM" else "sdpa"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class._from_config(
            model_class.config_class(**(kwargs | overrides)), attn_implementation=attention
        )
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    return model.float().eval()


def add_lora(model):
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", lora_dropout=0.1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def to_nf4(model):
    for name, linear in list(model.named_modules()):
        if type(linear) is torch.nn.Linear and name != "lm_head":
            layer = Linear4bit(linear.in_features, linear.out_features, bias=False, compute_dtype=torch.float32)
            layer.weight = Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4", module=layer).to(
                "cpu"
            )
            model.set_submodule(name, layer)
    keep_trainable_on_cpu(model)
    model.is_loaded_in_4bit = True
    return model


def prompts(n=9, longest=18):
    rng = random.Random(0)
    rows = [[rng.randrange(3, N_WORDS) for _ in range(rng.randint(1, longest))] for _ in range(n)]
    return [*rows, rows[0], rows[0]]


@pytest.fixture(scope="module")
def llama():
    return random_model()


@pytest.mark.parametrize(
    "family, window",
    [(family, None) for family in sorted(FULL_ATTENTION | UNIFORM_WINDOW | MASK_PER_LAYER_TYPE)]
    + [(family, 6) for family in sorted(UNIFORM_WINDOW | MASK_PER_LAYER_TYPE)],
)
def test_greedy_tokens_are_those_of_generate(family, window):
    model = random_model(family, window)
    rows = prompts()
    whole = generate(model, rows, GenerationConfig(**GREEDY.to_diff_dict() | {"eos_token_id": [N_WORDS]}))[0]
    stops = GenerationConfig(**GREEDY.to_diff_dict() | {"eos_token_id": [ids[4] for ids in whole[:2]]})
    expected = [generate(model, [row], stops)[0][0] for row in rows]  # alone: nothing is padded
    assert min(map(len, expected)) <= 5
    assert CapturedDecoding(model).generate(rows, stops) == expected
    assert CapturedDecoding(model).generate(rows, stops, n_slots=3) == expected


@pytest.mark.parametrize("weights", ["as_trained", "merged"])
@pytest.mark.parametrize("config", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_two_turns_are_those_of_generate_with_the_same_seeds(config, weights):
    model = add_lora(random_model())
    rows, seeds = prompts(), list(range(11))
    follow_ups = [[7, 8, 11, 12][: 1 + i % 3] for i in range(11)]
    expected, kept = generate(model, rows, config, seeds, keep=True)
    expected_next, _ = generate(model, follow_ups, config, seeds[::-1], continue_from=kept)
    engine = Rollouts("compiled", weights)
    first, kept = engine(model, rows, config, seeds, keep=True)
    assert first == expected
    n_prompt_tokens = engine._captured.prefilled_tokens
    # Prompts that stand there several times are computed once, and their last tokens not at all
    assert n_prompt_tokens == sum(len(row) - 1 for row in rows[:-2])
    second, _ = engine(model, follow_ups, config, seeds[::-1], continue_from=kept)
    assert second == expected_next
    assert engine._captured is None or engine.ways == {weights: 22}
    # The last token of the first turn, and the follow-up without its last one
    assert engine._captured.prefilled_tokens - n_prompt_tokens == sum(map(len, follow_ups))


def test_waves_and_batches_do_not_change_what_is_sampled(llama):
    rows, seeds = prompts(30), list(range(32))
    whole = Rollouts("compiled")(llama, rows, SAMPLED, seeds)[0]
    for batch_size in (1, 5, 16):
        assert Rollouts("compiled", batch_size=batch_size)(llama, rows, SAMPLED, seeds)[0] == whole


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.6}, {"top_k": 4}, {"top_p": 0.7}, {"min_p": 0.1}])
@pytest.mark.parametrize("with_seeds", [False, True])
def test_sampled_tokens_have_the_models_distribution(llama, settings, with_seeds):
    n = 4000
    prompt = [3, 4, 10]
    config = GenerationConfig(
        **({"do_sample": True, "top_k": 0, "max_new_tokens": 1, "pad_token_id": 0, "eos_token_id": STOP} | settings)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        seeds = list(range(n)) if with_seeds else None
        completions = Rollouts("compiled")(llama, [prompt] * n, config, seeds)[0]
    logits = llama(torch.tensor([prompt])).logits[0, -1].detach().double()
    p = (logits / settings.get("temperature", 1.0)).softmax(-1)
    order = p.argsort(descending=True)
    keep = torch.ones_like(p, dtype=torch.bool)
    if "top_k" in settings:
        keep = p >= p[order[settings["top_k"] - 1]]
    if "top_p" in settings:
        before = p[order].cumsum(-1) - p[order]
        keep[order] = before < settings["top_p"]
    if "min_p" in settings:
        keep = p >= settings["min_p"] * p.max()
    p = p * keep / (p * keep).sum()
    counts = torch.bincount(torch.tensor([ids[0] for ids in completions]), minlength=N_WORDS).double()
    assert counts[~keep].sum() == 0
    likely = p * n >= 5  # cells that a chi-square can use; the rest are one cell
    observed = torch.cat([counts[likely], counts[~likely].sum()[None]])
    expected = torch.cat([p[likely] * n, (p[~likely] * n).sum()[None]])
    observed, expected = observed[expected > 0], expected[expected > 0]
    degrees = len(expected) - 1
    chi_square = ((observed - expected) ** 2 / expected).sum().item()
    # Wilson and Hilferty: the 99.9 % quantile of a chi-square
    assert chi_square < degrees * (1 - 2 / (9 * degrees) + 3.09 * (2 / (9 * degrees)) ** 0.5) ** 3


def test_settings_that_are_unknown_are_sampled_eagerly(llama, caplog):
    config = GenerationConfig(
        do_sample=False, max_new_tokens=6, repetition_penalty=1.3, pad_token_id=0, eos_token_id=STOP
    )
    engine = Rollouts("compiled")
    assert engine(llama, prompts(), config)[0] == generate(llama, prompts(), config)[0]
    engine(llama, prompts(), config)
    assert [r.message for r in caplog.records] == [
        "Rollouts: sampling with `generate`, because it does not know the sampling parameter `repetition_penalty`."
    ]
    assert engine.ways == {"eager": 22}
    assert engine(llama, prompts(), GREEDY)[0] == generate(llama, prompts(), GREEDY)[0]
    assert engine.ways == {"eager": 22, "as_trained": 11}


def test_auto_is_eager_on_a_cpu_and_says_nothing(llama, caplog):
    engine = Rollouts()
    assert engine(llama, prompts(), GREEDY)[0] == generate(llama, prompts(), GREEDY)[0]
    assert engine.ways == {"eager": 11} and not caplog.records


def test_a_model_that_is_not_known_is_sampled_eagerly(caplog):
    model = transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=N_WORDS, hidden_size=16, state_size=4, num_hidden_layers=1)
    ).eval()
    with pytest.raises(Unsupported):
        CapturedDecoding(model)
    engine = Rollouts("compiled")
    engine(model, prompts(), GREEDY)
    assert engine.ways == {"eager": 11}
    assert [record.message for record in caplog.records][0].startswith(
        "Rollouts: sampling with `generate`, because MambaForCausalLM"
    )


class TestWhenAWayFails:
    """Each step down is said in one line, gives what it would have given, and is not tried again."""

    rows, seeds = prompts(), list(range(11))

    @pytest.fixture
    def model(self):
        return add_lora(random_model())

    def test_merging_runs_out_of_memory_at_a_late_update(self, model, monkeypatch, caplog):
        expected = generate(model, self.rows, SAMPLED, self.seeds)[0]
        engine = Rollouts("compiled", "merged")
        assert engine(model, self.rows, SAMPLED, self.seeds)[0] == expected

        def out_of_memory(self):
            raise torch.OutOfMemoryError("CUDA out of memory.")

        monkeypatch.setattr(WeightCopy, "refresh", out_of_memory)
        for _ in range(2):
            assert engine(model, self.rows, SAMPLED, self.seeds)[0] == expected
        assert engine.ways == {"merged": 11, "as_trained": 22}
        assert [record.message for record in caplog.records] == [
            "Rollouts: the card ran out of memory; sampling from the policy's own weights from here on."
        ]

    def test_a_step_fails_in_the_second_turn(self, model, monkeypatch, caplog):
        follow_ups = [[7, 8]] * 11
        expected, kept = generate(model, self.rows, SAMPLED, self.seeds, keep=True)
        expected_next = generate(model, follow_ups, SAMPLED, self.seeds, continue_from=kept)[0]
        engine = Rollouts("compiled", "as_trained")
        first, kept = engine(model, self.rows, SAMPLED, self.seeds, keep=True)

        def fail(self, n_rows, n_columns):
            raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be")

        monkeypatch.setattr(CapturedDecoding, "_step", fail)
        second, kept = engine(model, follow_ups, SAMPLED, self.seeds, continue_from=kept)
        assert (first, second) == (expected, expected_next)
        assert engine.ways == {"as_trained": 11, "eager": 11}
        assert [record.message for record in caplog.records] == [
            "Rollouts: a captured step failed (operation not permitted when stream is capturing); sampling with "
            "`generate` from here on."
        ]

    @pytest.mark.parametrize(("missing", "way"), [(1, "as_trained"), (0, "merged")])
    def test_a_copy_that_does_not_fit_is_not_made(self, model, monkeypatch, caplog, missing, way):
        needed = CapturedDecoding(model).cache_bytes(11, 32) + WeightCopy(model.get_base_model(), merged=True).n_bytes
        monkeypatch.setattr(rollout, "untouched_bytes", lambda device: rollout.MARGIN + needed - missing)
        engine = Rollouts("compiled", "merged")
        assert engine(model, self.rows, SAMPLED, self.seeds)[0] == generate(model, self.rows, SAMPLED, self.seeds)[0]
        assert engine.ways == {way: 11}
        assert [record.message for record in caplog.records] == [
            "Rollouts: merged weights and a cache of 11 rows need 0.0 GiB, 1.0 are free; sampling from the "
            "policy's own weights from here on."
        ][:missing]

    def test_a_cache_that_does_not_fit_takes_fewer_rows_at_a_time(self, llama, monkeypatch, caplog):
        bytes_per_row = CapturedDecoding(llama).cache_bytes(1, 32)
        monkeypatch.setattr(rollout, "untouched_bytes", lambda device: rollout.MARGIN + 4 * bytes_per_row)
        engine = Rollouts("compiled")
        assert engine(llama, self.rows, GREEDY)[0] == generate(llama, self.rows, GREEDY)[0]
        assert [record.message for record in caplog.records] == [
            "Rollouts: the cache of 11 rows does not fit; sampling 3 at a time."
        ]


@pytest.mark.parametrize("weights", ["auto", "merged", "as_trained"])
def test_4_bit_weights_follow_the_adapter_and_the_policy_is_left_alone(weights):
    model = add_lora(to_nf4(random_model(hidden_size=64, intermediate_size=64, head_dim=16)))
    rows, seeds = prompts(), list(range(11))
    engine = Rollouts("compiled", weights)
    for _ in range(2):
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
        assert engine(model, rows, SAMPLED, seeds)[0] == generate(model, rows, SAMPLED, seeds)[0]
        with model.disable_adapter():
            base = engine(model, rows, SAMPLED, seeds)[0]
            assert base == generate(model, rows, SAMPLED, seeds)[0]
        assert base != engine(model, rows, SAMPLED, seeds)[0]
        assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
        assert not any("forward" in vars(module) for module in model.modules())
        with torch.no_grad():  # an update
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    assert engine.ways == {"dequantized" if weights == "auto" else weights: 66}


def test_a_young_adapter_survives_merging_in_16_bits():
    """Entries of B A of a hundredth of W's: smaller than half the distance between two neighbouring weights."""
    base = torch.nn.Sequential(torch.nn.Linear(512, 256, bias=False)).to(torch.bfloat16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.nn.init.uniform_(base[0].weight, 0.01, 0.03)
        model = get_peft_model(base, LoraConfig(r=4, lora_alpha=4, target_modules=["0"]))
        layer = model.base_model.model[0]
        torch.nn.init.constant_(layer.lora_B["default"].weight, 1e-5)
        torch.nn.init.constant_(layer.lora_A["default"].weight, 0.5)
        x = torch.randn(64, 512)
    delta = layer.get_delta_weight("default").detach()  # 2e-5 everywhere; neighbours of 0.02 lie 1.2e-4 apart
    weight = layer.base_layer.weight.float()
    kept = {}
    for rounds_at_random in (False, True):
        copy = WeightCopy(model.get_base_model(), merged=True, rounds_at_random=rounds_at_random)
        copy.refresh()
        change = x @ (copy._weights[0].float() - weight).T
        kept[rounds_at_random] = ((change * (x @ delta.T)).sum() / (x @ delta.T).square().sum()).item()
    assert abs(kept[False]) < 0.01  # to the nearest: nothing is left of the adapter
    assert kept[True] == pytest.approx(1, abs=0.05)


def test_memory_is_given_back_until_an_update_has_left_room(llama):
    model = add_lora(random_model())
    engine = Rollouts("compiled", "merged")

    def holds():
        return engine._captured._cache is not None and bool(engine._copy.addresses)

    for _ in range(2):  # nothing was trained in between: what training will need is not known
        engine(model, prompts(), GREEDY)
        assert not holds()
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "lora_B" in n).add_(0.1)
    engine(model, prompts(), GREEDY)
    assert holds()  # a CPU always has room
    engine.close()
    assert not holds()
    resident = Rollouts("compiled", resident=True)
    resident(llama, prompts(), GREEDY)
    assert resident._captured._cache is not None


def test_buckets_are_few_and_close():
    rows = [row_bucket(n) for n in range(1, 257)]
    assert sorted(set(rows)) == [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256]
    lengths = [length_bucket(n) for n in range(1, 4097)]
    assert sorted(set(lengths)) == [128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096]
    assert all(bucket >= n for n, bucket in enumerate(lengths, start=1))


def test_the_tiny_model_of_the_tests_with_prompts_of_one_token(tiny_tokenizer):
    model = build_model(tiny_tokenizer).eval()
    config = GenerationConfig(do_sample=False, max_new_tokens=20, pad_token_id=0, eos_token_id=[2])
    rows = [[i] for i in range(3, 20)]
    assert Rollouts("compiled")(model, rows, config)[0] == generate(model, rows, config)[0]
    assert Rollouts("compiled")(model, [], config)[0] == []


@pytest.mark.parametrize("weights", ["as_trained", "merged"])
def test_a_run_trains_to_the_same_weights_whichever_way_it_samples(tmp_path, tiny_model, weights):
    """Row-wise random numbers: the captured steps draw what `generate` draws, in two turns, and the metrics say so."""

    def train(rollout):
        trainer = SCoReTrainer(
            tiny_model,
            letters,
            SCoReConfig(
                **make_args(tmp_path, per_device_train_batch_size=8, max_steps=2, rollout=rollout),
                rollout_weights=weights,
                num_generations=4,
                stage="2",
                instruction="again?",
            ),
            train_dataset=Dataset.from_dict({"prompt": [f"what is {i}+2? " for i in range(8)]}),
            peft_config=LoraConfig(r=4, target_modules="all-linear"),
        )
        trainer.train()
        return trainer

    compiled, eager = train("compiled"), train("eager")
    for (name, ours), theirs in zip(compiled.model.named_parameters(), eager.model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5), name
    assert {entry.get(f"rollout/{weights}") for entry in compiled.state.log_history[:2]} == {1.0}
    assert {entry.get("rollout/eager") for entry in eager.state.log_history[:2]} == {1.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rollout": "fast"}, "`rollout='fast'` must be one of auto, eager, compiled, vllm."),
        (
            {"rollout_weights": "half"},
            "`rollout_weights='half'` must be one of auto, dequantized, merged, as_trained.",
        ),
        ({"rollout": "eager", "use_vllm": True}, "`use_vllm` and `rollout: eager` contradict each other"),
    ],
)
def test_settings_at_fault_are_named(tmp_path, settings, message):
    with pytest.raises(BadInput, match=re.escape(message)):
        CorrectionOptimizationConfig(**make_args(tmp_path, **settings))


def test_vllm_is_one_of_the_ways(tmp_path):
    assert CorrectionOptimizationConfig(**make_args(tmp_path, rollout="vllm")).use_vllm
    with pytest.raises(BadInput, match="`rollout: vllm` is not for this trainer"):
        CorrectorSFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, rollout="vllm")
