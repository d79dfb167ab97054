"""attach(trainer): the exact scope and all others under the Trainer's real accumulation, normalisation and ranks."""

import json
import pathlib

import pytest
import torch
from hf_models import FAMILIES, dense_gradients, dense_loss, make_model, make_rows, stack
from oracle import largest_difference
from torchrun import torchrun
from trainer_run import build, collate, run
from transformers import Trainer, TrainerCallback
from transformers.trainer_pt_utils import LabelSmoother

import switchyard

ALL = ["sequence", "sequences(3)", "micro_batch", "ranks", "prefix", "optimizer_batch"]
TOLERANCE = 2e-5
COEFFICIENT = 5.0
COMPILED = {"torch_compile": True, "torch_compile_backend": "aot_eager"}


def cut(rows, num_ranks=1, per_device=2, accumulation=2):
    """[m][rank] as the Trainer deals them: batch after batch to the ranks in turn."""
    batches = [stack(rows[i : i + per_device]) for i in range(0, len(rows), per_device)]
    return [batches[m * num_ranks : (m + 1) * num_ranks] for m in range(accumulation)]


def main_loss(model, step, means):
    """The Trainer's objective of a step: the mean over tokens, or over the means of micro-batches and ranks."""
    batches = [batch for ranks in step for batch in ranks]
    if means == "smoothed":
        return sum(LabelSmoother(0.1)(model(**{**b.inputs, "labels": None}), b.inputs["labels"], shift_labels=True)
                   for b in batches) / len(batches)
    if means:
        return sum(model(**batch.inputs).loss for batch in batches) / len(batches)
    items = sum(batch.inputs["labels"].ne(-100).sum() for batch in batches)
    return sum(model(**batch.inputs, num_items_in_batch=items).loss for batch in batches)


def expected(step, scope, means=False, **settings):
    """Gradients of main loss and balancing loss, each by itself."""
    model = make_model(settings.pop("kind", "qwen3_moe"))
    loss, lbl, _ = dense_loss(model, step, scope, coefficient=COEFFICIENT, **settings)
    return dense_gradients(main_loss(model, step, means), model), dense_gradients(loss, model), [float(v.detach()) for v in lbl]


def scale_of(found, reference):
    """The number by which the Trainer's gradient differs from that of its objective; the same for every weight."""
    a, b = (torch.cat([g.flatten() for g in grads]) for grads in (found, reference))
    scale = float(a @ b / (b @ b))
    assert float((a - scale * b).abs().max()) < TOLERANCE
    return scale


def check(balanced, plain, step, scope, means=False, **settings):
    """Main and balancing gradient stand in the ratio of the objective, whatever else the Trainer does to both."""
    main, balance, lbl = expected(step, scope, means, **settings)
    scale = scale_of(plain["gradients"][0], main)
    part = [a - b for a, b in zip(balanced["gradients"][0], plain["gradients"][0])]
    assert max(float(g.abs().max()) for g in balance) > 0.01
    assert largest_difference(part, [scale * g for g in balance]) < TOLERANCE
    report = balanced["reports"][0]
    assert report["lbl_L"] == pytest.approx(lbl, abs=2e-6)
    assert report["tokens"] == sum(int(b.inputs["attention_mask"].sum()) for ranks in step for b in ranks)
    return scale


def settings_of(scope, **changes):
    return {"rows": 4, "attach": {"scope": scope, "coefficient": COEFFICIENT}, **changes}


@pytest.mark.parametrize("own_loss", [False, True], ids=["num_items", "means"])
@pytest.mark.parametrize("scope", ALL)
def test_one_process(scope, own_loss):
    plain = run({"rows": 4, "own_loss": own_loss})
    balanced = run(settings_of(scope, own_loss=own_loss))
    check(balanced, plain, cut(make_rows(4)), scope, means=own_loss)
    assert balanced["prepass"] == (2 if scope in ("optimizer_batch", "sequences(3)") else 0)


def test_two_scopes_together():
    """Each attachment runs its own pre-pass and closes its own step; the gradients add up."""
    trainer, keeper = build(make_rows(4))
    switchyard.attach(trainer, scope="optimizer_batch", coefficient=COEFFICIENT)
    keeper.attachment = switchyard.attach(trainer, scope="sequences(3)", coefficient=COEFFICIENT)
    trainer.train()
    plain = run({"rows": 4})
    main, wide, _ = expected(cut(make_rows(4)), "optimizer_batch")
    _, narrow, lbl = expected(cut(make_rows(4)), "sequences(3)")
    part = [a - b for a, b in zip(keeper.gradients[0], plain["gradients"][0])]
    scale = scale_of(plain["gradients"][0], main)
    assert largest_difference(part, [scale * (a + b) for a, b in zip(wide, narrow)]) < TOLERANCE
    assert keeper.reports[0].lbl_L == pytest.approx(lbl, abs=2e-6)


def test_label_smoothing_is_a_mean_over_micro_batches():
    """The Trainer does not divide it, though it knows the items of the step."""
    arguments = {"label_smoothing_factor": 0.1}
    plain, balanced = run({"rows": 4, "arguments": arguments}), run(settings_of("optimizer_batch", arguments=arguments))
    assert check(balanced, plain, cut(make_rows(4)), "optimizer_batch", means="smoothed") == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind not in ("qwen3_moe", "classes")])
def test_other_models(kind):
    plain = run({"rows": 4, "kind": kind})
    check(run(settings_of("optimizer_batch", kind=kind)), plain, cut(make_rows(4)), "optimizer_batch", means=kind == "qwen3_vl_moe",
          kind=kind)


def test_a_model_alone_under_the_trainer():
    plain = run({"rows": 4})
    balanced = run({"rows": 4, "attach": {"scope": "prefix", "coefficient": COEFFICIENT, "model_only": True}})
    check(balanced, plain, cut(make_rows(4)), "prefix")


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant):
    arguments = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    plain = run({"rows": 4})
    check(run(settings_of("optimizer_batch", arguments=arguments)), plain, cut(make_rows(4)), "optimizer_batch")


def test_torch_compile():
    """The whole model as a graph, hooks included. The default experts (grouped_mm) need bfloat16 under torch.compile."""
    eager, compiled = (run(settings_of("optimizer_batch", experts="batched_mm", **changes))
                       for changes in ({}, {"arguments": COMPILED}))
    assert largest_difference(eager["gradients"][0], compiled["gradients"][0]) < 1e-6
    assert compiled["reports"][0]["lbl_L"] == pytest.approx(eager["reports"][0]["lbl_L"], abs=1e-6)


def test_compiled_the_prepass_runs_the_graph_of_training():
    """A compiler rounds differently in other graphs: so the pre-pass must not make one. aot_eager, as inductor takes minutes;
    that inductor then repeats bit for bit is not seen here."""
    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    run({"rows": 4, "experts": "batched_mm", "arguments": COMPILED})
    alone = graphs["unique_graphs"] - before
    torch._dynamo.reset()
    before = graphs["unique_graphs"]
    balanced = run(settings_of("optimizer_batch", experts="batched_mm", arguments=COMPILED))
    assert balanced["prepass"] == 2 and graphs["unique_graphs"] - before == alone


def test_dropout_repeats_after_the_prepass():
    """Without the random states put back, the second forward would choose other experts and close_step() would complain."""
    reports = run(settings_of("optimizer_batch", steps=2, rows=8, attention_dropout=0.4))["reports"]
    assert [report["differences"] for report in reports] == [0, 0] and reports[1]["step"] == 1


def test_bfloat16_autocast():
    reports = run(settings_of("optimizer_batch", arguments={"bf16": True}))["reports"]
    assert reports[0]["differences"] == 0 and len(reports[0]["lbl_L"]) == 2


def test_a_short_last_step_and_earlier_steps():
    """Three batches, two a step: the second step has one."""
    plain, balanced = run({"rows": 6, "steps": 2}), run(settings_of("previous_step", rows=6, steps=2))
    assert largest_difference(plain["gradients"][0], balanced["gradients"][0]) == 0.0  # nothing is known yet
    first, second = balanced["reports"]
    assert first["lbl_L"] == []
    assert second["tokens"] == sum(int(row["attention_mask"].sum()) for row in make_rows(6)[4:])
    counts = first["counts_LE"].double()
    main, balance, lbl = expected(cut(make_rows(6)[4:], accumulation=1), "previous_step",
                                  earlier=counts / counts.sum(1, keepdim=True))
    scale = scale_of(plain["gradients"][1], main)
    part = [a - b for a, b in zip(balanced["gradients"][1], plain["gradients"][1])]
    assert largest_difference(part, [scale * g for g in balance]) < TOLERANCE
    assert second["lbl_L"] == pytest.approx(lbl, abs=2e-6)


def build_saving(folder, *scopes, **changes):
    """Three steps, each saved. The keeper has the reports of the first scope."""
    trainer, keeper = build(make_rows(12), steps=3, folder=str(folder), arguments={"save_steps": 1, "save_strategy": "steps"}, **changes)
    attachments = [switchyard.attach(trainer, scope=scope, coefficient=COEFFICIENT) for scope in scopes]
    keeper.attachment = attachments[0]
    return trainer, keeper, attachments


def test_resuming_takes_the_counts_of_the_step_before(tmp_path):
    """Learning rate 0: transformers 5.2 does not load the experts of its own checkpoints when it resumes."""
    whole, kept, _ = build_saving(tmp_path, "ema(0.5)")
    whole.train()
    again, keeper, _ = build_saving(tmp_path, "ema(0.5)")
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert keeper.reports[0].step == 2
    assert keeper.reports[0].lbl_L == kept.reports[2].lbl_L
    assert largest_difference(keeper.gradients[0], kept.gradients[2]) == 0.0
    (tmp_path / "checkpoint-2" / "switchyard_balance.pt").unlink()
    with pytest.raises(switchyard.StateError, match="resumes at step 2, but .* is not there"):
        build_saving(tmp_path, "ema(0.5)")[0].train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    trainer, keeper, _ = build_saving(tmp_path, "ema(0.5)")
    keeper.attachment.loss.change(scope="optimizer_batch")  # needs no file, but the ranks that lack it must count on as well
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert keeper.reports[0].step == 2


def test_resuming_with_dropout(tmp_path):
    """The Trainer loads the random states of the checkpoint after it has fetched the first batches."""
    whole, kept, _ = build_saving(tmp_path, "optimizer_batch", attention_dropout=0.4)
    whole.train()
    again, keeper, _ = build_saving(tmp_path, "optimizer_batch", attention_dropout=0.4)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert keeper.reports[0].step == 2 and keeper.reports[0].lbl_L == kept.reports[2].lbl_L


class ScheduleFree(torch.optim.SGD):
    """Has other weights while evaluating, as optimizers of the package schedulefree have."""

    factor = 1.0

    def _become(self, factor):
        for group in self.param_groups:
            for weight in group["params"]:
                weight.data.mul_(factor / self.factor)
        self.factor = factor

    def eval(self):
        self._become(2.0)

    def train(self):
        self._become(1.0)


class EvaluateEachStep(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_evaluate = True


def test_an_optimizer_that_changes_weights_to_evaluate():
    trainer, keeper = build(make_rows(8), steps=2)
    trainer.optimizer, trainer.eval_dataset = ScheduleFree(trainer.model.parameters(), lr=0.0), make_rows(2)
    trainer.add_callback(EvaluateEachStep())
    keeper.attachment = switchyard.attach(trainer, scope="optimizer_batch", coefficient=COEFFICIENT)
    trainer.train()
    assert [report.differences for report in keeper.reports] == [0, 0]


def test_two_attachments_keep_their_states_apart(tmp_path):
    whole, kept, _ = build_saving(tmp_path, "ema(0.5)", "ema(0.9)", "micro_batch")
    whole.train()
    again, keeper, _ = build_saving(tmp_path, "ema(0.5)", "ema(0.9)", "micro_batch")
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert keeper.reports[0].step == 2 and keeper.reports[0].lbl_L == kept.reports[2].lbl_L
    assert largest_difference(keeper.gradients[0], kept.gradients[2]) == 0.0
    # A checkpoint with the one file of an older version or of one attachment is the first one's.
    (tmp_path / "checkpoint-2" / "switchyard_balance_2.pt").unlink()
    trainer, _, (first, second) = build_saving(tmp_path, "ema(0.5)", "micro_batch")
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert first.last_report.step == second.last_report.step == 2
    with pytest.raises(switchyard.StateError, match="switchyard_balance_2.pt is not there"):
        build_saving(tmp_path, "ema(0.5)", "ema(0.9)")[0].train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_packed_rows_with_a_cache():
    """With a cache the model does not look for documents, which the pre-pass must do alike."""
    rows = make_rows(4, length=12)
    for row in rows:
        del row["attention_mask"]
        row["position_ids"] = torch.cat([torch.arange(5), torch.arange(7)])
    trainer, keeper = build(rows, per_device=1, arguments={"use_cache": True})
    keeper.attachment = switchyard.attach(trainer, scope="optimizer_batch", coefficient=COEFFICIENT)
    trainer.train()
    assert [report.differences for report in keeper.reports] == [0]


def test_a_model_made_anew_by_train():
    trainer, _ = build(make_rows(4))
    anew = Trainer(model_init=lambda: make_model(), args=trainer.args, train_dataset=make_rows(4), data_collator=collate)
    switchyard.attach(anew, scope="prefix", coefficient=COEFFICIENT)
    with pytest.raises(switchyard.ConfigError, match="model_init"):
        anew.train()


def test_training_once_more_begins_anew():
    """Also after auto_find_batch_size has failed once: it calls the same loop again."""
    trainer, keeper = build(make_rows(8), steps=2)
    keeper.attachment = switchyard.attach(trainer, scope="previous_step", coefficient=COEFFICIENT)
    trainer.train()
    trainer.train()
    assert [report.step for report in keeper.reports] == [0, 1, 0, 1]
    assert [report.lbl_L != [] for report in keeper.reports] == [False, True, False, True]


def test_a_state_that_was_loaded_stays(tmp_path):
    trainer, keeper = build(make_rows(8), steps=2)
    keeper.attachment = switchyard.attach(trainer, scope="previous_step", coefficient=COEFFICIENT)
    trainer.train()
    keeper.attachment.save(tmp_path)
    keeper.attachment.load(tmp_path)
    trainer.train()
    assert [report.lbl_L != [] for report in keeper.reports] == [False, True, True, True]


class StopWithinStep(TrainerCallback):
    def on_substep_end(self, args, state, control, **kwargs):
        control.should_training_stop = True


def test_training_that_stops_within_a_step(tmp_path):
    trainer, keeper = build(make_rows(4), folder=str(tmp_path), arguments={"save_strategy": "epoch"})
    keeper.attachment = switchyard.attach(trainer, scope="prefix", coefficient=COEFFICIENT)
    trainer.add_callback(StopWithinStep())
    trainer.train()
    assert keeper.gradients == [] and not keeper.attachment.loss.in_step
    assert (tmp_path / "checkpoint-0" / "switchyard_balance.pt").exists()


def test_a_batch_that_was_not_fetched():
    trainer, _ = build(make_rows(4))
    switchyard.attach(trainer, scope="optimizer_batch", coefficient=COEFFICIENT)
    with pytest.raises(switchyard.StateError, match=r"get_batch_samples\(\) did not return"):
        trainer.training_step(trainer.model, stack(make_rows(2)).inputs)


def test_batches_that_are_no_inputs_of_the_model():
    """As those of GRPO: lists of prompts, from which the Trainer generates."""
    trainer, _ = build(make_rows(4))
    trainer.get_batch_samples = lambda *_: ([[{"prompt": "x"}], [{"prompt": "y"}]], None)
    switchyard.attach(trainer, scope="prefix", coefficient=COEFFICIENT)
    with pytest.raises(switchyard.ConfigError, match="the Trainer trains on a batch that is a list"):
        trainer.train()


def test_detaching_leaves_the_trainer_as_it_was():
    trainer, keeper = build(make_rows(4))
    switchyard.attach(trainer, scope="optimizer_batch", coefficient=COEFFICIENT).detach()
    trainer.train()
    assert largest_difference(keeper.gradients[0], run({"rows": 4})["gradients"][0]) == 0.0


@pytest.mark.parametrize("first", [True, False])
def test_detaching_one_of_two(first):
    trainer, keeper = build(make_rows(4))
    both = [switchyard.attach(trainer, scope="optimizer_batch", coefficient=COEFFICIENT) for _ in range(2)]
    both.pop(0 if first else 1).detach()
    keeper.attachment = both[0]
    trainer.train()
    assert largest_difference(keeper.gradients[0], run(settings_of("optimizer_batch"))["gradients"][0]) == 0.0
    assert keeper.reports[0].step == 0


def of_ranks(scope=None, average=True):
    attach = None if scope is None else {"scope": scope, "coefficient": COEFFICIENT}
    smoothing = {"label_smoothing_factor": 0.1, "average_tokens_across_devices": True} if average == "smoothed" else {}
    return {"rows": 8, "attach": attach,
            "arguments": {"ddp_backend": "gloo", "average_tokens_across_devices": average, **smoothing}}


TWO = [(scope, average) for average in (True, False) for scope in (None, "optimizer_batch", "prefix", "sequences(3)")]
TWO += [(None, "smoothed"), ("optimizer_batch", "smoothed")]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Trainings under torchrun with two processes and Gloo, by (scope, average)."""
    folder, here = tmp_path_factory.mktemp("ranks"), pathlib.Path(__file__).parent
    (folder / "settings.json").write_text(json.dumps([of_ranks(*key) for key in TWO]))
    torchrun(here / "trainer_run.py", folder / "settings.json", folder / "out.pt")
    return dict(zip(TWO, torch.load(folder / "out.pt", weights_only=False)))


@pytest.mark.parametrize("scope", ["optimizer_batch", "prefix", "sequences(3)"])
def test_two_processes(scope, two_processes):
    """Gloo, DistributedDataParallel, two micro-batches each: the gradients of one process on the declared partition."""
    balanced, plain = two_processes[scope, True], two_processes[None, True]
    assert balanced["world"] == 2
    check(balanced, plain, cut(make_rows(8), num_ranks=2), scope)


def test_two_processes_with_label_smoothing(two_processes):
    """The Trainer multiplies that mean by the ranks."""
    balanced, plain = two_processes["optimizer_batch", "smoothed"], two_processes[None, "smoothed"]
    check(balanced, plain, cut(make_rows(8), num_ranks=2), "optimizer_batch", means="smoothed")


@pytest.mark.parametrize("scope", ["optimizer_batch", "prefix", "sequences(3)"])
def test_two_processes_that_divide_by_their_own_tokens(scope, two_processes):
    """Another main loss, the same balancing loss."""
    balanced, plain = two_processes[scope, False], two_processes[None, False]
    step = cut(make_rows(8), num_ranks=2)
    main, balance, lbl = expected(step, scope)
    part = [a - b for a, b in zip(balanced["gradients"][0], plain["gradients"][0])]
    usual = scale_of(two_processes[None, True]["gradients"][0], main)
    assert scale_of(part, balance) == pytest.approx(usual, rel=1e-4)
    assert balanced["reports"][0]["lbl_L"] == pytest.approx(lbl, abs=2e-6)
