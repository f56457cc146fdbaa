"""Guards over images: a causal guard whose model sees the pictures of a conversation where they stand in its prompt.

Any family does, for pictures go where its turn's text begins: `User: <picture>What is this?`. That is the message
format of Llama Guard 3 Vision and Llama Guard 4, whose families add nothing of their own but their tokens. The former
looks at one picture a conversation, as Meta says, and its categories are not read (that would need the picture again);
a picture that cannot be opened leaves its item unscored, with the reason.

What a message says can never become a picture: the tokens for pictures are broken in it as all special tokens are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from guardkeel.conversation import Conversation, Side
from guardkeel.errors import ConfigError, DataError, ModelError
from guardkeel.guards.base import Batch, Family, Judgement, Rendered
from guardkeel.guards.causal import CausalGuard
from guardkeel.guards.encoding import Encoded, Encoder
from guardkeel.images import Image
from guardkeel.models.sight import Shown, Sight

_MARK = "\uef01"  # a character for private use, around a picture's number; messages lose it
_SEVERAL = 3  # questions on the same pictures from which a group of their own pays
_PLACES = re.compile(f"{_MARK}([0-9]+){_MARK}")


class SeeingEncoder(Encoder):
    """An encoder whose conversations may have pictures: their ids are those that `sight` gives them."""

    sees = True

    def __init__(self, family: Family, tokenizer: Any, sight: Sight, *, max_tokens: int = 2048) -> None:
        super().__init__(family, tokenizer, max_tokens=max_tokens)
        self.sight = sight
        self._numbers: dict[Image, int] = {}
        self._pictures: list[Shown] = []

    def share(self, sample: Sequence[Judgement]) -> Encoder:
        """See Encoder. Items whose pictures cannot be shown have no say."""
        return super().share([j for j in sample if self._shows(j)])

    def encode(self, item: Judgement) -> Encoded:
        """See Encoder. ConfigError, too, where a picture cannot be shown."""
        images, most = item.conversation.images, self.sight.eyes.most
        if most is not None and len(images) > most:
            raise ConfigError(
                f"it has {len(images)} images, and this model looks at {most} a conversation",
                remedy="judge it with a model that takes several",
            )
        return super().encode(item)

    def _render(self, conversation: Conversation, side: Any) -> Rendered:
        """The family's text with a mark for each picture, before the text of its turn."""
        turns = tuple(
            replace(t, content="".join(map(self._mark, t.images)) + t.content, images=())
            for t in conversation.turns
        )
        found = super()._render(Conversation(turns), side)
        if not self.sight.eyes.goes_on:
            return found
        first = re.match(f".{{0,40}}?(?:{_PLACES.pattern})+", found.body, re.DOTALL)
        # What items share may go on to the end of the first turn's pictures.
        end = first.end() if first else 0
        return Rendered(found.prefix + found.body[:end], found.body[end:], found.suffix)

    def _disarmed(self, conversation: Conversation) -> Conversation:
        clean = super()._disarmed(conversation)
        return Conversation(
            tuple(replace(t, content=t.content.replace(_MARK, "\ufffd")) for t in clean.turns)
        )

    def _tokenise(self, text: str) -> list[int]:
        shown = [self._pictures[int(number)] for number in _PLACES.findall(text)]
        ids = super()._tokenise(_PLACES.sub(lambda m: self._pictures[int(m[1])].text, text))
        return placed(ids, shown, self.sight)

    def _shows(self, item: Judgement) -> bool:
        try:
            return all(self._mark(image) for image in item.conversation.images)
        except ConfigError:
            return False

    def _mark(self, image: Image) -> str:
        if image not in self._numbers:
            try:
                self._pictures.append(self.sight.show(image))
            except (DataError, ModelError) as e:
                raise ConfigError(e.problem, remedy=e.remedy) from e
            self._numbers[image] = len(self._pictures) - 1
        return f"{_MARK}{self._numbers[image]}{_MARK}"


def _first(item: Judgement) -> tuple[Image, ...]:
    """The pictures of the first turn, which every question on them begins with."""
    return item.conversation.turns[0].images


def placed(ids: list[int], shown: Sequence[Shown], sight: Sight) -> list[int]:
    """Token ids with the picture token, wherever it stands, replaced by the pictures' own ids in order."""
    if not shown:
        return ids
    own = iter([i for one in shown for i in one.ids])
    token = sight.eyes.token_id
    found = [next(own) if i == token else i for i in ids]
    assert next(own, None) is None, "the tokenizer does not write one token for each place of a picture"
    return found


class VisionGuard(CausalGuard):
    """A causal guard over a whole vision-language model.

    `model` is that model; texts without pictures are judged as its language model would alone. With `share_pictures`
    the keys and values of pictures on which three questions or more are asked are computed once for all of them, as
    those of the policy are.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        family: Family,
        sight: Sight,
        *,
        share_pictures: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(model, tokenizer, family, **options)
        self.sight, self.share_pictures = sight, share_pictures
        # Cross-attention has no keys for a prefix without a picture.
        self.share_prefix = self.share_prefix and sight.eyes.most is None

    def batches(
        self,
        items: Sequence[Judgement],
        *,
        layers: Sequence[int] = (),
        categories: bool = True,
        skip: Collection[int] = (),
    ) -> Iterator[Batch]:
        """See Guard. Names of categories are read where the model remembers its pictures from one call to the next."""
        read = categories and (self.sight.eyes.goes_on or not any(i.conversation.images for i in items))
        yield from super().batches(items, layers=layers, categories=read, skip=skip)

    def _groups(self, items: Sequence[Judgement]) -> dict[Any, list[int]]:
        """As for texts; several questions on the same pictures are a group of their own."""
        groups = super()._groups(items)
        if not (self.share_pictures and self.share_prefix and self.sight.eyes.goes_on):
            return groups
        parted: dict[Any, list[int]] = {}
        for kind, group in groups.items():
            asked = Counter(_first(items[i]) for i in group)
            for i in group:
                pictures = _first(items[i])
                parted.setdefault((kind, pictures if asked[pictures] >= _SEVERAL else ()), []).append(i)
        return parted

    def _encoder(self) -> Encoder:
        return SeeingEncoder(self.grammar, self.tokenizer, self.sight, max_tokens=self.max_tokens)

    def _kind(self, side: Side) -> Any:
        kind = super()._kind(side)
        if kind is not None and len(kind[1]) != 1 and not self.sight.eyes.goes_on:
            raise ConfigError(
                f"family {self.family!r} fills in {len(kind[1])} blanks, which {type(self.model).__name__} "
                "cannot do after a picture",
                remedy="take a family whose verdict comes first, or a LLaVA, Idefics3 or Llama 4 model",
            )
        return kind
