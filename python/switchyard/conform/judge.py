"""Verdicts, and comparisons that say what broke with numbers."""

import dataclasses

from .protocol import TOLERANCE

HOLDS, FAILS, DOES_NOT_APPLY = "holds", "fails", "does not apply"


@dataclasses.dataclass
class Finding:
    verdict: str
    message: str = ""


class Judge:
    """Keeps the first complaint."""

    def __init__(self, tolerance=TOLERANCE):
        self.message = ""
        self.tolerance = tolerance

    def fail(self, message):
        self.message = self.message or message

    def near(self, given, expected, what):
        if not abs(given - expected) <= self.tolerance * max(1.0, abs(expected)):  # also for NaN
            digits = next((n for n in (4, 6, 9) if f"{given:.{n}g}" != f"{expected:.{n}g}"), 17)
            self.fail(f"{what}: {given:.{digits}g}, expected {expected:.{digits}g}")

    def same(self, given, expected, what):
        difference = (given - expected).abs().max().item() if given.numel() else 0.0
        largest = expected.abs().max().item() if expected.numel() else 0.0
        if difference <= self.tolerance * max(largest, 1e-4):
            return
        square = (expected * expected).sum().item()
        scale = (given * expected).sum().item() / square if square else float("nan")
        self.fail(f"{what}: {scale:.4g} times what it should be (largest difference {difference:.3g} of {largest:.3g})")

    def same_result(self, given, expected, what):
        self.near(given.loss, expected.loss, f"loss of {what}")
        self.same(given.gradient, expected.gradient, f"gradient of {what}")

    def same_share(self, given, whole, shares, what):
        """As same_result, of one of the shares of the whole: the one that is nearest."""
        share = min(shares, key=lambda share: abs(given.loss - share * whole.loss))
        self.near(given.loss, share * whole.loss, f"loss of {what}")
        self.same(given.gradient, share * whole.gradient, f"gradient of {what}")

    def finding(self):
        return Finding(FAILS, self.message) if self.message else Finding(HOLDS)


def does_not_apply(why):
    return Finding(DOES_NOT_APPLY, why)
