"""CRC-32C (Castagnoli), the checksum of TensorFlow's and LevelDB's files, over arrays at a time.

A CRC without its initial value is linear over GF(2): that of a long string is the sum of its pieces', each moved on by as many
zero bytes as follow it. So the string is cut into lanes which numpy takes through the table together, and zeros before the first
byte change nothing.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

POLYNOMIAL = 0x82F63B78
"""Castagnoli's, its bits reversed."""
ONES = 0xFFFFFFFF
LANE_BYTES = 512
MAX_LANES = 1 << 14
CHUNK_BYTES = LANE_BYTES * MAX_LANES  # 8 MiB at a time
WORD_BITS = 16
MASK_DELTA = 0xA282EAD8

Words = NDArray[np.uint32]


@cache
def tables() -> list[Words]:
    """CRC of a 16-bit word, then of the word and 2, 4 and 6 zero bytes, (65536,) each."""
    values = np.arange(1 << WORD_BITS, dtype=np.uint32)
    for _ in range(WORD_BITS):
        values = (values >> np.uint32(1)) ^ np.where(values & 1, np.uint32(POLYNOMIAL), np.uint32(0))
    found = [values]
    for _ in range(3):
        last = found[-1]
        found.append((last >> np.uint32(WORD_BITS)) ^ values[last & np.uint32(0xFFFF)])
    return found


def transform(columns: Words, values: Words) -> Words:
    """Multiply values (N,) by a matrix over GF(2) whose columns are 32-bit words, (32,)."""
    result = np.zeros_like(values)
    for bit, column in enumerate(columns):
        result ^= ((values >> np.uint32(bit)) & np.uint32(1)) * column
    return result


@cache
def zeros(power: int) -> Words:
    """Columns of the matrix that moves a CRC on by 2 ** ``power`` zero bytes."""
    if power > 0:
        half = zeros(power - 1)
        return transform(half, half)
    values = np.uint32(1) << np.arange(32, dtype=np.uint32)
    for _ in range(8):
        values = (values >> np.uint32(1)) ^ np.where(values & 1, np.uint32(POLYNOMIAL), np.uint32(0))
    return values


def move(value: int, num_bytes: int) -> int:
    """A CRC moved on by zero bytes."""
    moved = np.array([value], np.uint32)
    for power in range(num_bytes.bit_length()):
        if num_bytes >> power & 1:
            moved = transform(zeros(power), moved)
    return int(moved[0])


def lanes_crc(data: NDArray[np.uint8]) -> int:
    """CRC without initial value of no more than ``CHUNK_BYTES`` bytes."""
    num_lanes = 1 << max(-(-len(data) // LANE_BYTES) - 1, 0).bit_length()
    padded = np.zeros(num_lanes * LANE_BYTES, np.uint8)
    padded[len(padded) - len(data) :] = data
    words = np.ascontiguousarray(padded.view("<u2").reshape(num_lanes, -1).T)  # (256, lanes)
    one, two, three, four = tables()
    state = np.zeros(num_lanes, np.uint32)
    for first, second, third, fourth in words.reshape(-1, 4, num_lanes):
        low, high = first ^ state.astype(np.uint16), second ^ (state >> np.uint32(WORD_BITS)).astype(np.uint16)
        state = four.take(low) ^ three.take(high) ^ two.take(third) ^ one.take(fourth)
    power = LANE_BYTES.bit_length() - 1
    while len(state) > 1:
        state = transform(zeros(power), state[0::2]) ^ state[1::2]
        power += 1
    return int(state[0])


def crc32c(data: bytes | NDArray[np.uint8]) -> int:
    """CRC-32C of some bytes.

    Args:
        data: (N,) bytes; those of a mapped file are read 8 MiB at a time.
    """
    values = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
    stop = len(values) % CHUNK_BYTES
    state = lanes_crc(values[:stop])
    for start in range(stop, len(values), CHUNK_BYTES):
        state = move(state, CHUNK_BYTES) ^ lanes_crc(values[start : start + CHUNK_BYTES])
    return state ^ move(ONES, len(values)) ^ ONES


def masked(crc: int) -> int:
    """A CRC as those files store it, lest that of data with a CRC in it be a special one: turned by 15 bits, plus a constant."""
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & ONES
