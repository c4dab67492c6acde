"""Whether a policy's second attempt is better than its first, on problems that it was not trained on."""

from collections.abc import Callable
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data_utils import chat_template_kwargs, check_dataset, share_of_process
from ..errors import BadInput
from ..inference.answers import whole_text
from ..inference.strategy import Trace
from ..policy.attempts import FollowUps
from ..policy.generation import Sampler
from ..policy.rollout import Rollouts
from ..policy.tokenization import check_prompts, check_tokenizer, tokenize_prompt
from .evaluate import Evaluation, judge_traces, summarize_records


def evaluate_attempts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    value_function: Callable,
    instruction: str,
    n_turns: int = 2,
    temperature: float = 0.0,
    samples: int = 1,
    max_completion_length: int = 256,
    batch_size: int = 64,
    seed: int = 0,
    n_examples: int = 8,
    correct_threshold: float = 1.0,
    extract_answer: Callable[[str], str | None] = whole_text,
    template_kwargs: dict[str, Any] | None = None,
    top_p: float = 1.0,
    top_k: int = 0,
    rollouts: Rollouts | None = None,
) -> Evaluation:
    """
    Evaluate a policy that is asked to correct itself: the problem, its attempt, the instruction, its next attempt, and
    so on in one conversation. Nothing tells it whether an attempt was right.

    The keys are those of [`evaluate_traces`]: `acc@t1`, `acc@t2`, `delta(t1,t2)`, `delta(i->c)`, `delta(c->i)`, ... as
    fractions of all problems.

    All processes of a distributed run share the work and get the same result.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy, unwrapped.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        dataset ([`~datasets.Dataset`]):
            Column `prompt`, and whatever the value function needs.
        value_function (`Callable`):
            With TRL's `reward_funcs` signature. It judges each attempt alone.
        instruction (`str`):
            What the user says after each attempt but the last.
        n_turns (`int`, *optional*, defaults to `2`):
            Attempts per problem.
        temperature (`float`, *optional*, defaults to `0.0`):
            Of all attempts; 0 is greedy decoding.
        samples (`int`, *optional*, defaults to `1`):
            Independent conversations per problem; a problem's metrics are means over them.
        max_completion_length (`int`, *optional*, defaults to `256`):
            Most tokens of an attempt.
        batch_size (`int`, *optional*, defaults to `64`):
            Conversations per batch.
        seed (`int`, *optional*, defaults to `0`):
            Of the samples.
        n_examples (`int`, *optional*, defaults to `8`):
            How many examples to keep; those whose verdict changed first.
        correct_threshold (`float`, *optional*, defaults to `1.0`):
            A response is right if its value is at least this.
        extract_answer (`Callable`, *optional*):
            From the text of a response to its answer, `None` if there is none to be found (see
            `inference/answers.py`). By default the whole text is the answer, and an empty one is none.
        template_kwargs (`dict`, *optional*):
            Arguments of the chat template for all rows; a row's own come first.
        top_p (`float`, *optional*, defaults to `1.0`), top_k (`int`, *optional*, defaults to `0`):
            Where attempts are sampled: nucleus sampling, and the most likely tokens to sample from (0: all).
        rollouts ([`~policy.rollout.Rollouts`], *optional*):
            How responses are sampled; by default the fastest way that the model and the device allow.

    Returns:
        [`Evaluation`].

    Raises:
        BadInput: If the dataset, the chat template or the value function is at fault.

    Example:

    ```python
    instruction = "There might be an error in the answer above. Please correct it."
    evaluation = evaluate_attempts(model, tokenizer, dataset, exact_match, instruction, max_completion_length=16)
    print(evaluation.metrics["acc@t1"], evaluation.metrics["delta(i->c)"])
    ```
    """
    check_dataset(dataset, "the evaluation dataset", value_function)
    if samples > 1 and temperature == 0:
        raise BadInput(f"`samples={samples}` greedy samples are all the same; set a `temperature`, or one sample.")
    conversational = not isinstance(dataset[0]["prompt"], str)
    check_tokenizer(tokenizer, conversational)
    check_prompts(tokenizer, dataset, "the evaluation dataset", **(template_kwargs or {}))
    rollouts = rollouts or Rollouts()
    sampler = Sampler(model, tokenizer, max_completion_length, temperature, top_p, top_k, seed=seed, engine=rollouts)
    follow_ups = FollowUps(tokenizer, sampler.stop_ids)
    records = []
    rows = share_of_process(range(len(dataset)))
    prompts = {}
    for row in rows:
        kwargs = {**(template_kwargs or {}), **chat_template_kwargs(dataset[row])}
        prompt = dataset[row]["prompt"]
        prompts[row] = tokenize_prompt(tokenizer, prompt, **kwargs)[1], follow_ups.of(prompt, kwargs)
    # By length, so that little is padded
    conversations = sorted(
        ((row, sample) for row in rows for sample in range(samples)), key=lambda c: len(prompts[c[0]][0])
    )
    with rollouts.hold():
        for start in range(0, len(conversations), batch_size):
            batch = conversations[start : start + batch_size]

            def next_turn(turn, attempt_ids, batch=batch):
                return [prompts[row][1](ids, instruction) for (row, _), ids in zip(batch, attempt_ids, strict=True)]

            turns, _ = sampler.attempts([prompts[row][0] for row, _ in batch], next_turn, n_turns, names=batch)
            traces = {
                key: Trace(
                    responses=[attempts.texts[i] for attempts in turns],
                    tokens=[len(attempts.ids[i]) for attempts in turns],
                    replies=n_turns,
                    cut_off=sum(attempts.cut_off[i] for attempts in turns),
                )
                for i, key in enumerate(batch)
            }
            records += judge_traces(dataset, traces, value_function, extract_answer, correct_threshold)
    return summarize_records(dataset, records, n_examples, n_turns)
