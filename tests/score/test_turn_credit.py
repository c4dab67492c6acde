"""Credit per attempt against exact gradients (expectations by enumeration, in float64), loops and closed forms."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from correction_trl.score.turn_credit import kl_to_go, leave_one_out, multi_turn_loss, turn_returns, turn_sums


# A policy whose outputs can be enumerated: two attempts of two binary tokens. The second attempt sees the first.
TOKENS = list(itertools.product((0, 1), repeat=2))
ROLLOUTS = [(first, second) for first in TOKENS for second in TOKENS]
TURN_IDS = torch.tensor([[1, 1, 0, 2, 2]])  # one instruction token between the attempts
ALPHA, BETA_1, BETA_2 = 10.0, 0.3, 0.7


def make_parameters(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2,), (2, 2), (4, 2), (4, 2, 2)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def token_log_probs(parameters, rollout):
    (a, b), second = rollout
    c, d = second
    context = TOKENS.index((a, b))
    first_token, second_token, third_token, fourth_token = (p.log_softmax(-1) for p in parameters)
    zero = torch.zeros((), dtype=torch.float64)  # the instruction token
    return torch.stack(
        [first_token[a], second_token[a, b], zero, third_token[context, c], fourth_token[context, c, d]]
    )


def reward(attempt):
    return float(attempt == (1, 0))


def kl(log_probs, ref_log_probs):
    return (log_probs.exp() * (log_probs - ref_log_probs)).sum()


def exact_objective(parameters, reference, stage, alpha=ALPHA, beta_1=BETA_1, beta_2=BETA_2):
    """The objective of a stage; where the second attempt is judged, the distribution of the first is held fixed."""
    log_probs = torch.stack([token_log_probs(parameters, rollout) for rollout in ROLLOUTS])
    ref_log_probs = torch.stack([token_log_probs(reference, rollout) for rollout in ROLLOUTS])
    first = torch.stack([log_probs[i, :2].sum() for i in range(0, 16, 4)])
    ref_first = torch.stack([ref_log_probs[i, :2].sum() for i in range(0, 16, 4)])
    second = log_probs[:, 3:].sum(1).view(4, 4)
    ref_second = ref_log_probs[:, 3:].sum(1).view(4, 4)
    r1 = torch.tensor([reward(attempt) for attempt in TOKENS], dtype=torch.float64)
    kl_1 = kl(first, ref_first)
    objective = -beta_1 * kl_1
    objective = objective - beta_2 * kl_1 if stage == 1 else objective + (first.exp() * r1).sum()
    for i, weight in enumerate(first.exp().detach()):
        given_reward = r1 if stage == 1 else r1 + alpha * (r1 - r1[i])
        objective = objective + weight * (second[i].exp() * given_reward).sum()
        objective = objective - beta_1 * weight * kl(second[i], ref_second[i])
    return objective


def expected_loss(parameters, reference, stage, kl_estimator="k1", gamma=0.0, betas=True, alpha=ALPHA):
    """The loss of every pair of rollouts (a group of two), weighted with the pair's probability."""
    log_probs = torch.stack([token_log_probs(parameters, rollout) for rollout in ROLLOUTS])
    ref_log_probs = torch.stack([token_log_probs(reference, rollout) for rollout in ROLLOUTS])
    probabilities = log_probs.sum(1).exp().detach()
    rewards = torch.tensor([[reward(a), reward(b)] for a, b in ROLLOUTS], dtype=torch.float64)
    pairs = torch.tensor(list(itertools.product(range(16), repeat=2))).flatten()  # 256 groups, side by side
    advantages = leave_one_out(turn_returns(rewards[pairs], stage, alpha, gamma), group_size=2)
    kl_weights = torch.full((len(pairs), 2), BETA_1, dtype=torch.float64)
    if stage == 1:
        kl_weights[:, 0] += BETA_2
    losses = multi_turn_loss(
        log_probs[pairs],
        TURN_IDS.expand(len(pairs), -1),
        advantages,
        ref_log_probs[pairs] if betas else None,
        kl_weights,
        kl_estimator,
    )
    weights = probabilities[pairs].view(-1, 2).prod(1)
    return (weights * losses.view(-1, 2).mean(1)).sum()


def gradients(value, parameters):
    grads = torch.autograd.grad(value, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("seed", [0, 1])
def test_gradient_is_that_of_the_stage_objective(stage, seed):
    parameters = [p.requires_grad_() for p in make_parameters(seed)]
    reference = make_parameters(seed + 10)
    expected = gradients(-exact_objective(parameters, reference, stage), parameters)
    found = gradients(expected_loss(parameters, reference, stage), parameters)
    for e, f in zip(expected, found, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-10, atol=1e-12)
    assert max(e.abs().max() for e in expected) > 0.05  # there is something to compare


def test_with_gamma_1_the_first_attempt_is_credited_with_the_second():
    """Stage I without a KL and with γ = 1 is plain REINFORCE on r(y2): the full gradient of E[r(y2)]."""
    parameters = [p.requires_grad_() for p in make_parameters(0)]
    log_probs = torch.stack([token_log_probs(parameters, rollout) for rollout in ROLLOUTS])
    rewards = torch.tensor([reward(b) for _, b in ROLLOUTS], dtype=torch.float64)
    expected = gradients(-(log_probs.sum(1).exp() * rewards).sum(), parameters)
    found = gradients(expected_loss(parameters, parameters, stage=1, gamma=1.0, betas=False), parameters)
    for e, f in zip(expected, found, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-10, atol=1e-12)
    # With γ = 0 the first attempt gets nothing at all
    assert all(not g.any() for g in gradients(expected_loss(parameters, parameters, 1, betas=False), parameters)[:2])


def test_k2_is_the_tokens_own_kl_and_k3_is_the_forward_kl():
    parameters = [p.requires_grad_() for p in make_parameters(0)]
    reference = make_parameters(10)

    def kl_gradient(kl_estimator):
        with_kl = gradients(expected_loss(parameters, reference, 2, kl_estimator), parameters)
        without = gradients(expected_loss(parameters, reference, 2, betas=False), parameters)
        return [(a - b) / BETA_1 for a, b in zip(with_kl, without, strict=True)]

    first, ref_first = parameters[0].log_softmax(-1), reference[0].log_softmax(-1)
    # The first token of the first attempt: its own KL alone, without what it does to the KL of the token after it
    own = torch.autograd.grad(kl(first, ref_first), parameters[0], retain_graph=True)[0]
    torch.testing.assert_close(kl_gradient("k2")[0], own)
    assert not torch.allclose(kl_gradient("k1")[0], own)
    forward = torch.autograd.grad(kl(ref_first, first), parameters[0])[0]
    torch.testing.assert_close(kl_gradient("k3")[0], forward)
    with pytest.raises(ValueError, match="kl_estimator"):
        kl_gradient("k4")


def test_beta_2_reaches_the_first_attempt_and_no_other_token():
    log_probs = torch.randn(4, 5, dtype=torch.float64).requires_grad_()
    ref_log_probs = torch.randn(4, 5, dtype=torch.float64)
    kl_weights = torch.tensor([[0.7, 0.0]], dtype=torch.float64).expand(4, 2)  # Stage I, beta_1 = 0
    for estimator in ("k1", "k2", "k3"):
        loss = multi_turn_loss(
            log_probs, TURN_IDS.expand(4, -1), torch.zeros(4, 2), ref_log_probs, kl_weights, estimator
        )
        (grad,) = torch.autograd.grad(loss.sum(), log_probs)
        assert grad[:, :2].abs().min() > 0
        assert not grad[:, 2:].any()


def test_shaped_rewards_of_the_four_outcomes():
    """alpha = 10: wrong to right +11, right to right +1, wrong to wrong 0, right to wrong -10."""
    rewards = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    assert turn_returns(rewards, stage=2, alpha=10.0)[:, 1].tolist() == [11.0, 1.0, 0.0, -10.0]
    assert turn_returns(rewards, stage=2, alpha=10.0)[:, 0].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert turn_returns(rewards, stage=1, alpha=10.0).tolist() == [[0, 1], [0, 1], [0, 0], [0, 0]]
    # gamma = 0.5, alpha = 1: the second attempt is given 1 + 1, and the first gets half of that
    assert turn_returns(rewards, stage=2, alpha=1.0, gamma=0.5)[0].tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="stage"):
        turn_returns(rewards, stage=3, alpha=1.0)


def test_alpha_0_and_beta_0_are_plain_per_turn_rloo():
    rewards = torch.rand(8, 2, dtype=torch.float64)
    log_probs = torch.randn(8, 5, dtype=torch.float64).requires_grad_()
    turn_ids = TURN_IDS.expand(8, -1)
    loss = multi_turn_loss(log_probs, turn_ids, leave_one_out(turn_returns(rewards, 2, alpha=0.0), 4)).mean()
    (found,) = torch.autograd.grad(loss, log_probs)
    expected = torch.zeros_like(found)
    for i in range(8):
        group = range(i // 4 * 4, i // 4 * 4 + 4)
        for turn, columns in enumerate(((0, 1), (3, 4))):
            baseline = sum(rewards[j, turn] for j in group if j != i) / 3
            for column in columns:
                expected[i, column] = -(rewards[i, turn] - baseline) / 8
    torch.testing.assert_close(found, expected)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(2, 5).flatmap(
        lambda g: st.tuples(
            st.just(g),
            st.lists(
                st.lists(st.one_of(st.none(), st.floats(-5, 5)), min_size=2, max_size=2), min_size=g, max_size=3 * g
            ),
        )
    )
)
def test_leave_one_out_is_a_loop(case):
    group_size, rows = case
    rows = rows[: len(rows) // group_size * group_size]
    returns = torch.tensor([[float("nan") if v is None else v for v in row] for row in rows], dtype=torch.float64)
    found = leave_one_out(returns, group_size)
    for i, row in enumerate(rows):
        start = i // group_size * group_size
        for turn in range(2):
            others = [rows[j][turn] for j in range(start, start + group_size) if j != i and rows[j][turn] is not None]
            expected = 0.0 if row[turn] is None or not others else row[turn] - sum(others) / len(others)
            assert found[i, turn].item() == pytest.approx(expected, abs=1e-9)
    # What a group gains in advantage it loses again: with everything judged the sum is 0
    judged = ~returns.isnan().view(-1, group_size, 2).any(1)
    sums = found.view(-1, group_size, 2).sum(1)
    assert (sums[judged].abs() < 1e-8).all()


def test_unjudged_attempts_have_no_advantage_and_are_in_no_baseline():
    rewards = torch.tensor([[1.0, 1.0], [0.0, float("nan")], [float("nan"), 1.0], [0.0, 0.0]])
    advantages = leave_one_out(turn_returns(rewards, stage=2, alpha=10.0), 4)
    assert advantages[1, 1] == 0 and advantages[2, 0] == 0
    assert advantages[2, 1] == 0  # its bonus needs the first attempt's reward
    assert advantages[0, 0] == 1.0  # against the two other judged first attempts
    assert advantages[0, 1] == 1.0 and advantages[3, 1] == -1.0


def test_kl_to_go_sums_to_the_end_of_the_attempt():
    log_ratios = torch.tensor([[1.0, 2.0, 100.0, 3.0, 4.0]])
    assert kl_to_go(log_ratios, TURN_IDS, 2).tolist() == [[3.0, 2.0, 0.0, 7.0, 4.0]]
    assert turn_sums(log_ratios, TURN_IDS, 2).tolist() == [[3.0, 7.0]]


def test_ratio_is_clipped_per_attempt():
    log_probs = torch.tensor([[-1.0, -1.0, 0.0, -1.0, -1.0]], requires_grad=True)
    old = torch.tensor([[-3.0, -2.0]])  # the first attempt has become e times as likely: clipped
    loss = multi_turn_loss(log_probs, TURN_IDS, torch.ones(1, 2), old_turn_log_probs=old, epsilon_high=0.2)
    assert loss.item() == pytest.approx(-(1.2 + 1.0))
    (grad,) = torch.autograd.grad(loss.sum(), log_probs)
    assert grad.tolist() == [[0, 0, 0, -1, -1]]
