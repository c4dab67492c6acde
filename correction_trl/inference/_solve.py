"""All strategies on all problems: what is stored is not asked again, and processes share the rest."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from tqdm.auto import tqdm

from ..data_utils import check_dataset, problem_ids, share_of_process
from ..functions import call_table_function, call_value_function
from .chat import Chat
from .strategy import Problem, Strategy, Trace, run
from .trace_store import TraceStore, trace_key


def problems_of(dataset: Dataset, value_function: Callable, table_function: Callable | None = None) -> list[Problem]:
    """
    The problems of a dataset, after a look at them and at the functions: what is wrong is said before hours of
    sampling.

    Args:
        dataset ([`~datasets.Dataset`]):
            Column `prompt`, and whatever the value function needs.
        value_function (`Callable`):
            With TRL's `reward_funcs` signature.
        table_function (`Callable`, *optional*):
            As in [`~correction_trl.evaluation.evaluate_traces`].

    Raises:
        BadInput: If a prompt is not usable, or one of the functions cannot judge an empty response.
    """
    check_dataset(dataset, "the evaluation dataset", value_function)
    problems = [Problem.of(row) for row in dataset]
    columns = {name: [value] for name, value in problems[0].columns.items()}
    call_value_function(value_function, [problems[0].prompt], [""], columns)
    if table_function is not None and PartialState().is_main_process:  # which alone will call it
        call_table_function(table_function, [problems[0].prompt], [[""]], columns)
    return problems


def solve(
    problems: Sequence[Problem],
    strategies: Mapping[str, Strategy],
    make_chat: Callable[[], Chat],
    store: TraceStore,
    depends_on: Mapping[str, Mapping[str, Any]],
    samples: int = 1,
    title: str = "",
) -> dict[str, dict[tuple[int, int], Trace]]:
    """
    Solve problems by strategies, with what is in the store as a beginning.

    Args:
        problems (`Sequence[Problem]`):
            The problems; each process takes its share.
        strategies (`dict[str, Strategy]`):
            By name.
        make_chat (`Callable`):
            Called for the model only if something is left to ask.
        store ([`TraceStore`]):
            Keeps each trace as it ends.
        depends_on (`dict[str, dict]`):
            What the traces of a strategy depend on beside its name and the problem: model, sampling, settings. Stored
            ones are used if nothing of that has changed.
        samples (`int`, *optional*, defaults to `1`):
            Independent runs of each strategy on each problem.
        title (`str`, *optional*):
            Of the progress bar.

    Returns:
        `dict`: by strategy this process's traces, by row and sample, as [`~evaluation.evaluate_traces`] takes them. A
        problem that got no reply is not there.
    """
    columns = {name for problem in problems for name in problem.columns}
    ids = problem_ids({name: [problem.columns.get(name) for problem in problems] for name in columns}, len(problems))
    mine = share_of_process([(row, sample) for row in range(len(problems)) for sample in range(samples)])
    keys = {
        (name, row, sample): trace_key(
            strategy=name, problem=vars(problems[row]), row=row, sample=sample, **depends_on[name]
        )
        for name in strategies
        for row, sample in mine
    }
    missing = [item for item, key in keys.items() if store.get(key) is None]
    if missing:
        chat = make_chat()
        with tqdm(total=len(missing), desc=title, disable=not PartialState().is_main_process) as bar:

            def keep(index: int, trace: Trace) -> None:
                trace.strategy, row, trace.sample = missing[index]
                trace.problem = ids[row]
                store.add(keys[missing[index]], trace)
                bar.update()

            askings = (strategies[name](chat, problems[row]) for name, row, _ in missing)
            run(askings, chat.window, keep, names=missing)
    found: dict[str, dict[tuple[int, int], Trace]] = {name: {} for name in strategies}
    for (name, row, sample), key in keys.items():
        if (trace := store.get(key)) is not None:
            found[name][row, sample] = trace
    return found
