"""
How fast is a step of SCoRe against the straightforward loop?

Both sides in one process, the same embedded policy, the same prompts and number of rollouts per step, the same
objective, and on the same rollouts the same gradient (checked first). The straightforward loop calls `generate` from
scratch for each attempt, and computes each attempt in a row of its own with the whole vocabulary's logits at every
position, for the policy and for the reference. Ours continues the second attempt from the first one's key-value cache,
and computes both attempts in one row with the LM head on attempt tokens alone.

    python benchmarks/score_step.py                # writes results/score_step.json
"""

import argparse
import json
import time
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, set_seed
from trl.trainer.utils import pad, selective_log_softmax

from correction_trl import SCoReConfig, SCoReTrainer
from correction_trl.carry_addition import embedded_path, exact_match
from correction_trl.policy.generation import generate_completions
from correction_trl.policy.tokenization import decode, tokenize_prompt
from correction_trl.reporting import command_line, installed_versions
from correction_trl.score.turn_credit import leave_one_out, multi_turn_loss, turn_returns


RESULTS = Path(__file__).parent.parent / "results" / "score_step.json"
INSTRUCTION = "There might be an error in the answer above. Please correct it."


class StraightforwardLoop:
    """The same step, written down the obvious way."""

    def __init__(self, trainer: SCoReTrainer, model_path: str):
        self.trainer = trainer
        self.model = AutoModelForCausalLM.from_pretrained(model_path)
        self.reference = AutoModelForCausalLM.from_pretrained(model_path).eval()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=trainer.args.learning_rate)
        self.config = trainer._sampler.config

    def rollouts(self, rows):
        tokenizer = self.trainer._tokenizer
        prompts = [tokenize_prompt(tokenizer, row["prompt"])[1] for row in rows]
        first = generate_completions(self.model, prompts, self.config)
        contexts = [
            p + y + self.trainer._follow_up_of(rows[0])(y, INSTRUCTION) for p, y in zip(prompts, first, strict=True)
        ]
        second = generate_completions(self.model, contexts, self.config)
        return [(prompts, first), (contexts, second)]

    def log_probs(self, model, contexts, attempts):
        rows = [torch.tensor(c + y) for c, y in zip(contexts, attempts, strict=True)]
        input_ids = pad(rows, padding_value=self.trainer._tokenizer.pad_token_id)
        attention_mask = pad([torch.ones_like(row) for row in rows], padding_value=0)
        logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1]
        per_token = selective_log_softmax(logits, input_ids[:, 1:])
        turn_ids = torch.zeros_like(per_token, dtype=torch.long)
        for i, (context, attempt) in enumerate(zip(contexts, attempts, strict=True)):
            turn_ids[i, len(context) - 1 : len(context) + len(attempt) - 1] = 1
        return per_token, turn_ids

    def loss(self, rows, turns):
        args = self.trainer.args
        answers = [row["answer"] for row in rows]
        texts = [decode(self.trainer._tokenizer, attempts) for _, attempts in turns]
        rewards = torch.tensor([exact_match(attempts, answers) for attempts in texts]).T
        advantages = leave_one_out(turn_returns(rewards, 2, args.alpha), args.num_generations)
        total = 0.0
        for turn, (contexts, attempts) in enumerate(turns):
            with torch.no_grad():
                reference, _ = self.log_probs(self.reference, contexts, attempts)
            policy, turn_ids = self.log_probs(self.model, contexts, attempts)
            kl_weights = torch.full((len(rows), 1), args.beta_1)
            total = (
                total + multi_turn_loss(policy, turn_ids, advantages[:, turn : turn + 1], reference, kl_weights).mean()
            )
        return total

    def step(self, rows):
        start = time.perf_counter()
        self.model.eval()
        turns = self.rollouts(rows)
        generated = time.perf_counter()
        self.model.train()
        self.loss(rows, turns).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return generated - start, time.perf_counter() - generated


def our_step(trainer, rows, optimizer):
    start = time.perf_counter()
    batch = trainer._generate_and_score_completions(rows)
    generated = start + trainer._metrics["train"]["time/generation"][-1]
    trainer._compute_loss(trainer.model, batch).backward()
    torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return generated - start, time.perf_counter() - generated, int(batch["attention_mask"].sum())


def same_gradient(trainer, loop, rows) -> float:
    """Largest difference of the two gradients on the same rollouts, relative to the largest gradient."""
    batch = trainer._generate_and_score_completions(rows)
    trainer._compute_loss(trainer.model, batch).backward()
    turns = []
    for turn in (1, 2):
        contexts, attempts = [], []
        for row, turn_ids in zip(batch["input_ids"].tolist(), batch["turn_ids"], strict=True):
            positions = (turn_ids == turn).nonzero()[:, 0].tolist()
            contexts.append(row[: positions[0]])
            attempts.append(row[positions[0] : positions[-1] + 1])
        turns.append((contexts, attempts))
    loop.loss(rows, turns).backward()
    ours = {name: p.grad for name, p in trainer.model.named_parameters()}
    theirs = {name: p.grad for name, p in loop.model.named_parameters()}
    scale = max(grad.abs().max().item() for grad in theirs.values())
    difference = max((ours[name] - grad).abs().max().item() for name, grad in theirs.items()) / scale
    trainer.model.zero_grad()
    loop.model.zero_grad()
    return difference


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=256)
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each side, alternating")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    set_seed(0)
    model_path = embedded_path("tiny-carry-chat")
    data = load_dataset(embedded_path("carry_addition"), split="train")
    trainer = SCoReTrainer(
        model_path,
        exact_match,
        SCoReConfig(
            output_dir="outputs/score_step",
            stage="2",
            instruction=INSTRUCTION,
            max_completion_length=16,
            per_device_train_batch_size=args.rollouts,
            learning_rate=1e-5,
            max_steps=1000,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to="none",
        ),
        train_dataset=data,
    )
    trainer.model.train()
    trainer.state.max_steps = 1000
    loop = StraightforwardLoop(trainer, model_path)
    optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=trainer.args.learning_rate)

    def rows(step):
        n_prompts = args.rollouts // 8
        return [data[step * n_prompts + i // 8] for i in range(args.rollouts)]

    difference = same_gradient(trainer, loop, rows(0))
    print(f"largest gradient difference, relative: {difference:.1e}")
    times = {"ours": [], "straightforward": []}
    for step in range(args.steps + 1):  # the first of each warms up
        n_tokens = our_step(trainer, rows(step), optimizer)
        theirs = loop.step(rows(step))
        if step:
            times["ours"].append(n_tokens[:2])
            times["straightforward"].append(theirs)
    result = {"command": f"python {command_line()}", "threads": args.threads, "rollouts": args.rollouts}
    for side, seconds in times.items():
        generation, training = (sorted(column)[len(column) // 2] for column in zip(*seconds, strict=True))
        result[side] = {
            "generation_seconds": round(generation, 4),
            "training_seconds": round(training, 4),
            "rollouts_per_second_of_generation": round(args.rollouts / generation, 1),
            "training_tokens_per_second": round(n_tokens[2] / training, 1),
        }
        print(side, result[side])
    for part in ("generation_seconds", "training_seconds"):
        result[f"ratio_{part.partition('_')[0]}"] = round(result["straightforward"][part] / result["ours"][part], 2)
    whole = {
        side: result[side]["generation_seconds"] + result[side]["training_seconds"]
        for side in ("straightforward", "ours")
    }
    result["ratio_step"] = round(whole["straightforward"] / whole["ours"], 2)
    result["gradient_difference"] = difference
    result["versions"] = installed_versions()
    print(f"whole step: {result['ratio_step']}x the speed of the straightforward loop")
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
