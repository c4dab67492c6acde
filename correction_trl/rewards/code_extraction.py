"""The program in a completion."""

import ast
import builtins
import functools
import itertools
import re
import textwrap
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

from ..sandbox.inside.reading import free_names
from .common import after_thinking


# A fence may follow a list's mark or a quote's; then at least three of ` or ~, then what it says about its content.
FENCE = re.compile(r"((?:[ \t]*>)*[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)?)(`{3,}|~{3,})([^\n]*)")
LANGUAGE = re.compile(r"[\s{.]*([A-Za-z][A-Za-z0-9_+#-]*)")
PYTHON = {"py", "py3", "ipython", "ipython3", "pycon", "sage", "cython"}  # and what begins with "python"
MARKDOWN = {"markdown", "md", "mdx", "rmd", "qmd"}
TAGS = (("[BEGIN]", "[DONE]"), ("[PYTHON]", "[/PYTHON]"), ("<answer>", "</answer>"), ("<code>", "</code>"))
# A line at the margin that is code rather than words. No two neighbouring parts can match the same white space: time
# stays linear in the line.
CODE_LINE = re.compile(
    r"(?:(?:async +)?def +\w|class +\w+ *[:(]|import +\w+ *(?:$|[,;#])|import +\w+ +as +\w+|import +[\w.]+$"
    r"|from +[\w.]+ +import\b|@\w|#|(?:if|elif|while|for|with|except)\b.*:|(?:else|try|finally) *:|[)\]}]"
    r"|\"\"\"|'''|[A-Za-z_][\w.]*(?:\[[^\]\n]*\])*(?: *:[^=\n]*| *)[-+*/%|&^]?=[^=]|[A-Za-z_][\w.]*\("
    r"|(?:return|yield|raise|assert|pass|break|continue|global|nonlocal|del|print)\b)"
)
MAX_BLOCKS = 100  # the last ones of a completion; more are no attempt at a program
MAX_PIECES = 32  # blocks that one program is put together from


@dataclass(frozen=True)
class Block:
    """A piece of a completion that may be a program; `marked`: 2 as Python, 1 as nothing, 0 as something else."""

    code: str
    marked: int = 1

    @functools.cached_property
    def tree(self) -> ast.Module | None:
        return parse(self.code)

    @functools.cached_property
    def defined(self) -> set[str]:
        """Functions, classes and variables of its top level; a name that is imported is defined elsewhere."""
        if self.tree is None:
            # Still the program, if broken: its error belongs in the feedback.
            return set(re.findall(r"^(?:async +)?(?:def|class) +(\w+)", self.code, re.MULTILINE))
        return bound_names(self.tree.body, imports=False)

    @functools.cached_property
    def bound(self) -> set[str]:
        return self.defined if self.tree is None else bound_names(self.tree.body, imports=True)

    @functools.cached_property
    def missing(self) -> set[str]:
        """Names that it uses and does not bind."""
        return set() if self.tree is None else free_names([self.tree])[0] - set(dir(builtins))

    @functools.cached_property
    def is_program(self) -> bool:
        """Whether it does something, unlike an output that happens to be an expression."""
        return self.tree is not None and any(
            not isinstance(node, ast.Expr) or any(isinstance(part, ast.Call) for part in ast.walk(node))
            for node in self.tree.body
        )

    def writes_out(self, names: set[str]) -> bool:
        """Whether it can be read and gives more than the head of each of these functions."""
        return self.tree is not None and not any(
            isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            and node.name in names
            and all(isinstance(line, ast.Pass) or constant_line(line) for line in node.body)
            for node in self.tree.body
        )


def extract_code(text: str, names: Iterable[str] = ()) -> str:
    """
    The Python program in a completion.

    Candidates are the fenced blocks (CommonMark's, also in lists and quotes, and of several models' own habits: opened
    at the end of a line, closed at the end of the code, never closed), else what stands between `[BEGIN]` and `[DONE]`
    (the MBPP prompt) or similar tags, else the lines that look like code, else all of the text. Of several blocks, the
    last that defines most of `names` is the program, together with the blocks that bind what it uses; where none
    defines any of them, the last that is marked as Python, or else the last that does something.

    Args:
        text (`str`):
            The completion.
        names (`Iterable[str]`, *optional*):
            What the tests call.

    Returns:
        `str`: source code, leading spaces kept (a completion may go on with a function's body).
    """
    names = set(names)
    text = after_thinking(text).replace("\r\n", "\n")
    blocks, outside = fenced_blocks(text)
    if not any(block.defined & names for block in blocks):
        plain = [segment for segment in code_segments(outside) if segment.defined & names] if blocks else []
        if plain:
            return choose(plain, names)
    if blocks:
        return choose(blocks, names)
    for opening, closing in TAGS:
        if opening in text:
            return text.rpartition(opening)[2].partition(closing)[0].removeprefix("\n")
    text = text.partition("[DONE]")[0]
    if parse(text) is not None or parse(f"def body():\n{text}") is not None:
        return text
    segments = code_segments(text)
    # Without any of the names, it may be a body with words around it: `complete` knows what to do with it.
    return choose(segments, names) if any(segment.defined & names for segment in segments) else repair(text)


def tested_names(sources: list[str]) -> set[str]:
    """What tests take from the program: the names that they read and do not bind."""
    trees = [tree for tree in map(parse, sources) if tree is not None]
    names, modules = free_names(trees)
    return (names - modules - set(dir(builtins))) or names & set(dir(builtins))


def choose(blocks: list[Block], names: set[str]) -> str:
    """The block that is the program, with those that it needs; see [`extract_code`]."""

    def rank(position):
        block = blocks[position]
        if count := len(block.defined & names):
            return count, block.writes_out(names), position
        return 0, block.marked, block.is_program, block.tree is not None, position

    main = max(range(len(blocks)), key=rank)
    chosen, bound, needed = {main}, set(blocks[main].bound), blocks[main].missing | names
    while (wanted := needed - bound) and len(chosen) < MAX_PIECES:
        # The nearest block above that binds a missing name, or else the nearest below.
        others = itertools.chain(range(main - 1, -1, -1), range(main + 1, len(blocks)))
        found = next((other for other in others if other not in chosen and blocks[other].bound & wanted), None)
        if found is None:
            break
        chosen.add(found)
        bound |= blocks[found].bound
        needed |= blocks[found].missing
    return "\n".join(blocks[position].code for position in sorted(chosen))


def fenced_blocks(text: str, depth: int = 0) -> tuple[list[Block], str]:
    """The last fenced blocks of a text, in order, and what stands outside of them. Each line is read once."""
    found, outside, lines, at = [], [], text.split("\n"), 0
    while at < len(lines):
        line, at = lines[at], at + 1
        before, fence, info = open_fence(line)
        if fence:
            outside.append("" if FENCE.match(line) else before)
            content, closed, at = read_fence(lines, at, before, fence)
            found.append(("\n".join(content), info, closed))
        elif "`" in info:
            found.append((info.partition("`")[0], None, True))
        else:
            outside.append(line)
    blocks = []
    for content, info, closed in found[-MAX_BLOCKS:]:
        language = language_of(content if info is None else info)
        if info is None:
            # Opened and closed on one line, which may quote anything.
            content = content[LANGUAGE.match(content).end() :] if language == "python" else content
            if "=" in content or "def " in content:
                blocks.append(Block(content.strip() + "\n", 2 if language == "python" else 1))
        elif language in MARKDOWN and depth == 0:
            blocks += fenced_blocks(content, depth + 1)[0]
        else:
            marked = {"python": 2, None: 1}.get(language, 0)
            blocks.append(Block(whole_code(content, closed) if marked else content, marked))
    return blocks, "\n".join(outside)


def open_fence(line: str) -> tuple[str, str, str]:
    """
    What stands before a fence that this line opens, the fence, and what it says about its content. Without a fence,
    `("", "", rest)`, where `rest` holds a "`" if a block is opened and closed on this line.
    """
    opening = FENCE.match(line)
    if opening and not (opening[2][0] == "`" and "`" in opening[3]):
        return opening[1], opening[2], opening[3]
    before, ticks, info = line.partition("```")
    if not ticks or "`" in info or (info.strip() and language_of(info) != "python"):
        return "", "", info
    return before, "```", info  # behind words on the same line: not CommonMark, but models do it


def read_fence(lines: list[str], at: int, before: str, fence: str) -> tuple[list[str], bool, int]:
    """The lines of the block that was opened before line `at`, whether it is closed, and the line to go on with."""
    prefix = before if FENCE.match(before + fence) else ""
    quoted, width = prefix.count(">"), len(prefix.rpartition(">")[2].expandtabs(4))
    content = []
    for number in range(at, len(lines)):
        line = unquoted(lines[number], quoted)
        inner = FENCE.match(line)
        if inner and inner[2][0] == fence[0] and len(inner[1].expandtabs(4)) < width + 4:
            if len(inner[2]) >= len(fence) and not inner[3].strip():
                return content, True, number + 1
            if len(inner[2]) == len(fence) and language_of(inner[3]) == "python":
                return content, False, number  # the next block: this one was never closed
        content.append(without_indent(line, width))
    return content, False, len(lines)


def whole_code(content: str, closed: bool) -> str:
    """The code of a fenced block, made readable where that is the fence's fault."""
    if parse(content) is None:
        if "```" in content and parse(cut := content.partition("```")[0]) is not None:
            return cut  # closed behind the code, on the same line
        if not closed:
            return repair(without_words(content))  # nothing else says where it ends
    return repair(content) + ("\n" if closed and content else "")


def language_of(info: str) -> str | None:
    """The language that a fence names: `python title="a.py"`, `{.python}`, `Python3`; `None` if it names none."""
    found = LANGUAGE.match(info)
    language = found[1].lower() if found else ""
    words = info.split()
    if language in PYTHON or "python" in language or (words and words[0].strip("{}").endswith(".py")):
        return "python"
    if language.startswith("code") and len(words) > 1:
        return language_of(words[1])  # `{code-block} python`
    return language if language not in ("", "code") else None


def unquoted(line: str, depth: int) -> str:
    for _ in range(depth):
        line = line.lstrip(" \t").removeprefix(">").removeprefix(" ")
    return line


def without_indent(line: str, width: int) -> str:
    """A line without the first `width` columns of white space, as far as it has them."""
    indent = len(line) - len(line.lstrip(" \t"))
    if "\t" in line[:indent]:
        line = line[:indent].expandtabs(4) + line[indent:]
        indent = len(line) - len(line.lstrip(" "))
    return line[min(width, indent) :]


def code_segments(text: str) -> list[Block]:
    """Runs of lines that look like code: from such a line at the margin to a line of words at the margin."""
    segments, current = [], []
    for line in [*text.split("\n"), "the end"]:
        belongs = not line.strip() or line[0] in " \t"
        if CODE_LINE.match(line) or (current and belongs):
            current.append(line)
        elif current:
            segments.append(Block("\n".join(current) + "\n"))
            current = []
    return segments


def repair(code: str) -> str:
    """Undoes what makes a program unreadable and is none of its own: see the steps; unchanged where none helps."""
    if parse(code) is not None:
        return code
    candidate = code.replace("\u00a0", " ").translate({0x200B: None, 0xFEFF: None})
    lines = candidate.split("\n")
    if any(line.lstrip().startswith(">>> ") for line in lines):
        # An interactive session: what was typed, without what was answered.
        typed = [line.lstrip() for line in lines]
        candidate = "\n".join(line[4:] for line in typed if line.startswith((">>> ", "... ")) or line == "...")
    else:
        # A notebook's commands.
        candidate = "\n".join(line for line in lines if not line.startswith(("!", "%")))
    for fixed in (candidate, textwrap.dedent(candidate)):
        if parse(fixed) is not None:
            return fixed if fixed.endswith("\n") or not code.endswith("\n") else fixed + "\n"
    return code


@functools.lru_cache(maxsize=16)
def parse(code: str) -> ast.Module | None:
    """The tree of a program, `None` if it has none. The compiler has the last word: `return` outside of a function."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(code)
            compile(code, "<program>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return None
    return tree


def constant_line(line: ast.stmt) -> bool:
    """A docstring or `...`."""
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)


def bound_names(body: list[ast.stmt], imports: bool) -> set[str]:
    """Names that a module's body binds, within `if`, `try` and `with` too."""
    names = set()
    for node in body:
        if isinstance(node, ast.Assign) and all(isinstance(target, ast.Name) for target in node.targets):
            names.update(target.id for target in node.targets)  # most lines of long texts
            continue
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.For)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update(part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name))
        elif isinstance(node, (ast.Import, ast.ImportFrom)) and imports:
            names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        for inner in ("body", "orelse", "finalbody", "handlers"):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                parts = getattr(node, inner, [])
                parts = [line for part in parts for line in (part.body if inner == "handlers" else [part])]
                names |= bound_names(parts, imports) if parts else set()
    return names


def complete(prompt: str, code: str, entry_point: str) -> str:
    """
    Puts a HumanEval program together from its prompt and what the model wrote: the whole function, or only its body.

    A body may have lost the indentation of its first line (a completion that was stripped) or of all of them, or have
    another one than the prompt, and words may follow it.

    Args:
        prompt (`str`):
            Imports, helpers, and the function's head with its docstring.
        code (`str`):
            What the model wrote.
        entry_point (`str`):
            Name of the function.
    """
    for candidate in (code, textwrap.dedent(code)):
        if entry_point in Block(candidate).defined:
            # The prompt first: the function may use its imports and helpers. Its head alone is a function that does
            # nothing, which the model's then replaces.
            lines = candidate.split("\n")
            future = [line for line in lines if line.startswith("from __future__ import")]  # must come first
            return "\n".join([*future, stub(prompt), *(line for line in lines if line not in future)])
    for body in (code, without_words(code), at_margin_cut(code)):
        for candidate in body_forms(body, indentation(prompt)):
            if candidate.strip() and parse(prompt + candidate) is not None:
                return prompt + candidate
    return prompt + code


def stub(prompt: str) -> str:
    """A HumanEval prompt as a program: its function does nothing."""
    return f"{prompt.rstrip()}\n{indentation(prompt)}pass\n"


def indentation(prompt: str) -> str:
    """The indentation of a function's body, going by the prompt's last line (the end of a docstring)."""
    last = prompt.rstrip().rpartition("\n")[2]
    return last[: len(last) - len(last.lstrip())] or "    "


def body_forms(code: str, indent: str) -> list[str]:
    """What the lines of a body may have looked like, most likely first."""
    first, newline, rest = code.lstrip("\n").partition("\n")
    everything = textwrap.indent(textwrap.dedent(code), indent)
    if not first.strip() or first[0] in " \t":
        return [code, everything]
    others = [line[: len(line) - len(line.lstrip())] for line in rest.split("\n") if line.strip()]
    # The first line was stripped: the others show how deep it was.
    only_first = textwrap.indent(
        textwrap.dedent(f"{min(others, default=indent, key=len)}{first}{newline}{rest}"), indent
    )
    return [only_first, everything, code] if all(others) else [everything, only_first, code]


def without_words(code: str) -> str:
    """A body up to the first line at the margin, but for its own first line, that does not look like code."""
    lines = code.split("\n")
    for number, line in enumerate(lines[1:], start=1):
        if line.strip() and line[0] not in " \t" and not CODE_LINE.match(line):
            return "\n".join(lines[:number]) + "\n"
    return code


def at_margin_cut(code: str) -> str:
    """A body up to the first line at the margin but for its own first line."""
    return re.split(r"\n(?=[^\s])", code.lstrip("\n"), maxsplit=1)[0] + "\n"
