"""Pictures and masks whose bytes, chunks, segments or metadata are damaged, and hostile tensors of a host."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from PIL import Image, ImageCms

from apt_train.data.dataset import ImageSet, load_images

from .case import Case, packed
from .damage import Edit, byte_edits, cases_of, file_edits

PNG, JPEG, WEBP, MASK = "a.png", "b.jpg", "c.webp", "a-mask.png"
SIDE = 24
_FLOATS = [0.0, 0.5, 1.0, 2.0, -1.0, 255.0, float("nan"), float("inf"), 1e38]
_TYPES = ["float32", "float16", "bfloat16", "float64", "uint8", "int64", "bool", "complex64"]


def sample(folder: Path) -> None:
    for name, content in _valid().items():
        (folder / name).write_bytes(content)


def _valid() -> dict[str, bytes]:
    picture = Image.linear_gradient("L").resize((SIDE, SIDE)).convert("RGBA")
    picture.putalpha(Image.radial_gradient("L").resize((SIDE, SIDE)))
    return {
        PNG: _saved(picture, "PNG"),
        JPEG: _saved(picture.convert("RGB"), "JPEG", exif=_exif([(0x0112, 3, 1, 6)]), icc_profile=_icc()),
        WEBP: _saved(picture, "WEBP"),
        MASK: _saved(picture.getchannel("A"), "PNG"),
    }


def _saved(picture: Image.Image, kind: str, **more: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **more)
    return buffer.getvalue()


def _icc() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def run(folder: Path, case: Case) -> None:
    """`arguments`: a host's tensors in words, else None for the folder."""
    if isinstance(case.arguments, dict):
        _from_tensors(**case.arguments)
    else:
        load_images(folder, alpha_masks=bool(case.arguments))


def _from_tensors(images: Any, masks: Any, captions: Any) -> None:
    ImageSet.from_tensors(_tensors(images), captions, _tensors(masks), alpha_masks=True).repeats()


def _tensors(words: Any) -> Any:
    """A tensor as [shape, value, type], or a list of them."""
    if not words or not isinstance(words[-1], str):
        return [_tensors(word) for word in words] if words else words
    shape, value, kind = words
    dtype = getattr(torch, kind)
    number = value if dtype.is_floating_point else float(abs(value) < 256)
    return torch.full(shape, number, dtype=torch.float64).to(dtype)


def cases(folder: Path) -> SearchStrategy[Case]:
    names = (PNG, JPEG, WEBP, MASK)
    damage = st.one_of(*(byte_edits(name) for name in names), *(file_edits(name) for name in names))
    chunks = st.one_of(_chunks(PNG), _chunks(MASK), _segments(), _written())
    return st.one_of(
        cases_of(damage, 2, st.booleans()), cases_of(chunks, 2, st.booleans()), cases_of(st.one_of(chunks, _names())),
        st.builds(Case, st.just(()), _hosts()),
    )  # fmt: skip


# ---- PNG chunks ----------------------------------------------------------------------------------------------


def _chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    check = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def _png(chunks: list[bytes], width: int = SIDE, height: int = SIDE, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG with chunks put between its head and its pixels."""
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    rows = b"".join(b"\0" + b"\x40\x80\xc0" * SIDE for _ in range(SIDE))
    tail = _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + tail


def _chunks(name: str) -> SearchStrategy[Edit]:
    kinds = st.sampled_from([b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"gAMA", b"cHRM", b"sRGB", b"tRNS", b"PLTE",
        b"pHYs",
                             b"acTL", b"fcTL", b"fdAT", b"IHDR", b"IDAT", b"IEND", b"cICP", b"tIME", b"xxxx",
                             b"\x00\x01\x02\x03"])  # fmt: skip
    data = st.one_of(st.binary(max_size=40), _text_chunks(), _icc_chunks(), _exifs())
    chunk = st.builds(_chunk, kinds, data, st.one_of(st.none(), st.none(), st.integers(0, 2**32 - 1)))
    size = st.one_of(st.just(SIDE), st.just(SIDE), st.sampled_from([0, 1, 65_535, 2**31 - 1, 2**31, 2**32 - 1]))
    depth = st.one_of(st.just(8), st.sampled_from([0, 1, 2, 4, 16, 255]))
    colour = st.one_of(st.just(2), st.sampled_from([0, 3, 4, 6, 7]))
    files = st.builds(_png, st.lists(chunk, max_size=3), size, size, depth, colour)
    return files.map(lambda content: ("write", name, packed(content)))


def _text_chunks() -> SearchStrategy[bytes]:
    """Compressed texts, also such as blow up."""
    sizes = st.sampled_from([10, 1_000_000, 3_000_000, 40_000_000])
    return sizes.map(lambda size: b"Comment\0\0" + zlib.compress(bytes(size), 9))


def _icc_chunks() -> SearchStrategy[bytes]:
    return _profiles().map(lambda profile: b"icc\0\0" + zlib.compress(profile))


def _profiles() -> SearchStrategy[bytes]:
    """sRGB with bytes written over, cut, or a profile of another space."""
    valid = _icc()
    spots = st.tuples(st.integers(0, len(valid) - 1), st.binary(min_size=1, max_size=8))
    struck = st.lists(spots, min_size=1, max_size=4).map(lambda spots: _struck(valid, spots))
    spaces = st.sampled_from([b"CMYK", b"GRAY", b"Lab ", b"XYZ ", b"    "]).map(
        lambda space: _struck(valid, [(16, space)])
    )
    return st.one_of(struck, spaces, st.integers(0, len(valid)).map(lambda end: valid[:end]), st.binary(max_size=200))


def _struck(content: bytes, spots: list[tuple[int, bytes]]) -> bytes:
    changed = bytearray(content)
    for at, new in spots:
        changed[at : at + len(new)] = new
    return bytes(changed)


# ---- JPEG segments -------------------------------------------------------------------------------------------


def _exif(entries: list[tuple[int, int, int, int]], order: bytes = b"II", offset: int = 8) -> bytes:
    """EXIF of entries (tag, type, count, value), with its leading name."""
    mark = "<" if order == b"II" else ">"
    head = order + struct.pack(f"{mark}HI", 42, offset) + struct.pack(f"{mark}H", len(entries))
    body = b"".join(struct.pack(f"{mark}HHII", *entry) for entry in entries)
    return b"Exif\0\0" + head + body + struct.pack(f"{mark}I", 0)


def _exifs() -> SearchStrategy[bytes]:
    tags = st.one_of(
        st.sampled_from([0x0112, 0x8769, 0x8825, 0x011A, 0x0201, 0x0202, 0x927C, 0xA005]), st.integers(0, 65_535)
    )
    counts = st.one_of(st.sampled_from([0, 1, 2, 2**31, 2**32 - 1]), st.integers(0, 2**32 - 1))
    values = st.one_of(st.integers(0, 12), st.integers(0, 2**32 - 1))
    entry = st.tuples(tags, st.integers(0, 13), counts, values)
    offsets = st.one_of(st.just(8), st.sampled_from([0, 4, 6, 2**32 - 1]))
    return st.builds(_exif, st.lists(entry, max_size=5), st.sampled_from([b"II", b"MM"]), offsets)


def _segments() -> SearchStrategy[Edit]:
    """The JPEG with a segment put behind its first two bytes: EXIF, ICC, XMP, MPO's index, a comment."""
    icc = _profiles().map(lambda profile: (0xE2, b"ICC_PROFILE\0\x01\x01" + profile))
    mpo = st.binary(max_size=60).map(lambda data: (0xE2, b"MPF\0II*\0\x08\0\0\0" + data))
    xmp = st.binary(max_size=60).map(lambda data: (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + data))
    adobe = st.binary(max_size=20).map(lambda data: (0xEE, b"Adobe" + data))
    plain = st.tuples(st.integers(0xC0, 0xFE), st.binary(max_size=40))
    segment = st.one_of(_exifs().map(lambda data: (0xE1, data)), icc, mpo, xmp, adobe, plain)
    return st.lists(segment, min_size=1, max_size=2).map(_with_segments)


def _with_segments(segments: list[tuple[int, bytes]]) -> Edit:
    plain = _saved(Image.new("RGB", (SIDE, SIDE), "teal"), "JPEG")
    added = b"".join(
        bytes([0xFF, kind]) + struct.pack(">H", len(data[:65_000]) + 2) + data[:65_000] for kind, data in segments
    )
    return ("write", JPEG, packed(plain[:2] + added + plain[2:]))


# ---- whole files ---------------------------------------------------------------------------------------------


def _written() -> SearchStrategy[Edit]:
    """Pictures of other kinds, modes and sizes, under one of our names."""
    mode = st.sampled_from(["1", "L", "P", "LA", "PA", "I;16", "I", "F", "CMYK", "YCbCr", "HSV", "LAB", "RGBA"])
    size = st.sampled_from([(1, 1), (1, 300), (300, 1), (SIDE, SIDE), (2, 3)])
    kind = st.sampled_from(
        ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "ICO", "PPM", "TGA", "EPS", "PDF", "AVIF", "MPO"]
    )
    name = st.sampled_from([PNG, JPEG, WEBP, MASK, "d.jfif", "e.tga", "f.apng", "g.gif", "h", "i.tiff", "a_mask.png"])
    return st.builds(lambda name, *how: ("write", name, packed(_other(*how))), name, mode, size, kind)


def _other(mode: str, size: tuple[int, int], kind: str) -> bytes:
    try:
        return _saved(Image.new(mode, size), kind)
    except (OSError, ValueError, KeyError):  # Pillow writes no such file
        return b""


def _names() -> SearchStrategy[Edit]:
    names = ["a-masklabel.png", "a_mask.png", "A.PNG", "a.jpeg", "ä.png", "a\nb.png", " .png", ".png",
        "x" * 200 + ".png",
             "-mask.png", "a-mask-mask.png", "b.jpg.png", "a.png.webp", "con.png", "._a.png"]  # fmt: skip
    return st.tuples(st.just("duplicate"), st.sampled_from([PNG, MASK]), st.sampled_from(names))


def _hosts() -> SearchStrategy[dict[str, Any]]:
    side = st.sampled_from([0, 1, 3, 4, 24, 25])
    tensor = st.tuples(st.lists(side, max_size=5), st.sampled_from(_FLOATS), st.sampled_from(_TYPES)).map(list)
    many = st.one_of(tensor, st.lists(tensor, max_size=3))
    captions = st.one_of(
        st.none(), st.text(max_size=9), st.lists(st.one_of(st.none(), st.text(max_size=5)), max_size=3)
    )
    return st.fixed_dictionaries({"images": many, "masks": st.one_of(st.none(), many), "captions": captions})


def hostile() -> list[Case]:
    bomb = b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9)
    files = [
        (PNG, _png([_chunk(b"zTXt", bomb)])), (PNG, _png([_chunk(b"iTXt", b"c\0\1\0\0\0" + bomb[9:])])),
        (PNG, _png([_chunk(b"iCCP", b"i\0\0" + bomb[9:])])), (PNG, _png([_chunk(b"tEXt", b"c\0" + bytes(2_000_000))])),
        (PNG, _png([], 2**31 - 1, 2**31 - 1)), (PNG, _png([], 13_000, 13_000)), (PNG, _png([], 0, 5)),
        (PNG, _png([_chunk(b"eXIf", b"not exif")])), (PNG, _png([_chunk(b"acTL", b"\xff" * 8)])), (PNG, b""),
        (MASK, _png([], 30_000, 30_000)), (PNG, b"GIF89a" + b"\xff" * 20), (JPEG, b"%!PS-Adobe-3.0 EPSF-3.0\n"),
    ]  # fmt: skip
    exifs = [
        [(0x0112, 2, 4, 0x31323334)], [(0x0112, 3, 2**32 - 1, 1)], [(0x0112, 12, 1, 8)], [(0x8769, 4, 1, 8)],
        [(0x8825, 13, 1, 8)], [(0x0112, 5, 1, 0)], [(0x0112, 3, 0, 0)], [(0x0112, 3, 1, 99)],
    ]  # fmt: skip
    segments = [_with_segments([(0xE1, _exif(entries))]) for entries in exifs]
    segments += [
        _with_segments([(0xE2, b"ICC_PROFILE\0\x01\x01" + b"\xff" * 200)]),
        _with_segments([(0xE1, b"Exif\0\0")]),
    ]
    tensors = [
        {"images": [[1, 0, 24, 3], 1.0, "float32"], "masks": None, "captions": None},
        {"images": [[1, 24, 24, 3], float("nan"), "float32"], "masks": None, "captions": None},
        {"images": [[1, 24, 24, 3], 1.0, "uint8"], "masks": [[1, 24, 24], float("nan"), "float32"], "captions": None},
        {"images": [[1, 24, 24, 3], 1.0, "complex64"], "masks": None, "captions": ["\ud800"]},
        {"images": [], "masks": [], "captions": []},
    ]
    whole: list[Edit] = [("write", name, packed(content)) for name, content in files] + segments
    whole += [("link", PNG, "/dev/zero"), ("mode", PNG, 0), ("folder", PNG), ("link", PNG, PNG)]
    return [*(Case((edit,)) for edit in whole), *(Case((), words) for words in tensors)]
