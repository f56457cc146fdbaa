"""What a fuse's configuration names: the method with its settings, and the models and files that it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from guardkeel.errors import ConfigError, DataError
from guardkeel.fusion.config import FuseConfig
from guardkeel.fusion.methods.base import Method
from guardkeel.fusion.methods.registry import make
from guardkeel.fusion.sources import Source, Sources, open_source
from guardkeel.fusion.tensorfile import TensorFiles
from guardkeel.guards.embedded import NAME
from guardkeel.models.base import base_model_path
from guardkeel.records import read_record
from guardkeel.resources import digest, resolve

Watch = Callable[[str, int, int | None], None]

_MADE = {"tune": "tuned", "fuse": "fused", "fuse-sweep": "fused"}
"""What a verb's run directory keeps its guard in."""


def method_of(config: FuseConfig) -> Method:
    """The method of a configuration.

    Raises:
        ConfigError: there is none of that name, an option cannot be used, or an extra is not one of the method's.
    """
    for other, options in config.options.items():
        make(other, options)
    method = make(config.method, config.options.get(config.method))
    odd = [name for name in config.extras if name not in method.extras]
    if odd:
        takes = ", ".join(method.extras) or "no extras"
        raise ConfigError(
            f"{method.name} does not read the extra {odd[0]!r}",
            remedy=f"leave it out; {method.name} takes {takes}",
        )
    return method


def located(reference: str) -> str:
    """A reference; of a run directory of tune or fuse, the folder of the guard that it made.

    Raises:
        DataError: the run is not finished, or makes no guard.
    """
    folder = Path(reference.removeprefix("path:")).expanduser()
    if (
        (folder / "plan.json").is_file()
        and (folder / "config.toml").is_file()
        and not (folder / "run.json").is_file()
    ):
        raise DataError(
            f"{folder}: an unfinished run", remedy="repeat its command first: it goes on where it stopped"
        )
    if not (folder / "run.json").is_file() or (folder / "config.json").is_file():
        return reference
    verb = read_record(folder).verb
    if verb not in _MADE:
        raise DataError(
            f"{folder}: a run of {verb!r}, which makes no guard", remedy="give a run of tune, or a guard"
        )
    return str(folder / _MADE[verb])


@contextmanager
def opened(config: FuseConfig, method: Method, watch: Watch) -> Iterator[Sources]:
    """All that is read, headers checked; files are closed on leaving.

    Raises:
        ModelError, ResourceError, DataError: naming what cannot be used.
    """

    def source(reference: str) -> Source:
        return open_source(located(reference), progress=watch, offline=config.offline)

    unaligned = config.unaligned if method.needs_unaligned else None
    if method.needs_unaligned and unaligned is None and config.reference in (NAME, "keel"):
        unaligned = str(base_model_path(watch, config.offline))
    sources = Sources(
        source(config.reference),
        tuple(source(c) for c in config.candidates),
        source(unaligned) if unaligned else None,
        {
            name: TensorFiles.of(resolve(file, progress=watch, offline=config.offline))
            for name, file in config.extras.items()
        },
    )
    try:
        yield sources
    finally:
        sources.close()


def digests(sources: Sources, watch: Watch) -> dict[str, str]:
    """sha256 of every model and file, by its part in the fuse; remembered by size and time."""
    named: dict[str, Path] = {"reference": sources.reference.folder}
    named |= {f"candidate {i}": c.folder for i, c in enumerate(sources.candidates, 1)}
    named |= {f"base of candidate {i}": c.base for i, c in enumerate(sources.candidates, 1) if c.base}
    if sources.reference.base:
        named["base of reference"] = sources.reference.base
    if sources.unaligned:
        named["unaligned"] = sources.unaligned.folder
    named |= {f"extra {name}": file for name, files in sources.extras.items() for file in files.files}
    found = {}
    with ThreadPoolExecutor(2) as pool:
        for done, (name, value) in enumerate(zip(named, pool.map(digest, named.values()), strict=True), 1):
            watch("digests", done, len(named))
            found[name] = value
    return found


def check_patterns(config: FuseConfig, names: list[str]) -> None:
    """ConfigError where a pattern of `only` or `skip` fits no tensor: it would be a slip of the pen."""
    for key, patterns in (("only", config.only), ("skip", config.skip)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ConfigError(
                    f"{key}: no tensor is called {pattern!r}",
                    remedy=f"names are like {names[0]!r}; * stands for any",
                )
