"""What is known of Hugging Face models: their routers, their own balancing loss, and the sequences in their inputs."""

from __future__ import annotations

from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .balance import segments_of_mask
from .errors import ConfigError

# Router classes whose forward returns (scores [T, E], weights of the chosen [T, K], choices [T, K]) from softmax(h W^T).
ROUTERS = ("Qwen3MoeTopKRouter", "MixtralTopKRouter", "OlmoeTopKRouter", "Qwen2MoeTopKRouter", "Qwen3NextTopKRouter",
           "Qwen3_5MoeTopKRouter", "Qwen3VLMoeTextTopKRouter", "FlexOlmoTopKRouter", "MiniMaxTopKRouter")
MODELS = "Qwen3-MoE, Qwen2-MoE, Qwen3-Next, Qwen3.5-MoE, Qwen3-VL-MoE, Mixtral, OLMoE, FlexOlmo, MiniMax"


def check_kind(model: nn.Module) -> None:
    """Raises ConfigError for what is wrapped around a model in a way that hides it."""
    name = type(model).__name__
    if not hasattr(model, "config"):
        raise ConfigError(f"{name} has no config, so it is no model of transformers, but holds one. Attach that (attach("
                          "wrapper.model, ...)), and pass the loss of the wrapper through attachment.join(loss)")
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise ConfigError(f"{name} puts virtual tokens before the inputs (prompt tuning of peft), so they are not what the "
                          "routers see. Attach model.get_base_model()")


def _versions(module: nn.Module) -> list[nn.Module]:
    """What may run where peft wrapped a module to train it whole (modules_to_save), what runs now first; else nothing.

    The wrapper keeps the original and a copy for each adapter, and runs one of them.
    """
    original, copies = module._modules.get("original_module"), module._modules.get("modules_to_save")
    if original is None or not isinstance(copies, nn.ModuleDict):
        return []
    active = [] if getattr(module, "disable_adapters", False) else list(getattr(module, "active_adapters", ()))
    now = next((copies[name] for name in active if name in copies), original)
    return [now, *(other for other in (original, *copies.values()) if other is not now)]


def find_layers(model: nn.Module) -> list[list[Any]]:
    """The routers of each MoE layer, in layer order: one, or where peft made copies all versions, that which runs now first.
    Raises ConfigError for a model without a known one, or with others beside."""
    others: list[str] = []
    seen: set[nn.Module] = set()

    def layers_of(module: nn.Module, name: str) -> list[list[Any]]:
        if module in seen:
            return []
        seen.add(module)
        kinds = [kind.__name__ for kind in type(module).__mro__]
        if any(kind in ROUTERS for kind in kinds):
            return [[module]]
        if kinds[0].endswith(("Router", "Gate", "Gating")):
            others.append(f"{name} ({kinds[0]})")
        versions = _versions(module)
        if versions:
            return [sum(same, []) for same in zip(*(layers_of(version, name) for version in versions))]
        return [layer for part, child in module.named_children() for layer in layers_of(child, f"{name}.{part}".lstrip("."))]

    layers = layers_of(model, "")
    if not layers or others:
        looks = f"; what looks like a router: {', '.join(others[:3])}" if others else ""
        raise ConfigError(
            f"{type(model).__name__} has {len(layers)} routers that are known here ({', '.join(ROUTERS)}){looks}. Known "
            f"models: {MODELS}. For others call BalanceLoss.through() and record() in the model's router")
    return layers


def find_routers(model: nn.Module) -> list[Any]:
    """The routers of a model in layer order, each the version that runs now. Raises as find_layers()."""
    return [versions[0] for versions in find_layers(model)]


def gives_probs(router: Any) -> bool:
    """Whether a router's first output is probabilities (transformers 5.2), not logits. Tried out, not assumed."""
    weight: Tensor = router.weight
    if weight.is_meta:
        raise ConfigError("the model's weights are on the meta device; attach after they are loaded")
    hidden = torch.linspace(-1.0, 1.0, 3 * weight.shape[1], device=weight.device).reshape(3, -1).to(weight.dtype)
    with torch.no_grad():
        outputs = type(router).forward(router, hidden)
        logits = F.linear(hidden, weight).float()
    if isinstance(outputs, tuple) and len(outputs) == 3 and outputs[0].shape == logits.shape:
        for candidate, is_probs in ((torch.softmax(logits, -1), True), (logits, False)):
            if torch.allclose(outputs[0].float(), candidate, atol=1e-4, rtol=1e-3):
                return is_probs
    raise ConfigError(f"{type(router).__name__} of this transformers does not return (scores, weights, choices) of "
                      "softmax(h W^T); it is newer or older than what this package knows (5.2)")


def _own_coefficient(model: nn.Module) -> float:
    """By which the model would weigh its own balancing loss. It keeps a number of its own, which its config may contradict."""
    kept = [vars(module)["router_aux_loss_coef"] for module in model.modules() if "router_aux_loss_coef" in vars(module)]
    if kept:
        return max(kept, key=abs)
    text = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    return getattr(model.config, "router_aux_loss_coef", getattr(text, "router_aux_loss_coef", 0.0))


def refuse_own_loss(model: nn.Module, output_router_logits: Optional[bool] = None) -> None:
    """Raises ConfigError where the model would add a balancing loss of its own.

    @param output_router_logits  as given to the forward; None: not given, the config tells
    """
    asked = getattr(model.config, "output_router_logits", False) if output_router_logits is None else output_router_logits
    coefficient = _own_coefficient(model) if asked else 0.0
    if coefficient:
        where = "its config asks for it" if output_router_logits is None else "its forward was given output_router_logits=True"
        raise ConfigError(f"the model adds its own balancing loss ({where}, router_aux_loss_coef={coefficient}), so there "
                          "would be two. Set model.config.output_router_logits = False and do not ask a forward for it, or set "
                          "model.router_aux_loss_coef = 0.0, which the model reads instead of its config's. In transformers "
                          "5.2.0 that loss acts 1/E as strongly as its formula: about as coefficient=router_aux_loss_coef * K "
                          "/ E does here, times the micro-batches of a step under the Trainer (docs/losses.md)")


def divides_by_items(model: nn.Module) -> bool:
    """Whether the model's own loss is the sum over num_items_in_batch where that is given. Heads that classify take it and do
    not use it, as do models with pictures: theirs is a mean over the micro-batch. Raises ConfigError for another head."""
    head = next((module for module in model.modules() if hasattr(type(module), "loss_function")), model)
    kinds = [kind.__name__ for kind in type(head).__mro__]
    if not getattr(head, "accepts_loss_kwargs", True) or \
            any(kind.endswith(("ForSequenceClassification", "ForTokenClassification")) for kind in kinds):
        return False
    if any(kind.endswith("ForCausalLM") for kind in kinds):
        return True
    raise ConfigError(f"whether the loss of {type(head).__name__} is divided by num_items_in_batch, which it is given, is not "
                      "known here, so neither is the weight of the balancing loss beside it. If it is a mean over the "
                      "micro-batch, do not give it: trainer.model_accepts_loss_kwargs = False")


def _padding_at_the_end(positions_BS: Tensor, labels: Optional[Tensor]) -> Tensor:
    """Where packed rows are padded, bool [B, S]: by positions 0 at their end that nobody scores, as collators without an
    attention mask do. Raises ConfigError where they may as well be documents of one token."""
    def at_the_end(which_BS: Tensor) -> Tensor:
        return which_BS.flip(1).long().cumprod(1).flip(1).bool()

    zeros_BS = at_the_end(positions_BS == 0)
    if labels is not None and labels.shape == zeros_BS.shape:
        return zeros_BS & at_the_end(labels == -100)
    longest = int(zeros_BS.sum(1).max())
    if longest > 1:
        raise ConfigError(f"position_ids end with {longest} zeros, and there are no labels of every token: whether they are "
                          "padding or documents of one token is not known. Give labels with -100 on padding, or an attention_mask, or "
                          "leave the padding out")
    return torch.zeros_like(zeros_BS)


def segments_of_batch(batch: dict[str, Any]) -> tuple[Tensor, int]:
    """Segments [T] of a model's inputs, -1 for padding, and their number: rows with an attention mask, else packed documents
    where positions begin again, else rows."""
    mask, positions = batch.get("attention_mask"), batch.get("position_ids")
    tokens = batch.get("input_ids") if batch.get("input_ids") is not None else batch.get("inputs_embeds")
    if mask is not None:
        if mask.dim() != 2:
            raise ConfigError(f"attention_mask is {list(mask.shape)}; expected [batch, sequence], 1 for tokens and 0 for "
                              "padding")
        return segments_of_mask(mask).flatten(), mask.shape[0]
    if tokens is None:
        raise ConfigError(f"no input_ids, inputs_embeds or attention_mask among the inputs {sorted(batch)}")
    if positions is not None and positions.dim() == 2:
        positions = positions.expand(tokens.shape[:2])
        padding = _padding_at_the_end(positions, batch.get("labels"))
        begins = positions == 0
        begins[:, 0] = True
        number_T = (begins & ~padding).flatten().cumsum(0)
        return torch.where(padding.flatten(), -1, number_T - 1), int(number_T[-1])
    return segments_of_mask(torch.ones(tokens.shape[:2], dtype=torch.int64, device=tokens.device)).flatten(), tokens.shape[0]
