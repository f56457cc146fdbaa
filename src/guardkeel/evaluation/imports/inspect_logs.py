"""Logs of inspect_ai (0.3): .eval archives and .json files, read as documented, without inspect_ai itself.

A log holds `eval` (task, model, data set), `status` and samples with id, epoch, input, target and scores. A guard's
verdict comes from its scorer:

- C or I (right or wrong), true or false: the verdict word that the answer is; else, where right, the target.
  A wrong answer that is no verdict word is unscored, never safe; so are P, N and samples that failed;
- a number: P(unsafe), if the scorer is called so or `Reading.numbers` says so;
- a word: the label.

A log of a run that was killed has the samples that were finished.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guardkeel.conversation import Label
from guardkeel.errors import DataError
from guardkeel.evaluation.imports.files import an_object, inner, listed, parse, taken
from guardkeel.evaluation.imports.reading import (
    UNSAFE_SCORES,
    UNSAFE_WORDS,
    Reading,
    certain,
    chance,
    names,
    text_of,
)
from guardkeel.evaluation.imports.zips import member, open_zip
from guardkeel.evaluation.leaderboard.imported import ImportedRow, ImportedScores

TOOL = "inspect_ai"
_SAMPLE = re.compile(r"samples/.+\.json")
_PLAIN = (str, bool, int, float)
Sample = tuple[str, dict[str, Any]]


def is_log(found: Any) -> bool:
    """Whether a JSON value is a log."""
    return isinstance(found, dict) and isinstance(found.get("eval"), dict) and "status" in found


def read_archive(path: Path, reading: Reading) -> ImportedScores:
    """An .eval file."""
    with open_zip(path) as archive:
        held = set(archive.namelist())
        head = next((n for n in ("header.json", "_journal/start.json") if n in held), None)
        if head is None:
            raise DataError(
                f"{path}: a zip archive without header.json", remedy="give an .eval log of inspect_ai"
            )
        header = an_object(parse(member(archive, head), f"{path}: {head}"), f"{path}: {head}")
        return _read(path, header, list(_members(path, archive)), reading)


def read_document(path: Path, found: dict[str, Any], reading: Reading) -> ImportedScores:
    """A .json log."""
    samples = [
        (f"{path}: samples[{i}]", an_object(s, f"{path}: samples[{i}]"))
        for i, s in enumerate(listed(found, "samples"))
    ]
    return _read(path, found, samples, reading)


def _members(path: Path, archive: zipfile.ZipFile) -> Iterator[Sample]:
    for name in sorted({n for n in archive.namelist() if _SAMPLE.fullmatch(n)}):
        where = f"{path}: {name}"
        yield where, _thin(an_object(parse(member(archive, name), where), where))


def _thin(sample: dict[str, Any]) -> dict[str, Any]:
    """What is needed of a sample: its events and messages can be megabytes."""
    kept = {k: sample.get(k) for k in ("id", "target", "input", "error", "scores", "score", "metadata")}
    said = inner(sample, "output").get("completion")
    return kept | {"epoch": sample.get("epoch", 1), "output": {"completion": said}}


def _read(path: Path, header: dict[str, Any], samples: list[Sample], reading: Reading) -> ImportedScores:
    about = taken(header, "eval", dict, str(path))
    data = inner(about, "dataset")
    suite = str(data.get("name") or about.get("task") or path.stem)
    status = header.get("status", "started")
    notes = [] if status == "success" else [f"the run's status is {status!r}: samples may be missing"]
    if not samples:
        return ImportedScores(str(about.get("model")), TOOL, suite, [], [*notes, _figures(header)])
    later = [s for _, s in samples if s.get("epoch", 1) != 1]
    if later:
        notes.append(f"{len(later):,} samples of later epochs are left out")
    samples = [s for s in samples if s[1].get("epoch", 1) == 1]
    scorer = _scorer(path, samples, reading)
    judged = [_verdict(sample, where, scorer, reading) for where, sample in samples]
    known = [(str(s.get("id")), text_of(s.get("input"))) for _, s in samples]
    own = all(isinstance(s.get("id"), str) and not s["id"].isdecimal() for _, s in samples)
    rows = [
        ImportedRow(name, reading.side_of(inner(s, "metadata").get("side")), score, label, why)
        for name, (_, s), (score, label, why) in zip(
            names(known, reading, own=own), samples, judged, strict=True
        )
    ]
    if all(score in (None, 0.0, 1.0) for score, _, _ in judged):
        notes.append(f"scorer {scorer!r} gives no probabilities: scores are 0 and 1")
    return ImportedScores(str(about.get("model") or path.stem), TOOL, suite, rows, notes)


def _scores(sample: dict[str, Any]) -> dict[str, Any]:
    found = sample.get("scores")
    if not isinstance(found, dict):  # logs of before 0.3 have one
        found = {"score": sample["score"]} if isinstance(sample.get("score"), dict) else {}
    return {name: score for name, score in found.items() if isinstance(score, dict)}


def _scorer(path: Path, samples: list[Sample], reading: Reading) -> str:
    """Which scorer to read: the one asked for, the only one, or the one that is called after P(unsafe)."""
    found = sorted({name for _, sample in samples for name in _scores(sample)})
    asked = reading.scorer
    if asked is not None and (asked in found or asked.rpartition(".")[0] in found):
        return asked
    likely = [name for name in found if name in UNSAFE_SCORES]
    if asked is None and (len(found) == 1 or len(likely) == 1):
        return (likely or found)[0]
    if not found:
        raise DataError(f"{path}: no sample was scored", remedy="score the log: inspect score FILE")
    raise DataError(
        f"{path}: has the scorers {', '.join(found)}" + (f", not {asked!r}" if asked else ""),
        remedy=f"choose one: scorer = {found[0]!r}",
    )


def _verdict(
    sample: dict[str, Any], where: str, scorer: str, reading: Reading
) -> tuple[float | None, Label, str]:
    target = sample.get("target")
    if isinstance(target, list) and len(target) == 1:
        target = target[0]
    label = reading.gold(target, where)
    scores = _scores(sample)
    name = scorer if scorer in scores else scorer.rpartition(".")[0]
    key = scorer[len(name) + 1 :]
    if sample.get("error") or name not in scores:
        return None, label, "inspect_ai could not run or score it"
    value = scores[name].get("value")
    if isinstance(value, dict):
        key = key or next((k for k in UNSAFE_SCORES if k in value), "")
        if key not in value:
            raise DataError(
                f"{where}: scorer {name!r} gives {', '.join(sorted(map(str, value)))!s:.80}",
                remedy=f"choose one: scorer = '{name}.{next(iter(value), 'key')}'",
            )
        name, value = key, value[key]
    if value in ("P", "N"):
        return None, label, "partly right" if value == "P" else "no answer"
    if isinstance(value, str) and value not in ("C", "I"):
        said = reading.word(value)
        return (None, label, "its score is no verdict") if said is None else (certain(said), label, "")
    if isinstance(value, bool) or value in ("C", "I") or reading.numbers == "correct":
        right = {"C": True, "I": False, 1: True, 0: False}.get(value) if isinstance(value, _PLAIN) else None
        return _answered(sample, scores, scorer, label, right, reading)
    meaning = reading.numbers or ("unsafe" if name in UNSAFE_SCORES else None)
    if meaning is None and isinstance(value, int | float):
        raise DataError(
            f"{where}: scorer {name!r} gives numbers, and what they mean is not said",
            remedy="say it: numbers = 'unsafe' for P(unsafe), 'safe' for P(safe), 'correct' for 1 where right",
        )
    score = chance(value, where, f"scores.{name}.value")
    if score is None:
        return None, label, "its scorer gave no number"
    return (score if meaning == "unsafe" else 1.0 - score), label, ""


def _answered(
    sample: dict[str, Any],
    scores: dict[str, Any],
    scorer: str,
    label: Label,
    right: bool | None,
    reading: Reading,
) -> tuple[float | None, Label, str]:
    """The verdict of an item that a scorer calls right or wrong.

    A verdict word in the answer says more than the scorer: "unsafe" includes "safe", so `includes()` calls it right.
    """
    if right is None:
        return None, label, "neither right nor wrong"
    found = scores.get(scorer) or scores.get(scorer.rpartition(".")[0]) or {}
    answers = [found.get("answer"), inner(sample, "output").get("completion")]
    said = [word for a in answers if (word := reading.word(a)) is not None]
    if said:
        return certain(said[0]), label, ""
    if not right:
        return None, label, "a wrong answer that is no verdict"
    text = " ".join(a for a in answers if isinstance(a, str)).casefold()
    if label == "safe" and any(w.casefold() in text for w in (reading.unsafe or UNSAFE_WORDS)):
        return None, label, "called right, but its answer does not say safe"
    return certain(label), label, ""


def _figures(header: dict[str, Any]) -> str:
    results = inner(header, "results")
    found = [
        f"{score.get('name')} {name} {metric['value']:.4g}"
        for score in listed(results, "scores")
        if isinstance(score, dict)
        for name, metric in inner(score, "metrics").items()
        if isinstance(metric, dict) and isinstance(metric.get("value"), int | float)
    ]
    return f"the log has no samples: the run's own figures are {', '.join(found) or 'none'}; they cannot be paired"
