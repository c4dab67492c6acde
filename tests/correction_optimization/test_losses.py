"""Every loss against a naive double loop over pairs and tokens in float64, against its closed forms, and, where it is
about expectations, against the enumeration of a toy policy."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_sequence

from correction_trl.correction_optimization.length_prior import normal_length_prior
from correction_trl.correction_optimization.losses import (
    LOSS_TYPES,
    cpl_loss,
    dpop_loss,
    edit_weighted_scores,
    hinge_loss,
    ipo_loss,
    length_prior_score_term,
    linear_loss,
    nll_anchor,
    sigmoid_loss,
)


def float64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def gradient(losses: torch.Tensor, *inputs: torch.Tensor) -> list[torch.Tensor]:
    return torch.autograd.grad(losses.sum(), inputs, retain_graph=True)


def naive_sigmoid(x: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + torch.exp(-x))


class Pairs:
    """Ragged token log-probs of the policy (leaves of autograd) and of a reference, and which tokens were edited."""

    def __init__(self, seed: int, lengths: list[tuple[int, int]]):
        generator = torch.Generator().manual_seed(seed)

        def log_probs(n: int) -> torch.Tensor:
            return -torch.rand(n, generator=generator, dtype=torch.float64) * 3

        self.lengths = lengths
        self.policy = [[log_probs(n).requires_grad_() for n in pair] for pair in lengths]
        self.reference = [[log_probs(n) for n in pair] for pair in lengths]
        self.edited = [[(torch.rand(n, generator=generator) < 0.5).double() for n in pair] for pair in lengths]

    @property
    def leaves(self) -> list[torch.Tensor]:
        return [tokens for pair in self.policy for tokens in pair]

    def padded(self, ragged: list[list[torch.Tensor]], side: int) -> torch.Tensor:
        return pad_sequence([pair[side] for pair in ragged], batch_first=True)

    def mask(self, side: int) -> torch.Tensor:
        return pad_sequence([torch.ones(pair[side], dtype=torch.float64) for pair in self.lengths], batch_first=True)

    def sums(self) -> tuple[torch.Tensor, torch.Tensor]:
        """s(y) and s(y') relative to the reference, as a caller computes them from padded batches."""
        return tuple((self.padded(self.policy, i) - self.padded(self.reference, i)).sum(1) for i in (0, 1))


def package_losses(name: str, pairs: Pairs, beta: float, parameter: float) -> torch.Tensor:
    response, correction = pairs.sums()
    margins = correction - response
    if name == "linear":
        return linear_loss(response, correction)
    if name == "sigmoid":
        return sigmoid_loss(margins, beta, label_smoothing=parameter / 2.1)
    if name == "hinge":
        return hinge_loss(margins, beta)
    if name == "ipo":
        return ipo_loss(correction / pairs.mask(1).sum(1) - response / pairs.mask(0).sum(1), beta)
    if name == "dpop":
        return dpop_loss(margins, correction, beta, dpop_lambda=10 * parameter)
    if name == "cpl":
        return cpl_loss(response, correction, beta, cpl_bias=parameter)
    if name in ("nll", "sft"):
        return nll_anchor(pairs.padded(pairs.policy, 1).sum(1))
    scores = [
        edit_weighted_scores(
            pairs.padded(pairs.policy, i) - pairs.padded(pairs.reference, i),
            pairs.mask(i),
            pairs.padded(pairs.edited, i),
            gamma=1 + 9 * parameter,
        )
        for i in (0, 1)
    ]
    return sigmoid_loss(scores[1] - scores[0], beta)


def naive_losses(name: str, pairs: Pairs, beta: float, parameter: float) -> list[torch.Tensor]:
    losses = []
    for policy, reference, edited in zip(pairs.policy, pairs.reference, pairs.edited, strict=True):
        sums, means, weighted, log_likelihood = [], [], [], []
        for side in (0, 1):
            total = weighted_total = weight_total = likelihood = torch.zeros((), dtype=torch.float64)
            for t in range(len(policy[side])):
                ratio = policy[side][t] - reference[side][t]
                weight = 1 + 9 * parameter if edited[side][t] else 1.0
                total = total + ratio
                weighted_total, weight_total = weighted_total + weight * ratio, weight_total + weight
                likelihood = likelihood + policy[side][t]
            sums.append(total)
            means.append(total / len(policy[side]))
            weighted.append(weighted_total / weight_total)
            log_likelihood.append(likelihood)
        margin = sums[1] - sums[0]
        if name == "linear":
            loss = sums[0] - sums[1]
        elif name == "sigmoid":
            p, smoothing = naive_sigmoid(beta * margin), parameter / 2.1
            loss = -(1 - smoothing) * torch.log(p) - smoothing * torch.log(1 - p)
        elif name == "hinge":
            loss = 1 - beta * margin if beta * margin < 1 else 0 * margin
        elif name == "ipo":
            loss = (means[1] - means[0] - 1 / (2 * beta)) ** 2
        elif name == "dpop":
            penalty = -sums[1] if sums[1] < 0 else 0 * sums[1]
            loss = -torch.log(naive_sigmoid(beta * (margin - 10 * parameter * penalty)))
        elif name == "cpl":
            up, down = torch.exp(beta * sums[1]), torch.exp(beta * parameter * sums[0])
            loss = -torch.log(up / (up + down))
        elif name in ("nll", "sft"):
            loss = -log_likelihood[1]
        elif name == "ddpo":
            loss = -torch.log(naive_sigmoid(beta * (weighted[1] - weighted[0])))
        losses.append(loss)
    return losses


@pytest.mark.parametrize("name", [*LOSS_TYPES, "nll"])
@given(
    seed=st.integers(0, 2**32 - 1),
    lengths=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=4),
    beta=st.floats(0.01, 1),
    parameter=st.floats(0.01, 1),
)
def test_value_and_gradient_equal_a_naive_double_loop(name, seed, lengths, beta, parameter):
    pairs = Pairs(seed, lengths)
    losses = package_losses(name, pairs, beta, parameter)
    expected = torch.stack(naive_losses(name, pairs, beta, parameter))
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-12)
    for ours, naive in zip(
        torch.autograd.grad(losses.sum(), pairs.leaves, allow_unused=True),
        torch.autograd.grad(expected.sum(), pairs.leaves, allow_unused=True),
        strict=True,
    ):
        ours, naive = (torch.zeros(1) if g is None else g for g in (ours, naive))
        torch.testing.assert_close(ours.double(), naive.double().expand_as(ours), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_at_the_reference_losses_have_their_closed_forms(beta):
    zero, margin = float64(0.0), float64(0.0)
    assert linear_loss(zero, zero).item() == 0
    assert sigmoid_loss(margin, beta).item() == pytest.approx(math.log(2), abs=1e-12)
    assert sigmoid_loss(margin, beta, label_smoothing=0.3).item() == pytest.approx(math.log(2), abs=1e-12)
    assert dpop_loss(margin, zero, beta, 50.0).item() == pytest.approx(math.log(2), abs=1e-12)
    assert cpl_loss(zero, zero, beta, 0.5).item() == pytest.approx(math.log(2), abs=1e-12)
    assert hinge_loss(margin, beta).item() == 1
    assert ipo_loss(margin, beta).item() == pytest.approx(1 / (4 * beta**2))


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_gradient_of_dpo_at_the_reference_is_half_beta_times_that_of_the_linear_loss(beta):
    response, correction = float64(-3.0, -20.0), float64(-3.0, -20.0)
    dpo = gradient(sigmoid_loss(correction - response, beta), response, correction)
    linear = gradient(linear_loss(response, correction), response, correction)
    for ours, bare in zip(dpo, linear, strict=True):
        torch.testing.assert_close(ours, beta / 2 * bare)


def test_small_beta_turns_dpo_into_the_linear_loss():
    margins, beta = float64(-4.0, 0.5, 3.0), 1e-6
    torch.testing.assert_close(2 / beta * (sigmoid_loss(margins, beta) - math.log(2)), -margins, rtol=0, atol=1e-4)


def test_cpl_without_bias_is_the_sigmoid_loss():
    response, correction = float64(-3.0, -8.0, 1.0), float64(-2.5, -9.0, 0.0)
    torch.testing.assert_close(
        cpl_loss(response, correction, 0.4, cpl_bias=1.0), sigmoid_loss(correction - response, 0.4)
    )


def test_cpl_bias_scales_the_push_on_the_response_alone():
    response, correction = float64(-3.0), float64(-3.0)
    down, up = gradient(cpl_loss(response, correction, 0.4, cpl_bias=0.25), response, correction)
    assert down.item() == pytest.approx(-0.25 * up.item())


def test_conservative_dpo_stops_where_the_preference_has_the_smoothed_probability():
    beta, smoothing = 0.2, 0.1
    margin = float64(math.log((1 - smoothing) / smoothing) / beta)
    assert gradient(sigmoid_loss(margin, beta, smoothing), margin)[0].item() == pytest.approx(0, abs=1e-12)
    beyond = margin.detach().clone().requires_grad_() + 1
    assert gradient(sigmoid_loss(beyond, beta, smoothing), beyond)[0].item() > 0


def test_hinge_is_beta_times_the_linear_loss_until_a_margin_of_one_over_beta_and_nothing_after():
    beta = 0.25
    margins = float64(-50.0, 0.0, 3.99, 4.01, 50.0)
    (slope,) = gradient(hinge_loss(margins, beta), margins)
    assert slope.tolist() == [-beta, -beta, -beta, 0, 0]
    assert hinge_loss(margins, beta)[3:].tolist() == [0, 0]


def test_ipo_pulls_from_both_sides_to_a_margin_of_one_over_two_beta():
    beta = 0.25
    margins = float64(1.0, 2.0, 3.0)
    assert ipo_loss(margins, beta).tolist() == [1, 0, 1]
    assert gradient(ipo_loss(margins, beta), margins)[0].tolist() == [-2, 0, 2]


def test_dpop_is_dpo_unless_the_correction_fell_below_the_reference():
    margins, beta = float64(-1.0, 2.0), 0.3
    torch.testing.assert_close(dpop_loss(margins, float64(0.0, 4.0), beta, 50.0), sigmoid_loss(margins, beta))
    torch.testing.assert_close(dpop_loss(margins, float64(-9.0, -0.1), beta, 0.0), sigmoid_loss(margins, beta))
    fallen = float64(-0.5)
    loss = dpop_loss(float64(2.0), fallen, beta, 50.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-beta * (2 - 50 * 0.5))))
    assert gradient(loss, fallen)[0].item() < 0  # a step downhill makes the correction more likely again


def test_ddpo_counts_an_edited_token_gamma_times():
    log_probs = float64(-1.0, -2.0, -3.0, -7.0)[None]
    mask, edited = torch.tensor([[1, 1, 1, 0]]), torch.tensor([[0, 1, 0, 1]])
    assert edit_weighted_scores(log_probs, mask, edited, gamma=5.0).item() == (-1 - 5 * 2 - 3) / (1 + 5 + 1)
    assert edit_weighted_scores(log_probs, mask, edited, gamma=1.0).item() == -2
    (slope,) = gradient(edit_weighted_scores(log_probs, mask, edited, gamma=5.0), log_probs)
    torch.testing.assert_close(slope, torch.tensor([[1, 5, 1, 0]], dtype=torch.float64) / 7)


def test_ddpo_is_normalised_by_its_weights_even_where_they_sum_to_less_than_one():
    score = edit_weighted_scores(float64(-2.0)[None], torch.tensor([[1]]), torch.tensor([[1]]), gamma=0.25)
    assert score.item() == pytest.approx(-2)  # the weighted mean of one token is that token's log-prob


def scored(loss_type, log_probs, edited):
    """A pair's score as its loss weighs tokens."""
    mask = torch.ones_like(log_probs)
    if loss_type == "ddpo":
        return edit_weighted_scores(log_probs, mask, edited, 5.0)
    return log_probs.mean(1) if loss_type == "ipo" else log_probs.sum(1)


def loss_at(loss_type, response, correction, beta):
    if loss_type == "linear":
        return linear_loss(response, correction)
    if loss_type == "cpl":  # its own zero: s(y') = 0.5 s(y)
        return cpl_loss(response, correction, beta, 0.5)
    if loss_type == "dpop":
        return dpop_loss(correction - response, correction - correction.detach(), beta, 50.0)
    of_margin = {"sigmoid": sigmoid_loss, "ddpo": sigmoid_loss, "hinge": hinge_loss, "ipo": ipo_loss}[loss_type]
    return of_margin(correction - response, beta)


@pytest.mark.parametrize("loss_type", [loss_type for loss_type in LOSS_TYPES if loss_type != "sft"])
def test_the_anchors_share_of_the_gradient_on_an_edited_token_is_the_same_at_every_length(loss_type):
    """At h = 0, worked out by hand: β / 2w, or what the loss's own slope makes of it."""
    beta, weight = 0.3, 0.36
    expected = {"linear": 1 / weight, "hinge": beta / weight, "ipo": 1 / (beta * weight)}
    expected = expected.get(loss_type, beta / 2 / weight)
    for n_tokens, n_edited in ((14, 1), (14, 3), (100, 1), (500, 20)):
        edited = (torch.arange(n_tokens) < n_edited).double()[None]
        log_probs = torch.full((1, n_tokens), -0.5, dtype=torch.float64, requires_grad=True)
        score = scored(loss_type, log_probs, edited)
        response = score.detach() * (2 if loss_type == "cpl" else 1)
        (preference,) = torch.autograd.grad(loss_at(loss_type, response, score, beta), log_probs, retain_graph=True)
        (anchor,) = torch.autograd.grad(weight * nll_anchor(score), log_probs)
        assert preference[0, 0].item() < 0
        assert (preference[0, 0] / anchor[0, 0]).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("margin", [-1e4, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_margins_stay_finite(margin, dtype):
    response = torch.zeros(1, dtype=dtype, requires_grad=True)
    correction = torch.full((1,), margin, dtype=dtype, requires_grad=True)
    h = correction - response
    for losses in (
        sigmoid_loss(h, 0.5, 0.1),
        hinge_loss(h, 0.5),
        ipo_loss(h, 0.5),
        dpop_loss(h, correction, 0.5, 50.0),
        cpl_loss(response, correction, 0.5, 0.5),
    ):
        assert losses.isfinite().all()
        assert all(g.isfinite().all() for g in torch.autograd.grad(losses.sum(), (response, correction)))


# A policy over {0, 1, end} whose responses have at most three tokens, so that all of them can be written down
END, LIMIT = 2, 3
RESPONSES = [
    (*tokens, END) if len(tokens) < LIMIT else tokens
    for n in range(LIMIT + 1)
    for tokens in itertools.product((0, 1), repeat=n)
]


def toy_teacher(response: tuple[int, ...]) -> tuple[int, ...]:
    """Turns the first token into a 1 and ends there."""
    return (*(1 for token in response[:1] if token != END), END)


def toy_log_prob(parameters: torch.Tensor, sequence: tuple[int, ...]) -> torch.Tensor:
    previous, total = END, torch.zeros((), dtype=torch.float64)
    for position, token in enumerate(sequence):
        total = total + parameters[position, previous].log_softmax(-1)[token]
        previous = token
    return total


@pytest.fixture
def toy_policy():
    generator = torch.Generator().manual_seed(0)
    parameters = torch.randn(LIMIT, 3, 3, dtype=torch.float64, generator=generator).requires_grad_()
    log_probs = torch.stack([toy_log_prob(parameters, y) for y in RESPONSES])
    corrections = torch.stack([toy_log_prob(parameters, toy_teacher(y)) for y in RESPONSES])
    assert log_probs.exp().sum().item() == pytest.approx(1)
    return parameters, log_probs, corrections


def test_score_term_of_the_length_prior_has_the_gradient_of_the_expected_prior_gap(toy_policy):
    parameters, log_probs, _ = toy_policy
    prior = normal_length_prior(mean=3.0, std=0.8)
    gap = torch.tensor(prior([len(y) for y in RESPONSES])) - torch.tensor(
        prior([len(toy_teacher(y)) for y in RESPONSES])
    )
    gap = gap.double()
    probabilities = log_probs.detach().exp()  # of the samples: nothing flows through the sampling itself
    (expected_surrogate,) = torch.autograd.grad(
        (probabilities * length_prior_score_term(log_probs, gap)).sum(), parameters, retain_graph=True
    )
    (truth,) = torch.autograd.grad((log_probs.exp() * gap).sum(), parameters)
    torch.testing.assert_close(expected_surrogate, truth, rtol=1e-10, atol=1e-12)
    assert truth.norm() > 0.1


def test_score_term_of_the_length_prior_does_not_differentiate_the_prior():
    gap = float64(1.5)
    loss = length_prior_score_term(float64(-2.0), gap)
    assert loss.item() == -3
    assert torch.autograd.grad(loss.sum(), gap, allow_unused=True)[0] is None


def test_on_policy_linear_loss_has_the_expected_gradient_of_fine_tuning_on_the_corrections(toy_policy):
    parameters, log_probs, corrections = toy_policy
    probabilities = log_probs.detach().exp()
    (linear,) = torch.autograd.grad(
        (probabilities * linear_loss(log_probs, corrections)).sum(), parameters, retain_graph=True
    )
    (fine_tuning,) = torch.autograd.grad((probabilities * -corrections).sum(), parameters)
    torch.testing.assert_close(linear, fine_tuning, rtol=1e-10, atol=1e-12)
    assert fine_tuning.norm() > 0.1
