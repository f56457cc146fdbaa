"""Every copy in the data folder that GUARDKEEL_DATA names: it loads, with the counts that are known of it.

Skipped without that folder, and for files that it does not hold. No text is printed: pytest is kept from showing
what is compared by comparing counts, names and digests only.
"""

import os
from collections import Counter
from pathlib import Path

import pytest

from guardkeel.evaluation.suites import SPLITS, available, load_suite, present, read_card
from guardkeel.evaluation.suites.near_duplicates import THRESHOLD, char_shingles, jaccard, word_shingles
from guardkeel.evaluation.suites.registry import CARDS
from guardkeel.evaluation.suites.splits import comparable
from guardkeel.evaluation.suites.suite import judged_texts
from guardkeel.taxonomy import AEGIS2

FOLDER = Path(os.environ.get("GUARDKEEL_DATA", "no data folder"))
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="GUARDKEEL_DATA names no folder")

# name → examples, unsafe labels, safe labels, rows left out; both classes where both are above 0
COUNTS = {
    "advbench@local": (520, 520, 0, 0),
    "advbench@local-csv": (520, 520, 0, 0),
    "aegis@local": (438, 263, 175, 0),
    "agent-threat-bench@local": (24, 19, 5, 0),
    "agentharm-trajectories": (176, 29, 147, 0),
    "agentharm@local": (352, 176, 176, 0),
    "ailuminate-demo": (1200, 1200, 0, 0),
    "ailuminate-demo@french": (1200, 1200, 0, 0),
    "alpaca@asft": (1000, 0, 1000, 0),
    "alpaca@demo": (999, 0, 999, 0),
    "alpaca@local": (6266, 0, 6266, 0),
    "assebench-security": (676, 382, 294, 141),
    "assebench-security@all": (817, 409, 408, 0),
    "banking77-train@local": (10003, 0, 10003, 0),
    "banking77@local": (3080, 0, 3080, 0),
    "bastion-injection@local": (181, 118, 63, 0),
    "bipia": (125, 125, 0, 0),
    "catqa@local": (550, 550, 0, 0),
    "code-alpaca@local": (2017, 0, 2017, 0),
    "codeipi@local": (45, 35, 10, 0),
    "cyberseceval-frr": (750, 0, 750, 0),
    "cyberseceval-injection": (251, 251, 0, 0),
    "dangerousqa": (200, 200, 0, 0),
    "deepset-injections@local": (662, 263, 399, 0),
    "dices-990": (990, 160, 830, 0),
    "do-not-answer@local": (939, 939, 0, 0),
    "dolly-hhrlhf": (1000, 0, 1000, 0),
    "figstep": (500, 500, 0, 0),
    "figstep@tiny": (50, 50, 0, 0),
    "gsm8k-train@local": (7473, 0, 7473, 0),
    "gsm8k@local": (1319, 0, 1319, 0),
    "harmbench@local": (400, 400, 0, 0),
    "harmfulqa": (1960, 1960, 0, 0),
    "in-the-wild-jailbreaks@local": (666, 666, 0, 0),
    "jailbreakbench-artifacts": (1637, 1637 + 937, 700, 163),
    "jailbreakbench@local": (200, 100, 100, 0),
    "malicious-instruct@local": (100, 100, 0, 0),
    "mind2web-sc@local": (200, 100, 100, 0),
    "notinject@local": (339, 0, 339, 0),
    "pubmedqa@local": (1000, 0, 1000, 0),
    "pyrit-harm@local": (545, 341, 204, 460),
    "pyrit-objective@local": (190, 190, 0, 202),
    "pyrit-refusal@local": (118, 0, 118, 75),
    "self-instruct-seeds": (175, 0, 175, 0),
    "simple-safety-tests@local": (100, 100, 0, 0),
    "toxicchat-train@local": (2801, 384, 2417, 0),
    "toxicchat@local": (2853, 362, 2491, 0),
    "toxicchat@local-full": (5083, 362, 4721, 0),
    "wildguardtest@local": (1554, 609, 945, 0),
    "wildguardtrain@local": (3502, 1638, 1864, 0),
    # where somebody fetched them from their repositories
    "harmbench-response": (602, 273, 329, 0),
    "injecagent": (1054, 1054, 0, 0),
    "openai-moderation@local": (859, 522, 337, 821),
    "r-judge": (564, 298, 266, 0),
    "strongreject@local": (313, 313, 0, 0),
    "xstest@local": (450, 200, 250, 0),
}

# What the folder holds that is no suite, and why
NO_SUITE = {
    "DEDUP_MANIFEST.csv.gz": "hashes",
    "agentharm/PROVENANCE.txt": "provenance",
    "assebench/category_*.json": "names of categories",
    "beavertails/beavertails_30k_test_prompts.json.gz": "labels of pairs whose replies are missing: no prompt labels",
    "benign_banking77/categories.json": "names of intents",
    "benign_pubmedqa/test_ground_truth.json": "answers",
    "capability/*": "questions with one right answer: they measure a model, not a guard",
    "figstep/*.png": "images",
    "figstep/benign_sentences_without_harmful_phase.csv": "templates with a hole in them",
    "harmbench/harmbench_behaviors_multimodal_all.csv": "requests about images",
    "hh_rlhf/harmless-base_test.jsonl.gz": "which of two replies is less harmful: no label of its own",
    "taxonomies/*": "names of categories",
}

NAMES = [n for card in available() for n in present(card, FOLDER)] if FOLDER.is_dir() else ["no data folder"]


@pytest.fixture(scope="module")
def suites():
    """The suites, each loaded once."""
    loaded = {}

    def load(name):
        if name not in loaded:
            loaded[name] = load_suite(name, data=FOLDER, offline=True)
        return loaded[name]

    return load


@pytest.mark.parametrize("name", NAMES)
def test_copies_load_with_the_known_counts(suites, name):
    suite = suites(name)
    found = (len(suite.examples), suite.count("unsafe"), suite.count("safe"), suite.left_out)
    assert found == COUNTS[name]
    assert (suite.card.one_class is None) == bool(found[1] and found[2])
    labelled = {side for e in suite.examples for side in e.labels}
    assert labelled == set(suite.card.sides)
    assert {c for e in suite.examples for c in e.categories} <= set(AEGIS2)
    assert suite.card.checked == "read" or name.startswith(
        ("xstest@", "strongreject@", "injecagent", "harmbench-r")
    )


@pytest.mark.parametrize("name", NAMES)
def test_no_text_is_in_two_splits(suites, name):
    """Nor a near-duplicate: by comparing all pairs, in the suites that are small enough for that."""
    suite = suites(name)
    assert set(suite.splits.values()) <= set(SPLITS)
    where: dict[str, set[str]] = {}
    for example in suite.examples:
        for text in map(comparable, judged_texts(example)):
            where.setdefault(text, set()).add(suite.splits[example.id])
    assert sum(len(splits) > 1 for splits in where.values()) == 0
    if len(set(suite.splits.values())) > 1 and len(where) <= 700:
        found = [(word_shingles(t), char_shingles(t), splits) for t, splits in where.items()]
        close = [
            (i, j)
            for i, (words, chars, splits) in enumerate(found)
            for j, (other_words, other_chars, other) in enumerate(found[:i])
            if splits != other
            and (jaccard(words, other_words) >= THRESHOLD or jaccard(chars, other_chars) >= THRESHOLD)
        ]
        assert len(close) == 0


def test_every_file_of_the_folder_is_read_by_a_card_or_is_no_suite():
    read = set()
    for card in available():
        if card.folder == str(CARDS):
            for reading in (card, *(card.copied(c.name) for c in card.copies)):
                read |= {p.reference.removeprefix("data:").partition("#")[0] for p in reading.files}
    held = [
        p.relative_to(FOLDER)
        for p in FOLDER.rglob("*")
        if p.is_file()
        and p.name != "PROVENANCE.txt"
        and not p.name.startswith("LICENSE")
        and p.suffix != ".md"
    ]
    missed = [
        str(p) for p in held if str(p) not in read and not any(p.match(pattern) for pattern in NO_SUITE)
    ]
    assert missed == []


@pytest.mark.parametrize(
    ("copy", "card"),
    [
        ("toxicchat@local", "toxicchat_test"),
        ("wildguardtest@local", "wildguard_test"),
        ("jailbreakbench@local", "jailbreakbench"),
        ("malicious-instruct@local", "malicious_instruct"),
        ("deepset-injections@local", "deepset_injections"),
        ("banking77@local", "banking77_test"),
        ("gsm8k@local", "gsm8k_test"),
        ("simple-safety-tests@local", "simple_safety_tests"),
        ("notinject@local", "notinject"),
        ("aegis@local", "aegis_subset"),
        ("cyberseceval-frr", "cyberseceval_frr"),
        ("assebench-security", "assebench_security"),
        ("alpaca@local", "alpaca_instructions"),
    ],
)
def test_copies_are_what_the_benchmarks_read(suites, copy, card):
    """The benchmarks keep cards of their own, so that their figures stand: the same texts, labels and categories."""
    path = Path(__file__).parents[2] / "benchmarks" / "cards" / f"{card}.toml"
    theirs = load_suite(read_card(path), data=FOLDER)

    def content(suite):
        return Counter(
            hash((e.conversation, tuple(sorted(e.labels.items())), e.categories)) for e in suite.examples
        )

    assert content(suites(copy)) == content(theirs)


def test_the_dialogues_of_dices_end_with_the_reply_that_was_rated(suites):
    suite = suites("dices-990")
    assert Counter(tuple(t.role for t in e.conversation.turns[-2:]) for e in suite.examples) == {
        ("user", "assistant"): 990
    }
    assert {e.conversation.turns[0].role for e in suite.examples} == {"user"}
    assert max(len(e.conversation.turns) for e in suite.examples) > 4


def test_twins_of_agentharm_lie_together(suites):
    suite = suites("agentharm@local")
    assert Counter(e.id.partition("-")[0] for e in suite.examples) == {"harmful": 176, "benign": 176}
    assert {e.labels["prompt"] for e in suite.examples if e.id.startswith("benign")} == {"safe"}
