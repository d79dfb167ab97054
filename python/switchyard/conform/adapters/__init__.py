"""Loss functions of other projects in the form of `switchyard.conform.protocol`.

`transformers_hf` calls the installed transformers. The others are re-statements: formulas, group, guard and buffer as the file named
in `About.source` has them, in our own words. They stand for that file at that commit, not for the project today.
"""

from . import deepspeed, megatron, olmo_core, torchtitan, transformers_hf

SHIPPED = [
    ("transformers", transformers_hf.loss),
    ("Megatron-LM global", megatron.global_loss),
    ("Megatron-LM seq", megatron.sequence_loss),
    ("torchtitan", torchtitan.loss),
    ("DeepSpeed top-2", deepspeed.top2_loss),
    ("DeepSpeed top-k", deepspeed.topk_loss),
    ("OLMo-core local_batch", olmo_core.local_batch_loss),
    ("OLMo-core instance", olmo_core.instance_loss),
]
