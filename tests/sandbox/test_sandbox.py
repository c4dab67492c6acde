"""The sandbox: attacks fail, limits hold, the verdict cannot be forged, and nothing is left behind."""

import http.server
import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rewards.attacks import ATTACKS, HONEST, LIMITS, TESTS, attack_failed, attack_job, limits_of

from correction_trl.sandbox import Job, Limits, LocalSandbox, RemoteSandbox, SandboxUnavailableError, local
from correction_trl.sandbox.inside import remote_objects
from correction_trl.sandbox.inside.plain_data import decode, encode


ROOT = Path(__file__).parents[2]
PROBLEMS = {isolation: local.try_isolation(isolation) for isolation in ("namespaces", "bubblewrap")}
needs_isolation = pytest.mark.skipif(all(PROBLEMS.values()), reason=f"no isolation here: {PROBLEMS}")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def own_processes() -> list[int]:
    """Processes on this machine that belong to jobs of this process, wherever they have been re-parented to."""
    mine = []
    for entry in os.listdir("/proc"):
        try:
            command = Path(f"/proc/{entry}/cmdline").read_bytes() if entry.isdigit() else b""
        except OSError:
            continue
        if b"import isolate" in command and f'"parent": {os.getpid()}'.encode() in command:
            mine.append(int(entry))
    return mine


@pytest.fixture
def nothing_left(tmp_path_factory, monkeypatch):
    """No process, temporary file or open file stays behind; the kernel may take a moment to end a namespace."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    open_before = len(os.listdir("/proc/self/fd"))
    yield
    deadline = time.monotonic() + 3
    while own_processes() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert own_processes() == []
    assert list(folder.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) <= open_before


@needs_isolation
@pytest.mark.slow
class TestAttacks:
    @pytest.fixture(autouse=True)
    def host(self, tmp_path, monkeypatch, nothing_left):
        """Secrets that an attack could find; all of them are still as they were afterwards."""
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        tmp_path.chmod(0o777)
        for folder in tmp_path.parents[:2]:
            folder.chmod(0o755)
        self.secret = tmp_path / "secret"
        self.secret.write_text("secret")
        self.secret.chmod(0o666)
        yield
        assert self.secret.read_text() == "secret"
        assert [path.name for path in tmp_path.iterdir()] == ["secret"]

    @pytest.mark.parametrize("name", ATTACKS)
    def test_attack_fails_and_harms_no_neighbour(self, name):
        limits = limits_of(name)
        start = time.monotonic()
        jobs = [HONEST, attack_job(name, str(self.secret)), HONEST]
        before, attacked, after = LocalSandbox(limits, workers=2).run(jobs)
        assert attack_failed(name, attacked) == ""
        assert before.all_passed and after.all_passed
        assert time.monotonic() - start < limits.wall_seconds + 3

    def test_files_of_other_items(self):
        leave = (
            "import time\nopen('/tmp/mine', 'w').write('secret')\ntime.sleep(0.5)\nanswer = open('/tmp/mine').read()"
        )
        look = (
            "import os, time\ntime.sleep(0.2)\n"
            "answer = os.listdir('/tmp') + [name for name in os.listdir('/proc') if name.isdigit()]"
        )
        first, second = LocalSandbox(LIMITS, workers=2).run([Job(leave), Job(look)])
        assert first.answer == "secret"
        # Its own process, its tester and their watcher.
        assert sorted(second.answer) == ["1", "2", "3"]

    def test_next_item_finds_an_empty_folder(self):
        sandbox = LocalSandbox(LIMITS, workers=1)
        write, look = Job("open('/tmp/mine', 'w').write('x')"), Job("import os\nanswer = os.listdir('/tmp')")
        assert sandbox.run([write, look])[1].answer == []

    @pytest.mark.skipif(os.getuid() != 0, reason="another user can be tried by root only")
    @pytest.mark.parametrize("isolation", ["namespaces", "bubblewrap"])
    def test_as_a_user_without_rights(self, isolation):
        """Every attack again, as nobody, who isolates by user namespaces or by bubblewrap."""
        user = {"user": 65534, "group": 65534, "extra_groups": [], "cwd": "/"}
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": "/nonexistent"}
        check = (
            "import sys; from correction_trl.sandbox.local import try_isolation; "
            f"assert sys.version_info >= (3, 10); print(try_isolation({isolation!r}))"
        )
        for python in (sys.executable, shutil.which("python3", path="/usr/bin")):
            try:
                command = [python, "-B", "-c", check]
                trial = subprocess.run(command, capture_output=True, text=True, env=environment, **user)
            except (OSError, TypeError):
                continue
            if trial.returncode == 0:
                break
        else:
            pytest.skip("nobody may run no Python here")
        if trial.stdout.strip():
            pytest.skip(f"{isolation} does not work for nobody here: {trial.stdout.strip()}")
        command = [python, "-B", str(ROOT / "tests/rewards/attacks.py"), isolation, str(self.secret)]
        tried = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, **user)
        assert (tried.returncode, tried.stdout.strip()) == (0, ""), tried.stdout + tried.stderr


@needs_isolation
class TestLimits:
    def test_timeout_keeps_what_passed_before(self, nothing_left):
        program = "def f(x):\n    while x == 2:\n        pass\n    return x"
        tests = ("assert f(1) == 1", "assert f(2) == 2", "assert f(3) == 3")
        result = LocalSandbox(Limits(cpu_seconds=5, wall_seconds=0.7)).run([Job(program, tests)])[0]
        assert (result.status, result.passed, result.total, result.all_passed) == ("timeout", 1, 3, False)
        assert result.error == "the program did not end in time"

    def test_cpu_limit_comes_before_a_long_wall_limit(self):
        result = LocalSandbox(Limits(cpu_seconds=1, wall_seconds=20)).run([Job("while True:\n    pass", TESTS)])[0]
        assert result.status == "died" and "SIGKILL" in result.error and result.seconds < 10

    def test_address_space(self):
        """Memory that is asked for and never touched is refused at once, whatever the kernel would promise."""
        program = "import mmap\nanswer = len(mmap.mmap(-1, 2**28))"
        results = [LocalSandbox(Limits(memory_bytes=size)).run([Job(program)])[0] for size in (2**28, 2**30)]
        assert results[0].answer is None and "annot allocate memory" in results[0].error
        assert results[1].answer == 2**28

    def test_shared_memory_counts_once_and_in_full(self):
        """400 of 1,024 MiB are shared among four processes; 1,200 are more than there may be."""
        program = (
            "import mmap, os\nheld = []\ntry:\n    for _ in range({n}):\n"
            "        held.append(mmap.mmap(-1, 400 * 2**20))\n"
            "except OSError as error:\n    answer = len(held), error.errno\nelse:\n"
            "    pids = [os.fork() for _ in range(2)]\n    held[0].write(b'1' * 2**20)\n    if 0 in pids:\n"
            "        os._exit(0)\n    os.wait()\n    answer = len(held), 0\n"
        )
        one, three = LocalSandbox(Limits(memory_bytes=2**30)).run([Job(program.format(n=n)) for n in (1, 3)])
        assert one.answer == (1, 0), one
        assert three.answer == (2, 12), three

    def test_output_is_cut(self):
        result = LocalSandbox(Limits(output_bytes=1000)).run([Job("print('x' * 500)\nprint('y' * 5000)")])[0]
        assert result.status == "output" and len(result.stdout) == 1000 and result.stdout.startswith("x" * 500)

    def test_honest_use_within_limits(self):
        program = (
            "import threading, asyncio, subprocess, tempfile, os, dataclasses, random, collections\n"
            "@dataclasses.dataclass\nclass Point:\n    x: int\n"
            "box = []\nthread = threading.Thread(target=box.append, args=(1,))\nthread.start()\nthread.join()\n"
            "async def two():\n    await asyncio.sleep(0)\n    return 2\nbox.append(asyncio.run(two()))\n"
            "with tempfile.NamedTemporaryFile('w', delete=False) as file:\n    file.write('3')\n"
            "box.append(int(open(file.name).read()))\nbox.append(Point(4).x)\nbox.append(int(input()))\n"
            "pid = os.fork()\nif pid == 0:\n    os._exit(6)\n"
            "box.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
            "answer = box"
        )
        result = LocalSandbox().run([Job(program, stdin="5\n")])[0]
        assert result.answer == [1, 2, 3, 4, 5, 6], result

    def test_large_input_and_output(self):
        program = "import sys\ntext = sys.stdin.read()\nprint(text)\nanswer = len(text)"
        result = LocalSandbox().run([Job(program, stdin="x" * 500_000)])[0]
        assert result.answer == 500_000 and result.stdout == "x" * 500_000 + "\n"

    @pytest.mark.parametrize("name", ["cpu_seconds", "wall_seconds", "memory_bytes", "processes", "output_bytes"])
    def test_limits_must_be_positive(self, name):
        with pytest.raises(ValueError, match=name):
            Limits(**{name: 0})

    def test_same_program_same_verdict(self):
        # Sets of strings are ordered by hash; a verdict must not depend on luck.
        job = Job("answer = list({'a', 'b', 'c', 'd', 'e', 'f'})")
        assert len({tuple(result.answer) for result in LocalSandbox().run([job] * 4)}) == 1

    def test_site_packages(self):
        job = Job("import numpy\nanswer = [int(numpy.arange(4).sum()), numpy.float64(0.5), numpy.eye(2)]")
        without, with_packages = LocalSandbox().run([job])[0], LocalSandbox(site_packages=True).run([job])[0]
        assert "ModuleNotFoundError" in without.error
        assert with_packages.answer == [6, 0.5, [[1.0, 0.0], [0.0, 1.0]]], with_packages


@needs_isolation
class TestVerdict:
    def run(self, program, *tests, **further):
        return LocalSandbox(LIMITS).run([Job(program, tests, **further)])[0]

    def test_share_and_failures(self):
        result = self.run("def f(x):\n    return x * x", "assert f(1) == 1", "assert f(2) == 4", "assert f(3) == 6")
        assert (result.passed, result.total, result.all_passed) == (2, 3, False)
        assert [failure.test for failure in result.failures] == ["assert f(3) == 6"]
        assert result.failures[0].call == "(3) returned 9"

    def test_traceback_is_the_programs(self):
        result = self.run("def f(x):\n    return helper(x)\n\ndef helper(x):\n    return x / 0", "assert f(1) == 1")
        assert result.failures[0].error == "ZeroDivisionError: division by zero"
        trace = result.failures[0].traceback
        assert 'File "<program>", line 5, in helper\n    return x / 0' in trace and "inside" not in trace

    def test_asserts_within_a_function_count_one_each(self):
        setup = (
            "def check(candidate):\n    assert candidate(1) == 1\n"
            "    for i in range(5):\n        assert candidate(i) == i\n    assert candidate(7) == 8\n    assert True"
        )
        result = self.run("def f(x):\n    return x", "check(candidate)", setup=setup, entry_point="f")
        assert (result.passed, result.total) == (2, 3)

    def test_expected_exception(self):
        test = "try:\n    f(-1)\n    assert False\nexcept ValueError:\n    pass"
        assert self.run("def f(x):\n    raise ValueError('negative')", test).all_passed
        assert not self.run("def f(x):\n    return x", test).all_passed

    def test_a_gone_program_is_no_expected_exception(self):
        test = "try:\n    f(-1)\n    ok = False\nexcept Exception:\n    ok = True\nassert ok"
        assert not self.run("import os\ndef f(x):\n    os._exit(0)", test).all_passed

    def test_arguments_changed_in_place(self):
        program = "def f(rows, seen):\n    rows.sort()\n    rows[0].append(9)\n    seen['x'] = {1, (2, 3)}"
        test = "rows, seen = [[3], [1]], {}\nf(rows, seen)\nassert rows == [[1, 9], [3]]\n"
        test += "assert seen == {'x': {1, (2, 3)}}"
        assert self.run(program, test).all_passed

    def test_classes_generators_and_functions(self):
        program = (
            "class Node:\n    def __init__(self, value):\n        self.value, self.next = value, None\n"
            "def length(node):\n    return 0 if node is None else 1 + length(node.next)\n"
            "def naturals():\n    n = 0\n    while True:\n        yield n\n        n += 1\n"
            "def adder(n):\n    return lambda x: x + n\ndef same(x):\n    return x\nLIMIT = 7"
        )
        tests = (
            "assert length(a) == 2 and a.value == 1 and a.next.value == 2",
            "g = naturals()\nassert [next(g), next(g), next(g)] == [0, 1, 2]",
            "assert adder(2)(3) == 5",
            "assert same(a) is a",
            "assert LIMIT == 7",
        )
        result = self.run(program, *tests, setup="a = Node(1)\na.next = Node(2)")
        assert result.all_passed, result

    def test_builtin_names(self):
        # MBPP asks for a function called `sum`; elsewhere, a program must not replace the tests' builtins.
        assert self.run("def sum(a, b):\n    return a + b", "assert sum(10, 15) == 25").all_passed
        cheat = "def set(x):\n    return 1\ndef f(x):\n    return 0"
        assert not self.run(cheat, "assert set(f(2)) == set([1])").all_passed

    def test_modules_of_the_tests_are_not_the_programs(self):
        # MBPP's tests use math.isclose without importing math: the program's import would do.
        test = "assert math.isclose(f(1), 1.0)"
        assert self.run("import math\ndef f(x):\n    return x + 1e-12", test).all_passed
        cheat = "class math:\n    isclose = staticmethod(lambda a, b: True)\ndef f(x):\n    return 0"
        assert not self.run(cheat, test).all_passed
        assert self.run("def copy(x):\n    return x", "assert copy(1) == 1").all_passed

    def test_helpers_of_the_tests_are_not_the_programs(self):
        cheat = "def close(a, b):\n    return True\ndef f(x):\n    return 0"
        assert not self.run(
            cheat, "assert close(f(1), 5)", setup="def close(a, b):\n    return abs(a - b) < 1"
        ).all_passed

    def test_what_cannot_be_handed_over_is_not_judged(self):
        result = self.run("def f(g):\n    return g(1)", "assert f(lambda x: x) == 1")
        assert result.status == "unsupported" and not result.judged and "function" in result.error

    def test_broken_tests_are_not_the_programs_fault(self):
        result = self.run("def f(x):\n    return x", "assert f(1) ==")
        assert result.status == "unsupported" and "cannot be read" in result.error
        result = self.run("def f(x):\n    return x", "assert f(1) == 1", setup="1 / 0")
        assert result.status == "unsupported" and "ZeroDivisionError" in result.error

    @pytest.mark.parametrize(
        ("program", "message"),
        [
            ("def f(x:", "SyntaxError"),
            ("import nothing_like_this", "ModuleNotFoundError"),
            ("x = 1", "NameError"),
            ("raise KeyError('a')", "KeyError"),
            ("\x00", "Error"),
            ("def f(x):\n    return '\\ud800'", ""),
        ],
    )
    def test_broken_programs(self, program, message):
        result = self.run(program, *TESTS)
        assert result.judged and not result.all_passed and result.passed == 0 and result.total == 2
        assert message in result.error + "".join(failure.error for failure in result.failures)

    def test_missing_entry_point(self):
        result = self.run(
            "def g(x):\n    return x", "check(candidate)", setup="def check(c):\n    assert c(1)", entry_point="f"
        )
        assert result.error == "the program does not define f" and not result.all_passed

    def test_huge_integers(self):
        assert self.run("def f(x):\n    return x ** 9000", "assert f(10) == 10 ** 9000").all_passed


plain_data = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.fractions()
    | st.decimals(allow_nan=False),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers(), st.text()), inner)
        | st.sets(st.integers() | st.text())
        | st.frozensets(st.integers())
    ),
    max_leaves=20,
)


def refuse(value):
    raise AssertionError("not plain")


class TestPlainData:
    @given(plain_data)
    @settings(deadline=None)
    def test_round_trip(self, value):
        sent = json.loads(json.dumps(encode(value, refuse)))
        back = decode(sent, refuse)
        assert back == value and type(back) is type(value)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text() | st.floats(),
            lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from("itdszqbacrDFo") | st.text(), inner),
        )
    )
    @settings(deadline=None)
    def test_whatever_the_program_answers_is_data_or_its_end(self, reply):
        requests, results = open(os.devnull, "w"), tempfile.TemporaryFile("w+")
        with requests, results:
            results.write(json.dumps({"value": reply}) + "\n" + json.dumps(reply) + "\n")
            results.seek(0)
            program = remote_objects.Program(requests, results)
            for _ in range(2):
                try:
                    value = program.ask("get", "x")
                except (remote_objects.ProgramGoneError, Exception) as error:
                    assert isinstance(error, (remote_objects.ProgramGoneError, remote_objects.RemoteError)) or hasattr(
                        error, "program_traceback"
                    )
                else:
                    json.dumps(encode(value, lambda remote: repr(type(remote))))


class TestChoice:
    @linux_only
    @needs_isolation
    @pytest.mark.parametrize("place", ["/tmp", "/tmp/", "/tmp/../tmp", "/", "/dev/shm"])
    def test_works_from_any_folder(self, place, monkeypatch, tmp_path):
        """The current folder or HOME may be one that the sandbox has too, as its own."""
        works = [isolation for isolation, problem in PROBLEMS.items() if not problem]
        local.try_isolation.cache_clear()
        before = set(os.listdir("/tmp"))
        monkeypatch.chdir(place)
        monkeypatch.setenv("HOME", place)
        try:
            assert [local.try_isolation(isolation) for isolation in works] == [""] * len(works)
        finally:
            local.try_isolation.cache_clear()
        assert not [name for name in set(os.listdir("/tmp")) - before if name.startswith("written_by")]

    @linux_only
    @needs_isolation
    def test_works_in_a_folder_that_was_deleted(self, monkeypatch, tmp_path):
        gone = tmp_path / "gone"
        gone.mkdir()
        monkeypatch.chdir(gone)
        gone.rmdir()
        local.try_isolation.cache_clear()
        try:
            assert LocalSandbox(LIMITS).run([HONEST])[0].all_passed
        finally:
            local.try_isolation.cache_clear()

    def test_refuses_without_isolation(self, monkeypatch):
        monkeypatch.setattr(local, "try_isolation", lambda isolation: "not permitted")
        with pytest.raises(SandboxUnavailableError, match="allow_unsandboxed: true"):
            LocalSandbox().run([HONEST])

    @linux_only
    def test_runs_unprotected_only_when_told_to(self, monkeypatch, caplog, nothing_left):
        monkeypatch.setattr(local, "try_isolation", lambda isolation: "not permitted")
        with caplog.at_level(logging.WARNING):
            jobs = [HONEST, attack_job("daemonised children"), attack_job("endless loop")]
            honest, daemon, loop = LocalSandbox(LIMITS, allow_unsandboxed=True).run(jobs)
        assert honest.all_passed and daemon.status == "finished" and not loop.all_passed
        assert "WITHOUT isolation" in caplog.text

    def test_none_is_never_chosen_by_mistake(self):
        with pytest.raises(ValueError, match="allow_unsandboxed"):
            LocalSandbox(isolation="none")
        with pytest.raises(ValueError, match="isolation must be"):
            LocalSandbox(isolation="docker")

    @linux_only
    def test_the_trial_notices_missing_isolation(self, tmp_path, monkeypatch):
        """The trial must fail where nothing is isolated, or it would prove nothing."""
        local.try_isolation.cache_clear()
        monkeypatch.setattr(local, "run_one", run_unprotected)
        monkeypatch.setattr(local, "TRIAL", local.TRIAL.replace('"/" + {name!r}', '"/../nowhere/" + {name!r}'))
        try:
            assert "read" in local.try_isolation("namespaces")
        finally:
            local.try_isolation.cache_clear()

    def test_no_jobs(self):
        assert LocalSandbox().run([]) == []

    @needs_isolation
    def test_picklable(self):
        assert pickle.loads(pickle.dumps(LocalSandbox(LIMITS))).run([HONEST])[0].all_passed


run_one = local.run_one


def run_unprotected(job, limits, isolation, site_packages):
    return run_one(job, limits, "none", site_packages)


@needs_isolation
class TestNothingIsLeft:
    def test_many_items(self, nothing_left):
        bad = Job(
            "import os\nif os.fork() == 0:\n    os.setsid()\n    while True:\n        pass\nopen('/tmp/x', 'w')", TESTS
        )
        results = LocalSandbox(LIMITS).run([HONEST, bad] * 15)
        assert all(result.all_passed for result in results[::2])
        assert not any(result.all_passed for result in results[1::2])

    def test_killed_trainer_leaves_no_job(self):
        """A trainer that is killed (SIGKILL) takes its jobs with it."""
        code = (
            "from correction_trl.sandbox import *\n"
            "LocalSandbox().run([Job('')])\n"
            "print('started', flush=True)\n"
            "LocalSandbox(Limits(cpu_seconds=60, wall_seconds=60)).run([Job('import time\\ntime.sleep(60)')] * 2)"
        )
        trainer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
        trainer.stdout.readline()
        mark = f'"parent": {trainer.pid}'.encode()

        def jobs():
            found = []
            for entry in filter(str.isdigit, os.listdir("/proc")):
                try:
                    if mark in Path(f"/proc/{entry}/cmdline").read_bytes():
                        found.append(entry)
                except OSError:
                    pass
            return found

        deadline = time.monotonic() + 20
        while len(jobs()) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert jobs()
        trainer.send_signal(signal.SIGKILL)
        trainer.wait()
        trainer.stdout.close()
        deadline = time.monotonic() + 5
        while jobs() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert jobs() == []

    def test_interrupt_does_not_wait_for_the_jobs(self, nothing_left):
        """Ctrl-C: the jobs that run are killed, those that wait are not started."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
        jobs = [Job("import time\ntime.sleep(60)")] * 6
        sandbox = LocalSandbox(Limits(cpu_seconds=60, wall_seconds=60.0), workers=2)
        sandbox.run([HONEST])
        timer = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        start = time.monotonic()
        try:
            with pytest.raises(KeyboardInterrupt):
                sandbox.run(jobs)
        finally:
            signal.signal(signal.SIGINT, before)
        assert time.monotonic() - start < 10

    def test_from_another_thread(self):
        box = []
        thread = threading.Thread(target=lambda: box.extend(LocalSandbox(LIMITS).run([HONEST] * 2)))
        thread.start()
        thread.join()
        assert [result.all_passed for result in box] == [True, True]


class FakeSandboxFusion(http.server.BaseHTTPRequestHandler):
    """Speaks SandboxFusion's `/run_code`: writes the script to a file and runs it, with no isolation of its own."""

    failures = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.failures:
            self.send_error(self.failures.pop())
            return
        assert self.path == "/run_code" and body["language"] == "python"
        self.server.seen.append((dict(self.headers), body))
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / "main.py"
            script.write_text(body["code"])
            command = [sys.executable, "-S", str(script)]
            try:
                run = subprocess.run(
                    command,
                    input=body["stdin"],
                    capture_output=True,
                    text=True,
                    timeout=body["run_timeout"],
                    cwd=folder,
                )
                outcome = {
                    "status": "Finished",
                    "return_code": run.returncode,
                    "stdout": run.stdout,
                    "stderr": run.stderr,
                }
            except subprocess.TimeoutExpired as expired:
                outcome = {"status": "TimeLimitExceeded", "stdout": (expired.stdout or b"").decode(), "stderr": ""}
        answer = {
            "status": "Success",
            "message": "",
            "compile_result": None,
            "run_result": {**outcome, "execution_time": 0.1},
        }
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeSandboxFusion) as running:
        running.seen = []
        FakeSandboxFusion.failures = []
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@linux_only
class TestRemoteSandbox:
    def address(self, server):
        return f"http://127.0.0.1:{server.server_port}"

    def test_same_verdicts_as_the_local_one(self, server):
        jobs = [
            HONEST,
            Job("def f(x):\n    return x", TESTS + ("assert f(0) == 0",)),
            Job("import os\nos._exit(0)", TESTS),
            Job("print('hello')\nanswer = [1, (2,)]"),
            Job("raise ValueError('no')"),
            Job("x =", TESTS),
            Job("answer = input()", stdin="given"),
            attack_job("__eq__ that is always true"),
            attack_job("printing the expected marker"),
            attack_job("looking for the tests in memory"),
        ]
        remote = RemoteSandbox(self.address(server), LIMITS).run(jobs)
        for here, there in zip(LocalSandbox(LIMITS).run(jobs), remote, strict=True):
            for name in ("status", "passed", "total", "all_passed", "error", "answer", "stdout"):
                assert getattr(there, name) == getattr(here, name), name

    def test_timeout_and_key(self, server, monkeypatch):
        monkeypatch.setenv("SANDBOX_KEY", "key-123")
        sandbox = RemoteSandbox(self.address(server), Limits(wall_seconds=1.0), api_key_env="SANDBOX_KEY")
        program = "def f(x):\n    while x == 2:\n        pass\n    return x"
        result = sandbox.run([Job(program, ("assert f(1) == 1", "assert f(2) == 2"))])[0]
        assert (result.status, result.passed, result.total) == ("timeout", 1, 2)
        headers, body = server.seen[0]
        assert headers["Authorization"] == "Bearer key-123"
        # Neither the tests nor the mark are in the script, which the program could read.
        assert "f(2) == 2" not in body["code"] and json.loads(body["stdin"])["mark"] not in body["code"]
        assert "key-123" not in repr(sandbox)

    def test_a_failing_server_costs_no_zero(self, server, monkeypatch):
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        FakeSandboxFusion.failures = [500, 429]
        assert RemoteSandbox(self.address(server)).run([HONEST])[0].all_passed
        FakeSandboxFusion.failures = [500] * 9
        result = RemoteSandbox(self.address(server)).run([HONEST])[0]
        assert not result.judged and "500" in result.error
        nowhere = RemoteSandbox("http://127.0.0.1:9", retries=0).run([HONEST])[0]
        assert nowhere.status == "sandbox_error" and "127.0.0.1:9" in nowhere.error

    def test_missing_key(self):
        with pytest.raises(ValueError, match="NO_SUCH_KEY"):
            RemoteSandbox("http://localhost", api_key_env="NO_SUCH_KEY").run([HONEST])
