"""What ends the program before its time: signals, limits, a closed output, a data set that is cut off under it."""

import json
import os
import resource
import signal
import subprocess
from pathlib import Path

import pytest

from switchyard_program import PROGRAM, make_corpus, run, start, stop, wait_until, write_config, write_testbed

FOREVER = "steps=100000"
LONG_STEPS = ["data.sequence_length=256", "data.micro_batches=240"]  # a second or so: all signals arrive in one of them


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("stopping")


@pytest.fixture(scope="session")
def data(work):
    run("data", "build", "--from", make_corpus(work / "text"), "--out", work / "data", "--vocab-size", 400)
    return work / "data"


@pytest.fixture(scope="session")
def config(work, data):
    return write_config(work / "run.toml", data)


def records(folder, kind=None):
    log = folder / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return [record for record in whole if kind in (None, record["kind"])]


def start_run(config, folder, *arguments, **options):
    process = start("train", config, "--out", folder, "--set", FOREVER, *arguments, **options)
    wait_until(lambda: records(folder, "step"), process)
    return process


def assert_saved(folder):
    end = records(folder)[-1]
    assert (end["kind"], end["reason"]) == ("end", "interrupted")
    assert max(path.name for path in (folder / "checkpoints").iterdir()) == f"step-{end['step']:08d}"


def start_testbed(work, config, folder):
    """One run at a time."""
    toml = write_testbed(work / f"{folder.name}.toml", config)
    process = start("testbed", toml, "--out", folder, "--jobs", "1", "--set", "run.steps=100000",
                    "--set", "run.checkpoint.every=0", *[word for key in LONG_STEPS for word in ("--set", "run." + key)])
    wait_until(lambda: any(records(run_folder, "step") for run_folder in folder.glob("*-seed*")), process)
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return process, int(child)


def catches(pid, number):
    """Whether a process has a handler for the signal."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has ended
        return False
    (line,) = [line for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_wish_to_stop_saves(work, config, number):
    folder = work / number.name
    process = start_run(config, folder)
    code, _, err = stop(process, number)
    assert code == 1 and "interrupted after step" in err
    assert_saved(folder)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_what_is_told_more_than_once_is_still_one_wish(work, config, number):
    """A terminal that is closed: the kernel tells it, and the shell. A service manager: SIGTERM, then SIGHUP."""
    folder = work / f"{number.name}-again"
    process = start_run(config, folder, *[word for key in LONG_STEPS for word in ("--set", key)])
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: not catches(process.pid, signal.SIGTERM), process)
    process.send_signal(number)
    code, _, _ = stop(process, number)
    assert code == 1
    assert_saved(folder)


def test_a_second_ctrl_c_ends_at_once(work, config):
    folder = work / "twice"
    process = start_run(config, folder, *[word for key in LONG_STEPS for word in ("--set", key)])
    process.send_signal(signal.SIGINT)
    wait_until(lambda: not catches(process.pid, signal.SIGINT), process)
    code, _, _ = stop(process, signal.SIGINT)
    assert code == -signal.SIGINT
    assert records(folder, "end") == []


def test_nohup_is_heeded(work, config):
    folder = work / "nohup"
    process = start_run(config, folder, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    before = len(records(folder, "step"))
    wait_until(lambda: len(records(folder, "step")) > before + 2, process)
    assert stop(process)[0] == 1


def test_a_service_that_is_ended_saves_its_runs(work, config):
    """Every process of it gets SIGTERM, and the testbed hands its own on: no run may take that for a second wish."""
    folder = work / "service"
    process, child = start_testbed(work, config, folder)
    os.kill(child, signal.SIGTERM)
    wait_until(lambda: not catches(child, signal.SIGTERM), process)
    code, _, err = stop(process)
    assert code == 1 and "go on with" in err
    (run_folder,) = folder.glob("*-seed*")
    assert_saved(run_folder)


def test_a_testbed_that_is_killed_leaves_a_saved_run(work, config):
    folder = work / "killed"
    process, child = start_testbed(work, config, folder)
    handle = os.pidfd_open(child)
    process.kill()
    process.communicate()
    wait_for_end(handle)
    (run_folder,) = folder.glob("*-seed*")
    assert_saved(run_folder)


def test_a_second_ctrl_c_ends_a_testbed_and_its_run(work, config):
    folder = work / "testbed_twice"
    process, child = start_testbed(work, config, folder)
    handle = os.pidfd_open(child)
    process.send_signal(signal.SIGINT)
    wait_until(lambda: not catches(process.pid, signal.SIGINT), process)
    code, _, _ = stop(process, signal.SIGINT)
    assert code == -signal.SIGINT
    wait_for_end(handle)


def wait_for_end(handle, seconds=300):
    import select

    assert select.select([handle], [], [], seconds)[0], "it lives on"
    os.close(handle)


def test_a_limit_of_file_sizes_is_told_like_a_full_disk(work, config):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it

    options = {"preexec_fn": limit, "restore_signals": False, "code": 1}
    assert "File too large" in run("train", config, "--out", work / "limited", **options).stderr
    built = run("data", "build", "--from", work / "text", "--out", work / "limited_data", "--vocab-size", 400, **options)
    assert "File too large" in built.stderr
    assert [path.name for path in work.iterdir() if "limited_data" in path.name] == []


def test_a_closed_output_is_no_file_of_the_run(work, config):
    folder = work / "closed"
    done = subprocess.run([PROGRAM, "train", config, "--out", folder], stderr=subprocess.PIPE, text=True, preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (1, "switchyard: the output could not be written (disk full or pipe closed)\n")
    assert (folder / ".lock").read_bytes() == b""
    assert records(folder)[-1]["reason"] == "done"


def test_a_data_set_that_is_cut_off_is_told(work):
    data = work / "cut"
    run("data", "build", "--from", work / "text", "--out", data, "--vocab-size", 400)
    process = start_run(write_config(work / "cut.toml", data), work / "cut_run")
    for shard in data.glob("*.tokens"):
        os.truncate(shard, 0)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert err.startswith("switchyard: a file that was being read has become shorter")
    assert err.count("\n") == 1
