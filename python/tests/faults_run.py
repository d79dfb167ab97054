"""Each fault of bad_rank.py on the second of two ranks, in a real process group. python faults_run.py OUT, under torchrun."""

import datetime
import sys

import torch
import torch.distributed as dist
from bad_rank import BAD_FORWARDS, BAD_PLANS, one_step
from caller import make_loss
from torchrun import leave

from switchyard import SwitchyardError


def outcome(loss, rank, bad, at):
    """What a step came to, and how many choices the step after it counted in a layer."""
    try:
        one_step(loss, rank, bad, at)
        found = "no error"
    except SwitchyardError as error:
        found = type(error).__name__
    loss.abandon_step()
    return f"{found}, then {int(one_step(loss, rank).counts_LE[0].sum())}" if found != "no error" else found


def main():
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=30))
    rank = dist.get_rank()
    with open(f"{sys.argv[1]}.{rank}", "w") as out:
        for scope in ("sequences(2)", "optimizer_batch", "micro_batch"):
            for bad, at in [("not finite", 0), *((bad, 1) for bad in (*BAD_PLANS, *BAD_FORWARDS, "no backward"))]:
                if bad == "no plan" and scope == "micro_batch":
                    continue  # it can do without
                loss = make_loss(scope)
                print(scope, bad, outcome(loss, rank, bad if rank == 1 else "", at), sep=": ", file=out, flush=True)
    leave()


if __name__ == "__main__":
    main()
