"""`/classify` of vLLM and `/v1/classify` of SGLang: sequence classifiers.

Request: {model, input: text or token ids, or a list of them}. Answer: {data: [{index, label, probs, num_classes}]},
`label` being the name of the likeliest class and the only one that is said. Names in the wrong order would turn every
verdict round, so each answer's label is held against the file's.

With a tokenizer here a response goes out as the pair of ids that the classifier was trained on, and long messages are
shortened. Without one a pair is two texts with an empty line between.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from guardkeel.errors import ConfigError
from guardkeel.guards.base import Judgement, Verdict
from guardkeel.guards.judged import judged_pair
from guardkeel.guards.labels import unsafe_labels
from guardkeel.guards.remote.api import Asked, disarmer, entries, probability
from guardkeel.guards.remote.client import Failed
from guardkeel.guards.remote.config import RemoteConfig
from guardkeel.guards.shorten import Shortener

_ANONYMOUS = re.compile(r"label_?\d+|\d+", re.IGNORECASE)


class Classify:
    """See Api."""

    def __init__(self, config: RemoteConfig, tokenizer: Any = None) -> None:
        self._config, self._tokenizer = config, tokenizer
        self._multi_label = config.multi_label or len(config.labels) == 1  # one output is one sigmoid
        self._most = config.max_tokens or 512
        self._clean = disarmer(tokenizer)
        self._shortener = Shortener(tokenizer, self._most) if tokenizer else None
        self._unsafe = self._indices()

    def prepare(self, item: Judgement) -> Asked:
        """See Api: the text under judgement, or the pair."""
        texts = [self._clean(t) for t in judged_pair(item.conversation, item.side)]
        if not any(t.strip() for t in texts):
            raise ConfigError("the text is empty")
        if self._shortener is None:
            return Asked("\n\n".join(texts), item.side)
        ids, dropped = self._shortener.fit(texts, self._ids, self._most)
        return Asked(ids, item.side, dropped)

    def body(self, asked: Sequence[Asked]) -> dict[str, Any]:
        """See Api."""
        values = [a.value for a in asked]
        return {
            "model": self._config.model,
            "input": values[0] if len(values) == 1 else values,
        } | self._config.extra

    def read(self, answer: Any, asked: Sequence[Asked]) -> list[Verdict]:
        """See Api."""
        return [self._verdict(entry) for entry in entries(answer, "data", len(asked))]

    def _verdict(self, entry: dict[str, Any]) -> Verdict:
        given = entry.get("probs")
        if not isinstance(given, list) or not given:
            raise Failed("the answer has no probs")
        labels, probs = self._config.labels, [probability(p) for p in given]
        if len(given) != len(labels):
            raise ConfigError(
                f"model {self._config.model!r} has {len(given)} classes, labels names {len(labels)}",
                remedy="give its labels in the order of its config's id2label",
            )
        self._check(probs, entry.get("label"))
        own = [probs[i] for i in self._unsafe]
        return Verdict(max(own) if self._multi_label else min(1.0, sum(own)))

    def _check(self, probs: list[float], label: Any) -> None:
        if not self._multi_label and abs(sum(probs) - 1) > 0.02:
            raise ConfigError(
                f"the probabilities of model {self._config.model!r} add up to {sum(probs):.2f}, not 1",
                remedy="if it is a multi-label model, add multi_label = true",
            )
        best = max(range(len(probs)), key=probs.__getitem__)
        tied = probs.count(probs[best]) > 1
        if isinstance(label, str) and not _ANONYMOUS.fullmatch(label) and not tied:
            said = self._config.labels[best]
            if label.casefold() != said.casefold():
                raise ConfigError(
                    f"model {self._config.model!r} calls class {best} {label!r:.60}, labels calls it {said!r}",
                    remedy="give its labels in the order of its config's id2label",
                )

    def _indices(self) -> list[int]:
        labels, wanted = self._config.labels, self._config.unsafe_labels
        if not wanted:
            return unsafe_labels(dict(enumerate(labels)), multi_label=self._multi_label)
        absent = next((name for name in wanted if name not in labels), None)
        if absent is not None or (set(wanted) == set(labels) and not self._multi_label):
            what = "all of them" if absent is None else repr(absent)
            raise ConfigError(
                f"unsafe_labels names {what}, labels are {list(labels)}",
                remedy="name the labels that mean unsafe, and not those that mean safe",
            )
        return [i for i, name in enumerate(labels) if name in wanted]

    def _ids(self, texts: list[str]) -> list[int]:
        assert self._tokenizer is not None
        return list(self._tokenizer(*texts, verbose=False)["input_ids"])
