"""Makes files of instructions of the grid's data that are not such files yet. Prints counts, never texts.

    GUARDKEEL_DATA=… python benchmarks/collapse/prepare.py [--out runs/collapse-data]

pubmedqa.jsonl: a question and the abstract that answers it → the authors' conclusion (PubMedQA, arXiv:1909.06146).
code.jsonl, alpaca.jsonl: Code Alpaca and Alpaca without the rows that have no answer.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guardkeel.records import atomic_writer

Row = dict[str, str]


def pubmedqa(data: Path) -> Iterator[Row]:
    for identity, record in sorted(_read(data / "benign_pubmedqa" / "ori_pqal.json.gz").items()):
        yield {
            "id": identity,
            "instruction": record["QUESTION"],
            "input": "\n".join(record["CONTEXTS"]),
            "output": record["LONG_ANSWER"],
        }


def code(data: Path) -> Iterator[Row]:
    return _answered(data / "benign_code_alpaca" / "code_alpaca_2k.json.gz")


def alpaca(data: Path) -> Iterator[Row]:
    return _answered(data / "benign_alpaca" / "alpaca_1k_p_0.json.gz")


def _answered(path: Path) -> Iterator[Row]:
    for number, record in enumerate(_read(path)):
        if record["output"].strip():
            yield {"id": str(number)} | {k: record[k] for k in ("instruction", "input", "output")}


def _read(path: Path) -> Any:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("GUARDKEEL_DATA"))
    parser.add_argument("--out", type=Path, default=Path("runs/collapse-data"))
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("give --data, or set GUARDKEEL_DATA, to the folder that holds benign_pubmedqa/")
    for make in (pubmedqa, code, alpaca):
        path = arguments.out / f"{make.__name__}.jsonl"
        rows = list(make(Path(arguments.data)))
        with atomic_writer(path) as out:
            out.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
        print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main()
