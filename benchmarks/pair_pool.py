"""
How fast the pair pool draws pairs, in seconds of CPU time of one thread, and how much memory it takes.

    python benchmarks/pair_pool.py          # writes results/corrector_pair_pool.json
"""

import argparse
import json
import resource
import string
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from correction_trl.corrector_sft.pair_pool import PairPool, Record
from correction_trl.reporting import installed_versions


RESULTS = Path(__file__).parent.parent / "results" / "corrector_pair_pool.json"
# Responses in the pool, responses per prompt, characters (and tokens, one per four characters) of each
SHAPES = [(1_000_000, 8, 13), (1_000_000, 32, 13), (100_000, 8, 13), (100_000, 8, 400)]


def memory() -> float:
    """Most memory that this process took so far, in MiB (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fill(n_responses: int, per_prompt: int, length: int, rng: np.random.Generator) -> PairPool:
    pool = PairPool(n_responses // per_prompt)
    letters = np.array(list(string.ascii_lowercase))
    for start in range(0, pool.n_prompts, 1000):
        n = min(1000, pool.n_prompts - start)
        base = rng.integers(26, size=(n, 1, length))
        texts = np.repeat(base, per_prompt, axis=1)
        edits = rng.random(texts.shape) < 0.2  # similar to one another, as samples of one model are
        texts[edits] = rng.integers(26, size=edits.sum())
        values = rng.integers(14, size=(n, per_prompt)) / 13
        pool.add(
            [
                Record(start + i, "".join(letters[texts[i, j]]), range(max(length // 4, 1)), float(values[i, j]))
                for i in range(n)
                for j in range(per_prompt)
            ]
        )
    return pool


def measure(n_responses: int, per_prompt: int, length: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    before, start = memory(), time.process_time()
    pool = fill(n_responses, per_prompt, length, rng)
    filled, memory_filled = time.process_time(), memory()
    pool.has_pairs()
    indexed = time.process_time()
    seconds = []
    for _ in range(5):
        begin = time.process_time()
        pool.sample(10_000, rng)
        seconds.append(time.process_time() - begin)
    return {
        "responses": len(pool),
        "responses_per_prompt": per_prompt,
        "characters": length,
        "pairs": round(pool.statistics()["pairs_per_prompt"] * pool.n_prompts),
        "seconds_to_add": round(filled - start, 2),
        "seconds_to_index": round(indexed - filled, 3),
        "pairs_per_second": round(10_000 / float(np.median(seconds))),
        "memory_mib": round(memory_filled - before),
        "memory_with_sampling_mib": round(memory() - before),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shape", type=int, nargs=3, help="one shape, in this process; by default all, each in its own"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.shape:
        print(json.dumps(measure(*args.shape)))
        return
    rows = []
    for shape in SHAPES:
        command = [sys.executable, __file__, "--shape", *map(str, shape)]
        rows.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        print(rows[-1], flush=True)
    command = "python benchmarks/pair_pool.py"
    args.results.write_text(
        json.dumps({"shapes": rows, "command": command, "versions": installed_versions()}, indent=1)
    )


if __name__ == "__main__":
    main()
