"""Credit for attempts in several turns: rewards in, advantages and the policy-gradient loss out.

Pure functions on tensors; no tokenizer, no model. Shapes: N rollouts, of which consecutive groups of G belong to one
prompt; T turns (attempts); C token positions.
"""

import torch


KL_ESTIMATORS = ("k1", "k2", "k3")


def turn_returns(rewards: torch.Tensor, stage: int, alpha: float, gamma: float = 0.0) -> torch.Tensor:
    r"""
    What each attempt is reinforced with, in the two stages of SCoRe
    ([paper](https://huggingface.co/papers/2409.12917)).

    With r_t the reward of attempt t, the reward that attempt t is given is

    * Stage I: 0 for t = 1 and r_t for t > 1,
    * Stage II: r_1 for t = 1 and \\( r_t + \alpha (r_t - r_{t-1}) \\) for t > 1,

    and its return adds what later attempts are given: \\( R_t = \sum_{s \ge t} \gamma^{s-t} g_s \\). With γ = 0, the
    paper's choice, an attempt answers for itself alone.

    Args:
        rewards (`torch.Tensor` of shape `(N, T)`):
            Rewards; NaN where an attempt could not be judged.
        stage (`int`):
            1 or 2.
        alpha (`float`):
            α, the weight of the progress bonus in Stage II.
        gamma (`float`, *optional*, defaults to `0.0`):
            γ, how much of a later attempt's return an earlier one gets.

    Returns:
        `torch.Tensor` of shape `(N, T)`. NaN wherever an unjudged reward enters.

    Raises:
        `ValueError`: if the stage is neither 1 nor 2.
    """
    if stage not in (1, 2):
        raise ValueError(f"`stage` must be 1 or 2, got {stage}.")
    given = rewards.clone()
    if stage == 1:
        given[:, 0] = 0.0
    else:
        given[:, 1:] += alpha * (rewards[:, 1:] - rewards[:, :-1])
    if gamma:
        for turn in range(given.size(1) - 2, -1, -1):
            given[:, turn] += gamma * given[:, turn + 1]
    return given


def leave_one_out(returns: torch.Tensor, group_size: int) -> torch.Tensor:
    """
    Advantage of each attempt over the mean of the *other* rollouts of its prompt, turn by turn
    ([RLOO](https://huggingface.co/papers/2402.14740)).

    An unjudged attempt (NaN) has advantage 0 and is in nobody's baseline; so has one without a judged sibling.

    Args:
        returns (`torch.Tensor` of shape `(N, T)`):
            From [`turn_returns`]; N a multiple of `group_size`, the rollouts of a prompt side by side.
        group_size (`int`):
            Rollouts per prompt, G.

    Returns:
        `torch.Tensor` of shape `(N, T)`.
    """
    groups = returns.view(-1, group_size, returns.size(1))
    judged = ~groups.isnan()
    values = groups.nan_to_num()
    others = judged.sum(1, keepdim=True) - judged.long()
    baseline = (values.sum(1, keepdim=True) - values) / others.clamp(min=1)
    advantages = torch.where(judged & (others > 0), values - baseline, 0.0)
    return advantages.view_as(returns)


def kl_to_go(log_ratios: torch.Tensor, turn_ids: torch.Tensor, n_turns: int) -> torch.Tensor:
    r"""
    The sum of the log-ratios from each token to the end of its attempt, \\( \sum_{s \ge t} \log \pi(y_s) / \pi_{ref}
    (y_s) \\). Times ∇ log π(y_t), summed over t, its expectation is the gradient of the attempt's KL divergence.

    Args:
        log_ratios (`torch.Tensor` of shape `(N, C)`):
            log π − log π_ref of the sampled tokens.
        turn_ids (`torch.Tensor` of shape `(N, C)`):
            Attempt that a token belongs to, from 1; 0 for instruction, template and padding tokens.
        n_turns (`int`):
            T.

    Returns:
        `torch.Tensor` of shape `(N, C)`; 0 where `turn_ids` is 0.
    """
    to_go = torch.zeros_like(log_ratios)
    for turn in range(1, n_turns + 1):
        own = torch.where(turn_ids == turn, log_ratios, 0.0)
        to_go = torch.where(turn_ids == turn, own.flip(1).cumsum(1).flip(1), to_go)
    return to_go


def turn_sums(values: torch.Tensor, turn_ids: torch.Tensor, n_turns: int) -> torch.Tensor:
    """Per-token `values` of shape `(N, C)` summed over the tokens of each attempt: `(N, T)`."""
    return torch.stack([torch.where(turn_ids == t, values, 0.0).sum(1) for t in range(1, n_turns + 1)], dim=1)


def multi_turn_loss(
    log_probs: torch.Tensor,
    turn_ids: torch.Tensor,
    advantages: torch.Tensor,
    ref_log_probs: torch.Tensor | None = None,
    kl_weights: torch.Tensor | None = None,
    kl_estimator: str = "k1",
    old_turn_log_probs: torch.Tensor | None = None,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
) -> torch.Tensor:
    r"""
    Loss whose gradient is the policy gradient of \\( \sum_t R_t - \sum_t \beta_t KL_t(\pi \| \pi_{ref}) \\), each
    attempt's tokens credited with that attempt's advantage and penalised with that attempt's KL alone.

    The first term is \\( -\sum_t A_t \rho_t \\), ρ_t = π(attempt t) / π_old(attempt t), clipped as in RLOO; on-policy
    ρ_t = 1 and its gradient is \\( -\sum_t A_t \nabla \log \pi(\text{attempt } t) \\). The KL term is one of, with
    \\( l = \log \pi - \log \pi_{ref} \\) per token,

    * `"k1"`: \\( \log \pi \\) times the detached [`kl_to_go`]. Unbiased for the gradient of the attempt's KL(π‖π_ref).
    * `"k2"`: \\( l^2 / 2 \\). Its gradient l ∇ log π is the token's own KL gradient; what a token does to the KL of
      later tokens is left out, which lowers the variance and biases the gradient.
    * `"k3"`: \\( e^{-l} - 1 + l \\), GRPO's. Good as a value; as a loss its gradient is that of the forward
      KL(π_ref‖π).

    Args:
        log_probs (`torch.Tensor` of shape `(N, C)`):
            log π of the sampled tokens, in nats, with gradient.
        turn_ids (`torch.Tensor` of shape `(N, C)`):
            Attempt of each token, from 1; 0 for tokens that are in no loss.
        advantages (`torch.Tensor` of shape `(N, T)`):
            From [`leave_one_out`].
        ref_log_probs (`torch.Tensor` of shape `(N, C)`, *optional*):
            log π_ref of the same tokens.
        kl_weights (`torch.Tensor` of shape `(N, T)`, *optional*):
            β of each attempt; needed with `ref_log_probs`.
        kl_estimator (`str`, *optional*, defaults to `"k1"`):
            One of `KL_ESTIMATORS`.
        old_turn_log_probs (`torch.Tensor` of shape `(N, T)`, *optional*):
            log π_old of each attempt, if rollouts are used for more than one update. By default π itself.
        epsilon_low (`float`, *optional*, defaults to `0.2`):
            ρ below 1 − this is clipped.
        epsilon_high (`float`, *optional*, defaults to `0.2`):
            ρ above 1 + this is clipped.

    Returns:
        `torch.Tensor` of shape `(N,)`: the loss of each rollout, a sum over its attempts and tokens.
    """
    n_turns = advantages.size(1)
    turn_log_probs = turn_sums(log_probs, turn_ids, n_turns)
    old = turn_log_probs.detach() if old_turn_log_probs is None else old_turn_log_probs
    ratio = (turn_log_probs - old).exp()
    clipped = ratio.clamp(1 - epsilon_low, 1 + epsilon_high)
    loss = -torch.minimum(ratio * advantages, clipped * advantages).sum(1)
    if ref_log_probs is None:
        return loss

    log_ratios = log_probs - ref_log_probs
    if kl_estimator == "k1":
        per_token = kl_to_go(log_ratios.detach(), turn_ids, n_turns) * log_probs
    elif kl_estimator == "k2":
        per_token = log_ratios.square() / 2
    elif kl_estimator == "k3":
        per_token = torch.expm1(-log_ratios) + log_ratios
    else:
        raise ValueError(f"`kl_estimator` must be one of {KL_ESTIMATORS}, got {kl_estimator!r}.")
    return loss + (kl_weights * turn_sums(per_token, turn_ids, n_turns)).sum(1)
