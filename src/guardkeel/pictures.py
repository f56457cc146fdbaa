"""Opens pictures that may be hostile: what cannot be read is an error that names it, and memory is bounded.

Before a pixel is decoded the bytes are counted, the format is told from them (not from the name), and width × height
is read from the header. JPEGs are decoded at a fraction of their size where they are larger than wanted, so the
largest array is 4 bytes × MAX_PIXELS (PNG, GIF, WebP and BMP are decoded whole). Then the picture is made no longer
than `side`, turned as its EXIF says, put on white where it is transparent, and is RGB. Addresses are not fetched
unless that is allowed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from guardkeel.errors import ConfigError, DataError
from guardkeel.images import Image

MAX_BYTES = 64 * 1024**2
MAX_PIXELS = 64_000_000
SIDE = 2048
"""Longest side, in pixels, that a picture is kept at."""

FORMATS = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "GIF": "image/gif",
    "WEBP": "image/webp",
    "BMP": "image/bmp",
}
_SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".gif": "GIF", ".webp": "WEBP", ".bmp": "BMP"}
_ORIENTATION = 0x0112
_AGAIN = "save it again with an image editor, or leave it out"
_MPO = "MPO"  # a JPEG with more pictures behind the first, as telephones write


@dataclass(frozen=True)
class Picture:
    """An opened picture.

    `pixels` is a PIL image, RGB; `digest` the sha256 of its size and pixels, so that one picture in two files, or in
    a file and a `data:` URL, is one; `size` its width and height as stored; `notes` what was done to it.
    """

    pixels: Any
    digest: str
    size: tuple[int, int]
    notes: tuple[str, ...] = ()


def pillow() -> Any:
    """The module PIL.Image.

    Raises:
        ConfigError: Pillow is not installed.
    """
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as e:
        raise ConfigError(
            "pictures need Pillow, which is not installed", remedy="pip install 'guardkeel[vision]'"
        ) from e
    return PIL.Image


def open_picture(
    image: Image, *, side: int = SIDE, allow_addresses: bool = False, strict: bool = True
) -> Picture:
    """Open a picture.

    Args:
        image: where it comes from.
        side: it is made smaller where its longest side is longer than this, keeping its shape.
        allow_addresses: fetch http and https addresses; off, because whoever wrote a conversation would choose what
            this machine asks for.
        strict: refuse a picture whose name, or media type, says another format than its bytes; else note it.

    Raises:
        DataError: it is not there, not a picture, cut short, too large, or of another format than it says.
        ConfigError: Pillow is not installed, or the address is not allowed.
    """
    pil = pillow()
    shown = image.shown
    stream, claimed = _stream(image, allow_addresses)
    with stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes are judged here
        try:
            opened = pil.open(stream, formats=(*FORMATS, _MPO))
        except Exception as e:  # whatever a decoder meets in hostile bytes
            raise _unreadable(shown, stream, e) from e
        with opened:
            return _decoded(opened, shown, claimed, side, strict)


def _decoded(opened: Any, shown: str, claimed: str, side: int, strict: bool) -> Picture:
    found = "JPEG" if opened.format == _MPO else str(opened.format)
    notes = []
    if claimed and claimed != found:
        said = f"{shown}: says that it is {claimed}, but its bytes are {found}"
        if strict:
            raise DataError(said, remedy="give it the name, or the media type, of what it is")
        notes.append(f"it is {found}, not {claimed} as it says")
    width, height = size = tuple(opened.size)
    if width * height > MAX_PIXELS:
        raise _too_many(shown, f"{width:,} × {height:,} pixels")
    try:
        if getattr(opened, "is_animated", False) and found != "JPEG":
            notes.append("animated: its first frame is taken")
        turned = opened.getexif().get(_ORIENTATION, 1)
        if max(size) > side:
            opened.draft("RGB", (side, side))
            notes.append(f"made smaller from {width} × {height}")
        pixels = _rgb(opened, side)
        if turned in range(2, 9):
            pixels = _turned(pixels, turned)
            notes.append("turned as its EXIF says")
    except MemoryError:
        raise
    except Exception as e:
        raise DataError(
            f"{shown}: cannot be decoded ({_said(e)})", remedy=f"it may be cut short: {_AGAIN}"
        ) from e
    digest = hashlib.sha256(f"{pixels.width}x{pixels.height}:".encode())
    digest.update(pixels.tobytes())
    return Picture(pixels, digest.hexdigest(), size, tuple(notes))


def _rgb(opened: Any, side: int) -> Any:
    """RGB, no longer than `side`, what is transparent on white. Smaller first, so that copies are small."""
    opened.load()
    picture = opened
    if picture.mode == "P" or picture.mode not in (
        "RGB",
        "RGBA",
        "L",
        "LA",
        "CMYK",
        "1",
        "I;16",
        "I",
        "YCbCr",
    ):
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    if picture.mode.startswith("I"):
        picture = picture.point(lambda v: v / 256).convert("L")  # 16 bits a channel
    if picture.mode == "1":
        picture = picture.convert("L")
    if max(picture.size) > side:
        picture.thumbnail((side, side))
    if picture.mode in ("RGBA", "LA") or "transparency" in picture.info:
        above = picture.convert("RGBA")
        picture = pillow().new("RGBA", above.size, "white")
        picture.alpha_composite(above)
    made = picture.convert("RGB")
    return made if made is not opened else made.copy()


def _turned(pixels: Any, orientation: int) -> Any:
    how = pillow().Transpose
    steps = {
        2: how.FLIP_LEFT_RIGHT, 3: how.ROTATE_180, 4: how.FLIP_TOP_BOTTOM, 5: how.TRANSPOSE,
        6: how.ROTATE_270, 7: how.TRANSVERSE, 8: how.ROTATE_90,
    }  # fmt: skip
    return pixels.transpose(steps[orientation])


def _stream(image: Image, allow_addresses: bool) -> tuple[IO[bytes], str]:
    """The bytes, not read yet where they are a file's, and the format that name or media type claims."""
    if image.kind == "data":
        return _data(image)
    if image.kind == "address":
        return io.BytesIO(_fetched(image.source, allow_addresses)), ""
    path = Path(image.source)
    try:
        if not path.is_file():  # a pipe would be waited for
            raise DataError(
                f"{path}: no such picture" if not path.exists() else f"{path}: not a file",
                remedy="check the path",
            )
        size = path.stat().st_size
        if not 0 < size <= MAX_BYTES:
            raise _wrong_size(str(path), size)
        return path.open("rb"), _SUFFIXES.get(path.suffix.lower(), "")
    except (OSError, ValueError) as e:
        raise DataError(
            f"{image.shown:.200}: cannot be read ({e})", remedy="check the path and permissions"
        ) from e


def _data(image: Image) -> tuple[IO[bytes], str]:
    head, comma, body = image.source[5:].partition(",")
    media, *options = head.lower().split(";")
    if not comma or "base64" not in options:
        raise DataError(f"{image.shown}: not base64", remedy="write data:image/png;base64,…")
    if len(body) > MAX_BYTES * 4 // 3 + 4:
        raise _wrong_size(image.shown, len(body) * 3 // 4)
    try:
        data = base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as e:
        raise DataError(f"{image.shown}: not base64 ({e})", remedy="encode the file's bytes again") from e
    if not data:
        raise _wrong_size(image.shown, 0)
    claimed = next((f for f, kind in FORMATS.items() if kind == media.replace("image/jpg", "image/jpeg")), "")
    return io.BytesIO(data), claimed


def _fetched(address: str, allowed: bool) -> bytes:
    if not allowed or not address.lower().startswith(("http://", "https://")):
        raise ConfigError(
            f"{address:.200}: a picture on the network, which is not fetched",
            remedy="download it and give the file, or allow addresses where you trust who wrote them"
            if address.lower().startswith("http")
            else "give a file, a data: URL, or an http(s) address",
        )
    import httpx

    data = bytearray()
    try:
        with httpx.stream("GET", address, timeout=20, follow_redirects=True) as answer:
            answer.raise_for_status()
            for chunk in answer.iter_bytes():
                data += chunk
                if len(data) > MAX_BYTES:
                    raise _wrong_size(address, len(data))
    except (httpx.HTTPError, httpx.InvalidURL) as e:
        raise DataError(f"{address:.200}: cannot be fetched ({_said(e)})", remedy="check the address") from e
    if not data:
        raise _wrong_size(address, 0)
    return bytes(data)


def _wrong_size(shown: str, size: int) -> DataError:
    if not size:
        return DataError(f"{shown}: empty", remedy="give the picture itself")
    return DataError(
        f"{shown}: {size:,} bytes or more, at most {MAX_BYTES:,} are read", remedy="make it smaller"
    )


def _too_many(shown: str, said: str) -> DataError:
    return DataError(
        f"{shown}: {said}, at most {MAX_PIXELS:,} are opened",
        remedy="make it smaller; a short file that claims such a size may be a decompression bomb",
    )


def _unreadable(shown: str, stream: IO[bytes], error: Exception) -> DataError:
    if isinstance(
        error, pillow().DecompressionBombError
    ):  # Pillow's own limit, met while it reads the header
        return _too_many(shown, "claims far too many pixels")
    stream.seek(0)
    start = stream.read(256).lstrip().lower()
    formats = ", ".join(FORMATS)
    if start.startswith((b"<svg", b"<?xml", b"<!doctype", b"<html")):
        return DataError(f"{shown}: markup, not a picture of pixels", remedy=f"formats are {formats}")
    return DataError(
        f"{shown}: not a picture that can be opened ({_said(error)})",
        remedy=f"formats are {formats}; {_AGAIN}",
    )


def _said(error: Exception) -> str:
    """What a library says, in one short line; of a stream it names the object, which tells nobody anything."""
    text = " ".join(str(error).split()).partition("<_io")[0].strip(" '")
    return f"{type(error).__name__}: {text[:120]}" if text else type(error).__name__
