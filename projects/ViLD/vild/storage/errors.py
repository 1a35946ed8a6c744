"""What can be wrong with files. Each message says what was expected, what came, what to do."""

from __future__ import annotations


class StoreError(ValueError):
    """Something is wrong with a store."""


class UnfinishedStoreError(StoreError):
    """No manifest: the store was never finished, or there is none."""


class StoreMismatchError(StoreError):
    """The store was made from something else than what is asked for."""


class CorruptStoreError(StoreError):
    """Bytes of the store are not those that were written."""


class StoreBusyError(StoreError):
    """Another process writes the same part of the store."""


class MissingImageError(StoreError, LookupError):
    """The store has no record of an image."""


class UnsafeFileError(ValueError):
    """Reading a file would run code in it."""
