"""What goes into a sandbox and what comes out of it. Every sandbox has one method: `run(jobs) -> results`."""

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Limits:
    """
    What one job may use. A job that goes over a limit is killed with everything it started, and costs only itself.

    Args:
        cpu_seconds (`int`, *optional*, defaults to `5`):
            CPU time of each process, in seconds. The kernel enforces it with a signal that cannot be caught.
        wall_seconds (`float`, *optional*, defaults to `10.0`):
            Time from start to end of the whole job, in seconds.
        memory_bytes (`int`, *optional*, defaults to `1 GiB`):
            Address space of each process, and memory of all processes of the job together: what is private to them,
            and the full length of every shared mapping that the job ever made.
        processes (`int`, *optional*, defaults to `8`):
            Processes and threads that the program may have at once.
        output_bytes (`int`, *optional*, defaults to `1 MiB`):
            What the program may print, stdout and stderr each.
        file_bytes (`int`, *optional*, defaults to `16 MiB`):
            Size of the private temporary folder (in memory), and of any one file in it.
    """

    cpu_seconds: int = 5
    wall_seconds: float = 10.0
    memory_bytes: int = 2**30
    processes: int = 8
    output_bytes: int = 2**20
    file_bytes: int = 2**24

    def __post_init__(self):
        for name in ("cpu_seconds", "wall_seconds", "memory_bytes", "processes", "output_bytes", "file_bytes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"Limits.{name} must be greater than 0, got {getattr(self, name)}.")


@dataclass(frozen=True)
class Job:
    """
    One program, and what to do with it.

    With `tests`, the program is loaded in one process and the tests run in another, which calls the program's
    functions over a pipe and gets plain data back: the program can neither see the tests nor touch what judges them.
    Without `tests`, the program is run as a script and its variable `answer` is read.

    Args:
        program (`str`):
            Python source written by the model.
        tests (`tuple[str, ...]`, *optional*):
            Trusted test statements, run one after the other.
        setup (`str`, *optional*, defaults to `""`):
            Trusted source that the tests need, run before them and beside them, not beside the program.
        entry_point (`str`, *optional*):
            The function under test. Tests may also call it `candidate` (the HumanEval convention).
        stdin (`str`, *optional*, defaults to `""`):
            What the program reads from its standard input.
    """

    program: str
    tests: tuple[str, ...] | None = None
    setup: str = ""
    entry_point: str | None = None
    stdin: str = ""


@dataclass(frozen=True)
class Failure:
    """A test that did not pass: its source, the error's last line, and the end of the program's traceback."""

    test: str
    error: str
    traceback: str = ""
    call: str = ""


@dataclass(frozen=True)
class Result:
    """
    What came of one [`Job`].

    Args:
        status (`str`):
            `"finished"`: it ran to its end (well or not). `"timeout"`, `"memory"`, `"output"`: killed over that
            limit. `"died"`: a process ended before its work was done (a signal, `os._exit`, the CPU limit).
            `"unsupported"`: the tests need something that cannot be handed to the program or compared here.
            `"sandbox_error"`: the sandbox itself failed; `error` says how. The last two say nothing about the program.
        passed (`int`):
            Tests that passed. A test is an `assert` statement that ran and never failed, or a whole test where there
            are no asserts.
        total (`int`):
            Tests in all; 0 for a job without tests.
        all_passed (`bool`):
            Whether every test passed and none ended early.
        failures (`list[Failure]`):
            What did not pass, in order, at most 20.
        error (`str`):
            Why the program or the sandbox failed, in one line; empty where nothing failed.
        traceback (`str`):
            The end of the program's traceback, where it raised while it was loaded or run.
        answer:
            The program's variable `answer` as plain data; `None` where it has none.
        stdout (`str`), stderr (`str`):
            What the program printed, up to the limit.
        seconds (`float`):
            Wall time of the job.
    """

    status: str
    passed: int = 0
    total: int = 0
    all_passed: bool = False
    failures: list[Failure] = field(default_factory=list)
    error: str = ""
    traceback: str = ""
    answer: object = None
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0

    @property
    def judged(self) -> bool:
        """Whether the result says something about the program."""
        return self.status not in ("sandbox_error", "unsupported")


class Sandbox(Protocol):
    """Anything with this method is a sandbox: [`LocalSandbox`], [`RemoteSandbox`], or your own."""

    def run(self, jobs: list[Job]) -> list[Result]:
        """Runs each job apart from the others; one result per job, in order. Never raises because of a program."""
        ...


class SandboxUnavailableError(RuntimeError):
    """This machine offers no isolation that passed its own test."""
