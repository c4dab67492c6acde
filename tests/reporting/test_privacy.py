import pytest
from small_run import API_KEY, HUB_TOKEN

from correction_trl.reporting.privacy import command_line, redact_secrets


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
