"""Models by name: an adapter is loaded on its base, with the embeddings that it was trained with."""

import json

import pytest
import torch
from datasets import Dataset
from helpers import build_model, build_tokenizer, letters, make_args
from peft import LoraConfig, PeftModel, get_peft_model

from correction_trl import CorrectionOptimizationConfig, CorrectionOptimizationTrainer, SCoReConfig, SCoReTrainer
from correction_trl.errors import BadInput
from correction_trl.policy.loading import is_adapter, load_policy


ADAPTERS = {
    "linear layers": LoraConfig(target_modules="all-linear"),
    "embeddings as a whole": LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]),
    "embeddings by LoRA": LoraConfig(target_modules=["q_proj", "embed_tokens"]),
}


@pytest.fixture
def saved(tmp_path, tiny_model):
    """Saves an adapter with two tokens more than its base; returns its folder and a function that gives its logits."""

    def save(config, n_more=2):
        tokenizer, base = build_tokenizer(), build_model(build_tokenizer())
        tokenizer.add_tokens([f"<new{i}>" for i in range(n_more)])
        base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        base.name_or_path = base.config._name_or_path = tiny_model
        model = get_peft_model(base, config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                torch.nn.init.normal_(parameter.data, std=0.1)
        model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
        tokenizer.save_pretrained(tmp_path / "adapter")
        return str(tmp_path / "adapter"), model.eval()

    return save


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_with_added_tokens(saved, name):
    folder, model = saved(ADAPTERS[name])
    assert is_adapter(folder)
    loaded, tokenizer = load_policy(folder)
    assert isinstance(loaded, PeftModel) and "<new1>" in tokenizer.get_vocab()
    ids = torch.tensor([tokenizer("1+1=<new1>2")["input_ids"]])
    with torch.no_grad():
        # PEFT saves the output's rows of the new tokens only where the output is a part of the adapter
        n = None if name == "embeddings as a whole" else len(tokenizer) - 2
        torch.testing.assert_close(loaded.eval()(ids).logits[..., :n], model(ids).logits[..., :n])
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_what_is_no_adapter_is_loaded_as_it_is(tiny_model):
    assert not is_adapter(tiny_model)
    assert not isinstance(load_policy(tiny_model)[0], PeftModel)


@pytest.mark.parametrize("trainer", ["correction optimization", "score"])
def test_an_adapter_is_trained_on(saved, tmp_path, plain_prompts, trainer):
    """From where it stands, and its reference stands there too."""
    model, tokenizer = load_policy(saved(ADAPTERS["linear layers"], n_more=0)[0], trainable=True)
    before = {name: value.clone() for name, value in model.named_parameters() if "lora" in name}
    if trainer == "score":
        args = SCoReConfig(**make_args(tmp_path, max_steps=1), num_generations=2, stage="2", instruction="again?")
        trained = SCoReTrainer(model, letters, args, train_dataset=plain_prompts, processing_class=tokenizer)
    else:
        pairs = Dataset.from_dict({"prompt": ["1+1=", "2+2="], "response": ["3", "5"], "correction": ["2", "4"]})
        args = CorrectionOptimizationConfig(**make_args(tmp_path, max_steps=1, per_device_train_batch_size=2))
        trained = CorrectionOptimizationTrainer(model, args, train_dataset=pairs, processing_class=tokenizer)
    trained.train()
    after = dict(trained.accelerator.unwrap_model(trained.model).named_parameters())
    assert any(not torch.equal(after[name], value) for name, value in before.items())
    if trainer == "correction optimization":
        assert trained.state.log_history[0]["margins/mean"] == pytest.approx(0, abs=1e-5)
    else:
        assert trained.state.log_history[0]["kl/t2"] == pytest.approx(0, abs=1e-4)


def test_what_cannot_be_loaded_is_said(saved, tmp_path):
    folder, _ = saved(ADAPTERS["linear layers"])
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "gone"}))
    with pytest.raises(BadInput, match="The base 'gone' of the adapter .* cannot be loaded.*adapter_config.json"):
        load_policy(folder)
    with pytest.raises(BadInput, match="The model 'nowhere' cannot be loaded"):
        load_policy("nowhere")


def test_more_tokens_than_embeddings(tmp_path):
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    tokenizer.add_tokens(["<new>"])
    pairs = Dataset.from_dict({"prompt": ["1+1="], "response": ["3"], "correction": ["2"]})
    with pytest.raises(BadInput, match="The tokenizer has 49 tokens and the model 48 embeddings"):
        CorrectionOptimizationTrainer(
            model,
            CorrectionOptimizationConfig(**make_args(tmp_path)),
            train_dataset=pairs,
            ref_model=build_model(build_tokenizer()),
            processing_class=tokenizer,
        )
