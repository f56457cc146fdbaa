"""Which categories an unsafe verdict names: the model's own next tokens, restricted to the policy's names.

After the verdict the answer goes on with a separator and a name. The names form a trie of tokens; the
reader walks it greedily, every step restricted to the children of the node, and stops when one name is left.
Another name is reported when the first step gives it at least `SHARE` of the probability.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from guardkeel.conversation import Side
from guardkeel.guards.base import Family
from guardkeel.guards.decoding import Decoding
from guardkeel.guards.form import Form

SHARE = 0.3

Path = tuple[int, ...]


class CategoryReader:
    """Reads category names with the key/value cache of a batch that has just been scored."""

    def __init__(self, family: Family, side: Side, form: Form, end: int) -> None:
        answers = {name: family.answer("unsafe", (name,), side) for name in family.categories}
        rows = {name: (*form.after(answer), end) for name, answer in answers.items()}
        shared = 0  # "unsafe" and the separator; at least the end of the answer tells names apart
        while shared < min(map(len, rows.values())) - 1 and _same(ids[shared] for ids in rows.values()):
            shared += 1
        self.opening = list(next(iter(rows.values()))[:shared])
        self.names: dict[str, Path] = {name: ids[shared:] for name, ids in rows.items()}
        self.openings = {word: self._opened(word, form, answers) for word in form.blanks[-1].unsafe}

    def read(self, state: Decoding, said: dict[int, str]) -> dict[int, tuple[str, ...]]:
        """Names for rows of a batch that stands at its verdict: those in `said`, with the word for unsafe there."""
        if not said:
            return {}
        flagged = torch.tensor(list(said), device=state.model.device)
        state.select(flagged)
        logits = state.feed([self.openings.get(word, self.opening) for word in said.values()])[:, -1]
        # One walker for each name begun: (row, place among the row's names, path so far).
        walkers: list[tuple[int, int, Path]] = [
            (row, place, (first,))
            for row in range(len(flagged))
            for place, first in enumerate(self._starts(logits[row]))
        ]
        rows = [row for row, _, _ in walkers]  # where each walker's past is in the cache
        found: dict[tuple[int, int], str] = {}
        while True:
            undecided = []
            for at, (row, place, path) in zip(rows, walkers, strict=True):
                leaves = self._leaves(path)
                if len(leaves) == 1:
                    found[row, place] = leaves[0]
                else:
                    undecided.append((at, (row, place, path)))
            if not undecided:
                break
            state.select(torch.tensor([at for at, _ in undecided], device=flagged.device))
            walkers = [walker for _, walker in undecided]
            logits = state.feed([[path[-1]] for _, _, path in walkers])[:, -1]
            walkers = [
                (row, place, (*path, self._child(path, logits[i])))
                for i, (row, place, path) in enumerate(walkers)
            ]
            rows = list(range(len(walkers)))
        places = {row: sorted(p for r, p in found if r == row) for row in range(len(flagged))}
        return {
            int(flagged[row]): tuple(found[row, place] for place in places[row])
            for row in range(len(flagged))
        }

    def _opened(self, word: str, form: Form, answers: dict[str, str]) -> list[int]:
        """What comes before the name where the verdict is this word and not the one that `answer` writes."""
        name, answer = next(iter(answers.items()))
        usual = next((w for w in form.blanks[-1].unsafe if answer.startswith(w)), "")
        row = form.after(word + answer[len(usual) :])
        return row[: len(row) + 1 - len(self.names[name])]

    def _starts(self, logits: torch.Tensor) -> list[int]:
        """First tokens of the likeliest name and of those with their share, the likeliest first."""
        firsts = sorted({ids[0] for ids in self.names.values()})
        shares = logits[firsts].softmax(-1)
        order = shares.argsort(descending=True).tolist()
        return [firsts[i] for rank, i in enumerate(order) if rank == 0 or float(shares[i]) >= SHARE]

    def _child(self, path: Path, logits: torch.Tensor) -> int:
        children = sorted({self.names[name][len(path)] for name in self._leaves(path)})
        return children[int(logits[children].argmax())]

    def _leaves(self, path: Path) -> list[str]:
        return [name for name, ids in self.names.items() if ids[: len(path)] == path]


def _same(values: Iterable[int]) -> bool:
    return len(set(values)) == 1
