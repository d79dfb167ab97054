"""What a load-balancing loss looks like to the suite: one function, called once a micro-batch on every rank.

    def loss(batch: Batch, group: Group, memory: dict) -> torch.Tensor: ...

returns the scalar that this rank adds to its training loss in this micro-batch, coefficient and layers included. The suite calls
backward on it and averages the gradients as `About` declares. `memory` is a dict of the rank that lasts from call to call. A function
that is called so cannot see the micro-batches to come, so the exact optimizer_batch scope cannot be written in this form.

Letters: L MoE layers, T = B * S tokens of the micro-batch (padding included), E experts, K chosen experts per token.
"""

import dataclasses
from typing import Callable, Optional

import torch

PADDING = -1


@dataclasses.dataclass
class Batch:
    """One micro-batch on one rank."""

    logits: Optional[list]  # L of [T, E], double, requiring grad; None only where About.takes_missing is checked (B24)
    choices: Optional[list]  # L of int64 [T, K]: the experts that the router took, for padding too
    mask: torch.Tensor  # int64 [B, S], 1 where the token is valid; padding is in front of a row, behind it, or the whole row
    documents: torch.Tensor  # int64 [B, S]: label of the sequence or packed document, -1 for padding
    num_experts: int
    num_chosen: int
    coefficient: float  # lambda
    step_tokens: int  # valid tokens of the step, over all ranks and micro-batches
    micro_batch: int
    num_micro_batches: int
    training: bool  # False in an evaluation, which also runs under torch.no_grad()


class Group:
    """The ranks of a data-parallel step. The suite simulates them by threads; a real run would wrap a process group."""

    rank = 0
    world_size = 1

    def all_reduce(self, tensor):
        """Adds up over ranks, in place, without gradient; returns its argument. Every rank must call it."""
        return tensor


WORDS = {"scope": ("sequence", "micro_batch", "ranks", "prefix"), "ranks": ("mean", "sum", "tokens"),
         "micro_batches": ("mean", "sum", "tokens"), "layers": ("mean", "sum"), "weighting": ("mean", "tokens", "local"),
         "scores": ("softmax", "sigmoid"), "padding": ("anywhere", "right")}
TOLERANCE = 1e-5  # relative: a loss in fp32 is right
COARSEST = 0.05  # from here on a tolerance would hide bugs


@dataclasses.dataclass(frozen=True)
class About:
    """What a function declares. A wrong declaration makes checks fail, a narrow one makes them not apply, an unknown word is a
    ValueError."""

    scope: str = "micro_batch"  # where f is counted: sequence, micro_batch (of one rank), ranks, or prefix of the step
    ranks: str = "mean"  # what the caller does with the gradients of ranks: mean, sum, or tokens (weighs by valid tokens)
    micro_batches: str = "mean"  # the same for micro-batches; tokens must be declared for both
    layers: str = "mean"  # whether layers are averaged or added ("sum")
    weighting: str = "mean"  # balance groups (sequences or micro-batches) count alike, or by their tokens ("tokens"), or each call
    #                          takes the mean of what it sees, and calls count alike ("local")
    scores: str = "softmax"  # what P is the mean of: softmax, or sigmoids divided by their sum ("sigmoid")
    num_chosen: Optional[int] = None  # the one K that it can do
    takes_ranks: bool = True  # runs on more than one rank
    takes_mask: bool = True  # reads batch.mask
    padding: str = "anywhere"  # where the mask may have padding in a row that has tokens: anywhere, or behind them only ("right")
    packs: bool = False  # its rows may hold several documents, labelled by batch.documents
    takes_choices: bool = False  # reads batch.choices; otherwise the K largest logits are meant
    inside_layers: bool = False  # runs where activation checkpointing runs the layer again
    takes_missing: bool = False  # may be called with logits None, because something outside collects them
    tolerance: float = TOLERANCE  # relative; about 0.02 if it rounds probabilities to bf16
    source: str = ""  # project, commit, file
    end_step: Optional[Callable] = None  # end_step(memory): what the caller does after the optimizer step

    def __post_init__(self):
        if not 0 < self.tolerance <= COARSEST:
            raise ValueError(f"tolerance={self.tolerance!r}; expected above 0, at most {COARSEST:g}")
        if self.num_chosen is not None and self.num_chosen < 1:
            raise ValueError(f"num_chosen={self.num_chosen!r}; expected at least 1, or None for any")
        for name, words in WORDS.items():
            if getattr(self, name) not in words:
                raise ValueError(f"{name}={getattr(self, name)!r}; expected one of {', '.join(words)}")
        if (self.ranks == "tokens") != (self.micro_batches == "tokens"):
            raise ValueError(f"ranks={self.ranks!r}, micro_batches={self.micro_batches!r}; tokens must be declared for both")


def describe(**declared):
    """Decorator: attaches an About to a loss function."""

    def attach(function):
        function.about = About(**declared)
        return function

    return attach


def about(function):
    """What the function declares; the default About for a plain function."""
    return getattr(function, "about", About())
