"""Pictures in conversations, and opening them when they are hostile."""

from __future__ import annotations

import base64
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from guardkeel.conversation import Conversation, Example, Turn, read_jsonl, write_jsonl
from guardkeel.errors import ConfigError, DataError
from guardkeel.images import Image

PIL = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

from guardkeel import pictures  # noqa: E402
from guardkeel.pictures import open_picture  # noqa: E402


def encoded(picture, kind="PNG", **options):
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def gradient(width=40, height=30):
    return PIL.merge("RGB", [PIL.linear_gradient("L").resize((width, height)) for _ in range(3)])


def png_of(width, height, body=b""):
    """A PNG whose header claims a size, with whatever body."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )


def test_one_picture_in_a_file_and_in_a_url_has_one_digest(tmp_path):
    data = encoded(gradient())
    (tmp_path / "a.png").write_bytes(data)
    from_file, from_bytes = open_picture(Image.of(tmp_path / "a.png")), open_picture(Image.of(data))
    other = open_picture(Image.of(encoded(gradient(41))))
    assert from_file.digest == from_bytes.digest != other.digest
    assert from_file.size == (40, 30)
    assert from_file.pixels.mode == "RGB"
    assert not from_file.notes


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "I;16", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    picture = gradient().convert("L").convert(mode) if mode != "I;16" else PIL.new("I;16", (40, 30), 0xFFFF)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    opened = open_picture(Image.of(encoded(picture, kind)))
    assert opened.pixels.mode == "RGB"
    if mode == "I;16":
        assert opened.pixels.getpixel((0, 0)) == (255, 255, 255)


def test_what_is_transparent_is_white():
    opened = open_picture(Image.of(encoded(PIL.new("RGBA", (4, 4), (0, 0, 0, 0)))))
    assert opened.pixels.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("turn", range(2, 9))
def test_exif_turns_a_picture_as_pillow_would(turn):
    from PIL import ImageOps

    picture = PIL.new("RGB", (6, 4))
    picture.putdata([(i * 10, 0, 255 - i * 10) for i in range(24)])
    exif = PIL.Exif()
    exif[0x0112] = turn
    data = encoded(picture, exif=exif)
    opened = open_picture(Image.of(data))
    assert "turned as its EXIF says" in opened.notes
    assert opened.pixels.tobytes() == ImageOps.exif_transpose(PIL.open(io.BytesIO(data))).tobytes()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken_and_said(kind):
    frames = [PIL.new("RGB", (8, 8), c) for c in ("white", "black", "red")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **_lossless(kind))
    opened = open_picture(Image.of(data))
    assert opened.notes == ("animated: its first frame is taken",)
    assert opened.pixels.getpixel((3, 3)) == (255, 255, 255)


def _lossless(kind):
    return {"lossless": True} if kind == "WEBP" else {}


def test_a_long_picture_is_made_smaller_and_keeps_its_shape():
    opened = open_picture(Image.of(encoded(gradient(400, 100))), side=100)
    assert opened.pixels.size == (100, 25)
    assert opened.notes == ("made smaller from 400 × 100",)


HOSTILE = {
    "bomb": (png_of(60_000, 60_000), "far too many pixels, at most 64,000,000"),
    "smaller bomb": (png_of(10_000, 9_000), "10,000 × 9,000 pixels, at most 64,000,000"),
    "cut short": (encoded(gradient())[:-40], "cannot be decoded"),
    "cut short jpeg": (encoded(gradient(), "JPEG")[:200], "cannot be decoded|can be opened"),
    "header only": (b"\x89PNG\r\n\x1a\n", "not a picture that can be opened"),
    "broken body": (png_of(10, 10, b"\x00" * 5), "cannot be decoded"),
    "text": (b"hello, I am a picture", "not a picture that can be opened"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "markup, not a picture"),
    "html": (b"<!DOCTYPE html><p>", "markup, not a picture"),
    "empty": (b"", "empty"),
    "tiff": (b"II*\x00" + b"\x00" * 60, "not a picture that can be opened"),
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("way", ["file", "bytes"])
def test_hostile_bytes_are_errors_that_name_the_picture(what, way, tmp_path):
    data, said = HOSTILE[what]
    file = tmp_path / "hostile.bin"
    file.write_bytes(data)
    with pytest.raises(DataError, match=said) as error:
        open_picture(Image.of(file if way == "file" else data))
    assert ("hostile.bin" if way == "file" else "data: URL (") in error.value.problem
    assert error.value.remedy
    assert len(str(error.value)) < 600


def test_a_name_that_lies_is_refused_or_noted(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(gradient(), "JPEG"))
    with pytest.raises(DataError, match="says that it is PNG, but its bytes are JPEG"):
        open_picture(Image.of(tmp_path / "a.png"))
    opened = open_picture(Image.of(tmp_path / "a.png"), strict=False)
    assert opened.notes == ("it is JPEG, not PNG as it says",)
    lying = "data:image/gif;base64," + base64.b64encode(encoded(gradient())).decode()
    with pytest.raises(DataError, match="says that it is GIF, but its bytes are PNG"):
        open_picture(Image(lying))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere.png", "no such picture"),
        (".", "not a file"),
        ("data:image/png;base64,!!", "not base64"),
        ("data:image/png,abc", "not base64"),
        ("a\0b.png", "no such picture|cannot be read"),
    ],
)
def test_sources_that_lead_nowhere(source, said):
    with pytest.raises(DataError, match=said):
        open_picture(Image(source))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="not a file"):
        open_picture(Image.of(tmp_path / "pipe.png"))


def test_a_file_that_is_too_long_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_BYTES", 1000)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 2000)
    with pytest.raises(DataError, match="bytes or more, at most 1,000"):
        open_picture(Image.of(tmp_path / "a.png"))
    with pytest.raises(DataError, match="at most 1,000"):
        open_picture(Image.of(b"\0" * 2000))


@pytest.mark.parametrize(
    "address", ["http://example.org/a.png", "https://example.org/a.png", "ftp://example.org/a"]
)
def test_addresses_are_not_fetched(address):
    with pytest.raises(ConfigError, match="a picture on the network, which is not fetched"):
        open_picture(Image(address))


def test_addresses_are_fetched_where_that_is_allowed(monkeypatch):
    data = encoded(gradient())

    class Serve(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/a.png" else 404)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Serve)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        at = f"http://127.0.0.1:{server.server_port}"
        assert (
            open_picture(Image(f"{at}/a.png"), allow_addresses=True).digest
            == open_picture(Image.of(data)).digest
        )
        with pytest.raises(DataError, match="cannot be fetched"):
            open_picture(Image(f"{at}/other"), allow_addresses=True)
        monkeypatch.setattr(pictures, "MAX_BYTES", 50)
        with pytest.raises(DataError, match="at most 50"):
            open_picture(Image(f"{at}/a.png"), allow_addresses=True)
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(ConfigError, match="http"):
        open_picture(Image("ftp://example.org/a"), allow_addresses=True)


MEASURE = """
import resource, sys
from pathlib import Path
import PIL.Image, PIL.ImageFile, PIL.JpegImagePlugin, PIL.PngImagePlugin
from guardkeel.images import Image
from guardkeel.pictures import open_picture
open_picture(Image.of(Path(sys.argv[2])))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
opened = open_picture(Image.of(Path(sys.argv[1])))
print(opened.pixels.size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize(("kind", "most"), [("JPEG", 90), ("PNG", 230)])
def test_fifty_megapixels_in_bounded_memory(kind, most, tmp_path):
    large, small = tmp_path / "large", tmp_path / "small"
    large.write_bytes(encoded(PIL.new("L" if kind == "PNG" else "RGB", (8660, 5774), "white"), kind))
    small.write_bytes(encoded(gradient(), kind))
    out = subprocess.run(
        [sys.executable, "-c", MEASURE, str(large), str(small)], capture_output=True, text=True, check=True
    )
    size, _, megabytes = out.stdout.strip().rpartition(" ")
    assert size == "(2048, 1365)"
    assert int(megabytes) < most


def test_a_conversation_with_images_survives_json(tmp_path):
    data = encoded(gradient())
    conversation = Conversation(
        (
            Turn("user", "What is this?", images=(Image.of(data), Image("pics/b.png", "a ship"))),
            Turn("assistant", "A gradient, and a ship."),
            Turn("user", "", images=(Image("/abs/c.png"),)),
        )
    )
    again = Conversation.from_messages(json.loads(json.dumps(conversation.to_messages())), images=True)
    assert again == conversation
    assert [i.kind for i in conversation.images] == ["data", "path", "path"]
    assert conversation.images[0].mark in conversation.text
    assert conversation.text != Conversation.of("What is this?").text

    write_jsonl(tmp_path / "a.jsonl", [Example("1", conversation, {"prompt": "safe"})])
    (read,) = read_jsonl(tmp_path / "a.jsonl")
    assert read.conversation.images[1].source == str(tmp_path / "pics" / "b.png")
    assert read.conversation.images[2].source == "/abs/c.png"


PARTS = [
    ({"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}}, "a.png"),
    ({"type": "image_url", "image_url": "a.png"}, "a.png"),
    ({"type": "input_image", "image_url": "a.png"}, "a.png"),
    ({"type": "image", "image": "a.png"}, "a.png"),
    ({"type": "image", "url": "https://x/y.png"}, "https://x/y.png"),
    ({"type": "image", "path": "a.png"}, "a.png"),
    ({"type": "image_url", "image_url": {"url": "file:///tmp/a%20b.png"}}, "/tmp/a b.png"),
]


@pytest.mark.parametrize(("part", "source"), PARTS)
def test_parts_of_every_kind_of_message(part, source):
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "hello"}]}]
    (turn,) = Conversation.from_messages(messages, images=True).turns
    assert (turn.images, turn.content) == ((Image(source),), "hello")
    with pytest.raises(DataError, match="is not text"):
        Conversation.from_messages(messages)


def test_an_image_part_without_a_picture():
    for part in ({"type": "image_url", "image_url": {}}, {"type": "image", "image": 3}):
        with pytest.raises(DataError, match="message 0: an image part without a picture"):
            Conversation.from_messages([{"role": "user", "content": [part]}], images=True)
