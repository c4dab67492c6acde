"""A push from Python has the card that a recipe writes."""

import pytest
from datasets import Dataset
from helpers import letters, make_args
from huggingface_hub import ModelCard
from trl import ModelConfig

from correction_trl import (
    CorrectionOptimizationConfig,
    CorrectionOptimizationTrainer,
    CorrectorSFTConfig,
    CorrectorSFTTrainer,
    SCoReConfig,
    SCoReTrainer,
)
from correction_trl.recipe import ScriptArguments, TrainingRun
from correction_trl.self_correction_dpo import SelfCorrectionDPOTrainer


def make_trainer(kind, model, tmp_path, pairs, prompts):
    if kind == "corrector_sft":
        settings = make_args(tmp_path, max_length=None)
        del settings["mask_truncated_completions"]  # no target of a corrector was cut off
        args = CorrectorSFTConfig(**settings)
        return CorrectorSFTTrainer(model, args, train_dataset=prompts, value_function=letters)
    if kind == "score":
        args = SCoReConfig(**make_args(tmp_path, num_generations=4, instruction="look again.", kl_estimator="k2"))
        return SCoReTrainer(model, letters, args, train_dataset=prompts)
    args = CorrectionOptimizationConfig(**make_args(tmp_path, loss_type="dpop", beta=0.25))
    if kind == "scl":
        more = {"instruction": "look again.", "pair_prompt": "both", "rounds": 3}
        return SelfCorrectionDPOTrainer(model=model, args=args, train_dataset=pairs, **more)
    return CorrectionOptimizationTrainer(model, args, train_dataset=pairs)


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        ("correction_optimization", ["prhegde", "Loss `dpop` (beta 0.25, "]),
        ("corrector_sft", ["2211.00053", "feedback: none", "correct_iteratively(model, tokenizer"]),
        ("score", ["2409.12917", "asked for with: 'look again.'", "4 rollouts", "the k2 estimator, 50% of the steps"]),
        ("scl", ["2410.04055", "asked with: 'look again.'", "3 round(s)", "`both` (the paper's: `question`)"]),
    ],
)
def test_a_push_from_python_has_the_recipes_card(
    kind, facts, tiny_model, tmp_path, monkeypatch, plain_pairs, plain_prompts
):
    trainer = make_trainer(kind, tiny_model, tmp_path, plain_pairs, plain_prompts)

    def no_repository(token=None, private=None):
        trainer.hub_model_id = "me/mine"

    pushed = {}
    monkeypatch.setattr(trainer, "init_hf_repo", no_repository)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda self, **kwargs: pushed.update(kwargs))
    trainer.push_to_hub()
    readme = tmp_path / "output" / "README.md"
    assert pushed["repo_id"] == "me/mine" and pushed["folder_path"] == str(readme.parent)
    by_python = ModelCard.load(readme)

    file = tmp_path / "data.jsonl"
    Dataset.from_list([{"prompt": "1+1=", "answer": "2"}]).to_json(file)
    job = TrainingRun(ScriptArguments(dataset_name=str(file)), trainer.args, ModelConfig(tiny_model))
    job._push_to = "me/mine"
    monkeypatch.setattr("correction_trl.recipe.push_folder", lambda *args: None)
    job.finish(trainer, None, None)
    by_recipe = ModelCard.load(readme)
    for fact in facts:
        assert fact in by_python.text and fact in by_recipe.text, fact
    assert by_python.data.tags == by_recipe.data.tags and len(by_python.data.tags) == 3
    both = [
        dict(section.split("\n", 1) for section in card.text.split("\n## ")[1:]) for card in (by_python, by_recipe)
    ]
    for section in ("Usage", "Citations"):
        assert both[0][section] == both[1][section], section
    assert "me/mine" in both[0]["Usage"]
    departures = [sections["Training"].partition("How this departs")[2] for sections in both]
    assert departures[0] == departures[1] != ""
    # What only a recipe can say
    assert "metrics.json" in by_recipe.text and "metrics.json" not in by_python.text
