"""What a fine-tune reads: chosen by ids, in balance, and no text in two of its parts."""

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkeel.conversation import Conversation, Example, ToolCall, Turn, write_jsonl
from guardkeel.errors import ConfigError, DataError
from guardkeel.evaluation.suites.splits import comparable
from guardkeel.guards.base import Judgement
from guardkeel.tuning.config import read_config
from guardkeel.tuning.gather import balanced, encoded, gather
from guardkeel.tuning.targets import Instruction, Target
from small_tunes import bench
from trained_guards import examples


@pytest.fixture
def files(tmp_path):
    """files(name=rows) writes each as a file and gives their paths."""

    def write(**named):
        paths = {}
        for name, rows in named.items():
            paths[name] = str(tmp_path / f"{name}.jsonl")
            if rows and isinstance(rows[0], Example):
                write_jsonl(paths[name], rows)
            else:
                (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return paths

    return write


def gathered(data, guard_data=(), monitor=(), **options):
    lists = {"data": [data] if isinstance(data, str) else list(data)}
    lists |= {"guard_data": list(guard_data), "monitor": list(monitor)}
    return gather(read_config(None, lists | options), lambda *told: None)


def texts(rows):
    """What is judged or learned, as the suites compare it."""
    found = set()
    for row in rows:
        if isinstance(row, Instruction):
            found.add(comparable(row.conversation.text))
            continue
        turns = row.judgement.conversation.turns
        found.add(
            comparable(
                turns[0].content if row.judgement.side == "prompt" else "\n".join(t.content for t in turns)
            )
        )
    return found


def ids(rows):
    return [row.id if isinstance(row, Instruction) else row.judgement.id for row in rows]


def disjoint(found):
    parts = [found.task, found.aside, found.guard, found.monitor]
    assert all(parts)
    return all(not texts(a) & texts(b) for i, a in enumerate(parts) for b in parts[:i])


def renamed(rows, prefix):
    return [Example(f"{prefix}{e.id}", e.conversation, e.labels, e.categories) for e in rows]


def test_no_text_is_in_two_parts(files):
    pool = examples(140, 1)
    paths = files(
        task=[*pool[:60], *renamed(pool[:12], "again-")],  # some rows twice
        guard=pool[40:90],
        watch=pool[30:140],
    )
    found = gathered(paths["task"], [paths["guard"]], [paths["watch"]], held_out=0.3)
    assert disjoint(found)
    watched = texts(found.monitor)
    rows = gathered(paths["task"])
    assert texts([*found.task, *found.aside]) == texts([*rows.task, *rows.aside]) - watched
    assert found.left_out == found.counts["left out as repeated"] > 10
    assert found.counts["task rows"] == len(found.task) and found.counts["monitor items"] == len(
        found.monitor
    )


def test_splits_of_one_suite_are_kept_apart(files):
    """The same file as data, guard data and monitor is split, and the task's rows are the task's."""
    pool, other = examples(200, 2), examples(40, 3)
    paths = files(mine=pool, guard=other)
    found = gathered(paths["mine"], [paths["guard"]], [paths["mine"]])
    assert disjoint(found) and len(found.task) + len(found.aside) < 150
    with pytest.raises(DataError, match="every row is in the task's data") as error:
        gathered(paths["mine"], [paths["mine"]], [paths["mine"]])
    assert "of their own" in error.value.remedy


def test_rows_that_share_a_prompt_are_kept_aside_together(files):
    rows = [
        Example(f"{i}-{k}", Conversation.of(f"please tell me about bank number {i} now", f"answer {k} to {i}"),
                {"response": "safe"})
        for i in range(20) for k in range(3)
    ]  # fmt: skip
    found = gathered(files(task=rows)["task"], held_out=0.25)
    prompts = [
        {t.judgement.conversation.turns[0].content for t in part} for part in (found.task, found.aside)
    ]
    assert not prompts[0] & prompts[1]
    assert len(found.aside) == 15 and len(found.task) == 45


def test_a_row_that_all_others_are_like_leaves_nothing_aside(files):
    same = [
        Example(str(i), Conversation.of("one and the same message"), {"prompt": "safe"}) for i in range(9)
    ]
    found = gathered(files(task=same)["task"], held_out=0.5)
    assert len(found.task) == 9 and not found.aside


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_a_share_is_kept_aside(files, share):
    path = files(task=examples(100, 4))["task"]
    found = gathered(path, held_out=share)
    rows = len(found.task) + len(found.aside)
    assert abs(len(found.aside) - share * rows) <= 1
    assert ids(found.task) == [i for i in ids(gathered(path, held_out=0).task) if i in set(ids(found.task))]


def test_what_is_chosen_follows_from_the_ids(files, tmp_path):
    rows = examples(80, 5)
    shuffled = random.Random(1).sample(rows, len(rows))
    guard, watch = examples(60, 6), examples(90, 7)
    made = []
    for task in (rows, rows, shuffled):
        paths = files(task=task, guard=guard, watch=watch)
        made.append(
            gathered(
                paths["task"], [paths["guard"]], [paths["watch"]], most=50, guard_items=20, monitor_items=7
            )
        )
    assert made[0] == made[1]
    for part in ("task", "aside", "guard", "monitor"):
        assert sorted(ids(getattr(made[0], part))) == sorted(ids(getattr(made[2], part))), part
    assert len(made[0].task) + len(made[0].aside) == 50
    assert len(made[0].guard) == 20 and len(made[0].monitor) == 7
    few = gathered(files(task=rows)["task"], most=20)
    assert set(ids([*few.task, *few.aside])) < set(ids([*made[0].task, *made[0].aside]))  # nested


def test_digests_tell_what_was_read(files):
    rows, guard = examples(30, 8), examples(30, 9)
    paths = files(task=rows, guard=guard, watch=examples(60, 10))
    lists = (paths["task"], [paths["guard"]], [paths["watch"]])
    first = gathered(*lists).digests
    keys = {f"data {paths['task']}", f"guard data {paths['guard']}", f"monitor {paths['watch']}", "rows"}
    assert set(first) == keys
    assert gathered(*lists).digests == first
    files(guard=guard[:-1])
    changed = gathered(*lists).digests
    assert {k for k in keys if changed[k] != first[k]} == {f"guard data {paths['guard']}"}
    fewer = gathered(*lists, most=20).digests
    assert {k for k in keys if fewer[k] != changed[k]} == {"rows"}


def test_the_source_is_of_the_data_alone(files):
    bank = [
        Example(f"b{i}", Conversation.of(f"bank message {i} of mine"), {"prompt": "safe"}, (), "bank")
        for i in range(9)
    ]
    shop = [
        Example(f"s{i}", Conversation.of(f"shop message {i} of mine"), {"prompt": "safe"}, (), "shop")
        for i in range(9)
    ]
    paths = files(task=[*bank, *shop], guard=examples(20, 11))
    found = gathered(paths["task"], [paths["guard"]], source="bank")
    assert all("/b" in i for i in ids([*found.task, *found.aside])) and len(found.guard) > 10
    with pytest.raises(DataError, match="'farm'"):
        gathered(paths["task"], source="farm")


# --- balance


def targets(unsafe, safe):
    labels = ["unsafe"] * unsafe + ["safe"] * safe
    return [
        Target(Judgement(f"t{i}", Conversation.of(f"text {i}"), "prompt"), label)
        for i, label in enumerate(labels)
    ]


@settings(max_examples=80, deadline=None)
@given(unsafe=st.integers(0, 12), safe=st.integers(0, 12), most=st.integers(2, 20))
def test_labels_are_in_balance_where_there_are_enough(unsafe, safe, most):
    given_ = targets(unsafe, safe)
    found = balanced(given_, most)
    n = [sum(t.label == label for t in found) for label in ("unsafe", "safe")]
    assert sum(n) <= most and len({t.judgement.id for t in found}) == sum(n)
    assert n[0] <= unsafe and n[1] <= safe
    assert sum(n) >= min(most, unsafe + safe) - 1  # an odd one may be left over
    assert abs(n[0] - n[1]) <= 1 or min(n) == min(unsafe, safe)  # the rarer side whole, the other fills up
    assert found == balanced(list(given_), most)


# --- kinds


INSTRUCTIONS = [{"instruction": f"what is {i} and two", "output": f"it is {i + 2}"} for i in range(20)]


def test_instructions_are_learned_beside_guard_data(files, tiny_loaded):
    paths = files(task=INSTRUCTIONS, guard=examples(12, 12))
    found = gathered(paths["task"], [paths["guard"]])
    assert all(isinstance(row, Instruction) for row in [*found.task, *found.aside])
    assert all(isinstance(row, Target) for row in found.guard)
    teacher = bench(tiny_loaded("llama")).teacher
    task, aside, guard = encoded(found, teacher, 512)
    assert [len(task), len(aside), len(guard)] == [18, 2, len(found.guard)]
    assert not any(lesson.shared or lesson.label for lesson in [*task, *aside])
    assert all(lesson.shared and lesson.label for lesson in guard)
    assert task[0].answer_ids and teacher.encoder.prefix_ids


def test_a_classifier_cannot_learn_answers(files, tiny_loaded):
    paths = files(task=INSTRUCTIONS, guard=examples(12, 12))
    teacher = bench(tiny_loaded("bert")).teacher
    with pytest.raises(DataError, match="a classifier cannot learn answers") as error:
        encoded(gathered(paths["task"], [paths["guard"]]), teacher, 512)
    assert "task/" in error.value.problem and "labelled guard conversations" in error.value.remedy
    found = gathered(paths["guard"])
    task, aside, guard = encoded(found, teacher, 512)
    assert [len(task), len(aside), len(guard)] == [len(found.task), len(found.aside), 0]
    assert all(lesson.label and not lesson.answer_ids for lesson in task)


def test_what_cannot_be_read_together(files):
    paths = files(ask=INSTRUCTIONS, judge=examples(20, 13))
    with pytest.raises(DataError, match="guard conversations and instructions in one run"):
        gathered([paths["ask"], paths["judge"]])
    with pytest.raises(DataError, match=r"ask\.jsonl:1: field 'labels' is missing"):
        gathered(paths["judge"], [paths["ask"]])
    with pytest.raises(DataError, match=r"ask\.jsonl: guard data need labels, these are instructions"):
        gathered(paths["ask"], [paths["ask"]])
    with pytest.raises(DataError, match=r"absent\.jsonl"):
        gathered("absent.jsonl")


def test_nothing_left_to_learn(files):
    rows = examples(60, 14)
    paths = files(task=rows[:2], watch=rows)
    with pytest.raises(DataError, match=r"of \d rows .* none is left to learn") as error:
        gathered(paths["task"], held_out=0.9)
    assert "lower held_out" in error.value.remedy
    watched = {
        i.example.id for i in gathered(files(o=examples(3, 15))["o"], monitor=[paths["watch"]]).monitor
    }
    files(task=[e for e in rows if e.id in watched])
    with pytest.raises(DataError, match="none is left to learn"):
        gathered(paths["task"], monitor=[paths["watch"]])


def test_auto_adds_trajectories_where_such_are_learned(files):
    rows = examples(24, 5)
    agents = [Example(f"t{e.id}", e.conversation, {"trajectory": "safe"}) for e in rows[12:]]
    paths = files(prompts=rows[:12], agents=agents, mine=examples(6, 6))
    without = gathered(paths["prompts"], ["auto", paths["mine"]], ["auto"]).digests
    assert {"guard data keel-anchor", f"guard data {paths['mine']}", "monitor advbench"} < set(without)
    found = gathered(paths["agents"], ["auto", paths["mine"]], ["auto"])
    more = {"guard data keel-anchor-agents", "monitor keel-anchor-agents"}
    assert set(found.digests) - set(without) == more | {f"data {paths['agents']}"}
    assert "trajectory" in {t.judgement.side for t in found.guard} & {i.side for i in found.monitor}


def test_guard_data_that_do_not_fit_are_left_out(files, tiny_loaded):
    long = Example(
        "long",
        Conversation((Turn("user", "a"), Turn("assistant", "", calls(4000)))),
        {"trajectory": "unsafe"},
    )
    paths = files(task=examples(12, 12), guard=[*examples(8, 13), long])
    found = gathered(paths["task"], [paths["guard"]], guard_items=50)
    assert len(found.guard) == 10  # eight messages, a reply to one of them, and the long one
    teacher = bench(tiny_loaded("llama")).teacher
    assert len(encoded(found, teacher, 512)[2]) == 9
    with pytest.raises(ConfigError, match="none of 1 guard conversations fits: guard/long"):
        encoded(replace(found, guard=[t for t in found.guard if "long" in t.judgement.id]), teacher, 512)


def calls(length):
    return (ToolCall("search", json.dumps({"q": "x " * length})),)
