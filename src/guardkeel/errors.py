"""The exception tree. Every message says what is wrong, which value, and what to do about it.

GuardkeelError
├── InputError            the user's input cannot be used                        exit 2
│   ├── DataError         a data file, row, field, label or split
│   ├── ConfigError       a configuration or policy file, an option
│   ├── ResourceError     a hub: / pypi: / path: reference
│   │   ├── PinError      bytes do not match their sha256 pin
│   │   └── OfflineError  the bytes are not in the cache and the network is off
│   └── ModelError        a checkpoint, adapter or tokenizer
│       └── UnsafeFileError  a format that can run code or escape its folder (pickle, zip-slip)
├── RunError              a run could not go on (out of memory, disk full)       exit 2
└── EvidenceError         evidence that a decision needs is missing or spoiled   exit 3
"""

from __future__ import annotations


class GuardkeelError(Exception):
    """Root of every error that guardkeel raises on purpose."""

    exit_code = 2

    def __init__(self, problem: str, *, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem}\n  remedy: {remedy}" if remedy else problem)


class InputError(GuardkeelError):
    """What the user gave cannot be used."""


class DataError(InputError):
    """A data file, row, field, label or split cannot be used."""


class ConfigError(InputError):
    """A configuration, policy or option cannot be used."""


class ResourceError(InputError):
    """A reference cannot be resolved."""


class PinError(ResourceError):
    """Bytes do not match the digest that was pinned for them."""


class OfflineError(ResourceError):
    """The bytes are not in the cache and the network may not be used."""


class ModelError(InputError):
    """A checkpoint, adapter or tokenizer cannot be used."""


class UnsafeFileError(ModelError):
    """A file whose format can run code, or an archive member that leaves its folder."""


class RunError(GuardkeelError):
    """A run could not go on."""


class EvidenceError(GuardkeelError):
    """Evidence that a decision needs is missing or spoiled."""

    exit_code = 3
