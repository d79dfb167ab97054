"""One forward of a step on this rank: what its layers counted, and the coefficients that its backward will read.

Shapes: L MoE layers, S segments of the forward, P = S + 1 (the last row is zero, for padding), E experts, K choices, T tokens.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

from .config import BalanceConfig
from .errors import ShapeError, StateError
from .faults import Faults
from .ops import BAD_IDS, BAD_PROBS, DIFFERENCES, NUM_STATES, PASSED_LOGITS, PASSED_PROBS, RUNS

NAN = float("nan")


def wide_type(device: torch.device) -> torch.dtype:
    """The type of sums and coefficients: double, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def fractions(counts: Tensor) -> Tensor:
    """f = C / sum_e C over the last dimension; zeros where nothing was counted."""
    wide = counts.to(wide_type(counts.device))
    return wide / wide.sum(-1, keepdim=True).clamp_min(1)


def tokens_of_segments(segment_T: Tensor, num_segments: int) -> Tensor:
    """Valid tokens of each segment, int64 [S], without waiting for the device."""
    row_T = torch.where(segment_T < 0, num_segments, segment_T)
    counts_P = torch.zeros(num_segments + 1, dtype=torch.int64, device=row_T.device)
    return counts_P.index_add_(0, row_T, torch.ones_like(row_T))[:num_segments]


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss, scale_1, factor):
        ctx.scale_1, ctx.factor = scale_1, factor
        return loss.clone()  # not a view: callers multiply losses in place

    @staticmethod
    def backward(ctx, grad):
        # Before every injection of this forward: they all lie behind the loss.
        ctx.scale_1.data.copy_(grad.detach().reshape(1) * ctx.factor)
        return grad, None, None


class Frame:
    """Made by BalanceLoss.begin_forward(). Its methods may be called inside a compiled or checkpointed region."""

    def __init__(self, config: BalanceConfig, ops: Any, place: str, segment_T: Tensor, num_segments: int,
                 faults: Faults):
        self.config = config
        self.ops = ops
        self.place = place
        self._faults = faults
        self.segment_T = segment_T.clone()  # backward reads it, when the caller may use its memory for the next batch
        self.num_segments = num_segments
        device, wide = segment_T.device, wide_type(segment_T.device)
        layers, experts = config.num_layers, config.num_experts
        self.counts_LSE = torch.zeros(layers, num_segments, experts, dtype=torch.int64, device=device)
        # NaN where a layer records no probabilities: the loss then acts, but has no value.
        self.prob_sums_LSE = torch.full((layers, num_segments, experts), NAN, dtype=wide, device=device)
        self.squared_lse_LS = torch.zeros(layers, num_segments, dtype=wide, device=device)
        self.state_LX = torch.zeros(layers, NUM_STATES, dtype=torch.int64, device=device)
        # NaN until filled. The content changes after it was saved for backward, so it is written through .data.
        self.rows_LPE = torch.full((layers, num_segments + 1, experts), NAN, dtype=wide, device=device)
        self.z_weights_P = torch.full((num_segments + 1,), NAN, dtype=wide, device=device)
        self.scale_1 = torch.ones(1, dtype=wide, device=device)
        for padding_row in (self.rows_LPE[:, -1], self.z_weights_P[-1:]):
            padding_row.zero_()
        self.unit_LSE: Optional[Tensor] = None  # without lambda and the contract's factor
        # (layer, call) that went through outside a compiled region, and those that a backward came back to.
        self._watched: set[tuple[int, str]] = set()
        self._reached: set[tuple[int, str]] = set()
        self._loss_reached = False

    def tokens_S(self) -> Tensor:
        return tokens_of_segments(self.segment_T, self.num_segments)

    def _has_layer(self, layer: int) -> bool:
        if 0 <= layer < self.config.num_layers:
            return True
        self._faults.add(ShapeError(f"{self.place}: layer {layer} of {self.config.num_layers} MoE layers"))
        return False

    def _flat(self, scores: Tensor, layer: int, what: str) -> Optional[Tensor]:
        """None, and a fault, where they cannot be of this forward."""
        experts, num_tokens = self.config.num_experts, self.segment_T.shape[0]
        if not self._has_layer(layer):
            return None
        if scores.dim() == 0 or scores.shape[-1] != experts or scores.numel() != num_tokens * experts:
            self._faults.add(ShapeError(f"{self.place}, layer {layer}: {what} are {list(scores.shape)}; expected "
                                        f"[{num_tokens}, {experts}], tokens of the forward and experts"))
            return None
        return scores if scores.dim() == 2 else scores.reshape(-1, experts)

    def through(self, layer: int, probs: Tensor, carrier: Optional[Tensor] = None) -> Tensor:
        """Returns the probabilities [..., E]; backward adds the loss's gradient to theirs.

        @param carrier  returned in place of the probabilities where the router hands on only something made of them; any
                        tensor whose gradient flows, such as the weights of the chosen experts
        """
        flat_TE = self._flat(probs, layer, "probabilities")
        if flat_TE is not None:
            self.ops.mark_(self.state_LX, layer, PASSED_PROBS)
        if flat_TE is None or self.config.coefficient == 0.0:
            return probs if carrier is None else carrier
        source = flat_TE if carrier is None else carrier
        out = self.ops.carry(source, flat_TE, self.segment_T, self.rows_LPE, self.scale_1, layer)
        self._watch(out, layer, "through()")
        return out if carrier is not None or probs.dim() == 2 else out.reshape(probs.shape)

    def _watch(self, out: Tensor, layer: int, call: str) -> None:
        if out.requires_grad and not torch.compiler.is_compiling():
            self._watched.add((layer, call))
            out.register_hook(lambda _: self._reached.add((layer, call)))

    def _missed(self) -> list[tuple[int, str]]:
        """To which the backward of this forward did not come back: the router goes on without what the call returned."""
        return sorted(self._watched - self._reached) if self._reached or self._loss_reached else []

    def was_reached(self) -> bool:
        """By a backward, seen outside compiled regions."""
        return bool(self._reached) or self._loss_reached

    def has_missed_backward(self) -> bool:
        """Whether a backward should have come here, and none did. False without gradients, as of a frozen model."""
        return bool(self._watched) and not self.was_reached()

    def through_logits(self, layer: int, logits: Tensor, carrier: Optional[Tensor] = None) -> Tensor:
        """The same for the z-loss, which acts on the logits."""
        flat_TE = self._flat(logits, layer, "logits")
        if flat_TE is not None:
            self.ops.mark_(self.state_LX, layer, PASSED_LOGITS)
        if flat_TE is None or self.config.z_coefficient == 0.0:
            return logits if carrier is None else carrier
        self.ops.record_lse_(self.squared_lse_LS, flat_TE.detach(), self.segment_T, layer)
        source = flat_TE if carrier is None else carrier
        out = self.ops.carry_z(source, flat_TE, self.segment_T, self.z_weights_P, self.scale_1)
        self._watch(out, layer, "through_logits()")
        return out if carrier is not None or logits.dim() == 2 else out.reshape(logits.shape)

    def record(self, layer: int, ids: Tensor, probs: Optional[Tensor] = None) -> None:
        """Counts the chosen experts, int64 [..., K] (-1: an unused slot). A repeat with equal counts changes nothing.

        @param probs  [..., E]; without them the loss acts but has no value
        """
        if not self._has_layer(layer):
            return
        counts_experts = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
        if ids.dim() < 2 or ids.shape[-1] == 0 or ids.numel() != self.segment_T.shape[0] * ids.shape[-1] or not counts_experts:
            self._faults.add(ShapeError(f"{self.place}, layer {layer}: choices are {ids.dtype} {list(ids.shape)}; expected int64 "
                                        f"[{self.segment_T.shape[0]}, K], one row per token of the forward"))
            return
        flat_TE = None if probs is None else self._flat(probs.detach(), layer, "probabilities")
        if probs is not None and flat_TE is None:
            return
        self.ops.record_(self.counts_LSE, self.prob_sums_LSE, self.state_LX, flat_TE, ids.reshape(-1, ids.shape[-1]),
                         self.segment_T, layer)

    @torch.compiler.disable
    def join(self, loss: Tensor, factor: float = 1.0) -> Tensor:
        """Returns the loss; the gradient that arrives there, times `factor`, scales the balancing gradient of this forward.

        For losses that are scaled after the forward: by a GradScaler, or divided by the number of micro-batches.
        """
        if not loss.requires_grad:
            return loss
        joined = _Join.apply(loss, self.scale_1, factor)
        joined.register_hook(lambda _: setattr(self, "_loss_reached", True))
        return joined

    def fill(self, unit_LSE: Tensor, factor: Tensor | float, z_weight: Tensor | float) -> None:
        """Makes the coefficients known. @param factor  s of the contract"""
        config = self.config
        self.unit_LSE = unit_LSE
        self.rows_LPE.data[:, : self.num_segments] = unit_LSE * config.per_layer(config.coefficient) * factor
        self.z_weights_P.data[: self.num_segments] = z_weight * config.per_layer(config.z_coefficient) * factor

    @property
    def filled(self) -> bool:
        return self.unit_LSE is not None

    def coefficients_LSE(self) -> Tensor:
        """c as backward adds it, for tests. Raises StateError before it is known."""
        if not self.filled:
            raise StateError(f"{self.place}: the balancing coefficients are not known yet")
        return self.rows_LPE[:, : self.num_segments].clone()

    def problems(self) -> Tensor:
        """How many layers have something that complaint() would tell, int64 [], without waiting for the device."""
        state_LX, config = self.state_LX, self.config
        bad_L = (state_LX[:, RUNS] == 0) | (state_LX[:, BAD_PROBS] > 0) | (state_LX[:, BAD_IDS] > 0)
        if config.coefficient > 0.0:
            bad_L = bad_L | (state_LX[:, PASSED_PROBS] == 0)
        if config.z_coefficient > 0.0:
            bad_L = bad_L | (state_LX[:, PASSED_LOGITS] == 0)
        return bad_L.sum() + len(self._missed())

    def differences(self) -> Tensor:
        """Entries that a repeated forward counted differently, int64 [L]."""
        return self.state_LX[:, DIFFERENCES]

    def complaint(self) -> str:
        """What is wrong with this forward, or nothing. Waits for the device."""
        for layer, row in enumerate(self.state_LX.tolist()):
            where = f"{self.place}, layer {layer}: "
            if row[RUNS] == 0:
                return where + "no choices were recorded. Call record() in every MoE layer; a layer that is skipped, or " \
                    "replaced by a fused kernel, cannot be balanced. Under torch.compile a graph of before may have run: call " \
                    "torch._dynamo.reset()"
            if row[BAD_IDS] > 0:
                return where + f"{row[BAD_IDS]} choices are neither an expert, 0 to {self.config.num_experts - 1}, nor -1 for an " \
                    "unused slot. Give record() the ids that the router chose, with -1 where a token used fewer experts"
            if row[BAD_PROBS] > 0:
                return where + f"the probabilities of {row[BAD_PROBS]} tokens are not finite or do not sum to 1. Give " \
                    "normalised probabilities; where they are, training has diverged"
            if self.config.coefficient > 0.0 and row[PASSED_PROBS] == 0:
                return where + "the router's probabilities did not go through(), so the loss could not act. Use what it returns"
            if self.config.z_coefficient > 0.0 and row[PASSED_LOGITS] == 0:
                return where + "the router's logits did not go through_logits(), so the z-loss could not act"
        for layer, call in self._missed():
            return f"{self.place}, layer {layer}: backward did not come to what {call} returned, so the loss did not act. " \
                "Go on with what it returns. Or this backward failed or was cut short: call abandon_step() of the loss " \
                "(attachment.loss.abandon_step()) after a batch that you skip"
        return ""
