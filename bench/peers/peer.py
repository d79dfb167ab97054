"""One peer, one process: training steps of Hugging Face's Qwen3-MoE on random tokens. Prints one JSON line.

peer.py SHAPES.json NAME --experts eager --weights bfloat16 --autocast off --compile off
With --matmul it measures instead what this machine multiplies at best. OMP_NUM_THREADS sets the threads.
"""
import argparse
import json
import os
import resource
import time

START = time.perf_counter()
MATMUL_SHAPES = [(4096, 512, 512), (512, 8192, 256), (4096, 1024, 256), (2048, 2048, 2048), (4096, 4096, 4096)]


def processor_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure_matmul(torch):
    """Best rate over shapes, repeats and both types, into memory that is there, by wall and by processor time; and of each type."""
    best = {"wall_flops": 0.0, "processor_flops": 0.0}
    for dtype in (torch.bfloat16, torch.float32):
        begun = time.perf_counter()  # a processor that cannot multiply bf16 takes minutes for one of these
        of_type = f"wall_flops_{str(dtype).removeprefix('torch.')}"
        best[of_type] = 0.0
        for rows, columns, inner in MATMUL_SHAPES:
            left, right = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
            out = torch.empty(rows, columns, dtype=dtype)
            flops = 2 * rows * columns * inner
            repeats = max(1, int(2e10 / flops))
            for _ in range(6):
                if best[of_type] > 0.0 and time.perf_counter() - begun > 60.0:
                    break
                wall, processor = time.perf_counter(), processor_seconds()
                for _ in range(repeats):
                    torch.mm(left, right.t(), out=out)
                best[of_type] = max(best[of_type], flops * repeats / (time.perf_counter() - wall))
                used = processor_seconds() - processor
                if used > 0:
                    best["processor_flops"] = max(best["processor_flops"], flops * repeats / used)
        best["wall_flops"] = max(best["wall_flops"], best[of_type])
    return best


def make_model(shape, arguments, torch):
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=shape["vocabulary"], hidden_size=shape["width"], num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"], num_key_value_heads=shape["kv_heads"], head_dim=shape["head_width"],
        num_experts=shape["experts"], num_experts_per_tok=shape["chosen"], moe_intermediate_size=shape["expert_width"],
        max_position_embeddings=shape["positions"], norm_topk_prob=True, output_router_logits=True, use_cache=False,
        tie_word_embeddings=False, mlp_only_layers=[], decoder_sparse_step=1,
    )
    if arguments.experts != "default":
        config._experts_implementation = arguments.experts
    torch.manual_seed(1)
    return Qwen3MoeForCausalLM(config).to(getattr(torch, arguments.weights)).train()


def measure_steps(arguments, torch):
    shape = json.load(open(arguments.shapes, encoding="utf-8"))[arguments.name]
    torch.manual_seed(1)
    ids = torch.randint(shape["vocabulary"], (shape["rows"], shape["positions"]))
    model = make_model(shape, arguments, torch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True if arguments.autocast == "on" else None)
    forward = torch.compile(model) if arguments.compile == "on" else model
    result = {"wall_seconds": [], "processor_seconds": []}
    for step in range(arguments.warm_up + arguments.steps):
        wall, processor = time.perf_counter(), processor_seconds()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=arguments.autocast == "on"):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        result["loss"] = loss.item()
        if step == 0:
            result["first_step_seconds"] = time.perf_counter() - START
        if step >= arguments.warm_up:
            result["wall_seconds"].append(time.perf_counter() - wall)
            result["processor_seconds"].append(processor_seconds() - processor)
    result["peak_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result["experts"] = model.config._experts_implementation
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes")
    parser.add_argument("name")
    parser.add_argument("--experts", default="default", choices=["default", "eager", "batched_mm", "grouped_mm"])
    parser.add_argument("--weights", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--autocast", default="off", choices=["on", "off"])
    parser.add_argument("--compile", default="off", choices=["on", "off"])
    parser.add_argument("--matmul", action="store_true")
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    print(json.dumps(measure_matmul(torch) if arguments.matmul else measure_steps(arguments, torch)))


if __name__ == "__main__":
    main()
