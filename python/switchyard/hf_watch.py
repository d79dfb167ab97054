"""Around the forwards of a model under a Trainer: seeing each once, and repeating the random numbers of a pre-pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Callable

import torch
from torch import Tensor, nn

from .huggingface import Hook, OuterHook


class Watch:
    """Sees the forwards of a model from outside, each once, also through what the Trainer wrapped around the model
    (DistributedDataParallel, torch.compile) and past it.

    @param before, after  called with (model, args, kwargs) and (model, args, kwargs, outputs), outermost as it was called
    """

    def __init__(self, model: nn.Module, before: Callable[..., None], after: Callable[..., None]):
        self.model, self._depth = model, 0
        self._tell_before, self._tell_after = before, after
        self._handles = self._hang(model, Hook(self._inner_before), Hook(self._inner_after))

    @staticmethod
    def _hang(module: nn.Module, before: Hook, after: Hook) -> list[Any]:
        return [module.register_forward_pre_hook(before, with_kwargs=True, prepend=True),
                module.register_forward_hook(after, with_kwargs=True, always_call=True)]

    def _in_graph(self) -> bool:
        """Whether the model's own hooks are in a compiled region, which must not be broken; around() sees such forwards."""
        return torch.compiler.is_compiling() or self.model._compiled_call_impl is not None

    def _inner_before(self, *call: Any) -> None:
        if not self._in_graph():
            self._before(*call)

    def _inner_after(self, *call: Any) -> None:
        if not self._in_graph():
            self._after(*call)

    def _before(self, *call: Any) -> None:
        self._depth += 1
        if self._depth == 1:
            self._tell_before(*call)

    def _after(self, *call: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._tell_after(*call)

    @contextlib.contextmanager
    def around(self, wrapped: nn.Module) -> Iterator[None]:
        self._depth = 0
        more = wrapped is not self.model or self.model._compiled_call_impl is not None
        handles = self._hang(wrapped, OuterHook(self._before), OuterHook(self._after)) if more else []
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


class RandomStates:
    """What the forwards of a pre-pass began with. Those with gradients begin with it too, whatever drew in between, such as a
    forward for metrics; where something did, its own sequence then goes on as if they had drawn nothing."""

    def __init__(self, device: torch.device):
        self._devices = [device] if device.type == "cuda" else []
        self._states: list[list[Tensor]] = []
        self._outside: list[Tensor] = []

    def _now(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self._devices)]

    def _set(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self._devices, states[1:]):
            torch.cuda.set_rng_state(state, device)

    @contextlib.contextmanager
    def put_back(self) -> Iterator[None]:
        with torch.random.fork_rng(devices=self._devices):
            yield

    def keep(self) -> None:
        self._states.append(self._now())

    def forget(self) -> None:
        self._states, self._outside = [], []

    def enter(self, micro_batch: int) -> None:
        if micro_batch >= len(self._states):
            return
        now = self._now()
        if not all(map(torch.equal, now, self._states[micro_batch])):
            self._outside = now
            self._set(self._states[micro_batch])

    def leave(self) -> None:
        if self._outside:
            self._set(self._outside)
            self._outside = []
