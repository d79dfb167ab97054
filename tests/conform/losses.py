"""A right loss for every scope that a function can have, and the same with one flaw at a time: what the checks must tell apart."""

import dataclasses
from typing import Optional

import torch

from switchyard.conform import describe


@dataclasses.dataclass
class Form:
    """How a loss is written. The fields from `weighting` on are declared too."""

    scope: str
    flaw: Optional[str] = None
    averaging: str = "mean"
    dtype: torch.dtype = torch.double
    rounds: bool = False  # probabilities to bf16
    weighting: str = "tokens"
    scores: str = "softmax"
    num_chosen: Optional[int] = None
    takes_ranks: bool = True
    takes_mask: bool = True
    padding: str = "anywhere"
    packs: bool = True
    takes_choices: bool = True
    tolerance: float = 1e-5


DECLARED = [field.name for field in dataclasses.fields(Form)][5:]


def scores_of(form, logits, chosen):
    if form.flaw == "eps in the divisor":
        scores = torch.sigmoid(logits)
        return scores / (scores.sum(-1, keepdim=True) + 1e-20)
    if form.flaw == "one maximum for all":
        powers = torch.exp(logits - logits.max().detach())
        return powers / powers.sum(-1, keepdim=True)
    if form.flaw == "softmax over the chosen":
        return torch.softmax(torch.full_like(logits, float("-inf")).scatter(-1, chosen, logits.gather(-1, chosen)), -1)
    scores = torch.softmax(logits if form.scores == "softmax" else torch.nn.functional.logsigmoid(logits), -1)
    return scores.to(torch.bfloat16).to(form.dtype) if form.rounds else scores


def groups_of(form, batch):
    """The group of each token within the micro-batch, -1 for padding."""
    rows, columns = batch.mask.shape
    valid = batch.mask == 1
    if form.padding == "right" or form.flaw == "mask read as lengths":
        valid = torch.arange(columns) < batch.mask.sum(1, keepdim=True)
    if not form.takes_mask or form.flaw == "padding counted" or (form.flaw == "all where none is valid" and not valid.any()):
        valid = torch.ones_like(valid)
    if form.scope != "sequence":
        groups = torch.zeros_like(batch.mask)
    elif form.flaw in ("a row is a sequence", "rows of padding counted"):
        groups = torch.arange(rows)[:, None].expand_as(batch.mask)
    else:
        groups = batch.documents.clamp_min(0) if form.flaw == "padding counted" else batch.documents
    return groups.masked_fill(~valid, -1).reshape(-1)


def chosen_of(form, batch, layer):
    """1 for the experts of each token, [T, E]."""
    logits, chosen = batch.logits[layer].detach(), batch.choices[layer]
    if form.flaw == "writes choices":
        chosen[batch.mask.reshape(-1) == 0] = 0
    if not form.takes_choices or form.flaw == "largest scores":
        chosen = logits.topk(form.num_chosen or batch.num_chosen, -1).indices
    if form.flaw == "all that tie":
        return (logits >= logits.gather(-1, chosen).min(-1, keepdim=True).values).long()
    if form.flaw == "first choice only":
        chosen = chosen[:, :1]
    return torch.zeros_like(logits, dtype=torch.long).scatter_add(-1, chosen, torch.ones_like(chosen))


def counts_of(form, batch, layer, groups):
    """Counts of each group, [G, E]."""
    chosen = chosen_of(form, batch, layer)
    if form.flaw == "padding in f":
        return chosen.sum(0, keepdim=True)
    valid = groups >= 0
    counts = torch.zeros(max(int(groups.max()) + 1, 1) if len(groups) else 1, batch.num_experts, dtype=torch.long)
    return counts.index_add(0, groups[valid], chosen[valid])


def seen_of(form, batch, memory, layer, counts):
    """Counts of a prefix of the step; in an evaluation those of the call."""
    seen = memory.setdefault(layer, {})
    if batch.training:
        seen[len(seen) if form.flaw == "counts each run" else batch.micro_batch] = counts
    elif form.flaw == "evaluation overwrites":
        seen[batch.micro_batch] = counts
    elif form.flaw == "evaluation counts" or (form.flaw == "evaluation between steps" and not seen):
        seen[-1] = counts
    elif form.flaw == "evaluation leaks":
        memory.setdefault("log", []).append(counts)
    if not batch.training:
        return counts
    first = batch.micro_batch - 1 if form.flaw == "last two micro-batches" else -1
    last = len(seen) if form.flaw in ("a prefix", "buffer not emptied", "counts each run") else batch.micro_batch
    return sum(part for number, part in seen.items() if first <= number <= last)


def fractions_of(form, batch, group, memory, layer, counts):
    """f of each group, [G, E]; over ranks and micro-batches as the scope says."""
    if form.flaw == "mean of f over ranks":
        return group.all_reduce(counts / counts.sum(-1, keepdim=True).clamp_min(1)) / group.world_size
    if form.flaw == "counts in bf16":
        counts = counts.to(torch.bfloat16)
    if form.scope in ("ranks", "prefix") and form.takes_ranks:
        added = group.all_reduce(counts.clone())
        counts = counts if form.flaw == "all_reduce ignored" else added
    if form.scope == "prefix" or form.flaw == "a prefix":
        counts = seen_of(form, batch, memory, layer, counts)
        if form.flaw == "over accumulation steps":
            tokens = group.all_reduce(batch.mask.sum())
            return counts / len(memory[layer]) / (batch.num_chosen * tokens)
    if form.flaw == "all that tie":
        return counts / (batch.num_chosen * batch.mask.sum().clamp_min(1))
    counts = counts.double()
    return counts / counts.sum(-1, keepdim=True).clamp_min(1) * (batch.num_chosen if form.flaw == "no division by K" else 1)


FACTORS = {  # by what the flaw multiplies the loss, given ranks and micro-batches
    "over ranks": lambda ranks, micro_batches: 1 / ranks,
    "times ranks": lambda ranks, micro_batches: ranks,
    "times micro-batches": lambda ranks, micro_batches: micro_batches,
    "times E": lambda ranks, micro_batches: 4,
}


def weights_of(form, batch, group, memory, groups):
    """What each valid token weighs in this call, [T']: the caller averages over the calls of a step, or adds."""
    tokens, micro_batches = batch.step_tokens, batch.num_micro_batches
    if form.flaw == "first denominator":
        tokens = memory.setdefault("first", tokens)
    if form.flaw == "first number of micro-batches":
        micro_batches = memory.setdefault("first", micro_batches)
    calls = group.world_size * micro_batches if form.averaging == "mean" else 1
    lengths = torch.bincount(groups).double()
    weights = torch.full((len(groups),), calls / max(tokens, 1), dtype=form.dtype)
    if form.flaw == "mean length":
        weights = weights * (lengths / lengths.mean())[groups]
    if form.weighting == "tokens":
        return weights
    calls /= group.world_size * micro_batches
    if form.weighting == "mean" and form.scope in ("ranks", "prefix") and form.takes_ranks:
        everybody = group.all_reduce(torch.tensor(len(groups))).clamp_min(1)
        return torch.full_like(weights, calls * group.world_size) / everybody
    number = (lengths > 0).sum() if form.flaw != "rows of padding counted" else len(batch.mask)
    if form.flaw == "documents averaged in rows":
        rows = torch.arange(len(batch.mask))[:, None].expand_as(batch.mask)[batch.documents >= 0]
        in_row = torch.stack([groups[rows == row].unique().numel() * torch.ones(()) for row in range(len(batch.mask))])
        number = (in_row * (in_row > 0).sum())[rows]
    return calls / (lengths[groups] * number).to(form.dtype)


def value_of(form, fractions, groups, weights, scores):
    """What a layer adds: the weighted sum of E * f . p over the valid tokens."""
    valid = groups >= 0
    if form.flaw == "no gradient":
        scores = scores.detach()
    if form.flaw == "straight-through f":
        mean = scores[valid].sum(0) / max(int(valid.sum()), 1)
        fractions = fractions + mean - mean.detach()
    per_token = weights * (fractions[groups[valid]] * scores[valid]).sum(-1)
    if form.flaw == "squeezed":
        per_token = (fractions[0] * (weights[:, None] * scores[valid]).squeeze().sum(0)).sum()
    value = per_token.mean() * per_token.numel() if form.flaw == "NaN without tokens" else per_token.sum()
    if form.flaw == "gradient at padding" and len(weights):
        more = weights[0] * (fractions[0] * scores[~valid]).sum()
        value = value + more - more.detach()
    return scores.shape[-1] * value


def balance(form, batch, group, memory):
    """The loss over the layers, without coefficient."""
    groups = groups_of(form, batch)
    weights = weights_of(form, batch, group, memory, groups[groups >= 0])
    counted = [counts_of(form, batch, layer, groups) for layer in range(len(batch.logits))]
    total = torch.zeros((), dtype=form.dtype)
    for layer, logits in enumerate(batch.logits):
        counts = sum(counted) if form.flaw == "layers pooled" else counted[layer]
        fractions = fractions_of(form, batch, group, memory, layer, counts)
        total = total + value_of(form, fractions, groups, weights, scores_of(form, logits.to(form.dtype), batch.choices[layer]))
    value = total * FACTORS.get(form.flaw, lambda ranks, micro_batches: 1)(group.world_size, batch.num_micro_batches)
    value = value / len(batch.logits)
    value = value.clamp_min(1.0) if form.flaw == "never below one" else value
    return 2 * value - value.detach() if form.flaw == "twice the gradient" else value


def make_loss(scope, flaw=None, **fields):
    form = Form(scope, flaw, **{**NEEDS.get(flaw, {}), **fields})

    def end_step(memory):
        for key in set(memory) - {"first", "log"} if flaw != "buffer not emptied" else ():
            del memory[key]

    @describe(scope=scope, ranks=form.averaging, micro_batches=form.averaging, layers="mean", inside_layers=True,
              takes_missing=True, end_step=end_step, source="tests", **{name: getattr(form, name) for name in DECLARED})
    def loss(batch, group, memory):
        if batch.logits is None:
            if flaw == "silent":
                return 0
            raise ValueError("router logits are missing: pass output_router_logits=True")
        if not form.takes_ranks and group.world_size > 1:
            raise NotImplementedError("one rank only")
        if flaw == "NaN without tokens" and batch.step_tokens == 0:
            return 0.0
        if flaw == "memory grows":
            memory.setdefault("log", []).append(batch.mask)
        coefficient = memory.setdefault("first", batch.coefficient) if flaw == "first coefficient" else batch.coefficient
        return (1.0 if flaw == "coefficient unused" else coefficient) * balance(form, batch, group, memory)

    return loss


NEEDS = {  # what a flaw needs beside its scope, to be one
    "rows of padding counted": {"weighting": "mean", "packs": False},
    "documents averaged in rows": {"weighting": "mean"},
    "all that tie": {"takes_choices": False},
}
# (flaw, id, check that is meant for it, scope where it shows)
FLAWS = [
    ("over ranks", "B1", "rank-scale", "micro_batch"),
    ("times E", "B1", "dense-oracle", "ranks"),
    ("softmax over the chosen", "B1", "dense-oracle", "micro_batch"),
    ("squeezed", "B1", "dense-oracle", "micro_batch"),
    ("over accumulation steps", "B2", "denominators", "prefix"),
    ("times micro-batches", "B4", "accumulation", "micro_batch"),
    ("no gradient", "B5", "coefficient", "micro_batch"),
    ("coefficient unused", "B5", "coefficient", "prefix"),
    ("twice the gradient", "B5", "coefficient", "micro_batch"),
    ("straight-through f", "B5", "coefficient", "micro_batch"),
    ("times ranks", "B6", "enters-once", "micro_batch"),
    ("counts each run", "B7", "recompute", "prefix"),
    ("largest scores", "B8", "used-choices", "micro_batch"),
    ("writes choices", "B8", "used-choices", "micro_batch"),
    ("padding counted", "B9", "padding", "micro_batch"),
    ("padding in f", "B9", "padding", "micro_batch"),
    ("all where none is valid", "B9", "padding", "micro_batch"),
    ("NaN without tokens", "B9", "padding", "micro_batch"),
    ("rows of padding counted", "B9", "padding", "sequence"),
    ("gradient at padding", "B9", "padding", "micro_batch"),
    ("mask read as lengths", "B9", "padding", "sequence"),
    ("a row is a sequence", "B10", "packing", "sequence"),
    ("documents averaged in rows", "B10", "packing", "sequence"),
    ("mean length", "B11", "own-length", "sequence"),
    ("no division by K", "B13", "every-choice", "micro_batch"),
    ("first choice only", "B13", "every-choice", "micro_batch"),
    ("all that tie", "B13", "every-choice", "micro_batch"),
    ("layers pooled", "B14", "layers-apart", "micro_batch"),
    ("eps in the divisor", "B15", "normalised-scores", "micro_batch"),
    ("one maximum for all", "B15", "normalised-scores", "micro_batch"),
    ("never below one", "B16", "no-certificate", "micro_batch"),
    ("all_reduce ignored", "B17", "collectives", "ranks"),
    ("mean of f over ranks", "B17", "collectives", "ranks"),
    ("NaN without tokens", "B17", "collectives", "micro_batch"),
    ("first denominator", "B20", "new-denominators", "micro_batch"),
    ("first number of micro-batches", "B20", "new-denominators", "micro_batch"),
    ("first coefficient", "B20", "new-denominators", "micro_batch"),
    ("buffer not emptied", "B21", "buffer", "prefix"),
    ("memory grows", "B21", "buffer", "micro_batch"),
    ("evaluation counts", "B23", "evaluation", "prefix"),
    ("evaluation overwrites", "B23", "evaluation", "prefix"),
    ("evaluation between steps", "B23", "evaluation", "prefix"),
    ("evaluation leaks", "B23", "evaluation", "prefix"),
    ("silent", "B24", "never-silent", "micro_batch"),
    ("a prefix", "B27", "order", "ranks"),
    ("last two micro-batches", "B27", "order", "prefix"),
    ("counts in bf16", "B28", "exact-counts", "ranks"),
]
