"""Errors about stores and files. Messages say what was expected, what was found and what to do."""

from __future__ import annotations


class StoreError(ValueError):
    """Base class of errors about a store."""


class UnfinishedStoreError(StoreError):
    """There is no manifest: the store is unfinished or missing."""


class StoreMismatchError(StoreError):
    """The store was made with other settings or inputs than those requested."""


class CorruptStoreError(StoreError):
    """The store's content differs from what was written."""


class StoreBusyError(StoreError):
    """Another process is writing the same shard."""


class MissingImageError(StoreError, LookupError):
    """The store has no record of an image."""


class UnsafeFileError(ValueError):
    """Reading a file would run code from it."""
