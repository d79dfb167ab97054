"""DeepSpeed's gates: me = mean of the gates, ce = mean of a mask of choices, both over all tokens of the micro-batch on the rank. Top-2
takes ce from the first choice only; top-k from all, divided by k. The gate is the router: it chooses by itself. The caller adds up
layers. No mask of padding in either."""

import torch

from ..protocol import describe

DECLARED = {"scope": "micro_batch", "ranks": "mean", "micro_batches": "mean", "layers": "sum", "takes_mask": False,
            "inside_layers": True}
FILE = "microsoft/DeepSpeed 38327e07, deepspeed/moe/sharded_moe.py"


def balance(batch, columns, divisor):
    total = torch.zeros((), dtype=torch.double)
    for logits in batch.logits:
        gates = torch.softmax(logits, -1)
        chose = torch.zeros_like(gates).scatter(1, gates.topk(columns, -1).indices, 1.0)
        total = total + (gates.mean(0) * chose.mean(0)).sum() * batch.num_experts / divisor
    return batch.coefficient * total


@describe(**DECLARED, source=FILE + " (top2gating)")
def top2_loss(batch, group, memory):
    return balance(batch, columns=1, divisor=1)


@describe(**DECLARED, source=FILE + " (topkgating)")
def topk_loss(batch, group, memory):
    return balance(batch, columns=batch.num_chosen, divisor=batch.num_chosen)
