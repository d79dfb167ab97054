"""Steps that suit what a function declares, and what is told of one that declares less."""

import dataclasses

import torch

from .judge import Judge
from .protocol import about
from .steps import Case, make_case

UNEVEN = [[5, 2], [3, 6], [1, 4, 2, 3], [7, 2]]  # sequences of a rank in a micro-batch
FULL = [[4, 4], [5, 5], [3, 3, 3], [6, 6]]  # the same where rows cannot be padded
EQUAL_SUMS = [[5, 3], [2, 6], [4, 4], [7, 1]]  # the same where ranks must have as many tokens as each other
ONE_RANK = "it runs on one rank, by its own declaration"


def judge_of(function):
    return Judge(about(function).tolerance)


def sequences_of(function):
    """Lengths of the sequences of a rank in a micro-batch, several to choose from."""
    return UNEVEN if about(function).takes_mask else FULL


def pairs_of(function):
    """The same with two sequences each: a mean over sequences is then defined whatever of the step is seen."""
    return [sequences for sequences in sequences_of(function) if len(sequences) == 2]


def uneven(function, num_micro_batches, num_ranks):
    """Lengths of sequences that differ as much as the function allows."""
    counts_sequences = about(function).scope == "sequence" and about(function).weighting == "mean"
    rows = pairs_of(function) if counts_sequences else sequences_of(function)
    return [[rows[(m * num_ranks + r) % len(rows)] for r in range(num_ranks)] for m in range(num_micro_batches)]


def joinable(function, num_micro_batches, num_ranks):
    """Lengths of sequences such that one process may hold the rows of all ranks."""
    rows = EQUAL_SUMS if about(function).weighting == "local" and about(function).takes_mask else pairs_of(function)
    ranks = range(num_ranks) if about(function).takes_mask else [0] * num_ranks  # one length, or rows would need padding
    return [[rows[(m * num_ranks + r) % len(rows)] for r in ranks] for m in range(num_micro_batches)]


def case_of(function, lengths, seed, **fields):
    """A step with random logits, and with the K that the function can do."""
    num_chosen = about(function).num_chosen or 2
    return make_case(lengths, seed, num_experts=max(4, 2 * num_chosen), **{"num_chosen": num_chosen, **fields})


def block_case(function, probs, cells):
    """A step whose tokens choose between two blocks of K experts; `probs` [L, N, 2] of the blocks are shared out evenly in each. The
    loss has the value that it has with two experts and K = 1."""
    num_chosen = about(function).num_chosen or 1
    shared = probs.repeat_interleave(num_chosen, -1) / num_chosen
    return Case(torch.logit(shared) if about(function).scores == "sigmoid" else shared.log(), cells, num_chosen=num_chosen)


def laid_out(case, cells):
    """The same tokens in other cells; the same token may appear more than once."""
    return dataclasses.replace(case, cells=cells)


def flat(case, slope=1e-7):
    """Logits so near zero that every probability is 1 / E: the loss is then coefficient * sum of f."""
    return dataclasses.replace(case, logits=case.logits * slope)


def balanced_value(case, declared):
    """The loss of a balanced step."""
    return case.coefficient * (case.logits.shape[0] if declared.layers == "sum" else 1)


def shares(declared, share):
    """What a loss may be of its value, if that share of the ranks or micro-batches has tokens: with groups that count alike, what
    the others weigh is the caller's affair."""
    return (1.0,) if declared.weighting == "tokens" else (1.0, share)
