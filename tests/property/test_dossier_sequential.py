"""Sequential tests hold their error rate however often one looks; canonical JSON reads back; chains show any change."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import betaln

from guardkeel.dossier.canonical import canonical, loads
from guardkeel.dossier.chain import GENESIS, first_fault, from_line, line, redacted, sealed
from guardkeel.dossier.monitoring import sequential
from guardkeel.errors import DataError

STREAMS, ROWS = 600, 400


def streams(p, seed=0, rows=ROWS):
    """(streams, rows) of hits."""
    return (np.random.default_rng(seed).random((STREAMS, rows)) < p).astype(np.float64)


def looks(hits):
    so_far = np.cumsum(hits, axis=1)
    return so_far, np.arange(1, hits.shape[1] + 1) - so_far


def ever(log_e, alpha):
    """Share of streams on which there was an alarm at any look."""
    return float((log_e.max(axis=1) >= -math.log(alpha)).mean())


def most(alpha):
    """What a share of STREAMS may be by chance if the rate is alpha: three standard errors above it."""
    return alpha + 3 * math.sqrt(alpha * (1 - alpha) / STREAMS)


@pytest.mark.parametrize(("null", "alpha"), [(0.05, 0.05), (0.5, 0.05), (0.9, 0.1), (0.01, 0.01)])
def test_proportions_hold_their_error_rate_at_every_look(null, alpha):
    s, f = looks(streams(null, seed=1))
    up, down = sequential.rise(s, f, null), sequential.fall(s, f, null)
    assert ever(up, alpha) <= most(alpha)
    assert ever(down, alpha) <= most(alpha)
    assert ever(sequential.both(up, down), alpha) <= most(alpha)


def test_a_fixed_test_looked_at_again_and_again_does_not_hold_it():
    """That the test above can fail: the usual one, looked at after every row, alarms far too often."""
    s, f = looks(streams(0.5, seed=2))
    n = s + f
    z = (s - n / 2) / np.sqrt(n / 4)
    assert float((z[:, 20:].max(axis=1) >= 1.645).mean()) > 0.2


def test_inside_the_null_there_is_no_alarm_to_speak_of_and_drift_within_it_is_none():
    drifting = np.random.default_rng(3).random((STREAMS, ROWS)) < 0.3 + 0.2 * np.sin(np.arange(ROWS) / 50)
    s, f = looks(drifting.astype(np.float64))
    assert ever(sequential.rise(s, f, 0.5), 0.05) <= most(
        0.05
    )  # never above one half, whatever it does below


def test_a_change_is_found():
    s, f = looks(streams(0.16, seed=4, rows=900))
    log_e = sequential.rise(s, f, 0.1)
    assert ever(log_e, 0.01) > 0.9
    assert ever(sequential.fall(*looks(streams(0.75, seed=5)), 0.9), 0.01) > 0.99


def test_the_mixture_is_the_integral():
    """The closed form against numerical integration of the mixture of likelihood ratios."""
    for s, f, q in ((3, 7, 0.2), (30, 50, 0.3), (0, 9, 0.4)):

        def ratio(p, s=s, f=f, q=q):
            return math.exp(s * math.log(p / q) + f * math.log((1 - p) / (1 - q))) / (1 - q)

        whole, _ = quad(ratio, q, 1, limit=200)
        assert math.isclose(float(sequential.rise(s, f, q)), math.log(whole), rel_tol=1e-6, abs_tol=1e-8)


def test_far_from_the_null_it_is_finite_and_grows_with_the_evidence():
    hits = np.array([0.0, 10.0, 1e3, 1e6])
    log_e = sequential.rise(np.zeros(4), hits, 0.5)
    assert np.isfinite(log_e).all() and (np.diff(log_e) < 0).all()
    assert np.isfinite(sequential.rise(1e6, 0, 0.5))
    assert (np.diff(sequential.rise(hits, np.zeros(4), 0.5)) > 0).all()


@pytest.mark.parametrize("truth", [0.02, 0.4, 0.97])
def test_the_confidence_sequence_covers_at_all_n_together(truth):
    hits = streams(truth, seed=6, rows=400)
    s, f = looks(hits)
    n = s + f
    # p is outside at some n iff its own mixture ratio reaches 1/alpha there
    log_ratio = betaln(1 + s, 1 + f) - s * math.log(truth) - f * math.log(1 - truth)
    assert ever(log_ratio, 0.05) <= most(0.05)
    for row, at in ((0, 30), (1, 399), (2, 100)):
        low, high = sequential.confidence_sequence(s[row, at], n[row, at], 0.05)
        inside = log_ratio[row, at] < -math.log(0.05)
        assert (low <= truth <= high) == inside
        assert low <= s[row, at] / n[row, at] <= high


def test_betting_holds_under_unequal_draws():
    """Rows are drawn for review with a chance that depends on the verdict; weights make up for it."""
    rng, recall, rows = np.random.default_rng(7), 0.9, 3000
    flagged = rng.random((300, rows)) < recall
    chance = np.where(flagged, 0.1, 0.5)
    drawn = rng.random((300, rows)) < chance
    least = 0.1

    def worst(null):
        found = []
        for f, c, d in zip(flagged, chance, drawn, strict=True):
            x, w = f[d].astype(np.float64), 1 / c[d]
            found.append(sequential.betting(x, w, null, 1 / least).max(initial=-np.inf))
        return np.array(found)

    limit = -math.log(0.05)
    assert (worst(recall) >= limit).mean() <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)
    assert (worst(0.97) >= limit).mean() > 0.9  # it was said to be 0.97, and is 0.9
    unweighted = [f[d].mean() for f, d in zip(flagged, drawn, strict=True)]
    assert np.mean(unweighted) < 0.7  # what they would say without weights


def test_betting_on_bounded_values_and_its_guards():
    x = np.random.default_rng(8).beta(9, 1, size=(STREAMS, 200))  # mean 0.9
    w = np.ones_like(x)
    assert ever(sequential.betting(x, w, 0.9, 1.0), 0.05) <= most(0.05)
    assert ever(sequential.betting_above(x, w, 0.9, 1.0), 0.05) <= most(0.05)
    assert ever(sequential.betting(x - x * 0.1, w, 0.9, 1.0), 0.01) > 0.95
    for bad in ((1.1, 1.0), (0.5, 2.0), (0.5, 0.0)):
        with pytest.raises(ValueError, match="values must be"):
            sequential.betting([bad[0]], [bad[1]], 0.5, 1.0)


def test_a_change_after_a_long_quiet_time_is_found_soon():
    """Betting begins anew at every row; who bets from the first row on has lost it all by then."""
    rng, quiet = np.random.default_rng(10), 800
    x = (rng.random((40, 1200)) < np.where(np.arange(1200) < quiet, 0.95, 0.5)).astype(np.float64)
    rows_later = (sequential.betting(x, np.ones_like(x), 0.85, 1.0) >= -math.log(0.01)).argmax(axis=1) - quiet
    assert 10 < np.median(rows_later) < 60 and rows_later.min() >= 0
    stakes = np.geomspace(0.95 / 0.15 / 200, 0.95 / 0.15, 24)
    once = np.logaddexp.reduce([np.cumsum(np.log1p(k * (0.85 - x)), axis=1) for k in stakes]) - math.log(24)
    assert np.median((once >= -math.log(0.01)).argmax(axis=1) - quiet) > 2 * np.median(rows_later)


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(JSON)
def test_canonical_json_reads_back_and_is_its_own_canon(value):
    text = canonical(value)
    assert loads(text) == value
    assert canonical(loads(text)) == text
    reference = pytest.importorskip("rfc8785", reason="rfc8785 is not installed")
    assert text == reference.dumps(value)


@pytest.mark.parametrize("copy", [False, True], ids=["whole", "redacted"])
def test_any_changed_byte_of_a_line_is_seen(copy):
    rng, made, previous = np.random.default_rng(9), [], GENESIS
    for n in range(1, 6):
        body = {
            "who": f"person {n}",
            "flop": 10.0 ** (14 + n),
            "rate": 0.1 * n,
            "list": [n, "ä\n", None, True],
        }
        made.append(
            sealed(n, previous, "evaluator", f"e{n}", "2026-01-01T00:00:00.000000Z", body, f"{n:032x}")
        )
        previous = made[-1].hash
    lines = [line(redacted(e, {"who"}) if copy else e) for e in made]
    assert first_fault(from_line(x, "x") for x in lines) is None
    for _ in range(400):
        which = int(rng.integers(len(lines)))
        place = int(rng.integers(len(lines[which]) - 1))
        byte = (lines[which][place] + int(rng.integers(1, 256))) % 256
        changed = lines[which][:place] + bytes([byte]) + lines[which][place + 1 :]
        try:
            fault = first_fault([from_line(changed if i == which else x, "x") for i, x in enumerate(lines)])
        except DataError:
            continue  # it is no line any more
        assert fault is not None and fault.sequence <= which + 1, changed
