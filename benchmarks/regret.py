"""Cumulative loss of the ensemble against every expert, with a change of policy in mid-stream.

    python benchmarks/regret.py [--leaderboard runs/leaderboard] [--out runs/regret] [--orders 10]

1.  Synthetic streams (stochastic, adversarial, drifting, flipped), every rule against its bound.
2.  Labelled suites, where a finished leaderboard's verdicts are at hand (no model is loaded). Experts are its guards,
    calibrated on the calibrate items, each at three operating points (log-odds + 1.5, + 0, − 1.5), and for a guard that
    names categories one more that counts what is manipulation and nothing else as safe. The stream is all test items in
    a random order. Labels are the suites' own but for the contested ones, which a strict policy counts as unsafe and a
    permissive one as safe: items whose only harm is manipulation (injections, jailbreak wrappers), and the suites of
    harmless messages that look harmful. The policy is strict up to the middle and permissive from there on. Written
    to --out: the tables as table.md, and figure.svg for the first order.
3.  On the same stream: regret as estimated from audits alone, and a cascade's savings.

Regret is over the best expert of the whole stream, and over the best of each half. Losses are absolute on synthetic
streams, where mixing gains nothing over drawing an expert, and Brier on labelled ones.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from regret_figure import figure
from scipy.special import expit, logit

from guardkeel.evaluation.leaderboard.files import read_verdicts
from guardkeel.evaluation.leaderboard.judged import scores_of
from guardkeel.moderation.aggregation import (
    AdaHedge,
    Aggregator,
    AuditPolicy,
    Cascade,
    Context,
    Feedback,
    FixedShare,
    FollowTheLeader,
    Hedge,
    LossName,
    Rule,
    Squint,
    Uniform,
    bounds,
    estimate_regret,
    fit,
    fit_reach,
    simulate,
)
from guardkeel.records import write_text

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
SHIFT = 1.5
CONTESTED_HARM = ["Manipulation"]
CONTESTED_SUITES = ("keel-contrast", "notinject", "cyberseceval-frr")


@dataclass(frozen=True)
class Case:
    """A rule, whether contexts have tables of their own, and its bound on a stream of T rounds and n experts."""

    rule: Rule
    by_context: bool = False
    bound: Callable[[int, int], float] | None = None
    path_bound: Callable[[int, int], float] | None = None


def cases(rounds: int, n: int, *, curved: bool) -> dict[str, Case]:
    """Every rule, tuned for the stream where it can be."""
    alpha, tuned = 1 / (rounds - 1), FixedShare.tuned(n, rounds, 1)
    half = (lambda n, t: bounds.curved(n, 0.5)) if curved else (lambda n, t: bounds.hedge(n, 0.5, t))
    return {
        "Hedge, η for T": Case(Hedge(horizon=rounds), bound=bounds.hedge_horizon),
        "Hedge, anytime": Case(Hedge(), bound=bounds.hedge_anytime),
        "Hedge, η = ½": Case(Hedge(rate=0.5), bound=half),
        "AdaHedge": Case(AdaHedge(), bound=bounds.adahedge),
        "Squint": Case(Squint(), bound=lambda n, t: bounds.squint(n, t, t)),
        "Fixed Share, tuned": Case(
            tuned, path_bound=lambda n, t: bounds.fixed_share(n, tuned.rate, tuned.share, 1, t)
        ),
        "Fixed Share, η = ½": Case(
            FixedShare(0.5, alpha),
            path_bound=lambda n, t: bounds.fixed_share(n, 0.5, alpha, 1, t, curved=curved),
        ),
        "Fixed Share, η = ½, α = 1%": Case(
            FixedShare(0.5, 0.01),
            path_bound=lambda n, t: bounds.fixed_share(n, 0.5, 0.01, 1, t, curved=curved),
        ),
        "the same, a table a suite": Case(FixedShare(0.5, 0.01), by_context=True),
        "follow the leader": Case(FollowTheLeader()),
        "equal weights": Case(Uniform()),
    }


@dataclass(frozen=True)
class Stream:
    """Advice (T, n), outcomes (T,) and a context for each item."""

    experts: tuple[str, ...]
    advice: Array
    unsafe: Mask
    contexts: Sequence[Context]
    loss: LossName = "brier"
    hunted: bool = False

    @property
    def losses(self) -> Array:
        """Brier losses (T, n)."""
        return np.asarray((self.advice - self.unsafe[:, None]) ** 2)


def run(stream: Stream, case: Case) -> tuple[Array, Array]:
    """Losses of the ensemble (T,) and of the experts (T, n). Where it is hunted, what it believes less comes true."""
    learner = Aggregator(stream.experts, case.rule, loss=stream.loss, prior_strength=20.0)
    own, other = np.empty(len(stream.unsafe)), np.empty(stream.advice.shape)
    for t, advice in enumerate(stream.advice):
        where = stream.contexts[t] if case.by_context else ()
        mixture = learner.predict(advice, where)
        y = not mixture.flagged if stream.hunted else bool(stream.unsafe[t])
        own[t], other[t] = learner.loss_of(mixture, y), learner.losses(advice, y)
        learner.learn(Feedback(t, tuple(advice.tolist()), y, 1.0, where))
    return own, other


def regrets(own: Array, losses: Array) -> tuple[float, float]:
    """Over the best expert, and over the best of each half."""
    half = len(own) // 2
    halves = losses[:half].sum(axis=0).min() + losses[half:].sum(axis=0).min()
    return float(own.sum() - losses.sum(axis=0).min()), float(own.sum() - halves)


def synthetic(kind: str, rounds: int, n: int, rng: np.random.Generator) -> Stream:
    """Experts of rising noise about log-odds that may drift, or be turned round in the middle for half of them."""
    t = np.arange(rounds)[:, None] / rounds
    odds = rng.normal(0, 2, rounds)
    noise = np.broadcast_to(np.linspace(0.5, 4.0, n), (rounds, n))
    if kind == "drifting":
        noise = 2.2 + 1.8 * np.sin(2 * np.pi * (2 * t + np.arange(n) / n))
    if kind == "flipped":
        noise = np.where(t < 0.5, noise, noise[:, ::-1])
    advice = expit(odds[:, None] + noise * rng.standard_normal((rounds, n)))
    unsafe = rng.random(rounds) < expit(odds)
    if kind == "adversarial":
        advice = rng.integers(0, 2, (rounds, n)).astype(np.float64)
    names = tuple(f"expert {i}" for i in range(n))
    return Stream(names, advice, unsafe, [()] * rounds, loss="absolute", hunted=kind == "adversarial")


def synthetic_tables(rounds: int, n: int, seeds: int) -> list[str]:
    """Regret of every rule on every stream: the largest of some seeds, beside its bound."""
    found = ["| stream | rule | regret over the best | bound | over the best of each half | bound |"]
    found.append("|---|---|---|---|---|---|")
    for kind in ("stochastic", "adversarial", "drifting", "flipped"):
        streams = [synthetic(kind, rounds, n, np.random.default_rng(s)) for s in range(seeds)]
        for name, case in cases(rounds, n, curved=False).items():
            if not case.by_context:
                pairs = np.array([regrets(*run(s, case)) for s in streams]).max(axis=0)
                found.append(
                    f"| {kind} | {name} | " + " | ".join(told(case, pairs.tolist(), n, rounds)) + " |"
                )
    return found


def told(case: Case, values: Sequence[float], n: int, rounds: int) -> list[str]:
    """Regrets and bounds as cells."""
    limits = (b(n, rounds) if b else None for b in (case.bound, case.path_bound))
    cells = []
    for value, limit in zip(values, limits, strict=True):
        if limit is not None and value > limit + 1e-9:
            raise AssertionError(f"{case}: regret {value} over its bound {limit}")
        cells += [f"{value:.1f}", "" if limit is None else f"{limit:.1f}"]
    return cells


@dataclass(frozen=True)
class Table:
    """Calibrated advice of all experts on the test items; labels under both policies, and as the suites have them."""

    experts: tuple[str, ...]
    advice: Array
    strict: Mask
    permissive: Mask
    human: Mask
    contexts: list[Context]
    plain: list[int]
    brier: dict[str, tuple[float, float]]

    def stream(self, rng: np.random.Generator, flip: bool) -> Stream:
        """A random order; labels change in the middle."""
        order = rng.permutation(len(self.strict))
        late = np.arange(order.size) >= order.size // 2
        flipped = np.where(late, self.permissive[order], self.strict[order])
        unsafe = flipped if flip else self.human[order]
        return Stream(self.experts, self.advice[order], unsafe, [self.contexts[k] for k in order])


def read_table(folder: Path) -> Table:
    """Items and verdicts of a leaderboard's run directory."""
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text("utf-8").splitlines()]
    unsafe = np.array([i["label"] == "unsafe" for i in items])
    contested = unsafe & np.array([i["categories"] == CONTESTED_HARM for i in items])
    contested |= np.array([i["suite"] in CONTESTED_SUITES for i in items])
    test = np.array([i["split"] == "test" for i in items])
    experts: dict[str, Array] = {}
    plain, brier = [], {}
    for path in sorted((folder / "verdicts").glob("*.jsonl")):
        name = path.stem.partition("-")[2]
        verdicts = read_verdicts(path, [i["id"] for i in items])
        raw = scores_of(verdicts)
        p = fit("platt", raw[~test], unsafe[~test])(raw)
        brier[name] = tuple(float(np.nanmean((s[test] - unsafe[test]) ** 2)) for s in (raw, p))  # type: ignore[assignment]
        plain.append(len(experts))
        experts[name] = p
        experts |= {
            f"{name} {word}": expit(logit(p) + s) for word, s in (("strict", SHIFT), ("lenient", -SHIFT))
        }
        only = np.array([list(v.categories) == CONTESTED_HARM for v in verdicts])
        if only.any():
            experts[f"{name}, manipulation is safe"] = np.where(only, 0.1 * p, p)
    return Table(
        tuple(experts),
        np.column_stack(list(experts.values()))[test],
        (unsafe | contested)[test],
        (unsafe & ~contested)[test],
        unsafe[test],
        [(i["side"], i["suite"]) for i in items if i["split"] == "test"],
        plain,
        brier,
    )


def real_table(table: Table, orders: int, flip: bool) -> tuple[list[str], Stream, dict[str, Array]]:
    """Regret of every rule, mean (smallest to largest) over random orders; the first order's losses for the figure."""
    streams = [table.stream(np.random.default_rng(s), flip) for s in range(orders)]
    rounds, n = streams[0].advice.shape
    found = [
        "| rule | mean loss | regret over the best expert | bound | over the best of each half | bound |"
    ]
    found.append("|---|---|---|---|---|---|")
    curves: dict[str, Array] = {}
    for name, case in cases(rounds, n, curved=True).items():
        runs = [run(s, case) for s in streams]
        curves[name] = runs[0][0]
        pairs = np.array([regrets(*played) for played in runs])
        _, first, _, second = told(case, pairs.max(axis=0).tolist(), n, rounds)
        spans = [
            f"{m:.1f} ({a:.1f} to {b:.1f})"
            for m, a, b in zip(pairs.mean(0), pairs.min(0), pairs.max(0), strict=True)
        ]
        found.append(
            f"| {name} | {np.mean([own for own, _ in runs]):.4f} | {spans[0]} | {first} | {spans[1]} | {second} |"
        )
    return found, streams[0], curves


def targets(stream: Stream) -> list[str]:
    """What hindsight would have given: the best expert of all, of each half, of each suite in each half."""
    losses, rounds = stream.losses, len(stream.unsafe)
    half = np.arange(rounds) >= rounds // 2
    cells: dict[tuple[Context, bool], list[int]] = {}
    for t, context in enumerate(stream.contexts):
        cells.setdefault((context, bool(half[t])), []).append(t)
    by_cell = sum(losses[at].sum(axis=0).min() for at in cells.values())
    whole, parts = losses.sum(axis=0), [losses[half == h].sum(axis=0) for h in (False, True)]
    names = [stream.experts[int(p.argmin())] for p in (whole, *parts)]
    return [
        f"- best expert: {names[0]}, mean loss {whole.min() / rounds:.4f}",
        f"- best of each half: {names[1]}, then {names[2]}; {sum(p.min() for p in parts) / rounds:.4f}",
        f"- best of each suite in each half ({len(cells)} cells, in hindsight): {by_cell / rounds:.4f}",
    ]


def audited(stream: Stream, seed: int) -> list[str]:
    """Learning and measuring from audits alone, appeals of blocked safe items beside them."""
    rng, floor = np.random.default_rng(seed), 0.05
    policy = AuditPolicy(floor=floor, flagged=0.1, allowed=floor, focus=0.2)
    learner = Aggregator(stream.experts, FixedShare(0.5, 0.01), floor=floor)
    own, gaps, seen = [], [], []
    for t, advice in enumerate(stream.advice):
        y = bool(stream.unsafe[t])
        mixture = learner.predict(advice)
        q = policy.propensity(mixture)
        own.append(learner.loss_of(mixture, y))
        gaps.append(own[-1] - learner.losses(advice, y))
        drawn = policy.drawn(q, rng.random())
        if drawn or (mixture.flagged and not y and rng.random() < 0.5):
            seen.append((t, q if drawn else np.nan))
            learner.learn(Feedback(t, tuple(advice.tolist()), y, q if drawn else None))
    at, q_seen = np.array([t for t, _ in seen]), np.array([q for _, q in seen])
    found = estimate_regret(np.array(own)[at], stream.losses[at], q_seen, len(own))
    true = np.sum(gaps, axis=0)
    inside = sum(i.low <= r <= i.high for i, r in zip(found.experts, true, strict=True))
    naive = float(np.max(found.naive))
    return [
        f"- {found.best.n} of {len(own)} items audited, {len(seen) - found.best.n} appeals beside them",
        f"- regret over the best expert: true {true.max():.1f}, estimated {found.best.value:.1f} "
        f"({found.best.low:.1f} to {found.best.high:.1f}); naive {naive:.1f}",
        f"- the 95% intervals hold the true regret for {inside} of {len(true)} experts; the naive estimate is off by "
        f"up to {np.abs(np.array(found.naive) - true).max():.0f}, the audited one by up to "
        f"{np.abs(np.array([i.value for i in found.experts]) - true).max():.0f}",
    ]


def cascaded(table: Table, seconds: Sequence[float]) -> list[str]:
    """The guards at their plain operating point; weights and reach from one half of the items, savings on the other."""
    order = np.random.default_rng(0).permutation(len(table.strict))
    advice, unsafe = table.advice[order][:, table.plain], table.human[order]
    half = len(order) // 2
    learner = Aggregator([table.experts[k] for k in table.plain], FixedShare(0.5, 0.01))
    for t in range(half):
        learner.learn(Feedback(t, tuple(advice[t].tolist()), bool(unsafe[t]), 1.0))
    weights = learner.weights()
    found = []
    prices = Cascade(tuple(seconds), disagreement=1.0)
    fitted = {
        f"margin {m:g}": fit_reach(prices, advice[:half], weights, unsafe[:half], margin=m)
        for m in (0.005, 0.01, 0.02)
    }
    for name, cascade in {"settled only": prices, **fitted}.items():
        s = simulate(cascade, advice[half:], weights, unsafe[half:])
        found.append(
            f"- {name}: reach {cascade.reach:.2f}; calls saved {100 * s.calls.value:.1f}% "
            f"({100 * s.calls.low:.1f} to {100 * s.calls.high:.1f}), time saved {100 * s.cost.value:.1f}% "
            f"({100 * s.cost.low:.1f} to {100 * s.cost.high:.1f}), extra errors {100 * s.loss.value:.2f} points "
            f"({100 * s.loss.low:.2f} to {100 * s.loss.high:.2f}), {100 * s.changed:.1f}% decided otherwise"
        )
    shares = ", ".join(f"{learner.experts[k]} {w:.2f}" for k, w in enumerate(weights))
    return [f"- weights: {shares}", *found]


def seconds_each(folder: Path, guards: int) -> list[float]:
    """Amortised seconds an item, by guard, as the leaderboard measured them; 1 each where it did not."""
    results = json.loads((folder / "run.json").read_text("utf-8")).get("results", {}).get("guards", [])
    rates = {}
    for g in results:
        rate = (g.get("speed") or {}).get("items_per_second")
        rates |= {str(g.get("name")): rate, str(g.get("reference")).rpartition("/")[2]: rate}
    names = [p.stem.partition("-")[2] for p in sorted((folder / "verdicts").glob("*.jsonl"))]
    return [1 / rates[n] if rates.get(n) else 1.0 for n in names][:guards]


def main() -> None:
    """All three parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--leaderboard", type=Path, default=Path("runs/leaderboard"))
    parser.add_argument("--out", type=Path, default=Path("runs/regret"))
    parser.add_argument("--orders", type=int, default=10, help="random orders of the labelled stream")
    parser.add_argument("--rounds", type=int, default=2000, help="of a synthetic stream")
    parser.add_argument("--seeds", type=int, default=3, help="of a synthetic stream")
    args = parser.parse_args()
    page = [f"## Synthetic streams: {args.rounds} rounds, 10 experts, largest of {args.seeds} seeds", ""]
    page += synthetic_tables(args.rounds, 10, args.seeds)
    if (args.leaderboard / "run.json").exists():
        table = read_table(args.leaderboard)
        n, changed = len(table.strict), int((table.strict != table.permissive).sum())
        page += [
            "",
            f"## {n} labelled items, {len(table.experts)} experts, {changed} labels change; {args.orders} orders",
        ]
        page += ["", "Brier score of the guards, raw → calibrated:", ""]
        page += [f"- {name}: {raw:.3f} → {p:.3f}" for name, (raw, p) in table.brier.items()]
        for flip in (True, False):
            rows, stream, curves = real_table(table, args.orders, flip)
            page += [
                "",
                "### Policy flips in mid-stream" if flip else "### Policy stays (the suites' own labels)",
                "",
                *rows,
                "",
            ]
            page += ["In hindsight (first order):", "", *targets(stream)]
            if flip:
                shown = (
                    "Hedge, η for T",
                    "AdaHedge",
                    "Fixed Share, η = ½, α = 1%",
                    "the same, a table a suite",
                )
                picture = figure(stream.experts, stream.losses, {k: curves[k] for k in shown})
                write_text(args.out / "figure.svg", picture)
                page += ["", "### Audited feedback on that stream (Fixed Share)", "", *audited(stream, 0)]
        page += ["", "### Cascade of the guards, by amortised time", ""]
        page += cascaded(table, seconds_each(args.leaderboard, len(table.plain)))
    else:
        page += ["", f"No finished leaderboard at {args.leaderboard}: the labelled part was left out."]
    text = "\n".join(page) + "\n"
    write_text(args.out / "table.md", text)
    print(text)


if __name__ == "__main__":
    main()
