"""What is published: no secret and no path of a machine, and everything else as it was."""

import json
import shlex
from pathlib import Path

import pytest
from helpers import takes_less_than
from hypothesis import given
from hypothesis import strategies as st
from small_run import AFTER, API_KEY, BEFORE, HUB_TOKEN

from correction_trl.reporting import write_metrics
from correction_trl.reporting.privacy import (
    NOT_PUSHED,
    command_line,
    hide_paths,
    is_secret_name,
    launched,
    publishable,
    publishable_folder,
    publishable_setting,
    redact_named_secrets,
    redact_secrets,
)


class TestSecrets:
    @pytest.mark.parametrize(
        "secret",
        [
            HUB_TOKEN, API_KEY, "ghp_" + "a1" * 18, "AKIA" + "A1B2" * 4, "gsk_" + "a1" * 20, "glpat-" + "a1" * 10,
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2ln", "sk-ant-api03-" + "aB_-" * 8,
        ],
    )  # fmt: skip
    def test_values_are_recognised_anywhere(self, secret):
        assert redact_secrets(f"key:{secret}, and more") == "key:<redacted>, and more"

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("https://a.b/v1?api_key=abc&n=2", "https://a.b/v1?api_key=<redacted>&n=2"),
            ("https://a.b/v1?n=2&API-KEY=abc#x", "https://a.b/v1?n=2&API-KEY=<redacted>#x"),
            ("https://a.b/?X-Amz-Signature=ab12&sig=x", "https://a.b/?X-Amz-Signature=<redacted>&sig=<redacted>"),
            ("https://ada:pa55@a.b/c", "https://<redacted>@a.b/c"),
            (f"https://{HUB_TOKEN}@huggingface.co/x", "https://<redacted>@huggingface.co/x"),
            ("Authorization: Bearer abc.def", "Authorization: Bearer <redacted>"),
            ("authorization: Basic dXNlcjpw", "authorization: Basic <redacted>"),
            ("sent bearer 0123456789 twice", "sent bearer <redacted> twice"),
            ("{'X-Api-Key': 'abcd'}", "{'X-Api-Key': '<redacted>'}"),
        ],
    )
    def test_in_addresses_and_headers(self, text, expected):
        assert redact_secrets(text) == expected
        assert redact_secrets(expected) == expected

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("HF_TOKEN=abc python r.py", "HF_TOKEN=<redacted> python r.py"),
            ("export OPENAI_API_KEY='a b'", "export OPENAI_API_KEY='<redacted>'"),
            ("--hub_token abc --seed 1", "--hub_token <redacted> --seed 1"),
            ('{"api_key": "abc", "max_tokens": 5}', '{"api_key": "<redacted>", "max_tokens": 5}'),
            ("--note HF_TOKEN=abc", "--note HF_TOKEN=<redacted>"),
            ("password = hunter2", "password = <redacted>"),
            ("the token is wrong; set TEACHER_API_KEY", "the token is wrong; set TEACHER_API_KEY"),
            ("eos_token=<eos> pad_token: '<pad>'", "eos_token=<eos> pad_token: '<pad>'"),
        ],
    )
    def test_under_the_name_of_a_secret(self, text, expected):
        assert redact_named_secrets(text) == expected

    def test_the_values_of_this_process(self, monkeypatch):
        monkeypatch.setenv("TEACHER_API_KEY", "plainwords")
        monkeypatch.setenv("SERVER_API_KEY", "EMPTY")  # shorter than 8: a word like any other
        monkeypatch.setenv("HOME_TOWN", "Copenhagen")
        text = "401: plainwords is unknown; EMPTY answers come from Copenhagen"
        assert redact_secrets(text) == "401: <redacted> is unknown; EMPTY answers come from Copenhagen"

    @pytest.mark.parametrize(
        "text",
        ["hf_jobs", "sk-learn", "task-based", "12:30 at 5 @home", "https://a.b/c?n=1", "a bearer of news", "2 tokens"],
    )
    def test_ordinary_text_is_left_alone(self, text):
        assert redact_named_secrets(text) == text == hide_paths(text)

    @pytest.mark.parametrize(
        ("name", "secret"),
        [
            ("hub_token", True), ("api_key", True), ("HF_TOKEN", True), ("accessToken", True), ("db.password", True),
            ("eos_token", False), ("max_tokens", False), ("tokenizer", False), ("teacher_api_key_variable", False),
            ("key", False), ("monkey", False),
        ],
    )  # fmt: skip
    def test_names(self, name, secret):
        assert is_secret_name(name) is secret


class TestPaths:
    @pytest.mark.parametrize(
        ("path", "shown"),
        [
            ("/mnt/data/x.jsonl", "x.jsonl"),
            ("/mnt/my data/x 1.jsonl", "x 1.jsonl"),
            ("/anything/base/", "base"),
            ("~/models/m", "m"),
            ("~ada/models/m", "m"),
            (r"C:\Users\Ada\my models\m", "m"),
            ("C:/Users/Ada/m", "m"),
            (r"\\server\share\m", "m"),
            ("file:///home/ada/x.jsonl", "x.jsonl"),
            ("file:/home/ada/x.jsonl", "x.jsonl"),
            ("/home/ada", "~"),
            ("/tmp", "tmp"),
        ],
    )
    def test_a_setting_keeps_the_last_part(self, path, shown):
        assert publishable_setting(path) == shown

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("cannot read /home/ada/x.jsonl: gone", "cannot read x.jsonl: gone"),
            ("in '/mnt/my data/x.jsonl', line 2", "in 'x.jsonl', line 2"),
            ("PATH=/usr/bin:/home/ada/bin", "PATH=bin:bin"),
            ("a,/mnt/a.txt,/mnt/b.txt", "a,a.txt,b.txt"),
            (r"in C:\Users\Ada\x.jsonl now", "in x.jsonl now"),
            ("see file:///home/ada/x.jsonl", "see x.jsonl"),
            ("/mnt/f.py:reward", "f.py:reward"),
            ("ada@host:/home/ada/x", "ada@host:x"),
        ],
    )
    def test_paths_inside_a_text(self, text, expected):
        assert hide_paths(text) == expected

    @pytest.mark.parametrize(
        "text",
        [
            "http://127.0.0.1:8071/v1",
            "https://huggingface.co/home/ada",
            "s3://bucket/home/x",
            "someone/some-model",
            "./here/x ../there/y",
            "/no_think",
            "<think>1/2 and 3 /4</think> or //",
            "${HOME}/a/b",
            "data/**/x.parquet",
            "module.sub:function",
        ],
    )
    def test_what_is_no_path_of_a_machine_stays_whole(self, text):
        assert hide_paths(text) == text == publishable_setting(text)

    def test_below_the_working_directory_a_path_is_relative(self, tmp_path, monkeypatch):
        (tmp_path / "a b").mkdir()
        monkeypatch.chdir(tmp_path)
        assert publishable_setting(f"{tmp_path}/out/x") == "out/x"
        assert publishable_setting(f"{tmp_path}/a b/x") == "a b/x"
        assert publishable_setting(str(tmp_path)) == tmp_path.name
        assert publishable_setting(str(Path.home())) == "~"

    @given(st.text(alphabet="ab/~:. '\"\\-CU=?&,{}[]\n", max_size=40))
    def test_any_text_can_be_published_and_again(self, text):
        once = publishable_setting(text)
        assert "/home/ada" not in publishable_setting(f"{text} /home/ada/x")
        assert isinstance(once, str)

    @pytest.mark.parametrize(
        "piece", ["/", "a/", "/a", "~", "token=", "--token ", '"', "&key", "://a:", "x" * 9 + " "]
    )
    def test_long_texts_take_no_time(self, piece):
        assert takes_less_than(1, publishable_setting, piece * (100_000 // len(piece)))


class TestCommands:
    @pytest.mark.parametrize(
        ("argv", "expected"),
        [
            (["r.py", "--hub_token", "abc", "--seed", "1"], "r.py --seed 1"),
            (["r.py", "--hub-token=abc", "--seed=1"], "r.py --seed=1"),
            (["r.py", "--teacher_api_key", "-abc", "x"], "r.py x"),
            (["r.py", "--note", f"{HUB_TOKEN} {API_KEY}"], "r.py --note '<redacted> <redacted>'"),
            (["r.py", "--eos_token", "<eos>", "--max_tokens", "5"], "r.py --eos_token '<eos>' --max_tokens 5"),
            (["r.py", "--token", "--seed", "1"], "r.py --token --seed 1"),
            (["r.py", "a b"], "r.py 'a b'"),
            (["r.py", "--url", "http://127.0.0.1:8071/v1"], "r.py --url http://127.0.0.1:8071/v1"),
            (["r.py", "--url=https://a.b/v1?api_key=x&n=1"], "r.py '--url=https://a.b/v1?api_key=<redacted>&n=1'"),
            (["/usr/local/bin/r.py", "--a=/mnt/my data/x", "--b", "~/m"], "r.py --a=x --b m"),
            (
                ["r.py", "--kwargs", '{"api_key": "x", "cache": "/mnt/my cache", "n": 1}'],
                """r.py --kwargs '{"cache": "my cache", "n": 1}'""",
            ),
            (["r.py", "--reward", "/mnt/f.py:reward"], "r.py --reward f.py:reward"),
            (["-c"], None),
            (["/env/ipykernel_launcher.py", "-f", "x.json"], None),
        ],
    )
    def test_command_line(self, argv, expected):
        assert command_line(argv) == expected
        if expected:
            assert command_line(shlex.split(expected)) == expected == publishable(expected)

    def test_a_recipe_is_named_from_the_root_of_the_repository(self):
        script = Path(__file__).parents[2] / "recipes" / "score.py"
        assert command_line([str(script), "--seed", "1"]) == "recipes/score.py --seed 1"

    def test_a_dataset_is_collected_by_python(self):
        assert launched("A=1 recipes/c.py --x 1", "python") == "A=1 python recipes/c.py --x 1"
        assert launched(None) is None

    def test_an_open_quote_is_no_reason_to_fail(self):
        assert publishable("r.py --a 'b /home/ada/x") == "r.py --a 'b x"


class TestMetrics:
    def test_no_path_and_no_secret_at_any_depth(self, tmp_path, monkeypatch):
        monkeypatch.setattr("sys.argv", ["/home/ada/r.py", "--output_dir", str(tmp_path / "out")])
        config = {
            "output_dir": str(tmp_path / "out"),
            "model": Path("/home/ada/models/m"),
            "files": ["/mnt/my data/a.jsonl", ("~/b.jsonl", r"D:\\c.jsonl")],
            "/mnt/by/path": {"url": "http://127.0.0.1:8071/v1", "note": f"{HUB_TOKEN} in /home/ada/x"},
            "instruction": "/no_think Answer 1/2 or 3/4.",
        }
        text = json.dumps(write_metrics(tmp_path / "m.json", BEFORE, AFTER, seconds=1, config=config))
        assert text == json.dumps(json.loads((tmp_path / "m.json").read_text()))
        for private in ("/home", "/mnt", "~", str(tmp_path), "D:", HUB_TOKEN):
            assert private not in text
        config = json.loads(text)["config"]
        assert config["path"] == {"url": "http://127.0.0.1:8071/v1", "note": "<redacted> in x"}
        assert config["instruction"] == "/no_think Answer 1/2 or 3/4."
        assert config["files"] == ["a.jsonl", ["b.jsonl", "c.jsonl"]]
        assert json.loads(text)["command"] == "r.py --output_dir out"


class TestFolders:
    def write(self, folder, base):
        files = {
            "adapter_config.json": json.dumps({"base_model_name_or_path": base, "r": 8, "target_modules": ["q_proj"]}),
            "adapter_model.safetensors": "weights",
            "tokenizer.json": '{"/home/ada": 1}',  # a word of the vocabulary
            "README.md": "# A model",
            "sub/x.txt": "x",
            "checkpoint-2/adapter_model.safetensors": "x",
            "checkpoint-2/deep/y": "y",
            "round_1/model.safetensors": "x",
            "runs/events": "x",
            "training_args.bin": "x",
        }
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)

    def test_a_folder_without_paths_is_pushed_as_it_is(self, tmp_path):
        self.write(tmp_path, "someone/some-model")
        assert publishable_folder(tmp_path) == tmp_path

    def test_the_local_base_of_an_adapter_is_named_without_its_path(self, tmp_path):
        (tmp_path / "base").mkdir()
        run = tmp_path / "run"
        self.write(run, str(tmp_path / "base"))
        before = (run / "adapter_config.json").read_text()
        for _ in range(2):  # the first push may have failed
            copy = publishable_folder(run)
            names = {file.relative_to(copy).as_posix() for file in copy.rglob("*") if file.is_file()}
            assert names == {
                "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md", "sub/x.txt",
            }  # fmt: skip
            pushed = json.loads((copy / "adapter_config.json").read_text())
            assert pushed == {"base_model_name_or_path": "base", "r": 8, "target_modules": ["q_proj"]}
        assert (run / "adapter_config.json").read_text() == before  # here it must be found
        assert "to_push/*" in NOT_PUSHED
