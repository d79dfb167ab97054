"""Tiny Hugging Face models and batches, and the dense oracle on them."""

import dataclasses
import warnings

import torch
import torch.nn.functional as F
from oracle import step_loss
from transformers import (MixtralConfig, MixtralForCausalLM, OlmoeConfig, OlmoeForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM,
                          Qwen3MoeForSequenceClassification)

from switchyard.huggingface import find_routers

VOCABULARY = 31
SHARED = dict(vocab_size=VOCABULARY, hidden_size=16, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
              num_key_value_heads=2, max_position_embeddings=32, initializer_range=0.5, num_experts_per_tok=2, use_cache=False,
              pad_token_id=0, bos_token_id=1, eos_token_id=2)


def make_model(kind="qwen3_moe", seed=0, experts=None, **changes):
    settings = {**SHARED, **changes}
    if kind in ("qwen3_moe", "classes"):
        config = Qwen3MoeConfig(**settings, head_dim=8, moe_intermediate_size=12, num_experts=6, norm_topk_prob=True)
        build = Qwen3MoeForCausalLM if kind == "qwen3_moe" else Qwen3MoeForSequenceClassification
    elif kind == "mixtral":
        config, build = MixtralConfig(**settings, num_local_experts=6), MixtralForCausalLM
    else:
        config, build = OlmoeConfig(**settings, num_experts=6, norm_topk_prob=False), OlmoeForCausalLM
    torch.manual_seed(seed)
    model = build(config).train()
    if experts is not None:
        model.set_experts_implementation(experts)
    return model


def make_rows(number, seed=1, length=9):
    """Padded sequences of random lengths: input_ids, attention_mask, labels."""
    rng = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(number):
        valid = int(torch.randint(3, length + 1, (1,), generator=rng))
        mask = (torch.arange(length) < valid).long()
        ids = torch.randint(3, VOCABULARY, (length,), generator=rng) * mask
        rows.append({"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask == 1, ids, -100)})
    return rows


def with_classes(rows):
    """For a head that classifies sequences."""
    return [{**row, "labels": torch.tensor(number % 2)} for number, row in enumerate(rows)]


@dataclasses.dataclass
class HfBatch:
    inputs: dict

    @property
    def num_segments(self):
        return self.inputs["input_ids"].shape[0]

    @property
    def segments(self):
        rows = torch.arange(self.num_segments).unsqueeze(1)
        return torch.where(self.inputs["attention_mask"] != 0, rows, -1).flatten()


def stack(rows):
    return HfBatch({name: torch.stack([row[name] for row in rows]) for name in rows[0]})


def dense_scores(model, batch):
    """Probabilities, logits and choices of each layer, in the graph; for oracle.step_loss."""
    probs, logits, ids, handles = [], [], [], []
    for router in find_routers(model):
        def hook(module, inputs, outputs):
            logits.append(F.linear(inputs[0].reshape(-1, module.weight.shape[1]), module.weight))
            probs.append(torch.softmax(logits[-1].float(), -1))
            ids.append(outputs[2])
            # Same graph as the model's own: the probabilities that the model chose by are these.
            assert torch.allclose(outputs[0], probs[-1], atol=1e-6)

        handles.append(router.register_forward_hook(hook))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(**{**batch.inputs, "labels": None})
    for handle in handles:
        handle.remove()
    return probs, logits, ids


def dense_loss(model, step, scope, **settings):
    """[m][rank] batches -> the balancing loss of the whole step in one graph."""
    return step_loss(model, step, scope, scorer=dense_scores, **settings)


def step_counts(model, step):
    total = 0
    for batch in (batch for ranks in step for batch in ranks):
        chosen = dense_scores(model, batch)[2]
        total = total + torch.stack([torch.bincount(ids[batch.segments >= 0].flatten(), minlength=6) for ids in chosen])
    return total


def weights_of(model):
    return [weight for weight in model.parameters() if weight.requires_grad]


def gradients_of(model):
    return [torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in weights_of(model)]


def dense_gradients(loss, model):
    found = torch.autograd.grad(loss, weights_of(model), allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for g, w in zip(found, weights_of(model))]
