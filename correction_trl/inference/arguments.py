"""Whom an evaluation asks, by which strategies and with which settings, from a configuration."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from trl import ModelConfig

from ..errors import BadInput
from ..functions import import_function, named_text, with_settings
from ..policy.attempts import SELF_CORRECTION_INSTRUCTION
from ..policy.rollout import ROLLOUT_WEIGHTS, Rollouts
from ._compute_curve import parallel, parallel_corrected
from ._controls import best_of_n, resample, self_consistency
from ._gated_revision import ask_whether_right, gated_revision, samples_agree
from ._intrinsic import intrinsic
from ._proco import proco, verify_by_key_condition
from ._refusal_baselines import refusal_demonstrations, self_reminder
from ._repair import repair
from ._self_checking import self_checking
from ._self_refine import self_refine
from ._with_corrector import Corrector, with_corrector
from ._with_feedback import with_feedback
from .answers import whole_text
from .chat import Chat, LocalChat, load_model
from .server_chat import ServerChat
from .trace_store import model_version


# What the traces of every strategy depend on: a run with another setting starts anew, the earlier traces stay
_OF_TRACES = (
    "turns", "instruction", "extract_answer", "check", "feedback_function", "feedback_settings", "temperature",
    "control_temperature", "max_completion_length", "top_p", "top_k", "seed",
)  # fmt: skip


@dataclass
class InferenceArguments:
    """
    Strategies of correction and their settings, and whom they ask.

    `turns`, `instruction`, `extract_answer` and `check` are those of the strategies of this package, as
    [`make_strategies`] binds them; `strategy_settings` sets one for one strategy, and everything for one's own.
    """

    strategies: list[str] = field(
        default_factory=lambda: ["intrinsic"],
        metadata={"help": "Names, or `module:function`; the others are compared with the first."},
    )
    controls: bool = field(default=True, metadata={"help": "Whether to run the controls with as many samples."})
    turns: int = field(default=2, metadata={"help": "Attempts of each strategy; samples of each control."})
    instruction: str | None = field(
        default=None, metadata={"help": "Asks for the next attempt, or `module:TEXT`; default: SCoRe's."}
    )
    extract_answer: str | None = field(
        default=None,
        metadata={
            "help": "`module:function` from a response to its answer; default: the whole text (docs/evaluation.md)."
        },
    )
    check: str = field(
        default="ask_whether_right",
        metadata={"help": "Decides, for `gated_revision`, whether to revise: a name, or `module:function`."},
    )
    corrector: str | None = field(default=None, metadata={"help": "Trained corrector, for `with_corrector`."})
    feedback_function: str | None = field(
        default=None,
        metadata={"help": "`module:function` that tells `with_corrector` or `with_feedback` about a response."},
    )
    feedback_settings: dict | str | None = field(default=None, metadata={"help": "Its settings, by parameter."})
    strategy_settings: dict | str | None = field(
        default=None, metadata={"help": 'Further settings by strategy, such as {"self_refine": {"rounds": 3}}.'}
    )
    temperature: float = field(default=0.0, metadata={"help": "Of attempts and checks; 0 is greedy."})
    control_temperature: float = field(default=0.7, metadata={"help": "Of the controls' samples."})
    top_p: float = field(default=1.0, metadata={"help": "Where replies are sampled: nucleus sampling."})
    top_k: int = field(default=0, metadata={"help": "Where they are: the most likely tokens to sample from; 0: all."})
    samples: int = field(default=1, metadata={"help": "Independent runs of each strategy on each problem."})
    max_completion_length: int = field(default=256, metadata={"help": "Most tokens of a reply."})
    batch_size: int = field(default=64, metadata={"help": "Conversations per batch of a local model."})
    seed: int = field(default=0, metadata={"help": "Of the samples."})
    rollout: str = field(
        default="auto", metadata={"help": "How a local model is sampled.", "choices": ["auto", "eager", "compiled"]}
    )
    rollout_weights: str = field(
        default="auto",
        metadata={"help": "Weights that captured steps sample from.", "choices": list(ROLLOUT_WEIGHTS)},
    )
    server_base_url: str | None = field(
        default=None,
        metadata={"help": "Address of an OpenAI-compatible server; the models' names are then the server's."},
    )
    server_concurrency: int = field(default=32, metadata={"help": "Most requests to the server at a time."})
    server_timeout: float = field(default=120.0, metadata={"help": "Seconds for one request."})
    server_api_key_variable: str = field(
        default="SERVER_API_KEY", metadata={"help": "Environment variable that holds the API key, if one is needed."}
    )

    def __post_init__(self):
        for name in ("strategy_settings", "feedback_settings"):
            if isinstance(getattr(self, name), str):
                try:
                    setattr(self, name, json.loads(getattr(self, name)))
                except json.JSONDecodeError as error:
                    raise BadInput(f"`{name}` is no JSON ({error}).") from None
        settings = self.strategy_settings or {}
        if not isinstance(settings, dict) or not all(isinstance(of, dict) for of in settings.values()):
            raise BadInput('`strategy_settings` must be by strategy, such as {"self_refine": {"rounds": 3}}.')
        for name in ("turns", "samples", "max_completion_length", "batch_size"):
            if getattr(self, name) < 1:
                raise BadInput(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if "with_corrector" in self.strategies and self.corrector is None:
            raise BadInput("The strategy `with_corrector` needs a `corrector`: the folder or Hub id of a trained one.")
        if "with_feedback" in self.strategies and self.feedback_function is None:
            raise BadInput(
                "The strategy `with_feedback` needs a `feedback_function`, for example "
                "`correction_trl.tasks.code_generation:failure`."
            )

    def describe(self) -> str:
        """How it was sampled, in a sentence for the report."""
        decoding = "Greedy decoding" if self.temperature == 0 else f"Temperature {self.temperature:g}"
        return (
            f"{decoding}, {self.turns} attempts; the controls sample {self.turns} times at temperature "
            f"{self.control_temperature:g}."
        )

    def extractor(self) -> Callable[[str], str | None]:
        """The function from a response to its answer."""
        return import_function(self.extract_answer, "extract_answer") if self.extract_answer else whole_text

    def feedback(self, find: Callable[[str, str], Callable] = import_function) -> Callable | None:
        """The feedback function with its settings, if one is named; `find` gets its name and the setting's."""
        if self.feedback_function is None:
            return None
        function = find(self.feedback_function, "feedback_function")
        if not self.feedback_settings:
            return function
        return with_settings(function, self.feedback_settings, "feedback_settings", n_given=2)


def make_strategies(
    arguments: InferenceArguments,
    value_function: Callable,
    corrector: Corrector | None = None,
    feedback_function: Callable | None = None,
) -> dict[str, partial]:
    """
    The strategies that a configuration names, with their settings, and the controls.

    Args:
        arguments ([`InferenceArguments`]):
            The configuration.
        value_function (`Callable`):
            What the control `best_of_n_oracle` chooses by.
        corrector ([`Corrector`], *optional*):
            For the strategy `with_corrector`.
        feedback_function (`Callable`, *optional*):
            For the strategy `with_feedback`: [`InferenceArguments.feedback`].

    Returns:
        `dict[str, partial]`: by name, in the order of the configuration, the controls last.

    Raises:
        BadInput: If a strategy, a check or a setting does not exist.
    """
    turns, extract_answer, own = arguments.turns, arguments.extractor(), arguments.strategy_settings or {}
    instruction = named_text(arguments.instruction or SELF_CORRECTION_INSTRUCTION, "instruction")
    # ProCo reads numbers by itself, unless it is told to read something else
    read = {} if arguments.extract_answer is None else {"extract_answer": extract_answer}
    checks = {
        "ask_whether_right": partial(ask_whether_right),
        "samples_agree": partial(samples_agree, extract_answer=extract_answer),
        "verify_by_key_condition": partial(verify_by_key_condition, **read),
    }
    check = checks.get(arguments.check) or partial(import_function(arguments.check, "check"))
    check = with_settings(check, own.get("check", {}), "strategy_settings.check", n_given=2)
    sampled = {"samples": turns, "temperature": arguments.control_temperature}
    controls = {
        "self_consistency": partial(self_consistency, extract_answer=extract_answer, **sampled),
        "best_of_n_oracle": partial(best_of_n, value_function=value_function, **sampled),
        "resample": partial(resample, turns=turns, temperature=arguments.control_temperature),
    }
    known = {
        "intrinsic": partial(intrinsic, turns=turns, instruction=instruction),
        "self_refine": partial(self_refine, rounds=turns - 1),
        "gated_revision": partial(gated_revision, rounds=turns - 1, check=check, instruction=instruction),
        "proco": partial(proco, rounds=turns - 1, **read),
        "self_checking": partial(self_checking, rounds=turns - 1),
        "self_reminder": partial(self_reminder),
        "refusal_demonstrations": partial(refusal_demonstrations),
        "with_corrector": partial(with_corrector, corrector=corrector),
        "with_feedback": partial(with_feedback, feedback_function=feedback_function, turns=turns),
        "repair": partial(repair, turns=turns, instruction=instruction),
        "parallel": partial(parallel, extract_answer=extract_answer),
        "parallel_corrected": partial(parallel_corrected, instruction=instruction, extract_answer=extract_answer),
        **controls,
    }
    names = dict.fromkeys([*arguments.strategies, *(controls if arguments.controls else ())])
    strategies = {}
    for name in names:
        if name not in known and ":" not in name:
            raise BadInput(f"`strategies`: there is no {name!r}; there are {', '.join(known)}, or `module:function`.")
        strategy = known.get(name) or partial(import_function(name, "strategies"))
        strategies[name] = with_settings(strategy, own.get(name, {}), f"strategy_settings.{name}", n_given=2)
    if unknown := sorted(own.keys() - strategies.keys() - {"check"}):
        raise BadInput(f"`strategy_settings` has settings for {', '.join(unknown)}, which is not among `strategies`.")
    return strategies


def make_chat(arguments: InferenceArguments, model: str, model_args: ModelConfig, accelerator: Accelerator) -> Chat:
    """A model to ask, loaded, or behind the server of the arguments."""
    limits = {"temperature": arguments.temperature, "max_tokens": arguments.max_completion_length}
    if arguments.server_base_url is not None:
        cut = {"top_p": arguments.top_p} if arguments.top_p != 1.0 else {}
        cut |= {"top_k": arguments.top_k} if arguments.top_k != 0 else {}  # not in OpenAI's protocol, but in vLLM's
        return ServerChat(
            model,
            arguments.server_base_url,
            concurrency=arguments.server_concurrency,
            timeout=arguments.server_timeout,
            api_key_variable=arguments.server_api_key_variable,
            extra_body=cut or None,
            **limits,
        )
    loaded = load_model(model, model_args, accelerator.device)
    return LocalChat(
        *loaded,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        rollouts=Rollouts(arguments.rollout, arguments.rollout_weights, resident=True),
        **limits,
    )


def make_corrector(
    arguments: InferenceArguments,
    model_args: ModelConfig,
    device: torch.device,
    feedback_function: Callable | None = None,
) -> Corrector | None:
    """The corrector that the strategy `with_corrector` needs, loaded as `model_args` say; `None` without it."""
    if "with_corrector" not in arguments.strategies:
        return None
    return Corrector(
        *load_model(arguments.corrector, model_args, device),
        feedback_function=feedback_function,
        max_corrections=arguments.turns - 1,
        message_template=arguments.corrector if Path(arguments.corrector).is_dir() else None,
        max_completion_length=arguments.max_completion_length,
        temperature=arguments.temperature,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        rollouts=Rollouts(arguments.rollout, arguments.rollout_weights, resident=True),
    )


def traces_depend_on(
    arguments: InferenceArguments, strategies: Iterable[str], value_function: str, version: str
) -> dict[str, dict[str, Any]]:
    """
    By strategy, what its traces depend on beside the problem. The value function is part of it only where it chooses.

    Args:
        arguments ([`InferenceArguments`]):
            The configuration.
        strategies (`Iterable[str]`):
            Names of the strategies.
        value_function (`str`):
            Its name.
        version (`str`):
            Of the model that is asked, from [`model_version`].
    """
    own = arguments.strategy_settings or {}
    common = {"model": version, "corrector": arguments.corrector and model_version(arguments.corrector)}
    common |= {name: getattr(arguments, name) for name in _OF_TRACES}
    return {
        name: {
            **common,
            "value_function": value_function if name == "best_of_n_oracle" else None,
            "own": [own.get(name), own.get("check")],
        }
        for name in strategies
    }
