"""What the loss of a micro-batch weighs under a Trainer, from what its compute_loss() does with the model."""

from __future__ import annotations

from typing import Any, Optional

from torch import Tensor


def _comes_from(loss: Tensor, source: Optional[Tensor]) -> bool:
    """Whether `source` is the loss, or a few operations away from it, as in a sum of losses.

    By node and output: DistributedDataParallel and torch.compile give all outputs of a model one node, so the logits have the
    node of the model's loss.
    """
    if source is None or source.grad_fn is None:
        return loss is source
    wanted, places = (source.grad_fn, source.output_nr), [(loss.grad_fn, loss.output_nr)]
    for place in places:  # grows
        if place == wanted:
            return True
        if place[0] is not None and len(places) < 100:
            places += place[0].next_functions
    return False


class SeenForward:
    """What a compute_loss() does with the model, seen while it runs."""

    def __init__(self) -> None:
        self.items_reached = False
        self.loss: Optional[Tensor] = None  # the model's own

    def look(self, kwargs: dict[str, Any], outputs: Any) -> None:
        self.items_reached = kwargs.get("num_items_in_batch") is not None
        if kwargs.get("labels") is not None:
            self.loss = outputs.get("loss") if isinstance(outputs, dict) else outputs[0]


def factor_of(trainer: Any, num_items: Optional[Tensor | int], loss: Tensor, seen: SeenForward,
              num_micro_batches: int) -> float:
    """What turns the weight of a micro-batch's loss into that of the step's: their number where the losses are means."""
    means = float(num_micro_batches)
    if trainer.compute_loss_func is not None:
        return 1.0
    if not trainer.model_accepts_loss_kwargs or num_items is None:
        return means
    if not seen.items_reached and _comes_from(loss, seen.loss):
        return means
    if trainer.label_smoother is None:
        return 1.0
    # A mean over the micro-batch, which the Trainer multiplies by the ranks as if it were a part of the step's.
    by_ranks = trainer.args.average_tokens_across_devices and seen.items_reached
    return means * trainer.accelerator.num_processes if by_ranks else means
