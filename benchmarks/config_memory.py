"""
Does every shipped GPU config stay within its card? Each is run for a few updates at its longest rows, on a random
model of the named size, in a process that may hold no more than the card has: 12 or 24 GiB.

    python benchmarks/config_memory.py --device cuda                    # writes results/config_memory.json
    python benchmarks/config_memory.py --device cpu --tiny              # the same on a toy, to see that it runs

A random model hardly ever ends a response, so that responses are as long as they can be; prompts fill the rest of
`max_length`. Vision models are left out.
"""

import argparse
import gc
import importlib.util
import json
import random
import re
import tempfile
import time
import traceback
import zlib
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from rollout_speed import GIB, MODELS, add_lora, build_model, build_tokenizer, to_nf4
from transformers import PrinterCallback, TrainerCallback

from correction_trl import CorrectionOptimizationTrainer, CorrectorSFTTrainer, SCoReTrainer
from correction_trl.reporting import command_line, installed_versions


ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "config_memory.json"
CONFIGS = [
    "correction_optimization/qlora_24gb",
    "correction_optimization/qlora_12gb",
    "score/qlora_24gb",
    "corrector_sft/qlora_24gb",
    "self_correction_dpo/qlora_24gb",
]
OUTSIDE_TORCH = 0.5  # GiB of a card that the driver and the display take


def words(n: int, seed: int, n_words: int) -> str:
    generator = random.Random(seed)
    return " ".join(f"w{generator.randrange(n_words - 3)}" for _ in range(n))


def teacher(prompts, responses, **columns):
    """Replaces the word in the middle: half of each response is a common prefix."""
    corrections = []
    for response in responses:
        parts = response.split()
        parts[len(parts) // 2] = "w7" if parts[len(parts) // 2] != "w7" else "w8"
        corrections.append(" ".join(parts))
    return corrections


def value(completions, **columns):
    return [zlib.crc32(text.encode()) % 10 / 10 for text in completions]


class Clock(TrainerCallback):
    """Seconds of each update, its sampling included."""

    def __init__(self):
        self.times = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.times.append(time.perf_counter())

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(time.perf_counter())


def training_arguments(name: str, out: str, n_updates: int, on_cpu: bool):
    method = name.partition("/")[0]
    spec = importlib.util.spec_from_file_location(f"recipe_{method}", ROOT / "recipes" / f"{method}.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    argv = ["--config", str(ROOT / "recipes" / "configs" / f"{name}.yaml"), "--output_dir", out]
    argv += ["--max_steps", str(n_updates), "--save_strategy", "no", "--report_to", "none", "--logging_steps", "1"]
    if on_cpu:
        argv += ["--use_cpu", "true", "--bf16", "false", "--optim", "adamw_torch", "--max_completion_length", "12"]
        argv += ["--gradient_accumulation_steps", "4"]
    parsed = recipe.parse_arguments(argv)
    args = next(part for part in parsed if hasattr(part, "gradient_accumulation_steps"))
    model_args = next(part for part in parsed if hasattr(part, "lora_r"))
    args.log_completions = False
    return args, model_args


def make_trainer(name: str, args, model, tokenizer, n_words: int, tiny: bool):
    method = name.partition("/")[0]
    room = min(getattr(args, "max_length", None) or 1536, 96 if tiny else 10**6)
    n_prompt = room - args.max_completion_length
    if method == "corrector_sft":  # which reads a response, and a message of some words
        n_prompt -= args.max_completion_length + 64
    n_rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * 4
    prompts = [words(n_prompt, i, n_words) + " " for i in range(n_rows)]
    common = {"processing_class": tokenizer}
    if method == "correction_optimization":
        return CorrectionOptimizationTrainer(
            model, args, train_dataset=Dataset.from_dict({"prompt": prompts}), teacher=teacher, **common
        )
    if method == "score":
        args.instruction = words(48, 0, n_words)
        return SCoReTrainer(model, value, args, train_dataset=Dataset.from_dict({"prompt": prompts}), **common)
    if method == "corrector_sft":
        # What a random model samples never ends, so it is no target; what is learned from is given
        given = [[words(args.max_completion_length - 1, 4 * i + k, n_words) for k in range(4)] for i in range(16)]
        rows = Dataset.from_dict({"prompt": prompts[:16], "generations": given})
        args.exploration_steps = 1
        return CorrectorSFTTrainer(model, args, train_dataset=rows, value_function=value, **common)
    responses = [words(args.max_completion_length - 1, n_rows + i, n_words) for i in range(n_rows)]
    pairs = {"prompt": prompts, "response": responses, "correction": teacher(prompts, responses)}
    return CorrectionOptimizationTrainer(model, args, train_dataset=Dataset.from_dict(pairs), **common)


def measure(name: str, cli: argparse.Namespace) -> dict:
    card = int(re.search(r"(\d+)gb", name)[1])
    on_gpu = cli.device == "cuda"
    with tempfile.TemporaryDirectory() as out:
        args, model_args = training_arguments(name, out, cli.updates, not on_gpu)
        size = "tiny" if cli.tiny else re.search(r"(\d)B", model_args.model_name_or_path)[0].lower()
        if on_gpu:
            total = torch.cuda.get_device_properties(0).total_memory
            # Built on the card in 16 bits and quantized there, which a user's model is not: the limit comes after
            torch.cuda.set_per_process_memory_fraction(1.0)
        tokenizer = build_tokenizer(MODELS[size].vocab_size)
        model = add_lora(to_nf4(build_model(size, cli.device)), model_args.lora_r)
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(min(1.0, (card - OUTSIDE_TORCH) * GIB / total))
            torch.cuda.reset_peak_memory_stats()
        trainer = make_trainer(name, args, model, tokenizer, MODELS[size].vocab_size, cli.tiny)
        trainer.remove_callback(PrinterCallback)
        clock = Clock()
        trainer.add_callback(clock)
        trainer.train()
    seconds = [later - earlier for earlier, later in zip(clock.times, clock.times[1:], strict=False)]
    figures = {"card_gib": card, "model": size, "seconds_per_update": [round(s, 2) for s in seconds]}
    figures["max_tokens_per_micro_batch"] = trainer._max_tokens
    figures["log"] = [
        {key: entry[key] for key in entry if key.startswith(("time/", "rollout/", "lengths/", "step_time"))}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    if on_gpu:
        figures["peak_allocated_gib"] = torch.cuda.max_memory_allocated() / GIB
        figures["peak_reserved_gib"] = torch.cuda.max_memory_reserved() / GIB
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="a toy instead of the named sizes")
    parser.add_argument("--configs", nargs="+", default=CONFIGS)
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--budget_seconds", type=float, default=360)
    parser.add_argument("--out", default=str(RESULTS))
    cli = parser.parse_args()
    disable_progress_bars()
    start = time.time()
    results = {
        "command": command_line(),
        "versions": installed_versions(),
        "device": torch.cuda.get_device_name(0) if cli.device == "cuda" else "cpu",
        "configs": {},
    }
    for name in cli.configs:
        if time.time() - start > cli.budget_seconds:
            print(f"{name}: not run, the time is up", flush=True)
            continue
        try:
            figures = measure(name, cli)
        except Exception as error:
            traceback.print_exc()
            figures = {"error": f"{type(error).__name__}: {error}"[:1000]}
        results["configs"][name] = figures
        Path(cli.out).parent.mkdir(parents=True, exist_ok=True)
        Path(cli.out).write_text(json.dumps(results, indent=2) + "\n")
        shown = {key: value for key, value in figures.items() if key != "log"}
        print(f"[{time.time() - start:5.1f} s] {name}: {shown}", flush=True)
        gc.collect()
        if cli.device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
