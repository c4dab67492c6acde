"""The program in a completion."""

import ast
import re

from .common import after_thinking


def extract_code(text: str) -> str:
    """
    The Python program that a completion gives: its last fenced block that is Python (or of no named language), what
    stands between `[BEGIN]` and `[DONE]` (the MBPP prompt), or all of the text.

    Args:
        text (`str`):
            The completion.

    Returns:
        `str`: source code, leading spaces kept (a completion may go on with a function's body).
    """
    text = after_thinking(text)
    blocks = re.findall(r"```[ \t]*([A-Za-z0-9_+-]*)[ \t]*\r?\n(.*?)(?:```|\Z)", text, re.DOTALL)
    python = [code for language, code in blocks if language.lower() in ("", "python", "py", "python3")]
    if python:
        return python[-1]
    marked = re.findall(r"\[BEGIN\]\r?\n?(.*?)(?:\[DONE\]|\Z)", text, re.DOTALL)
    if marked:
        return marked[-1]
    return text.partition("[DONE]")[0]


def defines(code: str, name: str) -> bool:
    """Whether a program, if it can be parsed, defines a function of this name at its top level."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # Still the whole program, if broken: its error belongs in the feedback.
        return re.search(rf"^def {re.escape(name)}\b", code, re.MULTILINE) is not None
    return any(
        getattr(node, "name", None) == name
        or (isinstance(node, ast.Assign) and any(getattr(target, "id", None) == name for target in node.targets))
        for node in tree.body
    )


def complete(prompt: str, code: str, entry_point: str) -> str:
    """
    Puts a HumanEval program together from its prompt and what the model wrote: the whole function, or only its body.

    Args:
        prompt (`str`):
            Imports, helpers, and the function's head with its docstring.
        code (`str`):
            What the model wrote.
        entry_point (`str`):
            Name of the function.
    """
    if defines(code, entry_point):
        # The prompt first: the function may use its imports and helpers. Its head alone is a function that does
        # nothing, which the model's then replaces.
        return f"{prompt.rstrip()}\n    pass\n\n{code}"
    return prompt + code
