"""Training on several ranks through the command line: the curve, an end by signal, a rank that is killed, wrong use."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from switchyard_program import PROGRAM, has_checkpoint, make_corpus, run, start, stop, wait_until, write_config

LIMIT_SECONDS = 30
UNWRITTEN = "switchyard: the output could not be written (disk full or pipe closed)\n"


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="session")
def config(work):
    run("data", "build", "--from", make_corpus(work / "text"), "--out", work / "data", "--vocab-size", 400)
    text = write_config(work / "run.toml", work / "data").read_text().replace("micro_batches = 3", "micro_batches = 4")
    (work / "run.toml").write_text(text.replace("[execution]", '[execution]\ndtype = "float32"\nexperts = "sharded"'))
    return work / "run.toml"


def records(folder, kind):
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def losses(folder):
    return [record["loss"] for record in records(folder, "step")]


def newest_weights(folder):
    return (sorted((folder / "checkpoints").iterdir())[-1] / "model.safetensors").read_bytes()


def ranks_below(launcher):
    """Process numbers of the ranks by rank, found among the descendants of the launcher."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it ended meanwhile
            continue
    found = {}
    for process in parents:
        ancestor = process
        while ancestor in parents and ancestor != launcher:
            ancestor = parents[ancestor]
        if ancestor != launcher:
            continue
        try:
            environment = dict(
                entry.split("=", 1) for entry in Path(f"/proc/{process}/environ").read_text().split("\0") if "=" in entry
            )
        except OSError:
            continue
        if "OMPI_COMM_WORLD_RANK" in environment:
            found[int(environment["OMPI_COMM_WORLD_RANK"])] = process
    return found


@pytest.fixture(scope="session")
def two_ranks(work, config):
    folder = work / "two"
    done = run("launch", "-n", 2, "--threads", 1, "--", "train", config, "--out", folder)
    assert done.stdout.count("done: ") == 1, "one rank tells"
    assert "\x1b" not in done.stdout, "no bars that redraw themselves into a pipe"
    return folder


def test_ranks_of_different_programs_are_told(work, config, tmp_path):
    """Their arithmetic may differ, and so their weights would drift apart."""
    commit = re.search(r"\((.+?)\)", run("version").stdout)[1]
    other = tmp_path / "other"
    other.write_bytes(Path(PROGRAM).read_bytes().replace(commit[:8].encode(), b"0" * len(commit[:8])))  # the compiler may keep the rest elsewhere
    other.chmod(0o755)
    assert commit not in subprocess.run([other, "version"], capture_output=True, text=True).stdout, "the copy tells another commit"
    words = ["train", config, "--out", tmp_path / "out"]
    done = subprocess.run(["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", "1", PROGRAM, *words, ":", "-n", "1", other, *words],
                          capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode != 0 and "program" in done.stderr and f"commit {commit}" in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


def test_two_ranks_have_the_curve_of_one(work, config, two_ranks):
    run("train", config, "--out", work / "one")
    assert losses(two_ranks) == pytest.approx(losses(work / "one"), rel=1e-4)
    one, two = records(work / "one", "step"), records(two_ranks, "step")
    assert [record["tokens"] for record in two] == [record["tokens"] for record in one]
    (one,), (two,) = records(work / "one", "evaluation"), records(two_ranks, "evaluation")
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert two["tokens"] == one["tokens"]


def test_the_threads_that_launch_was_given_win(work, config):
    folder = work / "threads"
    run("launch", "-n", 1, "--threads", 2, "--", "train", config, "--set", "steps=1", "--set", "execution.threads=1", "--out", folder)
    assert "\nthreads = 2\n" in (folder / "config.toml").read_text()


def test_a_killed_rank_ends_the_others_and_the_run_resumes_to_the_same_bits(work, config):
    whole_run, folder = work / "not_killed", work / "killed"
    words = ["launch", "-n", "2", "--threads", "1", "--", "train", config, "--set", "steps=60"]  # long enough to be met alive
    run(*words, "--out", whole_run)
    process = start(*words, "--out", folder)
    wait_until(lambda: has_checkpoint(folder), process)
    ranks = ranks_below(process.pid)
    assert sorted(ranks) == [0, 1]
    handles = [os.pidfd_open(number) for number in ranks.values()]
    begin = time.monotonic()
    os.kill(ranks[1], signal.SIGKILL)
    _, err = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 1
    wait_until_ended(handles, begin + LIMIT_SECONDS)
    assert "rank 1" in err and "signal 9" in err
    assert "what was saved can be resumed" in err
    assert not records(folder, "end")
    run("launch", "-n", 2, "--threads", 1, "--", "train", "--resume", folder)
    assert losses(folder) == losses(whole_run)
    assert newest_weights(folder) == newest_weights(whole_run)


def test_a_rank_that_hangs_is_named_by_the_one_that_waits(work, config):
    folder = work / "hanging"
    process = start(
        "launch", "-n", "2", "--threads", "1", "--", "train", config, "--out", folder,
        "--set", "steps=100000", "--set", "execution.time_limit=3",
    )
    wait_until(lambda: (folder / "log.jsonl").exists() and losses(folder), process)
    ranks = ranks_below(process.pid)
    handles = [os.pidfd_open(number) for number in ranks.values()]
    begin = time.monotonic()
    os.kill(ranks[1], signal.SIGSTOP)
    _, err = process.communicate(timeout=LIMIT_SECONDS)
    wait_until_ended(handles, begin + LIMIT_SECONDS)
    assert process.returncode == 1
    assert "rank 0 of 2" in err and "the time limit of 3000 ms passed; " in err and ", step " in err
    # It may have been stopped between its arrival and its last byte.
    assert re.search("not arrived: rank 1|data of rank 1 is missing|data was not taken by rank 1", err)


def test_a_killed_mpirun_is_not_taken_for_a_rank(work, config):
    folder = work / "without_mpirun"
    process = start("launch", "-n", "2", "--threads", "1", "--", "train", config, "--out", folder, "--set", "steps=100000")
    wait_until(lambda: (folder / "log.jsonl").exists() and losses(folder), process)
    handles = [os.pidfd_open(number) for number in ranks_below(process.pid).values()]
    (mpirun,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    begin = time.monotonic()
    os.kill(int(mpirun), signal.SIGKILL)
    _, err = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 1
    assert "mpirun was killed by signal 9" in err and "a rank was ended" not in err
    assert "what was saved can be resumed" in err
    wait_until_ended(handles, begin + LIMIT_SECONDS)


def wait_until_ended(handles, deadline):
    import select

    poller = select.poll()
    living = set(handles)
    for handle in handles:
        poller.register(handle, select.POLLIN)
    while living:
        assert time.monotonic() < deadline, "a rank lives on"
        for ended, _ in poller.poll(max(1, 1000 * (deadline - time.monotonic()))):
            poller.unregister(ended)
            living.discard(ended)


def run_by_hand(*programs):
    """mpirun with a rank of its own for each program, given as (folder to run in, arguments of the program)."""
    words = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-x", "OMP_NUM_THREADS=1"]
    for number, (folder, arguments) in enumerate(programs):
        words += [":"] * (number > 0) + ["-n", "1", "--wdir", str(folder), PROGRAM, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_SECONDS)


@pytest.fixture(scope="session")
def two_disks(work, config):
    """Folders of which each has a run of the same name and steps, trained from other weights."""
    disks = [work / "disk0", work / "disk1"]
    for seed, disk in enumerate(disks):
        run("train", config, "--set", f"seed={seed}", "--set", "steps=4", "--out", disk / "run")
    shutil.copy(disks[0] / "run/config.toml", disks[1] / "run/config.toml")  # else that alone would tell
    return disks


# /proc/self/cwd is one path to every rank and leads to the folder it runs in, as a path does on machines with disks of their own.
RESUME_OWN = ["train", "--resume", "/proc/self/cwd/run", "--set", "steps=6"]


def test_ranks_that_would_resume_from_other_checkpoints_refuse(two_disks):
    done = run_by_hand(*((disk, RESUME_OWN) for disk in two_disks))
    assert done.returncode != 0
    assert "the ranks differ in what they read at /proc/self/cwd/run/checkpoints/step-00000004" in done.stderr
    assert [len(losses(disk / "run")) for disk in two_disks] == [4, 4]


def test_a_checkpoint_that_is_damaged_on_one_rank_is_refused(two_disks, work):
    disks = [work / "whole", work / "damaged"]
    for disk in disks:
        shutil.copytree(two_disks[0], disk)
    weights = disks[1] / "run/checkpoints/step-00000004/model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    done = run_by_hand(*((disk, RESUME_OWN) for disk in disks))
    assert done.returncode != 0
    assert "rank 1: /proc/self/cwd/run/checkpoints/step-00000004/model.safetensors is damaged" in done.stderr


def test_a_rank_that_resumes_and_one_that_begins_are_told(two_disks, config, work):
    new_run = ["train", config, "--set", "seed=0", "--out", work / "begun_by_one"]  # of the configuration that was saved
    alike = ["--set", "steps=6", "--set", "execution.time_limit=3"]
    done = run_by_hand((two_disks[0], [*RESUME_OWN, *alike]), (work, [*new_run, *alike]))
    assert done.returncode != 0
    assert "rank 0 has --resume, rank 1 has a new run" in done.stderr
    assert not (work / "begun_by_one").exists()


def test_a_signal_saves_once_and_another_number_of_ranks_goes_on(work, config):
    folder = work / "signalled"
    process = start("launch", "-n", "2", "--threads", "1", "--", "train", config, "--out", folder, "--set", "steps=100000")
    wait_until(lambda: (folder / "log.jsonl").exists() and losses(folder), process)
    code, _, err = stop(process, signal.SIGINT)
    assert code == 1
    assert err.count(f"switchyard launch -n 2 -- train --resume {folder}") == 1
    assert records(folder, "end")[-1]["reason"] == "interrupted"
    steps = len(losses(folder))
    run("train", "--resume", folder, "--set", f"steps={steps + 1}")
    assert len(losses(folder)) == steps + 1


def test_a_signal_while_ranks_start_ends_them(work, config):
    process = start("launch", "-n", "2", "--threads", "1", "--", "train", config, "--out", work / "early", "--set", "steps=100000")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_until(children.read_text, process)  # mpirun, which loses what it is told now
    code, _, err = stop(process, signal.SIGTERM)
    assert code == 1 and ("stopped, perhaps before all could save" in err or "interrupted after step" in err)


def test_a_parent_that_ignores_its_children_learns_of_the_failure(work):
    def ignore():  # kept through exec: the system would forget how mpirun ended
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    run("launch", "-n", 2, "--", "train", work / "nothing.toml", code=2, preexec_fn=ignore)


def test_a_reader_who_goes_away_does_not_end_the_run(work, config):
    folder = work / "unread"
    process = start("launch", "-n", "2", "--threads", "1", "--", "train", config, "--out", folder, "--json",
                    "--set", "steps=40", "--set", "evaluation.every=1")
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(LIMIT_SECONDS) == 1
    assert err.endswith(UNWRITTEN) and "SIGPIPE" not in err
    assert (len(losses(folder)), records(folder, "end")[-1]["reason"]) == (40, "done")


def test_output_that_cannot_be_written_is_no_success(work, config):
    words = [PROGRAM, "launch", "-n", "2", "--threads", "1", "--", "train", config, "--set", "steps=1", "--out"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*words, work / "full"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=LIMIT_SECONDS)
    assert (done.returncode, done.stderr) == (1, UNWRITTEN)
    done = subprocess.run([*words, work / "closed"], stderr=subprocess.PIPE, text=True, timeout=LIMIT_SECONDS,
                          preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (1, UNWRITTEN)
    assert records(work / "closed", "end")[-1]["reason"] == "done"


def test_a_terminal_that_stops_writers_in_the_background_shows_progress(work, config):
    import pty
    import select
    import termios

    ours, terminal = pty.openpty()
    attributes = termios.tcgetattr(terminal)
    attributes[3] |= termios.TOSTOP
    termios.tcsetattr(terminal, termios.TCSANOW, attributes)

    def take_terminal():
        import fcntl

        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    words = [PROGRAM, "launch", "-n", "2", "--threads", "1", "--", "train", config, "--out", work / "terminal"]
    environment = {**{name: text for name, text in os.environ.items() if name != "NO_COLOR"}, "TERM": "xterm"}
    process = subprocess.Popen(words, stdin=terminal, stdout=terminal, stderr=terminal, env=environment, preexec_fn=take_terminal)
    os.close(terminal)
    shown = b""
    try:
        while select.select([ours], [], [], LIMIT_SECONDS)[0]:
            shown += os.read(ours, 4096)
    except OSError:  # everybody has closed the terminal
        assert process.wait(LIMIT_SECONDS) == 0
    finally:
        process.kill()
        os.close(ours)
    assert b"\r\x1b[J" in shown and b"done: " in shown


def test_a_configuration_that_ranks_cannot_read_is_refused(work, config):
    words = ["train", "/dev/stdin", "--set", "steps=1", "--out"]
    for ranks in (1, 2):
        with open(config) as text:
            refused = run("launch", "-n", ranks, "--threads", 1, "--", *words, work / "stdin", stdin=text, code=2)
        assert refused.stderr.count("switchyard: /dev/stdin is no regular file") == 1
    assert not (work / "stdin").exists()
    with open(config) as text:
        run(*words, work / "stdin", stdin=text)
    assert losses(work / "stdin")


def with_mpirun(folder, text):
    """An environment in which that program is mpirun."""
    folder.mkdir()
    (folder / "mpirun").write_text(f"#!{sys.executable}\n{text}")
    (folder / "mpirun").chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


# Told while it does not listen it would be ended, so it says how often it is.
LISTENS_FOR_A_WHILE = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
print("starting", flush=True)
early = signal.sigtimedwait({signal.SIGUSR1}, 0.3)
signal.signal(signal.SIGUSR1, lambda *_: None)
told = signal.sigtimedwait({signal.SIGUSR1}, 20)
signal.signal(signal.SIGUSR1, signal.SIG_DFL)
late = signal.sigtimedwait({signal.SIGUSR1}, 1.5)
print([wish is not None for wish in (early, told, late)])
"""


def test_mpirun_is_told_to_stop_only_while_it_listens(work, config):
    process = start("launch", "-n", "2", "--", "train", config, env=with_mpirun(work / "listens", LISTENS_FOR_A_WHILE))
    assert process.stdout.readline() == "starting\n"
    code, out, err = stop(process, signal.SIGINT)
    assert (code, out, err) == (0, "[False, True, False]\n", "")


def test_an_mpirun_that_ends_without_a_word_is_told(work, config):
    silent = run("launch", "-n", 2, "--", "train", config, env=with_mpirun(work / "silent", "exit(1)"), code=1)
    assert "mpirun ended with exit code 1 and no rank said why" in silent.stderr and "what was saved can be resumed" in silent.stderr
    told = "import sys; sys.exit('switchyard: told')"
    assert run("launch", "-n", 2, "--", "train", config, env=with_mpirun(work / "talks", told), code=1).stderr == "switchyard: told\n"


def test_wrong_use_is_told_once_with_its_exit_code(work, config):
    missing = run("launch", "-n", 2, "--", "train", work / "nothing.toml", code=2)
    assert missing.stderr.count("nothing.toml") == 1
    uneven = run("launch", "-n", 3, "--", "train", config, "--out", work / "uneven", code=2)
    assert uneven.stderr.count("data.micro_batches is 4, which 3 ranks cannot share evenly") == 1
    assert not (work / "uneven").exists()
    profile = run("launch", "-n", 2, "--", "train", config, "--out", work / "uneven", "--set", "steps=4", "--profile", 3, code=2)
    assert profile.stderr.count("a profile of 3 steps was asked for") == 1
    assert not (work / "uneven").exists()
    experts = run("launch", "-n", 4, "--", "train", config, "--out", work / "uneven", code=2)
    assert experts.stderr.count("model.num_experts is 6") == 1
    assert "ranks were asked for" in run("launch", "-n", 0, "--", "train", config, code=2).stderr
    assert "expected 1 to 1024" in run("launch", "-n", 2000, "--", "train", config, code=2).stderr
    assert "it was given 'list'" in run("launch", "-n", 2, "--", "list", "scopes", code=2).stderr
    assert "command" in run("launch", "-n", 2, code=2).stderr
    assert "no -n,--ranks given" in run("launch", "train", config, code=2).stderr
    without_dashes = run("launch", "-n", 2, "train", work / "nothing.toml", "--set", "steps=2", code=2)
    assert f"cannot read {work}/nothing.toml" in without_dashes.stderr
