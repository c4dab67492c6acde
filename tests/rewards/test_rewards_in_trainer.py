"""Value functions inside TRL's GRPOTrainer and RLOOTrainer, unchanged."""

import pytest
from datasets import Dataset
from helpers import build_tokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from correction_trl.rewards import CodeTests, ConceptCoverage, FinalAnswer, MathProgram, WordListNonToxicity
from correction_trl.sandbox import local


needs_isolation = pytest.mark.skipif(
    all(local.try_isolation(isolation) for isolation in ("namespaces", "bubblewrap")), reason="no isolation here"
)


def rows(conversational):
    prompt = [{"role": "user", "content": "what is 1+1?"}] if conversational else "what is 1+1? "
    row = {"prompt": prompt, "answer": "2", "concepts": ["a", "b"], "test_list": ["assert f(1) == 2"]}
    # The second row has no gold answer: it cannot be judged.
    return Dataset.from_list([row, {**row, "answer": None}] * 4)


@needs_isolation
@pytest.mark.parametrize("conversational", [False, True])
@pytest.mark.parametrize(("trainer_class", "config_class"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)])
def test_two_steps(trainer_class, config_class, conversational, tiny_model, tmp_path):
    functions = [FinalAnswer(), MathProgram(), CodeTests(share=True), ConceptCoverage(), WordListNonToxicity()]
    tokenizer = build_tokenizer()
    config = config_class(
        output_dir=str(tmp_path), per_device_train_batch_size=4, num_generations=2, max_completion_length=12,
        max_steps=2, learning_rate=1e-3, logging_steps=1, save_strategy="no", report_to="none", use_cpu=True,
        bf16=False, gradient_checkpointing=False, disable_tqdm=True, seed=0,
    )  # fmt: skip
    trainer = trainer_class(
        tiny_model, reward_funcs=functions, args=config, train_dataset=rows(conversational),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    steps = [log for log in trainer.state.log_history if "loss" in log]
    assert len(steps) == 2
    for log in steps:
        for function in functions:
            unjudged = log.get(f"{function.__name__}/unjudged", 0)
            mean = log[f"rewards/{function.__name__}/mean"]
            assert mean is None if unjudged == 1 else 0 <= mean <= 1
        assert log["code_tests/unjudged"] == log["concept_coverage/unjudged"] == 0
        assert log["final_answer/unjudged"] == log["math_program/unjudged"]
    # Half of the rows have no gold answer: None, not 0, and counted. Two steps of two prompts see some of them.
    assert any(log["final_answer/unjudged"] > 0 for log in steps)
