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
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from trl import ModelConfig

from correction_trl.recipe import parse, run


QUICKSTART = Path(__file__).parent / "configs" / "correct" / "quickstart.yaml"


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


def main(args):
    from correction_trl.carry_addition import embedded_path
    from correction_trl.functions import import_function
    from correction_trl.inference import correct_iteratively, load_model
    from correction_trl.inference.response_lines import corrected_batches, open_input, open_output, read_responses
    from correction_trl.policy.corrector_prompt import template_of

    functions = {
        name: import_function(getattr(args, name), name) if getattr(args, name) else None
        for name in ("feedback_function", "value_function")
    }
    trained = Path("outputs/corrector_sft")
    embedded = str(trained) if (trained / "config.json").is_file() else embedded_path("tiny-carry-chat")
    model_name = args.model_name_or_path or embedded
    source, name = open_input(args.input)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = load_model(model_name, ModelConfig(dtype=args.dtype), device)
    correct = partial(
        correct_iteratively,
        model,
        tokenizer,
        max_corrections=args.max_corrections,
        stop_without_feedback=args.stop_without_feedback,
        correct_threshold=args.correct_threshold,
        message_template=args.message_template or template_of(model_name),
        max_completion_length=args.max_completion_length,
        temperature=args.temperature,
        **functions,
    )
    sink, n_done = open_output(args.output)
    n_rows, n_changed = n_done, 0
    with source as lines, sink as output:
        rows = islice(read_responses(lines, name), n_done, None)
        for batch in corrected_batches(rows, correct, args.batch_size, args.seed + n_done):
            for row in batch:
                output.write(json.dumps(row, ensure_ascii=False) + "\n")
                n_changed += row["corrected"] != row["response"]
            output.flush()
            n_rows += len(batch)
    skipped = f" ({n_done} were there already)" if n_done else ""
    print(f"{n_rows} responses{skipped}, {n_changed} of {n_rows - n_done} changed.", file=sys.stderr)


def parse_arguments(argv=None):
    return parse((CorrectArguments,), QUICKSTART, argv)


if __name__ == "__main__":
    run(main, *parse_arguments())
