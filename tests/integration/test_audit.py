"""Audits end to end, on a tiny guard that has really learned something."""

import gc
import json
import shutil
import tomllib
import weakref

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

import guardkeel
from guardkeel.conversation import Conversation, Example, write_jsonl
from guardkeel.evaluation.runs import read_audit
from guardkeel.guards import load
from guardkeel.guards.decoding import Decoding
from guardkeel.models.adapters import attach_adapter
from guardkeel.models.loading import load_model, load_tokenizer
from guardkeel.models.tiny import make_tiny
from guardkeel.records import read_record
from trained_guards import examples, suite_file

SINGLE = {"config.toml", "geometry.safetensors", "items.jsonl", "reference.jsonl", "report.html", "run.json"}


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def names(folder):
    return {p.name for p in folder.iterdir()}


@pytest.fixture(scope="module")
def compared(harbour, tmp_path_factory):
    """The run directory of a whole audit against the adapter."""
    folder = tmp_path_factory.mktemp("compared") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUARDKEEL_CACHE", str(harbour.cache))
        guardkeel.audit(
            str(harbour.guard),
            str(harbour.forgetful),
            out=folder,
            suites=[str(harbour.suite)],
            dtype="float32",
            device="cpu",
            draws=19,
        )
    return folder


@pytest.fixture
def loads(monkeypatch):
    """Weak references to the models loaded, and whether those before lived on at each loading."""
    seen, alive = [], []
    real = load.load_model

    def counted(*args, **options):
        gc.collect()
        alive.append(sum(ref() is not None for ref in seen))
        model = real(*args, **options)
        seen.append(weakref.ref(model))
        return model

    monkeypatch.setattr(load, "load_model", counted)
    return alive


def test_one_guard(audit, tmp_path):
    found = audit("--geometry", "--out", tmp_path / "run")
    assert found.code == 0, found.err
    assert names(tmp_path / "run") == SINGLE
    results = read_audit(tmp_path / "run")
    assert results.candidate is None and results.comparison is None
    assert results.reference.overall.recall.value == 1.0
    assert results.reference.overall.auroc.value == 1.0
    assert results.reference.info.name == "harbour"
    assert [g.layer for g in results.geometry] == [1, 2]
    assert all(
        g.cka is None and g.separability_reference.estimate.value is not None for g in results.geometry
    )
    record = read_record(tmp_path / "run")
    assert "change: no candidate was given" in record.not_measured
    assert "trajectory side: no suite has labels for it" in record.not_measured
    assert {i["split"] for i in rows(tmp_path / "run" / "items.jsonl")} == {"test"}
    assert "harbour" in found.out and str(tmp_path / "run") in found.out.replace("\n", "")


def test_an_adapter_is_toggled_on_the_loaded_guard(audit, loads, harbour, tmp_path):
    found = audit("--against", harbour.forgetful, "--out", tmp_path / "run")
    assert found.code == 1, found.err
    assert loads == [0]  # one model, loaded once
    results = read_audit(tmp_path / "run")
    assert results.reference.overall.recall.value == 1.0
    assert results.candidate.overall.recall.value == 0.0
    assert results.decision.decision == "deny"
    assert "recall non-inferior" in results.decision.reason
    assert {f.kind for f in results.comparison.flips} == {"missed"}
    assert "DENY" in found.out and "fail" in found.out
    inputs = read_record(tmp_path / "run").inputs
    assert inputs["base of candidate"] == inputs["guard reference"]
    assert set(inputs) == {"suite mine", "guard reference", "guard candidate", "base of candidate"}


def test_a_second_checkpoint_is_loaded_when_the_first_has_gone(
    audit, loads, harbour, compared, tmp_path, monkeypatch
):
    merged = tmp_path / "merged"
    shutil.copytree(harbour.guard, merged)
    model = attach_adapter(load_model(merged, "float32", "cpu"), harbour.forgetful).merge_and_unload()
    model.save_pretrained(merged)
    del model
    found = audit("--against", merged, "--out", tmp_path / "run")
    assert found.code == 1, found.err
    assert loads == [0, 0]  # two, and the first was gone when the second came
    merged_scores = [r["unsafe"] for r in rows(tmp_path / "run" / "candidate.jsonl")]
    toggled = [r["unsafe"] for r in rows(compared / "candidate.jsonl")]
    assert merged_scores == pytest.approx(toggled, abs=1e-4)
    assert (tmp_path / "run" / "reference.jsonl").read_bytes() == (compared / "reference.jsonl").read_bytes()


def test_items_and_verdicts_tell_the_same_numbers(compared, harbour):
    items, before, after = (rows(compared / f"{n}.jsonl") for n in ("items", "reference", "candidate"))
    assert [i["id"] for i in items] == [v["id"] for v in before] == [v["id"] for v in after]
    assert len({i["id"] for i in items}) == len(items)
    assert set(items[0]) == {
        *("id", "suite", "split", "side", "label", "categories", "source", "language", "length", "digest"),
        "messages",
    }
    originals = {f"mine/{r['id']}#{side}": r for r in rows(harbour.suite) for side in r["labels"]}
    for item in items:
        original = originals[item["id"]]
        assert item["messages"] == original["messages"]
        assert item["label"] == original["labels"][item["side"]]
        assert item["id"].endswith(f"#{item['side']}")
    results = read_audit(compared)
    test = [k for k, item in enumerate(items) if item["split"] == "test"]
    unsafe = [k for k in test if items[k]["label"] == "unsafe"]
    for verdicts, guard in ((before, results.reference), (after, results.candidate)):
        said = [verdicts[k]["unsafe"] is not None and verdicts[k]["unsafe"] >= 0.5 for k in unsafe]
        assert guard.overall.recall.value == sum(said) / len(unsafe)
        assert guard.overall.recall.n == len(unsafe)
    assert {i["split"] for i in items} == {"test", "calibrate"}
    by_split = {s.split: s for s in results.suites}
    assert by_split["test"].n == len(test) and by_split["test"].n_unsafe == len(unsafe)
    assert by_split["calibrate"].n == len(items) - len(test)
    assert any(v["categories"] for v in before)


def test_activations_are_read_without_the_model(compared):
    states = load_file(compared / "geometry.safetensors")
    assert set(states) == {"reference.1", "reference.2", "candidate.1", "candidate.2", "unsafe"}
    from safetensors import safe_open

    with safe_open(compared / "geometry.safetensors", "numpy") as file:
        ids = json.loads(file.metadata()["ids"])
    items = {i["id"]: i for i in rows(compared / "items.jsonl")}
    assert [items[i]["label"] == "unsafe" for i in ids] == states["unsafe"].astype(bool).tolist()
    assert all(items[i]["split"] == "test" for i in ids)
    for name, array in states.items():
        assert len(array) == len(ids)
        if name != "unsafe":
            assert array.shape == (len(ids), 32) and array.dtype == np.float32 and np.isfinite(array).all()
    assert not np.array_equal(states["reference.2"], states["candidate.2"])


def test_the_activations_are_those_of_the_verdict_position(compared, harbour):
    from guardkeel.guards.encoding import Encoder
    from guardkeel.guards.keel import Keel

    states = load_file(compared / "geometry.safetensors")
    model, tokenizer = load_model(harbour.guard, "float32", "cpu"), load_tokenizer(harbour.guard)
    wanted = [i for i in rows(compared / "items.jsonl") if i["split"] == "test"][:1]
    encoder = Encoder(Keel(), tokenizer)
    from guardkeel.guards.base import Judgement

    item = Judgement("a", Conversation.from_messages(wanted[0]["messages"]), wanted[0]["side"])
    with torch.no_grad():
        hidden = model(torch.tensor([encoder.encode(item).ids]), output_hidden_states=True).hidden_states
    nearest = np.abs(states["reference.1"] - hidden[1][0, -1].numpy()).max(axis=1)
    assert nearest.min() < 1e-4 < nearest.max()


def test_the_record_and_the_configuration(compared, harbour):
    record = read_record(compared)
    config = tomllib.loads((compared / "config.toml").read_text())
    assert record.verb == "audit" and record.finished_at >= record.started_at
    assert config["reference"] == str(harbour.guard) and config["candidate"] == str(harbour.forgetful)
    assert config["suites"] == ["mine"] and config["dtype"] == "float32" and config["draws"] == 19
    assert config["policy"]["name"] == "default"
    assert {k: v for k, v in record.config.items() if v is not None}.keys() == config.keys()
    assert record.config["token_budget"] is None  # what was not set is said to be so
    assert record.seeds == {"seed": 0}
    assert record.counts["items"] == len(rows(compared / "items.jsonl"))
    assert {"python", "torch", "transformers"} <= set(record.versions)
    assert record.timings["score reference"] > 0
    assert read_audit(compared).decision.policy == "default"


def test_the_same_command_gives_the_same_bytes(audit, compared, harbour, tmp_path):
    found = audit("--geometry", "--against", harbour.forgetful, "--out", tmp_path / "again")
    assert found.code == 1, found.err
    for name in ("items.jsonl", "reference.jsonl", "candidate.jsonl", "geometry.safetensors", "config.toml"):
        assert (tmp_path / "again" / name).read_bytes() == (compared / name).read_bytes(), name
    assert read_record(tmp_path / "again").results == read_record(compared).results


def test_geometry_of_chosen_layers(audit, tmp_path):
    found = audit("--geometry", "--set", "layers=[2]", "--out", tmp_path / "run")
    assert found.code == 0, found.err
    assert [g.layer for g in read_audit(tmp_path / "run").geometry] == [2]
    assert set(load_file(tmp_path / "run" / "geometry.safetensors")) == {"reference.2", "unsafe"}


def test_a_layer_that_is_not_there(audit, tmp_path):
    for layer in ("3", "0"):
        found = audit("--geometry", "--set", f"layers=[1,{layer}]", "--out", tmp_path / "run")
        assert found.code == 2
        assert f"layer {layer} of a model with 2 blocks" in found.err and "choose 1 to 2" in found.err
    # Nothing was scored there, so the corrected command may have the folder.
    assert audit("--geometry", "--set", "layers=[1,2]", "--out", tmp_path / "run").code == 0


def test_geometry_switched_off(audit, tmp_path):
    assert audit("--no-geometry", "--out", tmp_path / "run").code == 0
    assert "geometry.safetensors" not in names(tmp_path / "run")
    assert read_record(tmp_path / "run").not_measured[0] == "geometry: switched off"
    assert read_audit(tmp_path / "run").geometry == []


def test_limit_holds_for_each_suite_and_split(audit, harbour, tmp_path):
    other = suite_file(tmp_path / "other.jsonl", 60, seed=9)
    found = audit(
        "--against", harbour.forgetful, "-s", other, "--limit", 7, "--out", tmp_path / "run", "--json"
    )
    counts = {(s["name"], s["split"]): s["n"] for s in found.json["results"]["suites"]}
    assert counts == {(name, split): 7 for name in ("mine", "other") for split in ("test", "calibrate")}
    assert found.code == 3  # too few to decide anything


def test_a_candidate_of_another_depth(audit, harbour, tmp_path):
    deep = make_tiny("llama", tmp_path / "deep", layers=3)
    found = audit("--geometry", "--family", "keel", "--against", deep, "--out", tmp_path / "run")
    assert found.code in (1, 3), found.err
    record = read_record(tmp_path / "run")
    assert "geometry of the candidate: it has 3 blocks, the reference 2" in record.not_measured
    geometry = read_audit(tmp_path / "run").geometry
    assert [g.layer for g in geometry] == [1, 2] and all(g.cka is None for g in geometry)
    assert set(load_file(tmp_path / "run" / "geometry.safetensors")) == {
        "reference.1",
        "reference.2",
        "unsafe",
    }


def test_a_guard_that_leaves_its_grammar_is_unscored_and_never_safe(audit, harbour, tmp_path):
    random = make_tiny("llama", tmp_path / "random", seed=3)
    found = audit("--family", "keel", "--against", random, "--out", tmp_path / "run")
    results = read_audit(tmp_path / "run")
    after = results.candidate.overall
    assert after.unscored.value == 1.0 and after.n_unscored == after.n
    assert after.recall.value is None and after.fpr.value is None and after.auroc.value is None
    assert found.code in (1, 3) and results.decision.decision != "allow"
    assert {f.kind for f in results.comparison.flips} == {"lost score"}
    said = rows(tmp_path / "run" / "candidate.jsonl")
    assert all(v["unsafe"] is None and "not a verdict" in v["unscored"] for v in said)
    unscored_row = next(line for line in found.out.splitlines() if line.startswith("unscored"))
    assert "1.000" in unscored_row
    assert next(line for line in found.out.splitlines() if line.startswith("unsafe recall")).count("–") >= 2


def test_a_guard_that_is_outside_its_grammar_alone(audit, tmp_path):
    random = make_tiny("llama", tmp_path / "random", seed=3)
    assert audit("--family", "keel", "--out", tmp_path / "run", guard=random).code == 0
    assert read_audit(tmp_path / "run").decision.decision in ("deny", "hold")
    assert any(n.startswith("recall: ") for n in read_record(tmp_path / "run").not_measured)


@pytest.fixture
def small_memory(monkeypatch):
    """small_memory(rows): forwards of more rows run out of memory; the list of rows that were tried."""
    tried, real = [], Decoding.feed

    def limit(most):
        def feed(self, rows, **options):
            if self.seen is None:  # the batch itself, and not the names of what it flagged
                tried.append(len(rows))
            if len(rows) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return real(self, rows, **options)

        monkeypatch.setattr(Decoding, "feed", feed)
        return tried

    return limit


def test_out_of_memory_halves_a_batch_once(audit, small_memory, compared, tmp_path):
    plain = read_audit(compared).reference.overall
    tried = small_memory(10**6)
    assert audit("--limit", 40, "--out", tmp_path / "plain").code == 0
    largest = max(tried)
    tried = small_memory((largest + 1) // 2)
    assert audit("--limit", 40, "--out", tmp_path / "halved").code == 0
    whole, halves = (rows(tmp_path / name / "reference.jsonl") for name in ("plain", "halved"))
    assert [r["unsafe"] for r in halves] == pytest.approx([r["unsafe"] for r in whole], abs=1e-5)
    assert plain.n_unscored == read_audit(tmp_path / "halved").reference.overall.n_unscored == 0
    small_memory(largest // 4)
    found = audit("--limit", 40, "--out", tmp_path / "failed")
    assert found.code == 2
    assert "out of memory on a batch of" in found.err and "and again on half of it" in found.err
    assert "lower --token-budget" in found.err
    assert "Traceback" not in found.err


def test_one_class_only(audit, harbour, tmp_path):
    suite = suite_file(tmp_path / "calm.jsonl", 200, labels=("safe",))
    found = audit("--geometry", "--against", harbour.forgetful, "--out", tmp_path / "run", suite=suite)
    assert found.code == 3, found.err
    results, record = read_audit(tmp_path / "run"), read_record(tmp_path / "run")
    after = results.candidate.overall
    assert after.auroc.value is None and after.auroc.note and after.recall.value is None
    assert after.fpr.value == 0.0
    assert f"auroc: {after.auroc.note}" in record.not_measured
    assert any("AUROC" in n or "auroc" in n for n in record.not_measured)
    assert all(g.separability_reference.estimate.value is None for g in results.geometry)
    assert all(g.separability_reference.estimate.note for g in results.geometry)
    assert "HOLD" in found.out


def test_a_threshold_that_is_asked_for_holds_for_both(audit, harbour, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(harbour.forgetful, own)
    (own / "guardkeel.json").write_text('{"threshold": 0.7, "name": "seventy"}')
    for wanted, expected in (((), (0.5, 0.7)), (("--threshold", "0.2"), (0.2, 0.2))):
        out = tmp_path / f"run{len(wanted)}"
        audit("--against", own, "--limit", 20, *wanted, "--out", out)
        results = read_audit(out)
        assert (results.reference.info.threshold, results.candidate.info.threshold) == expected
        assert results.candidate.info.name == "seventy"


def test_a_reference_that_is_an_adapter(audit, harbour, tmp_path):
    found = audit(
        "--against", harbour.guard, "--out", tmp_path / "run", "--limit", 30, guard=harbour.forgetful
    )
    assert found.code == 3, found.err
    results = read_audit(tmp_path / "run")
    assert results.reference.overall.recall.value == 0.0 and results.candidate.overall.recall.value == 1.0
    assert {f.kind for f in results.comparison.flips} == {"caught"}
    assert set(read_record(tmp_path / "run").inputs) >= {"base of reference"}


def test_a_sequence_classifier(audit, tmp_path):
    guard = make_tiny("bert", tmp_path / "bert")
    found = audit("--geometry", "--limit", 40, "--out", tmp_path / "run", guard=guard)
    assert found.code == 0, found.err
    results = read_audit(tmp_path / "run")
    assert results.reference.info.family == "classifier" and results.reference.overall.n_unscored == 0
    assert len(results.geometry) == 2


def test_groups_belong_to_their_suite(cli, harbour, tmp_path, monkeypatch):
    """Two suites that number their rows alike do not speak of the same conversations."""
    from guardkeel.geometry import layer

    seen, real = [], layer.measure_layer

    def spy(*args, groups, **options):
        seen.append(list(groups))
        return real(*args, groups=groups, **options)

    monkeypatch.setattr(layer, "measure_layer", spy)
    files = []
    for number in (1, 2):
        made = [
            Example(str(i), e.conversation, e.labels, group="g1" if i < 3 else "")
            for i, e in enumerate(examples(60, 20 + number))
        ]
        write_jsonl(tmp_path / f"s{number}.jsonl", made)
        files += ["-s", tmp_path / f"s{number}.jsonl"]
    done = cli(
        "audit", harbour.guard, *files, "--set", "draws=19", "--set", "layers=[2]", "--out", tmp_path / "run"
    )
    assert done.code == 0, done.err
    items = rows(tmp_path / "run" / "items.jsonl")
    conversations = {i["id"].rpartition("#")[0] for i in items}
    assert len({i.split("/")[1] for i in conversations}) < len(conversations)  # ids do collide
    grouped = {c for c in conversations if c.split("/")[1] in ("0", "1", "2")}
    bundles = {c.split("/")[0] for c in grouped}
    assert len(set(seen[0])) == len(conversations) - len(grouped) + len(bundles)


def test_from_python(harbour, tmp_path, monkeypatch):
    monkeypatch.setenv("GUARDKEEL_CACHE", str(harbour.cache))
    results = guardkeel.audit(
        str(harbour.guard), out=tmp_path / "run", suites=[str(harbour.suite)], limit=20, geometry=False
    )
    assert results.reference.overall.n == 20
    assert results == read_audit(tmp_path / "run")


def test_the_guard_is_as_it_was_after_its_adapter(harbour):
    """What the audit does to a guard, it undoes."""
    from guardkeel.guards.pair import pair

    before = load_torch(harbour.guard / "model.safetensors")
    seen = dict(pair(str(harbour.guard), str(harbour.forgetful), dtype="float32"))
    assert seen["reference"] is seen["candidate"]
    guard = seen["reference"]
    assert guard.name == "harbour" and not hasattr(guard.model, "peft_config")
    state = guard.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())


def test_an_adapter_that_names_no_base_is_put_on_the_reference(audit, loads, harbour, compared, tmp_path):
    nameless = shutil.copytree(harbour.forgetful, tmp_path / "nameless")
    config = json.loads((nameless / "adapter_config.json").read_text())
    (nameless / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    assert audit("--against", nameless, "--out", tmp_path / "run").code == 1
    assert loads == [0]
    assert (tmp_path / "run" / "candidate.jsonl").read_bytes() == (compared / "candidate.jsonl").read_bytes()
    assert "base of candidate" not in read_record(tmp_path / "run").inputs
