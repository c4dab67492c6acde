"""What may be published of a text, a command or a configuration: no secret, and no path of the machine."""

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ..data_utils import public_name


# `eos_token`, `pad_token` and the like are vocabulary; every other name that ends in `token` is taken for a secret.
_VOCABULARY_TOKEN = re.compile(
    r"(^|[_.-])(bos|eos|pad|unk|sep|cls|mask|stop|start|begin|end|think|image|video|audio)[_-]token$", re.IGNORECASE
)
_SECRET_NAME = re.compile(
    r"(^|[_.-])(token|secret|password|passwd|passphrase|credentials?|authorization)$"
    r"|(api|access|secret|private|auth)[_-]?key$|(^|[_-])secret[_-]",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|\bsk-[A-Za-z0-9_-]{16,}"  # OpenAI, Anthropic and those who follow them
    r"|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_[A-Za-z0-9_]{20,}"
    r"|\bAKIA[0-9A-Z]{16}\b|\bAIza[0-9A-Za-z_-]{30,}"
    r"|\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]+"  # a JSON web token
    r"|(?<=Bearer )[A-Za-z0-9._~+/=-]{8,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"  # user:password in an address
    r"|(?<=[?&]token=)[^&\s#]+|(?<=[?&]key=)[^&\s#]+|(?<=[?&]api_key=)[^&\s#]+|(?<=[?&]sig=)[^&\s#]+"
)


def is_secret_name(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None and _VOCABULARY_TOKEN.search(name) is None


def redact_secrets(text: str) -> str:
    """Replace what has the form of an access token, an API key or a password in an address by `<redacted>`."""
    return _SECRET_VALUE.sub("<redacted>", text)


def command_line(argv: Sequence[str] | None = None) -> str:
    """
    The command that started this process, as one line for a shell, with secrets replaced by `<redacted>`.

    Args:
        argv (`Sequence[str]`, *optional*):
            Script and arguments, defaults to `sys.argv`.

    Returns:
        `str`: `script --argument value ...`, quoted. The launcher (`python`, `accelerate launch`) is not part of it:
        a process does not know it.
    """
    words, redact_next = [], False
    for word in sys.argv if argv is None else argv:
        name, equals, _ = word.partition("=")
        if redact_next and not word.startswith("--"):
            word = "<redacted>"
        elif equals and is_secret_name(name):
            word = f"{name}=<redacted>"
        redact_next = not equals and word.startswith("-") and is_secret_name(word)
        # Quoted by hand because `shlex.join` would quote the angle brackets of the placeholder.
        words.append(word if word.endswith("<redacted>") else shlex.quote(redact_secrets(word)))
    return " ".join(words)


# A path that starts a word of a command line, or the value after its `=`: /a/b, ~/a/b or C:\a\b
_ABSOLUTE_PATH = re.compile(r"""(?<![^\s"'=,:])(?:~|[A-Za-z]:(?=[\\/]))?[\\/][^\s"'=,:]+""")


# `--name value`, `--name=value` or `NAME=value`
_ARGUMENT = re.compile(r"(?<!\S)(-{0,2}[\w.-]+)(=|\s+)(?!-)(\S+)")


def publishable(command: str) -> str:
    """
    A command line without the values of secret arguments and without absolute paths: those below the working directory
    become relative to it, of the others the last part remains.
    """

    def redact(match: re.Match) -> str:
        names_a_secret = is_secret_name(match[1]) and (match[1].startswith("-") or match[2] == "=")
        return f"{match[1]}{match[2]}<redacted>" if names_a_secret else match[0]

    def shorten(match: re.Match) -> str:
        path = Path(match[0])
        if path.is_relative_to(Path.cwd()) and path != Path.cwd():
            return path.relative_to(Path.cwd()).as_posix()
        return public_name(match[0])

    return _ABSOLUTE_PATH.sub(shorten, _ARGUMENT.sub(redact, command))


def without_run_directories(text: str, output_dir: Path) -> str:
    """
    Remove the directories of this run wherever else they turn up, in an example or in a text from the recipe. Other
    paths are left alone: `/usr/bin/env` may well be part of a model's answer.
    """
    directories = {output_dir.resolve(), Path.cwd(), Path.home()}
    for directory in sorted(map(str, directories), key=len, reverse=True):
        if directory != os.sep:
            text = re.sub(rf"(?<![\w.:/]){re.escape(directory)}(?![\w-])/?", "", text)
    return text
