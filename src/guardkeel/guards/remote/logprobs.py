r"""P(unsafe) from the log-probabilities of what a server generated.

A guard writes the blanks of its family's form (see base.Blank); the verdict's place is the first token after the
opening of the last one. There

    P(unsafe) = Σ p(unsafe answers) / (Σ p(unsafe answers) + Σ p(safe answers))

as in the guards that run here. A server shows only the likeliest tokens. A side of which none is among them has at
most the probability of the least likely one shown, and at most what is left over from 1; the smaller of the two stands
for it. So P is never more certain than what was shown, and off by no more than that bound.

Which token begins which answer is known exactly where the tokenizer is here. Else a token counts for the answers that
begin with it, spaces aside, unless they mean different things. Pieces may come decoded (" safe"), as in the vocabulary
("Ġsafe", "▁safe") or as ids ("token_id:19193").
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from guardkeel.conversation import Side
from guardkeel.guards.base import Blank, Family, Verdict
from guardkeel.guards.remote.api import number
from guardkeel.guards.remote.client import Failed

_ID = re.compile(r"token_id:(\d{1,9})")
_PIECES = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "\n"})

Kind = Literal["unsafe", "safe"]


@dataclass(frozen=True, slots=True)
class Position:
    """One generated token and the likeliest tokens in its place, with their probabilities."""

    token: str
    shown: Mapping[str, float]


def positions(logprobs: Any) -> list[Position]:
    """Of either shape: completions' lists, or chat's `content`. Empty where the server gave none; raises Failed."""
    if not isinstance(logprobs, dict):
        return []
    if isinstance(logprobs.get("content"), list):
        return [_chat_position(entry) for entry in logprobs["content"]]
    tokens, own, tops = (logprobs.get(k) for k in ("tokens", "token_logprobs", "top_logprobs"))
    if not isinstance(tokens, list) or not isinstance(own, list):
        return []
    if not isinstance(tops, list):
        tops = [None] * len(tokens)
    if not len(tokens) == len(own) == len(tops):
        raise Failed("the log-probabilities of the answer do not belong together")
    return [
        _position(token, {**(top if isinstance(top, dict) else {}), token: logprob})
        for token, logprob, top in zip(tokens, own, tops, strict=True)
    ]


def _chat_position(entry: Any) -> Position:
    if not isinstance(entry, dict):
        raise Failed("the log-probabilities of the answer cannot be read")
    tops = entry.get("top_logprobs") or []
    if not isinstance(tops, list) or not all(isinstance(t, dict) for t in tops):
        raise Failed("the log-probabilities of the answer cannot be read")
    return _position(entry.get("token"), {t.get("token"): t.get("logprob") for t in [*tops, entry]})


def _position(token: Any, logprobs: Mapping[Any, Any]) -> Position:
    if not all(isinstance(t, str) for t in (token, *logprobs)):
        raise Failed("a token of the answer is not a text")
    shown = {t: number(v) for t, v in logprobs.items()}
    if any(v > 1e-3 for v in shown.values()):
        raise Failed("the answer has a log-probability above 0")
    return Position(token, {t: math.exp(min(0.0, v)) for t, v in shown.items()})


class Reader:
    """Verdicts of one family from generated text and its log-probabilities."""

    def __init__(self, family: Family, tokenizer: Any = None) -> None:
        self._family, self._tokenizer = family, tokenizer

    def read(self, text: str, found: Sequence[Position], side: Side, *, cut: bool) -> Verdict:
        """A verdict: by probability where the place of the verdict shows one, else by the family's parser.

        `cut` says that the answer was not written to its end; then the parser is not asked for a verdict.
        """
        parsed = self._family.parse(text, side)
        chance = self._chance(found, side)
        if chance is not None:
            return Verdict(chance, categories=parsed.categories if parsed.unsafe == 1.0 else ())
        if cut and parsed.unsafe is not None:
            return Verdict(None, unscored="the answer does not end within max_new_tokens")
        return parsed

    def _chance(self, found: Sequence[Position], side: Side) -> float | None:
        blanks = self._family.blanks(side)
        if not blanks or not found:
            return None
        pieces = [self._text(p.token) for p in found]
        joined = "".join(pieces)
        form = _form(blanks).match(joined)
        if form is None:
            return None
        start = 0
        for position, piece in zip(found, pieces, strict=True):
            end = start + len(piece)
            if end > form.end() and joined[form.end() : end].strip():
                # A token that also ends the opening hides what else could have stood in the verdict's place.
                return self._share(blanks[-1], position, joined[:start]) if start >= form.end() else None
            start = end
        return None

    def _share(self, blank: Blank, position: Position, written: str) -> float | None:
        kinds = self._kinds(blank, position, written)
        likeliest = max(position.shown, key=lambda t: position.shown[t])
        if likeliest not in kinds:  # the guard leaves its grammar here
            return None
        bound = min(*position.shown.values(), max(0.0, 1.0 - sum(position.shown.values())))
        sums: dict[str, float] = {"unsafe": bound, "safe": bound}
        for kind in sums:
            own = [position.shown[t] for t, k in kinds.items() if k == kind]
            if own:
                sums[kind] = sum(own)
        total = sums["unsafe"] + sums["safe"]
        return min(1.0, sums["unsafe"] / total) if total > 0 else None

    def _kinds(self, blank: Blank, position: Position, written: str) -> dict[str, Kind]:
        """The verdict tokens among those shown."""
        texts = {t: self._text(t) for t in position.shown}
        if self._tokenizer is None:
            return {t: k for t, text in texts.items() if (k := _begins(blank, text.strip())) is not None}
        step = blank.step(self._ids, written)
        exact: dict[str, Kind] = {}
        both: tuple[tuple[Kind, tuple[int, ...]], ...] = (("safe", step.safe), ("unsafe", step.unsafe))
        for kind, ids in both:
            names = {self._tokenizer.decode([i]) for i in ids} | {f"token_id:{i}" for i in ids}
            own = [t for t, text in texts.items() if t in names or text in names]
            # Pieces of some tokenizers lose their space when they are decoded alone.
            bare = {n.strip() for n in names}
            exact |= dict.fromkeys(own or [t for t, text in texts.items() if text.strip() in bare], kind)
        return exact

    def _text(self, token: str) -> str:
        by_id = _ID.fullmatch(token)
        if by_id:
            return str(self._tokenizer.decode([int(by_id[1])])) if self._tokenizer is not None else ""
        return token.translate(_PIECES)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _begins(blank: Blank, piece: str) -> Kind | None:
    """What the answers that begin with a piece of text mean, if they all mean the same verdict."""
    if not piece:
        return None
    kinds: tuple[tuple[Kind | None, tuple[str, ...]], ...] = (
        ("unsafe", blank.unsafe),
        ("safe", blank.safe),
        (None, blank.other),
    )
    meant = {kind for kind, answers in kinds for a in answers if a.strip().startswith(piece)}
    return meant.pop() if len(meant) == 1 else None


def _form(blanks: Sequence[Blank]) -> re.Pattern[str]:
    """What stands before the verdict: openings, and answers between them; spaces may differ."""
    parts = []
    for blank in blanks[:-1]:
        answers = "|".join(_loose(a) for a in sorted(blank.answers, key=len, reverse=True))
        parts.append(rf"\s*{_loose(blank.opening)}\s*(?:{answers})")
    parts.append(rf"\s*{_loose(blanks[-1].opening)}" if blanks[-1].opening.strip() else "")
    return re.compile("".join(parts))


def _loose(text: str) -> str:
    return r"\s*".join(map(re.escape, text.split()))
