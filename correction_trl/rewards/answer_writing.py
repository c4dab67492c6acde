r"""
One writing for what means the same in print: Unicode signs, LaTeX's spaces and sizes, Markdown, `\dfrac`, `{,}`, `½`.

Answers are untrusted: every pattern here takes time in proportion to the text (a test holds them to it).
"""

import functools
import re
import unicodedata


SIGNS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "﹣": "-", "－": "-", "＋": "+", "×": r"\times ", "÷": r"\div ",
    "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "⁄": "/", "∕": "/", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ",
    "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "±": r"\pm ",
    "∪": r"\cup ", "∩": r"\cap ",
    "∅": r"\emptyset ", "Ø": r"\emptyset ", "∈": r"\in ", "∉": r"\notin ", "°": r"^\circ ", "º": r"^\circ ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "∠": r"\angle ", "△": r"\triangle ", "…": "...", "“": "", "”": "",
    "‘": "", "’": "'", "\u200b": "", "\u2060": "", "\ufeff": "",
    "½": r" \frac{1}{2}", "⅓": r" \frac{1}{3}", "⅔": r" \frac{2}{3}", "¼": r" \frac{1}{4}", "¾": r" \frac{3}{4}",
    "⅕": r" \frac{1}{5}", "⅖": r" \frac{2}{5}", "⅗": r" \frac{3}{5}", "⅘": r" \frac{4}{5}", "⅙": r" \frac{1}{6}",
    "⅚": r" \frac{5}{6}", "⅐": r" \frac{1}{7}", "⅛": r" \frac{1}{8}", "⅜": r" \frac{3}{8}", "⅝": r" \frac{5}{8}",
    "⅞": r" \frac{7}{8}", "⅑": r" \frac{1}{9}", "⅒": r" \frac{1}{10}",
}  # fmt: skip
GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigmaf sigma tau upsilon"
    " phi chi psi omega"
).split()
SIGNS |= {chr(0x3B1 + place): rf"\{name} " for place, name in enumerate(GREEK) if name not in ("omicron", "sigmaf")}
TRANSLATION = str.maketrans(SIGNS)
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋ₙ", "0123456789+-n")
SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
SUBSCRIPT = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋ₙ]+")

BIG_ROOT = re.compile(r"√\s?(?:\(([^()]{1,100})\)|(\d+|[A-Za-z]|\{[^{}]{1,100}\})|)")
WORD_ROOT = re.compile(r"(?<![\\A-Za-z])sqrt\s?\(([^()]{1,100})\)")
# A line break of a matrix is no space, whatever follows it.
NO_INK = re.compile(
    r"(\\\\)|\\(?:left|right|big|Big|bigg|Bigg|bigl|bigr|Bigl|Bigr|displaystyle|textstyle|limits|nolimits|mathstrut|large"
    r"|Large|small|normalsize|bf|it|rm)(?![A-Za-z])|\\phantom\{[^{}]{0,100}\}|\\!"
)
SPACES = re.compile(r"(\\\\)|\\[,;: ]|\\q?quad(?![A-Za-z])|[~\s]")
SEVERAL_SPACES = re.compile(r" {2,}")
COLOUR = re.compile(r"\\(?:color|textcolor)\{[^{}]{0,40}\}")
UPRIGHT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up|sl)?|mbox|mathrm|mathbf|mathit|mathsf|operatorname\*?)\s?\{([^{}]*)\}"
)
WRAPPED = re.compile(r"\\(?:boxed|fbox|framebox|underline|ensuremath|mathord)(?![A-Za-z])")
NO_WORD = re.compile(r"[-+\d.,:()\s%$]*")
COMMANDS = {
    r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\geq": r"\ge", r"\geqslant": r"\ge",
    r"\leq": r"\le", r"\leqslant": r"\le", r"\neq": r"\ne", r"\lbrace": r"\{", r"\rbrace": r"\}",
    r"\varnothing": r"\emptyset", r"\O": r"\emptyset",
    r"\langle": "(", r"\rangle": ")", r"\lbrack": "[", r"\rbrack": "]", r"\lparen": "(", r"\rparen": ")",
    r"\lvert": "|", r"\rvert": "|", r"\vert": "|", r"\ldots": "...", r"\dots": "...", r"\cdots": "...",
    r"\degree": r"^\circ ", r"\gt": ">", r"\lt": "<", r"\infin": r"\infty", r"\colon": ":", r"\mid": "|",
    r"\R": r"\mathbb{R}",
    r"\bar": r"\overline", r"\dot": r"\overline", r"\lnot": r"\neg", r"\vee": r"\lor", r"\wedge": r"\land",
    r"\widehat": r"\hat", r"\overrightarrow": r"\vec", r"\exp": "e^", r"\percent": "%", r"\euro": "€", r"\pounds": "£",
}  # fmt: skip
COMMAND = re.compile(r"\\[A-Za-z]+")
NOT_EQUAL = re.compile(r"\\not ?=|!=|=/=|<>")
AT_LEAST, AT_MOST = re.compile(r">=|=>|> ?="), re.compile(r"<=|=<|< ?=")
OPEN_ROOT = re.compile(r"\\sqrt ?(\d|[A-Za-z](?![A-Za-z]))")
BRACED_TOKEN = re.compile(r"([_^]) ?\{([A-Za-z\d]|\\[A-Za-z]+)\}")
COMMA_AND_BACK = re.compile(r", ?\\!")
THOUSANDS_IN_BRACES = re.compile(r"(?<=\d) ?\{,\} ?(?=\d)")
THOUSANDS = re.compile(r"(?<![\d.])[1-9]\d{0,2}(?:(?:[, _']| , )\d{3})+(?!\d)")
SEPARATOR = re.compile(r"\D+")
TIMES_TEN = re.compile(r"(?<=\d) ?[xX*] ?(?=10 ?\^|10\*\*)")
SPACE_THAT_MEANS_NOTHING = re.compile(r"(?<![\dA-Za-z,.]) | (?![\dA-Za-z\\])|(?<=[,.]) (?=[A-Za-z\\(\[-])")
COMMON_NAMES = {
    "empty set": r"\emptyset", "the empty set": r"\emptyset", "all real numbers": r"\mathbb{R}",
    "all reals": r"\mathbb{R}",
    "the real numbers": r"\mathbb{R}", "all integers": r"\mathbb{Z}", "dne": "does not exist", r"\{\}": r"\emptyset",
    "{}": r"\emptyset", "infinity": r"\infty", "negative infinity": r"-\infty", "no solutions": "no solution",
    "no real solutions": "no real solution", "none of the above": "none",
}  # fmt: skip
MINUS = re.compile(r"(?i)^(?:minus|negative) ?(?=[\d\\])")
UNIT_IN_BRACKETS = re.compile(r"(?<=\d) ?\(([a-z]{3,20})\)$")  # 20 (students)
WORD_SIGN = re.compile(r"(?<![A-Za-z\\])(?:pi(?![A-Za-z])|(?:angle|triangle) (?=[A-Z]))")
WORD_SIGNS = {"pi": r"\pi", "angle ": r"\angle ", "triangle ": r"\triangle "}
ARTICLE = re.compile(r"(?i)(?:the|an) (?=[A-Za-z]{3,})|a (?=[a-z]{3,})")


def tidy(text: str) -> str:
    """
    One writing of an answer. Spaces stay where they part digits or words; nothing is dropped that could be part of
    what is said.

    Args:
        text (`str`):
            An answer as it is written, at most some thousand characters.

    Returns:
        `str`

    Example:

    ```python
    >>> tidy(r"$\\left(1{,}000,\\, −\\dfrac12\\right)$.")
    '(1000,-\\\\frac{1}{2})'
    ```
    """
    return _tidy(text[:20_000])


@functools.lru_cache(maxsize=4096)  # a gold answer comes back once per completion of its prompt
def _tidy(text: str) -> str:
    if not text.isascii():
        text = from_unicode(text)
    if text.isdigit():
        return text
    if "\\" in text:
        text = NO_INK.sub(line_break, COMMA_AND_BACK.sub("{,}", text))
    text = without_marks(SPACES.sub(space, text))
    if "\\" in text:
        text = COMMAND.sub(lambda match: COMMANDS.get(match.group(), match.group()), text)
        text = WRAPPED.sub("", COLOUR.sub("", text))  # what \boxed holds stays in braces
        text = UPRIGHT.sub(upright, text).replace(r"\%", "%").replace(r"\$", "$").replace(r"^{\circ}", r"^\circ")
    text = SEVERAL_SPACES.sub(" ", WORD_ROOT.sub(r"\\sqrt{\1}", text)).strip()
    text = THOUSANDS_IN_BRACES.sub("", text)
    text = NOT_EQUAL.sub(r"\\ne ", AT_LEAST.sub(r"\\ge ", AT_MOST.sub(r"\\le ", text)))
    text = TIMES_TEN.sub(r"\\times ", text).replace("**", "^")
    text = THOUSANDS.sub(without_separators, text)
    if "\\" in text:
        text = OPEN_ROOT.sub(r"\\sqrt{\1}", with_braces(text))
    text = BRACED_TOKEN.sub(r"\1\2", text)
    text = SPACE_THAT_MEANS_NOTHING.sub("", text)
    text = without_marks(text)
    if text.startswith(r"\text{") and text.find("}") == len(text) - 1:
        text = without_marks(text[6:-1])
    text = UNIT_IN_BRACKETS.sub(r" \1", text)
    text = WORD_SIGN.sub(lambda match: WORD_SIGNS[match.group()], MINUS.sub("-", text))
    return COMMON_NAMES.get(text.lower().rstrip("."), text)


def from_unicode(text: str) -> str:
    text = BIG_ROOT.sub(lambda match: rf"\sqrt{{{(match.group(1) or match.group(2) or '').strip('{}')}}}", text)
    text = SUPERSCRIPT.sub(lambda match: f"^{{{match.group().translate(SUPERSCRIPTS)}}}", text)
    text = SUBSCRIPT.sub(lambda match: f"_{{{match.group().translate(SUBSCRIPTS)}}}", text)
    text = unicodedata.normalize("NFKC", text.translate(TRANSLATION)).translate(TRANSLATION)
    if text.isascii():
        return text
    return "".join(str(unicodedata.digit(sign)) if not sign.isascii() and sign.isdigit() else sign for sign in text)


def without_marks(text: str) -> str:
    """Without what stands around: math signs, quotes, Markdown, a pair of braces or brackets, a point at the end."""
    while True:
        before = text
        text = text.strip(' \t\n"`')
        text = text if text.endswith("...") else text.rstrip(".,;:").strip()
        for opening, closing in (("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("{", "}"), ("(", ")")):
            if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing):
                inner = text[len(opening) : -len(closing)]
                alone = closing not in inner and opening not in inner
                # (1,2) is a pair, and (A) a choice that A states as well.
                if alone and not (opening == "(" and ("," in inner or ";" in inner)) and inner[-1] != "\\":
                    text = inner
        if len(text) > 1 and text[0] == "$" and "$" not in text[1:] and not text[1:2].isdigit():
            text = text[1:]
        if text.startswith("=") and len(text) > 1:
            text = text[1:]
        if text == before:
            return text


def line_break(match: re.Match) -> str:
    return match.group(1) or ""


def space(match: re.Match) -> str:
    return match.group(1) or " "


def upright(match: re.Match) -> str:
    r"""`\text{ cm }` and its kin: digits as they are, words in `\text{}`."""
    inner = match.group(1).strip()
    if NO_WORD.fullmatch(inner):
        return inner
    return rf"\text{{{inner}}}"


def with_braces(text: str, depth: int = 0) -> str:
    r"""`\frac12` and `\frac{\pi}2` with braces around what is above and below."""
    pieces, position = [], 0
    for _ in range(100):
        start = text.find(r"\frac", position)
        if start < 0:
            break
        pieces.append(text[position : start + 5])
        position = start + 5
        if (
            text[position : position + 1] == "{"
            and (end := closing_brace(text, position))
            and text[end : end + 1] == "{"
        ):
            continue
        for _ in range(2):
            position += text[position : position + 1] == " "
            if text[position : position + 1] == "{":
                end = closing_brace(text, position) or len(text)
                pieces.append(
                    with_braces(text[position:end]) if r"\frac" in text[position:end] else text[position:end]
                )
            else:
                command = COMMAND.match(text, position)
                end = command.end() if command else position + 1
                pieces.append(f"{{{text[position:end]}}}")
            position = end
    return "".join([*pieces, text[position:]])


def closing_brace(text: str, start: int) -> int:
    """Where the brace that opens at `start` is closed (the place after it); 0 if it is not."""
    depth = 0
    for brace in BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)  # not those that are escaped
        if depth == 0:
            return brace.end()
    return 0


BRACE = re.compile(r"\\[\s\S]|[{}]")


def without_separators(match: re.Match) -> str:
    """1,000 and 1 000 are numbers; 1, 000 and (1,000) are none."""
    text, before = match.group(), match.string[: match.start()]
    inside = any(before.count(opening) > before.count(closing) for opening, closing in ("()", "[]", (r"\{", r"\}")))
    if len(set(SEPARATOR.findall(text))) > 1 or (inside and "," in text):
        return text
    return SEPARATOR.sub("", text)


def plain_text(tidied: str) -> str | None:
    r"""The words that an answer is, in lower case and without articles and `\text{}`; `None` if it is no text."""
    text = tidied.replace(r"\text", "").replace("{", "").replace("}", "") if r"\text{" in tidied else tidied
    if not TEXT.fullmatch(text):
        return None
    text = ARTICLE.sub("", text.strip(), count=1) if " " in text.strip() else text.strip()
    if len(text) > 2:
        text = text if text.isupper() else text.lower()
    return text.replace(" ", "").replace(".", "").strip("()") or None


TEXT = re.compile(r"[A-Za-z\s.,'()\-]+")
