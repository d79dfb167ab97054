"""Ranks as threads of one process, so that many layouts are quick to try."""

import threading

import torch


class ThreadRanks:
    def __init__(self, size):
        self.size = size
        self.barrier = threading.Barrier(size, timeout=60)
        self.slots = [None] * size

    def of(self, rank):
        return _Member(self, rank)


class _Member:
    def __init__(self, world, rank):
        self._world, self.rank, self.size = world, rank, world.size

    def _exchange(self, value):
        self._world.slots[self.rank] = value
        self._world.barrier.wait()
        values = list(self._world.slots)
        self._world.barrier.wait()
        return values

    def look_again(self):
        pass

    def start_sum(self, values):
        self.sum(values)

    def sum(self, values):
        values.copy_(torch.stack(self._exchange(values.clone())).sum(0))
        return values

    def gather(self, values, device):
        return self._exchange(list(values))

    def gather_plans(self, tokens, device):
        return self._exchange([list(segments) for segments in tokens])


def run_ranks(size, function):
    """function(rank, ranks) on each rank; its results by rank. Raises what the first failing rank raised."""
    world, results, errors = ThreadRanks(size), [None] * size, [None] * size

    def work(rank):
        try:
            results[rank] = function(rank, world.of(rank))
        except Exception as error:  # handed to the caller
            errors[rank] = error
            world.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    real = [error for error in errors if error is not None and not isinstance(error, threading.BrokenBarrierError)]
    if real or any(errors):
        raise (real or [error for error in errors if error])[0]
    return results
