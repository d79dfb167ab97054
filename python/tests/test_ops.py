"""The operations: compiled against composite, torch.compile against eager, checkpointing, types, bad input."""

import pytest
import torch
from caller import forward, make_loss, one_step
from oracle import E, K, L, gradients, largest_difference, make_batch, make_weights, model, step_loss
from torch.utils.checkpoint import checkpoint

import switchyard
from switchyard.ops import BAD_IDS, DIFFERENCES, NUM_STATES, choose_ops

CPU = torch.device("cpu")


def batches_of(*shapes, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return [make_batch(rng, shape) for shape in shapes]


def op_inputs(dtype, seed=0):
    rng = torch.Generator().manual_seed(seed)
    segments = torch.tensor([0, 0, 1, -1, 2, 1, -1, 0, 3])
    logits = torch.randn(len(segments), E, generator=rng, dtype=torch.float64).to(dtype)
    ids = torch.topk(logits.float(), K, -1).indices
    ids[4, 1] = -1  # an unused slot
    return segments, logits, ids


def books():
    return (torch.zeros(L, 4, E, dtype=torch.int64), torch.full((L, 4, E), float("nan"), dtype=torch.float64),
            torch.zeros(L, NUM_STATES, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_compiled_equals_composite(dtype):
    segments, logits, ids = op_inputs(dtype)
    probs = torch.softmax(logits, -1)
    rows = torch.randn(L, 5, E, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    rows[:, -1] = 0.0
    scale = torch.tensor([0.5], dtype=torch.float64)
    found = []
    for path in ("compiled", "composite"):
        ops = choose_ops(path, CPU)
        counts, sums, state = books()
        squared = torch.zeros(L, 4, dtype=torch.float64)
        for _ in range(2):
            ops.record_(counts, sums, state, probs, ids, segments, 1)
        ops.record_(counts, sums, state, probs, ids.flip(0), segments, 1)
        ops.record_(counts, sums, state, None, ids, segments, 0)
        ops.record_lse_(squared, logits, segments, 1)
        ops.mark_(state, 0, 2)
        got = [counts, sums, state, squared, ops.rows_of_tokens(probs, segments, rows, scale, 1, dtype),
               ops.z_rows_of_tokens(probs, logits, segments, rows[0, :, 0].contiguous(), scale)]
        for carrier in (None, torch.ones(3, dtype=dtype, requires_grad=True)):
            leaf = probs.clone().requires_grad_()
            out = ops.carry(leaf if carrier is None else carrier, leaf, segments, rows, scale, 1)
            out.square().sum().backward()
            got += [out.detach(), leaf.grad]
        found.append(got)
    assert found[0][2].tolist() == [[1, 0, 1, 0, 0, 0], [3, found[0][2][1, 1].item(), 0, 0, 0, 0]] and found[0][2][1, 1] > 0
    assert found[0][0].sum(2).tolist() == [[6, 4, 1, 2], [6, 4, 1, 2]]
    for ours, plain in zip(*found):
        assert ours.dtype == plain.dtype
        if ours.is_floating_point():
            assert torch.allclose(ours.double(), plain.double(), atol=1e-12 if dtype == torch.float64 else 2e-3, equal_nan=True)
        else:
            assert torch.equal(ours, plain)


@pytest.mark.parametrize("bad", [-2, E, -2**63, 2**63 - 1])
@pytest.mark.parametrize("ops", ["compiled", "composite"])
def test_ids_that_are_no_expert_are_counted_as_such(ops, bad):
    """Not left out without a word, as if the slot were unused; a token of padding may hold anything."""
    segments, logits, ids = op_inputs(torch.float32)
    ids[0, 0], ids[2, 1], ids[3, 0] = bad, bad, bad  # token 3 is padding
    counts, sums, state = books()
    for _ in range(2):
        choose_ops(ops, CPU).record_(counts, sums, state, logits.softmax(-1), ids, segments, 1)
    assert state[1, BAD_IDS] == 2 and state[1, DIFFERENCES] == 0
    assert counts[1].sum(1).tolist() == [5, 3, 1, 2]


@pytest.mark.parametrize("ops", ["compiled", "composite"])
def test_operations_pass_torchs_own_checks(ops):
    segments, logits, ids = op_inputs(torch.float32)
    counts, sums, state = books()
    space = choose_ops(ops, CPU)
    rows, scale = torch.zeros(L, 5, E, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    calls = [(space.record_, (counts, sums, state, logits.softmax(-1), ids, segments, 1)), (space.mark_, (state, 1, 2)),
             (space.record_lse_, (torch.zeros(L, 4, dtype=torch.float64), logits, segments, 1)),
             (space.rows_of_tokens, (logits, segments, rows, scale, 1, torch.float32)),
             (space.z_rows_of_tokens, (logits, logits, segments, rows[0, :, 0].contiguous(), scale))]
    for operation, arguments in calls:
        torch.library.opcheck(operation, arguments, test_utils=tests)


@pytest.mark.parametrize("ops", ["compiled", "composite"])
def test_compiled_graphs_equal_eager(ops):
    """B20: two steps of different token counts, coefficients filled after the forward; nothing is captured, nothing dropped."""
    torch._dynamo.reset()
    weights = make_weights(dtype=torch.float64)
    graph = torch.compile(model, fullgraph=True)
    for step in (batches_of([4, 3], [5, 2]), batches_of([2, 6], [1, 3], seed=4)):
        for order in ("retain", "prepass"):
            loss = make_loss("optimizer_batch", ops=ops, z_coefficient=0.2)
            grads, report = one_step(loss, weights, step, order, compiled=graph)
            value, _, _ = step_loss(weights, [[b] for b in step], "optimizer_batch", 0.7, z_coefficient=0.2)
            assert largest_difference([sum(p) for p in zip(*grads)], gradients(value, weights)) < 1e-12
            assert report.weighted_loss == pytest.approx(float(value.detach()), abs=1e-12)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("scope", ["optimizer_batch", "prefix", "sequence"])
@pytest.mark.parametrize("ops", ["compiled", "composite"])
def test_checkpointing_counts_once(reentrant, scope, ops):
    weights, step = make_weights(), batches_of([4, 3], [5, 2])
    plain, report = one_step(make_loss(scope, ops=ops), weights, step, "prepass" if scope == "optimizer_batch" else "direct")
    loss = make_loss(scope, ops=ops)
    loss.begin_step([b.tokens for b in step])
    if scope == "optimizer_batch":
        with torch.no_grad():
            for m, batch in enumerate(step):
                forward(loss, weights, batch, m)
        loss.close_counting()
    for m, batch in enumerate(step):
        frame = loss.begin_forward(batch.segments, micro_batch=m, num_segments=batch.num_segments)
        run = lambda x: model(weights, x, frame.through, frame.through_logits, frame.record)  # noqa: E731
        for w in weights:
            w.grad = None
        out = checkpoint(run, batch.x.clone().requires_grad_(), use_reentrant=reentrant)
        loss.close_forward()
        (out * 0.0).backward()
        assert largest_difference([w.grad if w.grad is not None else torch.zeros_like(w) for w in weights], plain[m]) < 1e-14
        runs = 3 if scope == "optimizer_batch" else 2
        assert frame.state_LX[:, 0].tolist() == [runs] * L
    again = loss.close_step()
    assert torch.equal(again.counts_LE, report.counts_LE) and again.lbl_L == report.lbl_L and again.differences == 0


def test_a_recount_that_differs_is_an_error_that_names_the_place():
    weights, (batch,) = make_weights(), batches_of([5])
    for policy in ("error", "report"):
        loss = make_loss("micro_batch", on_recount=policy)
        loss.begin_step([batch.tokens])
        forward(loss, weights, batch, 0)
        frame = loss.frame
        first = frame.counts_LSE.clone()
        model(weights, -batch.x, frame.through, frame.through_logits, frame.record)
        assert torch.equal(frame.counts_LSE, first)  # the first count stands
        if policy == "report":
            assert loss.close_step().differences > 0
        else:
            with pytest.raises(switchyard.StateError, match=r"step 0, micro-batch 0, layer 0: run again, .* differently"):
                loss.close_step()
            assert not loss.in_step


def test_the_loss_scale_reaches_the_balancing_gradient():
    weights, (batch,) = make_weights(), batches_of([5, 2])
    found = []
    for scale in (1.0, 1024.0):
        loss = make_loss("micro_batch")
        loss.begin_step([batch.tokens])
        main = forward(loss, weights, batch, 0)
        found.append(gradients(loss.join(main, 0.5) * scale, weights))
        loss.close_step()
    assert largest_difference([g * 1024 for g in found[0]], found[1]) < 1e-9
    plain = one_step(make_loss("micro_batch"), weights, [batch])[0][0]
    assert largest_difference([g * 2 for g in found[0]], plain) < 1e-14


@pytest.mark.parametrize("ops", ["compiled", "composite"])
def test_a_second_backward(ops):
    """The coefficients are constants, so a gradient penalty sees the identity; the z-loss refuses, for it would be left out."""
    weights, (batch,) = make_weights(), batches_of([4, 2])
    loss = make_loss("micro_batch", ops=ops)
    loss.begin_step([batch.tokens])
    loss.begin_forward(batch.segments, num_segments=batch.num_segments)
    main = model(weights, batch.x, loss.through, loss.through_logits, loss.record)
    loss.close_forward()
    rows_LPE = torch.cat([loss.frame.coefficients_LSE(), torch.zeros(L, 1, E, dtype=torch.float64)], 1)

    # The same as a plain sum of constants times probabilities.
    added = []

    def explicit(layer, probs):
        added.append((rows_LPE[layer][batch.segments] * probs).sum())
        return probs

    plain = model(weights, batch.x, explicit, lambda layer, logits: logits)
    plain = plain + sum(added)
    # The penalty goes backward with the loss: each backward through the forward adds the balancing gradient.
    found = []
    for value in (main, plain):
        gradient, = torch.autograd.grad(value, weights[0], create_graph=True)
        found.append(gradients(value + gradient.square().sum(), weights))
    assert largest_difference(*found) < 1e-12

    loss = make_loss("micro_batch", ops=ops, z_coefficient=0.3)
    loss.begin_step([batch.tokens])
    loss.begin_forward(batch.segments, num_segments=batch.num_segments)
    main = model(weights, batch.x, loss.through, loss.through_logits, loss.record)
    loss.close_forward()
    with pytest.raises(RuntimeError, match="z-loss has no second derivative"):
        torch.autograd.grad(main, weights[0], create_graph=True)


def test_padding_changes_nothing():
    """B9. Also where the padding holds values that are not finite."""
    weights = make_weights()
    lean, padded = (make_batch(torch.Generator().manual_seed(3), [4, 3], padding=p) for p in (0, 5))
    padded.x[padded.segments >= 0] = lean.x
    padded.x[padded.segments < 0] = 1e30
    for scope in ("sequence", "micro_batch"):
        found = [one_step(make_loss(scope, z_coefficient=0.1), weights, [b]) for b in (lean, padded)]
        assert found[0][1].lbl_L == pytest.approx(found[1][1].lbl_L, abs=1e-14)
        routers = [[g for g in grads[0][:L]] for grads, _ in found]
        assert largest_difference(*routers) < 1e-13


def test_zero_coefficient_changes_no_bit():
    weights, (batch,) = make_weights(), batches_of([5, 2])
    loss = make_loss("micro_batch", coefficient=0.0)
    loss.begin_step([batch.tokens])
    loss.begin_forward(batch.segments, num_segments=2)
    probs = torch.rand(batch.x.shape[0], E)
    assert loss.through(0, probs) is probs
    balanced = gradients(model(weights, batch.x, loss.through, loss.through_logits, loss.record), weights)
    plain = gradients(model(weights, batch.x, lambda layer, p: p), weights)
    assert all(torch.equal(a, b) for a, b in zip(balanced, plain))


def test_counts_are_exact_beyond_floats():
    """B28: 2^24 + 1 selections of one expert are not a float's number."""
    ids = torch.zeros(2**24 + 1, 1, dtype=torch.int64)
    for path in ("compiled", "composite"):
        counts, state = torch.zeros(1, 1, 1, dtype=torch.int64), torch.zeros(1, NUM_STATES, dtype=torch.int64)
        choose_ops(path, CPU).record_(counts, torch.zeros(1, 1, 1, dtype=torch.float64), state, None, ids,
                                      torch.zeros(len(ids), dtype=torch.int64), 0)
        assert counts.item() == 2**24 + 1


def test_hooks_that_copy_what_is_saved():
    """As offloading does. The compiled path reads the filled coefficients all the same, the composite one says so."""
    weights, (batch,) = make_weights(), batches_of([5, 2])
    plain = one_step(make_loss("micro_batch"), weights, [batch])[0][0]
    for ops in ("compiled", "composite"):
        loss = make_loss("micro_batch", ops=ops)
        loss.begin_step([batch.tokens])
        with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda kept: kept):
            main = forward(loss, weights, batch, 0)
        if ops == "compiled":
            assert largest_difference(gradients(main, weights), plain) == 0.0
        else:
            with pytest.raises(RuntimeError, match="before its balancing coefficients are known"):
                gradients(main, weights)


@pytest.mark.parametrize("ops", ["compiled", "composite"])
def test_probabilities_rounded_before_they_were_widened(ops):
    """softmax(bfloat16).float() sums to 1 only within bfloat16."""
    torch.manual_seed(0)
    probs_TE = torch.softmax((torch.randn(4096, E) * 2).bfloat16(), -1).float()
    assert float((probs_TE.sum(-1) - 1).abs().max()) > 1e-3
    loss = make_loss("micro_batch", num_layers=1, ops=ops)
    loss.begin_step([[4096]])
    loss.begin_forward(torch.zeros(1, 4096, dtype=torch.int64))
    probs_TE = loss.through(0, probs_TE)
    loss.record(0, probs_TE.topk(2).indices, probs_TE)
    loss.close_forward()


def test_another_torch_takes_the_composite_path(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.12.1")
    assert "it was built for torch 2.13" in switchyard.ops._load_compiled()


def test_which_path():
    assert switchyard.ops_path() == "compiled"
    assert switchyard.ops_path("cuda").startswith("composite: it has no kernels for cuda")
    with pytest.raises(switchyard.ConfigError, match="no kernels for cuda"):
        choose_ops("compiled", torch.device("cuda"))
    with pytest.raises(switchyard.ConfigError, match="expected auto, compiled or composite"):
        choose_ops("fast", CPU)
