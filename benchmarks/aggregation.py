"""How long the learner takes: one row of feedback learnt, one item mixed.

    python benchmarks/aggregation.py [--experts 10] [--rows 5000]

Prints the median and the 99th percentile of single calls in microseconds, by rule, with one table and with the four
of a context of three parts. Single calls, so that what else runs on the machine shows in the percentile and not in the
median.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from guardkeel.moderation.aggregation import RULES, Aggregator, Context, Feedback, make_rule

CONTEXTS: dict[str, list[Context]] = {
    "one table": [()],
    "four tables": [("prompt", "en", f"category {k}") for k in range(12)],
}


def main() -> None:
    """Time every rule."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experts", type=int, default=10)
    parser.add_argument("--rows", type=int, default=5000)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    advice = rng.random((args.rows, args.experts))
    advice[rng.random(advice.shape) < 0.05] = np.nan
    unsafe = rng.random(args.rows) < 0.3
    print(f"{args.experts} experts, {args.rows} rows; µs a call, median (p99)")
    for name in RULES:
        for what, contexts in CONTEXTS.items():
            learning, mixing = measure(name, advice, unsafe, contexts)
            print(f"{name:18} {what:12} learn {learning}   predict {mixing}", flush=True)


def measure(
    name: str,
    advice: np.typing.NDArray[np.float64],
    unsafe: np.typing.NDArray[np.bool_],
    contexts: list[Context],
) -> tuple[str, str]:
    """Both calls on every row."""
    loss = "log" if name == "log-mixture" else "brier"
    learner = Aggregator([f"expert {i}" for i in range(advice.shape[1])], make_rule(name), loss=loss)
    rows = [
        Feedback(k, tuple(advice[k].tolist()), bool(unsafe[k]), 1.0, contexts[k % len(contexts)])
        for k in range(len(advice))
    ]
    learning, mixing = [], []
    for row in rows:
        started = time.perf_counter_ns()
        learner.predict(row.advice, row.context)
        between = time.perf_counter_ns()
        learner.learn(row)
        learning.append(time.perf_counter_ns() - between)
        mixing.append(between - started)
    return told(learning), told(mixing)


def told(nanoseconds: list[int]) -> str:
    """Median and 99th percentile in microseconds, the first tenth left out."""
    kept = np.array(nanoseconds[len(nanoseconds) // 10 :]) / 1000
    return f"{np.median(kept):6.1f} ({np.quantile(kept, 0.99):6.1f})"


if __name__ == "__main__":
    main()
