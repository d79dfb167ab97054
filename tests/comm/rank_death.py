#!/usr/bin/env python3
"""Kills one of four real processes; the others must end in under 30 s, with a message, and mpirun must fail.

Usage: rank_death.py MPIRUN... -n 4 PROGRAM 4 loop. Exit code 0: so it is.
"""
import os
import re
import signal
import subprocess
import sys
import threading
import time

LIMIT_SECONDS = 30
VICTIM = 2


def is_alive(process):
    try:
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as status:
            return status.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


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
        assert all(is_alive(process) for process in processes.values()), "a rank ended by itself"
        begin = time.monotonic()
        os.kill(processes[VICTIM], signal.SIGKILL)
        rest = run.stdout.read()
        code = run.wait()
        seconds = time.monotonic() - begin
    finally:
        watchdog.cancel()
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    assert not any(is_alive(process) for process in processes.values()), "a rank outlived mpirun"
    assert code != 0, "mpirun reports success"
    assert seconds < LIMIT_SECONDS, f"the others took {seconds:.1f} s to end"
    says_who = re.search(rf"rank {VICTIM}\b.*(signal 9|[Kk]illed)", rest, re.DOTALL)
    assert says_who, "no message names the rank that died:\n" + rest
    print(f"rank death holds: the others ended {seconds:.2f} s after rank {VICTIM} was killed, exit code {code}")


if __name__ == "__main__":
    main()
