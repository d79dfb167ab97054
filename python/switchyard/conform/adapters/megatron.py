"""Megatron-LM. Its losses count the K largest plain scores, whatever the router took, and run only in training with gradients.

global_aux_loss: counts added up over ranks into a buffer, divided by the number of accumulation steps so far, and normalised by the
tokens of the current micro-batch on all ranks. Probabilities stay local; callers average over ranks and micro-batches.
seq_aux_loss: the same formula with (row, expert) in place of the expert, over the number of rows; with a mask all rows are normalised
by their mean valid length. A row is a sequence, packed or not. (Context and tensor ranks, over which it adds up, are not simulated.)
"""

import torch

from ..protocol import describe


def forget(memory):
    """What finalize_model_grads does after a step."""
    memory.clear()


def active(batch):
    return batch.training and torch.is_grad_enabled()


def chosen_by_score(scores, num_chosen):
    """1 where a score is one of the K largest of its token, [T, E]."""
    return torch.zeros_like(scores).scatter(-1, scores.topk(num_chosen, -1).indices, 1.0).detach()


def switch_loss(batch, prob_sums, counts, tokens):
    return batch.num_experts * batch.coefficient / (batch.num_chosen * tokens * tokens) * (prob_sums * counts).sum()


@describe(scope="prefix", ranks="mean", micro_batches="mean", layers="sum", weighting="mean", takes_mask=True, takes_choices=True,
          inside_layers=True, end_step=forget,
          source="NVIDIA/Megatron-LM d98e8a64, megatron/core/transformer/moe/router.py (_apply_global_aux_loss), moe_utils.py")
def global_loss(batch, group, memory):
    total = torch.zeros((), dtype=torch.double)
    if not active(batch):
        return total
    valid = batch.mask.reshape(-1, 1)
    for layer, logits in enumerate(batch.logits):
        scores = torch.softmax(logits, -1) * valid
        counts = group.all_reduce((chosen_by_score(scores, batch.num_chosen) * valid).sum(0).float())
        tokens = counts.sum() / batch.num_chosen
        buffer = memory.setdefault(layer, {"counts": torch.zeros(batch.num_experts), "steps": 0})
        buffer["counts"] += counts
        buffer["steps"] += 1
        # Over the tokens of all ranks, of local sums; the caller's mean over ranks is not undone.
        total = total + switch_loss(batch, scores.sum(0), buffer["counts"] / buffer["steps"], tokens)
    return total


@describe(scope="sequence", ranks="mean", micro_batches="mean", layers="sum", weighting="mean", takes_mask=True, packs=True,
          takes_choices=True, inside_layers=True,
          source="NVIDIA/Megatron-LM d98e8a64, megatron/core/transformer/moe/router.py (_apply_seq_aux_loss), moe_utils.py")
def sequence_loss(batch, group, memory):
    total = torch.zeros((), dtype=torch.double)
    if not active(batch):
        return total
    rows, columns = batch.mask.shape
    valid = batch.mask.reshape(rows, columns, 1)
    for logits in batch.logits:
        scores = torch.softmax(logits, -1).reshape(rows, columns, -1) * valid
        counts = (chosen_by_score(scores, batch.num_chosen) * valid).sum(1)
        tokens = counts.sum() / (batch.num_chosen * rows)  # the mean valid length
        total = total + switch_loss(batch, scores.sum(1), counts, tokens) / rows
    return total
