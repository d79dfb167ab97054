"""torchtitan, MicrobatchWiseLoadBalanceLoss: f = (E / kT) * counts, p = mean of the normalised scores, T * f.p over the valid tokens of
the whole step; gradients are added over ranks and micro-batches. Counts are shared over context and tensor ranks only."""

import torch

from ..protocol import describe


@describe(scope="micro_batch", ranks="sum", micro_batches="sum", layers="sum", weighting="tokens", takes_mask=True,
          takes_choices=True, inside_layers=True,
          source="pytorch/torchtitan 0276e6ed, torchtitan/models/common/moe.py, aux_loss.py")
def loss(batch, group, memory):
    valid = batch.mask.reshape(-1).bool()
    tokens = int(valid.sum())
    total = torch.zeros((), dtype=torch.double)
    for logits, chosen in zip(batch.logits, batch.choices):
        scores = torch.softmax(logits, -1)[valid]
        mean_scores = (scores / scores.sum(-1, keepdim=True)).sum(0) / max(tokens, 1)
        counts = torch.bincount(chosen[valid].reshape(-1), minlength=batch.num_experts)
        fractions = counts * batch.num_experts / max(batch.num_chosen * tokens, 1)
        total = total + tokens * (fractions * mean_scores).sum()
    return batch.coefficient * total / max(batch.step_tokens, 1)
