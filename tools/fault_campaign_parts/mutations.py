"""Ways to damage the bytes of a file."""

from __future__ import annotations

from collections.abc import Callable
from random import Random


def flip_bit(data: bytearray, random: Random) -> str:
    """Flip one bit."""
    place, bit = random.randrange(len(data)), random.randrange(8)
    data[place] ^= 1 << bit
    return f"bit {bit} at {place} flipped"


def flip_bits(data: bytearray, random: Random) -> str:
    """Flip some bits in one place."""
    place = random.randrange(len(data))
    for offset in range(place, min(place + random.randint(2, 16), len(data))):
        data[offset] ^= random.randrange(256)
    return f"bits from {place} on flipped"


def truncate(data: bytearray, random: Random) -> str:
    """Remove the end, or everything."""
    length = 0 if random.random() < 0.1 else random.randrange(len(data))
    del data[length:]
    return f"truncated to {length}"


def zero_block(data: bytearray, random: Random) -> str:
    """Zero a block, as a power cut may."""
    start, size = _block(data, random)
    data[start : start + size] = bytes(size)
    return f"{size} zero bytes at {start}"


def swap_blocks(data: bytearray, random: Random) -> str:
    """Swap two blocks."""
    first, size = _block(data, random)
    second = random.randrange(max(1, len(data) - size))
    size = min(size, abs(second - first))
    one, other = data[first : first + size], data[second : second + size]
    data[first : first + size], data[second : second + size] = other, one
    return f"{size} bytes at {first} and {second} swapped"


def append(data: bytearray, random: Random) -> str:
    """Append bytes."""
    size = random.choice((1, 16, 4096))
    data += random.randbytes(size)
    return f"{size} bytes appended"


def remove_block(data: bytearray, random: Random) -> str:
    """Remove a block."""
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
    """Return damaged bytes, never equal to the original, and a description."""
    while True:
        data = bytearray(original)
        how = random.choice(MUTATIONS)(data, random)
        if data != original:
            return bytes(data), how
