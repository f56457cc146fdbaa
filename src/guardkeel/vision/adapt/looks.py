"""One look at a model that sees: its language part audited against what it was, typographic requests, pictures.

looks/<name>/look.json   the numbers, written last
looks/<name>/text/       an audit of texts: reference and candidate, with geometry
looks/<name>/image/      an audit of requests as pictures; its items hold the pictures
reference/               what the language model said before it had eyes

A look that is there is not made again, and one that was begun goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from guardkeel.errors import DataError
from guardkeel.evaluation.audit import Known, Source, audit_guards
from guardkeel.evaluation.runs import read_audit
from guardkeel.evaluation.settings import AuditSettings
from guardkeel.evaluation.suites import Suite, SuiteCard
from guardkeel.evaluation.suites.card import SplitRule
from guardkeel.evaluation.suites.suite import build
from guardkeel.guards.vision import VisionGuard
from guardkeel.records import value_digest, write_json
from guardkeel.results import AuditResults
from guardkeel.vision.adapt.config import AdaptConfig
from guardkeel.vision.adapt.results import Look, layers, rates
from guardkeel.vision.answers import accuracy
from guardkeel.vision.pairs import Pair
from guardkeel.vision.typographic import typographic_suite

LOOKS, REFERENCE = "looks", "reference"
Watch = Callable[[str, int, int | None], None]


def audit_settings(config: AdaptConfig, geometry: bool = True) -> AuditSettings:
    """How every look audits."""
    return AuditSettings(
        limit=config.limit, geometry=geometry, geometry_items=config.geometry_items, draws=19
    )


def requests_as_pictures(config: AdaptConfig, suites: Sequence[Suite]) -> Suite | None:
    """The suite of typographic requests; None where none is asked for.

    Raises:
        DataError: the suites have no labelled requests of that length.
    """
    if not config.typographic:
        return None
    found = typographic_suite(suites, limit=config.typographic)
    if not found:
        raise DataError(
            "no request of the suites can be made a picture", remedy="name others, or set typographic = 0"
        )
    card = SuiteCard(
        name="typographic", reference="drawn from the audit's own suites", splits=SplitRule(fixed="test")
    )
    return build(card, found)


class Looker:
    """Looks at one guard over images as it is when it is asked."""

    def __init__(
        self,
        config: AdaptConfig,
        folder: Path,
        guard: VisionGuard,
        *,
        digest: str,
        source: Source,
        known: Known,
        suites: Sequence[Suite],
        requests: Suite | None,
        pairs: Sequence[Pair],
        watch: Watch,
    ) -> None:
        self.config, self.folder, self.guard, self.digest = config, folder, guard, digest
        self.source, self.known = source, known
        self.suites, self.requests, self.pairs, self.watch = suites, requests, pairs, watch

    def look(self, step: int, alpha: float | None = None) -> Look:
        """The look at a step, and with `alpha` the one at a merged model."""
        name = f"step-{step}" if alpha is None else f"alpha-{alpha:g}"
        home = self.folder / LOOKS / name
        known = read_look(home)
        if known is not None:
            return known
        started = time.perf_counter()
        digest = value_digest([self.digest, name])
        with _still(self.guard.model):
            text = self._audit(home / "text", digest, self.suites, f"audit texts at {name}")
            image = None
            if self.requests is not None:
                image = self._audit(home / "image", digest, [self.requests], f"audit pictures at {name}")
            right, kinds = accuracy(
                self.guard,
                self.pairs,
                lambda done, total: self.watch(f"ask of pictures at {name}", done, total),
            )
        found = Look(
            step=step,
            alpha=alpha,
            text=rates(text, "candidate"),
            layers=layers(text),
            image=rates(image, "reference") if image is not None else None,
            accuracy=right,
            kinds=kinds,
            text_audit=f"{LOOKS}/{name}/text",
            image_audit=f"{LOOKS}/{name}/image" if image is not None else "",
            seconds=time.perf_counter() - started,
        )
        write_json(home / "look.json", found.model_dump(mode="json"))
        return found

    def _audit(self, folder: Path, digest: str, suites: Sequence[Suite], what: str) -> AuditResults:
        if (folder / "run.json").is_file():
            return read_audit(folder)
        of_texts = folder.name == "text"
        role = "candidate" if of_texts else "reference"
        own = Source(reference=self.config.model, digest=digest)
        judge: Any = Judging(self.guard)
        return audit_guards(
            [(role, judge)],
            suites,
            folder,
            sources={"reference": self.source, "candidate": own} if of_texts else {"reference": own},
            settings=audit_settings(self.config, geometry=of_texts),
            known={"reference": self.known} if of_texts else {},
            watch=lambda _, done, total: self.watch(what, done, total),
        )


class Judging:
    """A guard that names no categories, which no look reads; all else is the guard's own."""

    def __init__(self, guard: Any) -> None:
        self._guard = guard
        self.batches = partial(guard.batches, categories=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._guard, name)


def read_look(home: Path) -> Look | None:
    """The look in a folder; None where it is unfinished."""
    path = home / "look.json"
    try:
        return Look.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as e:
        raise DataError(
            f"{path}: {e.errors()[0]['msg']}", remedy="delete the folder and repeat the command"
        ) from e


@contextlib.contextmanager
def _still(model: Any) -> Iterator[None]:
    """In evaluation mode, denormals as they are in a fresh process, and every generator as it was before."""
    training = model.training
    flushed = bool(torch.tensor(1e-38) * 1e-3 == 0)
    model.eval()
    torch.set_flush_denormal(False)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_flush_denormal(flushed)
        model.train(training)
