"""examples/hf_qwen3_moe.py: runs, its folder becomes a report, and its metrics are those of the program."""

import functools
import json
import os
import pathlib
import random
import subprocess
import sys
import tomllib

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = os.environ["SWITCHYARD_PROGRAM"]
sys.path.insert(0, str(ROOT / "examples"))
import hf_qwen3_moe  # noqa: E402
import routing_metrics as metrics  # noqa: E402


def run(*words):
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("example")
    for name, letters in (("digits", "0123456789"), ("letters", "abcdefghij")):
        stream = random.Random(name)
        (folder / "text" / name).mkdir(parents=True)
        for number in range(40):
            text = " ".join("".join(stream.choices(letters, k=4)) for _ in range(300))
            (folder / "text" / name / f"{number}.txt").write_text(text)
    run(PROGRAM, "data", "build", "--from", folder / "text", "--out", folder / "data", "--vocab-size", 400)
    return folder / "data"


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("scope", ["optimizer_batch", "previous_step"])
def test_it_trains_and_ends_in_a_report(scope, data, tmp_path):
    said = run(sys.executable, ROOT / "examples/hf_qwen3_moe.py", "--data", data, "--out", tmp_path / "run", "--scope", scope,
               "--steps", 4, "--length", 32, "--micro-batches", 2, "--width", 16, "--layers", 2, "--experts", 4, "--heldout", 6)
    assert "S " in said and "MaxVio" in said
    log = read_log(tmp_path / "run")
    settings = tomllib.loads((tmp_path / "run" / "config.toml").read_text(encoding="utf-8"))
    assert settings["data"]["sequence_length"] == 32 and settings["data"]["micro_batches"] == 2  # keys that the report compares
    assert settings["model"]["width"] == 16 and settings["optimizer"]["learning_rate"] == 2e-3
    steps = [line for line in log if line["kind"] == "step"]
    assert [step["step"] for step in steps] == [1, 2, 3, 4] and steps[-1]["tokens"] == 4 * 2 * 32
    assert steps[0]["lbl"] is None if scope == "previous_step" else steps[0]["balance_loss"] > 0.09
    assert any("step 1 has no balancing loss" in line.get("text", "") for line in log) == (scope == "previous_step")
    run(PROGRAM, "report", tmp_path / "run", "--out", tmp_path / "report.html")
    assert scope in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("words,message", [
    (["--scope", "optimizer_bach"], "did you mean 'optimizer_batch'?"), (["--data", "nowhere"], "nowhere is no data set"),
    (["--width", "12"], "a multiple of 8"), (["--steps", "0"], "expected 1 or more"), (["--experts", "3"], "2 domains, 3 experts"),
    (["--coefficient", "nan"], "expected a finite number"), (["--seed", "-1"], "expected 0 or more"),
    (["--length", "1"], "and 2 or more"), (["--out", "."], "is there already"),
])
def test_wrong_use_is_named_and_leaves_nothing(words, message, data, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        hf_qwen3_moe.main(["--data", str(data), "--out", str(tmp_path / "run"), *words])
    assert ended.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_metrics_are_those_of_the_program(data, tmp_path):
    """From the counts of a run of the program, every number that follows from counts by domain. And its settings have our keys."""
    (tmp_path / "run.toml").write_text(f'''
name = "tiny"
steps = 2
[data]
path = "{data}"
sequence_length = 32
micro_batches = 2
[model]
vocab_size = 400
width = 16
num_layers = 2
num_heads = 2
num_kv_heads = 1
head_width = 8
num_experts = 8
num_chosen = 2
expert_width = 8
[evaluation]
sequences_per_domain = 8
''')
    run(PROGRAM, "train", tmp_path / "run.toml", "--out", tmp_path / "run")
    ours = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    options = hf_qwen3_moe.parse_arguments(["--data", str(data), "--out", str(tmp_path / "theirs"), "--experts", "8"])
    for table, keys in hf_qwen3_moe.settings_of(options, 400).items():
        assert keys.keys() <= functools.reduce(dict.__getitem__, filter(None, table.split(".")), ours).keys(), table
    (evaluation,) = [line for line in read_log(tmp_path / "run") if line["kind"] == "evaluation"][-1:]
    for layer in evaluation["layers"]:
        counts_NE = np.array(layer["counts"])
        joint_NE = metrics.joint_shares(counts_NE)
        assert metrics.information(joint_NE) == pytest.approx(layer["information"], abs=1e-12)
        assert metrics.purity(joint_NE) == pytest.approx(layer["purity"], abs=1e-12)
        assert metrics.agreement(joint_NE) == pytest.approx(layer["agreement"], abs=1e-12)
        assert metrics.load_metrics(counts_NE.sum(0)) == pytest.approx(layer["global"], abs=1e-12)
        assert np.array(metrics.jensen_shannon(counts_NE)) == pytest.approx(np.array(layer["jensen_shannon"]), abs=1e-12)
        assert metrics.score(layer["information"], layer["information_null"], layer["information_ceiling"]) == pytest.approx(
            layer["specialization"], abs=1e-12)
