"""B7 and B17 to B28: ranks, and what lasts from call to call and from step to step."""

import dataclasses

from .cases import ONE_RANK, case_of, joinable, judge_of, laid_out, shares, uneven
from .judge import FAILS, HOLDS, Finding, does_not_apply
from .oracle import expected
from .protocol import Group, about
from .steps import batch_of, run, run_steps


def recompute(function):
    if not about(function).inside_layers:
        return does_not_apply("it runs outside the layers, so activation checkpointing does not run it again")
    judge, case = judge_of(function), case_of(function, uneven(function, 3, 1), 10)
    once = run(function, case)
    for kind in ("reentrant", "non-reentrant"):
        judge.same_result(run(function, case, recompute=kind), once, f"a step under {kind} checkpointing, against none")
    return judge.finding()


def collectives(function):
    declared = about(function)
    if not declared.takes_ranks:
        return does_not_apply(ONE_RANK)
    judge = judge_of(function)
    for ranks in (2, 4):
        many = case_of(function, joinable(function, 2, ranks), 18)
        if declared.scope in ("micro_batch", "sequence"):
            one = laid_out(many, [[cell] for cells in many.cells for cell in cells])
        else:
            one = laid_out(many, [[[row for cell in cells for row in cell]] for cells in many.cells])
        judge.same_result(run(function, many), run(function, one), f"{ranks} ranks, against one process with their tokens")
    if declared.takes_mask:
        one = case_of(function, [[[4]]], 19)
        case = dataclasses.replace(one, cells=[one.cells[0] + [[[]]]], extra_columns=2)
        judge.same_share(run(function, case), run(function, one), shares(declared, 0.5), "2 ranks, of which one has padding only")
    return judge.finding()


def new_denominators(function):
    padded = about(function).takes_mask
    first = case_of(function, [[[3, 3]]], 21)
    others = [("a larger step", case_of(function, [[[9, 8] if padded else [8, 8]]], 22)),
              ("a step of two micro-batches", case_of(function, [[[3, 3]], [[6, 2] if padded else [4, 4]]], 22)),
              ("a step at four times the coefficient", dataclasses.replace(first, coefficient=4 * first.coefficient)),
              ("a step as the first", first)]
    judge = judge_of(function)
    results = run_steps(function, [first] + [case for _, case in others])
    for (what, case), result in zip(others, results[1:]):
        judge.same_result(result, run(function, case), f"{what} behind others, the first of 6 tokens, against that step alone")
    return judge.finding()


def grows(judge, results, what):
    if results[2].kept > results[1].kept:
        judge.fail(f"after {what} memory holds tensors of {results[1].kept} numbers, after the next {results[2].kept}: it grows")


def buffer(function):
    judge, case = judge_of(function), case_of(function, uneven(function, 3, 1), 23)
    results = run_steps(function, [case] * 3)
    judge.same_result(results[1], results[0], "the same step a second time")
    judge.same_result(results[2], results[0], "the same step a third time")
    grows(judge, results, "two equal steps")
    return judge.finding()


def evaluation(function):
    judge, case = judge_of(function), case_of(function, uneven(function, 3, 1), 29)
    alone, results = run(function, case), run_steps(function, [case] * 3, evaluate=True)
    judge.same_result(results[0], alone, "a step with evaluations in it, against none")
    judge.same_result(results[1], alone, "a step behind an evaluation, against none")
    grows(judge, results, "two equal steps with evaluations")
    return judge.finding()


def exact_counts(function):
    few, copies = case_of(function, [[[8]]], 28), 683  # times 1 or 3 no number of bf16, which has 8 binary digits
    many = laid_out(few, [[[[few.tokens(0, 0) * copies]]]])
    judge = judge_of(function)
    judge.same_result(run(function, many), run(function, few), f"8 tokens {copies} times, against once")
    return judge.finding()


def never_silent(function):
    if not about(function).takes_missing:
        return does_not_apply("it is called by the router itself, so its scores cannot be missing")
    batch = dataclasses.replace(batch_of(case_of(function, [[[4]]], 30), 0, 0)[0], logits=None, choices=None)
    try:
        loss = function(batch, Group(), {})
    except (Exception, SystemExit) as error:  # anything is better than silence
        return Finding(HOLDS, f"{type(error).__name__}: {error}")
    return Finding(FAILS, f"without router logits it returns {loss!r}, and training goes on unbalanced")


def order(function):
    judge, case = judge_of(function), case_of(function, uneven(function, 3, 2 if about(function).takes_ranks else 1), 31)
    result = run(function, case)
    if about(function).takes_ranks:
        ranks = laid_out(case, [list(reversed(cells)) for cells in case.cells])
        judge.same_result(run(function, ranks), result, "ranks in reverse order")
    other = run(function, laid_out(case, list(reversed(case.cells))))
    if about(function).scope != "prefix":
        judge.same_result(other, result, "micro-batches in reverse order")
        return judge.finding()
    equal = case_of(function, [[[4]], [[4]], [[4]]], 32)  # where all micro-batches are alike in size, the last has seen the exact f
    exact = expected(equal, about(function), scope="optimizer_batch")
    last = equal.tokens(2, 0)
    judge.same(run(function, equal).gradient[:, last], exact.gradient[:, last],
               "gradient of the last micro-batch, which has seen the whole step, against the exact one")
    return judge.finding()
