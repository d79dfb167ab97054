"""The loss as a plain expression over the whole step, with counts held constant. Shares nothing with any implementation."""

import torch

from .steps import Result


def scores_of(logits, scores):
    return torch.softmax(logits if scores == "softmax" else torch.nn.functional.logsigmoid(logits), -1)


def balance_groups(case, scope, local=False):
    """Lists of tokens: those averaged, and those counted for their f; and what the group weighs, if not by its tokens."""
    cells = [[case.tokens(m, r) for r in range(case.num_ranks)] for m in range(case.num_micro_batches)]
    micro_batches = [[token for tokens in ranks for token in tokens] for ranks in cells]
    everything = [token for tokens in micro_batches for token in tokens]
    if scope == "sequence":
        groups = []
        for rows in (rows for ranks in case.cells for rows in ranks):
            documents = [document for row in rows for document in row if document]
            groups += [(document, document, 1 / len(documents) if local else 1) for document in documents]
        return groups
    if scope == "micro_batch":
        pairs = [(tokens, tokens) for ranks in cells for tokens in ranks]
    elif scope in ("ranks", "prefix"):
        counted = micro_batches
        if scope == "prefix":
            counted = [[token for tokens in micro_batches[:m + 1] for token in tokens] for m in range(len(micro_batches))]
        averaged = cells if local else [[tokens] for tokens in micro_batches]
        pairs = [(tokens, seen) for parts, seen in zip(averaged, counted) for tokens in parts]
    elif scope == "optimizer_batch":
        pairs = [(everything, everything)]
    else:
        raise ValueError(f"scope {scope!r}; expected sequence, micro_batch, ranks, prefix or optimizer_batch")
    return [(averaged, counted, 1) for averaged, counted in pairs if averaged]


def expected(case, declared, scope=None):
    """What a right implementation with this declaration gives; `scope` in place of the declared one."""
    logits = case.logits.clone().requires_grad_(True)
    probs = scores_of(logits, declared.scores)
    num_layers, _, num_experts = logits.shape
    taken = case.taken()
    groups = balance_groups(case, scope or declared.scope, declared.weighting == "local")
    if not groups:
        return Result(0.0, torch.zeros_like(case.logits))
    weights = [len(averaged) if declared.weighting == "tokens" else weight for averaged, _, weight in groups]
    total = torch.zeros((), dtype=torch.double)
    for (averaged, counted, _), weight in zip(groups, weights):
        for layer in range(num_layers):
            counts = torch.bincount(taken[layer][counted].reshape(-1), minlength=num_experts).double()
            fractions = counts / counts.sum()
            total = total + weight / sum(weights) * num_experts * (fractions * probs[layer][averaged].mean(0)).sum()
    total = total * case.coefficient / (num_layers if declared.layers == "mean" else 1)
    return Result(total.item(), torch.autograd.grad(total, logits)[0])
