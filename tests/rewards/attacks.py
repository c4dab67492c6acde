# ruff: noqa: E501
"""
Programs that attack the sandbox. Standard library only: also run by an interpreter without the test packages.

Each is (name, program, tests or None, statuses that may come of it). With tests, winning is `all_passed`; without, it
is anything in `answer`.
"""

import os
import sys
from dataclasses import replace

from correction_trl.sandbox import Job, Limits, LocalSandbox


LIMITS = Limits(cpu_seconds=1, wall_seconds=2.0, memory_bytes=2**28, processes=6, output_bytes=2**16)
TESTS = ("assert f(3) == 4", "assert f(10) == 11")
HONEST = Job("def f(x):\n    return x + 1", tests=TESTS)

ATTACKS = {
    # Using things up.
    "fork bomb": ("import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass", TESTS,
                  ("timeout", "died")),
    "thread bomb": ("import threading, time\nn = 0\ntry:\n    while n < 500:\n        "
                    "threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\n        n += 1\n"
                    "except RuntimeError:\n    pass\nanswer = n if n > 20 else None", None, ("finished", "timeout")),
    "endless loop": ("while True:\n    pass", TESTS, ("timeout", "died")),
    "endless loop in a call": ("def f(x):\n    while True:\n        pass", TESTS, ("timeout", "died")),
    "endless sleep": ("import time\ntime.sleep(1e6)", TESTS, ("timeout",)),
    "100 GB at once": ("x = bytearray(100 * 2**30)\nanswer = len(x)", None, ("finished",)),
    "100 GB by growing": ("x = []\nwhile True:\n    x.append(bytes(2**20))", TESTS, ("finished", "memory", "died")),
    "memory of many children": (
        "import os, time\nfor _ in range(4):\n    if os.fork() == 0:\n        x = b'1' * (100 * 2**20)\n"
        "        time.sleep(9)\ntime.sleep(9)", TESTS, ("memory",)),
    **{
        f"shared memory, {name}": (
            "import ctypes, mmap, os, time\nlibc = ctypes.CDLL(None)\nlibc.mmap.restype = ctypes.c_void_p\n"
            "size, piece = 120 * 2**20, 2**22\nchunk, held = b'1' * piece, 0\ndef hold():\n" + hold + "\n"
            "r, w = os.pipe()\nfor _ in range(3):\n    if os.fork() == 0:\n        try:\n            kept = hold()\n"
            "            os.write(w, b'1')\n            time.sleep(9)\n        except BaseException:\n"
            "            os.write(w, b'0')\n        os._exit(0)\n    held += int(os.read(r, 1))\n"
            "answer = held if held == 3 else None", None, ("memory", "finished", "timeout"))
        for name, hold in {
            "kept": "    m = mmap.mmap(-1, size)\n    for i in range(0, size, piece):\n        m[i:i + piece] = chunk\n"
                    "    return m",
            "out of the page tables": "    m = mmap.mmap(-1, size)\n    for i in range(0, size, piece):\n"
                                      "        m[i:i + piece] = chunk\n        m.madvise(mmap.MADV_DONTNEED, i, piece)\n"
                                      "    return m",
            "all but a page unmapped": "    p = libc.mmap(None, ctypes.c_size_t(size), 3, 0x21, -1, 0)\n"
                                       "    if p in (None, 2**64 - 1):\n        raise OSError\n"
                                       "    for i in range(piece, size, piece):\n"
                                       "        ctypes.memset(p + i, 1, piece)\n"
                                       "        libc.munmap(ctypes.c_void_p(p + i), ctypes.c_size_t(piece))",
            "of /dev/zero": "    m = mmap.mmap(os.open('/dev/zero', os.O_RDWR), size)\n"
                            "    for i in range(0, size, piece):\n        m[i:i + piece] = chunk\n"
                            "        m.madvise(mmap.MADV_DONTNEED, i, piece)\n    return m",
            "memfd": "    fd = os.memfd_create('x')\n    for i in range(0, size, piece):\n        os.write(fd, chunk)\n"
                     "    return fd",
            "System V": "    n = libc.shmget(0, ctypes.c_size_t(size), 0o1666)\n    if n < 0:\n        raise OSError",
            "/dev/shm": "    with open(f'/dev/shm/{os.getpid()}', 'wb') as file:\n        for i in range(0, size, piece):\n"
                        "            file.write(chunk)",
            "files": "    for i in range(30):\n        with open(f'/tmp/{os.getpid()}_{i}', 'wb') as file:\n"
                     "            file.write(chunk)",
        }.items()
    },
    "1 GB of output": ("import os\nfor _ in range(2**14):\n    os.write(1, b'x' * 2**16)", TESTS,
                       ("output", "died")),
    "1 GB of errors": ("import os\nfor _ in range(2**14):\n    os.write(2, b'x' * 2**16)", TESTS,
                       ("output", "died")),
    "1 GB file": ("with open('big', 'wb') as file:\n    for _ in range(2**14):\n        file.write(b'x' * 2**16)\n"
                  "answer = 'written'", None, ("finished", "died")),
    "many files": ("for n in range(10**6):\n    open(f'/tmp/{n}', 'w').close()\nanswer = 'written'", None,
                   ("finished", "died", "timeout")),
    "huge answer": ("answer = ['x' * 2**20] * 64", None, ("died", "finished", "memory")),
    "deep recursion": ("import sys\nsys.setrecursionlimit(10**9)\ndef f(x):\n    return f(x) + 1", TESTS,
                       ("died", "finished", "timeout", "memory")),
    "deep nesting": ("x = []\nfor _ in range(10**5):\n    x = [x]\nanswer = x", None, ("finished", "died")),
    "crash": ("import ctypes\nctypes.string_at(0)", TESTS, ("died",)),
    # Not dying.
    "catching the timeout": (
        "import time\nwhile True:\n    try:\n        time.sleep(100)\n    except BaseException:\n        pass", TESTS,
        ("timeout",)),
    "signals ignored": (
        "import signal, time\nfor number in range(1, 65):\n    try:\n        signal.signal(number, signal.SIG_IGN)\n"
        "    except (OSError, ValueError):\n        pass\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\n"
        "while True:\n    pass", TESTS, ("timeout", "died")),
    "daemonised children": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        while True:\n"
        "            time.sleep(1)\n    os._exit(0)\nanswer = None", None, ("finished",)),
    "daemonised child holds the output": (
        "import os, time\nif os.fork() == 0:\n    os.setpgid(0, 0)\n    time.sleep(100)\nraise SystemExit", TESTS,
        ("finished",)),
    # Reaching outside.
    "host environment": (
        "import os\nanswer = [v for v in os.environ.values() if 'secret' in v]\nfor pid in range(1, 5):\n    try:\n"
        "        answer.append(open(f'/proc/{pid}/environ').read().find('secret') >= 0)\n    except OSError:\n"
        "        pass\nanswer = [a for a in answer if a]", None, ("finished",)),
    "host home": (
        "import os\nanswer = []\nfor folder in ('HOST_HOME', '/root', '/home', 'HOST_CWD', '/etc', '/var', '/mnt'):\n"
        "    for base, folders, files in os.walk(folder if folder != '/' else '/nowhere'):\n"
        "        folders[:] = [name for name in folders if name != 'lib']\n"
        "        answer += [os.path.join(base, name) for name in files]", None,
        ("finished",)),
    "host files": ("try:\n    answer = open('SECRET_FILE').read()\nexcept OSError:\n    answer = None", None,
                   ("finished",)),
    "write outside": (
        "import os\nanswer = []\nfor folder in ('SECRET_FOLDER', 'HOST_HOME', '/', '/usr/lib', '/etc', '/dev',\n"
        "               '/proc', '/var/tmp', '/dev/shm', os.path.dirname(os.__file__)):\n    try:\n"
        "        open(folder + '/written_by_attack', 'w').close()\n        answer.append(folder)\n"
        "    except OSError:\n        pass", None, ("finished",)),
    "change system files": (
        "import os\nanswer = []\nfor act in (lambda: os.remove(os.__file__), lambda: os.chmod(os.__file__, 0o777),\n"
        "            lambda: os.rename('/usr/lib', '/usr/gone'), lambda: os.utime(os.__file__)):\n    try:\n"
        "        act()\n        answer.append(1)\n    except OSError:\n        pass", None, ("finished",)),
    "sockets": (
        "import socket\nanswer = []\nfor family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX,\n"
        "               socket.AF_NETLINK, socket.AF_PACKET):\n    try:\n        socket.socket(family)\n"
        "        answer.append(str(family))\n    except OSError:\n        pass", None, ("finished",)),
    "name resolution": ("import socket\ntry:\n    answer = socket.getaddrinfo('huggingface.co', 443)\n"
                        "except OSError:\n    answer = None", None, ("finished",)),
    "new namespaces and mounts": (
        "import ctypes\nlibc = ctypes.CDLL(None)\nanswer = [n for n, arguments in (\n"
        "    (272, (0x10000000,)), (165, (b'none', b'/tmp', b'tmpfs', 0, None)), (101, (0, 0, 0, 0)),\n"
        "    (161, (b'/tmp',)), (56, (0x10000011, 0, 0, 0, 0)), (321, (0, 0, 0)), (425, (1, 0)))\n"
        "    if libc.syscall(n, *arguments) >= 0]", None, ("finished",)),
    "regain rights": ("import os\nanswer = []\nfor act in (lambda: os.setuid(0), lambda: os.setgroups([0]),\n"
                      "            lambda: os.setresuid(0, 0, 0), lambda: os.nice(-5)):\n    try:\n        act()\n"
                      "        answer.append(1)\n    except OSError:\n        pass", None, ("finished",)),
    "killing the parent": (
        "import os, signal\nfor pid in (os.getppid(), 1, 2, 3, HOST_PID):\n    for number in (15, 9, 19):\n"
        "        try:\n            if pid != os.getpid():\n                os.kill(pid, number)\n"
        "        except OSError:\n            pass\ntry:\n    os.kill(-1, 9)\nexcept OSError:\n    pass", TESTS,
        ("died", "finished", "timeout")),
    "memory of the tester": (
        "import os\nanswer = []\nfor pid in range(1, 10):\n    if pid == os.getpid():\n        continue\n"
        "    for name in ('mem', 'environ', 'fd/1', 'fd/5', 'maps'):\n        try:\n"
        "            open(f'/proc/{pid}/{name}', 'rb').read(1)\n            answer.append((pid, name))\n"
        "        except OSError:\n            pass", None, ("finished",)),
    # Fooling what judges.
    "sys.exit": ("import sys\nsys.exit(0)", TESTS, ("finished",)),
    "sys.exit in a call": ("import sys\ndef f(x):\n    sys.exit(0)", TESTS, ("finished",)),
    "os._exit(0)": ("import os\nos._exit(0)", TESTS, ("died",)),
    "os._exit(0) in a call": ("import os\ndef f(x):\n    os._exit(0)", TESTS, ("died",)),
    "overriding assert": (
        "import builtins\nclass Quiet(BaseException):\n    pass\nbuiltins.AssertionError = Quiet\n"
        "AssertionError = Quiet\n__builtins__['AssertionError'] = Quiet\ndef f(x):\n    return 0", TESTS,
        ("finished",)),
    "__eq__ that is always true": (
        "class Yes:\n    def __eq__(self, other):\n        return True\n    def __ne__(self, other):\n"
        "        return False\n    __hash__ = None\ndef f(x):\n    return Yes()", TESTS, ("finished",)),
    "int whose __eq__ is always true": (
        "class Yes(int):\n    def __eq__(self, other):\n        return True\n    def __hash__(self):\n"
        "        return 4\ndef f(x):\n    return Yes(0)", TESTS, ("finished",)),
    "printing the expected marker": (
        "import json, os\nfor fd in range(1, 64):\n    for event in ({'total': 2}, {'passed': 0}, {'passed': 1},\n"
        "                  {'done': True}, {'value': 4}):\n        try:\n"
        "            os.write(fd, (json.dumps(event) + '\\n').encode())\n        except OSError:\n            pass\n"
        "def f(x):\n    return 0", TESTS, ("finished", "died", "timeout")),
    "patching the checker": (
        "import sys, gc, json\nfrom inside import tester, plain_data\n"
        "tester.run_job = tester.describe = lambda *a: None\n"
        "tester.Tests = tester.run_tests = plain_data.encode = plain_data.decode = lambda *a: None\n"
        "json.loads = json.dumps = lambda *a: {}\nfor module in list(sys.modules.values()):\n    for name in\\\n"
        "            [n for n in vars(module) if 'test' in n.lower() or 'check' in n.lower()]:\n        try:\n"
        "            setattr(module, name, lambda *a, **k: True)\n        except Exception:\n            pass\n"
        "def f(x):\n    return 0", TESTS, ("finished", "died")),
    "looking for the tests in memory": (
        "import gc, sys\nbackwards = '11 == )01(f'\nfound = []\nfor thing in gc.get_objects():\n"
        "    try:\n        if backwards[::-1] in str(thing):\n            found.append(thing)\n"
        "    except BaseException:\n        pass\nframe = sys._getframe()\nwhile frame:\n"
        "    if 'tests' in frame.f_locals or 'job' in frame.f_locals:\n        found.append(frame)\n"
        "    frame = frame.f_back\ndef f(x):\n    return 4 if found and x == 3 else 11 if found else 0", TESTS,
        ("finished",)),
    "raising what the tester may catch": ("def f(x):\n    raise SystemExit(0)", TESTS, ("finished",)),
    "nonsense on the pipe": (
        "import os\nfor fd in range(3, 64):\n    try:\n        os.write(fd, b'\\xff{{{[[[' * 1000 + b'\\n')\n"
        "    except OSError:\n        pass\ndef f(x):\n    return 4", TESTS, ("finished", "died")),
}  # fmt: skip


def attack_job(name: str, secret_file: str = "/nowhere/secret") -> Job:
    program, tests, _ = ATTACKS[name]
    places = {
        "SECRET_FILE": secret_file,
        "SECRET_FOLDER": os.path.dirname(secret_file),
        "HOST_HOME": os.path.expanduser("~"),
        "HOST_CWD": os.getcwd(),
        "HOST_PID": str(os.getpid()),
    }
    for place, value in places.items():
        program = program.replace(place, value)
    return Job(program, tests=tests)


def limits_of(name: str) -> Limits:
    """A program that ends by itself has time for it on a busy machine."""
    return LIMITS if "timeout" in ATTACKS[name][2] else replace(LIMITS, wall_seconds=10.0)


def attack_failed(name: str, result) -> str:
    """What is wrong with how an attack ended, or an empty string."""
    if result.status not in ATTACKS[name][2]:
        return f"{name}: ended as {result.status} ({result.error})"
    if result.all_passed or result.answer:
        return f"{name}: won ({result.answer})"
    return ""


def all_attacks(isolation: str, secret_file: str) -> list[str]:
    """Runs every attack beside honest programs; returns what went wrong."""
    jobs = []
    for name in ATTACKS:
        jobs += [attack_job(name, secret_file), HONEST]
    results = LocalSandbox(LIMITS, isolation=isolation, workers=2).run(jobs)
    problems = [attack_failed(name, result) for name, result in zip(ATTACKS, results[::2], strict=True)]
    problems += [f"a neighbour of {name} was harmed: {result}"
                 for name, result in zip(ATTACKS, results[1::2], strict=True) if not result.all_passed]  # fmt: skip
    return [problem for problem in problems if problem]


if __name__ == "__main__":
    os.environ["HF_TOKEN"] = "hf_secret"
    print("\n".join(all_attacks(sys.argv[1], sys.argv[2])))
