import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_run import is_png

from correction_trl.reporting import examples_markdown, plot_examples


class TestPictures:
    @pytest.mark.parametrize(
        ("response", "correction"),
        [
            ("0999 is $x_1$", "1000 is $x_2$"),
            ("", "now \ud83d there\x00\t\r\n"),
            ("日本の首都は大阪です", "日本の首都は東京です 🎉👩‍👩‍👧"),
            ("word " * 10_000, "word " * 5_000 + "changed " + "word " * 4_999),
            ("\n" * 500, "unbroken" * 500),
        ],
    )
    def test_examples_of_any_kind_are_drawn(self, tmp_path, response, correction):
        example = {"prompt": "What?", "response": response, "correction": correction}
        assert is_png(plot_examples([example] * 2, tmp_path / "x.png"))

    def test_no_examples(self, tmp_path):
        assert plot_examples([], tmp_path / "x.png") is None


class _Reader(HTMLParser):
    """Reads the fields of an example back: the whole text, and the struck and underlined parts."""

    def __init__(self, markdown):
        super().__init__()
        self.tags, self.fields = [], {}
        self.feed(markdown)
        self.close()
        assert self.tags == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.tags.pop() == tag

    def handle_data(self, data):
        if self.tags[-1:] == ["b"]:
            self.fields[data] = []
        elif self.fields:
            self.fields[list(self.fields)[-1]].append((self.tags[-1], data))

    def text(self, field):
        return "".join(data for _, data in self.fields[field]).strip(" \n")

    def marked(self, field):
        return [data for tag, data in self.fields[field] if tag in ("del", "ins")]


def read_example(response, correction, prompt="p"):
    return _Reader(examples_markdown([{"prompt": prompt, "response": response, "correction": correction}]))


class TestExamplesMarkdown:
    @pytest.mark.parametrize(
        ("response", "correction", "deleted", "inserted"),
        [
            ("It is Sydney.", "It is Canberra.", ["Sydney"], ["Canberra"]),
            ("the old red car", "the new blue car", ["old red"], ["new blue"]),
            ("I recieve it", "I receive it", ["ie"], ["ei"]),
            ("= 0999000", "= 1000000", ["0999"], ["1000"]),
            ("a b", "a very b", [], ["very "]),
            ("首都は大阪です", "首都は東京です", ["大阪"], ["東京"]),
        ],
    )
    def test_edits_are_marked_as_a_reader_would(self, response, correction, deleted, inserted):
        example = read_example(response, correction)
        assert example.text("Response") == response and example.text("Correction") == correction
        assert example.marked("Response") == deleted and example.marked("Correction") == inserted

    @settings(max_examples=60)
    @given(*[st.text(st.sampled_from("ab1 <>&$*_`|é日"), max_size=25).map(str.strip)] * 2)
    def test_texts_come_through_whole_and_only_edits_differ(self, response, correction):
        example = read_example(response, correction)
        assert example.text("Response") == response
        if response == correction:
            assert example.marked("Response") == example.marked("Correction") == []
        else:
            assert example.text("Correction") == correction
            unmarked = [
                "".join(data for tag, data in example.fields[field] if tag == "pre").strip(" \n")
                for field in ("Response", "Correction")
            ]
            assert unmarked[0] == unmarked[1]

    def test_html_in_a_text_cannot_leave_its_box(self):
        markdown = examples_markdown([{"prompt": "</pre># x", "response": "<script>", "correction": "</ins>"}])
        assert markdown.count("</pre>") == 1 and "<script" not in markdown

    def test_long_texts_are_cut_around_the_edit(self):
        words = [f"w{i}" for i in range(10_000)]
        wrong = [*words[:7000], "WRONG", *words[7001:]]
        example = read_example(" ".join(wrong), " ".join(words))
        assert example.marked("Response") == ["WRONG"] and example.marked("Correction") == ["w7000"]
        assert "w6999 WRONG w7001" in example.text("Response")
        assert example.text("Response").startswith("…") and example.text("Response").endswith("…")
        assert len(example.text("Response")) < 300

    def test_edits_without_number_are_counted(self):
        example = read_example("a " * 5000, "a b " * 5000)
        assert re.search(r"… \(\d+ more edits\)$", example.text("Correction"))
        assert len(example.text("Correction")) < 1500

    def test_conversations_unchanged_and_missing_corrections(self):
        turn = [{"role": "assistant", "content": "4"}]
        prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "image"}]}]
        example = read_example(turn, turn, prompt)
        assert example.text("Prompt") == "system: Be brief.\nuser: (image)"
        assert example.text("Response") == "4" and "the same" in example.text("Correction")
        assert read_example("4", None).text("Correction") == "(none)"

    def test_removed_line_break_is_visible(self):
        assert read_example("a\nb", "a b").marked("Response") == ["↵\n"]

    def test_limit(self):
        example = {"prompt": "p", "response": "a", "correction": "b"}
        assert examples_markdown([example] * 9, limit=2).count("Prompt") == 2
