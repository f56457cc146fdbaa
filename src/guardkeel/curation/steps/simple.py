"""The steps that look at one row at a time, or leave the looking to one function: all but jury and export."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from guardkeel.conversation import SIDES
from guardkeel.curation.config import CurateConfig, SourceConfig
from guardkeel.curation.dedup import deduplicated
from guardkeel.curation.mapping import HOME, from_dialogue, home_names, relabelled
from guardkeel.curation.readers import Rejected, declared_mapping, read_source, source_files
from guardkeel.curation.redaction import Redactor
from guardkeel.curation.rows import Row
from guardkeel.curation.splits import Held, held_against, place
from guardkeel.curation.steps.base import Context, Step, Watch
from guardkeel.errors import ConfigError, DataError
from guardkeel.evaluation.suites import load_suite
from guardkeel.resources import digest, resolve

BYTES_PER_TOKEN = 4


class Sources(Step):
    """Reads the sources, one after another."""

    name = "source"

    def inputs(self, config: CurateConfig, watch: Watch) -> dict[str, Any]:
        """See Step: the tables, and the digest of every file or suite."""
        found = [
            {
                "table": s.model_dump(mode="json", exclude={"data", "suite"}),
                "digests": self._digests(s, config, watch),
            }
            for s in config.source
        ]
        return {"sources": found}

    def _digests(self, source: SourceConfig, config: CurateConfig, watch: Watch) -> list[str]:
        declared_mapping(source)  # what is wrong with it is said before anything is read
        if source.suite:
            suite = load_suite(source.suite, data=config.data_folder, offline=config.offline, progress=watch)
            return [suite.version, suite.digest]
        files = source_files(source, offline=config.offline, progress=watch)
        also = [Path(source.reconstruct.file)] if source.reconstruct else []
        return [f"{p.name} {digest(p)}" for p in (*files, *map(resolve, map(str, also)))]

    def run(self, context: Context) -> None:
        """See Step."""
        config = context.config
        licences: dict[str, Counter[str]] = {}
        by_source: dict[str, Counter[str]] = {}

        def rows() -> Iterator[bytes]:
            for source in config.source:
                counts = by_source.setdefault(source.name, Counter())
                given = read_source(
                    source,
                    data=config.data_folder,
                    offline=config.offline,
                    progress=context.watch,
                    counts=counts,
                )
                for made in given:
                    if isinstance(made, Rejected):
                        context.reject(source=source.name, where=made.where, id=made.id, reason=made.reason)
                        counts["left out"] += 1
                        continue
                    counts["rows"] += 1
                    licences.setdefault(source.name, Counter())[made.licence] += 1
                    if counts["rows"] % 1000 == 0:
                        context.watch(f"read {source.name}", counts["rows"], None)
                    yield made.line()
                context.watch(f"read {source.name}", counts["rows"], counts["rows"])

        context.write(rows())
        if not context.written[0]:
            raise DataError(
                f"the sources have no rows ({context.left_out} records left out)",
                remedy="check format, mapping and on_error; steps are told what was left out",
            )
        context.counts = dict(sum(by_source.values(), Counter()))
        context.results = {
            "sources": {
                s.name: {
                    "reads": s.suite or s.data,
                    "origin": s.origin,
                    "licence": ", ".join(sorted(filter(None, licences.get(s.name, {})))),
                    "counts": dict(by_source[s.name]),
                }
                for s in config.source
            }
        }


class Limits(Step):
    """Counts rows that are too long; never cuts them."""

    name = "limits"

    def run(self, context: Context) -> None:
        """See Step."""
        limits = context.config.limits
        assert limits is not None
        size = _sizer(limits.tokenizer, context)

        def rows() -> Iterator[bytes]:
            for row in context.rows("limits"):
                tokens = size(row.conversation.text)
                if tokens <= limits.max_tokens:
                    yield row.line()
                    continue
                context.counts["too long"] = context.counts.get("too long", 0) + 1
                if limits.action == "drop":
                    context.reject(id=row.id, reason=f"{tokens} tokens")
                else:
                    said = f"limits: {tokens} tokens, over {limits.max_tokens}"
                    yield replace(row, history=(*row.history, said)).line()

        context.write(rows())


def _sizer(tokenizer: str | None, context: Context) -> Callable[[str], int]:
    if tokenizer is None:
        return lambda text: -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)
    from guardkeel.guards.load import guard_path
    from guardkeel.models.loading import load_tokenizer

    folder = guard_path(tokenizer, progress=context.watch, offline=context.config.offline)
    loaded = load_tokenizer(folder)
    return lambda text: len(loaded(text, add_special_tokens=False, verbose=False)["input_ids"])


class Dedup(Step):
    """Rows that say the same become one."""

    name = "dedup"

    def run(self, context: Context) -> None:
        """See Step."""
        table = context.config.dedup
        assert table is not None
        counts: Counter[str] = Counter()
        lines = deduplicated(
            context.rows_path,
            context.scratch(),
            near=table.near,
            total=context.total,
            watch=context.watch,
            counts=counts,
        )
        context.write(lines)
        context.left_out = context.total - context.written[0]
        context.counts = dict(counts)


class Redact(Step):
    """Personal data become placeholders."""

    name = "redact"

    def run(self, context: Context) -> None:
        """See Step."""
        table = context.config.redact
        assert table is not None
        redactor = Redactor(table.kinds, table.regions)
        found: Counter[str] = Counter()

        def rows() -> Iterator[bytes]:
            for row in context.rows("redact"):
                made = redactor.row(row)
                if made is not row:
                    found["rows changed"] += 1
                    found.update(Counter(made.redactions) - Counter(row.redactions))
                yield made.line()

        context.write(rows())
        context.counts = dict(found)


class Map(Step):
    """Category names and dialogue labels."""

    name = "map"

    def run(self, context: Context) -> None:
        """See Step."""
        table = context.config.map
        assert table is not None
        own = {k: (v,) if isinstance(v, str) else tuple(v) for k, v in table.categories.items()}
        counts: Counter[str] = Counter()
        homeless: Counter[str] = Counter()

        def rows() -> Iterator[bytes]:
            for row in context.rows("map"):
                names = home_names(row.categories, own)
                strange = [n for n in names if n not in HOME]
                homeless.update(strange)
                if strange and table.unknown == "stop":
                    raise ConfigError(
                        f"row {row.id!r}: category {strange[0]!r} is no name of Aegis 2.0",
                        remedy="give it one in [map.categories], or set unknown to keep or drop",
                    )
                kept = tuple(n for n in names if n in HOME or table.unknown == "keep")
                made = _relabelled(replace(row, categories=kept), table.dialogue, table.strictness, counts)
                counts["rows with other categories"] += kept != row.categories
                yield made.line()

        context.write(rows())
        context.counts = dict(counts)
        context.results = {"categories without a home": dict(homeless.most_common(50))}


def _relabelled(row: Row, dialogue: bool, strictness: Any, counts: Counter[str]) -> Row:
    made = relabelled(row, strictness)
    said = []
    if made is not row and any(made.label(s) != row.label(s) for s in SIDES):
        counts["rows with milder labels"] += 1
        said.append("map: read permissively")
    if dialogue:
        whole = from_dialogue(made)
        if whole is not made:
            counts["rows labelled by their dialogue"] += 1
            said.append("map: labels of the dialogue")
            made = whole
    return replace(made, history=(*made.history, *said)) if said else made


class Split(Step):
    """fit / calibrate / test, also against suites."""

    name = "split"

    def __init__(self) -> None:
        self._loaded: tuple[list[Any], Held] | None = None

    def _held(self, config: CurateConfig, watch: Watch) -> Held:
        """The suites, read once for what they hold and for the split itself."""
        said = [config.split.against, config.data_folder, config.offline]
        if self._loaded is None or self._loaded[0] != said:
            held = held_against(
                config.split.against, data=config.data_folder, offline=config.offline, watch=watch
            )
            self._loaded = (said, held)
        return self._loaded[1]

    def inputs(self, config: CurateConfig, watch: Watch) -> dict[str, Any]:
        """See Step: the suites that are held against count by what is in them."""
        self._loaded = None
        suites = {s.name: [s.version, s.digest] for s in self._held(config, watch).suites}
        return super().inputs(config, watch) | {"suites": suites}

    def run(self, context: Context) -> None:
        """See Step."""
        config = context.config
        held = self._held(config, context.watch)
        counts: Counter[str] = Counter()
        placed = place(
            context.rows(),
            config.split,
            context.scratch(),
            held=held,
            total=context.total,
            watch=context.watch,
            counts=counts,
        )

        def rows() -> Iterator[bytes]:
            for where, row in zip(placed, context.rows("split: write"), strict=True):
                if where.split is None:
                    context.reject(id=row.id, reason=f"resembles {where.resembles}")
                    continue
                counts[where.split] += 1
                near = (f"split: resembles {where.resembles}",) if where.resembles else ()
                yield replace(row, split=where.split, history=(*row.history, *near)).line()

        context.write(rows())
        context.counts = dict(counts)
        context.results = {
            "against": {s.name: s.version for s in held.suites},
            "unread": dict(held.unread),
        }
