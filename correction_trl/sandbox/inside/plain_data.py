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


def pairs(value, keep):
    return [[encode(key, keep), encode(item, keep)] for key, item in dict.items(value)]


def items(value, keep):
    return [encode(item, keep) for item in value]


def is_builtin_type(value):
    return type(value) is type and getattr(builtins, value.__name__, None) is value


def write_deque(value, keep):
    return {"q": items(value, keep)} if value.maxlen is None else {"deque": [items(value, keep), value.maxlen]}


def write_defaultdict(value, keep):
    factory = value.default_factory
    if factory is not None and not is_builtin_type(factory):
        return keep(value)
    return {"defaultdict": [encode(factory, keep), pairs(value, keep)]}


# By exact type; the rest in `encode`.
WRITERS = {
    type(None): lambda value, keep: value,
    bool: lambda value, keep: value,
    str: lambda value, keep: value,
    float: lambda value, keep: value,
    int: lambda value, keep: value if -(2**63) < value < 2**63 else {"i": hex(value)},
    list: items,
    tuple: lambda value, keep: {"t": items(value, keep)},
    dict: lambda value, keep: {"d": pairs(value, keep)},
    collections.OrderedDict: lambda value, keep: {"OrderedDict": [items(pair, keep) for pair in value.items()]},
    collections.Counter: lambda value, keep: {"Counter": pairs(value, keep)},
    collections.defaultdict: write_defaultdict,
    set: lambda value, keep: {"s": items(value, keep)},
    frozenset: lambda value, keep: {"z": items(value, keep)},
    collections.deque: write_deque,
    bytes: lambda value, keep: {"b": value.hex()},
    bytearray: lambda value, keep: {"a": value.hex()},
    complex: lambda value, keep: {"c": [value.real, value.imag]},
    range: lambda value, keep: {"r": [value.start, value.stop, value.step]},
    slice: lambda value, keep: {"slice": items([value.start, value.stop, value.step], keep)},
    type({}.keys()): lambda value, keep: {"dict_keys": items(value, keep)},
    type({}.items()): lambda value, keep: {"dict_items": items(value, keep)},
    type({}.values()): lambda value, keep: {"dict_values": items(value, keep)},
    type(NotImplemented): lambda value, keep: {"n": "NotImplemented"},
    type(Ellipsis): lambda value, keep: {"n": "Ellipsis"},
    type: lambda value, keep: {"n": value.__name__} if is_builtin_type(value) else keep(value),
}


def encode(value, keep):
    """Plain data (exact builtin and standard types) as JSON-able data; anything else through `keep(value)`."""
    kind = type(value)
    if kind in WRITERS:
        return WRITERS[kind](value, keep)
    module, name = kind.__module__, kind.__name__
    if (module, name) == ("decimal", "Decimal"):
        return {"D": str(value)}
    if (module, name) == ("fractions", "Fraction"):
        return {"F": items([value.numerator, value.denominator], keep)}
    if module == "datetime" and name in DATES:
        return {name: [encode(getattr(value, part), keep) for part in DATES[name]]}
    if module in ("datetime", "zoneinfo") and hasattr(kind, "utcoffset"):
        # A time zone: what counts in comparisons is its distance from UTC, where it has one for all times.
        offset = value.utcoffset(None)
        return keep(value) if offset is None else {"timezone": [encode(offset, keep)]}
    if module == "numpy":
        return encode(value.tolist(), keep)
    return keep(value)


def read_decimal(body, read):
    import decimal

    return decimal.Decimal(body)


def read_fraction(body, read):
    import fractions

    return fractions.Fraction(*map(read, body))


def read_builtin(body, read):
    value = getattr(builtins, body)
    if isinstance(value, type) or value is NotImplemented or value is Ellipsis:
        return value
    raise ValueError("not a type")


def date_reader(tag):
    def read_date(body, read):
        import datetime

        parts = [read(part) for part in body]
        fold = {"fold": parts.pop()} if "fold" in DATES.get(tag, ()) else {}
        return getattr(datetime, tag)(*parts, **fold)

    return read_date


def read_dict(body, read):
    return {read(key): read(item) for key, item in body}


READERS = {
    "i": lambda body, read: int(body, 16),
    "t": lambda body, read: tuple([read(item) for item in body]),
    "d": read_dict,
    "OrderedDict": lambda body, read: collections.OrderedDict(read_dict(body, read)),
    "Counter": lambda body, read: collections.Counter(read_dict(body, read)),
    "defaultdict": lambda body, read: collections.defaultdict(read(body[0]), read_dict(body[1], read)),
    "s": lambda body, read: {read(item) for item in body},
    "z": lambda body, read: frozenset([read(item) for item in body]),
    "q": lambda body, read: collections.deque([read(item) for item in body]),
    "deque": lambda body, read: collections.deque(read(body[0]), body[1]),
    "dict_keys": lambda body, read: dict.fromkeys(read(body)).keys(),
    "dict_items": lambda body, read: dict(read(body)).items(),
    "dict_values": lambda body, read: dict(enumerate(read(body))).values(),
    "b": lambda body, read: bytes.fromhex(body),
    "a": lambda body, read: bytearray.fromhex(body),
    "c": lambda body, read: complex(*body),
    "r": lambda body, read: range(*body),
    "slice": lambda body, read: slice(*map(read, body)),
    "D": read_decimal,
    "F": read_fraction,
    "n": read_builtin,
    **{tag: date_reader(tag) for tag in (*DATES, "timezone")},
}


def decode(data, reference):
    """The inverse of `encode`: exact types only. Other tags go through `reference(tag, body)`; ValueError if bad."""
    if data is None or isinstance(data, (bool, str, int, float)):
        return data
    if isinstance(data, list):
        return [decode(item, reference) for item in data]
    if not isinstance(data, dict) or len(data) != 1:
        raise ValueError("malformed value")
    ((tag, body),) = data.items()
    if tag in READERS:
        return READERS[tag](body, lambda part: decode(part, reference))
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
