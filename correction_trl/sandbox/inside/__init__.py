"""
What runs inside a sandbox: the program in one process, the tests in another, plain data between them.

These files use the standard library alone and import nothing of the package: the local sandbox loads them by path, as
the package `inside`, and the remote one sends their text. The program's process is forked before the job is read, so
that its memory never held a test. It answers requests, one JSON line each, with results, one JSON line each
(`program.py`, `plain_data.py`). Whatever the program does to its own process (`sys.exit`, patched builtins, `__eq__`
that is always true, markers on stdout, `os._exit(0)`), the tester (`tester.py`, `remote_objects.py`, `reading.py`)
sees only the plain data of those lines, rebuilds exact builtin types from it, and does every comparison itself.
"""
