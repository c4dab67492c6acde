"""The corrector's trainer: what it is trained on, how its pool grows, and that a killed run ends as the whole one."""

import inspect
import math
import re
import warnings

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import build_model, build_tokenizer, launch, letters
from peft import LoraConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainerCallback
from trl import SFTTrainer

from correction_trl import CorrectorSFTConfig, CorrectorSFTTrainer
from correction_trl.carry_addition import marked_digits, right_digits
from correction_trl.corrector_sft.pair_pool import CORRECTOR, GENERATOR
from correction_trl.errors import BadInput
from correction_trl.policy.corrector_prompt import CorrectorPrompt


def says_value(completions, **columns):
    return [f"it is {value}" for value in letters(completions)]


@pytest.fixture
def make_trainer(tmp_path, tiny_model):
    """A trainer on the tiny model; keyword arguments that are settings go to the config, the others to the trainer."""
    fields = CorrectorSFTConfig.__dataclass_fields__

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
            "max_completion_length": 16,
            "max_length": None,
            "samples_per_prompt": 6,
            "exploration_steps": 2,
            "exploration_samples": 2,
            **{key: value for key, value in kwargs.items() if key in fields},
        }
        others = {"value_function": letters, **{key: value for key, value in kwargs.items() if key not in fields}}
        return CorrectorSFTTrainer(
            others.pop("model", tiny_model), CorrectorSFTConfig(**config), train_dataset=train_dataset, **others
        )

    return make


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def weights(trainer):
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def batches_of(trainer):
    """The batches of a run, as they are drawn."""
    seen, draw = [], trainer.get_batch_samples

    def keep(*args):
        found = draw(*args)
        seen.append(found[0])
        return found

    trainer.get_batch_samples = keep
    trainer.train()
    return seen


# ------------------------------------------------------------------ what is learned


@pytest.mark.parametrize("prompts", ["plain_prompts", "chat_prompts"])
def test_a_row_is_prompt_response_message_and_the_correction_is_its_label(request, make_trainer, prompts):
    dataset = request.getfixturevalue(prompts).select(range(8))
    trainer = make_trainer(dataset, feedback_function=says_value, exploration_steps=0, max_steps=2)
    batch = batches_of(trainer)[0][0]
    decode = trainer.processing_class.decode
    pool = trainer.pool
    for row, label, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        row, label = row[mask.bool()], label[mask.bool()]
        target = label[label != -100].tolist()
        assert row[-len(target) :].tolist() == target and target[-1] == trainer.processing_class.eos_token_id
        text = decode(row[: -len(target)])
        pairs = [
            (y, y_)
            for y in range(len(pool))
            for y_ in range(len(pool))
            if pool.prompt[y] == pool.prompt[y_] and pool.value[y] < pool.value[y_] and pool.ids(y_) == target
        ]
        expected = set()
        for y, _ in pairs:
            prompt = dataset[int(pool.prompt[y])]["prompt"]
            prompt = prompt if isinstance(prompt, str) else prompt[0]["content"]
            response = decode(pool.ids(y))
            if isinstance(dataset[0]["prompt"], str):
                expected.add(f"<bos>{prompt}{response.removesuffix('<eos>')}\n\n{pool.feedback[y]}\n\n")
                expected.add(f"<bos>{prompt}{response}\n\n{pool.feedback[y]}\n\n")
            else:
                closed = response if response.endswith("<eos>") else f"{response}<eos>"
                expected.add(f"<bos><user>{prompt}<eos><assistant>{closed}<user>{pool.feedback[y]}<eos><assistant>")
        # The tiny tokenizer has no line breaks
        assert text in {one.replace("\n", "<unk>") for one in expected}


def test_the_first_loss_is_the_mean_over_the_tokens_of_the_corrections(make_trainer, tiny_model, plain_prompts):
    trainer = make_trainer(plain_prompts.select(range(8)), max_steps=1, gradient_accumulation_steps=2)
    first = batches_of(trainer)[0]
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    total, n_tokens = 0.0, 0
    for batch in first:
        for row, label, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            row, label = row[mask.bool()], label[mask.bool()]
            with torch.no_grad():
                log_probs = model(row[None]).logits[0, :-1].log_softmax(-1)
            for position, token in enumerate(label[1:].tolist()):
                if token != -100:
                    total -= float(log_probs[position, token])
                    n_tokens += 1
    assert logged(trainer, "loss")[0] == pytest.approx(total / n_tokens, abs=1e-4)


def test_it_learns_the_corrections(make_trainer, plain_prompts):
    trainer = make_trainer(
        plain_prompts.select(range(4)), gold_column="answer", value_function=right_digits, exploration_steps=0,
        max_steps=40, alpha=20.0, learning_rate=5e-3, per_device_train_batch_size=8,
    )  # fmt: skip
    trainer.train()
    losses = logged(trainer, "loss")
    assert np.mean(losses[-5:]) < 0.3 * np.mean(losses[:5])


def test_without_the_response_it_is_fine_tuning_on_gold(make_trainer, plain_prompts):
    dataset = plain_prompts.select(range(8))
    trainer = make_trainer(
        dataset, gold_column="answer", value_function=right_digits, samples_per_prompt=0, exploration_steps=0,
        show_response=False, pair_filter="non_decreasing",
    )  # fmt: skip
    rows = {trainer.processing_class.decode(ids[mask.bool()])
            for batches in batches_of(trainer) for batch in batches
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)}  # fmt: skip
    assert rows <= {f"<bos>{row['prompt']}{row['answer']}<eos>" for row in dataset}
    assert len(rows) > 4


@pytest.mark.parametrize("four_bit", [False, True])
def test_an_adapter_alone_is_trained(make_trainer, plain_prompts, four_bit):
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    trainer = make_trainer(
        plain_prompts.select(range(8)), peft_config=LoraConfig(r=2, target_modules="all-linear"), max_steps=4,
        quantization_config=quantization if four_bit else None, gradient_checkpointing=four_bit, restart=True,
        learning_rate=1e-2,
    )  # fmt: skip
    before = weights(trainer)
    trainer.train()
    changed = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "lora_B" in name} | {name for name in before if "lora_A" in name}
    assert {GENERATOR, CORRECTOR} == set(trainer.pool.source)


# ------------------------------------------------------------------ the pool


def test_exploration_corrects_what_is_in_the_pool(make_trainer, plain_prompts):
    trainer = make_trainer(plain_prompts.select(range(8)), max_steps=5, exploration_hypotheses=2)
    trainer.train()
    pool = trainer.pool
    explored = pool.source == CORRECTOR
    assert set(pool.step[explored]) == {2, 4} and set(pool.step[~explored]) == {0}
    hypotheses = pool._corrections[:, 0]
    assert {GENERATOR, CORRECTOR} == set(pool.source[hypotheses[pool.step[pool._corrections[:, 1]] == 4]])
    sizes = logged(trainer, "pool/size")
    assert sizes[0] < sizes[1] < sizes[2] == len(pool)
    gains = pool.value[pool._corrections[:, 1]] - pool.value[hypotheses]
    # 8 prompts, 2 hypotheses each, 2 corrections of each, twice; logged with the update after each
    assert len(gains) == 64
    assert np.mean(logged(trainer, "exploration/value_gain")) == pytest.approx(gains.mean(), abs=1e-6)
    assert logged(trainer, "pool/value/generator")[0] == pytest.approx(pool.value[~explored].mean(), abs=1e-6)


def test_a_corrector_is_asked_with_the_prompt_that_it_is_trained_with(make_trainer, chat_prompts):
    trainer = make_trainer(chat_prompts.select(range(4)), feedback_function=says_value, max_steps=3)
    asked, sampler = [], trainer._sampler
    trainer._sampler = lambda ids, *rows: asked.append(ids) or sampler(ids, *rows)
    trainer.train()
    inputs = asked[-1]  # what came before are the generator's
    pool = trainer.pool
    prompt_ids = trainer._prompt_ids(pool.prompt.tolist())
    expected = [
        trainer.corrector_prompt(ids, pool.ids(y), f"it is {value}")
        for y, (ids, value) in enumerate(zip(prompt_ids, pool.value, strict=True))
    ]
    assert all(ids in expected for ids in inputs) and len(inputs) == 8


def test_each_round_starts_from_the_initial_weights_and_its_own_samples(make_trainer, plain_prompts):
    trainer = make_trainer(
        plain_prompts.select(range(8)), evolving_generator=True, accumulate=False, restart=True, pairing="own",
        exploration_hypotheses=6, max_steps=5, lr_scheduler_type="constant",
    )  # fmt: skip
    initial, at_begin, steps = weights(trainer), {}, {}

    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            at_begin[state.global_step] = weights(trainer)
            steps[state.global_step] = set(trainer.pool.step.tolist())

    trainer.add_callback(Look())
    trainer.train()

    def same(step):
        return all(torch.equal(value, initial[name]) for name, value in at_begin[step].items())

    assert [same(step) for step in range(5)] == [True, False, True, False, True]
    assert [steps[step] for step in range(5)] == [{0}, {0}, {2}, {2}, {4}]


def test_another_model_with_another_tokenizer_answers_first(make_trainer, tmp_path, chat_prompts):
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["ab"])  # not the corrector's vocabulary
    generator = build_model(tokenizer, hidden_size=16, num_attention_heads=2)
    generator.save_pretrained(tmp_path / "generator")
    tokenizer.save_pretrained(tmp_path / "generator")
    for given in ({"generator": str(tmp_path / "generator")},
                  {"generator": generator, "generator_processing_class": tokenizer}):  # fmt: skip
        trainer = make_trainer(chat_prompts.select(range(8)), max_steps=3, **given)
        trainer.train()
        pool = trainer.pool
        for i in range(len(pool)):
            assert max(pool.ids(i)) < len(trainer.processing_class)
            assert trainer.processing_class.decode(pool.ids(i), skip_special_tokens=True) == pool.text[i]
        assert not torch.equal(next(generator.parameters()), next(trainer.model.parameters()))


def test_responses_that_were_sampled_elsewhere(make_trainer):
    dataset = Dataset.from_list(
        [
            {"prompt": f"{i} + 1 = ", "answer": str(i + 1), "generations": [str(i), str(i + 1), str(i + 10)]}
            for i in range(6)
        ]
    )
    trainer = make_trainer(dataset, value_function=right_digits, exploration_steps=0, max_steps=2)
    trainer.train()
    assert set(trainer.pool.text) == {text for row in dataset for text in row["generations"]}
    assert logged(trainer, "pool/value/generator")[0] == pytest.approx(trainer.pool.value.mean())


# ------------------------------------------------------------------ killed and resumed


ROUNDS = {
    "evolving_generator": True,
    "accumulate": False,
    "restart": True,
    "pairing": "own",
    "exploration_hypotheses": 6,
}


@pytest.mark.parametrize("more", [{"max_per_prompt": 4, "feedback_function": says_value}, ROUNDS])
@pytest.mark.slow
def test_a_run_that_is_killed_while_it_explores_ends_as_the_whole_one(make_trainer, tmp_path, plain_prompts, more):
    dataset = plain_prompts.select(range(8))
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, **more}
    whole = make_trainer(dataset, **settings)
    whole.train()

    class Killed(Exception):
        pass

    other = make_trainer(dataset, **settings, output_dir=str(tmp_path / "killed"))
    explore = other._correct_pool

    def killed():
        if other.state.global_step == 4:
            raise Killed
        explore()

    other._correct_pool = killed
    with pytest.raises(Killed):
        other.train()
    last = tmp_path / "killed" / "checkpoint-4"
    resumed = make_trainer(dataset, **settings, output_dir=str(tmp_path / "killed"))
    resumed.train(resume_from_checkpoint=str(last))
    for name, value in weights(whole).items():
        assert torch.equal(value, resumed.model.get_parameter(name)), name
    assert whole.pool.to_dataset().to_list() == resumed.pool.to_dataset().to_list()


def test_a_run_can_start_from_the_pool_of_another(make_trainer, tmp_path, plain_prompts):
    first = make_trainer(plain_prompts.select(range(8)), max_steps=1)
    first.train()
    first.pool.save(tmp_path / "pool.parquet")
    again = make_trainer(plain_prompts.select(range(8)), max_steps=1, initial_pool=str(tmp_path / "pool.parquet"))
    again._sampler = None  # nothing is sampled
    again.train()
    assert logged(again, "loss") == logged(first, "loss")


def test_the_samples_of_the_generator_are_safe_before_the_first_update(make_trainer, tmp_path, plain_prompts):
    trainer = make_trainer(plain_prompts.select(range(8)))
    trainer.training_step = None  # killed at once
    with pytest.raises(TypeError):
        trainer.train()
    again = make_trainer(plain_prompts.select(range(8)), initial_pool=str(tmp_path / "run" / "pair_pool.parquet"))
    assert again.pool.text == trainer.pool.text and len(again.pool)


def test_a_saved_corrector_has_its_instruction(make_trainer, tmp_path, plain_prompts):
    template = tmp_path / "mine.jinja"
    template.write_text("try again{% if feedback %}, {{ feedback }}{% endif %}")
    trainer = make_trainer(plain_prompts.select(range(8)), max_steps=1, message_template=str(template))
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = CorrectorPrompt(trainer.processing_class, [2], False, tmp_path / "saved")
    assert loaded.message("it is wrong") == "try again, it is wrong" and loaded.message(None) == "try again"


SCRIPT = """
import sys, torch
from datasets import load_from_disk
from transformers import TrainerCallback
from correction_trl import CorrectorSFTConfig, CorrectorSFTTrainer
from correction_trl.recipe import end_processes
from helpers import letters

model, data, out = sys.argv[1:4]
args = CorrectorSFTConfig(
    output_dir=out, max_steps=4, per_device_train_batch_size=2, learning_rate=1e-3, logging_steps=1,
    save_strategy="no", report_to="none", bf16=False, use_cpu=True, gradient_checkpointing=False, disable_tqdm=True,
    max_completion_length=16, max_length=None, samples_per_prompt=4, exploration_steps=2,
    lr_scheduler_type="constant",
)

class Save(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2 and state.is_world_process_zero:  # before the exploration
            torch.save(trainer.accelerator.unwrap_model(trainer.model).state_dict(), out + ".pt")

trainer = CorrectorSFTTrainer(
    model, args, train_dataset=load_from_disk(data), value_function=letters, callbacks=[Save()]
)
trainer.train()
trainer.pool.save(f"{out}_{trainer.accelerator.process_index}.parquet")
end_processes(trainer)
"""


@pytest.mark.slow
def test_two_processes_have_one_pool_and_train_as_one(make_trainer, tmp_path, tiny_model, plain_prompts):
    dataset = plain_prompts.select(range(7))
    dataset.save_to_disk(tmp_path / "data")
    (tmp_path / "script.py").write_text(SCRIPT)
    launch([str(tmp_path / "script.py"), tiny_model, str(tmp_path / "data"), str(tmp_path / "out")], 2, tmp_path)
    pools = []
    for process in range(2):
        alone = make_trainer(dataset, exploration_steps=0, samples_per_prompt=4)
        alone.pool.load(tmp_path / f"out_{process}.parquet")
        pools.append(alone.pool.to_dataset().to_list())
    assert pools[0] == pools[1]
    assert {row["prompt"] for row in pools[0]} == set(range(7)) and {row["step"] for row in pools[0]} == {0, 2}
    # One process draws the same pairs from the same pool, up to the exploration
    pool = alone.pool
    pool.keep(pool.step == 0)
    pool.save(tmp_path / "start.parquet")
    one = make_trainer(
        dataset, exploration_steps=0, max_steps=2, initial_pool=str(tmp_path / "start.parquet"),
        lr_scheduler_type="constant",
    )  # fmt: skip
    one.train()
    two = torch.load(tmp_path / "out.pt", weights_only=True)
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-5)


# ------------------------------------------------------------------ bad input


def test_what_cannot_be_judged_is_counted_and_kept(make_trainer, plain_prompts):
    def sometimes(completions, **columns):
        values = letters(completions)
        if any(value == 0.3 for value in values):
            raise ZeroDivisionError("three")
        return [None if value == 0.4 else math.nan if value == 0.5 else value for value in values]

    def no_words(completions, **columns):
        if any(value == 0.6 for value in letters(completions)):
            raise LookupError("six")
        return says_value(completions)

    trainer = make_trainer(
        plain_prompts.select(range(8)), value_function=sometimes, feedback_function=no_words, max_steps=1
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    pool = trainer.pool
    values = dict(zip(pool.text, letters(pool.text), strict=True))
    for text, value, feedback in zip(pool.text, pool.value, pool.feedback, strict=True):
        assert math.isnan(value) == (values[text] in (0.3, 0.4, 0.5))
        assert (feedback is None) == (values[text] == 0.6)
    messages = [str(one.message) for one in caught]
    assert any("got no value; they are kept, and are in no pair. The first:" in message for message in messages)
    assert any("got no feedback; they are kept. The first:" in message for message in messages)
    assert 0 < logged(trainer, "generator/unjudged")[0] < 1
    assert logged(trainer, "pool/unjudged")[0] == pytest.approx(np.isnan(pool.value).mean())


def broken(completions, **columns):
    raise ValueError("no answer column")


def two_lines(completions, **columns):
    return ["x" * 200 for _ in completions]


def always_one(completions, **columns):
    return [1.0] * len(completions)


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"value_function": broken}, "no answer column"),
        ({"value_function": always_one}, "not one pair"),
        ({"feedback_function": two_lines, "max_length": 100}, "`max_length=100` tokens, its feedback included"),
        ({"feedback_function": broken}, "feedback function 'broken'"),
    ],
)
def test_what_stops_a_run_before_it_learned_anything(make_trainer, plain_prompts, kwargs, sentence):
    trainer = make_trainer(plain_prompts.select(range(4)), **kwargs)
    with pytest.raises(BadInput, match=sentence) as stopped:
        trainer.train()
    assert "\n" not in str(stopped.value)
    assert trainer.state.global_step == 0


def test_long_feedback_takes_only_its_own_response_out(make_trainer, plain_prompts):
    def sometimes_long(completions, **columns):
        return ["x" * 200 if value < 0.3 else "short" for value in letters(completions)]

    trainer = make_trainer(
        plain_prompts.select(range(8)), feedback_function=sometimes_long, max_length=120, max_steps=1
    )
    batches = batches_of(trainer)
    pool = trainer.pool
    assert [bool(one) for one in pool.can_be_hypothesis] == [feedback == "short" for feedback in pool.feedback]
    assert 0 < logged(trainer, "pool/too_long")[0] == pytest.approx(np.mean(~pool.can_be_hypothesis))
    assert all(batch["input_ids"].size(1) <= 120 for one in batches for batch in one)


def test_a_gold_response_that_is_too_long_is_no_target(make_trainer):
    dataset = Dataset.from_list([{"prompt": "x ", "answer": "9" * 60}, {"prompt": "y ", "answer": "9"}])
    trainer = make_trainer(
        dataset, gold_column="answer", value_function=right_digits, max_length=140, exploration_steps=0, max_steps=2
    )
    batches = batches_of(trainer)
    assert not trainer.pool.can_be_target[trainer.pool.text.index("9" * 60)]
    assert all(batch["input_ids"].size(1) <= 140 for one in batches for batch in one)


def test_a_round_that_finds_nothing_goes_on_with_the_last_one(make_trainer, plain_prompts):
    calls = []

    def later_all_equal(completions, **columns):
        calls.append(len(completions))
        return letters(completions) if len(calls) <= 2 else [0.5] * len(completions)

    trainer = make_trainer(
        plain_prompts.select(range(8)), value_function=later_all_equal, pairing="own", accumulate=False,
        evolving_generator=True, exploration_hypotheses=6, max_steps=4,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="Step 2: this round of exploration found no pair"):
        trainer.train()
    assert trainer.state.global_step == 4 and set(trainer.pool.step) == {0}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"packing": True}, "`packing` has no meaning"),
        ({"eval_strategy": "steps"}, "`eval_strategy` has no meaning"),
        ({"alpha": -1.0}, "`alpha=-1.0` must not be negative"),
        ({"beta": math.nan}, "`beta=nan`"),
        ({"pairing": "some"}, "'all', 'own'"),
        ({"pairing": "own", "exploration_steps": 0}, "set `exploration_steps`"),
        ({"restart": True, "exploration_steps": 0}, "set `exploration_steps`"),
        ({"evolving_generator": True, "samples_per_prompt": 0}, "set `samples_per_prompt`"),
        ({"show_response": False}, "set `exploration_steps: 0`"),
        ({"temperature": 0.0}, "`temperature=0.0` must be positive"),
        ({"max_per_prompt": 0}, "`max_per_prompt=0` must be at least 1"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path, settings, sentence):
    with pytest.raises(BadInput, match=sentence):
        CorrectorSFTConfig(output_dir=str(tmp_path), bf16=False, **settings)


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"value_function": None}, "`value_function` is required"),
        ({"value_function": "a-model"}, "not a model id"),
        (
            {"value_function": lambda completions, gold, **_: []},
            "columns (answer): missing a required argument: 'gold'",
        ),
        ({"feedback_function": lambda completions, answer: []}, "unexpected keyword argument 'prompts'"),
        ({"gold_column": "gold"}, "`gold_column='gold'` is no column; there are prompt, answer"),
        ({"samples_per_prompt": 0}, "nothing to learn from"),
        ({"max_length": 40}, "`max_length=40`; raise the latter"),
        ({"message_template": "nowhere.jinja"}, "nowhere.jinja cannot be read"),
        ({"message_template": "TEMPLATES/unknown.jinja"}, "one variable, `feedback`"),
        ({"message_template": "TEMPLATES/empty.jinja"}, "is empty; give an instruction"),
        ({"message_template": "TEMPLATES/broken.jinja"}, "is no Jinja template"),
        ({"initial_pool": "nowhere.parquet"}, "nowhere.parquet cannot be read"),
        ({"similarity": "nowhere:f"}, "no module 'nowhere'"),
        ({"generator": "x", "evolving_generator": True}, "drop `generator`"),
    ],
)
def test_what_is_wrong_is_said_before_training(make_trainer, tmp_path, plain_prompts, kwargs, sentence):
    for name, text in (("unknown", "{{ fedback }}"), ("empty", " "), ("broken", "{% if")):
        (tmp_path / f"{name}.jinja").write_text(text)
    if "message_template" in kwargs:
        kwargs = {"message_template": kwargs["message_template"].replace("TEMPLATES", str(tmp_path))}
    with pytest.raises(BadInput, match=re.escape(sentence)):
        make_trainer(plain_prompts.select(range(4)), **kwargs)


def test_the_overridden_methods_of_trl_are_there():
    parameters = {
        "_prepare_dataset": ["dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name"],
        "get_batch_samples": ["epoch_iterator", "num_batches", "device"],
        "_load_optimizer_and_scheduler": ["checkpoint"],
        "save_model": ["output_dir", "_internal_call"],
        "_set_signature_columns_if_needed": [],
    }
    for name, expected in parameters.items():
        assert list(inspect.signature(getattr(SFTTrainer, name)).parameters)[1:] == expected, name
        assert name in vars(CorrectorSFTTrainer), name


def test_the_marks_below_the_digits():
    responses = ["0123", "90123", "01234", "012345"]
    assert marked_digits(responses, ["01234"] * 4) == ["?????.", "?????.", "-----.", "?????."]
    assert marked_digits([[{"role": "assistant", "content": "0193"}]], ["0123"]) == ["--?-."]
    assert right_digits(["0123", "01234", "11234", "012345"], ["01234"] * 4) == [0.8, 1.0, 0.8, 5 / 6]


@pytest.mark.parametrize("budget", [1, 60, 10_000])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_update_is_the_same_however_it_is_cut_by_tokens(make_trainer, plain_prompts, budget, accumulation):
    def train(max_tokens):
        trainer = make_trainer(
            plain_prompts.select(range(8)), max_tokens_per_micro_batch=max_tokens, optim="sgd", learning_rate=0.1,
            max_steps=2, per_device_train_batch_size=6 // accumulation, gradient_accumulation_steps=accumulation,
            exploration_steps=0,
        )  # fmt: skip
        trainer.train()
        return weights(trainer), [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    by_rows, losses_by_rows = train(None)
    by_tokens, losses_by_tokens = train(budget)
    assert losses_by_tokens == pytest.approx(losses_by_rows, abs=1e-5)
    for name, value in by_rows.items():
        torch.testing.assert_close(by_tokens[name], value, atol=1e-6, rtol=1e-5)


def test_trying_a_size_leaves_no_trace(make_trainer, plain_prompts):
    """What `auto` does on a GPU before the first update, forced here."""
    dataset = plain_prompts.select(range(8))
    tried, untried = (make_trainer(dataset, max_steps=3, exploration_steps=0) for _ in range(2))
    sample = tried.pool.sample

    def probe_then_sample(n, rng):
        if tried.state.global_step == 1:
            tried._probe_step(tried._pad([{"input_ids": [5] * 40, "labels": [5] * 40}] * 3))
        return sample(n, rng)

    tried.pool.sample = probe_then_sample
    tried.train()
    untried.train()
    for name, value in weights(untried).items():
        assert torch.equal(weights(tried)[name], value)
    drop = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "time/exploration"}
    logs = [
        [{key: value for key, value in entry.items() if key not in drop} for entry in trainer.state.log_history]
        for trainer in (tried, untried)
    ]
    assert logs[0][:3] == logs[1][:3]


def test_what_checkpoints_and_micro_batches_override_of_trainer_is_there():
    """For all trainers here: `CheckpointTrainerMixin` and `MicroBatchTrainerMixin`."""
    parameters = {
        "_save_checkpoint": ["model", "trial"],
        "train": ["resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
        "training_step": ["model", "inputs", "num_items_in_batch"],
        "floating_point_ops": ["inputs"],
        "_track_num_input_tokens": ["inputs"],
    }
    for name, expected in parameters.items():
        assert list(inspect.signature(getattr(Trainer, name)).parameters)[1:] == expected, name


def test_feedback_on_pairs_sees_the_correction(make_trainer, tiny_tokenizer):
    def becomes(prompts, completions, corrections):
        return [f"becomes {len(y)} then {len(better)}" for y, better in zip(completions, corrections, strict=True)]

    data = Dataset.from_dict({"prompt": ["ab", "cd", "ef"]})
    trainer = make_trainer(data, pair_feedback_function=becomes, feedback_function=says_value, max_steps=2)
    for batches in batches_of(trainer):
        for batch in batches:
            for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
                correction = tiny_tokenizer.decode(labels[labels != -100], skip_special_tokens=True)
                assert f"then {len(correction)}" in tiny_tokenizer.decode(ids)
    assert all(text.startswith("it is") for text in trainer.pool.feedback)  # what explorations are told


def test_feedback_on_pairs_must_take_the_pairs(make_trainer):
    data = Dataset.from_dict({"prompt": ["ab"]})
    with pytest.raises(BadInput, match="`pair_feedback_function` cannot be called .*corrections"):
        make_trainer(data, pair_feedback_function=lambda prompts, completions: [""])
    with pytest.raises(BadInput, match="rename the column 'corrections'"):
        make_trainer(data.add_column("corrections", ["x"]), pair_feedback_function=says_value)


def test_an_optimizer_of_ones_own_is_used(make_trainer, plain_prompts, tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    trainer = make_trainer(plain_prompts, model=model, optimizers=(optimizer, None), max_steps=1)
    trainer.train()
    assert trainer.optimizer.optimizer is optimizer


def test_a_tokenizer_without_a_padding_token_and_a_template_will_do(make_trainer, tiny_model, tmp_path):
    """GPT-2's, the paper's own model for detoxification."""
    tokenizer = build_tokenizer()
    tokenizer.pad_token, tokenizer.chat_template = None, None
    build_model(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    trainer = make_trainer(
        Dataset.from_dict({"prompt": ["ab", "cd"], "gold": ["x", "yz"]}),
        model=str(tmp_path / "base"),
        max_steps=1,
        gold_column="gold",
        value_function=lambda completions, gold, **columns: [
            float(text == right) for text, right in zip(completions, gold, strict=True)
        ],
    )
    trainer.train()
    assert math.isfinite(logged(trainer, "loss")[0])
