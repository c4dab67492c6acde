"""
Replay in correction optimization: does a policy that is taught something about a tenth of its problems keep the rest?

On the embedded task a teacher wants sums rounded down to thousands, but only of problems whose first number begins
with a 9, and only those are trained on, on-policy, with the default loss. The others should stay as they are: exact. A
policy that sees nothing of them has no reason to tell the two apart, so that here forgetting is built in; how much of
it there is elsewhere this does not say. Replayed are the model's own greedy answers, right or wrong, to others.
Each run is one share of replay and one seed; what the results file already holds is not run again.

    python benchmarks/replay_study.py --seeds 0 1 2
    # writes results/replay_study.jsonl
"""

import tempfile

import study
import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from correction_trl import CorrectionOptimizationConfig, CorrectionOptimizationTrainer
from correction_trl.carry_addition import embedded_path, exact_match
from correction_trl.evaluation import evaluate_corrections
from correction_trl.reporting.run_metrics import plain


SHARES = (0.0, 0.05, 0.1, 0.3)
SETTINGS = {"max_steps": 150, "per_device_train_batch_size": 64, "learning_rate": 3e-4, "warmup_steps": 5}
N_REPLAYED, N_TEST = 1000, 300


def rounded(answer: str) -> str:
    return f"{answer[:-3]}000"


def teacher(prompts, responses, answer, **columns):
    return [rounded(right) for right in answer]


def is_rounded(completions, answer, **columns):
    return exact_match(completions=completions, answer=[rounded(right) for right in answer])


def problems() -> dict[str, Dataset]:
    """What is taught, what is replayed, and for both kinds of problems those that are measured."""
    data = load_dataset(embedded_path("carry_addition"))
    begins_with_9 = lambda row: row["prompt"][-1]["content"].startswith("9")
    split = {}
    for name in ("train", "test"):
        rows = data[name].select_columns(["prompt", "answer"])
        split[name, True] = rows.filter(begins_with_9)
        split[name, False] = rows.filter(lambda row: not begins_with_9(row))
    return {
        "taught": split["train", True],
        "replayed": split["train", False].select(range(N_REPLAYED)),
        "test_taught": split["test", True].select(range(min(N_TEST, len(split["test", True])))),
        "test_others": split["test", False].select(range(N_TEST)),
    }


def main():
    args = study.parser(__doc__, "replay_study.jsonl").parse_args()
    torch.set_num_threads(1)
    results, data, folder = study.Study(args.results, ("share", "seed")), problems(), embedded_path("tiny-carry-chat")
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def answers(model, rows, value_function, n_examples=0):
        return evaluate_corrections(model, tokenizer, rows, None, value_function, max_completion_length=16,
                                    batch_size=256, n_examples=n_examples)  # fmt: skip

    def measure(model):
        found = {
            "taught": answers(model, data["test_taught"], is_rounded).metrics["acc@t1"],
            "others": answers(model, data["test_others"], exact_match).metrics["acc@t1"],
        }
        return plain(found)

    def replayed() -> Dataset:
        """The base model's greedy answers."""
        from correction_trl.policy.generation import Sampler
        from correction_trl.policy.tokenization import tokenize_prompt

        model = AutoModelForCausalLM.from_pretrained(folder)
        sampler, prompts = Sampler(model, tokenizer, 16, 0.0), data["replayed"]["prompt"]
        texts = sampler([tokenize_prompt(tokenizer, prompt)[1] for prompt in prompts]).texts
        return Dataset.from_list([{"prompt": p, "completion": t} for p, t in zip(prompts, texts, strict=True)])

    def run(cell):
        set_seed(cell["seed"])
        share = {"replay_share": cell["share"]} if cell["share"] else {}
        config = CorrectionOptimizationConfig(tempfile.mkdtemp(), seed=cell["seed"], max_completion_length=16,
                                              max_length=None, **share, **SETTINGS, **study.ON_CPU)  # fmt: skip
        trainer = CorrectionOptimizationTrainer(
            folder, config, train_dataset=data["taught"], teacher=teacher, replay_dataset=replayed() if share else None
        )
        trainer.train()
        found = measure(trainer.model)
        return {**found, "summary": f"taught {found['taught']['mean']:.3f} others {found['others']['mean']:.3f}"}

    if not args.tables:
        base = lambda: measure(AutoModelForCausalLM.from_pretrained(folder))
        results.begin("python benchmarks/replay_study.py --seeds 0 1 2", base, **SETTINGS)
        cells = ({"share": share, "seed": seed} for seed in args.seeds for share in SHARES)
        results.run(cells, run, args.part)
    for share in SHARES:
        runs = results.where(share=share)
        if runs:
            print(
                share,
                *(f"{name} {[round(100 * run[name]['mean'], 1) for run in runs]}" for name in ("taught", "others")),
            )


if __name__ == "__main__":
    main()
