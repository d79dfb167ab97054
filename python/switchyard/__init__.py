"""Load-balancing losses for Mixture-of-Experts models whose counting scope is exact under ranks and accumulation."""

from .balance import BalanceLoss, StepReport, segments_of_mask
from .config import SCOPES, Contract, Scope
from .errors import ConfigError, ShapeError, StateError, SwitchyardError, UsageError
from .frame import Frame
from .huggingface import Attachment, attach
from .ops import ops_path

__all__ = [
    "SCOPES", "Attachment", "BalanceLoss", "ConfigError", "Contract", "Frame", "Scope", "ShapeError", "StateError",
    "StepReport", "SwitchyardError", "UsageError", "attach", "ops_path", "segments_of_mask",
]
