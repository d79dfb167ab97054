"""Switchyard and its peers on the same shapes, in one run: order rotated each round, medians over all measured steps.

compare.py --program build/release/bench/step_bench --shape ii --rounds 3 --threads 1
Writes bench/results/DATE-peers-SHAPE-PROCESSOR-INSTRUCTIONS.json and .md. Each measurement is a process of its own.
--isa AVX512_CORE_BF16 keeps all programs from the processor's matrix unit, as on one that has none; the files then end in that name.
"""
import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
SHAPES = HERE.parent / "shapes.json"
# What a user can set without changing a line: memory is kept and lies in huge pages.
TUNED_MALLOC = {
    "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2000000000", "MALLOC_TOP_PAD_": "67108864",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
PEERS = {  # name: (arguments of peer.py, environment)
    "hf float32, defaults": (["--weights", "float32"], {}),
    "hf bfloat16, defaults": (["--weights", "bfloat16"], {}),
    "hf bfloat16, eager experts": (["--weights", "bfloat16", "--experts", "eager"], {}),
    "hf bfloat16, grouped_mm": (["--weights", "bfloat16", "--experts", "grouped_mm"], {}),
    "hf autocast, tuned malloc": (["--autocast", "on"], TUNED_MALLOC),
    "hf autocast, eager experts, tuned malloc": (["--autocast", "on", "--experts", "eager"], TUNED_MALLOC),
    "hf bfloat16, compiled": (["--weights", "bfloat16", "--compile", "on"], {}),
    "hf bfloat16, compiled, tuned malloc": (["--weights", "bfloat16", "--compile", "on"], TUNED_MALLOC),
    "hf autocast, compiled, tuned malloc": (["--autocast", "on", "--compile", "on"], TUNED_MALLOC),
    "hf float32, compiled, tuned malloc": (["--weights", "float32", "--compile", "on"], TUNED_MALLOC),
    # Copies the weights of two experts for each token: 30 times slower at shape (ii), so only when asked for.
    "hf bfloat16, batched_mm": (["--weights", "bfloat16", "--experts", "batched_mm"], {}),
}
LEFT_OUT = {"hf bfloat16, batched_mm"}
OURS = "switchyard"
VARIANTS = {  # of ours: words for step_bench
    OURS: [],
    "switchyard, bf16 moments": ["bfloat16_moments"],
    "switchyard, float32": ["float32"],
}


def run(command, environment, threads, timeout):
    merged = {**os.environ, **environment, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=merged, capture_output=True, text=True, timeout=timeout)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(name, arguments):
    steps = [str(arguments.warm_up), str(arguments.steps)]
    if name in VARIANTS:
        command = [arguments.program, str(SHAPES), arguments.shape, *steps, *VARIANTS[name]]
        return run(command, {}, arguments.threads, arguments.timeout)
    options, environment = PEERS[name]
    environment = {**environment, "TORCHINDUCTOR_CACHE_DIR": arguments.compiled}
    command = [sys.executable, str(HERE / "peer.py"), str(SHAPES), arguments.shape, *options]
    command += ["--warm-up", steps[0], "--steps", steps[1]]
    return run(command, environment, arguments.threads, arguments.timeout)


def summarize(results, peak, shape, flops):
    tokens = shape["rows"] * shape["positions"]
    table = {}
    for name, rounds in results.items():
        row = {"rounds": rounds, "peak_bytes": max(one["peak_bytes"] for one in rounds),
               "first_step_seconds": statistics.median(one["first_step_seconds"] for one in rounds)}
        for clock in ("wall", "processor"):
            seconds = statistics.median(s for one in rounds for s in one[f"{clock}_seconds"])
            row[clock] = {"seconds": seconds, "tokens_per_second": tokens / seconds, "gflops": flops / seconds / 1e9,
                          "share_of_peak": flops / seconds / peak[f"{clock}_flops"]}
        table[name] = row
    return table


def markdown(report):
    clock = report["clock"]
    ours = report["table"][OURS]
    lines = [
        f"# Peers at shape ({report['shape_name']}), {report['date']}"
        + (f", instructions up to {report['isa']}" if report["isa"] else ""), "",
        f"`{report['command']}`, commit {report['commit']}, {report['processor']} ({report['instructions']}), "
        f"{report['threads']} thread(s); load of the machine {report['load_before']:.1f} before and {report['load_after']:.1f} after. Shape: {json.dumps(report['shape'])}.",
        f"Forward + balancing loss + backward + clipping + AdamW; medians over {report['rounds']} rounds of "
        f"{report['steps']} steps, order rotated. Clock of the columns: {clock} time"
        + (" (of all threads of the process: what a machine shared with other work still measures)." if clock == "processor"
           else "."),
        f"FLOPs of a step: {report['step_flops'] / 1e9:.1f} G (matrix products, forward + 2 x that, causal half of attention). "
        f"Best product in this run: {report['peak'][clock + '_flops'] / 1e9:.0f} GF/s "
        f"(wall time: bf16 {report['peak']['wall_flops_bfloat16'] / 1e9:.0f}, "
        f"fp32 {report['peak']['wall_flops_float32'] / 1e9:.0f}).", "",
        "| program | tokens/s | GF/s | share of matmul peak | peak memory | first step (wall) | Switchyard is faster by |",
        "|---|---|---|---|---|---|---|",
    ]
    order = sorted(report["table"], key=lambda name: report["table"][name][clock]["seconds"])
    for name in order:
        row = report["table"][name]
        values = row[clock]
        lines.append(
            f"| {name} | {values['tokens_per_second']:,.0f} | {values['gflops']:.0f} | {values['share_of_peak']:.1%} | "
            f"{row['peak_bytes'] / 1e9:.2f} GB | {row['first_step_seconds']:.1f} s | "
            f"{values['seconds'] / ours[clock]['seconds']:.2f} x |")
    if report["failed"]:
        lines += ["", "Failed: " + "; ".join(f"{name}: {why}" for name, why in report["failed"].items())]
    return "\n".join(lines) + "\n"


def processor_name():
    """As it names itself; of AMD's, which virtual machines call all the same, with the generation."""
    facts = {}
    for line in open("/proc/cpuinfo", encoding="utf-8"):
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    name = facts.get("model name", platform.machine())
    zen = {"26": 5, "25": 4 if "avx512f" in facts.get("flags", "").split() else 3}.get(facts.get("cpu family"))
    return f"{name}, Zen{zen}" if zen and "AMD" in name else name


def instructions():
    """What decides how fast products are, and is in no processor's name."""
    flags = next((line for line in open("/proc/cpuinfo", encoding="utf-8") if line.startswith("flags")), "").split()
    known = {"amx_bf16": "amx", "avx512_bf16": "avx512-bf16", "avx512f": "avx512", "avx2": "avx2"}
    return next((name for flag, name in known.items() if flag in flags), platform.machine())


def short_name(processor):
    """Of "Intel(R) Xeon(R) Processor" intel-xeon: for names of files."""
    words = re.sub(r"\((r|tm)\)|processor|cpu|@.*|\d+-core", " ", processor.lower())
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-") or "unknown"


def commit():
    def ask(*words):
        return subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True).stdout.strip()

    return ask("rev-parse", "--short", "HEAD") + (" with uncommitted work" if ask("status", "--porcelain", "-uno") else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True, help="step_bench")
    parser.add_argument("--shape", default="ii", choices=list(json.load(open(SHAPES, encoding="utf-8"))))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--timeout", type=int, default=1200, help="seconds for one process")
    parser.add_argument("--clock", default="wall", choices=["wall", "processor"])
    parser.add_argument("--isa", help="ONEDNN_MAX_CPU_ISA of all programs; default: all that the processor has")
    parser.add_argument("--only", action="append", help="a peer; default: all but the hopeless one")
    parser.add_argument("--out", type=pathlib.Path, default=HERE.parent / "results")
    arguments = parser.parse_args()
    names = list(VARIANTS) + (arguments.only or [name for name in PEERS if name not in LEFT_OUT])
    shape = json.load(open(SHAPES, encoding="utf-8"))[arguments.shape]
    if arguments.isa:
        os.environ["ONEDNN_MAX_CPU_ISA"] = arguments.isa
    load_before = os.getloadavg()[0]
    results, failed, peaks = {name: [] for name in names}, {}, []
    # Compiled code is kept between rounds, and never taken from a run that was cut off: half a file breaks the next one.
    arguments.compiled = tempfile.mkdtemp(prefix="peers-compiled-")
    for turn in range(arguments.rounds):
        peaks.append(run([sys.executable, str(HERE / "peer.py"), str(SHAPES), arguments.shape, "--matmul"], {},
                         arguments.threads, arguments.timeout))
        for name in names[turn % len(names):] + names[:turn % len(names)]:
            if name in failed:
                continue
            print(f"round {turn + 1} of {arguments.rounds}: {name}", file=sys.stderr, flush=True)
            try:
                results[name].append(measure(name, arguments))
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                failed[name] = str(error)[-300:]
                results.pop(name)
    shutil.rmtree(arguments.compiled, ignore_errors=True)
    peak = {key: max(one[key] for one in peaks) for key in peaks[0]}
    if OURS not in results:
        sys.exit(f"{OURS} failed: {failed[OURS]}")
    # Of the matrix products, forward and backward, attention as its causal half; by switchyard/model/flops.hpp.
    step_flops = results[OURS][0]["step_flops"]
    date = datetime.date.today().isoformat()
    report = {
        "date": date, "command": "compare.py " + shlex.join(sys.argv[1:]), "commit": commit(), "processor": processor_name(),
        "instructions": instructions(), "threads": arguments.threads,
        "load_before": load_before, "load_after": os.getloadavg()[0], "clock": arguments.clock,
        "isa": arguments.isa, "shape_name": arguments.shape, "shape": shape, "rounds": arguments.rounds, "steps": arguments.steps,
        "step_flops": step_flops, "peak": peak, "table": summarize(results, peak, shape, step_flops), "failed": failed,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = arguments.out / "-".join([date, "peers", arguments.shape, short_name(report["processor"]),
                                     arguments.isa.lower() if arguments.isa else report["instructions"]])
    stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(markdown(report), encoding="utf-8")
    print(markdown(report))


if __name__ == "__main__":
    main()
