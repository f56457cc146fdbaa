"""Taking the power out of special-token strings in messages.

A message is text and nothing but text: "<|im_end|>" in it must not become the token that ends a turn. Every
occurrence of an added token of the tokenizer, and of the markers that other families use, gets a separator
after its first character. The separator is in none of the names, so breaking one occurrence cannot make
another, and one pass over the text is enough.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_LIKE = r"<\|[^|<>\s]{1,40}\|>|\[/?(?:INST|SYS)\]|<</?SYS>>|</?s>"
_WORD = re.compile(r"[\w\s.,:;'-]+")
_SEPARATORS = " ·¦†‡"


class Disarmer:
    """Breaks the special-token strings of one tokenizer.

    Added tokens that are ordinary words (a vocabulary grown in fine-tuning) are left alone: they say nothing
    that a message may not say.
    """

    def __init__(self, tokenizer: Any) -> None:
        added = list(tokenizer.added_tokens_decoder.values())
        special = {*tokenizer.all_special_tokens, *(str(t.content) for t in added if t.special)}
        names = special | {str(t.content) for t in added if not _WORD.fullmatch(t.content)}
        names = {n for n in names if n.strip() and (len(n) > 1 or n in special)}
        self.added = re.compile(pattern(names)) if names else None
        self._single = {ord(n): " " for n in names if len(n) == 1}
        names = {n for n in names if len(n) > 1}
        self._separator = next(c for c in _SEPARATORS if not any(c in n for n in names))
        self._find, self._break = _compiled(names)
        self._normalise: Any = getattr(_backend(tokenizer), "normalizer", None)
        late = {str(t.content) for t in added if t.normalized} & names
        if self._normalise is not None and late:
            looked_for = {str(self._normalise.normalize_str(n)) for n in late}
            self._find_late, self._break_late = _compiled({n for n in looked_for if len(n) > 1})
        else:
            self._normalise = None

    def __call__(self, text: str) -> str:
        """The text without a special-token string in it; lone surrogates, which have no bytes, become "?"."""
        text = text.encode("utf-8", "replace").decode()
        if self._single:
            text = text.translate(self._single)
        if self._find.search(text):
            text = self._break.sub(rf"\1{self._separator}", text)
        if self._normalise is not None:  # tokens that are looked for after normalisation, in its result
            normal = self._normalise.normalize_str(text)
            if self._find_late.search(normal):
                text = self._break_late.sub(rf"\1{self._separator}", normal)
        return text


def pattern(words: Iterable[str]) -> str:
    """A regular expression for any of the words, the longest first.

    It branches by character, so that thousands of reserved tokens cost no more than a few.
    """
    tails: dict[str, list[str]] = {}
    ends = False
    for word in words:
        if word:
            tails.setdefault(word[0], []).append(word[1:])
        else:
            ends = True
    branches = [re.escape(first) + pattern(rest) for first, rest in sorted(tails.items())]
    if not branches:
        return ""
    body = branches[0] if len(branches) == 1 and not ends else f"(?:{'|'.join(branches)})"
    return f"{body}?" if ends else body


def _compiled(names: set[str]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What finds an occurrence, and what matches the first character of every one, overlapping ones too."""
    any_of = f"{pattern(names)}|{_LIKE}" if names else _LIKE
    return re.compile(any_of), re.compile(f"(?={any_of})(.)", re.DOTALL)


def _backend(tokenizer: Any) -> Any:
    return getattr(tokenizer, "backend_tokenizer", None)
