"""What a policy could do before: tasks of EleutherAI's lm-eval on the policy in memory, before and after training."""

import copy
import functools
import importlib.util
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, Trainer

from ..errors import BadInput, first_line
from ..policy.generation import policy_for_generation, seeded
from .evaluate import Evaluation
from .metrics import summarize


class RegressionCheck:
    """
    What a policy could do before, measured before and after training.

    Args:
        tasks (`list[str]`):
            Of lm-eval; `["gsm8k,ifeval"]` names two.
        include_path, limit, batch_size:
            See [`evaluate_regression`].

    Raises:
        BadInput: If lm-eval is not installed, or no task is named.

    Attributes:
        setup (`dict`):
            What it takes to measure it again, for `metrics.json`.
    """

    def __init__(
        self, tasks: Sequence[str], include_path: str | None = None, limit: int | None = None, batch_size: int = 8
    ):
        self.tasks = list(dict.fromkeys(task.strip() for text in tasks for task in text.split(",") if task.strip()))
        self._how = (include_path, limit, batch_size)
        self._found: dict[str, Evaluation] = {}
        self.setup: dict[str, Any] = {}
        if not self.tasks:
            raise BadInput("`regression` names no task; name some of lm-eval's, such as `gsm8k,ifeval`.")
        if importlib.util.find_spec("lm_eval") is None:
            raise BadInput("`regression` needs EleutherAI's harness: pip install 'correction-trl[regression]'.")
        if include_path is not None and not Path(include_path).is_dir():
            raise BadInput(f"`regression_path={include_path!r}` is no folder; name the one with your task files.")

    def measure(self, trainer: Trainer, when: str) -> None:
        """
        Measure a trainer's policy.

        Args:
            trainer ([`~transformers.Trainer`]):
                Whose policy it is, unsharded.
            when (`str`):
                `"before"` or `"after"` training. What fails only then is printed: the trained model is not at fault.

        Raises:
            BadInput: From [`evaluate_regression`], before training.
        """
        trainer.accelerator.print(f"Measuring {', '.join(self.tasks)} {when} training ...")
        model = trainer.accelerator.unwrap_model(trainer.model)
        processor = trainer.processing_class
        tokenizer = processor.tokenizer if isinstance(processor, ProcessorMixin) else processor
        try:
            found = _run(model, tokenizer, self.tasks, *self._how)
            if found is None:  # on the processes that write no report
                return
            self._found[when] = _read(found, self.tasks)
            self.setup = {
                "lm_eval": found["lm_eval_version"],
                "n_shot": found["n-shot"],
                "task_versions": found["versions"],
                "limit": self._how[1],
            }
        except BadInput as error:
            if when == "before":
                raise
            trainer.accelerator.print(f"{error} The report is written without it.")

    def found(self) -> tuple[Evaluation, Evaluation] | None:
        """What was measured before and after; `None` unless both were."""
        return tuple(self._found[when] for when in ("before", "after")) if len(self._found) == 2 else None


def evaluate_regression(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    include_path: str | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> Evaluation | None:
    """
    Evaluate a policy on tasks of lm-eval, as their own files say (few-shot examples, greedy or not, filters), with the
    chat template where the tokenizer has one. Most tasks load their data from the Hub.

    The keys are `regression/<task>/<metric>`, and `.../<metric>,<filter>` where the task has filters. Where a metric
    is the mean of one value per problem, it has its interval and can be compared problem by problem; others (a corpus'
    BLEU, a group's average) are lm-eval's number without one.

    Every process of a distributed run evaluates all of it, so that none waits for another; the first of each machine
    gets the result.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy, unwrapped.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        tasks (`list[str]`):
            Names of tasks, groups or tags.
        include_path (`str`, *optional*):
            Folder with further task files.
        limit (`int`, *optional*):
            The first so many problems of each task.
        batch_size (`int`, *optional*, defaults to `8`):
            Problems per batch.

    Returns:
        [`Evaluation`], or `None` where `LOCAL_RANK` is not 0.

    Raises:
        BadInput: If lm-eval does not know a task, or cannot run it.
    """
    found = _run(model, tokenizer, tasks, include_path, limit, batch_size)
    return None if found is None else _read(found, tasks)


def _run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    include_path: str | None,
    limit: int | None,
    batch_size: int,
) -> dict[str, Any] | None:
    """What lm-eval returns: nothing where `LOCAL_RANK` is not 0."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)  # it advises against a model that is in memory, for reasons that do not hold here
    try:
        with policy_for_generation(model) as policy, seeded(0, policy.device):
            return lm_eval.simple_evaluate(
                HFLM(pretrained=policy, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size),
                tasks=list(tasks),
                task_manager=_task_manager(include_path),
                limit=limit,
                apply_chat_template=tokenizer.chat_template is not None,
                bootstrap_iters=0,
                # The training's random numbers go on where they were
                random_seed=None,
                numpy_random_seed=None,
                torch_random_seed=None,
            )
    except Exception as error:
        raise BadInput(
            f"`regression`: lm-eval cannot run {', '.join(tasks)} ({type(error).__name__}: "
            f"{first_line(error).rstrip('.')}). `lm_eval ls tasks` lists its tasks; most load their data from the "
            "Hub, once; your own lie in `regression_path`."
        ) from error
    finally:
        log.setLevel(level)


@functools.cache
def _task_manager(include_path: str | None) -> Any:
    """Reads ten thousand files, which takes some seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)


def _read(found: dict[str, Any], tasks: Sequence[str]) -> Evaluation:
    results = found["results"]
    names = [name for name in results if name in tasks]
    if set(tasks) - set(names):  # a tag has no result of its own
        names = list(results)
    metrics, per_problem = {}, {}
    for name in names:
        samples = found["samples"].get(name, [])
        for key, value in results[name].items():
            metric, _, chosen = key.partition(",")
            if not isinstance(value, int | float) or not chosen or metric.endswith("_stderr"):
                continue
            shown = f"regression/{name}/{metric}" + ("" if chosen == "none" else f",{chosen}")
            of_filter = sorted((s for s in samples if s.get("filter", "none") == chosen), key=lambda s: s["doc_id"])
            values = [sample.get(metric) for sample in of_filter]
            is_mean = values and all(isinstance(v, int | float) for v in values)
            if is_mean and math.isclose(sum(values) / len(values), value, abs_tol=1e-9):
                per_problem[shown] = [float(v) for v in values]
                metrics[shown] = summarize(per_problem[shown])
            else:
                nan = float("nan")
                metrics[shown] = {"mean": float(value), "low": nan, "high": nan, "n": results[name]["sample_len"]}
    if not metrics:
        raise BadInput(f"`regression`: lm-eval measured nothing on {', '.join(tasks)}; name other tasks.")
    return Evaluation(metrics=metrics, per_problem=per_problem, examples=[])
