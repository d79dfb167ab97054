"""The balancing loss of a whole step as one plain expression in double, and a small model to try it on.

Written from the formulas of docs/losses.md and docs/scopes.md alone; shares no code with the package.
"""

import dataclasses

import torch

E, K, L, D = 6, 2, 2, 5


@dataclasses.dataclass
class Batch:
    """A micro-batch of a rank: inputs [T, D] and the segment of each token, -1 for padding."""

    x: torch.Tensor
    segments: torch.Tensor
    num_segments: int

    @property
    def tokens(self):
        return [int((self.segments == s).sum()) for s in range(self.num_segments)]


def make_batch(rng, lengths, padding=1, permute=True):
    """Segments of the given valid lengths, each followed by padding of large values that must not matter."""
    segments = []
    for segment, length in enumerate(lengths):
        segments += [segment] * length + [-1] * padding
    segments = torch.tensor(segments, dtype=torch.int64)
    x = torch.randn(len(segments), D, generator=rng, dtype=torch.float64)
    x += torch.randn(1, D, generator=rng, dtype=torch.float64)  # micro-batches differ
    x[segments < 0] *= 7.0
    return Batch(x, segments, len(lengths))


def make_weights(seed=0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    routers = [torch.randn(E, D, generator=rng, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(L)]
    mixers = [torch.randn(E, D, generator=rng, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(L)]
    return routers + mixers


def model(weights, x, through, through_logits=lambda layer, logits: logits, record=lambda layer, ids, probs: None):
    """Two layers, each routing on what the one before made, so balancing gradients cross layers. Returns a number."""
    routers, mixers = weights[:L], weights[L:]
    h = x
    for layer in range(L):
        logits = through_logits(layer, h @ routers[layer].t())
        probs = through(layer, torch.softmax(logits, -1))
        values, ids = torch.topk(probs, K, -1)
        record(layer, ids, probs)
        h = torch.tanh(h + (values.unsqueeze(-1) * mixers[layer][ids]).sum(1))
    return h.square().sum()


def scores_of(weights, batch):
    """Per layer: probabilities, logits, choices of every token, in the graph."""
    probs, logits, ids = [], [], []
    model(weights, batch.x, lambda layer, p: (probs.append(p), p)[1], lambda layer, z: (logits.append(z), z)[1],
          lambda layer, i, p: ids.append(i))
    return probs, logits, ids


def counts_of(ids, rows, num_experts=E):
    return torch.bincount(ids[rows].flatten(), minlength=num_experts).double()


def step_loss(weights, step, scope, coefficient, z_coefficient=0.0, weighting="tokens", layers="mean", earlier=None,
              scorer=scores_of):
    """[m][rank] batches -> (loss, LBL per layer, mean squared logsumexp per layer). scorer(weights, batch): see scores_of."""
    sequences = []  # in step order: (m, rank, batch scores, token rows)
    scores = [[scorer(weights, batch) for batch in ranks] for ranks in step]
    num_layers, num_experts = len(scores[0][0][0]), scores[0][0][0][0].shape[1]
    for m, ranks in enumerate(step):
        for r, batch in enumerate(ranks):
            for s in range(batch.num_segments):
                rows = (batch.segments == s).nonzero().flatten()
                if len(rows):
                    sequences.append((m, r, scores[m][r], rows))
    name = scope.split("(")[0]
    groups = {}
    for index, sequence in enumerate(sequences):
        key = {"sequence": index, "sequences": index // int(scope[10:-1]) if name == "sequences" else 0,
               "micro_batch": sequence[:2], "ranks": sequence[0], "prefix": sequence[0]}.get(name, 0)
        groups.setdefault(key, []).append(sequence)
    keys = list(groups)
    tokens = {key: sum(len(rows) for *_, rows in groups[key]) for key in keys}
    weights_of = {key: tokens[key] if weighting == "tokens" else 1.0 for key in keys}
    if weighting == "mean" and name == "sequences" and len(keys) > 1 and len(groups[keys[-1]]) < int(scope[10:-1]):
        weights_of[keys[-1]] = tokens[keys[-1]] / (sum(tokens[key] for key in keys[:-1]) / (len(keys) - 1))
    total_weight = sum(weights_of.values())
    lbl, z = [], []
    for layer in range(num_layers):
        value = 0.0
        for position, key in enumerate(keys):
            counted = [s for k in keys[: position + 1] for s in groups[k]] if name == "prefix" else groups[key]
            count = sum(counts_of(scored[2][layer], rows, num_experts) for _, _, scored, rows in counted)
            f = count / count.sum()
            if name in ("previous_step", "ema"):
                f = torch.zeros(num_experts, dtype=torch.float64) if earlier is None else earlier[layer]
            mean = sum(scored[0][layer][rows].sum(0) for _, _, scored, rows in groups[key]) / tokens[key]
            value = value + weights_of[key] / total_weight * num_experts * (f * mean).sum()
        lbl.append(value)
        lse = sum(torch.logsumexp(scored[1][layer][rows], -1).square().sum() for _, _, scored, rows in sequences)
        z.append(lse / max(sum(len(rows) for *_, rows in sequences), 1))
    divisor = num_layers if layers == "mean" else 1
    loss = coefficient / divisor * sum(lbl) + z_coefficient / divisor * sum(z)
    return loss, lbl, z


def step_counts(weights, step):
    """[L, E] over the whole step."""
    total = torch.zeros(L, E, dtype=torch.float64)
    for ranks in step:
        for batch in ranks:
            ids = scores_of(weights, batch)[2]
            for layer in range(L):
                total[layer] += counts_of(ids[layer], batch.segments >= 0)
    return total


def gradients(loss, weights):
    grads = torch.autograd.grad(loss, weights, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for g, w in zip(grads, weights)]


def largest_difference(left, right):
    return max((a.double() - b.double()).abs().max().item() for a, b in zip(left, right))
