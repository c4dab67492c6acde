import dataclasses
import enum
import json
import os
import re
import struct
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard, metadata_eval_result
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from correction_trl.evaluation.metrics import paired_difference, self_correction_metrics, summarize
from correction_trl.reporting import run_report as report
from correction_trl.reporting.run_report import (
    command_line,
    examples_markdown,
    installed_versions,
    plot_before_after,
    plot_edit_distribution,
    plot_examples,
    plot_learning_curves,
    print_summary,
    redact_secrets,
    write_metrics,
    write_model_card,
)


HUB_TOKEN = "hf_" + "aBcD" * 8
API_KEY = "sk-proj-" + "x1y2" * 8
FIRST, SECOND = [1, 0, 1, 0, 0, 1], [1, 1, 1, 0, 0, 1]
BEFORE = {"acc@t1": summarize(FIRST), "logps/response": summarize([-3.0, -2.0, -4.0])}
AFTER = {"acc@t1": summarize(SECOND), "logps/response": summarize([-2.5, -2.0, -3.0])}
DIFFERENCE = {"acc@t1": paired_difference(FIRST, SECOND)}
METHOD = {
    "name": "SCoRe",
    "paper_title": "Training Language Models to Self-Correct via Reinforcement Learning",
    "paper_id": "2409.12917",
    "citation": "@article{kumar2024score,\n  title = {{SCoRe}}\n}",
    "departures": ["The reward is exact match."],
}


def metrics_of(path, **kwargs):
    return write_metrics(path, BEFORE, AFTER, seconds=207.3, config={}, difference=DIFFERENCE, **kwargs)


def is_png(path):
    """Whether a file is a PNG of a size that can be read at 100 %."""
    data = Path(path).read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    return data.startswith(b"\x89PNG") and 300 <= width <= 1400 and 100 <= height <= 3000


def printed(metrics, width=200, **kwargs):
    console = Console(width=width, record=True, file=open(os.devnull, "w"))
    print_summary(metrics, console, **kwargs)
    return console.export_text()


class TestWriteMetrics:
    def test_file_holds_what_the_brief_promises(self, tmp_path):
        written = metrics_of(tmp_path / "run" / "metrics.json", teacher="exact")
        read = json.loads((tmp_path / "run" / "metrics.json").read_text())
        assert read == written
        assert set(read) == {
            "before", "after", "difference", "seconds", "config", "versions", "command", "teacher",
        }  # fmt: skip
        assert read["before"].keys() == read["after"].keys()
        assert read["after"]["acc@t1"] == AFTER["acc@t1"]
        assert {"python", "torch", "trl", "transformers", "correction_trl"} <= read["versions"].keys()
        assert os.listdir(tmp_path / "run") == ["metrics.json"]

    def test_numbers_that_json_lacks_become_null(self, tmp_path):
        metrics = {"value": {"mean": float("nan"), "low": float("-inf"), "high": np.float32("inf"), "n": np.int64(0)}}
        write_metrics(tmp_path / "m.json", metrics, metrics, seconds=1, config={"rates": np.array([0.5, np.nan])})
        text = (tmp_path / "m.json").read_text()
        read = json.loads(text, parse_constant=pytest.fail)
        assert read["before"]["value"] == {"mean": None, "low": None, "high": None, "n": 0}
        assert read["config"]["rates"] == [0.5, None]

    def test_training_arguments_without_their_secrets(self, tmp_path):
        from transformers import TrainingArguments

        arguments = TrainingArguments(output_dir=str(tmp_path), hub_token=HUB_TOKEN, use_cpu=True, learning_rate=3e-5)
        write_metrics(tmp_path / "m.json", BEFORE, AFTER, seconds=1, config={"training": arguments})
        text = (tmp_path / "m.json").read_text()
        config = json.loads(text)["config"]["training"]
        assert HUB_TOKEN not in text and "hub_token" not in config and "push_to_hub_token" not in config
        assert config["learning_rate"] == 3e-5
        assert config["lr_scheduler_type"] == "linear"

    def test_secrets_below_the_first_level(self, tmp_path):
        class Strategy(enum.Enum):
            END = "end"

        @dataclasses.dataclass
        class Teacher:
            url: str = "https://user:pa55word@example.org/v1?api_key=abc123&n=2"
            api_key: str = "any string"
            model_init_kwargs: dict = dataclasses.field(default_factory=lambda: {"token": "x", "dtype": "bfloat16"})
            eos_token: str = "<|im_end|>"
            max_tokens: int = 512
            modules: set = dataclasses.field(default_factory=lambda: {"q_proj", "k_proj"})
            strategy: Strategy = Strategy.END
            cache: Path = Path("cache")
            note: str = f"use {API_KEY}"

        write_metrics(tmp_path / "m.json", BEFORE, AFTER, seconds=1, config=Teacher())
        assert json.loads((tmp_path / "m.json").read_text())["config"] == {
            "url": "https://<redacted>@example.org/v1?api_key=<redacted>&n=2",
            "model_init_kwargs": {"dtype": "bfloat16"},
            "eos_token": "<|im_end|>",
            "max_tokens": 512,
            "modules": ["k_proj", "q_proj"],
            "strategy": "end",
            "cache": "cache",
            "note": "use <redacted>",
        }

    def test_different_metrics_before_and_after(self, tmp_path):
        after = {"acc@t1": AFTER["acc@t1"], "acc@t2": AFTER["acc@t1"]}
        with pytest.raises(ValueError, match=r"only before: \['logps/response'\], only after: \['acc@t2'\]"):
            write_metrics(tmp_path / "m.json", BEFORE, after, seconds=1, config={})
        assert not (tmp_path / "m.json").exists()

    def test_other_mistakes_are_named(self, tmp_path):
        with pytest.raises(ValueError, match=r"`difference` holds \['acc@t2'\]"):
            write_metrics(tmp_path / "m", BEFORE, AFTER, 1, {}, difference={"acc@t2": DIFFERENCE["acc@t1"]})
        with pytest.raises(ValueError, match=r"`after\['loss'\]` is not a summary .*metrics.summarize"):
            write_metrics(tmp_path / "m", {"loss": AFTER["acc@t1"]}, {"loss": 0.5}, 1, {})
        with pytest.raises(ValueError, match=r"already has the entries \['command'\]"):
            write_metrics(tmp_path / "m", BEFORE, AFTER, 1, {}, command="x")

    def test_a_failed_write_leaves_the_old_file(self, tmp_path, monkeypatch):
        metrics_of(tmp_path / "m.json")
        old = (tmp_path / "m.json").read_bytes()

        def full_disk(descriptor):
            raise OSError("No space left on device")

        monkeypatch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError):
            metrics_of(tmp_path / "m.json", teacher="exact")
        assert (tmp_path / "m.json").read_bytes() == old
        assert os.listdir(tmp_path) == ["m.json"]


class TestSecrets:
    @pytest.mark.parametrize(
        ("argv", "expected"),
        [
            (["r.py", "--hub_token", "abc", "--seed", "1"], "r.py --hub_token <redacted> --seed 1"),
            (["r.py", "--hub-token=abc", "--seed=1"], "r.py --hub-token=<redacted> --seed=1"),
            (["r.py", "--teacher_api_key", "-abc", "x"], "r.py --teacher_api_key <redacted> x"),
            (["r.py", "--note", f"{HUB_TOKEN} {API_KEY}"], "r.py --note '<redacted> <redacted>'"),
            (["r.py", "--eos_token", "<eos>", "--max_tokens", "5"], "r.py --eos_token '<eos>' --max_tokens 5"),
            (["r.py", "--token", "--seed", "1"], "r.py --token --seed 1"),
            (["r.py", "a b"], "r.py 'a b'"),
        ],
    )
    def test_command_line(self, argv, expected):
        assert command_line(argv) == expected

    @pytest.mark.parametrize(
        "secret",
        [HUB_TOKEN, API_KEY, "ghp_" + "a1" * 18, "AKIA" + "A1B2" * 4, "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2ln"],
    )
    def test_values_are_recognised_anywhere(self, secret):
        assert redact_secrets(f"key:{secret}, and more") == "key:<redacted>, and more"

    @pytest.mark.parametrize("text", ["hf_jobs", "sk-learn", "task-based", "12:30 at 5 @home", "https://a.b/c?n=1"])
    def test_ordinary_text_is_left_alone(self, text):
        assert redact_secrets(text) == text

    def test_versions_name_only_what_is_installed(self, monkeypatch):
        real = report.importlib.metadata.version

        def version(package):
            if package == "bitsandbytes":
                raise report.importlib.metadata.PackageNotFoundError(package)
            return real(package)

        monkeypatch.setattr(report.importlib.metadata, "version", version)
        assert "bitsandbytes" not in installed_versions()


class TestPrintSummary:
    def test_units(self, tmp_path):
        text = printed(metrics_of(tmp_path / "m.json"), files=[tmp_path / "m.json"])
        accuracy = next(line for line in text.splitlines() if "acc@t1" in line)
        assert re.search(r"50\.0% \[\d+\.\d, \d+\.\d\]", accuracy)
        assert re.search(r"66\.7% \[", accuracy)
        assert re.search(r"\+16\.7 pp \[\+0\.0, \+50\.0\]", accuracy)
        log_prob = next(line for line in text.splitlines() if "logps/response (nats)" in line)
        assert "-3.00 [" in log_prob and log_prob.split()[-2:] == ["-", "3"]
        assert "3 min 27 s" in text
        assert str(tmp_path / "m.json") in text.splitlines()[-1]

    def test_counts_that_differ_are_both_shown(self, tmp_path):
        before, after = self_correction_metrics(FIRST, FIRST), self_correction_metrics(SECOND, SECOND)
        metrics = write_metrics(tmp_path / "m.json", before, after, seconds=5000, config={})
        text = printed(metrics)
        assert next(line for line in text.splitlines() if "fix_rate" in line).split()[-1] == "3/2"
        assert "1 h 23 min" in text

    def test_file_read_back_with_nulls(self, tmp_path):
        unjudged = {"acc@t1": summarize([None])}
        write_metrics(tmp_path / "m.json", unjudged, {"acc@t1": summarize([1])}, seconds=1, config={})
        text = printed(json.loads((tmp_path / "m.json").read_text()))
        assert re.search(r"acc@t1 +- +100\.0% +- +0/1", text)

    @pytest.mark.parametrize("width", [60, 80, 100])
    def test_narrow_terminal_breaks_no_number(self, tmp_path, width):
        text = printed(metrics_of(tmp_path / "m.json"), width=width)
        assert max(map(len, text.splitlines())) <= width
        for number in ("50.0%", "66.7%", "+16.7 pp", "[+0.0, +50.0]", "-3.00"):
            assert number in text

    def test_log_file_gets_whole_lines(self, tmp_path, capsys):
        print_summary(metrics_of(tmp_path / "m.json"), files=[tmp_path / ("long" * 60)])
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert re.search(r"acc@t1 +50\.0% \[.*\] +66\.7% \[.*\] +\+16\.7 pp \[.*\] +6", out)
        assert f"Wrote {tmp_path / ('long' * 60)}" in out.splitlines()


class TestPictures:
    HISTORY = [
        {"step": step, "epoch": step / 10, "loss": 1 / step, "logps/response": -step, "logps/correction": -2.0}
        for step in range(1, 11)
    ]

    def drawn(self, monkeypatch):
        """The figures that were saved."""
        figures = []
        save = report._save
        monkeypatch.setattr(report, "_save", lambda figure, path: (figures.append(figure), save(figure, path))[1])
        return figures

    def test_learning_curves_show_what_was_logged(self, tmp_path, monkeypatch):
        figures = self.drawn(monkeypatch)
        history = [*self.HISTORY, {"step": 10, "eval_loss": 0.2}, {"step": 10, "train_loss": 0.3, "train_runtime": 9}]
        assert is_png(plot_learning_curves(history, tmp_path / "new" / "curves.png"))
        loss, log_probs = figures[0].axes
        assert (loss.get_title(loc="left"), log_probs.get_title(loc="left")) == ("Loss", "Log-probability")
        assert loss.get_xlabel() == "optimizer step" and log_probs.get_ylabel() == "nats per sequence"
        assert list(loss.lines[0].get_ydata()) == [1 / step for step in range(1, 11)]
        assert list(loss.lines[1].get_xdata()) == [10] and list(loss.lines[1].get_ydata()) == [0.2]
        assert [text.get_text() for text in log_probs.get_legend().texts] == ["response y", "correction y'"]

    def test_learning_curves_with_own_panels_and_gaps(self, tmp_path, monkeypatch):
        figures = self.drawn(monkeypatch)
        history = [{"step": 1, "share": 0.5}, {"step": 2, "share": float("nan")}, {"step": 3, "share": 0.25}]
        assert is_png(plot_learning_curves(history, tmp_path / "c.png", [("Share", "share (%)", {"share": "s"})]))
        assert list(figures[0].axes[0].lines[0].get_ydata()) == [50, 25]

    @pytest.mark.parametrize("history", [[], [{"step": 3, "train_loss": 0.5, "train_runtime": 1.0}]])
    def test_a_run_too_short_to_be_logged_does_not_fail(self, tmp_path, caplog, history):
        assert plot_learning_curves(history, tmp_path / "c.png") is None
        assert "logging_steps" in caplog.text
        assert not (tmp_path / "c.png").exists()

    def test_long_runs_are_smoothed_without_lag(self, tmp_path, monkeypatch):
        figures = self.drawn(monkeypatch)
        history = [{"step": step, "loss": float(step)} for step in range(1, 201)]
        plot_learning_curves(history, tmp_path / "c.png")
        smooth = figures[0].axes[0].lines[1]
        np.testing.assert_allclose(smooth.get_xdata(), smooth.get_ydata(), atol=0.51)

    def test_before_after_shows_values_and_intervals(self, tmp_path, monkeypatch):
        figures = self.drawn(monkeypatch)
        labels = {"acc@t1": "right answers"}
        assert is_png(plot_before_after(BEFORE, AFTER, tmp_path / "b.png", labels=labels))
        accuracy, log_probs = figures[0].axes
        assert [label.get_text() for label in accuracy.get_yticklabels()] == ["right answers"]
        assert accuracy.get_xlabel() == "problems answered right (%)" and log_probs.get_xlabel() == "nats"
        assert [text.get_text() for text in accuracy.texts] == ["50.0%  →  66.7%"]
        interval, point = accuracy.lines[2], accuracy.lines[3]
        assert list(interval.get_xdata()) == [100 * AFTER["acc@t1"]["low"], 100 * AFTER["acc@t1"]["high"]]
        assert list(point.get_xdata()) == [100 * AFTER["acc@t1"]["mean"]]

    def test_before_after_without_values_or_keys(self, tmp_path):
        nothing = {"acc@t1": summarize([])}
        assert plot_before_after(nothing, nothing, tmp_path / "b.png") is None
        with pytest.raises(ValueError, match=r"Cannot draw \['acc@t2'\]"):
            plot_before_after(BEFORE, AFTER, tmp_path / "b.png", keys=["acc@t2"])

    def test_edit_distribution_counts_every_problem_once(self, tmp_path, monkeypatch):
        figures = self.drawn(monkeypatch)
        assert is_png(plot_edit_distribution([0, 0.05, 0.1, 1.0, None], [0, 0, 0.11, np.nan], tmp_path / "e.png"))
        (axis,) = figures[0].axes
        heights = np.array([bar.get_height() for bar in axis.patches]).reshape(2, 11)
        np.testing.assert_allclose(heights[0], [0.25, 0.5, 0, 0, 0, 0, 0, 0, 0, 0, 0.25])
        np.testing.assert_allclose(heights[1], [2 / 3, 0, 1 / 3, 0, 0, 0, 0, 0, 0, 0, 0])
        assert "n = 4" in axis.get_legend().texts[0].get_text()
        assert axis.get_xticklabels()[2].get_text() == "10-20"

    def test_edit_distribution_tells_small_edits_apart(self, tmp_path, monkeypatch):
        figures = self.drawn(monkeypatch)
        plot_edit_distribution([0.01, 0.02, 0.095], [], tmp_path / "e.png")
        heights = [bar.get_height() for bar in figures[0].axes[0].patches]
        assert [round(3 * height) for height in heights] == [0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1]

    def test_edit_distribution_without_corrections_or_with_wrong_ratios(self, tmp_path):
        assert plot_edit_distribution([None], [], tmp_path / "e.png") is None
        with pytest.raises(ValueError, match="outside \\[0, 1\\]"):
            plot_edit_distribution([7.0], [0.5], tmp_path / "e.png")

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


class TestModelCard:
    def card(self, directory, **changes):
        arguments = {
            "model_name": "tiny-score",
            "base_model": "Qwen/Qwen3-0.6B",
            "dataset_name": "openai/gsm8k",
            "method": METHOD,
            "metrics": metrics_of(directory / "metrics.json"),
        }
        return write_model_card(directory, **(arguments | changes))

    def test_metadata_are_what_the_hub_reads(self, tmp_path):
        path = self.card(tmp_path, peft=True, license="apache-2.0", tags=["math"])
        assert path == tmp_path / "README.md"
        data = ModelCard.load(path).data
        assert data.base_model == "Qwen/Qwen3-0.6B" and data.datasets == "openai/gsm8k"
        assert data.library_name == "peft" and data.license == "apache-2.0"
        assert data.tags == ["trl", "correction_trl", "score", "math"]
        assert data.model_name == "tiny-score"
        results = {result.metric_type: result for result in data.eval_results}
        assert set(results) == {"acc@t1", "logps/response"}
        accuracy = results["acc@t1"]
        assert accuracy.metric_value == pytest.approx(4 / 6, abs=1e-6)
        assert accuracy.metric_args["n"] == 6
        assert (accuracy.task_type, accuracy.dataset_type) == ("text-generation", "openai/gsm8k")

    def test_model_index_has_the_form_of_metadata_eval_result(self, tmp_path):
        ours = ModelCard.load(self.card(tmp_path)).data.to_dict()["model-index"]
        theirs = metadata_eval_result(
            model_pretty_name="tiny-score",
            task_pretty_name=None,
            task_id="text-generation",
            metrics_pretty_name="acc@t1: first answer right",
            metrics_id="acc@t1",
            metrics_value=round(4 / 6, 6),
            dataset_pretty_name="openai/gsm8k",
            dataset_id="openai/gsm8k",
        )["model-index"]
        metric = ours[0]["results"][0]["metrics"][0]
        assert metric.pop("args").keys() == {"low", "high", "n"}
        theirs[0]["results"][0]["metrics"][0].pop("verified")
        del ours[0]["results"][0]["metrics"][1:]
        assert ours == theirs

    def test_text(self, tmp_path):
        plot_before_after(BEFORE, AFTER, tmp_path / "pictures" / "before after.png")
        text = self.card(
            tmp_path,
            pictures={"Before and after": tmp_path / "pictures" / "before after.png", "Curves": None},
            examples=[{"prompt": "2+2", "response": "5", "correction": "4"}],
            command="recipes/score.py --config a.yaml",
            hub_model_id="me/tiny-score",
        ).read_text()
        assert re.search(r"\| `acc@t1` \| 50\.0% \[.*\] \| 66\.7% \[.*\] \| \+16\.7 pp \[.*\] \| 6 \|", text)
        assert re.search(r"\| `logps/response` \(nats\) \| -3\.00 \[.*\] \| -2\.50 \[.*\] \| - \| 3 \|", text)
        assert "![Before and after](pictures/before%20after.png)" in text and "Curves" not in text
        assert "recipes/score.py --config a.yaml" in text and 'model="me/tiny-score"' in text
        assert "[Qwen/Qwen3-0.6B](https://huggingface.co/Qwen/Qwen3-0.6B)" in text
        assert "https://huggingface.co/papers/2409.12917" in text
        assert "* The reward is exact match." in text and "one training run" in text
        assert METHOD["citation"] in text and "@software{vonwerra2020trl" in text and "{{TRL:" in text
        assert "<del" in text and "trl 1." in text and "3 min 27 s" in text
        assert "\n\n\n" not in text

    def test_table_has_no_gaps(self, tmp_path):
        lines = self.card(tmp_path).read_text().splitlines()
        start = lines.index("| metric | before | after | difference | problems |")
        assert [line.count("|") for line in lines[start : start + 5]] == [6, 6, 6, 6, 0]

    def test_card_with_nothing_optional(self, tmp_path):
        text = self.card(tmp_path, base_model=None, dataset_name=None, method={"name": "Plain"}).read_text()
        assert "None" not in text and "## Examples" not in text and "departs" not in text
        assert "\n\n\n" not in text
        assert "A language model, trained with Plain, using `correction_trl`" in text

    @pytest.mark.parametrize("form", ["absolute", "relative", "gone", "one word"])
    def test_local_base_model_and_data_stay_out_of_the_metadata(self, tmp_path, monkeypatch, form):
        monkeypatch.chdir(tmp_path)
        names = {"absolute": f"{tmp_path}/base", "relative": "./base", "gone": "/data/me/base", "one word": "base"}
        name = names[form]
        if form != "gone":
            (tmp_path / "base").mkdir()
        path = self.card(tmp_path / "out", base_model=name, dataset_name=name)
        data = ModelCard.load(path).data
        assert data.base_model is None and data.datasets is None
        assert data.eval_results[0].dataset_type == "custom" and data.eval_results[0].dataset_name == "base"
        assert "`base` (local), trained with" in path.read_text()

    def test_no_secret_and_no_local_path(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", "/home/ada")
        (tmp_path / "out").mkdir()
        plot_before_after(BEFORE, AFTER, tmp_path / "out" / "b.png")
        script, run = f"{tmp_path}/recipes/score.py", tmp_path / "out"
        command = (
            f"API_KEY=1234 {script} --hub_token short --output_dir={run} --data '/mnt/my data/x.jsonl' --model ~/a/m"
        )
        text = self.card(
            tmp_path / "out",
            base_model="/home/ada/models/m",
            command=command,
            pictures={"b": run / "b.png"},
            method={"name": "SCoRe", "departures": [f"{run}/a.md, /home/ada/x, /usr/bin/env, http://a.b/home/ada"]},
            examples=[{"prompt": f"Use {API_KEY}", "response": HUB_TOKEN, "correction": HUB_TOKEN[:-1] + "X"}],
            usage=f'load("{run}", token="{HUB_TOKEN}")',
        ).read_text()
        assert HUB_TOKEN not in text and API_KEY not in text
        assert str(tmp_path) not in text and "/mnt" not in text and "~" not in text
        assert (
            "API_KEY=<redacted> recipes/score.py --hub_token <redacted> --output_dir=out --data 'my data/x.jsonl'"
            " --model m\n"
        ) in text
        assert HUB_TOKEN[:20] not in text  # not even in parts, between the marks of the edits
        assert "* a.md, x, /usr/bin/env, http://a.b/home/ada\n" in text  # the last two are not directories of the run

    def test_mistakes_are_named(self, tmp_path):
        with pytest.raises(ValueError, match="picture .*gone.png does not exist"):
            self.card(tmp_path, pictures={"x": tmp_path / "gone.png"})
        plot_before_after(BEFORE, AFTER, tmp_path / "outside.png")
        with pytest.raises(ValueError, match="outside.png is outside .*out"):
            self.card(tmp_path / "out", pictures={"x": tmp_path / "outside.png"})
        with pytest.raises(ValueError, match=r"`method` has the unknown keys \['paper'\]"):
            self.card(tmp_path, method={"name": "x", "paper": "y"})
        with pytest.raises(ValueError, match="`method` lacks `name`"):
            self.card(tmp_path, method={})

    def test_metrics_without_a_value_are_listed_but_not_claimed(self, tmp_path):
        unjudged = {"acc@t1": summarize([])}
        metrics = write_metrics(tmp_path / "m.json", unjudged, unjudged, seconds=1, config={})
        path = self.card(tmp_path, metrics=metrics)
        assert ModelCard.load(path).data.eval_results is None
        assert "| `acc@t1` | - | - | - | 0 |" in path.read_text()
