"""The trainer against TRL's own trainer, against numbers that can be worked out by hand, and against bad input."""

import difflib
import inspect
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    MixtralConfig,
    MixtralForCausalLM,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from correction_trl import CorrectionOptimizationConfig, CorrectionOptimizationTrainer
from correction_trl.correction_optimization.losses import LOSS_TYPES
from correction_trl.correction_optimization.pair_batch import edited_tokens


@pytest.fixture
def make_trainer(tmp_path, tiny_model):
    """A trainer on the tiny model; keyword arguments that are settings go to the config, the others to the trainer."""
    settings = CorrectionOptimizationConfig.__dataclass_fields__

    def make(train_dataset, **kwargs):
        config = {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "bf16": False,
            "use_cpu": True,
            "gradient_checkpointing": False,
            "disable_tqdm": True,
            "max_completion_length": 12,
            "mask_truncated_completions": False,  # a random model seldom ends
            **{key: value for key, value in kwargs.items() if key in settings},
        }
        others = {key: value for key, value in kwargs.items() if key not in settings}
        return CorrectionOptimizationTrainer(
            others.pop("model", tiny_model),
            CorrectionOptimizationConfig(**config),
            train_dataset=train_dataset,
            **others,
        )

    return make


def weights(trainer):
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def gradient(trainer):
    """Gradient of the first update, gathered by running the trainer's own loop with an optimizer that does not
    move."""
    gradients = {}

    def keep(self_optimizer, *args, **kwargs):
        for name, parameter in trainer.model.named_parameters():
            if parameter.grad is not None:
                gradients[name] = parameter.grad.clone()

    trainer.create_optimizer()
    trainer.optimizer.step = keep.__get__(trainer.optimizer)
    trainer.args.max_steps, trainer.args.max_grad_norm = 1, 0.0
    trainer.train()
    return gradients


def assert_same_gradient(one, other, tolerance=1e-5):
    """Relative error of the whole gradient, in float32."""
    assert one.keys() == other.keys()
    error = math.sqrt(sum(float(((one[name] - other[name]) ** 2).sum()) for name in one))
    norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in one.values()))
    assert norm > 1e-3
    assert error / norm < tolerance


# ------------------------------------------------------------------ against TRL


@pytest.mark.parametrize("adapter", [None, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)])
@pytest.mark.parametrize("pairs", ["plain_pairs", "chat_pairs"])
def test_sigmoid_with_reference_follows_trl_dpo(request, make_trainer, tiny_model, tmp_path, pairs, adapter):
    pairs = request.getfixturevalue(pairs)
    ours = make_trainer(pairs, loss_type="sigmoid", nll_weight=0.0, max_steps=20, peft_config=adapter)
    ours.train()
    args = {
        key: getattr(ours.args, key) for key in ("max_steps", "per_device_train_batch_size", "learning_rate", "beta")
    }
    theirs = DPOTrainer(
        tiny_model,
        args=DPOConfig(
            output_dir=str(tmp_path / "dpo"),
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            disable_tqdm=True,
            **args,
        ),
        train_dataset=pairs.rename_columns({"response": "rejected", "correction": "chosen"}),
        peft_config=adapter,
    )
    theirs.train()
    assert losses(ours) == pytest.approx(losses(theirs), abs=1e-4)
    # The losses of a run that does not learn would agree as well
    assert losses(ours)[-1] < losses(ours)[0] - 0.01
    for name, theirs_parameter in theirs.model.named_parameters():
        torch.testing.assert_close(ours.model.get_parameter(name), theirs_parameter, rtol=0, atol=1e-4)


def test_precomputed_reference_gives_the_same_run(make_trainer, plain_pairs):
    for loss_type in ("sigmoid", "ddpo"):
        runs = []
        for precompute in (False, True):
            trainer = make_trainer(plain_pairs, loss_type=loss_type, precompute_ref_log_probs=precompute)
            trainer.train()
            runs.append(losses(trainer))
        assert runs[0] == pytest.approx(runs[1], abs=1e-5)


def test_first_loss_is_log_two_and_gradient_is_half_beta_of_linear(make_trainer, plain_pairs):
    beta = 0.2
    dpo = make_trainer(plain_pairs, loss_type="sigmoid", nll_weight=0.0, beta=beta)
    dpo_gradient = gradient(dpo)
    assert losses(dpo)[0] == pytest.approx(math.log(2), abs=1e-6)
    linear = gradient(make_trainer(plain_pairs, loss_type="linear", nll_weight=0.0, reference_free=True))
    assert_same_gradient(dpo_gradient, {name: beta / 2 * value for name, value in linear.items()})


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_of_a_run_equals_a_naive_double_loop(make_trainer, plain_pairs, tiny_model, loss_type):
    """Sequence by sequence, without padding, from logits: the loss that the trainer logs at its first step."""
    reference_free = loss_type in ("linear", "cpl", "sigmoid")
    beta, nll_weight, gamma, bias = 0.3, 0.0 if loss_type == "sft" else 0.7, 5.0, 0.5
    dataset = plain_pairs.select(range(4))
    trainer = make_trainer(
        dataset,
        loss_type=loss_type,
        beta=beta,
        nll_weight=nll_weight,
        ddpo_gamma=gamma,
        cpl_bias=bias,
        reference_free=reference_free,
        max_steps=1,
    )
    trainer.train()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)

    def log_probs(prompt, completion):
        prompt_ids = tokenizer(prompt)["input_ids"]
        ids = tokenizer(prompt + completion)["input_ids"] + [tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return [logits[t - 1, ids[t]].item() for t in range(len(prompt_ids), len(ids))], ids[len(prompt_ids) :]

    expected = []
    for row in dataset:
        response, response_ids = log_probs(row["prompt"], row["response"])
        correction, correction_ids = log_probs(row["prompt"], row["correction"])
        score = {"y": sum(response), "y'": sum(correction)}
        if loss_type == "linear":
            loss = score["y"] - score["y'"]
        elif loss_type == "cpl":
            positive, negative = math.exp(beta * score["y'"]), math.exp(beta * bias * score["y"])
            loss = -math.log(positive / (positive + negative))
        elif loss_type == "sigmoid":
            loss = -math.log(1 / (1 + math.exp(-beta * (score["y'"] - score["y"]))))
        elif loss_type == "sft":
            loss = -score["y'"]
        else:  # relative to the reference, which is the model itself: every score is 0
            loss = {"hinge": 1.0, "ipo": (1 / (2 * beta)) ** 2}.get(loss_type, math.log(2))
        # The anchor weighs tokens as the loss does; DDPO's weights are those of the reference scores, all γ or 1
        if loss_type == "ddpo":
            edited = edited_tokens(response_ids, correction_ids)[1]
            weighted = [gamma if one else 1.0 for one in edited]
            anchor = -sum(w * value for w, value in zip(weighted, correction, strict=True)) / sum(weighted)
        else:
            anchor = -sum(correction) / (len(correction) if loss_type == "ipo" else 1)
        expected.append(loss + nll_weight * anchor)
    assert losses(trainer)[0] == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_sft_is_trl_sft_on_the_corrections_and_computes_nothing_else(make_trainer, chat_pairs, tiny_model, tmp_path):
    dataset = chat_pairs.select(range(8))
    ours = make_trainer(dataset, loss_type="sft", max_steps=1, per_device_train_batch_size=8)
    batches = collect_batches(ours)
    ours_gradient = gradient(ours)
    assert [len(batch["input_ids"]) for batch in batches] == [8]  # one row per pair
    (entry,) = [entry for entry in ours.state.log_history if "loss" in entry]
    assert not {"logps/response", "margins/mean", "kl", "entropy"} & set(entry)
    assert ours.ref_model is None
    theirs = SFTTrainer(
        tiny_model,
        args=SFTConfig(
            str(tmp_path / "sft"), max_steps=1, per_device_train_batch_size=8, learning_rate=ours.args.learning_rate,
            completion_only_loss=True, bf16=False, use_cpu=True, gradient_checkpointing=False, report_to="none",
            save_strategy="no", max_length=None, max_grad_norm=0.0, disable_tqdm=True, logging_steps=1,
        ),
        train_dataset=dataset.remove_columns("response").rename_column("correction", "completion"),
    )  # fmt: skip
    theirs_gradient = gradient(theirs)
    # Theirs is a mean over tokens, ours over pairs, of their sums
    n_tokens = sum(len(row["chosen_ids"]) for row in ours.train_dataset)
    assert_same_gradient({name: value * 8 / n_tokens for name, value in ours_gradient.items()}, theirs_gradient)


@pytest.mark.parametrize("credit", ["from_edit", "edits"])
@pytest.mark.parametrize("loss_type", ["linear", "sigmoid", "ipo", "sft"])
def test_credit_leaves_the_other_tokens_out_of_loss_and_anchor(make_trainer, tiny_model, loss_type, credit):
    beta, nll_weight = 0.3, 0.0 if loss_type == "sft" else 0.7
    rows = [
        {"prompt": "12 + 30 =", "response": " 41 or 52, say", "correction": " 42 or 52, say"},
        {"prompt": "1 + 1 =", "response": " 29", "correction": " 2"},
    ]
    settings = {"loss_type": loss_type, "beta": beta, "nll_weight": nll_weight, "max_steps": 1,
                "reference_free": True, "credit": credit}  # fmt: skip
    runs = {}
    for shared_prefix in (False, "auto") if loss_type == "sft" else (False, True):
        trainer = make_trainer(Dataset.from_list(rows), shared_prefix=shared_prefix, **settings)
        runs[shared_prefix] = gradient(trainer), losses(trainer)[0]
    (two_rows, found), (packed, _) = runs.values()
    assert_same_gradient(packed, two_rows)

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    totals = []
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        y, corrected = (
            tokenizer(row["prompt"] + row[side])["input_ids"][len(prompt) :] + [tokenizer.eos_token_id]
            for side in ("response", "correction")
        )
        first = next(i for i in range(len(y)) if y[i] != corrected[i])
        if credit == "from_edit":
            marks = [range(first, len(ids)) for ids in (y, corrected)]
        else:
            blocks = difflib.SequenceMatcher(None, y, corrected, autojunk=False).get_matching_blocks()
            kept = {block.a + i for block in blocks for i in range(block.size)}
            kept_there = {block.b + i for block in blocks for i in range(block.size)}
            gone = set(range(len(y))) - kept
            new = set(range(len(corrected))) - kept_there
            marks = [sorted(gone), sorted(new or {first})]
        scores = []
        for ids, marked in zip((y, corrected), marks, strict=True):
            log_probs = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
            total = sum(log_probs[len(prompt) + i - 1, ids[i]] for i in marked)
            scores.append(total / len(marked) if loss_type == "ipo" else total)
        margin = scores[1] - scores[0]
        if loss_type == "sft":
            totals.append(-scores[1])
            continue
        loss = {
            "linear": -margin,
            "sigmoid": -torch.nn.functional.logsigmoid(beta * margin),
            "ipo": (margin - 1 / (2 * beta)) ** 2,
        }[loss_type]
        totals.append(loss - nll_weight * scores[1])
    expected = sum(totals) / len(totals)
    assert found == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    assert_same_gradient(two_rows, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})


# ------------------------------------------------------------------ how an update may be split


@pytest.mark.parametrize("loss_type", ["sigmoid", "linear"])
def test_gradient_does_not_depend_on_accumulation(make_trainer, plain_pairs, loss_type):
    # Rows 1 and 5 need no correction: the split must not change the divisor either
    rows = [
        {**row, "correction": row["response"] if i in (1, 5) else row["correction"]}
        for i, row in enumerate(plain_pairs)
    ]
    dataset = Dataset.from_list(rows[:8])
    runs = {
        (batch, steps): gradient(
            make_trainer(
                dataset, loss_type=loss_type, per_device_train_batch_size=batch, gradient_accumulation_steps=steps
            )
        )
        for batch, steps in ((8, 1), (1, 8), (2, 4))
    }
    assert_same_gradient(runs[8, 1], runs[1, 8])
    assert_same_gradient(runs[8, 1], runs[2, 4])


def test_unchanged_pairs_do_not_dilute(make_trainer, plain_pairs):
    changed = plain_pairs.select(range(4)).to_list()
    unchanged = [{**row, "correction": row["response"]} for row in plain_pairs.select(range(4, 8)).to_list()]
    alone = gradient(make_trainer(Dataset.from_list(changed), per_device_train_batch_size=4))
    trainer = make_trainer(Dataset.from_list(changed + unchanged), per_device_train_batch_size=8)
    mixed = gradient(trainer)
    assert_same_gradient(mixed, alone)
    assert logged(trainer, "corrections/unchanged") == [0.5]
    assert logged(trainer, "corrections/in_loss") == [0.5]
    kept = gradient(
        make_trainer(
            Dataset.from_list(changed + unchanged),
            per_device_train_batch_size=8,
            unchanged_pairs="keep",
            nll_weight=0.0,
        )
    )
    preference_only = gradient(make_trainer(Dataset.from_list(changed), nll_weight=0.0))
    # As in TRL: they count, and halve the gradient
    assert_same_gradient(kept, {name: value / 2 for name, value in preference_only.items()})


def test_nothing_to_correct_leaves_the_policy_alone(make_trainer, plain_pairs):
    rows = [{**row, "correction": row["response"]} for row in plain_pairs]
    trainer = make_trainer(Dataset.from_list(rows), max_steps=2)
    before = weights(trainer)
    trainer.train()
    assert losses(trainer) == [0.0, 0.0]
    for name, parameter in weights(trainer).items():
        assert torch.equal(parameter, before[name])


# ------------------------------------------------------------------ what is in the loss


def test_labels_hold_the_completions_with_their_end_and_nothing_else(
    make_trainer, plain_pairs, chat_pairs, tiny_model
):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for pairs in (plain_pairs, chat_pairs):
        trainer = make_trainer(pairs, shared_prefix=False)
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
        n = 4
        for kind, rows in (("correction", range(n)), ("response", range(n, 2 * n))):
            for i, row in enumerate(rows):
                in_loss = batch["input_ids"][row][batch["completion_mask"][row].bool()].tolist()
                text = pairs[i][kind] if isinstance(pairs[i][kind], str) else pairs[i][kind][0]["content"]
                assert in_loss.count(tokenizer.eos_token_id) == 1
                assert tokenizer.decode(in_loss, skip_special_tokens=True).strip() == text.strip()
        assert (batch["completion_mask"] <= batch["attention_mask"]).all()
        assert tokenizer.pad_token_id not in batch["input_ids"][batch["attention_mask"].bool()].tolist()


def test_padding_changes_nothing(make_trainer, plain_pairs):
    dataset = plain_pairs.select(range(4))
    plain = gradient(make_trainer(dataset, per_device_train_batch_size=4))
    padded = gradient(make_trainer(dataset, per_device_train_batch_size=4, pad_to_multiple_of=64))
    assert_same_gradient(padded, plain)


def test_a_stored_correction_that_does_not_fit_is_left_out_and_said(make_trainer, plain_pairs, caplog):
    rows = plain_pairs.select(range(8)).to_list()
    rows[2]["correction"] = "a" * 200
    rows[3]["response"] = "b" * 200
    trainer = make_trainer(Dataset.from_list(rows), max_length=100, max_steps=1, per_device_train_batch_size=8)
    assert len(trainer.train_dataset) == 7
    trainer.train()
    assert logged(trainer, "responses/truncated") == [pytest.approx(1 / 7)]
    rows = [{**row, "correction": "a" * 200} for row in rows]
    with pytest.raises(ValueError, match="No row of the train dataset can be used.*Raise `max_length`"):
        make_trainer(Dataset.from_list(rows), max_length=100)


# ------------------------------------------------------------------ shared prefix


@pytest.mark.parametrize("adapter", [None, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)])
@pytest.mark.parametrize("loss_type", [loss_type for loss_type in LOSS_TYPES if loss_type != "sft"])
def test_shared_prefix_gives_gradients_and_logs_of_two_rows(make_trainer, chat_pairs, loss_type, adapter):
    runs = {}
    for shared in (False, True):
        trainer = make_trainer(
            chat_pairs,
            loss_type=loss_type,
            nll_weight=0.3,
            shared_prefix=shared,
            peft_config=adapter,
            gradient_checkpointing=adapter is not None,
            precompute_ref_log_probs=loss_type in ("hinge", "ddpo"),
            reference_free=loss_type == "linear",
            eval_dataset=chat_pairs.select(range(5)),
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
        )
        batches = collect_batches(trainer)
        runs[shared] = gradient(trainer), trainer.state.log_history[0], trainer.evaluate()
        assert all(("shift_labels" in batch) == shared for batch in batches)
    assert_same_gradient(runs[True][0], runs[False][0])
    for i in (1, 2):
        # Before the first step all margins relative to the reference are 0 up to rounding: their sign says nothing
        left_out = {
            key for key in runs[True][i] if "runtime" in key or "per_second" in key or "margins/accuracy" in key
        }
        for key in runs[True][i].keys() - left_out:
            assert runs[True][i][key] == pytest.approx(runs[False][i][key], rel=1e-4, abs=1e-5), key


def test_shared_prefix_evaluates_batches_of_unequal_size_as_two_rows(make_trainer, chat_pairs):
    """Packed rows can be fewer than pairs; the mean over batches must still weigh pairs."""
    metrics = []
    for shared in (False, True):
        trainer = make_trainer(
            chat_pairs, shared_prefix=shared, eval_dataset=chat_pairs.select(range(11)), per_device_eval_batch_size=4
        )
        metrics.append(trainer.evaluate())
    assert metrics[1]["eval_loss"] == pytest.approx(metrics[0]["eval_loss"], rel=1e-5)


def test_shared_prefix_with_qlora_follows_two_rows(make_trainer, chat_pairs):
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    runs = []
    for shared in (False, True):
        trainer = make_trainer(
            chat_pairs,
            shared_prefix=shared,
            quantization_config=quantization,
            peft_config=LoraConfig(r=4, target_modules="all-linear"),
            learning_rate=1e-2,
            max_steps=5,
        )
        trainer.train()
        runs.append(losses(trainer))
    assert runs[1] == pytest.approx(runs[0], rel=2e-2)
    assert runs[0][0] != runs[0][-1]


def test_shared_prefix_on_policy_follows_two_rows(make_trainer, chat_prompts, teacher):
    runs = []
    for shared in (False, True):
        trainer = make_trainer(chat_prompts, teacher=teacher, shared_prefix=shared, max_steps=5)
        trainer.train()
        runs.append(losses(trainer))
    assert runs[0] == pytest.approx(runs[1], rel=1e-4)


def test_shared_prefix_falls_back_with_one_warning_when_its_check_fails(make_trainer, plain_pairs, monkeypatch):
    monkeypatch.setattr(
        "correction_trl.correction_optimization.correction_optimization_trainer.self_check",
        lambda *args: "the numbers differ",
    )
    trainer = make_trainer(plain_pairs, shared_prefix="auto")
    batches = collect_batches(trainer)
    with pytest.warns(UserWarning, match="two rows, because the numbers differ") as caught:
        trainer.train()
    assert sum("two rows" in str(warning.message) for warning in caught) == 1
    assert all("shift_labels" not in batch for batch in batches)
    with pytest.raises(ValueError, match="failed its check on the first batch: the numbers differ"):
        make_trainer(plain_pairs, shared_prefix=True).train()


def test_shared_prefix_is_refused_by_name_where_it_is_not_exact(make_trainer, plain_pairs, monkeypatch):
    monkeypatch.setattr(
        "correction_trl.correction_optimization.correction_optimization_trainer.unsupported_reason",
        lambda *args: "its layers are recurrent",
    )
    with pytest.raises(ValueError, match="not possible for LlamaForCausalLM: its layers are recurrent"):
        make_trainer(plain_pairs, shared_prefix=True)
    assert make_trainer(plain_pairs, shared_prefix="auto").data_collator.shared_prefix is False


# ------------------------------------------------------------------ on-policy


def collect_batches(trainer):
    """Every batch that reaches the loss."""
    batches, compute_loss = [], trainer.compute_loss

    def keep(model, inputs, **kwargs):
        batches.append({key: value.clone() for key, value in inputs.items() if isinstance(value, torch.Tensor)})
        return compute_loss(model, inputs, **kwargs)

    trainer.compute_loss = keep
    return batches


@pytest.mark.parametrize("prompts", ["plain_prompts", "chat_prompts"])
def test_on_policy_trains_the_ids_that_were_sampled(request, make_trainer, tiny_model, prompts, monkeypatch):
    prompts = request.getfixturevalue(prompts)
    sampled, asked = [], []

    def teacher(prompts, responses, answer, **columns):
        asked.extend(zip(prompts, responses, answer, strict=True))
        return answer

    trainer = make_trainer(prompts, teacher=teacher, max_steps=2, gradient_accumulation_steps=2, shared_prefix=False)
    sample = trainer._sample
    monkeypatch.setattr(trainer, "_sample", lambda *args: sampled.extend(result := sample(*args)) or result)
    batches = collect_batches(trainer)
    trainer.train()

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert len(sampled) == len(asked) == 2 * 2 * 4
    trained, corrected = [], []
    for batch in batches:
        half = len(batch["input_ids"]) // 2
        rows = [
            ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
        ]
        corrected += rows[:half]
        trained += rows[half:]
    assert trained == sampled
    for ids, (_, response, _) in zip(sampled, asked, strict=True):
        assert tokenizer.decode(ids, skip_special_tokens=True) == response
    for ids, (_, response, answer) in zip(corrected, asked, strict=True):
        if response != answer:
            assert ids.count(tokenizer.eos_token_id) == 1 and ids[-1] == tokenizer.eos_token_id
            assert tokenizer.decode(ids, skip_special_tokens=True) == answer


def test_samples_come_from_the_current_policy_and_are_never_too_old(make_trainer, plain_prompts, teacher, monkeypatch):
    for max_staleness in (0, 2):
        trainer = make_trainer(
            plain_prompts, teacher=teacher, max_steps=6, max_staleness=max_staleness, gradient_accumulation_steps=2
        )
        steps, sizes = [], []
        sample = trainer._sample

        def keep(prompt_ids, seed, trainer=trainer, steps=steps, sizes=sizes, sample=sample):
            steps.append(trainer.state.global_step)
            sizes.append(len(prompt_ids))
            return sample(prompt_ids, seed)

        monkeypatch.setattr(trainer, "_sample", keep)
        trainer.train()
        period = max_staleness + 1
        assert steps == list(range(0, 6, period))
        assert sizes == [8 * period] * len(steps)
        assert logged(trainer, "staleness") == [step % period for step in range(6)]


def test_training_moves_the_policy_to_the_corrections(make_trainer, plain_prompts, teacher):
    trainer = make_trainer(
        plain_prompts,
        teacher=teacher,
        max_steps=40,
        per_device_train_batch_size=16,
        learning_rate=1e-2,
        logging_steps=5,
    )
    trainer.train()
    log_probs, edits = logged(trainer, "logps/correction"), logged(trainer, "correction_edit_ratio")
    assert log_probs[-1] > log_probs[0] + 2
    assert edits[-1] < edits[0]


def test_missing_and_overlong_corrections_are_counted_and_left_out(make_trainer, plain_prompts):
    def teacher(prompts, responses, **columns):
        return [None, "", "a" * 40, *("ab" for _ in responses[3:])]

    trainer = make_trainer(plain_prompts, teacher=teacher, max_steps=1, per_device_train_batch_size=8)
    batches = collect_batches(trainer)
    trainer.train()
    assert batches[0]["pair_weight"].tolist()[:3] == [0, 0, 0]
    assert logged(trainer, "corrections/missing") == [2 / 8]
    assert logged(trainer, "corrections/truncated") == [1 / 8]
    assert logged(trainer, "corrections/in_loss")[0] <= 5 / 8


def test_truncated_responses_carry_no_end_and_can_be_masked(make_trainer, plain_prompts, teacher, tiny_model):
    eos = AutoTokenizer.from_pretrained(tiny_model).eos_token_id
    for mask in (False, True):
        trainer = make_trainer(
            plain_prompts,
            teacher=teacher,
            max_steps=1,
            per_device_train_batch_size=16,
            max_completion_length=4,
            mask_truncated_completions=mask,
            shared_prefix=False,
            generation_kwargs={"suppress_tokens": [eos]},
        )
        batches = collect_batches(trainer)
        trainer.train()
        responses = batches[0]["input_ids"][16:][batches[0]["completion_mask"][16:].bool()]
        assert eos not in responses.tolist()
        assert logged(trainer, "responses/truncated") == [1.0]
        assert (batches[0]["pair_weight"].sum() == 0) == mask


def test_rewards_are_logged_for_response_and_correction(make_trainer, plain_prompts):
    def length(completions, **columns):
        return [None if i == 0 else float(len(completion)) for i, completion in enumerate(completions)]

    trainer = make_trainer(
        plain_prompts, teacher=lambda responses, **columns: ["abc"] * len(responses), reward_funcs=length, max_steps=1
    )
    trainer.train()
    assert logged(trainer, "rewards/length/correction") == [3.0]
    assert len(logged(trainer, "rewards/length/response")) == 1


def test_evaluation_on_prompts_is_repeatable_and_leaves_training_alone(make_trainer, plain_prompts, teacher):
    runs = []
    for strategy in ("no", "steps"):
        trainer = make_trainer(
            plain_prompts,
            teacher=teacher,
            eval_dataset=plain_prompts.select(range(6)),
            eval_strategy=strategy,
            eval_steps=1,
        )
        trainer.train()
        runs.append(losses(trainer))
    assert runs[0] == runs[1]
    assert trainer.evaluate()["eval_loss"] == trainer.evaluate()["eval_loss"]
    assert "eval_logps/correction" in trainer.evaluate()


def test_vllm_is_used_as_trl_offers_it(make_trainer, plain_prompts, teacher, monkeypatch):
    """vLLM does not run here: its place is taken by an object that records how it is called."""
    calls = []

    class FakeVLLM:
        def __init__(self, **kwargs):
            calls.append(("init", kwargs["mode"], kwargs["max_completion_length"]))

        def sync_weights(self):
            calls.append(("sync",))

        def generate(self, prompts, images, num_generations):
            calls.append(("generate", len(prompts), num_generations))
            return prompts, [[5, 6, 2] for _ in prompts], None, None

    monkeypatch.setattr("correction_trl.correction_optimization.vllm_rollouts.vllm_generation", lambda: FakeVLLM)
    trainer = make_trainer(plain_prompts, teacher=teacher, use_vllm=True, max_steps=2)
    trainer.train()
    assert calls == [("init", "colocate", 12), ("sync",), ("generate", 4, 1), ("sync",), ("generate", 4, 1)]


def test_vllm_missing_is_said_at_the_start(make_trainer, plain_prompts, teacher):
    with pytest.raises(ImportError, match=r"correction-trl\[vllm\]"):
        make_trainer(plain_prompts, teacher=teacher, use_vllm=True)


# ------------------------------------------------------------------ length prior


PRIOR = {"name": "normal", "mean": 5.0, "std": 3.0, "weight": 1.0}


def log_prior(text):
    return -((len(text) + 1 - 5) ** 2) / (2 * 3**2)  # one token a character, EOS; up to a constant


@pytest.mark.parametrize(("form", "weight", "sign"), [("attract", 1.0, 1), ("attract", 0.3, 1), ("product", 2.0, -1)])
def test_length_prior_shifts_the_margin_of_a_bounded_loss(make_trainer, plain_pairs, form, weight, sign):
    """At the reference every margin is 0, so the loss is that of the prior alone: the implicit reward of a response
    is log π - log π_old - w log l, and the margin w (log l(y) - log l(y'))."""
    dataset = plain_pairs.select(range(4))
    prior = {**PRIOR, "form": form, "weight": weight}
    trainer = make_trainer(dataset, loss_type="sigmoid", beta=0.5, nll_weight=0.0, length_prior=prior, max_steps=1)
    trainer.train()
    expected = []
    for row in dataset:
        margin = sign * weight * (log_prior(row["response"]) - log_prior(row["correction"]))
        expected.append(math.log(1 + math.exp(-0.5 * margin)))
    assert losses(trainer)[0] == pytest.approx(sum(expected) / 4, rel=1e-5)


@pytest.mark.parametrize("form", ["attract", "product"])
def test_the_anchor_holds_corrections_as_much_as_the_prior_prefers_their_length(make_trainer, form):
    """At the reference, with the weight that the loss has where none is set (4): -log π(y'|x) counts twice the
    probability that l(y)^w against l(y')^w gives to y'; in the note's own form it is left alone."""
    texts = [("12345", "123"), ("12", "12345678"), ("1234", "1235"), ("1", "12")]
    dataset = Dataset.from_list([{"prompt": "1 + 2 =", "response": y, "correction": z} for y, z in texts])
    prior = {name: value for name, value in PRIOR.items() if name != "weight"} | {"form": form}
    runs = {}
    for nll_weight in (0.0, 0.7):
        settings = {"nll_weight": nll_weight, "length_prior": prior, "max_steps": 1, "learning_rate": 0.0}
        trainer = make_trainer(dataset, **settings)
        batches = collect_batches(trainer)
        trainer.train()
        runs[nll_weight] = losses(trainer)[0]
    log_probs = trainer._pair_log_probs(trainer.model, batches[0], with_entropy=False)[0]
    expected = []
    for i, total in enumerate(log_probs.correction.sum(1).tolist()):
        log_l = [-((n - 5) ** 2) / (2 * 3**2) for n in (log_probs.response_mask[i].sum().item(),
                                                       log_probs.correction_mask[i].sum().item())]  # fmt: skip
        of_response, of_correction = (math.exp(4 * value) for value in log_l)
        weight = 2 * of_correction / (of_response + of_correction) if form == "attract" else 1
        expected.append(-0.7 * weight * total)
    assert runs[0.7] - runs[0.0] == pytest.approx(sum(expected) / 4, rel=1e-5)


def test_cpl_weighs_the_prior_as_it_weighs_the_policy(make_trainer, plain_pairs):
    """The bias λ multiplies the whole of the response's score; against a reference that is the policy, that of the
    prior alone."""
    dataset = plain_pairs.select(range(4))
    constant = math.log(3 * math.sqrt(2 * math.pi))  # with λ below 1 the prior's normaliser does not cancel
    trainer = make_trainer(
        dataset, loss_type="cpl", cpl_bias=0.25, beta=0.5, nll_weight=0.0, length_prior=PRIOR, max_steps=1
    )
    trainer.train()
    expected = []
    for row in dataset:
        rewards = {kind: -(log_prior(row[kind]) - constant) for kind in ("response", "correction")}
        expected.append(math.log(1 + math.exp(-0.5 * (rewards["correction"] - 0.25 * rewards["response"]))))
    assert losses(trainer)[0] == pytest.approx(sum(expected) / 4, rel=1e-5)


def test_length_prior_raises_what_it_likes_under_the_linear_loss(make_trainer, plain_prompts):
    """The gradient without the prior, plus w times that of -(log l(y) - log l(y')) log π(y|x) on the sampled y: the
    policy's own samples are pushed up where they are liked more than the corrections."""
    seen = {}

    def teacher(prompts, responses, **columns):
        seen["pairs"] = list(zip(prompts, responses, strict=True))
        return ["abcdef" for _ in responses]

    runs, weight = {}, 0.5
    for prior in (None, {**PRIOR, "weight": weight}):
        trainer = make_trainer(
            plain_prompts,
            teacher=teacher,
            loss_type="linear",
            nll_weight=0.0,
            reference_free=True,
            length_prior=prior,
            max_steps=1,
            per_device_train_batch_size=32,
            seed=1,
        )
        batches = collect_batches(trainer)
        runs[prior is not None] = gradient(trainer)
    (batch,) = batches
    model = trainer.model  # its weights did not move
    log_probs = trainer._pair_log_probs(model, batch, with_entropy=False)[0]
    n_response, n_correction = log_probs.response_mask.sum(1), log_probs.correction_mask.sum(1)
    log_l = [-((n - 5) ** 2) / (2 * 3**2) for n in (n_response, n_correction)]
    term = -weight * (log_l[0] - log_l[1]) * log_probs.response.sum(1)
    model.zero_grad()
    ((term * batch["pair_weight"]).sum() / batch["pair_weight"].sum()).backward()
    expected = {
        name: runs[False][name] + parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    assert_same_gradient(runs[True], expected, tolerance=1e-4)
    assert len(set(n_response.tolist())) > 2


def test_length_prior_without_a_gradient_is_refused(make_trainer, plain_pairs):
    with pytest.raises(ValueError, match="constant without a gradient"):
        make_trainer(plain_pairs, loss_type="linear", length_prior=PRIOR)


# ------------------------------------------------------------------ adapters, quantization, checkpoints


def test_gradient_checkpointing_changes_nothing(make_trainer, plain_pairs):
    adapter = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    plain = gradient(make_trainer(plain_pairs, peft_config=adapter))
    assert_same_gradient(plain, gradient(make_trainer(plain_pairs, peft_config=adapter, gradient_checkpointing=True)))


@pytest.mark.parametrize("reference_free", [False, True])
def test_qlora_on_policy(make_trainer, plain_prompts, teacher, reference_free):
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    trainer = make_trainer(
        plain_prompts,
        teacher=teacher,
        quantization_config=quantization,
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
        reference_free=reference_free,
        gradient_checkpointing=True,
        eval_dataset=plain_prompts.select(range(4)),
        max_steps=2,
        learning_rate=1e-2,
    )
    assert trainer.ref_model is None
    trainer.evaluate()  # in evaluation mode bitsandbytes would repack the weights and cut the gradient on some CPUs
    before = {name: value for name, value in weights(trainer).items() if "lora" in name}
    trainer.train()
    after = weights(trainer)
    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert changed == {name for name in before if "lora_B" in name} | {name for name in before if "lora_A" in name}
    assert all(math.isfinite(loss) for loss in losses(trainer))


def test_reference_free_loads_no_reference(make_trainer, plain_pairs):
    trainer = make_trainer(plain_pairs, reference_free=True)
    assert trainer.ref_model is None
    trainer.train()
    assert not logged(trainer, "kl")
    assert make_trainer(plain_pairs).ref_model is not None


@pytest.mark.parametrize("max_staleness", [0, 2])
@pytest.mark.parametrize("adapter", [False, True])
def test_resuming_gives_the_run_that_was_not_interrupted(
    make_trainer, plain_prompts, teacher, tmp_path, adapter, max_staleness
):
    def run(name, resume=None):
        trainer = make_trainer(
            plain_prompts,
            teacher=teacher,
            output_dir=str(tmp_path / name),
            max_staleness=max_staleness,
            gradient_accumulation_steps=2,
            save_strategy="steps",
            save_steps=2,
            peft_config=LoraConfig(r=4, target_modules="all-linear") if adapter else None,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run("whole")
    resumed = run("resumed", resume=str(tmp_path / "whole" / "checkpoint-2"))
    assert losses(resumed) == losses(whole)
    assert logged(resumed, "num_tokens") == logged(whole, "num_tokens")
    for name, parameter in weights(whole).items():
        assert torch.equal(parameter, weights(resumed)[name]), name


def test_a_second_call_of_train_samples_anew(make_trainer, plain_prompts, teacher):
    class StopAfterOne(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 1

    callback = StopAfterOne()
    trainer = make_trainer(plain_prompts, teacher=teacher, max_staleness=3, callbacks=[callback])
    trainer.train()
    trainer.remove_callback(callback)
    trainer.train()
    assert logged(trainer, "staleness") == [0, 1, 2, 3]


def test_no_correction_is_asked_for_that_no_update_will_use(make_trainer, plain_prompts):
    asked = []

    def teacher(responses, answer, **columns):
        asked.extend(responses)
        return answer

    make_trainer(plain_prompts, teacher=teacher, max_staleness=3, max_steps=5).train()
    assert len(asked) == 5 * 4


def test_tokens_are_counted_on_after_a_resume_between_two_logs(make_trainer, plain_prompts, teacher, tmp_path):
    def run(name, resume=None):
        trainer = make_trainer(
            plain_prompts,
            teacher=teacher,
            output_dir=str(tmp_path / name),
            max_steps=6,
            logging_steps=4,
            save_strategy="steps",
            save_steps=3,
        )
        trainer.train(resume_from_checkpoint=resume)
        return logged(trainer, "num_tokens")

    assert run("whole") == run("resumed", str(tmp_path / "whole" / "checkpoint-3"))


def test_evaluation_loss_does_not_depend_on_the_batch_size(make_trainer, plain_pairs):
    rows = [
        {**row, "correction": row["response"] if i >= 4 else row["correction"]} for i, row in enumerate(plain_pairs)
    ]
    for evaluation in (Dataset.from_list(rows[:16]), {"some": Dataset.from_list(rows[:16])}):
        name = "eval_some_loss" if isinstance(evaluation, dict) else "eval_loss"
        found = [
            make_trainer(plain_pairs, eval_dataset=evaluation, per_device_eval_batch_size=size).evaluate()[name]
            for size in (1, 4, 16)
        ]
        assert found == pytest.approx([found[0]] * 3, rel=1e-5)


def test_value_functions_see_stored_texts_as_they_are(make_trainer, plain_pairs):
    seen = []

    def keep(completions, doc_ids, values, **columns):
        seen.extend([*completions, *doc_ids, *values])
        return [1.0] * len(completions)

    dataset = plain_pairs.select(range(4)).add_column("doc_ids", ["d"] * 4).add_column("values", ["v"] * 4)
    make_trainer(dataset.add_column("pair_weight", [0.0] * 4), reward_funcs=keep, max_steps=1).train()
    texts = {text for row in plain_pairs.select(range(4)) for text in (row["response"], row["correction"])}
    assert set(seen) == texts | {"d", "v"}


def test_stored_pairs_are_judged_when_their_update_comes_together_and_once(make_trainer, plain_pairs):
    calls = []

    def length(completions, answer, **columns):
        calls.append(list(completions))
        assert len(answer) == len(completions)
        return [float(len(text)) for text in completions]

    dataset = plain_pairs.select(range(12)).add_column("answer", ["a"] * 12)
    trainer = make_trainer(dataset, reward_funcs=length, max_steps=1, eval_dataset=dataset.select(range(3)))
    assert calls == []  # 200,000 pairs and a slow judge: nothing is asked before its pairs are trained on
    trainer.train()
    assert [len(call) for call in calls] == [4, 4]
    for kind in ("response", "correction"):
        assert logged(trainer, f"rewards/length/{kind}") == [sum(map(len, calls[kind == "correction"])) / 4]
    trainer.evaluate()
    assert [len(call) for call in calls[2:]] == [3, 3]
    expected = sum(len(text) for text in dataset["correction"][:3]) / 3
    assert logged(trainer, "eval_rewards/length/correction") == [pytest.approx(expected)]
    trainer.evaluate()
    assert len(calls) == 4  # judged already
    calls.clear()
    make_trainer(dataset, reward_funcs=length, max_steps=9).train()  # three epochs
    assert sorted(text for call in calls for text in call) == sorted([*dataset["response"], *dataset["correction"]])


def test_beside_a_stream_stored_pairs_are_judged_row_by_row(make_trainer, plain_pairs):
    """Batches of a stream cannot wait; what is trained on must be judged all the same."""
    length = lambda completions, **columns: [float(len(text)) for text in completions]  # noqa: E731
    stream = plain_pairs.select(range(4)).to_iterable_dataset()
    trainer = make_trainer(plain_pairs.select(range(4)), reward_funcs=length, max_steps=1, eval_dataset=stream)
    trainer.train()
    trainer.evaluate()
    (mean,) = logged(trainer, "rewards/<lambda>/correction")
    assert (
        mean
        == logged(trainer, "eval_rewards/<lambda>/correction")[0]
        == pytest.approx(sum(map(len, plain_pairs["correction"][:4])) / 4)
    )


def test_a_column_with_the_name_of_one_of_ours_changes_nothing(make_trainer, plain_pairs):
    plain = make_trainer(plain_pairs, max_steps=2)
    plain.train()
    for name, value in (("values", "text"), ("pair_weight", 0.25), ("missing", 1.0), ("edit_ratio", "text")):
        trainer = make_trainer(plain_pairs.add_column(name, [value] * len(plain_pairs)), max_steps=2)
        trainer.train()
        for key in ("loss", "corrections/in_loss", "corrections/missing", "correction_edit_ratio"):
            assert logged(trainer, key) == logged(plain, key), (name, key)


def test_the_check_of_packed_rows_comes_before_an_evaluation_and_waits_for_a_pair_with_an_edit(
    make_trainer, chat_pairs, chat_prompts, monkeypatch
):
    checked = []
    monkeypatch.setattr(
        "correction_trl.correction_optimization.correction_optimization_trainer.self_check",
        lambda model, pairs, pad: checked.append(pairs),
    )
    make_trainer(chat_pairs, eval_dataset=chat_pairs.select(range(4))).evaluate()
    assert len(checked) == 1
    checked.clear()
    calls = []

    def teacher(responses, answer, **columns):
        calls.append(1)
        return responses if len(calls) == 1 else answer

    make_trainer(chat_prompts, teacher=teacher, max_steps=3).train()
    assert len(checked) == 1
    assert all(pair["response_ids"] != pair["correction_ids"] for pair in checked[0])


# ------------------------------------------------------------------ the displacement alarm


def test_falling_corrections_raise_the_alarm_once(make_trainer, plain_pairs):
    trainer = make_trainer(
        plain_pairs,
        loss_type="linear",
        nll_weight=0.0,
        reference_free=True,
        learning_rate=2e-2,
        max_steps=40,
        per_device_train_batch_size=8,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    alarms = [str(w.message) for w in caught if "displacement" in str(w.message)]
    assert len(alarms) == 1
    assert "nll_weight" in alarms[0]


def test_a_healthy_run_raises_no_alarm(make_trainer, plain_pairs):
    trainer = make_trainer(plain_pairs, nll_weight=1.0, max_steps=40, per_device_train_batch_size=8)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*displacement.*")
        trainer.train()


# ------------------------------------------------------------------ bad input, before anything is loaded


def test_bad_input_is_one_sentence(make_trainer, plain_pairs, plain_prompts, teacher):
    no_model = {"model": "a/model/that/is/never/loaded"}
    with pytest.raises(ValueError, match="no `teacher` was given"):
        make_trainer(plain_prompts, **no_model)
    with pytest.raises(ValueError, match="drop the `teacher`"):
        make_trainer(plain_pairs, teacher=teacher, **no_model)
    with pytest.raises(ValueError, match="`train_dataset`, row 3: the correction is empty"):
        rows = plain_pairs.to_list()
        rows[3]["correction"] = ""
        make_trainer(Dataset.from_list(rows), **no_model)
    with pytest.raises(ValueError, match="`precompute_ref_log_probs` needs stored pairs"):
        make_trainer(plain_prompts, teacher=teacher, precompute_ref_log_probs=True, **no_model)
    with pytest.raises(ValueError, match="fewer than one batch of 4"):
        make_trainer(plain_pairs.select(range(2)), dataloader_drop_last=True, **no_model)
    with pytest.raises(ValueError, match="uses no reference"):
        make_trainer(plain_pairs, reference_free=True, ref_model=object(), **no_model)


def test_a_teacher_that_fails_stops_the_run_in_one_sentence(make_trainer, plain_prompts):
    def broken(prompts, responses, **columns):
        return responses[:-1]

    with pytest.raises(RuntimeError, match="Step 0: The teacher 'broken' returned 3 items for 4 responses"):
        make_trainer(plain_prompts, teacher=broken).train()


def test_chat_data_needs_a_chat_template(make_trainer, chat_pairs, chat_prompts, teacher, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = None
    for dataset, extra in ((chat_pairs, {}), (chat_prompts, {"teacher": teacher})):
        with pytest.raises(ValueError, match="no chat template"):
            make_trainer(dataset, processing_class=tokenizer, **extra)


def test_one_row_is_enough(make_trainer, plain_pairs, plain_prompts, teacher):
    make_trainer(plain_pairs.select(range(1)), max_steps=2).train()
    make_trainer(plain_prompts.select(range(1)), teacher=teacher, max_steps=2).train()


# ------------------------------------------------------------------ the part of TRL that is built upon


def test_overridden_methods_of_trl_still_exist():
    expected = {
        "_prepare_dataset": ["self", "dataset", "processing_class", "args", "dataset_name"],
        "_set_signature_columns_if_needed": ["self"],
        "_precompute_ref_logps": ["self", "dataset", "name", "batch_size"],
        "compute_ref_log_probs": ["self", "model", "inputs"],
        "get_batch_samples": ["self", "epoch_iterator", "num_batches", "device"],
        "_prepare_inputs": ["self", "inputs"],
        "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
        "log": ["self", "logs", "start_time"],
        "_save_checkpoint": ["self", "model", "trial"],
        "_load_optimizer_and_scheduler": ["self", "checkpoint"],
    }
    for name, parameters in expected.items():
        assert list(inspect.signature(getattr(DPOTrainer, name)).parameters) == parameters, name
    overridden = {
        name for name in vars(CorrectionOptimizationTrainer) if name in dir(DPOTrainer) and not name.startswith("__")
    }
    documented = set(expected) | {"evaluate", "train", "_tag_names", "_name", "_paper", "loss_is_scaled_for_ga"}
    assert overridden <= documented, overridden - documented


@pytest.mark.parametrize("budget", [1, 150, 10_000])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("shared_prefix", [True, False])
def test_an_update_is_the_same_however_it_is_cut_by_tokens(
    make_trainer, plain_pairs, budget, accumulation, shared_prefix
):
    def train(max_tokens):
        trainer = make_trainer(
            plain_pairs, max_tokens_per_micro_batch=max_tokens, shared_prefix=shared_prefix, optim="sgd",
            learning_rate=1e-3, max_grad_norm=0.0, per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation, eval_dataset=plain_pairs.select(range(6)),
        )  # fmt: skip
        trainer.train()
        trainer.evaluate()
        return trainer

    by_rows, by_tokens = train(None), train(budget)
    # Differences of sums of log-probs around -150, in float32
    for key in ("loss", "logps/response", "kl", "margins/mean", "num_tokens", "eval_loss"):
        expected = [entry[key] for entry in by_rows.state.log_history if key in entry]
        assert [entry[key] for entry in by_tokens.state.log_history if key in entry] == pytest.approx(
            expected, abs=1e-4, rel=1e-5
        ), key
    expected = dict(by_rows.model.named_parameters())
    for name, value in by_tokens.model.named_parameters():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("max_staleness", [0, 2])
def test_a_resumed_on_policy_run_that_is_cut_by_tokens_is_the_run_that_was_not_killed(
    make_trainer, plain_prompts, teacher, tmp_path, max_staleness
):
    def train(checkpoint=None):
        trainer = make_trainer(
            plain_prompts, teacher=teacher, max_tokens_per_micro_batch=100, max_staleness=max_staleness, max_steps=6,
            per_device_train_batch_size=2, gradient_accumulation_steps=2, save_strategy="steps", save_steps=2,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=checkpoint)
        return dict(trainer.model.named_parameters())

    whole = train()
    for name, value in train(str(tmp_path / "run" / "checkpoint-2")).items():
        assert torch.equal(value, whole[name]), name


@pytest.mark.parametrize("on_policy", [True, False])
def test_trying_a_size_leaves_no_trace(make_trainer, plain_pairs, plain_prompts, teacher, on_policy):
    data = {"teacher": teacher} if on_policy else {}
    dataset = plain_prompts if on_policy else plain_pairs
    tried, untried = (make_trainer(dataset, max_tokens_per_micro_batch=200, **data) for _ in range(2))
    sizes = []

    def find(probe, n_rows):
        batch, size = probe(3)
        sizes.append(size)
        tried._probe_step(batch)

    tried._find_max_tokens = find
    tried.train()
    untried.train()
    expected = dict(untried.model.named_parameters())
    for name, value in tried.model.named_parameters():
        assert torch.equal(value, expected[name])
    times = ("train_", "time/")
    logs = [
        [{k: v for k, v in entry.items() if not k.startswith(times)} for entry in trainer.state.log_history]
        for trainer in (tried, untried)
    ]
    assert logs[0] == logs[1]
    assert len(sizes) == 4 and min(sizes) > 0


def test_a_response_is_drawn_by_its_place_among_those_of_all_processes():
    """Two processes with batches of 3 and one with batches of 6, whose last batch is short: the same places."""

    def places(n_processes, process, batches):
        accelerator = SimpleNamespace(num_processes=n_processes, process_index=process)
        trainer = SimpleNamespace(accelerator=accelerator)
        return CorrectionOptimizationTrainer._places(trainer, batches, 6 // n_processes)

    rows = [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]]
    alone = dict(zip([row for batch in rows for row in batch], places(1, 0, rows), strict=True))
    shared = {}
    for process in range(2):
        mine = [batch[3 * process : 3 * process + 3] for batch in rows]
        shared |= dict(zip([row for batch in mine for row in batch], places(2, process, mine), strict=True))
    assert shared == alone == {row: row for row in range(10)}


def test_an_optimizer_of_ones_own_is_used(make_trainer, plain_pairs, tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    settings = {"model": model, "max_steps": 1, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    step = gradient(make_trainer(plain_pairs, **settings))
    trainer = make_trainer(plain_pairs, optimizers=(optimizer, None), **settings)
    trainer.train()
    assert any(step[name].abs().max() > 1e-3 for name in step)
    for name, value in trainer.model.named_parameters():
        torch.testing.assert_close(value.detach(), before[name] - 0.5 * step[name], rtol=1e-4, atol=1e-6)


def test_the_load_balancing_loss_is_trained_on_and_logged(make_trainer, plain_pairs, tiny_tokenizer):
    config = MixtralConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, pad_token_id=0,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    runs = []
    for coefficient in (0.0, 0.5):
        torch.manual_seed(0)
        model = MixtralForCausalLM(config)
        trainer = make_trainer(plain_pairs, model=model, processing_class=tiny_tokenizer, max_steps=1,
                               router_aux_loss_coef=coefficient)  # fmt: skip
        trainer.train()
        runs.append(trainer)
    assert not logged(runs[0], "aux_loss")
    (aux_loss,) = logged(runs[1], "aux_loss")
    assert aux_loss >= 2 * (1 - 1e-3)  # two of four experts, each as often: its least value
    assert losses(runs[1])[0] - losses(runs[0])[0] == pytest.approx(0.5 * aux_loss, rel=1e-4)
