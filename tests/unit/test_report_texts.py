from __future__ import annotations

import pytest

from guardkeel.report.texts import Piece, plain, shown


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain", "plain"),
        ("tab\tand\nnewline stay", "tab\tand\nnewline stay"),
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("\x00\x00\x00", "⟨U+0000 ×3⟩"),
        ("\x00\x07", "⟨U+0000⟩⟨U+0007⟩"),
        ("\ud83d", "⟨U+D83D⟩"),
        ("\U000e0041", "⟨U+E0041⟩"),
        ("a\u2028b", "a⟨U+2028⟩b"),
        ("a\r\nb\rc", "a \nb⟨U+000D⟩c"),
        ("👩\u200d🚀 می\u200cخواهم é", "👩\u200d🚀 می\u200cخواهم é"),
        ("e" + "\u0301" * 4 + "x", "e" + "\u0301" * 4 + "x"),
        ("e" + "\u0301" * 9 + "x", "e" + "\u0301" * 4 + "⟨5 combining marks⟩x"),
        ("e" + "\u0301" * 5, "e" + "\u0301" * 4 + "⟨1 combining mark⟩"),
        ("", ""),
    ],
)
def test_what_does_not_show_is_named(text: str, line: str) -> None:
    assert plain(text) == line


def test_a_long_text_is_cut_and_says_so() -> None:
    part = shown("x" * 5000, limit=100)
    assert (part.pieces, part.shown, part.total, part.cut) == ((Piece("x" * 100),), 100, 5000, True)
    assert plain("y" * 2000, limit=10) == "yyyyyyyyyy… (2,000 characters, 10 shown)"
    assert not shown("x" * 100, limit=100).cut


def test_the_budget_counts_escaped_bytes() -> None:
    assert shown("<" * 100, limit=1000, cost=50).shown == 10  # "<" costs its byte and four more
    assert shown("é" * 100, limit=1000, cost=50).shown == 25
    assert shown("ab", limit=10, cost=0).pieces == ()
    tokens = shown("\u202e\u202d" * 500, limit=1000, cost=200)
    assert all(p.token for p in tokens.pieces)
    assert tokens.shown == len(tokens.pieces) == 4  # 46 bytes each


def test_tokens_stand_for_all_their_characters() -> None:
    part = shown("a" + "\x00" * 50 + "b")
    assert part.shown == part.total == 52
    assert part.pieces == (Piece("a"), Piece("U+0000 ×50", token=True), Piece("b"))
