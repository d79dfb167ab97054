"""Exit codes, and one message on the error stream that says what to do."""

import json
import os
import pty
import subprocess
from pathlib import Path

import pytest

from switchyard_program import PROGRAM, make_corpus, run, write_config


def error_of(*arguments, code):
    done = run(*arguments, code=code)
    assert done.stdout == "", "nothing on the output"
    assert done.stderr.startswith("switchyard: ")
    assert "\x1b" not in done.stderr
    return done.stderr


def test_a_wrong_key_is_named_with_file_line_and_the_nearest(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text('name = "x"\n[balance]\nscop = "micro_batch"\n')
    message = error_of("train", config, code=2)
    assert f"{config}:3: balance.scop" in message
    assert "did you mean 'scope'?" in message


def test_a_wrong_value_is_named(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text('[balance]\nscope = "microbatch"\n')
    message = error_of("train", config, code=2)
    assert f"{config}:2" in message and "did you mean 'micro_batch'?" in message
    config.write_text('steps = "ten"\n')
    assert "expected an integer" in error_of("train", config, code=2)
    config.write_text("steps = \n")
    assert f"{config}:1" in error_of("train", config, code=2)
    config.write_text("")
    assert "--set stps=3" in error_of("train", config, "--set", "stps=3", code=2)


def test_a_testbed_below_mpirun_is_refused(tmp_path):
    """Its runs would each be the same rank to MPI, which lets only one of them start."""
    config = Path(__file__).parents[2] / "configs" / "testbed" / "demo.toml"
    done = subprocess.run([PROGRAM, "testbed", config, "--out", tmp_path / "out"], capture_output=True, text=True,
                          env={**os.environ, "OMPI_COMM_WORLD_SIZE": "1"})
    assert done.returncode == 2 and "started by mpirun or srun" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_missing_data_set_leaves_no_folder(tmp_path):
    config = write_config(tmp_path / "run.toml", tmp_path / "nothing")
    assert str(tmp_path / "nothing") in error_of("train", config, "--out", tmp_path / "run", code=1)
    assert not (tmp_path / "run").exists()


def test_a_missing_data_set_is_named_once_and_no_testbed_starts(tmp_path):
    config = Path(__file__).parents[2] / "configs" / "testbed" / "demo.toml"
    done = run("testbed", config, "--out", tmp_path / "out", code=1, cwd=tmp_path)
    assert done.stderr.count(f"no data set in {tmp_path}/data/mix8") == 1
    assert f"switchyard data build --preset mix8 --out {tmp_path}/data/mix8" in done.stderr
    assert "start " not in done.stdout and "failed" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_wrong_value_of_set_is_not_blamed_on_the_file_alone(tmp_path):
    config = Path(__file__).parents[2] / "configs" / "train" / "quick.toml"
    message = error_of("train", config, "--set", "data.micro_batches=0", code=2)
    assert f"{config}:" in message and "(changed by --set data.micro_batches=0)" in message


def test_an_existing_folder_is_not_overwritten(tmp_path):
    config = write_config(tmp_path / "run.toml", tmp_path / "nothing")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("x")
    assert "--resume" in error_of("train", config, "--out", tmp_path / "run", code=2)
    assert (tmp_path / "run" / "precious").read_text() == "x"


def test_a_data_set_is_not_overwritten(tmp_path):
    make_corpus(tmp_path / "text", documents=4, words=50)
    (tmp_path / "data").mkdir()
    message = error_of("data", "build", "--from", tmp_path / "text", "--out", tmp_path / "data", code=2)
    assert f"{tmp_path}/data exists already; give another folder" in message


def test_too_little_text_for_the_tokenizer_says_how_much_it_bears(tmp_path):
    make_corpus(tmp_path / "text", documents=4, words=50)
    done = run("data", "build", "--from", tmp_path / "text", "--out", tmp_path / "data", code=1)
    assert "no tokenizer of 8192 pieces could be learned (Vocabulary size too high" in done.stderr
    assert "a smaller vocabulary" in done.stderr and ".cc(" not in done.stderr


def test_too_small_a_vocabulary_for_the_characters_is_not_said_to_be_too_large(tmp_path):
    """Its library advises options that this program does not have."""
    (tmp_path / "text" / "many").mkdir(parents=True)
    for number in range(20):
        (tmp_path / "text" / "many" / f"{number}.txt").write_text("".join(chr(0x4E00 + (number + i) % 300) for i in range(300)) * 20)
    done = run("data", "build", "--from", tmp_path / "text", "--out", tmp_path / "data", "--vocab-size", 300, code=1)
    assert "cannot hold all characters of the text" in done.stderr and "give a larger one (--vocab-size)" in done.stderr
    assert "coverage" not in done.stderr and "Increase" not in done.stderr


def test_a_folder_without_checkpoint_cannot_be_exported(tmp_path):
    assert "holds no checkpoint" in error_of("export", tmp_path, tmp_path / "out", code=1)


@pytest.mark.parametrize("verb", [
    ["train", "--resume", "loop"], ["report", "loop"], ["export", "loop", "out"], ["data", "show", "loop"],
    ["data", "build", "--from", "loop", "--out", "out"], ["train", "run.toml", "--out", "out"],
])
def test_a_path_that_cannot_be_looked_at_says_why(tmp_path, verb):
    """A loop of links stands for a missing right, which root has always."""
    (tmp_path / "loop").symlink_to("loop")
    write_config(tmp_path / "run.toml", tmp_path / "loop")
    done = run(*verb, code=1, cwd=tmp_path)
    assert "loop" in done.stderr and "Too many levels of symbolic links" in done.stderr
    assert done.stderr.startswith("switchyard: cannot look at ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loop", "run.toml"]


@pytest.mark.parametrize("damage", ["empty domain", "not UTF-8", "no folder"])
def test_wrong_text_leaves_no_data_set(tmp_path, damage):
    text = tmp_path / "text"
    if damage != "no folder":
        make_corpus(text, documents=4, words=50)
    if damage == "empty domain":
        (text / "void").mkdir()
    if damage == "not UTF-8":
        (text / "digits" / "bad.txt").write_bytes(b"fine \xff not")
    code = 2 if damage == "no folder" else 1  # what was named is not there: wrong use
    done = run("data", "build", "--from", text, "--out", tmp_path / "data", "--vocab-size", 400, code=code)
    expected = {"empty domain": "void", "not UTF-8": "bad.txt", "no folder": str(text)}[damage]
    assert expected in done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != "text"] == []


def test_lists_are_json_on_request():
    scopes = json.loads(run("list", "scopes", "--json").stdout)
    assert [scope["name"] for scope in scopes] == [
        "sequence", "sequences(n)", "micro_batch", "ranks", "prefix", "optimizer_batch", "previous_step", "ema(decay)"
    ]


def test_colours_come_on_a_terminal_only():
    assert "\x1b" not in run("list", "routers").stdout
    ours, theirs = pty.openpty()
    process = subprocess.Popen([PROGRAM, "list", "routers"], stdout=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    output = b""
    try:
        while chunk := os.read(ours, 4096):
            output += chunk
    except OSError:  # Linux: the other side was closed
        pass
    os.close(ours)
    assert process.wait() == 0
    assert b"\x1b[1m" in output


def test_a_closed_pipe_is_a_failure():
    done = subprocess.run(f"set -o pipefail; '{PROGRAM}' list keys | true", shell=True, executable="/bin/bash", capture_output=True, text=True)
    assert done.returncode in (0, 1)  # 0 where all was written before the reader went away
    assert "terminate called" not in done.stderr


@pytest.mark.parametrize("folder", ["train", "testbed"])
def test_every_configuration_that_is_shipped_can_be_read(folder, tmp_path):
    configs = sorted((Path(__file__).parents[2] / "configs" / folder).glob("*.toml"))
    assert configs
    for config in configs:
        key = "data.path" if folder == "train" else "run.data.path"
        done = subprocess.run([PROGRAM, folder, config, "--out", tmp_path / config.stem, "--set", f"{key}={tmp_path}/none"],
                              capture_output=True, text=True)
        assert done.returncode == 1, f"{config}: {done.stderr}"
        assert f"{tmp_path}/none" in done.stderr, f"{config}: {done.stderr}"
