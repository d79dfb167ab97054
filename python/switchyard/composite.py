"""The operations of csrc/ops.cpp in plain PyTorch calls, for devices and torch versions that those were not built for.

Nothing here waits for the device. Opaque to torch.compile all the same: it would otherwise move the reading of coefficients,
which depends on no gradient, into the forward.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

# Order of state_LX as in ops.py.
_RUNS, _DIFFERENCES, _BAD_PROBS, _BAD_IDS = 0, 1, 4, 5


def _sum_rows(values_TX: Tensor, segment_T: Tensor, num_segments: int) -> Tensor:
    """Sums of rows by segment, [S, X]; padding goes to a row that is cut off."""
    row_T = torch.where(segment_T < 0, num_segments, segment_T)
    sums_PX = values_TX.new_zeros(num_segments + 1, values_TX.shape[1])
    return sums_PX.index_add_(0, row_T, values_TX)[:num_segments]


@torch.library.custom_op("switchyard_composite::record_", mutates_args=("counts_LSE", "prob_sums_LSE", "state_LX"))
def _record(counts_LSE: Tensor, prob_sums_LSE: Tensor, state_LX: Tensor, probs_TE: Optional[Tensor], ids_TK: Tensor,
            segment_T: Tensor, layer: int) -> None:
    num_segments, num_experts = counts_LSE.shape[1:]
    long_TK = ids_TK.long()
    used_TK = long_TK.ge(0) & long_TK.lt(num_experts)
    chosen_TE = long_TK.new_zeros(ids_TK.shape[0], num_experts)
    chosen_TE.scatter_add_(1, torch.where(used_TK, long_TK, 0), used_TK.long())
    counts_SE = _sum_rows(chosen_TE, segment_T, num_segments)
    bad_TK = ~used_TK & long_TK.ne(-1) & segment_T.ge(0).unsqueeze(1)
    state_X = state_LX[layer]
    # The worst of the runs, as each may be bad by itself and a checkpoint runs twice.
    state_X[_BAD_IDS] = torch.maximum(state_X[_BAD_IDS], bad_TK.sum())
    first = state_X[_RUNS] == 0
    state_X[_DIFFERENCES] += torch.where(first, 0, (counts_SE != counts_LSE[layer]).sum())
    counts_LSE[layer] = torch.where(first, counts_SE, counts_LSE[layer])
    state_X[_RUNS] += 1
    if probs_TE is None:
        return
    tolerance = 2e-2 if probs_TE.element_size() == 2 else 1e-2  # wide ones may have been rounded to bfloat16 before
    wide_TE = probs_TE.to(prob_sums_LSE.dtype)
    sums_SE = _sum_rows(wide_TE, segment_T, num_segments)
    prob_sums_LSE[layer] = torch.where(first, sums_SE, prob_sums_LSE[layer])
    good_T = (wide_TE.sum(1) - 1).abs() <= tolerance  # false for NaN
    state_X[_BAD_PROBS] += torch.where(first, (~good_T & (segment_T >= 0)).sum(), 0)


@torch.library.custom_op("switchyard_composite::record_lse_", mutates_args=("squared_lse_LS",))
def _record_lse(squared_lse_LS: Tensor, logits_TE: Tensor, segment_T: Tensor, layer: int) -> None:
    lse_T1 = torch.logsumexp(logits_TE.to(squared_lse_LS.dtype), -1, keepdim=True)
    squared_lse_LS[layer] = _sum_rows(lse_T1.square(), segment_T, squared_lse_LS.shape[1]).squeeze(1)


@torch.library.custom_op("switchyard_composite::mark_", mutates_args=("state_LX",))
def _mark(state_LX: Tensor, layer: int, column: int) -> None:
    state_LX[layer, column] += 1


def _check_filled(entry: Tensor, scale_1: Tensor) -> None:
    # Elsewhere looking would wait for the device: an unfilled cell gives NaN gradients there.
    if entry.device.type != "cpu":
        return
    if bool(scale_1.isnan()):
        raise RuntimeError("switchyard: backward of a loss that was not joined. Call join(loss) on it, or let the model "
                           "compute it (labels=...). Under a Trainer that makes its own loss, attach to the Trainer")
    if bool(entry.isnan()):
        raise RuntimeError(
            "switchyard: backward came before its balancing coefficients are known. Call close_forward() after the last layer "
            "and, for scopes that need the whole step, close_counting() after the last forward, before backward")


@torch.library.custom_op("switchyard_composite::rows_of_tokens", mutates_args=())
def _rows_of_tokens(anchor: Tensor, segment_T: Tensor, rows_LPE: Tensor, scale_1: Tensor, layer: int,
                    type: torch.dtype) -> Tensor:
    rows_PE = rows_LPE[layer]
    _check_filled(rows_PE[0, 0], scale_1)
    row_T = torch.where(segment_T < 0, rows_PE.shape[0] - 1, segment_T)
    return (rows_PE * scale_1).to(type).index_select(0, row_T)


@_rows_of_tokens.register_fake
def _(anchor, segment_T, rows_LPE, scale_1, layer, type):
    return rows_LPE.new_empty(segment_T.shape[0], rows_LPE.shape[2], dtype=type)


@torch.library.custom_op("switchyard_composite::z_rows_of_tokens", mutates_args=())
def _z_rows_of_tokens(anchor: Tensor, logits_TE: Tensor, segment_T: Tensor, weights_P: Tensor, scale_1: Tensor) -> Tensor:
    _check_filled(weights_P[0], scale_1)
    plain_TE = logits_TE if logits_TE.dtype == torch.float64 else logits_TE.float()
    row_T = torch.where(segment_T < 0, weights_P.shape[0] - 1, segment_T)
    weight_T1 = (weights_P * scale_1).index_select(0, row_T).to(plain_TE.dtype).unsqueeze(1)
    lse_T1 = torch.logsumexp(plain_TE, -1, keepdim=True)
    # A padding row may hold anything, infinities included; zero times that would still be NaN.
    grad_TE = torch.where(weight_T1 == 0, 0.0, torch.softmax(plain_TE, -1) * (weight_T1 * lse_T1 * 2.0))
    return grad_TE.to(logits_TE.dtype)


@_z_rows_of_tokens.register_fake
def _(anchor, logits_TE, segment_T, weights_P, scale_1):
    return torch.empty_like(logits_TE)


def _constant(ctx, grad):
    return None, None, None, None, None, None


# Coefficients are constants: nothing flows through them in a second backward.
_rows_of_tokens.register_autograd(_constant)


def _refuse_second_derivative() -> None:
    if torch.is_grad_enabled():  # backward runs with create_graph=True
        raise RuntimeError("switchyard: the z-loss has no second derivative here; set z_coefficient=0 where backward has "
                           "create_graph=True")


class _Carry(torch.autograd.Function):
    @staticmethod
    def forward(ctx, carrier, probs_TE, segment_T, rows_LPE, scale_1, layer):
        ctx.save_for_backward(segment_T, rows_LPE, scale_1)
        ctx.layer, ctx.type = layer, probs_TE.dtype
        return carrier.view_as(carrier)

    @staticmethod
    def backward(ctx, grad):
        segment_T, rows_LPE, scale_1 = ctx.saved_tensors
        grad_TE = torch.ops.switchyard_composite.rows_of_tokens(grad, segment_T, rows_LPE, scale_1, ctx.layer, ctx.type)
        return grad, grad_TE, None, None, None, None


class _CarryZ(torch.autograd.Function):
    @staticmethod
    def forward(ctx, carrier, logits_TE, segment_T, weights_P, scale_1):
        ctx.save_for_backward(logits_TE, segment_T, weights_P, scale_1)
        return carrier.view_as(carrier)

    @staticmethod
    def backward(ctx, grad):
        _refuse_second_derivative()
        logits_TE, segment_T, weights_P, scale_1 = ctx.saved_tensors
        grad_TE = torch.ops.switchyard_composite.z_rows_of_tokens(grad, logits_TE, segment_T, weights_P, scale_1)
        return grad, grad_TE, None, None, None


class _Through(torch.autograd.Function):
    """Carry where carrier and probabilities are one tensor, which torch.compile does not allow twice among the inputs."""

    @staticmethod
    def forward(ctx, probs_TE, segment_T, rows_LPE, scale_1, layer):
        ctx.save_for_backward(segment_T, rows_LPE, scale_1)
        ctx.layer, ctx.type = layer, probs_TE.dtype
        return probs_TE.view_as(probs_TE)

    @staticmethod
    def backward(ctx, grad):
        segment_T, rows_LPE, scale_1 = ctx.saved_tensors
        rows = torch.ops.switchyard_composite.rows_of_tokens(grad, segment_T, rows_LPE, scale_1, ctx.layer, ctx.type)
        return grad + rows, None, None, None, None


class _ThroughZ(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits_TE, segment_T, weights_P, scale_1):
        ctx.save_for_backward(logits_TE, segment_T, weights_P, scale_1)
        return logits_TE.view_as(logits_TE)

    @staticmethod
    def backward(ctx, grad):
        _refuse_second_derivative()
        logits_TE, segment_T, weights_P, scale_1 = ctx.saved_tensors
        rows = torch.ops.switchyard_composite.z_rows_of_tokens(grad, logits_TE, segment_T, weights_P, scale_1)
        return grad + rows, None, None, None


def _carry(carrier: Tensor, probs_TE: Tensor, segment_T: Tensor, rows_LPE: Tensor, scale_1: Tensor, layer: int) -> Tensor:
    if carrier is probs_TE:
        return _Through.apply(probs_TE, segment_T, rows_LPE, scale_1, layer)
    return _Carry.apply(carrier, probs_TE, segment_T, rows_LPE, scale_1, layer)


def _carry_z(carrier: Tensor, logits_TE: Tensor, segment_T: Tensor, weights_P: Tensor, scale_1: Tensor) -> Tensor:
    if carrier is logits_TE:
        return _ThroughZ.apply(logits_TE, segment_T, weights_P, scale_1)
    return _CarryZ.apply(carrier, logits_TE, segment_T, weights_P, scale_1)


class OPS:
    """The same names as torch.ops.switchyard."""

    record_ = torch.ops.switchyard_composite.record_
    record_lse_ = torch.ops.switchyard_composite.record_lse_
    mark_ = torch.ops.switchyard_composite.mark_
    rows_of_tokens = torch.ops.switchyard_composite.rows_of_tokens
    z_rows_of_tokens = torch.ops.switchyard_composite.z_rows_of_tokens
    carry = staticmethod(_carry)
    carry_z = staticmethod(_carry_z)
