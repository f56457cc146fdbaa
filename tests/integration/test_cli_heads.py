"""guardkeel heads on a guard that has learned something: the whole study, other guards beside it, chat, bad input."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from guardkeel.errors import DataError
from guardkeel.guards.load import load_guard
from guardkeel.heads import ablated, guard_prompts, query_ships, read_heads, read_official
from guardkeel.heads.config import HeadsConfig
from guardkeel.heads.material import material
from guardkeel.report.heads import write_heads_report


@pytest.fixture(scope="module", autouse=True)
def one_command():
    """The verb, where the command line does not list it yet."""
    from guardkeel.cli import app, heads

    torch.set_num_threads(1)
    if "heads" not in {c.name for c in app.registered_commands}:
        heads.register(app)


@pytest.fixture
def words(harbour):
    return [
        *("heads", harbour.guard, "--suite", harbour.suite, "--items", 6, "--effect-items", 12),
        *("--controls", 2, "--size", 2, "--device", "cpu"),
    ]


def test_a_dry_run_says_what_it_takes_and_sweeps_nothing(cli, words):
    found = cli(*words, "--dry-run", "--mode", "q", "--mode", "kv-group")
    assert found.code == 0, found.err
    for text in (
        "2 layers × 4 heads",
        "6 unsafe, 6 benign prompts",
        "GB beside the model",
        "nothing was swept",
    ):
        assert text in found.out
    assert not Path("runs").exists()
    planned = cli(*words, "--dry-run", "--json").json
    assert planned["trials"] == 10 and planned["effect_items"] == 24
    assert planned["seconds"] > 0 and planned["memory"] > 0


def test_a_study_from_end_to_end(cli, words, harbour):
    found = cli(*words, "--mode", "q", "--mode", "v", "--against", f"lost={harbour.forgetful}", "--json")
    assert found.code == 0, found.err
    out = Path(found.json["run"])
    assert out.name.startswith("heads-guard-")
    record, results, arrays = read_heads(out)
    assert found.json["results"] == results.model_dump(mode="json")
    assert record.command[:2] == ["guardkeel", "heads"] and set(record.inputs) >= {"guard", "against lost"}
    assert not (out / "progress").exists() and not (out / "plan.json").exists()

    # the numbers are those of the engine on the same items
    guard = load_guard(str(harbour.guard), dtype="float32", device="cpu")
    config = HeadsConfig(guard=str(harbour.guard), suites=[str(harbour.suite)], items=6, effect_items=12)
    read = material(config)
    own = query_ships(guard.model, guard_prompts(guard, [i.judgement for i in read.ranked["unsafe"]]))
    assert arrays["model.q.unsafe.kl"] == pytest.approx(own.mean, abs=1e-6)
    assert [h.head for h in results.top["q"][:3]] == [f"{i}-{j}" for i, j in own.top(3)]
    assert arrays["model.q.unsafe.by_prompt"].shape == (6, 2, 4)
    assert list(arrays["model.q.unsafe.ids"]) == [i.judgement.id for i in read.ranked["unsafe"]]

    # the effect is that of ablating by hand, and is not of the items that heads were ranked on
    first = results.effect.trial("found", 1)
    head = tuple(map(int, first.heads[0].split("-")))
    asked = [i.judgement for i in read.judged]
    with ablated(guard.model, [head]):
        now = [v.unsafe for v in guard.score(asked)]
    before = [v.unsafe for v in guard.score(asked)]
    both = [k for k, i in enumerate(read.judged) if i.label == "unsafe" and None not in (before[k], now[k])]
    assert first.recall.after == pytest.approx(np.mean([now[k] >= 0.5 for k in both]))
    ranked = {i.judgement.id for items in read.ranked.values() for i in items}
    assert not ranked & {i.judgement.id for i in read.judged}
    lines = [json.loads(line) for line in (out / "effects.jsonl").read_text().splitlines()]
    assert lines[0]["items"] == [j.id for j in asked]
    assert {line["trial"] for line in lines[1:]} == {"as-it-is"} | {
        f"{t.kind}-{t.draw}-{t.size}" for t in results.effect.trials
    }

    # the other guard, an adapter, on the same items
    (other,) = results.against
    assert other.info.name == "lost" and other.key == "against1"
    beside = [o for o in results.overlaps if o.what == "models"]
    assert {(o.mode, o.set) for o in beside} == {(m, s) for m in "qv" for s in ("unsafe", "benign")}
    assert np.abs(arrays["against1.q.unsafe.kl"] - arrays["model.q.unsafe.kl"]).max() > 1e-3
    assert {o.what for o in results.overlaps} == {"sets", "measures", "modes", "models"}

    rows = list(csv.DictReader((out / "heads.csv").open()))
    assert len(rows) == 2 * 2 * 2 * 8
    assert float(rows[0]["kl"]) == pytest.approx(arrays["model.q.unsafe.kl"][0, 0], rel=1e-5)
    (official,) = read_official(out / "heads.jsonl")
    assert official.array((2, 4)) == pytest.approx(own.mean, abs=1e-6)
    assert json.loads((out / "heads.json").read_text())["results"]["group"] == found.json["results"]["group"]
    assert (out / "heatmap.svg").read_text().startswith("<svg xmlns")
    page = (out / "report.html").read_text()
    assert "Which heads moved" in page and "lost" in page and 'id="effect"' in page


def test_a_screened_study_with_another_measure_for_people(cli, words):
    options = ("--measure", "dataset", "--screen", "gradient", "--rescore", 5, "--out", "out", "--no-effect")
    found = cli(*words, *options)
    assert found.code == 0, found.err
    assert "best heads of" in found.out and "group" in found.out and "report   out/report.html" in found.out
    _, results, arrays = read_heads("out")
    assert np.isfinite(arrays["model.q.unsafe.dataset"]).sum() == 5
    assert np.isfinite(arrays["model.q.unsafe.estimates"]).sum() == 8
    assert all(r.exact == 5 for r in results.ranked) and results.ranked[0].screening is not None
    assert (
        results.effect is None and "Screened: 5 of 8 heads are exact" in Path("out/report.html").read_text()
    )
    assert cli(*words, *options).code == 2  # a finished run is never overwritten


def test_a_study_that_was_killed_goes_on(cli, words, monkeypatch):
    words = [*words, "--items", 3, "--effect-items", 4, "--controls", 1, "--size", 1]
    from guardkeel.heads import sweep

    made, asked = [], []
    run = sweep.Run.steps
    monkeypatch.setattr(sweep.Run, "steps", lambda self: (made.append(1), (yield from run(self)))[1])
    from guardkeel.heads.subject import GuardSubject

    answers = GuardSubject.answers

    def dying(self, items, role, folder, watch):
        asked.append(role)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return answers(self, items, role, folder, watch)

    monkeypatch.setattr(GuardSubject, "answers", dying)
    assert cli(*words, "--out", "out", "--no-report").code == 130
    assert made and not Path("out/run.json").exists() and any(Path("out/progress").iterdir())
    with pytest.raises(DataError):
        read_heads("out")
    before = len(made)
    refused = cli(*words, "--out", "out", "--epsilon", 0.1)
    assert refused.code == 2 and "unfinished run" in refused.err
    assert cli(*words, "--out", "out", "--no-report").code == 0
    assert len(made) == before  # every sweep was taken up
    whole = cli(*words, "--out", "whole", "--no-report", "--json").json["results"]
    resumed = read_heads("out")[1].model_dump(mode="json")
    for results in (whole, resumed):
        for row in results["ranked"]:
            row.pop("seconds")
    assert whole == resumed


def test_a_chat_model_and_what_it_replies(cli, tiny_folder, harbour):
    found = cli(
        *("heads", tiny_folder("qwen3"), "--chat", "--suite", harbour.suite, "--items", 4, "--size", 1),
        *("--effect-items", 4, "--controls", 1, "--reply-tokens", 6, "--out", "out", "--device", "cpu"),
    )
    assert found.code == 0, found.err
    _, results, arrays = read_heads("out")
    assert results.chat and results.model.family == "chat"
    assert "model.q.unsafe.verdict" not in arrays and np.isfinite(arrays["model.q.unsafe.kl"]).all()
    lines = [json.loads(line) for line in Path("out/effects.jsonl").read_text().splitlines()]
    assert len(lines) == 5 and all(len(line["replies"]) == 8 for line in lines[1:])
    assert lines[1]["replies"] != lines[2]["replies"]  # without the head it says something else
    assert {"refusal", "attack"} <= {j.of for j in results.judge} | {
        n.split()[3] for n in results.notes if n.startswith("the judge")
    }


def test_what_cannot_be_studied_is_refused_with_exit_code_2(cli, words, tiny_folder, tmp_path, harbour):
    empty = tmp_path / "empty.jsonl"
    row = {"id": "a", "messages": [{"role": "user", "content": " "}], "labels": {"prompt": "unsafe"}}
    empty.write_text(json.dumps(row) + "\n")
    for more, said in (
        (["--mode", "z"], "mean-q"),
        (["--mode", "q", "--mode", "q"], "twice"),
        (["--measure", "dataset", "--screen", "second-order"], "does not estimate"),
        (["--measure", "dataset", "--rank", 6], "more prompts than the rank"),
        (["--chat", "--measure", "verdict"], "no verdict"),
        (["--memory", 1e-6], "GB may be used"),
        (["--set", "depth=2"], "depth"),
        (["--side", "trajectory"], "nothing to rank heads on"),
        (["--suite", empty], "nothing to rank heads on"),
        (["--against", f"a={harbour.guard}", "--against", f"a={harbour.guard}"], "two models"),
        (["--against", tiny_folder("llama", layers=1), "--family", "keel"], "one architecture"),
    ):
        given = words if "--suite" not in more else [w for w in words if w not in ("--suite", harbour.suite)]
        found = cli(
            *given,
            *more,
            "--no-effect",
            "--size",
            0,
            "--out",
            tmp_path / f"out-{len(list(tmp_path.iterdir()))}",
        )
        assert found.code == 2 and said in found.err, (more, found.err)
    found = cli("heads", tiny_folder("bert"), "--suite", harbour.suite)
    assert found.code == 2 and "sequence classifier" in found.err
    found = cli("heads", tiny_folder("llama"), "--suite", harbour.suite)
    assert found.code == 2 and "--chat" in found.err
    found = cli("heads", "rules", "--suite", harbour.suite)
    assert found.code == 2


def test_the_page_is_made_from_the_directory_alone(cli, words):
    assert cli(*words, "--out", "out", "--size", 0).code == 0
    page = Path("out/report.html").read_text()
    Path("out/report.html").unlink()
    write_heads_report("out")
    assert Path("out/report.html").read_text() == page and "No group was looked for" in page
    Path("out/heads.npz").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"heads\.npz"):
        write_heads_report("out")
