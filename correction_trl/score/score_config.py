from dataclasses import dataclass, field

from trl import RLOOConfig

from ..errors import BadInput
from ..policy.attempts import SELF_CORRECTION_INSTRUCTION
from ..policy.micro_batches import read_max_tokens
from ..policy.rollout import ROLLOUT, ROLLOUT_WEIGHTS, check_rollout_settings
from .turn_credit import KL_ESTIMATORS


# Settings of RLOOConfig that SCoRe does not read. Setting one is an error, not a silent no-op.
_UNUSED_RLOO_SETTINGS = {
    "num_generations_eval": "the evaluation takes one greedy and one sampled conversation per problem",
    "beta": "the KL weights are `beta_1` (every attempt) and `beta_2` (first attempt, Stage I)",
    "normalize_advantages": "it would divide the bonus `alpha` away again",
    "reward_clip_range": "clip in the reward function; the bonus is a difference of rewards",
    "use_transformers_continuous_batching": "a second attempt continues from the first one's key-value cache",
    "use_transformers_paged": "a second attempt continues from the first one's key-value cache",
    "sync_ref_model": "the reference is fixed; see `reference`",
    "cache_implementation": "a second attempt continues from the first one's key-value cache",
}


@dataclass
class SCoReConfig(RLOOConfig):
    r"""
    Configuration class for the [`SCoReTrainer`].

    This class includes only the parameters that are specific to SCoRe. For the others (sampling, vLLM, logging,
    optimisation, ...) see [`~trl.RLOOConfig`] and [`~transformers.TrainingArguments`]. Settings of `RLOOConfig` that
    have no meaning here raise an error. `num_generations` is the number of rollouts per prompt (at least 2, for the
    leave-one-out baseline), `max_completion_length` the most tokens of one attempt, and a batch
    (`per_device_train_batch_size`, `generation_batch_size`) counts rollouts.

    Parameters:
        > Parameters that control the stages

        stage (`str`, *optional*, defaults to `"both"`):
            `"1"`: only Stage I, which keeps the first attempt where it is and teaches the second to differ and be
            right. `"2"`: only Stage II, which rewards both attempts. `"both"`: first one, then the other, in one run
            with one optimizer. A stage begins with a generation: with `steps_per_generation` above
            `gradient_accumulation_steps`, at the first one after its step.
        stage_1_fraction (`float`, *optional*, defaults to `0.5`):
            Share of the steps that belong to Stage I, with `stage="both"`.
        reference (`str`, *optional*, defaults to `"base"`):
            What the KL is measured from: `"base"`, the policy before training; or `"stage_1"`, in Stage II the policy
            at the end of Stage I.

        > Parameters that control the objective

        alpha (`float`, *optional*, defaults to `10.0`):
            α, the weight of the progress bonus α (r₂ − r₁) that the second attempt gets in Stage II. 0 removes it.
        beta_1 (`float`, *optional*, defaults to `0.01`):
            β₁, the weight of the KL of every attempt, in both stages.
        beta_2 (`float`, *optional*, defaults to `0.1`):
            β₂, the weight of the first attempt's KL in Stage I, on top of β₁.
        first_attempt_kl_target (`float`, *optional*):
            With it, β₂ is adapted: raised by up to 10 % per step while the first attempt's KL, in nats, is above this
            target, and lowered likewise below it.
        kl_estimator (`str`, *optional*, defaults to `"k1"`):
            `"k1"` (score function, unbiased on-policy), `"k2"` or `"k3"`; see
            [`~correction_trl.score.turn_credit.multi_turn_loss`].
        gamma (`float`, *optional*, defaults to `0.0`):
            γ, how much of a later attempt's return an earlier one is credited with.

        > Parameters that control the attempts

        turns (`int`, *optional*, defaults to `2`):
            Attempts per rollout. 1 is single-turn RL.
        instruction (`str`, *optional*):
            What the user says between two attempts. It must not tell whether the attempt was right. The default is
            the paper's for math, without its sentences about the answer's format: add those of your task.
        correct_threshold (`float`, *optional*, defaults to `1.0`):
            An attempt counts as right in the metrics if its reward is at least this.
        rollout (`str`, *optional*, defaults to `"auto"`):
            How responses are sampled: `"eager"` (transformers' `generate`), `"compiled"` (a static key-value cache and
            decoding steps captured in CUDA graphs), `"vllm"`, or `"auto"`: `"compiled"` on CUDA where the model's
            attention allows it. See docs/performance.md.
        rollout_weights (`str`, *optional*, defaults to `"auto"`):
            With captured steps, the weights that are sampled from: `"as_trained"`, `"dequantized"` (a 16-bit copy of
            4-bit layers, with the adapter beside it: the same distribution), `"merged"` (a copy with the adapter
            merged in: faster, but rounded), or `"auto"`: `"dequantized"` where the memory allows it.

        > Parameters that control the training

        max_tokens_per_micro_batch (`int` or `str`, *optional*, defaults to `"auto"`):
            The rollouts of an update (`per_device_train_batch_size` times `gradient_accumulation_steps`) are sorted by
            length and cut into forwards of at most so many tokens, padding included; the gradient is the same however
            they are cut. `"auto"`: as many as the GPU's memory takes, tried once on the longest rows; on a CPU, and
            with `None`, forwards of `per_device_train_batch_size` rows.
        keep_best_reward (`bool`, *optional*, defaults to `False`):
            End with the checkpoint of the highest training reward, as the paper does: the mean reward of all attempts
            over the updates since the checkpoint before it; of two stages, those of Stage II. `save_total_limit` keeps
            it.
    """

    _VALID_DICT_FIELDS = RLOOConfig._VALID_DICT_FIELDS

    # Defaults that differ from RLOOConfig
    learning_rate: float = field(
        default=5e-6, metadata={"help": "Initial learning rate for AdamW. The paper's, for full fine-tuning."}
    )
    num_generations: int | None = field(default=8, metadata={"help": "Rollouts per prompt, at least 2."})
    num_generations_eval: int | None = field(
        default=1, metadata={"help": "Not used: the evaluation takes one greedy and one sampled conversation."}
    )
    beta: float | None = field(default=None, metadata={"help": "Not used: see `beta_1` and `beta_2`."})

    # The stages
    stage: str = field(default="both", metadata={"help": "'1', '2' or 'both'."})
    stage_1_fraction: float = field(
        default=0.5, metadata={"help": "Share of the steps that belong to Stage I, with stage='both'."}
    )
    reference: str = field(
        default="base",
        metadata={
            "help": "Policy that the KL is measured from: 'base', or in Stage II 'stage_1'.",
            "choices": ["base", "stage_1"],
        },
    )

    # The objective
    alpha: float = field(default=10.0, metadata={"help": "Weight of the progress bonus in Stage II."})
    beta_1: float = field(default=0.01, metadata={"help": "Weight of every attempt's KL, in both stages."})
    beta_2: float = field(default=0.1, metadata={"help": "Weight of the first attempt's KL in Stage I, on top."})
    first_attempt_kl_target: float | None = field(
        default=None, metadata={"help": "KL of the first attempt, in nats, that beta_2 is adapted to hold."}
    )
    kl_estimator: str = field(
        default="k1", metadata={"help": "Estimator of the KL's gradient.", "choices": list(KL_ESTIMATORS)}
    )
    gamma: float = field(default=0.0, metadata={"help": "Share of a later attempt's return for an earlier one."})

    # The attempts
    turns: int = field(default=2, metadata={"help": "Attempts per rollout; 1 is single-turn RL."})
    instruction: str = field(
        default=SELF_CORRECTION_INSTRUCTION, metadata={"help": "What the user says between two attempts."}
    )
    correct_threshold: float = field(
        default=1.0, metadata={"help": "An attempt counts as right from this reward on, in the metrics."}
    )

    rollout: str = field(default="auto", metadata={"help": "How responses are sampled.", "choices": list(ROLLOUT)})
    rollout_weights: str = field(
        default="auto",
        metadata={"help": "Weights that captured steps sample from.", "choices": list(ROLLOUT_WEIGHTS)},
    )

    # The training
    max_tokens_per_micro_batch: str | None = field(
        default="auto", metadata={"help": "Most tokens of one forward, padding included; or auto, or null."}
    )
    keep_best_reward: bool = field(
        default=False, metadata={"help": "End with the checkpoint of the highest training reward."}
    )

    def __post_init__(self):
        check_rollout_settings(self)
        for name in ("num_generations", "num_iterations"):  # RLOOConfig divides by them first
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise BadInput(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        self._set_metric_of_the_best_model()
        super().__post_init__()
        for name in ("min_p", "repetition_penalty"):
            if getattr(self, name) != RLOOConfig.__dataclass_fields__[name].default:
                raise BadInput(f"`{name}`: put it into `generation_kwargs`, as for all trainers of this package.")
        self.max_tokens_per_micro_batch = read_max_tokens(self.max_tokens_per_micro_batch)
        for name, remedy in _UNUSED_RLOO_SETTINGS.items():
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise BadInput(f"`{name}` has no meaning in SCoRe: {remedy}.")
        if self.keep_best_reward:
            self._check_keep_best_reward()
        self.stage = str(self.stage)  # YAML reads `stage: 1` as a number
        if self.stage not in ("1", "2", "both"):
            raise BadInput(f"`stage` must be '1', '2' or 'both', got {self.stage!r}.")
        if self.turns < 1:
            raise BadInput(f"`turns` must be at least 1, got {self.turns}.")
        if self.turns == 1 and self.stage != "2":
            raise BadInput("`turns: 1` has no second attempt for Stage I; set `stage: 2` (single-turn RL).")
        if not 0.0 < self.stage_1_fraction < 1.0:
            raise BadInput(
                f"`stage_1_fraction` must lie between 0 and 1, got {self.stage_1_fraction}; for one stage alone set "
                "`stage`."
            )
        for name in ("beta_1", "beta_2", "alpha"):
            if getattr(self, name) < 0:
                raise BadInput(f"`{name}` must not be negative, got {getattr(self, name)}.")
        if not 0.0 <= self.gamma <= 1.0:
            raise BadInput(f"`gamma` must lie between 0 and 1, got {self.gamma}.")
        if self.first_attempt_kl_target is not None and (self.first_attempt_kl_target <= 0 or self.beta_2 <= 0):
            raise BadInput("`first_attempt_kl_target` and the `beta_2` it starts from must be positive.")
        if self.turns > 1 and not self.instruction.strip():
            raise BadInput("`instruction` is empty; it is what asks for the next attempt.")
        if self.reference not in ("base", "stage_1"):
            raise BadInput(f"`reference` must be 'base' or 'stage_1', got {self.reference!r}.")
        if self.kl_estimator not in KL_ESTIMATORS:
            raise BadInput(f"`kl_estimator` must be one of {', '.join(KL_ESTIMATORS)}, got {self.kl_estimator!r}.")

    def _set_metric_of_the_best_model(self):
        if self.load_best_model_at_end:  # by `eval_loss` otherwise, which no evaluation of SCoRe has
            self.metric_for_best_model = self.metric_for_best_model or f"eval_acc@t{self.turns}"
            if self.metric_for_best_model.removeprefix("eval_") == "loss":
                raise BadInput(
                    "`metric_for_best_model: loss`: an evaluation of SCoRe has no loss; leave it out (the accuracy of "
                    "the last attempt), or name one of its metrics, such as `eval_delta(t1,t2)`."
                )

    def _check_keep_best_reward(self):
        if self.save_strategy == "no":
            raise BadInput(
                "`keep_best_reward` chooses among checkpoints: set `save_strategy: steps`, and `save_steps`."
            )
        if self.load_best_model_at_end:
            raise BadInput(
                "`keep_best_reward` chooses by the training reward and `load_best_model_at_end` by an evaluation; set "
                "one of them."
            )

    def stage_at(self, step: int, max_steps: int) -> int:
        """
        Stage (1 or 2) that an optimizer step belongs to.

        Args:
            step (`int`):
                Steps done, from 0.
            max_steps (`int`):
                Steps of the whole run.
        """
        if self.stage != "both":
            return int(self.stage)
        return 1 if step < round(self.stage_1_fraction * max_steps) else 2
