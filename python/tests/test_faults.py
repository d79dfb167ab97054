"""Bad input of one rank alone: every rank raises and none waits, and after abandon_step() the next step is a good one."""

import pytest
import torch
from caller import make_loss
from oracle import E, K, L
from thread_ranks import run_ranks

PLANS = ([[3, 3], [3]], [[3], [3, 3]])


class Doings:
    """What a rank does in micro-batch `at`; each may be replaced by something bad."""

    at = 0

    def plan(self, plan):
        return plan

    def probs(self, layer, probs_TE):
        return probs_TE


class NotFinite(Doings):
    def probs(self, layer, probs_TE):
        return probs_TE * float("nan")


def forward(loss, doings, rank, micro_batch, lengths):
    segments = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    here = doings if micro_batch == doings.at else Doings()
    loss.begin_forward(segments, micro_batch=micro_batch, num_segments=len(lengths))
    total = 0.0
    for layer in range(L):
        rng = torch.Generator().manual_seed(100 * rank + 10 * micro_batch + layer)
        logits_TE = torch.randn(len(segments), E, generator=rng, dtype=torch.float64, requires_grad=True)
        probs_TE = loss.through(layer, here.probs(layer, logits_TE.softmax(-1)))
        loss.record(layer, logits_TE.topk(K).indices, probs_TE)
        total = total + probs_TE.sum()
    loss.close_forward()
    return total


def one_step(loss, rank, doings):
    plan = PLANS[rank]
    loss.begin_step(doings.plan(plan))
    mains = [forward(loss, doings, rank, micro_batch, lengths) for micro_batch, lengths in enumerate(plan)]
    loss.close_counting()
    for main in mains:
        main.backward()
    return loss.close_step()


def errors_by_rank(bad_rank, doings, **settings):
    """What both ranks raise in a step in which one does something bad. The step after it must be right."""
    def work(rank, ranks):
        loss = make_loss(ranks=ranks, **settings)
        with pytest.raises(Exception) as caught:
            one_step(loss, rank, doings if rank == bad_rank else Doings())
        loss.abandon_step()
        assert one_step(loss, rank, Doings()).counts_LE.sum(1).tolist() == [18 * K] * L
        return caught.value

    return run_ranks(2, work)


@pytest.mark.parametrize("bad_rank", [0, 1])
@pytest.mark.parametrize("scope", ["sequences(2)", "sequences(3)", "prefix", "micro_batch", "optimizer_batch"])
def test_groups_that_ranks_know_at_different_times(scope, bad_rank):
    """Sequences(2): rank 0 knows the coefficients of its first micro-batch before its second one, rank 1 after it."""
    errors = errors_by_rank(bad_rank, NotFinite(), scope=scope)
    assert "layer 0: the probabilities of" in str(errors[bad_rank])
    assert "another rank reported a problem" in str(errors[1 - bad_rank])


class BadPlan(Doings):
    def __init__(self, given):
        self.given = given

    def plan(self, plan):
        return self.given


@pytest.mark.parametrize("given, message", [
    ([["a"]], "micro-batch 0 has a segment of 'a' tokens; expected the valid tokens of each segment"),
    ([[3], [4.5]], "micro-batch 1 has a segment of 4.5"), ([[None]], "segment of None"), ([[2**63]], "9223372036854775808"),
    (5, r"begin_step(5): expected the valid tokens"), (torch.tensor([3, 2]), "begin_step(tensor([3, 2]))"),
    ([[float("nan")]], "segment of nan"), ([[torch.tensor([1, 2])]], "segment of tensor([1, 2])"),
    (None, "the step must be known ahead"),
], ids=str)
def test_a_plan_that_cannot_be(given, message):
    """Before anything is sent: a rank that raised while the others sent would leave them in another sum than its next one."""
    first, second = errors_by_rank(1, BadPlan(given), scope="optimizer_batch")
    assert message in str(second)
    assert "the ranks differ in" in str(first) if given is None else "rank 1 gave begin_step() a plan that cannot be" in str(first)
    loss = make_loss("optimizer_batch")
    with pytest.raises(type(second), match="expected|known ahead"):
        loss.begin_step(given)
    assert not loss.in_step


def test_numbers_of_other_types_are_a_plan():
    loss = make_loss("optimizer_batch")
    loss.begin_step(torch.tensor([[3, 2]]))
    loss.abandon_step()
    loss.begin_step([[3.0, torch.tensor(2)]])
