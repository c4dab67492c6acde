"""
Ways of writing a gold answer of MATH differently: equal ones, and near-misses.

Each function gets an answer in LaTeX and returns rewritings by kind; the tests and the benchmark count how they are
judged.
"""

import re
from fractions import Fraction


INTEGER = re.compile(r"-?\d+")
DECIMAL = re.compile(r"-?\d*\.\d+")
FRACTION = re.compile(r"(-?)\\[dt]?frac\{(-?\d+)\}\{(\d+)\}")
WORD = re.compile(r"\\text\{([A-Za-z]+)\}|([A-Za-z]{3,})")


def equal_rewritings(gold: str) -> list[tuple[str, str]]:
    """(kind, rewriting) of everything that applies to `gold`."""
    found = [
        ("spaces added", re.sub(r"([=+,])", r" \1 ", gold)),
        ("spaces removed", re.sub(r"(?<![A-Za-z}])\s+(?![A-Za-z\\])", "", gold)),
        ("point at the end", gold + "."),
        ("dollars around", f"${gold}$"),
    ]
    if r"\frac" in gold:
        found += [("dfrac", gold.replace(r"\frac", r"\dfrac")), ("tfrac", gold.replace(r"\frac", r"\tfrac"))]
    if r"\left" in gold:
        found.append(("no left and right", re.sub(r"\\(left|right)(?![a-z])", "", gold)))
    elif re.fullmatch(r"\(.+\)", gold):
        found.append(("left and right", rf"\left{gold[:-1]}\right)"))
    if INTEGER.fullmatch(gold):
        number = int(gold)
        found += [
            ("as a decimal", f"{gold}.0"),
            ("as a fraction", rf"\frac{{{2 * number}}}{{2}}"),
            ("as a sum", f"{number - 1} + 1"),
            ("with a unit", rf"{gold}\text{{ cm}}"),
            ("with a unit in words", f"{gold} meters"),
            ("with a variable", f"x = {gold}"),
        ]
        if abs(number) >= 1000:
            found += [("thousands", f"{number:,}"), ("LaTeX thousands", f"{number:,}".replace(",", "{,}"))]
            found.append(("thin spaces", f"{number:,}".replace(",", r"\,")))
        if number >= 0:
            found.append(("currency", rf"\${gold}"))
    if DECIMAL.fullmatch(gold):
        value = Fraction(gold)
        found.append(("decimal as a fraction", rf"\frac{{{value.numerator}}}{{{value.denominator}}}"))
        found.append(("zeros at the end", gold + "0"))
    if fraction := FRACTION.fullmatch(gold):
        sign, top, bottom = fraction.groups()
        value = Fraction(int(sign + top), int(bottom)) if not top.startswith("-") else Fraction(int(top), int(bottom))
        found += [
            ("slash", f"{sign}{top}/{bottom}"),
            ("expanded", rf"{sign}\frac{{{3 * int(top)}}}{{{3 * int(bottom)}}}"),
            ("quotient", rf"{sign}{top} \div {bottom}"),
        ]
        bare = value.denominator
        for prime in (2, 5):
            while bare % prime == 0:
                bare //= prime
        if bare == 1:
            found.append(("fraction as a decimal", f"{float(value)}"))
        if value > 1 and value.denominator > 1:
            whole, rest = divmod(value.numerator, value.denominator)
            found.append(("mixed number", rf"{whole}\frac{{{rest}}}{{{value.denominator}}}"))
    parts = gold.split(",")
    if len(parts) > 1 and not re.search(r"[()\[\]{}]|,(?:\\!)? ?\d{3}", gold):
        found.append(("set in another order", ", ".join(part.strip() for part in reversed(parts))))
        found.append(("set in braces", rf"\{{{gold}\}}"))
    if (word := WORD.fullmatch(gold)) and not gold.startswith("\\"):
        found.append(("text", rf"\text{{{gold}}}"))
    elif word:
        found += [("word without text", word.group(1)), ("textbf", rf"\textbf{{{word.group(1)}}}")]
    terms = re.fullmatch(r"(\d*[a-z](?:\^\{?\d\}?)?) ?\+ ?(\d*[a-z]?(?:\^\{?\d\}?)?)", gold)
    if terms and terms.group(2):
        found.append(("terms in another order", f"{terms.group(2)} + {terms.group(1)}"))
    if re.search(r"\\sqrt\{\d\}", gold):
        found.append(("sqrt without braces", re.sub(r"\\sqrt\{(\d)\}", r"\\sqrt\1", gold)))
    if re.search(r"\d\\(sqrt|pi)", gold):
        found.append(("explicit product", re.sub(r"(\d)\\(sqrt|pi)", r"\1 \\cdot \\\2", gold)))
    return [(kind, text) for kind, text in found if text != gold]


def near_misses(gold: str) -> list[tuple[str, str]]:
    """(kind, rewriting) of answers close to `gold` in writing and different from it in meaning."""
    found = []
    digits = [match.start() for match in re.finditer(r"\d", gold)]
    for name, place in (("first digit", digits[:1]), ("last digit", digits[-1:])):
        for position in place:
            changed = str((int(gold[position]) + 1) % 10) if gold[position] != "0" else "3"
            found.append((f"another {name}", gold[:position] + changed + gold[position + 1 :]))
    if INTEGER.fullmatch(gold):
        number = int(gold)
        found += [
            ("one more", str(number + 1)),
            ("one less", str(number - 1)),
            ("a little more", f"{gold}.01"),
            ("ten times", str(10 * number) if number else "10"),
            ("hedged by or", rf"{number + 1} \text{{ or }} {gold}"),
            ("hedged by a list", f"{gold}, {number + 1}"),
            ("hedged by a logical or", rf"{number + 1} \lor {gold}"),
            ("two sides", f"{number + 1} = {gold}"),
            ("two numbers", f"{number + 1} {gold.lstrip('-')}"),
            ("inequality", f"x > {gold}"),
            ("variable factor", f"{gold}x" if number else "x"),
        ]
        if number:
            found += [("other sign", str(-number)), ("inverse", f"1/{gold}" if abs(number) != 1 else "2")]
    if DECIMAL.fullmatch(gold):
        found += [
            ("other sign", f"-{gold}"),
            ("point moved", str(Fraction(gold) * 10)),
            ("one digit more", gold + "1"),
        ]
    if fraction := FRACTION.fullmatch(gold):
        sign, top, bottom = fraction.groups()
        if abs(int(top)) != int(bottom):
            found.append(("upside down", rf"{sign}\frac{{{bottom}}}{{{top}}}"))
        found += [
            ("numerator more by one", rf"{sign}\frac{{{int(top) + 1}}}{{{bottom}}}"),
            ("numerator alone", sign + top),
            ("rounded to three digits", f"{float(Fraction(int(sign + top), int(bottom))):.3f}"),
        ]
        if Fraction(int(top), int(bottom)) * 1000 % 1 == 0:
            found.pop()
    parts = [part.strip() for part in gold.split(",")]
    if len(parts) > 1 and not re.search(r"[()\[\]{}]|,(?:\\!)? ?\d{3}", gold):
        found += [("element missing", ", ".join(parts[1:])), ("element too many", f"{gold}, 977")]
    tidied = re.sub(r"\\(left|right)(?![a-z])| ", "", gold)
    pair = re.fullmatch(r"\(([^,()\[\]]+),([^,()\[\]]+)\)", tidied)
    if pair and pair.group(1) != pair.group(2):
        found.append(("other order of a pair", f"({pair.group(2)}, {pair.group(1)})"))
    if interval := re.fullmatch(r"([(\[])(.*\\infty.*|\S+,\S+)([)\]])", tidied):
        start, inner, end = interval.groups()
        # Beside infinity, either bracket means the same.
        if start != {"]": "[", ")": "("}[end] and not inner.startswith(r"-\infty"):
            found.append(("other ends of an interval", {"(": "[", "[": "("}[start] + inner + end))
    if word := WORD.fullmatch(gold):
        name = word.group(1) or word.group(2)
        found.append(("another word", rf"\text{{{name[::-1]}}}" if name != name[::-1] else r"\text{other}"))
    if re.fullmatch(r"\\text\{\([A-E]\)\}", gold):
        found.append(
            ("another letter", rf"\text{{({chr(ord(gold[7]) % 69 + 1 if gold[7] == 'E' else ord(gold[7]) + 1)})}}")
        )
    operators = [match.start() for match in re.finditer(r"(?<=[\w}) ])[+-](?=[\w ({\\])", gold)]
    if operators and r"\text" not in gold and "pm" not in gold:
        first = operators[0]
        found.append(("another operator", gold[:first] + ("-" if gold[first] == "+" else "+") + gold[first + 1 :]))
    return [(kind, text) for kind, text in found if text != gold]
