"""The program's side, which is not trusted: loads the program and answers calls into it."""

import builtins
import collections
import importlib
import json
import os
import sys
import types

from .plain_data import base_of, decode, encode, own_data, shorten


def serve(requests, results):
    """Loads the program on request and answers calls into it. Everything after `load` may be under its control."""
    module = types.ModuleType("solution")
    handles = []
    numbers = {}  # id of an object (kept alive by `handles`) -> its handle, so that one object has one handle
    loops, sources = [], []

    def number_of(value):
        if id(value) not in numbers:
            numbers[id(value)] = len(handles)
            handles.append(value)
        return numbers[id(value)]

    def keep(value):
        kind = type(value)
        if isinstance(value, type) and issubclass(value, BaseException):
            return {"class": describe_class(value)}
        if isinstance(value, BaseException):
            return {"exception": describe_exception(value)}
        if kind is types.CoroutineType:
            return {"coroutine": number_of(value)}
        base = base_of(kind)
        if base in (list, dict, set, bytearray, collections.deque):
            return {"container": [number_of(value), base.__name__]}
        if base is not None:
            return {"plain": [number_of(value), base.__name__, encode(own_data(value), keep)]}
        return {"o": number_of(value)}

    def describe_class(kind):
        bases = [base for base in kind.__bases__ if issubclass(base, BaseException)]
        own = getattr(builtins, kind.__name__, None) is not kind
        return [
            number_of(kind),
            kind.__module__,
            kind.__name__,
            [describe_class(base) for base in bases] if own else [],
        ]

    def describe_exception(error):
        attributes = {key: item for key, item in vars(error).items() if not key.startswith("__")}
        return [
            number_of(error),
            describe_class(type(error)),
            [encode(argument, keep) for argument in error.args],
            encode(attributes, keep),
            shorten(error),
        ]

    def reference(tag, body):
        if tag == "o":
            return handles[body]
        if tag == "function":
            return getattr(importlib.import_module(body[0]), body[1])
        if tag == "raised":
            return decode(body[0], reference)(*decode(body[1], reference))
        raise ValueError(tag)

    def load(source, name):
        module.__name__ = name
        sys.modules[name] = module  # dataclasses and pickle look a class's module up
        sources.append(source)
        exec(compile(source, "<program>", "exec"), module.__dict__)

    def wait_for(awaitable):
        async def wait():
            return await awaitable

        import asyncio

        if not loops:
            loops.append(asyncio.new_event_loop())
            asyncio.set_event_loop(loops[0])
        return loops[0].run_until_complete(wait())

    def state(value):
        """The class of an object and all that it holds, as far as Python code can tell."""
        held = dict(getattr(value, "__dict__", {}))
        for kind in type(value).__mro__:
            slots = kind.__dict__.get("__slots__", ())
            for name in [slots] if isinstance(slots, str) else slots:
                if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                    held[name] = getattr(value, name)
        return [type(value), held]

    def answer_to(op, arguments):
        if op == "load":
            return load(*arguments)
        if op == "get":
            return vars(module)[arguments[0]]
        if op == "has":
            return [name for name in arguments[0] if name in vars(module)]
        target = arguments[0]
        if op == "call":
            return target(*arguments[1], **arguments[2])
        if op == "attribute":
            return getattr(target, arguments[1])
        if op == "set":
            return setattr(target, arguments[1], arguments[2])
        if op == "special":
            return getattr(type(target), arguments[1])(target, *arguments[2])
        if op == "item":
            return target[arguments[1]]
        if op == "await":
            return wait_for(target)
        if op == "apply":
            return getattr(builtins, arguments[1])(target, *arguments[2])
        if op == "own":
            # Special methods that its class defines itself.
            return [
                name for name in dir(type(target)) if getattr(object, name, None) is not getattr(type(target), name)
            ]
        if op == "equal":
            return bool(target == arguments[1])
        if op == "equal to a stranger":
            try:
                return bool(target == object())
            except Exception:
                return False
        if op == "state":
            return state(target)
        if op == "data":
            return own_data(target)
        raise ValueError(op)

    for line in requests:
        request = json.loads(line)
        reply = {}
        try:
            arguments = [decode(argument, reference) for argument in request["arguments"]]
            value = answer_to(request["op"], arguments)
            reply["value"] = encode(value, keep)
            if request["op"] == "call":
                # A function may change its arguments in place: the tester's copies must follow.
                sent = request["arguments"][1]
                changed = {}
                for position, argument in enumerate(arguments[1]):
                    if isinstance(argument, (list, dict, set, bytearray, collections.deque)):
                        now = encode(argument, keep)
                        if now != sent[position] and not (isinstance(now, dict) and "container" in now):
                            changed[position] = now
                if changed:
                    reply["changed"] = changed
        except BaseException as error:  # SystemExit and KeyboardInterrupt too: they are the program's failure
            # Here and not above: most programs need no traceback, and these two take longer than all else to load.
            import linecache
            import traceback

            lines = sources[-1].splitlines(True) if sources else []
            linecache.cache["<program>"] = (0, None, lines, "<program>")
            frames = [
                frame
                for frame in traceback.extract_tb(error.__traceback__)
                if os.path.dirname(frame.filename) != os.path.dirname(__file__)
            ]
            lines = ["Traceback (most recent call last):\n"] if frames else []
            lines += traceback.format_list(frames[-3:]) + traceback.format_exception_only(type(error), error)
            try:
                reply = {"exception": describe_exception(error)}
            except BaseException:
                reply = {}  # its arguments are no data
            reply["error"] = [type(error).__name__, shorten(error), shorten("".join(lines))]
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()  # the process will be killed, not ended
            except BaseException:
                pass  # the program replaced or closed it
        results.write(json.dumps(reply) + "\n")
        results.flush()


def fork_program(confine):
    """
    Forks the program's process, before anything of the job was read.

    Args:
        confine (`callable`):
            Called in the new process before it does anything: drops rights and sets limits.

    Returns:
        `tuple`: process id, file to write requests to, file to read results from, its stdin, stdout and stderr (fds).
    """
    request_r, request_w = os.pipe()
    result_r, result_w = os.pipe()
    stdin_r, stdin_w = os.pipe()
    stdout_r, stdout_w = os.pipe()
    stderr_r, stderr_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            for source, target in ((stdin_r, 0), (stdout_w, 1), (stderr_w, 2)):
                os.dup2(source, target)
            requests, results = os.dup(request_r), os.dup(result_w)
            # Nothing of the sandbox stays open here but the two pipes to the tester.
            keep = sorted((requests, results))
            os.closerange(3, keep[0])
            os.closerange(keep[0] + 1, keep[1])
            os.closerange(keep[1] + 1, 1024)
            confine()
            serve(open(requests), open(results, "w"))
        finally:
            os._exit(70)
    for fd in (request_r, result_w, stdin_r, stdout_w, stderr_w):
        os.close(fd)
    return pid, open(request_w, "w"), open(result_r), stdin_w, stdout_r, stderr_r
