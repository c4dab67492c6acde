from types import SimpleNamespace

import accelerate
import pytest
from datasets import Dataset, Features, IterableDataset, List, Value

from correction_trl.data_utils import (
    PAIRS,
    PROMPTS,
    check_dataset,
    dataset_kind,
    message_text,
    problem_ids,
    share_of_process,
    to_preference_columns,
    with_checked_rows,
)


def test_shares_of_processes_are_everything_once(monkeypatch):
    for n_items in range(7):
        shares = []
        for process in range(3):
            state = SimpleNamespace(num_processes=3, process_index=process)
            monkeypatch.setattr(accelerate, "PartialState", lambda state=state: state)
            shares.append(share_of_process(range(n_items)))
        assert [item for share in shares for item in share] == list(range(n_items))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


PAIR = {"prompt": "1+1=", "response": "3", "correction": "2"}
USER, ASSISTANT = [{"role": "user", "content": "1+1="}], [{"role": "assistant", "content": "2"}]


def pairs(**changed) -> Dataset:
    """Three good pairs, the second of them changed."""
    return Dataset.from_list([PAIR, {**PAIR, **changed}, PAIR])


def stream(*rows) -> IterableDataset:
    return IterableDataset.from_generator(lambda: iter(rows))


def check_fails(dataset, match, teacher=None):
    with pytest.raises(ValueError, match=match) as caught:
        check_dataset(dataset, "train_dataset", teacher)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- good data


def test_stored_pairs_and_prompts_are_told_apart_by_their_columns():
    assert dataset_kind(pairs()) == PAIRS
    assert dataset_kind(pairs().rename_columns({"response": "rejected", "correction": "chosen"})) == PAIRS
    assert dataset_kind(pairs().remove_columns("correction")) == PROMPTS
    assert dataset_kind(Dataset.from_list([{"prompt": "1+1=", "answer": "2"}])) == PROMPTS
    assert dataset_kind(stream(PAIR)) == PAIRS


@pytest.mark.parametrize("fixture", ["plain_pairs", "chat_pairs"])
def test_good_pairs_pass(fixture, request):
    dataset = request.getfixturevalue(fixture)
    check_dataset(dataset, "train_dataset")
    check_dataset(dataset.to_iterable_dataset(), "train_dataset")
    check_dataset(dataset.rename_columns({"response": "rejected", "correction": "chosen"}), "train_dataset")
    check_dataset(dataset.with_format("torch"), "train_dataset")


@pytest.mark.parametrize("fixture", ["plain_prompts", "chat_prompts"])
def test_good_prompts_pass_with_a_teacher(fixture, request, teacher):
    check_dataset(request.getfixturevalue(fixture), "train_dataset", teacher)


def test_a_conversation_with_parts_passes():
    message = {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "what is it?"}]}
    check_dataset(Dataset.from_list([{"prompt": [message]}]), "train_dataset", teacher=len)
    assert message_text([message]) == "what is it?"


def test_message_text_is_that_of_the_last_message():
    assert message_text("plain") == "plain"
    assert message_text([*USER, *ASSISTANT]) == "2"


# ---------------------------------------------------------------- bad data: one sentence, with the row


@pytest.mark.parametrize("column", ["prompt", "response", "correction"])
@pytest.mark.parametrize(
    ("value", "problem"),
    [(None, r"is missing \(None\)"), ("", "is empty"), (" \n\t", "is empty")],
)
def test_a_bad_text_is_named_by_row_and_column(column, value, problem):
    check_fails(pairs(**{column: value}), f"`train_dataset`, row 1: the {column} {problem}; correct or remove the row")


@pytest.mark.parametrize("column", ["rejected", "chosen"])
def test_a_bad_text_under_trls_names_is_named_by_them(column):
    dataset = pairs(response=None, correction=None).rename_columns({"response": "rejected", "correction": "chosen"})
    dataset = dataset.map(lambda row: {name: row[name] or "x" for name in {"rejected", "chosen"} - {column}})
    check_fails(dataset, f"row 1: the {column} is missing")


@pytest.mark.parametrize("column", ["prompt", "response", "correction"])
def test_a_number_is_no_text(column):
    check_fails(
        pairs().remove_columns(column).add_column(column, [7, 8, 9]), f"row 0: the {column} is not text but int"
    )


@pytest.mark.parametrize("column", ["prompt", "response", "correction"])
@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], r"is empty \(a list without messages\)"),
        (None, r"is missing \(None\)"),
        ([{"role": "user", "content": ""}], "has an empty message of the user"),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}],
            "an empty message of the assistant",
        ),
        ([{"role": "user", "content": None}], "has an empty message of the user"),
    ],
)
def test_a_bad_conversation_is_named_by_row_and_column(chat_pairs, column, messages, problem):
    rows = chat_pairs.select(range(3)).to_list()
    rows[2][column] = messages
    check_fails(Dataset.from_list(rows, features=chat_pairs.features), f"row 2: the {column} .*{problem}")


@pytest.mark.parametrize("column", ["response", "correction"])
@pytest.mark.parametrize("role", ["user", "system", "developer", "human"])
def test_a_response_is_the_assistants_alone(chat_pairs, column, role):
    rows = chat_pairs.select(range(3)).to_list()
    of_another, assistant = {"role": role, "content": "a"}, {"role": "assistant", "content": "b"}
    for messages in ([of_another], [of_another, assistant], [assistant, of_another]):
        rows[2][column] = messages
        dataset = Dataset.from_list(rows, features=chat_pairs.features)
        check_fails(dataset, f"row 2: the {column} has a message of the {role}, .* leave the prompt's messages")
        names = {"response": "rejected", "correction": "chosen"}
        check_fails(dataset.rename_columns(names), f"row 2: the {names[column]} has a message of the {role}")
    rows[2][column] = [assistant, {"role": "tool", "content": "4"}, assistant]
    check_dataset(Dataset.from_list(rows, features=chat_pairs.features), "train_dataset")
    # Without a prompt of their own, conversations are whole
    whole = Dataset.from_list([{"chosen": [of_another, assistant], "rejected": [of_another, assistant]}])
    check_dataset(whole, "train_dataset")


def test_a_plain_prompt_has_no_responses_as_messages():
    messages = [{"role": "assistant", "content": "2"}]
    dataset = Dataset.from_list([{"prompt": "1 + 1 =", "response": messages, "correction": messages}])
    check_fails(dataset, "row 0: the response is a list of messages and the prompt is plain text")


def test_messages_without_role_or_content_are_named():
    check_fails(pairs().map(lambda _: {"prompt": [{"text": "hi"}]}), "row 0: the prompt .* lacks 'role' or 'content'")
    check_fails(Dataset.from_list([{**PAIR, "prompt": ["hi"]}]), "row 0: the prompt .* lacks 'role' or 'content'")
    numbers = Dataset.from_list([{**PAIR, "prompt": [{"role": "user", "content": 7}]}])
    check_fails(numbers, "row 0: the prompt has a message that is not text but int")


def test_the_row_is_found_far_down():
    rows = [PAIR] * 2345 + [{**PAIR, "correction": ""}]
    check_fails(Dataset.from_list(rows), "row 2345: the correction is empty")


def test_an_empty_dataset_is_named():
    features = Features({name: Value("string") for name in PAIR})
    check_fails(Dataset.from_dict({name: [] for name in PAIR}, features=features), "`train_dataset` is empty")
    check_fails(Dataset.from_dict({}), "`train_dataset` is empty")
    check_fails(stream(), "`train_dataset` is empty")


def test_a_missing_prompt_column_is_named():
    check_fails(pairs().remove_columns("prompt"), "`train_dataset` has no column 'prompt'; its columns are response")
    check_fails(Dataset.from_list([{"question": "1+1="}]), "no column 'prompt'; its columns are question. It needs")


@pytest.mark.parametrize(
    ("present", "missing"),
    [("response", "correction"), ("correction", "response"), ("rejected", "chosen"), ("chosen", "rejected")],
)
def test_a_pair_with_one_half_is_named_by_the_other(present, missing):
    check_fails(
        Dataset.from_list([{"prompt": "1+1=", present: "3"}]), f"the column '{missing}' is missing .*no `teacher`"
    )


def test_pairs_under_both_names_are_refused():
    dataset = pairs().add_column("rejected", ["4"] * 3).add_column("chosen", ["2"] * 3)
    check_fails(dataset, "both 'response' and 'correction' and TRL's 'rejected' and 'chosen'")


@pytest.mark.parametrize("column", ["prompts", "responses", "completions"])
def test_a_column_that_would_hide_an_argument_of_the_teacher_is_named(column):
    check_fails(Dataset.from_list([{"prompt": "1+1=", column: "2"}]), f"rename the column '{column}'", teacher=len)


def test_prompts_without_a_teacher_are_named():
    check_fails(Dataset.from_list([{"prompt": "1+1="}]), "it has no responses and corrections .* and no `teacher` was")


def test_the_first_row_of_a_stream_is_checked():
    check_fails(stream({**PAIR, "response": ""}, PAIR), "row 0: the response is empty")


@pytest.mark.parametrize("dataset", [[PAIR], {"train": pairs()}, "my/dataset"])
def test_what_is_no_dataset_is_named(dataset):
    with pytest.raises(TypeError, match=f"`train_dataset` must be a `datasets.Dataset`, got {type(dataset).__name__}"):
        check_dataset(dataset, "train_dataset")


def test_the_datasets_name_is_in_the_message():
    with pytest.raises(ValueError, match="^`my evaluation`, row 1"):
        check_dataset(pairs(prompt=""), "my evaluation")


# ---------------------------------------------------------------- TRL's format


def test_pairs_get_trls_names(plain_pairs):
    for dataset in (plain_pairs, plain_pairs.to_iterable_dataset()):
        row = next(iter(to_preference_columns(dataset)))
        original = plain_pairs[0]
        assert row == {
            "prompt": original["prompt"],
            "rejected": original["response"],
            "chosen": original["correction"],
        }


def test_pairs_under_trls_names_stay_as_they_are(plain_pairs):
    dataset = plain_pairs.rename_columns({"response": "rejected", "correction": "chosen"})
    assert to_preference_columns(dataset).to_list() == dataset.to_list()


def test_plain_responses_to_a_conversational_prompt_become_messages():
    rows = [{"prompt": USER, "response": "3", "correction": "2"}, {"prompt": USER, "response": "4", "correction": "5"}]
    dataset = to_preference_columns(Dataset.from_list(rows))
    assert [(row["rejected"][0], row["chosen"][0]) for row in dataset] == [
        ({"role": "assistant", "content": response}, {"role": "assistant", "content": correction})
        for response, correction in (("3", "2"), ("4", "5"))
    ]
    assert dataset["prompt"][0] == USER


def test_one_plain_and_one_conversational_response_become_messages():
    dataset = to_preference_columns(Dataset.from_list([{"prompt": USER, "response": "3", "correction": ASSISTANT}]))
    assert dataset[0]["rejected"] == [{"role": "assistant", "content": "3"}]
    assert dataset[0]["chosen"] == ASSISTANT


def test_conversations_stay_as_they_are(chat_pairs):
    dataset = to_preference_columns(chat_pairs)
    assert dataset["rejected"][:] == chat_pairs["response"][:] and dataset["chosen"][:] == chat_pairs["correction"][:]
    assert dataset.features["chosen"] == List({"content": Value("string"), "role": Value("string")})


@pytest.mark.parametrize(
    ("columns", "ids"),
    [
        ({}, [0, 1]),
        ({"id": ["a", "b"]}, ["a", "b"]),
        ({"id": [7, 8], "task_id": ["x", "y"]}, [7, 8]),
        ({"id": ["a", "a"], "task_id": ["x", "y"]}, ["x", "y"]),
        ({"id": [None, None]}, [0, 1]),
    ],
)
def test_problems_are_called_by_their_id_where_it_tells_them_apart(columns, ids):
    assert problem_ids(columns, 2) == ids


@pytest.mark.parametrize("prompt", ["1+1=", USER], ids=["text", "messages"])
@pytest.mark.parametrize("as_stream", [False, True])
def test_conversations_that_repeat_the_prompt_begin_after_it(prompt, as_stream):
    """The best-known preference format: a prompt as text, and both conversations whole."""
    rows = [{"prompt": prompt, "rejected": [*USER, {"role": "assistant", "content": "3"}], "chosen": USER + ASSISTANT}]
    dataset = stream(*rows) if as_stream else Dataset.from_list(rows)
    check_dataset(dataset, "train_dataset")
    row = next(iter(to_preference_columns(dataset)))
    assert row["prompt"] == USER
    assert row["chosen"] == ASSISTANT
    assert row["rejected"] == [{"role": "assistant", "content": "3"}]


@pytest.mark.parametrize("as_stream", [False, True])
@pytest.mark.parametrize(
    ("rejected", "chosen", "row"),
    [
        ("1+1=3", "1+1=2", ("1+1=", "3", "2")),
        ([*USER, {"role": "assistant", "content": "3"}], USER + ASSISTANT, (USER, None, ASSISTANT)),
    ],
)
def test_without_a_prompt_it_is_what_both_begin_with(as_stream, rejected, chosen, row):
    rows = [{"rejected": rejected, "chosen": chosen}]
    dataset = stream(*rows) if as_stream else Dataset.from_list(rows)
    check_dataset(dataset, "train_dataset")
    found = next(iter(to_preference_columns(dataset)))
    assert (found["prompt"], found["chosen"]) == (row[0], row[2])
    assert found["rejected"] == (row[1] or [{"role": "assistant", "content": "3"}])


@pytest.mark.parametrize(("rejected", "chosen"), [("a b", "c d"), ("a b", "a b"), ("a", "a b"), ("a", USER)])
def test_without_a_common_beginning_the_row_is_named(rejected, chosen):
    good = {"rejected": "1+1=3", "chosen": "1+1=2"}
    with pytest.raises(ValueError, match="Row 1: .* add") as error:
        list(to_preference_columns(stream(good, {"rejected": rejected, "chosen": chosen})))
    assert "\n" not in str(error.value)


def test_the_rows_of_a_stream_are_checked_as_they_come():
    for bad in ({**PAIR, "correction": None}, {**PAIR, "prompt": 7}, {**PAIR, "response": "3\ud800"}, {"prompt": "a"}):
        rows = with_checked_rows(stream(PAIR, PAIR, bad), "data")
        with pytest.raises(ValueError, match="`data`, row 2: the") as error:
            list(rows)
        assert "\n" not in str(error.value)
    assert len(list(with_checked_rows(stream(PAIR, PAIR), "data"))) == 2


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("tools", "no JSON", "`tools` is no JSON"),
        ("tools", '{"type": "function"}', "`tools` is no list of tools"),
        ("chat_template_kwargs", "x", "must hold the names and values"),
        ("chat_template_kwargs", {"tokenize": True}, "holds `tokenize`"),
    ],
)
def test_what_is_no_argument_of_a_template_is_named(column, value, problem):
    check_fails(Dataset.from_list([PAIR | {column: value}]), f"row 0: .*{problem}")
