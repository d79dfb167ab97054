#!/usr/bin/env python3
"""Rejects an include that goes against the flow of folders (docs/architecture.md).

Usage: tools/check_layers.py [--root DIR]. Exit code 0: all includes are allowed; 1: some are not, one line each on stdout.
"""
import argparse
import pathlib
import re
import sys

# What each folder of switchyard/ may include besides itself. A new folder needs a line here, and so a decision.
ALLOWED = {
    "core": "",
    "comm": "core",
    "data": "core",
    "kernels": "core",
    "router": "core kernels",
    "balance": "core comm kernels",
    "conform": "core comm balance",
    # data: only batch.hpp, the tokens a forward takes; see ONLY.
    "model": "core comm kernels router balance data",
    "measure": "core comm",
    "train": "core comm data kernels router balance model measure",
    "testbed": "core comm data kernels router balance model measure train",
    "report": "core measure",
    "cli": "core comm data kernels router balance conform model measure train testbed report",
}

# Where a folder may use only these headers of another.
ONLY = {("model", "data"): {"batch.hpp"}}

INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"')


def judge(folder, path, target):
    """The complaint about one quoted include, or None."""
    if not target.startswith("switchyard/"):
        if ".." in target.split("/") or (path.parent / target).exists():
            return f'includes "{target}": write the path from the root, "switchyard/{folder}/..."'
        return None  # a third-party or generated header
    parts = target.split("/")
    other = parts[1]
    if other == folder:
        return None
    if other not in ALLOWED[folder].split():
        allowed = ", ".join(ALLOWED[folder].split()) or "nothing"
        return f'includes "{target}": {folder} may include {allowed}'
    only = ONLY.get((folder, other))
    if only is not None and "/".join(parts[2:]) not in only:
        return f'includes "{target}": of {other}, {folder} may include {", ".join(sorted(only))}'
    return None


def check(root):
    complaints = []
    library = root / "switchyard"
    folders = sorted(entry.name for entry in library.iterdir() if entry.is_dir())
    for folder in folders:
        if folder not in ALLOWED:
            complaints.append(f"switchyard/{folder}: not in the table of tools/check_layers.py; say what it may include")
            continue
        for path in sorted(library.joinpath(folder).rglob("*")):
            if path.suffix not in {".hpp", ".cpp", ".h", ".S"}:
                continue
            for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
                match = INCLUDE.match(line)
                complaint = judge(folder, path, match.group(1)) if match else None
                if complaint:
                    complaints.append(f"{path.relative_to(root)}:{number}: {complaint}")
    return folders, complaints


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent)
    root = parser.parse_args().root
    if not (root / "switchyard").is_dir():
        print(f"check_layers: {root} has no folder switchyard")
        return 1
    folders, complaints = check(root)
    for complaint in complaints:
        print(complaint)
    if not folders:
        print("check_layers: no folders to check")
        return 1
    print(f"check_layers: {len(folders)} folders, {len(complaints)} includes against the flow")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
