"""One training of the Trainer that keeps the gradients of each step; alone, or as a program under torchrun.

python trainer_run.py SETTINGS.json OUT.pt
"""

import json
import os
import pathlib
import sys
import tempfile

import torch
from hf_models import gradients_of, make_model, make_rows, stack, with_classes
from torchrun import leave
from transformers import Trainer, TrainerCallback, TrainingArguments

import switchyard


SCRATCH = tempfile.TemporaryDirectory()


class Keeper(TrainerCallback):
    def __init__(self):
        self.gradients, self.reports, self.attachment = [], [], None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append(gradients_of(model))

    def on_step_end(self, args, state, control, **kwargs):
        if self.attachment is not None:
            self.reports.append(self.attachment.end_step())


def collate(rows):
    return stack(rows).inputs


class OwnLossTrainer(Trainer):
    """A loss that is a mean over each micro-batch and knows nothing of the items of the step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False


class MeanTrainer(Trainer):
    """A compute_loss() as many write it: num_items_in_batch comes in and is not used."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return 1.0 * model(**inputs).loss + 0.0


class SumTrainer(Trainer):
    """From logits, divided by it outside of the model, which gets the labels all the same, as the SFTTrainer of trl does."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logits, labels = model(**inputs).logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten()
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch
        return loss * self.accelerator.num_processes


class PassingTrainer(Trainer):
    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs)


def mean_of_tokens(outputs, labels, num_items_in_batch=None):
    return torch.nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def sum_over_items(outputs, labels, num_items_in_batch=None):
    logits, labels = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch


class MeanFunctionTrainer(Trainer):
    """And what transformers asks for with it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, compute_loss_func=mean_of_tokens, **kwargs)
        self.model_accepts_loss_kwargs = False


class SumFunctionTrainer(Trainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, compute_loss_func=sum_over_items, **kwargs)


COMPUTE_LOSS = {"mean_function": MeanFunctionTrainer, "sum_function": SumFunctionTrainer, "mean": MeanTrainer, "sum": SumTrainer, "passing": PassingTrainer}


def build(rows, per_device=2, accumulation=2, steps=1, arguments=None, own_loss=False, kind="qwen3_moe", folder=None,
          learning_rate=0.0, trainer_class=Trainer, compute_loss=None, **model_changes):
    args = TrainingArguments(**{
        **dict(output_dir=folder or SCRATCH.name, per_device_train_batch_size=per_device, max_steps=steps, use_cpu=True,
               gradient_accumulation_steps=accumulation, learning_rate=learning_rate, max_grad_norm=0.0, report_to=[],
               logging_strategy="no", save_strategy="no", disable_tqdm=True, seed=1, optim="sgd",
               lr_scheduler_type="constant"),
        **(arguments or {})})
    keeper = Keeper()
    kind_of_trainer = OwnLossTrainer if own_loss else COMPUTE_LOSS.get(compute_loss, trainer_class)
    trainer = kind_of_trainer(model=make_model(kind, **model_changes), args=args, train_dataset=rows, data_collator=collate,
                              callbacks=[keeper])
    # In the order of the rows, so that the test knows each micro-batch.
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(rows)
    return trainer, keeper


def run(settings):
    """Trains as asked for; {"gradients": [step][weight], "reports": [step]}."""
    settings = dict(settings)
    attach = settings.pop("attach", None)
    rows = make_rows(settings.pop("rows"), settings.pop("seed", 1))
    rows = with_classes(rows) if settings.get("kind") == "classes" else rows
    trainer, keeper = build(rows, **settings)
    if attach is not None:
        target = trainer.model if attach.pop("model_only", False) else trainer
        keeper.attachment = switchyard.attach(target, **attach)
        # Its callback would end the step before the keeper sees it; ending twice gives the same report.
    trainer.train()
    reports = [vars(report) for report in keeper.reports]
    return {"gradients": keeper.gradients, "reports": reports, "world": trainer.args.world_size,
            "prepass": getattr(keeper.attachment, "prepass_forwards", 0)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = [run(settings) for settings in json.loads(pathlib.Path(sys.argv[1]).read_text())]
    if int(os.environ.get("RANK", "0")) == 0:
        torch.save(found, sys.argv[2])
    if torch.distributed.is_initialized():
        SCRATCH.cleanup()
        leave()
