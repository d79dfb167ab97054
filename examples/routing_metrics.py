"""The numbers of an evaluation record, from expert counts of documents. Definitions: docs/metrics.md.

N domains, E experts, K experts per token, X documents. Here N divides E and N K <= E: each domain can have experts of
its own.
"""

import itertools
import math

import numpy as np


def load_metrics(counts_E):
    """How evenly one set of counts uses the experts."""
    counts_E = np.asarray(counts_E, dtype=np.int64)
    total = counts_E.sum()
    dead = int((counts_E == 0).sum())
    if total == 0:
        return dict(max_vio=0.0, utilization=0.0, dead_experts=float(dead), entropy=0.0, variation=0.0)
    fractions = counts_E / total
    loads = fractions * len(counts_E)
    used = fractions[fractions > 0]
    return dict(max_vio=float(loads.max() - 1), utilization=float(np.minimum(loads, 1).mean()), dead_experts=float(dead),
                entropy=float(-(used * np.log(used)).sum()), variation=float(np.sqrt(((loads - 1) ** 2).mean())))


def mean_load(groups):
    return {key: float(np.mean([group[key] for group in groups])) for key in groups[0]}


def joint_shares(counts_NE):
    """J_NE: every domain weighs 1/N."""
    sums = counts_NE.sum(1, keepdims=True)
    return counts_NE / np.maximum(sums, 1) / max((sums > 0).sum(), 1)


def information(joint_NE):
    """I(D; E) in nats."""
    independent = joint_NE.sum(1, keepdims=True) * joint_NE.sum(0, keepdims=True)
    some = joint_NE > 0
    return max(float((joint_NE[some] * np.log(joint_NE[some] / independent[some])).sum()), 0.0)


def purity(joint_NE):
    return float(joint_NE.max(0).sum())


def jensen_shannon(counts_NE):
    shares_NE = counts_NE / counts_NE.sum(1, keepdims=True)
    distances = np.zeros((len(shares_NE), len(shares_NE)))
    for i, j in itertools.combinations(range(len(shares_NE)), 2):
        middle = (shares_NE[i] + shares_NE[j]) / 2
        for share in (shares_NE[i], shares_NE[j]):
            some = share > 0
            distances[i, j] += 0.5 * float((share[some] * np.log(share[some] / middle[some])).sum())
        distances[i, j] = distances[j, i] = min(max(distances[i, j], 0.0), math.log(2))
    return distances


def by_domain(counts_XE, domain_X, num_domains):
    counts_NE = np.zeros((num_domains, counts_XE.shape[1]), dtype=np.int64)
    np.add.at(counts_NE, domain_X, counts_XE)
    return counts_NE


def best_assignment(gain_RC):
    """Largest sum of gains with one column for each row, R <= C: the Hungarian method with potentials."""
    rows, columns = gain_RC.shape
    row_price, column_price = np.zeros(rows + 1), np.zeros(columns + 1)
    owner = np.zeros(columns + 1, dtype=int)
    for row in range(1, rows + 1):
        owner[0], column = row, 0
        slack, before = np.full(columns + 1, np.inf), np.zeros(columns + 1, dtype=int)
        visited = np.zeros(columns + 1, dtype=bool)
        while owner[column]:
            visited[column] = True
            cost = -gain_RC[owner[column] - 1] - row_price[owner[column]] - column_price[1:]
            better = ~visited[1:] & (cost < slack[1:])
            slack[1:][better], before[1:][better] = cost[better], column
            nearest = 1 + int(np.argmin(np.where(visited[1:], np.inf, slack[1:])))
            step = slack[nearest]
            row_price[owner[visited]] += step
            column_price[visited] -= step
            slack[1:][~visited[1:]] -= step
            column = nearest
        while column:
            owner[column], column = owner[before[column]], before[column]
    return sum(float(gain_RC[owner[column] - 1, column - 1]) for column in range(1, columns + 1) if owner[column])


def agreement(joint_NE):
    """Share of slots inside the best assignment of E / N experts to each domain."""
    experts_each = joint_NE.shape[1] // len(joint_NE)
    return best_assignment(np.repeat(joint_NE, experts_each, axis=0))


def score(value, null, ceiling):
    """S: 0 is chance, 1 is attainable."""
    return (value - null) / (ceiling - null) if ceiling - null > 1e-9 else 0.0


def against_null(counts_XE, domain_X, labels_QX, num_domains, ceiling):
    joint_NE = joint_shares(by_domain(counts_XE, domain_X, num_domains))
    nulls = [joint_shares(by_domain(counts_XE, labels_X, num_domains)) for labels_X in labels_QX]
    informations = [information(null) for null in nulls]
    found = information(joint_NE)
    return dict(score=score(found, float(np.mean(informations)), ceiling), information=found,
                null=float(np.mean(informations)), deviation=float(np.std(informations)), purity=purity(joint_NE),
                purity_null=float(np.mean([purity(null) for null in nulls])), ceiling=ceiling)


def check_sizes(num_domains, num_experts, num_chosen):
    if num_experts % num_domains or num_domains * num_chosen > num_experts:
        raise ValueError(f"{num_domains} domains, {num_experts} experts, {num_chosen} chosen: this example needs, for each "
                         "domain alone, as many experts as are chosen")


def layer_record(layer, slots_XE, first_XE, micro_batches_BE, domain_X, labels_QX, num_domains, margin):
    """One entry of `layers` of an evaluation record."""
    num_experts = slots_XE.shape[1]
    counts_NE = by_domain(slots_XE, domain_X, num_domains)
    slots = against_null(slots_XE, domain_X, labels_QX, num_domains, math.log(num_domains))
    first = against_null(first_XE, domain_X, labels_QX, num_domains, math.log(min(num_domains, num_experts)))
    return dict(
        layer=layer, micro_batch=mean_load([load_metrics(counts_E) for counts_E in micro_batches_BE]),
        counts=counts_NE.tolist(), specialization=slots["score"], specialization_first_choice=first["score"],
        information=slots["information"], information_null=slots["null"], purity=slots["purity"],
        purity_null=slots["purity_null"], purity_ceiling=1.0, agreement=agreement(joint_shares(counts_NE)),
        jensen_shannon=jensen_shannon(counts_NE).tolist(), margin=margin, information_ceiling=slots["ceiling"],
        information_null_deviation=slots["deviation"], agreement_floor=1 / num_domains,
        information_first_choice=first["information"], information_first_choice_null=first["null"],
        information_first_choice_ceiling=first["ceiling"], **{"global": load_metrics(counts_NE.sum(0))})
