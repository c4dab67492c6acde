"""What can be known of tests by reading them, and how their asserts are made to report."""

import ast
import sys


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


def helpers(trees, names, entry_point):
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
    if not tested and not entry_point:
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
