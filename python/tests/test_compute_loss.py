"""attach(trainer) beside a compute_loss() of somebody's own: what its loss is divided by, and what else it does with the model."""

import json
import pathlib
from types import SimpleNamespace

import pytest
import torch
from hf_models import make_rows, stack, with_classes
from oracle import largest_difference
from test_trainer import COEFFICIENT, COMPILED, TOLERANCE, check, cut, expected, settings_of
from torchrun import torchrun
from trainer_run import COMPUTE_LOSS, build, run
from transformers import Trainer, TrainerCallback

import switchyard
from switchyard.hf_objective import SeenForward, factor_of


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("compute_loss", COMPUTE_LOSS)
def test_what_the_loss_is_divided_by(compute_loss, compiled):
    torch._dynamo.reset()
    changes = {"compute_loss": compute_loss, "experts": "batched_mm"}
    plain = run({"rows": 4, **changes})
    balanced = run(settings_of("prefix", **changes, arguments=COMPILED if compiled else {}))
    check(balanced, plain, cut(make_rows(4)), "prefix", means=compute_loss.startswith("mean"))


def of_ranks(name, attached):
    settings = {"kind": "classes"} if name == "classes" else {"compute_loss": name}
    settings = {**settings, "arguments": {"ddp_backend": "gloo"}, "rows": 8}
    return settings_of("prefix", **settings) if attached else settings


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Trainings under torchrun, by (compute_loss, attached)."""
    folder, here = tmp_path_factory.mktemp("ranks"), pathlib.Path(__file__).parent
    keys = [(name, attached) for name in [*COMPUTE_LOSS, "classes"] for attached in (False, True)]
    (folder / "settings.json").write_text(json.dumps([of_ranks(*key) for key in keys]))
    torchrun(here / "trainer_run.py", folder / "settings.json", folder / "out.pt")
    return dict(zip(keys, torch.load(folder / "out.pt", weights_only=False)))


@pytest.mark.parametrize("compute_loss", COMPUTE_LOSS)
def test_what_the_loss_is_divided_by_on_two_ranks(compute_loss, two_processes):
    """DistributedDataParallel gives all outputs of the model one node of the graph, with the setting that the Trainer has."""
    balanced, plain = two_processes[compute_loss, True], two_processes[compute_loss, False]
    assert balanced["world"] == 2
    check(balanced, plain, cut(make_rows(8), num_ranks=2), "prefix", means=compute_loss.startswith("mean"))


def test_a_head_that_classifies():
    """It is given num_items_in_batch and does not use it."""
    plain = run({"rows": 4, "kind": "classes"})
    step = cut(with_classes(make_rows(4)))
    check(run(settings_of("optimizer_batch", kind="classes")), plain, step, "optimizer_batch", means=True, kind="classes")
    model_only = {"scope": "micro_batch", "coefficient": COEFFICIENT, "model_only": True}
    balanced = run({"rows": 4, "kind": "classes", "attach": model_only})
    # A model alone averages micro-batches as its loss is averaged, not by tokens.
    halves = [expected([ranks], "micro_batch", True, kind="classes")[1] for ranks in step]
    part = [a - b for a, b in zip(balanced["gradients"][0], plain["gradients"][0])]
    assert largest_difference(part, [(a + b) / 2 for a, b in zip(*halves)]) < TOLERANCE


def test_a_head_that_classifies_on_two_ranks(two_processes):
    """The Trainer multiplies that mean by the ranks."""
    balanced, plain = two_processes["classes", True], two_processes["classes", False]
    check(balanced, plain, cut(with_classes(make_rows(8)), num_ranks=2), "prefix", means=True, kind="classes")


def test_an_unknown_head():
    trainer, _ = build(make_rows(4))
    trainer.model.__class__ = type("Qwen3MoeForSomething", (type(trainer.model).__mro__[1],), dict(vars(type(trainer.model))))
    switchyard.attach(trainer, scope="prefix", coefficient=1.0)
    with pytest.raises(switchyard.ConfigError, match="loss of Qwen3MoeForSomething .* trainer.model_accepts_loss_kwargs = False"):
        trainer.train()
    trainer.model_accepts_loss_kwargs = False
    trainer.train()


def test_labels_smoothed_outside_of_the_trainers_own_compute_loss():
    """Whether it then multiplies by the ranks, as that of trl's SFTTrainer does, cannot be seen."""
    args = SimpleNamespace(average_tokens_across_devices=True, loss_type="nll")
    trainer = SimpleNamespace(args=args, accelerator=SimpleNamespace(num_processes=2), compute_loss_func=None,
                              model_accepts_loss_kwargs=True, label_smoother=object())
    loss = torch.ones(1, requires_grad=True).sum()

    def factor():
        return factor_of(trainer, None, 10, loss, SeenForward(), num_micro_batches=3)

    with pytest.raises(switchyard.ConfigError, match="on 2 ranks.* Set average_tokens_across_devices=False"):
        factor()
    args.average_tokens_across_devices = False
    assert factor() == 3.0
    args.loss_type = "dft"
    with pytest.raises(switchyard.ConfigError, match="loss_type='dft' .* Set label_smoothing_factor=0"):
        factor()


class ReferenceTrainer(Trainer):
    """Runs the model once more without gradients, on the same batch and on others: as for the reference of DPO with the adapter off,
    for metrics, or to generate. In train mode all the while."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        for others in (inputs, stack(make_rows(3, 77)).inputs):
            with torch.no_grad():
                self.model(**others)
                model(**others)
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with torch.no_grad():
            model(**stack(make_rows(2, 78)).inputs)
        return result


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("scope", ["prefix", "optimizer_batch"])
def test_forwards_without_gradients_in_a_compute_loss(scope, compiled):
    torch._dynamo.reset()
    changes = {"experts": "batched_mm"}
    plain = run({"rows": 4, **changes})
    settings = settings_of(scope, **changes, trainer_class=ReferenceTrainer, arguments=COMPILED if compiled else {})
    check(run(settings), plain, cut(make_rows(4)), scope)


class SmoothingTrainer(Trainer):
    """As trl's SFTTrainer smooths labels: from logits, and again for metrics."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs["labels"]
        loss = self.label_smoother(model(**{**inputs, "labels": None}), labels, shift_labels=True)
        with torch.no_grad():
            model(**inputs)
        return loss


def test_labels_smoothed_outside_with_dropout():
    settings = {"trainer_class": SmoothingTrainer, "attention_dropout": 0.3, "arguments": {"label_smoothing_factor": 0.1}}
    assert run(settings_of("optimizer_batch", **settings))["reports"][0]["differences"] == 0
    settings = {**settings, "attention_dropout": 0.0}
    plain, balanced = run({"rows": 4, **settings}), run(settings_of("optimizer_batch", **settings))
    check(balanced, plain, cut(make_rows(4)), "optimizer_batch", means="smoothed")


class ForwardsOfOnesOwn(TrainerCallback):
    """In train mode, as the Trainer leaves the model."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        with torch.no_grad():
            model(**stack(make_rows(2, 77)).inputs)
            model.generate(make_rows(1)[0]["input_ids"][None, :3], max_new_tokens=2)

    on_substep_end = on_pre_optimizer_step = on_step_end = on_step_begin


@pytest.mark.parametrize("scope", ["prefix", "optimizer_batch"])
def test_forwards_without_gradients_in_callbacks(scope):
    found = []
    for callbacks in ([], [ForwardsOfOnesOwn()]):
        trainer, keeper = build(make_rows(8), steps=2)
        trainer.callback_handler.callbacks[:0] = callbacks
        keeper.attachment = switchyard.attach(trainer, scope=scope, coefficient=COEFFICIENT)
        trainer.train()
        found.append(keeper)
    for step in (0, 1):
        assert largest_difference(found[0].gradients[step], found[1].gradients[step]) == 0.0
        assert found[1].reports[step].lbl_L == found[0].reports[step].lbl_L


class AskingTrainer(Trainer):
    """As trl asks for it: for the model's config says nothing."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, {**inputs, "output_router_logits": True}, return_outputs, num_items_in_batch)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_forward_that_asks_for_the_models_own_loss(compiled):
    changes = {"experts": "batched_mm", "arguments": COMPILED if compiled else {}}
    trainer, _ = build(make_rows(4), trainer_class=AskingTrainer, router_aux_loss_coef=0.5, **changes)
    switchyard.attach(trainer, scope="prefix", coefficient=1.0)
    with pytest.raises(switchyard.ConfigError, match="its forward was given output_router_logits=True"):
        trainer.train()
    trainer.model.router_aux_loss_coef = 0.0
    trainer.train()


def test_a_trainer_that_adds_the_models_own_loss():
    """Trainers of trl do, whatever the model's config says: coefficient * outputs.aux_loss."""
    trainer, _ = build(make_rows(4))
    trainer.router_aux_loss_coef, trainer.aux_loss_enabled = 0.5, True
    with pytest.raises(switchyard.ConfigError, match=r"the Trainer adds .*SFTConfig\(router_aux_loss_coef=0.0\)"):
        switchyard.attach(trainer, scope="prefix", coefficient=1.0)
    trainer.router_aux_loss_coef, trainer.aux_loss_enabled = 0.0, False
    switchyard.attach(trainer, scope="prefix", coefficient=1.0)
    trainer.router_aux_loss_coef = 0.5
    with pytest.raises(switchyard.ConfigError, match="the Trainer adds"):
        trainer.train()


class TwiceTrainer(Trainer):
    """As for a penalty on the difference of two forwards under dropout."""

    join = staticmethod(lambda loss: loss)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return self.join((model(**inputs).loss + model(**inputs).loss) / 2)


@pytest.mark.parametrize("arguments", [{}, {"gradient_checkpointing": True}], ids=["plain", "checkpoint"])
def test_two_forwards_in_a_compute_loss(arguments):
    """Both would carry the whole balancing loss of the micro-batch."""
    trainer, _ = build(make_rows(4), trainer_class=TwiceTrainer, arguments=arguments)
    switchyard.attach(trainer, scope="optimizer_batch", coefficient=COEFFICIENT)
    with pytest.raises(switchyard.StateError, match=r"ran the model twice .*attach\(model\)"):
        trainer.train()


def test_two_forwards_that_are_joined():
    """What the error tells to do: each forward has half of the loss, and so of the balancing loss."""
    found = []
    for attached in (False, True):
        trainer, keeper = build(make_rows(2), accumulation=1, trainer_class=TwiceTrainer)
        if attached:
            trainer.join = switchyard.attach(trainer.model, scope="micro_batch", coefficient=COEFFICIENT).join
        trainer.train()
        found.append(keeper.gradients[0])
    balance = expected(cut(make_rows(2), accumulation=1), "micro_batch")[1]
    assert largest_difference([a - b for a, b in zip(found[1], found[0])], balance) < TOLERANCE
