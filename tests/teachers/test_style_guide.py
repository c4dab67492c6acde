"""A style guide corrects in place: articles and capitals fit, nothing is edited twice, and a bad rule is named."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from correction_trl.errors import BadInput
from correction_trl.teachers import StyleGuide
from correction_trl.teachers.arguments import TeacherArguments, make_teacher


RULES = {
    "drop": ["vibrant", "stunning", "Endless", "open", "very", "peaceful"],
    "replace": {"don't": "do not", "color": "colour", "it's": "it is", "great": "excellent", "automobile": "car"},
    "patterns": [{"find": r",(?= (?:and|or)\b)", "replace": ""}],
}


@pytest.fixture(scope="module")
def guide():
    return StyleGuide(RULES)


@pytest.mark.parametrize(
    ("text", "corrected", "n_edits"),
    [
        ("A stunning island.", "An island.", 1),
        ("an open door", "a door", 1),
        ("an endless, stunning island", "an island", 2),
        ("Vibrant markets hum.", "Markets hum.", 1),
        ("The sea is vibrant.", "The sea is vibrant.", 0),
        ("vibrant and loud", "vibrant and loud", 0),
        ("a vibrant", "a vibrant", 0),
        ("Don't go, it’s late.", "Do not go, it is late.", 2),
        ("red, green, and blue", "red, green and blue", 1),
        ("COLOR", "COLOUR", 1),
        ("a very vibrant, peaceful valley", "a valley", 3),
        # Articles go by sound
        ("a vibrant university", "a university", 1),
        ("an endless hour", "an hour", 1),
        ("a vibrant hour", "an hour", 1),
        ("an endless European city", "a European city", 1),
        ("a vibrant FBI agent", "an FBI agent", 1),
        ("an open one-off", "a one-off", 1),
        ("a vibrant unimportant user", "an unimportant user", 1),
        ("a great day", "an excellent day", 1),
        ("an automobile", "a car", 1),
        ("A great day", "An excellent day", 1),
        ("a stunning “island”", "a stunning “island”", 0),
        ("Ein schönes Haus — vibrant, oder?", "Ein schönes Haus — oder?", 1),
        ("", "", 0),
    ],
)
def test_corrections(guide, text, corrected, n_edits):
    assert guide.apply(text) == corrected
    assert guide.n_edits(text) == n_edits
    assert guide.correct([text], [text]) == [corrected]


WORDS = st.sampled_from(
    ["a", "an", "A", "vibrant", "Stunning", "endless", "open", "island", "door", "hour",
     "university", "FBI", "great",
     "don't", "It’s", "color", ",",
     ", and", ".", "and", "is", "é", "\n", "1"]
)  # fmt: skip


@given(st.lists(WORDS, max_size=12).map(" ".join) | st.text(max_size=30))
def test_what_is_corrected_is_clean_and_stays_as_it_is(guide, text):
    corrected = guide.apply(text)
    assert guide.apply(corrected) == corrected and guide.n_edits(corrected) == 0
    assert guide.clean([text]) == [float(corrected == text)]
    assert bool(guide.feedback([text])[0]) == (corrected != text)
    assert not re.search(r"\ba island\b|\ban door\b", corrected) or re.search(r"\ba island\b|\ban door\b", text)


def test_parts_of_a_message_are_one_text(guide):
    assert guide.clean([[{"role": "assistant", "content": [{"type": "text", "text": "A stunning island."}]}]]) == [0.0]


def test_feedback_says_what_to_write(guide):
    said = guide.feedback([[{"role": "assistant", "content": "A stunning color, and it's open."}]])[0]
    assert said == 'leave out "stunning"; write "colour" for "color"; leave out ","; write "it is" for "it\'s"'


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({}, "has no rules; its sections are drop, replace, patterns"),
        ({"dorp": ["a"]}, "has the unknown section 'dorp'"),
        ({"drop": "very"}, "`drop` must be a list"),
        ({"drop": ["very", True]}, "True is not one word; YAML reads yes, no, on and off"),
        ({"drop": ["very much"]}, "'very much' is not one word"),
        ({"replace": {"no": 3}}, "'no' becomes 3, which is no text"),
        ({"replace": {"well": ""}}, "'well' becomes '', which is no text; a word that is to go belongs to `drop`"),
        ({"patterns": [{"find": "a", "replace": None}]}, "pattern 0: {'find': 'a', 'replace': None} is no text"),
        ({"patterns": [{"find": "(", "replace": ""}]}, "pattern 0: '(' -> '' is no regular expression"),
        ({"patterns": [{"find": "a", "replace": r"\2"}]}, "pattern 0: 'a' ->"),
        ({"patterns": [{"find": "a*", "replace": ""}]}, "pattern 0: 'a*' matches an empty text"),
        ({"patterns": [{"find": "a"}]}, "pattern 0: must have `find` and `replace`"),
    ],
    ids=str,
)
def test_a_bad_rule_is_named(rules, message):
    with pytest.raises(BadInput, match=re.escape(message)):
        StyleGuide(rules)


def test_rules_that_never_end():
    with pytest.raises(BadInput, match="never comes to an end: the rule"):
        StyleGuide({"replace": {"grey": "gray", "gray": "grey"}}).apply("a grey sky")
    with pytest.raises(BadInput, match="never comes to an end: the rule 'a'"):  # and grow
        StyleGuide({"patterns": [{"find": "a", "replace": "aaa"}]}).apply("banana " * 100)


def test_a_file_by_name(tmp_path):
    path = tmp_path / "house.yaml"
    path.write_text("drop: [very]\nreplace: {don't: do not}\n", encoding="utf-8")
    teacher = make_teacher(TeacherArguments(teacher="style_guide", teacher_style_guide=str(path)))
    assert teacher.correct(["?"], ["Don't shout at very loud people."]) == ["Do not shout at loud people."]
    with pytest.raises(BadInput, match="`teacher: style_guide` needs `teacher_style_guide`"):
        make_teacher(TeacherArguments(teacher="style_guide"))
    with pytest.raises(BadInput, match="cannot be read"):
        StyleGuide(tmp_path / "gone.yaml")
    path.write_text("drop: [very\n", encoding="utf-8")
    with pytest.raises(BadInput, match="house.yaml is no YAML"):
        StyleGuide(path)
