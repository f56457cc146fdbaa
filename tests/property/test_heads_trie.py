"""The trie says of every token exactly what each prompt alone would, whatever the prompts."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkeel.heads.attention import attend, stretches
from guardkeel.heads.plan import cut
from guardkeel.heads.trie import Trie

ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=7)


def path(trie, token):
    return [*trie.ancestors(token), token]


@given(ROWS, st.booleans())
def test_every_prompt_is_the_path_to_its_last_token(rows, share):
    trie = Trie.of(rows, share=share)
    for row, last in zip(rows, trie.last, strict=True):
        found = path(trie, last)
        assert trie.tokens[found].tolist() == row
        assert trie.depth[found].tolist() == list(range(len(row)))
    beginnings = {tuple(row[: i + 1]) for row in rows for i in range(len(row))}
    assert len(trie) == (len(beginnings) if share else sum(map(len, rows)))


@given(ROWS)
def test_descendants_are_a_run(rows):
    trie = Trie.of(rows)
    for token in range(len(trie)):
        below = [t for t in range(len(trie)) if token in path(trie, t)]
        assert below == list(range(token, int(trie.end[token])))


@given(ROWS, st.integers(1, 6), st.sampled_from([None, 1, 2, 4]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_pieces_of_attention_are_attention(rows, longest, window, ends):
    trie = Trie.of(rows)
    queries = sorted(set(trie.last)) if ends else list(range(len(trie)))
    pieces = stretches(
        trie, queries, window, longest=longest, dtype=torch.float64, device=torch.device("cpu")
    )
    assert [i for piece in pieces for i in range(piece.start, piece.stop)] == list(range(len(queries)))
    draw = torch.Generator().manual_seed(len(trie))
    q = torch.randn(2, len(queries), 4, 3, generator=draw, dtype=torch.float64)
    k, v = (torch.randn(2, len(trie), 2, 3, generator=draw, dtype=torch.float64) for _ in range(2))
    for cap in (None, 1.5):
        found = attend(q, k, v, pieces, 0.7, cap)
        for i, token in enumerate(queries):
            seen = path(trie, token)[-window if window else 0 :]
            for head in range(4):
                scores = 0.7 * k[:, seen, head // 2] @ q[0, i, head]
                scores = scores if cap is None else cap * torch.tanh(scores / cap)
                assert torch.allclose(found[0, i, head], scores[0].softmax(-1) @ v[0, seen, head // 2])


@given(ROWS, st.integers(9, 30), st.booleans())
def test_shards_hold_every_prompt_once_within_their_limit(rows, limit, share):
    shards, tokens = cut(rows, limit, share=share)
    assert sorted(i for shard in shards for i in shard) == list(range(len(rows)))
    for shard, count in zip(shards, tokens, strict=True):
        assert count <= limit
        assert count == len(Trie.of([rows[i] for i in shard], share=share))
