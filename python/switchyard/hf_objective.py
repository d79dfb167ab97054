"""What the loss of a micro-batch weighs under a Trainer, from what its compute_loss() does with the model."""

from __future__ import annotations

from typing import Any, Optional

from torch import Tensor, nn

from .errors import ConfigError, StateError
from .hf_model import divides_by_items


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
        self.number = 0  # of forwards with gradients
        self.items_reached = False
        self.loss: Optional[Tensor] = None  # the model's own

    def begin(self) -> None:
        self.number += 1
        if self.number > 1:
            raise StateError("compute_loss() ran the model twice with gradients. Under a Trainer the balancing loss of a "
                             "micro-batch acts in one forward, and would act in each. Use attach(model) in place of attach(trainer), and "
                             "return attachment.join(loss) from compute_loss(); or run both in one forward, as one batch")

    def look(self, kwargs: dict[str, Any], outputs: Any) -> None:
        self.items_reached = kwargs.get("num_items_in_batch") is not None
        if kwargs.get("labels") is not None:
            self.loss = outputs.get("loss") if isinstance(outputs, dict) else outputs[0]


def _refuse_unknown_smoothing(trainer: Any) -> None:
    """A compute_loss() that smooths labels outside of the model: what else it does with the mean does not show in the graph."""
    kind = getattr(trainer.args, "loss_type", "nll")
    if kind != "nll":
        raise ConfigError(f"label_smoothing_factor with loss_type='{kind}' of the {type(trainer).__name__}: whether it smooths "
                          "is not known here. Set label_smoothing_factor=0")
    if trainer.args.average_tokens_across_devices and trainer.accelerator.num_processes > 1:
        raise ConfigError(f"label_smoothing_factor with the compute_loss() of {type(trainer).__name__} on "
                          f"{trainer.accelerator.num_processes} ranks: whether it multiplies its mean by the ranks, as that of "
                          "the Trainer does with average_tokens_across_devices, is not known here. Set "
                          "average_tokens_across_devices=False")


def factor_of(trainer: Any, model: nn.Module, num_items: Optional[Tensor | int], loss: Tensor, seen: SeenForward,
              num_micro_batches: int) -> float:
    """What turns the weight of a micro-batch's loss into that of the step's: their number where the losses are means."""
    means = float(num_micro_batches)
    # Told of the items, the Trainer multiplies by the ranks also what is a mean over the micro-batch.
    means_by_ranks = means * (trainer.accelerator.num_processes if trainer.args.average_tokens_across_devices else 1)
    by_items = trainer.model_accepts_loss_kwargs and num_items is not None
    if trainer.compute_loss_func is not None and num_items is not None:
        return 1.0 if by_items else means_by_ranks
    if not by_items:
        return means
    is_models = _comes_from(loss, seen.loss)
    if is_models and not seen.items_reached:
        return means
    if trainer.label_smoother is not None:
        if not seen.items_reached:
            _refuse_unknown_smoothing(trainer)
        return means_by_ranks if seen.items_reached else means
    return means_by_ranks if is_models and not divides_by_items(model) else 1.0
