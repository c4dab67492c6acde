"""What the tests share: everything offline, on a CPU, with one thread, from a tiny random model that is built here."""

import atexit
import importlib.util
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time


# Before anything of Hugging Face is imported. The cache is this run's own: no test sees a stale file or a login.
_CACHE = tempfile.mkdtemp(prefix="correction_trl_tests_")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ.update(
    CI="1",
    HF_HOME=_CACHE,
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_OFFLINE="1",
    MPLBACKEND="Agg",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.pop("HF_TOKEN", None)

import datasets  # noqa: E402
import helpers  # noqa: E402
import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402


torch.set_num_threads(1)
datasets.disable_progress_bars()
hypothesis.settings.register_profile("tests", database=None, deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("tests")


def _sums() -> list[dict[str, str]]:
    """64 sums of differing length, each with a right answer and one that differs from it in few characters."""
    generator = random.Random(0)
    rows = []
    for i in range(64):
        a, b = (generator.randrange(10 ** generator.randint(1, 3)) for _ in range(2))
        reason = " ".join(["add the units", "then the tens", "then the hundreds"][: i % 4])
        answer = f"{reason}, it is {a + b}." if reason else f"{a + b}"
        wrong = str(a + b + generator.choice([1, 2, 10, 100]))
        response = answer.replace(str(a + b), wrong)
        if i % 7 == 0:  # now and then the correction is longer or shorter by a few words
            response = f"well, {response}" if i % 2 else response.removeprefix(reason).removeprefix(", ")
        rows.append({"prompt": f"what is {a}+{b}? ", "response": response, "correction": answer, "answer": str(a + b)})
    return rows


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Shared by the whole session: a test that changes it builds its own with `helpers.build_tokenizer`."""
    return helpers.build_tokenizer()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """Folder of a random model and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_model")
    tokenizer = helpers.build_tokenizer()
    helpers.build_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def plain_pairs() -> datasets.Dataset:
    """64 stored pairs of plain text, none of them unchanged."""
    return datasets.Dataset.from_list(
        [{"prompt": row["prompt"], "response": row["response"], "correction": row["correction"]} for row in _sums()]
    )


@pytest.fixture(scope="session")
def chat_pairs() -> datasets.Dataset:
    """The same pairs as conversations."""
    return datasets.Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "response": [{"role": "assistant", "content": row["response"]}],
                "correction": [{"role": "assistant", "content": row["correction"]}],
            }
            for row in _sums()
        ]
    )


@pytest.fixture(scope="session")
def plain_prompts() -> datasets.Dataset:
    """64 prompts of plain text, with the right answer."""
    return datasets.Dataset.from_list([{"prompt": row["prompt"], "answer": row["answer"]} for row in _sums()])


@pytest.fixture(scope="session")
def chat_prompts() -> datasets.Dataset:
    """The same prompts as conversations."""
    return datasets.Dataset.from_list(
        [{"prompt": [{"role": "user", "content": row["prompt"]}], "answer": row["answer"]} for row in _sums()]
    )


@pytest.fixture(scope="session")
def transformers_serve(tmp_path_factory):
    """Address of a real server: `transformers serve`, which loads whatever folder a request names as its model."""
    for package in ("fastapi", "uvicorn", "openai"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"`transformers serve` needs {package}: pip install 'transformers[serving]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("transformers_serve") / "log"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", "--host", "127.0.0.1"]
    with open(log, "w") as file:
        process = subprocess.Popen([*command, "--port", str(port), "--device", "cpu"], stdout=file, stderr=file)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, log.read_text()[-2000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def teacher():
    return helpers.teacher


@pytest.fixture
def make_args():
    return helpers.make_args
