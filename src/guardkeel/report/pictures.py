"""Pictures from data, made fit for a page: small, decoded and written anew, with a size and a text in their place.

No byte of a picture as it came is put into a page: it is opened as a hostile one would be (see pictures.py), made no
larger than `SIDE`, and written as a PNG or JPEG of our own. What cannot be opened is a note.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from guardkeel.errors import GuardkeelError
from guardkeel.images import Image
from guardkeel.pictures import open_picture
from guardkeel.report.texts import plain

SIDE = 240
MOST = 4  # pictures of one turn
_LARGE = 24_000  # bytes of a PNG from which a JPEG is tried


@dataclass(frozen=True, slots=True)
class ShownPicture:
    """A picture as a page shows it; `source` is empty where it cannot be, and `note` says why."""

    source: Markup
    alt: str
    width: int = 0
    height: int = 0
    note: str = ""


def shown_pictures(images: Sequence[Image], most: int = MOST) -> tuple[ShownPicture, ...]:
    """The first few pictures; the others are counted in a note."""
    found = tuple(shown_picture(image) for image in images[:most])
    left = len(images) - most
    return found if left <= 0 else (*found, ShownPicture(Markup(), "", note=f"{left} more, not shown"))


def shown_picture(image: Image) -> ShownPicture:
    """One picture; addresses are never fetched for a page."""
    alt = plain(image.alt, 300) or "a picture without a description"
    try:
        opened = open_picture(image, side=SIDE, strict=False)
    except GuardkeelError as e:
        return ShownPicture(Markup(), alt, note=plain(f"a picture that cannot be shown: {e.problem}", 300))
    width, height = opened.pixels.size
    note = f"{opened.size[0]} × {opened.size[1]} pixels" if opened.size != (width, height) else ""
    return ShownPicture(_written(opened.pixels), alt, width, height, note)


def _written(pixels: Any) -> Markup:
    kind, data = "png", _encoded(pixels, "PNG", optimize=True)
    if len(data) > _LARGE:
        jpeg = _encoded(pixels, "JPEG", quality=80)
        kind, data = ("jpeg", jpeg) if len(jpeg) < len(data) else (kind, data)
    # Our own base64: it is neither cut nor escaped.
    return Markup(f"data:image/{kind};base64,{base64.b64encode(data).decode()}")  # noqa: S704


def _encoded(pixels: Any, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    pixels.save(out, kind, **options)
    return out.getvalue()
