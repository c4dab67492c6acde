"""The tester's side, which is trusted: runs the tests against the program and says how each ended."""

import ast
import builtins
import importlib
import json
import os
import sys

from .plain_data import base_of, encode, shorten
from .program import fork_program
from .reading import INTROSPECTION, PACKAGES, RecordAsserts, free_names, helpers, judged_by_itself
from .remote_objects import PLAIN, CannotJudgeError, Program, ProgramGoneError, RemoteError, StoppedCallError


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


def bind(program, tests, job):
    """The names that the tests find, their own setup's aside."""
    space = {"__name__": "tests", "__record__": tests.record, "__reached__": tests.reached.update}
    space["__StoppedCallError__"] = StoppedCallError
    wanted = tests.names - set(dir(builtins)) - {"candidate", job["entry_point"]}
    if not wanted and not job["entry_point"]:
        # The tests name builtins alone, such as a task whose function is called `sum`.
        wanted = tests.names & set(dir(builtins))
    # Tests that rely on the program's `import math` get the real one: `math.isclose` is not the program's to give.
    for name in tests.modules:
        space[name] = importlib.import_module(name)
    for name, module in helpers(tests.all, wanted - tests.modules, job["entry_point"]).items():
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
        kinds = [space[name] for name in given if name[:1].isupper()]
        program.constructors = [getattr(kind, "__remote__", kind) for kind in kinds]
    if name := judged_by_itself(tests.all, {name for name in given if not name[:1].isupper()} | {"candidate"}):
        raise program.cannot_judge(f"the tests use {name} and do not define it: the program would judge itself")
    return space


def run_tests(program, tests, job):
    """Runs the tests and returns the last event if it is not simply the end."""
    space = bind(program, tests, job)
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
