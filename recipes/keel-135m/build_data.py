"""Build the training mixture of keel-135m from tier G sources and our own texts.

    python recipes/keel-135m/build_data.py --data DIR --own recipes/keel-135m/texts --out train.jsonl

Every source below is permissively licensed (see docs/keel-135m.md). Left out on purpose, because they are test
suites: AdvBench, HarmBench, JailbreakBench, SimpleSafetyTests, Do-Not-Answer, NotInject, CyberSecEval-benign,
PyRIT objective and refusal sets, bastioncorpus, in-the-wild jailbreaks, ASSEBench, Banking77. Texts that repeat one of
them (equal, or 3-word-shingle Jaccard of at least 0.6) are dropped. Prints counts and digests only.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import itertools
import json
import random
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guardkeel.conversation import Conversation, Example, ToolCall, Turn, normalised, write_jsonl
from guardkeel.records import file_digest
from guardkeel.taxonomy import AEGIS2

SEED = 20

# Names of the sources' own categories → home names. A category that is absent is not used.
CATQA = {
    "Illegal Activity": "Illegal Activity",
    "Child Abuse": "Sexual (minor)",
    "Hate/Harass/Violence": "Violence",
    "Malware Viruses": "Malware",
    "Physical Harm": "Violence",
    "Economic Harm": "Fraud/Deception",
    "Fraud/Deception": "Fraud/Deception",
    "Adult Content": "Sexual",
    "Political Campaigning": "Political/Misinformation/Conspiracy",
    "Privacy Violation Activity": "PII/Privacy",
}
AILUMINATE = {
    "vcr": "Violence",
    "ncr": "Criminal Planning/Confessions",
    "src": "Sexual",
    "cse": "Sexual (minor)",
    "dfm": "Harassment",
    "prv": "PII/Privacy",
    "ipv": "Copyright/Trademark/Plagiarism",
    "iwp": "Guns and Illegal Weapons",
    "hte": "Hate/Identity Hate",
    "ssh": "Suicide and Self Harm",
    "sxc_prn": "Sexual",
}
FIGSTEP = {
    "Illegal Activity": "Illegal Activity",
    "Illegal Activitiy": "Illegal Activity",
    "Hate Speech": "Hate/Identity Hate",
    "Malware Generation": "Malware",
    "Physical Harm": "Violence",
    "Fraud": "Fraud/Deception",
    "Adult Content": "Sexual",
    "Privacy Violation": "PII/Privacy",
}
PYRIT_HARM = {
    "exploits": "Malware",
    "hate_speech": "Hate/Identity Hate",
    "hate_speech_multi_score": "Hate/Identity Hate",
    "mini_hate_speech": "Hate/Identity Hate",
    "info_integrity": "Political/Misinformation/Conspiracy",
    "privacy": "PII/Privacy",
    "representational": "Hate/Identity Hate",
    "self_harm": "Suicide and Self Harm",
    "sexual": "Sexual",
    "violence": "Violence",
    "violence_multi_score": "Violence",
}


def opened(path: Path) -> io.TextIOBase:
    """A text handle, gzipped or not, under the name given or with .gz behind it."""
    if not path.exists():
        path = path.with_name(path.name + ".gz")
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")  # type: ignore[return-value]


def rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a CSV, JSON-lines or JSON file."""
    with opened(path) as f:
        if ".csv" in path.name:
            first = f.readline()
            lines = f if first.startswith("# dataset_version") else itertools.chain([first], f)
            return list(csv.DictReader(lines))
        text = f.read()
    if ".jsonl" in path.name:
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    return list(json.loads(text))


def prompt(source: str, number: object, text: str, category: str = "") -> Example:
    """A user prompt; unsafe when it has a category."""
    label = "unsafe" if category else "safe"
    return Example(
        f"{source}/{number}",
        Conversation.of(text.strip()),
        {"prompt": label},
        (category,) if category else (),
        source,
    )


def harmful(data: Path, rng: random.Random) -> Iterator[Example]:
    """Unsafe prompts of the tier G sets that are not test suites."""
    catqa = json.loads((data / "catqa_harmfulqa/catqa_english.json").read_text())
    for category, subs in catqa.items():
        for sub, texts in subs.items():
            for i, text in enumerate(texts):
                if category in CATQA:
                    yield prompt("catqa", f"{category}/{sub}/{i}", text, CATQA[category])
    path = data / "ailuminate/airr_official_1.0_demo_en_us_prompt_set_release.csv"
    for row in rows(path):
        if row["hazard"] in AILUMINATE:
            yield prompt(
                "ailuminate-en", row["release_prompt_id"], row["prompt_text"], AILUMINATE[row["hazard"]]
            )
    french = [
        r
        for r in rows(data / "ailuminate/airr_official_1.0_demo_fr_fr_prompt_set_release.csv")
        if r["hazard"] in AILUMINATE
    ]
    for row in rng.sample(french, 120):
        yield prompt("ailuminate-fr", row["release_prompt_id"], row["prompt_text"], AILUMINATE[row["hazard"]])
    for i, row in enumerate(rows(data / "figstep/safebench.csv")):
        if row["category_name"] in FIGSTEP:
            yield prompt("figstep", i, row["question"], FIGSTEP[row["category_name"]])
            if i % 2:
                yield prompt("figstep-list", i, row["instruction"], FIGSTEP[row["category_name"]])
    injections = rows(data / "cyberseceval/prompt_injection.json")
    for i in rng.sample(range(len(injections)), 120):
        row = injections[i]
        text = row["user_input"] if isinstance(row["user_input"], str) else "\n".join(row["user_input"])
        turns = (Turn("system", row["test_case_prompt"]), Turn("user", text))
        yield Example(
            f"cse-injection/{i}",
            Conversation(turns),
            {"prompt": "unsafe"},
            ("Manipulation",),
            "cse-injection",
        )


def severity(data: Path) -> Iterator[Example]:
    """Human-rated replies: mean severity 0 is safe, at least 0.75 unsafe, what lies between is left out."""
    for name, category in PYRIT_HARM.items():
        for i, row in enumerate(rows(data / f"pyrit_scorer_evals/harm__{name}.csv")):
            scores = [float(v) for k, v in row.items() if k.startswith("human_score") and v]
            mean = sum(scores) / len(scores) if scores else 0.5
            text = row["assistant_response"].strip()
            if 0 < mean < 0.75 or not text:
                continue
            label = "unsafe" if mean else "safe"
            categories = (category,) if mean else ()
            source = "pyrit-harm"
            if i % 2:  # the same text as a user's own post: content is judged whoever wrote it
                yield Example(
                    f"{source}/{name}/{i}", Conversation.of(text), {"prompt": label}, categories, source
                )
            else:
                talk = Conversation.of(row["objective"].strip(), text)
                yield Example(f"{source}/{name}/{i}", talk, {"response": label}, categories, source)


def ordinary(data: Path, rng: random.Random) -> Iterator[Example]:
    """Benign prompts: school, medicine, mathematics, common sense."""
    for i, row in enumerate(rng.sample(rows(data / "gsm8k/train.jsonl"), 350)):
        yield prompt("gsm8k", i, row["question"])
        if i < 40:
            talk = Conversation.of(row["question"], row["answer"])
            yield Example(f"gsm8k-reply/{i}", talk, {"response": "safe"}, (), "gsm8k")
    with gzip.open(data / "benign_pubmedqa/ori_pqal.json.gz", "rt", encoding="utf-8") as f:
        pubmed = sorted(json.load(f).items())
    for i, (_, row) in enumerate(rng.sample(pubmed, 450)):
        if i % 3 == 0:
            yield prompt("pubmedqa-abstract", i, " ".join(row["CONTEXTS"])[:350])
        elif i % 3 == 1:
            yield Example(
                f"pubmedqa-reply/{i}",
                Conversation.of(row["QUESTION"], row["LONG_ANSWER"]),
                {"response": "safe"},
                (),
                "pubmedqa",
            )
        else:
            yield prompt("pubmedqa", i, row["QUESTION"])
    with zipfile.ZipFile(data / "capability/mmlu.zip") as z:
        names = sorted(n for n in z.namelist() if "/test/" in n and n.endswith(".csv"))
        questions = [r[0] for n in names for r in list(csv.reader(io.TextIOWrapper(z.open(n), "utf-8")))[:14]]
    for i, text in enumerate(rng.sample(questions, 550)):
        yield prompt("mmlu", i, text[:350])
    for name, count in (("commonsense_qa", 250), ("openbook_qa", 150)):
        for i, row in enumerate(rng.sample(rows(data / f"capability/{name}.jsonl"), count)):
            yield prompt(
                name, i, re.split(r"\n(?:Choices|Answer)", row["query"].removeprefix("Question:"))[0].strip()
            )
    for row in rows(data / "capability/mt_bench_question.jsonl"):
        yield prompt("mt_bench", row["question_id"], row["turns"][0])
        for k, text in enumerate(row["turns"][1:], 1):
            turns = (
                Turn("user", row["turns"][0]),
                Turn("assistant", "Here is my answer to that."),
                Turn("user", text),
            )
            yield Example(
                f"mt_bench/{row['question_id']}.{k}", Conversation(turns), {"prompt": "safe"}, (), "mt_bench"
            )


def own(folder: Path) -> Iterator[Example]:
    """Our own texts: {"y": label, "c": category, "f": form, "u": user, "t": tool result, "a": assistant}."""
    for path in sorted(folder.glob("*.jsonl")):
        for i, row in enumerate(rows(path)):
            categories = (row["c"],) if row["y"] == "unsafe" else ()
            unknown = set(categories) - set(AEGIS2)
            if unknown:
                raise SystemExit(f"{path}:{i + 1}: unknown category {unknown}")
            turns = [Turn("user", row["u"])]
            if row.get("t"):
                turns += [Turn("assistant", "", (ToolCall("tool"),)), Turn("tool", row["t"])]
            side = "prompt"
            if row.get("a"):
                turns.append(Turn("assistant", row["a"]))
                side = "trajectory" if row["f"] == "agent" else "response"
            group = f"{path.stem}/p{row['p']}" if "p" in row else ""
            yield Example(
                f"own/{path.stem}/{i}",
                Conversation(tuple(turns)),
                {side: row["y"]},
                categories,
                f"own-{row['f']}",
                group=group,  # type: ignore[dict-item]
            )


def held_out(data: Path) -> list[str]:
    """Texts of every suite that is kept for testing."""
    texts = [r["goal"] for r in rows(data / "advbench/harmful_behaviors.csv")]
    for split in ("test", "val"):
        texts += [r["Behavior"] for r in rows(data / f"harmbench/harmbench_behaviors_text_{split}.csv")]
    for kind in ("harmful-behaviors.csv", "benign-behaviors.derived.csv"):
        texts += [r["Goal"] for r in rows(data / "jailbreakbench" / kind)]
    texts += [r["prompts_final"] for r in rows(data / "simple_safety_tests/simple_safety_tests.csv")]
    texts += (data / "malicious_instruct/MaliciousInstruct.txt").read_text().split("\n")
    for path in sorted((data / "do_not_answer").glob("*.jsonl")):
        texts += [r["prompt"] for r in rows(path)]
    for n in ("one", "two", "three"):
        texts += [r["prompt"] for r in rows(data / f"prompt_injection/NotInject_{n}.json")]
    texts += [r["mutated_prompt"] for r in rows(data / "cyberseceval/mitre_frr.json.gz")]
    texts += [r["text"] for r in rows(data / "prompt_injection/bastioncorpus_injections.jsonl")]
    for split in ("train", "test"):
        with opened(data / f"toxicchat/toxic_chat_{split}.json.gz") as f:
            texts += [str(r["instance"]) for r in json.load(f)["instances"]]
    texts += [r["text"] for r in rows(data / "wildguard/wildguard_full_benchmark.json.gz")]
    texts += [r["prompt"] for r in rows(data / "aegis/aegis_prompts_subset_438.jsonl")]
    own_suites = Path(__file__).parents[2] / "src/guardkeel/evaluation/suites/data"
    for name in ("keel-contrast", "keel-domain"):  # keel-anchor is chosen from the training texts
        texts += [m["content"] for r in rows(own_suites / f"{name}.jsonl") for m in r["messages"]]
    return [t for t in texts if isinstance(t, str) and t.strip()]


class Overlap:
    """Whether a text repeats one of many: equal when normalised, or shingle Jaccard of at least `limit`."""

    def __init__(self, texts: list[str], limit: float = 0.6) -> None:
        self.limit = limit
        self.exact = {normalised(t) for t in texts}
        self.sets = [shingles(t) for t in self.exact]
        self.index: dict[str, list[int]] = defaultdict(list)
        for i, found in enumerate(self.sets):
            for s in found:
                self.index[s].append(i)

    def __contains__(self, text: str) -> bool:
        if normalised(text) in self.exact:
            return True
        mine = shingles(text)
        shared = Counter(i for s in mine for i in self.index.get(s, ()))
        return any(c / (len(mine) + len(self.sets[i]) - c) >= self.limit for i, c in shared.items())


def shingles(text: str) -> set[str]:
    """Word 3-grams of a normalised text (the text itself when shorter)."""
    words = normalised(text).split()
    return {" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


def in_context(example: Example, replies: list[Example], rng: random.Random) -> Example:
    """Put an innocent exchange before a prompt, so that the guard learns to judge the last message."""
    before = rng.choice(replies).conversation.turns[:2]
    return Example(
        f"{example.id}+context",
        Conversation((*before, *example.conversation.turns)),
        example.labels,
        example.categories,
        example.source,
    )


def main() -> None:
    """Write the mixture and print its counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the tier G sources")
    parser.add_argument(
        "--own", type=Path, default=Path(__file__).parent / "texts", help="folder of our own texts"
    )
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rng = random.Random(SEED)
    found = [
        *harmful(args.data, rng),
        *severity(args.data),
        *ordinary(args.data, rng),
        *own(args.own),
    ]
    tests, seen, kept, dropped = Overlap(held_out(args.data)), set(), [], Counter()
    for example in found:
        judged = example.conversation.turns[
            0 if set(example.labels) == {"prompt"} and len(example.conversation.turns) == 1 else -1
        ].content
        key = (normalised(example.conversation.text), *example.labels)
        if judged in tests:
            dropped["repeats a test suite"] += 1
        elif key in seen:
            dropped["repeats another row"] += 1
        elif len(example.conversation.text) < 3:
            dropped["empty"] += 1
        else:
            seen.add(key)
            kept.append(example)
    replies = [e for e in kept if e.source.startswith("own-reply") and e.labels.get("response") == "safe"]
    if replies:
        prompts = [e for e in kept if "prompt" in e.labels and len(e.conversation.turns) == 1]
        kept += [in_context(e, replies, rng) for e in rng.sample(prompts, len(prompts) // 12)]
    rng.shuffle(kept)
    write_jsonl(args.out, kept)
    counts = Counter((e.source, next(iter(e.labels.values()))) for e in kept)
    for (source, label), n in sorted(counts.items()):
        print(f"{source:24} {label:7} {n:6}")
    print(
        "total",
        len(kept),
        dict(Counter(next(iter(e.labels.values())) for e in kept)),
        "dropped",
        dict(dropped),
    )
    print("sha256", file_digest(args.out))


if __name__ == "__main__":
    main()
