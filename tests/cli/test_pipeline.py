"""The whole line on a corpus that the test makes: data, train, kill and resume, testbed, report, export."""

import json
import shlex
import shutil
import signal

import pytest

from switchyard_program import has_checkpoint, make_corpus, run, start, stop, wait_until, write_config, write_testbed


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(scope="session")
def data(work):
    out = work / "data"
    built = run("data", "build", "--from", make_corpus(work / "text"), "--out", out, "--vocab-size", 400)
    assert "\x1b" not in built.stdout, "no escape codes without a terminal"
    assert all(domain in built.stdout for domain in ("digits", "letters", "greek"))
    return out


@pytest.fixture(scope="session")
def config(work, data):
    return write_config(work / "run.toml", data)


@pytest.fixture(scope="session")
def whole_run(work, config):
    folder = work / "whole"
    trained = run("train", config, "--out", folder)
    assert "done: " in trained.stdout and "\x1b" not in trained.stdout
    return folder


def test_the_command_in_the_log_can_be_pasted_into_a_shell(work, config):
    folder = work / "two words"
    run("train", config, "--out", folder, "--set", "steps=1", "--set", 'data.domains=["digits", "greek"]')
    command = read_log(folder)[0]["command"]
    assert shlex.split(command) == ["switchyard", "train", str(config), "--out", str(folder), "--set", "steps=1",
                                    "--set", 'data.domains=["digits", "greek"]']


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def step_values(folder):
    """What a step must repeat to the bit; times may differ."""
    keys = ("step", "tokens", "loss", "balance_loss", "lbl", "max_vio_step", "gradient_norm")
    return [[record[key] for key in keys] for record in read_log(folder) if record["kind"] == "step"]


def evaluations(folder):
    return [record for record in read_log(folder) if record["kind"] == "evaluation"]


def newest_weights(folder):
    return (sorted((folder / "checkpoints").iterdir())[-1] / "model.safetensors").read_bytes()


def test_data_can_be_shown(data):
    manifest = json.loads(run("data", "show", data, "--json").stdout)
    assert [domain["name"] for domain in manifest["domains"]] == ["digits", "greek", "letters"]
    assert manifest["vocab_size"] == 400


@pytest.mark.parametrize("file", ["tokenizer.model", "greek.train.tokens"])
def test_a_file_of_other_data_is_named(work, data, config, file):
    """Whole in itself, but not the one of the manifest."""
    other = work / f"other-{file}"
    shutil.copytree(data, other)
    if file == "tokenizer.model":
        (other / file).write_bytes((data / file).read_bytes() + b"\n")
    else:
        manifest = json.loads((other / "manifest.json").read_text())
        split = next(domain["train"] for domain in manifest["domains"] if domain["train"]["file"] == file)
        split["sha256"] = split["sha256"][::-1]
        (other / "manifest.json").write_text(json.dumps(manifest))
    says = f"{file} is not the file that this data set was built with"
    assert says in run("data", "show", other, code=1).stderr
    assert says in run("train", config, "--out", work / "misled", "--set", f"data.path={other}", code=1).stderr
    assert not (work / "misled").exists()


def test_equal_text_gives_equal_data(work, data):
    again = work / "again"
    run("data", "build", "--from", work / "text", "--out", again, "--vocab-size", 400)
    names = sorted(path.name for path in data.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    for name in names:
        assert (data / name).read_bytes() == (again / name).read_bytes(), name


def test_a_run_learns_and_is_evaluated(whole_run):
    steps = step_values(whole_run)
    assert [values[0] for values in steps] == list(range(1, 9))
    assert steps[-1][2] < steps[0][2], "the loss falls"
    assert len(evaluations(whole_run)) == 1
    assert read_log(whole_run)[-1]["reason"] == "done"


@pytest.mark.parametrize("settings, says, coefficient", [
    (["balance.coefficient=0.25"], "; router top_k; lbl 0.25 over optimizer_batch; losses of layers: mean\n", 0.25),
    (["balance.method=none", "balance.selection.rule=quantile", "balance.z_coefficient=0.125"],
     "; router top_k; z-loss 0.125; choice by quantile; losses of layers: mean\n", 0.0),
])
def test_a_run_begins_with_all_that_balances_it(work, config, settings, says, coefficient):
    folder = work / f"says-{coefficient}"
    trained = run("train", config, "--out", folder, *[word for setting in ["steps=1", *settings] for word in ("--set", setting)])
    assert says in trained.stdout
    assert read_log(folder)[0]["coefficient"] == coefficient, "of the first loss, 0 where there is none"


def test_a_killed_run_resumes_to_the_same_bits(work, config):
    whole_run, folder = work / "not_killed", work / "killed"
    run("train", config, "--out", whole_run, "--set", "steps=60")
    process = start("train", config, "--out", folder, "--set", "steps=60")  # long enough to be met alive
    wait_until(lambda: has_checkpoint(folder), process)
    process.kill()
    process.communicate()
    assert read_log(folder)[-1]["kind"] != "end"
    resumed = run("train", "--resume", folder)
    assert "resumed" in resumed.stdout
    assert step_values(folder) == step_values(whole_run)
    assert evaluations(folder) == evaluations(whole_run)
    assert newest_weights(folder) == newest_weights(whole_run)


def test_a_signal_saves_and_says_how_to_go_on(work, config):
    folder = work / "signalled"
    process = start("train", config, "--out", folder, "--set", "steps=100000")
    wait_until(lambda: (folder / "log.jsonl").exists() and step_values(folder), process)
    code, _, err = stop(process, signal.SIGINT)
    assert code == 1
    assert f"switchyard train --resume {folder}" in err
    assert read_log(folder)[-1]["reason"] == "interrupted"
    steps = len(step_values(folder))
    run("train", "--resume", folder, "--set", f"steps={steps + 1}")
    assert len(step_values(folder)) == steps + 1


def test_a_profile_says_where_the_time_went_and_changes_nothing(work, config, whole_run):
    folder = work / "profiled"
    done = run("train", config, "--out", folder, "--profile", 2)
    assert done.stderr == "" and "steps 3 to 4: " in done.stdout
    summary = json.loads((folder / "profile" / "summary.json").read_text())
    assert (summary["first_step"], summary["steps"]) == (3, 2)
    parts = {part["name"]: part["forward_seconds"] + part["backward_seconds"] for part in summary["parts"]}
    assert {"attention", "router", "experts", "balancing", "head and loss", "optimizer", "other"} <= parts.keys()
    assert sum(parts.values()) == pytest.approx(summary["seconds_per_step"], rel=1e-6)
    assert all(parts[name] > 0 for name in ("attention", "experts", "head and loss", "optimizer"))
    assert 0 < summary["share_of_peak"] < 1
    trace = json.loads((folder / "profile" / "trace.json").read_text())
    assert "experts" in {event.get("name") for event in trace["traceEvents"]}
    assert step_values(folder) == step_values(whole_run)
    few = run("train", config, "--out", work / "few", "--profile", 1000, code=2)
    assert "steps are left" in few.stderr and not (work / "few").exists()


def test_progress_as_json(work, config):
    lines = run("train", config, "--out", work / "json", "--set", "steps=2", "--json").stdout.splitlines()
    records = [json.loads(line) for line in lines]
    assert {record["kind"] for record in records} <= {"step", "notice", "evaluation", "end"}
    steps = [record for record in records if record["kind"] == "step"]
    assert steps[-1]["step"] == 2 and steps[-1]["total_steps"] == 2
    assert steps[-1]["loss"] == step_values(work / "json")[-1][2]
    assert records[-1] == {"kind": "end", "reason": "done", "step": 2, "folder": str(work / "json")}


@pytest.fixture(scope="session")
def testbed(work, config):
    """Interrupted once, then finished."""
    toml = write_testbed(work / "testbed.toml", config)
    folder = work / "testbed"
    words = ["testbed", str(toml), "--out", str(folder), "--jobs", "2", "--set", "question=Goes it on?", "--require-claims", "--json"]
    process = start(*words)
    finished = folder / "optimizer_batch-seed0" / "log.jsonl"
    wait_until(lambda: finished.exists() and '"end"' in finished.read_text(), process)
    code, _, err = stop(process, signal.SIGINT)
    assert code == 1
    assert shlex.split(err.split("go on with: ")[1]) == ["switchyard", *words]
    first_log = finished.read_bytes()
    completed = run("testbed", toml, "--out", folder)
    assert finished.read_bytes() == first_log, "a finished run is not repeated"
    return toml, folder, completed.stdout


def test_a_testbed_goes_on_where_it_stopped(testbed):
    _, folder, out = testbed
    for name in ("optimizer_batch-seed0", "optimizer_batch-seed1", "prescribed-seed0", "prescribed-seed1"):
        assert read_log(folder / name)[-1]["reason"] == "done", name
        assert len(step_values(folder / name)) == 8, name
    assert "holds" in out and "fails" in out, "one claim of each kind"
    assert "finished before" in out
    assert "0.008" in out, "lambda above the paper's is mentioned"
    assert "\x1b" not in out


def test_a_testbed_run_equals_the_same_run_alone(testbed, whole_run):
    _, folder, _ = testbed
    assert step_values(folder / "optimizer_batch-seed0") == step_values(whole_run)


def test_a_finished_testbed_runs_nothing(testbed):
    toml, folder, _ = testbed
    logs = {path: path.read_bytes() for path in folder.glob("*/log.jsonl")}
    study = json.loads(run("testbed", toml, "--out", folder, "--json").stdout)
    assert {path: path.read_bytes() for path in folder.glob("*/log.jsonl")} == logs
    assert [claim["verdict"] for claim in study["claims"]] == ["holds", "fails"]
    assert study["arms"][1]["specialization"]["mean"] > 0.9
    assert study["arms"][1]["finished_seeds"] == [0, 1]
    run("testbed", toml, "--out", folder, "--require-claims", code=1)


def test_a_changed_testbed_is_refused(testbed):
    toml, folder, _ = testbed
    wrong = run("testbed", toml, "--out", folder, "--set", "run.balance.coefficient=0.5", code=2)
    assert "balance.coefficient" in wrong.stderr and "--out" in wrong.stderr


def test_a_failed_run_leaves_the_others(work, testbed):
    toml, _, _ = testbed
    broken = work / "broken.toml"
    broken.write_text(toml.read_text() + '[[arms]]\nname = "broken"\noverrides = ["optimizer.learning_rate=1e20"]\n')
    done = run("testbed", broken, "--out", work / "broken", "--set", "seeds=[0]", "--set", "run.steps=2", code=1)
    assert "run broken-seed0 failed" in done.stderr and "router probabilities summed" in done.stderr
    assert "The other runs are kept" in done.stderr
    assert "optimizer_batch" in done.stdout and (work / "broken" / "report.html").exists()


def test_nothing_is_said_to_be_kept_where_all_failed(work, testbed):
    toml, _, _ = testbed
    wild = work / "wild.toml"
    wild.write_text(toml.read_text().split("[[arms]]")[0] + '[[arms]]\nname = "wild"\noverrides = ["optimizer.learning_rate=1e20"]\n')
    done = run("testbed", wild, "--out", work / "wild", "--set", "seeds=[0]", code=1)
    assert "run wild-seed0 failed" in done.stderr and "Repeat the same command" in done.stderr
    assert "kept" not in done.stderr


def test_a_model_that_cannot_fit_is_refused_before_the_first_run(work, testbed):
    toml, _, _ = testbed
    huge = work / "huge.toml"
    huge.write_text(toml.read_text() + '[[arms]]\nname = "huge"\noverrides = ["model.width=1073741824"]\n')
    done = run("testbed", huge, "--out", work / "huge", code=2)
    assert "run huge-seed0: the model has " in done.stderr and not (work / "huge").exists()


def test_s_of_one_document_a_domain_is_told(work):
    """Half the text of two documents is held out: one. S is then 0 by construction, and said to be."""
    text, data = make_corpus(work / "two_documents", documents=2, words=4000), work / "two_documents_data"
    says = "each domain has 1 held-out document: S is 0 whatever the router does"
    assert says in run("data", "build", "--from", text, "--out", data, "--vocab-size", 400).stdout
    assert says in run("data", "show", data).stdout
    config = write_config(work / "two_documents.toml", data, steps=1)
    says = "each domain is evaluated on 1 held-out document: S is 0 whatever the router does"
    assert says in run("train", config, "--out", work / "two_documents_run").stdout
    assert [record["specialization"] for record in evaluations(work / "two_documents_run")] == pytest.approx([0.0], abs=1e-9)
    toml = write_testbed(work / "two_documents_testbed.toml", config, steps=1)
    study = json.loads(run("testbed", toml, "--out", work / "two_documents_testbed", "--set", "seeds=[0]", "--json").stdout)
    assert [says in note for note in study["notes"]].count(True) == 1
    assert study["arms"][1]["specialization"]["mean"] == pytest.approx(0.0, abs=1e-9), "the ceiling, too"


def test_a_store_that_cannot_be_used_is_told_and_the_testbed_goes_on(work, testbed):
    toml, _, _ = testbed
    folder = work / "junk_store"
    folder.mkdir()
    (folder / "store.sqlite").write_text("junk " * 1000)
    run("testbed", toml, "--out", folder, "--set", "seeds=[0]", "--set", "run.steps=1")
    for name in ("optimizer_batch-seed0", "prescribed-seed0"):
        told = [record["text"] for record in read_log(folder / name) if record["kind"] == "notice" and "store" in record["text"]]
        assert len(told) == 1 and "delete it" in told[0], told


def test_reports_take_a_testbed_or_runs(work, testbed, whole_run):
    _, folder, _ = testbed
    assert (folder / "report.html").stat().st_size > 100_000
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Does &lt;it&gt; work &amp; last?" in page and "Does <it> work" not in page
    run("report", whole_run, "--out", work / "one.html")
    assert "tiny" in (work / "one.html").read_text(encoding="utf-8")


def test_a_run_is_exported_for_transformers(work, whole_run):
    out = work / "exported"
    run("export", whole_run, out)
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {p.name for p in out.iterdir()}
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert model.config.num_experts == 6
    text = "12+34 \u03b1\u03b2\u03b3\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text


def test_a_damaged_checkpoint_is_named(work, config):
    folder = work / "damaged"
    run("train", config, "--out", folder, "--set", "checkpoint.keep_last=1")
    (weights,) = (folder / "checkpoints").glob("*/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "model.safetensors" in run("train", "--resume", folder, "--set", "steps=9", code=1).stderr
    assert "model.safetensors" in run("export", folder, work / "never", code=1).stderr
    assert not (work / "never").exists()
