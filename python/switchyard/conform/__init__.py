"""Checks a load-balancing loss, written in Python by anybody, against the invariants of `switchyard conform`.

    python -m switchyard.conform package.module:function

Pure Python and torch; nothing compiled. `protocol` says what the function is given, `adapters` has examples.
"""

from .checks import CHECKS, run_check, run_checks
from .judge import DOES_NOT_APPLY, FAILS, HOLDS, Finding
from .protocol import About, Batch, Group, describe

__all__ = ["About", "Batch", "CHECKS", "DOES_NOT_APPLY", "FAILS", "Finding", "Group", "HOLDS", "describe", "run_check", "run_checks"]
