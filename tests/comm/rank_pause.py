#!/usr/bin/env python3
"""Stops both ranks of a job for longer than their time limit, as a container that is frozen; they must go on.

Usage: rank_pause.py MPIRUN... -n 2 PROGRAM 2 loop_with_limit. Exit code 0: so it is.
"""
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time

from rank_death import wait_for_end

PAUSE_SECONDS = 2.6  # the limit is 2


def read_until(pipe, text, condition, seconds=60):
    """Reads on until the condition holds for all that was read; returns that."""
    deadline = time.monotonic() + seconds
    while not condition(text):
        assert select.select([pipe], [], [], max(0, deadline - time.monotonic()))[0], "waited too long for more than:\n" + text
        more = os.read(pipe, 65536).decode()
        assert more, "the ranks ended:\n" + text
        text += more
    return text


def main():
    run = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    watchdog = threading.Timer(100, lambda: os.killpg(run.pid, signal.SIGKILL))
    watchdog.start()
    pipe = run.stdout.fileno()
    try:
        text = read_until(pipe, "", lambda text: "step " in text and len(re.findall(r"has process \d+\n", text)) == 2)
        processes = {int(rank): int(process) for rank, process in re.findall(r"rank (\d+) has process (\d+)\n", text)}
        handles = {process: os.pidfd_open(process) for process in processes.values()}
        # Rank 0 is stopped last and goes on first, so it is sure to be waiting.
        os.kill(processes[1], signal.SIGSTOP)
        wait_for_end(handles, time.monotonic() + 0.1)
        os.kill(processes[0], signal.SIGSTOP)
        assert len(wait_for_end(handles, time.monotonic() + PAUSE_SECONDS)) == 2, "a rank ended while it was stopped"
        while select.select([pipe], [], [], 0)[0]:  # said before the pause
            assert os.read(pipe, 65536), "the ranks ended"
        os.kill(processes[0], signal.SIGCONT)
        wait_for_end(handles, time.monotonic() + 0.1)
        os.kill(processes[1], signal.SIGCONT)
        later = read_until(pipe, "", lambda later: re.search(r"^step \d+\n", later, re.MULTILINE) or "time limit" in later)
        assert "time limit" not in later, "a rank gave up:\n" + later
    finally:
        run.terminate()  # at which mpirun ends the ranks
        run.wait()
        watchdog.cancel()
    print(f"pause holds: the ranks went on after {PAUSE_SECONDS} s")


if __name__ == "__main__":
    main()
