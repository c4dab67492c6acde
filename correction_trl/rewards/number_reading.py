r"""
The exact value of an answer that is a number, however it is written: `1 1/2`, `0.\overline{36}`, `6.02e23`,
`\$70,000`, `5 million`, `forty-two`, `50\%`, `3 ft`. Arithmetic is bounded: `10^{10^9}` is known by its size and not
computed.
"""

import functools
import math
import re
from dataclasses import dataclass
from fractions import Fraction

from .answer_writing import plain_text


MAX_BITS = 2**14  # of a numerator or denominator that is computed
MAX_DIGITS = 4000  # of a number as it is written; Python reads no more than 4300

LITERAL = re.compile(
    r"(?:(\d+)"
    r"(?:\.(\d*)(\\overline ?\{?\d+\}?|\(\d+\)(?!\d)|\.\.\.)?)?|\.(\d+))(?:[eE]([-+]?\d+))?"
)
PLAIN = re.compile(r"([-+]?)\$?(\d+)?(?:\.(\d*))?(?:[eE]([-+]?\d+))?")
OPERATOR = re.compile(r"\\(?:times|cdot|div)(?![A-Za-z])|[-+*/^!()\[\]{}:]|\\frac|\\sqrt(?![\[A-Za-z])")
SPACE = re.compile(r" ?")


class Unread(Exception):
    """Not a number that this module can read."""


@dataclass(frozen=True)
class Huge:
    """A number too big (or too near zero) to write out: its sign and the logarithm of its size, base 10."""

    sign: int
    log: float


Number = Fraction | Huge


def numbers_equal(a: Number, b: Number, approximate: bool = False) -> bool | None:
    """
    Whether two numbers are equal; `None` where two huge ones are too close to say.

    Args:
        a (`Fraction` or `Huge`), b (`Fraction` or `Huge`):
            The numbers.
        approximate (`bool`, *optional*, defaults to `False`):
            Whether six decimals are enough, as for `0.333333` and `1/3`.
    """
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        if a == b or not approximate:
            return a == b
        difference = abs(a - b)
        return difference <= Fraction(1, 2 * 10**6) and difference <= max(abs(a), abs(b)) / 10**5
    sizes = [number.log if isinstance(number, Huge) else logarithm(number) for number in (a, b)]
    signs = [number.sign if isinstance(number, Huge) else (number > 0) - (number < 0) for number in (a, b)]
    return None if signs[0] == signs[1] and abs(sizes[0] - sizes[1]) <= 1e-9 * abs(sizes[0]) + 1e-6 else False


def logarithm(number: Fraction) -> float:
    if number == 0:
        return -math.inf
    return math.log10(abs(number.numerator)) - math.log10(number.denominator)


# ----------------------------------------------------------------------------------------------------- plain numbers


def plain_number(tidied: str) -> Fraction | None:
    """The value of a plainly written number (signs, thousands, a currency sign, a unit in words), or `None`."""
    quantity = read_quantity(tidied)
    return quantity.value if quantity is not None and isinstance(quantity.value, Fraction) else None


def decimal_form(tidied: str) -> tuple[str, str, int] | None:
    """Sign, digits and power of ten of a decimal of any length, one way for each value; `None` if it is none."""
    found = PLAIN.fullmatch(tidied)
    if found is None or not (found.group(2) or found.group(3)) or len(found.group(4) or "") > 18:
        return None
    whole, part = found.group(2) or "", found.group(3) or ""
    digits = (whole + part).lstrip("0")
    power = int(found.group(4) or 0) - len(part) + len(digits) - len(digits.rstrip("0"))
    digits = digits.rstrip("0")
    return ("-" if found.group(1) == "-" and digits else "", digits, power if digits else 0)


# ------------------------------------------------------------------------------------------------------- expressions


def exact_value(text: str) -> Number | None:
    """The value of an expression of numbers, or `None` if it holds anything else (a letter, a root, a list)."""
    if len(text) > 2000 and not text.lstrip("-").replace(".", "").isdigit():
        return None
    try:
        return Expression(text).value()
    except (Unread, ZeroDivisionError, OverflowError):
        return None


class Expression:
    """A reader of sums, products, powers, fractions, factorials and mixed numbers, by recursive descent."""

    def __init__(self, text: str):
        self.text = text
        self.place = 0
        self.depth = 0

    def value(self) -> Number:
        number = self.sum()
        if self.peek():
            raise Unread
        return number

    def peek(self) -> str:
        """The next sign: an operator or bracket, `"1"` for a number, `"?"` for anything else, empty at the end."""
        self.place = SPACE.match(self.text, self.place).end()
        if self.place >= len(self.text):
            return ""
        if found := OPERATOR.match(self.text, self.place):
            return found.group()
        return "1" if LITERAL.match(self.text, self.place) else "?"

    def take(self, sign: str) -> bool:
        if self.peek() != sign:
            return False
        self.place += len(sign)
        return True

    def expect(self, sign: str):
        if not self.take(sign):
            raise Unread

    def sum(self) -> Number:
        self.depth += 1
        if self.depth > 40:
            raise Unread
        total = self.product()
        while (sign := self.peek()) in ("+", "-"):
            self.take(sign)
            total = add(total, negative(self.product()) if sign == "-" else self.product())
        self.depth -= 1
        return total

    def product(self) -> Number:
        total = self.signed()
        while True:
            sign = self.peek()
            if sign in (r"\times", r"\cdot", "*"):
                self.take(sign)
                total = multiply(total, self.signed())
            elif sign in ("/", r"\div"):
                self.take(sign)
                total = multiply(total, power(self.signed(), Fraction(-1)))
            elif sign in ("(", "{"):
                total = multiply(total, self.power())
            else:
                return total

    def signed(self) -> Number:
        self.depth += 1
        if self.depth > 40:
            raise Unread
        sign = 1
        while (next_sign := self.peek()) in ("+", "-"):
            self.take(next_sign)
            sign = -sign if next_sign == "-" else sign
        number = self.power()
        self.depth -= 1
        return negative(number) if sign < 0 else number

    def power(self) -> Number:
        number = self.atom()
        while self.take("!"):
            number = factorial(number)
        if self.take("^"):
            # Without braces TeX raises one digit, and people all of it: 10^10 is as often typed as meant.
            number = power(number, self.signed())
        return number

    def atom(self) -> Number:
        if self.take("("):
            return self.closed(")")
        if self.take("{"):
            return self.closed("}")
        if self.take("["):
            return self.closed("]")
        if self.take(r"\frac"):
            return self.fraction()
        if self.take(r"\sqrt"):
            self.expect("{")
            return square_root(self.closed("}"))
        number, whole = self.literal()
        if whole:
            number = add(number, self.fraction_of_a_mixed_number())
        return number

    def closed(self, bracket: str) -> Number:
        number = self.sum()
        self.expect(bracket)
        return number

    def fraction(self) -> Number:
        self.expect("{")
        top = self.closed("}")
        self.expect("{")
        return multiply(top, power(self.closed("}"), Fraction(-1)))

    def literal(self) -> tuple[Number, bool]:
        """A number as it is written, and whether it is a whole one."""
        self.peek()
        found = LITERAL.match(self.text, self.place)
        if found is None or found.end() - found.start() > MAX_DIGITS:
            raise Unread
        whole, part, repeating, only_part, exponent = found.groups()
        part = part if part is not None else only_part
        self.place = found.end()
        number = Fraction(int(whole or "0"))
        if part:
            number += Fraction(int(part), 10 ** len(part))
        if repeating:
            number += repeated(part, repeating)
        if exponent is not None:
            number = ten_to(number, exponent)
        return number, part is None and exponent is None and repeating is None

    def fraction_of_a_mixed_number(self) -> Fraction:
        r"""The 1/2 of `1 1/2` and `1\frac{1}{2}`; 0 where there is none."""
        if found := MIXED.match(self.text, self.place):
            top, bottom = (int(part) for part in found.groups() if part is not None)
            if 0 < top < bottom:
                self.place = found.end()
                return Fraction(top, bottom)
        if self.peek() == "1" or self.text.startswith(r"\frac", self.place):
            raise Unread  # two numbers side by side
        return Fraction(0)


MIXED = re.compile(r"(?: and)? ?\\frac\{(\d{1,9})\}\{(\d{1,9})\}| (?:and )?(\d{1,9})/(\d{1,9})(?![\d/^.])")


def repeated(part: str | None, repeating: str) -> Fraction:
    r"""What the repeating digits of `0.1\overline{6}`, `0.1(6)` or `0.333...` add."""
    if part is None:
        raise Unread
    if repeating == "...":
        for length in range(1, len(part) // 2 + 1):
            digits = part[-length:]
            if len(part) >= 3 and part.endswith(digits * (3 if length == 1 else 2)):
                return Fraction(int(digits), (10**length - 1) * 10 ** len(part))
        raise Unread
    digits = "".join(sign for sign in repeating if sign.isdigit())
    return Fraction(int(digits), (10 ** len(digits) - 1) * 10 ** len(part))


def ten_to(number: Fraction, exponent: str) -> Number:
    if len(exponent) > 18:
        raise Unread
    if abs(int(exponent)) <= MAX_DIGITS:
        return number * Fraction(10) ** int(exponent)
    return number if number == 0 else Huge(1 if number > 0 else -1, logarithm(number) + int(exponent))


def bounded(number: Fraction) -> Number:
    if max(number.numerator.bit_length(), number.denominator.bit_length()) > MAX_BITS:
        return Huge(1 if number > 0 else -1, logarithm(number))
    return number


def negative(number: Number) -> Number:
    return -number if isinstance(number, Fraction) else Huge(-number.sign, number.log)


def add(a: Number, b: Number) -> Number:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return bounded(a + b)
    raise Unread


def multiply(a: Number, b: Number) -> Number:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return bounded(a * b)
    if 0 in (a, b):
        return Fraction(0)
    signs = [number.sign if isinstance(number, Huge) else (1 if number > 0 else -1) for number in (a, b)]
    return Huge(signs[0] * signs[1], sum(n.log if isinstance(n, Huge) else logarithm(n) for n in (a, b)))


def power(base: Number, exponent: Number) -> Number:
    if not isinstance(exponent, Fraction) or exponent.denominator != 1:
        raise Unread
    if isinstance(base, Fraction):
        if base == 0 and exponent < 0:
            raise ZeroDivisionError
        if base in (0, 1, -1):
            return base ** int(exponent % 2 + 2) if exponent else Fraction(1)
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if bits * abs(exponent) <= MAX_BITS:
            return base ** int(exponent)
    size = base.log if isinstance(base, Huge) else logarithm(base)
    if exponent.numerator.bit_length() > 900:
        raise Unread
    sign = base.sign if isinstance(base, Huge) else (1 if base > 0 else -1)
    return Huge(sign if exponent % 2 else 1, size * float(exponent))


def factorial(number: Number) -> Number:
    if not isinstance(number, Fraction) or number.denominator != 1 or number < 0:
        raise Unread
    if number <= 1000:
        return bounded(Fraction(math.factorial(int(number))))
    if number.numerator.bit_length() > 900:
        raise Unread
    return Huge(1, math.lgamma(float(number) + 1) / math.log(10))


def square_root(number: Number) -> Fraction:
    if not isinstance(number, Fraction) or number < 0:
        raise Unread
    root = Fraction(math.isqrt(number.numerator), math.isqrt(number.denominator))
    if root * root != number:
        raise Unread
    return root


# ---------------------------------------------------------------------------------------------------- numbers in words


SMALL = {
    word: number
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
        " seventeen eighteen nineteen".split()
    )
} | {
    word: 10 * number
    for number, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2)
}
SCALES = {
    "dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
}  # fmt: skip
ORDINALS = {
    "first": "one", "second": "two", "third": "three", "fourth": "four", "fifth": "five", "sixth": "six",
    "seventh": "seven", "eighth": "eight", "ninth": "nine", "tenth": "ten", "eleventh": "eleven", "twelfth": "twelve",
}  # fmt: skip
SHARES = {"half": 2, "halve": 2, "quarter": 4}
WORDS = re.compile(r"[A-Za-z]+")


def number_in_words(text: str) -> Fraction | None:
    """`forty-two`, `minus five`, `two hundred and six`, `third`; `None` if it says no number."""
    words = WORDS.findall(text.lower())
    if not 0 < len(words) <= 12 or not SAYS_A_NUMBER.fullmatch(text):
        return None
    sign = -1 if words[0] in ("minus", "negative") else 1
    words = [ORDINALS.get(word, word) for word in words[sign < 0 :] if word != "and"]
    if len(words) == 2 and words[1].removesuffix("s") in SHARES and words[0] in SMALL:
        return Fraction(sign * SMALL[words[0]], SHARES[words[1].removesuffix("s")])  # one half, three quarters
    total = group = 0
    for word in words:
        if word in SMALL:
            group += SMALL[word]
        elif word in SCALES and group:
            group *= SCALES[word]
            if SCALES[word] >= 1000:
                total, group = total + group, 0
        else:
            return None
    return Fraction(sign * (total + group)) if words else None


SAYS_A_NUMBER = re.compile(r"[A-Za-z \-,]+")


# -------------------------------------------------------------------------------------------------------------- units


@dataclass(frozen=True)
class Quantity:
    """A number and its unit: what the unit measures (`None`: an unknown word, empty: no unit) and how much of it."""

    value: Number
    unit: str = ""
    decimal: bool = False


def _units() -> dict[str, tuple[str, Fraction]]:
    table = {
        "length": {
            "mm millimeter millimetre": "1/1000", "cm centimeter centimetre": "1/100", "dm decimeter": "1/10",
            "m meter metre": "1", "km kilometer kilometre": "1000", "in inch": "254/10000",
            "ft foot feet": "3048/10000", "yd yard": "9144/10000", "mi mile": "1609344/1000",
        },
        "mass": {
            "mg milligram": "1/1000", "g gram gm": "1", "kg kilogram kilo": "1000", "ton tonne": "1000000",
            "lb lbs pound": "45359237/100000", "oz ounce": "45359237/1600000",
        },
        "time": {
            "ms millisecond": "1/1000", "s sec second": "1", "min minute": "60", "h hr hour": "3600", "day": "86400",
            "week": "604800",
        },
        "calendar": {"month": "1", "year yr": "12", "decade": "120", "century": "1200"},
        "volume": {
            "ml milliliter millilitre": "1/1000", "cl": "1/100", "l liter litre": "1",
            "gallon gal": "3785411784/1000000000",
        },
        "dollar": {"$ dollar usd": "1", "cent ¢": "1/100"},
        "euro": {"€ euro eur": "1"},
        "sterling": {"£ sterling gbp": "1", "pence": "1/100"},
        "rupee": {"₹ rupee rs rs.": "1"},
        "yen": {"¥ yen": "1"},
        "angle": {"degree deg °": "1"},
        "radian": {"radian rad": "1"},
        "celsius": {"celsius °c": "1"},
        "fahrenheit": {"fahrenheit °f": "1"},
        "percent": {"% percent pct percentage": "1"},
    }  # fmt: skip
    found = {}
    for measure, names in table.items():
        for row, factor in names.items():
            for name in row.split():
                found[name] = (measure, Fraction(factor))
                if len(name) > 2:
                    found[name + "s"] = found[name]
    found |= {"inches": found["inch"], "centuries": found["century"], "°": found["degree"]}
    return found


UNITS = _units()
POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
SHORTHANDS = {"mph": "mi/h", "kmh": "km/h", "kph": "km/h", "kmph": "km/h", "fps": "ft/s"}
UNIT_WORD = re.compile(r"([A-Za-z$€£¥₹%°¢]+)(?:\^\{?(-?\d)\}?)?|/|\bper\b")
NO_UNIT = frozenset("a an of the and or in at old each total about".split())


@functools.lru_cache(maxsize=4096)
def read_unit(text: str) -> tuple[str, Fraction] | None:
    r"""What a unit measures, as one word for each product of powers, and its factor; `None` if it is unknown."""
    powers: dict[str, int] = {}
    factor, sign, next_power, last = Fraction(1), 1, 1, None
    for found in UNIT_WORD.finditer(SHORTHANDS.get(text, text)):
        word = found.group(1) or "/"
        if word in ("/", "per"):
            sign = -1
            continue
        if word.lower() in POWERS:
            if word.endswith("ed") and last:
                powers[last[0]] += last[1] * (POWERS[word.lower()] - 1)
                factor *= last[2] ** (last[1] * (POWERS[word.lower()] - 1))
            next_power = POWERS[word.lower()]
            continue
        known = UNITS.get(word) or UNITS.get(word.lower())
        if known is None:
            return None
        exponent = sign * int(found.group(2) or next_power)
        powers[known[0]] = powers.get(known[0], 0) + exponent
        factor *= known[1] ** exponent
        last, next_power = (known[0], sign, known[1]), 1
    if not powers:
        return None
    return " ".join(f"{measure}^{exponent}" for measure, exponent in sorted(powers.items()) if exponent), factor


CURRENCY = re.compile(r"(-?) ?\\?([$€£¥₹]|(?:USD|EUR|GBP|Rs\.?)(?= )) ?(?=[-\d.\\])")
# Behind a number, a bracket or a command: words in \text{} or not, with a power, or a sign.
UNIT = re.compile(
    r"(?<=[\d})a-z.]) ?(?:\\text\{([^{}]+)\}(?:\^\{?(-?\d)\}?)?|(\^\\circ ?(?:\\text\{[CF]\}|[CF])?|%|[€£$¥¢])"
    r"|(?<=[\d})]) ?((?<= )[A-Za-z](?:/[A-Za-z]{1,3}(?:\^\d)?)?"
    r"|[A-Za-z]{2,}[A-Za-z/.]*(?:[ /^]{1,2}[A-Za-z\d]{1,20}){0,5}))$"
)
TRIGONOMETRY = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc)")
ORDINAL = re.compile(r"(?<=\d)(?:\^ ?\{?)?(?:\\text\{)?(?:st|nd|rd|th)\}{0,2}$")


def split_unit(tidied: str) -> tuple[str, str, Fraction]:
    r"""
    What an answer says without its unit, the unit as it is written, and a factor that its words give (`million`, 1
    where there is none).
    """
    core, unit = tidied, ""
    if ordinal := ORDINAL.search(core):
        return core[: ordinal.start()], "", Fraction(1)
    if found := CURRENCY.match(core):
        core, unit = found.group(1) + core[found.end() :], found.group(2)
    scale = Fraction(1)
    found = None if TRIGONOMETRY.search(core) else UNIT.search(core[-120:])
    if found:
        start = len(core) - len(core[-120:]) + found.start()
        words = next(group for group in (found.group(1), found.group(3), found.group(4)) if group)
        words = words.replace(r"^\circ", "°").replace(r"\text{", "").replace("}", "").replace("° ", "°").strip()
        rest = []
        for word in words.split():
            singular = word.lower().removesuffix("s")
            if singular in SCALES and not rest:
                scale *= SCALES[singular]
            else:
                rest.append(word)
        named = " ".join(rest) + (f"^{found.group(2)}" if found.group(2) else "")
        if rest and not ARITHMETIC.search(named):
            unit = named if not unit or rest[0].lower() not in ("dollars", "euros", "pounds") else unit
            core = core[:start].strip()
        elif not rest:
            core = core[:start].strip()
        else:
            return tidied, "", Fraction(1)
    return core, unit, scale


ARITHMETIC = re.compile(r"(?i)\b(?:or|and|to|x|y|z|n|i|pi|mod|base|not|if|for|is)\b|\d{2}")


@functools.lru_cache(maxsize=4096)
def read_quantity(tidied: str) -> Quantity | None:
    """The value and unit of an answer that is one number, or `None`."""
    if tidied.isdigit() and len(tidied) <= MAX_DIGITS:
        return Quantity(Fraction(int(tidied)), decimal=True)
    if COMPOUND.fullmatch(tidied):
        return sum_of_quantities(tidied)
    core, unit, scale = split_unit(tidied)
    if not core or SIGN_ONLY.fullmatch(core):
        return None
    value = exact_value(core)
    if value is None and scale != 1 or value is None and not unit:
        words = plain_text(tidied)
        value = number_in_words(without_text(tidied)) if words else None
        if value is None:
            value = number_in_words(without_text(core))
            if value is None:
                return None
        else:
            return Quantity(value)
    if value is None:
        value = number_in_words(without_text(core))
    if value is None:
        return None
    return Quantity(multiply(value, scale), unit, decimal_form(core) is not None)


COMPOUND = re.compile(r"(?:\d{1,9}(?:\.\d{1,9})? [A-Za-z]{2,10}(?:,? and |, ?| |$)){2,4}")
SIMPLE = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?) ([A-Za-z]+)")


def sum_of_quantities(tidied: str) -> Quantity | None:
    """`3 hours 30 minutes`, `5 feet, 3 inches`: a sum, in the unit of its last part."""
    parts = [(Fraction(number), read_unit(unit), unit) for number, unit in SIMPLE.findall(tidied)]
    if any(unit is None for _, unit, _ in parts) or len({unit[0] for _, unit, _ in parts}) > 1:
        return None
    return Quantity(sum(number * unit[1] for number, unit, _ in parts) / parts[-1][1][1], parts[-1][2])


def without_text(tidied: str) -> str:
    return tidied.replace(r"\text{", "").replace("}", "")


SIGN_ONLY = re.compile(r"[-+]?")


def quantities_equal(a: Quantity, b: Quantity) -> bool | None:
    """Whether two quantities are the same. A bare number is right with any unit, and 50% is 50 or 0.5."""
    # A decimal may be a rounded fraction; a whole number is none
    rounded = [q.value for q in (a, b) if q.decimal and isinstance(q.value, Fraction) and q.value.denominator > 1]
    approximate = a.decimal != b.decimal and bool(rounded)
    units = [read_unit(quantity.unit) if quantity.unit else None for quantity in (a, b)]
    percent = [unit is not None and unit[0] == "percent^1" for unit in units]
    if percent[0] != percent[1] and not (a.unit and b.unit):
        shares = [
            multiply(q.value, Fraction(1, 100)) if share else q.value for q, share in zip((a, b), percent, strict=True)
        ]
        verdicts = [numbers_equal(a.value, b.value, approximate), numbers_equal(*shares, approximate)]
        return True if True in verdicts else None if None in verdicts else False
    if same_unit(a.unit, b.unit) is False:
        return False
    values = [a.value, b.value]
    if units[0] is not None and units[1] is not None and units[0][0] == units[1][0]:
        values = [multiply(value, unit[1]) for value, unit in zip(values, units, strict=True)]
    return numbers_equal(*values, approximate)


def same_unit(a: str, b: str) -> bool | None:
    """Whether two units measure the same; `None` where one is missing or unknown, which makes nothing wrong."""
    if not a or not b:
        return None
    halves = [HALF_OF_DAY.fullmatch(unit) for unit in (a, b)]
    if all(halves):
        return halves[0].group(1).lower() == halves[1].group(1).lower()
    found = [read_unit(unit) for unit in (a, b)]
    if None in found:
        return None
    measures = {unit[0] for unit in found}
    if measures in ({"mass^1", "sterling^1"}, {"angle^1", "celsius^1"}, {"angle^1", "fahrenheit^1"}):
        return None if "mass^1" not in measures or "pound" in f"{a} {b}" else False
    return len(measures) == 1


HALF_OF_DAY = re.compile(r"(?i)([ap])\.? ?m\.?")
