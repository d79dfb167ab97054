"""What the pages say, done: docs/losses.md on the coefficient of a model's own loss, docs/python.md on a loop of one's own."""

import pathlib
import re
import textwrap
import types

import pytest
import torch
from hf_models import VOCABULARY, make_model, stack
from trainer_run import build

import switchyard

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
E, K, OWN = 6, 2, 0.5
EVEN = {"num_hidden_layers": 1, "initializer_range": 0.02, "router_aux_loss_coef": OWN}


def full_rows(number, length=16):
    ids = torch.randint(3, VOCABULARY, (number, length), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in ids]


def model_gradient(kind, own_loss, coefficient=None):
    """Of the router's weight, with the loss of the model alone."""
    model = make_model(kind, output_router_logits=own_loss, **EVEN)
    if coefficient is not None:
        switchyard.attach(model, scope="micro_batch", coefficient=coefficient)
    model(**stack(full_rows(8)).inputs).loss.backward()
    return model.model.layers[0].mlp.gate.weight.grad.clone()


def trainer_gradient(accumulation, own_loss, coefficient=None):
    trainer, keeper = build(full_rows(8), per_device=8 // accumulation, accumulation=accumulation, output_router_logits=own_loss,
                            **EVEN)
    if coefficient is not None:
        switchyard.attach(trainer, scope="micro_batch", coefficient=coefficient)
    trainer.train()
    names = [name for name, _ in trainer.model.named_parameters()]
    return keeper.gradients[0][names.index("model.layers.0.mlp.gate.weight")]


def check_strength(gradient, coefficient):
    """The model's own loss of coefficient OWN acts as ours with this one: within 10 %, and in the same direction."""
    plain, own, ours = gradient(False), gradient(True), gradient(False, coefficient)
    own, ours = own - plain, ours - plain
    assert float((own * ours).sum() / (ours * ours).sum()) == pytest.approx(1.0, rel=0.1)
    assert float(torch.cosine_similarity(own.flatten(), ours.flatten(), 0)) > 0.99


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral", "olmoe"])
def test_a_models_own_loss_is_as_strong_as_ours_at_a_k_over_e(kind):
    check_strength(lambda *settings: model_gradient(kind, *settings), OWN * K / E)


def test_under_the_trainer_it_acts_once_a_micro_batch():
    check_strength(lambda *settings: trainer_gradient(4, *settings), OWN * K * 4 / E)


def test_the_pages_give_the_coefficient_that_was_measured():
    assert "| `mean` | a K / E; under its Trainer a K M / E | `micro_batch` |" in (DOCS / "losses.md").read_text()
    assert "a K / E keeps the strength" in (DOCS / "python.md").read_text()
    with pytest.raises(switchyard.ConfigError, match=r"coefficient=router_aux_loss_coef \* K / E does here"):
        switchyard.attach(make_model(output_router_logits=True), scope="prefix", coefficient=1e-3)


class Router(torch.nn.Module):
    """The second block of 'Your own loop', where the page puts it."""

    def __init__(self, code, names, layer):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 5))
        self.code, self.names, self.layer = code, names, layer

    def forward(self, hidden):
        here = {"loss": self.names["loss"], "l": self.layer, "k": 2, "probs": torch.softmax(hidden @ self.weight.T, -1)}
        exec(self.code, here)
        return here["weights"].sum() * hidden.mean()


class KeepsGradients(torch.optim.SGD):
    def step(self, *args, **kwargs):
        self.kept = [*getattr(self, "kept", []), [p.grad.clone() for p in self.param_groups[0]["params"]]]


def test_the_loop_of_the_page_runs_and_its_steps_are_independent():
    section = (DOCS / "python.md").read_text().split("## Your own loop\n")[1].split("\n- **")[0]
    loop, router = textwrap.dedent(section).split("# in the router of MoE layer l\n")
    torch.manual_seed(0)
    names = {"switchyard": switchyard, "torch": torch, "E": 4, "L": 2}
    layers = torch.nn.ModuleList(Router(router, names, layer) for layer in range(2))
    masks = [torch.tensor([[1, 1, 1], [1, 1, 0]]), torch.tensor([[1, 0, 0], [1, 1, 1]])]
    batches = [types.SimpleNamespace(x=torch.randn(6, 5), mask=mask) for mask in masks]
    names["model"] = lambda batch: sum(layer(batch.x) for layer in layers)
    names["optimizer"] = KeepsGradients(layers.parameters(), lr=0.0)
    names["steps"] = [batches, batches]
    exec(loop, names)
    first, second = names["optimizer"].kept
    assert all(torch.equal(a, b) for a, b in zip(first, second)) and first[0].abs().max() > 0
    assert names["report"].tokens == 9 and len(names["report"].lbl_L) == 2


def linked_pages(page):
    """Pages that a page links to; a link to a folder is one to all pages in it. A link to nothing is an error."""
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in target:
            path = (page.parent / target).resolve()
            assert path.exists(), f"{page} links to {target}, which is not there"
            yield from (path.glob("*.md") if path.is_dir() else [path] if path.suffix == ".md" else [])


def test_every_page_can_be_reached_from_the_readme():
    reached, waiting = set(), [DOCS.parent / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            waiting += linked_pages(page)
    assert set(DOCS.rglob("*.md")) - reached == set()
