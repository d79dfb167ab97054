"""A right loss for every scope that a function can have, and the same with one flaw at a time: what the checks must tell apart."""

import torch

from switchyard.conform import describe


def scores_of(batch, logits, flaw):
    if flaw == "eps in the divisor":
        scores = torch.sigmoid(logits)
        return scores / (scores.sum(-1, keepdim=True) + 1e-20)
    return torch.softmax(logits, -1)


def groups_of(batch, scope, flaw):
    """The group of each token within the micro-batch, -1 for padding."""
    if scope != "sequence":
        groups = torch.zeros_like(batch.mask)
    elif flaw == "a row is a sequence":
        groups = torch.arange(batch.mask.shape[0])[:, None].expand_as(batch.mask)
    else:
        groups = batch.documents
    if flaw == "padding counted":
        return groups.clamp_min(0).reshape(-1)
    return groups.masked_fill(batch.mask == 0, -1).reshape(-1)


def counts_of(batch, layer, groups, flaw):
    """Counts of each group, [G, E]."""
    chosen = batch.choices[layer]
    if flaw == "largest scores":
        chosen = batch.logits[layer].topk(batch.num_chosen, -1).indices
    if flaw == "first choice only":
        chosen = chosen[:, :1]
    counts = torch.zeros(int(groups.max()) + 1 if len(groups) and groups.max() >= 0 else 1, batch.num_experts, dtype=torch.long)
    valid = groups >= 0
    for column in range(chosen.shape[1]):
        counts.index_put_((groups[valid], chosen[valid, column]), torch.tensor(1), accumulate=True)
    return counts


def fractions_of(batch, group, memory, layer, counts, scope, flaw):
    """f of each group, [G, E]; over ranks and micro-batches as the scope says."""
    if scope in ("ranks", "prefix"):
        added = group.all_reduce(counts.clone())
        counts = counts if flaw == "all_reduce ignored" else added
    if scope == "prefix" or flaw == "a prefix":
        seen = memory.setdefault(layer, {})
        if flaw == "counts each run":
            seen[len(seen)] = counts
        elif batch.training or flaw == "evaluation counts":
            seen[batch.micro_batch if batch.training else -1] = counts
        counts = sum(part for number, part in seen.items() if flaw or number <= batch.micro_batch)
        if flaw == "over accumulation steps":
            tokens = group.all_reduce(batch.mask.sum())
            return counts / len(seen) / (batch.num_chosen * tokens)
    return counts / counts.sum(-1, keepdim=True).clamp_min(1) * (batch.num_chosen if flaw == "no division by K" else 1)


FACTORS = {  # by what the flaw multiplies the loss, given ranks and micro-batches
    "over ranks": lambda ranks, micro_batches: 1 / ranks,
    "times ranks": lambda ranks, micro_batches: ranks,
    "times micro-batches": lambda ranks, micro_batches: micro_batches,
    "times E": lambda ranks, micro_batches: 4,
}


def make_loss(scope, flaw=None, averaging="mean", dtype=torch.double):
    def end_step(memory):
        if flaw != "buffer not emptied":
            memory.clear() if flaw != "first denominator" else [memory.pop(key) for key in list(memory) if key != "tokens"]

    @describe(scope=scope, ranks=averaging, micro_batches=averaging, layers="mean", weighting="tokens", packs=True,
              takes_choices=True, inside_layers=True, takes_missing=True, end_step=end_step, source="tests")
    def loss(batch, group, memory):
        if batch.logits is None:
            if flaw == "silent":
                return 0
            raise ValueError("router logits are missing: pass output_router_logits=True")
        groups = groups_of(batch, scope, flaw)
        valid = groups >= 0
        total = torch.zeros((), dtype=dtype)
        tokens = memory.setdefault("tokens", batch.step_tokens) if flaw == "first denominator" else batch.step_tokens
        pooled = sum(counts_of(batch, layer, groups, flaw) for layer in range(len(batch.logits)))
        for layer, logits in enumerate(batch.logits):
            counts = pooled if flaw == "layers pooled" else counts_of(batch, layer, groups, flaw)
            fractions = fractions_of(batch, group, memory, layer, counts, scope, flaw)
            scores = scores_of(batch, logits.to(dtype), flaw)
            scores = scores.detach() if flaw == "no gradient" else scores
            per_token = (fractions[groups[valid]] * scores[valid]).sum(-1)
            if flaw == "mean length":
                lengths = torch.bincount(groups[valid]).double()
                per_token = per_token * (lengths / lengths.mean())[groups[valid]]
            total = total + batch.num_experts * per_token.sum()
        factor = group.world_size * batch.num_micro_batches if averaging == "mean" else 1
        factor *= FACTORS.get(flaw, lambda ranks, micro_batches: 1)(group.world_size, batch.num_micro_batches)
        value = total * factor / max(tokens, 1) / len(batch.logits)
        value = value.clamp_min(1.0) if flaw == "never below one" else value
        value = 2 * value - value.detach() if flaw == "twice the gradient" else value
        return (1.0 if flaw == "coefficient unused" else batch.coefficient) * value

    return loss


# (flaw, id, check that is meant for it, scope where it shows)
FLAWS = [
    ("over ranks", "B1", "rank-scale", "micro_batch"),
    ("times E", "B1", "dense-oracle", "ranks"),
    ("over accumulation steps", "B2", "denominators", "prefix"),
    ("times micro-batches", "B4", "accumulation", "micro_batch"),
    ("no gradient", "B5", "coefficient", "micro_batch"),
    ("coefficient unused", "B5", "coefficient", "prefix"),
    ("twice the gradient", "B5", "coefficient", "micro_batch"),
    ("times ranks", "B6", "enters-once", "micro_batch"),
    ("counts each run", "B7", "recompute", "prefix"),
    ("largest scores", "B8", "used-choices", "micro_batch"),
    ("padding counted", "B9", "padding", "micro_batch"),
    ("a row is a sequence", "B10", "packing", "sequence"),
    ("mean length", "B11", "own-length", "sequence"),
    ("no division by K", "B13", "every-choice", "micro_batch"),
    ("first choice only", "B13", "every-choice", "micro_batch"),
    ("layers pooled", "B14", "layers-apart", "micro_batch"),
    ("eps in the divisor", "B15", "normalised-scores", "micro_batch"),
    ("never below one", "B16", "no-certificate", "micro_batch"),
    ("all_reduce ignored", "B17", "collectives", "ranks"),
    ("first denominator", "B20", "new-denominators", "micro_batch"),
    ("buffer not emptied", "B21", "buffer", "prefix"),
    ("evaluation counts", "B23", "evaluation", "prefix"),
    ("silent", "B24", "never-silent", "micro_batch"),
    ("a prefix", "B27", "order", "ranks"),
]
