"""
What does it save to compute a pair once? Training steps of TRL's `DPOTrainer` against those of the
`CorrectionOptimizationTrainer` with and without shared prefixes: the same random model, the same pairs as text, the
same optimizer, in one run.

Each measurement is a process of its own, which trains for a few steps; the contenders take turns, several rounds of
them, so that a busy machine hits all alike. Times are medians over the steps of all rounds but each one's first.

    python benchmarks/pair_step.py                             # 20M parameters, CPU: writes results/pair_step.json
    python benchmarks/pair_step.py --table                     # only rewrites the table of docs/shared_prefix.md
    python benchmarks/pair_step.py --device cuda --model 8b --peft lora --attention sdpa --peak-tflops 989
    python benchmarks/pair_step.py --device cuda --model 8b --peft qlora --attention flex_attention
"""

import argparse
import ctypes
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Qwen3Config,
    TrainerCallback,
    set_seed,
)
from trl import DPOConfig, DPOTrainer
from trl.trainer.utils import compute_flops_per_token

from correction_trl import CorrectionOptimizationConfig, CorrectionOptimizationTrainer
from correction_trl.correction_optimization.shared_prefix import MIN_EXPECTED_SPEEDUP
from correction_trl.reporting import installed_versions


ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "pair_step.json"
PAGE = ROOT / "docs" / "shared_prefix.md"
TABLE_START, TABLE_END = "<!-- written by benchmarks/pair_step.py -->\n", "<!-- end -->"

MODELS = {
    "20m": Qwen3Config(
        vocab_size=16384,
        hidden_size=384,
        intermediate_size=1152,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    ),
    "7b": Qwen3Config(
        vocab_size=151936,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        head_dim=128,
        max_position_embeddings=8192,
    ),
    "8b": LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
    ),
}

# Tokens of the prompt, of the common prefix and of each tail; the mix has one draw of lengths per pair.
SHAPES = {
    "cpu": {
        "128/64/64": (128, 64, 64),
        "128/192/32": (128, 192, 32),
        "256/256/64": (256, 256, 64),
        "512/384/64": (512, 384, 64),
        "mix": None,
        "128/0/128": (128, 0, 128),
        "16/0/240": (16, 0, 240),
        "16/128/512": (16, 128, 512),
    },
    "cuda": {
        "512/256/256": (512, 256, 256),
        "1024/512/512": (1024, 512, 512),
        "2048/1536/512": (2048, 1536, 512),
        "mix": None,
    },
}

CONTENDERS = {
    "dpo": "TRL `DPOTrainer`",
    "two_rows": "two rows",
    "shared": "shared prefix",
    "auto": "`auto`",
    "two_rows_reference_free": "two rows, reference-free",
    "shared_reference_free": "shared prefix, reference-free",
}


def make_pairs(shape: tuple[int, int, int] | None, n_pairs: int, vocab_size: int, scale: int) -> Dataset:
    """Random words in TRL's preference format; the last token of each completion is the EOS that the trainers add."""
    rng = random.Random(0)

    def words(n):
        return [f"w{rng.randrange(vocab_size - 3)}" for _ in range(n)]

    rows = []
    for _ in range(n_pairs):
        if shape is None:  # log-normal lengths; the edit begins in the second half of the response
            n_prompt = min(max(int(scale * rng.lognormvariate(0, 0.6)), 16), 4 * scale)
            n_response = min(max(int(scale * rng.lognormvariate(0, 0.5)), 16), 3 * scale)
            n_common = int(n_response * rng.uniform(0.5, 0.95))
            n_rejected = n_response - n_common
            n_chosen = max(int(n_rejected * rng.uniform(0.7, 1.3)), 1)
        else:
            n_prompt, n_common, n_rejected = shape
            n_chosen = n_rejected
        prompt, common = words(n_prompt), words(n_common)
        rejected, chosen = words(n_rejected - 1), words(n_chosen - 1)
        if rejected and chosen and rejected[0] == chosen[0]:
            chosen[0] = "w0" if rejected[0] != "w0" else "w1"
        # Two kinds of white space, so that the space between prompt and completion belongs to the prompt
        rows.append(
            {
                "prompt": " ".join(prompt) + " ",
                "rejected": " ".join(common + rejected),
                "chosen": " ".join(common + chosen),
            }
        )
    return Dataset.from_list(rows)


def make_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i + 3 for i in range(vocab_size - 3)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def save_weights(args: argparse.Namespace, folder: str) -> None:
    torch.set_num_threads(args.threads)
    set_seed(0)
    dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    with torch.device(args.device):
        model = AutoModelForCausalLM.from_config(MODELS[args.model], dtype=dtype)
    model.save_pretrained(folder)


def load_model(args: argparse.Namespace, folder: str) -> torch.nn.Module:
    kwargs = {"dtype": torch.float32}
    if args.device == "cuda":
        kwargs = {"dtype": torch.bfloat16, "device_map": {"": 0}}
    if args.peft == "qlora":
        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=args.attention, **kwargs)


class StepClock(TrainerCallback):
    """Times from the end of one step to the end of the next, so data loading and collation count."""

    def __init__(self, device: str):
        self.device = device
        self.ends = []  # on the wall's clock, and in CPU time of this process, which a busy machine hardly changes

    def on_step_end(self, args, state, control, **kwargs):
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.ends.append((time.perf_counter(), time.process_time()))

    def seconds(self, clock: int) -> list[float]:
        return [end[clock] - start[clock] for start, end in zip(self.ends, self.ends[1:], strict=False)]


def resident_bytes(field: str) -> int:
    """`VmRSS` (now) or `VmHWM` (the most since it was reset) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def measure(contender: str, shape_name: str, args: argparse.Namespace, folder: str, found: Path) -> None:
    """Train for a few steps, in a process of its own, and write what was measured to the file `found`."""
    torch.set_num_threads(args.threads)
    disable_progress_bars()
    set_seed(0)
    vocab_size = MODELS[args.model].vocab_size
    pairs = make_pairs(
        SHAPES[args.device][shape_name],
        args.batch_size * (args.steps + 1),
        vocab_size,
        128 if args.device == "cpu" else 512,
    )
    common = {
        "output_dir": tempfile.mkdtemp(),
        "max_steps": args.steps + 1,
        "per_device_train_batch_size": args.batch_size,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "max_length": None,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
        "bf16": args.device == "cuda",
        "use_cpu": args.device == "cpu",
        "gradient_checkpointing": args.device == "cuda",
        "loss_type": "sigmoid",
        "beta": 0.1,
    }
    clock = StepClock(args.device)
    kwargs = {
        "model": load_model(args, folder),
        "train_dataset": pairs,
        "processing_class": make_tokenizer(vocab_size),
        "callbacks": [clock],
    }
    if args.peft is not None:
        kwargs["peft_config"] = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    if contender == "dpo":
        trainer = DPOTrainer(args=DPOConfig(**common), **kwargs)
    else:
        shared_prefix = {"two": False, "shared": True, "auto": "auto"}[contender.split("_")[0]]
        reference_free = contender.endswith("reference_free")
        config = CorrectionOptimizationConfig(
            **common,
            nll_weight=0.0,
            shared_prefix=shared_prefix,
            reference_free=reference_free,
            pad_to_multiple_of=8 if args.device == "cuda" else None,
            max_tokens_per_micro_batch=None,  # whole steps as DPOTrainer's, and no trial of sizes among the forwards
        )
        trainer = CorrectionOptimizationTrainer(args=config, **kwargs)
    del kwargs
    trainer.remove_callback(PrinterCallback)

    tokens = []
    trainer.model.register_forward_pre_hook(
        lambda module, positional, inputs: tokens.append(inputs["input_ids"].numel()) if module.training else None,
        with_kwargs=True,
    )
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        loaded = torch.cuda.memory_allocated()
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        loaded = resident_bytes("VmRSS")
    trainer.train()
    peak = torch.cuda.max_memory_allocated() if args.device == "cuda" else resident_bytes("VmHWM")
    measured = {
        "seconds": clock.seconds(0),
        "cpu_seconds": clock.seconds(1),
        "tokens": tokens[1:],
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "loaded_bytes": loaded,
        "peak_bytes": peak,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
    }
    found.write_text(json.dumps(measured))


def in_a_process(args: argparse.Namespace, function: Callable, *arguments) -> None:
    context = multiprocessing.get_context("fork" if args.device == "cpu" else "spawn")
    process = context.Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"`{function.__name__}` failed; see above.")


def run_alone(contender: str, shape_name: str, args: argparse.Namespace, folder: str) -> dict:
    found = Path(folder) / "found.json"
    in_a_process(args, measure, contender, shape_name, args, folder, found)
    return json.loads(found.read_text())


def summarise(runs: dict[str, list[dict]], args: argparse.Namespace) -> dict:
    """Per contender the medians, and what they mean relative to one another."""
    summary = {"contenders": {}}
    for contender, rounds in runs.items():
        seconds = [value for found in rounds for value in found["seconds"]]
        tokens = sum(rounds[0]["tokens"]) / len(rounds[0]["tokens"])
        row = {
            "seconds_per_step": statistics.median(seconds),
            "cpu_seconds_per_step": statistics.median(value for found in rounds for value in found["cpu_seconds"]),
            "seconds_quartiles": statistics.quantiles(seconds, n=4)[::2] if len(seconds) > 1 else seconds * 2,
            "tokens_per_step": tokens,
            "peak_above_loaded_bytes": statistics.median(f["peak_bytes"] - f["loaded_bytes"] for f in rounds),
            "peak_bytes": statistics.median(f["peak_bytes"] for f in rounds),
            "losses": rounds[0]["losses"],
        }
        if args.peak_tflops is not None:
            # A forward pass is a third of TRL's count for training. Policy and reference each need one; the backward
            # pass costs two, or one if the weights are frozen under an adapter. Recomputation does not count.
            n_forwards = (1 if "reference_free" in contender else 2) + (2 if args.peft is None else 1)
            columns = tokens / args.batch_size / (2 if contender.startswith(("dpo", "two_rows")) else 1)
            flops = compute_flops_per_token(MODELS[args.model], int(columns)) / 3 * n_forwards * tokens
            row["model_flop_utilisation"] = flops / row["seconds_per_step"] / (args.peak_tflops * 1e12)
        summary["contenders"][contender] = row

    found = summary["contenders"]
    token_ratio = found["dpo"]["tokens_per_step"] / found["shared"]["tokens_per_step"]

    def times_faster(contender, baseline="dpo", clock="seconds_per_step"):
        return found[baseline][clock] / found[contender][clock]

    summary["token_ratio"] = token_ratio
    summary["speedup"] = times_faster("shared")
    summary["speedup_of_bound"] = times_faster("shared") / token_ratio
    summary["speedup_cpu_time"] = times_faster("shared", clock="cpu_seconds_per_step")
    summary["loss_difference"] = max(
        abs(a - b) for a, b in zip(found["dpo"]["losses"], found["shared"]["losses"], strict=True)
    )
    summary["memory_ratio"] = found["shared"]["peak_above_loaded_bytes"] / found["dpo"]["peak_above_loaded_bytes"]
    if "shared_reference_free" in found:
        # Without the reference a step is one forward and one backward pass instead of two and one: 3 units, not 4.
        summary["bound_reference_free"] = token_ratio * 4 / 3
        summary["speedup_reference_free"] = times_faster("shared_reference_free")
        summary["speedup_reference_free_cpu_time"] = times_faster(
            "shared_reference_free", clock="cpu_seconds_per_step"
        )
        summary["memory_ratio_reference_free"] = (
            found["shared_reference_free"]["peak_above_loaded_bytes"] / found["dpo"]["peak_above_loaded_bytes"]
        )
    if "auto" in found and "two_rows" in found:
        summary["auto_over_two_rows"] = 1 / times_faster("auto", "two_rows")
        summary["auto_over_two_rows_cpu_time"] = 1 / times_faster("auto", "two_rows", "cpu_seconds_per_step")
    return summary


def table(results: dict) -> str:
    """The committed results as Markdown."""
    blocks = []
    for run in results["runs"].values():
        settings = run["settings"]
        lines = [
            f"**{run['title']}**, {settings['attention']}, batch of {settings['batch_size']} pairs, "
            f"{settings['threads']} threads, {settings['rounds']} rounds of {settings['steps']} steps.",
            "",
            "| prompt/common/tail | tokens per step: two rows, packed | s per step: `DPOTrainer`, packed "
            "| times faster (token bound) | reference-free (bound) | `auto` / two rows "
            "| peak memory above the loaded models | largest loss difference |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, shape in run["shapes"].items():
            found = shape["contenders"]
            free = auto = ""
            if "speedup_reference_free" in shape:
                free = f"{shape['speedup_reference_free']:.2f} ({shape['bound_reference_free']:.2f})"
            if "auto_over_two_rows" in shape:
                auto = f"{shape['auto_over_two_rows']:.2f}"
            lines.append(
                f"| {name} | {found['dpo']['tokens_per_step']:.0f}, {found['shared']['tokens_per_step']:.0f} "
                f"| {found['dpo']['seconds_per_step']:.2f}, {found['shared']['seconds_per_step']:.2f} "
                f"| {shape['speedup']:.2f} ({shape['token_ratio']:.2f}) | {free} | {auto} "
                f"| {shape['memory_ratio']:.2f} | {shape['loss_difference']:.1e} |"
            )
        if any("model_flop_utilisation" in shape["contenders"]["dpo"] for shape in run["shapes"].values()):
            lines += [
                "",
                "| prompt/common/tail | contender | peak GPU memory | model FLOP utilisation |",
                "|---|---|---|---|",
            ]
            for name, shape in run["shapes"].items():
                for contender, row in shape["contenders"].items():
                    lines.append(
                        f"| {name} | {CONTENDERS[contender]} | {row['peak_bytes'] / 2**30:.1f} GiB "
                        f"| {row['model_flop_utilisation']:.1%} |"
                    )
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def write_table(results: dict) -> None:
    page = PAGE.read_text()
    before, _, rest = page.partition(TABLE_START)
    _, _, after = rest.partition(TABLE_END)
    PAGE.write_text(f"{before}{TABLE_START}\n{table(results)}\n\n{TABLE_END}{after}")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", choices=tuple(MODELS), default="20m", help="shape of the random model")
    parser.add_argument("--attention", choices=("sdpa", "eager", "flex_attention"), default="sdpa")
    parser.add_argument("--peft", choices=("lora", "qlora"), help="adapter on 16-bit or on 4-bit weights")
    parser.add_argument("--shapes", nargs="+", help="prompt/common/tail as in the table, or 'mix'")
    parser.add_argument("--contenders", nargs="+", choices=tuple(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--batch-size", type=int, default=4, help="pairs per step")
    parser.add_argument("--steps", type=int, default=4, help="measured steps of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--peak-tflops", type=float, help="of the GPU, dense bf16, for the model FLOP utilisation")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="measure nothing, only rewrite the table of the docs")
    return parser


def main(args: argparse.Namespace) -> None:
    results = json.loads(args.output.read_text()) if args.output.is_file() else {"runs": {}}
    if args.table:
        return write_table(results)
    for shape_name in args.shapes or []:
        if shape_name not in SHAPES[args.device]:
            raise ValueError(f"`--shapes {shape_name}` is not one of {', '.join(SHAPES[args.device])}.")

    title = f"{args.model} parameters on {args.device}" + ("" if args.peft is None else f", {args.peft}")
    key = f"{args.device}/{args.model}/{args.peft or 'full'}/{args.attention}"
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    run = {"title": title, "settings": settings, "versions": installed_versions(), "shapes": {}}
    run["min_expected_speedup"] = MIN_EXPECTED_SPEEDUP
    with tempfile.TemporaryDirectory() as folder:
        in_a_process(args, save_weights, args, folder)
        for shape_name in args.shapes or SHAPES[args.device]:
            runs = {contender: [] for contender in args.contenders}
            for _ in range(args.rounds):
                for contender in args.contenders:
                    runs[contender].append(run_alone(contender, shape_name, args, folder))
            run["parameters"] = runs[args.contenders[0]][0]["parameters"]
            run["shapes"][shape_name] = summarise(runs, args)
            results["runs"][key] = run
            args.output.parent.mkdir(exist_ok=True)
            args.output.write_text(json.dumps(results, indent=2) + "\n")
            print(table({"runs": {key: run}}).splitlines()[-1], flush=True)
    print(table({"runs": {key: run}}))
    if args.output == RESULTS:
        write_table(results)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main(make_parser().parse_args())
