"""Huffman coding of quantization codes (Han, Mao and Dally, ICLR 2016, "Deep Compression", section 4).

Codes are canonical: their lengths alone determine them, so a file stores one byte a symbol and the stream.
"""

import heapq
from collections.abc import Sequence

import numpy as np


def code_lengths(counts: Sequence[int]) -> np.ndarray:
    """Bits of the optimal prefix code of every symbol.

    Args:
        counts: how often each symbol occurs; at most 256 symbols.

    Returns:
        int64 [symbols]; 0 where a symbol never occurs, 1 where it is the only one.
    """
    lengths = np.zeros(len(counts), dtype=np.int64)
    heap = [(int(count), symbol, [symbol]) for symbol, count in enumerate(counts) if count > 0]
    heapq.heapify(heap)
    if len(heap) == 1:
        lengths[heap[0][2]] = 1
    while len(heap) > 1:
        (few, _, left), (more, order, right) = heapq.heappop(heap), heapq.heappop(heap)
        lengths[left + right] += 1
        heapq.heappush(heap, (few + more, order, left + right))
    return lengths


def canonical_codes(lengths: np.ndarray) -> dict[int, str]:
    """The code of every symbol as a text of 0 and 1: shorter codes first, then in the order of symbols."""
    codes, code, before = {}, 0, 0
    for symbol in sorted(np.flatnonzero(lengths), key=lambda symbol: (lengths[symbol], symbol)):
        code <<= int(lengths[symbol]) - before
        before = int(lengths[symbol])
        codes[int(symbol)] = format(code, f"0{before}b")
        code += 1
    return codes


def stream_bytes(counts: Sequence[int]) -> int:
    """Bytes of the coded stream, without the table of lengths."""
    return -(-int(code_lengths(counts) @ np.asarray(counts, dtype=np.int64)) // 8)


def encode(codes: np.ndarray, lengths: np.ndarray) -> bytes:
    """The stream of symbols [n] under code lengths [symbols]; the last byte is filled with zeros."""
    table = canonical_codes(lengths)
    bits = "".join([table[symbol] for symbol in codes.reshape(-1).tolist()])
    return np.packbits(np.frombuffer(bits.encode(), dtype=np.uint8) - ord("0")).tobytes()


def decode(stream: bytes, lengths: np.ndarray, count: int) -> np.ndarray:
    """The `count` symbols of a stream, uint8 [count].

    Raises:
        ValueError: the stream ends too early or holds no code of these lengths.
    """
    symbols = {code: symbol for symbol, code in canonical_codes(lengths).items()}
    longest = int(lengths.max(initial=0))
    found: list[int] = []
    code = ""
    for bit in np.unpackbits(np.frombuffer(stream, dtype=np.uint8)).tolist():
        if len(found) == count:
            break
        code += "1" if bit else "0"
        if code in symbols:
            found.append(symbols[code])
            code = ""
        elif len(code) >= longest:
            raise ValueError("The stream holds a code that is not in its table.")
    if len(found) != count:
        raise ValueError(f"The stream ends after {len(found)} of {count} codes.")
    return np.array(found, dtype=np.uint8)
