"""
Measures the value functions and the sandbox on the real data, and writes `results/rewards.json`.

    python benchmarks/rewards_throughput.py --data ../shared/data --items 10000 --output results/rewards.json

Correctness on HumanEval, GSM8K, MATH-500 and CommonGen; items per second; what 10,000 items leave behind; the attacks.
Takes about ten minutes on 2 cores.
"""

import argparse
import gzip
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

from correction_trl.rewards import CodeTests, ConceptCoverage, FinalAnswer, MathProgram, answers_equal
from correction_trl.rewards.answer_extraction import find_answer, gold_answer
from correction_trl.rewards.constraints import concept_list, covers
from correction_trl.rewards.math_equality import worker_pool
from correction_trl.sandbox import Limits, LocalSandbox, local


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from rewards.attacks import ATTACKS, HONEST, LIMITS, all_attacks, attack_job  # noqa: E402
from rewards.rewritings import equal_rewritings, near_misses  # noqa: E402


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def timed(function, *arguments, **columns):
    start = time.monotonic()
    value = function(*arguments, **columns)
    return value, time.monotonic() - start


def humaneval(data: Path) -> dict:
    with gzip.open(data / "humaneval/HumanEval.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    columns = {name: [row[name] for row in rows] for name in ("prompt", "test", "entry_point")}
    value = CodeTests(kind="humaneval")
    canonical = value(completions=[row["canonical_solution"] for row in rows], **columns)
    empty = value(completions=["    pass\n"] * len(rows), **columns)
    rounds = []
    for _ in range(3):
        load, used = os.getloadavg()[0], cpu_seconds()
        _, seconds = timed(
            CodeTests(kind="humaneval"), completions=[row["canonical_solution"] for row in rows], **columns
        )
        rounds.append(
            {
                "items_per_second": round(len(rows) / seconds, 1),
                "cpu_ms_per_item": round(1000 * (cpu_seconds() - used) / len(rows), 1),
                "load_average": round(load, 1),
            }
        )
    return {
        "items": len(rows),
        "canonical_pass": canonical.count(1.0),
        "pass_bodied_fail": empty.count(0.0),
        "speed": rounds,
    }


def cpu_seconds() -> float:
    """CPU time of this process and of all that ended below it: what an item costs, whoever else uses the machine."""
    return sum(os.times()[:4])


def gsm8k(data: Path) -> dict:
    golds = [row["answer"] for row in read_lines(data / "gsm8k/test.jsonl")]
    numbers = [int(gold_answer(gold).replace(",", "")) for gold in golds]
    value = FinalAnswer()
    right = value(completions=golds, answer=golds)
    wrong = []
    for change in (1, -1, 7, 100, 0.5):
        wrong += value(completions=[f"#### {number + change}" for number in numbers], answer=golds)
    return {
        "items": len(golds),
        "gold_right": right.count(1.0),
        "wrong_numbers": len(wrong),
        "wrong_numbers_wrong": wrong.count(0.0),
    }


def math500(data: Path) -> dict:
    rows = json.loads((data / "math/math500_test.json").read_text(encoding="utf-8"))
    golds = [row["answer"] for row in rows]
    value = FinalAnswer(style="boxed")
    own = value(completions=[row["solution"] for row in rows], answer=golds)
    pairs = [(gold, find_answer(row["solution"]).answer) for gold, row in zip(golds, rows, strict=True)]
    pool = worker_pool(len(os.sched_getaffinity(0)), os.getpid())
    pool.judge(pairs[:10], 30.0)  # started
    parsed, parsed_seconds = timed(pool.judge, pairs, 30.0)
    equal = [(gold, text) for gold in golds for _, text in equal_rewritings(gold)]
    missed = [(gold, text) for gold in golds for _, text in near_misses(gold)]
    equal_verdicts, equal_seconds = timed(answers_equal, *zip(*equal, strict=True), timeout=30.0)
    missed_verdicts, missed_seconds = timed(answers_equal, *zip(*missed, strict=True), timeout=30.0)
    return {
        "items": len(rows),
        "gold_against_its_solution_right": own.count(1.0),
        "same_by_math_verify_alone": parsed.count(True),
        "equal_rewritings": len(equal),
        "equal_rewritings_judged_equal": equal_verdicts.count(True),
        "near_misses": len(missed),
        "near_misses_judged_different": missed_verdicts.count(False),
        "answers_per_second_all_through_math_verify": round(len(pairs) / parsed_seconds),
        "answers_per_second_rewritings": round((len(equal) + len(missed)) / (equal_seconds + missed_seconds)),
    }


def commongen(data: Path) -> dict:
    rows = read_lines(data / "commongen/commongen.dev.jsonl")
    scenes = [scene for row in rows for scene in row["scene"]]
    concepts = [row["concept_set"] for row in rows for _ in row["scene"]]
    values, seconds = timed(ConceptCoverage(), completions=scenes, concepts=concepts)
    other = ConceptCoverage()(completions=scenes, concepts=concepts[2000:] + concepts[:2000])
    missed = [
        f"{concept}: {scene}"
        for scene, row in zip(scenes, concepts, strict=True)
        for concept in concept_list(row)
        if not covers(scene, concept)
    ]
    return {
        "references": len(scenes),
        "mean_coverage": round(sum(values) / len(values), 5),
        "mean_coverage_of_other_sets": round(sum(other) / len(other), 5),
        "missed": missed,
        "items_per_second": round(len(scenes) / seconds),
    }


def math_programs(data: Path) -> dict:
    rows = read_lines(data / "mawps/multiarith.jsonl")[:200]
    golds = [row["target"] for row in rows]
    right = MathProgram()(completions=[f"answer = {gold} + 0" for gold in golds], target=golds, answer=golds)
    wrong = MathProgram()(completions=[f"print({gold} + 1)" for gold in golds], answer=golds)
    return {"items": len(golds), "right": right.count(1.0), "wrong_by_one_wrong": wrong.count(0.0)}


def resident(process: int | str = "self") -> int:
    """Resident memory of a process in KiB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def state() -> dict:
    """What a leak would show in: memory, open files, children (zombies among them), mounts, temporary files."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    kinds = [Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] for child in children]
    jobs = 0
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{entry}/cmdline").read_bytes()
        except OSError:
            continue
        jobs += b"import isolate" in command and f'"parent": {os.getpid()}'.encode() in command
    return {
        "resident_mib": round(resident() / 1024, 1),
        "math_workers_resident_mib": round(sum(resident(child) for child in children) / 1024, 1),
        "open_files": len(os.listdir("/proc/self/fd")),
        "children": len(children),
        "zombies": kinds.count("Z"),
        "sandbox_processes": jobs,
        "mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
        "temporary_files": len(
            [n for n in os.listdir(tempfile.gettempdir()) if n.startswith("correction_trl_sandbox")]
        ),
    }


def endurance(data: Path, items: int) -> dict:
    """Honest programs with one attack in ten, in batches as a trainer would send them; then as many final answers."""
    with gzip.open(data / "humaneval/HumanEval.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    quick = ["os._exit(0)", "daemonised children", "crash", "1 GB of output", "100 GB at once", "nonsense on the pipe"]
    value = CodeTests(kind="humaneval")
    sandbox = LocalSandbox(LIMITS)
    sandbox.run([HONEST])
    start, done, passed, attacked, after_first = time.monotonic(), 0, 0, 0, None
    while done < items:
        batch = [rows[(done + i) % len(rows)] for i in range(90)]
        columns = {name: [row[name] for row in batch] for name in ("prompt", "test", "entry_point")}
        # A comment makes each completion new, so that every one is run.
        bodies = [f"{row['canonical_solution']}\n# {done}" for row in batch]
        passed += sum(value(completions=bodies, **columns))
        results = sandbox.run([attack_job(quick[i % len(quick)]) for i in range(10)])
        attacked += sum(not result.all_passed and not result.answer for result in results)
        done += 100
        if done == 1000:
            after_first = state()
    seconds = time.monotonic() - start
    time.sleep(1)
    code = {
        "items": done,
        "honest_passed": int(passed),
        "attacks_failed": attacked,
        "items_per_second": round(done / seconds, 1),
        "after_1000": after_first,
        "at_the_end": state(),
    }
    maths = json.loads((data / "math/math500_test.json").read_text(encoding="utf-8"))
    pairs = [pair for row in maths for pair in [(row["answer"], t) for _, t in near_misses(row["answer"])]]
    answers = FinalAnswer(style="boxed", timeout=30.0)
    start, done, after_first = time.monotonic(), 0, None
    while done < items:
        batch = [pairs[(done + i) % len(pairs)] for i in range(100)]
        texts = [rf"So it is \boxed{{{text}}}." for _, text in batch]
        answers(completions=texts, answer=[gold for gold, _ in batch])
        done += 100
        if done == 1000:
            after_first = state()
    final = {
        "items": done,
        "items_per_second": round(done / (time.monotonic() - start)),
        "after_1000": after_first,
        "at_the_end": state(),
    }
    return {"code": code, "final_answers": final}


def attacks() -> dict:
    os.environ["HF_TOKEN"] = "hf_secret"
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        secret = Path(folder) / "secret"
        secret.write_text("secret")
        secret.chmod(0o666)
        found = {
            isolation: all_attacks(isolation, str(secret)) if not local.try_isolation(isolation) else "not available"
            for isolation in ("namespaces", "bubblewrap")
        }
        intact = secret.read_text() == "secret" and os.listdir(folder) == ["secret"]
    return {"attacks": len(ATTACKS), "problems": found, "host_file_intact": intact}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--items", type=int, default=10_000, help="items of the endurance run")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts, and print them without writing a file")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "rewards.json")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        parser.error(f"{arguments.data} is no folder: give the folder of the data files with --data.")
    packages = ("math-verify", "latex2sympy2_extended", "sympy", "simplemma", "snowballstemmer", "rapidfuzz")
    results = {
        "command": f"python benchmarks/rewards_throughput.py --items {arguments.items}",
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "kernel": platform.release().split("-")[0],
        "cpus": len(os.sched_getaffinity(0)),
        "load_average_before": round(os.getloadavg()[0], 1),
        "isolation": LocalSandbox()._choose(),
        "default_limits": vars(Limits()),
    }
    parts = {
        "humaneval": lambda: humaneval(arguments.data),
        "gsm8k": lambda: gsm8k(arguments.data),
        "math500": lambda: math500(arguments.data),
        "math_programs": lambda: math_programs(arguments.data),
        "commongen": lambda: commongen(arguments.data),
        "attacks": attacks,
        "endurance": lambda: endurance(arguments.data, arguments.items),
    }
    if unknown := set(arguments.only or ()) - set(parts):
        parser.error(f"--only: there is no part {', '.join(sorted(unknown))}; there are {', '.join(parts)}.")
    for name, measure in parts.items():
        if arguments.only and name not in arguments.only:
            continue
        results[name] = measure()
        print(name, json.dumps(results[name], indent=2), flush=True)
    if arguments.only:
        return
    results["load_average_after"] = round(os.getloadavg()[0], 1)
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
