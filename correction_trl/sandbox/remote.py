"""A sandbox elsewhere: a SandboxFusion server, or anything with the same `/run_code`."""

import json
import logging
import os
import secrets
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .interface import Job, Limits, Result
from .local import read_events


logger = logging.getLogger(__name__)

# The script that is sent: the package `inside`, from its text.
PACKAGE = """
import importlib.abc, importlib.machinery, sys

SOURCES = {sources!r}

class Finder(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    def find_spec(self, name, path=None, target=None):
        stem = name.removeprefix("inside.") if name != "inside" else "__init__"
        if name.startswith("inside") and stem in SOURCES:
            return importlib.machinery.ModuleSpec(name, self, origin="inside", is_package=stem == "__init__")

    def get_source(self, name):
        return SOURCES["__init__" if name == "inside" else name.removeprefix("inside.")]

    def exec_module(self, module):
        name = module.__name__
        module.__file__ = "inside/" + name
        exec(compile(self.get_source(name), module.__file__, "exec"), module.__dict__)

sys.meta_path.insert(0, Finder())
from inside.tester import main_remote
main_remote({limits!r})
"""


@dataclass(frozen=True)
class RemoteSandbox:
    """
    Runs jobs on a [SandboxFusion](https://bytedance.github.io/SandboxFusion/) server. Isolation is the server's; the
    verdict is made as in [`LocalSandbox`], by a tester in a process of its own, and its lines carry a mark that the
    program cannot know.

    Args:
        url (`str`):
            Address of the server, without `/run_code`, such as `"http://localhost:8080"`.
        limits ([`Limits`], *optional*):
            What each job may use; `processes` is the server's affair.
        workers (`int`, *optional*, defaults to `8`):
            Requests at once.
        api_key_env (`str`, *optional*):
            Name of the environment variable that holds the key; it is sent as a bearer token. The key itself is never
            part of this object, so that it reaches no log and no card.
        retries (`int`, *optional*, defaults to `2`):
            Further attempts when the server cannot be reached, is busy (429) or fails (5xx).

    A server that stays out of reach gives results with status `"sandbox_error"` (not judged), never a zero.

    Example:

    ```python
    >>> from correction_trl.sandbox import Job, RemoteSandbox

    >>> sandbox = RemoteSandbox("http://localhost:8080")
    >>> sandbox.run([Job(program="answer = 6 * 7")])[0].answer  # doctest: +SKIP
    42
    ```
    """

    url: str
    limits: Limits = field(default_factory=Limits)
    workers: int = 8
    api_key_env: str | None = None
    retries: int = 2

    def run(self, jobs: list[Job]) -> list[Result]:
        """Sends every job, `workers` at a time; one result per job, in order."""
        if self.api_key_env and not os.environ.get(self.api_key_env):
            raise ValueError(f"The environment variable {self.api_key_env} (api_key_env) is not set.")
        if not jobs:
            return []
        with ThreadPoolExecutor(max_workers=min(self.workers, len(jobs))) as pool:
            return list(pool.map(self._run_one, jobs))

    def _run_one(self, job: Job) -> Result:
        mark = secrets.token_hex(16)
        limits = {
            "RLIMIT_CPU": self.limits.cpu_seconds,
            "RLIMIT_AS": self.limits.memory_bytes,
            "RLIMIT_FSIZE": self.limits.file_bytes,
            "RLIMIT_CORE": 0,
            "output_bytes": self.limits.output_bytes,
        }
        sources = {path.stem: path.read_text() for path in Path(__file__).with_name("inside").glob("*.py")}
        del sources["isolate"]
        body = {
            "code": PACKAGE.format(sources=sources, limits=limits),
            "language": "python",
            # The tests and the mark come by stdin, read after the program's process was forked: it never sees them.
            "stdin": json.dumps({**asdict(job), "mark": mark}),
            "run_timeout": self.limits.wall_seconds,
        }
        try:
            answer = self._post(body)
            run = answer["run_result"] or {}
            if answer["status"] == "SandboxError":
                return Result(status="sandbox_error", error=f"{self.url}: {answer['message']}")
            timed_out = run["status"] == "TimeLimitExceeded"
            events, printed = [], {"stdout": "", "stderr": ""}
            for line in (run["stdout"] or "").splitlines():
                if line.startswith(mark + " "):
                    event = json.loads(line[len(mark) :])
                    printed.update({name: event[name] for name in printed if name in event})
                    events.append(line[len(mark) + 1 :])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return Result(status="sandbox_error", error=f"{self.url}: {type(error).__name__}: {error}")
        report = {
            "status": "timeout" if timed_out else "finished",
            "events": "\n".join(events),
            "seconds": float(run.get("execution_time") or 0.0),
            **printed,
        }
        return read_events(report, is_script=job.tests is None)

    def _post(self, body: dict) -> dict:
        headers = {"Content-Type": "application/json"}
        if self.api_key_env:
            headers["Authorization"] = f"Bearer {os.environ[self.api_key_env]}"
        request = urllib.request.Request(f"{self.url.rstrip('/')}/run_code", json.dumps(body).encode(), headers)
        for attempt in range(self.retries + 1):
            try:
                with urllib.request.urlopen(request, timeout=self.limits.wall_seconds + 30) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                if attempt == self.retries or not (error.code == 429 or error.code >= 500):
                    raise
            except OSError:
                if attempt == self.retries:
                    raise
            time.sleep(2.0**attempt)
