"""Trains a small Qwen3-MoE of Hugging Face with its Trainer on Switchyard's mix of domains, balanced by switchyard.attach, and
writes a run folder that `switchyard report` draws.

    switchyard data build --preset mix8 --out data/mix8
    python examples/hf_qwen3_moe.py --out runs/hf_optimizer_batch --scope optimizer_batch
    python examples/hf_qwen3_moe.py --out runs/hf_micro_batch --scope micro_batch
    switchyard report runs/hf_optimizer_batch runs/hf_micro_batch --out hf.html

A step is 8 micro-batches of one sequence of one domain each: the worst case for counting in a micro-batch.
"""

import argparse
import datetime
import hashlib
import json
import math
import pathlib
import platform
import sys
import time

import numpy as np
import routing_metrics as metrics
import torch
import torch.nn.functional as F
import transformers
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM, Trainer, TrainerCallback, TrainingArguments

import switchyard
from switchyard.huggingface import find_routers

HEADER_BYTES = 64


def read_shard(path):
    """Tokens of a shard, and the first token of each document; docs/data.md has the form."""
    header = np.fromfile(path, "<u8", 5)
    if int(header[0]).to_bytes(8, "little") != b"SWYTOKEN":
        raise SystemExit(f"{path}: not a token shard")
    documents = int(header[3])
    width = int(np.fromfile(path, "<u4", 1, offset=12)[0])
    offsets = np.fromfile(path, "<u8", documents + 1, offset=HEADER_BYTES)
    return np.memmap(path, f"<u{width}", "r", HEADER_BYTES + 8 * (documents + 1)), offsets


class MixedDomains(torch.utils.data.Dataset):
    """Item i is a window of domain i mod N; each domain's windows come in a random order, again when they are used up."""

    def __init__(self, folder, manifest, length, size, seed):
        self.windows, self.length, self.size = [], length, size
        for number, domain in enumerate(manifest["domains"]):
            tokens, _ = read_shard(folder / domain["train"]["file"])
            if len(tokens) < length:
                raise SystemExit(f"--length {length}: the domain {domain['name']} has {len(tokens)} tokens; give less")
            order = np.random.default_rng([seed, number]).permutation(len(tokens) // length)
            self.windows.append((tokens, order))

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        tokens, order = self.windows[index % len(self.windows)]
        begin = int(order[index // len(self.windows) % len(order)]) * self.length
        ids = torch.from_numpy(np.asarray(tokens[begin : begin + self.length], dtype=np.int64))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


class RunLog:
    """log.jsonl; docs/file-formats.md has the form. A value that is not finite is null."""

    def __init__(self, folder):
        folder.mkdir(parents=True)
        self._file = (folder / "log.jsonl").open("w", encoding="utf-8")

    def add(self, kind, **fields):
        self._file.write(json.dumps(_finite({"kind": kind, **fields})) + "\n")
        self._file.flush()


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class StepLog(TrainerCallback):
    """A line of the log for each step."""

    def __init__(self, log, attachment):
        self._log, self._attachment = log, attachment
        self.seconds, self.tokens, self._begin = 0.0, 0, 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        # Fetching and the pre-pass came before: they belong to this step.
        self._begin = self._begin or time.perf_counter()

    def on_log(self, args, state, control, logs=None, **kwargs):
        report = self._attachment.last_report
        if "loss" not in logs or report is None:
            return
        now = time.perf_counter()
        seconds, self._begin = now - self._begin, now
        self.seconds += seconds
        self.tokens += report.tokens
        micro_batches = [metrics.load_metrics(counts_E)["max_vio"] for counts_LE in report.micro_batch_counts_MLE.tolist()
                         for counts_E in counts_LE]
        self._log.add(
            "step", step=state.global_step, tokens=self.tokens, loss=logs["loss"], balance_loss=report.weighted_loss,
            lbl_layers=report.lbl_L, lbl=float(np.mean(report.lbl_L)) if report.lbl_L else None, z_loss=None,
            max_vio_step=report.max_vio(), max_vio_micro_batch=float(np.mean(micro_batches)),
            learning_rate=logs["learning_rate"], gradient_norm=logs["grad_norm"], seconds=seconds,
            tokens_per_second=report.tokens / seconds)


class Tally:
    """Choices of one layer on held-out text: by document for the domains, by sequence for the load."""

    def __init__(self, num_experts):
        self.num_experts = num_experts
        self.slots, self.first, self.sequences, self.margins = {}, {}, [], []

    def add(self, probs_TE, ids_TK, document_T):
        choices_TK, width = ids_TK.numpy(), ids_TK.shape[1]
        ranked_TE = probs_TE.sort(-1, descending=True).values
        self.margins.append(float((ranked_TE[:, width - 1] - ranked_TE[:, width]).mean()))
        self.sequences.append(self._count(choices_TK))
        for document in np.unique(document_T):
            rows_TK = choices_TK[document_T == document]
            self.slots[document] = self.slots.get(document, 0) + self._count(rows_TK)
            self.first[document] = self.first.get(document, 0) + self._count(rows_TK[:, 0])

    def record(self, layer, domain_X, labels_QX, num_domains):
        """@param domain_X  of each document, in the order in which they were added"""
        return metrics.layer_record(layer, np.stack(list(self.slots.values())), np.stack(list(self.first.values())),
                                    self.sequences, domain_X, labels_QX, num_domains, float(np.mean(self.margins)))

    def _count(self, choices):
        return np.bincount(choices.ravel(), minlength=self.num_experts)


def held_out_sequences(folder, domain, length, number):
    """Tokens [1, T], the tokens after them [T], and the document of each: the same text that `switchyard train` measures on."""
    tokens, offsets = read_shard(folder / domain["heldout"]["file"])
    available = (len(tokens) - 1) // length
    number = min(number, available)
    for i in range(number):
        begin = i * available // number * length  # spread evenly, so every part of the held-out documents is heard
        ids = torch.from_numpy(np.asarray(tokens[begin : begin + length + 1], dtype=np.int64))
        yield ids[None, :-1], ids[1:], np.searchsorted(offsets, np.arange(begin, begin + length), side="right")


@torch.no_grad()
def evaluate(model, folder, manifest, length, per_domain, step, permutations=200):
    """The evaluation record: held-out loss, load, and what experts know of domains. A sequence is a micro-batch."""
    model.eval()
    domains, routers, seen = manifest["domains"], find_routers(model), []
    handles = [router.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs)) for router in routers]
    tallies, losses, domain_of = [Tally(model.config.num_experts) for _ in routers], [], {}
    for number, domain in enumerate(domains):
        loss_sum, scored = 0.0, 0
        for ids, targets_T, place_T in held_out_sequences(folder, domain, length, per_domain):
            seen.clear()
            logits = model(input_ids=ids).logits[0].float()
            loss_sum += float(F.cross_entropy(logits, targets_T, reduction="sum"))
            scored += length
            document_T = place_T * len(domains) + number  # a number of its own for each document
            domain_of.update(dict.fromkeys(np.unique(document_T), number))
            for tally, (probs_TE, _, ids_TK) in zip(tallies, seen):
                tally.add(probs_TE, ids_TK, document_T)
        losses.append(dict(name=domain["name"], loss=loss_sum / scored, perplexity=math.exp(loss_sum / scored), tokens=scored))
    for handle in handles:
        handle.remove()
    domain_X, random = np.array(list(domain_of.values())), np.random.default_rng(0)
    labels_QX = [random.permutation(domain_X) for _ in range(permutations)]
    layers = [tally.record(layer, domain_X, labels_QX, len(domains)) for layer, tally in enumerate(tallies)]
    scored = sum(entry["tokens"] for entry in losses)
    loss = sum(entry["loss"] * entry["tokens"] for entry in losses) / scored
    means = {key: float(np.mean([layer[key] for layer in layers]))
             for key in ("specialization", "purity", "agreement", "margin")}
    means |= {scope: metrics.mean_load([layer[scope] for layer in layers]) for scope in ("micro_batch", "global")}
    return dict(step=step, sequences=len(tallies[0].sequences), tokens=scored, permutations=permutations, loss=loss,
                perplexity=math.exp(loss), domains=losses, layers=layers, **means)


def parse_arguments(words):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("data/mix8"))
    parser.add_argument("--out", type=pathlib.Path, required=True, help="run folder to make")
    parser.add_argument("--scope", default="optimizer_batch", help=", ".join(switchyard.SCOPES))
    parser.add_argument("--coefficient", type=float, default=0.1)
    parser.add_argument("--steps", type=positive, default=300)
    parser.add_argument("--length", type=positive, default=256, help="tokens of a sequence")
    parser.add_argument("--micro-batches", type=positive, default=8)
    parser.add_argument("--width", type=positive, default=128, help="a multiple of 8")
    parser.add_argument("--layers", type=positive, default=4)
    parser.add_argument("--experts", type=positive, default=16)
    parser.add_argument("--heldout", type=positive, default=64, help="held-out sequences of each domain")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(words)
    try:
        check_options(options)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyError as error:
        parser.error(f"{options.data}/manifest.json has no {error}")
    return options


def positive(text):
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}; expected 1 or more")
    return int(text)


def check_options(options):
    """What would fail later, found before a folder is made."""
    switchyard.Scope.parse(options.scope)
    if options.seed < 0 or options.length < 2:
        raise ValueError(f"--seed {options.seed} --length {options.length}; expected 0 or more, and 2 or more")
    if not 0.0 <= options.coefficient < math.inf:
        raise ValueError(f"--coefficient {options.coefficient}; expected a finite number, 0 or more")
    if options.width % 8:  # four heads, and each turns pairs
        raise ValueError(f"--width {options.width}; expected a multiple of 8")
    if options.out.exists():
        raise ValueError(f"--out {options.out} is there already; give the name of a new folder")
    if not (options.data / "manifest.json").exists():
        raise ValueError(f"--data {options.data} is no data set; switchyard data build makes one, see the top of this file")
    domains = json.loads((options.data / "manifest.json").read_bytes())["domains"]
    metrics.check_sizes(len(domains), options.experts, 2)


def settings_of(options, vocab_size):
    """What the run is made with, table by table, under the keys of our own config.toml where they mean the same."""
    return {
        "": dict(name=options.out.name, arm=options.scope, seed=options.seed, steps=options.steps),
        "data": dict(path=str(options.data), sequence_length=options.length, sequences_per_micro_batch=1,
                     micro_batches=options.micro_batches, composition="one_domain"),
        "model": dict(vocab_size=vocab_size, width=options.width, num_layers=options.layers, num_heads=4, num_kv_heads=2,
                      head_width=options.width // 4, num_experts=options.experts, num_chosen=2, expert_width=options.width),
        "model.router": dict(name="top_k", normalize="chosen_sum"),
        "balance": dict(method="lbl", scope=options.scope, coefficient=options.coefficient),
        "optimizer": dict(learning_rate=2e-3, weight_decay=0.1, clip_norm=1.0, schedule="cosine",
                          warmup_steps=min(20, options.steps // 4)),
        "evaluation": dict(sequences_per_domain=options.heldout, permutations=200),
    }


def as_toml(settings):
    return "\n".join((f"[{table}]\n" if table else "") + "".join(
        f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in keys.items())
                     for table, keys in settings.items())


def make_model(model, length, seed):
    torch.manual_seed(seed)
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(
        vocab_size=model["vocab_size"], hidden_size=model["width"], num_hidden_layers=model["num_layers"],
        num_attention_heads=model["num_heads"], num_key_value_heads=model["num_kv_heads"], head_dim=model["head_width"],
        num_experts=model["num_experts"], num_experts_per_tok=model["num_chosen"], moe_intermediate_size=model["expert_width"],
        intermediate_size=model["expert_width"], max_position_embeddings=length, norm_topk_prob=True, bos_token_id=1,
        eos_token_id=2, use_cache=False))


def training_arguments(options, optimizer):
    return TrainingArguments(
        output_dir=str(options.out), per_device_train_batch_size=1, gradient_accumulation_steps=options.micro_batches,
        max_steps=options.steps, learning_rate=optimizer["learning_rate"], warmup_steps=optimizer["warmup_steps"],
        lr_scheduler_type=optimizer["schedule"], weight_decay=optimizer["weight_decay"], max_grad_norm=optimizer["clip_norm"],
        logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, seed=options.seed,
        dataloader_pin_memory=False)


def start_record(options, manifest_text, manifest, model):
    return dict(
        schema=1, name=options.out.name, arm=options.scope, seed=options.seed, step=1, total_steps=options.steps,
        scope=options.scope, method="lbl", coefficient=options.coefficient, router="top_k",
        domains=[domain["name"] for domain in manifest["domains"]], num_layers=options.layers, num_experts=options.experts,
        num_chosen=2, parameters=sum(weight.numel() for weight in model.parameters()), compute_type="float32",
        data_hash=hashlib.sha256(manifest_text).hexdigest(), version=f"transformers {transformers.__version__}", commit="",
        torch_version=torch.__version__, processor=platform.processor() or platform.machine(),
        time_utc=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        command=" ".join(["python", *sys.argv]))


def main(words=None):
    options = parse_arguments(words)
    manifest_text = (options.data / "manifest.json").read_bytes()
    manifest = json.loads(manifest_text)
    settings = settings_of(options, manifest["vocab_size"])
    model = make_model(settings["model"], options.length, options.seed)
    rows = MixedDomains(options.data, manifest, options.length, options.steps * options.micro_batches, options.seed)
    log = RunLog(options.out)
    (options.out / "config.toml").write_text(as_toml(settings), encoding="utf-8")
    log.add("start", **start_record(options, manifest_text, manifest, model))
    trainer = Trainer(model=model, train_dataset=rows, args=training_arguments(options, settings["optimizer"]))
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(rows)  # domain after domain
    attachment = switchyard.attach(trainer, scope=options.scope, coefficient=options.coefficient)
    steps = StepLog(log, attachment)
    trainer.add_callback(steps)
    trainer.remove_callback(transformers.PrinterCallback)
    log.add("notice", step=0, text="Trained by the Trainer of transformers 5.2, which divides gradients by the number of "
                                   "micro-batches twice; gradient_norm is that of what it clips.")
    if attachment.loss.lacks_history:
        log.add("notice", step=0, text="step 1 has no balancing loss")
    begin = time.perf_counter()
    trainer.train()
    record = evaluate(model, options.data, manifest, options.length, options.heldout, options.steps)
    log.add("evaluation", **record)
    log.add("end", step=options.steps, reason="done", seconds=time.perf_counter() - begin, train_seconds=steps.seconds)
    print(f"{options.out}: S {record['specialization']:.3f}, MaxVio {record['global']['max_vio']:.2f} (global), "
          f"held-out loss {record['loss']:.3f}, {steps.tokens / steps.seconds:.0f} tokens/s")


if __name__ == "__main__":
    main()
