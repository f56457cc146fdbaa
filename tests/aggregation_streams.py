"""Streams of losses and of advice for the learner's tests, and a game that plays a rule against them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROUNDS, EXPERTS = 600, 8


@dataclass(frozen=True)
class Game:
    """Losses as they fell (T, n), NaN where asleep; the rule's own Σ w ℓ (T,), NaN where all slept; its last state."""

    losses: np.ndarray
    own: np.ndarray
    state: np.ndarray

    @property
    def regret(self):
        """Against each expert, over the rounds on which it was awake."""
        return np.nansum(self.own[:, None] - self.losses, axis=0)

    @property
    def variance(self):
        return np.nansum((self.own[:, None] - self.losses) ** 2, axis=0)


def play(rule, losses, weights=None):
    """`losses` is (T, n); for an adversary a function of (round, the weights), T and n then the usual ones."""
    if callable(losses):
        rounds, n = ROUNDS, EXPERTS
    else:
        rounds, n = losses.shape
    state, seen, own = rule.start(n), [], []
    for t in range(rounds):
        everyone = np.ones(n, dtype=bool)
        row = losses(t, rule.weights(state, everyone)) if callable(losses) else losses[t]
        s = 1.0 if weights is None else weights[t]
        awake = ~np.isnan(row)
        if not awake.any():
            seen.append(row)
            own.append(np.nan)
            continue
        heard = np.where(awake, row, 0.0)
        own.append(s * float(rule.weights(state, awake) @ heard))
        seen.append(s * row)
        state = rule.update(state, heard, awake, s)
    return Game(np.array(seen), np.array(own), state)


def stochastic(rng, rounds=ROUNDS, n=EXPERTS):
    """One expert is better by 0.1."""
    return (rng.random((rounds, n)) < np.where(np.arange(n) == 2, 0.4, 0.5)).astype(float)


def coins(rng, rounds=ROUNDS, n=EXPERTS):
    """Fair coins: no one can have less regret than of the order of the bound."""
    return rng.integers(0, 2, size=(rounds, n)).astype(float)


def drifting(rng, rounds=ROUNDS, n=EXPERTS):
    """Everyone's mean loss moves on its own sine."""
    phase = np.linspace(0, 2 * np.pi, n, endpoint=False)
    mean = 0.5 + 0.4 * np.sin(4 * np.pi * np.arange(rounds)[:, None] / rounds + phase)
    return np.clip(mean + 0.1 * rng.standard_normal((rounds, n)), 0, 1)


def flipped(rng, rounds=ROUNDS, n=EXPERTS):
    """The good half and the bad half change places in mid-stream."""
    good = np.where(np.arange(n) < n // 2, 0.1, 0.6)
    mean = np.where(np.arange(rounds)[:, None] < rounds // 2, good, good[::-1])
    return np.clip(mean + 0.1 * rng.standard_normal((rounds, n)), 0, 1)


def hunter(t, weights):
    """An adversary: whoever holds most weight loses, the others do not."""
    return (weights >= weights.max()).astype(float)


def alternating(t, weights):
    """What breaks a follower of the leader: two experts take turns, after half a loss to begin with."""
    losses = np.ones(EXPERTS)
    losses[:2] = (0.5, 0.0) if t == 0 else (t % 2 == 0, t % 2 == 1)
    return losses


def sleepy(rng, losses, share=0.4):
    """The same with experts that sleep; the last one always."""
    found = np.where(rng.random(losses.shape) < share, np.nan, losses)
    found[:, -1] = np.nan
    return found


def advice_stream(rng, rounds=ROUNDS, n=EXPERTS, flip=False):
    """Advice (T, n) and outcomes (T,): experts of rising noise about P(unsafe); with `flip` the outcomes turn round."""
    truth = rng.random(rounds)
    noise = np.linspace(0.3, 3.0, n)
    odds = np.log(truth / (1 - truth))[:, None] + noise * rng.standard_normal((rounds, n))
    advice = 1 / (1 + np.exp(-odds))
    unsafe = rng.random(rounds) < truth
    if flip:
        unsafe[rounds // 2 :] ^= True
        advice[:, ::2] = 1 - advice[:, ::2]
    return advice, unsafe


def best_path(losses, switches):
    """The least cumulative loss of a sequence of experts with at most so many switches."""
    least = np.full((switches + 1, losses.shape[1]), np.inf)
    least[0] = 0.0
    for row in losses:
        moved = least.copy()
        for k in range(1, switches + 1):
            moved[k] = np.minimum(least[k], least[k - 1].min())
        least = moved + row
    return least.min()
