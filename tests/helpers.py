"""What tests import by name: a tiny model and its tokenizer, arguments, a teacher, a launch on several processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


ROOT = Path(__file__).parents[1]
TWO_PROCESSES = ROOT / "recipes" / "accelerate_configs" / "two_cpu_processes.yaml"
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
        "mask_truncated_completions": False,  # a random model seldom ends
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


def letters(completions, **columns):
    """A value that a random model's samples differ in."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [sum(ord(character) for character in text) % 10 / 10 for text in texts]


def edit_distance(a: list[int], b: list[int]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


def takes_less_than(seconds, call, *arguments):
    """Whether a call takes fewer CPU seconds, in one of three tries: what else runs on the core makes a try slower."""
    for _ in range(3):
        start = time.process_time()
        call(*arguments)
        if time.process_time() - start < seconds:
            return True
    return False


def launch(arguments, n_processes, cwd):
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
    }
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    launcher += ["--config_file", str(TWO_PROCESSES), "--num_processes", str(n_processes), "--main_process_port", "0"]
    if n_processes == 1:
        launcher = [sys.executable]
    done = subprocess.run(launcher + arguments, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout
