"""The operations that count experts and add gradients: compiled ones for the CPU, and the same in plain PyTorch calls.

Shapes: L layers, S segments of a forward, P = S + 1 (the last row is zero, for padding), E experts, K choices, T tokens.
Which path runs: `select_ops`, and `ops_path` tells.
"""

from __future__ import annotations

import importlib.util
import pathlib
from typing import Any, Literal

import torch

from . import composite
from .errors import ConfigError

# Columns of state_LX, int64. csrc/ops.cpp has the same numbers.
RUNS, DIFFERENCES, PASSED_PROBS, PASSED_LOGITS, BAD_PROBS, BAD_IDS, NUM_STATES = range(7)

Path = Literal["auto", "compiled", "composite"]


def _load_compiled() -> str:
    """Loads the compiled operations. Returns why not, or nothing."""
    library = pathlib.Path(__file__).with_name("_ops.so")
    if importlib.util.find_spec(f"{__package__}._built") is None or not library.exists():
        return "the package was not built (pip install --no-build-isolation .)"
    from . import _built  # type: ignore[attr-defined]

    if torch.__version__ != _built.TORCH_VERSION:
        return f"it was built for torch {_built.TORCH_VERSION}, this is {torch.__version__}"
    torch.ops.load_library(str(library))
    return ""


_why_not_compiled = _load_compiled()


def choose_ops(path: Path, device: torch.device) -> Any:
    """The namespace of operations for tensors of `device`.

    "auto" takes the compiled ones on the CPU where they were built for this torch, else the composite ones.
    Raises ConfigError where "compiled" cannot be had.
    """
    if path not in ("auto", "compiled", "composite"):
        raise ConfigError(f"ops='{path}'; expected auto, compiled or composite")
    reason = _why_not_compiled or (f"it has no kernels for {device.type}" if device.type != "cpu" else "")
    if path == "compiled" and reason:
        raise ConfigError(f"the compiled operations cannot be used: {reason}. Use ops='auto' or ops='composite'")
    return composite.OPS if path == "composite" or reason else torch.ops.switchyard


def ops_path(device: torch.device | str = "cpu") -> str:
    """Which path "auto" takes on a device, and why: "compiled", or "composite: <reason>"."""
    kind = torch.device(device).type
    if _why_not_compiled:
        return f"composite: {_why_not_compiled}"
    return "compiled" if kind == "cpu" else f"composite: it has no kernels for {kind}"
