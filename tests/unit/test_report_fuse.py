"""The report of a sweep: one closed page from run.json alone, whose words and figures say what the results say."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from guardkeel.errors import DataError
from guardkeel.fusion.results import Diagnostics, Measured
from guardkeel.fusion.sweep.choice import Rule, choose
from guardkeel.fusion.sweep.confirming import outcome
from guardkeel.fusion.sweep.reading import VERB
from guardkeel.fusion.sweep.results import Audited, Confirmation, Failed, SuiteVerdict, SweepResults
from guardkeel.records import Estimate, RunRecord, write_record
from guardkeel.report.fuse import render, write_sweep_report
from guardkeel.report.fuse_charts import layers, trade
from guardkeel.report.fuse_words import headline, ordered, twin, undone
from guardkeel.results import GuardInfo, SuiteInfo
from run_directories import HOSTILE
from sweeps import near, point

VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """Checks that every element is closed where it should be, and keeps tags and text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def layer(name: str, share: float, cosine: float) -> Measured:
    return Measured(
        name=name,
        values=100,
        reference=5.0,
        change=share,
        changes=[1.0],
        shares=[share],
        cosines=[cosine],
        between=[],
        distance=share / 5,
    )


def audited(name: str, decision: str) -> Audited:
    return Audited(
        name=name,
        folder="audit",
        decision=decision,
        reason="5 binding rules passed",
        fpr_change=near(0.01),
        unscored_change=near(0.0),
        recall_matched=near(0.8),
        auroc=near(0.95),
    )


def results(
    *, repaired: float = 0.0, confirm: bool = True, name: str = "damaged", suite: str = "one", **rule
):
    """A sweep of eight points whose repair changes recall on test items by `repaired`."""
    points = [
        point("reference", control="reference", recall=0.9, gain=0.0, fpr=0.08, front=True),
        point(name, control="candidate", recall=0.2, gain=1.0, fpr=0.02, front=True),
        *(
            point(
                f"interpolation alpha={a}",
                control="interpolation",
                recall=0.9 - 0.6 * a,
                gain=a,
                fpr=0.08 - 0.05 * a,
            )
            for a in (0.3, 0.6, 0.95)
        ),
        point("random-mask keep=0.5", control="random mask", seed=0, recall=0.5, gain=0.5),
        point("ties density=0.2", recall=0.84, gain=0.93, fpr=0.09, front=True),
        point("slerp t=0.5", recall=None, gain=0.7),
    ]
    choice = choose(points, Rule(**rule))
    change = near(repaired, n=400, half=0.03)
    verdicts = [
        SuiteVerdict(
            suite=s,
            n=400,
            reference=0.9,
            repaired=0.9 + repaired,
            change=change,
            outcome=outcome(change, 0.05),
            damaged={name: 0.2},
            damaged_change={name: near(-0.7)},
        )
        for s in ("*", suite)
    ]
    confirmation = Confirmation(
        checkpoint="fused",
        kind="checkpoint",
        threshold=0.4,
        offsets={"response": 0.3},
        moved=True,
        as_swept=1e-7,
        margin=0.05,
        suites=verdicts,
        verdict=verdicts[1].outcome,
        repaired=audited("ties density=0.2", "allow"),
        damaged=[audited(name, "deny")],
    )
    rows = [layer(f"model.layers.{k}", 0.5 + 0.05 * k, 0.9) for k in range(6)]
    info = {"reference": "guard", "family": "keel", "threshold": 0.5, "digest": "d", "parameters": 10}
    return SweepResults(
        reference=GuardInfo(name="harbour", dtype="float32", device="cpu", **info),
        candidates=[name],
        gain="loss",
        floor=rule.get("floor", 0.9),
        fpr_margin=0.05,
        unscored_margin=0.01,
        suites=[
            SuiteInfo(name=suite, version="1", digest="d", split="calibrate", n=90, n_unsafe=50, n_safe=40)
        ],
        points=points,
        failed=[Failed(name="dare drop=0.9", reason="a tensor is not finite")],
        skipped=[Failed(name="somf", reason="it needs mask")],
        choice=choice,
        diagnostics=Diagnostics(
            whole=layer("whole", 0.6, 0.9), layers=rows, kinds=[], tensors=[], unchanged=1
        ),
        confirmation=confirmation if confirm and choice.chosen else None,
    )


RECORD = RunRecord(
    verb=VERB, started_at="2026-01-01T00:00:00+00:00", command=["guardkeel", "fuse", "sweep", "x"]
)


def test_the_page_is_closed_and_asks_nobody(tmp_path):
    write_record(tmp_path, RECORD.model_copy(update={"results": results().model_dump(mode="json")}))
    html = write_sweep_report(tmp_path).read_text()
    page = Page(html)
    assert not [
        v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "action") or k.startswith("on")
    ]
    links = [a["href"] for t, a in page.tags if t == "a"]
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert all(link.startswith("#") and link[1:] in ids for link in links) and len(ids) == len(set(ids))
    (csp,) = [a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv")]
    for kind in ("style", "script"):
        (text,) = re.findall(rf"<{kind}>(.*?)</{kind}>", html, re.DOTALL)
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in csp
    for said in (
        "REPAIRED",
        "ties density=0.2",
        "control: plain interpolation",
        "somf",
        "a tensor is not finite",
    ):
        assert said in page.words
    assert html == render(*_read(tmp_path))  # from the record alone, and the same each time


def _read(folder):
    from guardkeel.fusion.sweep.reading import read_sweep

    return read_sweep(folder)


def test_every_point_has_its_row_and_its_mark():
    found = results()
    page = Page(render(RECORD, found))
    text = page.words
    for p in found.points:
        assert text.count(p.name) >= 2
    numbers = {p.id: k for k, p in enumerate(ordered(found.points), 1)}
    figure = str(trade("k", found, numbers, of="recall"))
    known = [p for p in found.points if p.recall_matched.value is not None]
    assert figure.count("<g>") == len(known) == 7 and figure.count('class="ring"') == 1
    assert "ties density=0.2: gain 93%, 84.0%" in figure and "slerp" not in figure
    alarms = str(trade("k", found, numbers, of="fpr"))
    assert alarms.count("<g>") == 8 and alarms.count("margin faint") == 2


def test_marks_stand_where_their_numbers_say():
    found = results()
    numbers = {p.id: k for k, p in enumerate(ordered(found.points), 1)}
    figure = str(trade("k", found, numbers, of="recall"))
    places = dict(re.findall(r"<title>([^<]+)</title><circle cx=\"([\d.]+)\"", figure))
    (square,) = re.findall(r"<title>damaged</title><rect x=\"([\d.]+)\"", figure)
    start, repaired, end = (
        float(places["reference"]),
        float(places["ties density=0.2"]),
        float(square) + 5.5 * 0.9,
    )
    assert (repaired - start) / (end - start) == pytest.approx(0.93, abs=0.01)


@pytest.mark.parametrize(
    ("change", "badge", "kind"),
    [(0.0, "REPAIRED", "pass"), (-0.2, "NOT REPAIRED", "fail"), (-0.04, "NOT SETTLED", "hold")],
)
def test_the_headline_is_the_verdict_on_test_items(change, badge, kind):
    said = headline(results(repaired=change))
    assert (said.badge, said.outcome) == (badge, kind) and "ties density=0.2" in said.lead
    assert "subject to task gain kept ≥ 90%" in said.why


def test_a_rule_that_no_point_satisfies_is_never_a_repair():
    said = headline(results(floor=0.99))
    assert (said.badge, said.outcome) == ("NO REPAIR", "fail") and "No point satisfies the rule" in said.lead
    empty = results(floor=0.99, fallback=False)
    assert empty.choice.chosen is None and headline(empty).badge == "NO REPAIR"
    Page(render(RECORD, empty))
    unconfirmed = headline(results(confirm=False))
    assert (unconfirmed.badge, unconfirmed.outcome) == ("CHOSEN", "none")


def test_whether_it_was_just_undone_is_said_beside_plain_interpolation():
    found = results()
    assert undone(found).startswith("No: by length 93% of the change is left")
    assert twin(found).name == "interpolation alpha=0.95" and "interpolation alpha=0.95" in undone(found)
    chosen = found.point(found.choice.chosen)
    for update, said in (
        ({"weights": layer("whole", 0.02, 0.9)}, "Yes:"),
        ({"gain": near(0.3)}, "Largely:"),
        ({"gain": Estimate(value=None, n=0)}, "By length"),
    ):
        other = [p.model_copy(update=update) if p.id == chosen.id else p for p in found.points]
        assert undone(found.model_copy(update={"points": other})).startswith(said)


def test_layers_are_drawn_where_there_are_some():
    rows = results().diagnostics.layers
    figure = str(layers("k", rows, ["damaged"]))
    assert figure.count("<circle") == 12 and "0.75" in figure
    assert layers("k", rows[:1], ["damaged"]) is None


def test_names_can_be_anything():
    for text in HOSTILE[:8]:
        page = Page(render(RECORD, results(name=text, suite=text)))
        assert not [t for t, _ in page.tags if t in ("iframe", "img")]
        assert [t for t, _ in page.tags].count("script") == 1


def test_another_verbs_run_is_refused(tmp_path):
    write_record(tmp_path, RECORD.model_copy(update={"verb": "audit"}))
    with pytest.raises(DataError, match="not a sweep"):
        write_sweep_report(tmp_path)
    write_record(tmp_path, RECORD.model_copy(update={"results": {"points": []}}))
    with pytest.raises(DataError, match="results"):
        write_sweep_report(tmp_path)
