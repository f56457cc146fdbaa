"""Released formats: read as they are, written back as they were."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from curation_rows import AEGIS_2, RECORDS, row
from guardkeel.conversation import Conversation
from guardkeel.curation.formats import FORMATS, recognise
from guardkeel.curation.mapping import AEGIS2, HOME, from_dialogue, relabelled
from guardkeel.curation.rows import Row, SideLabel
from guardkeel.errors import DataError
from guardkeel.evaluation.suites.readers import read_rows

EVERY = [(name, i) for name, records in RECORDS.items() for i in range(len(records))]
DATA = os.environ.get("GUARDKEEL_DATA")


def read(name, fields):
    """A record as the reader makes a row of it."""
    chosen = FORMATS[name]
    parsed = chosen.read(fields)
    return Row(
        parsed.id or "1", parsed.conversation, parsed.labels, parsed.categories, parsed.group,
        language=parsed.language, extra=chosen.kept(fields),
    )  # fmt: skip


@pytest.mark.parametrize(("name", "index"), EVERY)
def test_known_by_their_columns(name, index):
    assert recognise(RECORDS[name][index], "x").name == name


@pytest.mark.parametrize(("name", "index"), EVERY)
def test_written_as_they_were_read(name, index):
    fields = RECORDS[name][index]
    assert FORMATS[name].record(read(name, fields)) == fields


@pytest.mark.parametrize(("name", "index"), EVERY)
def test_categories_are_home_names_and_texts_are_in_one_place(name, index):
    fields = RECORDS[name][index]
    made = read(name, fields)
    assert set(made.categories) <= set(HOME)
    assert not set(FORMATS[name].texts) & set(made.extra)


@pytest.mark.parametrize("name", [n for n in FORMATS if n not in ("messages", "guardkeel")])
def test_rows_from_elsewhere_can_be_written_and_read_again(name):
    given = row(prompt_label="unsafe", response="no", response_label="safe", categories=("Violence",))
    record = FORMATS[name].record(given)
    assert set(record) <= set(FORMATS[name].columns)
    again = read(name, record)
    for side, label in (("prompt", "unsafe"), ("response", "safe")):
        assert again.label(side) in (label, None)
    assert set(again.categories) <= {"Violence", "Needs Caution"}


def test_aegis_1_counts_every_rater_and_keeps_ties_open():
    first, second = (read("aegis-1", r) for r in RECORDS["aegis-1"])
    assert first.label("prompt") == "unsafe" and second.label("response") == "safe"
    assert [v.by for v in second.labels["response"].votes] == [f"labels_{i}" for i in range(5)]
    tie = RECORDS["aegis-1"][0] | {"labels_2": None}
    assert read("aegis-1", tie).labels["prompt"].label is None
    whole = read("aegis-1", RECORDS["aegis-1"][0] | {"text_type": "multi_turn"})
    assert set(whole.labels) == {"trajectory"}
    with pytest.raises(DataError, match="no rater"):
        FORMATS["aegis-1"].read({"text": "x", "text_type": "user_message", "labels_0": None})


def test_needs_caution_is_the_switch_between_strict_and_permissive():
    first = read("aegis-1", RECORDS["aegis-1"][0])
    assert relabelled(first, "strict") is first
    assert relabelled(first, "permissive").label("prompt") == "safe"  # two of three pass it
    caution = row(prompt_label="unsafe", categories=("Needs Caution",))
    assert relabelled(caution, "permissive").label("prompt") == "safe"
    both = row(prompt_label="unsafe", categories=("Needs Caution", "Threat"))
    assert relabelled(both, "permissive").label("prompt") == "unsafe"


def test_aegis_2_leaves_out_what_upstream_hides():
    hidden = AEGIS_2 | {"prompt": "REDACTED", "reconstruction_id_if_redacted": 17.0}
    parsed = FORMATS["aegis-2"].read(hidden)
    assert parsed.conversation is None and "REDACTED" in parsed.left_out
    assert FORMATS["aegis-2"].read(AEGIS_2 | {"prompt": None}).left_out == "the prompt is empty"
    shown = read("aegis-2", AEGIS_2)
    restored = replace(shown, extra={**shown.extra, "reconstruction_id_if_redacted": 17.0})
    assert FORMATS["aegis-2"].record(restored)["prompt"] == "REDACTED"  # it is not ours to pass on


def test_aegis_2_sources_sides_and_groups():
    made = read("aegis-2", AEGIS_2)
    assert (made.labels["prompt"].source, made.labels["response"].source) == ("human", "llm_jury")
    assert made.group == "a1" and made.categories == ("Guns and Illegal Weapons", "Needs Caution")
    alone = read("aegis-2", RECORDS["aegis-2"][1])
    assert len(alone.conversation.turns) == 1 and "response" not in alone.labels
    silent = read("aegis-2", RECORDS["aegis-2"][2])
    assert silent.conversation.turns[1].content == "" and silent.label("response") == "safe"
    assert FORMATS["aegis-2"].record(replace(made, categories=("Threat",)))["violated_categories"] == "Threat"


def test_absent_is_unknown_not_safe():
    unsafe, safe, unknown = (read("openai-moderation", r) for r in RECORDS["openai-moderation"])
    assert (unsafe.label("prompt"), safe.label("prompt"), unknown.label("prompt")) == ("unsafe", "safe", None)
    assert "prompt" not in read("wildguardmix", RECORDS["wildguardmix"][1]).labels
    assert not read("jailbreakbench", RECORDS["jailbreakbench"][0]).labels
    assert not read("ailuminate", RECORDS["ailuminate"][0]).labels
    assert "prompt" not in read("beavertails", RECORDS["beavertails"][0]).labels


def test_labels_say_who_gave_them():
    train, test = RECORDS["wildguardmix"]
    assert read("wildguardmix", train).labels["prompt"].source == "model"
    assert read("wildguardmix", test).labels["response"].source == "human"
    chat = RECORDS["toxicchat"][0]
    assert read("toxicchat", chat).labels["prompt"].source == "human"
    assert read("toxicchat", chat | {"human_annotation": False}).labels["prompt"].source == "model"


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("aegis-2", {"prompt_label": "maybe"}, "unknown label 'maybe'"),
        ("xstest", {"prompt": " "}, "'prompt' holds no text"),
        ("beavertails", {"category": "x"}, "'category' is no object"),
        ("beavertails", {"category": None}, "'category' must be an object"),
        ("openai-moderation", {"H": 2}, "'H': unknown label 2"),
        ("messages", {"messages": "hi"}, "messages must be a list"),
    ],
)
def test_bad_values_are_named(name, change, problem):
    with pytest.raises(DataError, match=problem):
        FORMATS[name].read(RECORDS[name][0] | change)


def test_unknown_columns_say_what_there_is():
    with pytest.raises(DataError, match="no known format"):
        recognise({"text": 1, "bad": 2}, "x.csv:2")


def test_chat_logs_in_their_older_and_newer_forms():
    given = {
        "messages": [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": "hi", "weight": 0},
            {
                "role": "assistant",
                "content": None,
                "function_call": {"name": "look", "arguments": "{}"},
                "audio": None,
            },
            {"role": "function", "name": "look", "content": "found"},
            {"role": "assistant", "content": "done", "annotations": [], "reasoning_content": "hm"},
        ]
    }
    turns = FORMATS["messages"].read(given).conversation.turns
    assert [t.role for t in turns] == ["system", "user", "assistant", "tool", "assistant"]
    assert turns[2].tool_calls[0].name == "look"


def test_own_rows_keep_their_provenance():
    given = row("a", prompt_label="unsafe", origin="x:1", absorbed=("b",))
    chosen = recognise(given.to_json(), "x")
    assert chosen.name == "guardkeel" and chosen.row(given.to_json()) == given
    example = {"id": "e", "messages": [{"role": "user", "content": "x"}], "labels": {"prompt": "safe"}}
    assert chosen.row(example, "human").labels == {"prompt": SideLabel("safe", "human")}


def test_dialogue_labels_become_sides_as_aegis_2_did_it():
    whole = Row("d", Conversation.of("p", "r"), {"trajectory": SideLabel("safe", "human")})
    made = from_dialogue(whole)
    assert made.label("prompt") == made.label("response") == "safe"
    assert made.labels["response"].source == "human, of the dialogue"
    unsafe = from_dialogue(replace(whole, labels={"trajectory": SideLabel("unsafe", "human")}))
    assert unsafe.label("prompt") == "unsafe" and "response" not in unsafe.labels
    own = from_dialogue(replace(whole, labels={**whole.labels, "prompt": SideLabel("unsafe", "jury")}))
    assert own.label("prompt") == "unsafe" and AEGIS2


@pytest.mark.skipif(not DATA, reason="GUARDKEEL_DATA names no folder of public sets")
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("ailuminate", "ailuminate/airr_official_1.0_demo_fr_fr_prompt_set_release.csv"),
        ("harmbench", "harmbench/harmbench_behaviors_text_test.csv"),
        ("jailbreakbench", "jailbreakbench/harmful-behaviors.csv"),
        ("jailbreakbench", "jailbreakbench/benign-behaviors.derived.csv"),
    ],
)
def test_real_files_come_back_to_the_byte(name, file):
    path = Path(DATA) / file
    if not path.is_file():
        pytest.skip(f"{file} is not there")
    changed = [
        raw.number
        for raw in read_rows(path)
        if recognise(raw.fields, "x").name != name
        or FORMATS[name].record(read(name, raw.fields)) != raw.fields
    ]
    assert changed == []
