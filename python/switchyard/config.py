"""What balancing is asked for: scope, weighting, and what the caller does with the gradients."""

from __future__ import annotations

import dataclasses
import difflib
import numbers
import re
from typing import Literal

from .errors import ConfigError

SCOPES = {
    "sequence": "each sequence (each packed document) by itself",
    "sequences(n)": "n consecutive sequences of the step",
    "micro_batch": "the tokens of one micro-batch on one rank",
    "ranks": "the same micro-batch on every rank",
    "prefix": "all ranks, micro-batches 1..m of this step; depends on their order",
    "optimizer_batch": "all ranks and all micro-batches of the step, exactly",
    "previous_step": "the whole previous step; the first step has no balancing loss",
    "ema(decay)": "exponential mean of the expert fractions over the steps before this one",
}

Averaging = Literal["sum", "mean", "tokens"]
Weighting = Literal["tokens", "mean"]
LayerReduction = Literal["mean", "sum"]


def _is_number(value: object, kind: type) -> bool:
    """True and False are numbers to Python, and a slip here."""
    return isinstance(value, kind) and not isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class Scope:
    """Over which tokens experts are counted. `kind` is the spelling in SCOPES without its parameter."""

    kind: str
    num_sequences: int = 0
    decay: float = 0.0

    @staticmethod
    def parse(text: str) -> Scope:
        """Raises ConfigError that lists the scopes and the nearest one."""
        if not isinstance(text, str):
            raise ConfigError(f"scope={text!r}; expected one of the texts {', '.join(SCOPES)}")
        match = re.fullmatch(r"(\w+)(?:\(([^()]*)\))?", text)
        name, argument = match.groups() if match else (text, None)
        spellings = {spelling.split("(")[0]: spelling for spelling in SCOPES}
        if name not in spellings:
            near = difflib.get_close_matches(str(name), spellings, n=1)
            hint = f" (did you mean '{spellings[near[0]]}'?)" if near else ""
            raise ConfigError(f"unknown scope '{text}'{hint}; known: {', '.join(SCOPES)}")
        if name == "sequences":
            if argument is None or not argument.strip().isdigit() or int(argument) < 1:
                raise ConfigError(f"scope '{text}': expected sequences(n), n a whole number of sequences, at least 1")
            return Scope(name, num_sequences=int(argument))
        if name == "ema":
            try:
                decay = float(argument or "")
            except ValueError:
                decay = 0.0
            if not 0.0 < decay < 1.0:
                raise ConfigError(f"scope '{text}': expected ema(decay), 0 < decay < 1")
            return Scope(name, decay=decay)
        if argument is not None:
            raise ConfigError(f"scope '{text}': {name} takes no parameter")
        return Scope(name)

    def __str__(self) -> str:
        parameter = {"sequences": f"({self.num_sequences})", "ema": f"({self.decay})"}
        return self.kind + parameter.get(self.kind, "")

    @property
    def from_earlier_steps(self) -> bool:
        return self.kind in ("previous_step", "ema")


@dataclasses.dataclass(frozen=True)
class Contract:
    """What the caller does with the gradients of micro-batches and ranks. Declared, never guessed.

    "sum": adds them up. "mean": divides the sum by their number. "tokens": weighs a micro-batch by its valid tokens over
    those of the step on this rank, a rank by its valid tokens of the step over those of all ranks.

    It is about gradients, not losses: `(loss / M).backward()` divides only what comes from the loss, so the micro-batches are
    a "sum"; but with `loss = balance.join(loss)` the balancing gradient is scaled like the loss and they are a "mean".
    """

    micro_batches: Averaging
    ranks: Averaging

    def __post_init__(self) -> None:
        for name in ("micro_batches", "ranks"):
            if getattr(self, name) not in ("sum", "mean", "tokens"):
                raise ConfigError(f"contract: {name}={getattr(self, name)!r}; expected 'sum', 'mean' or 'tokens'")


@dataclasses.dataclass(frozen=True)
class BalanceConfig:
    """Checked settings of a BalanceLoss; its arguments of the same names are explained there."""

    num_experts: int
    num_layers: int
    scope: Scope
    coefficient: float
    z_coefficient: float
    weighting: Weighting
    layers: LayerReduction
    contract: Contract

    def __post_init__(self) -> None:
        for name in ("num_experts", "num_layers"):
            value = getattr(self, name)
            if not _is_number(value, numbers.Integral) or value < 1:
                raise ConfigError(f"{name}={value!r}; expected a whole number, 1 or more")
        for name in ("coefficient", "z_coefficient"):
            value = getattr(self, name)
            if not _is_number(value, numbers.Real) or not 0.0 <= value < float("inf"):
                raise ConfigError(f"{name}={value!r}; expected a finite number, 0 or more")
        if not isinstance(self.contract, Contract):
            raise ConfigError(f"contract={self.contract!r}; expected a Contract such as "
                              "Contract(micro_batches='mean', ranks='mean')")
        if self.weighting not in ("tokens", "mean"):
            raise ConfigError(f"weighting='{self.weighting}'; expected 'tokens' or 'mean'")
        if self.layers not in ("mean", "sum"):
            raise ConfigError(f"layers='{self.layers}'; expected 'mean' or 'sum'")

    def per_layer(self, coefficient: float) -> float:
        return coefficient / self.num_layers if self.layers == "mean" else coefficient

    def check_open(self) -> None:
        """Raises ConfigError unless a step can run without a plan: nothing needed that only a plan tells."""
        if self.scope.kind == "optimizer_batch" or (self.scope.kind == "sequences" and self.scope.num_sequences > 1):
            raise ConfigError(
                f"scope '{self.scope}' counts over forwards that have not run yet, so the step must be known ahead: give "
                "begin_step() the valid tokens of its micro-batches, or attach() to the Trainer instead of the model")
        if self.contract.micro_batches != self.weighting:
            raise ConfigError(
                f"weighting='{self.weighting}' with the contract micro_batches='{self.contract.micro_batches}' needs the "
                "number of micro-batches and tokens of the step ahead: give them to begin_step(), or use the same word for "
                "both ('mean' or 'tokens'), which cancel")
        if self.contract.micro_batches == "mean" and self.contract.ranks == "tokens":
            raise ConfigError(
                "the contract micro_batches='mean', ranks='tokens' weighs a rank by its tokens of the whole step, which only a "
                "plan tells: give begin_step() the valid tokens of the micro-batches, or attach() to the Trainer")
