"""Teachers inside the trainer: latency is hidden, nothing is bought twice, a resumed run is the run itself."""

import threading

import pytest
import torch
from datasets import Dataset
from helpers import make_args
from misbehaving_server import running
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from correction_trl import CorrectionOptimizationConfig, CorrectionOptimizationTrainer
from correction_trl.errors import BadInput, TeacherFailed
from correction_trl.teachers import CorrectionStore, PolicyTeacher, ServerTeacher, StoringTeacher
from correction_trl.teachers.local import reply_prompt_ids


PROMPTS = Dataset.from_list([{"prompt": f"item {i}", "answer": f"right {i}"} for i in range(64)])


@pytest.fixture
def make_trainer(tiny_model, tmp_path):
    def make(teacher, train_dataset=PROMPTS, peft_config=None, callbacks=None, reward_funcs=None, **overrides):
        return CorrectionOptimizationTrainer(
            model=tiny_model,
            args=CorrectionOptimizationConfig(**make_args(tmp_path, **{"max_steps": 5, **overrides})),
            train_dataset=train_dataset,
            teacher=teacher,
            peft_config=peft_config,
            callbacks=callbacks,
            reward_funcs=reward_funcs,
        )

    return make


def server_teacher(url, **options):
    return ServerTeacher(
        "tiny", url, **{"concurrency": 8, "timeout": 5.0, "retries": 2, "first_pause": 0.01, **options}
    )


def answers(prompts, responses, answer, **columns):
    return list(answer)


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


@pytest.mark.parametrize("none", [None, "", " \n", "\u00a0"], ids=ascii)
@pytest.mark.parametrize(
    ("steps", "logging_steps", "stops_after"), [(3, 1, 3), (100, 2, 8), (100, 10, 10), (1, 500, 1), (100, 0.2, 20)]
)
def test_a_teacher_that_corrects_nothing_at_all_stops_the_run(make_trainer, none, steps, logging_steps, stops_after):
    calls = []

    def nobody(responses, **_):
        calls.append(len(responses))
        return [none] * len(responses)

    trainer = make_trainer(nobody, max_steps=steps, logging_steps=logging_steps)  # 4 pairs an update
    with pytest.raises(
        TeacherFailed, match=f"'nobody' has returned no correction, for any of {4 * stops_after} responses"
    ):
        trainer.train()
    assert sum(calls) == 4 * stops_after


def test_a_teacher_that_corrects_little_does_not(make_trainer, caplog):
    answered = iter([False, False, True] + [False] * 30)

    def teacher(responses, answer, **_):
        right = next(answered)
        return [a if right else None for a in answer]

    trainer = make_trainer(teacher, max_steps=12, logging_steps=1)
    trainer.train()
    assert logged(trainer, "corrections/missing") == [1, 1, 0] + [1] * 9
    assert caplog.text.count("has returned no correction, for any of 4 responses: nothing was trained so far.") == 1


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_white_space_and_half_characters_are_counted_and_trained_on(make_trainer, max_staleness):
    def teacher(responses, **_):
        return [" \n", "4\ud800 2", None, "5"] * (len(responses) // 4)

    trainer = make_trainer(teacher, max_steps=2, logging_steps=1, max_staleness=max_staleness)
    with pytest.warns(UserWarning, match="held half of a character"):
        trainer.train()
    assert logged(trainer, "corrections/missing") == logged(trainer, "corrections/in_loss") == [0.5, 0.5]


def test_the_policy_trains_while_the_teacher_corrects_what_comes_next(make_trainer):
    trained = threading.Event()
    calls = []

    class Trained(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            trained.set()

    def teacher(prompts, responses, answer, **columns):
        calls.append(threading.current_thread())
        if len(calls) == 2:  # this answer comes only when the first update is done
            assert trained.wait(60)
        return list(answer)

    trainer = make_trainer(teacher, callbacks=[Trained()], max_staleness=1, overlap_teacher=True)
    trainer.train()
    assert len(calls) == 5 and threading.main_thread() not in calls
    assert logged(trainer, "staleness") == [0, 1, 1, 1, 1]
    assert logged(trainer, "time/waiting_for_teacher")


@pytest.mark.parametrize(
    ("max_staleness", "staleness"), [(1, [0, 1, 1, 1, 1]), (3, [0, 1, 2, 3, 2]), (4, [0, 1, 2, 3, 2])]
)
def test_no_response_is_older_than_it_may_be(make_trainer, max_staleness, staleness):
    trainer = make_trainer(answers, max_staleness=max_staleness, overlap_teacher=True, gradient_accumulation_steps=2)
    trainer.train()
    assert logged(trainer, "staleness") == staleness


def test_with_overlap_no_correction_is_asked_for_that_no_update_will_use(make_trainer):
    asked = []

    def teacher(responses, answer, **columns):
        asked.extend(responses)
        return answer

    make_trainer(teacher, max_staleness=3, overlap_teacher=True, max_steps=7).train()
    assert len(asked) == 7 * 4
    asked.clear()
    # An epoch of 10 batches, whose end no group of two updates can cross
    make_trainer(
        teacher, PROMPTS.select(range(20)), max_staleness=3, overlap_teacher=True, max_steps=-1, num_train_epochs=2
    ).train()
    assert len(asked) == 2 * 20


def test_a_server_is_overlapped_by_default_and_a_function_is_not(make_trainer):
    with running() as server:
        assert make_trainer(server_teacher(server.url), max_staleness=1)._overlaps
        assert not make_trainer(server_teacher(server.url))._overlaps
        assert not make_trainer(server_teacher(server.url), max_staleness=1, overlap_teacher=False)._overlaps
    assert not make_trainer(answers, max_staleness=1)._overlaps
    with pytest.raises(BadInput, match="`overlap_teacher` needs `max_staleness` of at least 1"):
        make_trainer(answers, overlap_teacher=True)


@pytest.mark.parametrize("adapter", [False, True])
def test_with_overlap_a_resumed_run_is_the_run_itself_and_buys_nothing_twice(make_trainer, tmp_path, adapter):
    def run(name, server, resume=None):
        trainer = make_trainer(
            server_teacher(server.url),
            output_dir=str(tmp_path / name),
            max_staleness=3,
            gradient_accumulation_steps=2,
            max_steps=7,
            save_strategy="steps",
            save_steps=3,
            correction_store=str(tmp_path / "corrections.sqlite"),
            peft_config=LoraConfig(r=4, target_modules="all-linear") if adapter else None,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    with running(latency=0.01) as server:
        whole = run("whole", server)
        asked = server.stats()["asked"]
        resumed = run("resumed", server, str(tmp_path / "whole" / "checkpoint-3"))
        assert server.stats()["asked"] == asked
    assert logged(resumed, "loss") == logged(whole, "loss")
    assert logged(resumed, "staleness") == logged(whole, "staleness") == [0, 1, 2, 3, 2, 3, 2]
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, dict(resumed.model.named_parameters())[name]), name


def test_the_same_run_again_asks_nothing_and_another_one_only_what_is_new(make_trainer, tmp_path):
    store = str(tmp_path / "corrections.sqlite")
    with running() as server:
        for _ in range(2):
            make_trainer(server_teacher(server.url), correction_store=store, max_steps=2).train()
        assert set(server.stats()["asked"].values()) == {1}
        with CorrectionStore(store) as found:
            assert len(found) == 8 and all(record.columns["answer"] == record.correction for record in found)


def test_what_fails_costs_its_pair_and_a_teacher_that_is_down_stops_the_run(make_trainer, tmp_path):
    with running(faults="500", share=1.0, stubborn=1.0) as server:
        trainer = make_trainer(
            server_teacher(server.url, retries=0), max_steps=1, correction_store=str(tmp_path / "a")
        )
        with pytest.raises(TeacherFailed, match=r"^Step 0: The teacher's server .* has given no .* \(status 500"):
            trainer.train()
    with running(faults="wrong_format", share=0.4, stubborn=1.0) as server:
        teacher = server_teacher(server.url)
        trainer = make_trainer(teacher, max_steps=4, correction_store=str(tmp_path / "b"), max_staleness=1)
        trainer.train()
    with CorrectionStore(tmp_path / "b") as store:
        counts = store.counts()
    assert counts["unparsable"] > 0 and counts["corrected"] > 0
    assert sum(logged(trainer, "corrections/missing")) * 4 == pytest.approx(counts["unparsable"])
    trainer = make_trainer(teacher, max_steps=4, max_staleness=1)  # the server has gone
    with pytest.raises(TeacherFailed, match="^Step 0: The teacher's server .* has given no answer"):
        trainer.train()


def test_only_corrections_that_the_value_function_prefers_count(make_trainer):
    def teacher(prompts, responses, answer, **columns):
        return [text if i % 2 else "no" for i, text in enumerate(answer)]

    def value(completions, answer, **columns):
        return [float(completion == right) for completion, right in zip(completions, answer, strict=True)]

    trainer = make_trainer(teacher, reward_funcs=value, verify_corrections=True, max_steps=2)
    trainer.train()
    assert logged(trainer, "corrections/missing") == [0.5, 0.5]
    with pytest.raises(BadInput, match="`verify_corrections` needs a value function"):
        make_trainer(teacher, verify_corrections=True)


def replies(model, tokenizer, messages, max_new_tokens=8):
    ids = torch.tensor([reply_prompt_ids(tokenizer, messages)])
    output = model.generate(
        ids, max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=tokenizer.eos_token_id, top_k=None
    )[0, ids.size(1) :]
    ended = tokenizer.eos_token_id in output.tolist()
    return tokenizer.decode(output, skip_special_tokens=True), ended


def test_the_policy_teaches_itself_without_its_adapter_and_with_the_answer_before_it(
    make_trainer, tiny_model, tmp_path
):
    tokenizer, base = AutoTokenizer.from_pretrained(tiny_model), AutoModelForCausalLM.from_pretrained(tiny_model)
    teacher = PolicyTeacher()
    trainer = make_trainer(
        teacher,
        PROMPTS,
        peft_config=LoraConfig(r=8, target_modules="all-linear"),
        correction_store=str(tmp_path / "store"),
        learning_rate=0.1,
        max_steps=4,
    )
    trainer.train()
    with CorrectionStore(tmp_path / "store") as store:
        records = list(store)
    assert len(records) == 16 and {record.teacher.split()[-2:][0] for record in records} == {"without"}
    for record in records:
        assert record.columns == {"answer": record.prompt.replace("item", "right")}
        shown = {"prompt": record.prompt, **record.columns}
        (message,) = teacher.prompt.messages(shown)
        assert record.columns["answer"] in message["content"] and record.prompt in message["content"]
        reply, ended = replies(base, tokenizer, [message])
        assert record.reply == reply and record.status == (
            "unparsable" if not (ended and reply.strip()) else record.status
        )
    assert any(not torch.equal(p, torch.zeros_like(p)) for n, p in trainer.model.named_parameters() if "lora_B" in n)


def test_a_policy_teacher_without_anything_to_show_is_told(make_trainer):
    with pytest.raises(TeacherFailed, match="a row has none of the columns answer, feedback .* no further columns"):
        make_trainer(PolicyTeacher(), PROMPTS.remove_columns("answer")).train()
    with pytest.raises(BadInput, match="only in a CorrectionOptimizationTrainer"):
        PolicyTeacher().correct(["a"], ["b"], answer=["c"])
    with pytest.raises(BadInput, match="cannot correct and be trained at the same time"):
        make_trainer(PolicyTeacher(), max_staleness=1, overlap_teacher=True)


def test_in_full_fine_tuning_the_policy_of_each_step_is_another_teacher(make_trainer, tmp_path):
    trainer = make_trainer(StoringTeacher(PolicyTeacher(show_response=True), tmp_path / "store"), max_steps=2)
    trainer.train()
    with CorrectionStore(tmp_path / "store") as store:
        assert {record.teacher.rpartition(" ")[2] for record in store} == {"0", "1"}
        assert len(store) == 8
