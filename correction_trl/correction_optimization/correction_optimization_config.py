import math
from dataclasses import dataclass, field
from typing import Any

import yaml
from trl import DPOConfig

from ..errors import BadInput
from ..policy.completions import MISSING_THOUGHTS
from ..policy.micro_batches import read_max_tokens
from ..policy.rollout import ROLLOUT, ROLLOUT_WEIGHTS, check_rollout_settings
from .length_prior import make_length_prior
from .losses import LOSS_TYPES


# (beta, nll_weight) where they are not set, chosen by docs/two_lengths_study.md: of three anchors, the smallest whose
# accuracy at 14 and at 154 tokens is within two points of the loss's best. Of the gradient on an edited token the
# preference term is then 0.42 times the anchor (linear: 0.1 times)
DEFAULTS = {
    "linear": (0.1, 9.6),
    "sigmoid": (0.3, 0.36),
    "hinge": (0.3, 0.72),
    "ipo": (0.3, 8.0),
    "dpop": (0.3, 0.36),
    "cpl": (0.3, 0.36),
    "ddpo": (0.5, 3.0),
    "sft": (0.3, 0.0),  # has neither
}
# Weight of a length prior where none is set: a margin of the sigmoid kind counts beta times, so that its prior needs
# more. Measured: docs/length_prior_study.md. (Scores of `ipo` and `ddpo` are per token.)
PRIOR_WEIGHTS = {
    "linear": 2.0,
    "sigmoid": 4.0,
    "hinge": 4.0,
    "ipo": 1.0,
    "dpop": 4.0,
    "cpl": 4.0,
    "ddpo": 1.0,
    "sft": 1.0,
}
# Which tokens of y and y' are in the loss
CREDIT = ("all", "from_edit", "edits")


# Settings of DPOConfig that correction optimization does not read. Setting one is an error, not a silent no-op.
_UNUSED_DPO_SETTINGS = {
    "loss_weights": "use `nll_weight` for the NLL anchor",
    "ld_alpha": "there is no length-desensitised variant here",
    "f_divergence_type": "only the reverse KL is supported",
    "f_alpha_divergence_coef": "only the reverse KL is supported",
    "use_weighting": "on-policy responses need no importance weights",
    "discopop_tau": "there is no DiscoPOP loss here",
    "padding_free": "use `shared_prefix`, which also removes padding",
    "truncation_mode": "only 'keep_start' is supported",
    "pad_token": "set `tokenizer.pad_token` and pass the tokenizer as `processing_class`",
}


@dataclass
class CorrectionOptimizationConfig(DPOConfig):
    r"""
    Configuration class for the [`CorrectionOptimizationTrainer`].

    This class includes only the parameters that are specific to correction optimization. For the others (reference
    model, truncation, dropout, ...) see [`~trl.DPOConfig`] and [`~transformers.TrainingArguments`]. Settings of
    `DPOConfig` that have no meaning here raise an error.

    Parameters:
        learning_rate (`float`, *optional*, defaults to `1e-5`):
            Initial learning rate of AdamW, for all the weights. With the anchor an update is much like one of
            fine-tuning, so it is ten times TRL's for DPO; an adapter takes ten times as much again, which recipes set
            where none is given.

        > Parameters that control the loss

        loss_type (`str`, *optional*, defaults to `"sigmoid"`):
            `"linear"` (the bare amount of correction), `"sigmoid"` (DPO / CPL), `"hinge"`, `"ipo"`, `"dpop"`
            (DPO-Positive), `"cpl"` (sigmoid with a conservative bias), `"ddpo"` (sigmoid on scores that weight the
            corrected tokens) or `"sft"` (fine-tuning on the corrections, −log π(y'|x): the control of the others; no
            reference is loaded, and only y' is computed). See
            `correction_trl/correction_optimization/losses.py` for the formulas.
        beta (`float`, *optional*):
            Inverse temperature β of every loss but the linear one; for `"ipo"`, the paper's τ. By default 0.3, and 0.5
            for `"ddpo"`.
        reference_free (`bool`, *optional*, defaults to `False`):
            `True`: P = π, no reference model is loaded. `False`: P = π / π_old, π_old being the policy before training
            (or `ref_model`, or with `sync_ref_model` a slowly following copy).
        nll_weight (`float`, *optional*):
            Weight of the NLL anchor −log π(y'|x), which keeps the correction's likelihood from falling together with
            the response's. It weighs tokens as the loss does (a sum; for `"ipo"` a mean, for `"ddpo"` edit-weighted),
            so that its share of the gradient is the same at every length. By default what docs/two_lengths_study.md
            chose for the loss: 0.36 for `"sigmoid"`, `"dpop"` and `"cpl"`, 0.72 for `"hinge"`, 8.0 for `"ipo"`, 3.0
            for `"ddpo"`, 9.6 for `"linear"`; `0.0` removes it.
        label_smoothing (`float`, *optional*, defaults to `0.0`):
            ε in [0, 0.5) of conservative DPO; for `loss_type="sigmoid"` only.
        dpop_lambda (`float`, *optional*, defaults to `50.0`):
            λ of `loss_type="dpop"`.
        cpl_bias (`float`, *optional*, defaults to `0.5`):
            λ in (0, 1] of `loss_type="cpl"`: the weight of the response's term.
        ddpo_gamma (`float`, *optional*, defaults to `5.0`):
            γ of `loss_type="ddpo"`: the weight of a corrected token relative to a kept one.
        credit (`str`, *optional*, defaults to `"all"`):
            Which tokens of y and y' are in the loss, its anchor included: `"all"`; `"from_edit"`, those from the first
            that differs on (in a difference of sums the others cancel anyway: it is the anchor that leaves the common
            prefix alone); `"edits"`, only what the teacher changed, by a minimal alignment of tokens. In pivotal
            credit assignment ([paper](https://huggingface.co/papers/2601.03715)) it is an error's place, found by a
            judge, where the credit begins; here the correction shows it. Not for `"ddpo"`, which has weights of its
            own.
        length_prior (`dict`, *optional*):
            A prior l over response lengths in tokens, towards which the policy's responses move, as a mapping:
            `name` (`"normal"` or `"lognormal"` with `mean` and `std`; `"fitted"` with `lengths`, a list of observed
            ones; or `"module:function"`, a function from lengths to log-probabilities), `weight` (w; by default 2.0
            for `"linear"`, 1.0 for `"ipo"` and `"ddpo"`, 4.0 for the others) and `form`. `form: attract` (the
            default): the implicit reward of a response is log π(y|x) − log π_old(y|x) − w log l(y), and the anchor on
            a correction counts 2σ(w [log l(y') − log l(y)]) times: more where l prefers its length to the response's.
            Corrections of other lengths pull the other way. `form: product`: P(y) = π(y) l(y)^w as the note writes
            it, which leads away from the lengths that l likes. Under the linear loss the prior acts through the
            sampling of y (a score-function term), so it needs on-policy responses.
        unchanged_pairs (`str`, *optional*, defaults to `"drop"`):
            What to do where the teacher found nothing to correct (y' = y). `"drop"`: the pair is counted, and is in no
            loss and no average. `"keep"`: it stays in the average and in the NLL anchor (its preference loss has no
            gradient).
        replay_share (`float`, *optional*):
            With a `replay_dataset`: the share s of each update's rows that is replayed, in (0, 1); 0.1 by default. To
            the B pairs of a process, R = round(B s / (1 − s)) rows are added, at least one, and the loss of the update
            is (1 − s) times that of its pairs, as it is without replay, plus s times the mean over its replayed rows
            of w times −log π(completion | prompt). Which rows: [`~correction_trl.policy.replay.Replay`].
        replay_weight (`float`, *optional*):
            w, the weight of a replayed row's NLL, which weighs tokens as the loss does (a sum; a mean for `"ipo"` and
            `"ddpo"`). By default the loss's default `nll_weight`, so that a replayed token is held as much as one of a
            correction; 1.0 for `"sft"`.
        shared_prefix (`str` or `bool`, *optional*, defaults to `"auto"`):
            Whether a pair is computed as one row that holds the prompt and the common prefix of y and y' once. `True`
            fails by name on models that cannot (a batch whose mask would be too large takes two rows all the same);
            `"auto"` uses it where it is exact and pays, and checks itself on the first batch; `False` never.
        max_tokens_per_micro_batch (`int` or `str`, *optional*, defaults to `"auto"`):
            The pairs of an update (`per_device_train_batch_size` times `gradient_accumulation_steps`) are sorted by
            length and cut into forwards of at most so many tokens, padding included; the gradient is the same however
            they are cut. `"auto"`: as many as the GPU's memory takes, tried once on the longest pairs; on a CPU, with
            `None`, and for pairs with images or from a stream, forwards of `per_device_train_batch_size` pairs.

        > Parameters that control on-policy responses

        max_completion_length (`int`, *optional*, defaults to `256`):
            Most tokens of a sampled response, and of a teacher's correction of it.
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature.
        top_p (`float`, *optional*, defaults to `1.0`):
            Nucleus sampling: the smallest set of tokens with at least this probability.
        top_k (`int`, *optional*, defaults to `0`):
            Number of most likely tokens to sample from; `0`: all.
        generation_kwargs (`dict`, *optional*):
            Further arguments of [`~transformers.GenerationConfig`], such as `min_p` (or vLLM's sampling parameters).
        rollout (`str`, *optional*, defaults to `"auto"`):
            How responses are sampled: `"eager"` (transformers' `generate`), `"compiled"` (a static key-value cache and
            decoding steps captured in CUDA graphs), `"vllm"`, or `"auto"`: `"compiled"` on CUDA where the model's
            attention allows it. See docs/performance.md.
        rollout_weights (`str`, *optional*, defaults to `"auto"`):
            With captured steps, the weights that are sampled from: `"as_trained"`, `"dequantized"` (a 16-bit copy of
            4-bit layers, with the adapter beside it: the same distribution), `"merged"` (a copy with the adapter
            merged in: faster, but rounded), or `"auto"`: `"dequantized"` where the memory allows it.
        generation_batch_size (`int`, *optional*):
            Most prompts at a time; by default all those of an update (times `max_staleness + 1`).
        max_staleness (`int`, *optional*, defaults to `0`):
            Most updates by which a response may lag behind the policy that it trains. `0`: every response is sampled
            from the current policy; k: responses for k + 1 updates are sampled at once.
        overlap_teacher (`bool`, *optional*):
            Whether the policy trains while the teacher corrects what comes next; needs `max_staleness` of at least 1.
            With a `max_staleness` of k, responses for (k + 1) // 2 updates (rounded down) are then sampled at once,
            one such group ahead. By default where the teacher waits for a server. A function that waits for one
            itself needs `True`; it then runs in another thread and must leave the random state of torch, NumPy and
            Python alone.
        correction_store (`str`, *optional*):
            File in which the teacher's answers are kept: what was answered once, in this run or another one, is not
            asked again. See [`CorrectionStore`].
        verify_corrections (`bool`, *optional*, defaults to `False`):
            Whether a correction counts only if the first of `reward_funcs` rates it higher than the response; others
            are counted as missing.
        mask_truncated_completions (`bool`, *optional*, defaults to `True`):
            Whether a pair whose response hit `max_completion_length` is left out of the loss. Such a response carries
            no end-of-sequence token and its correction does: an editor that works in place would teach to stop in
            mid-sentence. A teacher that writes whole answers can teach a policy that rambles: then `False`.
        missing_thoughts (`str`, *optional*, defaults to `"own"`):
            What stands before an answer without thoughts where the policy begins with some: its `"own"`, of the
            response that is corrected; an `"empty"` block, where the chat template has opened one; with `"refuse"`,
            nothing: a correction without them ends the run.
        log_completions (`bool`, *optional*, defaults to `False`):
            Whether to print a few responses with their corrections every `logging_steps`.
        ds3_gather_for_generation (`bool`, *optional*, defaults to `True`):
            DeepSpeed ZeRO-3: gather the weights for generation.

        > Parameters that control generation by vLLM (see [`~trl.RLOOConfig`] for details)

        use_vllm (`bool`, *optional*, defaults to `False`):
            Sample with vLLM instead of transformers' `generate`. Needs `pip install correction-trl[vllm]`.
        vllm_mode (`str`, *optional*, defaults to `"colocate"`):
            `"colocate"` (same process and card) or `"server"` (started with `trl vllm-serve`).
        vllm_server_base_url (`str`, *optional*):
            Server mode: address of the server, such as `http://localhost:8000`, which is the default.
        vllm_gpu_memory_utilization (`float`, *optional*, defaults to `0.3`):
            Colocate mode: share of the card's memory.
        vllm_max_model_length (`int`, *optional*):
            Colocate mode: context length.
        vllm_tensor_parallel_size (`int`, *optional*, defaults to `1`):
            Colocate mode: tensor parallel size.
    """

    _VALID_DICT_FIELDS = DPOConfig._VALID_DICT_FIELDS + ["generation_kwargs"]

    learning_rate: float = field(default=1e-5, metadata={"help": "Initial learning rate of AdamW, for all weights."})

    # Parameters that control the loss
    loss_type: str = field(
        default="sigmoid",
        metadata={"help": "Loss of a pair.", "choices": list(LOSS_TYPES)},
    )
    beta: float | None = field(
        default=None,
        metadata={"help": "Inverse temperature of every loss but the linear one; by default the loss's own."},
    )
    reference_free: bool = field(
        default=False, metadata={"help": "True: P = pi. False: P = pi / pi_old, a reference policy."}
    )
    nll_weight: float | None = field(
        default=None, metadata={"help": "Weight of the NLL anchor on the correction; by default the loss's own."}
    )
    label_smoothing: float = field(
        default=0.0, metadata={"help": "Probability that a correction is no better; for `sigmoid` only."}
    )
    dpop_lambda: float = field(default=50.0, metadata={"help": "Penalty weight of `dpop`."})
    cpl_bias: float = field(default=0.5, metadata={"help": "Weight of the response's term in `cpl`, in (0, 1]."})
    ddpo_gamma: float = field(
        default=5.0, metadata={"help": "Weight of a corrected token in `ddpo`; a kept one has 1."}
    )
    credit: str = field(
        default="all",
        metadata={"help": "Tokens in the loss: all, from the first edit on, or the edits.", "choices": list(CREDIT)},
    )
    length_prior: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Prior over lengths in tokens: {name: normal, mean: 120, std: 30, weight: 1.0}."},
    )
    unchanged_pairs: str = field(
        default="drop",
        metadata={"help": "Where the correction equals the response: drop or keep.", "choices": ["drop", "keep"]},
    )
    replay_share: float | None = field(
        default=None, metadata={"help": "Share of each update's rows that is of the `replay_dataset`; 0.1 by default."}
    )
    replay_weight: float | None = field(
        default=None, metadata={"help": "Weight of a replayed row's NLL; by default the loss's own `nll_weight`."}
    )
    shared_prefix: str = field(
        default="auto",
        metadata={"help": "'auto', True or False: compute the common prefix of a pair once."},
    )
    max_tokens_per_micro_batch: str | None = field(
        default="auto", metadata={"help": "Most tokens of one forward, padding included; or auto, or null."}
    )

    # Parameters that control on-policy responses
    max_completion_length: int = field(
        default=256, metadata={"help": "Most tokens of a sampled response and of its correction."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus sampling probability."})
    top_k: int = field(default=0, metadata={"help": "Sample from this many most likely tokens; 0: all."})
    generation_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Further generation arguments."}
    )
    rollout: str = field(default="auto", metadata={"help": "How responses are sampled.", "choices": list(ROLLOUT)})
    rollout_weights: str = field(
        default="auto",
        metadata={"help": "Weights that captured steps sample from.", "choices": list(ROLLOUT_WEIGHTS)},
    )
    generation_batch_size: int | None = field(
        default=None, metadata={"help": "Most prompts sampled at a time; by default all of them."}
    )
    max_staleness: int = field(
        default=0, metadata={"help": "Most updates by which a response may lag behind the policy."}
    )
    overlap_teacher: bool | None = field(
        default=None,
        metadata={"help": "Train while the teacher corrects what comes next; by default where it waits for a server."},
    )
    correction_store: str | None = field(
        default=None, metadata={"help": "File that keeps the teacher's answers, so that none is asked for twice."}
    )
    verify_corrections: bool = field(
        default=False,
        metadata={"help": "Count only corrections that the first value function rates higher than the response."},
    )
    mask_truncated_completions: bool = field(
        default=True, metadata={"help": "Leave pairs whose response was cut off out of the loss."}
    )
    missing_thoughts: str = field(
        default="own",
        metadata={
            "help": "Before an answer without thoughts stand the policy's own, an empty block, or it is refused.",
            "choices": list(MISSING_THOUGHTS),
        },
    )
    log_completions: bool = field(
        default=False, metadata={"help": "Print a few responses and their corrections every `logging_steps`."}
    )
    ds3_gather_for_generation: bool = field(
        default=True, metadata={"help": "DeepSpeed ZeRO-3: gather the weights for generation."}
    )

    # Parameters that control generation by vLLM
    use_vllm: bool = field(default=False, metadata={"help": "Sample with vLLM instead of `generate`."})
    vllm_mode: str = field(
        default="colocate", metadata={"help": "'colocate' or 'server'.", "choices": ["colocate", "server"]}
    )
    vllm_server_base_url: str | None = field(default=None, metadata={"help": "Server mode: address of the server."})
    vllm_gpu_memory_utilization: float = field(default=0.3, metadata={"help": "Colocate mode: share of the memory."})
    vllm_max_model_length: int | None = field(default=None, metadata={"help": "Colocate mode: context length."})
    vllm_tensor_parallel_size: int = field(default=1, metadata={"help": "Colocate mode: tensor parallel size."})

    def __post_init__(self):
        for name, remedy in _UNUSED_DPO_SETTINGS.items():
            default = type(self).__dataclass_fields__[name].default
            if getattr(self, name) != default:
                raise BadInput(f"`{name}` has no meaning for correction optimization; remove it: {remedy}.")
        if isinstance(self.length_prior, str):  # the command line's
            try:
                self.length_prior = yaml.safe_load(self.length_prior)
            except yaml.YAMLError as error:
                raise BadInput(f"`length_prior` is no mapping: {' '.join(str(error).split())}.") from error
        # A YAML `true` and the command line's "true" mean the same
        self.shared_prefix = {"true": True, "false": False, "auto": "auto"}.get(str(self.shared_prefix).lower())
        self.max_tokens_per_micro_batch = read_max_tokens(self.max_tokens_per_micro_batch)
        check_rollout_settings(self)
        self._check()
        loss_type = self.loss_type
        super().__post_init__()
        self.loss_type = loss_type  # DPOConfig makes it a list of losses; here there is one

    def _check(self):
        if self.loss_type not in LOSS_TYPES:
            raise BadInput(f"Unknown `loss_type={self.loss_type!r}`: expected one of {', '.join(LOSS_TYPES)}.")
        beta, nll_weight = DEFAULTS[self.loss_type]
        self.beta = beta if self.beta is None else self.beta
        self.nll_weight = nll_weight if self.nll_weight is None else self.nll_weight
        if self.shared_prefix is None:
            raise BadInput("`shared_prefix` must be 'auto', True or False.")
        choices = {"missing_thoughts": MISSING_THOUGHTS, "unchanged_pairs": ("drop", "keep"), "credit": CREDIT}
        for name, values in choices.items():
            if getattr(self, name) not in values:
                raise BadInput(f"`{name}={getattr(self, name)!r}` must be one of {', '.join(map(repr, values))}.")
        self._check_loss()
        self._check_replay()
        if self.overlap_teacher and not self.max_staleness:
            raise BadInput(
                "`overlap_teacher` needs `max_staleness` of at least 1: what is corrected while the policy trains was "
                "sampled before."
            )
        for name in ("max_completion_length", "per_device_train_batch_size", "gradient_accumulation_steps",
                     "generation_batch_size", "max_staleness"):  # fmt: skip
            value, least = getattr(self, name), 0 if name == "max_staleness" else 1
            if value is not None and value < least:
                raise BadInput(f"`{name}={value}` must be at least {least}.")
        if self.temperature <= 0:
            raise BadInput(
                f"`temperature={self.temperature}` must be positive; on-policy responses are samples of the policy."
            )
        make_length_prior(self.length_prior, PRIOR_WEIGHTS[self.loss_type])

    def _check_loss(self):
        """What a loss is given, and whether it has a use for it."""
        if not self.beta > 0:  # NaN is not
            raise BadInput(f"`beta={self.beta}` must be positive; for the bare log-ratio set `loss_type: linear`.")
        if not self.nll_weight >= 0:
            raise BadInput(f"`nll_weight={self.nll_weight}` must not be negative.")
        if self.loss_type == "ddpo" and self.credit != "all":
            raise BadInput(
                "`loss_type='ddpo'` weighs the edited tokens itself (`ddpo_gamma`); leave `credit` at 'all'."
            )
        if self.loss_type == "sft":
            self._check_sft()
        if self.loss_type == "dpop" and self.reference_free:
            raise BadInput(
                "`loss_type='dpop'` penalises a correction that is less likely than under the reference; it needs "
                "`reference_free=False`."
            )
        if self.dpop_lambda < 0:
            raise BadInput(f"`dpop_lambda={self.dpop_lambda}` must not be negative.")
        if not 0 <= self.label_smoothing < 0.5:
            raise BadInput(f"`label_smoothing={self.label_smoothing}` must lie in [0, 0.5).")
        if self.label_smoothing and self.loss_type != "sigmoid":
            raise BadInput(
                f"`label_smoothing` belongs to `loss_type='sigmoid'`; with {self.loss_type!r} leave it at 0."
            )
        if not 0 < self.cpl_bias <= 1:
            raise BadInput(f"`cpl_bias={self.cpl_bias}` must lie in (0, 1].")
        if self.ddpo_gamma <= 0:
            raise BadInput(f"`ddpo_gamma={self.ddpo_gamma}` must be positive.")

    def _check_replay(self):
        if self.replay_share is not None and not 0 < self.replay_share < 1:
            raise BadInput(
                f"`replay_share={self.replay_share}` must lie in (0, 1); without a `replay_dataset` it is 0."
            )
        if self.replay_weight is None:
            self.replay_weight = DEFAULTS[self.loss_type][1] or 1.0
        if not 0 < self.replay_weight < math.inf:
            raise BadInput(f"`replay_weight={self.replay_weight}` must be positive.")

    def _check_sft(self):
        """Fine-tuning on the corrections has no use for what concerns the response."""
        unused = {"nll_weight": 0.0, "length_prior": None, "precompute_ref_log_probs": False, "sync_ref_model": False}
        for name, default in unused.items():
            if getattr(self, name) != default:
                raise BadInput(
                    f"`{name}={getattr(self, name)!r}` has no meaning for `loss_type: sft`, which trains on the "
                    f"corrections alone; leave it out, or set it to {yaml.safe_dump(default).split()[0]}."
                )
        if self.shared_prefix is True:
            raise BadInput("`loss_type: sft` computes the corrections alone: there is no prefix to share. Set "
                           "`shared_prefix: auto`.")  # fmt: skip
        self.reference_free = True
