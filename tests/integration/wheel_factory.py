"""Small wheels, made by hand, good and bad."""

import base64
import hashlib
import zipfile
from pathlib import Path


def record_line(name: str, data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(data)}"


def make_wheel(
    folder: Path,
    files: dict[str, bytes],
    *,
    package: str = "keeltest",
    version: str = "1.0",
    record: dict[str, bytes] | None = None,
    extra: dict[str, bytes] | None = None,
    links: dict[str, str] | None = None,
    with_record: bool = True,
) -> Path:
    """`record` overrides what RECORD says of a file's bytes; `extra` files are not in RECORD."""
    info = f"{package}-{version}.dist-info"
    path = folder / f"{package}-{version}-py3-none-any.whl"
    folder.mkdir(parents=True, exist_ok=True)
    meta = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    everything = {**files, **meta}
    lines = [record_line(n, (record or {}).get(n, d)) for n, d in everything.items()] + [f"{info}/RECORD,,"]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in {**everything, **(extra or {})}.items():
            z.writestr(name, data)
        for name, target in (links or {}).items():
            link = zipfile.ZipInfo(name)
            link.external_attr = 0o120777 << 16
            z.writestr(link, target)
        if with_record:
            z.writestr(f"{info}/RECORD", "\n".join(lines) + "\n")
    return path
