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
import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402


torch.set_num_threads(1)
datasets.disable_progress_bars()
hypothesis.settings.register_profile("tests", database=None, deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("tests")

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789 .,?+="
SPECIAL_TOKENS = ["<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<assistant>"]

# A message is its role's token, its text and the end of the turn, whatever comes after it: the beginning of a
# conversation is rendered as it is within the whole.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<assistant>' if message.role == 'assistant' else '<user>' }}{{ message.content }}{{ eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character; plain text gets a `<bos>` in front, and decodes to itself."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *ALPHABET])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, **config) -> LlamaForCausalLM:
    """A random Llama of 23,000 parameters, initialised widely enough that its samples and greedy responses vary."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(
                **{
                    "vocab_size": len(tokenizer),
                    "hidden_size": 32,
                    "intermediate_size": 64,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "max_position_embeddings": 512,
                    "initializer_range": 0.3,
                    "pad_token_id": tokenizer.pad_token_id,
                    "bos_token_id": tokenizer.bos_token_id,
                    "eos_token_id": tokenizer.eos_token_id,
                    "dtype": torch.float32,
                    **config,
                }
            )
        )


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
    """Shared by the whole session: a test that changes it builds its own with `build_tokenizer`."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """Folder of a random model and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_model")
    tokenizer = build_tokenizer()
    build_model(tokenizer).save_pretrained(folder)
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


def teacher(prompts, responses, answer, **columns):
    """Corrects a response to the right answer."""
    return list(answer)


def make_args(tmp_path, **overrides) -> dict:
    """Arguments of a `CorrectionOptimizationConfig` for a fast run on a CPU."""
    return {
        "output_dir": str(tmp_path / "output"),
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-3,
        "max_steps": 3,
        "max_completion_length": 8,
        "logging_steps": 1,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
        "seed": 0,
        **overrides,
    }


# Both importable (`from conftest import teacher`) and fixtures
@pytest.fixture(name="teacher")
def _teacher():
    return teacher


@pytest.fixture(name="make_args")
def _make_args():
    return make_args
