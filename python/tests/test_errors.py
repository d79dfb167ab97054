"""Bad input and calls at the wrong time: a named error that says what to do, on every rank."""

import re

import pytest
import torch
from caller import forward, make_loss
from oracle import E, L, gradients, make_batch, make_weights, model
from thread_ranks import run_ranks

import switchyard
from switchyard import ConfigError, Contract, ShapeError, StateError, UsageError


def batch_of(*lengths):
    return make_batch(torch.Generator().manual_seed(1), lengths)


@pytest.mark.parametrize("scope, message", [
    ("optimizer_bach", r"did you mean 'optimizer_batch'\?"), ("sequences", r"expected sequences\(n\)"),
    ("sequences(0)", "at least 1"), ("ema(1.5)", "0 < decay < 1"), ("ranks(2)", "takes no parameter"), ("", "known: sequence"),
    (7, "scope=7; expected one of"),
])
def test_unknown_scopes(scope, message):
    with pytest.raises(ConfigError, match=message):
        make_loss(scope)


@pytest.mark.parametrize("changes, message", [
    ({"coefficient": -1.0}, "coefficient=-1.0"), ({"coefficient": float("nan")}, "finite"),
    ({"coefficient": True}, "coefficient=True"), ({"coefficient": "0.1"}, "coefficient='0.1'"),
    ({"num_layers": "1"}, "num_layers='1'"), ({"num_experts": 4.5}, "num_experts=4.5; expected a whole number"),
    ({"num_experts": 0}, "num_experts=0"), ({"weighting": "x"}, "weighting='x'"),
    ({"layers": "x"}, "layers='x'"), ({"on_recount": "x"}, "on_recount='x'"), ({"ops": "x"}, "ops='x'"),
])
def test_settings(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_loss("prefix", **changes)
    with pytest.raises(ConfigError, match="micro_batches='average'"):
        Contract("average", "mean")
    with pytest.raises(ConfigError, match="contract='mean'; expected a Contract"):
        switchyard.BalanceLoss(num_experts=E, num_layers=L, scope="prefix", coefficient=0.1, contract="mean")


@pytest.mark.parametrize("scope", ["optimizer_batch", "sequences(2)"])
def test_a_scope_that_cannot_be_seen(scope):
    with pytest.raises(ConfigError, match="the step must be known ahead"):
        make_loss(scope, ("mean", "mean"), weighting="mean").begin_step()
    with pytest.raises(ConfigError, match="needs the number of micro-batches"):
        make_loss("prefix", ("sum", "mean")).begin_step()
    with pytest.raises(ConfigError, match="weighs a rank by its tokens of the whole step"):
        make_loss("prefix", ("mean", "tokens"), weighting="mean").begin_step()


@pytest.mark.parametrize("ops", ["compiled", "composite"])
def test_backward_before_the_coefficients_are_known(ops):
    weights, batch = make_weights(), batch_of(4)
    loss = make_loss("optimizer_batch", ops=ops)
    loss.begin_step([batch.tokens, batch.tokens])
    assert loss.needs_whole_step
    main = forward(loss, weights, batch, 0)
    with pytest.raises(RuntimeError, match="before its balancing coefficients are known. Call close_forward"):
        gradients(main, weights)
    with pytest.raises(StateError, match="not known yet"):
        loss.frame.coefficients_LSE()
    with pytest.raises(StateError, match="1 of 2 forwards were closed"):
        loss.close_counting()


def test_calls_at_the_wrong_time():
    weights, batch = make_weights(), batch_of(4, 2)
    loss = make_loss("prefix")
    with pytest.raises(StateError, match="outside a step"):
        loss.begin_forward(batch.segments)
    with pytest.raises(StateError, match="would not be balanced"):
        loss.through(0, torch.rand(3, E))
    with torch.no_grad():  # an evaluation
        model(weights, batch.x, loss.through, loss.through_logits, loss.record)
    loss.begin_step([batch.tokens, batch.tokens])
    with pytest.raises(StateError, match="before close_step"):
        loss.begin_step([batch.tokens])
    with pytest.raises(StateError, match="within a step"):
        loss.state_dict()
    with pytest.raises(UsageError, match="micro-batch 2 of a plan with 2"):
        loss.begin_forward(batch.segments, micro_batch=2)
    with pytest.raises(UsageError, match="3 segments; begin_step"):
        loss.begin_forward(batch.segments, num_segments=3)
    forward_1 = loss.begin_forward(batch.segments, micro_batch=1)
    with pytest.raises(UsageError, match="before that of micro-batch 0"):
        loss.close_forward()
    assert forward_1 is loss.begin_forward(batch.segments, micro_batch=1)
    with pytest.raises(UsageError, match="begun again with 3 tokens"):
        loss.begin_forward(batch.segments[:3], micro_batch=1)


def test_an_evaluation_in_the_middle_of_a_step_leaves_no_trace():
    weights, batch = make_weights(), batch_of(4, 2)
    loss = make_loss("micro_batch")
    loss.begin_step([batch.tokens])
    main = forward(loss, weights, batch, 0)
    before = loss.frame.state_LX.clone()
    with loss.paused(), torch.no_grad():
        model(weights, -batch.x, loss.through, loss.through_logits, loss.record)
    assert torch.equal(loss.frame.state_LX, before)
    gradients(main, weights)
    loss.close_step()


def whole(loss, weights, x):
    return model(weights, x, loss.through, loss.through_logits, loss.record)


def skip_through(loss, weights, x):
    return model(weights, x, lambda layer, p: p, loss.through_logits, loss.record)


def drop_through(loss, weights, x):
    return model(weights, x, lambda layer, p: (loss.through(layer, p), p)[1], loss.through_logits, loss.record)


def drop_logits(loss, weights, x):
    return model(weights, x, loss.through, lambda layer, z: (loss.through_logits(layer, z), z)[1], loss.record)


def skip_record(loss, weights, x):
    return model(weights, x, loss.through, loss.through_logits)


def not_normalised(loss, weights, x):
    return model(weights, x, lambda layer, p: loss.through(layer, p * 1.1), loss.through_logits,
                 lambda layer, ids, p: loss.record(layer, ids, p))


def not_finite(loss, weights, x):
    return model([weights[0] * float("nan"), *weights[1:]], x, loss.through, loss.through_logits, loss.record)


def shifted_ids(by):
    def broken(loss, weights, x):
        return model(weights, x, loss.through, loss.through_logits, lambda layer, ids, p: loss.record(layer, ids + by, p))

    return broken


@pytest.mark.parametrize("broken, message", [
    (shifted_ids(-100), "layer 0: 12 choices are neither an expert, 0 to 5, nor -1"),
    (shifted_ids(E), "layer 0: 12 choices are neither an expert"),
    (skip_through, "layer 0: the router's probabilities did not go through"),
    (skip_record, "layer 0: no choices were recorded"),
    (not_normalised, "layer 0: the probabilities of 6 tokens"), (not_finite, "layer 0: the probabilities of 6 tokens"),
])
@pytest.mark.parametrize("plan", [True, False])
def test_asked_for_but_unable_to_act(broken, message, plan):
    """B24. On two ranks, of which one is broken: both raise, none waits."""
    weights, batch = make_weights(), batch_of(4, 2)
    found = [None, None]

    def work(rank, ranks):
        loss = make_loss("ranks", ("mean", "mean"), ranks, weighting="mean")
        loss.begin_step([batch.tokens] if plan else None)
        loss.begin_forward(batch.segments, num_segments=2)
        (broken if rank == 1 else whole)(loss, weights, batch.x)
        try:
            loss.close_forward()
        except StateError as error:
            found[rank] = str(error)

    run_ranks(2, work)
    assert "another rank reported a problem" in found[0]
    assert message in found[1] and "step 0, micro-batch 0, rank 1" in found[1]


def test_what_through_returns_must_be_used():
    """B24: the call alone does nothing, and no loss that acts may be reported then."""
    weights, batch = make_weights(), batch_of(4, 2)
    for broken, dropped in ((drop_through, "through()"), (drop_logits, "through_logits()"), (whole, "")):
        loss = make_loss("micro_batch", z_coefficient=0.1)
        loss.begin_step([batch.tokens])
        loss.begin_forward(batch.segments, num_segments=2)
        main = broken(loss, weights, batch.x)
        loss.close_forward()
        gradients(loss.join(main), weights)
        if not dropped:
            assert loss.close_step().lbl_L
            continue
        with pytest.raises(StateError, match=re.escape(f"layer 0: backward did not come to what {dropped} returned")):
            loss.close_step()


@pytest.mark.parametrize("scope", ["micro_batch", "sequence", "previous_step"])
def test_a_problem_where_nothing_is_added_up(scope):
    """No sum over ranks on the way: the ranks tell each other when the step ends."""
    weights, batch = make_weights(), batch_of(4, 2)
    found = [None, None]

    def work(rank, ranks):
        loss = make_loss(scope, ("mean", "mean"), ranks)
        loss.begin_step([batch.tokens])
        loss.begin_forward(batch.segments, num_segments=2)
        (skip_through if rank == 1 else whole)(loss, weights, batch.x)
        loss.close_forward()
        try:
            loss.close_step()
        except StateError as error:
            found[rank] = str(error)

    run_ranks(2, work)
    assert "another rank reported a problem" in found[0]
    assert "the router's probabilities did not go through" in found[1]


@pytest.mark.parametrize("broken, message", [(skip_through, "did not go through"), (skip_record, "no choices were recorded"),
                                             (not_finite, "the probabilities of 6 tokens")])
@pytest.mark.parametrize("plan", [True, False])
def test_a_device_that_nobody_waits_for_is_looked_at_in_the_end(broken, message, plan, monkeypatch):
    weights, batch = make_weights(), batch_of(4, 2)
    monkeypatch.setattr(switchyard.steps.Step, "_raise_problems", lambda *_: None)  # as on another device than the CPU
    loss = make_loss("ranks", ("mean", "mean"), weighting="mean")
    loss.begin_step([batch.tokens] if plan else None)
    loss.begin_forward(batch.segments, num_segments=2)
    broken(loss, weights, batch.x)
    loss.close_forward()
    with pytest.raises(StateError, match=message):
        loss.close_step()
    assert not loss.in_step


@pytest.mark.parametrize("change", [{"num_experts": E + 1}, {"coefficient": 0.1}, {"plan": None},
                                    {"on_recount": "report"}], ids=str)
def test_ranks_that_differ(change):
    """A named error on every rank, no hang."""
    found = [None, None]

    def work(rank, ranks):
        settings = {"num_experts": E, "coefficient": 0.7, "plan": [[4]], **(change if rank == 1 else {})}
        plan = settings.pop("plan")
        loss = switchyard.BalanceLoss(num_layers=L, scope="prefix", contract=Contract("mean", "mean"), weighting="mean",
                                      **settings)
        loss.ranks = ranks
        try:
            loss.begin_step(plan)
        except ConfigError as error:
            found[rank] = str(error)

    run_ranks(2, work)
    assert all("the ranks differ" in message and "rank 1: 2 layers of" in message for message in found)


def history(scope, step, counts):
    fractions_LE = torch.tensor([counts] * L, dtype=torch.float64)
    return {"step": step, "scope": scope, "previous_counts_LE": fractions_LE.long(), "ema_fractions_LE": fractions_LE}


COUNTS = [1.0] * (E - 1) + [2.0]


@pytest.mark.parametrize("other, message", [
    (None, "steps done: rank 0: 3, rank 1: 0"), ((3, None), r"counts of earlier steps.*, rank 1: 0"),
    ((3, COUNTS[::-1]), "counts of earlier steps"), ((3, COUNTS), ""),
], ids=["restored on one", "counts on one", "other counts", "the same"])
@pytest.mark.parametrize("scope", ["previous_step", "ema(0.5)", "prefix"])
def test_ranks_with_another_past(scope, other, message):
    """Restored on one rank only: without a word each would train towards its own loss."""
    found = ["", ""]

    def work(rank, ranks):
        loss = make_loss(scope, ranks=ranks)
        if rank == 0 or other is not None:
            step, counts = other if rank == 1 else (3, COUNTS)
            state = history(scope, step, counts or COUNTS)
            loss.load_state_dict(state if counts else {**state, "previous_counts_LE": None, "ema_fractions_LE": None})
        try:
            loss.begin_step([[4]])
        except StateError as error:
            found[rank] = str(error)

    run_ranks(2, work)
    if scope == "prefix" and message.startswith("counts"):
        message = ""  # a past that the scope does not read
    for text in found:
        assert re.search(message, text) and "Give every rank the same state" in text if message else text == ""


def test_shapes():
    batch = batch_of(4, 2)
    loss = make_loss("prefix")
    loss.begin_step([[4, 2]])
    with pytest.raises(ShapeError, match="expected int64"):
        loss.begin_forward(batch.segments.int())
    loss.begin_forward(batch.segments)
    num_tokens = len(batch.segments)
    with pytest.raises(ShapeError, match=r"probabilities are \[3, 6\]; expected \[8, 6\]"):
        loss.through(0, torch.rand(3, E))
    with pytest.raises(ShapeError, match="layer 2 of 2 MoE layers"):
        loss.through(L, torch.rand(num_tokens, E))
    for layer in (-1, L):
        with pytest.raises(ShapeError, match=f"layer {layer} of 2 MoE layers"):
            loss.record(layer, torch.zeros(num_tokens, 2, dtype=torch.int64))
    with pytest.raises(ShapeError, match="choices are torch.float32"):
        loss.record(0, torch.rand(num_tokens, 2))
    with pytest.raises(UsageError, match="expected 0 or more"):
        make_loss("prefix").begin_step([[-1]])


def test_tokens_that_differ_from_the_plan():
    weights, batch = make_weights(), batch_of(4, 2)
    loss = make_loss("prefix")
    loss.begin_step([[4, 3]])
    with pytest.raises(StateError, match=r"hold \[4, 2\] valid tokens; begin_step\(\) was told of \[4, 3\]"):
        forward(loss, weights, batch, 0)


def test_state_of_another_shape():
    state = {"step": 3, "scope": "previous_step", "previous_counts_LE": torch.zeros(L, E + 1, dtype=torch.int64),
             "ema_fractions_LE": None}
    with pytest.raises(ShapeError, match=r"previous_counts_LE is torch.int64 \[2, 7\]"):
        make_loss("previous_step").load_state_dict(state)
    state["previous_counts_LE"] = None
    with pytest.raises(ConfigError, match="is of scope 'previous_step'"):
        make_loss("ema(0.5)").load_state_dict(state)


def test_state_is_loaded_between_steps_only():
    loss = make_loss("previous_step")
    state = loss.state_dict()
    loss.begin_step([[4, 2]])
    with pytest.raises(StateError, match=r"load_state_dict\(\) within a step"):
        loss.load_state_dict(state)


def step_of(loss, weights, batches, before=lambda: None):
    """Values and gradients of a step whose forwards all come before its backwards."""
    loss.begin_step([batch.tokens for batch in batches])
    before()
    outs = [forward(loss, weights, batch, number) for number, batch in enumerate(batches)]
    loss.close_counting()
    return [gradients(out, weights) for out in outs], loss.close_step()


@pytest.mark.parametrize("scope", ["optimizer_batch", "sequences(2)", "prefix"])
def test_a_forward_that_failed_may_be_run_again(scope):
    """What close_forward() refused is not booked: the step is that of a loss to which it never happened."""
    weights, batches = make_weights(), [batch_of(4, 2), batch_of(3, 3)]
    expected, _ = step_of(make_loss(scope), weights, batches)
    loss = make_loss(scope)

    def fail():
        loss.begin_forward(batches[0].segments)
        skip_record(loss, weights, batches[0].x)
        with pytest.raises(StateError, match="no choices were recorded"):
            loss.close_forward()

    got, _ = step_of(loss, weights, batches, fail)
    for got_of, expected_of in zip(got, expected):
        assert all(torch.equal(a, b) for a, b in zip(got_of, expected_of))


def test_the_report_is_the_callers():
    weights, batches = make_weights(), [batch_of(4, 2)]
    first, second = make_loss("previous_step"), make_loss("previous_step")
    step_of(first, weights, batches)
    _, report = step_of(second, weights, batches)
    report.counts_LE.add_(torch.arange(E))
    for a, b in zip(step_of(first, weights, batches)[0][0], step_of(second, weights, batches)[0][0]):
        assert torch.equal(a, b)


@pytest.mark.parametrize("ops", ["compiled", "composite"])
def test_segments_may_be_overwritten_before_backward(ops):
    weights, batch = make_weights(), batch_of(4, 2)
    expected, _ = step_of(make_loss("micro_batch", ops=ops), weights, [batch])
    loss = make_loss("micro_batch", ops=ops)
    loss.begin_step([batch.tokens])
    buffer = batch.segments.clone()
    loss.begin_forward(buffer)
    out = whole(loss, weights, batch.x) * 0.0
    loss.close_forward()
    buffer.fill_(-1)
    assert all(torch.equal(a, b) for a, b in zip(gradients(out, weights), expected[0]))


@pytest.mark.parametrize("ids", [torch.ones(8, E, dtype=torch.bool), torch.zeros(8, 2, dtype=torch.complex64), torch.zeros(8, 0, dtype=torch.int64)])
def test_choices_that_name_no_expert(ids):
    """A map of booleans would count as experts 0 and 1."""
    batch = batch_of(4, 2)
    loss = make_loss("prefix")
    loss.begin_step([[4, 2]])
    loss.begin_forward(batch.segments)
    with pytest.raises(ShapeError, match="choices are torch"):
        loss.record(0, ids)


def test_a_pause_over_the_end_of_a_step_leaves_no_forward():
    weights, batch = make_weights(), batch_of(4, 2)
    loss = make_loss("micro_batch")
    loss.begin_step([batch.tokens])
    gradients(forward(loss, weights, batch, 0), weights)
    with loss.paused():
        loss.close_step()
    assert loss.frame is None


def test_a_group_of_others(monkeypatch):
    """torch says that it has -1 ranks, leaves sums out, and a mean over ranks would turn the gradient round."""
    loss = make_loss("ranks", ("mean", "mean"))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: -1)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda group=None: -1)
    with pytest.raises(ConfigError, match="not in the process_group"):
        loss.begin_step()


@pytest.mark.parametrize("scope", ["sequence", "micro_batch", "optimizer_batch"])
def test_forwards_after_a_rank_has_given_up(scope):
    """Their backward is left alone, for the others wait in the sum of close_step(), where all are told."""
    weights, batch = make_weights(), batch_of(4, 2)
    found = [None, None]

    def work(rank, ranks):
        loss = make_loss(scope, ("mean", "mean"), ranks)
        loss.begin_step([batch.tokens])
        try:
            if rank == 1:
                with torch.no_grad():
                    forward(loss, weights, batch, 5)
            own = [weight.detach().clone().requires_grad_() for weight in weights]
            out = forward(loss, own, batch, 0)
            loss.close_counting()
            gradients(out, own)
            loss.close_step()
        except switchyard.SwitchyardError as error:
            found[rank] = str(error)

    run_ranks(2, work)
    assert "another rank" in found[0] and "micro-batch 5" in found[1]
