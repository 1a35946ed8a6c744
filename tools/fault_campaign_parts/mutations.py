"""Ways in which a disk, a network or a hand damages the bytes of a file."""

from __future__ import annotations

from collections.abc import Callable
from random import Random


def flip_bit(data: bytearray, random: Random) -> str:
    """One bit is another."""
    place, bit = random.randrange(len(data)), random.randrange(8)
    data[place] ^= 1 << bit
    return f"bit {bit} at {place} flipped"


def flip_bits(data: bytearray, random: Random) -> str:
    """Some bits in one place are others."""
    place = random.randrange(len(data))
    for offset in range(place, min(place + random.randint(2, 16), len(data))):
        data[offset] ^= random.randrange(256)
    return f"bits from {place} on flipped"


def truncate(data: bytearray, random: Random) -> str:
    """The end is missing, or all of it."""
    length = 0 if random.random() < 0.1 else random.randrange(len(data))
    del data[length:]
    return f"truncated to {length}"


def zero_block(data: bytearray, random: Random) -> str:
    """A block is zero, as after a power cut."""
    start, size = _block(data, random)
    data[start : start + size] = bytes(size)
    return f"{size} zero bytes at {start}"


def swap_blocks(data: bytearray, random: Random) -> str:
    """Two blocks have changed places."""
    first, size = _block(data, random)
    second = random.randrange(max(1, len(data) - size))
    size = min(size, abs(second - first))
    one, other = data[first : first + size], data[second : second + size]
    data[first : first + size], data[second : second + size] = other, one
    return f"{size} bytes at {first} and {second} swapped"


def append(data: bytearray, random: Random) -> str:
    """Bytes were appended."""
    size = random.choice((1, 16, 4096))
    data += random.randbytes(size)
    return f"{size} bytes appended"


def remove_block(data: bytearray, random: Random) -> str:
    """A block is missing and the rest has moved up."""
    start, size = _block(data, random)
    del data[start : start + size]
    return f"{size} bytes at {start} removed"


def _block(data: bytearray, random: Random) -> tuple[int, int]:
    size = min(random.choice((1, 8, 64, 512, 4096)), max(1, len(data) // 2))
    return random.randrange(max(1, len(data) - size + 1)), size


MUTATIONS: tuple[Callable[[bytearray, Random], str], ...] = (
    *(flip_bit, flip_bit, flip_bits, truncate, zero_block, swap_blocks, append, remove_block),
)


def damage(original: bytes, random: Random) -> tuple[bytes, str]:
    """The bytes of a file, damaged, and how; never equal to the original."""
    while True:
        data = bytearray(original)
        how = random.choice(MUTATIONS)(data, random)
        if data != original:
            return bytes(data), how
