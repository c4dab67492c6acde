"""Corrections as a reader sees them: what was removed is red and struck, what was put in is green and underlined."""

import html
import logging
import os
import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rapidfuzz.distance import Levenshtein

from .plots import save_figure
from .privacy import redact_secrets


logger = logging.getLogger(__name__)

_DELETED, _INSERTED, _DELETED_FILL, _INSERTED_FILL = "#a3261b", "#1d6b33", "#fbe3e0", "#dff2e3"
# Chinese and Japanese write no spaces between words, so each of their characters counts as one.
_HAN_AND_KANA = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_PIECES = re.compile(rf"[{_HAN_AND_KANA}]|[^\W{_HAN_AND_KANA}]+|\s+|.", re.DOTALL)
# A character with the accents, variation selectors, skin tones and joined emoji that belong to it.
_CLUSTERS = re.compile(r".(?:[\u0300-\u036f\ufe00-\ufe0f\u20d0-\u20ff\U0001f3fb-\U0001f3ff]|\u200d.)*", re.DOTALL)

_Block = tuple[bool, str, str]  # (whether it was edited, its text in the response, its text in the correction)
_Run = tuple[str, bool]  # (text, whether it was edited)


def examples_markdown(examples: Sequence[Mapping[str, Any]], limit: int = 5) -> str:
    """
    Examples of corrections for a model card: what the correction removed is struck (and red), what it put in is
    underlined (and green). Long texts are cut around their edits.

    Args:
        examples (`list[dict]`):
            `{"prompt", "response", "correction"}`, plain text or conversational; a `correction` of `None` means that
            the teacher gave none.
        limit (`int`, *optional*, defaults to `5`):
            Number of examples to show.

    Returns:
        `str`: HTML that Markdown passes through as it is; the texts are escaped and cannot break the page.
    """
    deleted = f'<del style="color:{_DELETED};background:{_DELETED_FILL}">'
    inserted = f'<ins style="color:{_INSERTED};background:{_INSERTED_FILL}">'

    def marked(runs: Sequence[_Run], opening: str) -> str:
        closing = f"</{opening[1:4]}>"
        return "".join(opening + html.escape(text) + closing if edited else html.escape(text) for text, edited in runs)

    parts = []
    for prompt, response, correction in map(_example_runs, examples[:limit]):
        parts.append(
            '<pre style="white-space:pre-wrap">\n'
            f"<b>Prompt</b>      {marked(prompt, '')}\n"
            f"<b>Response</b>    {marked(response, deleted)}\n"
            f"<b>Correction</b>  {marked(correction, inserted)}\n"
            "</pre>"
        )
    return "\n\n".join(parts)


def example_row(example: Mapping[str, Any]) -> dict[str, str]:
    """
    An example of a correction as a row of a table: `prompt`, `response`, `correction` and `edits`, which has both
    texts in one, as `git diff --word-diff` writes it: `[-removed-]{+put in+}`.

    Args:
        example (`dict`):
            `{"prompt", "response", "correction"}`, as in [`examples_markdown`].

    Returns:
        `dict[str, str]`: whole texts, in which secrets are redacted.
    """
    prompt, response = _as_text(example["prompt"]), _as_text(example["response"])
    row = {"prompt": prompt, "response": response, "correction": "(none)", "edits": "(none)"}
    if example["correction"] is not None:
        row["correction"] = correction = _as_text(example["correction"])
        row["edits"] = "".join(
            (f"[-{old}-]" if old else "") + (f"{{+{new}+}}" if new else "") if edited else old
            for edited, old, new in _edit_blocks(response, correction)
        )
    return row


def plot_examples(examples: Sequence[Mapping[str, Any]], path: str | os.PathLike, limit: int = 5) -> Path | None:
    """
    Draw examples of corrections: what the correction removed is struck and red, what it put in is underlined and
    green. Long texts are wrapped, and cut around their edits.

    Args:
        examples (`list[dict]`):
            `{"prompt", "response", "correction"}`, plain text or conversational; a `correction` of `None` means that
            the teacher gave none.
        path (`str` or `os.PathLike`):
            PNG file to write; its directory is created.
        limit (`int`, *optional*, defaults to `5`):
            Number of examples to draw.

    Returns:
        `Path` of the picture, or `None` (with a warning) if there is no example. Characters that no installed font has
        are drawn as boxes.
    """
    if not examples:
        logger.warning("No examples were drawn: there are none.")
        return None
    columns, label_width = 96, 13
    none = ("#1f2326", None)
    lines = []  # (label, cells of the line, (text color, background) of edited cells)
    for number, runs in enumerate(map(_example_runs, examples[:limit]), start=1):
        lines.append((f"Example {number}", [], none))
        styles = (none, (_DELETED, _DELETED_FILL), (_INSERTED, _INSERTED_FILL))
        for name, part, style in zip(("Prompt", "Response", "Correction"), runs, styles, strict=True):
            for index, cells in enumerate(_wrap(part, columns)):
                lines.append((name if index == 0 else "", cells, style))
        lines.append(("", [], none))

    # Coordinates are character cells: a fixed-width font makes the place of every character known in advance.
    installed = set(font_manager.get_font_names())
    family = ["DejaVu Sans Mono", *(name for name in _FALLBACK_FONTS if name in installed)]
    font = font_manager.FontProperties(family=family, size=10)
    figure = Figure(dpi=100)
    probe = FigureCanvasAgg(figure).get_renderer().get_text_width_height_descent("0" * 100, font, ismath=False)
    cell, line_height, margin = probe[0] / 100, 19.0, 14.0
    width = 2 * margin + (label_width + columns) * cell
    height = 2 * margin + (len(lines) + 1) * line_height
    figure.set_size_inches(width / 100, height / 100)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)

    def write(x: float, y: float, text: str, **style) -> None:
        axis.text(x, y, text, fontproperties=font, va="baseline", parse_math=False, **style)

    title = "Corrections: what was removed is red and struck, what was put in is green and underlined"
    axis.text(margin, margin + 12, title, fontsize=11, fontweight="bold", family="DejaVu Sans", va="baseline")
    for row, (label, cells, (color, background)) in enumerate(lines, start=1):
        y = margin + row * line_height + 18
        if label.startswith("Example"):
            axis.plot([margin, width - margin], [y - 18, y - 18], color="#d5d8da", linewidth=0.8)
        write(margin, y, label, color="#6b7075")
        x = margin + label_width * cell
        for text, size, edited in _same_style(cells):
            if edited:
                axis.add_patch(Rectangle((x, y - 13), size * cell, 18, facecolor=background, edgecolor="none"))
                level = y - 4 if color == _DELETED else y + 4  # below an underscore
                axis.plot([x, x + size * cell], [level, level], color=color, linewidth=1.3, solid_capstyle="butt")
            write(x, y, text, color=color if edited else none[0])
            x += size * cell
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        return save_figure(figure, path)


# Asked for only where they are installed; without them Chinese, Japanese and Korean are drawn as boxes.
_FALLBACK_FONTS = (
    "Noto Sans Mono CJK SC",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "Hiragino Sans",
    "MS Gothic",
    "Noto Sans Devanagari",
)


def _example_runs(example: Mapping[str, Any]) -> tuple[list[_Run], list[_Run], list[_Run]]:
    """Prompt, response and correction of an example as runs `(text, edited)`, ready to be shown."""
    prompt, response = _as_text(example["prompt"]), _as_text(example["response"])
    prompt = [(_cut(prompt, 250, 150), False)]
    if example["correction"] is None:
        return prompt, [(_cut(response, 350, 0), False)], [("(none)", False)]
    correction = _as_text(example["correction"])
    if correction == response:
        return prompt, [(_cut(response, 350, 0), False)], [("(the same: nothing to correct)", False)]
    blocks = _around_edits(_edit_blocks(response, correction))
    return (
        prompt,
        [(_visible(old, edited), edited) for edited, old, _ in blocks if old],
        [(_visible(new, edited), edited) for edited, _, new in blocks if new],
    )


def _visible(text: str, edited: bool) -> str:
    """Show line breaks that were removed or put in, which would be invisible, and shorten long runs of empty lines."""
    text = re.sub(r"\n{4,}", "\n…\n", text)
    return text.replace("\n", "↵\n") if edited else text


def _as_text(value: str | Sequence[Mapping[str, Any]]) -> str:
    """The text of a plain or conversational prompt, response or correction, with what cannot be shown replaced."""
    if not isinstance(value, str):
        texts = []
        for message in value:
            content = message["content"]
            if not isinstance(content, str):  # a list of text and image parts
                content = " ".join(part.get("text", f"({part['type']})") for part in content)
            texts.append(content if len(value) == 1 else f"{message['role']}: {content}")
        value = "\n".join(texts)
    # Redacted before the edits are marked: the marks would cut a secret in parts that no pattern recognises.
    value = redact_secrets(value).replace("\r\n", "\n").replace("\t", "    ")
    # Control characters and halves of surrogate pairs
    return "".join(c if c == "\n" or unicodedata.category(c) not in ("Cc", "Cs") else "\ufffd" for c in value)


def _edit_blocks(response: str, correction: str) -> list[_Block]:
    """
    Align two texts, as blocks of equal and of edited text. By word, since letters that two words happen to share
    explain nothing; but where a word was changed only slightly (a digit of a number, a typo), by character.
    """
    words = _align(_PIECES.findall(response), _PIECES.findall(correction))
    # Blocks alternate, so a space that is neither first nor last stands between two edits, and belongs to them.
    last = len(words) - 1
    words = [(edited or (old.isspace() and 0 < i < last), old, new) for i, (edited, old, new) in enumerate(words)]

    blocks = []
    for edited, old, new in _join_neighbours(words):
        numbers = old.isdigit() and new.isdigit()
        if edited and (numbers or Levenshtein.normalized_similarity(old, new) >= 0.6):
            blocks.extend(_align(_CLUSTERS.findall(old), _CLUSTERS.findall(new)))
        else:
            blocks.append((edited, old, new))
    return blocks


def _align(a: Sequence[str], b: Sequence[str]) -> list[_Block]:
    """Align two sequences of pieces with the fewest edits; the blocks alternate between equal and edited."""
    # Of equally short alignments, the one without shifts: in 0999 -> 1000 all four digits are wrong, none was put in.
    if len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) == Levenshtein.distance(a, b):
        steps = [(x != y, x, y) for x, y in zip(a, b, strict=True)]
    else:
        steps = []
        for edit in Levenshtein.opcodes(a, b):
            old, new = "".join(a[edit.src_start : edit.src_end]), "".join(b[edit.dest_start : edit.dest_end])
            steps.append((edit.tag != "equal", old, new))
    return _join_neighbours(steps)


def _join_neighbours(blocks: Sequence[_Block]) -> list[_Block]:
    return [
        (edited, "".join(old for _, old, _ in group), "".join(new for _, _, new in group))
        for edited, group in ((edited, list(group)) for edited, group in groupby(blocks, key=itemgetter(0)))
    ]


def _around_edits(blocks: Sequence[_Block], limit: int = 500, context: int = 60) -> list[_Block]:
    """Cut texts of more than `limit` characters to `context` characters around each edit, and to `limit` in all."""
    if sum(max(len(old), len(new)) for _, old, new in blocks) <= limit:
        return list(blocks)
    shown, used = [], 0
    for index, (edited, old, new) in enumerate(blocks):
        if used >= limit:
            left = sum(edited for edited, _, _ in blocks[index:])
            note = f" … ({left} more edit{'s' if left > 1 else ''})" if left else " …"
            shown.append((False, note, note))
            break
        if edited:
            old, new = _cut(old, limit // 3, limit // 6), _cut(new, limit // 3, limit // 6)
        else:
            old = new = _cut(old, context if index > 0 else 0, context if index < len(blocks) - 1 else 0)
        used += max(len(old), len(new))
        shown.append((edited, old, new))
    return shown


def _cut(text: str, head: int, tail: int) -> str:
    """The first `head` and the last `tail` characters, with an ellipsis for what is between them."""
    if len(text) <= head + tail + 3:
        return text
    return text[:head] + " … " + text[len(text) - tail :]


_Cell = tuple[str, int, bool]  # (a character with its accents, its width in columns, whether it was edited)


def _wrap(runs: Sequence[_Run], columns: int, max_lines: int = 12) -> list[list[_Cell]]:
    """Break runs into lines of at most `columns` columns, at a space where there is one in the second half."""
    lines = [[]]
    for text, edited in runs:
        for cluster in _CLUSTERS.findall(text):
            if cluster == "\n":
                lines.append([])
                continue
            # East Asian characters and emoji are as wide as two letters
            size = 2 if unicodedata.east_asian_width(cluster[0]) in "WF" else 1
            if sum(width for _, width, _ in lines[-1]) + size > columns:
                spaces = [index for index, cell in enumerate(lines[-1]) if cell[0] == " "]
                end = spaces[-1] + 1 if spaces and spaces[-1] > columns // 2 else len(lines[-1])
                lines[-1:] = [lines[-1][:end], lines[-1][end:]]
            lines[-1].append((cluster, size, edited))
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], [("…", 1, False)]]
    return lines


def _same_style(cells: Sequence[_Cell]) -> list[_Cell]:
    """Join neighbours that can be drawn as one text: of the same style, and of letters that are one column wide."""
    joined = []
    for text, size, edited in cells:
        if joined and joined[-1][2] == edited and text.isascii() and joined[-1][0].isascii():
            text, size = joined[-1][0] + text, joined[-1][1] + size
            joined.pop()
        joined.append((text, size, edited))
    return joined
