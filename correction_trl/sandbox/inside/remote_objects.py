"""The program as the tester sees it: what stands for its functions, classes, objects and exceptions."""

import builtins
import collections
import json
import sys
import types

from .plain_data import decode, encode, shorten


MAX_LINE = 2**24  # bytes of one result


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
