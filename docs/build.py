"""Keeps the documentation true.

    python docs/build.py            write the generated parts again
    python docs/build.py --check    say what is wrong, and exit 1 if anything is

Generated (by parts.py) are docs/cli.md, from the command line's own help, and what lies between
`<!-- generated: NAME -->` and `<!-- end generated -->`: suites from their cards, keys of policies and audits
from the docstrings of their models, detectable margins from their formula. Checked are these parts, links and
anchors inside the repository, commands in console blocks (verbs and options must exist), and that no figure
is still to be filled in. Snippets are run by tests/unit/test_docs.py.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from parts import PARTS, Option, cli_page, verbs

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/*.md")
MARKER = re.compile(r"\{\{FIGURE:?[^}]*\}*")
REGION = re.compile(r"(<!-- generated: ([a-z-]+) -->\n)(.*?)(<!-- end generated -->)", re.DOTALL)
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Snippet:
    """A fenced block: its words after the fence, its text and its first line's number."""

    page: Path
    line: int
    info: tuple[str, ...]
    text: str


def pages(root: Path = ROOT) -> list[Path]:
    """Every page, sorted within the order of PAGES."""
    return [page for pattern in PAGES for page in sorted(root.glob(pattern))]


def snippets(page: Path) -> list[Snippet]:
    """The fenced blocks of a page."""
    text = page.read_text("utf-8")
    found = FENCE.finditer(text)
    return [Snippet(page, text[: m.start()].count("\n") + 2, tuple(m[1].split()), m[2]) for m in found]


def commands(snippet: Snippet) -> Iterator[tuple[int, str]]:
    """Lines that a reader would type, with their numbers: those after `$ `."""
    for number, line in enumerate(snippet.text.split("\n"), snippet.line):
        if line.startswith("$ "):
            yield number, line[2:]


def generated(page: Path) -> str:
    """A page with its generated parts made again."""
    if page.name == "cli.md":
        return cli_page()
    text = page.read_text("utf-8")
    for m in REGION.finditer(text):
        if m[2] not in PARTS:
            raise SystemExit(f"{page}: no generated part is called {m[2]!r}; there are {', '.join(PARTS)}")
    return REGION.sub(lambda m: f"{m[1]}\n{PARTS[m[2]]()}\n{m[4]}", text)


def check(root: Path = ROOT) -> list[str]:
    """Everything that is wrong, as `page:line: what`."""
    return [problem for page in pages(root) for problem in check_page(page, root)]


def check_page(page: Path, root: Path = ROOT) -> list[str]:
    """What is wrong with one page."""
    text = page.read_text("utf-8")
    where = page.relative_to(root)
    problems = (
        [] if generated(page) == text else [f"{where}: generated parts are old; run python docs/build.py"]
    )
    problems += [
        f"{where}:{_line(text, m.start())}: a figure is missing: {m[0]}" for m in MARKER.finditer(text)
    ]
    problems += [f"{where}:{line}: {what}" for line, what in _broken_links(page, text, root)]
    known = verbs()
    for snippet in snippets(page):
        if "console" in snippet.info:
            for line, command in commands(snippet):
                problems += [f"{where}:{line}: {what}" for what in check_command(command, known)]
    return problems


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _broken_links(page: Path, text: str, root: Path) -> Iterator[tuple[int, str]]:
    bare = FENCE.sub(lambda m: "\n" * m[0].count("\n"), text)
    for m in LINK.finditer(bare):
        target, _, anchor = m[1].partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or not file.is_relative_to(root):
            yield _line(bare, m.start()), f"link to {m[1]}: no such file"
        elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text("utf-8")):
            yield _line(bare, m.start()), f"link to {m[1]}: no such heading"


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    found: set[str] = set()
    for m in re.finditer(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", m[1]).strip().lower()).replace(" ", "-")
        number = next(i for i in range(len(found) + 1) if (f"{slug}-{i}" if i else slug) not in found)
        found.add(f"{slug}-{number}" if number else slug)
    return found


def check_command(command: str, known: dict[str, tuple[str, list[Option]]]) -> list[str]:
    """What is wrong with the guardkeel commands of a line: unknown verbs and options."""
    words = shlex.split(command.replace("…", "MORE"), comments=True)
    if "guardkeel" not in words:
        return []
    rest = words[words.index("guardkeel") + 1 :]
    for stop in ("|", "||", "&&", ">", ";"):
        rest = rest[: rest.index(stop)] if stop in rest else rest
    if not rest or rest[0].startswith("-"):
        return []
    verb = next((v for v in (" ".join(rest[:2]), rest[0]) if v in known), None)
    if verb is None:
        return [f"guardkeel has no verb {rest[0]!r}"]
    names = {part for option in known[verb][1] for name in option.names for part in name.split("/")}
    used = [w.partition("=")[0] for w in rest[1:] if re.match(r"--?[a-z]", w)]
    return [f"guardkeel {verb} has no option {w!r}" for w in used if w not in names | {"--help", "-h"}]


def main(arguments: list[str]) -> int:
    """Write or check."""
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    if arguments:
        problems = check()
        print("\n".join(problems) if problems else f"documentation: {len(pages())} pages are in order")
        return 1 if problems else 0
    (ROOT / "docs" / "cli.md").touch()
    for page in pages():
        made = generated(page)
        if made != page.read_text("utf-8"):
            page.write_text(made, "utf-8")
            print(f"wrote {page.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
