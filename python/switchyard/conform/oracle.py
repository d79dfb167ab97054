"""The loss as a plain expression over the whole step, with counts held constant. Shares nothing with any implementation."""

import torch

from .steps import Result


def balance_groups(case, scope):
    """Lists of tokens: those averaged, and those counted for their f."""
    cells = [[case.tokens(m, r) for r in range(case.num_ranks)] for m in range(case.num_micro_batches)]
    micro_batches = [[token for tokens in ranks for token in tokens] for ranks in cells]
    everything = [token for tokens in micro_batches for token in tokens]
    if scope == "sequence":
        groups = [document for ranks in case.cells for rows in ranks for row in rows for document in row]
        return [(group, group) for group in groups if group]
    if scope == "micro_batch":
        return [(tokens, tokens) for ranks in cells for tokens in ranks if tokens]
    if scope == "ranks":
        return [(tokens, tokens) for tokens in micro_batches if tokens]
    if scope == "prefix":
        before = [[token for tokens in micro_batches[:m + 1] for token in tokens] for m in range(len(micro_batches))]
        return [(tokens, seen) for tokens, seen in zip(micro_batches, before) if tokens]
    if scope == "optimizer_batch":
        return [(everything, everything)] if everything else []
    raise ValueError(f"scope {scope!r}; expected sequence, micro_batch, ranks, prefix or optimizer_batch")


def expected(case, declared, scope=None):
    """What a right implementation with this declaration gives; `scope` in place of the declared one."""
    logits = case.logits.clone().requires_grad_(True)
    probs = logits.softmax(-1)
    num_layers, _, num_experts = logits.shape
    taken = case.taken()
    groups = balance_groups(case, scope or declared.scope)
    weights = [len(averaged) if declared.weighting == "tokens" else 1 for averaged, _ in groups]
    total = torch.zeros((), dtype=torch.double)
    for (averaged, counted), weight in zip(groups, weights):
        for layer in range(num_layers):
            counts = torch.bincount(taken[layer][counted].reshape(-1), minlength=num_experts).double()
            fractions = counts / counts.sum()
            total = total + weight / sum(weights) * num_experts * (fractions * probs[layer][averaged].mean(0)).sum()
    total = total * case.coefficient / (num_layers if declared.layers == "mean" else 1)
    if not groups:
        return Result(0.0, torch.zeros_like(case.logits))
    return Result(total.item(), torch.autograd.grad(total, logits)[0])
