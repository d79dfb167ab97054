"""Settings of balancing and model, each trained by one process and by ranks of `launch`: counts, losses and norms of each step, and evaluation.

Slow (make test-long): three runs for each setting. In double, so that no choice of experts hangs on the order of a sum.
"""

import json

import pytest

from switchyard_program import make_corpus, run, write_config

# `prefix` is left out: it depends on which micro-batches go together, so ranks are another partition (docs/scopes.md).
SETTINGS = {
    "sequence": ["balance.scope=sequence"],
    "sequences": ["balance.scope=sequences(3)"],
    "micro_batch": ["balance.scope=micro_batch", "balance.weighting=mean"],
    "optimizer_batch": [],
    "pre-pass": ["execution.exact=prepass"],
    "previous_step": ["balance.scope=previous_step"],
    "ema": ["balance.scope=ema(0.9)"],
    "documents": ["data.segments=document", "balance.scope=sequence", "balance.weighting=mean"],
    "gshard": ["balance.method=gshard"],
    "importance_cv2": ["balance.method=importance_cv2"],
    "load_cv2": ["balance.method=load_cv2", "execution.exact=prepass"],
    "variance": ["balance.method=variance"],
    "expert_divergence": ["balance.method=expert_divergence", "data.composition=mixed"],
    "z": ["balance.z_coefficient=0.01"],
    "simbal": ["balance.simbal_coefficient=0.1"],
    "orthogonality": ["balance.orthogonality_coefficient=0.1"],
    "bias": ["balance.coefficient=0", "balance.selection.rule=bias"],
    "quantile": ["balance.coefficient=0", "balance.selection.rule=quantile"],
    "mean_quantile": ["balance.coefficient=0", "balance.selection.rule=mean_quantile"],
    "tied": ["model.tied_embeddings=true"],
    "dense": ["model.dense_layers=[0]", "model.shared_expert_width=8"],
}
RANKS = {
    "replicated": ["execution.experts=replicated"],
    "divided, layers run again": ["execution.experts=sharded", "execution.recompute=layers", "execution.forward=separate"],
}
# Seconds and rates differ between any two runs.
TIMES = ("seconds", "tokens_per_second")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    work = tmp_path_factory.mktemp("settings")
    run("data", "build", "--from", make_corpus(work / "text"), "--out", work / "data", "--vocab-size", 400)
    path = write_config(work / "run.toml", work / "data")
    text = path.read_text().replace("micro_batches = 3", "micro_batches = 4\nsequences_per_micro_batch = 2")
    path.write_text(text.replace("[execution]", '[execution]\ndtype = "float64"') + "every = 4\n")
    return path


def numbers_of(value, name):
    """Every number of a record, by where it stands."""
    if isinstance(value, dict):
        return {key: number for part in value for key, number in numbers_of(value[part], f"{name}.{part}").items()
                if part not in TIMES}
    if isinstance(value, list):
        return {key: number for i, part in enumerate(value) for key, number in numbers_of(part, f"{name}[{i}]").items()}
    return {name: value} if isinstance(value, (int, float)) else {}


def trained(config, folder, settings, ranks=1):
    launch = ["launch", "-n", ranks, "--threads", 1, "--"] if ranks > 1 else []
    run(*launch, "train", config, "--out", folder, *(word for setting in settings for word in ("--set", setting)))
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {key: number for record in records if record["kind"] in ("step", "evaluation")
            for key, number in numbers_of(record, f"{record['kind']} {record['step']}").items()}


@pytest.mark.parametrize("name", SETTINGS)
def test_ranks_train_as_one_process(config, tmp_path, name):
    one = trained(config, tmp_path / "one", SETTINGS[name])
    assert len(one) > 200
    for kind, placement in RANKS.items():
        found = trained(config, tmp_path / kind, SETTINGS[name] + placement, ranks=2)
        assert found.keys() == one.keys()
        different = {key: (number, found[key]) for key, number in one.items()
                     if found[key] != pytest.approx(number, rel=1e-9, abs=1e-11)}
        assert not different, f"{kind}: {len(different)} of {len(one)} numbers differ, such as {list(different.items())[:3]}"
