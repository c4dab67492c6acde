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
    from latex2sympy2_extended import NormalizationConfig, latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from math_verify import verify
    from math_verify.grader import should_treat_as_complex
    from sympy import Expr

    normalization = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
    )
    conversion = ConversionConfig(lowercase_symbols=False)

    @functools.lru_cache(maxsize=512)  # a gold answer comes back once per completion of its prompt
    def read(text):
        """
        The formula, or `None` if the grammar does not take all of it. math-verify's own `parse` would look for what it
        can read instead: 0 in `0.\\overline{36}`.
        """
        try:
            return latex2sympy(text, None, not should_treat_as_complex(text), False, normalization, conversion)
        except (MemoryError, RecursionError):
            raise
        except Exception:
            return None

    def same_size(gold, answer, is_fraction):
        """Whether two numbers are equal in proportion; math-verify rounds to six decimals, and 2^{-60} to nothing.
        Fractions without a decimal are equal or not."""
        if not (isinstance(gold, Expr) and isinstance(answer, Expr)) or gold.free_symbols or answer.free_symbols:
            return True
        a, b = gold.doit(), answer.doit()
        if is_fraction and a.is_Rational and b.is_Rational:
            return a == b
        a, b = a.evalf(30), b.evalf(30)
        if not (a.is_number and b.is_number and a.is_finite and b.is_finite):
            return True
        return bool(abs(a - b) <= 1e-5 * max(abs(a), abs(b)))

    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        gold, answer = json.loads(line)
        is_fraction = "." not in gold + answer
        try:
            gold, answer = read(gold), read(answer)
            # A gold answer that cannot be read is nobody's fault but the dataset's: not judged.
            if gold is None or answer is None:
                verdict = None if gold is None else False
            else:
                verdict = verify([gold], [answer], timeout_seconds=None, allow_set_relation_comp=True)
                verdict = verdict and same_size(gold, answer, is_fraction)
        except (MemoryError, RecursionError):
            verdict = None
        print(json.dumps(verdict), file=answers, flush=True)


if __name__ == "__main__":
    main()
