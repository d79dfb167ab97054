"""B1 to B6: how large the loss and its gradient are."""

import dataclasses

import torch

from .cases import ONE_RANK, case_of, judge_of, laid_out, uneven
from .judge import does_not_apply
from .oracle import expected
from .protocol import about
from .steps import run


def rank_scale(function):
    if not about(function).takes_ranks:
        return does_not_apply(ONE_RANK)
    judge, base = judge_of(function), case_of(function, uneven(function, 2, 1), 1)
    one = run(function, base)
    for ranks in (1, 2, 4, 8):
        copied = laid_out(base, [cell * ranks for cell in base.cells])
        judge.same_result(run(function, copied), one, f"{ranks} ranks that hold the same tokens, against one")
    return judge.finding()


def dense_oracle(function):
    judge = judge_of(function)
    for micro_batches, ranks in ((1, 1), (2, 1), (2, 2)):
        if ranks > 1 and not about(function).takes_ranks:
            continue
        case = case_of(function, uneven(function, micro_batches, ranks), 2)
        judge.same_result(run(function, case), expected(case, about(function)),
                          f"{micro_batches} micro-batches on {ranks} ranks, against a plain expression over the step")
    token = case_of(function, [[[1]]], 2)
    judge.same_result(run(function, token), expected(token, about(function)), "a step of one token, against a plain expression")
    return judge.finding()


def denominators(function):
    judge = judge_of(function)
    base = case_of(function, [[[4]]], 3)

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
    judge, base = judge_of(function), case_of(function, uneven(function, 1, 1), 6)
    one = run(function, base)
    for copies in (2, 4):
        judge.same_result(run(function, laid_out(base, base.cells * copies)), one,
                          f"{copies} equal micro-batches, against one")
    return judge.finding()


def coefficient(function):
    judge, case = judge_of(function), case_of(function, uneven(function, 2, 1), 8)
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
    if about(function).tolerance > 1e-4:  # the differences would be made of rounding
        return ""
    size, order = 0.01, case.logits.argsort(-1).argsort(-1)
    apart = dataclasses.replace(case, logits=case.logits + 5 * size * order)
    direction = torch.cos(torch.arange(case.logits.numel(), dtype=torch.double)).reshape(case.logits.shape)
    above = run(function, dataclasses.replace(apart, logits=apart.logits + size * direction)).loss
    below = run(function, dataclasses.replace(apart, logits=apart.logits - size * direction)).loss
    slope = (run(function, apart).gradient * direction).sum().item()
    times = slope / ((above - below) / (2 * size)) if above != below else float("inf")
    return "" if abs(times - 1) < 0.01 else f"the gradient is {times:.4g} times the finite differences of the loss"


def enters_once(function):
    judge, base = judge_of(function), case_of(function, uneven(function, 1, 1), 9)
    one = run(function, base).gradient
    square = (one * one).sum()
    if not square > 0:
        judge.fail("the gradient is zero everywhere")
        return judge.finding()
    for ranks, micro_batches in ((2, 1), (1, 2), (2, 2), (4, 3)) if about(function).takes_ranks else ((1, 2), (1, 3)):
        copied = laid_out(base, [base.cells[0] * ranks] * micro_batches)
        times = ((run(function, copied).gradient * one).sum() / square).item()
        if not abs(times - 1) < max(1e-4, about(function).tolerance):
            judge.fail(f"with {micro_batches} micro-batches on {ranks} ranks the loss enters {times:.4g} times")
    return judge.finding()
