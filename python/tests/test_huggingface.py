"""attach(model): each scope that needs nothing ahead, on each model, against the dense oracle; and what it refuses."""

from types import SimpleNamespace

import pytest
import torch
from hf_models import (FAMILIES, dense_gradients, dense_loss, gradients_of, make_model, make_rows, stack, step_counts, weights_of,
                       with_classes)
from oracle import largest_difference
from torch import nn
from transformers import GptOssConfig, GptOssForCausalLM

import switchyard
from switchyard.hf_model import divides_by_items, segments_of_batch

MODELS = [kind for kind, parts in FAMILIES.items() if parts[1] != "ForSequenceClassification"]
# The models compute in float32; gradients are of order 1.
TOLERANCE = 2e-5


def equal_rows(number, seed=1, length=9):
    rows = make_rows(number, seed, length)
    for row in rows:
        row["attention_mask"] = torch.ones(length, dtype=torch.int64)
        row["labels"] = row["input_ids"].clone()
    return rows


def train_step(model, batches, scale=1.0):
    """A loop as many write it: each loss divided by the number of micro-batches."""
    model.zero_grad()
    for batch in batches:
        (model(**batch.inputs).loss * scale / len(batches)).backward()
    return gradients_of(model)


def checkpoint_layers(model, reentrant):
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()


def balancing_part(with_loss, without):
    return [a - b for a, b in zip(with_loss, without)]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("scope", ["sequence", "micro_batch", "ranks", "prefix"])
def test_model_alone(kind, scope):
    model = make_model(kind)
    batches = [stack(equal_rows(2, seed)) for seed in range(3)]
    plain = train_step(model, batches)
    attachment = switchyard.attach(model, scope=scope, coefficient=5.0, z_coefficient=0.1)
    balanced = train_step(model, batches)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer.step()
    report = attachment.last_report
    attachment.detach()
    assert largest_difference(train_step(model, batches), plain) == 0.0  # nothing stays behind
    loss, lbl, z = dense_loss(model, [[b] for b in batches], scope, coefficient=5.0, z_coefficient=0.1)
    expected = dense_gradients(loss, model)
    assert max(float(g.abs().max()) for g in expected) > 0.01
    assert largest_difference(balancing_part(balanced, plain), expected) < TOLERANCE
    assert report.lbl_L == pytest.approx([float(v.detach()) for v in lbl], abs=1e-6)
    assert report.z_loss_L == pytest.approx([float(v.detach()) for v in z], rel=1e-6)
    assert torch.equal(report.counts_LE, step_counts(model, [[b] for b in batches]))


def test_the_step_ends_with_its_own_optimizer():
    model = make_model()
    attachment = switchyard.attach(model, scope="previous_step", coefficient=5.0)
    other = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.0)
    own = torch.optim.SGD(model.parameters(), lr=0.0)
    batches = [stack(equal_rows(2, seed)) for seed in range(2)]
    train_step(model, batches)
    other.step()
    assert attachment.loss.in_step and attachment.loss.lacks_history
    own.step()
    assert not attachment.loss.in_step and not attachment.loss.lacks_history
    counts = attachment.last_report.counts_LE.double()
    balanced = train_step(model, batches)
    own.step()
    report = attachment.last_report
    attachment.detach()
    plain = train_step(model, batches)
    loss, lbl, _ = dense_loss(model, [[b] for b in batches], "previous_step", coefficient=5.0,
                              earlier=counts / counts.sum(1, keepdim=True))
    assert largest_difference(balancing_part(balanced, plain), dense_gradients(loss, model)) < TOLERANCE
    assert report.step == 1 and report.lbl_L == pytest.approx([float(v.detach()) for v in lbl], abs=1e-6)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant):
    model = make_model()
    batches = [stack(make_rows(2, seed)) for seed in range(2)]
    attachment = switchyard.attach(model, scope="prefix", coefficient=5.0)
    expected = train_step(model, batches)
    counts = attachment.end_step().counts_LE
    checkpoint_layers(model, reentrant)
    found = train_step(model, batches)
    frames = attachment.loss._step.frames.values()
    assert all(frame.state_LX[:, 0].tolist() == [2, 2] for frame in frames)  # it did run twice
    report = attachment.end_step()
    assert torch.equal(report.counts_LE, counts) and report.differences == 0
    assert largest_difference(found, expected) < 1e-6


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_layers_run_again_in_their_own_forward(reentrant):
    """B7: other forwards lie between a forward and its backward."""
    model = make_model()
    batches = [stack(make_rows(2, seed)) for seed in range(2)]
    attachment = switchyard.attach(model, scope="micro_batch", coefficient=5.0)
    expected = train_step(model, batches)
    attachment.end_step()
    checkpoint_layers(model, reentrant)
    model.zero_grad()
    losses = [model(**batch.inputs).loss / len(batches) for batch in batches]
    with torch.no_grad():
        model(**batches[1].inputs)
    sum(losses).backward()
    found, report = gradients_of(model), attachment.end_step()
    assert report.differences == 0
    assert largest_difference(found, expected) < 1e-6


def test_training_a_part_of_the_model_is_an_error():
    """B24: it passes no hook of the model, so no loss could act."""
    model = make_model()
    attachment = switchyard.attach(model, scope="micro_batch", coefficient=5.0)
    (batch,) = [stack(make_rows(2))]
    with pytest.raises(switchyard.StateError, match="MoE layer 0 ran with gradients, but in no forward of the step"):
        model.model(input_ids=batch.inputs["input_ids"])
    attachment.detach()
    model.model(input_ids=batch.inputs["input_ids"])


def test_a_scaled_loss_scales_both():
    model = make_model()
    batches = [stack(make_rows(2, seed)) for seed in range(2)]
    switchyard.attach(model, scope="micro_batch", coefficient=5.0)
    found = [train_step(model, batches, scale) for scale in (1.0, 4.0)]
    assert largest_difference([4 * g for g in found[0]], found[1]) < TOLERANCE


def test_the_loss_weighs_its_micro_batches_by_scored_tokens():
    """With num_items_in_batch the model's loss is a sum over the step's items, and so is the balancing loss."""
    model = make_model()
    batches = [stack(make_rows(2, seed)) for seed in range(3)]
    items = sum(int(b.inputs["labels"].ne(-100).sum()) for b in batches)

    def run():
        model.zero_grad()
        for batch in batches:
            model(**batch.inputs, num_items_in_batch=torch.tensor(items)).loss.backward()
        return gradients_of(model)

    plain = run()
    attachment = switchyard.attach(model, scope="micro_batch", coefficient=5.0)
    balanced, report = run(), attachment.end_step()
    attachment.detach()
    # Every valid token is scored here, so these weights are those of the tokens.
    loss, lbl, _ = dense_loss(model, [[b] for b in batches], "micro_batch", coefficient=5.0)
    assert largest_difference(balancing_part(balanced, plain), dense_gradients(loss, model)) < TOLERANCE
    assert report.lbl_L == pytest.approx([float(v.detach()) for v in lbl], abs=1e-6)


@pytest.mark.parametrize("kind", FAMILIES)
def test_whose_loss_is_divided_by_the_items(kind):
    model = make_model(kind)
    rows = make_rows(2)
    inputs = stack(with_classes(rows) if kind == "classes" else rows).inputs
    one, half = (float(model(**inputs, num_items_in_batch=torch.tensor(items)).loss.detach()) for items in (10, 20))
    assert one / half == pytest.approx(2.0 if divides_by_items(model) else 1.0, rel=1e-4)


def test_evaluation_leaves_no_trace():
    model = make_model()
    (batch,) = [stack(make_rows(2))]
    attachment = switchyard.attach(model, scope="prefix", coefficient=5.0)
    with torch.no_grad():
        model(**batch.inputs)
        model.eval()(**batch.inputs)
    assert not attachment.loss.in_step
    assert torch.equal(model(**batch.inputs).logits, make_model().eval()(**batch.inputs).logits)


def test_evaluation_of_a_part_of_the_model_in_a_step():
    """It does not pass the hooks of the whole model, and still counts nowhere."""
    model = make_model()
    (batch,) = [stack(make_rows(2))]
    attachment = switchyard.attach(model, scope="prefix", coefficient=5.0)
    model(**batch.inputs)
    before = attachment.loss.frame.state_LX.clone()
    model.eval()
    with torch.no_grad():
        model.model(input_ids=batch.inputs["input_ids"])
    assert torch.equal(attachment.loss.frame.state_LX, before)


def test_packed_documents_are_sequences():
    """B10."""
    padded = stack(equal_rows(3))
    packed = {"input_ids": padded.inputs["input_ids"].reshape(1, -1), "position_ids": torch.arange(9).repeat(3)[None]}
    assert segments_of_batch(packed)[1] == 3
    assert torch.equal(segments_of_batch(packed)[0], segments_of_batch(padded.inputs)[0])
    with pytest.raises(switchyard.ConfigError, match=r"attention_mask is \[1, 1, 4, 4\]"):
        segments_of_batch({"input_ids": packed["input_ids"], "attention_mask": torch.ones(1, 1, 4, 4)})
    with pytest.raises(switchyard.ConfigError, match="no input_ids"):
        segments_of_batch({"labels": None})


def test_padding_behind_packed_documents_is_none_of_them():
    """Collators that pack without an attention mask pad with positions 0, labels -100."""
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 0, 0], [0, 1, 2, 3, 4, 0, 1, 2]])
    labels = torch.tensor([[-100, 5, 6, -100, 7, -100, -100, -100], [-100, 5, 6, 7, 8, -100, 5, 6]])
    batch = {"input_ids": torch.ones_like(positions), "position_ids": positions}
    segments, number = segments_of_batch({**batch, "labels": labels})
    assert segments.tolist() == [0, 0, 0, 1, 1, -1, -1, -1, 2, 2, 2, 2, 2, 3, 3, 3] and number == 4
    for labels in (None, torch.tensor([0, 1])):  # of a head that classifies
        with pytest.raises(switchyard.ConfigError, match="position_ids end with 3 zeros.* Give labels"):
            segments_of_batch({**batch, "labels": labels})
    labels = torch.full_like(positions, 5)  # documents of one token, scored
    assert segments_of_batch({**batch, "labels": labels})[1] == 7


@pytest.mark.parametrize("scope", ["optimizer_batch", "sequences(4)"])
def test_a_model_alone_cannot_see_the_step(scope):
    with pytest.raises(switchyard.ConfigError, match="a bare model cannot see them. Attach to the Trainer"):
        switchyard.attach(make_model(), scope=scope, coefficient=1e-3)


def test_unknown_models_are_refused():
    """B24."""
    config = GptOssConfig(vocab_size=31, hidden_size=16, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
                          num_key_value_heads=2, head_dim=8, num_local_experts=4)
    with pytest.raises(switchyard.ConfigError, match="GptOssForCausalLM has 0 routers .* looks like .*GptOssTopKRouter"):
        switchyard.attach(GptOssForCausalLM(config), scope="prefix", coefficient=1e-3)
    with pytest.raises(switchyard.ConfigError, match="Linear has 0 routers"):
        switchyard.attach(nn.Linear(2, 2), scope="prefix", coefficient=1e-3)
    with pytest.raises(switchyard.ConfigError, match="takes a model or a transformers Trainer, not a str"):
        switchyard.attach("model", scope="prefix", coefficient=1e-3)


def test_a_router_that_computes_something_else_is_refused():
    model = make_model()
    router = model.model.layers[1].mlp.gate
    kind = type(router)
    router.__class__ = type("MyRouter", (kind,), {"forward": lambda self, h: (h @ self.weight.t() * 2, None, None)})
    with pytest.raises(switchyard.ConfigError, match="does not return"):
        switchyard.attach(model, scope="prefix", coefficient=1e-3)


def test_the_models_own_loss_is_never_beside_ours():
    model = make_model(output_router_logits=True)
    with pytest.raises(switchyard.ConfigError, match="there would be two"):
        switchyard.attach(model, scope="prefix", coefficient=1e-3)
    model.config.output_router_logits = False
    switchyard.attach(model, scope="prefix", coefficient=1e-3)
    with pytest.raises(switchyard.ConfigError, match="there would be two"):
        model(**stack(make_rows(2)).inputs, output_router_logits=True)


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "qwen3_vl_moe"])
def test_the_coefficient_of_the_models_own_loss_is_the_one_it_keeps(kind):
    """Set in the config after the model was made, it changes nothing."""
    model = make_model(kind, output_router_logits=True, router_aux_loss_coef=0.5)
    model.config.router_aux_loss_coef = 0.0
    with pytest.raises(switchyard.ConfigError, match="router_aux_loss_coef=0.5"):
        switchyard.attach(model, scope="prefix", coefficient=1e-3)
    model.config.router_aux_loss_coef, model.router_aux_loss_coef = 0.5, 0.0
    switchyard.attach(model, scope="prefix", coefficient=1e-3)


def test_a_model_with_pictures_takes_its_own_loss_from_the_forward():
    """Its config has the coefficient one level down, and it asks only when told."""
    model = make_model("qwen3_vl_moe", router_aux_loss_coef=0.5)
    inputs = stack(make_rows(2)).inputs
    plain, own = model(**inputs).loss, model(**inputs, output_router_logits=True).loss
    assert float((own - plain).detach()) > 0.1
    switchyard.attach(model, scope="prefix", coefficient=1e-3)
    with pytest.raises(switchyard.ConfigError, match="router_aux_loss_coef=0.5"):
        model(**inputs, output_router_logits=True)
    model.config.text_config.router_aux_loss_coef = 0.0
    model(**inputs, output_router_logits=True)


def test_a_layer_whose_router_is_bypassed_is_an_error():
    """B24: a fused kernel in place of the MoE block."""
    model = make_model()
    switchyard.attach(model, scope="prefix", coefficient=1e-3)
    model.model.layers[1].mlp.forward = lambda hidden: hidden
    with pytest.raises(switchyard.StateError, match="layer 1: no choices were recorded"):
        model(**stack(make_rows(2)).inputs)


def test_a_model_that_moved_is_an_error():
    model = make_model()
    switchyard.attach(model, scope="prefix", coefficient=1e-3)
    with pytest.raises(switchyard.StateError, match="the model is on meta, but was on cpu"):
        model.to("meta")(**stack(make_rows(2)).inputs)
    with pytest.raises(switchyard.ConfigError, match="on the meta device"):
        switchyard.attach(make_model().to("meta"), scope="prefix", coefficient=1e-3)


def test_what_hides_the_model_is_refused():
    class WithValueHead(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = make_model()

    with pytest.raises(switchyard.ConfigError, match=r"WithValueHead has no config.*attachment.join\(loss\)"):
        switchyard.attach(WithValueHead(), scope="prefix", coefficient=1e-3)
    model = make_model()
    model.active_peft_config = SimpleNamespace(is_prompt_learning=True)
    with pytest.raises(switchyard.ConfigError, match=r"virtual tokens .* Attach model.get_base_model\(\)"):
        switchyard.attach(model, scope="prefix", coefficient=1e-3)


def test_a_layer_in_eval_mode_is_an_error_that_says_so():
    model = make_model()
    switchyard.attach(model, scope="prefix", coefficient=1e-3)
    model.model.layers[1].eval()
    with pytest.raises(switchyard.StateError, match=r"MoE layer 1 is in eval mode.* frozen by requires_grad_\(False\)"):
        model(**stack(make_rows(2)).inputs)


def test_a_loss_made_outside_the_model_must_be_joined():
    model = make_model()
    attachment = switchyard.attach(model, scope="micro_batch", coefficient=5.0)
    batch = stack(equal_rows(2))
    inputs = {name: value for name, value in batch.inputs.items() if name != "labels"}
    with pytest.raises(RuntimeError, match="a loss that was not joined.*Under a Trainer .* attach to the Trainer"):
        model(**inputs).logits.sum().backward()
    attachment.loss.abandon_step()
    labels = batch.inputs["labels"]

    def own_loss(logits):
        return nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1))

    model.zero_grad()
    attachment.join(own_loss(model(**inputs).logits)).backward()
    found = gradients_of(model)
    attachment.end_step()
    assert largest_difference(found, train_step(model, [batch])) < 1e-6
    assert len(found) == len(weights_of(model))
