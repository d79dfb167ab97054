"""Every scope, value and gradient, against the dense oracle: on one rank and several, each contract, each order of work."""

import pathlib

import oracle
import pytest
import torch
from caller import make_loss, one_step, run_step
from oracle import largest_difference, make_batch, make_weights
from thread_ranks import run_ranks
from torchrun import torchrun

import switchyard

SCOPES = ["sequence", "sequences(1)", "sequences(2)", "sequences(3)", "micro_batch", "ranks", "prefix", "optimizer_batch"]
NEEDS_NOTHING = ["sequence", "micro_batch", "ranks", "prefix"]
CONTRACTS = [(m, r) for m in ("sum", "mean", "tokens") for r in ("sum", "mean", "tokens")]
TOLERANCE = 1e-12


def uneven_step(num_ranks, seed=3):
    """Three micro-batches of unequal ranks, unequal sequences, one empty sequence, and one micro-batch that is all padding."""
    rng = torch.Generator().manual_seed(seed)
    shapes = [[3, 5], [4], [2, 0, 6], [7, 1], [0], [3, 3, 2]]
    return [[make_batch(rng, shapes[(m * num_ranks + rank) % len(shapes)]) for rank in range(num_ranks)] for m in range(3)]


def check(weights, step, scope, grads, reports, **settings):
    oracle_settings = {"coefficient": 0.7, **settings}
    loss, lbl, z = oracle.step_loss(weights, step, scope, **oracle_settings)
    assert max(g.abs().max() for g in grads) > 1e-4  # there is something to compare
    assert largest_difference(grads, oracle.gradients(loss, weights)) < TOLERANCE
    for report in reports:
        assert report.lbl_L == pytest.approx([float(v.detach()) for v in lbl], abs=TOLERANCE)
        assert report.weighted_loss == pytest.approx(float(loss.detach()), abs=TOLERANCE)
        assert torch.equal(report.counts_LE.double(), oracle.step_counts(weights, step))
        if settings.get("z_coefficient"):
            assert report.z_loss_L == pytest.approx([float(v.detach()) for v in z], abs=TOLERANCE)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("weighting", ["tokens", "mean"])
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_value_and_gradient(scope, weighting, num_ranks):
    weights, step = make_weights(), uneven_step(num_ranks)
    order = "prepass" if scope in ("sequences(2)", "sequences(3)", "optimizer_batch") else "direct"
    grads, reports = run_step(weights, step, scope, order=order, weighting=weighting)
    check(weights, step, scope, grads, reports, weighting=weighting)


@pytest.mark.parametrize("contract", CONTRACTS, ids="-".join)
@pytest.mark.parametrize("scope", ["sequence", "prefix", "optimizer_batch"])
def test_contracts(contract, scope):
    weights, step = make_weights(), uneven_step(2)
    grads, reports = run_step(weights, step, scope, contract, order="retain", z_coefficient=0.3)
    check(weights, step, scope, grads, reports, z_coefficient=0.3)


@pytest.mark.parametrize("ops", ["compiled", "composite"])
@pytest.mark.parametrize("order", ["retain", "prepass"])
def test_orders_and_paths(ops, order):
    weights, step = make_weights(), uneven_step(1)
    grads, reports = run_step(weights, step, "optimizer_batch", order=order, ops=ops, z_coefficient=0.2, layers="sum")
    check(weights, step, "optimizer_batch", grads, reports, z_coefficient=0.2, layers="sum")


@pytest.mark.parametrize("scope", NEEDS_NOTHING)
@pytest.mark.parametrize("word", ["mean", "tokens"])
def test_without_a_plan(scope, word):
    """Micro-batches of equal weight: then an open step gives what a planned one does."""
    rng = torch.Generator().manual_seed(5)
    step = [[make_batch(rng, [4, 2]), make_batch(rng, [3, 3])] for _ in range(3)]
    weights = make_weights()
    grads, reports = run_step(weights, step, scope, (word, "mean"), weighting=word, plan=False, z_coefficient=0.3)
    check(weights, step, scope, grads, reports, weighting=word, z_coefficient=0.3)


def test_values_without_a_plan_weigh_micro_batches_as_the_caller_does():
    """Uneven micro-batches: under "mean" each counts alike in LBL and z-loss, as in the gradients."""
    rng = torch.Generator().manual_seed(6)
    weights, batches = make_weights(), [make_batch(rng, [9, 3]), make_batch(rng, [2])]

    def report(*some):
        loss = make_loss("micro_batch", ("mean", "mean"), weighting="mean", z_coefficient=0.3)
        return one_step(loss, weights, some, plan=False)[1]

    both, each = report(*batches), [report(batch) for batch in batches]
    for name in ("lbl_L", "z_loss_L"):
        means = [sum(values) / 2 for values in zip(*(getattr(one, name) for one in each))]
        assert getattr(both, name) == pytest.approx(means, abs=TOLERANCE)


def test_without_a_plan_only_ranks_with_tokens_are_averaged():
    """Under "mean" a rank whose micro-batch is all padding weighs nothing, and the others weigh as if it were not there."""
    rng = torch.Generator().manual_seed(7)
    weights = make_weights()
    step = [[make_batch(rng, lengths) for lengths in row] for row in ([[4, 2], [0], [3]], [[5], [1, 2], [0]])]
    grads, reports = run_step(weights, step, "micro_batch", ("mean", "mean"), weighting="mean", plan=False)
    check(weights, step, "micro_batch", grads, reports, weighting="mean")


def step_with_shares(loss, weights, batches, shares):
    """One rank's step without a plan, each micro-batch with the caller's own weight. Returns as one_step does."""
    loss.begin_step()
    grads = []
    for batch, share in zip(batches, shares):
        loss.begin_forward(batch.segments, num_segments=batch.num_segments, share=torch.tensor(share))
        main = oracle.model(weights, batch.x, loss.through, loss.through_logits, loss.record)
        loss.close_forward()
        grads.append(oracle.gradients(main * 0.0, weights))
    return grads, loss.close_step()


def test_a_share_is_averaged_over_ranks():
    """Shares .25 and .75 of two ranks: both weigh .5, whichever rank has the tokens."""
    rng = torch.Generator().manual_seed(8)
    weights, batches = make_weights(), [make_batch(rng, [4, 2]), make_batch(rng, [3])]

    def work(rank, ranks):
        loss = make_loss("micro_batch", ("tokens", "mean"), ranks)
        return step_with_shares(loss, weights, [batches[rank]], [(0.25, 0.75)[rank]])

    (first,), (second,) = [grads for grads, _ in run_ranks(2, work)]
    value, _, _ = oracle.step_loss(weights, [batches], "micro_batch", 0.7)
    expected = oracle.gradients(0.5 * value, weights)
    assert max(g.abs().max() for g in expected) > 1e-4
    assert largest_difference([(a + b) / 2 for a, b in zip(first, second)], expected) < TOLERANCE


def test_the_value_does_not_depend_on_the_sum_of_the_shares():
    rng = torch.Generator().manual_seed(8)
    weights, batches = make_weights(), [make_batch(rng, [9, 3]), make_batch(rng, [2])]
    each = [oracle.step_loss(weights, [[batch]], "micro_batch", 0.7)[1] for batch in batches]
    expected = [float(0.25 * a.detach() + 0.75 * b.detach()) for a, b in zip(*each)]
    for shares in ((0.25, 0.75), (2.0, 6.0)):
        _, report = step_with_shares(make_loss("micro_batch", ("tokens", "mean")), weights, batches, shares)
        assert report.lbl_L == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("scope", ["previous_step", "ema(0.75)"])
def test_scopes_of_earlier_steps(scope):
    weights, loss = make_weights(), make_loss(scope)
    earlier, kept = None, None
    for seed in range(3):
        step = uneven_step(1, seed)
        grads, report = one_step(loss, weights, [row[0] for row in step])
        value, lbl, _ = oracle.step_loss(weights, step, scope, 0.7, earlier=earlier)
        total = [sum(parts) for parts in zip(*grads)]
        assert largest_difference(total, oracle.gradients(value, weights)) < TOLERANCE
        assert report.lbl_L == pytest.approx([] if seed == 0 else [float(v.detach()) for v in lbl], abs=TOLERANCE)
        assert loss.lacks_history is False
        counts = oracle.step_counts(weights, step)
        now = counts / counts.sum(1, keepdim=True)
        kept = now if kept is None else 0.75 * kept + 0.25 * now
        earlier = kept if scope.startswith("ema") else now


def test_a_rank_with_fewer_micro_batches():
    weights, step = make_weights(), uneven_step(2)
    empty = make_batch(torch.Generator().manual_seed(0), [])
    step[2][1] = None
    for scope, order in (("optimizer_batch", "prepass"), ("prefix", "direct"), ("sequences(2)", "retain")):
        grads, reports = run_step(weights, step, scope, order=order)
        whole = [[batch or empty for batch in row] for row in step]
        check(weights, whole, scope, grads, reports)


def test_two_processes_of_a_real_group(tmp_path):
    """Gloo under torchrun, three micro-batches on one process and two on the other."""
    torchrun(pathlib.Path(__file__).with_name("ranks_run.py"), tmp_path / "out.pt")
    found = torch.load(tmp_path / "out.pt", weights_only=False)
    weights, step = make_weights(), uneven_step(2)
    step[2][1] = make_batch(torch.Generator().manual_seed(0), [])
    for scope, (grads, lbl_L, counts_LE) in found.items():
        loss, lbl, _ = oracle.step_loss(weights, step, scope, 0.7)
        assert largest_difference(grads, oracle.gradients(loss, weights)) < TOLERANCE, scope
        assert lbl_L == pytest.approx([float(v.detach()) for v in lbl], abs=TOLERANCE)
        assert torch.equal(counts_LE.double(), oracle.step_counts(weights, step))


def test_unequal_micro_batches_under_data_parallel(tmp_path):
    """Sums of counts and of gradients go through one group: every rank must start them in the same order."""
    torchrun(pathlib.Path(__file__).with_name("ddp_run.py"), tmp_path / "out.pt")
    first, second = (torch.load(f"{tmp_path / 'out.pt'}.{rank}", weights_only=False) for rank in (0, 1))
    for scope, (counts_LE, grad) in first.items():
        assert int(counts_LE.sum()) == 4 * 4 * 2  # four micro-batches of four tokens, two choices each
        assert torch.equal(counts_LE, second[scope][0]) and torch.equal(grad, second[scope][1])


def test_the_cut_and_the_order_do_not_matter_where_they_must_not():
    """B1, B4, B27: one forward, micro-batches in any order, and ranks give one gradient."""
    rng = torch.Generator().manual_seed(9)
    batches = [make_batch(rng, lengths) for lengths in ([4, 3], [2], [5, 1, 1], [6])]
    weights = make_weights()
    ways = [[[b] for b in batches], [[b] for b in reversed(batches)], [batches[:2], batches[2:]], [batches]]
    for scope in ("optimizer_batch", "sequence"):
        found = [run_step(weights, way, scope, order="retain")[0] for way in ways]
        assert all(largest_difference(found[0], other) < TOLERANCE for other in found[1:])
    prefix = [run_step(weights, way, "prefix")[0] for way in ways[:2]]
    assert largest_difference(*prefix) > 1e-4


def test_scope_and_coefficient_switch_between_steps():
    weights, loss = make_weights(), make_loss("micro_batch")
    one_step(loss, weights, [row[0] for row in uneven_step(1, 0)])
    earlier = oracle.step_counts(weights, uneven_step(1, 0))
    for scope in ("optimizer_batch", "previous_step"):
        loss.change(scope=scope, coefficient=0.2)
        step = uneven_step(1, 1)
        grads, report = one_step(loss, weights, [row[0] for row in step], "retain")
        value, _, _ = oracle.step_loss(weights, step, scope, 0.2, earlier=earlier / earlier.sum(1, keepdim=True))
        earlier = oracle.step_counts(weights, step)
        assert report.scope == scope
        assert largest_difference([sum(parts) for parts in zip(*grads)], oracle.gradients(value, weights)) < TOLERANCE
    loss.begin_step([[1]])
    with pytest.raises(switchyard.StateError, match="within a step"):
        loss.change(scope="prefix")


def test_a_change_of_scope_to_ema_begins_without_a_past():
    weights, loss = make_weights(), make_loss("ema(0.9)")
    batches = [row[0] for row in uneven_step(1)]
    one_step(loss, weights, batches)
    loss.change(coefficient=0.2)
    assert not loss.lacks_history
    loss.change(scope="ema(0.5)")
    assert loss.lacks_history
    assert one_step(loss, weights, batches)[1].lbl_L == []
    assert not loss.lacks_history


def test_two_losses_on_one_model_add_up():
    """The paper's mix: the wide scope, and 1 % of the narrow one."""
    weights, step = make_weights(), uneven_step(1)
    wide, narrow = make_loss("optimizer_batch", coefficient=0.7), make_loss("micro_batch", coefficient=0.007)
    for loss in (wide, narrow):
        loss.begin_step([row[0].tokens for row in step])
    mains = []
    for m, (batch,) in enumerate(step):
        for loss in (wide, narrow):
            loss.begin_forward(batch.segments, num_segments=batch.num_segments)

        def record(layer, ids, probs):
            wide.record(layer, ids, probs)
            narrow.record(layer, ids, probs)

        mains.append(oracle.model(weights, batch.x, lambda layer, p: narrow.through(layer, wide.through(layer, p)),
                                  record=record))
        for loss in (wide, narrow):
            loss.close_forward()
    grads = oracle.gradients(sum(mains) * 0.0, weights)
    value = sum(oracle.step_loss(weights, step, loss.config.scope.kind, loss.config.coefficient)[0] for loss in (wide, narrow))
    assert largest_difference(grads, oracle.gradients(value, weights)) < TOLERANCE


def test_state_is_saved_to_the_bit():
    weights, loss = make_weights(), make_loss("ema(0.9)")
    for seed in range(2):
        one_step(loss, weights, [row[0] for row in uneven_step(1, seed)])
    other = make_loss("ema(0.9)")
    other.load_state_dict(loss.state_dict())
    last = [row[0] for row in uneven_step(1, 7)]
    (grads, report), (again, report_again) = one_step(loss, weights, last), one_step(other, weights, last)
    assert all(torch.equal(a, b) for left, right in zip(grads, again) for a, b in zip(left, right))
    assert report.lbl_L == report_again.lbl_L and report.step == report_again.step == 2


def test_a_step_of_padding_gives_zero():
    weights, loss = make_weights(), make_loss("optimizer_batch", z_coefficient=0.1)
    grads, report = one_step(loss, weights, [make_batch(torch.Generator().manual_seed(0), [0, 0])], "retain")
    assert all(float(g.abs().max()) == 0.0 for g in grads[0])
    assert report.lbl_L == [0.0, 0.0] and report.tokens == 0


@pytest.mark.parametrize("scope", ["previous_step", "ema(0.9)"])
def test_a_step_of_padding_does_not_become_the_history(scope):
    weights, loss = make_weights(), make_loss(scope)
    one_step(loss, weights, [row[0] for row in uneven_step(1)])
    before = loss.state_dict()
    one_step(loss, weights, [make_batch(torch.Generator().manual_seed(0), [0, 0])])
    after = loss.state_dict()
    assert after["step"] == before["step"] + 1
    assert torch.equal(after["previous_counts_LE"], before["previous_counts_LE"])
    if scope == "ema(0.9)":
        assert torch.equal(after["ema_fractions_LE"], before["ema_fractions_LE"])


def test_a_forward_keeps_counts_of_its_own_groups_only(monkeypatch):
    """By groups of the whole step, the cost would be the square of the number of micro-batches."""
    weights, loss, sizes, zeros = make_weights(), make_loss("sequence"), [], torch.zeros
    batches = [make_batch(torch.Generator().manual_seed(m), [3, 0, 2]) for m in range(40)]

    def spy(*shape, **settings):
        made = zeros(*shape, **settings)
        sizes.append(made.numel())
        return made

    monkeypatch.setattr(torch, "zeros", spy)
    one_step(loss, weights, batches)
    assert 0 < max(sizes) <= oracle.L * (3 + 1) * oracle.E


@pytest.mark.parametrize("scope", ["sequence", "sequences(1)", "micro_batch"])
def test_a_micro_batch_without_sequences(scope):
    weights, loss = make_weights(), make_loss(scope)
    batches = [make_batch(torch.Generator().manual_seed(1), lengths) for lengths in ([4, 2], [])]
    _, report = one_step(loss, weights, batches)
    assert report.lbl_L == pytest.approx(one_step(make_loss(scope), weights, batches[:1])[1].lbl_L, abs=TOLERANCE)


def test_hand_worked():
    """One layer, two experts, top-1. Counts 3 and 1: f = (.75, .25); P = (.6, .4): LBL = 2 (.45 + .1) = 1.1."""
    loss = switchyard.BalanceLoss(num_experts=2, num_layers=1, scope="optimizer_batch", coefficient=0.5,
                                  contract=switchyard.Contract("sum", "sum"))
    loss.begin_step([[4]])
    loss.begin_forward(torch.zeros(4, dtype=torch.int64))
    probs = torch.tensor([[.7, .3], [.8, .2], [.6, .4], [.3, .7]], dtype=torch.float64, requires_grad=True)
    out = loss.through(0, probs)
    loss.record(0, out.argmax(1, keepdim=True), out)
    loss.close_forward()
    (out * 0.0).sum().backward()
    report = loss.close_step()
    assert report.lbl_L == pytest.approx([1.1]) and report.weighted_loss == pytest.approx(0.55)
    assert report.max_vio() == pytest.approx(0.5)
    assert torch.allclose(probs.grad, torch.tensor([[0.1875, 0.0625]] * 4, dtype=torch.float64))  # .5 * 2 * f / 4


def test_max_vio_is_the_mean_over_layers():
    """Each layer sends all tokens to one expert of two, not the same one: 1 in each layer. Layers pooled would give 0."""
    loss = make_loss("micro_batch", num_experts=2, num_layers=2)
    loss.begin_step([[4]])
    loss.begin_forward(torch.zeros(4, dtype=torch.int64))
    for layer in range(2):
        probs = loss.through(layer, torch.full((4, 2), 0.5, dtype=torch.float64))
        loss.record(layer, torch.full((4, 1), layer), probs)
    loss.close_forward()
    report = loss.close_step()
    assert report.counts_LE.tolist() == [[4, 0], [0, 4]]
    assert report.max_vio() == pytest.approx(1.0)


def test_max_vio_of_a_step_of_padding_is_0():
    loss = make_loss("micro_batch", num_experts=2, num_layers=1)
    loss.begin_step([[0]])
    loss.begin_forward(torch.full((3,), -1))
    probs = loss.through(0, torch.full((3, 2), 0.5, dtype=torch.float64))
    loss.record(0, torch.zeros(3, 1, dtype=torch.int64), probs)
    loss.close_forward()
    assert loss.close_step().max_vio() == 0.0
