"""The Trainer of transformers: it fetches all batches of an optimizer step before the first forward, so every scope works."""

from __future__ import annotations

import pathlib
from typing import Any, Optional

import torch
from torch import Tensor
from transformers import TrainerCallback

from .errors import ConfigError, StateError
from .frame import tokens_of_segments
from .huggingface import Attachment, refuse_own_loss, segments_of_batch

STATE_FILE = "switchyard_balance.pt"


def _check_trainer(trainer: Any) -> None:
    """Raises ConfigError for ways of training whose gradients are not known here to be averaged as the contract says."""
    from accelerate.utils import DistributedType

    kind = trainer.accelerator.distributed_type
    if kind not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise ConfigError(f"a Trainer that runs as {kind} is not supported; one process or DistributedDataParallel is")
    if trainer.args.n_gpu > 1:
        raise ConfigError(f"{trainer.args.n_gpu} devices in one process (DataParallel) are not supported; start with torchrun")
    if getattr(trainer.accelerator, "parallelism_config", None) is not None:
        raise ConfigError("context, tensor and sequence parallelism of the Trainer are not supported")


class TrainerAttachment(Attachment):
    """Wraps three methods of one Trainer object.

    The balancing loss is added to the objective whose main part is the Trainer's loss of the whole step: the token mean where
    the Trainer divides by num_items_in_batch, else the mean over micro-batches. Whatever scales the loss after compute_loss()
    (division by the number of micro-batches, a GradScaler) scales both.
    """

    def __init__(self, trainer: Any, **settings: Any):
        _check_trainer(trainer)
        super().__init__(trainer.accelerator.unwrap_model(trainer.model), **settings)
        self.trainer = trainer
        self.prepass_forwards = 0
        self._num_micro_batches = 0
        self._next = 0
        self._in_training_step = False
        self._get_batch_samples, trainer.get_batch_samples = trainer.get_batch_samples, self._fetch
        self._training_step, trainer.training_step = trainer.training_step, self._step
        self._compute_loss, trainer.compute_loss = trainer.compute_loss, self._loss
        self._callback = _Callback(self)
        trainer.add_callback(self._callback)

    def detach(self) -> None:
        super().detach()
        self.trainer.get_batch_samples = self._get_batch_samples
        self.trainer.training_step = self._training_step
        self.trainer.compute_loss = self._compute_loss
        self.trainer.remove_callback(self._callback)

    def save(self, folder: str | pathlib.Path) -> None:
        torch.save(self.loss.state_dict(), pathlib.Path(folder) / STATE_FILE)

    def load(self, folder: str | pathlib.Path) -> None:
        self.loss.load_state_dict(torch.load(pathlib.Path(folder) / STATE_FILE, weights_only=True))

    def _fetch(self, *args: Any, **kwargs: Any) -> Any:
        batches, num_items = self._get_batch_samples(*args, **kwargs)
        self.end_step()  # where the Trainer skipped the optimizer's step
        if not batches:
            return batches, num_items
        refuse_own_loss(self.model.config)
        self.check_device()
        tokens = [tokens_of_segments(*segments_of_batch(batch)) for batch in batches]
        flat = iter(torch.cat(tokens).tolist())  # the one wait for the device
        self.loss.begin_step([[next(flat) for _ in tokens_S] for tokens_S in tokens])
        self._num_micro_batches, self._next = len(batches), 0
        if self.loss.needs_whole_step:
            self._count_ahead(batches)
        return batches, num_items

    def _begin(self, inputs: dict[str, Any], micro_batch: int) -> None:
        segments_T, num_segments = segments_of_batch(inputs)
        self.loss.begin_forward(segments_T.to(self.loss.device), micro_batch=micro_batch, num_segments=num_segments)

    def _count_ahead(self, batches: list[dict[str, Any]]) -> None:
        """The pre-pass. Random states are put back, so dropout repeats in the forwards with gradients."""
        model = self.trainer.model_wrapped
        model.train()
        devices = [self.loss.device] if self.loss.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad(), self.trainer.compute_loss_context_manager():
            for micro_batch, batch in enumerate(batches):
                self._begin(batch, micro_batch)
                inputs = {name: value for name, value in batch.items() if name != "labels"}
                model(**self.trainer._prepare_inputs(inputs), logits_to_keep=1, use_cache=False)
                self.loss.close_forward()
                self.prepass_forwards += 1
        self.loss.close_counting()
        self.loss.frame = None

    def _step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        if not self.loss.in_step or self._next >= self._num_micro_batches:
            raise StateError("training_step() for a batch that get_batch_samples() did not return; balancing needs the batches "
                             "of a step as the Trainer fetches them")
        self._begin(inputs, self._next)
        self._next += 1
        self._in_training_step = True
        try:
            return self._training_step(model, inputs, *args, **kwargs)
        finally:
            self._in_training_step = False

    def _loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False,
              num_items_in_batch: Optional[Tensor | int] = None) -> Any:
        result = self._compute_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
        if not self._in_training_step:
            return result
        self.loss.close_forward()
        value = result[0] if return_outputs else result
        joined = self._join(value, self._factor(num_items_in_batch))
        return (joined, result[1]) if return_outputs else joined

    def _factor(self, num_items: Optional[Tensor | int]) -> float:
        """What turns the weight of a micro-batch's loss into that of the step's: their number where the losses are means."""
        means = not self.trainer.model_accepts_loss_kwargs or num_items is None
        return float(self._num_micro_batches) if means and self.trainer.compute_loss_func is None else 1.0


class _Callback(TrainerCallback):
    def __init__(self, attachment: TrainerAttachment):
        self._attachment = attachment

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._attachment.end_step()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._attachment.save(pathlib.Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        attachment = self._attachment
        attachment.loss.abandon_step()
        if state.global_step == 0 or attachment.loss.step_number == state.global_step:
            return
        folder = pathlib.Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if (folder / STATE_FILE).exists():
            attachment.load(folder)
        elif attachment.loss.config.scope.from_earlier_steps:
            raise StateError(f"training resumes at step {state.global_step}, but {folder / STATE_FILE} is not there, and the "
                             f"scope '{attachment.loss.config.scope}' needs the counts of earlier steps. Call load() of the "
                             "attachment with the folder of the checkpoint")
        else:  # nothing else of the state is read, and ranks that see the file and ranks that do not must be at one step
            attachment.loss.step_number = state.global_step
