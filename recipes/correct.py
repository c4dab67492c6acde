# /// script
# dependencies = ["correction-trl"]
# ///
"""
Correct responses with a trained corrector: y_t is drawn from p(. | y_{t-1}, x, f(y_{t-1})), up to T times.

    # A file of responses, one JSON object with `prompt` and `response` per line; goes on where it was stopped
    python recipes/correct.py --model_name_or_path outputs/corrector_sft --input mine.jsonl --output corrected.jsonl

    # A stream: each line is answered before the next one is read
    my_generator | python recipes/correct.py --model_name_or_path outputs/corrector_sft --input - --batch_size 1

Each line comes back with `corrected` (the result), `corrections` (all of them) and `stop` (why there was no further
one). Without arguments, the embedded model answers some embedded problems, which `outputs/corrector_sft`, if it is
there, corrects.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path


@dataclass
class CorrectArguments:
    """Arguments of this recipe."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "The corrector: Hub id or folder."})
    input: str | None = field(default=None, metadata={"help": "JSON lines with `prompt` and `response`; -: stdin."})
    output: str = field(default="-", metadata={"help": "File for the corrected lines, appended to; -: stdout."})
    max_corrections: int = field(default=3, metadata={"help": "Most corrections of a response."})
    feedback_function: str | None = field(default=None, metadata={"help": "`module:function` that comments."})
    stop_without_feedback: bool = field(
        default=False, metadata={"help": "Leave a response as it is if there is no feedback on it."}
    )
    value_function: str | None = field(
        default=None, metadata={"help": "`module:function` that rates: stops at a response that is good enough."}
    )
    correct_threshold: float = field(default=1.0, metadata={"help": "Value from which a response is good enough."})
    message_template: str | None = field(
        default=None, metadata={"help": "Jinja file with the instruction; by default the corrector's own."}
    )
    temperature: float = field(default=0.0, metadata={"help": "Sampling temperature; 0: greedy."})
    max_completion_length: int = field(default=256, metadata={"help": "Most tokens of a correction."})
    batch_size: int = field(default=64, metadata={"help": "Responses per batch."})
    dtype: str = field(default="auto", metadata={"help": "Data type of the weights."})
    seed: int = field(default=0, metadata={"help": "Of the samples."})


def read_rows(lines: Iterable[str], name: str) -> Iterator[dict]:
    from correction_trl.errors import BadInput

    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadInput(f"{name}, line {number} is no JSON ({error}); correct or remove it.") from None
        missing = [key for key in ("prompt", "response") if not isinstance(row, dict) or not row.get(key)]
        if missing:
            raise BadInput(f"{name}, line {number} has no {missing[0]!r}; correct or remove it.")
        yield row


def rows_done(output: str) -> int:
    """Whole lines of an earlier run; a line that was cut off by a kill is removed."""
    path = Path(output)
    if output == "-" or not path.exists():
        return 0
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        path.write_bytes(whole)
    return whole.count(b"\n")


def main(args):
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from correction_trl.carry_addition import embedded_path
    from correction_trl.errors import BadInput
    from correction_trl.functions import import_function
    from correction_trl.inference import correct_iteratively
    from correction_trl.policy.corrector_prompt import template_of
    from correction_trl.policy.generation import Sampler
    from correction_trl.policy.tokenization import tokenize_prompt

    functions = {
        name: import_function(getattr(args, name), name) if getattr(args, name) else None
        for name in ("feedback_function", "value_function")
    }
    model_name = args.model_name_or_path
    if model_name is None:
        trained = Path("outputs/corrector_sft")
        model_name = str(trained) if (trained / "config.json").is_file() else embedded_path("tiny-carry-chat")
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_name)
        model = AutoModelForCausalLM.from_pretrained(
            model_name, dtype=args.dtype, device_map="auto" if torch.cuda.is_available() else "cpu"
        )
    except (OSError, ValueError) as error:
        raise BadInput(f"The corrector {model_name!r} cannot be loaded ({str(error).splitlines()[0]}).") from error
    template = args.message_template or template_of(model_name)

    if args.input is None:
        args.max_completion_length = 16
        problems = load_dataset(embedded_path("carry_addition"), split="validation[:20]")
        base = AutoModelForCausalLM.from_pretrained(embedded_path("tiny-carry-chat"))
        base_tokenizer = AutoTokenizer.from_pretrained(embedded_path("tiny-carry-chat"))
        prompt_ids = [tokenize_prompt(base_tokenizer, prompt)[1] for prompt in problems["prompt"]]
        responses = Sampler(base, base_tokenizer, max_new_tokens=16, temperature=0)(prompt_ids).texts
        lines = [json.dumps({**row, "response": y}) for row, y in zip(problems, responses, strict=True)]
        source, name = nullcontext(lines), "the embedded problems"
    elif args.input == "-":
        source, name = nullcontext(sys.stdin), "stdin"
    elif not Path(args.input).is_file():
        raise BadInput(f"`input={args.input!r}` is no file.")
    else:
        source, name = open(args.input, encoding="utf-8"), args.input
    n_done, n_changed = rows_done(args.output), 0
    sink = nullcontext(sys.stdout) if args.output == "-" else open(args.output, "a", encoding="utf-8")
    with source as lines, sink as output:
        rows = islice(read_rows(lines, name), n_done, None)
        n_rows = n_done
        while batch := list(islice(rows, args.batch_size)):
            shared = set.intersection(*(set(row) for row in batch)) - {"prompt", "response"}
            traces = correct_iteratively(
                model,
                tokenizer,
                [row["prompt"] for row in batch],
                [row["response"] for row in batch],
                {key: [row[key] for row in batch] for key in sorted(shared)},
                max_corrections=args.max_corrections,
                stop_without_feedback=args.stop_without_feedback,
                correct_threshold=args.correct_threshold,
                message_template=template,
                max_completion_length=args.max_completion_length,
                temperature=args.temperature,
                batch_size=args.batch_size,
                seed=args.seed + n_rows,
                **functions,
            )
            for row, trace in zip(batch, traces, strict=True):
                corrected = {"corrected": trace.responses[-1], "corrections": trace.responses[1:], "stop": trace.stop}
                output.write(json.dumps(row | corrected, ensure_ascii=False) + "\n")
                n_changed += trace.responses[-1] != row["response"]
            output.flush()
            n_rows += len(batch)
    skipped = f" ({n_done} were there already)" if n_done else ""
    print(f"{n_rows} responses{skipped}, {n_changed} of {n_rows - n_done} changed.", file=sys.stderr)


def parse_arguments(argv=None):
    from trl import TrlParser

    return TrlParser(CorrectArguments, allow_abbrev=False).parse_args_and_config(args=argv)


if __name__ == "__main__":
    from correction_trl.recipe import run

    run(main, *parse_arguments())
