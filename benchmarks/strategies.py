"""
ProCo, gated revision and intrinsic self-correction on the embedded task, with the tokens that they spend.

The base model, the base model taught by supervised fine-tuning to find a hidden operand (which it cannot do, and ProCo
lives by), and any trained checkpoints; greedy, on the same test problems. The mask and the texts of ProCo are in words
that the embedded tokenizer knows. Writes results/strategies.json.

    python benchmarks/strategies.py --checkpoint "SCL, both=outputs/self_correction_dpo"
"""

import argparse
import json
import random
import tempfile
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from correction_trl.carry_addition import embedded_path, exact_match
from correction_trl.evaluation import evaluate_traces
from correction_trl.inference import (
    LocalChat,
    Problem,
    gated_revision,
    intrinsic,
    proco,
    run,
    verify_by_key_condition,
    whole_text,
)
from correction_trl.reporting import command_line, installed_versions


RESULTS = Path(__file__).parent.parent / "results" / "strategies.json"
INSTRUCTION = "There might be an error in the answer above. Please correct it."
VERIFY = "{masked_question} Suppose the answer is {answer}. What is {mask}?"
EXCLUDE = "{question} The answer is not {answers}."
EMBEDDED = {"mask": "X", "verify": VERIFY, "extract_answer": whole_text}

STRATEGIES = {
    "one answer": partial(intrinsic, turns=1),
    "intrinsic": partial(intrinsic, instruction=INSTRUCTION),
    "gated revision (ProCo's check)": partial(
        gated_revision, check=partial(verify_by_key_condition, **EMBEDDED), instruction=INSTRUCTION
    ),
    "ProCo": partial(proco, **EMBEDDED, exclude=EXCLUDE),
}


def teach_to_verify(folder: str, problems: Dataset, steps: int) -> str:
    """Half of the rows ask for a hidden operand, a quarter for the sum, a quarter for the sum after a refuted one."""
    generator = random.Random(0)
    rows = []
    for row in problems:
        question, answer = row["prompt"][-1]["content"], row["answer"]
        kind = generator.randrange(4)
        if kind < 2:
            operand = question.split(" ")[0]
            question = VERIFY.format(masked_question=question.replace(operand, "X", 1), answer=answer, mask="X")
            answer = operand
        elif kind == 2:
            place = generator.randrange(13)
            digit = str((int(answer[place]) + generator.randint(1, 9)) % 10)
            question = EXCLUDE.format(question=question, answers=answer[:place] + digit + answer[place + 1 :])
        rows.append(
            {
                "prompt": [{"role": "user", "content": question}],
                "completion": [{"role": "assistant", "content": answer}],
            }
        )
    output_dir = tempfile.mkdtemp()
    config = SFTConfig(
        output_dir=output_dir,
        max_steps=steps,
        per_device_train_batch_size=128,
        learning_rate=2e-3,
        warmup_steps=20,
        lr_scheduler_type="cosine",
        max_grad_norm=1.0,
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    trainer = SFTTrainer(folder, args=config, train_dataset=Dataset.from_list(rows))
    trainer.train()
    trainer.save_model(output_dir)
    return output_dir


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", nargs="*", default=[], help="name=folder")
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--verifier_steps", type=int, default=600)
    parser.add_argument("--verifier", help="folder of a model that was taught already")
    args = parser.parse_args()
    torch.set_num_threads(1)
    base = embedded_path("tiny-carry-chat")
    splits = load_dataset(embedded_path("carry_addition"))
    data = splits["test"].select(range(args.problems))
    tokenizer = AutoTokenizer.from_pretrained(base)
    verifier = args.verifier or teach_to_verify(base, splits["train"], args.verifier_steps)
    models = {"base": base, "base, taught to verify": verifier}
    models |= dict(item.split("=", 1) for item in args.checkpoint)
    results = {"problems": args.problems, "versions": installed_versions(), "command": command_line(), "cells": []}
    print("| model | strategy | right | first answer right | i→c | c→i | tokens | stopped because |")
    print("|---|---|---|---|---|---|---|---|")
    for name, folder in models.items():
        chat = LocalChat(AutoModelForCausalLM.from_pretrained(folder), tokenizer, max_tokens=16, batch_size=500)
        for strategy, asking in STRATEGIES.items():
            traces = run([asking(chat, Problem(row["prompt"])) for row in data])
            found = evaluate_traces(data, {(row, 0): trace for row, trace in enumerate(traces)}, exact_match)
            right = [[exact_match([text], [row["answer"]])[0] for text in (t.responses[0], t.responses[-1])]
                     for t, row in zip(traces, data, strict=True)]  # fmt: skip
            stops = {stop: sum(t.stop == stop for t in traces) for stop in sorted({t.stop for t in traces})}
            cell = {
                "model": name,
                "strategy": strategy,
                "acc@first": sum(first for first, _ in right) / len(right),
                "acc@last": sum(last for _, last in right) / len(right),
                "i->c": sum(last > first for first, last in right) / len(right),
                "c->i": sum(last < first for first, last in right) / len(right),
                "tokens": found.metrics["tokens"],
                "stops": stops,
            }
            results["cells"].append(cell)
            numbers = " | ".join(f"{100 * cell[key]:.1f}" for key in ("acc@last", "acc@first", "i->c", "c->i"))
            why = ", ".join(f"{stop} {count}" for stop, count in stops.items())
            print(f"| {name} | {strategy} | {numbers} | {cell['tokens']['mean']:.0f} | {why} |", flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
