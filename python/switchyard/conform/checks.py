"""The table of checks. Names are those of `switchyard conform`; so are the bugs behind them."""

import pathlib
import traceback

import torch

from .checks_scale import accumulation, coefficient, contract, denominators, dense_oracle, enters_once, rank_scale
from .checks_steps import buffer, collectives, evaluation, exact_counts, never_silent, new_denominators, order, recompute
from .checks_tokens import (every_choice, layers_apart, no_certificate, normalised_scores, own_length, packing, padding,
                            used_choices)
from .judge import FAILS, Finding, does_not_apply


def absent(why):
    return lambda function: does_not_apply(why)


CHECKS = [
    ("B1", "rank-scale", rank_scale),
    ("B1", "dense-oracle", dense_oracle),
    ("B2", "denominators", denominators),
    ("B3", "contract", contract),
    ("B4", "accumulation", accumulation),
    ("B5", "coefficient", coefficient),
    ("B6", "enters-once", enters_once),
    ("B7", "recompute", recompute),
    ("B8", "used-choices", used_choices),
    ("B9", "padding", padding),
    ("B10", "packing", packing),
    ("B11", "own-length", own_length),
    ("B12", "capacity", absent("it never sees which slots were dropped")),
    ("B13", "every-choice", every_choice),
    ("B14", "layers-apart", layers_apart),
    ("B15", "normalised-scores", normalised_scores),
    ("B16", "no-certificate", no_certificate),
    ("B17", "collectives", collectives),
    ("B18", "stages", absent("a function sees one stage; there is no pipeline here")),
    ("B18", "schedules", absent("there are no pipeline schedules here to run it under")),
    ("B19", "layouts", absent("a function sees one group of ranks; there are no layouts to declare")),
    ("B20", "new-denominators", new_denominators),
    ("B20", "captured-graphs", absent("nothing is captured and replayed here (no CUDA graphs)")),
    ("B21", "buffer", buffer),
    ("B22", "saved-state", absent("a loss function has no state that is saved")),
    ("B22", "saved-progress", absent("a loss function has no state that is saved")),
    ("B23", "evaluation", evaluation),
    ("B24", "never-silent", never_silent),
    ("B25", "multi-token-prediction", absent("there is no multi-token prediction here")),
    ("B26", "metric-scope", absent("it returns a loss only; counts and metrics cannot be seen")),
    ("B27", "order", order),
    ("B28", "exact-counts", exact_counts),
]


def place_of(error):
    """" (file.py:12)", the last line of the function's own files that the error passed; "" where it passed none."""
    ours, torchs = pathlib.Path(__file__).parent, pathlib.Path(torch.__file__).parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = pathlib.Path(frame.filename)
        if path.parent != ours and torchs not in path.parents and path.suffix == ".py":
            return f" ({path.name}:{frame.lineno})"
    return ""


def run_check(function, check):
    """A Finding; whatever the function raises, sys.exit() too, is a failure with its text and place."""
    try:
        return check(function)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return Finding(FAILS, f"{type(error).__name__}: {error}{place_of(error)}")


def run_checks(function, only=None):
    """(id, name, Finding) of each check, or of those with the id `only`."""
    return [(id_, name, run_check(function, check)) for id_, name, check in CHECKS if only in (None, id_)]
