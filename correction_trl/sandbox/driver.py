"""
What runs inside a sandbox: the program in one process, the tests in another, plain data between them.

This file uses the standard library alone and imports nothing of the package: the local sandbox loads it by path, and
the remote one sends its text. The program's process is forked before the job is read, so that its memory never held a
test. It answers requests, one JSON line each, with results, one JSON line each. Whatever the program does to its own
process (`sys.exit`, patched builtins, `__eq__` that is always true, markers on stdout, `os._exit(0)`), the tester sees
only the plain data of those lines, rebuilds exact builtin types from it, and does every comparison itself.
"""

import ast
import builtins
import collections
import importlib
import json
import linecache
import os
import sys
import traceback
import types


MAX_LINE = 2**24  # bytes of one request or result
MAX_TEXT = 2000  # characters of one error, traceback or call that are reported


class RemoteError(Exception):
    """The program failed in a way that cannot be rebuilt here."""


class StoppedCallError(RuntimeError):
    """A call into the program raised StopIteration. As itself, it would silently end `all(map(f, ...))`."""


class ProgramGoneError(BaseException):
    """
    The program's process ended, or answers nonsense. A BaseException: a test that catches Exception to see whether
    the program raises must not take this for it.
    """


class CannotJudgeError(BaseException):
    """A test hands the program something that is not plain data, or compares what only the program could compare."""


# ----------------------------------------------------------------------------------------------- plain data and JSON

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


# ------------------------------------------------------------------------------------ the program's side (untrusted)


def serve(requests, results):
    """Loads the program on request and answers calls into it. Everything after `load` may be under its control."""
    module = types.ModuleType("solution")
    handles = []
    numbers = {}  # id of an object (kept alive by `handles`) -> its handle, so that one object has one handle
    loops = []

    def number_of(value):
        if id(value) not in numbers:
            numbers[id(value)] = len(handles)
            handles.append(value)
        return numbers[id(value)]

    def keep(value):
        kind = type(value)
        if isinstance(value, type) and issubclass(value, BaseException):
            return {"class": describe_class(value)}
        if isinstance(value, BaseException):
            return {"exception": describe_exception(value)}
        if kind is types.CoroutineType:
            return {"coroutine": number_of(value)}
        base = base_of(kind)
        if base in (list, dict, set, bytearray, collections.deque):
            return {"container": [number_of(value), base.__name__]}
        if base is not None:
            return {"plain": [number_of(value), base.__name__, encode(own_data(value), keep)]}
        return {"o": number_of(value)}

    def describe_class(kind):
        bases = [base for base in kind.__bases__ if issubclass(base, BaseException)]
        own = getattr(builtins, kind.__name__, None) is not kind
        return [
            number_of(kind),
            kind.__module__,
            kind.__name__,
            [describe_class(base) for base in bases] if own else [],
        ]

    def describe_exception(error):
        attributes = {key: item for key, item in vars(error).items() if not key.startswith("__")}
        return [
            number_of(error),
            describe_class(type(error)),
            [encode(argument, keep) for argument in error.args],
            encode(attributes, keep),
            shorten(error),
        ]

    def reference(tag, body):
        if tag == "o":
            return handles[body]
        if tag == "function":
            return getattr(importlib.import_module(body[0]), body[1])
        if tag == "raised":
            return decode(body[0], reference)(*decode(body[1], reference))
        raise ValueError(tag)

    def load(source, name):
        module.__name__ = name
        sys.modules[name] = module  # dataclasses and pickle look a class's module up
        linecache.cache["<program>"] = (len(source), None, source.splitlines(True), "<program>")
        exec(compile(source, "<program>", "exec"), module.__dict__)

    def wait_for(awaitable):
        async def wait():
            return await awaitable

        import asyncio

        if not loops:
            loops.append(asyncio.new_event_loop())
            asyncio.set_event_loop(loops[0])
        return loops[0].run_until_complete(wait())

    def state(value):
        """The class of an object and all that it holds, as far as Python code can tell."""
        held = dict(getattr(value, "__dict__", {}))
        for kind in type(value).__mro__:
            slots = kind.__dict__.get("__slots__", ())
            for name in [slots] if isinstance(slots, str) else slots:
                if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                    held[name] = getattr(value, name)
        return [type(value), held]

    def answer_to(op, arguments):
        if op == "load":
            return load(*arguments)
        if op == "get":
            return vars(module)[arguments[0]]
        if op == "has":
            return [name for name in arguments[0] if name in vars(module)]
        target = arguments[0]
        if op == "call":
            return target(*arguments[1], **arguments[2])
        if op == "attribute":
            return getattr(target, arguments[1])
        if op == "set":
            return setattr(target, arguments[1], arguments[2])
        if op == "special":
            return getattr(type(target), arguments[1])(target, *arguments[2])
        if op == "item":
            return target[arguments[1]]
        if op == "await":
            return wait_for(target)
        if op == "apply":
            return getattr(builtins, arguments[1])(target, *arguments[2])
        if op == "own":
            # Special methods that its class defines itself.
            return [
                name for name in dir(type(target)) if getattr(object, name, None) is not getattr(type(target), name)
            ]
        if op == "equal":
            return bool(target == arguments[1])
        if op == "equal to a stranger":
            try:
                return bool(target == object())
            except Exception:
                return False
        if op == "state":
            return state(target)
        if op == "data":
            return own_data(target)
        raise ValueError(op)

    for line in requests:
        request = json.loads(line)
        reply = {}
        try:
            arguments = [decode(argument, reference) for argument in request["arguments"]]
            value = answer_to(request["op"], arguments)
            reply["value"] = encode(value, keep)
            if request["op"] == "call":
                # A function may change its arguments in place: the tester's copies must follow.
                sent = request["arguments"][1]
                changed = {}
                for position, argument in enumerate(arguments[1]):
                    if isinstance(argument, (list, dict, set, bytearray, collections.deque)):
                        now = encode(argument, keep)
                        if now != sent[position] and not (isinstance(now, dict) and "container" in now):
                            changed[position] = now
                if changed:
                    reply["changed"] = changed
        except BaseException as error:  # SystemExit and KeyboardInterrupt too: they are the program's failure
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
            lines = ["Traceback (most recent call last):\n"] if frames else []
            lines += traceback.format_list(frames[-3:]) + traceback.format_exception_only(type(error), error)
            try:
                reply = {"exception": describe_exception(error)}
            except BaseException:
                reply = {}  # its arguments are no data
            reply["error"] = [type(error).__name__, shorten(error), shorten("".join(lines))]
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()  # the process will be killed, not ended
            except BaseException:
                pass  # the program replaced or closed it
        results.write(json.dumps(reply) + "\n")
        results.flush()


def fork_program(confine):
    """
    Forks the program's process, before anything of the job was read.

    Args:
        confine (`callable`):
            Called in the new process before it does anything: drops rights and sets limits.

    Returns:
        `tuple`: process id, file to write requests to, file to read results from, its stdin, stdout and stderr (fds).
    """
    request_r, request_w = os.pipe()
    result_r, result_w = os.pipe()
    stdin_r, stdin_w = os.pipe()
    stdout_r, stdout_w = os.pipe()
    stderr_r, stderr_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            for source, target in ((stdin_r, 0), (stdout_w, 1), (stderr_w, 2)):
                os.dup2(source, target)
            requests, results = os.dup(request_r), os.dup(result_w)
            # Nothing of the sandbox stays open here but the two pipes to the tester.
            keep = sorted((requests, results))
            os.closerange(3, keep[0])
            os.closerange(keep[0] + 1, keep[1])
            os.closerange(keep[1] + 1, 1024)
            confine()
            serve(open(requests), open(results, "w"))
        finally:
            os._exit(70)
    for fd in (request_r, result_w, stdin_r, stdout_w, stderr_w):
        os.close(fd)
    return pid, open(request_w, "w"), open(result_r), stdin_w, stdout_r, stderr_r


# --------------------------------------------------------------------------------------- the tester's side (trusted)


class Program:
    """The tester's end of the pipe to the program."""

    def __init__(self, requests, results):
        self.requests = requests
        self.results = results
        self.last_call = ""
        self.calls = 0
        self.objects = {}  # handle -> what stands for it here, so that one object is one object
        self.defined = {}  # handle -> special methods that its class defines
        self.made_from = {}  # handle -> (what was called, what was given to it)
        self.named = []  # what the tests took from the program by name
        self.constructors = []  # those of them that make what other results are compared with
        self.showing = False
        # Why the program is gone, or what cannot be judged. Kept, as a test may catch everything.
        self.gone = ""
        self.unsure = ""

    def cannot_judge(self, reason):
        self.unsure = self.unsure or reason
        return CannotJudgeError(reason)

    def is_gone(self, reason):
        self.gone = self.gone or reason
        return ProgramGoneError(self.gone)

    def reference(self, tag, body):
        if tag == "class":
            return self.exception_class(*body)
        if tag == "exception":
            return self.exception(*body)
        number = int(body if tag in ("o", "coroutine") else body[0])
        if number not in self.objects:
            remote = RemoteObject(self, number)
            if tag == "container":
                remote = CONTAINERS[body[1]](self, number)
            elif tag == "plain":
                kind = PLAIN[body[1]]
                remote = kind(decode(body[2], self.reference))
                remote.__dict__["_remote"] = RemoteObject(self, number)
            elif tag == "coroutine":
                return coroutine(remote)
            elif tag != "o":
                raise ValueError(f"unknown tag {tag!r}")
            self.objects[number] = remote
        return self.objects[number]

    def exception_class(self, number, module, name, bases):
        """The exception class of this name: a builtin one, one that the tests have imported too, or a stand-in."""
        if number not in self.objects:
            known = getattr(builtins, name, None) if not bases else None
            if bases and module.split(".")[0] in sys.stdlib_module_names - {"unittest"}:
                known = getattr(sys.modules.get(module), name, None)
            if not (isinstance(known, type) and issubclass(known, BaseException)):
                parents = tuple([self.exception_class(*base) for base in bases]) or (RemoteError,)
                known = ExceptionClass(name, parents, {"__remote__": RemoteObject(self, number), "__str__": its_text})
            self.objects[number] = known
        return self.objects[number]

    def exception(self, number, kind, arguments, attributes, text):
        if number not in self.objects:
            kind = self.exception_class(*kind)
            arguments = [decode(argument, self.reference) for argument in arguments]
            error = kind.__new__(kind, *arguments)
            error.args = tuple(arguments)
            if not isinstance(kind, ExceptionClass):
                try:
                    error.__init__(*arguments)  # sets `SystemExit.code`, `StopIteration.value`
                except TypeError:
                    pass  # made with other arguments than those that it keeps
            error.__dict__.update(decode(attributes, self.reference))
            error.__dict__.update(__remote__=RemoteObject(self, number), __text__=str(text))
            self.objects[number] = error
        return self.objects[number]

    def send(self, value):
        """What `encode` cannot write: the program's own objects go back as such, and little else can."""
        remote = remote_of(value)
        if remote is not None:
            return {"o": object.__getattribute__(remote, "_id")}
        kind = type(value)
        if isinstance(value, BaseException) and kind.__module__ == "builtins":
            return {"raised": [encode(kind, self.send), encode(list(value.args), self.send)]}
        if kind is types.BuiltinFunctionType and isinstance(value.__self__, (types.ModuleType, type(None))):
            return {"function": [value.__module__, value.__name__]}
        raise self.cannot_judge(f"a value of type {kind.__name__} cannot be handed to the program")

    def ask(self, op, *arguments):
        if self.gone:
            raise ProgramGoneError(self.gone)
        line = json.dumps({"op": op, "arguments": [encode(argument, self.send) for argument in arguments]})
        try:
            self.requests.write(line + "\n")
            self.requests.flush()
            reply = self.results.readline(MAX_LINE)
        except (OSError, UnicodeDecodeError):
            reply = ""
        if not reply:
            raise self.is_gone("the program ended before the tests did")
        try:
            reply = json.loads(reply)
            if "error" in reply:
                kind, message, trace = (str(part) for part in reply["error"])
            else:
                value = decode(reply["value"], self.reference)
                changed = {
                    int(position): decode(now, self.reference) for position, now in reply.get("changed", {}).items()
                }
        except Exception as error:
            raise self.is_gone("the program answered with something that is not plain data") from error
        if "error" in reply:
            try:
                error = decode({"exception": reply["exception"]}, self.reference)
            except Exception:
                error = RemoteError(f"{kind}: {message}" if message else kind)
            if isinstance(error, (StopIteration, StopAsyncIteration)) and arguments[1:2] != ("next",):
                error = StoppedCallError(f"{kind}: {message}" if message else kind)
            error.program_traceback = trace
            raise error.with_traceback(None) from None
        for position, now in changed.items():
            update_in_place(arguments[1][position], now)
        return value

    def owns(self, remote, name):
        """Whether the class of a remote object defines this special method itself."""
        number = object.__getattribute__(remote, "_id")
        if number not in self.defined:
            self.defined[number] = set(self.ask("own", remote))
        return name in self.defined[number]

    def shown(self, value, limit):
        """A short repr, for which the program is not asked. Python refuses to print very long integers."""
        self.showing = True
        try:
            return shorten(repr(value), limit)
        except ValueError:
            return "<a very long integer>"
        finally:
            self.showing = False


def update_in_place(old, new):
    """Makes the tester's own list, dict or set equal to what the program made of its copy."""
    if isinstance(old, (list, bytearray)) and isinstance(new, (list, bytearray)):
        old[:] = new
    elif isinstance(old, (dict, set)) and type(old) is type(new):
        old.clear()
        old.update(new)
    elif isinstance(old, collections.deque) and isinstance(new, collections.deque):
        old.clear()
        old.extend(new)


def remote_of(value):
    """The remote object that a value stands for, `None` if it is the tester's own."""
    kind = type(value)
    if issubclass(kind, RemoteObject):
        return value
    if kind in PLAIN.values():
        return value.__dict__["_remote"]
    if isinstance(value, (BaseException, ExceptionClass)):
        return vars(value).get("__remote__")
    return None


async def coroutine(remote):
    return remote._ask("await")


class RemoteObject:
    """
    Something of the program's that is not plain data: a function, a class, an object, an iterator.

    What the tests do with it, the program does; its answers are plain data, compared here. But where the program would
    be told what is expected, and its answer would be the verdict (`f(3) == 4`, `abs(f(3) - 4) < 1e-6` with an object
    as `f(3)`), nothing can be judged. Two of its objects are equal if the program says so and what they hold is equal,
    plain data that the tests gave included.
    """

    def __init__(self, program, number):
        object.__setattr__(self, "_program", program)
        object.__setattr__(self, "_id", number)

    def _ask(self, op, *arguments):
        return object.__getattribute__(self, "_program").ask(op, self, *arguments)

    def _owns(self, name):
        return object.__getattribute__(self, "_program").owns(self, name)

    def _cannot_compare(self):
        return object.__getattribute__(self, "_program").cannot_judge("only the program could compare its own objects")

    def __call__(self, *args, **kwargs):
        program = object.__getattribute__(self, "_program")
        arguments = [program.shown(arg, 200) for arg in args]
        arguments += [f"{key}={program.shown(arg, 200)}" for key, arg in kwargs.items()]
        program.last_call = f"({', '.join(arguments)})"
        program.calls += 1
        value = self._ask("call", list(args), kwargs)
        program.last_call += f" returned {program.shown(value, 300)}"
        if type(value) is RemoteObject and type(self) is RemoteObject:
            program.made_from.setdefault(object.__getattribute__(value, "_id"), (self, [*args, *kwargs.values()]))
        if any(self is constructor for constructor in program.constructors):
            if remote_of(value) is None or (
                type(value) in PLAIN.values() and not keeps(value, [*args, *kwargs.values()])
            ):
                raise self._cannot_compare()
        return value

    def __getattr__(self, name):
        return self._ask("attribute", name)

    def __setattr__(self, name, value):
        self._ask("set", name, value)

    def __delattr__(self, name):
        self._ask("apply", "delattr", [name])

    def __iter__(self):
        return Stream(self._ask("apply", "iter", []))

    def __next__(self):
        return self._ask("apply", "next", [])

    def __len__(self):
        return int(self._ask("apply", "len", []))

    def __bool__(self):
        return bool(self._ask("apply", "bool", []))

    def __getitem__(self, key):
        return self._ask("item", key)

    def __contains__(self, item):
        if not self._owns("__iter__") and self._owns("__contains__"):
            raise self._cannot_compare()
        return any(item is other or item == other for other in self)

    def __repr__(self):
        shown = object.__getattribute__(self, "_program").showing
        return "<an object of the program>" if shown else str(self._ask("apply", "repr", []))

    def __str__(self):
        return str(self._ask("apply", "str", []))

    def __format__(self, spec):
        return str(self._ask("apply", "format", [spec]))

    def __hash__(self):
        return int(self._ask("apply", "hash", [])) if self._owns("__eq__") else object.__hash__(self)

    def __instancecheck__(self, value):
        return object.__getattribute__(self, "_program").ask("apply", value, "isinstance", [self]) is True

    def __subclasscheck__(self, kind):
        return object.__getattribute__(self, "_program").ask("apply", kind, "issubclass", [self]) is True

    def __eq__(self, other):
        if self is other:
            return True
        is_remote = issubclass(type(other), RemoteObject)
        if not self._owns("__eq__") and not (is_remote and other._owns("__eq__")):
            return False if is_remote else NotImplemented
        if self._ask("equal", other) is not True or self._ask("equal to a stranger") is True:
            return False  # who equals everything equals nothing
        if is_remote and holds_the_same(self, other):
            return True
        raise self._cannot_compare()

    def __ne__(self, other):
        equal = self.__eq__(other)
        return equal if equal is NotImplemented else not equal

    def __exit__(self, *error):
        return self._ask("special", "__exit__", [*error[:2], None])

    def __await__(self):
        return coroutine(self).__await__()

    def __aiter__(self):
        return self._ask("special", "__aiter__", [])

    async def __anext__(self):
        try:
            return await self._ask("special", "__anext__", [])
        except StoppedCallError as error:
            raise StopAsyncIteration from error

    async def __aenter__(self):
        return await self._ask("special", "__aenter__", [])

    async def __aexit__(self, *error):
        return await self._ask("special", "__aexit__", [*error[:2], None])


def add_operators():
    """Operators of remote objects, by name."""

    def forwarded(name):
        def method(self, *arguments):
            return self._ask("special", name, list(arguments))

        return method

    def binary(name):
        def method(self, other):
            if not self._owns(name):
                return NotImplemented
            value = self._ask("special", name, [other])
            if remote_of(other) is None and remote_of(value) is None and value is not NotImplemented:
                raise self._cannot_compare()  # `f(3) - 4` is told what `f(3)` should be
            return value

        return method

    def ordering(name):
        def method(self, other):
            if not self._owns(name):
                return NotImplemented
            if remote_of(other) is None:
                raise self._cannot_compare()
            value = self._ask("special", name, [other])
            return value if value is NotImplemented else value is True

        return method

    names = "neg pos abs invert int float complex index round trunc floor ceil bytes enter setitem delitem reversed"
    two = "add sub mul matmul truediv floordiv mod divmod pow lshift rshift and or xor"
    for make, wanted in (
        (forwarded, names.split()),
        (binary, [prefix + name for name in two.split() for prefix in ("", "r")]),
        (ordering, ["lt", "le", "gt", "ge"]),
    ):
        for name in wanted:
            setattr(RemoteObject, f"__{name}__", make(f"__{name}__"))
    for name in two.split():
        if name != "divmod":
            # In place where the class can, else by the plain operator.
            setattr(RemoteObject, f"__i{name}__", binary(f"__i{name}__"))


add_operators()


def holds_the_same(one, other):
    """
    Whether two remote objects are of one class and hold equal data. Where the tests made one of them, by a class or a
    method, it must hold the plain data that they gave: else a class that forgets what it is given would do.
    """
    program = object.__getattribute__(one, "_program")
    (kind, held), (other_kind, other_held) = one._ask("state"), other._ask("state")
    try:
        if kind is not other_kind or held != other_held:
            return False
        made = [program.made_from.get(object.__getattribute__(remote, "_id")) for remote in (one, other)]
        by_tests = [
            given
            for called, given in filter(None, made)
            if called is kind or not any(called is named for named in program.named)
        ]
        return not by_tests or any(given and keeps(held, given) for given in by_tests)
    except RecursionError:
        return False


def keeps(held, given):
    """Whether every piece of plain data that was given is held."""
    parts = list(leaves(held))
    return all(any(part is leaf or part == leaf for part in parts) for leaf in leaves(given))


def leaves(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple, set, frozenset, collections.deque)):
        for item in value:
            yield from leaves(item)
    else:
        yield value


class Stream:
    """Items of a remote iterator, one request each: an endless generator stays usable with `next`."""

    def __init__(self, iterator):
        self.iterator = iterator

    def __iter__(self):
        return self

    def __next__(self):
        return self.iterator.__next__() if isinstance(self.iterator, RemoteObject) else next(self.iterator)


def container_class(base):
    """An object whose class extends `base`: methods are the program's, comparisons are of its data and made here."""

    def data(self):
        return self._ask("data")

    def by_data(name):
        def method(self, other):
            other = data(other) if type(other) in CONTAINERS.values() else other
            return getattr(base, name)(data(self), other)

        return method

    wanted = "eq ne lt le gt ge add mul rmul or and sub xor contains".split()
    methods = {f"__{name}__": by_data(f"__{name}__") for name in wanted if hasattr(base, f"__{name}__")}
    return type(base.__name__, (RemoteObject,), {**methods, "__class__": base, "__hash__": None})


CONTAINERS = {base.__name__: container_class(base) for base in (list, dict, set, bytearray, collections.deque)}


def plain_class(base):
    """Plain data whose class is the program's (a named tuple): the data is here, what else it has is the program's."""

    def get(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["_remote"], name)

    return type(base.__name__, (base,), {"__getattr__": get})


PLAIN = {base.__name__: plain_class(base) for base in (int, float, str, tuple, bytes, frozenset, complex)}


class ExceptionClass(type):
    """The type of the classes that stand for the program's own exceptions, so that `except` and `raise` work."""

    def __call__(cls, *args, **kwargs):
        return cls.__remote__(*args, **kwargs)

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(cls.__dict__["__remote__"], name)


def its_text(error):
    return error.__dict__.get("__text__", "")


# ------------------------------------------------------------------------------------------------ reading the tests

# What tests use without importing it, relying on the program's imports: they get the real one.
STANDARD = {
    name: module
    for module, names in {
        "math": "isclose sqrt pi inf nan isnan isinf isfinite ceil floor log exp sin cos tan fabs prod gcd lcm comb",
        "collections": "Counter OrderedDict defaultdict deque",
        "copy": "deepcopy copy",
        "decimal": "Decimal",
        "fractions": "Fraction",
        "functools": "reduce partial",
        "itertools": "chain combinations permutations product islice accumulate zip_longest takewhile count",
        "random": "randint shuffle choice uniform sample",
        "statistics": "mean median mode stdev variance",
        "datetime": "datetime timedelta date",
        "operator": "itemgetter attrgetter",
    }.items()
    for name in names.split()
}
PACKAGES = {"np": "numpy", "numpy": "numpy", "pd": "pandas", "pytest": "pytest", "sp": "sympy", "sympy": "sympy"}
# Tests that look at what the program's process prints or replace parts of it.
INTROSPECTION = {"redirect_stdout", "redirect_stderr", "capsys", "monkeypatch", "mock", "getsource", "catch_warnings"}


def free_names(trees):
    """
    Names that the trusted code reads and nowhere binds, and those of them that are modules of the standard library,
    going by their use: `copy.deepcopy(x)` means the module, `copy(x)` a function of the program.
    """
    read, bound, called = set(), set(), set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                called.add(node.func.id)
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                bound.add(node.name)
            elif isinstance(node, ast.arg):
                bound.add(node.arg)
            elif isinstance(node, ast.ExceptHandler) and node.name:
                bound.add(node.name)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                bound.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
    free = read - bound
    return free, (free & sys.stdlib_module_names) - called


def called_name(node):
    """The first name of what a call calls: `np` of `np.isclose(x, y)`."""
    node = node.func if isinstance(node, ast.Call) else None
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def calls_within(node, names):
    return [called_name(part) for part in ast.walk(node) if called_name(part) in names]


def helpers(trees, names):
    """
    Names of the standard library that the tests use around or beside the function that they test, as a dict from name
    to module. A task may ask for a function of such a name: the one that is called first, innermost, is the program's.
    """
    known = {name for name in names if name in STANDARD}
    tested = {name for name in names - known if not name[:1].isupper()}
    calls = [node for tree in trees for node in ast.walk(tree) if called_name(node) in names]
    inner = [
        called_name(node)
        for node in calls
        if not any(calls_within(argument, tested | known) for argument in [*node.args, *node.keywords])
    ]
    if not tested:
        known -= {name for name in inner if name in known and not name[:1].isupper()} and set(inner[:1])
    return {name: STANDARD[name] for name in known}


def judged_by_itself(trees, names):
    """
    A name whose answer would be the verdict on another function of the same program: `assert close(f(1), 5)` where the
    tests define no `close`, or `assert f(1) == expected(1)`. `None` if there is none.
    """

    def verdict(node):
        if isinstance(node, ast.UnaryOp):
            return verdict(node.operand)
        if isinstance(node, ast.BoolOp):
            return next(filter(None, map(verdict, node.values)), None)
        if isinstance(node, ast.Call) and called_name(node) in names:
            within = [part for argument in [*node.args, *node.keywords] for part in calls_within(argument, names)]
            return called_name(node) if set(within) - {called_name(node)} else None
        if isinstance(node, ast.Compare):
            left, *others = (set(calls_within(side, names)) for side in (node.left, *node.comparators))
            return next((min(other - left) for other in others if other - left and left - other), None)
        return None

    asserts = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    return next(filter(None, (verdict(node.test) for node in asserts)), None)


class RecordAsserts(ast.NodeTransformer):
    """
    Lets every assert report its own outcome and go on, so that a share of tests can be given.

    Asserts of constants are left as they are: `assert False` after a call that should have raised must still end
    the test, and `assert True` tests nothing. Within a `try` or a `with`, which may wait for an exception, it goes on
    its way.
    """

    def __init__(self):
        self.sources = []
        self.loops = []  # of the loops around, the numbers of the asserts that each run of them reaches
        self.own = set()  # asserts that this test reaches by itself, not in a function or behind an exception
        self.in_function = self.guarded = False

    def within(self, nodes, loops=None, **changes):
        """Visits a list of statements (in place) with another state."""
        before = dict(vars(self))
        vars(self).update(changes, loops=self.loops if loops is None else loops)
        visited = []
        for node in nodes:
            new = self.visit(node)
            visited += new if isinstance(new, list) else [new]
        nodes[:] = visited
        vars(self).update({name: before[name] for name in ("loops", "in_function", "guarded")})

    def visit_FunctionDef(self, node):
        self.within(node.body, loops=[], in_function=True, guarded=False)
        return node

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_If(self, node):
        self.within(node.body, loops=[])
        self.within(node.orelse, loops=[])
        return node

    def visit_Match(self, node):
        for case in node.cases:
            self.within(case.body, loops=[])
        return node

    def visit_Try(self, node):
        self.within(node.body, guarded=self.guarded or bool(node.handlers))
        for handler in node.handlers:
            self.within(handler.body, loops=[])
            if handler.type is not None:
                handler.type = or_stopped(handler.type)
        self.within(node.orelse)
        self.within(node.finalbody)
        return node

    visit_TryStar = visit_Try

    def visit_With(self, node):
        self.generic_with(node)
        return node

    visit_AsyncWith = visit_With

    def generic_with(self, node):
        for item in node.items:
            if isinstance(item.context_expr, ast.Call):
                item.context_expr.args = [or_stopped(argument) for argument in item.context_expr.args]
        self.within(node.body, guarded=True)

    def visit_For(self, node):
        numbers = []
        self.within(node.body, loops=[*self.loops, numbers])
        self.within(node.orelse)
        return [ast.fix_missing_locations(ast.parse(f"__reached__({numbers})").body[0]), node] if numbers else node

    visit_AsyncFor = visit_For

    def visit_While(self, node):
        self.within(node.body, loops=[])
        self.within(node.orelse)
        return node

    def visit_Assert(self, node):
        if isinstance(node.test, ast.Constant):
            return node
        number = len(self.sources)
        self.sources.append(ast.unparse(ast.Assert(test=node.test, msg=None)))
        for loop in self.loops:
            loop.append(number)
        if not self.in_function and not self.guarded:
            self.own.add(number)
        # Names that end with underscores, too: within a class, others would be changed.
        success, failure = (f"__record__({number}, {error}, {self.guarded})" for error in ("None", "__error__"))
        record = ast.parse(
            f"try:\n    pass\nexcept BaseException as __error__:\n    {failure}\nelse:\n    {success}"
        ).body[0]
        record.body = [node]
        return ast.fix_missing_locations(ast.copy_location(record, node))


def or_stopped(node):
    """`StopIteration` in an `except` or a `with`, together with what a call that raised it raises here."""
    names = [part for part in ([node] if not isinstance(node, ast.Tuple) else node.elts) if isinstance(part, ast.Name)]
    if not any(part.id in ("StopIteration", "StopAsyncIteration") for part in names):
        return node
    stopped = ast.copy_location(ast.Name("__StoppedCallError__", ast.Load()), node)
    parts = node.elts if isinstance(node, ast.Tuple) else [node]
    return ast.copy_location(ast.Tuple([*parts, stopped], ast.Load()), node)


class Tests:
    """The trusted part of a job: its tests, read, and what became of them."""

    def __init__(self, job, emit):
        self.emit = emit
        self.failed, self.passed, self.ran, self.reached = set(), set(), set(), set()
        self.program = None
        setup = ast.parse(job["setup"])
        # Equal tests are one test.
        trees = {test: ast.parse(test) for test in job["tests"]}
        self.all = [setup, *trees.values()]
        self.names, self.modules = free_names(self.all)
        self.recorder = RecordAsserts()
        self.setup = self.recorder.visit(setup)
        self.trees, self.own, self.numbers = {}, {}, {}
        for number, (test, tree) in enumerate(trees.items()):
            self.recorder.own = set()
            self.trees[test] = self.recorder.visit(tree)
            self.own[test], self.numbers[test] = self.recorder.own, f"test {number}"
        self.by_assert = bool(self.recorder.sources)
        self.total = len(self.recorder.sources) if self.by_assert else len(trees)

    def looks_inside(self):
        """The first name by which the tests look at the program's process, which is not theirs; `None` if none."""
        for tree in self.all:
            for node in ast.walk(tree):
                names = [getattr(node, "id", None), getattr(node, "attr", None), getattr(node, "arg", None)]
                if isinstance(node, ast.alias):
                    names = node.name.split(".")
                elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "sys":
                    names = ["redirect_stdout"] if node.attr in ("stdout", "stderr", "stdin") else []
                for name in names:
                    if isinstance(name, str) and name in INTROSPECTION:
                        return name
        return None

    def fail(self, number, source, error):
        if number not in self.failed:
            self.failed.add(number)
            trace = getattr(error, "program_traceback", "")
            what = {"test": shorten(source), "error": describe(error), "traceback": trace}
            self.emit({"failed": number, **what, "call": self.program.last_call})

    def record(self, number, error, guarded):
        self.ran.add(number)
        if error is None:
            if number not in self.passed:
                self.passed.add(number)
                self.emit({"passed": number})
        elif isinstance(error, ProgramGoneError) or (isinstance(error, ImportError) and not from_program(error)):
            raise error
        elif not isinstance(error, CannotJudgeError) and not (
            guarded and (from_program(error) or not isinstance(error, AssertionError))
        ):
            self.fail(number, self.recorder.sources[number], error)
        if error is not None and guarded:
            raise error
        self.program.last_call = ""

    def run(self, test, space):
        """Runs one test. Returns whether to go on."""
        self.ran.clear()
        number = self.numbers[test]
        try:
            exec(compile(self.trees[test], "<test>", "exec"), space)
        except (ProgramGoneError, CannotJudgeError):
            pass  # the program remembers
        except BaseException as error:  # a SystemExit of the program's, too
            if isinstance(error, ImportError) and not from_program(error):
                self.program.cannot_judge(f"the tests need what is not here: {describe(error)}")
            else:
                self.fail(number, test, error)
        else:
            if self.own[test] and not self.own[test] & self.ran:
                self.fail(number, test, AssertionError("no assert of this test ran"))
            elif not self.by_assert and number not in self.passed:
                self.passed.add(number)
                self.emit({"passed": number})
        for number in sorted(self.reached - self.ran):
            self.fail(
                number, self.recorder.sources[number], AssertionError("never ran: there was nothing to go through")
            )
        self.reached.clear()
        return not self.program.gone


def from_program(error):
    return hasattr(error, "program_traceback")


def describe(error):
    message = shorten(error, 500)
    return (
        message
        if type(error) in (RemoteError, StoppedCallError)
        else f"{type(error).__name__}: {message}".rstrip(": ")
    )


# ----------------------------------------------------------------------------------------------------- running a job


def run_job(job, requests, results, emit):
    """
    Runs the tests (or the script) of one job against the program.

    Args:
        job (`dict`):
            `program`, `tests` (a list or `None`), `setup`, `entry_point`.
        emit (`callable`):
            Takes one dict per event as it happens, so that what passed before a timeout is known:
            `{"total": int}`, `{"passed": id}`, `{"failed": id, ...}`, `{"done": True, ...}`.
    """
    program = Program(requests, results)
    is_script = job["tests"] is None
    if not is_script:
        if not job["tests"]:
            return emit({"done": True, "unsupported": "there are no tests"})
        try:
            tests = Tests(job, emit)
        except (SyntaxError, ValueError) as error:
            return emit({"done": True, "unsupported": f"the tests cannot be read: {describe(error)}"})
        if name := tests.looks_inside():
            return emit({"done": True, "unsupported": f"the tests look inside the program's process ({name})"})
        tests.program = program
        emit({"total": tests.total})
    try:
        program.ask("load", job["program"], "__main__" if is_script else "solution")
        if is_script:
            return run_script(program, emit)
    except ProgramGoneError as error:
        return emit({"gone": str(error)})
    except BaseException as error:  # SystemExit too
        trace = getattr(error, "program_traceback", "")
        return emit({"done": True, "error": describe(error), "traceback": trace})
    try:
        emit(run_tests(program, tests, job) or {"done": True})
    except ProgramGoneError as error:
        emit({"gone": str(error)})
    except CannotJudgeError as error:
        emit({"done": True, "unsupported": str(error)})


def run_script(program, emit):
    def as_text(remote):
        # What extends a builtin type counts as that type; another object (sympy's numbers) is told as its text.
        plain = base_of(type(remote)) if type(remote) in PLAIN.values() else None
        return encode(plain(remote) if plain else str(remote), as_text)

    found = program.ask("has", ["answer"])
    answer = program.ask("get", "answer") if found else None
    emit({"done": True, "answer": encode(answer, as_text)})


def run_tests(program, tests, job):
    """Binds what the tests need, runs them, and returns the last event if it is not simply the end."""
    space = {"__name__": "tests", "__record__": tests.record, "__reached__": tests.reached.update}
    space["__StoppedCallError__"] = StoppedCallError
    wanted = tests.names - set(dir(builtins)) - {"candidate", job["entry_point"]}
    if not wanted and not job["entry_point"]:
        # The tests name builtins alone, such as a task whose function is called `sum`.
        wanted = tests.names & set(dir(builtins))
    # Tests that rely on the program's `import math` get the real one: `math.isclose` is not the program's to give.
    standard = {} if job["entry_point"] and not wanted else helpers(tests.all, wanted - tests.modules)
    for name in tests.modules:
        space[name] = importlib.import_module(name)
    for name, module in standard.items():
        space[name] = getattr(importlib.import_module(module), name)
    for name in wanted & set(PACKAGES):
        try:
            space[name] = importlib.import_module(PACKAGES[name])
        except ImportError as error:
            raise program.cannot_judge(f"the tests need what is not here: {describe(error)}") from error
    given = program.ask("has", sorted(wanted - set(space)))
    for name in given:
        space[name] = program.ask("get", name)
        program.named.append(space[name])
    if len(given) > 1:
        program.constructors += [space[name] for name in given if name[:1].isupper()]
        program.constructors = [getattr(kind, "__remote__", kind) for kind in program.constructors]
    if name := judged_by_itself(tests.all, {name for name in given if not name[:1].isupper()} | {"candidate"}):
        raise program.cannot_judge(f"the tests use {name} and do not define it: the program would judge itself")
    try:
        exec(compile(tests.setup, "<setup>", "exec"), space)
    except Exception as error:
        # The setup may build objects from the program's classes: their absence is the program's failure.
        if isinstance(error, NameError) or from_program(error):
            return {"done": True, "error": describe(error)}
        return {"done": True, "unsupported": f"the tests' own setup failed: {describe(error)}"}
    if job["entry_point"]:
        # Bound after the setup: HumanEval's prompt, which is there for its helpers, has a stub of the same name.
        if not program.ask("has", [job["entry_point"]]):
            return {"done": True, "error": f"the program does not define {job['entry_point']}"}
        space["candidate"] = space[job["entry_point"]] = program.ask("get", job["entry_point"])
    for test in job["tests"]:
        if not tests.run(test, space):
            return {"gone": program.gone}
    if tests.failed:
        return None
    if program.unsure:
        return {"done": True, "unsupported": program.unsure}
    if tests.by_assert and not tests.passed:
        if not program.calls:
            return {"done": True, "unsupported": "the tests never call the program"}
        return {"done": True, "error": "no assert of the tests ran"}
    return None


# ------------------------------------------------------------------------------------------ the remote sandbox's use


def main_remote(limits):
    """Runs one job in a sandbox that only knows how to run a script: the job comes on stdin, events go to stdout."""
    import ctypes
    import resource
    import tempfile
    import threading

    def confine():
        os.setsid()
        os.chdir(tempfile.mkdtemp())
        for name in ("RLIMIT_CPU", "RLIMIT_AS", "RLIMIT_FSIZE", "RLIMIT_CORE"):
            resource.setrlimit(getattr(resource, name), (limits[name], limits[name]))

    pid, requests, results, stdin_fd, stdout_fd, stderr_fd = fork_program(confine)
    # PR_SET_DUMPABLE 0: a program of the same user can then neither read this memory nor open these pipes.
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
    job = json.loads(sys.stdin.read())
    captured = {"stdout": b"", "stderr": b""}

    def drain(name, fd):
        while chunk := os.read(fd, 65536):
            captured[name] = (captured[name] + chunk)[: limits["output_bytes"]]

    def feed():
        try:
            os.write(stdin_fd, job["stdin"].encode())
        except OSError:
            pass
        os.close(stdin_fd)

    work = [(drain, ("stdout", stdout_fd)), (drain, ("stderr", stderr_fd)), (feed, ())]
    threads = [threading.Thread(target=target, args=arguments, daemon=True) for target, arguments in work]
    for thread in threads:
        thread.start()
    out = os.dup(1)

    def emit(event):
        os.write(out, f"{job['mark']} {json.dumps(event)}\n".encode())

    run_job(job, requests, results, emit)
    try:
        os.killpg(pid, 9)
    except ProcessLookupError:
        pass
    os.waitpid(pid, 0)
    for thread in threads[:2]:
        thread.join(1)
    emit({name: value.decode(errors="replace") for name, value in captured.items()})
