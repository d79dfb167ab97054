"""Tiny Hugging Face models and batches, and the dense oracle on them."""

import dataclasses
import warnings

import torch
import torch.nn.functional as F
import transformers
from oracle import step_loss

from switchyard.huggingface import find_routers

VOCABULARY = 31
SHARED = dict(vocab_size=VOCABULARY, hidden_size=16, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
              num_key_value_heads=2, max_position_embeddings=32, initializer_range=0.5, num_experts_per_tok=2, use_cache=False,
              pad_token_id=0, bos_token_id=1, eos_token_id=2)


# By family: the parts of its class names, and what its config needs beside SHARED.
SHARED_EXPERT = dict(num_experts=6, moe_intermediate_size=12, shared_expert_intermediate_size=8)
FULL_ATTENTION = dict(head_dim=8, layer_types=["full_attention"] * 2)
ROTARY = dict(rope_parameters={"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4})
VISION = dict(depth=1, hidden_size=16, num_heads=2, intermediate_size=8, out_hidden_size=16, num_position_embeddings=16,
              deepstack_visual_indexes=[0])
FAMILIES = {
    "qwen3_moe": ("Qwen3Moe", "ForCausalLM", dict(head_dim=8, moe_intermediate_size=12, num_experts=6, norm_topk_prob=True)),
    "mixtral": ("Mixtral", "ForCausalLM", dict(num_local_experts=6)),
    "olmoe": ("Olmoe", "ForCausalLM", dict(num_experts=6, norm_topk_prob=False)),
    "qwen2_moe": ("Qwen2Moe", "ForCausalLM", SHARED_EXPERT),
    "qwen3_next": ("Qwen3Next", "ForCausalLM", {**SHARED_EXPERT, **FULL_ATTENTION}),
    "qwen3_5_moe": ("Qwen3_5Moe", "ForCausalLM", {**SHARED_EXPERT, **FULL_ATTENTION}),
    "flex_olmo": ("FlexOlmo", "ForCausalLM", dict(num_experts=6)),
    "minimax": ("MiniMax", "ForCausalLM", dict(num_local_experts=6, **FULL_ATTENTION)),
    "qwen3_vl_moe": ("Qwen3VLMoe", "ForConditionalGeneration", dict(num_experts=6, moe_intermediate_size=12, head_dim=8, **ROTARY)),
}
FAMILIES["classes"] = ("Qwen3Moe", "ForSequenceClassification", FAMILIES["qwen3_moe"][2])


def make_config(kind, **changes):
    name, _, own = FAMILIES[kind]
    settings = {**SHARED, **own, **changes}
    if kind == "qwen3_vl_moe":
        return transformers.Qwen3VLMoeConfig(text_config=settings, vision_config=VISION)
    return getattr(transformers, "Qwen3_5MoeTextConfig" if kind == "qwen3_5_moe" else f"{name}Config")(**settings)


def make_model(kind="qwen3_moe", seed=0, experts=None, **changes):
    name, head, _ = FAMILIES[kind]
    torch.manual_seed(seed)
    model = getattr(transformers, name + head)(make_config(kind, **changes)).train()
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
