"""A PNG or JPEG file stripped of metadata, for a decoder that fails on what surrounds the pixels.

In: which parts of a file the pixels, their colours and their orientation need. Not in: decoding (`pictures`).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

MAX_PROFILE = 16 * 2**20  # bytes of an ICC profile; printer profiles have 3 MB at most

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")
_JFIF, _ADOBE, _EXIF, _ICC = b"JFIF\0", b"Adobe", b"Exif\0\0", b"ICC_PROFILE\0"
_PLAIN_JFIF = b"\xff\xe0\x00\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0"
_APP, _COMMENT, _SCAN = range(0xE0, 0xF0), 0xFE, 0xDA
_ALONE = (0x01, *range(0xD0, 0xD8))  # markers without a length


@dataclass(frozen=True)
class BareFile:
    """A picture file's bytes, and the colour profile that had to be taken out of them."""

    data: bytes
    profile: bytes | None = None


def without_metadata(data: bytes) -> Iterator[BareFile]:
    """The same picture with less and less metadata; empty for a file of another format."""
    if data.startswith(_PNG):
        yield _bare_png(data)
    elif data.startswith(_JPEG):
        for kept in ((_EXIF, _ICC), (_ICC,), ()):
            yield BareFile(_bare_jpeg(data, kept))


def _bare_png(data: bytes) -> BareFile:
    parts, profile, place = [_PNG], None, len(_PNG)
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        kind = data[place + 4 : place + 8]
        if kind in _PNG_CHUNKS:
            parts.append(data[place:end])
        elif kind == b"iCCP":
            profile = _unpacked(data[place + 8 : end - 4])
        place = end
    return BareFile(b"".join(parts), profile)


def _unpacked(chunk: bytes) -> bytes | None:
    """The colour profile in a chunk of name, 0, method, compressed bytes. None: broken or too large."""
    packed = chunk.partition(b"\0")[2][1:]
    reader = zlib.decompressobj()
    try:
        profile = reader.decompress(packed, MAX_PROFILE)
    except zlib.error:
        return None
    return profile if reader.eof else None


def _bare_jpeg(data: bytes, kept: tuple[bytes, ...]) -> bytes:
    parts, place = [_JPEG], len(_JPEG)
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # padding
            place += 1
            continue
        if marker == _SCAN:
            return b"".join([*parts, data[place:]])
        end = place + 2 + (0 if marker in _ALONE else int.from_bytes(data[place + 2 : place + 4], "big"))
        parts.append(_segment(marker, data[place:end], kept))
        place = end
    return b"".join(parts)


def _segment(marker: int, segment: bytes, kept: tuple[bytes, ...]) -> bytes:
    """What is kept of a segment: JFIF and Adobe tell the decoder what the numbers mean as colours."""
    content = segment[4:]
    if marker == _COMMENT:
        return b""
    if marker not in _APP:
        return segment
    if content.startswith(_JFIF):
        return _PLAIN_JFIF
    is_adobe = content.startswith(_ADOBE) and len(content) >= 12
    return segment if is_adobe or (kept and content.startswith(kept)) else b""
