"""Starts a program of this folder on two processes, and ends it there."""

import os
import pathlib
import subprocess
import sys


def torchrun(*words):
    here = str(pathlib.Path(__file__).parent)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([here, *sys.path])}
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, words)],
        env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]


def leave():
    """The end of such a program. Its process group is not taken down: gloo's threads may then hold what the interpreter waits for, or
    end the process with a signal (both seen with torch 2.13, DistributedDataParallel in use)."""
    import torch.distributed

    torch.distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
