import dataclasses
import enum
import importlib.metadata
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from small_run import AFTER, API_KEY, BEFORE, DIFFERENCE, FIRST, HUB_TOKEN, SECOND, metrics_of

from correction_trl.evaluation.metrics import self_correction_metrics, summarize
from correction_trl.reporting import drift_warning, installed_versions, print_summary, write_metrics


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

    def test_versions_name_only_what_is_installed(self, monkeypatch):
        real = importlib.metadata.version

        def version(package):
            if package == "bitsandbytes":
                raise importlib.metadata.PackageNotFoundError(package)
            return real(package)

        monkeypatch.setattr(importlib.metadata, "version", version)
        assert "bitsandbytes" not in installed_versions()


class TestPrintSummary:
    def test_units(self, tmp_path):
        text = printed(metrics_of(tmp_path / "m.json"), files=[tmp_path / "m.json"])
        accuracy = next(line for line in text.splitlines() if "acc@t1" in line)
        assert re.search(r"50\.0% \[\d+\.\d, \d+\.\d\]", accuracy)
        assert re.search(r"66\.7% \[", accuracy)
        assert re.search(r"\+16\.7 pp \[-28\.9, \+56\.4\]", accuracy)
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
        for number in ("50.0%", "66.7%", "+16.7 pp", "[-28.9, +56.4]", "-3.00"):
            assert number in text

    def test_log_file_gets_whole_lines(self, tmp_path, capsys):
        print_summary(metrics_of(tmp_path / "m.json"), files=[tmp_path / ("long" * 60)])
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert re.search(r"acc@t1 +50\.0% \[.*\] +66\.7% \[.*\] +\+16\.7 pp \[.*\] +6", out)
        assert f"Wrote {tmp_path / ('long' * 60)}" in out.splitlines()


class TestDriftWarning:
    def summaries(self, *fluencies):
        return [{"fluency": summarize(values, rate=False)} for values in fluencies]

    def test_text_that_the_base_finds_unlikely_is_said_in_numbers(self, tmp_path):
        before, after = self.summaries([-1.5, -1.6, -1.55] * 5, [-2.3, -2.4, -2.35] * 5)
        warning = drift_warning(before, after)
        assert "0.80 nats per token less likely" in warning and "(-1.55 before, -2.35 after)" in warning
        metrics = write_metrics(tmp_path / "m.json", before, after, seconds=1, config={}, warnings=[warning])
        assert "Warning: The responses have become 0.80 nats" in printed(metrics, width=1000)
        assert "fluency (nats/token)" in printed(metrics)

    @pytest.mark.parametrize(
        "after",
        [
            [-1.3, -1.4] * 5,  # likelier than before
            [-1.9, -2.0] * 5,  # a small fall
            [9.0, -14.0] * 2,  # a fall within the noise
            [None] * 4,  # nothing was said
        ],
    )
    def test_nothing_is_said_without_a_clear_fall(self, after):
        assert drift_warning(*self.summaries([-1.5, -1.6, -1.55] * 5, after)) is None

    def test_nothing_is_said_where_the_base_was_not_there(self):
        assert drift_warning({"acc@t1": summarize([1])}, {"acc@t1": summarize([1])}) is None
