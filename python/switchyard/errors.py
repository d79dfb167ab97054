"""Errors of the package. Each says what was given, what was expected and what to do."""


class SwitchyardError(Exception):
    """Base of all errors raised here."""


class ConfigError(SwitchyardError, ValueError):
    """A setting that does not exist or cannot be had in this place."""


class UsageError(SwitchyardError, ValueError):
    """A call that contradicts the step's plan."""


class ShapeError(SwitchyardError, ValueError):
    """A tensor of another shape or type than expected, or values that cannot be."""


class StateError(SwitchyardError, RuntimeError):
    """A call at the wrong time: before its step, twice with different results, or never."""
