"""Read pickles of plain data without running code from them.

Unpickling normally runs whatever a file asks for. This reader accepts a short list of names, each
replaced by a function of this module that rebuilds plain data; any other name is an error. Even
numpy's own unpickling is replaced, because it trusts its input.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np

Names = Mapping[tuple[str, str], Callable[..., Any]]


class ForbiddenError(Exception):
    """A pickle refers to something other than plain data; the message is a sentence."""


class PlainUnpickler(pickle.Unpickler):
    """Rebuilds numbers, strings, lists, dicts and, as :class:`Array`, numpy arrays of numbers.

    Strings of Python 2 are decoded as latin1, as in Detectron2.

    Args:
        file: opened in binary mode.
        more: additional names: (module, name) and the replacement of each.
    """

    def __init__(self, file: IO[bytes], more: Names | None = None) -> None:
        super().__init__(file, encoding="latin1")
        self._names = {**stand_ins(), **(more or {})}

    def find_class(self, module: str, name: str) -> Any:
        """Return the replacement of a name; raise ForbiddenError if it is not on the list."""
        stand_in = self._names.get((module, name))
        if stand_in is None:
            raise ForbiddenError(
                f"expected a pickle of plain arrays, got one with {module}.{name}."
            )
        return stand_in


def load_plain(file: IO[bytes], more: Names | None = None) -> Any:
    """Unpickle numbers, strings, lists, dicts and numpy arrays of numbers.

    Args:
        file: opened in binary mode.
        more: see :class:`PlainUnpickler`.

    Raises:
        ForbiddenError: the pickle contains something else.
        Exception: a damaged pickle may raise almost any exception (Python's documentation).
    """
    return plain(PlainUnpickler(file, more).load())


def plain(value: Any) -> Any:
    """Replace stand-ins by their arrays, including those in lists, tuples and dicts.

    Dicts and lists are modified in place: torch keeps versions in an attribute of its dicts.
    """
    if isinstance(value, Array):
        return value.value
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = plain(item)
    elif isinstance(value, list):
        value[:] = map(plain, value)
    elif type(value) is tuple:
        return tuple(map(plain, value))
    return value


class Dtype:
    """Stand-in for numpy.dtype: called like it, then given the byte order."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise ValueError(f"expected a byte order, got {order!r}")
        self.code = order + self.code.lstrip("<>|=")

    def read(self, data: bytes | bytearray | str) -> np.ndarray:
        """Return the bytes as a flat array."""
        dtype = np.dtype(self.code)
        if dtype.kind not in "biufU":  # numbers, and strings for ids
            raise ForbiddenError(f"expected arrays of numbers, got one of {dtype}.")
        # bytes of Python 2 arrive as str
        array = np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype)
        return array.astype(dtype.newbyteorder("="))  # a copy: arrays over bytes are read-only


class Array:
    """Stand-in for numpy.ndarray; ``value`` is the array once its state is set."""

    value = np.zeros(0)

    def __setstate__(self, state: tuple[int, Any, Dtype, bool, bytes | str]) -> None:
        _, shape, dtype, fortran, data = state
        self.value = dtype.read(data).reshape(shape, order="F" if fortran else "C")


def stand_ins() -> dict[tuple[str, str], Callable[..., Any]]:
    """Return the replacement of each name; new objects, since a pickle can modify attributes."""

    def array_from_buffer(
        data: bytes | bytearray, dtype: Dtype, shape: Any, order: Any, axes: Any = None
    ) -> np.ndarray:
        if order not in ("C", "F") or axes is not None:
            raise ValueError(f"expected an array in the order C or F, got {order!r}")
        return dtype.read(data).reshape(shape, order=order)

    def scalar(dtype: Dtype, data: bytes | str) -> Any:
        return dtype.read(data)[0].item()

    def latin1(text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise ForbiddenError(f"expected bytes as latin1, got the codec {encoding!r}.")
        return text.encode("latin1")

    names: dict[tuple[str, str], Callable[..., Any]] = {
        ("numpy", "ndarray"): lambda *_: Array(),
        ("numpy", "dtype"): lambda *arguments: Dtype(*arguments),
        ("collections", "OrderedDict"): lambda items=(): dict(items),
        # bytes in old protocols, and empty bytes
        ("_codecs", "encode"): latin1,
        ("__builtin__", "bytes"): lambda: b"",
    }
    for core in ("numpy.core", "numpy._core"):  # before and since numpy 2
        names[f"{core}.multiarray", "_reconstruct"] = lambda *_: Array()
        names[f"{core}.multiarray", "scalar"] = lambda *arguments: scalar(*arguments)
        names[f"{core}.numeric", "_frombuffer"] = array_from_buffer  # protocol 5
    return names
