"""The evaluation as a user runs it: what it leaves behind, that it goes on where it stopped, and what it says."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from misbehaving_server import running

import correction_trl.inference.chat
from correction_trl.carry_addition import embedded_path
from correction_trl.recipe import run


pytestmark = pytest.mark.slow


ROOT = Path(__file__).parents[2]
CONTROLS = {"self_consistency", "best_of_n_oracle", "resample"}
FILES = {"metrics.json", "transitions.png", "accuracy_by_turn.png", "accuracy_tokens.png", "card_entry.md", "traces"}
FILES |= {"per_problem.jsonl"}


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("recipe_evaluate", ROOT / "recipes" / "evaluate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def launch(recipe, tmp_path, monkeypatch):
    """The recipe on 24 problems; returns what `metrics.json` holds."""
    monkeypatch.chdir(tmp_path)

    def launch(arguments="", config=None):
        argv = ["--test_rows", "24", "--output_dir", "out", *arguments.split()]
        if config is not None:
            (tmp_path / "config.yaml").write_text(config)
            argv = ["--config", "config.yaml", *argv]
        monkeypatch.setattr(sys, "argv", ["recipes/evaluate.py", *argv])
        run(recipe.main, *recipe.parse_arguments(argv))
        return json.loads((tmp_path / "out" / "metrics.json").read_text())

    return launch


@pytest.fixture
def asked(monkeypatch):
    """Replies that were asked of local models; `asked.limit` kills the process, so to speak, in the middle."""

    class Asked:
        count, limit = 0, None

    reply = correction_trl.inference.chat.LocalChat.reply

    def counted(chat, conversations):
        if Asked.limit is not None and Asked.count + len(conversations) > Asked.limit:
            raise KeyboardInterrupt
        Asked.count += len(conversations)
        reply(chat, conversations)

    monkeypatch.setattr(correction_trl.inference.chat.LocalChat, "reply", counted)
    return Asked


def test_no_arguments_leave_metrics_pictures_a_table_and_a_card_entry(launch, capsys, tmp_path):
    metrics = launch()
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    assert metrics["before"] == metrics["difference"] == {}
    keys = {"acc@t1", "acc@t2", "delta(t1,t2)", "delta(i->c)", "delta(c->i)", "edit_distance_ratio", "answer_changed"}
    assert keys <= metrics["after"].keys()
    for summary in metrics["after"].values():
        assert summary["n"] in (24, metrics["after"]["fix_rate"]["n"])
    assert metrics["strategies"]["after"].keys() == {"intrinsic"} | CONTROLS
    assert metrics["strategies"]["after"]["intrinsic"]["metrics"] == metrics["after"]
    for name in CONTROLS:  # as many samples as the strategy has attempts
        control = metrics["strategies"]["after"][name]
        assert control["counts"]["responses"] == 48 and control["last right, against intrinsic"]["n"] == 24
    oracle = metrics["strategies"]["after"]["best_of_n_oracle"]["metrics"]
    assert oracle["delta(c->i)"]["mean"] == 0 < oracle["delta(i->c)"]["mean"]
    assert metrics["versions"]["trl"] and metrics["config"]["turns"] == 2 and metrics["seconds"] > 0
    printed = capsys.readouterr().out
    assert "wrong → right" in printed and "best_of_n_oracle" in printed and "against intrinsic" in printed
    entry = ModelCard.load(tmp_path / "out" / "card_entry.md")
    results = {result.metric_type: result.metric_value for result in entry.data.eval_results}
    assert results["acc@t1"] == pytest.approx(metrics["after"]["acc@t1"]["mean"], abs=1e-6)
    assert "| best_of_n_oracle |" in entry.text and embedded_path("tiny-carry-chat") not in entry.content


def test_a_killed_run_goes_on_where_it_stopped(launch, asked, tmp_path):
    settings = "--controls false --turns 3 --batch_size 4"  # a window of 16 problems
    asked.limit = 60
    with pytest.raises(SystemExit, match="Interrupted"):
        launch(settings)
    assert not (tmp_path / "out" / "metrics.json").exists()
    kept = (tmp_path / "out" / "traces" / "traces-0.jsonl").read_text().count("\n")
    assert 0 < kept < 24
    asked.count, asked.limit = 0, None
    resumed = launch(settings)
    assert asked.count == 3 * (24 - kept)
    asked.count = 0
    again = launch(settings)
    assert asked.count == 0 and again["after"] == resumed["after"]
    shutil.rmtree(tmp_path / "out")
    whole = launch(settings)
    assert asked.count == 72 and whole["after"] == resumed["after"]
    # More problems and strategies: what is there is not asked again; another setting asks all again
    asked.count = 0
    launch("--turns 3 --batch_size 4 --test_rows 30")
    assert asked.count == 3 * 6 + 3 * 3 * 30
    asked.count = 0
    launch("--turns 3 --batch_size 4 --controls false --max_completion_length 15")
    assert asked.count == 72
    # Judging costs nothing, except where the value function chooses
    asked.count = 0
    launch("--turns 3 --batch_size 4 --test_rows 30 --value_function correction_trl.carry_addition:right_digits")
    assert asked.count == 3 * 30


def test_two_models_on_the_same_problems(launch, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(embedded_path("tiny-carry-chat"), other)
    metrics = launch(f"--model_name_or_path {other} --compare_with {embedded_path('tiny-carry-chat')} "
                     "--update_card true --controls false --max_completion_length 16 --batch_size 64 "
                     "--temperature 1.0 --samples 3")  # fmt: skip
    assert metrics["before"].keys() == metrics["after"].keys() == metrics["difference"].keys()
    assert metrics["before"] == metrics["after"], "the same weights and the same random numbers"
    difference = metrics["difference"]["acc@t2"]
    assert difference["mean"] == 0 and difference["n"] == 24 and difference["low"] < 0 < difference["high"]
    assert metrics["strategies"]["after"]["intrinsic"]["counts"]["responses"] == 24 * 3 * 2
    assert (tmp_path / "out" / "before_after.png").is_file()
    card = ModelCard.load(other / "README.md")
    assert "# tiny-carry-chat" in card.text and "## Evaluation: carry_addition (test)" in card.text
    old = ModelCard.load(Path(embedded_path("tiny-carry-chat")) / "README.md").data.eval_results
    assert len(card.data.eval_results) > len(old)
    launch(f"--model_name_or_path {other} --update_card true --controls false --max_completion_length 16 "
           "--temperature 1.0 --samples 3")  # fmt: skip
    again = ModelCard.load(other / "README.md")
    assert again.text.count("## Evaluation: carry_addition (test)") == 1
    assert len(again.data.eval_results) == len(card.data.eval_results)


def test_strategies_checks_and_their_settings(launch, asked):
    metrics = launch(
        config=(
            "strategies: [gated_revision, self_refine, with_corrector, intrinsic]\n"
            "controls: false\nmax_completion_length: 14\nbatch_size: 64\nturns: 3\n"
            "check: samples_agree\n"
            f"corrector: {embedded_path('tiny-carry-chat')}\n"
            "instruction: There might be an error in the answer above. Please correct it.\n"
            "strategy_settings:\n  check: {samples: 2, share: 0.5, temperature: 1.2}\n  self_refine: {rounds: 1}\n"
        )
    )
    found = metrics["strategies"]["after"]
    assert list(found) == ["gated_revision", "self_refine", "with_corrector", "intrinsic"]
    assert {key for key in found["gated_revision"]["counts"] if key.startswith("stop")} == {
        "stop: held",
        "stop: last round",
    }
    assert found["self_refine"]["counts"]["responses"] <= 48
    # The base model as corrector repeats the response, which ends the corrections
    assert found["with_corrector"]["counts"]["stop: unchanged"] > 12
    first = {name: strategy["metrics"]["acc@t1"] for name, strategy in found.items()}
    assert len({json.dumps(summary) for summary in first.values()}) == 1, "all begin with the same greedy attempt"
    assert found["gated_revision"]["metrics"]["tokens"]["mean"] > found["with_corrector"]["metrics"]["tokens"]["mean"]


def right_item(prompts, completions, **_):
    return [None if prompt.endswith("7") else float(f"right {prompt.split()[1]}" in text and "4" not in prompt)
            for prompt, text in zip(prompts, completions, strict=True)]  # fmt: skip


def test_a_server_and_a_file(launch, tmp_path):
    (tmp_path / "items.jsonl").write_text("".join(json.dumps({"prompt": f"item {i}"}) + "\n" for i in range(10)))
    with running() as server:
        arguments = (
            f"--model_name_or_path tiny --server_base_url {server.url} --dataset_name items.jsonl --controls false "
            "--value_function test_evaluate_recipe:right_item --strategies resample"
        )
        metrics = launch(arguments)
        asked = server.stats()["asked"]
        launch(arguments)
        assert server.stats()["asked"] == asked == dict.fromkeys(range(10), 2)
    assert metrics["after"]["acc@t2"]["mean"] == pytest.approx(8 / 9) and metrics["after"]["acc@t2"]["n"] == 9
    assert metrics["strategies"]["after"]["resample"]["counts"]["unjudged"] == 2
    assert metrics["model"] == "tiny" and metrics["after"]["tokens"]["mean"] == 20


def test_prompts_are_made_of_other_columns(launch, tmp_path):
    rows = [{"a": "183597027936", "b": "192071902361", "answer": "0375668930297"}] * 2
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = "prompt_template: '{a} + {b} ='\nvalue_function: correction_trl.carry_addition:exact_match\n"
    metrics = launch("--dataset_name sums.jsonl --max_completion_length 16 --turns 1 --controls false", config)
    assert metrics["after"]["tokens"]["mean"] == 14, "the model knows this kind of prompt"
    traces = (tmp_path / "out" / "traces" / "traces-0.jsonl").read_text().splitlines()
    trace = json.loads(traces[0])
    assert trace["conversations"][0][0]["content"] == "183597027936 + 192071902361 ="
    assert (trace["strategy"], trace["problem"], trace["sample"]) == ("intrinsic", 0, 0)
    assert trace["gold"] == "0375668930297" and trace["right"] == [float(trace["responses"][0] == trace["gold"])]
    lines = (tmp_path / "out" / "per_problem.jsonl").read_text().splitlines()
    assert [json.loads(line)["after"]["intrinsic"]["acc@t1"] for line in lines] == trace["right"] * 2


def needs_gold(completions, gold, **_):
    return [1.0] * len(completions)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--dataset_name {prompts}", "`value_function` is required"),
        ("--dataset_name {empty} --value_function correction_trl.carry_addition:exact_match", "the file is empty"),
        ("--dataset_name {prompts} --value_function test_evaluate_recipe:needs_gold", "raised TypeError"),
        ("--prompt_template {{sum}}=", "`prompt_template` cannot be filled in (KeyError: 'sum')"),
        ("--strategies nowhere:f", "there is no module 'nowhere'"),
        ("--strategies with_corrector", "needs a `corrector`"),
        ("--model_name_or_path {prompts}", "cannot be loaded"),
        ("--dataset_test_split nowhere", "has no split 'nowhere'"),
        ("--extract_answer correction_trl.inference.answers:nothing", "has no 'nothing'"),
        ("--server_base_url localhost:8000", "must begin with http"),
        ('--strategy_settings {{"intrinsic":{{"turn":3}}}}', "has no setting 'turn'; it has turns, instruction"),
        ('--strategy_settings {{"proco":{{"rounds":3}}}}', "not among `strategies`"),
        ("--update_card true --model_name_or_path {cardless}", "there is no"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(launch, tmp_path, tiny_model, arguments, sentence):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    names = {"empty": tmp_path / "empty.jsonl", "prompts": tmp_path / "prompts.jsonl", "cardless": tiny_model}
    with pytest.raises(SystemExit) as stopped:
        launch("--controls false --max_completion_length 4 --test_rows 2 " + arguments.format(**names))
    assert sentence in str(stopped.value)
    assert "\n" not in str(stopped.value)


def test_two_processes_share_the_work_and_find_the_same(launch, tmp_path):
    """Greedy, so that it does not matter who answers what; 25 problems, so that the shares differ."""
    arguments = "--test_rows 25 --controls false --strategies intrinsic self_refine"
    one = launch(arguments)
    shutil.move(tmp_path / "out", tmp_path / "one")
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    command += ["--config_file", str(ROOT / "recipes" / "accelerate_configs" / "two_cpu_processes.yaml")]
    command += [str(ROOT / "recipes" / "evaluate.py"), *arguments.split(), "--output_dir", "out"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    two = json.loads((tmp_path / "out" / "metrics.json").read_text())
    lines = [path.read_text().count("\n") for path in sorted((tmp_path / "out" / "traces").iterdir())]
    assert sorted(lines) == [24, 26]
    assert two["after"] == one["after"] and two["strategies"] == one["strategies"]
    assert done.stdout.count("Wrote out/metrics.json") == 1


def test_a_judge_rates_and_says_what_to_correct(launch, tmp_path):
    """One judgement of each response is its value and its follow-up."""
    rows = [{"prompt": [{"role": "user", "content": f"item {n}"}]} for n in (3, 7)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with running(judge=1) as server:
        config = (
            "dataset_name: rows.jsonl\nstrategies: [with_feedback]\ncontrols: false\nvalue_function: judge\n"
            "feedback_function: judge:feedback\nmax_completion_length: 8\ncorrect_threshold: 0.5\n"
            f"judge: {{model: tiny, base_url: '{server.url}', store: judged.sqlite, first_pause: 0.01}}\n"
        )
        metrics = launch(config=config)
        assert metrics["after"]["acc@t1"]["mean"] == 0.5  # of 0.3 and 0.7
        traces = [json.loads(line) for file in Path("out/traces").rglob("*.jsonl") for line in file.open()]
        assert "It is off by 3." in json.dumps(traces) and "It is off by 7." in json.dumps(traces)
        asked = server.stats()["asked"]
        launch(config=config)
        assert server.stats()["asked"] == asked  # no judgement is bought again
