"""SCoRe's trainer: what is in the loss, the stages, rewards, resuming, adapters, and its hold on TRL."""

import copy
import inspect
import json
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from helpers import letters, make_args
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback
from trl import RLOOTrainer

from correction_trl import SCoReConfig, SCoReTrainer
from correction_trl.errors import BadInput
from correction_trl.score.turn_credit import leave_one_out, turn_returns


INSTRUCTION = "look again."


def share_of_digits(completions, **columns):
    """A reward that varies: the share of characters that are digits."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [sum(c.isdigit() for c in text) / max(len(text), 1) for text in texts]


@pytest.fixture
def make_trainer(tmp_path, tiny_model):
    def make(
        dataset, reward_funcs=share_of_digits, model=None, peft_config=None, quantization_config=None, **settings
    ):
        settings = {"instruction": INSTRUCTION, "num_generations": 4, "per_device_train_batch_size": 8, **settings}
        eval_dataset, processing_class = (settings.pop(name, None) for name in ("eval_dataset", "processing_class"))
        others = {name: settings.pop(name) for name in ("extract_answer",) if name in settings}
        return SCoReTrainer(
            model or tiny_model,
            reward_funcs,
            SCoReConfig(**make_args(tmp_path, **settings)),
            train_dataset=dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            peft_config=peft_config,
            quantization_config=quantization_config,
            **others,
        )

    return make


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def weights(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def first_batch(trainer):
    """The rollouts of the first update, as the loss gets them."""
    trainer.model.train()
    trainer.state.max_steps = trainer.args.max_steps
    return trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))


# ---------------------------------------------------------------------------------------------- what is in the loss


@pytest.mark.parametrize("prompts", ["plain_prompts", "chat_prompts"])
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_row_is_the_ids_that_were_sampled_and_only_attempts_are_in_the_loss(
    request, make_trainer, monkeypatch, prompts, turns
):
    trainer = make_trainer(request.getfixturevalue(prompts), turns=turns, stage="2")
    sampled = {}
    sample_attempts = trainer._sample_attempts

    def record(prompt_ids, follow_ups_of):
        sampled["prompts"] = prompt_ids
        sampled["attempts"], sampled["follow_ups"] = sample_attempts(prompt_ids, follow_ups_of)
        return sampled["attempts"], sampled["follow_ups"]

    monkeypatch.setattr(trainer, "_sample_attempts", record)
    batch = first_batch(trainer)
    for i, prompt in enumerate(sampled["prompts"]):
        row, turn_ids = list(prompt), [0] * len(prompt)
        for turn in range(turns):
            attempt = sampled["attempts"][turn][i]
            row += attempt
            turn_ids += [turn + 1] * len(attempt)
            if turn < turns - 1:
                row += sampled["follow_ups"][turn][i]
                turn_ids += [0] * len(sampled["follow_ups"][turn][i])
        length = len(row)
        assert batch["input_ids"][i, :length].tolist() == row
        assert batch["turn_ids"][i].tolist() == turn_ids + [0] * (batch["turn_ids"].size(1) - length)
        assert batch["attention_mask"][i].sum() == length
        if turns > 1:
            assert INSTRUCTION in trainer._tokenizer.decode(sampled["follow_ups"][0][i])
    # A token's probability cannot move the loss unless it belongs to an attempt
    log_probs, entropy, _ = trainer._forward(trainer.model, batch)
    assert not log_probs[batch["turn_ids"][:, 1:] == 0].any()
    assert not entropy[batch["turn_ids"][:, 1:] == 0].any()


@pytest.mark.parametrize("stage", ["1", "2"])
def test_the_gradient_is_that_of_a_naive_loop(make_trainer, chat_prompts, stage):
    """Two forwards per rollout, one per attempt, on unpadded rows; returns, baselines and KL in Python loops."""
    settings = {"beta_1": 0.05, "beta_2": 0.3, "alpha": 3.0}
    trainer = make_trainer(chat_prompts, stage=stage, temperature=0.7, **settings)
    with torch.no_grad():  # a policy that has left the reference
        for parameter in trainer.model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    trainer._reference_checked = True  # what a run would stop at
    batch = first_batch(trainer)
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.model.zero_grad()

    texts = [[], []]
    for i in range(8):
        for turn in (1, 2):
            ids = batch["input_ids"][i][batch["turn_ids"][i] == turn]
            texts[turn - 1].append(trainer._tokenizer.decode(ids, skip_special_tokens=True))
    rewards = [share_of_digits(texts[0]), share_of_digits(texts[1])]
    total = 0.0
    for i in range(8):
        group = [j for j in range(i // 4 * 4, i // 4 * 4 + 4) if j != i]
        length = int(batch["attention_mask"][i].sum())
        for turn in (1, 2):
            positions = (batch["turn_ids"][i] == turn).nonzero()[:, 0].tolist()
            row = batch["input_ids"][i : i + 1, : positions[-1] + 1]  # only what the attempt could see
            assert positions[-1] < length

            def log_probs(model, row=row, positions=positions):
                logits = (model(row).logits[0] / 0.7).log_softmax(-1)
                return torch.stack([logits[p - 1, row[0, p]] for p in positions])

            policy = log_probs(trainer.model)
            with torch.no_grad():
                log_ratio = policy - log_probs(trainer.ref_model)

            def given(j, turn=turn):
                if turn == 1:
                    return 0.0 if stage == "1" else rewards[0][j]
                bonus = 0.0 if stage == "1" else settings["alpha"] * (rewards[1][j] - rewards[0][j])
                return rewards[1][j] + bonus

            advantage = given(i) - sum(given(j) for j in group) / 3
            beta = settings["beta_1"] + (settings["beta_2"] if stage == "1" and turn == 1 else 0.0)
            for k in range(len(positions)):
                total = total - (advantage - beta * log_ratio[k:].sum()) * policy[k] / 8
    total.backward()
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=2e-5, msg=name)


def test_padding_changes_nothing(make_trainer, plain_prompts):
    trainer = make_trainer(plain_prompts, stage="2")
    batch = first_batch(trainer)
    loss = trainer._compute_loss(trainer.model, batch)
    padded = dict(batch)
    for name, value in (("input_ids", trainer._tokenizer.pad_token_id), ("attention_mask", 0), ("turn_ids", 0)):
        padded[name] = torch.cat([batch[name], torch.full((8, 5), value)], dim=1)
    padded["ref_log_probs"] = torch.cat([batch["ref_log_probs"], torch.zeros(8, 5)], dim=1)
    torch.testing.assert_close(trainer._compute_loss(trainer.model, padded), loss)
    # and neither does the company a row is in
    parts = [{name: value[start : start + 4] for name, value in batch.items()} for start in (0, 4)]
    split = sum(trainer._compute_loss(trainer.model, part) for part in parts) / 2
    torch.testing.assert_close(split, loss)


def test_stage_1_leaves_a_first_attempt_without_kl_alone(make_trainer, plain_prompts):
    """With both betas 0, no token of a first attempt gets a gradient in Stage I."""
    trainer = make_trainer(plain_prompts, stage="1", beta_1=0.0, beta_2=0.0)
    assert trainer.ref_model is None
    batch = first_batch(trainer)
    assert "ref_log_probs" not in batch
    assert not batch["advantages"][:, 0].any() and batch["advantages"][:, 1].any()


def test_truncated_attempts_can_be_masked(make_trainer, plain_prompts):
    batch = first_batch(make_trainer(plain_prompts, stage="2", max_completion_length=2))
    masked = first_batch(
        make_trainer(plain_prompts, stage="2", max_completion_length=2, mask_truncated_completions=True)
    )
    assert torch.equal(batch["input_ids"], masked["input_ids"])
    ended = masked["turn_ids"] > 0
    assert (batch["turn_ids"] > 0).sum() > ended.sum()
    assert torch.equal(batch["turn_ids"][ended], masked["turn_ids"][ended])


def test_gradient_does_not_depend_on_accumulation(make_trainer, plain_prompts):
    """8 x 1, 4 x 2 and 1 x 8: the same rollouts, and the same weights after two updates."""
    runs = []
    for batch_size, accumulation in ((8, 1), (4, 2), (1, 8)):
        trainer = make_trainer(
            plain_prompts,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_steps=2,
            optim="sgd",
            learning_rate=0.05,
            max_grad_norm=0.0,
        )
        trainer.train()
        runs.append(trainer)
    for other in runs[1:]:
        assert logged(other, "reward/t2") == pytest.approx(logged(runs[0], "reward/t2"))
        for name, value in weights(runs[0]).items():
            torch.testing.assert_close(weights(other)[name], value, rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------------------------------------- stages


def test_both_stages_in_one_run(make_trainer, plain_prompts):
    trainer = make_trainer(plain_prompts, max_steps=8, stage_1_fraction=0.25, beta_2=0.5)
    trainer.train()
    assert logged(trainer, "stage") == [1, 1, 2, 2, 2, 2, 2, 2]
    assert logged(trainer, "beta_2") == [0.5, 0.5, 0, 0, 0, 0, 0, 0]
    rewards = [logged(trainer, f"reward/t{turn}") for turn in (1, 2)]
    for stage, r1, r2, bonus in zip(logged(trainer, "stage"), *rewards, logged(trainer, "bonus"), strict=True):
        assert bonus == pytest.approx(0.0 if stage == 1 else 10 * (r2 - r1), abs=1e-5)


@given(st.integers(1, 400), st.floats(0.01, 0.99))
def test_stage_1_has_its_share_of_the_steps(max_steps, fraction):
    config = SCoReConfig(**make_args(Path("unused"), num_generations=4, stage_1_fraction=fraction))
    stages = [config.stage_at(step, max_steps) for step in range(max_steps)]
    n_stage_1 = stages.count(1)
    assert abs(n_stage_1 - fraction * max_steps) <= 0.5
    assert stages == [1] * n_stage_1 + [2] * (max_steps - n_stage_1)


def test_a_run_too_short_for_its_stages_is_refused_before_the_first_step(make_trainer, plain_prompts):
    with pytest.raises(BadInput, match="1 steps are too few for two stages"):
        make_trainer(plain_prompts, max_steps=1).train()


@pytest.mark.parametrize("adapter", [False, True, "embeddings"])
def test_the_reference_of_stage_2(make_trainer, plain_prompts, adapter):
    """At the first step of Stage II the policy is the Stage I policy: its KL is 0 if that is the reference."""
    kl = {}
    for reference in ("base", "stage_1"):
        trainer = make_trainer(
            plain_prompts,
            reference=reference,
            max_steps=4,
            learning_rate=2e-2,
            peft_config={
                False: None,
                True: LoraConfig(r=4, target_modules="all-linear"),
                "embeddings": LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"]),
            }[adapter],
        )
        trainer.train()
        kl[reference] = logged(trainer, "kl/t2")
    assert kl["base"][:2] == kl["stage_1"][:2]
    assert kl["base"][0] == pytest.approx(0.0, abs=1e-5)
    assert kl["stage_1"][2] == pytest.approx(0.0, abs=1e-5)
    assert abs(kl["base"][2]) > 1e-4 and abs(kl["stage_1"][3]) > 1e-4


def test_beta_2_adapts_to_its_target(make_trainer, plain_prompts):
    settings = {"stage": "1", "max_steps": 6, "learning_rate": 5e-3, "kl_estimator": "k2"}
    low = make_trainer(plain_prompts, first_attempt_kl_target=1e-6, **settings)
    low.train()
    high = make_trainer(plain_prompts, first_attempt_kl_target=1e6, **settings)
    high.train()
    fixed = make_trainer(plain_prompts, **settings)
    fixed.train()
    # The first step has no KL to go by; then 10 % per step at most
    assert logged(high, "beta_2") == pytest.approx([0.1 * 0.9 ** max(i, 0) for i in range(6)], rel=1e-3)
    assert logged(fixed, "beta_2") == [0.1] * 6
    assert max(logged(low, "beta_2")) > 0.1
    high._beta_2 = 0.7  # what is adapted (by 10 % here) is what the loss uses
    assert first_batch(high)["kl_weights"].tolist() == [[pytest.approx(0.64), pytest.approx(0.01)]] * 8


def test_the_second_attempt_learns_to_be_right(make_trainer):
    """Beginning with a digit is a reward that is found within a few updates; Stage I rewards the second attempt."""

    def begins_with_a_digit(completions, **columns):
        return [float(text[:1].isdigit()) for text in completions]

    trainer = make_trainer(
        Dataset.from_list([{"prompt": "what is 1+1? "}] * 8),
        begins_with_a_digit,
        stage="1",
        max_steps=30,
        learning_rate=3e-3,
        per_device_train_batch_size=32,
        num_generations=8,
        max_completion_length=3,
        beta_2=3.0,
        kl_estimator="k2",
    )
    trainer.train()
    first, second = logged(trainer, "acc@t1"), logged(trainer, "acc@t2")
    assert sum(second[-5:]) / 5 > sum(second[:5]) / 5 + 0.3
    assert sum(second[-5:]) / 5 > sum(first[-5:]) / 5 + 0.2


def test_rows_with_their_own_template_arguments_keep_them_in_every_turn(make_trainer, chat_prompts, tiny_tokenizer):
    """In training and in evaluation; a row's arguments go before the run's."""
    rows = chat_prompts.select(range(2)).to_list()
    rows[1]["chat_template_kwargs"] = {"mark": "b"}
    rows[0]["chat_template_kwargs"] = {"mark": None}
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{% if add_generation_prompt %}<assistant>", "{% if add_generation_prompt %}<assistant>{{ mark or 'a' }}"
    )
    trainer = make_trainer(
        Dataset.from_list(rows), stage="2", processing_class=tokenizer, per_device_train_batch_size=8
    )
    batch = first_batch(trainer)
    marks = set()
    for row in tokenizer.batch_decode(batch["input_ids"]):
        first, second = (row.split(f"{before}<eos><assistant>")[1][0] for before in ("? ", INSTRUCTION))
        assert first == second
        marks.add(first)
    assert marks == {"a", "b"}

    seen = []
    plain = make_trainer(
        chat_prompts,
        stage="2",
        processing_class=tokenizer,
        chat_template_kwargs={"mark": "c"},
        max_completion_length=2,
    )
    generate = plain.model.generate
    plain.model.generate = lambda **inputs: (
        seen.extend(tokenizer.batch_decode(inputs["input_ids"])) or generate(**inputs)
    )
    plain.evaluate_attempts(chat_prompts.select(range(2)))
    assert seen and all(text.endswith("<assistant>c") for text in seen)


def test_generations_within_one_update_differ(make_trainer):
    prompts = Dataset.from_list([{"prompt": "what is 1+1? "}] * 8)
    trainer = make_trainer(prompts, stage="2", steps_per_generation=1, gradient_accumulation_steps=2, max_steps=1)
    batches = []
    compute_loss = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: batches.append(inputs["input_ids"]) or compute_loss(model, inputs)
    trainer.train()
    assert len(batches) == 2 and not (batches[0].shape == batches[1].shape and torch.equal(*batches))


def test_used_again_rollouts_are_clipped_against_the_policy_that_sampled_them(make_trainer, plain_prompts):
    trainer = make_trainer(plain_prompts, stage="2", num_iterations=2, max_steps=4, learning_rate=5e-2, beta_1=0.0)
    trainer.train()
    first_use, second_use = logged(trainer, "clip_ratio/t2")[0::2], logged(trainer, "clip_ratio/t2")[1::2]
    assert first_use == [0.0, 0.0] and min(second_use) > 0.1


# ---------------------------------------------------------------------------------------------- rewards


def test_several_weighted_rewards_async_and_none(make_trainer, plain_prompts):
    async def length(completions, **columns):
        return [None if i % 4 == 0 else float(len(text)) for i, text in enumerate(completions)]

    trainer = make_trainer(
        plain_prompts, [share_of_digits, length], reward_weights=[2.0, 0.1], stage="2", beta_1=0.0, alpha=1.0
    )
    batch = first_batch(trainer)
    texts = [
        [
            trainer._tokenizer.decode(row[turns == turn], skip_special_tokens=True)
            for row, turns in zip(batch["input_ids"], batch["turn_ids"], strict=True)
        ]
        for turn in (1, 2)
    ]
    rewards = torch.tensor(
        [
            [
                2.0 * digits + (0.0 if i % 4 == 0 else 0.1 * len(text))
                for i, (digits, text) in enumerate(zip(share_of_digits(attempts), attempts, strict=True))
            ]
            for attempts in texts
        ]
    ).T
    expected = leave_one_out(turn_returns(rewards, 2, 1.0), 4)
    torch.testing.assert_close(batch["advantages"], expected, rtol=1e-4, atol=1e-5)


def test_a_function_with_the_whole_signature_of_trl_logs_per_attempt_and_serves_the_evaluation(
    make_trainer, plain_prompts
):
    def full(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, **columns):
        assert len(completion_ids) == len(completions) and trainer_state.max_steps >= 0
        log_metric("n_letters", float(sum(map(len, completions))))
        log_extra("letters", [len(text) for text in completions])
        return [float("nan") if text == "0" else float(int(text) % 2) for text in columns["answer"]]

    trainer = make_trainer(plain_prompts, full, reward_weights=[0.5], max_steps=2, correct_threshold=0.5)
    trainer.train()
    for turn in (1, 2):
        assert len(logged(trainer, f"n_letters/t{turn}")) == 2
        # What is rewarded with half a point is right
        rewards = logged(trainer, f"reward/t{turn}")
        assert logged(trainer, f"acc@t{turn}") == pytest.approx([2 * reward for reward in rewards])
    assert not trainer._pending_metrics and not trainer._pending_extra_logs
    found = trainer.evaluate_attempts(plain_prompts.select(range(12)))
    assert found.per_problem["acc@t1"] == [int(text) % 2 for text in plain_prompts["answer"][:12]]
    assert 0 < sum(found.per_problem["acc@t1"]) < 12


def test_a_reward_that_is_infinite_is_named(make_trainer, plain_prompts):
    def unbounded(completions, **columns):
        return [math.inf if i == 2 else 0.0 for i in range(len(completions))]

    with pytest.raises(BadInput, match="'unbounded' returned inf for rollout 2"):
        make_trainer(plain_prompts, unbounded).train()


def test_the_true_reason_is_reported(make_trainer, plain_prompts):
    def fails(completions, trainer_state, **columns):
        raise KeyError("no such table")

    with pytest.raises(BadInput, match="KeyError.*no such table"):
        make_trainer(plain_prompts, fails).train()


def test_attempts_that_nobody_judges_have_no_advantage(make_trainer, plain_prompts):
    def sometimes(completions, **columns):
        return [None if i in (1, 5) else float(i) for i in range(len(completions))]

    trainer = make_trainer(plain_prompts, sometimes, stage="2", beta_1=0.0)
    batch = first_batch(trainer)
    assert not batch["advantages"][[1, 5]].any()
    assert batch["advantages"][[0, 2, 3, 4, 6, 7]].all()
    assert batch["advantages"].isfinite().all()
    assert trainer._metrics["train"]["rewards/unjudged"] == [0.25]


def test_a_reward_that_raises_names_its_row(make_trainer, plain_prompts):
    def fragile(completions, answer, **columns):
        for text in answer:
            if text == plain_prompts[3]["answer"]:
                raise RuntimeError("no verdict on this")
        return [0.0] * len(completions)

    trainer = make_trainer(
        plain_prompts.select([3]), fragile, num_generations=2, per_device_train_batch_size=2, max_steps=2
    )
    with pytest.raises(BadInput, match=r"'fragile' raised RuntimeError on row 0.*no verdict on this"):
        trainer.train()


# ---------------------------------------------------------------------------------------------- logs and evaluation


def test_logged_metrics_keep_their_identities(make_trainer, chat_prompts, capsys):
    def even(completions, **columns):
        return [float(len(c[-1]["content"]) % 2 == 0) for c in completions]

    trainer = make_trainer(chat_prompts, even, max_steps=3, log_completions=True, num_completions_to_print=1)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "acc@t1" in entry]
    assert len(log) == 3
    for entry in log:
        assert entry["delta(t1,t2)"] == pytest.approx(entry["acc@t2"] - entry["acc@t1"], abs=1e-6)
        assert entry["delta(t1,t2)"] == pytest.approx(entry["delta(i->c)"] - entry["delta(c->i)"], abs=1e-6)
        for turn in (1, 2):
            assert entry[f"reward/t{turn}"] == pytest.approx(entry[f"acc@t{turn}"], abs=1e-6)
            for name in (f"kl/t{turn}", f"entropy/t{turn}", f"lengths/t{turn}", f"truncated/t{turn}"):
                assert math.isfinite(entry[name])
        for name in ("edit_distance_ratio", "answer_changed", "time/generation", "time/rewards", "num_tokens"):
            assert math.isfinite(entry[name])
    printed = capsys.readouterr().out
    assert "Step 1" in printed and "look again" in printed.replace("│", "").replace("\n", " ").replace("  ", " ")


def test_an_answer_has_changed_where_another_is_extracted(make_trainer, plain_prompts):
    """Whole texts by default, which differ in any word."""
    changed = []
    for extractor in ({}, {"extract_answer": lambda text: "the same"}):
        trainer = make_trainer(plain_prompts, letters, stage="2", max_steps=1, **extractor)
        trainer.train()
        changed.append(logged(trainer, "answer_changed")[0])
    assert changed == [1, 0]


def test_evaluation_is_greedy_and_sampled_and_leaves_training_alone(make_trainer, plain_prompts):
    held_out = plain_prompts.select(range(6))
    runs = []
    for eval_strategy in ("no", "steps"):
        trainer = make_trainer(
            plain_prompts, max_steps=3, eval_dataset=held_out, eval_strategy=eval_strategy, eval_steps=1
        )
        trainer.train()
        runs.append(trainer)
    for name, value in weights(runs[0]).items():
        assert torch.equal(weights(runs[1])[name], value), name
    for ending in ("", "/sampled"):
        for name in ("acc@t1", "acc@t2", "delta(t1,t2)", "delta(i->c)", "delta(c->i)", "answer_changed"):
            assert len(logged(runs[1], f"eval_{name}{ending}")) == 3
    metrics = runs[1].evaluate()
    assert runs[1].evaluate()["eval_acc@t1"] == metrics["eval_acc@t1"]
    greedy, sampled = (runs[1].evaluate_attempts(held_out, temperature) for temperature in (0.0, 1.0))
    assert metrics["eval_edit_distance_ratio"] == greedy.metrics["edit_distance_ratio"]["mean"]
    assert metrics["eval_edit_distance_ratio/sampled"] == sampled.metrics["edit_distance_ratio"]["mean"]
    assert greedy.per_problem["edit_distance_ratio"] != sampled.per_problem["edit_distance_ratio"]


def test_an_evaluation_between_two_logs_takes_nothing_from_them(make_trainer, plain_prompts):
    logs = []
    for eval_strategy in ("no", "steps"):
        trainer = make_trainer(
            plain_prompts,
            max_steps=4,
            logging_steps=4,
            eval_dataset=plain_prompts.select(range(2)),
            eval_strategy=eval_strategy,
            eval_steps=3,
        )
        trainer.train()
        logs.append([logged(trainer, key) for key in ("reward/t1", "kl/t1", "lengths/t2", "entropy/t2")])
    assert logs[0] == logs[1]


# ---------------------------------------------------------------------------------------------- adapters, backends


def test_lora_with_gradient_checkpointing_follows_without(make_trainer, plain_prompts):
    runs = []
    for gradient_checkpointing in (False, True):
        trainer = make_trainer(
            plain_prompts,
            peft_config=LoraConfig(r=4, target_modules="all-linear"),
            gradient_checkpointing=gradient_checkpointing,
            learning_rate=1e-2,
        )
        assert trainer.ref_model is None
        trainer.train()
        runs.append(logged(trainer, "kl/t2") + logged(trainer, "loss"))
    assert runs[0] == pytest.approx(runs[1], rel=1e-3, abs=1e-4)
    assert abs(runs[0][2]) > 1e-4  # the adapter has moved


def test_qlora(make_trainer, plain_prompts):
    trainer = make_trainer(
        plain_prompts,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        ),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
        gradient_checkpointing=True,
        eval_dataset=plain_prompts.select(range(2)),
        learning_rate=1e-2,
        max_steps=2,
    )
    trainer.evaluate()
    before = {name: value for name, value in weights(trainer).items() if "lora" in name}
    trainer.train()
    assert all(not torch.equal(weights(trainer)[name], value) for name, value in before.items())
    assert all(math.isfinite(loss) for loss in logged(trainer, "loss"))


def test_vllm_is_asked_once_per_attempt(make_trainer, plain_prompts):
    trainer = make_trainer(plain_prompts, stage="2")
    calls = []

    class FakeVLLM:
        def sync_weights(self):
            calls.append("sync")

        def generate(self, prompts, images, num_generations):
            assert images is None and num_generations == 1
            calls.append(prompts)
            return prompts, [[20 + len(calls), trainer._tokenizer.eos_token_id] for _ in prompts], None, None

    trainer.use_vllm, trainer.vllm_generation, trainer._last_loaded_step = True, FakeVLLM(), -1
    del trainer.generation_config  # RLOOTrainer has none with vLLM
    batch = first_batch(trainer)
    assert calls[0] == "sync" and len(calls) == 3
    eos = trainer._tokenizer.eos_token_id
    for i in range(8):
        follow_up = trainer._follow_up_of(plain_prompts[0])([22, eos], INSTRUCTION)
        assert calls[2][i] == calls[1][i] + [22, eos] + follow_up
        assert batch["input_ids"][i].tolist()[: len(calls[2][i]) + 2] == calls[2][i] + [23, eos]


# ---------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("kind", ["full", "lora", "stage_1 reference", "lora, stage_1 reference", "several uses"])
def test_resuming_gives_the_run_that_was_not_interrupted(make_trainer, plain_prompts, tmp_path, kind):
    def run(name, resume=None):
        trainer = make_trainer(
            plain_prompts,
            output_dir=str(tmp_path / name),
            max_steps=6,
            save_strategy="steps",
            save_steps=4,
            gradient_accumulation_steps=2,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            first_attempt_kl_target=0.01,
            reference="stage_1" if "reference" in kind else "base",
            num_iterations=2 if kind == "several uses" else 1,
            peft_config=LoraConfig(r=4, target_modules="all-linear") if "lora" in kind else None,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run("whole")
    resumed = run("resumed", str(tmp_path / "whole" / "checkpoint-4"))
    for key in ("loss", "kl/t1", "beta_2", "num_tokens", "stage"):
        assert logged(resumed, key) == logged(whole, key), key
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name
    state = json.loads((tmp_path / "whole" / "checkpoint-4" / "score_state.json").read_text())
    assert state["beta_2"] > 0
    assert (tmp_path / "whole" / "checkpoint-4" / "reference.safetensors").is_file() == ("reference" in kind)


@pytest.mark.parametrize("adapter", [False, True])
def test_the_checkpoint_with_the_best_training_reward_is_kept_and_ended_with(
    make_trainer, plain_prompts, tmp_path, adapter
):
    rewards = {1: 0.9, 2: 0.1, 3: 0.5, 4: 0.2}  # by update; stage II from the second on

    def reward(completions, trainer_state, **columns):
        return [rewards.get(trainer_state.global_step + 1, 0.0)] * len(completions)

    settings = {"max_steps": 4, "stage_1_fraction": 0.25, "save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(
        plain_prompts,
        reward,
        keep_best_reward=True,
        save_total_limit=2,
        learning_rate=1e-2,
        peft_config=LoraConfig(r=4, target_modules="all-linear") if adapter else None,
        **settings,
    )
    saved = {}

    class Remember(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            saved[state.global_step] = weights(trainer)

    trainer.add_callback(Remember())
    trainer.train()
    assert trainer.state.best_global_step == 3 and trainer.state.best_metric == pytest.approx(0.5)
    assert {path.name for path in (tmp_path / "output").glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-4"}
    for name, value in weights(trainer).items():
        assert torch.equal(value, saved[3][name]), name
    assert any(not torch.equal(value, saved[4][name]) for name, value in weights(trainer).items())
    resumed = make_trainer(plain_prompts, reward, keep_best_reward=True, **settings)
    if not adapter:
        resumed.train(resume_from_checkpoint=str(tmp_path / "output" / "checkpoint-4"))
        assert resumed.state.best_global_step == 3


def test_a_checkpoint_without_its_state_or_of_another_length_is_refused(make_trainer, plain_prompts, tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 3, "reference": "stage_1"}
    make_trainer(plain_prompts, **settings).train()
    checkpoint = tmp_path / "output" / "checkpoint-3"
    with pytest.raises(BadInput, match="of a run of 4 steps and this run has 8"):
        make_trainer(plain_prompts, **{**settings, "max_steps": 8}).train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / "score_state.json").unlink()
    with pytest.raises(BadInput, match="score_state.json is missing"):
        make_trainer(plain_prompts, **settings).train(resume_from_checkpoint=str(checkpoint))


def test_what_is_saved_loads_without_us(make_trainer, plain_prompts, tmp_path):
    trainer = make_trainer(plain_prompts, max_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert set(saved) <= set(model.state_dict())
    for name, value in weights(trainer).items():
        torch.testing.assert_close(model.get_parameter(name), value)


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.1}, "beta_1"),
        ({"normalize_advantages": True}, "normalize_advantages"),
        ({"num_generations": 0}, "`num_generations` must be at least 1"),
        (
            {
                "metric_for_best_model": "eval_loss",
                "load_best_model_at_end": True,
                "eval_strategy": "steps",
                "save_strategy": "steps",
            },
            "an evaluation of SCoRe has no loss",
        ),
        ({"num_iterations": 0}, "`num_iterations` must be at least 1"),
        ({"stage": "3"}, "'1', '2' or 'both'"),
        ({"turns": 0}, "at least 1"),
        ({"turns": 1}, "stage: 2"),
        ({"stage_1_fraction": 1.0}, "for one stage alone"),
        ({"alpha": -1.0}, "alpha"),
        ({"gamma": 1.5}, "gamma"),
        ({"instruction": " "}, "instruction"),
        ({"first_attempt_kl_target": 0.0}, "first_attempt_kl_target"),
        ({"kl_estimator": "k4"}, "kl_estimator"),
        ({"reference": "last"}, "reference"),
    ],
)
def test_bad_settings_are_one_sentence(tmp_path, settings, message):
    with pytest.raises(BadInput, match=message):
        SCoReConfig(**make_args(tmp_path, **{"num_generations": 4, **settings}))


def test_bad_input_is_one_sentence(make_trainer, plain_prompts):
    with pytest.raises(BadInput, match="empty"):
        make_trainer(plain_prompts, [])
    with pytest.raises(BadInput, match="not models or ids"):
        make_trainer(plain_prompts, "some/reward-model")
    with pytest.raises(BadInput, match="is a stream"):
        make_trainer(plain_prompts, eval_dataset=plain_prompts.to_iterable_dataset())
    with pytest.raises(BadInput, match="no rows"):
        make_trainer(plain_prompts.select([]))
    with pytest.raises(BadInput, match="no column 'prompt'"):
        make_trainer(plain_prompts.rename_column("prompt", "question"))
    with pytest.raises(BadInput, match="text only"):
        make_trainer(plain_prompts.add_column("image", [None] * len(plain_prompts)))
    with pytest.raises(BadInput, match=r"row 5: its prompt has 501 tokens"):
        rows = plain_prompts.to_list()
        rows[5]["prompt"] = "1" * 500
        make_trainer(Dataset.from_list(rows))
    trainer = make_trainer(plain_prompts)
    with pytest.raises(BadInput, match="eval_dataset"):
        trainer.evaluate()


def test_a_template_that_forgets_answers_is_refused_before_training(make_trainer, chat_prompts, tiny_model, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = "{{ messages[-1].content }}<assistant>"
    with pytest.raises(BadInput, match="exactly once"):
        SCoReTrainer(
            tiny_model,
            share_of_digits,
            SCoReConfig(**make_args(tmp_path, num_generations=2, instruction=INSTRUCTION)),
            train_dataset=chat_prompts,
            processing_class=tokenizer,
        )


def test_overridden_methods_of_trl_still_exist():
    expected = {
        "_prepare_inputs": ["self", "generation_batch"],
        "_generate_and_score_completions": ["self", "inputs"],
        "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
        "_compute_loss": ["self", "model", "inputs"],
        "_save_checkpoint": ["self", "model", "trial"],
        "_load_optimizer_and_scheduler": ["self", "checkpoint"],
    }
    for name, parameters in expected.items():
        method = inspect.unwrap(getattr(RLOOTrainer, name))
        assert list(inspect.signature(method).parameters) == parameters, name
    assert list(inspect.signature(RLOOTrainer.evaluate).parameters)[:2] == ["self", "eval_dataset"]
    assert RLOOTrainer.loss_is_scaled_for_ga is False
    for name, member in vars(SCoReTrainer).items():
        if inspect.isfunction(member) and hasattr(RLOOTrainer, name) and name != "__init__":
            assert f"`{name}`" in SCoReTrainer.__doc__, f"{name} is overridden and not named in the docstring"


@pytest.mark.parametrize("stage", ["1", "2"])
@pytest.mark.parametrize("budget", [1, 150, 10_000])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_update_is_the_same_however_it_is_cut_by_tokens(make_trainer, chat_prompts, stage, budget, accumulation):
    def train(max_tokens):
        trainer = make_trainer(
            chat_prompts, max_tokens_per_micro_batch=max_tokens, stage=stage, optim="sgd", learning_rate=1e-2,
            max_steps=2, per_device_train_batch_size=16 // accumulation, gradient_accumulation_steps=accumulation,
            max_grad_norm=0.0, beta_1=0.1,
        )  # fmt: skip
        trainer.train()
        return trainer

    by_rows, by_tokens = train(None), train(budget)
    assert logged(by_tokens, "loss") == pytest.approx(logged(by_rows, "loss"), abs=1e-5)
    for key in ("kl/t1", "entropy/t1", "entropy/t2", "acc@t2"):
        assert logged(by_tokens, key) == pytest.approx(logged(by_rows, key), abs=1e-4), key
    assert len(logged(by_tokens, "step_time")) == 2
    for name, value in weights(by_rows).items():
        torch.testing.assert_close(weights(by_tokens)[name], value, atol=1e-6, rtol=1e-5)


def test_a_resumed_run_that_is_cut_by_tokens_is_the_run_that_was_not_killed(make_trainer, chat_prompts, tmp_path):
    settings = {"max_tokens_per_micro_batch": 200, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = make_trainer(chat_prompts, **settings)
    whole.train()
    resumed = make_trainer(chat_prompts, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "output" / "checkpoint-2"))
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name


def test_trying_a_size_leaves_no_trace(make_trainer, chat_prompts):
    tried, untried = (make_trainer(chat_prompts, max_tokens_per_micro_batch=200, max_steps=2) for _ in range(2))

    def find(probe, n_rows):
        batch, n_tokens = probe(3)
        assert batch["input_ids"].numel() == n_tokens
        tried._probe_step(batch)

    tried._find_max_tokens = find
    tried.train()
    untried.train()
    for name, value in weights(untried).items():
        assert torch.equal(weights(tried)[name], value)
    assert logged(tried, "kl/t1") == logged(untried, "kl/t1")


def test_the_best_model_is_that_of_the_last_attempts_accuracy(make_trainer, plain_prompts):
    steps = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    trainer = make_trainer(
        plain_prompts, eval_dataset=plain_prompts.select(range(4)), load_best_model_at_end=True, max_steps=2, **steps
    )
    assert trainer.args.metric_for_best_model == "eval_acc@t2" and trainer.args.greater_is_better
    trainer.train()
    assert trainer.state.best_metric == max(logged(trainer, "eval_acc@t2"))
