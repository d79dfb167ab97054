"""Bad input of one rank alone: every rank raises and none waits, and after abandon_step() the next step is a good one."""

import pathlib
import re

import pytest
import torch
from bad_rank import ALL_TOKENS, BAD_FORWARDS, BAD_PLANS, one_step
from caller import make_loss
from oracle import E, K, L
from thread_ranks import run_ranks
from torchrun import torchrun

import switchyard

MESSAGES = {
    "int32 segments": "segments are torch.int32; expected int64", "segment 7": "a token is of segment 8 of a forward with 2",
    "no segment": r"hold \[0, 0\] valid tokens; begin_step\(\) was told of \[3, 3\]",
    "three segments": r"3 segments; begin_step\(\) was told of 2", "micro-batch 5": "micro-batch 5 of a plan with 2",
    "few experts": r"layer 1: probabilities are \[6, 3\]; expected \[6, 6\]", "scalar": r"probabilities are \[\]; expected",
    "not finite": "layer 1: the probabilities of 6 tokens", "ids of floats": r"layer 1: choices are torch.float64 \[6, 2\]",
    "few ids": r"choices are torch.int64 \[1, 2\]", "flat ids": r"choices are torch.int64 \[6\]",
    "ids below": "layer 1: 12 choices are neither", "ids above": "layer 1: 12 choices are neither",
    "layer 9": "layer 9 of 2 MoE layers", "no record": "layer 1: no choices were recorded",
    "no forward": "1 of 2 forwards were closed", "no close": "1 of 2 forwards were closed",
}


def errors_by_rank(bad_rank, bad, at=1, with_plan=True, **settings):
    """What both ranks raise in a step in which one does something bad. The step after it must be right."""
    def work(rank, ranks):
        loss = make_loss(ranks=ranks, **settings)
        with pytest.raises(switchyard.SwitchyardError) as caught:
            one_step(loss, rank, bad if rank == bad_rank else "", at, with_plan)
        loss.abandon_step()
        assert one_step(loss, rank, with_plan=with_plan).counts_LE.sum(1).tolist() == [ALL_TOKENS * K] * L
        return str(caught.value)

    return run_ranks(2, work)


@pytest.mark.parametrize("bad_rank", [0, 1])
@pytest.mark.parametrize("scope", ["sequences(2)", "sequences(3)", "prefix", "micro_batch", "optimizer_batch"])
def test_groups_that_ranks_know_at_different_times(scope, bad_rank):
    """Sequences(2): rank 0 knows the coefficients of its first micro-batch before its second one, rank 1 after it."""
    errors = errors_by_rank(bad_rank, "not finite", at=0, scope=scope)
    assert "layer 1: the probabilities of" in errors[bad_rank]
    assert "another rank reported a problem" in errors[1 - bad_rank]


@pytest.mark.parametrize("bad, message", zip(BAD_PLANS, [
    "micro-batch 0 has a segment of 'a' tokens; expected the valid tokens of each segment",
    "begin_step(5): expected the valid tokens", "9223372036854775808", "micro-batch 1 has a segment of 4.5", "segment of None",
    "begin_step(tensor([3, 2]))", "segment of nan", "segment of tensor([1, 2])", "the step must be known ahead",
]))
def test_a_plan_that_cannot_be(bad, message):
    """Before anything is sent: a rank that raised while the others sent would leave them in another sum than its next one."""
    first, second = errors_by_rank(1, bad, scope="optimizer_batch")
    assert message in second
    assert ("the ranks differ in" if bad == "no plan" else "rank 1 gave begin_step() a plan that cannot be") in first
    loss = make_loss("optimizer_batch")
    with pytest.raises(switchyard.SwitchyardError, match=re.escape(message)):
        loss.begin_step(BAD_PLANS[bad])
    assert not loss.in_step


def test_numbers_of_other_types_are_a_plan():
    loss = make_loss("optimizer_batch")
    loss.begin_step(torch.tensor([[3, 2]]))
    loss.abandon_step()
    loss.begin_step([[3.0, torch.tensor(2)]])


@pytest.mark.parametrize("bad", BAD_FORWARDS)
@pytest.mark.parametrize("scope", ["optimizer_batch", "prefix", "micro_batch"])
def test_a_forward_that_cannot_be(scope, bad):
    """Also of a scope that adds nothing up on the way, where backward runs before any rank knows."""
    first, second = errors_by_rank(1, bad, scope=scope)
    assert re.search(MESSAGES[bad], second)
    assert "another rank reported a problem" in first
    loss = make_loss(scope)
    with pytest.raises(switchyard.SwitchyardError, match=MESSAGES[bad]):
        one_step(loss, 1, bad)


# Without a plan all ranks need as many forwards, and nothing was told of their segments.
@pytest.mark.parametrize("bad", sorted({*BAD_FORWARDS} - {"no forward", "no segment", "three segments"}))
def test_a_forward_that_cannot_be_without_a_plan(bad):
    first, second = errors_by_rank(1, bad, with_plan=False, scope="ranks", contract=("mean", "mean"), weighting="mean")
    message = {"micro-batch 5": "before that of micro-batch 1"}.get(bad, MESSAGES[bad])
    assert re.search(message, second)
    assert "another rank reported a problem" in first


@pytest.mark.parametrize("scope", ["optimizer_batch", "prefix", "micro_batch"])
def test_a_rank_that_gave_an_empty_plan(scope):
    """It may have no micro-batch; a forward of it is then too many."""
    def work(rank, ranks):
        loss = make_loss(scope, ranks=ranks)
        loss.begin_step([[4], [4]] if rank == 0 else [])
        with pytest.raises(switchyard.SwitchyardError) as caught:
            for _ in range(2):
                loss.begin_forward(torch.zeros(1, 4, dtype=torch.int64))
                for layer in range(L):
                    probs = loss.through(layer, torch.full((4, E), 1 / E))
                    loss.record(layer, torch.zeros(4, 1, dtype=torch.int64), probs)
                loss.close_forward()
            loss.close_step()
        return str(caught.value)

    first, second = run_ranks(2, work)
    assert "another rank reported a problem" in first and "micro-batch 0 of a plan with 0" in second


@pytest.mark.parametrize("scope", ["optimizer_batch", "micro_batch"])
def test_a_micro_batch_without_its_backward(scope):
    """Its loss is in the report, and did not act."""
    first, second = errors_by_rank(1, "no backward", scope=scope)
    assert "another rank reported a problem" in first
    assert "micro-batch 1, rank 1: backward came to other forwards of the step, but not to this one" in second


def test_steps_that_train_nothing():
    """No backward at all, for the batches were skipped, or nothing that takes gradients: not an error."""
    for gradients in (True, False):
        loss = make_loss("micro_batch")
        loss.begin_step([[4], [4]])
        for _ in range(2):
            loss.begin_forward(torch.zeros(1, 4, dtype=torch.int64))
            for layer in range(L):
                probs = loss.through(layer, torch.full((4, E), 1 / E, requires_grad=gradients))
                loss.record(layer, torch.zeros(4, 1, dtype=torch.int64), probs)
            loss.close_forward()
        assert loss.close_step().tokens == 8


def test_faults_in_a_real_group(tmp_path):
    """Gloo under torchrun, each fault and then a good step: no rank runs into the time limit of the group, none is ended."""
    torchrun(pathlib.Path(__file__).with_name("faults_run.py"), tmp_path / "out")
    for rank in (0, 1):
        lines = (tmp_path / f"out.{rank}").read_text().splitlines()
        assert len(lines) > 50 and [line for line in lines if not line.endswith("then 36")] == []
