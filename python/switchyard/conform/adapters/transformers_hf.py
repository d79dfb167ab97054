"""transformers: `load_balancing_loss_func`, as installed. The model multiplies it by `router_aux_loss_coef` and adds it to its loss."""

import transformers
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from ..protocol import describe


@describe(scope="micro_batch", ranks="mean", micro_batches="mean", layers="mean", takes_mask=True, takes_missing=True,
          source=f"huggingface/transformers {transformers.__version__}, models/qwen3_moe/modeling_qwen3_moe.py "
                 "(the installed package; the same function serves Mixtral and OLMoE)")
def loss(batch, group, memory):
    logits = None if batch.logits is None else tuple(batch.logits)
    return batch.coefficient * load_balancing_loss_func(logits, batch.num_experts, batch.num_chosen, batch.mask)
