"""A request of two pictures, and the files in which such requests come.

Files are those of MIS as it was released (arXiv:2501.18533): `mis_{easy,hard,real}.json`, a list of objects with
`question`, `category`, `image_path1` and `image_path2`, paths from the file's own folder; for training one list of
conversations with `images`, whose texts hold `<image>` where a picture stands. Built items (see building.py) are
written in the same form with more fields, and read back whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardkeel.conversation import Conversation, Turn
from guardkeel.errors import DataError
from guardkeel.images import Image
from guardkeel.pictures import open_picture
from guardkeel.records import atomic_writer, write_json
from guardkeel.tuning.targets import Instruction

TIERS = ("easy", "hard", "real")
_KNOWN = {"id", "question", "category", "sub_category", "image_path1", "image_path2", "img_source"}
_OWN = {"hazardous", "twin", "objects", "hazard", "answer"}


@dataclass(frozen=True)
class MisItem:
    """A question with two pictures.

    What is not known of an item is empty: `objects` (what each picture shows), `hazard` (what comes of the two
    together), `answer` (the right one) and `twin` (the id of the item that differs in one picture and is harmless, or
    the other way round). Everything released is `hazardous`.
    """

    id: str
    question: str
    images: tuple[Image, Image]
    category: str = ""
    hazardous: bool = True
    twin: str = ""
    objects: tuple[str, ...] = ()
    hazard: str = ""
    answer: str = ""

    def conversation(self, reply: str | None = None) -> Conversation:
        """The question with its pictures, and a reply where one is given."""
        return Conversation.of(self.question, reply, self.images)


def read_mis(path: str | Path, *, check: bool = False) -> list[MisItem]:
    """Items of a file, or of all files of the test layout in a folder.

    Args:
        path: `mis_hard.json`, or the folder that holds such files.
        check: also open every picture.

    Raises:
        DataError: naming file, item and field; or the picture that is missing or cannot be opened.
    """
    path = Path(path)
    if path.is_dir():
        files = [path / f"mis_{tier}.json" for tier in TIERS if (path / f"mis_{tier}.json").is_file()]
        if not files:
            raise DataError(
                f"{path}: no mis_easy.json, mis_hard.json or mis_real.json",
                remedy="give the folder of the test layout, or a file",
            )
        return [item for file in files for item in read_mis(file, check=check)]
    rows = _list(path)
    items = [_item(row, f"{path}: item {i}", i, path) for i, row in enumerate(rows)]
    seen: dict[str, int] = {}
    for i, item in enumerate(items):
        if item.id in seen:
            raise DataError(
                f"{path}: item {i}: the id {item.id!r} is item {seen[item.id]}'s", remedy="make ids unique"
            )
        seen[item.id] = i
    for item in items if check else ():
        for image in item.images:
            try:
                open_picture(image, strict=False)
            except DataError as e:
                raise DataError(f"{path}: item {item.id!r}: {e.problem}", remedy=e.remedy) from e
    return items


def write_mis(folder: str | Path, items: Iterable[MisItem], tier: str = "hard") -> Path:
    """Write items in the test layout, pictures as PNG files beside; the list is written last. Returns its path."""
    folder = Path(folder)
    rows = []
    for number, item in enumerate(items, 1):
        paths = []
        for place, image in enumerate(item.images, 1):
            name = f"{tier}_image/{number}/object{place}.png"
            with atomic_writer(folder / name) as out:
                open_picture(image).pixels.save(out, "PNG")
            paths.append(name)
        row: dict[str, Any] = {
            "id": item.id,
            "question": item.question,
            "category": item.category,
            "image_path1": paths[0],
            "image_path2": paths[1],
            "hazardous": item.hazardous,
            "twin": item.twin,
            "objects": list(item.objects),
            "hazard": item.hazard,
            "answer": item.answer,
        }
        rows.append({k: v for k, v in row.items() if v not in ("", [])})
    write_json(folder / f"mis_{tier}.json", rows)
    return folder / f"mis_{tier}.json"


def read_training(path: str | Path) -> list[Instruction]:
    """Training conversations with pictures: rows of `conversations` (from human and gpt) or `messages`, and `images`.

    A row whose last turn is empty is left out, as in the released file, of whose 4,000 rows some have no answer.

    Raises:
        DataError: naming file, row and field.
    """
    path = Path(path)
    found = []
    for i, row in enumerate(_list(path)):
        where = f"{path}: row {i}"
        said = row.get("conversations") or row.get("messages")
        if not isinstance(said, list) or not said:
            raise DataError(f"{where}: no conversations", remedy="give rows with conversations and images")
        images = [_image(p, where, path) for p in row.get("images") or ()]
        turns, shown = [], 0
        for message in said:
            turn, used = _turn(message, images[shown:], where)
            turns.append(turn)
            shown += used
        if shown != len(images):
            raise DataError(
                f"{where}: {len(images)} images, and <image> stands {shown} times in its texts",
                remedy="make the two agree",
            )
        if turns[-1].role == "assistant" and turns[-1].content.strip():
            found.append(Instruction(str(row.get("id", i)), Conversation(tuple(turns))))
    if not found:
        raise DataError(
            f"{path}: no row ends in an answer", remedy="give rows that end in what is to be learned"
        )
    return found


def _turn(message: Any, images: list[Image], where: str) -> tuple[Turn, int]:
    roles = {
        "human": "user",
        "user": "user",
        "gpt": "assistant",
        "assistant": "assistant",
        "system": "system",
    }
    if not isinstance(message, Mapping):
        raise DataError(
            f"{where}: a turn must be an object, not {message!r:.60}", remedy="see ShareGPT's format"
        )
    role, text = (
        roles.get(str(message.get("from", message.get("role")))),
        message.get("value", message.get("content")),
    )
    if role is None or not isinstance(text, str):
        raise DataError(
            f"{where}: a turn needs from (human, gpt) and value, got {sorted(message)!r:.80}",
            remedy="see ShareGPT's format",
        )
    count = text.count("<image>")
    if count > len(images):
        raise DataError(f"{where}: more <image> in its texts than images", remedy="make the two agree")
    turn: Any = Turn(role, text.replace("<image>", "").strip(), images=tuple(images[:count]))  # type: ignore[arg-type]
    return turn, count


def _item(row: Mapping[str, Any], where: str, number: int, path: Path) -> MisItem:
    unknown = set(row) - _KNOWN - _OWN
    if unknown:
        raise DataError(
            f"{where}: unknown field {sorted(unknown)[0]!r}",
            remedy=f"fields are {', '.join(sorted(_KNOWN | _OWN))}",
        )
    question = row.get("question")
    if not isinstance(question, str) or not question.strip():
        raise DataError(
            f"{where}: field 'question' must be text, not {question!r:.60}", remedy="ask something"
        )
    images = tuple(_image(row.get(f"image_path{n}"), f"{where}: image_path{n}", path) for n in (1, 2))
    named = row.get("id")
    return MisItem(
        id=str(named) if named is not None else f"{path.stem}/{number + 1}",
        question=question,
        images=images,  # type: ignore[arg-type]
        category=str(row.get("category", "")),
        hazardous=bool(row.get("hazardous", True)),
        twin=str(row.get("twin", "")),
        objects=tuple(map(str, row.get("objects", ()))),
        hazard=str(row.get("hazard", "")),
        answer=str(row.get("answer", "")),
    )


def _image(source: Any, where: str, path: Path) -> Image:
    if not isinstance(source, str) or not source.strip():
        raise DataError(f"{where}: no picture: {source!r:.60}", remedy="give its path from the file's folder")
    image = Image(source)
    if image.kind == "path" and not Path(source).is_absolute() and ".." in Path(source).parts:
        raise DataError(
            f"{where}: {source!r:.80} leads out of the folder", remedy="keep pictures beside the file"
        )
    return image.anchored(path.parent)


def _list(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_bytes())
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror})", remedy="check the path") from e
    except (ValueError, RecursionError) as e:
        raise DataError(f"{path}: not JSON ({e})", remedy="give the file as it was released") from e
    if isinstance(rows, dict):
        rows = list(rows.values())
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(
            f"{path}: must be a non-empty list of objects", remedy="give the file as it was released"
        )
    return rows
