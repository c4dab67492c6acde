"""
How long does it take to evaluate two-turn problems? The embedded model on its test problems, two attempts each, in
batches of differing size; and five strategies at once.

    python benchmarks/evaluation_speed.py          # 2,000 problems: writes results/evaluation_speed.json
"""

import argparse
import json
import os
import time
from functools import partial
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from correction_trl.carry_addition import embedded_path, exact_match
from correction_trl.evaluation import evaluate_attempts, evaluate_traces
from correction_trl.inference import (
    LocalChat,
    Problem,
    best_of_n,
    gated_revision,
    intrinsic,
    resample,
    run,
    samples_agree,
    self_consistency,
)
from correction_trl.reporting import installed_versions


RESULTS = Path(__file__).parent.parent / "results" / "evaluation_speed.json"
INSTRUCTION = "There might be an error in the answer above. Please correct it."


def timed(function) -> dict:
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return {
        "seconds": round(time.perf_counter() - wall, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        **result,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=2000)
    parser.add_argument("--batch_sizes", type=int, nargs="*", default=[1, 16, 64, 256, 1000])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    path = embedded_path("tiny-carry-chat")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    problems = load_dataset(embedded_path("carry_addition"), split="test").select(range(args.problems))

    def two_turns(batch_size: int, temperature: float, n_problems: int) -> dict:
        found = evaluate_attempts(
            model,
            tokenizer,
            problems.select(range(n_problems)),
            exact_match,
            INSTRUCTION,
            temperature=temperature,
            max_completion_length=16,
            batch_size=batch_size,
        )
        return {"problems": n_problems, "acc@t1": found.metrics["acc@t1"]["mean"]}

    def all_strategies(batch_size: int) -> dict:
        chat = LocalChat(model, tokenizer, max_tokens=16, batch_size=batch_size)
        strategies = [
            partial(intrinsic, instruction=INSTRUCTION),
            partial(gated_revision, check=samples_agree, instruction=INSTRUCTION),
            partial(self_consistency, samples=2),
            partial(best_of_n, value_function=exact_match, samples=2),
            resample,
        ]
        rows = [
            Problem(row["prompt"], {name: value for name, value in row.items() if name != "prompt"})
            for row in problems
        ]
        traces = run((strategy(chat, row) for strategy in strategies for row in rows), window=chat.window)
        for first in range(0, len(traces), len(rows)):
            found = dict(zip(((i, 0) for i in range(len(rows))), traces[first : first + len(rows)], strict=True))
            evaluate_traces(problems, found, exact_match)
        return {"problems": len(rows), "strategies": len(strategies), "replies": sum(t.replies for t in traces)}

    load = os.getloadavg()[0]
    two_turns(64, 0.0, min(64, args.problems))  # warm-up
    results = {
        "command": f"python benchmarks/evaluation_speed.py --problems {args.problems}",
        "cpus": args.threads,
        "load_average_before": round(load, 1),
        "versions": installed_versions(),
        "two_turns": [],
    }
    for batch_size in args.batch_sizes:
        for temperature in (0.0, 1.0) if batch_size >= 64 else (0.0,):
            n_problems = args.problems if batch_size >= 64 else min(args.problems, 20 * batch_size)
            cell = timed(partial(two_turns, batch_size, temperature, n_problems))
            results["two_turns"].append({"batch_size": batch_size, "temperature": temperature, **cell})
            print(results["two_turns"][-1], flush=True)
    results["all_strategies"] = {"batch_size": 256, **timed(partial(all_strategies, 256))}
    print(results["all_strategies"])
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
