"""Teachers that need no server: what is asked, how a reply is read, local models, stored corrections, arguments."""

import json

import pytest
import torch
from helpers import build_model, build_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from correction_trl.errors import BadInput, TeacherFailed
from correction_trl.teachers import (
    CorrectionStore,
    FunctionTeacher,
    LocalTeacher,
    PolicyTeacher,
    ServerTeacher,
    StoredTeacher,
    StoringTeacher,
    Teacher,
    TeacherPrompt,
    collect,
)
from correction_trl.teachers.arguments import TeacherArguments, make_teacher
from correction_trl.teachers.collection import improves
from correction_trl.teachers.prompting import without_thinking, written_out


CORRECTED = "<corrected_response>{}</corrected_response>"


# ---------------------------------------------------------------------------------------------- what is asked


def test_the_prompt_shows_the_task_the_response_and_what_the_row_has():
    prompt = TeacherPrompt()
    system, user = prompt.messages({"prompt": "What is 1 + 1?", "response": "It is 3.", "answer": "2", "other": "x"})
    assert system["role"] == "system" and user["role"] == "user"
    assert all(text in user["content"] for text in ("What is 1 + 1?", "It is 3.", "<answer>\n2\n</answer>"))
    assert "feedback" not in user["content"] and "\n\n\n" not in user["content"]
    assert prompt.columns == {"answer", "feedback"}
    chat = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "1?"},
    ]
    assert written_out(chat) == "User: Hi\n\nAssistant: Yes?\n\nUser: 1?"
    assert "User: Hi" in prompt.messages({"prompt": chat, "response": "r"})[1]["content"]


def test_a_template_of_ones_own_has_its_version_columns_and_tag(tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text(
        "{% set reply_tag = 'fixed' %}{% block user %}{{ prompt }}|{{ response }}|{{ hint }}{% endblock %}"
    )
    prompt = TeacherPrompt(file)
    assert prompt.messages({"prompt": "p", "response": "{{ r }}", "hint": "h"}) == [
        {"role": "user", "content": "p|{{ r }}|h"}  # what is filled in is no template
    ]
    assert prompt.columns == {"hint"} and prompt.read("<fixed>a</fixed>", "b") == ("corrected", "a", None)
    version = prompt.version
    file.write_text(file.read_text() + "\n")
    assert TeacherPrompt(file).version != version
    with pytest.raises(BadInput, match="'hint' is undefined; the row has the columns prompt, response"):
        prompt.messages({"prompt": "p", "response": "r"})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{% block user %}", "is no valid template"),
        ("{{ prompt }}", "has no block 'user'"),
        ("{% block user %}{{ prompt.__class__.__mro__ }}{% endblock %}", "cannot be filled in: access to attribute"),
    ],
)
def test_a_template_that_cannot_work_is_told(tmp_path, text, sentence):
    file = tmp_path / "mine.jinja"
    file.write_text(text)
    with pytest.raises(BadInput, match=sentence):
        TeacherPrompt(file).messages({"prompt": "p", "response": "r"})


# ---------------------------------------------------------------------------------------------- how a reply is read


@pytest.mark.parametrize(
    ("reply", "status", "correction"),
    [
        (CORRECTED.format("2"), "corrected", "2"),
        ("The sum is wrong.\n" + CORRECTED.format("\n2\n"), "corrected", "2"),
        (CORRECTED.format(" 3 "), "unchanged", "3"),
        (CORRECTED.format("if a < b:\n    c"), "corrected", "if a < b:\n    c"),
        ("<think>3? <corrected_response>4</corrected_response> No.</think>" + CORRECTED.format("2"), "corrected", "2"),
        ("hm, 2</think>" + CORRECTED.format("2"), "corrected", "2"),
        (CORRECTED.format("2 </think>"), "corrected", "2 </think>"),
        ("2", "unparsable", None),
        ("", "unparsable", None),
        (CORRECTED.format(" \n"), "unparsable", None),
        (CORRECTED.format("2") + " I hope this helps!", "unparsable", None),
        (CORRECTED.format("2") + CORRECTED.format("3"), "unparsable", None),
        ("<corrected_response>2", "unparsable", None),
        ("2</corrected_response><corrected_response>", "unparsable", None),
        ("<think>" + CORRECTED.format("2"), "unparsable", None),
    ],
)
def test_a_reply_is_read_strictly(reply, status, correction):
    found = TeacherPrompt().read(reply, "3")
    assert found[:2] == (status, correction)
    assert (found[2] is None) == (status != "unparsable")


WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>"), min_size=1).filter(str.strip)


@given(response=WORDS, text=WORDS, thoughts=WORDS)
def test_only_white_space_at_the_ends_is_taken_from_the_response(response, text, thoughts):
    status, correction, _ = TeacherPrompt().read(f"<think>{thoughts}</think>{CORRECTED.format(text)}", response)
    assert correction.strip() == text.strip()
    assert (status == "unchanged") == (text.strip() == response.strip()) == (correction == response)
    assert (
        correction[: len(correction) - len(correction.lstrip())] == response[: len(response) - len(response.lstrip())]
    )
    assert without_thinking(f"<think>{thoughts}</think>{text}") == text


# ---------------------------------------------------------------------------------------------- functions


def test_a_function_is_asked_in_batches_and_each_batch_is_kept(tmp_path):
    sizes = []

    def fix(prompts, responses, answer):
        sizes.append(len(responses))
        if len(sizes) == 3:
            raise RuntimeError("the third batch")
        return [None if a == "0" else a for a in answer]

    rows = [{"prompt": f"{i}", "response": "1", "answer": f"{i}"} for i in range(10)]
    with CorrectionStore(tmp_path / "s") as store:
        teacher = FunctionTeacher(fix, batch_size=4)
        with pytest.raises(TeacherFailed, match="raised RuntimeError: the third batch"):
            collect(store, teacher, rows)
        assert sizes == [4, 4, 2] and len(store) == 8
        progress = collect(store, teacher, rows)
        assert sizes[3:] == [3] and progress.found == 7  # what failed, and what it passed on
        assert store.counts()["skipped"] == 1 and store.counts()["unchanged"] == 1
        assert {record.teacher for record in store} == {f"{__name__}:fix"}
        with pytest.raises(BadInput, match="Row 1 has no 'response'; its columns are prompt"):
            collect(store, teacher, [rows[0], {"prompt": "p"}])


def test_another_column_is_another_question_where_the_teacher_sees_it(tmp_path):
    rows = [{"prompt": "p", "response": "r", "answer": a, "id": i} for i, a in enumerate("aab")]
    teacher = ServerTeacher("m")
    assert len(set(teacher.keys_of(rows))) == 2  # its template names `answer`, and not `id`
    assert len(set(FunctionTeacher(len).keys_of(rows))) == 3


def test_a_correction_improves_if_the_value_function_says_so():
    def value(completions, **columns):
        return [None if c == "?" else float(c) for c in completions]

    better = improves(value, ["p"] * 5, ["1", "1", "1", "1", "?"], ["2", "1", "0", None, "2"], {})
    assert better == [True, False, False, None, None]


# ---------------------------------------------------------------------------------------------- local models


@pytest.fixture
def base_template(tmp_path):
    file = tmp_path / "whole_reply.jinja"
    file.write_text("{% block user %}{{ prompt }}{{ response }}{% endblock %}")
    return str(file)


def test_a_local_model_answers_as_it_would_alone_and_is_freed(tiny_model, base_template, tmp_path):
    rows = [{"prompt": "1" * (1 + i % 5), "response": f"{i}"} for i in range(12)]
    loaded = []

    class Watched(LocalTeacher):
        def _load(self):
            loaded.append(super()._load())
            return loaded[-1]

    state = torch.get_rng_state()
    records = []
    for batch_size in (4, 1):
        teacher = Watched(tiny_model, base_template, max_tokens=6, batch_size=batch_size)
        with CorrectionStore(tmp_path / f"{batch_size}") as store:
            collect(store, teacher, rows, max_failed_share=1.0)
            records.append({record.prompt + record.response: record for record in store})
        assert teacher._loaded is None
    assert torch.equal(torch.get_rng_state(), state)
    alone, batched = ({key: r.reply for key, r in each.items()} for each in records[::-1])
    assert alone == batched and len(set(alone.values())) > 1
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), build_tokenizer()
    for key, record in records[0].items():
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": key}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        output = model.generate(ids, max_new_tokens=6, do_sample=False, top_k=None)[0, ids.size(1) :].tolist()
        assert record.tokens_in == ids.size(1) and record.tokens_out == len(output)
        assert record.reply == tokenizer.decode(output, skip_special_tokens=True)
        assert (record.status == "unparsable") == (output[-1] != tokenizer.eos_token_id or not record.reply.strip())


def test_a_local_model_samples_the_same_whoever_asks_and_without_touching_the_random_state(tiny_model, base_template):
    def replies(seed):
        torch.manual_seed(seed)
        teacher, found = LocalTeacher(tiny_model, base_template, temperature=1.0, max_tokens=6), []
        teacher.answer((), found.append)
        from correction_trl.teachers import Item

        teacher.answer([Item("12", f"{i}") for i in range(8)], found.extend)
        return [record.reply for record in found], torch.rand(1)

    (first, a), (second, _) = replies(0), replies(1)
    torch.manual_seed(0)
    assert first == second and len(set(first)) > 1 and a == torch.rand(1)


def test_a_local_model_in_four_bits(base_template, tmp_path):
    tokenizer = build_tokenizer()
    folder = tmp_path / "model"
    build_model(tokenizer, hidden_size=64).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    teacher = LocalTeacher(str(folder), base_template, max_tokens=4, load_in_4bit=True, keep_loaded=True)
    teacher.correct(["1"], ["2"])
    model = teacher._loaded[0]
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    assert teacher.sampling == {"temperature": 0.0, "load_in_4bit": True} and teacher.name == "local:model"
    with pytest.raises(BadInput, match="'.*nowhere' cannot be loaded"):
        LocalTeacher(str(tmp_path / "nowhere")).correct(["1"], ["2"])


# ---------------------------------------------------------------------------------------------- stored corrections


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_stored_corrections_are_found_by_prompt_and_response(tmp_path, plain_pairs, kind):
    pairs, file = plain_pairs.select(range(4)), tmp_path / f"pairs{kind}"
    pairs.to_json(file) if kind == ".jsonl" else pairs.to_parquet(file)
    teacher = StoredTeacher(str(file))
    asked = [*pairs["response"][:3], "something else"]
    assert teacher.correct(pairs["prompt"][:], asked) == [*pairs["correction"][:3], None]


def test_stored_corrections_that_are_blank_or_no_text(tmp_path):
    file = tmp_path / "blank.jsonl"
    rows = [{"prompt": "1", "response": "2", "correction": text} for text in (" \n", "", None)]
    file.write_text("\n".join(map(json.dumps, [*rows, {"prompt": "2", "response": "3", "correction": "4"}])))
    assert StoredTeacher(str(file)).correct(["1", "2"], ["2", "3"]) == [None, "4"]
    for name in ("response", "correction"):
        numbers = tmp_path / f"{name}.jsonl"
        numbers.write_text(json.dumps({"prompt": "1", "response": "2", "correction": "3", name: 5}))
        with pytest.raises(BadInput, match=f"row 0: the {name} is not text, or messages, but int"):
            StoredTeacher(str(numbers))


def test_what_a_teacher_leaves_out_has_no_correction(tmp_path):
    class Lazy(Teacher):
        name = "lazy"

        def answer(self, items, keep):
            keep([self.record(item, "4", "corrected") for item in items if item.prompt == "2 + 2 ="])

    question = ["1 + 1 =", "2 + 2 ="], ["3", "5"]
    assert Lazy().correct(*question) == [None, "4"]
    assert StoringTeacher(Lazy(), tmp_path / "s.sqlite").correct(*question) == [None, "4"]


def test_stored_corrections_of_chats_and_of_prompts_alone(tmp_path, chat_pairs):
    pairs = chat_pairs.select(range(2))
    chat_pairs.select(range(2)).rename_columns({"response": "rejected", "correction": "chosen"}).to_json(
        tmp_path / "a.jsonl"
    )
    texts = [row[-1]["content"] for row in pairs["response"]]
    wanted = [row[-1]["content"] for row in pairs["correction"]]
    assert StoredTeacher(str(tmp_path / "a.jsonl")).correct(pairs["prompt"][:], texts) == wanted
    pairs.remove_columns("response").to_json(tmp_path / "b.jsonl")
    assert StoredTeacher(str(tmp_path / "b.jsonl")).correct(pairs["prompt"][:], ["x", "y"]) == wanted
    pairs.remove_columns("correction").to_json(tmp_path / "c.jsonl")
    with pytest.raises(BadInput, match="needs the columns 'prompt' and 'correction'; it has prompt, response"):
        StoredTeacher(str(tmp_path / "c.jsonl"))


# ---------------------------------------------------------------------------------------------- arguments


def test_arguments_make_the_teacher_that_they_name(tmp_path, plain_pairs):
    extra = json.dumps({"max_tokens": None, "max_completion_tokens": 9})
    server = make_teacher(
        TeacherArguments("server", teacher_model="m", teacher_extra_body=extra, teacher_timeout=5, teacher_top_p=0.9)
    )
    assert isinstance(server, ServerTeacher) and server.timeout == 5 and server.sampling["top_p"] == 0.9
    assert server._fields["max_completion_tokens"] == 9 and "max_tokens" not in server._fields
    local = make_teacher(TeacherArguments("local", teacher_model="m", teacher_load_in_4bit=True))
    assert isinstance(local, LocalTeacher) and local.load_in_4bit
    assert make_teacher(TeacherArguments("policy", teacher_show_response=True)).show_response
    assert isinstance(make_teacher(TeacherArguments("policy")), PolicyTeacher)
    plain_pairs.to_json(tmp_path / "a.jsonl")
    stored = make_teacher(TeacherArguments("stored", teacher_dataset_name=str(tmp_path / "a.jsonl")))
    assert stored.name == "stored:a.jsonl"
    assert make_teacher(TeacherArguments("conftest:teacher")).__name__ == "teacher"
    assert make_teacher(TeacherArguments()) is None is make_teacher(TeacherArguments("human"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"teacher": "server"}, "`teacher: server` needs `teacher_model`"),
        ({"teacher": "stored"}, "`teacher: stored` needs `teacher_dataset_name`"),
        (
            {"teacher": "conftest:teacher", "teacher_model": "m"},
            "`teacher_model` is for `teacher: server or local`, and the teacher is 'conftest:teacher'",
        ),
        ({"teacher_concurrency": 4}, "`teacher_concurrency` is for `teacher: server`, and the teacher is None"),
        ({"teacher": "sever"}, "is not of the form 'package.module:function'"),
        ({"teacher_extra_body": "{"}, "`teacher_extra_body` is no JSON"),
    ],
)
def test_arguments_that_cannot_be_right_are_told(arguments, sentence):
    with pytest.raises(BadInput, match=sentence):
        make_teacher(TeacherArguments(**arguments))
