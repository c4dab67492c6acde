"""
The local sandbox's own process: leaves the host behind, then watches over one job.

Started by `local.py` as the module `inside.isolate` of a fresh Python with the folder above on its path; standard
library only. The job comes on stdin, the result goes to stdout, both JSON. Three ways in, named by
CONFIG["isolation"]:

- `"namespaces"`: new mount, process, network, IPC, hostname and cgroup namespaces (and a user namespace, unless root),
  a root file system of read-only system libraries and one private folder in memory;
- `"bubblewrap"`: the same, already made by bwrap, which started this file;
- `"none"`: no isolation, rlimits and seccomp only.

Then two processes are forked, the program and its tester (`program.py`, `tester.py`). Each drops its rights, takes its
rlimits and a seccomp filter. When this process, the first of its process namespace, ends, the kernel kills all the
others.
"""

import ctypes
import errno
import fcntl
import json
import os
import resource
import selectors
import signal
import struct
import sys
import time

from .program import fork_program
from .tester import run_job


POLL_SECONDS = 0.05

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
AT_RECURSIVE = 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38

# System calls per machine: (x86_64, aarch64). Denied because they reach outside the process, widen the kernel's
# attack surface, or hold memory that no limit counts; nothing a computation needs is among them.
DENIED = {
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202),
    "accept4": (288, 242), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "pidfd_getfd": (438, 438), "kcmp": (312, 272), "mount": (165, 40),
    "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "syslog": (103, 116),
    "personality": (135, 92), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "sethostname": (170, 161), "setdomainname": (171, 162), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "quotactl": (179, 60),
    "acct": (163, 89), "settimeofday": (164, 170), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "fanotify_init": (300, 262), "move_pages": (279, 239), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "shmget": (29, 194), "shmat": (30, 196), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
}  # fmt: skip
MACHINES = {"x86_64": (0, 0xC000003E, 56), "aarch64": (1, 0xC00000B7, 220)}  # column above, audit id, clone
CLONE3 = 435
CLONE_NEW_ANY = 0x7E020000

libc = ctypes.CDLL(None, use_errno=True)


def check(outcome, what):
    if outcome < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return outcome


def mount(source, target, kind, flags, options=None):
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    check(libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]), f"mount {target}")


def prctl(option, value, what):
    check(libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), what)


# -------------------------------------------------------------------------------------------------- leaving the host


def enter_namespaces(config):
    """Moves this process's children into namespaces of their own, and forks the first of them, which returns."""
    uid, gid = os.getuid(), os.getgid()
    flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP
    if uid != 0:
        flags |= CLONE_NEWUSER
    check(libc.unshare(flags), "unshare")
    if uid != 0:
        for name, line in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(line)
    launcher = os.getpid()
    # Again: a change of rights may clear it.
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL, "PR_SET_PDEATHSIG")
    first = os.fork()
    if first != 0:
        # Outside: holds nothing open, waits, and passes on how it ended.
        os.closerange(0, 3)
        _, status = os.waitpid(first, 0)
        os._exit(0 if status == 0 else 71)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL, "PR_SET_PDEATHSIG")
    build_root(config)
    libc.sethostname(b"sandbox", 7)
    # As root, each process gets a user id that nobody else on the machine has, so that the kernel's count of its
    # processes is its own. In a user namespace the count is the namespace's anyway.
    config["user_ids"] = None if uid != 0 else [0x40000000 + 2 * launcher, 0x40000001 + 2 * launcher]


def build_root(config):
    """A new root: read-only system libraries and Python, four devices, /proc of this namespace, a private /tmp."""
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    # /tmp is only the place to stand on: after pivot_root the host's own /tmp is visible again below /host.
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=1m,nr_inodes=1k")
    os.mkdir("/tmp/host")
    check(libc.pivot_root(b"/tmp", b"/tmp/host"), "pivot_root")
    os.chdir("/")
    os.makedirs("/dev", exist_ok=True)
    for name in ("null", "zero", "random", "urandom"):
        open(f"/dev/{name}", "w").close()
        mount(f"/host/dev/{name}", f"/dev/{name}", None, MS_BIND)
    os.makedirs("/proc", exist_ok=True)
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "subset=pid")
    os.makedirs("/tmp", exist_ok=True)
    private = f"mode=1777,size={config['limits']['file_bytes']},nr_inodes=4k"
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, private)
    for source, path in config["read_only"]:
        os.makedirs(path, exist_ok=True)
        mount("/host" + source, path, None, MS_BIND | MS_REC)
        attributes = struct.pack("QQQQ", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, 0, 0, 0)
        outcome = libc.syscall(442, -100, os.fsencode(path), AT_RECURSIVE, attributes, len(attributes))
        check(outcome, f"mount_setattr {path}")
    check(libc.umount2(b"/host", MNT_DETACH), "umount2 /host")
    os.rmdir("/host")
    mount("none", "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.chdir("/tmp")


# ---------------------------------------------------------------------------------- rights and limits of one process


def seccomp_filter():
    """The filter as BPF instructions; see the comment at `DENIED`."""
    column, audit, clone = MACHINES[os.uname().machine]
    allow, eperm, enosys, kill = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
    numbers = [pair[column] for pair in DENIED.values()]
    code = []

    def add(operation, value, if_true=0, if_false=0):
        code.append(struct.pack("HBBI", operation, if_true, if_false, value))

    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    add(load, 4)  # the machine this call is made for
    add(equal, audit, 1, 0)
    add(give, kill)
    add(load, 0)  # the number of the call
    add(at_least, 0x40000000, 0, 1)  # x32 calls on x86_64 would have other numbers
    add(give, eperm)
    for number in numbers:
        add(equal, number, 0, 1)
        add(give, eperm)
    add(equal, CLONE3, 0, 1)  # its flags are in memory, where a filter cannot look: libc then uses clone
    add(give, enosys)
    add(equal, clone, 0, 3)
    add(load, 16)  # its flags
    add(any_bit, CLONE_NEW_ANY, 0, 1)
    add(give, eperm)
    add(give, allow)
    return b"".join(code), len(code)


def confine(limits, user_id, extra_processes):
    """Drops every right of the calling process, for good, and sets its limits."""
    for name, value in {
        "RLIMIT_CPU": limits["cpu_seconds"],
        "RLIMIT_AS": limits["memory_bytes"],
        "RLIMIT_NPROC": limits["processes"] + extra_processes,
        "RLIMIT_FSIZE": limits["file_bytes"],
        "RLIMIT_NOFILE": 64,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
    }.items():
        if hasattr(resource, name):
            # Soft and hard alike: a soft limit's signal could be caught.
            resource.setrlimit(getattr(resource, name), (value, value))
    os.setsid()
    if sys.platform != "linux":
        return
    if user_id is not None:
        os.setgroups([])
        os.setresgid(user_id, user_id, user_id)
        os.setresuid(user_id, user_id, user_id)
    # After the change of user, which clears it: should the watcher be killed, these two go with it.
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL, "PR_SET_PDEATHSIG")
    prctl(PR_SET_NO_NEW_PRIVS, 1, "PR_SET_NO_NEW_PRIVS")
    header, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)
    check(libc.capset(header, nothing), "capset")
    prctl(PR_SET_DUMPABLE, 0, "PR_SET_DUMPABLE")
    code, length = seccomp_filter()
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", length, ctypes.addressof(buffer))
    check(libc.prctl(PR_SET_SECCOMP, 2, program, 0, 0), "PR_SET_SECCOMP")


# -------------------------------------------------------------------------------------------------- watching the job


class SharedMemory:
    """
    Counts shared mappings. Their pages belong to no process: after `munmap` or `madvise` they are in nobody's resident
    size and stay while any piece is mapped anywhere. So the kernel asks this process before each of them (a seccomp
    filter that the program inherits), and all of their lengths together may be no more than `memory_bytes`.
    """

    RECEIVE, SEND, CONTINUE = 0xC0502100, 0xC0182101, 1  # ioctls and the flag of <linux/seccomp.h>

    def __init__(self, memory_bytes):
        self.free = memory_bytes
        self.held = 0
        mmap, seccomp = {"x86_64": (9, 317), "aarch64": (222, 277)}[os.uname().machine]
        prctl(PR_SET_NO_NEW_PRIVS, 1, "PR_SET_NO_NEW_PRIVS")
        # Where another program listens already (some containers), there can be no second: refuse what can be written.
        self.fd = self.install(mmap, seccomp, flags=8, verdict=0x7FC00000)
        if self.fd < 0:
            check(self.install(mmap, seccomp, flags=0, verdict=0x00050000 | errno.ENOMEM), "seccomp")
            self.fd = None

    def install(self, mmap, seccomp, flags, verdict):
        lines = [(0x20, 0, 0, 0), (0x15, 0, 3, mmap)]  # another system call: allowed
        lines += [(0x20, 0, 0, 40), (0x45, 0, 1, 1)]  # the flags without MAP_SHARED: allowed
        lines += [(0x06, 0, 0, verdict), (0x06, 0, 0, 0x7FFF0000)]
        code = b"".join(struct.pack("HBBI", *line) for line in lines)
        buffer = ctypes.create_string_buffer(code, len(code))
        return libc.syscall(seccomp, 1, flags, struct.pack("HxxxxxxP", len(lines), ctypes.addressof(buffer)))

    def answer(self):
        """Lets a mapping be made, or fail for lack of memory."""
        request = bytearray(80)
        try:
            fcntl.ioctl(self.fd, self.RECEIVE, request)
            (number,), (length,) = struct.unpack_from("Q", request), struct.unpack_from("Q", request, 40)
            length = -(-length // 4096) * 4096
            if allowed := length <= self.free:
                self.free -= length
                self.held += length
            reply = struct.pack("QqiI", number, 0, 0 if allowed else -errno.ENOMEM, self.CONTINUE if allowed else 0)
            fcntl.ioctl(self.fd, self.SEND, reply)
        except OSError:
            pass  # who asked was killed meanwhile


def descendants():
    """Process ids of all that this process started, children's children too, with their private bytes."""
    parents = {}
    if sys.platform != "linux":
        return {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        parents[int(entry)] = int(fields[1])
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
        found |= more
    return {pid: private_memory(pid) for pid in found - {os.getpid()}}


def private_memory(pid):
    """Bytes of a process that no other has, swapped out or not; see `SharedMemory` for the others."""
    try:
        with open(f"/proc/{pid}/status") as file:
            lines = [line.split() for line in file if line.startswith(("RssAnon:", "VmSwap:"))]
    except OSError:
        return 0  # it ended meanwhile
    return sum(int(line[1]) * 1024 for line in lines)


def kill_descendants():
    """Only where there is no process namespace whose end would kill them all: again and again, until none is left."""
    for _ in range(200):
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        for pid in descendants():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.005)


def feed(poll, stdin_fd, pending):
    """Writes what the program's stdin takes now, and closes it at the end. Returns what is left."""
    try:
        pending = pending[os.write(stdin_fd, pending) if pending else 0 :]
    except BlockingIOError:
        return pending
    except OSError:
        pending = b""  # the program closed it
    if not pending:
        poll.unregister(stdin_fd)
        os.close(stdin_fd)
    return pending


def drain(captured, fds, most):
    """What the program printed just before it was done is still in the pipes."""
    for fd in fds:
        os.set_blocking(fd, False)
        try:
            while (chunk := os.read(fd, 65536)) and len(captured[fd]) <= most:
                captured[fd] += chunk
        except BlockingIOError:
            pass


def how_it_ended(program, events):
    """The number of the signal that killed the program, `None` if none did."""
    for _ in range(20):
        # Gone without a signal's trace in the events: say which. The zombie may come a moment after its pipes.
        done, code = os.waitpid(program, os.WNOHANG)
        if done:
            return os.WTERMSIG(code) if os.WIFSIGNALED(code) else None
        if b'"gone"' not in events:
            break
        time.sleep(0.005)
    return None


def fork_tester(job, requests, results, confine_it, not_its_own):
    """The process that runs the tests and tells what they say. Returns its id and where its events are read; what it
    talks to the program through is closed here."""
    events_r, events_w = os.pipe()
    tester = os.fork()
    if tester == 0:
        try:
            quiet = os.open("/dev/null", os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(quiet, fd)
            for fd in (events_r, *not_its_own):
                os.close(fd)
            os.chdir("/")
            confine_it()
            run_job(job, requests, results, lambda event: os.write(events_w, (json.dumps(event) + "\n").encode()))
            os._exit(0)
        finally:
            os._exit(72)
    for fd in (requests.fileno(), results.fileno(), events_w):
        os.close(fd)
    return tester, events_r


def watch(config):
    """Runs the job in two forked processes, within its limits. Returns the result as a dict."""
    limits = config["limits"]
    program_user, tester_user = config["user_ids"] or (None, None)
    # In a user namespace (or none) the count of processes includes the tester and this process.
    extra = 0 if config["user_ids"] else 2
    if config["isolation"] == "none":
        extra = 10_000  # the count would be of all of this user's processes on the machine
    start = time.monotonic()
    shared = SharedMemory(limits["memory_bytes"]) if sys.platform == "linux" else None
    program, requests, results, stdin_fd, stdout_fd, stderr_fd = fork_program(
        lambda: confine(limits, program_user, extra)
    )
    job = json.loads(sys.stdin.buffer.read())
    listener = [] if shared is None or shared.fd is None else [shared.fd]
    tester, events_r = fork_tester(
        job,
        requests,
        results,
        lambda: confine(limits, tester_user, extra + limits["processes"]),
        (stdin_fd, stdout_fd, stderr_fd, *listener),
    )

    poll = selectors.DefaultSelector()
    captured = {stdout_fd: b"", stderr_fd: b"", events_r: b""}
    for fd in captured:
        poll.register(fd, selectors.EVENT_READ)
    pending_input = job["stdin"].encode(errors="replace")
    os.set_blocking(stdin_fd, False)
    poll.register(stdin_fd, selectors.EVENT_WRITE)
    if shared is not None and shared.fd is not None:
        poll.register(shared.fd, selectors.EVENT_READ)

    status = "finished"
    next_look = start + POLL_SECONDS
    while events_r in poll.get_map():  # until the tester has ended: it alone holds the other end
        now = time.monotonic()
        if now - start > limits["wall_seconds"]:
            status = "timeout"
            break
        if now > next_look:
            # Each process has its own RLIMIT_AS; together they may have no more than one.
            used = sum(descendants().values()) + (shared.held if shared is not None else 0)
            if used > limits["memory_bytes"]:
                status = "memory"
                break
            next_look = now + POLL_SECONDS
        for key, _ in poll.select(min(POLL_SECONDS, limits["wall_seconds"])):
            if key.fd == stdin_fd:
                pending_input = feed(poll, stdin_fd, pending_input)
                continue
            if key.fd not in captured:
                shared.answer()
                continue
            chunk = os.read(key.fd, 65536)
            if not chunk:
                poll.unregister(key.fd)
            captured[key.fd] += chunk
        if len(captured[stdout_fd]) > limits["output_bytes"] or len(captured[stderr_fd]) > limits["output_bytes"]:
            status = "output"
            break
    drain(captured, (stdout_fd, stderr_fd), limits["output_bytes"])
    seconds = time.monotonic() - start
    signal_number = how_it_ended(program, captured[events_r])
    for pid in (program, tester):
        try:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)  # so that the time it used is counted
        except (ProcessLookupError, PermissionError, ChildProcessError):
            pass
    return {
        "status": status,
        "events": captured[events_r].decode(errors="replace"),
        "stdout": captured[stdout_fd][: limits["output_bytes"]].decode(errors="replace"),
        "stderr": captured[stderr_fd][: limits["output_bytes"]].decode(errors="replace"),
        "signal": signal_number,
        "seconds": seconds,
    }


def main():
    package, config = sys.argv[1], json.loads(sys.argv[2])
    # The package's folder was there for these files alone.
    sys.path.remove(package)
    sys.path.extend(config["import_paths"])
    if sys.platform == "linux":
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, "PR_SET_PDEATHSIG")
        if os.getppid() != config["parent"] and config["isolation"] != "bubblewrap":
            return  # the parent died before the line above
    config["user_ids"] = None
    try:
        if config["isolation"] == "namespaces":
            enter_namespaces(config)
        if sys.platform == "linux":
            prctl(PR_SET_DUMPABLE, 0, "PR_SET_DUMPABLE")
            prctl(PR_SET_CHILD_SUBREAPER, 1, "PR_SET_CHILD_SUBREAPER")
    except OSError as error:
        print(json.dumps({"status": "sandbox_error", "error": str(error)}), flush=True)
        return
    try:
        result = watch(config)
    finally:
        if config["isolation"] == "none":
            kill_descendants()
    print(json.dumps(result), flush=True)
    os._exit(0)
