"""Somebody's training loop around BalanceLoss, on one rank or several threads."""

import torch
from oracle import E, L, gradients, model
from thread_ranks import run_ranks

import switchyard


def make_loss(scope, contract=("sum", "sum"), ranks=None, **settings):
    settings = {"num_experts": E, "num_layers": L, "coefficient": 0.7, **settings}
    loss = switchyard.BalanceLoss(scope=scope, contract=switchyard.Contract(*contract), **settings)
    if ranks is not None:
        loss.ranks = ranks
    return loss


def forward(loss, weights, batch, micro_batch, compiled=None):
    loss.begin_forward(batch.segments, micro_batch=micro_batch, num_segments=batch.num_segments)
    main = (compiled or model)(weights, batch.x, loss.through, loss.through_logits, loss.record)
    loss.close_forward()
    return main * 0.0  # only the balancing gradient is compared


def one_step(loss, weights, batches, order="direct", plan=True, compiled=None):
    """One rank's step in an order of work. Returns the gradients of each micro-batch, and the report."""
    loss.begin_step([batch.tokens for batch in batches] if plan else None)
    if order == "prepass":
        with torch.no_grad():
            for m, batch in enumerate(batches):
                forward(loss, weights, batch, m)
        loss.close_counting()
    grads, mains = [], []
    for m, batch in enumerate(batches):
        mains.append(forward(loss, weights, batch, m, compiled))
        if order != "retain":
            grads.append(gradients(mains[-1], weights))
    loss.close_counting()
    if order == "retain":
        grads = [gradients(main, weights) for main in mains]
    return grads, loss.close_step()


def averaged(grads_by_rank, tokens_by_rank, contract):
    """What the caller makes of the gradients [rank][micro-batch][weight]."""
    total = None
    all_tokens = sum(map(sum, tokens_by_rank))
    for grads, tokens in zip(grads_by_rank, tokens_by_rank):
        for micro_batch, count in zip(grads, tokens):
            factor = {"sum": 1.0, "mean": 1.0 / len(grads), "tokens": count / max(sum(tokens), 1)}[contract[0]]
            factor *= {"sum": 1.0, "mean": 1.0 / len(grads_by_rank), "tokens": sum(tokens) / all_tokens}[contract[1]]
            scaled = [g * factor for g in micro_batch]
            total = scaled if total is None else [a + b for a, b in zip(total, scaled)]
    return total


def run_step(weights, step, scope, contract=("sum", "sum"), order="direct", state=None, plan=True, **settings):
    """step[m][rank] -> gradients that the caller ends with, reports by rank."""
    num_ranks = len(step[0])

    def work(rank, ranks):
        loss = make_loss(scope, contract, ranks, **settings)
        if state is not None:
            loss.load_state_dict(state)
        batches = [row[rank] for row in step if row[rank] is not None]
        return one_step(loss, weights, batches, order, plan)

    results = run_ranks(num_ranks, work)
    tokens = [[sum(row[rank].tokens) for row in step if row[rank] is not None] for rank in range(num_ranks)]
    return averaged([grads for grads, _ in results], tokens, contract), [report for _, report in results]
