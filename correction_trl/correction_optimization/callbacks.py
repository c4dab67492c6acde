import math
import warnings

from transformers import TrainerCallback


class DisplacementCallback(TrainerCallback):
    """
    Warns, once, when the corrections have become clearly less likely than they were at the start (`logps/correction`):
    by a tenth and beyond the noise of the entries where there are six or more, by half of the first entry before.
    """

    def __init__(self):
        self._warned = False

    def on_log(self, args, state, control, **kwargs):
        history = [entry["logps/correction"] for entry in state.log_history if "logps/correction" in entry]
        if self._warned or "logps/correction" not in state.log_history[-1]:
            return
        if not math.isfinite(history[-1]):
            self._warned = True
            warnings.warn(
                "`logps/correction` is not finite: the policy has diverged. Lower the learning rate, or use a bounded "
                "`loss_type` with an `nll_weight`.",
                stacklevel=2,
            )
            return
        window = max(3, len(history) // 5)
        few = len(history) < 2 * window
        if len(history) < 2:
            return
        start, now = (history[:1], history[-1:]) if few else (history[:window], history[-window:])
        fall = sum(start) / len(start) - sum(now) / len(now)
        spread = math.sqrt(sum(_variance(values) / len(values) for values in (start, now)))
        if fall > (0.5 if few else 0.1) * abs(sum(start) / len(start)) + 4 * spread:
            self._warned = True
            remedy = "raise `nll_weight`" if args.nll_weight else "leave `nll_weight` at its default"
            warnings.warn(
                f"The corrections have become less likely than at the start: `logps/correction` fell by {fall:.2f} "
                f"nats to {sum(now) / len(now):.2f}. The loss is pushing responses and corrections down together "
                f"(likelihood displacement): {remedy}, lower the learning rate, or use a bounded `loss_type` such as "
                "'sigmoid' or 'dpop'; stored pairs should not be used for more than one epoch.",
                stacklevel=2,
            )


def _variance(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)
