"""The sandbox on this machine: one short-lived, isolated process tree per job."""

import functools
import json
import logging
import os
import py_compile
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

from .interface import Failure, Job, Limits, Result, SandboxUnavailableError


logger = logging.getLogger(__name__)

GRACE_SECONDS = 5.0  # beyond a job's wall time: for starting, and for the isolated watcher to report
MAX_FAILURES = 20


@dataclass(frozen=True)
class LocalSandbox:
    """
    Runs each job in a process tree of its own: no network, no host files but read-only system libraries, one private
    folder in memory, an empty environment, limits on everything, and all of it gone when the job ends.

    Isolation comes from Linux namespaces and seccomp set up by this package, or from bubblewrap (`bwrap`) where the
    former is not permitted. Which one works is not guessed: the first job of a process is preceded by a trial, in
    which a program tries to read, write, connect and fork, and must fail.

    Args:
        limits ([`Limits`], *optional*):
            What each job may use.
        allow_unsandboxed (`bool`, *optional*, defaults to `False`):
            Where no isolation is available, run with rlimits alone instead of refusing. Programs can then read what
            you can read, write what you can write, and use the network on systems without seccomp.
        workers (`int`, *optional*):
            Jobs at once. Defaults to the number of CPUs this process may use.
        site_packages (`bool`, *optional*, defaults to `False`):
            Let programs import the packages installed beside this one (numpy, sympy), read-only.
        isolation (`str`, *optional*, defaults to `"auto"`):
            `"namespaces"`, `"bubblewrap"`, `"none"`, or `"auto"`: the first of these that passes its trial.

    Raises:
        SandboxUnavailableError: from `run`, where nothing passes and `allow_unsandboxed` is not set.

    Example:

    ```python
    >>> from correction_trl.sandbox import Job, LocalSandbox

    >>> sandbox = LocalSandbox()
    >>> sandbox.run([Job(program="answer = 6 * 7")])[0].answer
    42
    ```
    """

    limits: Limits = field(default_factory=Limits)
    allow_unsandboxed: bool = False
    workers: int | None = None
    site_packages: bool = False
    isolation: str = "auto"

    def __post_init__(self):
        if self.isolation not in ("auto", "namespaces", "bubblewrap", "none"):
            raise ValueError(
                f"isolation must be 'auto', 'namespaces', 'bubblewrap' or 'none', got {self.isolation!r}."
            )
        if self.isolation == "none" and not self.allow_unsandboxed:
            raise ValueError("isolation='none' runs model-written code unprotected: set allow_unsandboxed=True too.")

    def run(self, jobs: list[Job]) -> list[Result]:
        """Runs every job, `workers` at a time; one result per job, in order."""
        if not jobs:
            return []
        isolation = self.isolation if self.isolation != "auto" else self._choose()
        if isolation in ("namespaces", "bubblewrap") and self.isolation != "auto":
            problem = try_isolation(isolation)
            if problem:
                raise SandboxUnavailableError(f"isolation={isolation!r} does not work here: {problem}.")
        workers = self.workers or usable_cpus()
        running = Running()
        # A thread per running job, alive until its job has ended: the kernel kills a job whose thread is gone.
        with ThreadPoolExecutor(max_workers=min(workers, len(jobs))) as pool:
            try:
                return list(
                    pool.map(lambda job: run_one(job, self.limits, isolation, self.site_packages, running), jobs)
                )
            except BaseException:
                running.stop()  # Ctrl-C must not wait for the jobs that run, nor start others
                raise

    def _choose(self) -> str:
        problems = []
        for isolation in ("namespaces", "bubblewrap"):
            problem = try_isolation(isolation)
            if not problem:
                return isolation
            problems.append(f"{isolation}: {problem}")
        if self.allow_unsandboxed:
            warn_unsandboxed("; ".join(problems))
            return "none"
        raise SandboxUnavailableError(
            f"No isolation for model-written code is available here ({'; '.join(problems)}). Use a RemoteSandbox, "
            "install bubblewrap, allow user namespaces, or accept the risk with `allow_unsandboxed: true`."
        )


def usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class Running:
    """The processes of one call of `run`, so that it can be given up at once."""

    def __init__(self):
        self.lock = threading.Lock()
        self.processes = set()
        self.stopped = False

    def start(self, *arguments, **options) -> subprocess.Popen | None:
        with self.lock:
            if self.stopped:
                return None
            process = subprocess.Popen(*arguments, **options)
            self.processes.add(process)
            return process

    def ended(self, process: subprocess.Popen):
        with self.lock:
            self.processes.discard(process)

    def stop(self):
        with self.lock:
            self.stopped = True
            for process in self.processes:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)


def run_one(job: Job, limits: Limits, isolation: str, site_packages: bool, running: Running | None = None) -> Result:
    """Runs one job in one process tree and waits for its end. Never raises because of the program."""
    running = running or Running()
    with (
        tempfile.TemporaryDirectory(prefix="correction_trl_sandbox_") if isolation == "none" else _NoFolder() as folder
    ):
        config = {
            "limits": asdict(limits),
            "isolation": isolation,
            "read_only": visible_folders(site_packages),
            "import_paths": list(package_folders()) if site_packages else [],
            "parent": os.getpid(),
        }
        package = compiled_package()
        # -S -s: no site packages and none of their start-up hooks; the environment below is the whole environment.
        # Imported, not run by path, so that the compiled files are used: compiling takes longer than all the rest.
        start = "import sys; sys.path.insert(0, sys.argv[1]); from inside import isolate; isolate.main()"
        command = [sys.executable, "-S", "-s", "-B", "-c", start, package, json.dumps(config)]
        if isolation == "bubblewrap":
            command = bubblewrap_command(config, package, limits) + command
        process = running.start(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(folder or "/tmp"),
            cwd=folder or "/",
            start_new_session=True,  # Ctrl-C in the trainer's terminal is the trainer's to handle
            close_fds=True,
        )
        if process is None:
            return Result(status="sandbox_error", error="interrupted")
        try:
            stdout, stderr = process.communicate(
                json.dumps(asdict(job)).encode(), timeout=limits.wall_seconds + GRACE_SECONDS
            )
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return Result(status="timeout", error=f"killed after {limits.wall_seconds + GRACE_SECONDS:g} seconds")
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        finally:
            running.ended(process)
    try:
        report = json.loads(stdout)
    except ValueError:
        last = stderr.decode(errors="replace").strip().rpartition("\n")[2]
        return Result(status="sandbox_error", error=last or f"the sandbox ended with code {process.returncode}")
    if report["status"] == "sandbox_error":
        return Result(status="sandbox_error", error=report["error"])
    return read_events(report, is_script=job.tests is None)


class _NoFolder:
    """Stands in for the temporary folder where the isolation brings its own."""

    def __enter__(self):
        return None

    def __exit__(self, *_):
        return None


def environment(home: str) -> dict[str, str]:
    """All that a program can read in `os.environ`. Hashing is fixed: the same program gives the same verdict."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": home,
        "TMPDIR": home,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        # A thread per CPU would soon meet the limit on processes.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


@functools.lru_cache
def compiled_package() -> str:
    """The folder of this package, with what runs inside compiled: the isolated Python must not write there."""
    package = os.path.dirname(os.path.abspath(__file__))
    inside = os.path.join(package, "inside")
    for name in os.listdir(inside):
        try:
            if name.endswith(".py"):
                py_compile.compile(os.path.join(inside, name))
        except OSError:
            pass  # an installation that is read-only, and compiled already or a little slower
    return package


@functools.lru_cache
def package_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return tuple(dict.fromkeys((paths["purelib"], paths["platlib"])))


@functools.lru_cache
def visible_folders(site_packages: bool) -> list[tuple[str, str]]:
    """Host folders that a program may read: (real path, path it appears at). System libraries and Python's own."""
    wanted = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/nix/store"]
    # Python itself, wherever it lies; not a virtual environment's folder, where the installed packages are.
    wanted += [os.path.join(sys.base_prefix, "lib"), os.path.join(sys.base_exec_prefix, "lib")]
    wanted += [sysconfig.get_path("stdlib")]
    if site_packages:
        wanted += package_folders()
    found = []
    for path in dict.fromkeys(wanted):
        covered = any(path == seen or path.startswith(seen + "/") for _, seen in found)
        if os.path.isdir(path) and not covered:
            found.append((os.path.realpath(path), path))
    return found


def bubblewrap_command(config: dict, package: str, limits: Limits) -> list[str]:
    command = ["bwrap", "--unshare-all", "--die-with-parent", "--as-pid-1", "--cap-drop", "ALL", "--new-session"]
    command += ["--proc", "/proc", "--dev", "/dev", "--size", str(limits.file_bytes), "--tmpfs", "/tmp"]
    # After the private folder, in which any of these may lie.
    python = (os.path.realpath(sys.executable), sys.executable)
    for source, target in [*config["read_only"], python, (package, package)]:
        command += ["--ro-bind", source, target]
    # Its root and /dev lie in memory that nothing counts.
    command += ["--remount-ro", "/dev", "--remount-ro", "/"]
    return command + ["--chdir", "/tmp", "--hostname", "sandbox", "--"]


def read_events(report: dict, is_script: bool) -> Result:
    """Puts a [`Result`] together from what the tester said and how the watcher saw the job end."""
    passed, failed, failures, total, done, gone, answer, unsupported = set(), set(), [], 0, None, "", None, ""
    for line in report["events"].splitlines():
        try:
            event = whole_characters(json.loads(line))
        except ValueError:
            break  # cut off when the tester was killed
        total = event.get("total", total)
        if "passed" in event:
            passed.add(event["passed"])
        gone = event.get("gone", gone)
        if "failed" in event:
            failed.add(event["failed"])
            failures.append(Failure(event["test"], event["error"], event["traceback"], event["call"]))
        if event.get("done"):
            done = event
            answer = event.get("answer")
            unsupported = event.get("unsupported", "")
    status, error = report["status"], ""
    if status == "finished" and done is None:
        status = "died"
        error = gone or "the tests were stopped before their end"
        if report.get("signal"):
            error = f"the program was killed by {signal.Signals(report['signal']).name}"
            if report["signal"] == signal.SIGKILL:
                error += " (out of CPU time, or by itself)"
    elif unsupported:
        status, error = "unsupported", unsupported
    elif done is not None:
        error = done.get("error", "")
    if status in ("timeout", "memory", "output"):
        error = {
            "timeout": "the program did not end in time",
            "memory": "the program used too much memory",
            "output": "the program printed too much",
        }[status]
    if answer is not None:
        try:
            answer = decode_plain(answer)
        except (ValueError, TypeError, ArithmeticError, RecursionError):
            answer, error = None, error or "the variable `answer` is not plain data"
    all_passed = not is_script and status == "finished" and not error and not failures and done is not None
    return Result(
        status=status,
        # An assert in a loop may pass first and fail later.
        passed=total if all_passed else min(len(passed - failed), total - 1) if total else 0,
        total=total,
        all_passed=all_passed,
        failures=failures[:MAX_FAILURES],
        error=error,
        traceback=(done or {}).get("traceback", ""),
        answer=answer,
        stdout=report["stdout"],
        stderr=report["stderr"],
        seconds=report["seconds"],
    )


def whole_characters(data):
    """The same data with every half of a character (a lone surrogate) replaced: no tokenizer can read one."""
    if isinstance(data, str):
        return data if data.isascii() else data.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(data, list):
        return [whole_characters(item) for item in data]
    if isinstance(data, dict):
        return {whole_characters(key): whole_characters(item) for key, item in data.items()}
    return data


def decode_plain(data):
    from .inside.plain_data import decode

    def refuse(tag, body):
        raise ValueError("not plain data")

    return decode(data, refuse)


@functools.lru_cache
def warn_unsandboxed(problems: str):
    logger.warning("Running model-written code WITHOUT isolation, as allow_unsandboxed is set (%s).", problems)


# What a program must not be able to do. It reports what it could; the trial passes if that is nothing.
TRIAL = """
import os, socket
could = []
for path in {secrets!r}:
    try:
        open(path).read()
        could.append("read " + path)
    except OSError:
        pass
for folder in {folders!r}:
    try:
        open(folder + "/" + {name!r}, "w").close()
        if os.path.realpath(folder) != "/tmp":  # the private folder; the host's of that name is looked at outside
            could.append("write in " + folder)
    except OSError:
        pass
try:
    socket.socket()
    could.append("open a socket")
except OSError:
    pass
try:
    os.kill({parent}, 0)
    could.append("see the host's processes")
except OSError:
    pass
children = 0
try:
    while children < {processes} + 20:
        if os.fork() == 0:
            import time
            time.sleep(5)
            os._exit(0)
        children += 1
    could.append("start more processes than allowed")
except OSError:
    pass
if os.getuid() == 0 or "CORRECTION_TRL_TRIAL" in os.environ:
    could.append("be root or read the environment")
answer = could
"""


@functools.lru_cache
def try_isolation(isolation: str) -> str:
    """Tries whether an isolation holds on this machine. Returns what is wrong with it, or `""`. Asked once."""
    if sys.platform != "linux":
        return f"needs Linux, this is {sys.platform}"
    if isolation == "bubblewrap" and shutil.which("bwrap") is None:
        return "bwrap is not installed"
    with tempfile.TemporaryDirectory(prefix="correction_trl_sandbox_") as folder:
        secret = os.path.join(folder, "secret")
        with open(secret, "w") as file:
            file.write("secret")
        os.chmod(folder, 0o777)
        os.chmod(secret, 0o666)
        limits = Limits(processes=4)
        folders = [folder, "/", "/usr/lib", "/etc", os.path.expanduser("~"), "/dev", "/proc", "/tmp"]
        try:
            folders.append(os.getcwd())
        except FileNotFoundError:
            pass  # it was deleted
        name = f"written_by_{os.path.basename(folder)}"
        program = TRIAL.format(
            secrets=[secret, "/etc/passwd", f"/proc/{os.getpid()}/environ"],
            folders=folders,
            name=name,
            parent=os.getpid() if os.getpid() > 40 else os.getppid(),
            processes=limits.processes,
        )
        result = run_one(Job(program=program), limits, isolation, site_packages=False)
        if result.status == "sandbox_error":
            return result.error
        if result.error or not isinstance(result.answer, list):
            return f"the trial program ended with {result.status}: {result.error}"
        written = [path for path in {os.path.join(place, name) for place in folders} if os.path.exists(path)]
        for path in written:
            os.remove(path)
        if written or os.listdir(folder) != ["secret"]:
            return "a program could write outside of its folder"
        return "" if not result.answer else "a program could " + ", ".join(map(str, result.answer))
