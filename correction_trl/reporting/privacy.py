"""What may be published of a text, a command, a configuration or a folder: no secret, and no path of the machine.

Both are taken out of messages, commands, configurations and cards, never out of data: a correction that says `test`
stays what it is, whatever the API key.
"""

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.utils import filter_repo_objects

from ..data_utils import public_name


REDACTED = "<redacted>"

# --------------------------------------------------------------------------------------------------------------------
# Secrets
# --------------------------------------------------------------------------------------------------------------------

# `eos_token`, `pad_token` and the like are vocabulary; every other name that ends in `token` is taken for a secret.
_VOCABULARY_TOKEN = re.compile(
    r"(^|[_.-])(bos|eos|pad|unk|sep|cls|mask|stop|start|begin|end|turn|think|image|video|audio)[_-]token$",
    re.IGNORECASE,
)
_SECRET_NAME = re.compile(
    r"(^|[_.-])(token|secret|password|passwd|passphrase|credentials?|authorization)$"
    r"|(api|access|secret|private|auth)[_-]?key$|(^|[_-])secret[_-]|(?-i:[a-z](Token|Secret|Password)$)",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|\bsk-[A-Za-z0-9_-]{16,}"  # OpenAI, Anthropic and those who follow them
    r"|\b(?:gsk_|xai-|nvapi-|pplx-|r8_|glpat-|xox[abprs]-)[A-Za-z0-9_-]{16,}"
    r"|\bgh[opusr]_[A-Za-z0-9]{20,}|\bgithub_pat_[A-Za-z0-9_]{20,}"
    r"|\bA[KS]IA[0-9A-Z]{16}\b|\bAIza[0-9A-Za-z_-]{30,}"
    r"|\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]+"  # a JSON web token
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)|(?<=://)[^/\s:@]{16,}(?=@)",  # user:password or a token in an address
    re.DOTALL,
)
# `?api_key=x&sig=y`
_IN_QUERY = re.compile(
    r"""([?&;](?:[\w.~-]*(?:key|token|secret|signature|password|credential)|sig|pwd)=)[^&\s#"']+""", re.IGNORECASE
)
# `Authorization: Basic x`, `Bearer x`, `x-api-key: x`, also between the quotes of JSON
_IN_HEADER = re.compile(
    r"""((?:proxy-)?authorization["']?\s*[:=]\s*["']?(?:(?:bearer|basic|token)\s+)?|\bbearer\s+(?=\S{8})"""
    r"""|\b(?:x-)?api-key["']?\s*:\s*["']?)(?!<redacted>|bearer\b|basic\b)([^\s"',;<]{4,})""",
    re.IGNORECASE,
)
# `HF_TOKEN=x`, `--hub_token x`, `"token": "x"`: whether it is a secret says the name
_NAMED = re.compile(
    r"""(?<![\w.-])(?P<before>-{1,2}(?P<option>[A-Za-z][\w.-]*)(?:\s*=\s*|\s+(?=[^\s-]))"""
    r"""|(?P<quote>["']?)(?P<name>[A-Za-z][\w.-]*)(?P=quote)(?:\s*=\s*|\s*:\s*(?=["'])))"""
    r"""(?P<value>"[^"\n]*"|'[^'\n]*'|[^\s"'&#;,)}\]]+)"""
)
SHORTEST_KEY_IN_TEXT = 8


def is_secret_name(name: str) -> bool:
    """Whether what has this name (of a setting, a variable, an argument) is a secret."""
    return _SECRET_NAME.search(name) is not None and _VOCABULARY_TOKEN.search(name) is None


def redact_secrets(text: str) -> str:
    """
    Replace what has the form of an access token, an API key or a password in an address, and the values of this
    process's own secret environment variables, by `<redacted>`.

    Values of fewer than 8 characters are not searched for: `test`, `EMPTY` and `0` are keys of local servers and words
    of ordinary texts, and striking out every `0` would hide nothing and spoil everything.

    Args:
        text (`str`):
            A message, a card or a setting (no data), whole: a secret that was cut before is not recognised.
    """
    for name, value in os.environ.items():
        if len(value) >= SHORTEST_KEY_IN_TEXT and is_secret_name(name):
            text = text.replace(value, REDACTED)
    text = _SECRET_VALUE.sub(REDACTED, text)
    text = _IN_QUERY.sub(rf"\1{REDACTED}", text)
    return _IN_HEADER.sub(rf"\1{REDACTED}", text)


def redact_named_secrets(text: str) -> str:
    """[`redact_secrets`], and also what is given under the name of a secret: `HF_TOKEN=x`, `--api_key x`."""
    text, redacted, position = redact_secrets(text), "", 0
    while match := _NAMED.search(text, position):
        value = match["value"]
        if is_secret_name(match["option"] or match["name"]) and value.strip("\"'") not in ("", REDACTED):
            quote = value[0] if value[0] in "\"'" else ""
            redacted += f"{text[position : match.end('before')]}{quote}{REDACTED}{quote}"
            position = match.end()
        else:  # the value may hold another one: `--note HF_TOKEN=x`
            redacted += text[position : match.end("before")]
            position = match.end("before")
    return redacted + text[position:]


# --------------------------------------------------------------------------------------------------------------------
# Paths
# --------------------------------------------------------------------------------------------------------------------

# Where a path of a machine begins, on this one or another; `/no_think` and `/5` begin nowhere
_ROOTS = set(
    "bin boot cluster content data dev etc export gpfs home kaggle local lustre media mnt nfs opt private proc "
    "project projects root run scratch share shared srv storage sys tmp usr Users users var Volumes work "
    "workspace".split()
)
_PATH_IN_TEXT = re.compile(
    r"""(?P<file>\bfile:/{1,3}[^\s"'<>]+)"""
    r"""|\b[A-Za-z][A-Za-z0-9+.-]+://[^\s"'<>]*"""  # any other address stays as it is
    r"""|(?P<mark>["'])(?P<quoted>(?:~[\w.-]*/|/|[A-Za-z]:[\\/]|\\\\)[^"'\n]*)(?P=mark)"""
    r"""|(?<![\w/\\~.<})\]*$])(?P<path>(?:~(?:[A-Za-z_][\w.-]*)?)?(?:/[^\s"'`,:;|<>()\[\]{}/]+)+/?"""
    r"""|(?<!\w)[A-Za-z]:[\\/][^\s"'`,;|<>]*|\\\\[\w.$-]+\\[^\s"'`,;|<>]+)"""
)


def hide_paths(text: str) -> str:
    """
    Shorten the absolute paths in a message or a setting: below the working directory or this repository they become
    relative, of the others the last part remains. Addresses such as `http://127.0.0.1:8000/v1` stay whole; of
    `file://` ones the path is shortened.

    Args:
        text (`str`):
            No data: `/usr/bin/env` may well be part of a model's answer.
    """

    def shorten(match: re.Match) -> str:
        if match["file"]:
            return _shorten(re.sub("^file:/*(?=/)", "", match["file"]))
        if match["quoted"]:
            whole = match["quoted"]
            return f"{match['mark']}{_shorten(whole) if _is_local_path(whole) else whole}{match['mark']}"
        if match["path"]:
            return _shorten(match["path"]) if _is_local_path(match["path"]) else match["path"]
        return match[0]

    return _PATH_IN_TEXT.sub(shorten, text)


def publishable_setting(value: str) -> str:
    """A setting's value without secrets and paths; other than in a message, a path may hold spaces."""
    return _shorten(value) if _is_local_path(value) else hide_paths(redact_named_secrets(value))


def _is_local_path(text: str) -> bool:
    """Whether all of a text is a path that begins at the root or the home of a machine."""
    if re.match(r"~[\w.-]*[/\\]|[A-Za-z]:[\\/]|\\\\\w", text) or text.startswith("file:/"):
        return "\n" not in text
    if not text.startswith("/") or text.startswith("//") or "\n" in text or text == "/":
        return False
    parts = PurePosixPath(text).parts[1:]
    if re.search("[:,]/", text):  # a list of paths
        return False
    return parts[0] in _ROOTS or os.path.exists(text) or (len(parts) > 1 and not re.search(r"\s", text))


def _shorten(path: str) -> str:
    path = re.sub("^file:/*(?=/)", "", path)
    if not path.startswith("/"):
        return PureWindowsPath(path).name or "~"  # knows both kinds of slashes
    place = Path(os.path.normpath(path))
    for here in (Path.cwd(), Path(__file__).parents[2]):
        if place.is_relative_to(here) and place != here:
            return place.relative_to(here).as_posix()
    # The last part of /home/ada is a name as well
    return "~" if place == Path.home() or place.parent.as_posix() in ("/home", "/Users") else place.name or "/"


def without_run_directories(text: str, output_dir: Path) -> str:
    """
    Remove the directories of this run wherever they turn up in a card, in an example or in a text from the recipe.
    Other paths are left alone: `/usr/bin/env` may well be part of a model's answer.
    """
    directories = {output_dir.resolve(), Path.cwd(), Path.home()}
    for directory in sorted(map(str, directories), key=len, reverse=True):
        if directory != os.sep:
            text = re.sub(rf"(?<![\w.:/]){re.escape(directory)}(?![\w-])/?", "", text)
    return text


# --------------------------------------------------------------------------------------------------------------------
# Commands
# --------------------------------------------------------------------------------------------------------------------


def command_line(argv: Sequence[str] | None = None) -> str | None:
    """
    The command that started this process, as one line that can be pasted into a shell and published: secret arguments
    are left out (a login or an environment variable takes their place), and paths are shortened.

    Args:
        argv (`Sequence[str]`, *optional*):
            Script and arguments, defaults to `sys.argv`.

    Returns:
        `str`: `script --argument value ...`, quoted. The launcher (`python`, `accelerate launch`) is not part of it:
        a process does not know it. `None` if no script was started (a notebook, `python -c`).
    """
    argv = list(sys.argv if argv is None else argv)
    if not argv or argv[0] in ("", "-c", "-m") or "ipykernel" in argv[0]:
        return None
    words, of_secret = [], False
    for word, following in zip(argv, [*argv[1:], "--"], strict=True):
        name, equals, _ = word.partition("=")
        if of_secret or (equals and is_secret_name(name)):
            of_secret = False
            continue
        # A value may begin with one dash, a recipe's arguments begin with two
        of_secret = word.startswith("-") and is_secret_name(word) and not following.startswith("--")
        if not of_secret:
            words.append(shlex.quote(_publishable_word(word)))
    return " ".join(words)


def publishable(command: str) -> str:
    """[`command_line`] of a command that is one text."""
    try:
        words = shlex.split(command)
    except ValueError:  # an open quote
        return hide_paths(redact_named_secrets(command))
    return command_line(words) or ""


def launched(command: str | None, launcher: str = "accelerate launch") -> str | None:
    """[`publishable`], ready to be pasted: a script (after the variables that are set for it) has its launcher."""
    if not command:
        return None
    variables, rest = re.match(r"((?:[A-Za-z_]\w*=\S*\s+)*)(.*)", publishable(command), re.DOTALL).groups()
    return f"{variables}{launcher} {rest}" if rest.partition(" ")[0].endswith(".py") else variables + rest


def _publishable_word(word: str) -> str:
    """A word of a command: an argument, `--argument=value` or `NAME=value`, where a value may be a path or JSON."""
    name, equals, value = word.partition("=")
    if not equals or not re.fullmatch(r"-{0,2}[\w.-]+", name):
        name, equals, value = "", "", word
    if value[:1] in ("{", "["):
        try:
            return f"{name}{equals}{json.dumps(_publishable_json(json.loads(value)))}"
        except json.JSONDecodeError:
            pass
    return f"{name}{equals}{publishable_setting(value)}"


def _publishable_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _publishable_json(item) for name, item in value.items() if not is_secret_name(name)}
    if isinstance(value, list):
        return [_publishable_json(item) for item in value]
    return publishable_setting(value) if isinstance(value, str) else value


# --------------------------------------------------------------------------------------------------------------------
# Folders
# --------------------------------------------------------------------------------------------------------------------

# Of a run's folder, what is not pushed: for going on with a run, for TensorBoard, and what may hold a token
NOT_PUSHED = (
    "checkpoint-*", "checkpoint-*/*", "round_*/*", "runs/*", "training_args.bin", "to_push/*", "*.lock", "*.tmp",
)  # fmt: skip
_NAMES_A_PATH = re.compile(r"(name_or_path|_path|_file|_dir|^best_model_checkpoint)$")


def publishable_folder(folder: str | os.PathLike) -> Path:
    """
    A folder of which nothing but [`NOT_PUSHED`] has to be left out: the folder itself, or, if a configuration in it
    names a local model (as that of an adapter does, which needs the path to be loaded here), a copy `to_push` inside
    it, without the paths. Files are linked, not copied, where the file system can.

    Args:
        folder (`str` or `os.PathLike`):
            What a recipe wrote.
    """
    folder = Path(folder)
    copy, changed = folder / "to_push", {}
    shutil.rmtree(copy, ignore_errors=True)
    for name in (
        "adapter_config.json", "config.json", "generation_config.json", "tokenizer_config.json", "trainer_state.json",
    ):  # fmt: skip
        if (folder / name).is_file():
            before = json.loads((folder / name).read_text(encoding="utf-8"))
            if (after := _without_local_models(before)) != before:
                changed[name] = json.dumps(after, indent=2, ensure_ascii=False) + "\n"
    if not changed:
        return folder
    files = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    for file in filter_repo_objects(files, ignore_patterns=NOT_PUSHED):
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        if file in changed:
            (copy / file).write_text(changed[file], encoding="utf-8")
            continue
        try:
            os.link(folder / file, copy / file)
        except OSError:
            shutil.copyfile(folder / file, copy / file)
    return copy


def upload_publishable(api: HfApi, folder: str | os.PathLike, **options: Any) -> CommitInfo:
    """
    Upload what may be published of a folder, which stays as it is. A copy without paths ([`publishable_folder`]) is
    removed after the upload, and remains if it fails.

    Args:
        api ([`~huggingface_hub.HfApi`]):
            With which to upload.
        folder (`str` or `os.PathLike`):
            What a run wrote.
        **options:
            Further arguments of `api.upload_folder`, such as `repo_id`.
    """
    to_push = publishable_folder(folder)
    commit = api.upload_folder(folder_path=str(to_push), ignore_patterns=list(NOT_PUSHED), **options)
    if to_push != Path(folder):
        shutil.rmtree(to_push, ignore_errors=True)
    return commit


def _without_local_models(value: Any, name: str = "") -> Any:
    """A configuration whose paths and names of local models are their last parts."""
    if isinstance(value, dict):
        return {key: _without_local_models(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_local_models(item, name) for item in value]
    if isinstance(value, str) and _NAMES_A_PATH.search(name):
        return public_name(value, value)
    return value
