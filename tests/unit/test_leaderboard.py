"""Leaderboards from configuration to run directory: resuming, failing guards, imported results, the command line."""

from __future__ import annotations

import csv
import errno
import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from guardkeel.conversation import read_jsonl, text_digest
from guardkeel.errors import ConfigError, DataError, ModelError
from guardkeel.evaluation.leaderboard.config import GuardEntry, ImportedEntry, LeaderboardConfig, read_config
from guardkeel.evaluation.leaderboard.imported import ImportedRow, ImportedScores
from guardkeel.evaluation.leaderboard.joining import join
from guardkeel.evaluation.leaderboard.judged import Failed
from guardkeel.evaluation.leaderboard.running import failed, run
from guardkeel.evaluation.leaderboard.runs import read_leaderboard
from guardkeel.evaluation.selection import select
from guardkeel.evaluation.suites import load_suite
from guardkeel.records import read_record
from leaderboards import Words, suite

RULES = """
kind = "rules"
name = "{name}"

[[rules]]
category = "Violence"
weight = 0.9
words = [{words}]
"""


@pytest.fixture(scope="module")
def suites(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suites")
    return [
        suite(folder / "mixed.jsonl", 100, replies=True),
        suite(folder / "harm.jsonl", 60, labels=("unsafe",)),
        suite(folder / "calm.jsonl", 60, labels=("safe",)),
    ]


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """One small suite, for what does not depend on the items."""
    return [suite(tmp_path_factory.mktemp("few") / "few.jsonl", 60)]


def config(suites, names, **more):
    return LeaderboardConfig(
        guard=[{"reference": n} for n in names], suites=[str(s) for s in suites], draws=200, **more
    )


def ran(cfg, out, guards):
    """Run with these guards; counts of what each was asked."""
    return run(cfg, out, load=lambda entry: guards[entry.reference])


def three(**slips):
    return {
        "good": Words("good", slips=0.05),
        "fair": Words("fair", slips=0.2),
        "poor": Words("poor", knows=("ships",)),
    }


def without_speed(results):
    return results.model_dump(exclude={"guards": {"__all__": {"speed"}}})


def files(out):
    """What must not depend on how a run came about."""
    kept = {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    return {k: v for k, v in kept.items() if k not in ("run.json", "speed.csv")}


# running


def test_a_leaderboard_leaves_its_files_and_no_texts(suites, tmp_path):
    results = ran(config(suites, three(), probe=3), tmp_path / "out", three())
    assert [g.name for g in results.guards] == ["good", "fair", "poor"]
    names = sorted(files(tmp_path / "out"))
    assert names == [
        "config.toml",
        "items.jsonl",
        "table.csv",
        "verdicts/01-good.jsonl",
        "verdicts/02-fair.jsonl",
        "verdicts/03-poor.jsonl",
    ]
    record, again = read_leaderboard(tmp_path / "out")
    assert again == results
    assert (record.verb, record.counts["guards"], record.counts["failed"]) == ("leaderboard", 3, 0)
    items = [json.loads(line) for line in (tmp_path / "out/items.jsonl").read_text().splitlines()]
    said = [json.loads(line) for line in (tmp_path / "out/verdicts/01-good.jsonl").read_text().splitlines()]
    assert [i["id"] for i in items] == [v["id"] for v in said]
    assert set(said[0]) == {"id", "unsafe", "unscored", "categories", "dropped"}
    held = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()).decode()
    texts = {e.conversation.turns[0].content for s in suites for e in read_jsonl(s)}
    assert not any(text in held for text in texts)
    assert results.guards[0].speed.alone.n == 3


def test_table_csv_has_a_row_for_each_guard_suite_and_side(suites, tmp_path):
    results = ran(config(suites, three()), tmp_path / "out", three())
    rows = list(csv.DictReader((tmp_path / "out/table.csv").open()))
    good = {(r["suite"], r["side"]): r for r in rows if r["guard"] == "good"}
    assert set(good) == {
        ("macro", "*"), ("macro", "prompt"), ("macro", "response"),
        ("*", "*"), ("*", "prompt"), ("*", "response"),
        ("mixed", "prompt"), ("mixed", "response"), ("harm", "prompt"), ("calm", "prompt"),
    }  # fmt: skip
    cell = next(c for c in results.guards[0].cells if (c.suite, c.side) == ("mixed", "prompt"))
    assert float(good["mixed", "prompt"]["recall"]) == pytest.approx(cell.behaviour.recall.value, abs=1e-5)
    assert good["harm", "prompt"]["f1_strict"] == good["calm", "prompt"]["recall"] == ""
    speeds = list(csv.DictReader((tmp_path / "out/speed.csv").open()))
    assert [s["guard"] for s in speeds] == ["good", "fair", "poor"]
    assert all(float(s["items_per_second"]) > 0 and s["tokens"] == "" for s in speeds)


def test_a_killed_run_goes_on_and_gives_the_same_bytes(few, tmp_path):
    cfg = config(few, three())
    whole = ran(cfg, tmp_path / "whole", three())
    guards = three()
    total = read_record(tmp_path / "whole").counts["items"]
    for after in (1, 2):  # killed in the first guard's second batch, then in the second's third
        victim = "good" if after == 1 else "fair"
        guards[victim].breaks_after, guards[victim].error = after, KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            ran(cfg, tmp_path / "killed", guards)
        assert not (tmp_path / "killed/run.json").exists()
        guards[victim].breaks_after = None
    again = ran(cfg, tmp_path / "killed", guards)
    assert without_speed(again) == without_speed(whole)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert [g.asked for g in guards.values()] == [total] * 3  # nothing was asked twice


def test_a_finished_guard_is_not_loaded_again(few, tmp_path):
    cfg = config(few, three())
    guards = three()
    guards["poor"].breaks_after, guards["poor"].error = 0, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        ran(cfg, tmp_path, guards)
    loaded = []
    guards["poor"].breaks_after = None
    run(cfg, tmp_path, load=lambda e: loaded.append(e.reference) or guards[e.reference])
    assert loaded == ["poor"]


def test_torn_progress_is_made_again(few, tmp_path):
    cfg = config(few, three())
    ran(cfg, tmp_path / "whole", three())
    guards = three()
    guards["poor"].breaks_after, guards["poor"].error = 2, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        ran(cfg, tmp_path / "torn", guards)
    (tmp_path / "torn/progress/guard-01.done.json").write_bytes(b'{"info": ')
    verdicts = tmp_path / "torn/verdicts/02-fair.jsonl"
    verdicts.write_bytes(verdicts.read_bytes()[:-30])
    batch = tmp_path / "torn/progress/guard-03-000001.npz"
    batch.write_bytes(batch.read_bytes()[:100])
    ran(cfg, tmp_path / "torn", three())
    assert files(tmp_path / "torn") == files(tmp_path / "whole")


@pytest.mark.parametrize(
    "error",
    [ModelError("its weights are NaN", remedy="take others"), MemoryError("too large")],
    ids=lambda e: type(e).__name__,
)
def test_a_guard_that_fails_stops_no_other_and_is_asked_again(few, tmp_path, error):
    cfg = config(few, three())
    guards = three()
    guards["good"].breaks_after, guards["good"].error = 1, error
    results = ran(cfg, tmp_path / "out", guards)
    assert failed(results) == ["good"]
    row = results.guards[-1]
    assert (row.name, row.status, row.rank, row.cells, row.macro) == ("good", "failed", None, [], [])
    assert str(error).split("\n")[0] in row.reason
    assert [g.name for g in results.guards[:2]] == ["fair", "poor"]
    assert results.against == "fair"
    assert row.reason in " ".join(read_record(tmp_path / "out").not_measured)
    asked = guards["fair"].asked
    guards["good"].breaks_after = None
    again = ran(cfg, tmp_path / "out", guards)
    assert failed(again) == []
    assert guards["fair"].asked == asked
    ran(cfg, tmp_path / "whole", three())
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    with pytest.raises(ConfigError, match="finished run"):
        ran(cfg, tmp_path / "out", guards)


def test_a_guard_that_cannot_be_loaded_is_in_the_table(suites, tmp_path):
    cfg = LeaderboardConfig(
        guard=[{"reference": "rules"}, {"reference": str(tmp_path / "nowhere"), "name": "gone"}],
        suites=[str(suites[0])],
        draws=200,
        offline=True,
    )
    results = run(cfg, tmp_path / "out")
    gone = next(g for g in results.guards if g.name == "gone")
    assert gone.status == "failed"
    assert "nowhere" in gone.reason
    assert "remedy" in gone.reason


def test_a_guard_without_a_single_score_failed_and_is_asked_again(few, tmp_path):
    cfg = config(few, ["good", "mute"])
    guards = {"good": Words("good"), "mute": Words("mute", silent=" ")}  # every message has a blank
    results = ran(cfg, tmp_path, guards)
    assert failed(results) == ["mute"]
    assert "no item was scored: will not speak of" in results.guards[1].reason
    guards["mute"].silent = ""
    assert failed(ran(cfg, tmp_path, guards)) == []


def test_a_full_disk_stops_the_run_and_blames_no_guard(few, tmp_path):
    guards = three()
    guards["fair"].breaks_after, guards["fair"].error = 2, OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space left"):
        ran(config(few, three()), tmp_path, guards)
    assert not (tmp_path / "run.json").exists()


def test_other_settings_do_not_go_into_the_same_folder(few, tmp_path):
    guards = three()
    guards["good"].breaks_after, guards["good"].error = 1, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        ran(config(few, three()), tmp_path, guards)
    with pytest.raises(ConfigError, match="other guards, data or settings"):
        ran(config(few, three(), fixed_fpr=0.1), tmp_path, three())


def test_a_guard_that_changed_between_kill_and_resume_is_asked_anew(suites, tmp_path):
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES.format(name="r", words='"ships"'))
    cfg = LeaderboardConfig(
        guard=[{"reference": str(rules)}, {"reference": "later"}], suites=[str(suites[1])], draws=200
    )

    def load(entry, error):
        if entry.reference == "later":
            raise error
        from guardkeel.guards.load import load_guard

        return load_guard(entry.reference)

    with pytest.raises(KeyboardInterrupt):
        run(cfg, tmp_path / "out", load=lambda e: load(e, KeyboardInterrupt()))
    before = (tmp_path / "out/verdicts/01-rules.toml.jsonl").read_bytes()
    rules.write_text(RULES.format(name="r", words='"ships", "anchors", "reefs"'))
    results = run(cfg, tmp_path / "out", load=lambda e: load(e, ModelError("no")))
    assert (tmp_path / "out/verdicts/01-rules.toml.jsonl").read_bytes() != before
    assert results.guards[0].cells[0].behaviour.recall.value == 1


def test_batches_that_the_guard_would_make_otherwise_are_made_again(few, tmp_path):
    """Say, the accelerator is gone: facts of the guard differ from those of the kept batches."""
    guards = three()
    guards["good"].breaks_after, guards["good"].error = 2, KeyboardInterrupt()
    cfg = config(few, ["good"])
    with pytest.raises(KeyboardInterrupt):
        ran(cfg, tmp_path / "out", guards)
    results = ran(cfg, tmp_path / "out", {"good": Words("good", slips=0.2)})
    assert without_speed(results) == without_speed(
        ran(cfg, tmp_path / "b", {"good": Words("good", slips=0.2)})
    )


def test_names_are_told_apart(few, tmp_path):
    guards = {"a": Words("same"), "b": Words("same", slips=0.3)}
    results = ran(config(few, ["a", "b"], against="b"), tmp_path, guards)
    assert {g.name: g.reference for g in results.guards} == {"same": "a", "same (2)": "b"}
    assert results.against == "same (2)"


def test_an_unknown_against_is_found_out_at_once(few, tmp_path):
    with pytest.raises(ConfigError, match="no guard of this leaderboard is called so"):
        ran(config(few, three(), against="nobody"), tmp_path / "out", three())
    assert not (tmp_path / "out").exists()


# configuration


def test_the_file_is_checked_and_guards_are_picked_from_it(tmp_path):
    file = tmp_path / "board.toml"
    file.write_text('suites = ["advbench"]\n[[guard]]\nreference = "./a"\nname = "strict"\nthreshold = 0.3\n'
                    '[[guard]]\nreference = "./b"\ndtype = "float32"\n')  # fmt: skip
    both = read_config(file, [], {"limit": 5})
    assert [(g.label, g.threshold) for g in both.entries()] == [("strict", 0.3), ("./b", None)]
    assert both.limit == 5
    picked = read_config(file, ["strict", "keel-135m"], {}, ["dtype=bfloat16"])
    assert [(g.reference, g.options()) for g in picked.entries()] == [
        ("./a", {"threshold": 0.3, "dtype": "bfloat16"}),
        ("keel-135m", {"dtype": "bfloat16"}),
    ]
    assert read_config(file, ["./b"], {}, ["dtype=bfloat16"]).entries()[0].dtype == "float32"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fixed_fpr = 2", "fixed_fpr = 2"),
        ("colour = 1", "unknown key 'colour'"),
        ('[[guard]]\nreference = "a"\nthreshold = 3', "guard.0.threshold = 3"),
        ('[[guard]]\nreference = "a"\nspeed = 3', "guard.0.speed"),
        ('[[guard]]\nreference = "a"\n[[guard]]\nreference = "a"', "guard 'a' is there twice"),
        ('[[guard]]\nreference = "a"\nname = "x/y"', "guard.0.name"),
        ("limit = 3", "no guard is given"),
    ],
)
def test_a_bad_file_is_refused_by_key_and_value(tmp_path, text, said):
    file = tmp_path / "board.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)):
        read_config(file, [], {})


def test_the_page_and_the_example_know_every_key():
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs/leaderboard.md").read_text("utf-8")
    for model in (LeaderboardConfig, GuardEntry, ImportedEntry):
        for key in model.model_fields:
            assert f"`{key}`" in page or f"[[{key}]]" in page, key
    example = read_config(root / "examples/leaderboard.toml", [], {})
    assert len(example.guard) == 3


# imported results


@pytest.fixture(scope="module")
def items(suites):
    return select([load_suite(str(s)) for s in suites])


def rows(items, key, count=30, **change):
    return [
        ImportedRow(key(i), i.side, 1.0 if i.label == "unsafe" else 0.0, change.get("label", i.label))
        for i in items[:count]
    ]


def joined(found, items):
    return join([found], items, name=found.name, file="f.json", threshold=0.5)


@pytest.mark.parametrize(
    "key",
    [
        lambda i: i.judgement.id,
        lambda i: i.example.id,
        lambda i: text_digest(i.example.conversation.text),
        lambda i: text_digest(i.example.conversation.turns[0 if i.side == "prompt" else 1].content),
    ],
    ids=["item id", "example id", "digest", "digest of the judged turn"],
)
def test_rows_find_their_items(items, key):
    found = joined(ImportedScores("x", "geh", "mixed", rows(items, key)), items)
    assert [k for k, v in enumerate(found.verdicts) if v is not None] == list(range(30))
    assert all(
        (v.unsafe == 1) == (i.label == "unsafe") for v, i in zip(found.verdicts, items, strict=False) if v
    )
    assert found.notes == ()


def test_an_example_id_in_two_suites_joins_only_that_of_the_files_own(items):
    harm = [i for i in items if i.suite == "harm"]
    found = joined(ImportedScores("x", "geh", "harm", rows(harm, lambda i: i.example.id, 5)), items)
    assert {items[k].suite for k, v in enumerate(found.verdicts) if v} == {"harm"}
    alike = joined(ImportedScores("x", "geh", "HARM", rows(harm, lambda i: i.example.id, 5)), items)
    assert list(alike.verdicts) == list(found.verdicts)
    strange = joined(ImportedScores("x", "geh", "other", rows(harm, lambda i: i.example.id, 5)), items)
    assert not any(strange.verdicts)
    assert len(strange.own) == 5


def test_the_suites_label_holds_and_rows_that_say_otherwise_are_counted(items):
    found = joined(
        ImportedScores("x", "geh", "mixed", rows(items, lambda i: i.judgement.id, label="safe")), items
    )
    unsafe = sum(i.label == "unsafe" for i in items[:30])
    assert found.notes == (f"mixed: {unsafe} rows have another label than the suite, whose own is used",)


def test_two_rows_for_one_item_are_refused(items):
    twice = [*rows(items, lambda i: i.judgement.id, 2), *rows(items, lambda i: i.example.id, 1)]
    with pytest.raises(DataError, match="has a row already"):
        joined(ImportedScores("x", "geh", "mixed", twice), items)


def test_figures_without_rows_are_no_verdicts(items):
    found = joined(
        ImportedScores("x", "lm-eval", "toxigen", [], ["the run's own figures are acc 0.8"]), items
    )
    assert isinstance(found, Failed)
    assert "acc 0.8" in found.reason


def test_another_tools_results_stand_beside_our_own(suites, items, tmp_path):
    from guardkeel.evaluation.imports import read_all

    log = tmp_path / "log.json"
    log.write_text(json.dumps(inspect_log(items)))
    [scores] = read_all(log)
    assert len(scores.rows) == 20
    cfg = config(suites, ["good"], imported=[{"file": str(log), "name": "theirs"}])
    results = ran(cfg, tmp_path / "out", {"good": Words("good", slips=0.05)})
    theirs = next(g for g in results.guards if g.name == "theirs")
    assert (theirs.origin, theirs.compared, theirs.rank, theirs.speed) == ("inspect_ai", False, None, None)
    assert theirs.cells[0].n_not_judged > 0
    judged = sum(i.split == "test" for i in items if i.suite == "mixed" and i.side == "prompt")
    test = [i for i in items if i.suite == "mixed" and i.side == "prompt"][:20]
    assert theirs.cells[0].behaviour.n == sum(i.split == "test" for i in test) < judged
    assert {d.guard for d in results.differences} == {"theirs"}


def inspect_log(items):
    """An inspect_ai log of a guard on twenty prompts, as its JSON writer makes it."""
    prompts = [i for i in items if i.suite == "mixed" and i.side == "prompt"][:20]
    return {
        "version": 2,
        "status": "success",
        "eval": {"task": "mixed", "model": "their/guard", "dataset": {"name": "mixed"}},
        "samples": [
            {
                "id": i.example.id,
                "epoch": 1,
                "input": "…",
                "target": i.label,
                "scores": {"unsafe": {"value": 0.9 if i.label == "unsafe" else 0.2}},
            }
            for i in prompts
        ],
    }


# the command line


@pytest.fixture
def cli(monkeypatch, tmp_path):
    from guardkeel.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GUARDKEEL_OFFLINE", "1")
    monkeypatch.setenv("GUARDKEEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["guardkeel", *map(str, arguments)])
        out, err, code = io.StringIO(), io.StringIO(), 0
        with redirect_stdout(out), redirect_stderr(err):
            try:
                main()
            except SystemExit as e:
                code = e.code or 0
        return code, out.getvalue(), err.getvalue()

    return call


def board(folder, suites, tiny):
    """A file with a rule list, a real tiny classifier and a guard that is not there."""
    (folder / "all.toml").write_text(RULES.format(name="all words", words='"ships", "anchors", "reefs"'))
    (folder / "some.toml").write_text(RULES.format(name="some words", words='"ships"'))
    file = folder / "board.toml"
    file.write_text(
        f"suites = {json.dumps([str(s) for s in suites])}\ndraws = 200\nprobe = 2\n"
        f'[[guard]]\nreference = "{folder / "all.toml"}"\n'
        f'[[guard]]\nreference = "{folder / "some.toml"}"\nname = "some"\n'
        f'[[guard]]\nreference = "{tiny}"\nname = "tiny"\ndtype = "float32"\ndevice = "cpu"\n'
        '[[guard]]\nreference = "./nowhere"\nname = "nowhere"\n'
    )
    return file


def test_the_command_writes_table_and_report_and_says_what_failed(cli, suites, tmp_path, tiny_folder):
    file = board(tmp_path, suites, tiny_folder("deberta-v2"))
    code, out, err = cli("leaderboard", "-c", file, "--out", "out")
    assert code == 2, err
    assert "all words" in out
    assert "failed" in out
    assert "repeat the command" in out
    page = (tmp_path / "out/report.html").read_text()
    assert "nowhere" in page
    results = read_leaderboard(tmp_path / "out")[1]
    rows = {g.name: g for g in results.guards}
    assert rows["all words"].rank == 1
    assert rows["all words"].family == "rules"
    tiny = rows["tiny"]
    assert (tiny.family, tiny.dtype, tiny.status) == ("classifier", "float32", "scored")
    assert tiny.parameters > 0
    assert tiny.speed.tokens > 0
    assert tiny.speed.tokens_per_second > 0
    assert tiny.digest
    code, out, err = cli(
        "leaderboard", "-c", file, "--out", "picked", "some", "all.toml", "--json", "--against", "some"
    )
    assert code == 0, err
    said = json.loads(out)
    assert said["results"]["against"] == "some"
    assert said["failed"] == {}
    assert len(said["results"]["guards"]) == 2


def test_dry_run_plans_and_writes_nothing(cli, suites, tmp_path, tiny_folder):
    file = board(tmp_path, suites, tiny_folder("deberta-v2"))
    code, out, err = cli("leaderboard", "-c", file, "--dry-run", "--json")
    assert code == 0, err
    plan = json.loads(out)
    guards = {g["name"]: g for g in plan["guards"]}
    assert guards["tiny"]["seconds"] > 0
    assert guards["tiny"]["note"] == ""
    assert "rule list" in guards["some"]["note"]
    assert "nowhere" in guards["nowhere"]["note"]
    assert plan["unknown"] == 3
    assert sum(c["test"] + c["calibrate"] for c in plan["columns"]) == plan["items"]
    code, out, _ = cli("leaderboard", "-c", file, "--dry-run")
    assert code == 0
    assert "minutes" in out
    assert "nothing was run" in out
    assert not (tmp_path / "runs").exists()


def test_usage_errors_name_the_remedy(cli, tmp_path):
    code, _, err = cli("leaderboard")
    assert (code, "no guard is given" in err, "remedy" in err) == (2, True, True)
    code, _, err = cli("leaderboard", "-c", "none.toml")
    assert (code, "none.toml: cannot be read" in err) == (2, True)
    code, _, err = cli("leaderboard", "rules", "--set", "rank_by=luck")
    assert (code, "rank_by = 'luck'" in err) == (2, True)
    code, _, err = cli("leaderboard", "rules", "rules")
    assert (code, "there twice" in err) == (2, True)


def test_a_record_of_another_verb_is_refused(tmp_path):
    (tmp_path / "run.json").write_text('{"verb": "audit", "started_at": ""}')
    with pytest.raises(DataError, match="not a leaderboard"):
        read_leaderboard(Path(tmp_path))
