"""The invariants that concern a loss function by itself. Names are those of `switchyard conform`; so are the bugs behind them."""

import dataclasses

import torch

from .judge import FAILS, HOLDS, Finding, Judge, does_not_apply
from .oracle import expected
from .protocol import Group, about
from .steps import Case, batch_of, make_case, random_logits, run, run_steps

UNEVEN = [[5, 2], [3, 6], [1, 4, 2, 3], [7, 2]]  # sequences of a rank in a micro-batch
FULL = [[4, 4], [5, 5], [3, 3, 3], [6, 6]]  # the same where rows cannot be padded


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


def laid_out(case, cells):
    """The same tokens in other cells; the same token may appear more than once."""
    return dataclasses.replace(case, cells=cells)


def flat(case):
    """Logits so near zero that every probability is 1 / E: the loss is then coefficient * sum of f."""
    return dataclasses.replace(case, logits=case.logits * 1e-7)


def balanced_value(case, declared):
    """The loss of a balanced step."""
    return case.coefficient * (case.logits.shape[0] if declared.layers == "sum" else 1)


def rank_scale(function):
    judge, base = Judge(), make_case(uneven(function, 2, 1), 1)
    one = run(function, base)
    for ranks in (1, 2, 4, 8):
        copied = laid_out(base, [cell * ranks for cell in base.cells])
        judge.same_result(run(function, copied), one, f"{ranks} ranks that hold the same tokens, against one")
    return judge.finding()


def dense_oracle(function):
    judge = Judge()
    for micro_batches, ranks in ((1, 1), (2, 1), (2, 2)):
        case = make_case(uneven(function, micro_batches, ranks), 2)
        judge.same_result(run(function, case), expected(case, about(function)),
                          f"{micro_batches} micro-batches on {ranks} ranks, against a plain expression over the step")
    return judge.finding()


def denominators(function):
    judge = Judge()
    base = Case(random_logits(4, 3), [])

    def cut(tokens_of):
        return laid_out(base, [[[[[i % 4 for i in range(tokens)]]]] for tokens in tokens_of])

    even = run(function, cut([8, 8, 8]))
    for tokens_of in ([12, 4, 8], [4, 12, 8]):
        result = run(function, cut(tokens_of))
        what = f"micro-batches of {tokens_of} tokens with the same routing frequencies, against [8, 8, 8]"
        judge.near(result.loss, even.loss, f"loss of {what}")
        if about(function).weighting == "tokens":
            judge.same(result.gradient, even.gradient, f"gradient of {what}")
    return judge.finding()


def contract(function):
    return does_not_apply("the function has one contract, declared, and sees no tensor- or context-parallel group")


def accumulation(function):
    judge, base = Judge(), make_case(uneven(function, 1, 1), 6)
    one = run(function, base)
    for copies in (2, 4):
        judge.same_result(run(function, laid_out(base, base.cells * copies)), one,
                          f"{copies} equal micro-batches, against one")
    return judge.finding()


def coefficient(function):
    judge, case = Judge(), make_case(uneven(function, 2, 1), 8)
    half = run(function, case)
    if not half.gradient.abs().max() > 0:
        judge.fail("the gradient is zero everywhere")
    fourfold = run(function, dataclasses.replace(case, coefficient=4 * case.coefficient))
    judge.same(fourfold.gradient, 4 * half.gradient, "gradient at four times the coefficient, against four times the gradient")
    zero = run(function, dataclasses.replace(case, coefficient=0.0))
    judge.same(zero.gradient, torch.zeros_like(zero.gradient), "gradient at coefficient 0")
    judge.message = judge.message or slope_complaint(function, case)
    return judge.finding()


def slope_complaint(function, case):
    """Compares the gradient with central differences of the loss, a long way apart: fp32 leaves enough digits, and no logit may
    pass another, as the choices would change."""
    size, order = 0.01, case.logits.argsort(-1).argsort(-1)
    apart = dataclasses.replace(case, logits=case.logits + 5 * size * order)
    direction = torch.cos(torch.arange(case.logits.numel(), dtype=torch.double)).reshape(case.logits.shape)
    above = run(function, dataclasses.replace(apart, logits=apart.logits + size * direction)).loss
    below = run(function, dataclasses.replace(apart, logits=apart.logits - size * direction)).loss
    slope = (run(function, apart).gradient * direction).sum().item()
    times = slope / ((above - below) / (2 * size)) if above != below else float("inf")
    return "" if abs(times - 1) < 0.01 else f"the gradient is {times:.4g} times the finite differences of the loss"


def enters_once(function):
    judge, base = Judge(), make_case(uneven(function, 1, 1), 9)
    one = run(function, base).gradient
    square = (one * one).sum()
    if not square > 0:
        judge.fail("the gradient is zero everywhere")
        return judge.finding()
    for ranks, micro_batches in ((2, 1), (1, 2), (2, 2), (4, 3)):
        copied = laid_out(base, [base.cells[0] * ranks] * micro_batches)
        times = ((run(function, copied).gradient * one).sum() / square).item()
        if not abs(times - 1) < 1e-4:
            judge.fail(f"with {micro_batches} micro-batches on {ranks} ranks the loss enters {times:.4g} times")
    return judge.finding()


def recompute(function):
    if not about(function).inside_layers:
        return does_not_apply("it runs outside the layers, so activation checkpointing does not run it again")
    judge, case = Judge(), make_case(uneven(function, 3, 1), 10)
    once = run(function, case)
    for kind in ("reentrant", "non-reentrant"):
        judge.same_result(run(function, case, recompute=kind), once, f"a step under {kind} checkpointing, against none")
    return judge.finding()


def used_choices(function):
    if not about(function).takes_choices:
        return does_not_apply("it is given logits only, so the K largest are the only choice it can know")
    judge, case = Judge(), make_case(uneven(function, 2, 1), 11)
    shape = (case.logits.shape[0], case.logits.shape[1], 1)
    first = torch.arange(shape[0] * shape[1]).reshape(shape) % 3
    case.choices = (first + torch.arange(case.num_chosen)) % case.logits.shape[-1]
    judge.same_result(run(function, case), expected(case, about(function)), "a step whose choices are not the largest scores")
    return judge.finding()


def padding(function):
    declared = about(function)
    if not declared.takes_mask:
        return does_not_apply("it takes no mask; padding must not reach it")
    judge, base = Judge(), make_case(uneven(function, 2, 1), 12)
    plain = run(function, base)
    judge.same_result(run(function, dataclasses.replace(base, extra_columns=3)), plain, "3 tokens of padding behind each row")
    empty = dataclasses.replace(base, cells=[[[[[]]]]], extra_columns=4)  # a row without tokens
    nothing = run(function, empty)
    judge.near(nothing.loss, 0.0, "loss of a step of padding only")
    judge.same(nothing.gradient, torch.zeros_like(nothing.gradient), "gradient of a step of padding only")
    return judge.finding()


def packing(function):
    if not about(function).packs:
        return does_not_apply("its rows do not hold packed documents, by its own declaration")
    lengths = [[[5, 2, 4, 3]]]
    judge = Judge()
    judge.same_result(run(function, make_case(lengths, 13, packed=True)), run(function, make_case(lengths, 13)),
                      "4 documents in one row, against a row each")
    return judge.finding()


def own_length(function):
    declared = about(function)
    if declared.scope != "sequence" or not declared.takes_mask:
        return does_not_apply("it does not count sequences of unequal lengths by themselves")
    case = make_case([[[7, 2, 4, 1]]], 14)
    parts = [(run(function, laid_out(case, [[[row]]])), len(row[0])) for row in case.cells[0][0]]
    total = sum(length for _, length in parts)
    weights = [length / total if declared.weighting == "tokens" else 1 / len(parts) for _, length in parts]
    judge = Judge()
    judge.near(run(function, case).loss, sum(weight * part.loss for weight, (part, _) in zip(weights, parts)),
               "loss of sequences of 7, 2, 4 and 1 tokens, against the mean of each by itself")
    return judge.finding()


def every_choice(function):
    judge = Judge()
    for num_chosen in (1, 2, 3, 4):
        case = flat(make_case([[[8]]], 16, num_chosen=num_chosen))
        value = run(function, case).loss / balanced_value(case, about(function))
        judge.near(value, 1.0, f"value at uniform probabilities and K = {num_chosen}")
    logits = torch.zeros(1, 6, 4, dtype=torch.double)
    logits[:, torch.arange(6), torch.arange(6) % 3] = 2.0  # first choices in turn,
    logits[..., 3] = 1.0  # the second always expert 3
    case = Case(logits, [[[[list(range(6))]]]])
    judge.near(run(function, case).loss / run(function, flat(case)).loss,
               expected(case, about(function)).loss / expected(flat(case), about(function)).loss,
               "loss where every second choice is expert 3, over that at uniform probabilities")
    return judge.finding()


def layers_apart(function):
    sure = torch.tensor([[.99, .01], [.99, .01]], dtype=torch.double).log()
    case = Case(torch.stack([sure, sure.flip(-1)]), [[[[[0, 1]]]]], num_chosen=1)
    value = run(function, case).loss / balanced_value(case, about(function))
    judge = Judge()
    judge.near(value, 1.98, "two layers that collapse onto different experts (pooled they look balanced, 1)")
    return judge.finding()


def normalised_scores(function):
    judge, base = Judge(), flat(make_case([[[8]]], 17))
    for shift in (50.0, -50.0, 600.0, -600.0):
        case = dataclasses.replace(base, logits=base.logits + shift)
        judge.near(run(function, case).loss / run(function, base).loss, 1.0,
                   f"loss at equal scores of logit {shift:g}, over that at logit 0 (below 1: scores do not sum to 1)")
    return judge.finding()


def no_certificate(function):
    probs = torch.tensor([[.51, .49]] * 6 + [[.01, .99]] * 4, dtype=torch.double)  # f = (.6, .4), P = (.31, .69)
    case = Case(probs.log()[None], [[[[list(range(10))]]]], num_chosen=1)
    judge = Judge()
    judge.near(run(function, case).loss / balanced_value(case, about(function)), 0.924,
               "value at f = (.6, .4), P = (.31, .69): the loss is not bounded below by 1")
    return judge.finding()


def collectives(function):
    judge = Judge()
    for ranks in (2, 4):
        pairs = pairs_of(function)
        many = make_case([[pairs[(m * ranks + r) % len(pairs)] for r in range(ranks)] for m in range(2)], 18)
        if about(function).scope in ("micro_batch", "sequence"):
            one = laid_out(many, [[cell] for cells in many.cells for cell in cells])
        else:
            one = laid_out(many, [[[row for cell in cells for row in cell]] for cells in many.cells])
        judge.same_result(run(function, many), run(function, one), f"{ranks} ranks, against one process with their tokens")
    if about(function).takes_mask:  # what the empty rank weighs is the caller's affair; it must take part
        run(function, Case(random_logits(4, 19), [[[[[0, 1, 2, 3]]], [[[]]]]], extra_columns=2))
    return judge.finding()


def new_denominators(function):
    steps = [make_case([[[3, 3]]], 21), make_case([[[9, 8] if about(function).takes_mask else [8, 8]]], 22)]
    judge = Judge()
    judge.same_result(run_steps(function, steps)[1], run(function, steps[1]),
                      "a larger step behind one of 6 tokens, against the larger step alone")
    return judge.finding()


def buffer(function):
    judge, case = Judge(), make_case(uneven(function, 3, 1), 23)
    first, second, third = run_steps(function, [case] * 3)
    judge.same_result(second, first, "the same step a second time")
    judge.same_result(third, first, "the same step a third time")
    return judge.finding()


def evaluation(function):
    judge, case = Judge(), make_case(uneven(function, 3, 1), 29)
    judge.same_result(run(function, case, evaluate=True), run(function, case), "a step with evaluations in it, against none")
    return judge.finding()


def never_silent(function):
    if not about(function).takes_missing:
        return does_not_apply("it is called by the router itself, so its scores cannot be missing")
    batch = dataclasses.replace(batch_of(make_case([[[4]]], 30), 0, 0)[0], logits=None, choices=None)
    try:
        loss = function(batch, Group(), {})
    except Exception as error:  # any error is better than silence
        return Finding(HOLDS, f"{type(error).__name__}: {error}")
    return Finding(FAILS, f"without router logits it returns {loss!r}, and training goes on unbalanced")


def order(function):
    judge, case = Judge(), make_case(uneven(function, 3, 2), 31)
    result = run(function, case)
    ranks = laid_out(case, [list(reversed(cells)) for cells in case.cells])
    judge.same_result(run(function, ranks), result, "ranks in reverse order")
    other = run(function, laid_out(case, list(reversed(case.cells))))
    if about(function).scope != "prefix":
        judge.same_result(other, result, "micro-batches in reverse order")
        return judge.finding()
    equal = make_case([[[4]], [[4]], [[4]]], 32)  # where all micro-batches are alike in size, the last has seen the exact f
    exact = expected(equal, about(function), scope="optimizer_batch")
    last = equal.tokens(2, 0)
    judge.same(run(function, equal).gradient[:, last], exact.gradient[:, last],
               "gradient of the last micro-batch, which has seen the whole step, against the exact one")
    return judge.finding()


def absent(why):
    return lambda function: does_not_apply(why)


NO_COUNTS = "it returns a loss only; counts and metrics cannot be seen"
CHECKS = [
    ("B1", "rank-scale", rank_scale),
    ("B1", "dense-oracle", dense_oracle),
    ("B2", "denominators", denominators),
    ("B3", "contract", contract),
    ("B4", "accumulation", accumulation),
    ("B5", "coefficient", coefficient),
    ("B6", "enters-once", enters_once),
    ("B7", "recompute", recompute),
    ("B8", "used-choices", used_choices),
    ("B9", "padding", padding),
    ("B10", "packing", packing),
    ("B11", "own-length", own_length),
    ("B12", "capacity", absent("it never sees which slots were dropped")),
    ("B13", "every-choice", every_choice),
    ("B14", "layers-apart", layers_apart),
    ("B15", "normalised-scores", normalised_scores),
    ("B16", "no-certificate", no_certificate),
    ("B17", "collectives", collectives),
    ("B18", "stages", absent("a function sees one stage; there is no pipeline here")),
    ("B18", "schedules", absent("there are no pipeline schedules here to run it under")),
    ("B19", "layouts", absent("a function sees one group of ranks; there are no layouts to declare")),
    ("B20", "new-denominators", new_denominators),
    ("B20", "captured-graphs", absent("nothing is captured and replayed here (no CUDA graphs)")),
    ("B21", "buffer", buffer),
    ("B22", "saved-state", absent("a loss function has no state that is saved")),
    ("B22", "saved-progress", absent("a loss function has no state that is saved")),
    ("B23", "evaluation", evaluation),
    ("B24", "never-silent", never_silent),
    ("B25", "multi-token-prediction", absent("there is no multi-token prediction here")),
    ("B26", "metric-scope", absent(NO_COUNTS)),
    ("B27", "order", order),
    ("B28", "exact-counts", absent(NO_COUNTS)),
]


def run_check(function, check):
    """A Finding; an error of the function is a failure with its text."""
    try:
        return check(function)
    except Exception as error:
        return Finding(FAILS, f"{type(error).__name__}: {error}")


def run_checks(function, only=None):
    """(id, name, Finding) of each check, or of those with the id `only`."""
    return [(id_, name, run_check(function, check)) for id_, name, check in CHECKS if only in (None, id_)]
