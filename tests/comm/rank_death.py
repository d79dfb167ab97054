#!/usr/bin/env python3
"""Kills one of four real processes; the others must end in under 30 s, with a message, and mpirun must fail.

Usage: rank_death.py MPIRUN... -n 4 PROGRAM 4 loop. Exit code 0: so it is.
"""
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time

LIMIT_SECONDS = 30
VICTIM = 2


def wait_for_end(handles, deadline):
    """Waits until every process has ended or the time is up; returns the processes that live on."""
    living = dict(handles)
    poller = select.poll()
    for handle in living.values():
        poller.register(handle, select.POLLIN)
    while living and time.monotonic() < deadline:
        for ended, _ in poller.poll(1000 * (deadline - time.monotonic())):
            poller.unregister(ended)
            living = {process: handle for process, handle in living.items() if handle != ended}
    return list(living)


def main():
    run = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    watchdog = threading.Timer(90, lambda: os.killpg(run.pid, signal.SIGKILL))
    watchdog.start()
    try:
        processes, lines = {}, []
        for line in run.stdout:
            lines.append(line)
            if found := re.search(r"rank (\d+) has process (\d+)", line):
                processes[int(found[1])] = int(found[2])
                if len(processes) == 4:
                    break
        assert len(processes) == 4, "the ranks did not start:\n" + "".join(lines)
        # A process handle becomes readable when its process ends, whoever its parent is.
        handles = {process: os.pidfd_open(process) for process in processes.values()}
        assert len(wait_for_end(handles, time.monotonic() + 0.001)) == 4, "a rank ended by itself"
        begin = time.monotonic()
        os.kill(processes[VICTIM], signal.SIGKILL)
        rest = run.stdout.read()
        code = run.wait()
        # mpirun may end before the ranks it ended are gone.
        living = wait_for_end(handles, begin + LIMIT_SECONDS)
        seconds = time.monotonic() - begin
    finally:
        watchdog.cancel()
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    assert not living, f"processes {living} outlived rank {VICTIM} by {LIMIT_SECONDS} s"
    assert code != 0, "mpirun reports success"
    assert seconds < LIMIT_SECONDS, f"the others took {seconds:.1f} s to end"
    says_who = re.search(rf"rank {VICTIM}\b.*(signal 9|[Kk]illed)", rest, re.DOTALL)
    assert says_who, "no message names the rank that died:\n" + rest
    print(f"rank death holds: the others ended {seconds:.2f} s after rank {VICTIM} was killed, exit code {code}")


if __name__ == "__main__":
    main()
