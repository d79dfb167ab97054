#!/usr/bin/env python3
"""The contract over a gloo group of 2 or more processes that Python made. Usage: c10d_gloo.py LIBRARY RANKS"""
import ctypes
import datetime
import multiprocessing
import pathlib
import sys
import tempfile

# As many cases as contract.cpp marks Needs::Basics: none may go missing unseen.
CASES = 11


def probe(function, group):
    output = ctypes.create_string_buffer(4096)
    code = function(group.group_name.encode(), output, ctypes.c_size_t(len(output)))
    return code, output.value.decode()


def run_rank(rank, size, library, store):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size,
                            timeout=datetime.timedelta(seconds=60))
    native = ctypes.CDLL(library)
    code, text = probe(native.switchyard_probe_contract, dist.group.WORLD)
    assert code == 0, f"rank {rank}: {text}"
    assert len(text.split()) == CASES, f"rank {rank} ran {text}"
    doomed = dist.new_group(list(range(size)))
    code, text = probe(native.switchyard_probe_time_limit, doomed)
    assert code == 0, f"rank {rank}: {text}"
    print(f"rank {rank}: {text}", flush=True)
    dist.barrier()
    dist.destroy_process_group()


def main():
    library, size = sys.argv[1], int(sys.argv[2])
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        store = pathlib.Path(folder) / "store"
        ranks = [context.Process(target=run_rank, args=(rank, size, library, store)) for rank in range(size)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(120)
        codes = [rank.exitcode for rank in ranks]
        for rank in ranks:
            if rank.is_alive():
                rank.kill()
    assert codes == [0] * size, f"exit codes {codes}"
    print(f"c10d contract holds on {size} ranks of gloo")


if __name__ == "__main__":
    main()
