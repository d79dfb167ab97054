"""transformers' Qwen3MoeForCausalLM and our decoder give the same logits, whoever wrote the weights."""

import os
import pathlib
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

TOOL = pathlib.Path(os.environ["SWITCHYARD_BUILD_DIR"]) / "tests/model/model_tool"
TOLERANCE = 1e-4

# Large weights, so that every part matters and routing is far from ties.
BASE = {
    "vocab_size": 61, "width": 24, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "head_width": 8,
    "num_experts": 8, "num_chosen": 2, "expert_width": 12, "dense_width": 20, "init_deviation": 0.2,
}
VARIANTS = {
    "base": {},
    "one_expert_chosen": {"num_chosen": 1},
    "all_experts_chosen": {"num_experts": 5, "num_chosen": 5},
    "plain_weights": {"router.normalize": "none"},
    "one_key_head": {"num_kv_heads": 1},
    "no_grouping": {"num_kv_heads": 4},
    "dense_layers": {"dense_layers": [0, 2]},
    "tied": {"tied_embeddings": True},
    "other_theta_and_epsilon": {"rope_theta": 500.0, "norm_epsilon": 1e-3, "head_width": 10},
}


def run_tool(*words, expected=0):
    result = subprocess.run([TOOL, *map(str, words)], capture_output=True, text=True)
    assert result.returncode == expected, result.stderr
    return result.stderr


def toml_value(value):
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')


def write_toml(path, values):
    plain = {key: value for key, value in values.items() if "." not in key}
    router = {key.split(".")[1]: value for key, value in values.items() if "." in key}
    lines = [f"{key} = {toml_value(value)}" for key, value in plain.items()]
    lines += ["[router]", "init_deviation = 0.5"] + [f"{key} = {toml_value(value)}" for key, value in router.items()]
    path.write_text("\n".join(lines) + "\n")


def random_ids(vocab_size):
    return torch.randint(0, vocab_size, (3, 37), generator=torch.Generator().manual_seed(1))


def our_logits(folder, ids, scratch):
    save_file({"ids": ids}, scratch / "ids.safetensors")
    run_tool("logits", folder, scratch / "ids.safetensors", scratch / "logits.safetensors")
    return load_file(scratch / "logits.safetensors")["logits"].reshape(*ids.shape, -1)


def their_logits(model, ids):
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def load_theirs(folder):
    model, report = Qwen3MoeForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[key], (key, report[key])
    return model


def largest_difference(left, right):
    assert left.shape == right.shape
    return (left - right).abs().max().item()


@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_reads_what_we_write(variant, tmp_path):
    values = {**BASE, **VARIANTS[variant]}
    write_toml(tmp_path / "model.toml", values)
    run_tool("export", tmp_path / "model.toml", tmp_path / "ours")
    ids = random_ids(values["vocab_size"])
    theirs = their_logits(load_theirs(tmp_path / "ours"), ids)
    assert theirs.std() > 0.1  # the comparison means something
    assert largest_difference(our_logits(tmp_path / "ours", ids, tmp_path), theirs) <= TOLERANCE


def hf_config(**changes):
    values = dict(
        vocab_size=61, hidden_size=24, intermediate_size=20, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, moe_intermediate_size=12, num_experts=8, num_experts_per_tok=2,
        norm_topk_prob=True, max_position_embeddings=64, initializer_range=0.2)
    return Qwen3MoeConfig(**{**values, **changes})


@pytest.mark.parametrize("changes", [
    {}, {"norm_topk_prob": False}, {"mlp_only_layers": [1]}, {"decoder_sparse_step": 2}, {"tie_word_embeddings": True},
    {"num_experts_per_tok": 3, "num_key_value_heads": 1}, {"rope_parameters": {"rope_type": "default", "rope_theta": 777.0}},
], ids=str)
def test_we_read_what_transformers_writes(changes, tmp_path):
    torch.manual_seed(2)
    model = Qwen3MoeForCausalLM(hf_config(**changes)).float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:  # norms start at one, which would hide a forgotten one
                weight.uniform_(0.5, 1.5)
    model.save_pretrained(tmp_path / "theirs")
    ids = random_ids(61)
    theirs = their_logits(model, ids)
    assert theirs.std() > 0.1
    assert largest_difference(our_logits(tmp_path / "theirs", ids, tmp_path), theirs) <= TOLERANCE

    run_tool("reexport", tmp_path / "theirs", tmp_path / "again")
    again = load_theirs(tmp_path / "again")
    assert largest_difference(their_logits(again, ids), theirs) == 0.0


def test_we_read_shards(tmp_path):
    torch.manual_seed(2)
    model = Qwen3MoeForCausalLM(hf_config()).float()
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    ids = random_ids(61)
    assert largest_difference(our_logits(tmp_path / "theirs", ids, tmp_path), their_logits(model, ids)) <= TOLERANCE


def test_other_models_are_refused(tmp_path):
    Qwen3MoeForCausalLM(hf_config(attention_bias=True)).save_pretrained(tmp_path / "biased")
    save_file({"ids": random_ids(61)}, tmp_path / "ids.safetensors")
    message = run_tool("logits", tmp_path / "biased", tmp_path / "ids.safetensors", tmp_path / "out", expected=1)
    assert "attention_bias" in message
    assert not (tmp_path / "out").exists()
