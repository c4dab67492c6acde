"""A local HTTP server that plays enough of the Hugging Face Hub for a push: repositories are created, files arrive as
plain or as LFS objects, commits are checked and kept in memory. `HF_ENDPOINT` points a process to it."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


TOKEN = "hf_" + "standin" * 5  # of a real one's shape, and put together so that no scanner takes it for one
USER = "tester"


class HubStandIn:
    """
    Use as a context manager.

    Attributes:
        repositories (`dict[str, dict[str, bytes]]`):
            Files of each repository, by `user/name`.
        private (`dict[str, str | None]`):
            The visibility that was asked for, by repository.
        requests (`list[tuple[str, str, str | None]]`):
            Method, path and authorization of every request.
        failures (`dict[str, tuple[str, int, str]]`):
            By name of a repository: what shall fail (`"create"`, `"preupload"`, `"lfs"` or `"commit"`), with which
            HTTP status and with which message.
    """

    def __init__(self):
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, str | None] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.failures: dict[str, tuple[str, int, str]] = {}
        self.objects: dict[str, bytes] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._forks = None

    def run(self, code: str) -> subprocess.CompletedProcess:
        """Runs Python with a token for this Hub, in a fork of one process that has imported everything."""
        if self._forks is None:
            self._forks = subprocess.Popen(
                [sys.executable, "-c", FORKS],
                env=online_environment(self.endpoint),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        with tempfile.NamedTemporaryFile("r") as stdout, tempfile.NamedTemporaryFile("r") as stderr:
            job = {"code": code, "stdout": stdout.name, "stderr": stderr.name}
            self._forks.stdin.write(json.dumps(job) + "\n")
            self._forks.stdin.flush()
            status = int(self._forks.stdout.readline())
            return subprocess.CompletedProcess(code, status, stdout.read(), stderr.read())

    def __enter__(self):
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        if self._forks is not None:
            self._forks.communicate()
        self._server.shutdown()
        self._server.server_close()


# For each line a fork runs the code, and a line says its status. A constant of huggingface_hub holds the endpoint: the
# process that imported it serves one Hub.
FORKS = """
import json, os, sys, traceback
import correction_trl.recipe, peft
from correction_trl import CorrectionOptimizationTrainer
for line in sys.stdin:
    job = json.loads(line)
    if pid := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        continue
    for fd, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(job[name], os.O_WRONLY), fd)
    status = 1
    try:
        exec(job["code"], {"__name__": "__main__"})
        status = 0
    except SystemExit as end:
        print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(status)
"""


def online_environment(endpoint: str, token: str | None = TOKEN) -> dict[str, str]:
    """Environment of a process that takes `endpoint` for the Hub."""
    environment = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    no_proxy = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", **no_proxy}
    return environment if token is None else {**environment, "HF_TOKEN": token}


def run_online(command: list[str], endpoint: str, token: str | None = TOKEN) -> subprocess.CompletedProcess:
    """Run a command against the stand-in and capture what it says."""
    environment = online_environment(endpoint, token)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubStandIn

    def log_message(self, *_):
        pass

    def _answer(self, status: int, content: dict | bytes):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status >= 400 and isinstance(content, dict):
            self.send_header("X-Error-Message", content["error"])
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().strip(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _fails(self, step: str, repository: str) -> bool:
        at, status, message = self.hub.failures.get(repository.rpartition("/")[2], (None, 0, ""))
        if at == step:
            self._answer(status, {"error": message})
        return at == step

    def _handle(self):
        hub, body = self.hub, self._body()
        path = self.path.partition("?")[0]
        hub.requests.append((self.command, path, self.headers.get("Authorization")))
        if not path.startswith("/objects/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid username or password."})
        if path == "/api/whoami-v2":
            return self._answer(200, {"name": USER, "type": "user", "orgs": []})
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            repository = f"{asked.get('organization') or USER}/{asked['name']}"
            if self._fails("create", repository):
                return
            if repository in hub.repositories:
                return self._answer(409, {"error": "exists", "url": f"{hub.endpoint}/{repository}"})
            hub.repositories[repository] = {}
            hub.private[repository] = asked.get("visibility")
            return self._answer(200, {"url": f"{hub.endpoint}/{repository}"})
        if match := re.fullmatch(r"/objects/(\w{64})", path):
            if self.command != "PUT" or hashlib.sha256(body).hexdigest() != match[1]:
                return self._answer(400, {"error": "The object is not what was announced."})
            hub.objects[match[1]] = body
            return self._answer(200, b"")
        if match := re.fullmatch(r"/(?:api/models/|api/datasets/|datasets/)?([^/]+/[^/]+?)(?:\.git)?(/.*)?", path):
            repository, rest = match[1], match[2] or ""
            if repository in hub.repositories:
                return self._handle_repository(repository, rest, body)
        return self._answer(404, {"error": "Repository not found"})

    def _handle_repository(self, repository: str, rest: str, body: bytes):
        hub = self.hub
        if rest == "/preupload/main":
            if self._fails("preupload", repository):
                return
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if b"\0" in base64.b64decode(file["sample"]) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files})
        if rest == "/info/lfs/objects/batch":
            if self._fails("lfs", repository):
                return
            objects = [
                {**thing, "actions": {"upload": {"href": f"{hub.endpoint}/objects/{thing['oid']}"}}}
                for thing in json.loads(body)["objects"]
            ]
            return self._answer(200, {"transfer": "basic", "objects": objects})
        if rest == "/commit/main":
            if self._fails("commit", repository):
                return
            files = {}
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    if value["oid"] not in hub.objects:
                        return self._answer(400, {"error": f"The LFS object of {value['path']} was not uploaded."})
                    files[value["path"]] = hub.objects[value["oid"]]
                elif line["key"] != "header":
                    return self._answer(400, {"error": f"The stand-in does not know {line['key']}."})
            hub.repositories[repository].update(files)
            commit = hashlib.sha1(body).hexdigest()
            url = f"{hub.endpoint}/{repository}/commit/{commit}"
            return self._answer(200, {"success": True, "commitOid": commit, "commitUrl": url})
        if rest in ("", "/revision/main"):
            siblings = [{"rfilename": name} for name in hub.repositories[repository]]
            return self._answer(200, {"id": repository, "sha": "0" * 40, "siblings": siblings})
        if (name := rest.removeprefix("/resolve/main/")) in hub.repositories[repository]:
            return self._answer(200, hub.repositories[repository][name])
        return self._answer(404, {"error": "Entry not found"})

    do_GET = do_HEAD = do_POST = do_PUT = _handle
