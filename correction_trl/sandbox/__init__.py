"""
Runs code that a model wrote, in a process that can harm nothing: see `docs/rewards.md` for what is promised.

`LocalSandbox` uses Linux namespaces (or bubblewrap), seccomp and rlimits; `RemoteSandbox` speaks to a SandboxFusion
server. Both have one method, `run(jobs)`.
"""

from .interface import Failure, Job, Limits, Result, Sandbox, SandboxUnavailableError
from .local import LocalSandbox
from .remote import RemoteSandbox


__all__ = [
    "Failure",
    "Job",
    "Limits",
    "LocalSandbox",
    "RemoteSandbox",
    "Result",
    "Sandbox",
    "SandboxUnavailableError",
]
