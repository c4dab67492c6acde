"""Plain data as JSON and back, the same on both sides of the pipe."""

import builtins
import collections


MAX_TEXT = 2000  # characters of one error, traceback or call that are reported

# Types of these modules are rebuilt as themselves. By name, and read from `sys.modules`: importing them would take
# longer than everything else here, and few programs use them.
DATES = {
    "date": ("year", "month", "day"),
    "datetime": ("year", "month", "day", "hour", "minute", "second", "microsecond", "tzinfo", "fold"),
    "time": ("hour", "minute", "second", "microsecond", "tzinfo", "fold"),
    "timedelta": ("days", "seconds", "microseconds"),
}


def encode(value, keep):
    """Plain data (exact builtin and standard types) as JSON-able data; anything else through `keep(value)`."""
    kind = type(value)
    if value is None or kind is bool or kind is str or kind is float:
        return value
    if kind is int:
        return value if -(2**63) < value < 2**63 else {"i": hex(value)}
    if kind is list:
        return [encode(item, keep) for item in value]
    if kind is tuple:
        return {"t": [encode(item, keep) for item in value]}
    if kind in (dict, collections.OrderedDict, collections.Counter):
        pairs = [[encode(key, keep), encode(item, keep)] for key, item in value.items()]
        return {"d" if kind is dict else kind.__name__: pairs}
    if kind in (set, frozenset):
        return {"s" if kind is set else "z": [encode(item, keep) for item in value]}
    if kind is collections.deque:
        items = [encode(item, keep) for item in value]
        return {"q": items} if value.maxlen is None else {"deque": [items, value.maxlen]}
    if kind in (bytes, bytearray):
        return {"b" if kind is bytes else "a": value.hex()}
    if kind is complex:
        return {"c": [value.real, value.imag]}
    if kind in (range, slice):
        return {"r" if kind is range else "slice": [value.start, value.stop, value.step]}
    if value is NotImplemented or value is Ellipsis:
        return {"n": repr(value)}
    if kind is type and getattr(builtins, value.__name__, None) is value:
        return {"n": value.__name__}
    if kind in (type({}.keys()), type({}.items()), type({}.values())):
        return {kind.__name__: [encode(item, keep) for item in value]}
    if kind is collections.defaultdict:
        factory = value.default_factory
        if factory is None or (type(factory) is type and getattr(builtins, factory.__name__, None) is factory):
            pairs = [[encode(key, keep), encode(item, keep)] for key, item in dict.items(value)]
            return {"defaultdict": [encode(factory, keep), pairs]}
        return keep(value)
    name = f"{kind.__module__}.{kind.__name__}"
    if name == "decimal.Decimal":
        return {"D": str(value)}
    if name == "fractions.Fraction":
        return {"F": [encode(value.numerator, keep), encode(value.denominator, keep)]}
    if kind.__module__ == "datetime" and kind.__name__ in DATES:
        return {kind.__name__: [encode(getattr(value, part), keep) for part in DATES[kind.__name__]]}
    if kind.__module__ in ("datetime", "zoneinfo") and hasattr(kind, "utcoffset"):
        # A time zone: what counts in comparisons is its distance from UTC, where it has one for all times.
        offset = value.utcoffset(None)
        return keep(value) if offset is None else {"timezone": [encode(offset, keep)]}
    if kind.__module__ == "numpy":
        return encode(value.tolist(), keep)
    return keep(value)


def decode(data, reference):
    """The inverse of `encode`: exact types only. Other tags go through `reference(tag, body)`; ValueError if bad."""
    if data is None or isinstance(data, (bool, str, int, float)):
        return data
    if isinstance(data, list):
        return [decode(item, reference) for item in data]
    if not isinstance(data, dict) or len(data) != 1:
        raise ValueError("malformed value")
    ((tag, body),) = data.items()
    if tag == "i":
        return int(body, 16)
    if tag == "t":
        return tuple([decode(item, reference) for item in body])
    if tag in ("d", "OrderedDict", "Counter"):
        kind = dict if tag == "d" else getattr(collections, tag)
        return kind({decode(key, reference): decode(item, reference) for key, item in body})
    if tag == "defaultdict":
        return collections.defaultdict(decode(body[0], reference), decode({"d": body[1]}, reference))
    if tag == "s":
        return {decode(item, reference) for item in body}
    if tag == "z":
        return frozenset([decode(item, reference) for item in body])
    if tag == "q":
        return collections.deque([decode(item, reference) for item in body])
    if tag == "deque":
        return collections.deque(decode(body[0], reference), body[1])
    if tag == "dict_keys":
        return dict.fromkeys(decode(body, reference)).keys()
    if tag == "dict_items":
        return dict(decode(body, reference)).items()
    if tag == "dict_values":
        return dict(enumerate(decode(body, reference))).values()
    if tag == "b":
        return bytes.fromhex(body)
    if tag == "a":
        return bytearray.fromhex(body)
    if tag == "c":
        return complex(*body)
    if tag == "r":
        return range(*body)
    if tag == "slice":
        return slice(*body)
    if tag == "D":
        import decimal

        return decimal.Decimal(body)
    if tag == "F":
        import fractions

        return fractions.Fraction(decode(body[0], reference), decode(body[1], reference))
    if tag == "n":
        value = getattr(builtins, body)
        if isinstance(value, type) or value is NotImplemented or value is Ellipsis:
            return value
        raise ValueError("not a type")
    if tag in DATES or tag == "timezone":
        import datetime

        parts = [decode(part, reference) for part in body]
        fold = {"fold": parts.pop()} if "fold" in DATES.get(tag, ()) else {}
        return getattr(datetime, tag)(*parts, **fold)
    return reference(tag, body)


def base_of(kind):
    """The builtin type that a class extends, whose data is what counts in comparisons; `None` if it extends none."""
    bases = (int, float, str, tuple, bytes, frozenset, complex, list, dict, set, bytearray, collections.deque)
    return next((base for base in bases if issubclass(kind, base)), None)


def own_data(value):
    """The data of an object of such a class as its builtin type's own methods give it."""
    base = base_of(type(value))
    if base in (int, float, str, complex):
        return getattr(base, f"__{base.__name__}__")(value) if base is not complex else complex(value.real, value.imag)
    if base is dict:
        return dict(dict.items(value))
    return base(base.__iter__(value))


def shorten(text, limit=MAX_TEXT):
    text = str(text)
    return text if len(text) <= limit else text[: limit // 2] + " ... " + text[-limit // 2 :]
