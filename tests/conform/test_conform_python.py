"""The suite for Python loss functions: it passes what is right, catches each flaw by the check meant for it, and its page is current."""

import collections
import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "python"))

from losses import FLAWS, NEEDS, make_loss  # noqa: E402
from switchyard.conform import CHECKS, DOES_NOT_APPLY, FAILS, HOLDS, page, run_check, run_checks, steps  # noqa: E402
from switchyard.conform.adapters import SHIPPED  # noqa: E402
from switchyard.conform.protocol import About, describe  # noqa: E402

torch.set_num_threads(1)
PROGRAM = pathlib.Path(os.environ["SWITCHYARD_PROGRAM"])
CHECK = {name: check for _, name, check in CHECKS}
SCOPES = ["sequence", "micro_batch", "ranks", "prefix"]
BF16 = {"rounds": True, "tolerance": 0.02}
FORMS = {
    "fp32": {"dtype": torch.float32},
    "bf16": BF16,
    "groups alike": {"weighting": "mean"},
    "calls alike": {"weighting": "local"},
    "calls alike, added": {"weighting": "local", "averaging": "sum"},
    "sigmoid": {"scores": "sigmoid"},
    "K = 1 only": {"num_chosen": 1, "takes_choices": False},
    "K = 3 only": {"num_chosen": 3, "takes_choices": False},
    "one rank only": {"takes_ranks": False},
    "no mask": {"takes_mask": False},
    "padding on the right only": {"padding": "right"},
}


def verdicts(function):
    return {name: finding for _, name, finding in run_checks(function)}


@pytest.fixture(scope="module")
def shipped():
    return {name: verdicts(function) for name, function in SHIPPED}


def failing(findings):
    return {name for name, finding in findings.items() if finding.verdict == FAILS}


@pytest.mark.parametrize("averaging", ["mean", "sum"])
@pytest.mark.parametrize("scope", SCOPES)
def test_a_right_loss_holds(scope, averaging):
    findings = verdicts(make_loss(scope, averaging=averaging))
    assert {name: finding.message for name, finding in findings.items() if finding.verdict == FAILS} == {}
    assert all(finding.message for finding in findings.values() if finding.verdict == DOES_NOT_APPLY)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("form", FORMS)
def test_a_right_loss_of_another_form_holds(scope, form):
    assert {name: finding.message for name, finding in verdicts(make_loss(scope, **FORMS[form])).items()
            if finding.verdict == FAILS} == {}


@pytest.mark.parametrize("flaw,id_,check,scope", FLAWS)
def test_a_flaw_is_caught_by_the_check_meant_for_it(flaw, id_, check, scope):
    finding = run_check(make_loss(scope, flaw), CHECK[check])
    assert finding.verdict == FAILS
    assert not finding.message.startswith(("TypeError", "RuntimeError", "IndexError", "KeyError")), "an accident, not the flaw"
    assert run_check(make_loss(scope, **NEEDS.get(flaw, {})), CHECK[check]).verdict == HOLDS


def test_flaws_are_caught_at_the_tolerance_of_bf16_too():
    missed = {flaw for flaw, _, check, scope in FLAWS if run_check(make_loss(scope, flaw, **BF16), CHECK[check]).verdict == HOLDS}
    assert missed == {"twice the gradient", "straight-through f", "counts in bf16"}
    for flaw in ("twice the gradient", "straight-through f"):  # no finite differences; the oracle has the gradient
        assert run_check(make_loss("micro_batch", flaw, **BF16), CHECK["dense-oracle"]).verdict == FAILS


def test_every_check_that_can_apply_has_a_flaw():
    applied = set()
    for scope in SCOPES:
        applied |= {name for name, finding in verdicts(make_loss(scope)).items() if finding.verdict == HOLDS}
    assert applied == {check for _, _, check, _ in FLAWS}
    assert {(id_, check) for _, id_, check, _ in FLAWS} <= {(id_, name) for id_, name, _ in CHECKS}


def test_the_bugs_of_the_peers_are_reproduced(shipped):
    assert failing(shipped["transformers"]) == {"dense-oracle", "padding", "every-choice", "layers-apart", "collectives",
                                                "never-silent"}
    assert failing(shipped["Megatron-LM global"]) == {"rank-scale", "dense-oracle", "denominators", "enters-once", "recompute",
                                                      "used-choices", "padding", "collectives"}
    assert failing(shipped["Megatron-LM seq"]) == {"dense-oracle", "used-choices", "padding", "packing", "own-length", "collectives"}
    assert failing(shipped["DeepSpeed top-2"]) == {"dense-oracle", "every-choice"}
    for name in ("torchtitan", "DeepSpeed top-k", "OLMo-core local_batch", "OLMo-core instance"):
        assert failing(shipped[name]) == set()


def test_messages_have_the_numbers_of_the_bugs(shipped):
    # balance_peers.md: scale 1/D, 1.333 for 1, value K at balance, 1 for 1.98.
    assert "the loss enters 0.5 times" in shipped["Megatron-LM global"]["enters-once"].message
    given, expected = shipped["Megatron-LM global"]["denominators"].message.split(": ")[-1].split(", expected ")
    assert float(given) / float(expected) == pytest.approx(4 / 3, rel=1e-3)
    assert shipped["transformers"]["every-choice"].message.endswith("K = 2: 2, expected 1")
    assert shipped["transformers"]["layers-apart"].message.endswith(": 1, expected 1.98")


def test_ranks_add_up_and_an_error_of_one_reaches_the_caller():
    case = steps.make_case([[[2], [3], [4]]], 1)
    sums = []

    def loss(batch, group, memory):
        sums.append(int(group.all_reduce(batch.mask.sum())))
        return batch.logits[0].sum() * 0

    steps.run(loss, case)
    assert sums == [9, 9, 9]

    def breaks(batch, group, memory):
        if group.rank == 1:
            raise ValueError("rank 1 is ill")
        return group.all_reduce(torch.ones(1)).sum()

    with pytest.raises(ValueError, match="rank 1 is ill"):
        steps.run(breaks, case)


def test_ranks_that_call_all_reduce_unequally_are_told_so():
    right = make_loss("ranks")

    def skips_padding(batch, group, memory):
        return torch.zeros(()) if batch.mask.sum() == 0 else right(batch, group, memory)

    def once_more(batch, group, memory):
        if group.rank == 0:
            group.all_reduce(torch.ones(1))
        return right(batch, group, memory)

    for function in (skips_padding, once_more):
        function.about = right.about
        finding = run_check(function, CHECK["collectives"])
        assert finding.verdict == FAILS
    assert "rank 0 waits in all_reduce, but rank 1 has made all its calls" in run_check(skips_padding, CHECK["collectives"]).message


def test_what_a_narrow_declaration_leaves_out():
    alone = verdicts(make_loss("prefix", takes_ranks=False))
    assert {name for name in ("rank-scale", "collectives") if alone[name].verdict == DOES_NOT_APPLY} == {"rank-scale", "collectives"}
    assert "one rank" in alone["collectives"].message
    lengths = make_loss("sequence", "mask read as lengths")
    assert "in front of each row" in run_check(lengths, CHECK["padding"]).message
    assert run_check(make_loss("sequence", "mask read as lengths", padding="right"), CHECK["padding"]).verdict == HOLDS


def test_a_memory_of_bounded_length_does_not_grow():
    right = make_loss("micro_batch")

    def remembers(batch, group, memory, last=None):
        kept = memory.setdefault("log", collections.deque(maxlen=last))
        kept.append(batch.mask)
        memory["group"], memory["itself"] = group, memory
        return right(batch, group, memory)

    remembers.about = right.about
    assert "it grows" in run_check(remembers, CHECK["buffer"]).message

    def bounded(batch, group, memory):
        return remembers(batch, group, memory, last=100)

    bounded.about = right.about
    assert run_check(bounded, CHECK["buffer"]).verdict == run_check(bounded, CHECK["evaluation"]).verdict == HOLDS


def test_a_mean_over_sequences_is_not_asked_for_what_it_cannot_know():
    """How many sequences the micro-batches to come hold."""
    @describe(scope="sequence", takes_choices=True)
    def loss(batch, group, memory):
        values = []
        for logits, chosen in zip(batch.logits, batch.choices):
            probs = logits.softmax(-1)
            for label in range(int(batch.documents.max()) + 1):
                valid = batch.documents.reshape(-1) == label
                f = torch.bincount(chosen[valid].reshape(-1), minlength=batch.num_experts) / chosen[valid].numel()
                values.append(batch.num_experts * (f * probs[valid].mean(0)).sum())
        return batch.coefficient * torch.stack(values).mean()

    assert run_check(loss, CHECK["dense-oracle"]).verdict == HOLDS


@pytest.mark.parametrize("declared", [{"scope": "global"}, {"scope": "optimizer_batch"}, {"ranks": "average"}, {"layers": "avg"},
                                      {"ranks": "tokens"}, {"scores": "topk"}, {"padding": "left"}, {"num_chosen": 0},
                                      {"tolerance": 0.0}, {"tolerance": 0.1}])
def test_an_unknown_declaration_is_refused(declared):
    with pytest.raises(ValueError, match="expected one of|for both|expected a"):
        About(**declared)


def test_what_a_function_returns_is_named():
    assert "returned None; expected one number" in run_check(lambda batch, group, memory: None, CHECK["rank-scale"]).message


def test_an_error_of_the_function_is_told_with_its_place():
    def indexes(batch, group, memory):
        return batch.logits[7].sum()

    line = indexes.__code__.co_firstlineno + 1
    message = run_check(indexes, CHECK["rank-scale"]).message
    assert message == f"IndexError: list index out of range (test_conform_python.py:{line})"

    def in_torch(batch, group, memory):
        return torch.nn.functional.softmax(batch.logits[0], dim=5).sum()

    assert "(test_conform_python.py:" in run_check(in_torch, CHECK["rank-scale"]).message


def test_a_function_that_exits_fails_and_no_rank_waits():
    def leaves(batch, group, memory):
        if group.rank == 1:
            sys.exit("no CUDA here")
        return group.all_reduce(torch.ones(1)).sum()

    message = run_check(leaves, CHECK["rank-scale"]).message
    assert message.startswith("SystemExit: no CUDA here (test_conform_python.py:")


def run_module(*arguments, code, cwd=None):
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT / "python"), str(ROOT / "tests" / "conform")]))
    done = subprocess.run([sys.executable, "-m", "switchyard.conform", *arguments], capture_output=True, text=True, cwd=cwd,
                          env=environment, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_the_command_line_prints_a_table(tmp_path):
    (tmp_path / "mine.py").write_text("from losses import make_loss\ngood = make_loss('ranks')\nbad = make_loss('ranks', 'over ranks')\n")
    done = run_module("mine:good", "--only", "B1", code=0, cwd=tmp_path)
    assert "B1  rank-scale    holds" in done.stdout and "2 hold, 0 fail" in done.stdout
    done = run_module("mine:good", "mine:bad", "--only", "B1", code=1, cwd=tmp_path)
    assert "FAILS" in done.stdout and "[mine:bad]" in done.stdout
    items = json.loads(run_module("mine:bad", "--json", code=1, cwd=tmp_path).stdout)
    assert len(items) == len(CHECKS) and set(items[0]) == {"function", "id", "check", "verdict", "message"}


def test_wrong_use_is_named(tmp_path):
    assert "expected package.module:function" in run_module("losses", code=2, cwd=tmp_path).stderr
    assert "cannot import nowhere" in run_module("nowhere:loss", code=2, cwd=tmp_path).stderr
    assert "it has: " in run_module("losses:lossy", code=2, cwd=tmp_path).stderr
    assert "known: B1, B2" in run_module("losses:make_loss", "--only", "B77", code=2, cwd=tmp_path).stderr
    assert "no function given" in run_module(code=2, cwd=tmp_path).stderr
    (tmp_path / "script.py").write_text("import sys\nsys.exit(3)\n")
    assert "cannot import script: SystemExit: 3" in run_module("script:loss", code=2, cwd=tmp_path).stderr
    (tmp_path / "short.py").write_text("def loss(batch, group):\n    return 0\n")
    assert "cannot be called as function(batch, group, memory)" in run_module("short:loss", code=2, cwd=tmp_path).stderr
    assert "2: wrong use" in " ".join(run_module("--help", code=0, cwd=tmp_path).stdout.split())


def test_the_page_is_current(shipped):
    text = (ROOT / "docs" / "conform.md").read_text(encoding="utf-8")
    results = [(name, [(id_, check, shipped[name][check]) for id_, check, _ in CHECKS]) for name, _ in SHIPPED]
    fresh = page.replaced(text, "foreign table", page.foreign_block(results, SHIPPED))
    fresh = page.replaced(fresh, "own table", page.own_block(PROGRAM))
    assert text == fresh, ("docs/conform.md is out of date: PYTHONPATH=python .venv/bin/python -m switchyard.conform "
                           "--write-page docs/conform.md --program build/release/switchyard")
