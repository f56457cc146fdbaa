"""The report of an adaptation or a multi-image run: one HTML page, made from its run directory alone."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from guardkeel.conversation import Conversation
from guardkeel.records import RunRecord, read_record, write_text
from guardkeel.report.pictures import ShownPicture, shown_pictures
from guardkeel.report.render import asset, environment, source
from guardkeel.report.texts import Shown, shown
from guardkeel.report.vision_charts import lines, outcome_bars
from guardkeel.vision.adapt.results import AdaptResults, Look, read_adaptation
from guardkeel.vision.mis.items import read_mis
from guardkeel.vision.mis.judging import OUTCOMES, SHORT
from guardkeel.vision.mis.measuring import read_replies
from guardkeel.vision.mis.run import AFTER, BEFORE, ITEMS, VERB, MisResults, read_mis_run

PAGE = "report.html"
SAMPLES = 12


@dataclass(frozen=True, slots=True)
class Sample:
    """Something that was asked of pictures, and what came of it; hidden until it is asked for."""

    title: str
    meta: str
    pictures: tuple[ShownPicture, ...]
    text: Shown
    replies: tuple[tuple[str, Shown], ...] = ()


def write_vision_report(out: str | Path) -> Path:
    """Write out/report.html, whole or not at all, and return its path; DataError where the run is unfinished."""
    out = Path(out)
    multi = read_record(out).verb == VERB
    write_text(out / PAGE, _multi(out) if multi else _adaptation(out))
    return out / PAGE


def _adaptation(out: Path) -> str:
    record, results = read_adaptation(out)
    looks = results.looks
    steps = [look.step for look in looks]
    alphas = [look.alpha or 0.0 for look in results.merged]
    last = looks[-1]
    depth = [layer.layer for layer in last.layers]
    return _page(
        "vision.html",
        record,
        r=results,
        last=last,
        lead=_lead(results),
        over_steps=lines("steps", "Along the way", "step", steps, _series(looks)),
        over_layers=lines(
            "layers",
            "What moved, layer by layer",
            "layer",
            depth,
            {
                "drift": [layer.drift for layer in last.layers],
                "CKA": [layer.cka for layer in last.layers],
                "subspace overlap": [layer.overlap for layer in last.layers],
            },
            percent=False,
        ),
        over_alpha=lines("alphas", "Merged with what it was", "α", alphas, _series(results.merged)),
        samples=list(_requests(out / last.image_audit)) if last.image_audit else [],
    )


def _multi(out: Path) -> str:
    record, results = read_mis_run(out)
    moments = {"before": results.before, "after": results.after}
    rows = {
        f"{tier}, {when}": tiers[tier].outcomes
        for tier in ("easy", "hard")
        for when, tiers in moments.items()
        if tier in tiers
    }
    table = [
        (tier, when, tiers[tier])
        for tier in ("easy", "hard")
        for when, tiers in moments.items()
        if tier in tiers
    ]
    return _page(
        "vision_mis.html",
        record,
        r=results,
        bars=outcome_bars("outcomes", "What became of dangerous requests", rows),
        table=table,
        outcomes=OUTCOMES,
        short=SHORT,
        samples=list(_items(out, results)),
    )


def _page(template: str, record: RunRecord, **values: Any) -> str:
    style = "\n".join(asset(name) for name in ("report.css", "collapse.css", "fuse.css", "vision.css"))
    script = asset("report.js")
    policy = (
        f"default-src 'none'; style-src '{source(style)}'; script-src '{source(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    page = (
        environment()
        .get_template(template)
        .render(
            d=record,
            command=shlex.join(record.command),
            style=Markup(style),  # noqa: S704 - our own files
            script=Markup(script),  # noqa: S704
            policy=policy,
            **values,
        )
    )
    return page + "\n"


def _series(looks: list[Look]) -> dict[str, list[float | None]]:
    """What is drawn of looks; a series that has no value is left out."""
    found: dict[str, list[float | None]] = {
        "recall, texts": [look.text.recall.value for look in looks],
        "FPR, texts": [look.text.fpr.value for look in looks],
        "recall, pictures": [look.image.recall.value if look.image else None for look in looks],
        "accuracy": [look.accuracy.value for look in looks],
    }
    return {name: values for name, values in found.items() if any(v is not None for v in values)}


def _lead(results: AdaptResults) -> str:
    """The run in one sentence."""
    before, after = results.reference.recall.value, results.looks[-1].text.recall.value
    right = results.looks[-1].accuracy.value
    what = "recall of harmful texts" if results.subject == "guard" else "refusal of harmful texts"
    if before is None or after is None or right is None:
        return f"{what[:1].upper()}{what[1:]} is not known: there are no such items."
    return (
        f"{what[:1].upper()}{what[1:]} went from {before:.1%} to {after:.1%}; "
        f"{right:.1%} of the questions on pictures are answered rightly (guessing: {results.chance:.1%})."
    )


def _requests(folder: Path) -> Iterator[Sample]:
    """Some of the requests that were drawn as pictures: unsafe and safe in turn."""
    said = {row["id"]: row for row in _jsonl(folder / "reference.jsonl")}
    rows = list(_jsonl(folder / "items.jsonl"))
    queues = [[r for r in rows if r["label"] == label] for label in ("unsafe", "safe")]
    for number in range(SAMPLES):
        queue = queues[number % 2]
        if number // 2 >= len(queue):
            continue
        row = queue[number // 2]
        conversation = Conversation.from_messages(row["messages"], images=True)
        verdict = said.get(row["id"], {}).get("unsafe")
        score = "no verdict" if verdict is None else f"P(unsafe) {verdict:.3f}"
        yield Sample(
            title=f"labelled {row['label']}",
            meta=f"{row['suite']} · {score}",
            pictures=shown_pictures(conversation.images),
            text=shown(conversation.turns[-1].content),
        )


def _items(out: Path, results: MisResults) -> Iterator[Sample]:
    """Some of the judged items with their replies: dangerous and harmless, easy and hard in turn."""
    before, after = (read_replies(out / f"{when}.jsonl") for when in (BEFORE, AFTER))
    for tier in ("easy", "hard"):
        for item in read_mis(out / ITEMS / f"mis_{tier}.json")[: SAMPLES // 2]:
            found = []
            for when, said in (("before", before), ("after", after)):
                if (tier, item.id) in said:
                    reply, judged = said[tier, item.id]
                    outcome = SHORT[judged.outcome] if judged.outcome else "not judged"
                    found.append((f"{when}: {outcome}", shown(reply)))
            yield Sample(
                title="dangerous together" if item.hazardous else "harmless twin",
                meta=f"{tier} · {item.category}",
                pictures=shown_pictures(
                    [replace(i, alt=f"a drawn {o}") for i, o in zip(item.images, item.objects, strict=True)]
                ),
                text=shown(item.question),
                replies=tuple(found),
            )


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines_:
        for line in lines_:
            yield json.loads(line)
