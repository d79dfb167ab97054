#!/usr/bin/env python3
"""Checks rules of style that no compiler checks.

Usage: tools/check_style.py [--root DIR] [--strict]. Exit code 0: nothing to complain about; 1: something is, one line each on
stdout. Long files are warnings, which only --strict turns into complaints.
"""
import argparse
import pathlib
import re
import sys

FOLDERS = ["switchyard", "tests", "bench", "examples", "tools", "cmake", "python", "configs", "docs"]
SOURCES = {".hpp", ".cpp", ".h", ".S", ".py", ".sh", ".cmake", ".js", ".css", ".html", ".in"}
TEXTS = SOURCES | {".md", ".toml", ".txt", ".json"}
CPP = {".hpp", ".cpp", ".h"}

WIDE_HEADERS = {"torch/torch.h", "torch/extension.h", "torch/all.h", "torch/script.h", "ATen/ATen.h", "ATen/Functions.h"}
MACHINE_PATH = re.compile(r"(?<![\w.$}])/(?:work|root|home|Users)/\w+")
SKIPPED_TEST = re.compile(r"\bGTEST_SKI[P]\b|\bDISABLE[D]_\w+|\bpytest\.(?:mark\.)?(?:skip|xfail)|\bunittest\.skip|\bskipTest\(")
INCLUDE = re.compile(r"^\s*#\s*include\s*[<\"]([^>\"]+)[>\"]")
USING_NAMESPACE = re.compile(r"^\s*using\s+namespace\b")
PRINT_OR_EXIT = re.compile(
    r"\bstd::(?:cout|cerr|clog)\b|(?<![\w:.>])(?:std::|::)?(?:printf|fprintf|puts|exit|quick_exit|abort)\s*\(")
STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def without_comments(line):
    """The line without string contents and without what follows //."""
    return STRING.sub('""', line).split("//", 1)[0]


def length_limit(relative):
    """Lines a C++ file may have; None where there is no limit."""
    if relative.suffix not in CPP:
        return None
    return 500 if relative.parts[0] == "tests" else 400


def complaints_of_line(relative, line):
    found = []
    if relative.suffix in SOURCES or relative.name == "CMakeLists.txt":
        if not line.isascii():
            found.append("not ASCII; write an escape such as \\u00e9")
    if MACHINE_PATH.search(line):
        found.append("a path of one machine; make it relative or an option")
    if SKIPPED_TEST.search(line):
        found.append("a test that is skipped; fix it or remove it")
    if relative.suffix not in CPP:
        return found
    include = INCLUDE.match(line)
    if include and include.group(1) in WIDE_HEADERS:
        found.append(f"includes {include.group(1)}, which costs seconds in every file; include the narrow headers")
    code = without_comments(line)
    if relative.suffix == ".hpp" and USING_NAMESPACE.match(code):
        found.append("using namespace in a header")
    if relative.parts[0] == "switchyard" and relative.parts[1] != "cli" and PRINT_OR_EXIT.search(code):
        found.append("the library prints or exits; throw an error of core/error.hpp or call a sink")
    return found


def check_file(root, path):
    """Complaints and warnings about one file."""
    relative = path.relative_to(root)
    complaints, warnings = [], []
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        return [f"{relative}: not UTF-8 at byte {error.start}"], []
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        complaints += [f"{relative}:{number}: {found}" for found in complaints_of_line(relative, line)]
    # Highway includes *-inl.hpp once for each instruction set; they guard themselves.
    once = "defined(HWY_TARGET_TOGGLE)" in "".join(lines) if relative.name.endswith("-inl.hpp") else "#pragma once" in lines
    if relative.suffix == ".hpp" and not once:
        complaints.append(f"{relative}: no #pragma once")
    limit = length_limit(relative)
    if limit is not None and len(lines) - 1 > limit:
        warnings.append(f"{relative}: {len(lines) - 1} lines; split it (at most {limit})")
    return complaints, warnings


def files_of(root):
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if "__pycache__" in path.parts or path.suffix not in TEXTS or not path.is_file():
                continue
            yield path


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent)
    parser.add_argument("--strict", action="store_true", help="long files are complaints too")
    options = parser.parse_args()
    complaints, warnings, number = [], [], 0
    for path in files_of(options.root):
        number += 1
        found, warned = check_file(options.root, path)
        complaints += found
        warnings += warned
    if options.strict:
        complaints += warnings
        warnings = []
    for warning in warnings:
        print(f"warning: {warning}")
    for complaint in complaints:
        print(complaint)
    print(f"check_style: {number} files, {len(complaints)} complaints, {len(warnings)} warnings")
    return 1 if complaints or number == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
