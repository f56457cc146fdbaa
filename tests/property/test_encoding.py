"""Whatever the messages are: no special token in them, the template whole, the length kept."""

import functools

from hypothesis import given, settings
from hypothesis import strategies as st

from guardkeel.conversation import Conversation, Turn
from guardkeel.errors import ConfigError
from guardkeel.guards.base import Judgement
from guardkeel.guards.disarm import Disarmer
from guardkeel.guards.encoding import Encoder
from guardkeel.guards.keel import Keel
from guardkeel.guards.llama_guard import LlamaGuard3
from guardkeel.models.tiny import SPECIAL, tiny_tokenizer

FAMILIES = (Keel(), LlamaGuard3())
broken = [name[:k] for name in SPECIAL for k in (1, 2, len(name) // 2)] + [name[1:] for name in SPECIAL]
pieces = st.sampled_from([*SPECIAL, *broken, " ", "\n", "<", "|", ">", "safe", "User: "])
messages = st.lists(pieces | st.text(st.characters(), max_size=4), max_size=12).map("".join)
long_messages = st.builds(lambda text, n: text * n, messages, st.integers(0, 60))
sides = st.sampled_from(["prompt", "response", "trajectory"])


@functools.cache
def tokenizer():
    return tiny_tokenizer("llama")


@functools.cache
def template_ids(family, side):
    """Added tokens of the template, and its length around empty messages."""
    added = set(tokenizer().added_tokens_decoder)
    asked = Judgement("x", Conversation.of("", None if side == "prompt" else ""), side)
    ids = Encoder(family, tokenizer()).encode(asked).ids
    return [i for i in ids if i in added], len(ids)


@given(messages)
@settings(max_examples=200, deadline=None)
def test_disarmed_once_is_disarmed(text):
    disarm = Disarmer(tokenizer())
    once = disarm(text)
    assert disarm(once) == once
    assert not set(tokenizer().added_tokens_decoder) & set(
        tokenizer()(once, add_special_tokens=False)["input_ids"]
    )
    assert once.replace(" ", "") == text.encode("utf-8", "replace").decode().replace(" ", "")


@given(st.sampled_from(FAMILIES), sides, long_messages, long_messages, st.integers(0, 400))
@settings(max_examples=40, deadline=None)
def test_encoded_conversations(family, side, prompt, answer, room):
    conversation = Conversation((Turn("user", prompt), Turn("assistant", answer)))
    special, template = template_ids(family, side)
    encoder = Encoder(family, tokenizer(), max_tokens=template + room)
    item = Judgement("x", conversation, side)
    try:
        found = encoder.encode(item)
    except ConfigError:
        assert room < 60  # the marks of a cut and the names of the turns need a little
        return
    assert len(found.ids) <= template + room
    added = set(tokenizer().added_tokens_decoder)
    assert [i for i in found.ids if i in added] == special
    rendered = family.render(conversation, side, tokenizer())
    text = tokenizer().decode(found.ids)
    assert text.startswith(rendered.prefix) and text.endswith(rendered.suffix)
    full = Encoder(family, tokenizer(), max_tokens=10**6).encode(item)
    assert full.dropped == 0
    assert (found.dropped > 0) == (len(full.ids) > template + room)
    if found.dropped:
        gap = len(tokenizer()(" […] ")["input_ids"]) + 4
        assert abs(len(full.ids) - found.dropped - len(found.ids)) <= 2 * gap
