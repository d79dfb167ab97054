"""attach(trainer) beside a compute_loss() of somebody's own: what its loss is divided by, and what else it does with the model."""

import json
import pathlib

import pytest
import torch
from hf_models import make_rows
from test_trainer import COMPILED, check, cut, settings_of
from torchrun import torchrun
from trainer_run import COMPUTE_LOSS, build, run
from transformers import Trainer

import switchyard


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("compute_loss", COMPUTE_LOSS)
def test_what_the_loss_is_divided_by(compute_loss, compiled):
    torch._dynamo.reset()
    changes = {"compute_loss": compute_loss, "experts": "batched_mm"}
    plain = run({"rows": 4, **changes})
    balanced = run(settings_of("prefix", **changes, arguments=COMPILED if compiled else {}))
    check(balanced, plain, cut(make_rows(4)), "prefix", means=compute_loss == "mean")


def of_ranks(compute_loss, attached):
    settings = {"compute_loss": compute_loss, "arguments": {"ddp_backend": "gloo"}, "rows": 8}
    return settings_of("prefix", **settings) if attached else settings


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Trainings under torchrun, by (compute_loss, attached)."""
    folder, here = tmp_path_factory.mktemp("ranks"), pathlib.Path(__file__).parent
    keys = [(name, attached) for name in COMPUTE_LOSS for attached in (False, True)]
    (folder / "settings.json").write_text(json.dumps([of_ranks(*key) for key in keys]))
    torchrun(here / "trainer_run.py", folder / "settings.json", folder / "out.pt")
    return dict(zip(keys, torch.load(folder / "out.pt", weights_only=False)))


@pytest.mark.parametrize("compute_loss", COMPUTE_LOSS)
def test_what_the_loss_is_divided_by_on_two_ranks(compute_loss, two_processes):
    """DistributedDataParallel gives all outputs of the model one node of the graph, with the setting that the Trainer has."""
    balanced, plain = two_processes[compute_loss, True], two_processes[compute_loss, False]
    assert balanced["world"] == 2
    check(balanced, plain, cut(make_rows(8), num_ranks=2), "prefix", means=compute_loss == "mean")


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
