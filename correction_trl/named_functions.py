"""The functions that a recipe's settings name: `module:function`, with settings of its own, or a model that judges."""

import functools
import json
from collections.abc import Callable
from typing import Any

from .errors import BadInput
from .functions import import_function, with_settings


def named_function(
    arguments: Any,
    setting: str,
    embedded: str | None = None,
    required: bool = False,
    settings: str | None = None,
) -> Callable | None:
    """
    The function that a setting names as `module:function`.

    Args:
        arguments ([`~recipe.DataArguments`]):
            Those with the setting.
        setting (`str`):
            Its name.
        embedded (`str`, *optional*):
            The function for the embedded task, where the setting is not given. It is written into the arguments.
        required (`bool`, *optional*, defaults to `False`):
            Whether the recipe cannot do without.
        settings (`str`, *optional*):
            Name of the setting that holds the function's own, by parameter, as a dict or as JSON. The function's first
            two parameters are none.

    Raises:
        BadInput: If it is required and not given, does not exist, or has no such settings.
    """
    if arguments.embedded and getattr(arguments, setting) is None:
        setattr(arguments, setting, embedded)
    name = getattr(arguments, setting)
    if name is None and required:
        raise BadInput(
            f"`{setting}` is required: nothing else says which responses are right. Name a `module:function`, for "
            "example `my_rewards:is_right`; see docs/rewards.md."
        )
    function = None if name is None else function_or_judge(arguments, name, setting)
    own = getattr(arguments, settings) if settings else None
    if isinstance(own, str):
        try:
            own = json.loads(own)
        except json.JSONDecodeError as error:
            raise BadInput(f"`{settings}` is no JSON ({error}).") from None
    if own and function is None:
        raise BadInput(f"`{settings}` is set and `{setting}` is not; name the function that they are for.")
    return with_settings(function, own, settings, n_given=2) if own else function


def function_or_judge(arguments: Any, name: str, setting: str) -> Callable:
    """
    The function `module:function`; or for `judge` and `judge:feedback` the judge of the arguments, one for all that
    name it.

    Args:
        arguments ([`~recipe.DataArguments`]):
            Those with the setting `judge`.
        name (`str`):
            The function's name.
        setting (`str`):
            The setting that names it.

    Raises:
        BadInput: If there is none, or no judge that it could be.
    """
    if name not in ("judge", "judge:feedback"):
        return import_function(name, setting)
    judge = _judge(arguments.judge if isinstance(arguments.judge, str) else json.dumps(arguments.judge))
    return judge if name == "judge" else judge.feedback


@functools.lru_cache
def _judge(setting: str) -> Callable:
    from .teachers import ServerJudge

    example = "for example `judge: {model: Qwen/Qwen2.5-7B-Instruct, base_url: http://localhost:8000/v1}`"
    try:
        settings = json.loads(setting)
    except json.JSONDecodeError as error:
        raise BadInput(f"`judge` is no JSON ({error}).") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("model"), str):
        raise BadInput(f"A function named `judge` needs the setting `judge`, a mapping with a `model`, {example}.")
    return ServerJudge(**settings)
