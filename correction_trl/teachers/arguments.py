"""Choosing a teacher in a YAML file or on the command line: the same arguments for every recipe."""

import json
from dataclasses import dataclass, field, fields
from typing import Any

from ..errors import BadInput
from ..functions import import_function
from .base import Teacher, as_teacher
from .people import PeopleArguments


@dataclass
class TeacherArguments:
    """
    Who corrects. Arguments that the chosen teacher does not read are an error.
    """

    teacher: str | None = field(
        default=None,
        metadata={
            "help": "Who corrects: `module:function`, `server`, `local`, `policy` (while it is trained), `stored`, "
            "`style_guide`, or `human` (collect_corrections.py). Not needed for stored pairs."
        },
    )
    teacher_model: str | None = field(
        default=None, metadata={"help": "server: the model's name there. local: Hub id or folder."}
    )
    teacher_base_url: str = field(
        default="http://localhost:8000/v1",
        metadata={"help": "server: address up to, and without, /chat/completions."},
    )
    teacher_api_key_variable: str = field(
        default="TEACHER_API_KEY", metadata={"help": "server: the environment variable that holds the API key."}
    )
    teacher_template: str | None = field(
        default=None,
        metadata={"help": "server, local, policy: a correction prompt, .jinja; by default the package's own."},
    )
    teacher_temperature: float | None = field(
        default=0.0, metadata={"help": "server, local, policy: sampling temperature; null: as the server has it."}
    )
    teacher_top_p: float | None = field(default=None, metadata={"help": "server, local: nucleus sampling."})
    teacher_max_tokens: int = field(
        default=2048, metadata={"help": "server, local: most tokens of a reply, thoughts included."}
    )
    teacher_extra_body: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "server: further fields of a request, as JSON; null removes one."}
    )
    teacher_concurrency: int = field(default=32, metadata={"help": "server: most requests at a time."})
    teacher_timeout: float = field(default=120.0, metadata={"help": "server: seconds that a request may take."})
    teacher_retries: int = field(default=6, metadata={"help": "server: further attempts after a failure."})
    teacher_price_in: float = field(default=0.0, metadata={"help": "server: price of a million tokens read."})
    teacher_price_out: float = field(default=0.0, metadata={"help": "server: price of a million tokens written."})
    teacher_load_in_4bit: bool = field(default=False, metadata={"help": "local: load with bitsandbytes' NF4."})
    teacher_batch_size: int = field(default=16, metadata={"help": "local: most prompts in one call of `generate`."})
    teacher_show_response: bool = field(
        default=False, metadata={"help": "policy: show it the response that it is to correct."}
    )
    teacher_dataset_name: str | None = field(
        default=None, metadata={"help": "stored: Hub id, folder or file with the corrections."}
    )
    teacher_style_guide: str | None = field(
        default=None, metadata={"help": "style_guide: a YAML file of rules; see docs/teachers.md."}
    )
    teacher_dataset_split: str = field(default="train", metadata={"help": "stored: its split."})

    def __post_init__(self):
        if isinstance(self.teacher_extra_body, str):
            try:
                self.teacher_extra_body = json.loads(self.teacher_extra_body)
            except ValueError as error:
                raise BadInput(f"`teacher_extra_body` is no JSON ({error}).") from None


# What each teacher reads: argument of the recipe -> argument of the class
_SAMPLING = {"teacher_template": "template", "teacher_temperature": "temperature"}
_READ = {
    "server": {
        "teacher_model": "model",
        "teacher_base_url": "base_url",
        "teacher_api_key_variable": "api_key_variable",
        **_SAMPLING,
        "teacher_top_p": "top_p",
        "teacher_max_tokens": "max_tokens",
        "teacher_extra_body": "extra_body",
        "teacher_concurrency": "concurrency",
        "teacher_timeout": "timeout",
        "teacher_retries": "retries",
        "teacher_price_in": "price_in",
        "teacher_price_out": "price_out",
    },
    "local": {
        "teacher_model": "model",
        **_SAMPLING,
        "teacher_top_p": "top_p",
        "teacher_max_tokens": "max_tokens",
        "teacher_load_in_4bit": "load_in_4bit",
        "teacher_batch_size": "batch_size",
    },
    "policy": {**_SAMPLING, "teacher_show_response": "show_response"},
    "stored": {"teacher_dataset_name": "dataset_name", "teacher_dataset_split": "split"},
    "style_guide": {"teacher_style_guide": "rules"},
    "human": {},
}
_REQUIRED = {"server": "teacher_model", "local": "teacher_model", "stored": "teacher_dataset_name",
             "style_guide": "teacher_style_guide"}  # fmt: skip


def make_teacher(arguments: TeacherArguments) -> Any:
    """
    The teacher that the arguments name.

    Args:
        arguments ([`TeacherArguments`]):
            From the YAML file or the command line.

    Returns:
        A [`Teacher`], a function, or `None` if no teacher is named; `"human"` is the recipe's own business.

    Raises:
        BadInput: If an argument is missing, wrong, or not read by the teacher.
    """
    kind = arguments.teacher
    given = {f.name for f in fields(arguments) if getattr(arguments, f.name) != f.default and f.name != "teacher"}
    read = _READ.get(kind, {})
    if given - set(read):
        of = {name: [kind for kind, names in _READ.items() if name in names] for name in sorted(given - set(read))}
        name, kinds = next(iter(of.items()))
        raise BadInput(
            f"`{name}` is for `teacher: {' or '.join(kinds)}`, and the teacher is {kind!r}; remove the one or change "
            "the other."
        )
    required = _REQUIRED.get(kind)
    if required is not None and getattr(arguments, required) is None:
        raise BadInput(f"`teacher: {kind}` needs `{required}`.")
    if kind is None or kind == "human":
        return None
    values = {argument: getattr(arguments, name) for name, argument in read.items()}
    if values.get("template", "") is None:
        del values["template"]
    if kind == "server":
        from .server import ServerTeacher

        return ServerTeacher(**values)
    if kind == "local":
        from .local import LocalTeacher

        return LocalTeacher(**values)
    if kind == "policy":
        from .policy import PolicyTeacher

        return PolicyTeacher(**values)
    if kind == "stored":
        from .stored import StoredTeacher

        return StoredTeacher(**values)
    if kind == "style_guide":
        from .style_guide import StyleGuide

        return StyleGuide(**values)
    return import_function(kind, "teacher")


def make_collecting_teacher(arguments: TeacherArguments, people: PeopleArguments) -> Teacher | None:
    """
    The teacher that a collection asks.

    Args:
        arguments ([`TeacherArguments`]):
            The settings.
        people ([`PeopleArguments`]):
            Those of people, which no other teacher reads.

    Returns:
        [`Teacher`], or `None` if people are asked.

    Raises:
        BadInput: If none is named, or one that needs a training, or settings do not fit together.
    """
    teacher = make_teacher(arguments)
    if arguments.teacher == "human":
        return None
    if teacher is None:
        raise BadInput("No `teacher` is named: `server`, `local`, `human`, `stored`, or a `module:function`.")
    if arguments.teacher == "policy":
        raise BadInput("`teacher: policy` needs a policy that is trained; use it in correction_optimization.py.")
    if people.export_items or people.import_answers:
        raise BadInput("`export_items` and `import_answers` are for `teacher: human`.")
    return as_teacher(teacher)
