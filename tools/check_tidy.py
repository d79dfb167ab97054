#!/usr/bin/env python3
"""Runs clang-tidy over the sources of switchyard/.

Usage: tools/check_tidy.py [--build DIR] [--clang-tidy PROGRAM] [--jobs N] [--no-cache] [FILE...]

Flags come from compile_commands.json of the build folder, which must be one without precompiled header (preset tidy): clang cannot
read GCC's. Nearly all time goes into the headers of libtorch, so that sources of one folder with equal flags are read together,
as far as their names in unnamed namespaces differ; where that does not compile, they are read one by one. A source that passed is
not read again until it, a header of ours that it includes, its flags or .clang-tidy change. Exit code 0: clean; 1: findings.
"""
import argparse
import concurrent.futures
import hashlib
import json
import pathlib
import re
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
from check_headers import closure, flags_from  # noqa: E402

BATCH = 12
UNNAMED = re.compile(r"^namespace \{$(.*?)^\}", re.MULTILINE | re.DOTALL)
DEFINED = re.compile(r"(\w+)(?=\s*(?:\(|\{|=|;|\[))")
FINDING = re.compile(r"^(?:/|\w).*?:\d+:\d+: (?:warning|error): .*\[[\w.,-]+\]$", re.MULTILINE)
DOES_NOT_COMPILE = re.compile(r"\[clang-diagnostic-error[\],]")
# Read once for each instruction set, which only works for a file by itself.
READS_ITSELF = "HWY_TARGET_INCLUDE"


def unnamed_names(text):
    """Names that the file defines for itself alone."""
    names = set()
    for block in UNNAMED.findall(text):
        for line in block.splitlines():
            if re.match(r"[A-Za-z]", line):
                names.update(DEFINED.findall(line.split("//", 1)[0]))
    return names


def commands_of(root, build):
    """Source (from the root) to its flags and its folder of compilation."""
    found = {}
    for command in json.loads((build / "compile_commands.json").read_text()):
        path = pathlib.Path(command["file"])
        if path.is_relative_to(root / "switchyard"):
            found[str(path.relative_to(root))] = (flags_from(command)[1:], command["directory"])
    return found


def batches_of(root, sources, commands):
    """Lists of sources of one folder that can be read as one file."""
    batches = []  # [folder, flags, names, sources]
    for source in sources:
        text = (root / source).read_text(encoding="utf-8")
        names, flags, folder = unnamed_names(text), commands[source][0], str(pathlib.PurePath(source).parent)
        alone = READS_ITSELF in text
        for batch in batches:
            if not alone and batch[0] == folder and batch[1] == flags and len(batch[3]) < BATCH and not batch[2] & names:
                batch[2].update(names)
                batch[3].append(source)
                break
        else:
            batches.append(["alone" if alone else folder, flags, set(names), [source]])
    return [batch[3] for batch in batches]


def read(root, program, sources, commands):
    """The findings of clang-tidy as text, empty if clean."""
    flags, folder = commands[sources[0]]
    with tempfile.TemporaryDirectory() as scratch:
        together = pathlib.Path(scratch) / "together.cpp"
        together.write_text("".join(f'#include "{root / source}"  // NOLINT\n' for source in sources))
        main = str(together) if len(sources) > 1 else str(root / sources[0])
        done = subprocess.run(
            [program, "--quiet", f"--config-file={root / '.clang-tidy'}", "--extra-arg=-Wno-unknown-warning-option",
             # GCC 12's own std::stable_sort uses what it deprecates; g++ warns of ours.
             "--extra-arg=-Wno-deprecated-declarations", main, "--", *flags, f"-I{root}"],
            cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode == 0 and not FINDING.search(done.stdout):
        return ""
    if len(sources) > 1 and DOES_NOT_COMPILE.search(done.stdout):
        return "".join(read(root, program, [source], commands) for source in sources)
    return done.stdout or done.stderr or f"{sources}: clang-tidy ended with code {done.returncode} and no word"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent)
    parser.add_argument("--build", type=pathlib.Path, help="build folder, default ROOT/build/tidy")
    parser.add_argument("--clang-tidy", default="clang-tidy-19")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--no-cache", action="store_true")
    parser.add_argument("files", nargs="*", help="paths from the root; default: all sources of switchyard/ that are compiled")
    options = parser.parse_args()
    root = options.root.resolve()
    build = (options.build or root / "build/tidy").resolve()
    commands = commands_of(root, build)
    sources = options.files or sorted(commands)
    strangers = [source for source in sources if source not in commands]
    if strangers or not sources:
        print(f"check_tidy: {build}/compile_commands.json has no {' '.join(strangers) or 'source of switchyard/'}; configure first")
        return 1

    cache_file = build / "checked_tidy.json"
    known = set(json.loads(cache_file.read_text())) if cache_file.is_file() and not options.no_cache else set()
    version = subprocess.run([options.clang_tidy, "--version"], capture_output=True, text=True, check=True).stdout
    rules = version + (root / ".clang-tidy").read_text()

    def key_of(source):
        digest = hashlib.sha256(json.dumps([rules, commands[source]]).encode())
        for name in sorted(closure(root, source, set())):
            path = root / name
            digest.update(name.encode() + b"\0" + (path.read_bytes() if path.is_file() else b"missing") + b"\0")
        return digest.hexdigest()

    keys = {source: key_of(source) for source in sources}
    waiting = [source for source in sources if keys[source] not in known]
    batches = batches_of(root, waiting, commands)
    findings, dirty = {}, []
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for batch, text in zip(batches, pool.map(lambda batch: read(root, options.clang_tidy, batch, commands), batches)):
            if text:
                dirty += batch
                print(text, flush=True)
                findings.update((line, None) for line in FINDING.findall(text))
            else:
                known.update(keys[source] for source in batch)
                cache_file.write_text(json.dumps(sorted(known)))
    print(f"check_tidy: {len(sources)} sources, {len(waiting)} read in {len(batches)} batches, {len(findings)} findings")
    return 1 if dirty else 0


if __name__ == "__main__":
    sys.exit(main())
