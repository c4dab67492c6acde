"""
How long do rollouts and whole updates take on a GPU, and what does each of the settings do about it?

A model of random weights, of the shape of a 7B or 8B one, is built on the card: NF4 with LoRA, as the shipped configs
train it. Each part runs in one process, one after the other, and its figures are written as soon as they are there:

    generation   N x M tokens: `generate` (dynamic cache, 4-bit, unmerged adapter), captured steps on the weights as
                 they are trained, on a 16-bit copy with the adapter beside it, and with the adapter merged in
    merging      what merging changes in the distribution: log p of sampled tokens, before and after
    updates      whole updates of correction optimization (16 pairs) and SCoRe (64 rollouts) with the settings of the
                 24 GB configs: `rollout: eager` and micro-batches of one pair (four rollouts), against `rollout: auto`
                 and micro-batches by tokens
    bf16         generation on a 16-bit base with LoRA

    python benchmarks/rollout_speed.py --device cuda                  # writes results/rollout_speed.json
    python benchmarks/rollout_speed.py --device cpu --tiny            # all of it in a minute, to see that it runs
    python benchmarks/rollout_speed.py --device cuda --parts generation merging --budget_seconds 200
"""

import argparse
import copy
import gc
import json
import os
import random
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import bitsandbytes as bnb
import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Qwen2Config,
    TrainerCallback,
    set_seed,
)

from correction_trl import CorrectionOptimizationConfig, CorrectionOptimizationTrainer, SCoReConfig, SCoReTrainer
from correction_trl.policy.captured_decoding import CapturedDecoding, Sampling
from correction_trl.policy.generation import sampling_config
from correction_trl.policy.quantization import keep_trainable_on_cpu
from correction_trl.policy.rollout import Rollouts
from correction_trl.policy.weight_copy import WeightCopy
from correction_trl.reporting import command_line, installed_versions


RESULTS = Path(__file__).parent.parent / "results" / "rollout_speed.json"
GIB = 2**30

MODELS = {
    "8b": LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    ),
    "7b": Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=8192,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    ),
    "3b": Qwen2Config(
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    ),
    "tiny": LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    ),
}


# --------------------------------------------------------------------------------------------------------------------
# The model
# --------------------------------------------------------------------------------------------------------------------


def build_tokenizer(n_words: int) -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i + 3 for i in range(n_words - 3)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def build_model(name: str, device: str) -> nn.Module:
    """Random weights, in evaluation mode."""
    set_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(
            copy.deepcopy(MODELS[name]), dtype=torch.bfloat16, attn_implementation="sdpa"
        ).eval()


def to_nf4(model: nn.Module) -> nn.Module:
    """All linear layers but the head in NF4 with double quantization, layer by layer where they lie."""
    for name, linear in list(model.named_modules()):
        if type(linear) is not nn.Linear or name == "lm_head":
            continue
        with torch.device("meta"):
            quantized = bnb.nn.Linear4bit(
                linear.in_features,
                linear.out_features,
                bias=linear.bias is not None,
                compute_dtype=torch.bfloat16,
                compress_statistics=True,
                quant_type="nf4",
            )
        weight = linear.weight.data
        quantized.weight = bnb.nn.Params4bit(
            weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=quantized
        ).to(weight.device)
        quantized.bias = linear.bias
        model.set_submodule(name, quantized)
        del linear, weight
    model.is_loaded_in_4bit = True  # what PEFT and TRL ask
    keep_trainable_on_cpu(model)
    return model.requires_grad_(False)


def add_lora(model: nn.Module, r: int, std: float = 0.01) -> PeftModel:
    """LoRA on all linear layers whose product is not zero, as it is not after some training."""
    model = get_peft_model(model, LoraConfig(r=r, lora_alpha=r, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(torch.bfloat16)  # as TRL does
        if "lora_B" in name:
            nn.init.normal_(parameter, std=std)
    return model.eval()


# --------------------------------------------------------------------------------------------------------------------
# The parts
# --------------------------------------------------------------------------------------------------------------------


class Bench:
    def __init__(self, args: argparse.Namespace):
        self.args, self.start = args, time.time()
        self.cuda = args.device == "cuda"
        self.name = "tiny" if args.tiny else args.model
        self.tokenizer = build_tokenizer(MODELS[self.name].vocab_size)
        self.results = {
            "command": command_line(),
            "versions": installed_versions(),
            "device": torch.cuda.get_device_name(0) if self.cuda else "cpu",
            "model": self.name,
            "rank": args.rank,
        }
        self.model: nn.Module | None = None

    def left(self) -> float:
        return self.args.budget_seconds - (time.time() - self.start)

    def write(self) -> None:
        path = Path(self.args.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.results, indent=2) + "\n")

    def say(self, text: str) -> None:
        print(f"[{time.time() - self.start:6.1f} s] {text}", flush=True)

    @contextmanager
    def part(self, name: str, needs_seconds: float):
        """Writes what `yield` gives (a dict to fill), whatever happens; skipped when the budget does not allow it."""
        figures = self.results.setdefault(name, {})
        try:
            yield figures
        except Exception as error:
            figures["error"] = f"{type(error).__name__}: {error}"[:2000]
            self.say(f"{name} FAILED: {figures['error'][:300]}")
            traceback.print_exc(limit=6)
        self.write()
        self.clean()

    def clean(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def clock(self, work: Callable[[], object]) -> tuple[float, float]:
        """Seconds, and peak GiB of the card."""
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        work()
        if self.cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        return seconds, torch.cuda.max_memory_allocated() / GIB if self.cuda else 0.0

    def prompts(self, n: int, length: int, seed: int = 0) -> list[list[int]]:
        """Lengths vary by a third."""
        generator = random.Random(seed)
        n_words = MODELS[self.name].vocab_size
        return [
            [generator.randrange(3, n_words) for _ in range(generator.randint(2 * length // 3, length))]
            for _ in range(n)
        ]

    def load(self, quantized: bool = True) -> None:
        self.model = None
        self.clean()
        start = time.time()
        model = build_model(self.name, self.args.device)
        self.model = add_lora(to_nf4(model) if quantized else model.requires_grad_(False), self.args.rank)
        self.clean()
        allocated = torch.cuda.memory_allocated() / GIB if self.cuda else 0.0
        self.say(
            f"{self.name} {'nf4' if quantized else 'bf16'} + LoRA built in {time.time() - start:.1f} s, "
            f"{allocated:.2f} GiB"
        )

    def generation(self, figures: dict, contenders: list[tuple[str, dict]]) -> None:
        args = self.args
        prompts = self.prompts(args.rows, args.prompt_length)
        for name, settings in contenders:
            try:
                figures[name] = self._generation(prompts, **settings)
            except Exception as error:
                figures[name] = {"error": f"{type(error).__name__}: {error}"[:2000]}
                self.say(f"generation {name} FAILED: {error}"[:400])
                traceback.print_exc(limit=6)
            self.clean()
            self.write()
            if base := figures[contenders[0][0]].get("tokens_per_second"):
                rate = figures[name].get("tokens_per_second", 0)
                figures[name]["ratio"] = rate / base
                self.say(f"generation {name}: {rate:,.0f} tokens/s, {rate / base:.2f}x; {figures[name]}")
            if self.left() < 0:
                return

    def _generation(self, prompts: list[list[int]], rollout: str, weights: str, rounds: int) -> dict:
        args = self.args
        config = sampling_config(self.tokenizer, [1], args.new_tokens, temperature=1.0)
        short = sampling_config(self.tokenizer, [1], 8, temperature=1.0)
        rollouts = Rollouts(rollout, weights, resident=True)
        # `generate` without row-wise random numbers: the fastest that it does
        seeds = None if rollout == "eager" else list(range(len(prompts)))
        self.model.eval()
        if rollout == "eager":  # kernels are loaded at their first call
            rollouts(self.model, prompts, short, seeds)
        calls = []
        for _ in range(rounds):
            found: list[list[int]] = []
            seconds, peak = self.clock(lambda: found.extend(rollouts(self.model, prompts, config, seeds)[0]))  # noqa: B023
            n_tokens = sum(map(len, found))
            calls.append({"seconds": seconds, "tokens": n_tokens, "peak_gib": peak})
        best = calls[-1]
        row = {
            "calls": calls,
            "tokens_per_second": best["tokens"] / best["seconds"],
            "ms_per_step": 1e3 * best["seconds"] / max(map(len, found)),
            "ways": dict(rollouts.ways),
            "said": sorted(rollouts._said),
        }
        if rollout != "eager":
            captured = rollouts._captured
            if captured is not None:
                row |= self._stages(rollouts, captured, prompts, short, seeds)
        # Of the sampled tokens, recomputed: the same for all ways, but for chance
        rollouts.close()
        row["mean_log_p"] = torch.cat(self.log_probs(prompts[:16], found[:16])).mean().item()
        return row

    def _stages(self, rollouts, captured: CapturedDecoding, prompts, short, seeds) -> dict:
        """Where the time of a call goes."""
        row = {"graphs": sorted(map(list, captured._graphs))}
        one = sampling_config(self.tokenizer, [1], 1, temperature=1.0)
        row["seconds_of_one_token"] = self.clock(lambda: rollouts(self.model, prompts, one, seeds))[0]
        if captured.copy is not None:
            row["seconds_of_a_refresh"] = self.clock(captured.copy.refresh)[0]
            row["copy_gib"] = captured.copy.n_bytes / GIB
        row["cache_gib"] = captured.cache_bytes(len(prompts), self.args.prompt_length + self.args.new_tokens) / GIB
        if self.cuda and captured._graphs:
            shape = max(captured._graphs)
            row["seconds_of_a_capture"] = self.clock(lambda: captured._capture(*shape))[0]
            row["ms_per_replay"] = (
                1e3 * self.clock(lambda: [captured._graphs[shape].replay() for _ in range(20)])[0] / 20
            )
            logits = captured._logits[: shape[0]]
            uniform = torch.rand(shape[0], 1, device="cuda")
            sampling = Sampling.of(captured.model, short)
            row["ms_per_draw"] = 1e3 * self.clock(lambda: [sampling.draw(logits, uniform) for _ in range(20)])[0] / 20
        return row

    def merging(self, figures: dict) -> None:
        """
        log p of sampled tokens under the weights as trained and under each copy: what a trainer that takes the samples
        of a copy for samples of its policy does not know. With adapters whose entries of B have a standard deviation
        as after few and after many updates.
        """
        args = self.args
        prompts = self.prompts(args.merging_rows, args.prompt_length, seed=1)
        config = sampling_config(self.tokenizer, [1], args.merging_tokens, temperature=1.0)
        for std in (2e-4, 2e-3, 2e-2):
            set_seed(1)
            for name, parameter in self.model.named_parameters():
                if "lora_B" in name:
                    nn.init.normal_(parameter, std=std)
            completions, _ = Rollouts("compiled", "auto")(self.model, prompts, config, list(range(len(prompts))))
            trained = self.log_probs(prompts, completions)
            with self.model.disable_adapter():
                base = self.log_probs(prompts, completions)
            adapter = torch.cat(trained) - torch.cat(base)
            row = {"adapter_mean_abs": adapter.abs().mean().item()}
            # The same weights in batches of another size: what rounding of activations does
            row["other_batches"] = differences(trained, self.log_probs(prompts, completions, batch_size=3))
            for name, settings in (
                ("dequantized", {"merged": False}),
                ("merged", {"merged": True}),
                ("merged_to_nearest", {"merged": True, "rounds_at_random": False}),
            ):
                copy = WeightCopy(self.model.get_base_model(), **settings)
                copy.refresh()
                with copy.in_use():
                    copied = self.log_probs(prompts, completions)
                row[name] = differences(trained, copied)
                # What of the adapter's effect the copy has
                effect = torch.cat(copied) - torch.cat(base)
                row[name]["adapter_kept"] = ((effect * adapter).sum() / adapter.square().sum()).item()
                del copy
                self.clean()
            figures[f"std_of_B_{std:g}"] = row
            self.say(f"merging, std of B {std:g}: {row}")
            self.write()

    @torch.no_grad()
    def log_probs(self, prompts, completions, batch_size: int = 8) -> list[torch.Tensor]:
        found = []
        for start in range(0, len(prompts), batch_size):
            rows = [p + c for p, c in zip(prompts[start:][:batch_size], completions[start:][:batch_size], strict=True)]
            longest = max(map(len, rows))
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=self.model.device)
            mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=ids.device)
            logits = self.model(input_ids=ids, attention_mask=mask).logits[:, :-1]
            for i, (prompt, row) in enumerate(zip(prompts[start:], rows, strict=False)):
                places = slice(len(prompt) - 1, len(row) - 1)
                log_p = logits[i, places].float().log_softmax(-1)
                found.append(log_p.gather(1, ids[i, len(prompt) : len(row), None])[:, 0].double().cpu())
        return found

    def updates(self, figures: dict, what: str) -> None:
        """Both contenders start from the same adapter. "new" comes first: the other one is the slow one."""
        build = self.correction_optimization if what == "correction_optimization" else self.score
        for name, settings in (
            ("new", {"rollout": "auto", "max_tokens": "auto", "n_cycles": 1 + self.args.cycles}),
            ("before", {"rollout": "eager", "max_tokens": None, "n_cycles": 1}),
        ):
            if name not in self.args.contenders:
                continue
            try:
                figures[name] = self._updates(build, **settings)
            except Exception as error:
                figures[name] = {"error": f"{type(error).__name__}: {error}"[:2000]}
                self.say(f"{what} {name} FAILED: {error}"[:400])
                traceback.print_exc(limit=8)
            self.clean()
            self.write()
            self.say(f"{what} {name}: {figures[name]}")
            if self.left() < 0:
                return
        if "seconds" in figures.get("before", {}) and "seconds" in figures.get("new", {}):
            figures["ratio"] = figures["before"]["seconds"] / figures["new"]["seconds"]
            self.say(f"{what}: {figures['ratio']:.2f}x")

    def _updates(self, build: Callable, rollout: str, max_tokens: str | None, n_cycles: int) -> dict:
        """
        A cycle samples once and trains on it: four updates of correction optimization, one of SCoRe. Where there are
        several, the first is not counted: graphs are captured, and the size of micro-batches is found.
        """
        if isinstance(self.model, PeftModel):
            self.model = self.model.unload()
        per_cycle = 4 if build == self.correction_optimization else 1
        trainer, clock = build(rollout, max_tokens, n_cycles * per_cycle)
        trainer.remove_callback(PrinterCallback)
        try:
            _, peak = self.clock(trainer.train)
        finally:
            self.model = trainer.accelerator.unwrap_model(trainer.model)
        first = per_cycle if n_cycles > 1 else 0
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        row = {
            "seconds": (clock.times[-1] - clock.times[first]) / (len(clock.times) - 1 - first),
            "all_seconds": [b - a for a, b in zip(clock.times, clock.times[1:], strict=False)],
            "peak_gib": peak,
            "forwards": [f"{n} x {shape[0]} rows of {shape[1]}" for shape, n in Counter(clock.forwards).items()],
            "time": {
                key: [entry.get(key) for entry in logs]
                for key in sorted(set().union(*logs))
                if key.startswith(("time/", "rollout/"))
            },
        }
        trainer.model = trainer.model_wrapped = None
        return row

    def common(self, rollout: str, max_tokens: str | None, max_steps: int, config_class: type) -> dict:
        """Arguments of both trainers, as the shipped 24 GB configs set them."""
        args = {
            "output_dir": tempfile.mkdtemp(),
            "max_steps": max_steps,
            "learning_rate": 2e-5,
            "max_completion_length": self.args.completion_length,
            "temperature": 1.0,
            "optim": "paged_adamw_8bit" if self.cuda else "adamw_torch",
            "bf16": self.cuda,
            "use_cpu": not self.cuda,
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "log_level": "error",
            "seed": 0,
        }
        known = config_class.__dataclass_fields__
        for name, value in (("rollout", rollout), ("max_tokens_per_micro_batch", max_tokens)):
            if name in known:
                args[name] = value
            else:
                self.say(f"{config_class.__name__} has no `{name}` yet")
        return args

    def lora(self) -> LoraConfig:
        rank = self.args.rank
        return LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM")

    def correction_optimization(self, rollout, max_tokens, max_steps):
        rows, words = self.args.pairs, MODELS[self.name].vocab_size - 3

        def teacher(prompts, responses, **columns):
            """Another word two thirds into the response: a minimal edit."""
            corrections = []
            for response in responses:
                tokens = response.split()
                place = 2 * len(tokens) // 3
                tokens[place:] = [
                    f"w{(int(w[1:] or 0) + 1) % words}" if w[:1] == "w" else "w0" for w in tokens[place:]
                ]
                corrections.append(" ".join(tokens))
            return corrections

        prompts = self.prompts(rows * max_steps, self.args.prompt_length, seed=2)
        dataset = Dataset.from_dict({"prompt": [self.tokenizer.decode(ids) + " " for ids in prompts]})
        clock = Clock(self.cuda)
        trainer = CorrectionOptimizationTrainer(
            model=self.model,
            args=CorrectionOptimizationConfig(
                **self.common(rollout, max_tokens, max_steps, CorrectionOptimizationConfig),
                per_device_train_batch_size=1,
                gradient_accumulation_steps=rows,
                generation_batch_size=None if rollout == "auto" else 32,
                loss_type="sigmoid",
                beta=0.1,
                nll_weight=5.0,
                max_length=None,
                max_staleness=3,
            ),
            train_dataset=dataset,
            teacher=teacher,
            processing_class=self.tokenizer,
            callbacks=[clock],
            peft_config=self.lora(),
        )
        clock.watch(trainer.model)
        return trainer, clock

    def score(self, rollout, max_tokens, max_steps):
        rows = self.args.rollouts
        batch = 4 if max_tokens is None else 8  # where tokens do not decide

        def reward(completions, **columns):
            return [len(text) % 7 / 7 for text in completions]

        prompts = self.prompts(rows * max_steps, self.args.prompt_length, seed=3)
        dataset = Dataset.from_dict({"prompt": [self.tokenizer.decode(ids) + " " for ids in prompts]})
        clock = Clock(self.cuda)
        settings = self.common(rollout, max_tokens, max_steps, SCoReConfig)
        settings["max_completion_length"] = self.args.attempt_length
        trainer = SCoReTrainer(
            model=self.model,
            reward_funcs=reward,
            args=SCoReConfig(
                **settings,
                stage="2",
                turns=2,
                num_generations=8 if rows >= 8 else rows,
                instruction="w1 w2 w3 w4 w5 w6 w7 w8",
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=rows // batch,
            ),
            train_dataset=dataset,
            processing_class=self.tokenizer,
            callbacks=[clock],
            peft_config=self.lora(),
        )
        clock.watch(trainer.model)
        return trainer, clock


class Clock(TrainerCallback):
    """When updates end, and how many forward passes of how many tokens there were with a gradient."""

    def __init__(self, cuda: bool):
        self.cuda, self.times, self.forwards = cuda, [], []

    def watch(self, model: nn.Module) -> None:
        def hook(module, args, kwargs):
            if torch.is_grad_enabled():
                self.forwards.append(tuple(kwargs["input_ids"].shape))

        model.register_forward_pre_hook(hook, with_kwargs=True)

    def on_train_begin(self, args, state, control, **kwargs):
        self.on_step_end(args, state, control)

    def on_step_end(self, args, state, control, **kwargs):
        if self.cuda:
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


def differences(before: list[torch.Tensor], after: list[torch.Tensor]) -> dict:
    """Per token, and the importance ratio p(before) / p(after) of whole completions."""
    per_token = torch.cat([b - a for b, a in zip(before, after, strict=True)])
    log_ratio = torch.stack([(b - a).sum() for b, a in zip(before, after, strict=True)])
    ratio = log_ratio.exp()
    return {
        "tokens": per_token.numel(),
        "mean_abs": per_token.abs().mean().item(),
        "largest_abs": per_token.abs().max().item(),
        "mean": per_token.mean().item(),
        "token_ratio": [per_token.exp().min().item(), per_token.exp().max().item()],
        "completion_ratio": [ratio.min().item(), ratio.median().item(), ratio.max().item()],
        # of n samples, so many of the other distribution are worth as much
        "effective_share": (ratio.sum() ** 2 / (ratio**2).sum() / len(ratio)).item(),
        "mean_log_p": torch.cat(after).mean().item(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--model", default="8b", choices=sorted(MODELS))
    parser.add_argument("--tiny", action="store_true", help="a small model and few tokens: only to see that it runs")
    parser.add_argument("--parts", nargs="+", default=["generation", "merging", "updates", "bf16"])
    parser.add_argument("--budget_seconds", type=float, default=360, help="no part begins after that")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--prompt_length", type=int, default=100)
    parser.add_argument("--new_tokens", type=int, default=256)
    parser.add_argument("--merging_rows", type=int, default=32)
    parser.add_argument("--merging_tokens", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=16, help="pairs of an update of correction optimization")
    parser.add_argument("--completion_length", type=int, default=256)
    parser.add_argument("--rollouts", type=int, default=64, help="rollouts of a step of SCoRe")
    parser.add_argument("--attempt_length", type=int, default=128)
    methods = ["correction_optimization", "score"]
    parser.add_argument("--methods", nargs="+", default=methods, choices=methods, help="whose updates")
    parser.add_argument("--contenders", nargs="+", default=["new", "before"], help="of the updates")
    parser.add_argument("--cycles", type=int, default=2, help="of sampling and training, after a first one")
    parser.add_argument("--out", default=str(RESULTS))
    args = parser.parse_args()
    if args.tiny:
        args.rows, args.prompt_length, args.new_tokens, args.merging_tokens = 6, 12, 20, 20
        args.merging_rows, args.pairs, args.completion_length, args.rollouts, args.attempt_length = 4, 4, 8, 8, 6
        args.rank, args.cycles = 4, 1
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    disable_progress_bars()
    bench = Bench(args)
    captured = "auto" if args.device == "cuda" else "compiled"
    contenders = [
        ("generate", {"rollout": "eager", "weights": "as_trained", "rounds": 1}),
        ("captured_as_trained", {"rollout": captured, "weights": "as_trained", "rounds": 2}),
        ("captured_dequantized", {"rollout": captured, "weights": "dequantized", "rounds": 2}),
        ("captured_merged", {"rollout": captured, "weights": "merged", "rounds": 2}),
    ]
    parts = {
        "generation": lambda figures: bench.generation(figures, contenders),
        "merging": bench.merging,
        "updates": None,
        "bf16": lambda figures: bench.generation(figures, [c for c in contenders if "dequantized" not in c[0]]),
    }
    with bench.part("model", 0):
        bench.load()
    for name in args.parts:
        if bench.left() < 0:
            bench.results[name] = {"skipped": "no time left"}
            continue
        if name == "updates":
            for what in args.methods:
                if bench.left() > 0:
                    with bench.part(what, 0) as figures:
                        bench.updates(figures, what)
            continue
        with bench.part(name, 0) as figures:
            if name == "bf16":
                bench.load(quantized=False)
            parts[name](figures)
    bench.write()
    bench.say("done")


if __name__ == "__main__":
    main()
