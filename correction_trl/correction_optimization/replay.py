"""Replayed rows in an update of correction optimization."""

from typing import Any

import torch
from datasets import Dataset

from ..policy.replay import Replay
from .losses import nll_anchor


DEFAULT_SHARE = 0.1


class ReplayMixin:
    r"""
    What [`CorrectionOptimizationTrainer`] needs for a `replay_dataset`; it overrides nothing. The loss of an update is

    $$ (1 - s) \, L_{pairs} + s \, \frac{1}{R} \sum_{r=1}^{R} -w \log \pi(c_r|x_r), $$

    with s = `replay_share`, w = `replay_weight` and the R replayed rows of all processes; log π is a sum over the
    tokens of the completion c, for `loss_type` of `"ipo"` and `"ddpo"` a mean.
    """

    _replay: Replay | None = None

    def _set_up_replay(self, dataset: Dataset | None):
        if dataset is None:
            return
        args = self.args
        self._replay = Replay(
            dataset,
            self._encode,
            DEFAULT_SHARE if args.replay_share is None else args.replay_share,
            args.per_device_train_batch_size * args.gradient_accumulation_steps,
            args.max_length,
            args.seed,
            self.accelerator.num_processes,
            self.accelerator.process_index,
            args.pad_to_multiple_of,
        )

    def _replay_notes(self) -> list[str]:
        if self._replay is None:
            return []
        return [f"{self._replay.share:.0%} of the rows of each update are general data, fine-tuned on."]

    def _share_of_pairs(self) -> float:
        return 1.0 if self._replay is None or not self.model.training else 1 - self._replay.share

    def _with_replay(self, batch_samples: list) -> list:
        if self._replay is None or not batch_samples:
            return batch_samples
        rows_per_batch = self.args.per_device_train_batch_size
        return self._replay.beside(batch_samples, self.state.global_step, rows_per_batch, self._cut)

    def _replay_loss(self, model, inputs: dict[str, Any]) -> torch.Tensor:
        """What these replayed rows add to the loss of the update; every process has as many of them in it."""
        inputs = {**inputs, "response_mask": inputs["replayed"]}  # one sequence per row
        log_probs, outputs = self._pair_log_probs(model, inputs, with_entropy=True)
        logps = scores = log_probs.correction.sum(1)  # (B,)
        if self.args.loss_type in ("ipo", "ddpo"):
            scores = logps / log_probs.correction_mask.sum(1).clamp(min=1)
        losses = self.args.replay_weight * nll_anchor(scores)
        loss = self._replay.share * losses.sum() / self._replay.n_rows
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / self.current_gradient_accumulation_steps
        counts = (
            losses.detach().sum(),
            logps.detach().sum(),
            inputs["replayed"].sum(),
            inputs["attention_mask"].sum(),
        )
        totals = self.accelerator.reduce(torch.stack([count.float() for count in counts]), reduction="sum")
        loss_total, logps_total, n_rows, n_tokens = totals.tolist()
        self._count("train", {"replay/loss": loss_total, "logps/replay": logps_total}, n_rows)
        self.state.num_input_tokens_seen += int(n_tokens)
        return loss
