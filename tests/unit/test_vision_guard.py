"""Guards over images: the message format, what cannot become a picture, and what stays unscored."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("PIL.Image", reason="Pillow is not installed")

from guard_doubles import EveryToken
from guardkeel.conversation import Conversation, Turn
from guardkeel.errors import ConfigError, ModelError
from guardkeel.guards.base import Judgement
from guardkeel.guards.causal import CausalGuard
from guardkeel.guards.judged import BLIND
from guardkeel.guards.keel import Keel
from guardkeel.guards.llama_guard import LlamaGuard3Small, LlamaGuard4
from guardkeel.guards.load import load_checkpoint, load_guard
from guardkeel.guards.vision import SeeingEncoder, VisionGuard
from guardkeel.images import Image
from guardkeel.models.eyes import eyes_of
from guardkeel.models.loading import load_model, load_tokenizer
from guardkeel.models.sight import Sight
from guardkeel.models.tiny_vision import make_tiny_vision
from guardkeel.models.towers import language_tower
from guardkeel.vision.pairs import pair

PICTURE, OTHER = pair(0).image, pair(1).image
TURNS = Conversation(
    (
        Turn("user", "What is this?", images=(PICTURE,)),
        Turn("assistant", "A shape."),
        Turn("user", "Thank you."),
    )
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(kind):
        if kind not in made:
            made[kind] = make_tiny_vision(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return folder


@pytest.fixture(scope="module")
def llava(folders):
    folder = folders("llava")
    model, tokenizer = load_model(folder, "float32", "cpu", images=True), load_tokenizer(folder)
    return model, tokenizer, eyes_of(model, tokenizer, folder)


def read(folder, family, conversation):
    """What a family writes for a conversation, as text, and its ids."""
    model, tokenizer = load_model(folder, "float32", "cpu", images=True), load_tokenizer(folder)
    with Sight(model, eyes_of(model, tokenizer, folder)) as sight:
        encoder = SeeingEncoder(family, tokenizer, sight)
        ids = encoder.encode(Judgement("a", conversation, "prompt")).ids
        plain = [sight.eyes.token_id if i >= sight.first else i for i in ids]
        return tokenizer.decode(plain), ids, sight.first


def test_the_message_format_of_llama_guard_3_vision(folders):
    text, ids, first = read(folders("mllama"), LlamaGuard3Small(), TURNS)
    assert (
        "<BEGIN CONVERSATION>\n\nUser: <|image|>What is this?\n\nAgent: A shape.\n\nUser: Thank you." in text
    )
    assert text.startswith(
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nTask: Check if there is"
    )
    assert sum(i >= first for i in ids) == 1


def test_the_message_format_of_llama_guard_4(folders):
    two = Conversation.of("What do they show?", images=[PICTURE, OTHER])
    text, ids, first = read(folders("llama4"), LlamaGuard4(), two)
    one = "<|image_start|><|image|>" + "<|patch|>" * 4 + "<|image_end|>"
    assert f"User: {one}{one}What do they show?" in text
    assert [i for i in ids if i >= first] == list(range(first, first + 8))


def test_a_chat_template_of_the_checkpoint_gets_the_picture_where_its_turn_begins(folders):
    folder = folders("mllama")
    model, tokenizer = load_model(folder, "float32", "cpu", images=True), load_tokenizer(folder)
    tokenizer.chat_template = (
        "{{ '<|begin_of_text|>Task: UNSAFE CONTENT CATEGORIES\n<BEGIN UNSAFE CONTENT CATEGORIES>\nS1: Violent Crimes.\n"
        "<END UNSAFE CONTENT CATEGORIES>\n\n' }}{% for m in messages %}{{ ('User' if m.role == 'user' else 'Agent') + "
        "': ' + m.content[0].text | trim + '\n\n' }}{% endfor %}{{ 'Verdict:<|start_header_id|>a<|end_header_id|>' }}"
    )
    with Sight(model, eyes_of(model, tokenizer, folder)) as sight:
        encoder = SeeingEncoder(LlamaGuard3Small(), tokenizer, sight)
        ids = encoder.encode(Judgement("a", TURNS, "prompt")).ids
        text = tokenizer.decode([sight.eyes.token_id if i >= sight.first else i for i in ids])
    assert "CATEGORIES>\n\nUser: <|image|>What is this?\n\nAgent: A shape." in text


@pytest.mark.parametrize("said", ["<image>", "\uef010\uef01", "<im<image>age>", "\uef01<image>0\uef01"])
def test_no_message_becomes_a_picture(said, llava):
    model, tokenizer, eyes = llava
    with Sight(model, eyes) as sight:
        encoder = SeeingEncoder(Keel(), tokenizer, sight)
        conversation = Conversation.of(f"{said} What is {said}?", images=[PICTURE])
        ids = encoder.encode(Judgement("a", conversation, "prompt")).ids
        alone = encoder.encode(Judgement("b", Conversation.of(f"{said} is this"), "prompt")).ids
    assert [i for i in ids if i >= sight.first] == list(sight.show(PICTURE).ids)
    assert not [i for i in alone if i >= sight.first or i == eyes.token_id]


def test_a_picture_is_never_cut_out_of_a_long_message(llava):
    model, tokenizer, eyes = llava
    with Sight(model, eyes) as sight:
        encoder = SeeingEncoder(Keel(), tokenizer, sight, max_tokens=1200)
        conversation = Conversation.of("the sea and the ships " * 400, images=[PICTURE, OTHER])
        found = encoder.encode(Judgement("a", conversation, "prompt"))
        assert found.dropped > 0
        assert len(found.ids) <= 1200
        assert [i for i in found.ids if i >= sight.first] == [
            *sight.show(PICTURE).ids,
            *sight.show(OTHER).ids,
        ]


def test_pictures_that_cannot_be_shown_are_unscored_and_others_are_not(llava, tmp_path):
    model, tokenizer, eyes = llava
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40)
    images = {
        "good": PICTURE,
        "gone": Image.of(tmp_path / "gone.png"),
        "cut": Image.of(tmp_path / "cut.png"),
        "address": Image("https://example.org/a.png"),
    }
    items = [
        Judgement(name, Conversation.of("What is this?", images=[i]), "prompt") for name, i in images.items()
    ]
    with Sight(model, eyes) as sight:
        guard = VisionGuard(model, tokenizer, EveryToken(), sight, name="tiny")
        good, *bad = guard.score(items, categories=False)
    assert good.unsafe is not None
    assert [v.unsafe for v in bad] == [None] * 3
    for verdict, said in zip(bad, ("gone.png: no such picture", "cut.png", "not fetched"), strict=True):
        assert said in verdict.unscored


def test_one_picture_a_conversation_where_the_model_takes_one(folders):
    guard = load_checkpoint(str(folders("mllama")), family="llama-guard-3-1b", images=True, dtype="float32")
    (verdict,) = guard.score([Judgement("a", Conversation.of("Look.", images=[PICTURE, OTHER]), "prompt")])
    assert verdict.unscored == "it has 2 images, and this model looks at 1 a conversation"
    guard.sight.close()


@pytest.mark.parametrize("kind", ["llava", "qwen2-vl", "idefics3", "smolvlm"])
def test_texts_are_judged_as_the_language_tower_judges_them(kind, folders):
    folder = folders(kind)
    model, tokenizer = load_model(folder, "float32", "cpu", images=True), load_tokenizer(folder)
    items = [
        Judgement(str(i), Conversation.of(t), "prompt")
        for i, t in enumerate(("a poem", "a ship", "what " * 40))
    ]
    with Sight(model, eyes_of(model, tokenizer, folder)) as sight:
        whole = VisionGuard(model, tokenizer, EveryToken(), sight, name="whole").score(items)
    tower = CausalGuard(language_tower(model), tokenizer, EveryToken(), name="tower").score(items)
    assert [v.unsafe for v in whole] == pytest.approx([v.unsafe for v in tower], abs=1e-6)


def test_hidden_states_of_pictures(llava):
    model, tokenizer, eyes = llava
    items = [
        Judgement(str(i), Conversation.of("What?", images=[p]), "prompt")
        for i, p in enumerate((PICTURE, OTHER))
    ]
    with Sight(model, eyes) as sight:
        guard = VisionGuard(model, tokenizer, EveryToken(), sight, name="tiny")
        (batch,) = guard.batches(items, layers=(1, 2), categories=False)
    assert batch.hidden.shape == (2, 2, 32)
    assert abs(batch.hidden[:, 0] - batch.hidden[:, 1]).max() > 1e-3


def test_loading_with_and_without_images(folders, tmp_path):
    folder = folders("llava")
    items = [Judgement("a", Conversation.of("What is this?", images=[PICTURE]), "prompt")]
    blind = load_guard(str(folder), family="keel", dtype="float32")
    assert type(blind) is CausalGuard
    assert blind.score(items)[0].unscored == BLIND
    seeing = load_checkpoint(str(folder), family="keel", dtype="float32", images=True)
    assert isinstance(seeing, VisionGuard)
    (verdict,) = seeing.score(items)
    assert verdict.unscored.startswith(
        "output begins with"
    )  # it looked, and says something else than a verdict

    bare = tmp_path / "bare"
    bare.mkdir()
    for file in folder.iterdir():
        if file.name != "preprocessor_config.json":
            (bare / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ConfigError, match="without its image processor"):
        load_checkpoint(str(bare), family="keel", images=True)
    with pytest.raises(ModelError, match="no usable image processor"):
        eyes_of(seeing.model, seeing.tokenizer, bare)


def test_processors_that_need_torchvision_say_so(folders, tmp_path):
    folder = folders("llava")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "Llama4ImageProcessor"})
    )
    model, tokenizer = load_model(folder, "float32", "cpu", images=True), load_tokenizer(folder)
    with pytest.raises(ModelError, match="no usable image processor") as error:
        eyes_of(model, tokenizer, tmp_path)
    assert "torchvision" in str(error.value)


class TestGuardsThatReadTexts:
    items = (Judgement("a", Conversation.of("What is this?", images=[PICTURE]), "prompt"),)

    def test_rules(self):
        assert load_guard("rules").score(self.items)[0].unscored == BLIND

    def test_classifiers(self, tmp_path):
        from guardkeel.models.tiny import make_tiny

        guard = load_guard(str(make_tiny("bert", tmp_path)))
        assert guard.score(self.items)[0].unscored == BLIND

    def test_linear(self):
        from guardkeel.conversation import Example
        from guardkeel.guards.linear import LinearGuard

        rows = [
            Example(
                str(i),
                Conversation.of(f"{'ships' if i % 2 else 'poems'} {i}"),
                {"prompt": ("safe", "unsafe")[i % 2]},
            )
            for i in range(40)
        ]
        guard = LinearGuard.fit(rows)
        verdicts = guard.score([*self.items, Judgement("b", Conversation.of("ships"), "prompt")])
        assert verdicts[0].unscored == BLIND
        assert verdicts[1].unsafe is not None

    def test_servers(self):
        import asyncio

        from guardkeel.guards.remote.guard import RemoteGuard

        guard = RemoteGuard.__new__(RemoteGuard)
        guard.threshold = 0.5
        (verdict,) = asyncio.run(guard.judge(None, self.items))
        assert verdict.unscored == BLIND
