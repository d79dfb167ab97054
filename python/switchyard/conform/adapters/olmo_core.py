"""OLMo-core, MoELoadBalancingLoss: (E / k) * counts . mean scores, over the local batch or over each instance (row) by itself, divided by
the tokens that the loss is divided by, here those of the whole step; gradients are added. The weight is divided by the number of
layers. No mask of padding and no labels of documents: instances are full."""

import torch

from ..protocol import describe

DECLARED = {"ranks": "sum", "micro_batches": "sum", "layers": "mean", "weighting": "tokens", "takes_mask": False,
            "takes_choices": True, "inside_layers": True}
FILE = "allenai/OLMo-core fa6c5014, src/olmo_core/nn/moe/loss.py"


def balance(batch, rows):
    """Counts and mean scores over each of `rows` equal parts of the micro-batch."""
    total = torch.zeros((), dtype=torch.double)
    for logits, chosen in zip(batch.logits, batch.choices):
        scores = torch.softmax(logits, -1).reshape(rows, -1, batch.num_experts)
        counts = torch.nn.functional.one_hot(chosen.reshape(rows, -1), batch.num_experts).sum(1)
        total = total + (counts * scores.mean(1)).sum()
    scale = batch.num_experts * batch.coefficient / (batch.num_chosen * batch.step_tokens * len(batch.logits))
    return scale * total


@describe(scope="micro_batch", **DECLARED, source=FILE + " (local_batch)")
def local_batch_loss(batch, group, memory):
    return balance(batch, rows=1)


@describe(scope="sequence", **DECLARED, source=FILE + " (instance)")
def instance_loss(batch, group, memory):
    return balance(batch, rows=batch.mask.shape[0])
