"""Real training processes: killed, ended by a signal, out of disk, two at once; and their TensorBoard events."""

import hashlib
import json
import os
import resource
import signal
import sqlite3
import subprocess
from pathlib import Path

import pytest

TOOL = Path(os.environ["SWITCHYARD_BUILD_DIR"]) / "tests" / "train" / "train_tool"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    subprocess.run([TOOL, "data", folder], check=True)
    return folder


def command(data, folder, *options):
    return [TOOL, "run", data, folder, *options]


def train(data, folder, *options, **arguments):
    return subprocess.run(command(data, folder, *options), capture_output=True, text=True, timeout=120, **arguments)


def wait_for_step(process, step):
    for line in process.stdout:
        if line == f"step {step}\n":
            return
    raise AssertionError(f"the process ended before step {step}: {process.stderr.read()}")


def last_checkpoint(folder):
    return sorted((folder / "checkpoints").glob("step-*"))[-1]


def weights_hash(folder):
    checkpoint = last_checkpoint(folder)
    return checkpoint.name, hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()


def log_steps(folder):
    """Losses by step; each step once."""
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    steps = [(record["step"], record["loss"]) for record in records if record["kind"] == "step"]
    assert len(dict(steps)) == len(steps)
    return steps


def store_rows(folder):
    with sqlite3.connect(folder.parent / "store.sqlite") as store:
        return dict(store.execute("SELECT folder, status FROM runs").fetchall())


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    result = train(data, folder, "steps=40", "checkpoint.every=5")
    assert result.returncode == 0, result.stderr
    return folder


def test_kill_and_resume_give_the_same_bits(data, whole, tmp_path):
    folder = tmp_path / "run"
    options = ["steps=40", "checkpoint.every=5"]
    with subprocess.Popen(command(data, folder, *options), stdout=subprocess.PIPE, text=True) as process:
        wait_for_step(process, 13)
        process.kill()
    assert store_rows(folder) == {"run": "running"}
    result = train(data, folder, "--resume", *options)
    assert result.returncode == 0, result.stderr
    first = int(result.stdout.split()[1])
    assert first in (6, 11, 16, 21, 26, 31, 36), "it did not continue behind a checkpoint"
    assert weights_hash(folder) == weights_hash(whole)
    assert log_steps(folder) == log_steps(whole)
    assert store_rows(folder) == {"run": "done"}


def test_sigterm_finishes_the_step_and_saves(data, whole, tmp_path):
    folder = tmp_path / "run"
    options = ["steps=40", "checkpoint.every=0"]
    with subprocess.Popen(command(data, folder, *options), stdout=subprocess.PIPE, text=True) as process:
        wait_for_step(process, 7)
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
    assert process.returncode == 0
    assert rest.endswith("interrupted\n")
    assert store_rows(folder) == {"run": "interrupted"}
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert records[-1]["kind"] == "end" and records[-1]["reason"] == "interrupted"
    assert last_checkpoint(folder).name == f"step-{records[-1]['step']:08d}"
    assert train(data, folder, "--resume", *options).returncode == 0
    assert weights_hash(folder)[1] == weights_hash(whole)[1]


def test_full_disk_leaves_the_checkpoint_before(data, whole, tmp_path):
    folder = tmp_path / "run"
    options = ["steps=40", "checkpoint.every=5"]
    assert train(data, folder, "steps=10", "checkpoint.every=5").returncode == 0
    before = weights_hash(folder)
    # The size limit makes writes fail as a full disk does; 20 kB holds log and store but not the weights.
    limit = 20_000
    result = train(data, folder, "--resume", *options, restore_signals=False,
                   preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert result.returncode == 1
    assert result.stderr, "no message"
    assert weights_hash(folder) == before
    assert not [path for path in (folder / "checkpoints").iterdir() if not path.name.startswith("step-")]
    assert train(data, folder, "--resume", *options).returncode == 0
    assert log_steps(folder)[10:] != []


def test_two_processes_share_the_store(data, tmp_path):
    processes = [subprocess.Popen(command(data, tmp_path / name, "checkpoint.every=1", f"seed={seed}"),
                                  stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
                 for seed, name in enumerate(["a", "b"])]
    for process in processes:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    assert store_rows(tmp_path / "a") == {"a": "done", "b": "done"}


def read_scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(scalar.step, scalar.value) for scalar in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_every_step(whole):
    scalars = read_scalars(whole)
    losses = scalars["train/loss"]
    assert [step for step, _ in losses] == list(range(1, 41))
    for (step, loss), (logged_step, logged_loss) in zip(losses, log_steps(whole)):
        assert step == logged_step and loss == pytest.approx(logged_loss, rel=1e-6)
    assert {"train/lbl", "train/max_vio_step", "heldout/loss", "heldout/specialization", "heldout_loss/beta"} <= set(scalars)


def test_tensorboard_shows_resumed_steps_once(data, tmp_path):
    folder = tmp_path / "run"
    options = ["steps=12", "checkpoint.every=5"]
    with subprocess.Popen(command(data, folder, "steps=4000", "checkpoint.every=5"), stdout=subprocess.PIPE, text=True) as process:
        wait_for_step(process, 8)
        process.kill()
    for checkpoint in sorted((folder / "checkpoints").glob("step-*"))[1:]:
        subprocess.run(["rm", "-r", checkpoint], check=True)
    assert train(data, folder, "--resume", *options).returncode == 0
    assert [step for step, _ in read_scalars(folder)["train/loss"]] == list(range(1, 13))


def test_files_are_what_other_programs_expect(whole):
    from safetensors import safe_open
    checkpoint = last_checkpoint(whole)
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        assert "model.norm.weight" in file.keys()
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    names = {path.name for path in checkpoint.iterdir()} - {"manifest.json"}
    assert set(manifest["files"]) == names
    for name, entry in manifest["files"].items():
        content = (checkpoint / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
