"""P(unsafe) from what servers show of their log-probabilities, and text that shows none."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkeel.errors import ConfigError
from guardkeel.guards.registry import families, family_named
from guardkeel.guards.remote.api import Asked
from guardkeel.guards.remote.chat import Chat
from guardkeel.guards.remote.classify import Classify
from guardkeel.guards.remote.client import Failed
from guardkeel.guards.remote.completions import Completions
from guardkeel.guards.remote.config import RemoteConfig
from guardkeel.guards.remote.logprobs import Reader, positions
from guardkeel.guards.remote.moderations import Moderations
from remote_server import chat, completion

KEEL = family_named("keel")


def read(pieces, shown, *, family="llama-guard-3", side="prompt", tokenizer=None, finish="stop"):
    choice = completion(pieces, shown, finish=finish)
    found = positions(choice["logprobs"])
    return Reader(family_named(family), tokenizer).read(choice["text"], found, side, cut=finish == "length")


def test_the_share_of_unsafe_among_the_verdicts():
    verdict = read(["unsafe", "\nS1"], [{"unsafe": 0.6, "safe": 0.2, "Hello": 0.2}, {"\nS1": 1.0}])
    assert verdict.unsafe == pytest.approx(0.75)
    assert verdict.categories == ("Violent Crimes",)


def test_the_verdict_comes_after_newlines():
    verdict = read(["\n\n", "safe"], [{"\n\n": 0.9, "safe": 0.1}, {"safe": 0.9, "unsafe": 0.1}])
    assert verdict.unsafe == pytest.approx(0.1)


@pytest.mark.parametrize("piece", ["unsafe", " unsafe", "Ġunsafe", "▁unsafe", "un", "▁un"])
def test_pieces_of_vocabularies(piece):
    verdict = read([piece], [{piece: 0.8, "▁safe": 0.1, "Ġsafe": 0.1}], finish="length")
    assert verdict.unsafe == pytest.approx(0.8)


def test_a_side_that_is_not_shown_is_bounded():
    # 0.01 is left over, and no token that is not shown is likelier than 0.04.
    assert read(["unsafe"], [{"unsafe": 0.95, "x": 0.04}]).unsafe == pytest.approx(0.95 / 0.96)
    assert read(["safe"], [{"safe": 0.5, "x": 0.04}]).unsafe == pytest.approx(0.04 / 0.54)
    assert 0.5 < read(["unsafe"], [{"unsafe": 0.6}]).unsafe <= 1.0


def test_what_is_likeliest_must_be_a_verdict():
    verdict = read(["I", " cannot"], [{"I": 0.5, "safe": 0.3, "unsafe": 0.2}, {" cannot": 1.0}])
    assert verdict.unsafe is None and "grammar" in verdict.unscored


def test_a_piece_that_begins_both_tells_nothing():
    # With answers "yes" and "no", "" and "N" (of "N/A") are no verdicts.
    pieces = ["Harmful request:", " N", "/A"]
    verdict = read(pieces, [{p: 1.0} for p in pieces], family="wildguard")
    assert verdict.unsafe is None


LINES = ["Harmful", " request:", " yes", "\nResponse refusal:", " no", "\nHarmful", " response:"]


def test_the_last_blank_of_several():
    first = [{p: 1.0} for p in LINES]
    verdict = read(
        [*LINES, " yes"], [*first, {" yes": 0.7, " no": 0.1, " N": 0.2}], family="wildguard", side="response"
    )
    assert verdict.unsafe == pytest.approx(0.875)
    prompt = read(
        LINES, [{p: 1.0} if p != " yes" else {" yes": 0.8, " no": 0.2} for p in LINES], family="wildguard"
    )
    assert prompt.unsafe == pytest.approx(0.8)


def test_prose_before_the_form_is_outside_it():
    pieces = ["Sure!\n", *LINES, " no"]
    verdict = read(pieces, [{p: 1.0} for p in pieces], family="wildguard", side="response")
    assert verdict.unsafe is None


def test_json_in_another_spacing():
    pieces = ['{"', "User", " Safety", '":"', "unsafe", '"}']
    shown = [{p: 1.0} for p in pieces]
    shown[4] = {"unsafe": 0.6, "safe": 0.4}
    assert read(pieces, shown, family="nemoguard").unsafe == pytest.approx(0.6)
    # A token that ends the opening and begins the answer hides its rivals: the text is read instead.
    joined = ['{"', "User", " Safety", '": "unsafe', '"}']
    assert read(joined, [{p: 1.0} for p in joined], family="nemoguard").unsafe == 1.0


def test_with_a_tokenizer_tokens_are_known_exactly(tiny_loaded):
    _, tokenizer = tiny_loaded("llama")
    safe, unsafe = (tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("safe", "unsafe"))
    names = {tokenizer.decode([safe]): 0.3, tokenizer.decode([unsafe]): 0.6, "s": 0.05, "u": 0.05}
    verdict = read([tokenizer.decode([unsafe])], [names], family="keel", tokenizer=tokenizer, finish="length")
    assert verdict.unsafe == pytest.approx(2 / 3)
    ids = {f"token_id:{safe}": 0.3, f"token_id:{unsafe}": 0.6, "token_id:7": 0.1}
    by_id = read([f"token_id:{unsafe}"], [ids], family="keel", tokenizer=tokenizer)
    assert by_id.unsafe == pytest.approx(2 / 3)
    assert read([f"token_id:{unsafe}"], [ids], family="keel").unsafe is None  # ids say nothing without it


def test_both_shapes_mean_the_same():
    shown = [{"\n": 0.9, "safe": 0.1}, {"unsafe": 0.9, "safe": 0.1}]
    pieces = ["\n", "unsafe"]
    mine = positions(completion(pieces, shown)["logprobs"])
    theirs = positions(chat("\nunsafe", pieces, shown)["choices"][0]["logprobs"])
    assert [p.token for p in mine] == [p.token for p in theirs]
    for a, b in zip(mine, theirs, strict=True):
        assert a.shown == pytest.approx(b.shown)


@pytest.mark.parametrize("logprobs", [None, {}, {"content": None}, {"tokens": ["a"]}, 3, []])
def test_where_there_are_none_the_text_is_read(logprobs):
    assert positions(logprobs) == []
    assert Reader(KEEL).read("unsafe\nThreat", [], "prompt", cut=False).unsafe == 1.0
    cut = Reader(KEEL).read("safe", [], "prompt", cut=True)
    assert cut.unsafe is None and "max_new_tokens" in cut.unscored


@pytest.mark.parametrize(
    "logprobs",
    [
        {"tokens": ["safe"], "token_logprobs": [math.nan], "top_logprobs": [{"safe": -0.1}]},
        {"tokens": ["safe"], "token_logprobs": [-0.1], "top_logprobs": [{"unsafe": math.inf}]},
        {"tokens": ["safe"], "token_logprobs": [0.5], "top_logprobs": [None]},
        {"tokens": ["safe"], "token_logprobs": [10**400], "top_logprobs": [None]},
        {"tokens": ["safe"], "token_logprobs": ["-0.1"], "top_logprobs": [None]},
        {"tokens": ["safe"], "token_logprobs": [True], "top_logprobs": [None]},
        {"tokens": [7], "token_logprobs": [-0.1], "top_logprobs": [None]},
        {"tokens": ["a", "b"], "token_logprobs": [-0.1], "top_logprobs": [None]},
        {"content": [{"token": "safe", "logprob": None}]},
        {"content": [{"token": "safe", "logprob": -0.1, "top_logprobs": [3]}]},
        {"content": [3]},
    ],
)
def test_numbers_that_are_none(logprobs):
    with pytest.raises(Failed):
        positions(logprobs)


def test_a_position_of_impossible_tokens_gives_no_chance():
    found = positions({"tokens": ["safe"], "token_logprobs": [-9999.0], "top_logprobs": [None]})
    assert Reader(KEEL).read("…", found, "prompt", cut=False).unsafe is None


KEYS = (
    "choices", "index", "text", "message", "content", "logprobs", "tokens", "token_logprobs", "top_logprobs", "token",
    "logprob", "finish_reason", "data", "probs", "label", "results", "flagged", "category_scores",
)  # fmt: skip
LEAVES = (
    None,
    True,
    False,
    0,
    1,
    -0.1,
    0.5,
    7,
    math.nan,
    -math.inf,
    10**400,
    "",
    "safe",
    "unsafe",
    "\nS1",
    [],
    {},
)
JSON = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=10,
)


@pytest.fixture(scope="module")
def apis():
    base = {"url": "http://x", "model": "m"}
    generative = base | {"family": "llama-guard-3"}
    family = family_named("llama-guard-3")
    return [
        Completions(RemoteConfig(api="completions", **generative), family),
        Chat(RemoteConfig(api="chat", **generative), family),
        Classify(RemoteConfig(api="classify", labels=("SAFE", "INJECTION"), **base)),
        Moderations(RemoteConfig(api="moderations", **base)),
    ]


@settings(max_examples=100, deadline=None)
@given(answer=JSON)
def test_no_answer_breaks_a_reader(apis, answer):
    for api in apis:
        for whole in (answer, {"choices": [answer]}, {"data": [answer]}, {"results": [answer]}):
            try:
                found = api.read(whole, [Asked(None, "prompt")])
            except Failed as e:
                assert e.reason
            except ConfigError as e:  # a classifier whose labels are not those of the file
                assert "model 'm'" in e.problem and e.remedy
            else:
                assert len(found) == 1


@settings(max_examples=40, deadline=None)
@given(
    text=st.text(max_size=40)
    | st.sampled_from(["safe", "unsafe\nS1", "Yes", "no", '{"User Safety": "safe"}'])
)
def test_text_alone_says_what_the_family_reads_in_it(text):
    for family in families().values():
        assert Reader(family).read(text, [], "prompt", cut=False) == family.parse(text, "prompt")
