#!/usr/bin/env python3
"""Compiles each header of the library alone, without the precompiled header: it must include what it uses.

Usage: tools/check_headers.py [--root DIR] [--build DIR] [--jobs N] [--no-cache] [HEADER...]

Flags come from compile_commands.json of the build folder, which must compile each source by itself (preset tidy). Slow (some
seconds a header), so a header that passed is not compiled again until its text, a header of ours that it includes, or its flags
change. Exit code 0: all compile; 1: some do not.
"""
import argparse
import concurrent.futures
import hashlib
import json
import pathlib
import re
import shlex
import subprocess
import sys

INCLUDE = re.compile(r'^\s*#\s*include\s*"(switchyard/[^"]+)"', re.MULTILINE)
# Options with a value that do not concern a header by itself.
DROPPED_WITH_VALUE = {"-o", "-include", "-MF", "-MT", "-MQ"}
DROPPED = {"-c", "-MD", "-MMD", "-Winvalid-pch"}


def flags_from(command):
    """Compiler and flags of a command, without its source, its outputs and the precompiled header."""
    words = shlex.split(command["command"]) if "command" in command else list(command["arguments"])
    kept = [words[0]]
    skip = False
    for word in words[1:]:
        if skip:
            skip = False
        elif word in DROPPED_WITH_VALUE:
            skip = True
        elif word not in DROPPED and word != command["file"]:
            kept.append(word)
    return kept


def flags_by_folder(build):
    """The flags of each folder of switchyard/."""
    found = {}
    for command in json.loads((build / "compile_commands.json").read_text()):
        parts = pathlib.PurePath(command["file"]).parts
        if command["file"].endswith(".cpp") and len(parts) >= 3 and parts[-3] == "switchyard":
            found.setdefault(parts[-2], (flags_from(command), command["directory"]))
    return found


def closure(root, header, seen):
    """The header and all headers of ours that it reaches."""
    if header in seen:
        return seen
    seen.add(header)
    path = root / header
    if path.is_file():
        for target in INCLUDE.findall(path.read_text(encoding="utf-8", errors="replace")):
            closure(root, target, seen)
    return seen


def key_of(root, header, flags):
    digest = hashlib.sha256(json.dumps(flags).encode())
    for name in sorted(closure(root, header, set())):
        path = root / name
        digest.update(name.encode() + b"\0" + (path.read_bytes() if path.is_file() else b"missing") + b"\0")
    return digest.hexdigest()


def compile_alone(root, header, flags, folder):
    # Twice: a header must bear being included twice.
    source = f'#include "{header}"\n#include "{header}"\n'
    command = flags + [f"-I{root}", "-fsyntax-only", "-x", "c++", "-"]
    done = subprocess.run(command, input=source, cwd=folder, capture_output=True, text=True, check=False)
    return done.stderr if done.returncode != 0 else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent)
    parser.add_argument("--build", type=pathlib.Path, help="build folder, default ROOT/build/tidy")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--no-cache", action="store_true")
    parser.add_argument("headers", nargs="*", help="paths from the root; default: all of switchyard/")
    options = parser.parse_args()
    root = options.root.resolve()
    build = (options.build or root / "build/tidy").resolve()
    flags = flags_by_folder(build)
    headers = options.headers or [str(path.relative_to(root)) for path in sorted((root / "switchyard").rglob("*.hpp"))]
    if not headers:
        print("check_headers: no headers found")
        return 1

    cache_file = build / "checked_headers.json"
    known = set(json.loads(cache_file.read_text())) if cache_file.is_file() and not options.no_cache else set()
    keys, waiting = {}, []
    for header in headers:
        of = pathlib.PurePath(header).parts[1]
        if of not in flags:
            print(f"check_headers: {build}/compile_commands.json has no source of switchyard/{of}; configure first")
            return 1
        header_flags, folder = flags[of]
        keys[header] = key_of(root, header, header_flags)
        if keys[header] not in known:
            waiting.append((header, header_flags, folder))
    failed = []
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        results = pool.map(lambda job: compile_alone(root, *job), waiting)
        for (header, _, _), errors in zip(waiting, results):
            if errors:
                failed.append(header)
                print(f"{header}: does not compile alone\n" + "\n".join(errors.splitlines()[:12]))
    passed = set(keys.values()) - {keys[header] for header in failed}
    cache_file.write_text(json.dumps(sorted(known | passed)))
    print(f"check_headers: {len(headers)} headers, {len(waiting)} compiled, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
