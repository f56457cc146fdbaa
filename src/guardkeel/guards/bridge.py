"""Guards of any-guardrail (mozilla-ai, PyPI), about forty behind one `validate()`: `any:prompt_guard`.

    any:NAME?model_id=org/name&threshold=0.4      (`any-guardrail:` is the same)

Options go to the guard's constructor, or to its `validate()` where it says that it takes them there (`policy`). Values
are JSON, or else plain words. Keys are no options: the guards read them from the environment.

What a verdict is. any-guardrail's `score` is a risk, higher being worse, and is taken as P(unsafe). What stands behind
it differs: a probability of a classifier's class, the highest of several, a severity in steps, a judge's mark on a
rubric. Most generative guards give none: P is then 0 or 1 by `valid`, so ranking measures say little. Unscored is

- whatever the guard raised, and a side that it does not judge; a guard that raises again and again stops the run;
- a parse failure, which any-guardrail reports as unsafe (`extra["parse_failure"]`), and text outside its grammar of
  the one guard that lets such text pass as safe (Llama Guard);
- a score that is not in [0, 1], and none from a local classifier that has scores (its labels are not the expected).

On the response side, where a guard reports the harm of request and response apart, the response's counts.

Local guards are asked one after the other, or in one batch where they have a real one: their tokenizers and models are
not for several threads. Hosted ones are asked by several threads.
"""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any
from urllib.parse import parse_qsl

from guardkeel.conversation import Conversation, Side
from guardkeel.errors import ConfigError, OfflineError, RunError, UnsafeFileError
from guardkeel.guards.base import Batch, Guard, Judgement, Verdict
from guardkeel.guards.judged import BLIND, judged_text
from guardkeel.guards.registry import family_named
from guardkeel.records import value_digest
from guardkeel.resources import is_offline

FAMILY = "any-guardrail"
BATCH = 16
THREADS = 8
"""Requests under way at once to a hosted guard."""
STREAK = 16
"""Items in a row that a guard may fail on."""

_REFERENCE = re.compile(r"any(?:-guardrail)?:(?P<name>[^?]*)(?:\?(?P<options>.*))?", re.DOTALL)
_SECRET = re.compile(r"api_?key|secret|password|(^|_)token$|credential", re.IGNORECASE)
_INSTALL = "pip install 'guardkeel[any-guardrail]'"
# These load a model together with Python code from its repository (0.7.7).
_REMOTE_CODE = {"injec_guard", "bielik_guard", "qwen3_guard_stream"}
# Reports of one side, which are no categories of harm.
_RESPONSE_HARM = ("harmful_response", "response_harm")
_PROMPT_HARM = ("harmful_request", "prompt_harm")
_NO_CATEGORY = {
    *_RESPONSE_HARM,
    *_PROMPT_HARM,
    "response_refusal",
    "refusal",
    "policy_violation",
    "prompt_safety",
}
_NO_CATEGORY |= {"safe", "unsafe", "benign", "malicious", "suspicious", "evaluator"}
# Reads any text without the word "unsafe" as safe; its raw text is in `explanation`.
_GRAMMAR = {"llama_guard": "llama-guard-3"}


@dataclass(frozen=True)
class BridgeReference:
    """A guard's name in any-guardrail, and its options."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


def is_bridge(reference: str) -> bool:
    """Whether a reference is of any-guardrail."""
    return _REFERENCE.fullmatch(reference.strip()) is not None


def parse_bridge(reference: str) -> BridgeReference:
    """Raises ConfigError where the reference has no name, an option twice or a key in it."""
    found = _REFERENCE.fullmatch(reference.strip())
    if found is None or not found["name"]:
        raise ConfigError(
            f"{reference!r} names no guard", remedy="write any:NAME, for example any:prompt_guard"
        )
    options: dict[str, Any] = {}
    for key, value in parse_qsl(found["options"] or "", keep_blank_values=True):
        if _SECRET.search(key):
            raise ConfigError(
                f"any:{found['name']}: option {key} would end up in records",
                remedy="leave it out and set the variable that any-guardrail reads it from",
            )
        if key in options:
            raise ConfigError(f"any:{found['name']}: option {key} is there twice", remedy="give it once")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return BridgeReference(found["name"].replace("-", "_"), options)


def checked(reference: str) -> tuple[Any, BridgeReference]:
    """any-guardrail, and the guard that is asked for; raises ConfigError where either is not there."""
    wanted = parse_bridge(reference)
    try:
        library = importlib.import_module("any_guardrail")
    except ImportError as e:
        raise ConfigError(f"{reference}: any-guardrail is not installed", remedy=_INSTALL) from e
    names = [str(name.value) for name in library.GuardrailName]
    if wanted.name not in names:
        raise ConfigError(
            f"{reference}: any-guardrail has no {wanted.name!r}", remedy=f"it has {', '.join(names)}"
        )
    return library, wanted


def stated(reference: str) -> str:
    """sha256 of what is asked for, and of which any-guardrail: it stands for the digest of its weights."""
    checked(reference)
    return value_digest(_facts(parse_bridge(reference)))


def load_bridge(
    reference: str,
    *,
    threshold: float | None = None,
    offline: bool | None = None,
    trust_remote_code: bool = False,
) -> BridgeGuard:
    """Create the guard that a reference names.

    Raises:
        ConfigError: any-guardrail, one of its extras or the guard is not there, or it does not take the options.
        UnsafeFileError: it would run code from its model's repository, and `trust_remote_code` is off.
        OfflineError: it is a hosted service, and the network is off.
    """
    library, wanted = checked(reference)
    name = library.GuardrailName(wanted.name)
    about = library.AnyGuardrail.metadata(name)
    if is_offline(offline) and about.backend.value == "hosted_api":
        raise OfflineError(
            f"{reference}: a hosted service, and the network is off",
            remedy="leave --offline out, or take a local guard",
        )
    if wanted.name in _REMOTE_CODE and not trust_remote_code:
        raise UnsafeFileError(
            f"{reference}: any-guardrail loads it with Python code from the model's repository",
            remedy="read that code, then load_guard(…, trust_remote_code=True)",
        )
    at_call = about.required_validate_kwargs | about.optional_validate_kwargs
    own = {k: v for k, v in wanted.options.items() if k not in at_call}
    try:
        rail = library.AnyGuardrail.create(name, **own)
    except ImportError as e:
        raise ConfigError(
            f"{reference}: a package is missing ({_line(e)})", remedy="install what it asks for"
        ) from e
    except Exception as e:  # whatever the guards raise: wrong options, gated models, no key
        raise ConfigError(
            f"{reference}: any-guardrail could not make it ({type(e).__name__}: {_line(e)})",
            remedy="check the options, access to the model, and the variables that the guard reads its keys from",
        ) from e
    return BridgeGuard(rail, wanted, threshold=0.5 if threshold is None else threshold)


class BridgeGuard(Guard):
    """A guard of any-guardrail. It shows no activations: `layers` gets none."""

    family = FAMILY

    def __init__(self, rail: Any, wanted: BridgeReference | str, *, threshold: float = 0.5) -> None:
        """Take a guard that `AnyGuardrail.create` made, and the name that it was made by."""
        library = importlib.import_module("any_guardrail")
        self._wanted = BridgeReference(wanted) if isinstance(wanted, str) else wanted
        self._name = library.GuardrailName(self._wanted.name)
        self._evaluate: Callable[..., Any] = library.AnyGuardrail.evaluate
        self._about = library.AnyGuardrail.metadata(self._name)
        self._rail = rail
        self.name, self.threshold = self._wanted.name, threshold
        at_call = self._about.required_validate_kwargs | self._about.optional_validate_kwargs
        self._at_call = {k: v for k, v in self._wanted.options.items() if k in at_call}
        self._streak = 0

    @property
    def facts(self) -> dict[str, Any]:
        """See Guard. Parameters, dtype and device are those of a local model where it shows them."""
        model = getattr(getattr(self._rail, "provider", None), "model", None)
        own: dict[str, Any] = {"parameters": 0, "dtype": "", "device": ""}
        if hasattr(model, "parameters"):
            from guardkeel.models.devices import model_facts

            own = model_facts(model)
        return own | _facts(self._wanted)

    def batches(
        self,
        items: Sequence[Judgement],
        *,
        layers: Sequence[int] = (),
        categories: bool = True,
        skip: Collection[int] = (),
    ) -> Iterator[Batch]:
        """See Guard: items in their order.

        Raises:
            RunError: the guard failed on STREAK items in a row, so something is wrong that is no item's fault.
        """
        hosted = self._about.backend.value == "hosted_api"
        with ThreadPoolExecutor(THREADS if hosted else 1) as pool:
            for number, start in enumerate(range(0, len(items), BATCH)):
                if number in skip:
                    continue
                indices = list(range(start, min(start + BATCH, len(items))))
                chunk = [items[i] for i in indices]
                verdicts = list(pool.map(self._one, chunk)) if hosted else self._several(chunk)
                yield Batch(number, indices, [v if categories else _unnamed(v) for v in verdicts])

    def _several(self, items: Sequence[Judgement]) -> list[Verdict]:
        """In one batch where the guard has a real one for plain texts; one by one where that fails, to see which."""
        batched = (
            self._about.supports_batch and self._about.backend.value == "local_encoder" and len(items) > 1
        )
        texts = [self._texts(item) for item in items]
        if batched and all(isinstance(t, tuple) and t[1] is None for t in texts):
            try:
                outputs = self._rail.validate([t[0] for t in texts])
            except Exception:  # one of them is too long, most likely
                outputs = None
            if isinstance(outputs, list) and len(outputs) == len(items):
                return [self._verdict(o, item.side) for o, item in zip(outputs, items, strict=True)]
        return [self._one(item) for item in items]

    def _one(self, item: Judgement) -> Verdict:
        texts = self._texts(item)
        if isinstance(texts, str):
            return Verdict(None, unscored=texts)
        prompt, response = texts
        try:
            output = self._evaluate(self._name, self._rail, prompt, response, **self._at_call)
        except Exception as e:  # whatever the guard, its model or its service raises
            self._streak += 1
            if self._streak >= STREAK:
                raise RunError(
                    f"any:{self.name}: failed on {self._streak} items in a row ({type(e).__name__}: {_line(e)})",
                    remedy="see to what it says, then repeat the command: it goes on where it stopped",
                ) from e
            # Without its message, which may quote the text.
            return Verdict(None, unscored=f"any-guardrail raised {type(e).__name__}")
        self._streak = 0
        return self._verdict(output, item.side)

    def _texts(self, item: Judgement) -> tuple[str, str | None] | str:
        """Prompt and response for `evaluate`, or why the guard is not asked."""
        stages = {stage.value for stage in self._about.stages}
        if item.side == "trajectory":
            return "any-guardrail's guards judge prompts and responses, not trajectories"
        if ("input" if item.side == "prompt" else "output") not in stages:
            return f"{self.name} does not judge the {item.side} side"
        if item.conversation.images:
            return BLIND
        text = judged_text(item.conversation, item.side).encode("utf-8", "replace").decode()
        if not text.strip():
            return "the text is empty"
        if item.side == "prompt":
            return text, None
        return (_asked(item.conversation), text) if self._takes_pairs else (text, None)

    @property
    def _takes_pairs(self) -> bool:
        return bool(
            {"output_text", "output", "comparison_text", "question"}
            & (self._about.optional_validate_kwargs | self._about.required_validate_kwargs)
        )

    def _verdict(self, output: Any, side: Side) -> Verdict:
        kind = self._about.backend.value
        scores = {shape.value for shape in self._about.output_shapes} & {"score", "rubric"}
        verdict = to_verdict(
            output,
            side,
            must_score=bool(scores) and kind == "local_encoder",
            grammar=_GRAMMAR.get(self.name),
        )
        return (
            verdict if verdict.unsafe is not None and verdict.unsafe >= self.threshold else _unnamed(verdict)
        )


def to_verdict(output: Any, side: Side, *, must_score: bool = False, grammar: str | None = None) -> Verdict:
    """A GuardrailOutput as a verdict; see the text of this module.

    Args:
        output: has `valid`, `score`, `explanation`, `categories` and `extra`.
        side: what was judged.
        must_score: the guard has a score for everything, unless something is wrong.
        grammar: the family whose parser the raw text in `explanation` must satisfy.
    """
    if not isinstance(getattr(output, "valid", None), bool):
        return Verdict(None, unscored="any-guardrail gave no single verdict")
    if (getattr(output, "extra", None) or {}).get("parse_failure"):
        return Verdict(None, unscored="the guard's answer could not be parsed")
    if grammar is not None:
        parsed = family_named(grammar).parse(str(output.explanation or ""), side)
        if parsed.unsafe is None:
            return Verdict(None, unscored="the guard's answer is outside its grammar")
    found = list(getattr(output, "categories", None) or ())
    names = tuple(
        dict.fromkeys(
            str(c.description if re.fullmatch(r"[A-Z]?\d+", c.name) and c.description else c.name)
            for c in found
            if c.triggered and c.name.lower() not in _NO_CATEGORY and not c.name.startswith("LABEL_")
        )
    )
    apart = {c.name: c.triggered for c in found if c.name in (*_PROMPT_HARM, *_RESPONSE_HARM)}
    if apart:
        own = next(
            (apart[n] for n in (_PROMPT_HARM if side == "prompt" else _RESPONSE_HARM) if n in apart), None
        )
        if own is None:
            return Verdict(None, unscored=f"the guard said nothing of the {side}")
        return Verdict(float(own), categories=names if own else ())
    if output.score is None:
        if must_score and output.valid:
            return Verdict(
                None, unscored="the classifier gave no score: its labels are not those that are expected"
            )
        return Verdict(float(not output.valid), categories=names)
    if not math.isfinite(output.score) or not -1e-3 <= output.score <= 1 + 1e-3:
        return Verdict(None, unscored=f"the score {output.score} is not in [0, 1]")
    return Verdict(min(1.0, max(0.0, float(output.score))), categories=names)


def _unnamed(verdict: Verdict) -> Verdict:
    return Verdict(verdict.unsafe, verdict.unscored) if verdict.categories else verdict


def _asked(conversation: Conversation) -> str:
    """The user's message before the last reply; "" where there is none."""
    roles = [turn.role for turn in conversation.turns]
    end = len(roles) - 1 - roles[::-1].index("assistant") if "assistant" in roles else len(roles)
    return next((t.content for t in reversed(conversation.turns[:end]) if t.role == "user"), "")


def _facts(wanted: BridgeReference) -> dict[str, Any]:
    return {
        "guardrail": wanted.name,
        "options": wanted.options,
        "any-guardrail": metadata.version("any-guardrail"),
    }


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
