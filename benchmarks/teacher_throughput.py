"""
Measures what a collection of corrections loses to its own work, and writes `results/teacher_throughput.json`.

    python benchmarks/teacher_throughput.py --output results/teacher_throughput.json

A local server answers after a fixed time. 2,000 requests at 500 ms, 64 at a time, against what concurrency and latency
allow; and 10,000 requests at 50 ms against a bare client (aiohttp, the same requests, nothing kept) in the same run,
the two in turns. Every answer is on the disk before its place is free. Takes about two minutes.
"""

import argparse
import asyncio
import importlib.metadata
import json
import os
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

from correction_trl.teachers import CorrectionStore, ServerTeacher, collect
from correction_trl.teachers.base import items_of


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from misbehaving_server import running  # noqa: E402


CONCURRENCY = 64


def rows(n: int):
    for i in range(n):
        yield {"prompt": f"item {i}", "response": "It is so, because it was always so. " * 20}


def collected(url: str, n: int) -> dict:
    """A collection as the recipe makes it."""
    with tempfile.TemporaryDirectory() as folder, CorrectionStore(Path(folder) / "corrections.sqlite") as store:
        cpu, start = time.process_time(), time.perf_counter()
        progress = collect(store, ServerTeacher("benchmark", url, concurrency=CONCURRENCY), rows(n))
        seconds = time.perf_counter() - start
        assert progress.statuses["corrected"] == len(store) == n
        return measured(n, seconds, time.process_time() - cpu)


def bare(url: str, n: int) -> dict:
    """The same requests by a client that does nothing else."""
    teacher = ServerTeacher("benchmark", url)

    async def load():
        items = items_of(rows(n))
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONCURRENCY)) as client:

            async def place():
                for item in items:
                    body = {
                        "model": "benchmark",
                        "messages": teacher.prompt.messages({"prompt": item.prompt, "response": item.response}),
                    }
                    async with client.post(f"{url}/chat/completions", json=body) as response:
                        await response.json()

            await asyncio.gather(*(place() for _ in range(CONCURRENCY)))

    cpu, start = time.process_time(), time.perf_counter()
    asyncio.run(load())
    return measured(n, time.perf_counter() - start, time.process_time() - cpu)


def measured(n: int, seconds: float, cpu: float) -> dict:
    return {
        "seconds": round(seconds, 2),
        "requests_per_second": round(n / seconds, 1),
        "cpu_ms_per_request": round(1000 * cpu / n, 3),
        "load_average": round(os.getloadavg()[0], 1),
    }


def memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--slow_requests", type=int, default=2000)
    parser.add_argument("--fast_requests", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3, help="Of the fast requests.")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    with running(latency=0.5) as server:
        slow = collected(server.url, options.slow_requests)
    possible = CONCURRENCY / 0.5
    result = {
        "concurrency": CONCURRENCY,
        "slow": {
            "requests": options.slow_requests,
            "latency_ms": 500,
            **slow,
            "possible_per_second": possible,
            "share_of_possible": round(slow["requests_per_second"] / possible, 3),
        },
    }
    before = memory_mib()
    rounds = []
    for _ in range(options.rounds):
        with running(latency=0.05) as server:
            ours, theirs = collected(server.url, options.fast_requests), bare(server.url, options.fast_requests)
        share = ours["requests_per_second"] / theirs["requests_per_second"]
        rounds.append({"collection": ours, "bare_client": theirs, "share": round(share, 3)})
    result["fast"] = {
        "requests": options.fast_requests,
        "latency_ms": 50,
        "rounds": rounds,
        "share_of_bare_client": sorted(each["share"] for each in rounds)[len(rounds) // 2],
    }
    result["memory"] = {"after_slow_mib": round(before, 1), "after_all_mib": round(memory_mib(), 1)}
    result["machine"] = {"cpus": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()}
    result["versions"] = {name: importlib.metadata.version(name) for name in ("aiohttp", "correction-trl")}
    result["command"] = "python benchmarks/teacher_throughput.py --output results/teacher_throughput.json"
    text = json.dumps(result, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
