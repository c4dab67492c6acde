from dataclasses import dataclass, field
from typing import Any

from trl import SFTConfig

from ..errors import BadInput
from ..policy.micro_batches import read_max_tokens
from ..policy.rollout import ROLLOUT, ROLLOUT_WEIGHTS, check_rollout_settings


# Settings of SFTConfig that the corrector's trainer does not read. Setting one is an error, not a silent no-op.
_UNUSED_SFT_SETTINGS = {
    "packing": "pairs are drawn anew for each update",
    "padding_free": "pairs are drawn anew for each update",
    "assistant_only_loss": "the loss is on the correction alone",
    "completion_only_loss": "the loss is on the correction alone",
    "eval_packing": "measure the corrector with `recipes/evaluate.py`",
    "shuffle_dataset": "pairs are drawn at random",
    "truncation_mode": "what does not fit in `max_length` is left out, and counted",
    "dataset_kwargs": "prompts are prepared by the trainer",
}


@dataclass
class CorrectorSFTConfig(SFTConfig):
    r"""
    Configuration class for the [`CorrectorSFTTrainer`].

    This class includes only the parameters that are specific to the training of a corrector. For the others (learning
    rate, `max_length`, ...) see [`~trl.SFTConfig`] and [`~transformers.TrainingArguments`]. Settings of `SFTConfig`
    that have no meaning here raise an error.

    Parameters:
        > Parameters that control the pool of responses

        samples_per_prompt (`int`, *optional*, defaults to `8`):
            N: responses that the generator samples for each prompt. `0`: none, with a dataset that brings its
            `generations` or with `gold_column`.
        gold_column (`str`, *optional*):
            Column with a right response (text); it joins the pool, as a target.
        initial_pool (`str`, *optional*):
            Pool of an earlier run (its `pair_pool.parquet`) to start from instead of sampling.
        max_per_prompt (`int`, *optional*):
            Most responses kept per prompt, gold ones not counted; by default all.
        pool_drop (`str`, *optional*, defaults to `"oldest"`):
            What goes when there are more: `"oldest"`, or `"lowest"` (value).

        > Parameters that control the pairs

        alpha (`float`, *optional*, defaults to `5.0`):
            Weight of the value gained in the choice of a correction.
        beta (`float`, *optional*, defaults to `2.0`):
            Weight of the similarity. `alpha=0` and `beta=0`: uniform.
        similarity (`str`, *optional*, defaults to `"correction_trl.rewards.similarity:edit_similarity"`):
            `module:function` for s(y, y') in [0, 1].
        pairing (`str`, *optional*, defaults to `"all"`):
            `"all"`: any response may be learned as the correction of any other to the same prompt. `"own"`: only what
            was sampled as its correction (STaR, STaSC).
        pair_filter (`str`, *optional*, defaults to `"improving"`):
            `"improving"`: v(y') > v(y). `"non_decreasing"`: also v(y') = v(y) >= `correct_threshold`: right
            responses that stay right, y' = y included.
        correct_threshold (`float`, *optional*, defaults to `1.0`):
            Value from which a response counts as right.
        show_response (`bool`, *optional*, defaults to `True`):
            Whether the model sees y. `False`: y' is learned from the prompt alone, which is plain fine-tuning on the
            better responses, or on gold.
        message_template (`str`, *optional*):
            Jinja file with what the user says after y (variable: `feedback`); by default
            `correction_trl/templates/corrector_message.jinja`.
        chat_template_kwargs (`dict`, *optional*):
            Passed to the chat template, for prompts and for the turn after y.

        > Parameters that control exploration

        exploration_steps (`int`, *optional*, defaults to `50`):
            Updates between two explorations. `0`: none.
        exploration_prompts (`int`, *optional*):
            Prompts per exploration, drawn at random; by default all.
        exploration_hypotheses (`int`, *optional*, defaults to `1`):
            Responses per prompt that are corrected, of the generator's and of the corrector's.
        exploration_samples (`int`, *optional*, defaults to `4`):
            Corrections sampled for each of them.
        evolving_generator (`bool`, *optional*, defaults to `False`):
            `True`: each exploration samples new first responses too, from the model as it is (STaR, evolving STaSC).
            `False`: the generator is fixed.
        accumulate (`bool`, *optional*, defaults to `True`):
            `False`: each exploration drops what earlier ones found, so that the pool is the latest round's.
        restart (`bool`, *optional*, defaults to `False`):
            `True`: after each exploration training starts again from the initial weights, with a fresh optimizer state
            (use a constant learning rate).

        > Parameters that control sampling

        max_completion_length (`int`, *optional*, defaults to `256`):
            Most tokens of a response and of a correction.
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature.
        top_p (`float`, *optional*, defaults to `1.0`):
            Nucleus sampling: the smallest set of tokens with at least this probability.
        top_k (`int`, *optional*, defaults to `0`):
            Number of most likely tokens to sample from; `0`: all.
        generation_kwargs (`dict`, *optional*):
            Further arguments of [`~transformers.GenerationConfig`], such as `min_p`.
        max_tokens_per_micro_batch (`int` or `str`, *optional*, defaults to `"auto"`):
            The rows of an update (`per_device_train_batch_size` times `gradient_accumulation_steps`) are sorted by
            length and cut into forwards of at most so many tokens, padding included; the gradient is the same however
            they are cut. `"auto"`: as many as the GPU's memory takes, tried once on the longest rows; on a CPU, and
            with `None`, forwards of `per_device_train_batch_size` rows.
        rollout (`str`, *optional*, defaults to `"auto"`):
            How responses are sampled: `"eager"` (transformers' `generate`), `"compiled"` (a static key-value cache and
            decoding steps captured in CUDA graphs), or `"auto"`: `"compiled"` on CUDA where the model's
            attention allows it. See docs/performance.md.
        rollout_weights (`str`, *optional*, defaults to `"auto"`):
            With captured steps, the weights that are sampled from: `"as_trained"`, `"dequantized"` (a 16-bit copy of
            4-bit layers, with the adapter beside it: the same distribution), `"merged"` (a copy with the adapter
            merged in: faster, but rounded), or `"auto"`: `"dequantized"` where the memory allows it.
        generation_batch_size (`int`, *optional*, defaults to `64`):
            Most prompts sampled at a time.
        ds3_gather_for_generation (`bool`, *optional*, defaults to `True`):
            DeepSpeed ZeRO-3: gather the weights for generation.
    """

    _VALID_DICT_FIELDS = SFTConfig._VALID_DICT_FIELDS + ["generation_kwargs", "chat_template_kwargs"]

    # Parameters that control the pool of responses
    samples_per_prompt: int = field(default=8, metadata={"help": "Responses of the generator for each prompt."})
    gold_column: str | None = field(
        default=None, metadata={"help": "Column with a right response, which joins the pool as a target."}
    )
    initial_pool: str | None = field(
        default=None, metadata={"help": "`pair_pool.parquet` of an earlier run to start from instead of sampling."}
    )
    max_per_prompt: int | None = field(
        default=None, metadata={"help": "Most responses kept per prompt, gold ones not counted."}
    )
    pool_drop: str = field(
        default="oldest",
        metadata={"help": "What goes when there are more: oldest or lowest.", "choices": ["oldest", "lowest"]},
    )

    # Parameters that control the pairs
    alpha: float = field(default=5.0, metadata={"help": "Weight of the value gained in the choice of a correction."})
    beta: float = field(default=2.0, metadata={"help": "Weight of the similarity."})
    similarity: str = field(
        default="correction_trl.rewards.similarity:edit_similarity",
        metadata={"help": "`module:function` for the similarity of two texts, in [0, 1]."},
    )
    pairing: str = field(
        default="all",
        metadata={
            "help": "all: any two responses to a prompt; own: a response and a correction sampled for it.",
            "choices": ["all", "own"],
        },
    )
    pair_filter: str = field(
        default="improving",
        metadata={
            "help": "improving, or non_decreasing: right responses that stay right, too.",
            "choices": ["improving", "non_decreasing"],
        },
    )
    correct_threshold: float = field(default=1.0, metadata={"help": "Value from which a response counts as right."})
    show_response: bool = field(
        default=True, metadata={"help": "Whether the model sees the response; False: plain fine-tuning on targets."}
    )
    message_template: str | None = field(
        default=None, metadata={"help": "Jinja file with what the user says after the response."}
    )
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of the chat template."}
    )

    # Parameters that control exploration
    exploration_steps: int = field(default=50, metadata={"help": "Updates between two explorations; 0: none."})
    exploration_prompts: int | None = field(
        default=None, metadata={"help": "Prompts per exploration; by default all."}
    )
    exploration_hypotheses: int = field(default=1, metadata={"help": "Responses per prompt that are corrected."})
    exploration_samples: int = field(default=4, metadata={"help": "Corrections sampled for each response."})
    evolving_generator: bool = field(
        default=False, metadata={"help": "Each exploration samples new first responses from the model as it is."}
    )
    accumulate: bool = field(default=True, metadata={"help": "False: each exploration drops what earlier ones found."})
    restart: bool = field(
        default=False, metadata={"help": "After each exploration, start again from the initial weights."}
    )

    # Parameters that control sampling
    max_completion_length: int = field(
        default=256, metadata={"help": "Most tokens of a response and of a correction."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus sampling."})
    top_k: int = field(default=0, metadata={"help": "Most likely tokens to sample from; 0: all."})
    generation_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Further arguments of GenerationConfig."}
    )
    max_tokens_per_micro_batch: str | None = field(
        default="auto", metadata={"help": "Most tokens of one forward, padding included; or auto, or null."}
    )
    rollout: str = field(default="auto", metadata={"help": "How responses are sampled.", "choices": list(ROLLOUT)})
    rollout_weights: str = field(
        default="auto",
        metadata={"help": "Weights that captured steps sample from.", "choices": list(ROLLOUT_WEIGHTS)},
    )
    generation_batch_size: int = field(default=64, metadata={"help": "Most prompts sampled at a time."})
    ds3_gather_for_generation: bool = field(
        default=True, metadata={"help": "DeepSpeed ZeRO-3: gather the weights for generation."}
    )

    def __post_init__(self):
        for name, remedy in _UNUSED_SFT_SETTINGS.items():
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise BadInput(f"`{name}` has no meaning for training a corrector; remove it: {remedy}.")
        self.max_tokens_per_micro_batch = read_max_tokens(self.max_tokens_per_micro_batch)
        check_rollout_settings(self)
        self._check()
        super().__post_init__()
        if self.eval_strategy != "no":
            raise BadInput(
                "`eval_strategy` has no meaning for training a corrector, whose pairs are its own; remove it, and "
                "measure the corrector with `recipes/evaluate.py`."
            )

    def _check(self):
        for name, choices in (
            ("pool_drop", ("oldest", "lowest")),
            ("pairing", ("all", "own")),
            ("pair_filter", ("improving", "non_decreasing")),
        ):
            if getattr(self, name) not in choices:
                raise BadInput(f"`{name}={getattr(self, name)!r}` must be one of {', '.join(map(repr, choices))}.")
        for name in ("alpha", "beta"):
            if not getattr(self, name) >= 0:  # NaN is not
                raise BadInput(f"`{name}={getattr(self, name)}` must not be negative.")
        for name, least in (
            ("samples_per_prompt", 0),
            ("exploration_steps", 0),
            ("exploration_hypotheses", 1),
            ("exploration_samples", 1),
            ("max_completion_length", 1),
            ("generation_batch_size", 1),
            ("per_device_train_batch_size", 1),
            ("gradient_accumulation_steps", 1),
        ):
            if getattr(self, name) < least:
                raise BadInput(f"`{name}={getattr(self, name)}` must be at least {least}.")
        for name in ("max_per_prompt", "exploration_prompts"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise BadInput(f"`{name}={getattr(self, name)}` must be at least 1.")
        if self.temperature <= 0:
            raise BadInput(f"`temperature={self.temperature}` must be positive: N equal responses make no pair.")
        if not self.samples_per_prompt and self.evolving_generator:
            raise BadInput("`evolving_generator` samples new responses; set `samples_per_prompt`.")
        if self.pairing == "own" and not self.exploration_steps:
            raise BadInput("`pairing='own'` learns from sampled corrections alone; set `exploration_steps`.")
        if self.restart and not self.exploration_steps:
            raise BadInput("`restart` starts again after each exploration; set `exploration_steps`.")
        if not self.show_response and self.exploration_steps:
            raise BadInput("`show_response=False` trains no corrector that could explore; set `exploration_steps: 0`.")
