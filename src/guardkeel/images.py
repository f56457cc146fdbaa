"""Pictures in conversations: where one comes from. `pictures.py` opens them; nothing is opened or fetched here.

A picture is a file's path, a `data:` URL (bytes are put into one) or an address on the network. In messages it is a
content part as OpenAI writes it, `{"type": "image_url", "image_url": {"url": …}}`; `alt`, what it shows in words, may
stand beside the type.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from guardkeel.errors import DataError

PARTS = ("image_url", "input_image", "image")
"""Types of content parts that are pictures: OpenAI's two APIs, and transformers."""

_MAGIC = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
}


@dataclass(frozen=True, slots=True)
class Image:
    """Where a picture comes from, and what it shows in words (`alt`, for people; no guard is told)."""

    source: str
    alt: str = ""

    @classmethod
    def of(cls, source: str | Path | bytes, alt: str = "") -> Image:
        """A path, address or `data:` URL as it is; bytes as a `data:` URL."""
        if isinstance(source, bytes):
            return cls(f"data:{media_type(source)};base64,{base64.b64encode(source).decode()}", alt)
        return cls(str(source), alt)

    @property
    def kind(self) -> Literal["path", "data", "address"]:
        """What `source` is. A word before a colon is a scheme, but for a drive's letter."""
        if self.source[:5].lower() == "data:":
            return "data"
        scheme, colon, rest = self.source.partition("://")
        return "address" if colon and rest and len(scheme) > 1 and scheme.isalnum() else "path"

    @property
    def shown(self) -> str:
        """What error messages call it: never a picture's bytes."""
        if self.kind != "data":
            return self.source
        return f"data: URL ({self.source[5:].partition(',')[0][:60]}, {len(self.source):,} characters)"

    @property
    def mark(self) -> str:
        """Sixteen hex digits that tell sources apart in texts and digests."""
        return hashlib.sha256(self.source.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def anchored(self, folder: Path) -> Image:
        """A relative path taken from `folder`; others as they are."""
        if self.kind != "path" or Path(self.source).is_absolute():
            return self
        return replace(self, source=str(folder / self.source))

    def to_part(self) -> dict[str, Any]:
        """The content part; `from_part` of it is this picture."""
        part: dict[str, Any] = {"type": "image_url", "image_url": {"url": self.source}}
        return part | ({"alt": self.alt} if self.alt else {})


def from_part(part: Mapping[str, Any], where: str) -> Image:
    """The picture of a content part whose type is one of PARTS; DataError naming the place and what is wrong."""
    held = part.get("image_url" if part["type"] != "image" else "image", part.get("url", part.get("path")))
    url = held.get("url") if isinstance(held, Mapping) else held
    alt = part.get("alt", "")
    if not isinstance(url, str) or not url.strip():
        raise DataError(
            f"{where}: an image part without a picture: {url!r:.60}",
            remedy='write {"type": "image_url", "image_url": {"url": PATH_OR_DATA_URL}}',
        )
    if not isinstance(alt, str):
        raise DataError(
            f"{where}: alt must be a string, not {alt!r:.60}", remedy="say in words what it shows"
        )
    if urlsplit(url[:4096]).scheme.lower() == "file":
        url = unquote(urlsplit(url).path)
    return Image(url, alt)


def media_type(data: bytes) -> str:
    """By its first bytes."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    known = (kind for magic, kind in _MAGIC.items() if data.startswith(magic))
    return next(known, "application/octet-stream")
