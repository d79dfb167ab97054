"""Balancing for Hugging Face models: `attach(model, ...)` and `attach(trainer, ...)`.

Nothing of the model is replaced. A hook on each router counts its choices and lets the weights of the chosen experts carry the
gradient of the probabilities (Frame.through with a carrier). For transformers 5.2 to 5.x; tested with the pinned version.
"""

from __future__ import annotations

import abc
import inspect
import warnings
import weakref
from collections.abc import Iterator
from typing import Any, Callable, Literal, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from .balance import BalanceLoss, StepReport
from .config import Averaging, Contract, LayerReduction, Scope, Weighting
from .errors import ConfigError, StateError
from .frame import Frame
from .hf_model import check_kind, divides_by_items, find_layers, gives_probs, refuse_own_loss, segments_of_batch
from .hf_model import find_routers as find_routers  # for callers: examples import it from here
from .ops import Path


class Hook:
    """A hook on a module. In a copy of the module (deepcopy, AveragedModel, pickle) it becomes a _CopiedHook: the attachment
    balances the module that it was given, and its copy must not count there."""

    def __init__(self, call: Callable[..., Any]):
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __reduce__(self) -> tuple:
        return _CopiedHook, ()


class OuterHook(Hook):
    """Around the whole model: it begins and closes forwards, and no compiler is to look at it."""

    @torch.compiler.disable
    def __call__(self, *args: Any) -> Any:
        return self._call(*args)


class _CopiedHook:
    def __call__(self, module: nn.Module, *args: Any) -> None:
        if module.training and torch.is_grad_enabled():
            raise StateError("this model is a copy of one that was attached, or has a router that is, as peft makes one of "
                             "modules_to_save, so no balancing loss acts on it: attach() the copy too, or detach() before "
                             "copying; with peft detach(), and attach() after get_peft_model()")


def _forget_copied_hooks(model: nn.Module) -> None:
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(hook, _CopiedHook)]:
                del hooks[key]


def _let_compilers_see_hooks() -> None:
    """Once in a process: unless told to, torch.compile takes a graph of a class of models for each of them, whether or not it
    was compiled with hooks, so that of a model that is not attached would run in place of the attached one's."""
    config = torch._dynamo.config
    if getattr(config, "skip_nnmodule_hook_guards", False):
        config.skip_nnmodule_hook_guards = False
        torch._dynamo.reset()  # the graphs that were made so


class Attachment(abc.ABC):
    """What attach() returns. `loss` is the BalanceLoss behind it, `last_report` the values of the last finished step."""

    def __init__(self, model: nn.Module, *, scope: str, coefficient: float, contract: Contract, z_coefficient: float,
                 weighting: Weighting, layers: LayerReduction, process_group: Optional[Any], ops: Path,
                 on_recount: Literal["error", "report"]):
        self.model = model
        versions_L = find_layers(model)
        check_kind(model)
        routers = [versions[0] for versions in versions_L]
        refuse_own_loss(model)
        devices = {router.weight.device for router in routers}
        if len(devices) != 1:
            raise ConfigError(f"the routers are on {len(devices)} devices; expected one")
        self.loss = BalanceLoss(num_experts=routers[0].weight.shape[0], num_layers=len(routers), scope=scope,
                                coefficient=coefficient, contract=contract, z_coefficient=z_coefficient,
                                weighting=weighting, layers=layers, process_group=process_group, device=devices.pop(),
                                ops=ops, on_recount=on_recount)
        self.last_report: Optional[StepReport] = None
        self._versions_L = versions_L
        _forget_copied_hooks(model)
        _let_compilers_see_hooks()
        self._handles = [router.register_forward_hook(Hook(self._router_hook(layer, gives_probs(router))))
                         for layer, versions in enumerate(versions_L) for router in versions]

    def _router_hook(self, layer: int, gives_probs: bool):
        def hook(router: Any, inputs: tuple, outputs: tuple) -> Optional[tuple]:
            frame = self.loss.frame
            if not router.training:
                return None
            if frame is None:
                if torch.is_grad_enabled():
                    raise StateError(f"the router of MoE layer {layer} ran with gradients, but in no forward of the step, so "
                                     "the balancing loss could not act. Train through the model that was attached (or its "
                                     "Trainer), not through a part of it or beside its steps; for a forward that trains nothing use "
                                     "torch.no_grad(); detach() ends the balancing")
                return None
            scores_TE, weights_TK, ids_TK = outputs
            probs_TE = scores_TE if gives_probs else torch.softmax(scores_TE.float(), -1)
            carried_TK = frame.through(layer, probs_TE, carrier=weights_TK)
            if frame.config.z_coefficient > 0.0:
                hidden_TD = inputs[0].reshape(-1, router.weight.shape[1])
                carried_TK = frame.through_logits(layer, F.linear(hidden_TD, router.weight).float(), carrier=carried_TK)
            frame.record(layer, ids_TK, probs_TE)
            return scores_TE, carried_TK, ids_TK

        return hook

    def check_model(self) -> None:
        """Before a forward that trains. Raises StateError where the model was moved, or a layer of it does not train."""
        for layer, versions in enumerate(self._versions_L):
            if not any(router.training for router in versions):
                raise StateError(f"the router of MoE layer {layer} is in eval mode while the model trains, so its choices would "
                                 "not be counted nor balanced. Call its train(); a layer is frozen by requires_grad_(False), not "
                                 "by eval()")
        device = self._versions_L[0][0].weight.device
        if device.type != self.loss.device.type:
            raise StateError(f"the model is on {device}, but was on {self.loss.device} when it was attached; attach after "
                             "moving it")

    def end_step(self) -> Optional[StepReport]:
        """Ends the step, if one is open; done by itself after the optimizer's step."""
        if self.loss.in_step:
            self.last_report = self.loss.close_step()
        return self.last_report

    def detach(self) -> None:
        """Takes all hooks off again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def join(self, loss: Tensor) -> Tensor:
        """For a loss computed outside the model: the gradient that arrives there scales the balancing gradient."""
        return self._join(loss, 1.0)

    def _join(self, loss: Tensor, factor: float) -> Tensor:
        frame = self.loss.frame
        return self.loss.join(loss, factor) if frame is None else self._join_to(frame, loss, factor)

    def _join_to(self, frame: Frame, loss: Tensor, factor: float) -> Tensor:
        joined = frame.join(loss, factor)
        if joined.requires_grad:
            self._go_back_to(frame, joined)
        return joined

    def _go_back_to(self, frame: Frame, tensor: Tensor) -> None:
        """Layers that run again in backward need the frame of their forward; other forwards may have come since."""
        tensor.register_hook(lambda _: setattr(self.loss, "frame", frame))


class ModelAttachment(Attachment):
    """A model alone: its forwards are seen one by one, the step ends when an optimizer that holds its weights has stepped."""

    def __init__(self, model: nn.Module, **settings: Any):
        super().__init__(model, **settings)
        self.loss.config.check_open()
        self._forward_names = list(inspect.signature(model.forward).parameters)
        self._stepped_aside: set[int] = set()  # numbers of forwards after which only optimizers of other weights stepped
        self._handles += [model.register_forward_pre_hook(OuterHook(self._before), with_kwargs=True),
                          model.register_forward_hook(OuterHook(self._after), with_kwargs=True),
                          register_optimizer_step_post_hook(_forget_dead(weakref.WeakMethod(self._after_optimizer)))]

    def _arguments(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {**dict(zip(self._forward_names, args)), **kwargs}

    def _before(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if not (model.training and torch.is_grad_enabled()):
            self.loss.frame = None
            return
        batch = self._arguments(args, kwargs)
        refuse_own_loss(model, batch.get("output_router_logits"))
        self.check_model()
        self.loss.discard_failed()
        if not self.loss.in_step:
            self.loss.begin_step()
        segments_T, num_segments = segments_of_batch(batch)
        labels, items = batch.get("labels"), batch.get("num_items_in_batch")
        by_items = items is not None and labels is not None and divides_by_items(model)
        share = labels.ne(-100).sum() / items if by_items else None
        frame = self.loss.begin_forward(segments_T.to(self.loss.device), num_segments=num_segments, share=share)
        frame.scale_1.data.fill_(float("nan"))  # until a loss that was joined is differentiated

    def _after(self, model: nn.Module, args: tuple, kwargs: dict[str, Any], outputs: Any) -> Any:
        if self.loss.frame is None:
            return outputs
        self.loss.close_forward()
        self._mark(outputs, self.loss.frame)
        value = outputs[0] if isinstance(outputs, tuple) else outputs.get("loss")
        if self._arguments(args, kwargs).get("labels") is None or value is None:
            return outputs  # the caller joins
        if isinstance(outputs, tuple):
            return (self._join(value, 1.0), *outputs[1:])
        outputs["loss"] = self._join(value, 1.0)
        return outputs

    def _mark(self, outputs: Any, frame: Frame) -> None:
        """So join() finds the forwards that a loss comes from. Nothing here keeps their graphs alive."""
        for tensor in _tensors_of(outputs):
            if tensor.grad_fn is not None:
                tensor.grad_fn.metadata[self] = frame
                self._go_back_to(frame, tensor)

    @torch.compiler.disable
    def join(self, loss: Tensor) -> Tensor:
        frames = self._forwards_behind(loss)
        if not frames:
            return super().join(loss)
        for frame in frames:
            loss = self._join_to(frame, loss, 1.0)
        return loss

    def _forwards_behind(self, loss: Tensor) -> list[Frame]:
        """Walks the graph from a loss back to what forwards returned, and no further."""
        found: dict[Frame, None] = {}
        seen, waiting = set(), [loss.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            frame = node.metadata.get(self)
            if frame is None:
                waiting.extend(earlier for earlier, _ in node.next_functions)
            else:
                found[frame] = None
        return list(found)

    def end_step(self) -> Optional[StepReport]:
        self.loss.discard_failed()
        return super().end_step()

    def _after_optimizer(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict[str, Any]) -> None:
        own = {id(weight) for weight in self.model.parameters()}  # now: adapters may have come after attaching
        if any(id(weight) in own for group in optimizer.param_groups for weight in group["params"]):
            self.end_step()
        elif self.loss.in_step and self.last_report is None:
            self._warn_of_endless_step()

    def _warn_of_endless_step(self) -> None:
        """Not an error: under accumulation another model's optimizer may step while this step is open."""
        forwards = self.loss.num_forwards
        if forwards in self._stepped_aside:
            return
        self._stepped_aside.add(forwards)
        if len(self._stepped_aside) == 3:
            warnings.warn(f"{forwards} forwards of the attached model are in one step; optimizers stepped meanwhile, but none "
                          "that holds parameters of the model, which would end the step. If it is trained by copies of its "
                          "parameters, call end_step() of the attachment after each optimizer step", stacklevel=2)


def _tensors_of(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, (dict, tuple, list)):
        for part in outputs.values() if isinstance(outputs, dict) else outputs:
            yield from _tensors_of(part)


def _forget_dead(method: weakref.WeakMethod) -> Any:
    """That hook is global: it must not keep a model alive."""
    def hook(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict[str, Any]) -> None:
        alive = method()
        if alive is not None:
            alive(optimizer, args, kwargs)

    return hook


def attach(target: Any, *, scope: str, coefficient: float, z_coefficient: float = 0.0, weighting: Weighting = "tokens",
           layers: LayerReduction = "mean", ranks: Averaging = "mean", process_group: Optional[Any] = None, ops: Path = "auto",
           on_recount: Literal["error", "report"] = "error") -> Attachment:
    """Balances a Hugging Face MoE model, given alone or with its Trainer.

    @param target  a model: every scope that needs nothing ahead. Its balancing loss is averaged over micro-batches as its own
                   loss is, whoever divides or scales that. Or a Trainer, before train(): every scope. `optimizer_batch`
                   and sequences(n) then run a pre-pass without gradients over the batches that the Trainer fetches for a
                   step.
    @param ranks   what is done with gradients over ranks; DistributedDataParallel: "mean"
    The other parameters are those of BalanceLoss.
    Raises ConfigError for an unknown model, a scope that a bare model cannot see, a model that adds a balancing loss of its
    own.
    """
    settings = dict(scope=scope, coefficient=coefficient, z_coefficient=z_coefficient, weighting=weighting, layers=layers,
                    process_group=process_group, ops=ops, on_recount=on_recount)
    if isinstance(target, nn.Module):
        model = target.module if isinstance(target, nn.parallel.DistributedDataParallel) else target
        kind = Scope.parse(scope)
        if kind.kind == "optimizer_batch" or kind.num_sequences > 1:
            raise ConfigError(f"scope '{scope}' counts over forwards that have not run yet; a bare model cannot see them. "
                              "Attach to the Trainer (switchyard.attach(trainer, ...)), use BalanceLoss in your own loop, or a "
                              "scope that needs nothing ahead: prefix, ranks, micro_batch, sequence, previous_step, "
                              "ema(decay)")
        return ModelAttachment(model, contract=Contract(weighting, ranks), **settings)
    if hasattr(target, "get_batch_samples") and hasattr(target, "training_step"):
        from .hf_trainer import TrainerAttachment

        return TrainerAttachment(target, contract=Contract("sum", ranks), **settings)
    raise ConfigError(f"attach() takes a model or a transformers Trainer, not a {type(target).__name__}")
