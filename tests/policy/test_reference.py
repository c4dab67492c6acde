"""The reference is the policy as it was before training, wherever the policy came from; else the run stops."""

import copy
import math

import pytest
import torch
from datasets import Dataset
from helpers import build_model, build_tokenizer, letters, make_args
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from correction_trl import CorrectionOptimizationConfig, CorrectionOptimizationTrainer, SCoReConfig, SCoReTrainer


def train(tmp_path, model, pairs, peft_config=None, **settings):
    """Two steps of DPO; the losses. At the reference the first one is log 2."""
    config = {"loss_type": "sigmoid", "nll_weight": 0.0, "max_steps": 2, "learning_rate": 1e-2, **settings}
    trainer = CorrectionOptimizationTrainer(
        model,
        CorrectionOptimizationConfig(**make_args(tmp_path, **config)),
        train_dataset=pairs,
        processing_class=build_tokenizer(),
        peft_config=peft_config,
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def train_score(tmp_path, model, prompts, **settings):
    """One step of SCoRe's Stage I; the first attempt's KL from the reference, which is 0 before the first update."""
    args = make_args(tmp_path, max_steps=2, per_device_train_batch_size=8, num_generations=2, learning_rate=1e-3)
    config = {"stage": "1", "stage_1_fraction": 0.5, "max_completion_length": 8, **settings}
    trainer = SCoReTrainer(
        model,
        letters,
        SCoReConfig(**{**args, **config}),
        train_dataset=prompts,
        processing_class=build_tokenizer(),
    )
    trainer.train()
    return [entry["kl/t1"] for entry in trainer.state.log_history if "kl/t1" in entry]


def merged(tiny_model):
    """The tiny model with an adapter merged into it: its name still leads to the model without."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return get_peft_model(model, config).merge_and_unload().requires_grad_(True)


def nameless(tiny_model):
    return build_model(build_tokenizer(), initializer_range=0.2)


def resized(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.resize_token_embeddings(64)
    return model


def with_trained_adapter(tiny_model, **config):
    """As `PeftModel.from_pretrained` gives it: an adapter that already does something."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return get_peft_model(model, LoraConfig(r=4, init_lora_weights=False, **config))


STARTS = {
    "a merged adapter": merged,
    "a model without a name": nameless,
    "a resized vocabulary": resized,
    "an adapter": lambda name: with_trained_adapter(name, target_modules="all-linear"),
    "an adapter on the embeddings": lambda name: with_trained_adapter(name, target_modules=["q_proj", "embed_tokens"]),
    "an adapter and whole modules": lambda name: with_trained_adapter(
        name, target_modules=["q_proj"], modules_to_save=["lm_head"]
    ),
    "an adapter on some tokens": lambda name: with_trained_adapter(
        name, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [3, 7]}
    ),
}


@pytest.mark.parametrize("start", STARTS)
def test_the_first_loss_is_log_two_whatever_is_trained(tmp_path, tiny_model, plain_pairs, start):
    model = STARTS[start](tiny_model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # whole modules and token deltas start at their base's values
            if "modules_to_save.default" in name or "trainable_tokens_delta" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    first, second = train(tmp_path, model, plain_pairs)
    assert first == pytest.approx(math.log(2), abs=1e-5)
    assert abs(second - math.log(2)) > 1e-3  # and the reference stays where it was


@pytest.mark.parametrize("start", ["a merged adapter", "a model without a name", "an adapter on the embeddings"])
def test_score_starts_at_its_reference(tmp_path, tiny_model, plain_prompts, start):
    first, _ = train_score(tmp_path, STARTS[start](tiny_model), plain_prompts)
    assert first == pytest.approx(0, abs=1e-4)


def test_the_reference_does_not_follow_the_policy(tmp_path, tiny_model, plain_pairs):
    model = merged(tiny_model)
    before = copy.deepcopy(model.state_dict())
    config = CorrectionOptimizationConfig(**make_args(tmp_path, max_steps=2, learning_rate=1e-2))
    trainer = CorrectionOptimizationTrainer(
        model, config, train_dataset=plain_pairs, processing_class=build_tokenizer()
    )
    trainer.train()
    after = trainer.ref_model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not torch.equal(trainer.model.state_dict()["model.norm.weight"], before["model.norm.weight"])
    assert not any(parameter.requires_grad for parameter in trainer.ref_model.parameters())


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_that_changes_its_base_stops_the_run(tmp_path, tiny_model, plain_pairs, init):
    """With such an adapter off, what is left is not the model that was given."""
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=init)
    sentence = f"not the policy as it is before training.*adapter off.*init_lora_weights='{init}'.*starts at zero"
    with pytest.raises(ValueError, match=sentence):
        train(tmp_path, tiny_model, plain_pairs, peft_config=adapter)
    with pytest.raises(ValueError, match=sentence):
        train(tmp_path, tiny_model, plain_pairs, peft_config=adapter, precompute_ref_log_probs=True)
    train(tmp_path, tiny_model, plain_pairs, peft_config=adapter, reference_free=True)


def test_an_adapter_that_starts_at_zero_passes(tmp_path, tiny_model, plain_pairs):
    adapter = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5)
    for settings in ({}, {"precompute_ref_log_probs": True}, {"bf16": True}, {"disable_dropout": False}):
        assert train(tmp_path, tiny_model, plain_pairs, peft_config=adapter, max_steps=1, **settings)


def test_a_reference_that_differs_is_refused_with_its_cause(tmp_path, tiny_model, plain_pairs, monkeypatch):
    """As TRL made it: loaded again by name."""
    path = "correction_trl.correction_optimization.correction_optimization_trainer.reference_of"
    monkeypatch.setattr(path, lambda model, peft_config: None)
    with pytest.raises(ValueError, match="loaded again by the model's name.*or pass a copy as `ref_model`"):
        train(tmp_path, merged(tiny_model), plain_pairs)


def test_a_reference_that_was_given_is_not_checked(tmp_path, tiny_model, plain_pairs):
    trainer = CorrectionOptimizationTrainer(
        merged(tiny_model),
        CorrectionOptimizationConfig(**make_args(tmp_path, max_steps=1, nll_weight=0.0)),
        train_dataset=plain_pairs,
        ref_model=AutoModelForCausalLM.from_pretrained(tiny_model),
        processing_class=build_tokenizer(),
    )
    trainer.train()
    assert trainer.state.log_history[0]["loss"] != pytest.approx(math.log(2), abs=1e-3)


def test_a_resumed_run_is_not_checked_again(tmp_path, tiny_model, plain_pairs):
    args = make_args(tmp_path, max_steps=2, save_strategy="steps", save_steps=1, learning_rate=1e-2)
    losses = []
    for checkpoint in (None, str(tmp_path / "output" / "checkpoint-1")):
        trainer = CorrectionOptimizationTrainer(
            tiny_model, CorrectionOptimizationConfig(**args), train_dataset=plain_pairs
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        losses.append(trainer.state.log_history[-2]["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_an_adapter_of_another_name_is_one_sentence(tmp_path, tiny_model, plain_pairs):
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    model = PeftModel(base, LoraConfig(r=4, target_modules="all-linear"), adapter_name="mine")
    with pytest.raises(ValueError, match="adapter is called 'mine', and training expects 'default': load it without"):
        train(tmp_path, model, plain_pairs)


def test_a_model_of_which_nothing_can_be_trained_is_one_sentence(tmp_path, tiny_model, plain_pairs, plain_prompts):
    """Merging leaves the weights frozen, and so does loading an adapter without `is_trainable`."""
    frozen = merged(tiny_model).requires_grad_(False)
    adapter = with_trained_adapter(tiny_model, target_modules="all-linear").requires_grad_(False)
    for model in (frozen, adapter):
        with pytest.raises(ValueError, match=r"no trainable parameter.*`model.requires_grad_\(True\)`.*is_trainable"):
            train(tmp_path, model, plain_pairs)
        with pytest.raises(ValueError, match="no trainable parameter"):
            train_score(tmp_path, model, plain_prompts)


def test_a_model_without_a_name_needs_its_tokenizer(tmp_path, plain_pairs):
    config = CorrectionOptimizationConfig(**make_args(tmp_path))
    with pytest.raises(ValueError, match="has no name to load a tokenizer by; pass `processing_class`"):
        CorrectionOptimizationTrainer(nameless(None), config, train_dataset=plain_pairs)


def test_the_check_takes_no_part_in_the_randomness(tmp_path, tiny_model, plain_pairs):
    """With dropout in training mode, the losses are those of a run that is not checked."""
    runs = []
    for ref_model in (None, AutoModelForCausalLM.from_pretrained(tiny_model)):
        trainer = CorrectionOptimizationTrainer(
            tiny_model,
            CorrectionOptimizationConfig(**make_args(tmp_path, max_steps=2)),
            train_dataset=Dataset.from_list(plain_pairs.to_list()),
            ref_model=ref_model,
        )
        trainer.train()
        runs.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert runs[0] == runs[1]
