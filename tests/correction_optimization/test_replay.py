"""Replay: the gradient of an update is the mixture that is written down, however the update is split."""

import math

import pytest
import torch
from datasets import Dataset
from helpers import make_args

from correction_trl import CorrectionOptimizationConfig, CorrectionOptimizationTrainer
from correction_trl.errors import BadInput
from correction_trl.policy.replay import Replay


GENERAL = [
    {"prompt": f"say {word}. ", "completion": f"{word} it is" + ", and more of it" * (i % 3)}
    for i, word in enumerate(["one", "two", "three", "four", "five", "six", "seven"])
]


@pytest.fixture(autouse=True)
def no_collection(monkeypatch):
    """Half of what a training of a few updates takes."""
    monkeypatch.setattr("gc.collect", lambda *_: 0)


@pytest.fixture
def make_trainer(tmp_path, tiny_model, plain_pairs):
    def make(train_dataset=None, replay=GENERAL, teacher=None, **settings):
        args = CorrectionOptimizationConfig(**make_args(tmp_path, **{"max_grad_norm": 0.0, **settings}))
        return CorrectionOptimizationTrainer(
            tiny_model,
            args,
            train_dataset=plain_pairs if train_dataset is None else train_dataset,
            teacher=teacher,
            replay_dataset=None if replay is None else Dataset.from_list(replay),
        )

    return make


def gradient(trainer, update=0):
    """Of one update of the trainer's own loop, with an optimizer that does not move."""
    gradients = []

    def keep(optimizer, *args, **kwargs):
        gradients.append({n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None})

    trainer.create_optimizer()
    trainer.optimizer.step = keep.__get__(trainer.optimizer)
    trainer.args.max_steps = update + 1
    trainer.train()
    return gradients[update]


def error(one, other):
    """Relative, of the whole gradient."""
    assert one.keys() == other.keys()
    norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in one.values()))
    assert norm > 1e-3
    return math.sqrt(sum(float(((one[name] - other[name]) ** 2).sum()) for name in one)) / norm


def naive_replay_gradient(trainer, rows, mean):
    """Of the mean over rows of -log pi(completion | prompt), a row at a time, by plain transformers."""
    model, tokenizer = trainer.model, trainer.processing_class
    model.zero_grad()
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        completion = tokenizer(row["completion"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        nll = torch.nn.functional.cross_entropy(logits, torch.tensor(completion), reduction="mean" if mean else "sum")
        (nll / len(rows)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("loss_type", "settings", "weight"),
    [
        ("sigmoid", {"replay_weight": 2.0}, 2.0),
        ("ddpo", {}, 3.0),
        ("sft", {}, 1.0),
        ("linear", {"shared_prefix": True}, 9.6),
    ],
)
def test_the_gradient_of_an_update_is_the_mixture_that_is_written_down(make_trainer, loss_type, settings, weight):
    common = {"loss_type": loss_type, "gradient_accumulation_steps": 2, **settings}
    common = {key: value for key, value in common.items() if key != "replay_weight"}
    pairs = gradient(make_trainer(replay=None, **common))
    trainer = make_trainer(replay_share=0.4, **{**common, **settings})
    rows = trainer._replay.rows_of(0)
    assert len(rows) == round(8 * 0.4 / 0.6) == 5
    mixed = gradient(trainer)
    general = naive_replay_gradient(trainer, [GENERAL[row] for row in rows], mean=loss_type in ("ipo", "ddpo"))
    assert error({name: 0.6 * pairs[name] + 0.4 * weight * general[name] for name in pairs}, mixed) < 1e-5
    assert error(pairs, mixed) > 0.01


def test_its_loss_and_log_probs_are_logged_and_the_loss_is_the_mixture(make_trainer):
    trainer = make_trainer(replay_share=0.25, max_steps=2, learning_rate=0.0)
    trainer.train()
    alone = make_trainer(replay=None, max_steps=2, learning_rate=0.0)
    alone.train()
    for mixed, own in zip(trainer.state.log_history[:2], alone.state.log_history[:2], strict=True):
        assert mixed["replay/loss"] == pytest.approx(-0.36 * mixed["logps/replay"], rel=1e-4)
        assert mixed["loss"] == pytest.approx(0.75 * own["loss"] + 0.25 * mixed["replay/loss"], rel=1e-3)
        assert mixed["num_tokens"] > own["num_tokens"] and mixed["logps/correction"] == own["logps/correction"]
    assert "25% of the rows of each update are general data" in str(trainer.card_notes()["departures"])


@pytest.mark.parametrize("budget", [None, 60])
def test_an_update_is_the_same_however_it_is_split(make_trainer, budget):
    whole = gradient(make_trainer(replay_share=0.5, per_device_train_batch_size=4), update=1)
    split = make_trainer(
        replay_share=0.5,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
        max_tokens_per_micro_batch=budget,
    )
    assert error(whole, gradient(split, update=1)) < 1e-5


def test_nothing_to_correct_leaves_the_replay(make_trainer, plain_pairs):
    unchanged = plain_pairs.map(lambda row: {"correction": row["response"]})
    trainer = make_trainer(unchanged, replay_share=0.5)
    mixed = gradient(trainer)
    general = naive_replay_gradient(trainer, [GENERAL[row] for row in trainer._replay.rows_of(0)], mean=False)
    assert error({name: 0.5 * 0.36 * general[name] for name in general}, mixed) < 1e-5


def test_rows_come_in_one_random_order_after_another_and_two_processes_have_those_of_one(make_trainer):
    encode = make_trainer()._encode
    data = Dataset.from_list(GENERAL)
    one = Replay(data, encode, 0.5, 4, seed=3)
    drawn = [row for step in range(7) for row in one.rows_of(step)]
    for start in range(0, 28, 7):
        assert sorted(drawn[start : start + 7]) == list(range(7))
    assert drawn[:7] != drawn[7:14] and drawn[:7] != list(range(7))
    two = [Replay(data, encode, 0.5, 2, seed=3, n_processes=2, process_index=i) for i in range(2)]
    assert [row for step in range(7) for process in two for row in process.rows_of(step)] == drawn
    assert one.rows_of(5) == Replay(data, encode, 0.5, 4, seed=3).rows_of(5), "a resumed run sees other rows"
    assert Replay(data, encode, 0.01, 1).n_rows == 1


def test_a_resumed_run_is_the_run_that_was_not_killed(make_trainer, plain_prompts, teacher, tmp_path):
    settings = {"replay_share": 0.3, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = make_trainer(plain_prompts, teacher=teacher, **settings)
    whole.train()
    resumed = make_trainer(plain_prompts, teacher=teacher, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "output" / "checkpoint-2"))
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, resumed.model.get_parameter(name)), name
    keys = ("loss", "replay/loss", "logps/replay", "num_tokens")
    last = [[entry[key] for key in keys] for entry in (whole.state.log_history[3], resumed.state.log_history[3])]
    assert last[0] == last[1]


def test_messages_are_trained_as_their_last_reply(make_trainer, chat_pairs):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    more = [*messages, {"role": "user", "content": "and?"}, {"role": "assistant", "content": "bye"}]
    trainer = make_trainer(chat_pairs, replay=[{"messages": messages}, {"messages": more}], max_steps=1)
    decoded = [trainer.processing_class.decode(ids) for ids in trainer._replay.rows["completion_ids"]]
    assert decoded == ["hello<eos>", "bye<eos>"]
    assert trainer.processing_class.decode(trainer._replay.rows[1]["prompt_ids"]).endswith("and?<eos><assistant>")
    trainer.train()
    assert trainer.state.log_history[0]["logps/replay"] < 0


def test_bad_input_is_one_sentence(make_trainer, caplog):
    good = GENERAL[:3]
    for replay, settings, sentence in (
        (None, {"replay_share": 0.1}, "`replay_share=0.1` needs a `replay_dataset`"),
        (good, {"replay_share": 1.0}, r"`replay_share=1.0` must lie in \(0, 1\)"),
        (good, {"replay_weight": 0.0}, "`replay_weight=0.0` must be positive"),
        ([{"text": "x"}], {}, "needs the columns 'prompt' and 'completion', or 'messages'; its columns are text"),
        ([*good, {"prompt": "x", "completion": " "}], {}, "Row 3 of `replay_dataset`: its completion is empty"),
        (
            [*good, {"prompt": None, "completion": "x"}],
            {},
            "Row 3 of `replay_dataset`: its prompt is empty or no text",
        ),
        ([{"messages": [{"role": "user", "content": "x"}]}], {}, "Row 0 .* do not end with the assistant's"),
        ([{"prompt": "x", "completion": "y" * 120}], {"max_length": 90}, "No row of `replay_dataset` fits into"),
    ):
        with pytest.raises(BadInput, match=sentence):
            make_trainer(replay=replay, **settings)
    with caplog.at_level("WARNING"):
        trainer = make_trainer(max_length=60, replay=[*good, {"prompt": "x", "completion": "y" * 90}])
    assert "rows of `replay_dataset` are left out" in caplog.text
    assert len(trainer._replay.rows) == len(good)
