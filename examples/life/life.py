"""A guard's whole life in the commands that a person would type, from its registration to a stranger who checks it.

    python examples/life/life.py                              what `guardkeel demo` left in runs/demo, or makes there
    python examples/life/life.py --demo runs/demo --out runs/life

keel-135m is released. A fine-tune on harmless messages is denied; the same fine-tune held upright is approved,
deployed, served and watched. Then somebody copies the wrong weights to its place. Every command and request is real,
and every outcome is checked: the exit code is 1 where one is not as the story has it. All of it happens in a new
folder, into which the TOML files beside this script are copied.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
GUARD = "keel-135m"  # as guardkeel audit and records.toml name it
SUITES = ("in-the-wild-jailbreaks", "pyrit-refusal")  # of records.toml: development has not seen them
HARMFUL, HARMLESS = "advbench", "keel-domain"  # what comes in when it is served, in turn
MADE = ("bank-plain", "after-plain", "bank-kept", "after-kept")  # what guardkeel demo leaves
LINES = 26


class NotAsTold(Exception):
    """A step came out otherwise than the story has it."""


# -- telling and doing


def chapter(title: str, text: str) -> None:
    """Say what comes."""
    print(f"\n━━ {title}\n   {text}\n", flush=True)


def call(words: list[str], watch: bool) -> tuple[int, str, str]:
    """Run `guardkeel` with these words: exit code, stdout, stderr. With `watch`, progress goes to the terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "guardkeel", *words],
        stdout=subprocess.PIPE,
        stderr=None if watch else subprocess.PIPE,
        encoding="utf-8",
        env=os.environ | {"COLUMNS": "118"},
        check=False,
    )
    return done.returncode, done.stdout, done.stderr or ""


def guardkeel(command: str, code: int = 0, says: str = "", watch: bool = False, into: str = "") -> None:
    """Run a command, show what came out, and check exit code and words. `into` writes its output to a file instead."""
    print(f"$ guardkeel {command}{f' > {into}' if into else ''}", flush=True)
    got, out, error = call(shlex.split(command), watch)
    if into:
        Path(into).write_text(out, encoding="utf-8")
    shown = [] if into else (out + (error if got == 2 else "")).rstrip().splitlines()
    if len(shown) > LINES:
        shown = [*shown[: LINES // 2], f"… {len(shown) - LINES + 1} more lines …", *shown[1 - LINES // 2 :]]
    print("".join(f"  {line}\n" for line in shown) + f"  → exit {got}\n", flush=True)
    if got != code or " ".join(says.split()) not in " ".join((out + error).split()):
        wanted = f"exit with {code}" + (f" and say {says!r}" if says else "")
        raise NotAsTold(f"guardkeel {command}\n  should {wanted}\n{error}")


def dossier(command: str, who: str = "assurance", **outcome: object) -> None:
    """A command of the dossier, as one of the people in records.toml."""
    guardkeel(f"dossier {command} --as {who}", **outcome)


def audit(guard: Path | str, suites: tuple[str, ...], limit: int, run: str) -> None:
    """What the assurance team does, in a minute or more."""
    asked = " ".join(f"--suite {suite}" for suite in suites)
    guardkeel(f"audit {guard} {asked} --limit {limit} --no-geometry --no-report --out runs/{run}", watch=True)


def audited(guard: Path | str, model: str, run: str, limit: int) -> None:
    """Sets that nobody in development has seen are judged, and the dossier takes the run in."""
    audit(guard, SUITES, limit, run)
    dossier(f"import runs/{run} --spec release-audit --evaluator assurance-team --model {model}")


def developed(runs: dict[str, Path], name: str) -> None:
    """Development registers what it made, with its lineage, and what it saw of it itself."""
    dossier(f"import {runs[f'bank-{name}']} --model bank-{name} --trainer trainer", "trainer")
    own = "--spec development-audit --evaluator developers"
    dossier(f"import {runs[f'after-{name}']} {own} --model bank-{name}", "trainer")


def allowed(model: str) -> None:
    """The gate's rules are kept, each with the records it was read from."""
    dossier(f"gate {model} --policy release", says="allow")


def released(model: str) -> None:
    """Somebody who did not make it signs the gate's decision, and it is put to use."""
    dossier(f"approve {model} --key keys/approver.key --reason 'read the trace'", "approver")
    dossier(f"deploy {model} --place production", "approver")


# -- the service


def put(weights: Path) -> None:
    """What lies in service/guard is what is served."""
    shutil.rmtree("service/guard", ignore_errors=True)
    shutil.copytree(weights, "service/guard")
    print(f"$ cp -r {weights} service/guard\n", flush=True)


@contextlib.contextmanager
def serving(config: str) -> Iterator[str]:
    """`guardkeel serve` in a process of its own, for as long as this lasts; gives its address."""
    command, file = ["serve", "--config", config, "--port", "0"], Path("service.log")
    print(f"$ guardkeel {' '.join(command)} &", flush=True)
    with file.open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "guardkeel", *command], stdout=log, stderr=log)
    try:
        while "Uvicorn running on " not in (said := file.read_text("utf-8")):
            if process.poll() is not None:
                raise NotAsTold(f"the service ended at once:\n{said[-2000:]}")
            time.sleep(0.2)
        yield said.partition("Uvicorn running on ")[2].split()[0]
    finally:
        process.terminate()
        code = process.wait()
    if code:
        raise NotAsTold(f"the service ended with {code}; see service.log")


def post(url: str, body: object) -> dict:
    """A request to the service."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def traffic(each: int, skip: int = 0) -> list[tuple[str, bool]]:
    """Messages with what a reviewer will say of them, (text, unsafe): as many harmful ones as of the bank's."""
    from guardkeel.evaluation.suites import load_suite

    def messages(suite: str, unsafe: bool) -> list[tuple[str, bool]]:
        found = [i.judgement.conversation.turns[-1].content for i in load_suite(suite).items("test")]
        return [(found[k % len(found)], unsafe) for k in range(skip, skip + each)]

    both = zip(messages(HARMFUL, True), messages(HARMLESS, False), strict=True)
    return [message for pair in both for message in pair]


def day(config: str, messages: list[tuple[str, bool]]) -> None:
    """Serve some traffic, and have all of it reviewed. No text is printed, and the service keeps none."""
    flagged = {True: 0, False: 0}
    with serving(config) as url:
        for start in range(0, len(messages), 8):
            some = messages[start : start + 8]
            given = post(f"{url}/v1/verdicts", {"items": [{"prompt": text} for text, _ in some]})["verdicts"]
            reviews = []
            for verdict, (_, unsafe) in zip(given, some, strict=True):
                flagged[unsafe] += verdict["flagged"]
                reviews.append({"id": f"review-{verdict['id']}", "verdict": verdict["id"], "unsafe": unsafe})
            post(f"{url}/v1/feedback", {"feedback": reviews})
    bad = sum(unsafe for _, unsafe in messages)
    caught = (
        f"flagged {flagged[True]} of {bad} harmful ones, {flagged[False]} of {len(messages) - bad} others"
    )
    print(f"  {len(messages)} messages over HTTP, all reviewed: {caught}\n", flush=True)


# -- the life


def live(runs: dict[str, Path], limit: int, requests: int) -> None:
    """From the first key to the stranger, in the folder that is the current one."""
    plain, kept = runs["bank-plain"] / "tuned", runs["bank-kept"] / "tuned"
    log, broken = "--log sqlite:///moderation.db", "bank-kept in production recall"

    chapter("1  A dossier", "Keys, and what is asked of a release, before anything is run.")
    guardkeel("dossier key keys/dossier.key")
    guardkeel("dossier key keys/approver.key")
    dossier("init dossier --title 'The guard of the bank' --key keys/dossier.key")
    dossier("register --policy policy.toml")
    dossier("register records.toml --taxonomy aegis-2")

    chapter("2  The first release", "keel-135m is audited, assessed, allowed, signed and put to use.")
    audited(GUARD, "keel-135m", "audit-first", limit)
    dossier("assess keel-135m assessment-first.toml")
    dossier("register monitor-first.toml")
    allowed("keel-135m")
    released("keel-135m")

    chapter("3  A harmless fine-tune", "Bank messages, all of them safe. Development's own audit denied it.")
    developed(runs, "plain")
    audited(plain, "bank-plain", "audit-plain", limit)
    dossier("evaluate bank-plain", code=1, says="recall is")
    dossier("gate bank-plain --policy release", code=1, says="deny broken: release/recall")
    dossier("approve bank-plain --key keys/approver.key", "approver", code=2, says="nobody can approve")

    chapter("4  The same fine-tune, kept upright", "Compared with the guard in use, item by item.")
    developed(runs, "kept")
    audited(kept, "bank-kept", "audit-kept", limit)
    dossier("evaluate bank-kept --against audit-first", says="no open findings")
    dossier("evaluate bank-kept --mends bank-plain --how 'trained again, held by kl'", says="mitigation")
    dossier("assess bank-kept assessment-kept.toml")
    dossier("register monitor-kept.toml")
    allowed("bank-kept")
    dossier("approve bank-kept", "trainer", code=2, says="who made model 'bank-kept'")
    released("bank-kept")

    chapter("5  In use", "Real requests, all reviewed. The monitor's tests hold however often it looks.")
    put(kept)
    day("moderation.toml", traffic(requests))
    dossier(f"monitor bank-kept {log}", says="as it was")

    chapter("6  Something is wrong", "Somebody copies the plain fine-tune to its place. The name stays.")
    put(plain)
    day("moderation.toml", traffic(3 * requests, skip=requests))
    dossier(f"monitor bank-kept {log}", code=1, says="verdicts are not of its weights but of bank-plain")
    dossier("incident incident.toml", says="due")
    draft = f"incident --draft '{broken}' --regime eu-gpai-code"
    dossier(f"{draft} --form initial", into="incident-initial.md")
    swapped = "finding bank-kept in production answered by"
    back = f"roll-back broken: {swapped}, incident {broken}; back to keel-135m"
    dossier("gate bank-kept --policy release", code=1, says=back)
    dossier("deploy bank-kept --roll-back", "approver")
    dossier("deploy keel-135m --place production", "approver")
    dossier("register monitor-first.toml")
    day("moderation-first.toml", traffic(requests, skip=4 * requests))
    dossier(f"monitor keel-135m {log}", says="as it was")

    chapter(
        "7  Why, and what was done",
        "What lies there is audited: by digest it is another model, as the log said.",
    )
    audit("service/guard", SUITES[1:], 10, "served")
    evidence = "--spec release-audit --evaluator assurance-team --model bank-kept"
    dossier(f"import runs/served {evidence}", code=2, says="which is model 'bank-plain'")
    put(kept)
    audited("service/guard", "bank-kept", "retest", limit)
    dossier("incident incident-closed.toml")
    dossier("register finding-closed.toml")
    dossier(f"{draft} --form final", into="incident-final.md")
    allowed("bank-kept")
    released("bank-kept")
    dossier("register monitor-kept.toml")

    chapter("8  A stranger checks it", "With a bundle and the public key, and nothing else.")
    guardkeel("dossier export bundle")
    guardkeel("dossier export public --redacted")
    shutil.copytree("bundle", "stranger/bundle")
    shutil.copytree("public", "stranger/public")
    shutil.copy("keys/dossier.key.pub", "stranger")
    with contextlib.chdir("stranger"):
        guardkeel("dossier verify bundle --key dossier.key.pub", says="sound")
        guardkeel("dossier verify public --key dossier.key.pub", says="sound")
        records = Path("bundle/records.jsonl")
        records.write_bytes(records.read_bytes().replace(b'"outcome":"deny"', b'"outcome":"dens"', 1))
        print('$ sed -i \'0,/"outcome":"deny"/s//"outcome":"dens"/\' bundle/records.jsonl    # one byte\n')
        guardkeel("dossier verify bundle --key dossier.key.pub", code=1, says="not sound")


def prepare(demo: Path, out: Path) -> dict[str, Path]:
    """The demo's run directories, made where they are missing, and a folder to live in."""
    if not list(demo.glob("after-kept-*/run.json")):
        print(f"$ guardkeel demo --out {demo}", flush=True)
        call(["demo", "--out", str(demo)], True)
    found = {name: next(demo.glob(f"{name}-*/run.json"), None) for name in MADE}
    missing = [name for name, run in found.items() if run is None]
    if missing:
        raise NotAsTold(f"{demo} has no {', '.join(missing)}: guardkeel demo did not end")
    out.mkdir(parents=True)
    for file in HERE.glob("*.toml"):
        shutil.copy(file, out)
    first = (HERE / "moderation.toml").read_text("utf-8").replace('"service/guard"', f'"{GUARD}"')
    (out / "moderation-first.toml").write_text(first, encoding="utf-8")
    return {name: Path(os.path.relpath(run.parent, out)) for name, run in found.items() if run}


def main(arguments: list[str] | None = None) -> int:
    """Live it; 0 if all came as it is told."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--demo", type=Path, default=Path("runs/demo"), help="what guardkeel demo left")
    options.add_argument("--out", type=Path, default=Path("runs/life"), help="a new folder")
    options.add_argument("--limit", type=int, default=60, help="items of each suite in an audit, 30 or more")
    options.add_argument("--requests", type=int, default=24, help="harmful messages in a day's traffic")
    given = options.parse_args(arguments)
    if given.out.exists():
        options.error(f"{given.out} is there already: name a new folder")
    began = time.monotonic()
    try:
        runs = prepare(given.demo, given.out)
        with contextlib.chdir(given.out):
            live(runs, given.limit, given.requests)
    except NotAsTold as e:
        print(f"\nnot as it is told: {e}", file=sys.stderr)
        return 1
    minutes = (time.monotonic() - began) / 60
    print(f"All came as it is told, in {minutes:.0f} minutes. To read: {given.out}/bundle/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
