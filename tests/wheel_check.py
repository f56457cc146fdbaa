"""Opens a built wheel and checks what is in it: python tests/wheel_check.py dist/*.whl

What a user needs is there, nothing else is, size is bounded, no path of the machine that built it is inside,
and the metadata says what pyproject.toml says. Prints what is wrong and exits 1, or one line and exits 0.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import sys
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_BYTES = 20_000_000
NEEDED = (
    "guardkeel/__init__.py",
    "guardkeel/py.typed",
    "guardkeel/evaluation/policies/default.toml",
    "guardkeel/evaluation/suites/data/keel-anchor.jsonl",
    "guardkeel/evaluation/suites/data/keel-anchor-agents.jsonl",
    "guardkeel/evaluation/suites/data/keel-contrast.jsonl",
    "guardkeel/evaluation/suites/data/keel-domain.jsonl",
    "guardkeel/guards/data/keel-135m/adapter_config.json",
    "guardkeel/guards/data/keel-135m/adapter_model.safetensors",
    "guardkeel/guards/data/keel-135m/guardkeel.json",
    "guardkeel/report/templates/report.css",
    "guardkeel/report/templates/report.html",
    "guardkeel/report/templates/report.js",
)
NEEDED_FOLDERS = (
    "guardkeel/evaluation/suites/cards/",
    "guardkeel/curation/adjudication/templates/",
    "guardkeel/dossier/domains/",
    "guardkeel/dossier/regimes/",
    "guardkeel/moderation/page/templates/",
    "guardkeel/report/templates/",
)
ENDINGS = {".py", ".mako", ".typed", ".toml", ".jsonl", ".json", ".safetensors", ".html", ".css", ".js"}
STRAY = re.compile(
    r"(^|/)(tests?|benchmarks|recipes|examples|docs|shared|__pycache__|\.[^/]+)(/|$)|\.py[co]$|~$"
)
TEXT = {".py", ".toml", ".json", ".html", ".css", ".js", ".jsonl", ""}
# Folders in which people and machines keep their work; in a text of the package they are somebody's own.
MACHINE = re.compile(rb"(?<![\w.:/<~-])(?:/(?:home|Users|root|work|tmp|mnt|workspace)/[\w.-]+|[A-Z]:\\\w+)")


def check(path: Path, root: Path = ROOT) -> list[str]:
    """Everything that is wrong with a wheel that was built from `root`."""
    size = path.stat().st_size
    problems = [f"{size:,} bytes; the limit is {MAX_BYTES:,}"] if size > MAX_BYTES else []
    with zipfile.ZipFile(path) as wheel:
        names = [i.filename for i in wheel.infolist() if not i.is_dir()]
        info = sorted({n.split("/")[0] for n in names if ".dist-info/" in n})
        if len(info) != 1:
            return [*problems, f"{len(info)} dist-info folders"]
        problems += _contents(names, info[0], root)
        problems += _inside(wheel, names, root)
        problems += _metadata(wheel, info[0], root)
        problems += _record(wheel, names, info[0])
    return problems


def _contents(names: list[str], info: str, root: Path) -> list[str]:
    """What is missing, and what should not be there."""
    needed = (*NEEDED, *(f"{info}/licenses/{n}" for n in ("LICENSE", "NOTICE")), f"{info}/entry_points.txt")
    problems = [f"missing: {n}" for n in needed if n not in names]
    source = root / "src"
    for folder in NEEDED_FOLDERS:
        wanted = {p.relative_to(source).as_posix() for p in (source / folder).glob("*.*")}
        problems += [f"missing: {n}" for n in sorted(wanted - set(names))]
    package = [n for n in names if not n.startswith(f"{info}/")]
    problems += [f"does not belong in the package: {n}" for n in package if not n.startswith("guardkeel/")]
    problems += [f"stray: {n}" for n in package if STRAY.search(n) or Path(n).suffix not in ENDINGS]
    return problems + [f"twice in the archive: {n}" for n in sorted({n for n in names if names.count(n) > 1})]


def _inside(wheel: zipfile.ZipFile, names: list[str], root: Path) -> list[str]:
    """Paths of a machine in texts, files that not everybody may read."""
    problems = []
    for name in names:
        mode = wheel.getinfo(name).external_attr >> 16
        if mode and mode & 0o444 != 0o444:
            problems.append(f"{name}: mode {mode & 0o777:o}, so that not everybody may read it")
        data = wheel.read(name)
        if str(root).encode() in data:
            problems.append(f"{name}: holds the path of this checkout")
        elif Path(name).suffix in TEXT and (found := MACHINE.search(data)):
            problems.append(f"{name}: holds the path {found[0].decode('utf-8', 'replace')}")
    return problems


def _metadata(wheel: zipfile.ZipFile, info: str, root: Path) -> list[str]:
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    said: Message = message_from_bytes(wheel.read(f"{info}/METADATA"))
    wanted = {
        "Name": project["name"],
        "Version": project["version"],
        "Summary": project["description"],
        "Requires-Python": project["requires-python"],
        "License-Expression": project["license"],
    }
    problems = [f"METADATA {k} is {said[k]!r}, not {v!r}" for k, v in wanted.items() if said[k] != v]
    required = [r for r in said.get_all("Requires-Dist", []) if "extra ==" not in r]
    if len(required) != len(project["dependencies"]):
        problems.append(f"METADATA requires {len(required)} packages, not {len(project['dependencies'])}")
    if not str(said.get_payload()).lstrip().startswith("# guardkeel"):
        problems.append("METADATA has no README")
    points = (
        wheel.read(f"{info}/entry_points.txt").decode()
        if f"{info}/entry_points.txt" in wheel.namelist()
        else ""
    )
    problems += [
        f"no entry point {k} = {v}" for k, v in project["scripts"].items() if f"{k} = {v}" not in points
    ]
    tags = message_from_bytes(wheel.read(f"{info}/WHEEL")).get_all("Tag", [])
    return problems + ([] if tags == ["py3-none-any"] else [f"tags are {tags}, not py3-none-any"])


def _record(wheel: zipfile.ZipFile, names: list[str], info: str) -> list[str]:
    rows = csv.reader(io.StringIO(wheel.read(f"{info}/RECORD").decode()))
    record = {row[0]: row[1] for row in rows if row}
    problems = [f"not in RECORD: {n}" for n in names if n not in record]
    for name, digest in record.items():
        if digest and name in names:
            found = base64.urlsafe_b64encode(hashlib.sha256(wheel.read(name)).digest()).rstrip(b"=").decode()
            problems += [] if digest == f"sha256={found}" else [f"RECORD has another digest for {name}"]
    return problems


def main(arguments: list[str]) -> int:
    """Check one wheel."""
    if len(arguments) != 1 or not arguments[0].endswith(".whl"):
        print(f"give one wheel, not {arguments}\n\n{__doc__}", file=sys.stderr)
        return 2
    path = Path(arguments[0])
    problems = check(path)
    for problem in problems:
        print(f"{path.name}: {problem}")
    if not problems:
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, in order")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
