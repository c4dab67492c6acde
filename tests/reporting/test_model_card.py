import re
import subprocess

import pytest
from huggingface_hub import ModelCard, metadata_eval_result
from small_run import AFTER, API_KEY, BEFORE, HUB_TOKEN, metrics_of

from correction_trl.evaluation.metrics import summarize
from correction_trl.reporting import plot_before_after, write_metrics, write_model_card


METHOD = {
    "name": "SCoRe",
    "paper_title": "Training Language Models to Self-Correct via Reinforcement Learning",
    "paper_id": "2409.12917",
    "citation": "@article{kumar2024score,\n  title = {{SCoRe}}\n}",
    "departures": ["The reward is exact match."],
}


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

    def test_a_mixture_names_all_its_parts_and_none_as_what_was_measured_on(self, tmp_path):
        path = self.card(tmp_path / "out", dataset_name=["me/one", f"{tmp_path}/two.jsonl", "me/three"])
        data = ModelCard.load(path).data
        assert data.datasets == ["me/one", "me/three"]
        assert data.eval_results[0].dataset_type == "custom"
        assert data.eval_results[0].dataset_name == "evaluation problems"
        text = path.read_text()
        assert "on [me/one](https://huggingface.co/datasets/me/one), `two.jsonl` (local), [me/three](" in text

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
        assert ("```bash\naccelerate launch recipes/score.py --output_dir=out --data x.jsonl --model m\n```\n") in text
        assert HUB_TOKEN[:20] not in text  # not even in parts, between the marks of the edits
        assert "* a.md, x, /usr/bin/env, http://a.b/home/ada\n" in text  # the last two are not directories of the run

    @pytest.mark.parametrize(
        ("command", "pasted"),
        [
            ("recipes/score.py --seed 1", "accelerate launch recipes/score.py --seed 1"),
            ("CUDA_VISIBLE_DEVICES=0 recipes/score.py", "CUDA_VISIBLE_DEVICES=0 accelerate launch recipes/score.py"),
            ("accelerate launch --num_processes 2 r.py", "accelerate launch --num_processes 2 r.py"),
            ("python r.py", "python r.py"),
            (
                "r.py --teacher_base_url http://127.0.0.1:8071/v1 --teacher_base_url=http://127.0.0.1:8071/v1",
                "accelerate launch r.py --teacher_base_url http://127.0.0.1:8071/v1 "
                "--teacher_base_url=http://127.0.0.1:8071/v1",
            ),
            ("r.py --prompt 'a \"b\" $c'", "accelerate launch r.py --prompt 'a \"b\" $c'"),
        ],
    )
    def test_the_command_can_be_pasted(self, tmp_path, command, pasted):
        text = self.card(tmp_path, command=command).read_text()
        assert f"```bash\n{pasted}\n```" in text
        subprocess.run(["bash", "-n", "-c", pasted], check=True)

    def test_without_a_command_there_is_none(self, tmp_path, monkeypatch):
        monkeypatch.setattr("sys.argv", ["-c"])  # a notebook, or a line of Python
        text = self.card(tmp_path / "out", metrics=metrics_of(tmp_path / "m.json")).read_text()
        assert "```bash" not in text and "## Training\n\nThe run took 3 min 27 s." in text and "\n\n\n" not in text

    def test_a_card_without_an_evaluation_says_so(self, tmp_path):
        metrics = write_metrics(tmp_path / "m.json", {}, {}, seconds=1, config={})
        path = self.card(tmp_path, metrics=metrics)
        text = path.read_text()
        assert "## Results\n\nThis model was not evaluated" in text
        assert "| metric |" not in text and "intervals" not in text and "\n\n\n" not in text
        assert ModelCard.load(path).data.eval_results is None

    def test_a_warning_stands_below_the_table(self, tmp_path):
        metrics = metrics_of(tmp_path / "m.json") | {"warnings": ["The responses have become 0.80 nats less likely."]}
        text = self.card(tmp_path, metrics=metrics).read_text()
        assert "\n\n**Warning.** The responses have become 0.80 nats less likely.\n\n" in text
        assert text.index("| metric |") < text.index("**Warning.**") < text.index("## Usage")
        assert "\n\n\n" not in text and "Warning" not in self.card(tmp_path).read_text()

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
