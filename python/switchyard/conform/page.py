"""Writes the tables of docs/conform.md between their markers."""

import subprocess

from . import table
from .protocol import about


def block(name):
    return f"<!-- {name}: written by `python -m switchyard.conform --write-page` -->", f"<!-- end of {name} -->"


def replaced(text, name, content):
    """The page with what stands between the markers of `name` replaced."""
    begin, end = block(name)
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"expected the lines {begin!r} and {end!r} once each")
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{content}\n\n{end}{rest.split(end)[1]}"


def foreign_block(results, functions):
    sources = "\n".join(f"- {name}: {about(function).source}" for name, function in functions)
    return f"{sources}\n\n{table.markdown(results)}"


def own_block(program):
    """What `switchyard conform` prints."""
    done = subprocess.run([str(program), "conform"], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise ValueError(f"{program} conform ended with {done.returncode}: {done.stderr.strip()}")
    return f"```\n{done.stdout.rstrip()}\n```"


def write(path, results, functions, program=None):
    text = path.read_text(encoding="utf-8")
    text = replaced(text, "foreign table", foreign_block(results, functions))
    if program is not None:
        text = replaced(text, "own table", own_block(program))
    path.write_text(text, encoding="utf-8")
