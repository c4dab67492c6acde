"""The losses of correction optimization, as pure functions: log-probs in, one loss per pair out.

Notation, shared by every function of this file. x is a prompt, y the policy's own response, y' a teacher's correction
of it; B is the number of pairs.

* A **score** of a sequence is its log-prob under the policy (reference-free: P = π) or its log-ratio to a reference
  (P = π / π_old): s(y) = log P(y|x), a tensor of shape `(B,)`, in nats. `response_scores` is s(y),
  `correction_scores` is s(y').
* The **margin** of a pair is h = s(y') − s(y): positive once the policy prefers the correction. −h is the *amount of
  correction* that correction optimization minimises.

Nothing here knows a tokenizer, a model or a trainer. Every function returns a tensor of shape `(B,)`; the caller
decides which pairs count and how they are averaged.
"""

import torch
import torch.nn.functional as F


LOSS_TYPES = ("linear", "sigmoid", "hinge", "ipo", "dpop", "cpl", "ddpo", "sft")


def linear_loss(response_scores: torch.Tensor, correction_scores: torch.Tensor) -> torch.Tensor:
    r"""
    The amount of correction, as the correction-optimization note writes it:

    $$ L = \log P(y|x) - \log P(y'|x) = -h $$

    It has no lower bound. On fresh samples of the policy its expected gradient is that of supervised fine-tuning on
    y', since E_{y∼π}[∇ log π(y|x)] = 0; on re-used pairs nothing stops it and it diverges.

    Args:
        response_scores (`torch.Tensor` of shape `(B,)`):
            s(y), in nats.
        correction_scores (`torch.Tensor` of shape `(B,)`):
            s(y'), in nats.

    Returns:
        `torch.Tensor` of shape `(B,)`.
    """
    return response_scores - correction_scores


def sigmoid_loss(margins: torch.Tensor, beta: float, label_smoothing: float = 0.0) -> torch.Tensor:
    r"""
    DPO's logistic loss ([paper](https://huggingface.co/papers/2305.18290)), on the margin:

    $$ L = -(1 - \epsilon) \log \sigma(\beta h) - \epsilon \log \sigma(-\beta h) $$

    With scores relative to a reference this is DPO; with reference-free scores it is contrastive preference learning
    ([paper](https://huggingface.co/papers/2310.13639)) with γ = λ = 1. At h = 0 its gradient is β/2 times that of
    [`linear_loss`]. ε > 0 is conservative DPO: the optimum is then finite.

    Args:
        margins (`torch.Tensor` of shape `(B,)`):
            h, in nats, with whatever constant offset (a length prior's, say) already added.
        beta (`float`):
            Inverse temperature β > 0.
        label_smoothing (`float`, *optional*, defaults to `0.0`):
            ε in [0, 0.5): the probability that the correction is no better than the response.

    Returns:
        `torch.Tensor` of shape `(B,)`.
    """
    loss = -F.logsigmoid(beta * margins)
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * F.logsigmoid(-beta * margins)
    return loss


def hinge_loss(margins: torch.Tensor, beta: float) -> torch.Tensor:
    r"""
    The linear loss with a stop ([SLiC-HF](https://huggingface.co/papers/2305.10425),
    [RSO](https://huggingface.co/papers/2309.06657)): β times [`linear_loss`] until the margin reaches 1/β, zero after.

    $$ L = \max(0, 1 - \beta h) $$

    Args:
        margins (`torch.Tensor` of shape `(B,)`):
            h, in nats.
        beta (`float`):
            β > 0; the pair is solved at a margin of 1/β nats.

    Returns:
        `torch.Tensor` of shape `(B,)`.
    """
    return torch.relu(1 - beta * margins)


def ipo_loss(margins: torch.Tensor, beta: float) -> torch.Tensor:
    r"""
    IPO ([paper](https://huggingface.co/papers/2310.12036)): the margin has a finite target.

    $$ L = \left(h - \frac{1}{2 \beta}\right)^2 $$

    As in TRL, the caller passes the margin of *mean* log-probs per token, so that β does not depend on the length.

    Args:
        margins (`torch.Tensor` of shape `(B,)`):
            h̄, the difference of the per-token mean scores, in nats per token.
        beta (`float`):
            The paper's τ > 0.

    Returns:
        `torch.Tensor` of shape `(B,)`.
    """
    return (margins - 1 / (2 * beta)) ** 2


def dpop_loss(margins: torch.Tensor, correction_scores: torch.Tensor, beta: float, dpop_lambda: float) -> torch.Tensor:
    r"""
    DPO-Positive ([Smaug](https://huggingface.co/papers/2402.13228)): DPO with a penalty as soon as the correction is
    less likely than under the reference, which is what plain DPO does to pairs that differ in few tokens.

    $$ L = -\log \sigma\left(\beta \left[h - \lambda \max\left(0, \log
    \frac{\pi_{old}(y'|x)}{\pi(y'|x)}\right)\right]\right) $$

    Args:
        margins (`torch.Tensor` of shape `(B,)`):
            h, relative to the reference, in nats.
        correction_scores (`torch.Tensor` of shape `(B,)`):
            log π(y'|x) − log π_old(y'|x), in nats.
        beta (`float`):
            β > 0.
        dpop_lambda (`float`):
            λ ≥ 0; 0 is DPO.

    Returns:
        `torch.Tensor` of shape `(B,)`.
    """
    return -F.logsigmoid(beta * (margins - dpop_lambda * torch.relu(-correction_scores)))


def cpl_loss(
    response_scores: torch.Tensor, correction_scores: torch.Tensor, beta: float, cpl_bias: float
) -> torch.Tensor:
    r"""
    Contrastive preference learning with its conservative bias ([paper](https://huggingface.co/papers/2310.13639)): the
    response's term is scaled down, so that the loss pushes y down less than it pulls y' up.

    $$ L = -\log \frac{e^{\beta s(y')}}{e^{\beta s(y')} + e^{\lambda \beta s(y)}} = -\log \sigma(\beta [s(y') - \lambda
    s(y)]) $$

    λ weighs the whole of s(y): a length prior's share of it too.

    Args:
        response_scores (`torch.Tensor` of shape `(B,)`):
            s(y), in nats, with what a length prior adds to it.
        correction_scores (`torch.Tensor` of shape `(B,)`):
            s(y'), in nats.
        beta (`float`):
            The paper's α > 0.
        cpl_bias (`float`):
            λ in (0, 1]; 1 is [`sigmoid_loss`].

    Returns:
        `torch.Tensor` of shape `(B,)`.
    """
    return -F.logsigmoid(beta * (correction_scores - cpl_bias * response_scores))


def edit_weighted_scores(
    log_probs: torch.Tensor, mask: torch.Tensor, edited: torch.Tensor, gamma: float
) -> torch.Tensor:
    r"""
    Sequence scores of dense DPO ([RLHF-V](https://huggingface.co/papers/2312.00849), Eq. 5): tokens that the
    correction changed count γ times as much as those it kept.

    $$ s(y) = \frac{1}{N} \left[\sum_{i \in kept} \log \pi(y_i) + \gamma \sum_{i \in edited} \log \pi(y_i)\right],
       \quad N = |kept| + \gamma |edited| $$

    The `"ddpo"` loss is [`sigmoid_loss`] on the difference of these scores.

    Args:
        log_probs (`torch.Tensor` of shape `(B, L)`):
            Per-token log-probs (or log-ratios), in nats.
        mask (`torch.Tensor` of shape `(B, L)`):
            1 on the sequence's tokens, 0 on padding.
        edited (`torch.Tensor` of shape `(B, L)`):
            1 on the tokens that differ between y and y'.
        gamma (`float`):
            γ > 0; 1 is the per-token mean.

    Returns:
        `torch.Tensor` of shape `(B,)`.
    """
    weights = mask * (1 + (gamma - 1) * edited)
    normaliser = weights.sum(1)
    return (log_probs * weights).sum(1) / normaliser.masked_fill(normaliser == 0, 1)


def nll_anchor(correction_scores: torch.Tensor) -> torch.Tensor:
    r"""
    Negative log-likelihood of the correction, as in [RPO](https://huggingface.co/papers/2404.19733): it keeps
    log π(y'|x) from falling together with log π(y|x). Alone it is `loss_type="sft"`, fine-tuning on the corrections.

    $$ L = -s(y'), \qquad P = \pi $$

    It weighs the tokens as the loss beside it does: a sum where the loss reads sums, a mean for IPO, edit-weighted for
    DDPO. So the preference term's gradient on an edited token over the anchor's is the same at every length: at h = 0
    and with the weight w it is β / 2w for sigmoid, DPOP and CPL (its argument at 0), β / w for hinge, 1 / w for linear
    and 1 / βw for IPO, DDPO's as sigmoid's. (A mean beside a sum, RPO's form, fades with the
    length: a ratio of 0.42 at 14 tokens is 15 at 500.)

    Args:
        correction_scores (`torch.Tensor` of shape `(B,)`):
            s(y') of the policy itself, without a reference, in nats.

    Returns:
        `torch.Tensor` of shape `(B,)`.
    """
    return -correction_scores


def length_prior_anchor_weights(prior_gap: torch.Tensor) -> torch.Tensor:
    r"""
    How much each correction's [`nll_anchor`] counts under a length prior: twice the probability that the prior prefers
    its length to the response's,

    $$ 2 \sigma(a(y) - a(y')) = \frac{2 l(y')^w}{l(y)^w + l(y')^w} $$

    with a = −w log l as in [`length_prior_score_term`]: 1 where both are as long, below 2 always. So what the anchor
    holds is a policy of the lengths that l likes, among the corrections'. (At equal weights it would hold the
    corrections' lengths, and win: of a prior's pull under the sigmoid loss a third is left.)

    Args:
        prior_gap (`torch.Tensor` of shape `(B,)`):
            a(y) − a(y'), in nats.

    Returns:
        `torch.Tensor` of shape `(B,)`, in (0, 2).
    """
    return 2 * torch.sigmoid(prior_gap)


def length_prior_score_term(response_log_probs: torch.Tensor, prior_gap: torch.Tensor) -> torch.Tensor:
    r"""
    Surrogate whose gradient is that of the length prior's term of the linear objective, for responses sampled from the
    policy. With a(y) what the prior adds to the score of y (see [`~length_prior.LengthPrior`]):

    $$ \nabla \, \mathbb{E}_{y \sim \pi}[a(y) - a(y')]
       = \mathbb{E}_{y \sim \pi}[(a(y) - a(y')) \, \nabla \log \pi(y|x)] $$

    For fixed y and y' the bracket is a constant and the term has no gradient at all; it exists only because the policy
    chooses y. The teacher's a(y') serves as the baseline. With a = −w log l it raises log l of the policy's samples.

    Args:
        response_log_probs (`torch.Tensor` of shape `(B,)`):
            log π(y|x), in nats.
        prior_gap (`torch.Tensor` of shape `(B,)`):
            a(y) − a(y'), in nats.

    Returns:
        `torch.Tensor` of shape `(B,)`.
    """
    return prior_gap.detach() * response_log_probs
