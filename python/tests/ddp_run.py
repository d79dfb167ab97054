"""Under torchrun: DistributedDataParallel and a gloo group, three micro-batches on one rank and one on the other, as a user writes it."""
import contextlib
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import switchyard
from torchrun import leave

EXPERTS = 4


class Model(torch.nn.Module):
    def __init__(self, loss):
        super().__init__()
        torch.manual_seed(0)
        self.loss, self.router, self.value = loss, torch.nn.Linear(8, EXPERTS, bias=False), torch.nn.Linear(8, EXPERTS)

    def forward(self, hidden_TD):
        probs_TE = self.loss.through(0, torch.softmax(self.router(hidden_TD), -1))
        weights_TK, ids_TK = probs_TE.topk(2, -1)
        self.loss.record(0, ids_TK, probs_TE)
        return (weights_TK.sum(-1) * self.value(hidden_TD).sum(-1)).mean()


def main():
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    own = 3 if rank == 0 else 1
    found, kept = {}, []
    for scope in ("prefix", "ranks"):
        loss = switchyard.BalanceLoss(num_experts=EXPERTS, num_layers=1, scope=scope, coefficient=1e-2,
                                      contract=switchyard.Contract("sum", "mean"))
        model = DistributedDataParallel(Model(loss))
        kept.append(model)  # see leave()
        for _ in range(2):
            model.zero_grad()
            loss.begin_step([[4]] * own)
            for number in range(own):
                torch.manual_seed(100 * rank + number)
                with contextlib.nullcontext() if number == own - 1 else model.no_sync():
                    loss.begin_forward(torch.zeros(1, 4, dtype=torch.long))
                    value = model(torch.randn(4, 8))
                    loss.close_forward()
                    value.backward()
            report = loss.close_step()
        found[scope] = (report.counts_LE, model.module.router.weight.grad)
    torch.save(found, f"{sys.argv[1]}.{rank}")
    leave()


if __name__ == "__main__":
    main()
