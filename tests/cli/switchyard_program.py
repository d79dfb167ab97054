"""The program under test and a small corpus for it."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

PROGRAM = os.environ["SWITCHYARD_PROGRAM"]

ALPHABETS = {"digits": "0123456789+-*=", "letters": "abcdefghijklm", "greek": "\u03b1\u03b2\u03b3\u03b4\u03b5\u03b6\u03b7\u03b8\u03b9\u03ba\u03bb\u03bc"}


def run(*arguments, code=0, **options):
    """Runs the program to its end and checks the exit code."""
    done = subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == code, f"exit code {done.returncode}, expected {code}\n{done.stdout}\n{done.stderr}"
    return done


def start(*arguments, **options):
    return subprocess.Popen([PROGRAM, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def wait_until(condition, process, seconds=300):
    """Waits for something that the running process brings about."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended early: {process.communicate()}"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def has_checkpoint(folder: Path):
    """Any: the run removes those before the last."""
    return any((folder / "checkpoints").glob("step-*"))


def stop(process, number=signal.SIGTERM):
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def make_corpus(folder: Path, documents=60, words=500):
    """Three domains with alphabets of their own, the same on every call."""
    for name, letters in ALPHABETS.items():
        stream = random.Random(name)
        vocabulary = ["".join(stream.choices(letters, k=stream.randint(2, 6))) for _ in range(150)]
        (folder / name).mkdir(parents=True)
        for number in range(documents):
            text = " ".join(stream.choices(vocabulary, k=words))
            (folder / name / f"{number:03}.txt").write_text(text + "\n", encoding="utf-8")
    return folder


def write_config(path: Path, data: Path, steps=8):
    path.write_text(
        f"""
name = "tiny"
steps = {steps}
[data]
path = "{data}"
sequence_length = 32
micro_batches = 3
[model]
vocab_size = 400
width = 32
num_layers = 2
num_heads = 2
num_kv_heads = 1
head_width = 16
num_experts = 6
num_chosen = 2
expert_width = 16
[balance]
coefficient = 0.1
[execution]
threads = 1
[checkpoint]
every = 2
[evaluation]
sequences_per_domain = 8
permutations = 200
"""
    )
    return path


def write_testbed(path: Path, base: Path, steps=8):
    path.write_text(
        f"""
name = "tiny"
question = "Does <it> work & last?"
base = "{base}"
seeds = [0, 1]
[run]
steps = {steps}
[[arms]]
name = "optimizer_batch"
overrides = ["balance.scope=optimizer_batch"]
[[arms]]
name = "prescribed"
kind = "ceiling"
overrides = ["model.router.name=prescribed", "balance.coefficient=0.0"]
[[claims]]
text = "the reference is specialised"
arm = "prescribed"
at_least = 0.9
[[claims]]
text = "the trained arm beats the reference by far"
arm = "optimizer_batch"
against = "prescribed"
at_least = 0.5
"""
    )
    return path
