# ruff: noqa: E501
"""Right programs are judged right, wrong ones wrong, and what cannot be compared is not judged: many small cases."""

import sys
import types

import pytest

from correction_trl.sandbox import Job, Limits, LocalSandbox, local


PROBLEMS = {isolation: local.try_isolation(isolation) for isolation in ("namespaces", "bubblewrap")}
pytestmark = pytest.mark.skipif(all(PROBLEMS.values()), reason=f"no isolation here: {PROBLEMS}")
SANDBOX = LocalSandbox(Limits(cpu_seconds=10, wall_seconds=20.0))

POINT = (
    "class Point:\n    def __init__(self, x, y):\n        self.x, self.y = x, y\n"
    "    def __eq__(self, other):\n        return (self.x, self.y) == (other.x, other.y)\n"
    "    def __hash__(self):\n        return hash((self.x, self.y))\n"
    "    def __add__(self, other):\n        return Point(self.x + other.x, self.y + other.y)\n"
    "    def __lt__(self, other):\n        return self.x < other.x\n"
    "    def __str__(self):\n        return f'({self.x}, {self.y})'\n"
)
DATA = "import dataclasses\n@dataclasses.dataclass\nclass Point:\n    x: int\n    y: int = 0\n"
STACK = "class Stack(list):\n    def push(self, x):\n        self.append(x)\n    def peek(self):\n        return self[-1]\n"
ASYNC = "import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    return x + 1\n"

# (program, tests); each right: by CPython itself, in one process, every assert holds.
RIGHT = {
    "own exception": (
        "class NegativeError(Exception):\n    pass\ndef f(x):\n    raise NegativeError('negative')",
        ["try:\n    f(-1)\n    assert False\nexcept NegativeError as error:\n    assert str(error) == 'negative'"],
    ),
    "own exception of a builtin kind": (
        "class NegativeError(ValueError):\n    def __init__(self, x):\n        super().__init__(f'{x} is negative')\n"
        "        self.x = x\ndef f(x):\n    raise NegativeError(x)",
        ["try:\n    f(-1)\n    assert False\nexcept ValueError as error:\n    assert error.x == -1 and '-1 is' in str(error)"],
    ),
    "hierarchy of own exceptions": (
        "class A(Exception):\n    pass\nclass B(A):\n    pass\ndef f():\n    raise B",
        ["try:\n    f()\n    assert False\nexcept A as error:\n    kind = type(error)\n"
         "assert kind is B and issubclass(B, A) and not issubclass(A, B)"],
    ),
    "own exception with its own text": (
        "class E(Exception):\n    def __str__(self):\n        return 'told'\ndef f():\n    raise E(1)",
        ["try:\n    f()\nexcept E as error:\n    text = str(error), error.args\nassert text == ('told', (1,))"],
    ),
    "exception made by the tests": (
        "class E(Exception):\n    pass\ndef f(error):\n    return type(error).__name__",
        ["assert f(E('x')) == 'E'", "assert isinstance(E(), Exception)", "assert f(ValueError('x')) == 'ValueError'"],
    ),
    "KeyError's argument": (
        "def f(d, k):\n    return d[k]",
        ["try:\n    f({}, 'a')\n    assert False\nexcept KeyError as error:\n    assert error.args == ('a',)",
         "try:\n    f({}, 'a')\nexcept KeyError as error:\n    text = str(error)\nassert text == \"'a'\""],
    ),
    "arguments that are no text": (
        "def f():\n    raise ValueError(3, [1])",
        ["try:\n    f()\nexcept ValueError as error:\n    args = error.args\nassert args == (3, [1])"],
    ),
    "OSError's number": (
        "def f():\n    return open('/nowhere')",
        ["try:\n    f()\nexcept FileNotFoundError as error:\n    number = error.errno\nassert number == 2"],
    ),
    "UnicodeDecodeError": (
        "def f(b):\n    return b.decode()",
        ["try:\n    f(b'\\xff')\n    assert False\nexcept UnicodeDecodeError as error:\n    assert error.start == 0"],
    ),
    "an exception of a standard module": (
        "import json\ndef f(text):\n    return json.loads(text)",
        ["import json\ntry:\n    f('{')\n    assert False\nexcept json.JSONDecodeError as error:\n    assert error.pos == 1"],
    ),
    "SystemExit expected": (
        "import sys\ndef f():\n    sys.exit(3)",
        ["try:\n    f()\n    assert False\nexcept SystemExit as error:\n    assert error.code == 3"],
    ),
    "StopIteration expected": (
        "def f():\n    raise StopIteration\ndef g():\n    yield 1",
        ["try:\n    f()\n    assert False\nexcept StopIteration:\n    pass",
         "try:\n    f()\n    assert False\nexcept (ValueError, StopIteration):\n    pass",
         "import contextlib\nwith contextlib.suppress(StopIteration):\n    f()\n    assert False",
         "i = g()\nassert next(i) == 1\ntry:\n    next(i)\n    assert False\nexcept StopIteration:\n    pass",
         "assert next(g()) == 1 and list(g()) == [1] and next(iter([]), 5) == 5"],
    ),
    "an assert that waits for an exception": (
        "def f(x):\n    if x < 0:\n        raise ValueError\n    return x",
        ["try:\n    assert f(-1) == 3\nexcept ValueError:\n    pass", "assert f(1) == 1"],
    ),
    "async function": (ASYNC, ["import asyncio\nassert asyncio.run(f(1)) == 2"]),
    "async within async": (
        ASYNC,
        ["import asyncio\nasync def main():\n    assert await f(1) == 2\n    assert await asyncio.gather(f(2), f(3)) == [3, 4]\n"
         "asyncio.run(main())"],
    ),
    "async generator": (
        "async def f(n):\n    for i in range(n):\n        yield i",
        ["import asyncio\nasync def main():\n    return [i async for i in f(3)]\nassert asyncio.run(main()) == [0, 1, 2]"],
    ),
    "async context": (
        "class C:\n    async def __aenter__(self):\n        return 5\n    async def __aexit__(self, *error):\n        pass",
        ["import asyncio\nasync def main():\n    async with C() as x:\n        return x\nassert asyncio.run(main()) == 5"],
    ),
    "async function that raises": (
        "async def f():\n    raise KeyError('k')",
        ["import asyncio\ntry:\n    asyncio.run(f())\n    assert False\nexcept KeyError as error:\n    assert error.args == ('k',)"],
    ),
    "own __eq__": (POINT + "def f():\n    return Point(1, 2)", ["assert f() == Point(1, 2)", "assert f() != Point(2, 1)"]),
    "own __eq__ within lists": (
        POINT + "def f():\n    return [Point(1, 2), Point(3, 4)]",
        ["assert f() == [Point(1, 2), Point(3, 4)]", "assert Point(3, 4) in f()", "assert Point(9, 9) not in f()"],
    ),
    "own __eq__ and __hash__ in sets": (
        POINT + "def f():\n    return [Point(1, 2), Point(1, 2)]",
        ["assert set(f()) == {Point(1, 2)}", "assert len(set(f())) == 1"],
    ),
    "own operators": (
        POINT,
        ["assert Point(1, 2) + Point(3, 4) == Point(4, 6)", "assert Point(1, 2) < Point(2, 0)",
         "assert sorted([Point(2, 0), Point(1, 0)])[0].x == 1", "assert str(Point(1, 2)) == '(1, 2)'",
         "assert f'{Point(1, 2)}' == '(1, 2)'", "a = Point(1, 2)\na += Point(1, 1)\nassert a.x == 2"],
    ),
    "own numbers": (
        "class Money:\n    def __init__(self, n):\n        self.n = n\n    def __int__(self):\n        return self.n\n"
        "    def __neg__(self):\n        return Money(-self.n)\n    def __mul__(self, k):\n        return Money(self.n * k)\n"
        "    __rmul__ = __mul__\n    def __eq__(self, o):\n        return isinstance(o, Money) and self.n == o.n",
        ["assert int(Money(3)) == 3", "assert -Money(3) == Money(-3)", "assert Money(2) * 3 == Money(6)",
         "assert 3 * Money(2) == Money(6)", "assert (Money(2) == 2) is False"],
    ),
    "dataclass": (DATA + "def f(x):\n    return Point(x, y=2)", ["assert f(1) == Point(1, 2)", "assert f(1) != Point(2, 2)",
                                                              "assert repr(f(1)) == 'Point(x=1, y=2)'"]),
    "frozen dataclass with slots": (
        "from dataclasses import dataclass\n@dataclass(frozen=True, slots=True)\nclass P:\n    x: int\n"
        "def f():\n    return {P(1): [P(2)]}",
        ["assert f() == {P(1): [P(2)]}"],
    ),
    "nested dataclass": (
        DATA + "@dataclasses.dataclass\nclass Line:\n    a: Point\n    b: Point\ndef f():\n    return Line(Point(1), Point(2))",
        ["assert f() == Line(Point(1), Point(2))", "assert f() != Line(Point(1), Point(3))"],
    ),
    "named tuple": (
        "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f():\n    return P(1, 2)",
        ["assert f() == (1, 2)", "assert f().y == 2", "assert f() == P(1, 2)", "assert f()._asdict() == {'x': 1, 'y': 2}"],
    ),
    "typing.NamedTuple": (
        "from typing import NamedTuple\nclass P(NamedTuple):\n    x: int\n    def twice(self):\n        return 2 * self.x\n"
        "def f(p):\n    return p.twice()",
        ["assert f(P(4)) == 8 and P(4).twice() == 8"],
    ),
    "enum": (
        "import enum\nclass C(enum.Enum):\n    A = 1\nclass I(enum.IntEnum):\n    A = 1\ndef f():\n    return C.A\n"
        "def g():\n    return I.A",
        ["assert f() == C.A and f() is C.A and f().value == 1 and f().name == 'A'", "assert g() == 1 and g().name == 'A'"],
    ),
    "list with methods": (
        STACK, ["s = Stack()\ns.push(1)\ns.push(2)\nassert s.peek() == 2 and len(s) == 2 and s == [1, 2]",
                "s = Stack()\nassert not s and isinstance(s, list) and isinstance(s, Stack)"],
    ),
    "dict with methods": (
        "class D(dict):\n    def __getattr__(self, k):\n        return self[k]\n    def __missing__(self, k):\n        return 0",
        ["d = D(a=1)\nassert d.a == 1 and d['b'] == 0 and d == {'a': 1} and 'a' in d"],
    ),
    "str with methods": (
        "class S(str):\n    def shout(self):\n        return self.upper() + '!'\ndef f():\n    return S('a')",
        ["assert f() == 'a' and f().shout() == 'A!' and f() + 'b' == 'ab'"],
    ),
    "stack of one's own": (
        "class Stack:\n    def __init__(self):\n        self.items = []\n    def push(self, x):\n        self.items.append(x)\n"
        "    def __len__(self):\n        return len(self.items)\n    def __iter__(self):\n        return iter(self.items)\n"
        "    def __getitem__(self, i):\n        return self.items[i]\n    def __setitem__(self, i, x):\n        self.items[i] = x\n"
        "    def __delitem__(self, i):\n        del self.items[i]",
        ["s = Stack()\nassert not s\ns.push(1)\ns.push(2)\nassert s and len(s) == 2 and list(s) == [1, 2] and 2 in s\n"
         "s[0] = 5\ndel s[1]\nassert s[0] == 5 and s[-1] == 5 and s[0:1] == [5]"],
    ),
    "context manager": (
        "from contextlib import contextmanager\n@contextmanager\ndef f(log):\n    log.append(1)\n    yield 5\n    log.append(2)",
        ["with f([]) as x:\n    assert x == 5"],
    ),
    "isinstance of own classes": (
        "class A:\n    pass\nclass B(A):\n    pass\ndef f():\n    return B()",
        ["assert isinstance(f(), A) and isinstance(f(), B) and issubclass(B, A) and not isinstance(3, A)"],
    ),
    "dates": (
        "import datetime as d\ndef f():\n    return d.datetime(2024, 2, 29, 12, tzinfo=d.timezone.utc)\n"
        "def g(x):\n    return x + d.timedelta(days=1)",
        ["import datetime\nassert f() == datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.timezone.utc)",
         "import datetime\nassert g(datetime.date(2024, 2, 28)) == datetime.date(2024, 2, 29)",
         "import datetime\nassert g(datetime.datetime(2024, 2, 28)) - datetime.datetime(2024, 2, 28) == datetime.timedelta(1)",
         "assert g(f()).isoformat() == '2024-03-01T12:00:00+00:00'"],
    ),
    "counters and the like": (
        "from collections import *\ndef f(x):\n    return Counter(x)\ndef g():\n    return OrderedDict(a=1)\n"
        "def h():\n    return defaultdict(list)",
        ["assert f('aab').most_common(1) == [('a', 2)] and f('ab') == {'a': 1, 'b': 1}", "assert list(g().items()) == [('a', 1)]",
         "d = h()\nd['x'].append(1)\nassert d == {'x': [1]}"],
    ),
    "views": ("def f(d):\n    return d.keys()\ndef g(d):\n    return d.values()",
              ["assert f({'a': 1}) == {'a'}", "assert list(g({'a': 1})) == [1] and sum(g({'a': 1})) == 1"]),
    "types as values": (
        "def f(x):\n    return type(x)\ndef g(kind, x):\n    return isinstance(x, kind)\ndef h(function, xs):\n"
        "    return [function(x) for x in xs]",
        ["assert f(3) is int and f('') == str", "assert g((int, str), 3) and not g(list, 3)", "assert h(abs, [-1]) == [1]",
         "import math, operator\nassert h(math.floor, [1.5]) == [1] and h(len, ['ab']) == [2]"],
    ),
    "asserts in both branches": (
        "def f(x):\n    return x", ["for x in (1, 2, 3):\n    if f(x) > 5:\n        assert f(x) == 0\n    else:\n        assert f(x) == x"]
    ),
    "asserts within a class of the tests": (
        "def f(x):\n    return x", ["class T:\n    def test(self):\n        assert f(1) == 1\nT().test()"]
    ),
    "helper of the standard library": (
        "from math import isclose, sqrt\nfrom collections import Counter\ndef f(x):\n    return x ** 0.5",
        ["assert isclose(f(2), sqrt(2))", "assert Counter([f(4)]) == Counter([2.0])"],
    ),
    "a task named like a helper": ("def gcd(a, b):\n    return a if b == 0 else gcd(b, a % b)", ["assert gcd(10, 15) == 5"]),
    "a task named like one, with a class": (
        "class Node:\n    def __init__(self, x):\n        self.x = x\ndef count(node):\n    return node.x",
        ["assert count(Node(3)) == 3"],
    ),
    "one's own inverse": ("def encode(x):\n    return x[::-1]\ndef decode(x):\n    return x[::-1]", ["assert decode(encode('ab')) == 'ab'"]),
    "a generator's answer": ("def f():\n    yield from [1, 2]", ["assert list(f()) == [1, 2]", "assert sum(f()) == 3"]),
    "half a character": ("def f():\n    return '\\ud800'", ["assert f() == '\\ud800'"]),
    "no assert but an exception": ("def f():\n    raise ValueError", ["try:\n    f()\n    assert False\nexcept ValueError:\n    pass"]),
}  # fmt: skip

ANY = "class Any:\n    def __init__(self, *a, **k):\n        pass\n    def __eq__(self, other):\n        return True\n    __hash__ = None\n"

# (program, tests): none may pass. Some cannot be judged: they are in NOT_JUDGED too.
WRONG = {
    "StopIteration in all(map)": ("def f(x):\n    raise StopIteration", ["assert all(map(f, [1, 2]))"]),
    "StopIteration's own kind": ("class S(StopIteration):\n    pass\ndef f(x):\n    raise S", ["assert all(map(f, [1, 2]))"]),
    "StopIteration in filter": ("def f(x):\n    raise StopIteration", ["assert list(filter(f, [1, 2])) == []"]),
    "StopIteration in zip and map": ("def f(x):\n    raise StopIteration", ["assert not [y for y in map(f, [1]) if y != 2]"]),
    "StopIteration in iter": ("def f():\n    raise StopIteration", ["assert list(iter(f, 0)) == []"]),
    "StopIteration from an attribute": (
        "class C:\n    @property\n    def x(self):\n        raise StopIteration\ndef f(n):\n    return C()",
        ["assert all(map(lambda n: f(n).x == 4, [1, 2]))"],
    ),
    "StopIteration elsewhere expected": (
        "def f(x):\n    raise StopIteration",
        ["try:\n    f(0)\n    assert False\nexcept StopIteration:\n    pass", "assert all(map(f, [1, 2]))"],
    ),
    "StopAsyncIteration": (
        "async def f(x):\n    raise StopAsyncIteration",
        ["import asyncio\nasync def main():\n    return [await f(x) == 1 for x in (1, 2)]\nassert all(asyncio.run(main()))"],
    ),
    "empty output under asserts": ("def f():\n    return []", ["for x in f():\n    assert x > 0"]),
    "empty output under asserts, another holds": (
        "def f():\n    return []", ["assert isinstance(f(), list)\nfor x in f():\n    assert x > 0"]
    ),
    "empty output in a check": (
        "def f():\n    return {}", ["def check(g):\n    for k, v in g().items():\n        assert k == v\ncheck(f)"]
    ),
    "empty inner loops": ("def f():\n    return [[], []]", ["for row in f():\n    for x in row:\n        assert x > 0"]),
    "output that skips the assert": ("def f():\n    return None", ["r = f()\nif r is not None:\n    assert r == 3"]),
    "a loop that is right at first": (
        "def f(x):\n    return 0", ["for x in (0, 1):\n    assert f(x) == x", "for x in (0, 2):\n    assert f(x) == x"]
    ),
    "isclose": ("def isclose(*a, **k):\n    return True\ndef f(x):\n    return 0", ["assert isclose(f(2), 4)"]),
    "isclose as a class": ("class isclose:\n    def __init__(self, *a, **k):\n        pass\ndef f(x):\n    return 0", ["assert isclose(f(2), 4)"]),
    "Counter": ("def Counter(x):\n    return 5\ndef f(x):\n    return 5", ["assert f('ab') == Counter('ab')"]),
    "sqrt": ("def sqrt(x):\n    return 5\ndef f(x):\n    return 5", ["assert f(16) == sqrt(16)"]),
    "inf": ("inf = 5\ndef f(x):\n    return 5", ["assert f(16) == inf"]),
    "a helper that nobody has": ("def close(a, b):\n    return True\ndef f(x):\n    return 0", ["assert close(f(2), 4)"]),
    "not a helper that nobody has": ("def far(a, b):\n    return False\ndef f(x):\n    return 0", ["assert not far(f(2), 4)"]),
    "a reference that nobody has": ("def expected(x):\n    return 0\ndef f(x):\n    return 0", ["assert f(2) == expected(2)"]),
    "np": ("class np:\n    isclose = allclose = staticmethod(lambda *a: True)\ndef f(x):\n    return 0", ["assert np.isclose(f(2), 4)"]),
    "pytest": ("class pytest:\n    approx = staticmethod(lambda x: 0)\ndef f(x):\n    return 0", ["assert f(2) == pytest.approx(4)"]),
    "equal to everything": (ANY + "def f(x):\n    return Any()", ["assert f(2) == 4"]),
    "equal to everything, right side": (ANY + "def f(x):\n    return Any()", ["assert 4 == f(2)"]),
    "equal to every number": (
        "class N:\n    def __eq__(self, o):\n        return isinstance(o, int)\ndef f(x):\n    return N()", ["assert f(2) == 4"]
    ),
    "unequal to nothing": (
        "class N:\n    def __ne__(self, o):\n        return False\ndef f(x):\n    return N()", ["assert not f(2) != 4"]
    ),
    "a class that forgets": (ANY.replace("Any", "Point") + "def f():\n    return Point()", ["assert f() == Point(1, 2)"]),
    "a dataclass that forgets": (
        "import dataclasses\n@dataclasses.dataclass\nclass Point:\n    def __init__(self, *a):\n        pass\n"
        "def f():\n    return Point()",
        ["assert f() == Point(1, 2)"],
    ),
    "a class that always says yes": (POINT.replace("(self.x, self.y) == (other.x, other.y)", "True") + "def f():\n    return Point(0, 0)",
                                     ["assert f() == Point(1, 2)"]),
    "equal within a list": (ANY + "def f(x):\n    return [Any()]", ["assert f(2) == [4]"]),
    "in everything": ("class L:\n    def __contains__(self, x):\n        return True\ndef f(x):\n    return L()", ["assert 4 in f(2)"]),
    "less than everything": ("class N:\n    def __lt__(self, x):\n        return True\ndef f(x):\n    return N()", ["assert f(2) < 4"]),
    "near to everything": (
        "class N:\n    def __sub__(self, x):\n        return 0.0\n    __rsub__ = __sub__\ndef f(x):\n    return N()",
        ["assert abs(f(2) - 4) < 1e-6"],
    ),
    "near from the other side": (
        "class N:\n    def __sub__(self, x):\n        return 0.0\n    __rsub__ = __sub__\ndef f(x):\n    return N()",
        ["assert abs(4 - f(2)) < 1e-6"],
    ),
    "a list that is equal to everything": (
        "class L(list):\n    def __eq__(self, o):\n        return True\ndef f(x):\n    return L()", ["assert f(2) == [4]"]
    ),
    "a tuple that is equal to everything": (
        "class L(tuple):\n    def __eq__(self, o):\n        return True\ndef f(x):\n    return L()", ["assert f(2) == (4,)"]
    ),
    "gone, and everything is caught": (
        "import os\ndef f(x):\n    os._exit(0)", ["try:\n    f(-1)\n    ok = False\nexcept:\n    ok = True\nassert ok"]
    ),
    "gone, and BaseException is caught": (
        "import os\ndef f(x):\n    os._exit(0)",
        ["assert True", "ok = False\ntry:\n    f(-1)\nexcept BaseException:\n    ok = True\nassert ok"],
    ),
    "SystemExit": ("def f(x):\n    raise SystemExit(0)", ["assert f(2) == 4"]),
    "SystemExit at the last test": ("def f(x):\n    if x == 2:\n        raise SystemExit(0)\n    return x", ["assert f(1) == 1", "assert f(2) == 2"]),
    "SystemExit outside of an assert": ("def f(x):\n    raise SystemExit(0)", ["y = f(2)\nassert y == 4"]),
    "KeyboardInterrupt": ("def f(x):\n    raise KeyboardInterrupt", ["y = f(2)\nassert y == 4"]),
    "GeneratorExit": ("def f(x):\n    raise GeneratorExit", ["assert all(f(x) == 4 for x in [1, 2])"]),
    "BaseException": ("class B(BaseException):\n    pass\ndef f(x):\n    raise B", ["assert f(2) == 4"]),
    "an exception that is no assertion": ("def f(x):\n    raise AssertionError", ["assert f(2) == 4"]),
    "unittest's skip": (
        "import unittest\ndef f(x):\n    raise unittest.SkipTest('no')",
        ["import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        self.assertEqual(f(1), 2)\n"
         "r = unittest.TestResult()\nT('test').run(r)\nassert r.wasSuccessful() and not r.errors"],
    ),
    "a context that hides what fails": (
        "class C:\n    def __enter__(self):\n        return 0\n    def __exit__(self, *e):\n        return True\ndef f(x):\n    return C()",
        ["with f(2) as x:\n    assert x == 4"],
    ),
    "a context that hides all": (
        "class C:\n    def __enter__(self):\n        raise KeyError\n    def __exit__(self, *e):\n        return True\n"
        "def f(x):\n    return C()",
        ["with f(2) as x:\n    assert x == 4"],
    ),
    "patched assert": ("import builtins\nbuiltins.AssertionError = None\nbuiltins.isinstance = lambda *a: True\ndef f(x):\n    return 0",
                       ["assert f(2) == 4", "assert isinstance(f(2), str)"]),
    "deep recursion": ("def f(x):\n    return f(x)", ["assert f(2) == 4"]),
    "deep answer": ("def f(x):\n    y = []\n    for _ in range(100000):\n        y = [y]\n    return y", ["assert f(2) == 4"]),
    "an async function not awaited": (ASYNC, ["assert f(1) == 2"]),
    "truth by itself": ("class T:\n    def __bool__(self):\n        return False\ndef f(x):\n    return T()", ["assert f(2)"]),
    "an exception that claims to be the tester's": (
        "class ProgramGoneError(Exception):\n    pass\nclass CannotJudgeError(Exception):\n    pass\ndef f(x):\n    raise CannotJudgeError",
        ["assert f(2) == 4"],
    ),
    "only one of two": (ANY + "def f(x):\n    return 1 if x == 1 else Any()", ["assert f(1) == 2", "assert f(2) == 4"]),
}  # fmt: skip

# What says nothing about the program: these are `None`, the others 0.
NOT_JUDGED = {
    "a helper that nobody has", "not a helper that nobody has", "a reference that nobody has", "np", "pytest",
    "equal to every number", "a dataclass that forgets", "in everything", "less than everything",
    "near to everything", "near from the other side",
}  # fmt: skip

# (program, tests): cannot be judged, whatever the program is.
TESTS_OF_OTHER_KINDS = {
    "a function is handed over": ("def f(g):\n    return g(1)", ["assert f(lambda x: x) == 1"]),
    "printed output": (
        "def f():\n    print('a')",
        ["import io, contextlib\nout = io.StringIO()\nwith contextlib.redirect_stdout(out):\n    f()\nassert out.getvalue() == 'a\\n'"],
    ),
    "sys.stdout": ("def f():\n    print('a')", ["import io, sys\nsys.stdout = io.StringIO()\nf()\nassert sys.stdout.getvalue() == 'a\\n'"]),
    "mock": ("def f():\n    return input()", ["from unittest import mock\nwith mock.patch('builtins.input', return_value='a'):\n    assert f() == 'a'"]),
    "a package that is not here": ("def f():\n    return 1", ["import no_such_package\nassert f() == 1"]),
    "tests that are never called": ("def f():\n    return 1", ["def test_f():\n    assert f() == 1"]),
    "equal by other data": (
        "class R:\n    def __init__(self, a, b):\n        self.a, self.b = a, b\n    def __eq__(self, o):\n"
        "        return self.a * o.b == self.b * o.a\ndef f():\n    return R(1, 2)",
        ["assert f() == R(2, 4)"],
    ),
}  # fmt: skip


def verdicts(cases):
    jobs = [Job(program, tuple(tests)) for program, tests in cases.values()]
    results = SANDBOX.run(jobs)
    return {
        name: (result.all_passed if result.judged else None, result)
        for name, result in zip(cases, results, strict=True)
    }


@pytest.fixture(scope="module")
def judged():
    return verdicts({**RIGHT, **WRONG, **TESTS_OF_OTHER_KINDS})


class TestVerdicts:
    @pytest.mark.parametrize("name", RIGHT)
    def test_python_agrees(self, name, monkeypatch):
        """The list itself: in one process, without any sandbox, these programs pass these tests."""
        program, tests = RIGHT[name]
        module = types.ModuleType("solution")
        monkeypatch.setitem(sys.modules, "solution", module)
        space = module.__dict__
        exec(program, space)
        for test in tests:
            exec(test, space)

    @pytest.mark.parametrize("name", RIGHT)
    def test_right_is_right(self, judged, name):
        assert judged[name][0] is True, judged[name][1]

    @pytest.mark.parametrize("name", WRONG)
    def test_wrong_is_not_right(self, judged, name):
        assert judged[name][0] is (None if name in NOT_JUDGED else False), judged[name][1]

    @pytest.mark.parametrize("name", TESTS_OF_OTHER_KINDS)
    def test_what_cannot_be_judged(self, judged, name):
        assert judged[name][0] is None and judged[name][1].error, judged[name][1]
