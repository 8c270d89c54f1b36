"""One picture file: what is around its pixels, its colour profile, its frames, its orientation.

Not here: folders (`test_folder_files`), modes, alpha and damaged pixels (`test_dataset`).
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageFile, PngImagePlugin, features

from apt_train.data import color_profiles, pictures
from apt_train.data.dataset import load_images
from apt_train.data.pictures import MAX_PIXELS, read_mask, read_picture
from apt_train.errors import InputError

WHITE = (255, 255, 255)
P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
ADOBE = ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060))


def noise(width: int = 40, height: int = 30, channels: int = 3) -> Image.Image:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def as_pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(image: Image.Image, *chunks: bytes, last: bool = False) -> bytes:
    """The picture's PNG with chunks right after its header, or before its end."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    place = len(buffer.getvalue()) - 12 if last else 33
    return buffer.getvalue()[:place] + b"".join(chunks) + buffer.getvalue()[place:]


def jpeg_with(image: Image.Image, *segments: tuple[int, bytes], **options: Any) -> bytes:
    """The picture's JPEG with segments right after its start."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    inserted = b"".join(bytes([0xFF, 0xE0 + n]) + struct.pack(">H", len(data) + 2) + data for n, data in segments)
    return buffer.getvalue()[:2] + inserted + buffer.getvalue()[2:]


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# ---- good pixels behind broken metadata

LONG = zlib.compress(bytes(2**21))
BROKEN_PNG = {
    "EXIF that is none": chunk(b"eXIf", b"garbage!" * 20),
    "empty EXIF": chunk(b"eXIf", b""),
    "2 MB of text": chunk(b"zTXt", b"parameters\0\0" + LONG),
    "2 MB of international text": chunk(b"iTXt", b"workflow\0\1\0\0\0" + LONG),
    "2 MB of colour profile": chunk(b"iCCP", b"profile\0\0" + LONG),
    "a profile packed in no known way": chunk(b"iCCP", b"profile\0\7" + LONG),
    "a profile that is none": chunk(b"iCCP", b"profile\0\0" + zlib.compress(b"none")),
    "text packed in no known way": chunk(b"zTXt", b"parameters\0\7" + LONG),
    "a wrong checksum": chunk(b"tEXt", b"a\0b")[:-1] + b"!",
    "a short gamma": chunk(b"gAMA", b"\0"),
    "short chromaticities": chunk(b"cHRM", b"\0" * 8),
    "an animation that is none": chunk(b"acTL", b"\0"),
    "a frame out of order": chunk(b"fcTL", struct.pack(">IIIIIHHBB", 7, 1, 1, 0, 0, 1, 1, 0, 0)),
    "a short resolution": chunk(b"pHYs", b"\0\0"),
}


@pytest.mark.parametrize("last", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("kind", BROKEN_PNG)
def test_good_pixels_of_a_png_are_read_whatever_stands_beside_them(tmp_path: Path, kind: str, last: bool) -> None:
    path = written(tmp_path / "a.png", png_with(noise(), BROKEN_PNG[kind], last=last))
    assert torch.equal(read_picture(path, WHITE).pixels, as_pixels(noise()))
    assert torch.equal(read_mask(written(tmp_path / "mask.png", path.read_bytes()))[0] * 255, grey_of(noise()))


def grey_of(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("L"), dtype=np.float32))


def exif(orientation: object = None) -> bytes:
    """EXIF of one entry, the orientation as text instead of a number; or as what is given."""
    entry = (
        struct.pack("<HHI", 0x0112, 2, 4) + b"up!\0"
        if orientation is None
        else struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    )
    return b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + b"\0\0\0\0"


BROKEN_JPEG = {
    "EXIF that is none": (1, b"Exif\0\0garbage"),
    "EXIF cut off": (1, exif(6)[:16]),
    "text for a number": (1, exif()),
    "an orientation of 99": (1, exif(99)),
    "a short JFIF": (0, b"JFIF\0"),
    "a short Adobe": (14, b"Adobe"),
    "an index of pictures that is none": (2, b"MPF\0II*\0\x08\0\0\0\0\0"),
    "a short profile": (2, b"ICC_PROFILE\0"),
    "one of two parts of a profile": (2, b"ICC_PROFILE\0\1\2abc"),
    "a profile that is none": (2, b"ICC_PROFILE\0\1\1garbage"),
    "Photoshop's own": (13, b"Photoshop 3.0\0" + b"8BIM\x03\xed\0\0\0\0\0\x02ab"),
}


@pytest.mark.parametrize("kind", BROKEN_JPEG)
def test_good_pixels_of_a_jpeg_are_read_whatever_stands_beside_them(tmp_path: Path, kind: str) -> None:
    plain = written(tmp_path / "plain.jpg", jpeg_with(noise()))
    path = written(tmp_path / "a.jpg", jpeg_with(noise(), BROKEN_JPEG[kind]))
    assert torch.equal(read_picture(path, WHITE).pixels, read_picture(plain, WHITE).pixels)


@pytest.mark.parametrize("mode", ["CMYK", "L", "RGB"])
def test_stripping_a_jpeg_leaves_its_colours(tmp_path: Path, mode: str) -> None:
    """Which numbers are which colours stands in the JFIF and Adobe segments."""
    plain = written(tmp_path / "plain.jpg", jpeg_with(noise().convert(mode)))
    path = written(tmp_path / "a.jpg", jpeg_with(noise().convert(mode), (2, b"ICC_PROFILE\0")))
    assert torch.equal(read_picture(path, WHITE).pixels, read_picture(plain, WHITE).pixels)


def test_half_a_picture_is_refused_whatever_another_part_has_told_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    whole = png_with(noise())
    with pytest.raises(InputError, match="cannot be read as a picture"):
        read_picture(written(tmp_path / "a.png", whole[: len(whole) // 2]), WHITE)
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_metadata_left_aside_is_said_once(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        written(tmp_path / name, png_with(noise(), BROKEN_PNG["EXIF that is none"]))
    written(tmp_path / "c.png", png_with(noise()))
    (note,) = load_images(tmp_path).notes
    assert "metadata of a.png and b.png" in note and "c.png" not in note


def test_a_picture_with_too_much_text_still_stands_upright_in_its_colours(tmp_path: Path) -> None:
    profile = profile_of(P3)
    chunks = (
        BROKEN_PNG["2 MB of text"],
        chunk(b"eXIf", exif(6)[6:]),
        chunk(b"iCCP", b"p\0\0" + zlib.compress(profile)),
    )
    path = written(tmp_path / "a.png", png_with(Image.new("RGB", (4, 2), (200, 80, 60)), *chunks))
    pixels = read_picture(path, WHITE).pixels
    assert pixels.shape == (3, 4, 2) and pixels[:, 0, 0].tolist() == pytest.approx([216, 69, 50], abs=1)


def test_a_large_profile_counts_too(tmp_path: Path) -> None:
    """Pillow unpacks 1 MB of it."""
    profile = profile_of(P3)
    longer = struct.pack(">I", len(profile) + 2**21) + profile[4:] + bytes(2**21)
    data = png_with(Image.new("RGB", (4, 2), (200, 80, 60)), chunk(b"iCCP", b"p\0\0" + zlib.compress(longer)))
    pixels = read_picture(written(tmp_path / "a.png", data), WHITE).pixels
    assert pixels[:, 0, 0].tolist() == pytest.approx([216, 69, 50], abs=1)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "TGA"])
def test_flipped_bytes_end_in_a_picture_or_a_sentence(tmp_path: Path, form: str) -> None:
    buffer = io.BytesIO()
    noise().save(buffer, form)
    draws = random.Random(form)
    path = tmp_path / ("a.tga" if form == "TGA" else "a.png")
    for _ in range(60):
        data = bytearray(buffer.getvalue())
        for _ in range(draws.randint(1, 4)):
            data[draws.randrange(min(len(data), 200))] = draws.randrange(256)
        path.write_bytes(data[: draws.randrange(len(data))] if draws.random() < 0.2 else data)
        try:
            found = read_picture(path, WHITE)
            assert found.pixels.dtype == torch.uint8 and found.pixels.dim() == 3
        except InputError as error:
            assert path.name in str(error) and "\n" not in str(error)


# ---- colour profiles


def profile_of(primaries: tuple[tuple[float, float], ...], description: bytes = b"test") -> bytes:
    """A matrix profile with these primaries, D65 white and sRGB's curve, built upon LittleCMS's own sRGB."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    matrix = columns * np.linalg.solve(columns, white)
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    cones = np.diag(bradford @ np.array([0.9642, 1, 0.8249]) / (bradford @ white))
    adapted = np.linalg.inv(bradford) @ cones @ bradford @ matrix
    for place in range(132, 132 + 12 * struct.unpack_from(">I", profile, 128)[0], 12):
        name, offset, _ = struct.unpack_from(">4sII", profile, place)
        if name in (b"rXYZ", b"gXYZ", b"bXYZ"):
            values = adapted[:, b"rgb".index(name[:1])]
            struct.pack_into(">3i", profile, offset + 8, *(round(65536 * value) for value in values))
    return bytes(profile)


def grey_profile(gamma: float) -> bytes:
    """A grey profile of one gamma, version 2."""
    curve = b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256))
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"desc": _text(b"grey"), b"wtpt": D50, b"kTRC": curve})


def print_profile() -> bytes:
    """A CMYK profile, version 2: paper is white, black ink black, any other a middle grey."""
    identity = bytes(range(256))
    lightness = [0 if ink % 2 else 128 if ink else 255 for ink in range(16)]  # of 2 x 2 x 2 x 2 amounts, black last
    corners = b"".join(bytes([light, 128, 128]) for light in lightness)  # Lab
    matrix = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + 4 * identity + corners + 3 * identity
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"desc": _text(b"ink"), b"wtpt": D50, b"A2B0": table})


D50 = b"XYZ " + struct.pack(">I3i", 0, 63190, 65536, 54061)


def _text(words: bytes) -> bytes:
    return b"desc" + struct.pack(">II", 0, len(words) + 1) + words + bytes(79)


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile of version 2 out of its tags."""
    tags = {name: tag + bytes(-len(tag) % 4) for name, tag in tags.items()}
    offset, table = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags))
    for name, tag in tags.items():
        table += struct.pack(">4sII", name, offset, len(tag))
        offset += len(tag)
    head = struct.pack(">I4sI4s4s4s", offset, b"lcms", 0x02400000, kind, space, connection)
    head += bytes(12) + b"acsp" + bytes(28) + D50[8:] + bytes(48)
    return head[:128] + table + b"".join(tags.values())


def first_colour(path: Path, **options: Any) -> list[int]:
    return read_picture(path, WHITE, **options).pixels[:, 0, 0].tolist()


needs_lcms = pytest.mark.skipif(not features.check("littlecms2"), reason="this Pillow has no LittleCMS")


@needs_lcms
@pytest.mark.parametrize(
    ("primaries", "seen"), [(P3, (216, 69, 50)), (ADOBE, (228, 80, 59))], ids=["Display P3", "Adobe RGB's primaries"]
)
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif"])
def test_colours_are_what_the_profile_means(
    tmp_path: Path, name: str, primaries: tuple[tuple[float, float], ...], seen: tuple[int, ...]
) -> None:
    options = {"a.jpg": {"quality": 100}, "a.webp": {"lossless": True}}.get(name, {})
    Image.new("RGB", (8, 8), (200, 80, 60)).save(tmp_path / name, icc_profile=profile_of(primaries), **options)
    images = load_images(tmp_path)
    assert images.images[0].pixels[:, 0, 0].tolist() == pytest.approx(seen, abs=2) and images.notes == []


@needs_lcms
@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "LA", "1"])
def test_a_profile_goes_with_every_kind_of_picture(tmp_path: Path, mode: str) -> None:
    """Grey stays grey in any RGB profile with sRGB's curve; colours move."""
    colours = Image.new("RGB", (8, 8), (200, 80, 60))
    image = colours.quantize(4) if mode == "P" else colours.convert(mode)
    image.save(tmp_path / "a.png", icc_profile=profile_of(P3))
    grey = image.convert("L").getpixel((0, 0))
    expected = (216, 69, 50) if mode in ("RGBA", "P") else (grey, grey, grey)
    assert first_colour(tmp_path / "a.png") == pytest.approx(expected, abs=2)


@needs_lcms
def test_alpha_is_composed_after_the_colours(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (200, 80, 60, 128)).save(tmp_path / "a.png", icc_profile=profile_of(P3))
    assert first_colour(tmp_path / "a.png") == pytest.approx([235, 162, 152], abs=2)
    alpha = read_picture(tmp_path / "a.png", WHITE).alpha
    assert alpha is not None and (alpha == 128 / 255).all()


@needs_lcms
def test_srgb_by_any_name_is_left_to_the_bit(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    renamed = profile_of(((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)))
    for profile in (srgb, renamed):
        noise().save(tmp_path / "a.png", icc_profile=profile)
        assert torch.equal(read_picture(tmp_path / "a.png", WHITE).pixels, as_pixels(noise()))
        noise(channels=4).save(tmp_path / "a.png", icc_profile=profile)
        plain = noise(channels=4)
        plain.save(tmp_path / "b.png")
        assert torch.equal(
            read_picture(tmp_path / "a.png", WHITE).pixels, read_picture(tmp_path / "b.png", WHITE).pixels
        )


def test_sixteen_bits_become_the_nearest_of_eight(tmp_path: Path) -> None:
    values = np.arange(0, 65536, 251, dtype=np.uint16).reshape(1, -1)
    Image.fromarray(values).save(tmp_path / "a.png")
    seen = read_picture(tmp_path / "a.png", WHITE).pixels[0].numpy()
    assert np.array_equal(seen, np.round(values / 65535 * 255))


@needs_lcms
@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_a_grey_profile_is_honoured(tmp_path: Path, mode: str) -> None:
    value = {"L": 100, "LA": (100, 255), "I;16": 100 * 257}[mode]
    Image.new(mode, (8, 8), value).save(tmp_path / "a.png", icc_profile=grey_profile(1.0))
    linear = 100 / 255
    expected = 255 * (1.055 * linear ** (1 / 2.4) - 0.055)
    assert first_colour(tmp_path / "a.png") == pytest.approx([expected] * 3, abs=2)


@needs_lcms
@pytest.mark.parametrize(("ink", "seen"), [((0, 0, 0, 0), 255), ((255, 0, 0, 0), 119), ((0, 0, 255, 255), 3)])
@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_a_printers_profile_is_honoured(tmp_path: Path, name: str, ink: tuple[int, ...], seen: int) -> None:
    image = Image.new("CMYK", (16, 16), ink)
    options: dict[str, Any] = {"quality": 100} if name == "a.jpg" else {}
    image.save(tmp_path / name, icc_profile=print_profile(), **options)
    assert first_colour(tmp_path / name) == pytest.approx([seen] * 3, abs=5)
    image.save(tmp_path / name, icc_profile=profile_of(P3))  # of no use for inks
    image.save(tmp_path / f"b{name[1:]}")
    assert first_colour(tmp_path / name) == first_colour(tmp_path / f"b{name[1:]}")
    assert "colour profile" in load_images(tmp_path).notes[0]


@needs_lcms
@pytest.mark.parametrize("profile", [b"no profile at all", b"x" * 200, bytes(3000), grey_profile(1.8)])
def test_a_profile_that_cannot_be_used_leaves_the_numbers_and_is_said(tmp_path: Path, profile: bytes) -> None:
    noise().save(tmp_path / "a.png", icc_profile=profile)
    images = load_images(tmp_path)
    assert torch.equal(images.images[0].pixels, as_pixels(noise()))
    assert len(images.notes) == 1 and "colour profile of a.png" in images.notes[0]


WIDE = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)


def camera(**tags: object) -> bytes:
    exif, inner = Image.Exif(), dict[int, object]()
    if "space" in tags:
        inner[0xA001] = tags["space"]
    if "interop" in tags:
        inner[0xA005] = {1: tags["interop"]}
    exif[0x8769] = inner
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 80, 60)).save(file, "JPEG", exif=exif, quality=100)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "is_said"),
    [
        ("a.png", png_with(noise(), chunk(b"cHRM", WIDE)), True),
        ("a.png", png_with(noise(), chunk(b"gAMA", struct.pack(">I", 100000))), True),
        ("a.png", png_with(noise(), chunk(b"gAMA", struct.pack(">I", 55556))), True),
        ("a.jpg", camera(interop="R03", space=0xFFFF), True),
        ("a.jpg", camera(space=2), True),
        ("a.png", png_with(noise(), chunk(b"sRGB", b"\0") + chunk(b"gAMA", struct.pack(">I", 45455))), False),
        ("a.png", png_with(noise(), chunk(b"gAMA", struct.pack(">I", 45454))), False),
        ("a.jpg", camera(interop="R98", space=1), False),
        ("a.jpg", camera(space=0xFFFF), False),
    ],
)
def test_other_colours_without_a_profile_are_said(tmp_path: Path, name: str, data: bytes, is_said: bool) -> None:
    """Of a PNG by its own numbers, of a camera that was set to Adobe RGB by its EXIF."""
    written(tmp_path / name, data)
    notes = load_images(tmp_path).notes
    assert notes == ([color_profiles.UNPROFILED.format(names=name)] if is_said else [])


def test_without_littlecms_the_profile_is_said_to_be_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise().save(tmp_path / "a.png", icc_profile=profile_of(P3))
    noise().save(tmp_path / "b.png")
    monkeypatch.setattr(color_profiles.features, "check", lambda name: False)
    images = load_images(tmp_path)
    assert all(torch.equal(image.pixels, as_pixels(noise())) for image in images.images)
    assert len(images.notes) == 1 and "a.png is ignored" in images.notes[0]


def test_a_mask_has_no_colours(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 100).save(tmp_path / "plain.png")
    Image.new("L", (8, 8), 100).save(tmp_path / "a.png", icc_profile=grey_profile(1.0))
    assert torch.equal(read_mask(tmp_path / "a.png"), read_mask(tmp_path / "plain.png"))


# ---- frames, orientation, size


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_of_several_frames_the_first_is_taken_and_said(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("#ff0000", "#00ff00", "#0000ff")]
    options: dict[str, Any] = {"lossless": True} if name == "a.webp" else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    frames[0].save(tmp_path / "b.gif")
    images = load_images(tmp_path)
    assert images.images[0].pixels[:, 0, 0].tolist() == [255, 0, 0]
    assert len(images.notes) == 1 and f"frames in {name}:" in images.notes[0]


def test_a_gif_of_many_frames_is_not_read_to_its_end(tmp_path: Path) -> None:
    frames = [Image.new("P", (8, 8), i % 2) for i in range(300)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], optimize=False)
    data = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "a.gif").write_bytes(data[: len(data) // 2])
    assert read_picture(tmp_path / "a.gif", WHITE).pixels.shape == (3, 8, 8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_a_picture_stands_upright_however_it_was_taken(tmp_path: Path, name: str, orientation: int) -> None:
    data = Image.Exif()
    data[0x0112] = orientation
    image = noise(6, 4)
    options: dict[str, Any] = {"lossless": True} if name == "a.webp" else {}
    image.save(tmp_path / name, exif=data, **options)
    with Image.open(tmp_path / name) as stored:
        plain = stored.convert("RGB") if name == "a.jpg" else image
    ways = Image.Transpose
    way = [
        None,
        ways.FLIP_LEFT_RIGHT,
        ways.ROTATE_180,
        ways.FLIP_TOP_BOTTOM,
        ways.TRANSPOSE,
        ways.ROTATE_270,
        ways.TRANSVERSE,
        ways.ROTATE_90,
    ][orientation - 1]
    expected = plain if way is None else plain.transpose(way)
    assert torch.equal(read_picture(tmp_path / name, WHITE).pixels, as_pixels(expected))


def test_a_large_picture_is_converted_in_strips_without_a_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_STRIP", 100)
    image = noise(33, 47, 4)
    image.save(tmp_path / "a.png")
    found = read_picture(tmp_path / "a.png", WHITE)
    expected = Image.alpha_composite(Image.new("RGBA", image.size, (*WHITE, 255)), image)
    assert torch.equal(found.pixels, as_pixels(expected))
    assert found.alpha is not None
    assert torch.equal((found.alpha[0] * 255).round().to(torch.uint8), torch.from_numpy(np.array(image)[..., 3]))
    assert torch.equal(as_pixels(pictures.to_image(found.pixels)), found.pixels)


@pytest.mark.parametrize(("mode", "value"), [("F", 70_000), ("I", 70_000), ("I", 200)])
def test_numbers_whose_white_is_unknown_are_refused(tmp_path: Path, mode: str, value: int) -> None:
    Image.new(mode, (8, 8), value).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"a\.tif holds numbers of 32 bits"):
        read_picture(tmp_path / "a.tif", WHITE)


@pytest.mark.parametrize("kind", ["TGA", "BMP", "GIF", "TIFF"])
def test_a_size_too_large_is_refused_before_anything_is_decoded(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a.{kind.lower()}"
    noise().save(path, kind)
    data = path.read_bytes()
    place, form = {"TGA": (12, "<HH"), "BMP": (18, "<ii"), "GIF": (6, "<HH"), "TIFF": (0, "")}[kind]
    if form:
        path.write_bytes(data[:place] + struct.pack(form, 60_000, 60_000) + data[place + struct.calcsize(form) :])
    else:
        small = struct.pack("<HHI", 256, 4, 1), struct.pack("<HHI", 257, 4, 1)
        for entry in small:
            found = data.index(entry)
            data = data[: found + 8] + struct.pack("<I", 60_000) + data[found + 12 :]
        path.write_bytes(data)
    assert 60_000**2 > MAX_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(InputError, match="60000 x 60000"):
        read_picture(path, WHITE)


def test_a_file_too_large_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(3 * 2**30)  # a hole
    with pytest.raises(InputError, match=r"a\.png takes 3\.0 GB"):
        load_images(tmp_path)


def test_text_beside_a_picture_is_kept_away_from_the_decoder(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 100_000, zip=True)
    noise().save(tmp_path / "a.png", pnginfo=text)
    found = read_picture(tmp_path / "a.png", WHITE)
    assert torch.equal(found.pixels, as_pixels(noise())) and found.remarks == ()


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate"])
def test_what_libtiff_complains_of_is_not_shown(
    compression: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It writes past Python, between the lines of a run."""
    stored = io.BytesIO()
    Image.effect_noise((32, 32), 50).save(stored, "TIFF", compression=compression)
    for place in range(8, len(stored.getvalue()), 40):
        data = bytearray(stored.getvalue())
        data[place] ^= 0xFF
        (tmp_path / "a.tif").write_bytes(data)
        with contextlib.suppress(InputError):
            read_picture(tmp_path / "a.tif", (255, 255, 255))
    assert capfd.readouterr().err == ""
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"


def test_a_transparent_value_of_sixteen_bits_is_transparent(tmp_path: Path) -> None:
    grey = np.full((4, 4), 30_000, np.uint16)
    grey[0] = 20_000
    (tmp_path / "a.png").write_bytes(png_with(Image.fromarray(grey), chunk(b"tRNS", struct.pack(">H", 20_000))))
    found = read_picture(tmp_path / "a.png", WHITE)
    assert found.alpha is not None and found.alpha[0].tolist() == [[0.0] * 4, *[[1.0] * 4] * 3]
    assert found.pixels[:, 0].unique().tolist() == [255] and found.pixels[:, 1:].unique().tolist() == [117]
