"""Results of lm-evaluation-harness 0.4: results_DATE.json and, with --log_samples, samples_TASK_DATE.jsonl.

A sample holds doc, target, arguments, filtered_resps and filter. Two kinds of task say something of a guard:

- multiple choice over verdict words: P(unsafe) = Σ exp(log-likelihood) over the unsafe choices / over all choices;
- generated text: a verdict word gives 0 or 1, any other text is unscored.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from guardkeel.errors import DataError
from guardkeel.evaluation.imports.files import WRITTEN, an_object, inner, read_json, read_lines, taken
from guardkeel.evaluation.imports.reading import TEXT_FIELDS, Reading, certain, figures, names
from guardkeel.evaluation.leaderboard.imported import ImportedRow, ImportedScores

TOOL = "lm-eval"
_SAMPLES = re.compile(r"samples_(?P<task>.+?)_(?P<date>\d{4}-\d\d-\d\dT[\d.-]+)\.jsonl")


def is_sample(found: dict[str, Any]) -> bool:
    """Whether an object is a line of a samples file."""
    return "doc_id" in found and "filtered_resps" in found


def is_results(found: Any) -> bool:
    """Whether a JSON value is a results file."""
    return (
        isinstance(found, dict)
        and isinstance(found.get("results"), dict)
        and ("configs" in found or "n-shot" in found)
    )


def read_figures(path: Path, found: dict[str, Any], skip: set[str]) -> list[ImportedScores]:
    """The tasks of a results file whose samples were not kept: figures as a note, no rows."""
    return [
        ImportedScores(
            _model(found, path),
            TOOL,
            task,
            [],
            [
                f"no samples file (--log_samples): the run's own figures are {figures(values)}; they cannot be paired"
            ],
        )
        for task, values in found["results"].items()
        if task not in skip and isinstance(values, dict)
    ]


def samples_beside(path: Path) -> dict[str, Path]:
    """Task → its samples file, of the run that a results file is of."""
    date = path.stem.removeprefix("results_")
    return {
        m["task"]: p
        for p in sorted(path.parent.glob("samples_*.jsonl"))
        if (m := _SAMPLES.fullmatch(p.name)) and m["date"] == date
    }


def read_samples(path: Path, reading: Reading) -> ImportedScores:
    """One samples file; the results file of the same run says which model it was."""
    lines = [(where, found) for where, found in read_lines(path)]
    filters = sorted({str(found.get("filter", "none")) for _, found in lines})
    wanted = reading.scorer or (filters[0] if len(filters) == 1 else None)
    if wanted not in filters:
        raise DataError(
            f"{path}: has the filters {', '.join(filters)}" + (f", not {wanted!r}" if wanted else ""),
            remedy=f"choose one: scorer = {filters[0]!r}",
        )
    kept = [(where, found) for where, found in lines if str(found.get("filter", "none")) == wanted]
    judged = [_verdict(found, where, reading) for where, found in kept]
    docs = [taken(found, "doc", dict, where) for where, found in kept]
    own = all(isinstance(doc.get("id"), str | int) for doc in docs)
    known = [
        (str(doc["id"] if own else found.get("doc_id")), _text(doc))
        for doc, (_, found) in zip(docs, kept, strict=True)
    ]
    rows = [
        ImportedRow(name, reading.side_of(doc.get("side")), score, label, why)
        for name, doc, (score, label, why) in zip(names(known, reading, own=own), docs, judged, strict=True)
    ]
    match = _SAMPLES.fullmatch(path.name)
    results = path.with_name(f"results_{match['date']}.json") if match else path
    about = an_object(read_json(results), str(results)) if match and results.is_file() else {}
    texts = any("arg_1" not in a or isinstance(a["arg_1"], dict) for _, f in kept for a in _arguments(f))
    notes = ["verdicts were generated: scores are 0 and 1"] if texts else []
    return ImportedScores(_model(about, path), TOOL, match["task"] if match else path.stem, rows, notes)


def _arguments(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [a for a in inner(found, "arguments").values() if isinstance(a, dict)]


def _verdict(found: dict[str, Any], where: str, reading: Reading) -> tuple[float | None, Any, str]:
    answers = taken(found, "filtered_resps", list, where)
    target = found.get("target")
    choices = [a.get("arg_1") for a in _arguments(found)]
    if len(choices) > 1 and all(isinstance(c, str) for c in choices) and len(choices) == len(answers):
        words = [reading.word(c) for c in choices]
        if "unsafe" not in words or "safe" not in words:
            raise DataError(
                f"{where}: choices {choices!r:.80} do not say which is unsafe",
                remedy='say which words mean what: unsafe = ["yes"], safe = ["no"]',
            )
        plain = str(target)
        index = int(plain) if plain.isascii() and plain.isdecimal() and len(plain) < 5 else None
        if index is not None and index >= len(choices):
            raise DataError(f"{where}: target {index} of {len(choices)} choices", remedy=WRITTEN)
        label = reading.gold(target if index is None else choices[index], where)
        score = _share([_number(a, where) for a in answers], words)
        return score, label, "" if score is not None else "log-likelihoods are not finite"
    label = reading.gold(target, where)
    answer = answers[0] if answers else None
    said = reading.word(answer[0] if isinstance(answer, list) and answer else answer)
    return (None, label, "its text is no verdict") if said is None else (certain(said), label, "")


def _number(answer: Any, where: str) -> float:
    """The log-likelihood of a choice, which is written as [number, greedy], the number often as text."""
    try:
        return float(answer[0] if isinstance(answer, list) else answer)
    except (TypeError, ValueError, IndexError) as e:
        raise DataError(
            f"{where}: field 'filtered_resps': {answer!r:.60} is no log-likelihood", remedy=WRITTEN
        ) from e


def _share(logs: list[float], words: list[Any]) -> float | None:
    """The unsafe share of the choices' probabilities; choices that are no verdict count for neither."""
    held = [(log, word) for log, word in zip(logs, words, strict=True) if word is not None]
    top = max(log for log, _ in held)
    if not math.isfinite(top) or any(math.isnan(log) for log, _ in held):
        return None
    weights = [(math.exp(log - top), word) for log, word in held]
    return min(1.0, sum(w for w, word in weights if word == "unsafe") / sum(w for w, _ in weights))


def _text(doc: dict[str, Any]) -> str | None:
    return next((doc[f] for f in TEXT_FIELDS if isinstance(doc.get(f), str)), None)


def _model(about: dict[str, Any], path: Path) -> str:
    config = inner(about, "config")
    given = config.get("model_args")
    given = given if isinstance(given, dict) else dict(re.findall(r"(\w+)=([^,]+)", str(given or "")))
    return str(
        about.get("model_name")
        or given.get("pretrained")
        or given.get("model")
        or config.get("model")
        or path.parent.name
    )
