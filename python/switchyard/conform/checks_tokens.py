"""B8 to B16: which tokens, choices, layers and scores count."""

import dataclasses

import torch

from .cases import balanced_value, block_case, case_of, flat, judge_of, laid_out, shares, uneven
from .judge import does_not_apply
from .oracle import expected
from .protocol import Group, about
from .steps import Case, batch_of, run


def used_choices(function):
    if not about(function).takes_choices:
        return does_not_apply("it is given logits only, so the K largest are the only choice it can know")
    judge, case = judge_of(function), case_of(function, uneven(function, 2, 1), 11)
    shape = (case.logits.shape[0], case.logits.shape[1], 1)
    first = torch.arange(shape[0] * shape[1]).reshape(shape) % 3
    case.choices = (first + torch.arange(case.num_chosen)) % case.logits.shape[-1]
    judge.same_result(run(function, case), expected(case, about(function)), "a step whose choices are not the largest scores")
    batch, _ = batch_of(dataclasses.replace(case, extra_columns=2 if about(function).takes_mask else 0), 0, 0)
    before = [chosen.clone() for chosen in batch.choices]
    function(batch, Group(), {})
    if not all(torch.equal(*pair) for pair in zip(batch.choices, before)):
        judge.fail("it wrote into batch.choices, by which the experts are fed")
    return judge.finding()


def padding(function):
    declared = about(function)
    if not declared.takes_mask:
        return does_not_apply("it takes no mask; padding must not reach it")
    judge, base = judge_of(function), case_of(function, uneven(function, 2, 1), 12)
    row = []  # without documents
    tried = [("3 tokens of padding behind each row", dataclasses.replace(base, extra_columns=3)),
             ("3 tokens of padding in front of each row", dataclasses.replace(base, columns_before=3)),
             ("two rows of padding, before the others and behind them",
              laid_out(base, [[[row] + rows + [row] for rows in ranks] for ranks in base.cells]))]
    if declared.padding == "right":
        del tried[1]
    plain = run(function, base)
    for what, case in tried:
        result = run(function, case)
        judge.same_result(result, plain, what)
        judge.near(result.at_padding, 0.0, f"gradient that reaches the padding, with {what}")
    behind = dataclasses.replace(base, cells=[[[row]]] + base.cells + [[[row]]], extra_columns=4)
    result = run(function, behind)
    judge.same_share(result, plain, shares(declared, 0.5), "two micro-batches of padding, before the others and behind them")
    judge.near(result.at_padding, 0.0, "gradient that reaches a micro-batch of padding")
    nothing = run(function, dataclasses.replace(base, cells=[[[row]]], extra_columns=4))
    judge.near(nothing.loss, 0.0, "loss of a step of padding only")
    judge.same(nothing.gradient, torch.zeros_like(nothing.gradient), "gradient of a step of padding only")
    return judge.finding()


def packing(function):
    if not about(function).packs:
        return does_not_apply("its rows do not hold packed documents, by its own declaration")
    judge, padded = judge_of(function), about(function).takes_mask
    apart = case_of(function, [[[5, 2, 4, 3] if padded else [4, 4, 4, 4]]], 13)
    documents = [document for row in apart.cells[0][0] for document in row]
    result = run(function, apart)
    judge.same_result(run(function, laid_out(apart, [[[documents]]])), result, "4 documents in one row, against a row each")
    if padded:
        judge.same_result(run(function, laid_out(apart, [[[documents[:3], documents[3:]]]])), result,
                          "3 documents in one row and 1 in another, against a row each")
    return judge.finding()


def own_length(function):
    declared = about(function)
    if declared.scope != "sequence" or not declared.takes_mask:
        return does_not_apply("it does not count sequences of unequal lengths by themselves")
    case = case_of(function, [[[7, 2, 4, 1]]], 14)
    parts = [(run(function, laid_out(case, [[[row]]])), len(row[0])) for row in case.cells[0][0]]
    total = sum(length for _, length in parts)
    weights = [length / total if declared.weighting == "tokens" else 1 / len(parts) for _, length in parts]
    judge = judge_of(function)
    judge.near(run(function, case).loss, sum(weight * part.loss for weight, (part, _) in zip(weights, parts)),
               "loss of sequences of 7, 2, 4 and 1 tokens, against the mean of each by itself")
    return judge.finding()


def every_choice(function):
    judge = judge_of(function)
    only = about(function).num_chosen
    for num_chosen in (1, 2, 3, 4) if only is None else (only,):
        case = flat(case_of(function, [[[8]]], 16, num_chosen=num_chosen))
        value = run(function, case).loss / balanced_value(case, about(function))
        judge.near(value, 1.0, f"value at uniform probabilities and K = {num_chosen}")
    equal = flat(case_of(function, [[[8]]], 16), 0.0)
    judge.near(run(function, equal).loss / balanced_value(equal, about(function)), 1.0,
               "value where all scores are the same, as of a router that starts at zero")
    if only not in (None, 2):
        return judge.finding()
    logits = torch.zeros(1, 6, 4, dtype=torch.double)
    logits[:, torch.arange(6), torch.arange(6) % 3] = 2.0  # first choices in turn,
    logits[..., 3] = 1.0  # the second always expert 3
    case = Case(logits, [[[[list(range(6))]]]])
    judge.near(run(function, case).loss / run(function, flat(case)).loss,
               expected(case, about(function)).loss / expected(flat(case), about(function)).loss,
               "loss where every second choice is expert 3, over that at uniform probabilities")
    return judge.finding()


def layers_apart(function):
    sure = torch.tensor([[.99, .01], [.99, .01]], dtype=torch.double)
    case = block_case(function, torch.stack([sure, sure.flip(-1)]), [[[[[0, 1]]]]])
    value = run(function, case).loss / balanced_value(case, about(function))
    judge = judge_of(function)
    judge.near(value, 1.98, "two layers that collapse onto different experts (pooled they look balanced, 1)")
    return judge.finding()


def normalised_scores(function):
    judge, base = judge_of(function), flat(case_of(function, [[[8]]], 17))
    odd = (torch.arange(8) % 2)[:, None]  # every second token: what holds for each by itself must hold for both
    for shift in (50.0, -50.0, 1000.0, -600.0):
        case = dataclasses.replace(base, logits=base.logits + shift * odd)
        judge.near(run(function, case).loss / run(function, base).loss, 1.0,
                   f"loss with equal scores of logit {shift:g} and 0, over that at logit 0 only (below 1: scores do not sum to 1)")
    return judge.finding()


def no_certificate(function):
    probs = torch.tensor([[.51, .49]] * 6 + [[.01, .99]] * 4, dtype=torch.double)  # f = (.6, .4), P = (.31, .69)
    case = block_case(function, probs[None], [[[[list(range(10))]]]])
    judge = judge_of(function)
    judge.near(run(function, case).loss / balanced_value(case, about(function)), 0.924,
               "value at f = (.6, .4), P = (.31, .69): the loss is not bounded below by 1")
    return judge.finding()
