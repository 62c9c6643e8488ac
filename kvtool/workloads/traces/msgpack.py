"""Where one msgpack object ends and the next begins, which msgspec does not tell.

The first byte of an object says its kind (github.com/msgpack/msgpack/blob/master/spec.md).
"""

from __future__ import annotations

# First byte -> bytes of the payload that follow it, or of the length before the payload, as (length, extra) in bytes.
_FIXED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4,
          0xD3: 8, 0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17}  # fmt: skip
_SIZED = {0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1), 0xD9: (1, 0),
          0xDA: (2, 0), 0xDB: (4, 0)}  # fmt: skip
_COUNTED = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}  # bytes of the count, objects a member


def end_of_object(data: bytes, start: int) -> int:
    """The offset after the object at `start`; past the end where the data ends within it. Raises ValueError for a byte
    that begins no object.
    """
    waiting, offset = 1, start
    while waiting and offset < len(data):
        first = data[offset]
        offset += 1
        waiting -= 1
        if first <= 0x7F or first >= 0xE0:
            continue
        if first <= 0x8F:
            waiting += 2 * (first & 0x0F)
        elif first <= 0x9F:
            waiting += first & 0x0F
        elif first <= 0xBF:
            offset += first & 0x1F
        elif first in _FIXED:
            offset += _FIXED[first]
        elif first in _SIZED:
            length, extra = _SIZED[first]
            offset += length + extra + int.from_bytes(data[offset : offset + length], "big")
        elif first in _COUNTED:
            length, objects = _COUNTED[first]
            waiting += objects * int.from_bytes(data[offset : offset + length], "big")
            offset += length
        else:
            raise ValueError(f"byte 0x{first:02x} begins no msgpack object")
    return offset if not waiting else len(data) + 1
