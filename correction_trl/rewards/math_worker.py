"""
A process that judges whether two answers are equal: one JSON line in, one out. Started by `math_equality.py`.

It has no clock of its own: the parent kills it when it takes too long, which works whatever it is stuck in.
"""

import functools
import json
import logging
import os
import resource
import sys


MEMORY_BYTES = 4 * 2**30


def main():
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the libraries print must not be taken for an answer
    logging.disable(logging.WARNING)  # math-verify warns at every call that its own alarm is off
    from math_verify import parse, verify

    @functools.lru_cache(maxsize=512)  # a gold answer comes back once per completion of its prompt
    def parse_gold(gold):
        return parse(f"${gold}$", parsing_timeout=None)

    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        gold, answer = json.loads(line)
        try:
            gold_parsed = parse_gold(gold)
            answer_parsed = parse(f"${answer}$", parsing_timeout=None)
            # A gold answer that cannot be read is nobody's fault but the dataset's: not judged.
            verdict = verify(gold_parsed, answer_parsed, timeout_seconds=None) if gold_parsed else None
        except (MemoryError, RecursionError):
            verdict = None
        print(json.dumps(verdict), file=answers, flush=True)


if __name__ == "__main__":
    main()
