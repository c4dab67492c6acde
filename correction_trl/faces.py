"""The public face of a package: names that are imported when they are first used.

So `import correction_trl` loads no torch, `--help` is quick, and a function may be public under a name that is not its
module's.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_face(package: str, modules: dict[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """
    `__getattr__` and `__dir__` of a package.

    Args:
        package (`str`):
            Its `__name__`.
        modules (`dict[str, str]`):
            From a public name to the module of the package that defines it.
    """

    def __getattr__(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f".{modules[name]}", package), name)

    def __dir__() -> list[str]:
        return sorted(modules)

    return __getattr__, __dir__
