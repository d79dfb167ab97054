"""The Trainer of transformers: it fetches all batches of an optimizer step before the first forward, so every scope works."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Mapping
from typing import Any, Optional

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from .errors import ConfigError, StateError
from .frame import Frame, tokens_of_segments
from .hf_model import refuse_own_loss, segments_of_batch
from .hf_objective import SeenForward, factor_of
from .hf_watch import RandomStates, Watch
from .huggingface import Attachment

STATE_FILE = "switchyard_balance.pt"  # of the first attachment, also in older checkpoints; others have their number in it


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


def _is_compiled(model: nn.Module) -> bool:
    return any(isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None
               for module in model.modules())


def _refuse_trainers_own_loss(trainer: Any) -> None:
    """Raises ConfigError for a Trainer that adds the model's balancing loss itself, as those of trl do, whatever the model's
    config says."""
    coefficient = getattr(trainer, "router_aux_loss_coef", 0.0)
    if coefficient or getattr(trainer, "aux_loss_enabled", False):
        raise ConfigError(f"the {type(trainer).__name__} adds the model's own balancing loss (router_aux_loss_coef="
                          f"{coefficient}), so there would be two. Give its arguments router_aux_loss_coef=0.0, as in "
                          "SFTConfig(router_aux_loss_coef=0.0) or DPOConfig(router_aux_loss_coef=0.0)")


class TrainerAttachment(Attachment):
    """One balancing loss under a Trainer; `_Hub` runs the steps of all that are attached to it.

    The balancing loss is added to the objective whose main part is the Trainer's loss of the whole step: the token mean where
    the loss is divided by num_items_in_batch, else the mean over micro-batches. Whatever scales the loss after compute_loss()
    (division by the number of micro-batches, a GradScaler) scales both.
    """

    def __init__(self, trainer: Any, **settings: Any):
        _check_trainer(trainer)
        _refuse_trainers_own_loss(trainer)
        super().__init__(trainer.accelerator.unwrap_model(trainer.model), **settings)
        self.trainer = trainer
        self.prepass_forwards = 0
        self._has_trained = False  # since its state was loaded, or is that of a beginning
        self.number = 0  # among those of the Trainer
        self._hub = getattr(trainer, "_switchyard_hub", None) or _Hub(trainer)
        self._hub.add(self)

    def detach(self) -> None:
        super().detach()
        self._hub.remove(self)

    def _file(self, folder: str | pathlib.Path) -> pathlib.Path:
        name = pathlib.Path(STATE_FILE)
        return pathlib.Path(folder) / (name.name if self.number == 0 else f"{name.stem}_{self.number + 1}{name.suffix}")

    def save(self, folder: str | pathlib.Path) -> None:
        torch.save(self.loss.state_dict(), self._file(folder))

    def load(self, folder: str | pathlib.Path) -> None:
        self.loss.load_state_dict(torch.load(self._file(folder), weights_only=True))
        self._has_trained = False

    def begin_batches(self, batches: list[dict[str, Any]]) -> None:
        refuse_own_loss(self.model)
        _refuse_trainers_own_loss(self.trainer)
        self._has_trained = True
        for batch in batches:
            if not isinstance(batch, Mapping):
                raise ConfigError(f"the {type(self.trainer).__name__} trains on a batch that is a {type(batch).__name__}, not "
                                  "inputs of the model by name, as where the model first generates (GRPO, RLOO); such a step "
                                  "cannot be planned, so this Trainer is not supported")
        tokens = [tokens_of_segments(*segments_of_batch(batch)) for batch in batches]
        flat = iter(torch.cat(tokens).tolist())  # the one wait for the device
        self.loss.begin_step([[next(flat) for _ in tokens_S] for tokens_S in tokens])

    def begin(self, inputs: dict[str, Any], micro_batch: int) -> None:
        self.check_model()
        segments_T, num_segments = segments_of_batch(inputs)
        self.loss.begin_forward(segments_T.to(self.loss.device), micro_batch=micro_batch, num_segments=num_segments)

    def check_forward(self, kwargs: dict[str, Any]) -> None:
        """Before a forward with gradients of a micro-batch."""
        refuse_own_loss(self.model, kwargs.get("output_router_logits"))

    def join_as(self, loss: Tensor, factor: float) -> Tensor:
        return self._join(loss, factor)

    def resume(self, args: Any, state: Any) -> None:
        self.loss.abandon_step()
        if state.global_step == 0 and self._has_trained:  # train() once more, or again with smaller batches
            self.loss.forget()
        self._has_trained = False
        if self.trainer.accelerator.unwrap_model(self.trainer.model) is not self.model:
            raise ConfigError("the Trainer trains another model than when it was attached, as it does with model_init: it is "
                              "called again in train(). Give the Trainer model=..., not model_init=...")
        if state.global_step == 0 or self.loss.step_number == state.global_step:
            return
        folder = pathlib.Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self._file(folder).exists():
            self.load(folder)
        elif self.loss.config.scope.from_earlier_steps:
            raise StateError(f"training resumes at step {state.global_step}, but {self._file(folder)} is not there, and the "
                             f"scope '{self.loss.config.scope}' needs the counts of earlier steps. Call load() of the "
                             "attachment with the folder of the checkpoint")
        else:  # nothing else of the state is read, and ranks that see the file and ranks that do not must be at one step
            self.loss.step_number = state.global_step


class _Hub(TrainerCallback):
    """Wraps three methods of one Trainer object, for all attachments to it: they share the pre-pass and may go in any order."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self._attachments: list[TrainerAttachment] = []
        self._num_micro_batches = 0
        self._next = 0
        self._in_training_step = False
        self._ahead: list[dict[str, Any]] = []  # batches of a step that has not been counted ahead, as it must be
        self._get_batch_samples, trainer.get_batch_samples = trainer.get_batch_samples, self._fetch
        self._training_step, trainer.training_step = trainer.training_step, self._step
        self._compute_loss, trainer.compute_loss = trainer.compute_loss, self._loss
        self._seen: Optional[SeenForward] = None  # while compute_loss() runs for a micro-batch
        self._random = RandomStates(trainer.args.device)
        self._left: list[Optional[Frame]] = []  # by a forward without gradients in compute_loss()
        self._watch = Watch(trainer.accelerator.unwrap_model(trainer.model), self._before_forward, self._after_forward)
        trainer.add_callback(self)
        trainer._switchyard_hub = self

    def add(self, attachment: TrainerAttachment) -> None:
        attachment.number = len(self._attachments)
        self._attachments.append(attachment)

    def remove(self, attachment: TrainerAttachment) -> None:
        if attachment not in self._attachments:
            return
        self._attachments.remove(attachment)
        for number, other in enumerate(self._attachments):
            other.number = number
        if self._attachments:
            return
        self.trainer.get_batch_samples = self._get_batch_samples
        self.trainer.training_step = self._training_step
        self.trainer.compute_loss = self._compute_loss
        self.trainer.remove_callback(self)
        self._watch.remove()
        self.trainer._switchyard_hub = None

    def _fetch(self, *args: Any, **kwargs: Any) -> Any:
        batches, num_items = self._get_batch_samples(*args, **kwargs)
        for attachment in self._attachments:
            attachment.end_step()  # where the Trainer skipped the optimizer's step
        if batches:
            for attachment in self._attachments:
                attachment.begin_batches(batches)
            self._num_micro_batches, self._next = len(batches), 0
            self._random.forget()
            self._ahead = batches if any(attachment.loss.needs_whole_step for attachment in self._attachments) else []
        return batches, num_items

    def _count_ahead(self, model: nn.Module, num_items: Optional[Tensor | int]) -> None:
        """The pre-pass. Random states are put back, so dropout repeats: forwards with gradients begin with those it had.

        Not before the first compute_loss() of a step: only then the Trainer has prepared all that a forward depends on (random
        states of a checkpoint, on_step_begin(), the weights of a schedule-free optimizer).
        """
        batches, self._ahead = self._ahead, []
        compiled = _is_compiled(model)
        # A compiler rounds differently in a graph without gradients, or with other inputs.
        no_gradients = self.trainer.accelerator.no_sync(model) if compiled else torch.no_grad()
        with self._random.put_back(), no_gradients, self.trainer.compute_loss_context_manager():
            for micro_batch, batch in enumerate(batches):
                self._begin(batch, micro_batch)
                inputs = self.trainer._prepare_inputs(batch)
                self._random.keep()
                model(**(self._as_trained(inputs, num_items) if compiled else self._without_head(inputs)))
        torch.clear_autocast_cache()  # older torch would go on with the weights it cast without gradients
        for attachment in self._attachments:  # one after the other: ranks may differ in their number of batches
            for micro_batch, batch in enumerate(batches):
                attachment.begin(batch, micro_batch)
                attachment.loss.close_forward()
            attachment.prepass_forwards += len(batches)
            if attachment.loss.needs_whole_step:
                attachment.loss.close_counting()

    @staticmethod
    def _without_head(inputs: dict[str, Any]) -> dict[str, Any]:
        return {**{name: value for name, value in inputs.items() if name != "labels"}, "logits_to_keep": 1}

    def _as_trained(self, inputs: dict[str, Any], num_items: Optional[Tensor | int]) -> dict[str, Any]:
        """What the Trainer's compute_loss() gives the model."""
        trainer, inputs = self.trainer, dict(inputs)
        if trainer.label_smoother is not None or trainer.compute_loss_func is not None:
            inputs.pop("labels", None)
        if trainer.model_accepts_loss_kwargs and num_items is not None:
            inputs["num_items_in_batch"] = num_items
        return inputs

    def _begin(self, inputs: dict[str, Any], micro_batch: int) -> None:
        for attachment in self._attachments:
            attachment.begin(inputs, micro_batch)

    def _step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        in_step = all(attachment.loss.in_step for attachment in self._attachments)
        if not in_step or self._next >= self._num_micro_batches:
            raise StateError("training_step() for a batch that get_batch_samples() did not return; balancing needs the batches "
                             "of a step as the Trainer fetches them")
        self._next += 1
        self._in_training_step = True
        try:
            return self._training_step(model, inputs, *args, **kwargs)
        finally:
            self._in_training_step = False
            self._leave_frames()

    def _loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False,
              num_items_in_batch: Optional[Tensor | int] = None) -> Any:
        if not self._in_training_step:
            return self._compute_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
        with self._watch.around(model):
            if self._ahead:
                self._count_ahead(model, num_items_in_batch)
            self._begin(inputs, self._next - 1)
            seen = self._seen = SeenForward()
            try:
                result = self._compute_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
            finally:
                self._seen = None
        joined = result[0] if return_outputs else result
        factor = factor_of(self.trainer, self._watch.model, num_items_in_batch, joined, seen, self._num_micro_batches)
        for attachment in self._attachments:
            attachment.loss.close_forward()
            joined = attachment.join_as(joined, factor)
        self._leave_frames()
        return (joined, result[1]) if return_outputs else joined

    def _leave_frames(self) -> list[Optional[Frame]]:
        """Until a frame is set again forwards without gradients leave no trace. Backward goes back to its own frame."""
        frames = [attachment.loss.frame for attachment in self._attachments]
        for attachment in self._attachments:
            attachment.loss.frame = None
        return frames

    def _before_forward(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._seen is None:
            return
        if not (model.training and torch.is_grad_enabled()):
            self._left = self._leave_frames()
            return
        self._seen.begin()
        self._random.enter(self._next - 1)
        for attachment in self._attachments:
            attachment.check_forward(kwargs)

    def _after_forward(self, model: nn.Module, args: tuple, kwargs: dict[str, Any], outputs: Any) -> None:
        for attachment, frame in zip(self._attachments, self._left):
            attachment.loss.frame = frame
        with_gradients, self._left = not self._left, []
        if self._seen is None or not with_gradients:
            return
        self._random.leave()
        if outputs is not None:
            self._seen.look(kwargs, outputs)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for attachment in self._attachments:
            attachment.resume(args, state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for attachment in self._attachments:
            attachment.end_step()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A callback may have ended the epoch in the middle of a step, which then has no optimizer step either."""
        if self._next < self._num_micro_batches:
            for attachment in self._attachments:
                attachment.loss.abandon_step()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            for attachment in self._attachments:
                attachment.save(pathlib.Path(args.output_dir) / f"checkpoint-{state.global_step}")
