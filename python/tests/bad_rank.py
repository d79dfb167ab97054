"""A step of two ranks of which one does something bad, by name, in its second micro-batch."""

import torch
from oracle import E, K, L

PLANS = ([[3, 3], [3]], [[3], [3, 3]])
ALL_TOKENS = 18

# By name: what replaces the plan, the segments of begin_forward(), its other arguments, the probabilities, the choices.
BAD_PLANS = {
    "text": [["a"]], "number": 5, "too large": [[2**63]], "half": [[3], [4.5]], "none": [[None]], "vector": torch.tensor([3, 2]),
    "nan": [[float("nan")]], "two in one": [[torch.tensor([1, 2])]], "no plan": None,
}
BAD_SEGMENTS = {"int32 segments": lambda s: s.int(), "segment 7": lambda s: s + 7, "no segment": lambda s: s - 7}
BAD_BEGINS = {"three segments": {"num_segments": 3}, "micro-batch 5": {"micro_batch": 5}}
BAD_PROBS = {"few experts": lambda p: p[:, :3], "scalar": lambda p: p.sum(), "not finite": lambda p: p * float("nan")}
BAD_IDS = {"ids of floats": lambda i: i.double(), "few ids": lambda i: i[:1], "flat ids": lambda i: i[:, 0],
           "ids below": lambda i: i - 100, "ids above": lambda i: i + 100}
BAD_CALLS = ("layer 9", "no record", "no forward", "no close")
BAD_FORWARDS = [*BAD_SEGMENTS, *BAD_BEGINS, *BAD_PROBS, *BAD_IDS, *BAD_CALLS]


def same(value):
    return value


def forward(loss, rank, micro_batch, lengths, bad):
    segments = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    arguments = {"micro_batch": micro_batch, "num_segments": len(lengths), **BAD_BEGINS.get(bad, {})}
    loss.begin_forward(BAD_SEGMENTS.get(bad, same)(segments), **arguments)
    total = 0.0
    for layer in range(L):
        rng = torch.Generator().manual_seed(100 * rank + 10 * micro_batch + layer)
        logits_TE = torch.randn(len(segments), E, generator=rng, dtype=torch.float64, requires_grad=True)
        last = bad if layer == L - 1 else ""
        probs_TE = loss.through(layer, BAD_PROBS.get(last, same)(logits_TE.softmax(-1)))
        if last != "no record":
            ids_TK = BAD_IDS.get(last, same)(logits_TE.topk(K).indices)
            loss.record(9 if last == "layer 9" else layer, ids_TK, probs_TE)
        total = total + probs_TE.sum()
    if bad != "no close":
        loss.close_forward()
    return total


def one_step(loss, rank, bad="", at=1, with_plan=True):
    """@param bad  a name of the tables above, or ""; @param at  its micro-batch"""
    plan = PLANS[rank]
    loss.begin_step(BAD_PLANS.get(bad, plan) if with_plan else None)
    mains = [forward(loss, rank, micro_batch, lengths, bad if micro_batch == at else "")
             for micro_batch, lengths in enumerate(plan) if micro_batch != at or bad != "no forward"]
    loss.close_counting()
    for micro_batch, main in enumerate(mains):
        if micro_batch != at or bad != "no backward":
            main.backward()
    return loss.close_step()
