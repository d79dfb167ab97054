"""attach(model) in loops that do more than one forward and one step: adapters, failures, several forwards in a loss, copies."""

import copy
import pickle

import pytest
import torch
from hf_models import dense_gradients, dense_loss, gradients_of, make_model, make_rows, stack
from oracle import largest_difference
from torch import nn
from torch.optim.swa_utils import AveragedModel

import switchyard
from switchyard.frame import Frame

TOLERANCE = 2e-5


def batches_of(number):
    return [stack(make_rows(2, seed)) for seed in range(number)]


def without_labels(batch):
    return {name: value for name, value in batch.inputs.items() if name != "labels"}


def balancing_part(with_loss, without):
    return [a - b for a, b in zip(with_loss, without)]


class Adapter(nn.Module):
    """As PEFT injects it: the base is frozen, what is trained came after attaching."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(4, base.in_features) * 0.1)
        self.up = nn.Parameter(torch.randn(base.out_features, 4) * 0.1)

    def forward(self, hidden):
        return self.base(hidden) + hidden @ self.down.t() @ self.up.t()


def test_adapters_that_came_after_attaching_end_the_step():
    model = make_model()
    attachment = switchyard.attach(model, scope="prefix", coefficient=5.0)
    model.requires_grad_(False)
    for layer in model.model.layers:
        layer.self_attn.q_proj = Adapter(layer.self_attn.q_proj)
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    for step, batch in enumerate(batches_of(3)):
        model(**batch.inputs).loss.backward()
        optimizer.step()
        assert not attachment.loss.in_step and attachment.last_report.step == step
        assert attachment.last_report.tokens == int(batch.inputs["attention_mask"].sum())


class SavedModule(nn.Module):
    """As PEFT trains a module whole: the original is kept, a copy for each adapter of modules_to_save runs."""

    def __init__(self, module, *adapters):
        super().__init__()
        self.original_module = module
        self.modules_to_save = nn.ModuleDict({name: copy.deepcopy(module) for name in adapters})
        self.active_adapters, self.disable_adapters = [adapters[0]], False
        for number, router in enumerate(self.modules_to_save.values()):
            router.weight.data *= number + 1.5

    def forward(self, hidden):
        return (self.original_module if self.disable_adapters else self.modules_to_save[self.active_adapters[0]])(hidden)


def save_routers(model):
    for layer in model.model.layers:
        layer.mlp.gate = SavedModule(layer.mlp.gate, "default", "other")
    return [layer.mlp.gate for layer in model.model.layers]


def check_balance(model, attachment, batch):
    """With a fresh step, then without it."""
    def run():
        model.zero_grad()
        model(**batch.inputs).loss.backward()
        return gradients_of(model)

    balanced, report = run(), attachment.end_step()
    attachment.detach()
    part = balancing_part(balanced, run())
    loss, lbl, _ = dense_loss(model, [[batch]], "micro_batch", coefficient=5.0)
    assert largest_difference(part, dense_gradients(loss, model)) < TOLERANCE
    assert report.lbl_L == pytest.approx([float(value.detach()) for value in lbl], abs=1e-6)


@pytest.mark.parametrize("adapter", ["default", "other", None])
def test_routers_that_an_adapter_saves(adapter):
    """Also where another adapter became active, or none, after attaching."""
    model = make_model()
    gates = save_routers(model)
    attachment = switchyard.attach(model, scope="micro_batch", coefficient=5.0)
    for gate in gates:
        gate.active_adapters, gate.disable_adapters = [adapter], adapter is None
    check_balance(model, attachment, *batches_of(1))


def test_routers_that_an_adapter_saves_after_attaching():
    model = make_model()
    attachment = switchyard.attach(model, scope="micro_batch", coefficient=5.0)
    save_routers(model)
    (batch,) = batches_of(1)
    with pytest.raises(switchyard.StateError, match=r"with peft detach\(\), and attach\(\) after get_peft_model\(\)"):
        model(**batch.inputs)
    attachment.detach()
    check_balance(model, switchyard.attach(model, scope="micro_batch", coefficient=5.0), batch)


def test_a_step_that_no_optimizer_ends_warns_once():
    """Such as an optimizer of copies of the parameters. Other optimizers may step under accumulation, so no error."""
    model = make_model()
    attachment = switchyard.attach(model, scope="prefix", coefficient=5.0)
    foreign = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.0)
    (batch,) = batches_of(1)
    with pytest.warns(UserWarning, match="3 forwards of the attached model are in one step.*call end_step") as caught:
        for _ in range(5):
            model(**batch.inputs).loss.backward()
            foreign.step()
            foreign.step()
    assert len([warning for warning in caught if "attached model" in str(warning.message)]) == 1
    assert attachment.end_step().micro_batch_counts_MLE.shape[0] == 5


def run_out_of_memory(model, batch):
    def fail(*_):
        raise torch.OutOfMemoryError("out of memory")

    handle = model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        model(**batch.inputs, num_items_in_batch=torch.tensor(30))
    handle.remove()


def test_a_failed_forward_is_forgotten():
    model = make_model()
    attachment = switchyard.attach(model, scope="prefix", coefficient=5.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def train(failing):
        optimizer.zero_grad()
        for number, batch in enumerate(batches_of(2)):
            if number == failing:
                run_out_of_memory(model, batches_of(3)[2])
            model(**batch.inputs, num_items_in_batch=torch.tensor(30)).loss.backward()
        if failing == 2:
            run_out_of_memory(model, batches_of(3)[2])
        optimizer.step()
        return gradients_of(model), attachment.last_report

    plain, expected = train(None)
    for failing in (0, 1, 2):
        found, report = train(failing)
        assert largest_difference(found, plain) == 0.0
        assert report.lbl_L == expected.lbl_L and torch.equal(report.counts_LE, expected.counts_LE)


def test_a_failed_backward_is_an_error_that_says_how_to_go_on():
    """Its forward was counted, so it cannot be forgotten in silence."""
    model = make_model()
    attachment = switchyard.attach(model, scope="prefix", coefficient=5.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def fail(*_):
        raise torch.OutOfMemoryError("out of memory")

    def skip_a_batch():
        handle = model.model.layers[0].register_forward_hook(lambda module, inputs, output: output.register_hook(fail) and None)
        with pytest.raises(torch.OutOfMemoryError):
            model(**batches_of(1)[0].inputs).loss.backward()
        handle.remove()
        optimizer.zero_grad()

    skip_a_batch()
    model(**batches_of(2)[1].inputs).loss.backward()
    with pytest.raises(switchyard.StateError, match=r"micro-batch 0, .*backward failed.* call abandon_step\(\)"):
        optimizer.step()
    skip_a_batch()
    attachment.loss.abandon_step()
    model(**batches_of(2)[1].inputs).loss.backward()
    optimizer.step()
    assert attachment.last_report.micro_batch_counts_MLE.shape[0] == 1


def test_a_failed_forward_on_several_ranks_is_an_error_that_says_how_to_go_on(monkeypatch):
    """The other ranks may have added theirs up."""
    model = make_model()
    attachment = switchyard.attach(model, scope="micro_batch", coefficient=5.0)
    (batch,) = batches_of(1)
    run_out_of_memory(model, batch)
    monkeypatch.setattr(attachment.loss.ranks, "size", 2)
    with pytest.raises(switchyard.StateError, match=r"micro-batch 0, rank 0.*Call .*attachment.loss.abandon_step\(\)"):
        model(**batch.inputs)
    attachment.loss.abandon_step()
    monkeypatch.undo()
    model(**batch.inputs).loss.backward()
    assert attachment.end_step().step == 0


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_a_forward_of_ones_own_among_those_with_items(first):
    """Under a Trainer: its micro-batches are shares of the step, and what is beside them has no weight."""
    model = make_model()
    attachment = switchyard.attach(model, scope="prefix", coefficient=5.0)
    own, batch = batches_of(2)
    calls = [own.inputs, {**batch.inputs, "num_items_in_batch": torch.tensor(30)}]
    one, other = calls if first else calls[::-1]
    model(**one)
    with pytest.raises(switchyard.StateError, match=r"micro-batch 1.* micro-batches \[0\] of this step.*torch.no_grad\(\)"):
        model(**other)
    attachment.loss.abandon_step()
    with torch.no_grad():
        model(**own.inputs)
    model(**calls[1]).loss.backward()
    assert attachment.end_step().micro_batch_counts_MLE.shape[0] == 1


def preference_loss(chosen, rejected):
    return 1e-4 * ((chosen - rejected) ** 2).sum()


@pytest.mark.parametrize("reentrant", [None, True, False], ids=["plain", "reentrant", "checkpoint"])
def test_join_reaches_every_forward_behind_the_loss(reentrant):
    """Two forwards in one loss, a third without gradients between, and one that is not used."""
    model = make_model()
    if reentrant is not None:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
    batches = batches_of(3)

    def run(join):
        model.zero_grad()
        chosen = model(**without_labels(batches[0])).logits
        model(**without_labels(batches[2]))
        rejected = model(**without_labels(batches[1])).logits
        with torch.no_grad():
            model(**without_labels(batches[0]))
        (join(preference_loss(chosen, rejected)) * 3.0).backward()
        return gradients_of(model)

    plain = run(lambda loss: loss)
    attachment = switchyard.attach(model, scope="sequence", coefficient=5.0)
    balanced = run(attachment.join)
    report = attachment.end_step()
    attachment.detach()
    assert report.differences == 0 and report.micro_batch_counts_MLE.shape[0] == 3
    model.gradient_checkpointing_disable()
    expected = [torch.zeros_like(gradient) for gradient in plain]
    for batch in batches[:2]:
        part, _, _ = dense_loss(model, [[batch]], "sequence", coefficient=15.0)
        expected = [a + b for a, b in zip(expected, dense_gradients(part, model))]
    assert max(float(gradient.abs().max()) for gradient in expected) > 0.01
    assert largest_difference(balancing_part(balanced, plain), expected) < 10 * TOLERANCE


def test_each_loss_joins_its_own_forward():
    """All forwards first, and losses that are scaled differently."""
    model = make_model()
    batches = batches_of(2)
    attachment = switchyard.attach(model, scope="micro_batch", coefficient=5.0)

    def losses(join):
        outputs = [model(**without_labels(batch)).logits for batch in batches]
        return [join(1e-3 * logits.square().sum()) for logits in outputs]

    model.zero_grad()
    first, second = losses(attachment.join)
    (0.5 * first + 2.0 * second).backward()
    together = gradients_of(model)
    attachment.end_step()
    apart = [0.0] * len(together)
    for number, scale in enumerate((0.5, 2.0)):
        model.zero_grad()
        (losses(attachment.join)[number] * scale).backward()
        apart = [a + b for a, b in zip(apart, gradients_of(model))]
        attachment.end_step()
    assert largest_difference(together, apart) < TOLERANCE


def test_a_forward_whose_loss_was_not_joined_is_still_an_error():
    model = make_model()
    attachment = switchyard.attach(model, scope="micro_batch", coefficient=5.0)
    first, second = [model(**without_labels(batch)).logits for batch in batches_of(2)]
    loss = attachment.join(second.sum()) + first.sum()
    with pytest.raises(RuntimeError, match="a loss that was not joined"):
        loss.backward()


def test_forwards_that_were_not_used_are_not_kept():
    model = make_model()
    switchyard.attach(model, scope="micro_batch", coefficient=5.0)
    outputs = model(**without_labels(batches_of(1)[0]))
    alive = []
    outputs.logits.grad_fn.metadata["probe"] = type("Probe", (), {"__del__": lambda self: alive.append("gone")})()
    del outputs
    assert alive == ["gone"]


def test_a_compiled_model_beside_one_that_is_not_attached(monkeypatch):
    """Of one class: torch.compile takes the graph of the other, without hooks, unless it is told to look at them."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch._dynamo.config, "skip_nnmodule_hook_guards", True)  # as torch has it
    first, second = batches_of(2)
    eager, model, other = (make_model(experts="batched_mm") for _ in range(3))
    attachments = [switchyard.attach(eager, scope="prefix", coefficient=5.0)]
    for batch in (first, second):
        eager(**batch.inputs).loss.backward()
    monkeypatch.setattr(torch._dynamo.config, "skip_nnmodule_hook_guards", True)
    compiled, beside = (torch.compile(each, backend="aot_eager") for each in (model, other))
    beside(**first.inputs).loss.backward()
    attachments.append(switchyard.attach(model, scope="prefix", coefficient=5.0))
    compiled(**first.inputs).loss.backward()
    beside(**first.inputs).loss.backward()
    compiled(**second.inputs).loss.backward()
    assert largest_difference(gradients_of(model), gradients_of(eager)) < 1e-6
    reports = [attachment.end_step() for attachment in attachments]
    assert torch.equal(reports[0].counts_LE, reports[1].counts_LE)


COPIES = {"deepcopy": copy.deepcopy, "average": AveragedModel, "pickle": lambda model: pickle.loads(pickle.dumps(model))}


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_is_not_balanced_by_the_original(kind, monkeypatch):
    model = make_model()
    attachment = switchyard.attach(model, scope="prefix", coefficient=5.0)
    (batch,) = batches_of(1)
    model(**batch.inputs).loss.backward()
    other = COPIES[kind](model)
    calls = []
    monkeypatch.setattr(Frame, "record", lambda *_: calls.append(1))
    with torch.no_grad():
        other(**batch.inputs)
    other.eval()(**batch.inputs)
    with pytest.raises(switchyard.StateError, match="a copy of one that was attached"):
        other.train()(**batch.inputs)
    with pytest.raises(switchyard.StateError, match="a copy of one that was attached"):
        (other.module if kind == "average" else other).model(input_ids=batch.inputs["input_ids"])
    assert not calls
    monkeypatch.undo()
    again = switchyard.attach(other.module if kind == "average" else other, scope="prefix", coefficient=5.0)
    other(**batch.inputs).loss.backward()
    assert attachment.end_step().micro_batch_counts_MLE.shape[0] == 1
    assert again.end_step().micro_batch_counts_MLE.shape[0] == 1
