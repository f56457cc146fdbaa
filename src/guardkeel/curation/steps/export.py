"""The last step: the finished set, as files of each split and a card.

dataset/
  README.md                    the card; `datasets.load_dataset` reads its front matter
  data/fit-00000.parquet …     under writers.schema, or rows as JSONL
  also/aegis-2-fit.jsonl …     the same rows in released formats
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from guardkeel.curation.card import Totals, card
from guardkeel.curation.config import CurateConfig
from guardkeel.curation.formats import format_named
from guardkeel.curation.rows import Row, write_rows
from guardkeel.curation.steps.base import Context, Done, Step, Watch
from guardkeel.curation.writers import write_released, write_set
from guardkeel.evaluation.suites.splits import SPLITS
from guardkeel.records import value_digest, write_text


class Export(Step):
    """See the module's text."""

    name = "export"

    def folder(self, out: Path) -> Path:
        """See Step."""
        return out / "dataset"

    def inputs(self, config: CurateConfig, watch: Watch) -> dict[str, Any]:
        """See Step: what goes onto the card as well."""
        for name in config.export.also:
            format_named(name)
        return super().inputs(config, watch) | {"name": config.name, "redacted": config.redact is not None}

    def digest(self, inputs: dict[str, Any], before: Sequence[Done]) -> str:
        """See Step: the card says what every step found."""
        return value_digest([super().digest(inputs, before), [d.digest for d in before]])

    def run(self, context: Context) -> None:
        """See Step."""
        table = context.config.export
        totals = Totals()
        files: dict[str, list[str]] = {}
        for split in SPLITS:
            rows = (row for row in context.rows(f"export {split}") if row.split == split)
            for number, some in enumerate(_shards(rows, table.shard)):
                held = list(some)
                for row in held:
                    totals.add(row)
                for ending in table.formats:
                    name = f"data/{split}-{number:05d}.{ending}"
                    (write_set if ending == "parquet" else write_rows)(context.folder / name, held)
                    if ending == table.formats[0]:
                        files.setdefault(split, []).append(name)
                context.counts[split] = context.counts.get(split, 0) + len(held)
            for other in table.also:
                # Released formats have no place for a policy, and without it the labels are wrong.
                own = (row for row in context.rows() if row.split == split and not row.own_policy)
                write_released(context.folder / "also" / f"{other}-{split}.jsonl", own, other)
        steps = [done.model_dump(mode="json") for done, _ in context.before]
        write_text(context.folder / "README.md", card(context.config, totals, files, steps))
        context.written = (sum(context.counts.values()), context.before[-1][0].rows_digest)


def _shards(rows: Iterable[Row], size: int) -> Iterator[Iterator[Row]]:
    """Runs of up to `size` rows, each read before the next is asked for."""
    given = iter(rows)
    for first in given:
        yield _chain(first, islice(given, size - 1))


def _chain(first: Row, rest: Iterable[Row]) -> Iterator[Row]:
    yield first
    yield from rest
