"""Circuit breaker, rates and pending items, with a clock of our own."""

from __future__ import annotations

import pytest

from guardkeel.moderation.breaker import LONGEST, Breaker
from guardkeel.moderation.limits import OverloadedError, Pending, Rates


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_breaker_opens_probes_and_closes():
    clock = Clock()
    breaker = Breaker(3, 5.0, clock)
    for _ in range(2):
        assert breaker.admit()
        breaker.failed()
    assert breaker.admit()
    breaker.succeeded()  # the streak begins anew
    for _ in range(3):
        assert breaker.admit()
        breaker.failed()
    assert breaker.state == "open" and not breaker.admit()
    clock.now += 4.9
    assert not breaker.admit()
    clock.now += 0.2
    assert breaker.admit()  # the probe
    assert not breaker.admit()  # and nobody else
    breaker.succeeded()
    assert breaker.state == "closed" and breaker.admit() and breaker.admit()


def test_breaker_rests_longer_while_probes_fail():
    clock = Clock()
    breaker = Breaker(1, 5.0, clock)
    breaker.admit()
    breaker.failed()
    rests = []
    for _ in range(6):
        waited = 0
        while not breaker.admit():
            clock.now += 1
            waited += 1
        rests.append(waited)
        breaker.failed()
    assert rests == [5, 10, 20, 40, LONGEST, LONGEST]


def test_late_failures_of_others_do_not_prolong_the_rest():
    clock = Clock()
    breaker = Breaker(1, 5.0, clock)
    assert breaker.admit() and breaker.admit()
    breaker.failed()
    clock.now += 4
    breaker.failed()  # asked before it opened
    clock.now += 1
    assert breaker.admit()


def test_probe_that_is_taken_back_lets_another_through():
    clock = Clock()
    breaker = Breaker(1, 5.0, clock)
    breaker.admit()
    breaker.failed()
    clock.now += 5
    assert breaker.admit() and not breaker.admit()
    breaker.forgotten()
    assert breaker.admit()


def test_rates_are_of_each_key():
    clock = Clock()
    rates = Rates(clock)
    for _ in range(10):
        rates.take("a", 60)  # ten seconds' worth at once
    with pytest.raises(OverloadedError) as refused:
        rates.take("a", 60)
    assert 0.9 < refused.value.after <= 1
    rates.take("b", 60)
    rates.take("a", None)
    clock.now += 1.01
    rates.take("a", 60)
    with pytest.raises(OverloadedError):
        rates.take("a", 60)
    clock.now -= 1000  # a clock that jumps back gives nothing and takes nothing
    with pytest.raises(OverloadedError):
        rates.take("a", 60)


def test_pending_refuses_what_is_too_much_and_forgets_what_ended():
    pending = Pending(10)
    with pending.hold(6):
        with pytest.raises(OverloadedError, match="6 items"), pending.hold(5):
            pass
        with pending.hold(4):
            assert pending.now == 10
    assert pending.now == 0
    with pytest.raises(ValueError, match="x"), pending.hold(3):
        raise ValueError("x")
    assert pending.now == 0
    with pending.hold(11):  # alone it may be larger, or it could never be served
        assert pending.now == 11
