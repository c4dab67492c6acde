"""Whatever a teacher returns: it works, or one sentence says what is wrong."""

import json
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from correction_trl.carry_addition import embedded_path
from correction_trl.errors import BadInput, TeacherFailed
from correction_trl.functions import call_teacher
from correction_trl.teachers import CorrectionStore, Teacher, collect


ANY_TEXT = st.text(st.characters(codec=None), max_size=20)  # half characters too
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=4) | ANY_TEXT,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(ANY_TEXT, inner, max_size=3)
        | st.just(object)
        | st.builds(range, st.integers(0, 4))
        | st.builds(iter, st.lists(inner, max_size=3))
    ),
    max_leaves=8,
)
LIKELY = st.lists(st.none() | ANY_TEXT | st.sampled_from(["3", " ", "\0", "<eos>", "</s>"]), min_size=3, max_size=3)
PROMPTS, RESPONSES = ["1+1=", "2+2=", "3+3="], ["2", "5", "7"]


def teachers(returned):
    """The same answer by a function, an object, an async function, and an exception that holds it."""

    class Object:
        def correct(self, prompts, responses, **columns):
            return returned

    async def later(**_):
        return returned

    def raises(**_):
        raise RuntimeError(returned)

    return [lambda **_: returned, Object(), later, raises]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(embedded_path("tiny-carry-chat"))


@settings(max_examples=150, deadline=None)
@given(returned=ANYTHING | LIKELY)
def test_a_teacher_works_or_is_told_in_one_sentence(tokenizer, returned):
    for teacher in teachers(returned):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                corrections = call_teacher(teacher, PROMPTS, RESPONSES, {})
        except (BadInput, TeacherFailed) as error:
            assert is_a_sentence(str(error))
            continue
        assert len(corrections) == 3
        for correction in corrections:
            assert correction is None or correction.strip()
            tokenizer(correction or "")  # which takes no half characters
            json.dumps(correction).encode()


@settings(max_examples=60, deadline=None)
@given(returned=ANYTHING | LIKELY)
def test_a_collection_keeps_it_or_is_told_in_one_sentence(tmp_path_factory, returned):
    rows = [{"prompt": p, "response": r, "n": 1} for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    with CorrectionStore(tmp_path_factory.mktemp("store") / "s.sqlite") as store:
        for teacher in teachers(returned):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    progress = collect(store, teacher, rows)
            except (BadInput, TeacherFailed) as error:
                assert is_a_sentence(str(error))
                continue
            assert progress.asked + progress.found == 3 and len(store) % 3 == 0


@settings(max_examples=60, deadline=None)
@given(correction=ANY_TEXT, reply=ANY_TEXT, reason=ANY_TEXT)
def test_a_teacher_of_ones_own_can_say_anything(tmp_path_factory, correction, reply, reason):
    class Mine(Teacher):
        name = "mine"

        def answer(self, items, keep):
            keep([self.record(item, correction, "corrected", reply=reply, reason=reason) for item in items])

    rows = [{"prompt": "1+1=", "response": "3"}]
    with CorrectionStore(tmp_path_factory.mktemp("store") / "s.sqlite") as store:
        collect(store, Mine(), rows)
        record = next(iter(store))
    for kept, said in ((record.correction, correction), (record.reply, reply), (record.reason, reason)):
        kept.encode()
        assert kept == said or not is_whole(said)


@settings(max_examples=60, deadline=None)
@given(prompt=ANYTHING, response=ANYTHING, more=ANYTHING)
def test_a_row_is_asked_about_or_is_told_in_one_sentence(tmp_path_factory, prompt, response, more):
    with CorrectionStore(tmp_path_factory.mktemp("store") / "s.sqlite") as store:
        try:
            row = {"prompt": prompt, "response": response, "more": more}
            collect(store, lambda responses, **_: ["3"] * len(responses), [row])
        except BadInput as error:
            assert is_a_sentence(str(error))
        else:
            assert next(iter(store)).correction == "3"


def is_whole(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def is_a_sentence(text: str) -> bool:
    text.encode()
    return "\n" not in text and len(text) < 2000
