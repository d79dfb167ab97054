"""What switchyard.attach() costs a Hugging Face Qwen3-MoE: whole training steps, the arms in turn, medians of ratios within a round.

attach_cost.py SHAPES.json NAME --rounds 12
Weights fp32, products bf16 (autocast) unless --autocast off. One model an arm, the same tokens, one micro-batch a step. Prints one line
an arm: milliseconds, and the ratio to the step of the same round without any balancing loss. OMP_NUM_THREADS sets the threads.
"""
import argparse
import json
import os
import statistics
import time

import torch

import switchyard
from peer import make_model

ARMS = {  # name: (whether the model adds its own loss, settings of attach())
    "no balancing loss": (False, None),
    "the model's own loss": (True, None),
    "attach, micro_batch": (False, {"scope": "micro_batch"}),
    "attach, prefix": (False, {"scope": "prefix"}),
    "attach, sequence": (False, {"scope": "sequence"}),
    "attach, prefix and z-loss": (False, {"scope": "prefix", "z_coefficient": 1e-3}),
}


class Arm:
    def __init__(self, shape, own_loss, settings, autocast):
        self.model = make_model(shape, argparse.Namespace(experts="default", weights="float32"), torch)
        self.model.config.output_router_logits = own_loss
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)
        self.attachment = None if settings is None else switchyard.attach(self.model, coefficient=1e-3, **settings)
        self.autocast = autocast

    def step(self, ids):
        begin = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            loss = self.model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes")
    parser.add_argument("name")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--autocast", default="on", choices=["on", "off"])
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    shape = json.load(open(arguments.shapes, encoding="utf-8"))[arguments.name]
    torch.manual_seed(1)
    ids = torch.randint(shape["vocabulary"], (shape["rows"], shape["positions"]))
    arms = {name: Arm(shape, *settings, arguments.autocast == "on") for name, settings in ARMS.items()}
    seconds = {name: [] for name in arms}
    names = list(arms)
    for number in range(arguments.rounds + 2):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            took = arms[name].step(ids)
            if number >= 2:  # warm
                seconds[name].append(took)
    plain = seconds[names[0]]
    for name, values in seconds.items():
        ratio = statistics.median(value / without for value, without in zip(values, plain))
        print(f"{name:28s} {1e3 * statistics.median(values):8.1f} ms   {ratio:.3f}")


if __name__ == "__main__":
    main()
