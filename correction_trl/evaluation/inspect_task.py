"""The two-turn evaluation as a task of [Inspect AI](https://inspect.aisi.org.uk), for its models, logs and viewer.

    pip install inspect-ai
    inspect eval correction_trl/evaluation/inspect_task.py --model hf/your-name/your-model \
        -T dataset_name=your-name/your-problems -T value_function=correction_trl.rewards:gsm8k_accuracy

The metrics have the names of [`~evaluation.evaluate_attempts`] and the same meaning. Inspect renders each turn from
text, as any client of a chat server does; a policy that was trained on its own ids is best measured with
`recipes/evaluate.py`.
"""

import math
from collections.abc import Callable, Sequence

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, GenerateConfig
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, metric, scorer
from inspect_ai.solver import Generate, Solver, TaskState, solver

from correction_trl.carry_addition import embedded_path
from correction_trl.data_utils import NOT_FOR_THE_TEACHER, check_dataset, load_split, message_text
from correction_trl.evaluation.evaluate import extract_answers
from correction_trl.evaluation.metrics import attempt_metrics
from correction_trl.functions import Prompt, call_value_function, import_function
from correction_trl.inference.answers import whole_text
from correction_trl.policy.attempts import SELF_CORRECTION_INSTRUCTION


_MESSAGES = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}


@task
def self_correction(
    dataset_name: str | None = None,
    dataset_config: str | None = None,
    split: str = "test",
    rows: int | None = None,
    value_function: str = "correction_trl.carry_addition:exact_match",
    instruction: str = SELF_CORRECTION_INSTRUCTION,
    turns: int = 2,
    correct_threshold: float = 1.0,
    extract_answer: str = "correction_trl.inference:whole_text",
    temperature: float = 0.0,
    max_tokens: int | None = None,
) -> Task:
    """
    Each problem is attempted, the model is asked to correct itself, and every attempt is judged.

    Args:
        dataset_name (`str`, *optional*):
            Hub id, folder or file with a column `prompt`. By default the embedded task.
        dataset_config (`str`, *optional*):
            Configuration of the dataset.
        split (`str`, *optional*, defaults to `"test"`):
            Split to evaluate on.
        rows (`int`, *optional*):
            The first so many rows.
        value_function (`str`, *optional*):
            `"module:function"` with TRL's `reward_funcs` signature; by default the embedded task's.
        instruction (`str`, *optional*):
            What the user says between two attempts; by default SCoRe's.
        turns (`int`, *optional*, defaults to `2`):
            Attempts.
        correct_threshold (`float`, *optional*, defaults to `1.0`):
            Value from which a response is right.
        extract_answer (`str`, *optional*):
            `"module:function"` from a response to its answer; a response without one is wrong.
        temperature (`float`, *optional*, defaults to `0.0`):
            Of the attempts.
        max_tokens (`int`, *optional*):
            Most tokens of an attempt; by default the model's.

    Raises:
        BadInput: If the dataset or a function cannot be used.
    """
    value = import_function(value_function, "value_function")
    dataset = load_split(dataset_name or embedded_path("carry_addition"), dataset_config, split, rows)
    check_dataset(dataset, "the evaluation dataset", value)
    samples = [
        Sample(
            id=index,
            input=_as_input(row["prompt"]),
            target="",
            metadata={
                "prompt": row["prompt"],
                "columns": {name: column for name, column in row.items() if name not in NOT_FOR_THE_TEACHER},
            },
        )
        for index, row in enumerate(dataset)
    ]
    return Task(
        dataset=MemoryDataset(samples),
        solver=attempts(instruction, turns),
        scorer=attempts_scorer(value, turns, correct_threshold, import_function(extract_answer, "extract_answer")),
        config=GenerateConfig(temperature=temperature, max_tokens=max_tokens),
    )


def _as_input(prompt: Prompt) -> str | list:
    if isinstance(prompt, str):
        return prompt
    return [_MESSAGES[message["role"]](content=message_text([message])) for message in prompt]


@solver
def attempts(instruction: str, turns: int) -> Solver:
    """Asks for an attempt, and for the next one in the same conversation."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        responses = []
        for turn in range(turns):
            if turn:
                state.messages.append(ChatMessageUser(content=instruction))
            state = await generate(state)
            responses.append(state.output.completion)
        state.metadata["responses"] = responses
        return state

    return solve


def over_problems(name: str) -> Metric:
    """One of the metrics of [`~metrics.attempt_metrics`] over all problems that could be judged."""

    @metric(name=name)
    def build() -> Metric:
        def compute(scores: Sequence[SampleScore]) -> float:
            right = [score.score.metadata["right"] for score in scores]
            return attempt_metrics([[sample] for sample in right], resamples=1)[0][name]["mean"]

        return compute

    return build()


def attempts_scorer(
    value_function: Callable, turns: int, correct_threshold: float, extract_answer: Callable = whole_text
) -> Scorer:
    """Whether each attempt is right; what the value function cannot judge is left out of all metrics."""
    names = list(attempt_metrics([[[0] * turns]], resamples=1)[0])

    @scorer(metrics=[over_problems(name) for name in names], name="attempts")
    def build() -> Scorer:
        async def score(state: TaskState, target: Target) -> Score:
            responses, prompt = state.metadata["responses"], state.metadata["prompt"]
            columns = {name: [value] * turns for name, value in state.metadata["columns"].items()}
            values = call_value_function(value_function, [prompt] * turns, responses, columns)
            answers = extract_answers(extract_answer, [(state.sample_id, response) for response in responses])
            right = [
                0.0 if answer is None else None if v is None else float(v >= correct_threshold)
                for answer, v in zip(answers, values, strict=True)
            ]
            last = math.nan if None in right else right[-1]
            return Score(value=last, answer=responses[-1], metadata={"right": right})

        return score

    return build()
