"""The documentation is true: parts are current, links resolve, commands exist, snippets and examples run."""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from guardkeel.evaluation.policy import load_policy, parse_policy
from guardkeel.evaluation.suites import load_suite
from guardkeel.evaluation.suites.card import parse_card

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def module(path: Path, name: str) -> ModuleType:
    """A script as a module, without leaving its folder on the path."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(made)
    finally:
        sys.path.remove(str(path.parent))
    return made


build: Any = module(ROOT / "docs" / "build.py", "docs_build")
PAGES = build.pages()
NAMES = [str(p.relative_to(ROOT)) for p in PAGES]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the toy guard as guard/, its adapter as tuned/, and mine.jsonl; the working directory."""
    folder = tmp_path_factory.mktemp("docs")
    toy: Any = module(EXAMPLES / "toy.py", "toy")
    toy.make(folder, layers=1)  # half the time of two
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("GUARDKEEL_OFFLINE", "1")
        yield folder


def run(command: str, patch: pytest.MonkeyPatch) -> int:
    """The exit code of a guardkeel command, run in this process."""
    from guardkeel.cli import main

    patch.setattr(sys, "argv", shlex.split(command, comments=True))
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def audited(place: Path) -> Path:
    """The toy run that docs/audit.md makes, for pages that read it."""
    [command] = [
        c
        for s in build.snippets(ROOT / "docs" / "audit.md")
        if s.info == ("console", "run")
        for _, c in build.commands(s)
        if c.startswith("guardkeel audit")
    ]
    with pytest.MonkeyPatch.context() as patch:
        assert run(command, patch) == 1
    return place / "runs" / "toy"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_page_is_in_order(page: Path) -> None:
    """All but figures that a run has yet to fill in: `docs/build.py --check` refuses those."""
    assert [p for p in build.check_page(page) if "a figure is missing" not in p] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_snippets_run(page: Path, audited: Path, capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {"__name__": "snippet"}
    shutil.rmtree("runs/mine", ignore_errors=True)
    for snippet in build.snippets(page):
        if snippet.info == ("python",):
            exec(compile("\n" * (snippet.line - 1) + snippet.text, str(page), "exec"), namespace)
            said = capsys.readouterr().out.splitlines()
            promised = [
                line[2:].split("   ")[0] for line in snippet.text.splitlines() if line.startswith("# ")
            ]
            assert promised in ([], said)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_console_snippets_run(page: Path, audited: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for snippet in build.snippets(page):
        if snippet.info == ("console", "run"):
            for _, command in build.commands(snippet):
                if not command.startswith("guardkeel audit"):  # `audited` has run it
                    wanted = int(command.partition("# exits ")[2] or 0)
                    assert run(command, monkeypatch) == wanted, command


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_data_snippets_parse(page: Path) -> None:
    for snippet in build.snippets(page):
        where = f"{page.name}:{snippet.line}"
        if snippet.info == ("json",):
            assert json.loads(snippet.text), where
        if snippet.info == ("toml",):
            table = tomllib.loads(snippet.text)
            if snippet.text.startswith("# card.toml"):
                parse_card(table, where=where)
            if snippet.text.startswith("# gate.toml"):
                parse_policy(snippet.text, where)
        if snippet.info == ("yaml",):
            import yaml

            assert yaml.safe_load(snippet.text), where


def test_guardkeel_json_is_documented() -> None:
    from guardkeel.guards.load import GuardSettings

    text = (ROOT / "docs" / "guards.md").read_text("utf-8")
    section = text.partition("## guardkeel.json")[2].partition("\n## ")[0]
    rows = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(GuardSettings.model_fields)


def test_families_are_documented() -> None:
    from guardkeel.guards.registry import CLASSIFIER, families

    text = (ROOT / "docs" / "guards.md").read_text("utf-8")
    for name in (*families(), CLASSIFIER, "rules", "linear"):
        assert f"| `{name}` |" in text


def test_mapping_keys_are_documented() -> None:
    from guardkeel.evaluation.suites import Mapping

    text = (ROOT / "docs" / "suites.md").read_text("utf-8")
    assert [k for k in Mapping.model_fields if f"`{k}`" not in text and f"`{k}." not in text] == []


# What build.py --check finds


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text(
        "# First page\n\n## Second `part`, again\n\n## Second part again\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x {{FIGURE: recall}} y", "README.md:1: a figure is missing: {{FIGURE: recall}}"),
        ("\n\n[a](docs/b.md)", "README.md:3: link to docs/b.md: no such file"),
        ("[a](docs/a.md#third)", "README.md:1: link to docs/a.md#third: no such heading"),
        ("[out](../secret.md)", "README.md:1: link to ../secret.md: no such file"),
        ("```console\n$ guardkeel adit x\n```\n", "README.md:2: guardkeel has no verb 'adit'"),
        (
            "```console\n$ cd x && guardkeel audit g --againts=y\n```\n",
            "README.md:2: guardkeel audit has no option '--againts'",
        ),
        (
            "<!-- generated: policy -->\nold\n<!-- end generated -->",
            "README.md: generated parts are old; run python docs/build.py",
        ),
    ],
)
def test_check_finds(repository: Path, text: str, problem: str) -> None:
    page = repository / "README.md"
    page.write_text(text)
    assert build.check_page(page, repository) == [problem]


def test_check_passes(repository: Path) -> None:
    page = repository / "README.md"
    links = "[a](docs/a.md) [b](docs/a.md#second-part-again) [c](docs/a.md#second-part-again-1) [d](#top)"
    page.write_text(f"# Top\n{links} [e](https://example.org/x)\n```text\n[not a link](nowhere.md)\n```\n")
    assert build.check_page(page, repository) == []


def test_check_exits_with_failure_while_a_figure_is_missing(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = repository / "README.md"
    monkeypatch.setattr(build, "check", lambda: build.check_page(page, repository))
    page.write_text("recall is {{FIGURE: recall}}")
    assert build.main(["--check"]) == 1
    assert "{{FIGURE: recall}}" in capsys.readouterr().out
    page.write_text("recall is 0.9")
    assert build.main(["--check"]) == 0
    assert build.main(["--chekc"]) == 2


# Examples


def test_example_audits_the_toy_guard(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example: Any = module(EXAMPLES / "audit_your_guard.py", "audit_your_guard")
    assert example.main(["guard", "tuned", "runs/example", "mine.jsonl"]) == 1
    said = capsys.readouterr().out
    assert "recall" in said and "inferior" in said and "gate: deny" in said
    assert (place / "runs" / "example" / "report.html").is_file()


def test_toy_guard_collapses_by_harmless_tuning(audited: Path) -> None:
    """What the documentation tells with it: it worked before, and recall is gone after."""
    from guardkeel.evaluation.runs import read_audit

    results = read_audit(audited)
    assert results.comparison is not None and results.decision is not None
    recall = next(t for t in results.comparison.tests if (t.suite, t.metric) == ("*", "recall"))
    assert recall.reference is not None and recall.reference > 0.6
    assert recall.candidate is not None and recall.candidate < 0.3
    assert recall.outcome == "inferior"
    assert results.decision.decision == "deny"


def test_example_family_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example: Any = module(EXAMPLES / "custom_family.py", "custom_family")
    example.main()
    assert len(capsys.readouterr().out.splitlines()) == 2
    family = example.YesNo()
    assert family.parse("no").unsafe == 0.0
    assert family.parse("yes Threat").categories == ("Threat",)
    assert family.parse("perhaps").unsafe is None
    assert family.parse("no, never").unsafe is None


def test_example_family_is_found_by_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from guardkeel.guards.registry import families

    shutil.copy(EXAMPLES / "custom_family.py", tmp_path)
    info = tmp_path / "my_guards-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-guards\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[guardkeel.families]\nyes-no = custom_family:YesNo\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "custom_family", raising=False)
    families.cache_clear()
    try:
        assert families()["yes-no"].name == "yes-no"
    finally:
        families.cache_clear()


def test_example_card_loads() -> None:
    suite = load_suite(EXAMPLES / "suite_card" / "card.toml")
    assert (suite.count("unsafe"), suite.count("safe"), suite.left_out) == (8, 11, 1)
    assert suite.items()[-1].example.categories == ()


def test_example_policy_loads() -> None:
    policy = load_policy(EXAMPLES / "gate.toml")
    assert policy.non_inferiority.margins.recall == 0.02
    assert not policy.geometry.binding


def test_example_workflow_is_sound() -> None:
    import yaml

    workflow = yaml.safe_load((EXAMPLES / "github-actions.yml").read_text("utf-8"))
    steps = workflow["jobs"]["audit"]["steps"]
    commands = [s["run"] for s in steps if "guardkeel " in s.get("run", "") and "pip" not in s["run"]]
    assert len(commands) == 1
    assert build.check_command(commands[0], build.verbs()) == []
    assert steps[-1]["if"] == "always()"  # the report is kept when the gate denies
