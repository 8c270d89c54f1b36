"""Folders and tensors to image sets, and these to aspect buckets: what is read, and what is refused."""

from __future__ import annotations

import gc
import math
import struct
import zlib
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from apt_train.data.buckets import bucket_notes, bucket_sizes, prepare
from apt_train.data.dataset import ImageSet, TrainImage, load_images
from apt_train.errors import InputError
from apt_train.rng import generator

RED, BLUE = (255, 0, 0), (0, 0, 255)


def save(path: Path, color=RED, size=(20, 12), mode="RGB", **options) -> Path:
    Image.new(mode, size, color).save(path, **options)
    return path


def halves(size=(20, 12)) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image


def refused(call, *parts: str) -> None:
    """The call raises one sentence holding all the parts."""
    with pytest.raises(InputError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def test_a_folder_as_tensors_is_the_same_set_again(tmp_path):
    """As `APT Image Set` hands it on to APT Train."""
    halves().save(tmp_path / "a.png")
    halves((33, 20)).save(tmp_path / "b.jpg", quality=80)
    Image.new("RGBA", (24, 24), (*BLUE, 77)).save(tmp_path / "c.png")
    Image.radial_gradient("L").save(tmp_path / "d.png")
    Image.linear_gradient("L").resize((100, 100)).save(tmp_path / "d-mask.png")
    (tmp_path / "b.txt").write_text("a  toy\non grass")
    for alpha_masks in (False, True):
        images = load_images(tmp_path, background="teal", alpha_masks=alpha_masks)
        again = ImageSet.from_tensors(*images.to_tensors())
        assert again.digest == images.digest
        assert [image.content for image in again.images] == [image.content for image in images.images]
    alone = tmp_path / "alone"
    alone.mkdir()
    halves().save(alone / "a.png")
    images = load_images(alone)
    assert ImageSet.from_tensors(*images.to_tensors()).digest == images.digest


# --- folders: pictures


def test_pictures_are_taken_by_name_in_any_case_of_the_ending(tmp_path):
    for name in ("b.PNG", "a.jpg", "d.JPEG", "c.WebP"):
        save(tmp_path / name)
    (tmp_path / "notes.md").write_text("no picture")
    (tmp_path / "._a.jpg").write_bytes(b"left by another system")
    (tmp_path / "deeper.png").mkdir()
    images = load_images(tmp_path)
    assert [image.name for image in images.images] == ["a.jpg", "b.PNG", "c.WebP", "d.JPEG"]
    assert images.notes == ["notes.md and deeper.png/ are not read: neither picture nor caption nor mask."]
    for image in images.images:
        assert image.pixels.shape == (3, 12, 20) and image.pixels.dtype == torch.uint8
        assert image.caption is None and image.mask is None
        assert image.pixels[0].float().mean() > 250 and image.pixels[1:].float().mean() < 5


def test_exif_turns_the_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: to be turned clockwise
    halves().save(tmp_path / "a.jpg", exif=exif, quality=95, subsampling=0)
    pixels = load_images(tmp_path).images[0].pixels
    assert pixels.shape == (3, 20, 12)  # left becomes top
    assert pixels[0, 2].float().mean() > 230 and pixels[2, -2].float().mean() > 230


@pytest.mark.parametrize(("background", "expected"), [("white", 255), ("black", 0), ("#808080", 128)])
def test_alpha_is_composed_on_the_chosen_colour(tmp_path, background, expected):
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 255))
    image.paste((255, 0, 0, 0), (0, 0, 2, 4))
    image.save(tmp_path / "a.png")
    pixels = load_images(tmp_path, background=background).images[0].pixels
    assert (pixels[:, :, 0] == expected).all()
    assert pixels[:, 0, 3].tolist() == list(RED)


def test_a_phones_double_picture_and_a_wrong_ending_are_read(tmp_path):
    halves().save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[halves()])
    save(tmp_path / "b.jpg", format="WEBP", lossless=True)
    for image in load_images(tmp_path).images:
        assert image.pixels.shape == (3, 12, 20) and image.pixels[0, :, :8].float().mean() > 230


def test_half_transparent_parts_mix(tmp_path):
    save(tmp_path / "a.png", (255, 0, 0, 128), mode="RGBA")
    assert load_images(tmp_path, background="black").images[0].pixels[:, 0, 0].tolist() == [128, 0, 0]


def test_grey_palette_and_print_colours_become_rgb(tmp_path):
    save(tmp_path / "grey.png", 100, mode="L")
    save(tmp_path / "bits.png", 1, mode="1")
    halves().quantize(4).save(tmp_path / "palette.png")
    save(tmp_path / "print.jpg", (0, 255, 255, 0), mode="CMYK", quality=95)
    save(tmp_path / "transparent_grey.png", (100, 0), mode="LA")
    found = {image.name: image.pixels[:, 3, 3].tolist() for image in load_images(tmp_path).images}
    assert found["grey.png"] == [100, 100, 100] and found["bits.png"] == [255, 255, 255]
    assert found["palette.png"] == list(RED) and found["transparent_grey.png"] == [255, 255, 255]
    assert found["print.jpg"][0] > 200 and max(found["print.jpg"][1:]) < 60


def test_a_palette_entry_may_be_transparent(tmp_path):
    image = halves().quantize(4)
    image.save(tmp_path / "a.png", transparency=image.getpixel((0, 0)))
    images = load_images(tmp_path, background="lime", alpha_masks=True)
    assert images.images[0].pixels[:, 0, 0].tolist() == [0, 255, 0]
    assert images.images[0].mask is not None and images.images[0].mask.mean() == 0.5


def test_sixteen_bits_keep_their_brightness(tmp_path):
    values = np.full((6, 8), 32896, dtype=np.uint16)  # half of 65535
    Image.fromarray(values).save(tmp_path / "a.png")
    assert (load_images(tmp_path).images[0].pixels == 128).all()


@pytest.mark.parametrize("background", ["nocolour", "#12345", "", "255,255,255"])
def test_a_bad_colour_is_refused(tmp_path, background):
    save(tmp_path / "a.png")
    refused(lambda: load_images(tmp_path, background=background), "background", repr(background), "#rrggbb")


# --- folders: captions


def test_captions_stand_beside_their_pictures(tmp_path):
    for name in ("a.png", "b.png", "c.png", "d.png"):
        save(tmp_path / name)
    (tmp_path / "a.txt").write_text("a photo of {subject}\non grass\n", encoding="utf-8")
    (tmp_path / "b.TXT").write_bytes(b"\xef\xbb\xbf" + "ein schönes {subject}".encode())
    (tmp_path / "c.txt").write_text(" \n")
    (tmp_path / "lost.txt").write_text("of nothing")
    images = load_images(tmp_path)
    captions = [image.caption for image in images.images]
    assert captions == ["a photo of {subject} on grass", "ein schönes {subject}", None, None]
    assert len(images.notes) == 1 and "lost.txt" in images.notes[0]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_caption_may_say_its_encoding(tmp_path, encoding):
    save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("ein schönes {subject} \U0001f9f8".encode(encoding))
    assert load_images(tmp_path).images[0].caption == "ein schönes {subject} \U0001f9f8"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "schön".encode("cp1252"), "not UTF-8"),
        ("a.txt", "ein {subject}".encode("utf-16-le"), "zero bytes"),
        ("a.txt", b"\xff\xfe\x00\xd8", "not UTF-8"),
        ("a.caption", b"\x89PNG\r\n\x1a\n\0", "not UTF-8"),
        ("a.txt", b"word " * 10_000_000, "48 MB"),
        ("a.txt", b"word " * 20_000, "98 kB"),
        ("a.txt", b"word " * 2_001, "10005 letters"),
    ],
)
def test_a_caption_that_is_no_text_is_refused(tmp_path, name, content, words):
    save(tmp_path / "a.png")
    (tmp_path / name).write_bytes(content)
    refused(lambda: load_images(tmp_path), name, words)
    refused(lambda: load_images(tmp_path, skip_bad_images=True), name, words)


@pytest.mark.parametrize(
    ("files", "caption", "counts"),
    [
        ({"a.caption": "one"}, "one", None),
        ({"a.CAPTION": "one"}, "one", None),
        ({"a.png.txt": "one"}, "one", None),
        ({"a.txt": "one", "a.caption": " one\n"}, "one", None),
        ({"a.txt": "one", "a.caption": "two"}, "one", "a.txt counts"),
        ({"a.txt": "one", "a.png.txt": "two"}, "one", "a.txt counts"),
        ({"a.txt": " \n", "a.caption": "two"}, "two", "a.caption counts"),
        ({"a.txt": "", "a.caption": ""}, None, None),
    ],
)
def test_captions_of_other_trainers_are_read_and_which_counts_is_said(tmp_path, files, caption, counts):
    save(tmp_path / "a.png")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    images = load_images(tmp_path)
    assert images.images[0].caption == caption
    assert [note.split(". ")[0] for note in images.notes] == ([counts] if counts else [])


# --- folders: masks


def test_a_mask_file_goes_with_its_picture_and_is_no_picture(tmp_path):
    save(tmp_path / "a.png", size=(8, 4))
    save(tmp_path / "b.jpg", size=(8, 4))
    mask = Image.new("L", (8, 4), 0)
    mask.paste(255, (4, 0, 8, 4))
    mask.save(tmp_path / "a-mask.png")
    save(tmp_path / "b-MASK.PNG", 255, (8, 4), "L")  # white all over: as good as none
    images = load_images(tmp_path).images
    assert [image.name for image in images] == ["a.png", "b.jpg"]
    assert images[0].mask is not None and images[0].mask.shape == (1, 4, 8)
    assert images[0].mask[0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert images[1].mask is None


def test_a_mask_of_the_same_shape_is_resized_and_another_refused(tmp_path):
    save(tmp_path / "a.png", size=(40, 20))
    mask = Image.new("RGBA", (20, 10), (0, 0, 0, 0))  # painted white on transparent
    mask.paste((255, 255, 255, 255), (0, 0, 10, 10))
    mask.save(tmp_path / "a-mask.png")
    found = load_images(tmp_path).images[0].mask
    assert found is not None and found.shape == (1, 20, 40) and found.mean().item() == pytest.approx(0.5, abs=1e-3)
    assert found[0, 10, 10] == 1 and found[0, 10, 30] == 0
    save(tmp_path / "a-mask.png", 255, (20, 20), "L")
    refused(lambda: load_images(tmp_path), "a-mask.png", "20 x 20", "a.png", "40 x 20")
    refused(lambda: load_images(tmp_path, skip_bad_images=True), "a-mask.png")


def test_a_black_mask_is_refused_and_a_lone_one_named(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "gas-mask.png", 255, mode="L")
    notes = load_images(tmp_path).notes
    assert len(notes) == 1 and "gas-mask.png" in notes[0]
    save(tmp_path / "a-mask.png", 0, mode="L")
    refused(lambda: load_images(tmp_path), "a-mask.png", "black")


def test_a_mask_of_no_picture_is_told(tmp_path):
    save(tmp_path / "a.png", 9)
    save(tmp_path / "Mask.png", 255, mode="L")
    (note,) = load_images(tmp_path).notes
    assert note == "Mask.png is taken as a picture of the subject: a loss mask of X.png is called X-mask.png."


def test_alpha_can_be_the_mask(tmp_path):
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 255))
    image.paste((255, 0, 0, 51), (0, 0, 2, 4))
    image.save(tmp_path / "a.png")
    save(tmp_path / "b.png", size=(4, 4))
    assert load_images(tmp_path).images[0].mask is None
    first, second = load_images(tmp_path, alpha_masks=True).images
    assert first.mask is not None and first.mask[0, 0].tolist() == pytest.approx([0.2, 0.2, 1, 1])
    assert second.mask is None
    save(tmp_path / "a-mask.png", 128, (4, 4), "L")  # a file says it more plainly
    first = load_images(tmp_path, alpha_masks=True).images[0]
    assert first.mask is not None and (first.mask == pytest.approx(128 / 255))


def test_alpha_masks_without_any_alpha_are_noted(tmp_path):
    save(tmp_path / "a.png")
    assert any("transparent" in note for note in load_images(tmp_path, alpha_masks=True).notes)


def test_transparent_parts_that_are_learned_are_noted(tmp_path):
    """Unless a mask leaves them out, or there are none."""
    for name, alpha in (("cut.png", 0), ("whole.png", 255)):
        image = Image.new("RGBA", (4, 4), (255, 0, 0, 255))
        image.putpixel((0, 0), (255, 0, 0, alpha))
        image.save(tmp_path / name)
    (note,) = load_images(tmp_path).notes
    assert note.startswith("Transparent parts of cut.png are filled with the background colour")
    assert load_images(tmp_path, alpha_masks=True).notes == []
    save(tmp_path / "cut-mask.png", 128, (4, 4), "L")
    assert load_images(tmp_path).notes == []


# --- folders: what is refused


def broken(path: Path, kind: str) -> None:
    data = save(path, size=(64, 64)).read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        noise = torch.randint(256, (64, 64, 3), generator=generator("broken")).to(torch.uint8).numpy()
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "text":
        path.write_text("<html>404</html>")
    elif kind == "program":
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    elif kind == "damaged":
        path.write_bytes(data[:45] + bytes(20) + data[65:])


@pytest.mark.parametrize("kind", ["empty", "truncated", "text", "program", "damaged"])
def test_an_unreadable_picture_is_named_or_left_out(tmp_path, kind):
    save(tmp_path / "a.png")
    broken(tmp_path / "b.png", kind)
    refused(lambda: load_images(tmp_path), "b.png cannot be read", "--skip-bad-images")
    images = load_images(tmp_path, skip_bad_images=True)
    assert [image.name for image in images.images] == ["a.png"]
    assert len(images.notes) == 1 and "b.png cannot be read" in images.notes[0]
    (tmp_path / "a.png").unlink()
    refused(lambda: load_images(tmp_path, skip_bad_images=True), "b.png", "no usable pictures")


def test_a_picture_of_absurd_size_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    picture = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(picture)
    refused(lambda: load_images(tmp_path), "bomb.png", "too many")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as a host may do
    refused(lambda: load_images(tmp_path), "bomb.png", "too many", "100000 x 100000")


def test_a_folder_that_is_missing_a_file_or_empty_is_refused(tmp_path):
    refused(lambda: load_images(tmp_path / "nowhere"), "nowhere", "does not exist")
    refused(lambda: load_images(save(tmp_path / "a.png")), "a.png", "is a file")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.heic").write_bytes(b"1")
    refused(lambda: load_images(tmp_path / "empty"), "no usable pictures", "a.heic", "png")


# --- tensors


def test_tensors_equal_the_same_pictures_from_files(tmp_path):
    pixels = torch.randint(256, (2, 6, 8, 3), generator=generator("tensors"))
    for index in range(2):
        Image.fromarray(pixels[index].to(torch.uint8).numpy()).save(tmp_path / f"{index}.png")
    (tmp_path / "1.txt").write_text("second {subject}")
    files = load_images(tmp_path)
    tensors = ImageSet.from_tensors(pixels / 255, ["", "second {subject}"])
    for one, other in zip(files.images, tensors.images, strict=True):
        assert torch.equal(one.pixels, other.pixels) and one.caption == other.caption
    assert files.digest == tensors.digest
    assert [image.name for image in tensors.images] == ["picture 1", "picture 2"]


def test_tensor_lists_may_mix_sizes_channels_and_batches():
    grey, alpha = torch.full((4, 6, 1), 0.5), torch.zeros(5, 5, 4)
    alpha[:, :2, 3] = 1
    images = ImageSet.from_tensors([grey, torch.ones(2, 3, 3, 3), alpha], alpha_masks=True).images
    assert [tuple(image.pixels.shape) for image in images] == [(3, 4, 6), (3, 3, 3), (3, 3, 3), (3, 5, 5)]
    assert (images[0].pixels == 128).all() and images[3].pixels[0, 0].tolist() == [0, 0, 255, 255, 255]
    assert images[3].mask is not None and images[3].mask[0, 0].tolist() == [1, 1, 0, 0, 0]
    thin = ImageSet.from_tensors([torch.full((1, 1, 4), 0.3)], background="#804020").images[0]
    assert thin.pixels[:, 0, 0].tolist() == [113, 68, 45], "0.3 of it is 0.3, the rest the background"


def test_inference_tensors_of_a_host_serve():
    with torch.inference_mode():
        images = torch.rand(1, 8, 8, 3)
    prepared = prepare(ImageSet.from_tensors(images, masks=torch.ones(1, 8, 8) * 0.5), 16, 8)[0]
    assert prepared.mask is not None
    assert not prepared.image.is_inference() and not prepared.mask.is_inference()


def test_tensor_captions_and_masks_must_match_in_number():
    images = torch.rand(2, 4, 4, 3)
    lines = ImageSet.from_tensors(images, "one {subject}\r\n two\n\n").images
    assert [image.caption for image in lines] == ["one {subject}", "two"]
    assert [image.caption for image in ImageSet.from_tensors(images, "\ntwo").images] == [None, "two"]
    assert [image.caption for image in ImageSet.from_tensors(images, "").images] == [None, None]
    assert [image.caption for image in ImageSet.from_tensors(images, "one\n").images] == ["one", None]
    assert [image.caption for image in ImageSet.from_tensors(images, "one\ntwo\n \n").images] == ["one", "two"]
    for many in (["a", "b", "c"], "a\nb\nc", "a\nb\nc\n\n", "a\n\nc"):
        refused(lambda many=many: ImageSet.from_tensors(images, many), "captions is 3, of images 2", "caption template")
    masks = torch.ones(2, 4, 4)
    masks[0, :, :2] = 0.25
    first, second = ImageSet.from_tensors(images, masks=masks).images
    assert first.mask is not None and first.mask[0, 0].tolist() == [0.25, 0.25, 1, 1] and second.mask is None
    refused(lambda: ImageSet.from_tensors(images, masks=masks[:1]), "masks is 1, of images 2")
    refused(lambda: ImageSet.from_tensors(images, masks=torch.ones(2, 4, 9)), "the mask of picture 1", "9 x 4")


@pytest.mark.parametrize("captions", ["one {subject}", "one {subject}\n", ["one {subject}"]])
def test_a_single_caption_counts_for_all_pictures_and_says_so(captions):
    several = ImageSet.from_tensors(torch.rand(3, 4, 4, 3), captions)
    assert [image.caption for image in several.images] == ["one {subject}"] * 3
    assert len(several.notes) == 1 and "all 3 pictures" in several.notes[0]
    alone = ImageSet.from_tensors(torch.rand(1, 4, 4, 3), captions)
    assert alone.images[0].caption == "one {subject}" and alone.notes == []
    for empty in ([None], [""], " \n"):
        assert ImageSet.from_tensors(torch.rand(3, 4, 4, 3), empty).notes == []


def test_captions_that_are_no_text_are_refused():
    refused(lambda: ImageSet.from_tensors(torch.rand(2, 4, 4, 3), cast("Any", [1, 2])), "caption", "int", "string")
    refused(lambda: ImageSet.from_tensors(torch.rand(2, 4, 4, 3), cast("Any", 5)), "caption", "int", "string")
    refused(lambda: ImageSet.from_tensors(torch.rand(1, 4, 4, 3), "a \ud83d toy"), "caption", "half a character")
    refused(lambda: ImageSet.from_tensors(torch.rand(1, 4, 4, 3), "toy " * 2_501), "caption", "10004 letters")


@pytest.mark.parametrize(
    ("masks", "parts"),
    [
        (torch.full((1, 4, 4), float("nan")), ["the mask of picture 1", "not a number"]),
        (torch.full((1, 4, 4), 255.0), ["the mask of picture 1", "0 to 1"]),
        (torch.ones(1, 4, 4, dtype=torch.uint8), ["the mask of picture 1", "uint8"]),
        (torch.zeros(1, 4, 4), ["the mask of picture 1", "black"]),
        (torch.ones(1, 0, 4), ["the mask of picture 1", "(0, 4, 1)"]),
        (torch.ones(4), ["(4,)", "(height, width)"]),
        ([None], ["NoneType"]),
    ],
)
def test_masks_of_another_layout_are_refused(masks, parts):
    refused(lambda: ImageSet.from_tensors(torch.rand(1, 4, 4, 3), masks=masks), *parts)


def test_a_mask_may_be_true_and_false():
    mask = torch.tensor([[[True, True, False, False]]]).expand(1, 4, 4)
    found = ImageSet.from_tensors(torch.rand(1, 4, 4, 3), masks=mask).images[0].mask
    assert found is not None and found[0, 0].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("images", "parts"),
    [
        ([], ["no images"]),
        (torch.rand(0, 4, 4, 3), ["no images"]),
        (torch.rand(1, 0, 4, 3), ["picture 1", "(0, 4, 3)"]),
        (torch.full((1, 4, 4, 3), float("inf")), ["picture 1", "0 to 1"]),
        (torch.rand(1, 4, 4, 3) - 1, ["picture 1", "0 to 1"]),
        (torch.rand(1, 4, 4, 5), ["picture 1", "(4, 4, 5)"]),
        (torch.rand(1, 4, 4, 3).to(torch.complex64), ["picture 1", "complex64"]),
        ([torch.rand(4, 4, 3), None], ["NoneType"]),
        (np.zeros((1, 4, 4, 3)), ["ndarray"]),
        (None, ["NoneType"]),
        (Path("photos"), ["Path"]),
        (torch.rand(4, 4), ["(4, 4)", "channels"]),
        (torch.rand(1, 4, 4, 2), ["picture 1", "(4, 4, 2)"]),
        (torch.rand(1, 3, 16, 16), ["picture 1", "(3, 16, 16)"]),
        (torch.zeros(1, 4, 4, 3, dtype=torch.uint8), ["picture 1", "uint8"]),
        ([torch.rand(4, 4, 3), torch.rand(4, 4, 3) * 255], ["picture 2", "0 to 1"]),
        (torch.full((1, 4, 4, 3), float("nan")), ["picture 1", "not a number"]),
    ],
)
def test_tensors_of_another_layout_are_refused(images, parts):
    refused(lambda: ImageSet.from_tensors(images), *parts)


# --- the digest


def test_the_digest_depends_on_content_and_order_alone(tmp_path):
    def digest(**changes) -> str:
        values = {"captions": ["a", "b"], "masks": None, "images": torch.arange(96.0).view(2, 4, 4, 3) / 96}
        return ImageSet.from_tensors(**{**values, **changes}).digest

    pictures = torch.arange(96.0).view(2, 4, 4, 3) / 96
    masks = torch.ones(2, 4, 4)
    masks[0, 0, 0] = 0.5
    variants = [
        digest(),
        digest(captions=["a", "c"]),
        digest(captions=["ab", ""]),
        digest(captions=None),
        digest(masks=masks),
        digest(images=pictures.flip(0)),
        digest(images=pictures.view(2, 2, 8, 3)),
        digest(images=pictures[:1], captions=["a"]),
    ]
    assert len(set(variants)) == len(variants)
    assert digest() == digest(masks=torch.ones(2, 4, 4))
    for folder, names in (("one", "ab"), ("two", "xy")):
        (tmp_path / folder).mkdir()
        save(tmp_path / folder / f"{names[0]}.png", RED)
        save(tmp_path / folder / f"{names[1]}.png", BLUE)
    assert load_images(tmp_path / "one").digest == load_images(tmp_path / "two").digest


# --- pictures that are there several times


def equal_pictures(*counts: int) -> ImageSet:
    """So many equal pictures of each kind."""
    return ImageSet.from_tensors(
        [torch.full((2, 2, 3), kind / 255) for kind, count in enumerate(counts) for _ in range(count)]
    )


def test_forty_equal_pictures_are_said_shortly():
    (said,) = equal_pictures(40).repeats()
    assert said.startswith("picture 1, picture 2, picture 3 and 37 others are the same picture, which counts 40 times")


def test_many_pairs_of_equal_pictures_are_said_shortly():
    said = equal_pictures(*[2] * 40).repeats()
    assert len(said) == 6 and "35 more" in said[-1]


def test_equal_files_are_told(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        save(tmp_path / name, BLUE if name == "b.png" else RED)
    (said,) = load_images(tmp_path).repeats()
    assert said.startswith("a.png and c.png are the same picture, which counts 2 times")


# --- memory


def large_values() -> int:
    """How many tensors and arrays of the size of a test's picture are alive."""
    gc.collect()
    return sum(
        type(value) in (torch.Tensor, np.ndarray) and math.prod(value.shape) >= 200 * 100 for value in gc.get_objects()
    )


def test_pictures_of_a_folder_are_not_kept_in_memory(tmp_path):
    for index in range(8):
        save(tmp_path / f"{index}.png", (index, 0, 0, 100), (200, 100), "RGBA")
        halves((200, 100)).convert("L").save(tmp_path / f"{index}-mask.png")
    before = large_values()
    images = load_images(tmp_path)
    assert len(images.images) == 8 and all(image.has_mask for image in images.images)
    assert large_values() == before
    prepared = prepare(images, 16, 8)
    assert len(prepared) == 8 and large_values() == before


def test_a_stored_picture_is_read_as_it_was(tmp_path):
    draws = torch.randint(256, (2, 40, 30, 3), generator=generator("stored")).to(torch.uint8)
    for name, pixels in zip(("a", "b"), draws, strict=True):
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{name}.png")
    save(tmp_path / "b-mask.png", 100, (30, 40), "L")
    stored, held = load_images(tmp_path), ImageSet.from_tensors(draws / 255, masks=torch.full((2, 40, 30), 100 / 255))
    assert torch.equal(stored.images[1].pixels, held.images[1].pixels)
    read, given = stored.images[1].mask, held.images[1].mask
    assert read is not None and given is not None and torch.equal(read, given)
    assert torch.equal(prepare(stored, 16, 8)[1].image, prepare(held, 16, 8)[1].image)
    assert stored.repeats() == held.repeats() == []


@pytest.mark.parametrize("changed", ["a.png", "a-mask.png"])
def test_a_picture_that_changes_while_it_is_in_use_is_refused(tmp_path, changed):
    save(tmp_path / "a.png", size=(8, 8))
    save(tmp_path / "a-mask.png", 100, (8, 8), "L")
    images = load_images(tmp_path)
    save(tmp_path / changed, 200, (8, 8), "L")
    refused(lambda: prepare(images, 16, 8), "a.png", "has changed")
    (tmp_path / changed).unlink()
    refused(lambda: prepare(images, 16, 8), changed, "cannot be read")


# --- buckets


def image_set(*sizes: tuple[int, int], masks: bool = False) -> ImageSet:
    """Random pictures of these (height, width)."""
    images = []
    for index, (height, width) in enumerate(sizes):
        pixels = torch.randint(256, (3, height, width), generator=generator("bucket", index)).to(torch.uint8)
        mask = torch.linspace(0, 1, width).expand(1, height, width).contiguous() if masks else None
        images.append(TrainImage(f"{index}.png", pixels, None, mask))
    return ImageSet(images, "")


def test_the_sizes_of_sdxl_hold_its_published_buckets():
    sizes = bucket_sizes(1024, 64)
    for known in [(1024, 1024), (896, 1152), (832, 1216), (768, 1344), (640, 1536), (1536, 640)]:
        assert known in sizes
    assert all(height % 64 == width % 64 == 0 for height, width in sizes)
    assert all(0.85 * 1024**2 <= height * width <= 1024**2 for height, width in sizes)
    assert {(width, height) for height, width in sizes} == set(sizes)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    units=st.integers(1, 10),
    multiple=st.sampled_from([4, 8, 16]),
)
def test_every_picture_gets_the_nearest_allowed_shape(height, width, units, multiple):
    resolution = units * multiple
    item = prepare(image_set((height, width)), resolution, multiple)[0]
    assert item.image.shape == (3, *item.crop.bucket) and item.image.dtype == torch.float32
    assert item.image.min() >= -1 and item.image.max() <= 1
    assert item.original_size == (height, width)
    sizes = bucket_sizes(resolution, multiple)
    assert item.crop.bucket in sizes and item.crop.bucket[0] * item.crop.bucket[1] <= resolution**2

    def distance(size: tuple[int, int]) -> float:
        return abs(np.log(size[1] / size[0]) - np.log(width / height))

    assert distance(item.crop.bucket) <= min(distance(size) for size in sizes) + 1e-6


def test_a_picture_of_its_buckets_size_is_left_as_it_is():
    images = image_set((16, 16))
    item = prepare(images, 16, 8)[0]
    assert torch.equal(item.image, images.images[0].pixels.float() / 127.5 - 1)
    assert item.crop.place == (0, 0) and item.crop.bucket == (16, 16)


def test_resizing_covers_the_bucket_and_crops_the_middle():
    images = image_set((40, 100), masks=True)
    item = prepare(images, 16, 16)[0]
    # Covering 16 x 16 takes 16 x 40, of which 12 columns go on either side.
    assert item.crop.bucket == (16, 16) and item.crop.place == (0, 12)
    whole = Image.fromarray(images.images[0].pixels.permute(1, 2, 0).numpy())
    whole = np.array(whole.resize((40, 16), Image.Resampling.LANCZOS))[:, 12:28]
    expected = torch.from_numpy(whole).permute(2, 0, 1).float() / 127.5 - 1
    assert (item.image - expected).abs().max() <= 1.01 / 127.5
    assert item.mask is not None and item.mask.shape == (1, 16, 16)
    centres = (torch.arange(16) + 12.5) / 40
    torch.testing.assert_close(item.mask[0, 3], centres, atol=0.02, rtol=0)
    tall = prepare(image_set((100, 40)), 16, 16)[0]
    assert tall.crop.place == (12, 0) and tall.original_size == (100, 40)


def test_preparing_is_deterministic_and_reads_an_endless_strip_without_unrolling_it():
    first, again = prepare(image_set((30, 50)), 32, 8)[0], prepare(image_set((30, 50)), 32, 8)[0]
    assert torch.equal(first.image, again.image)
    assert prepare(image_set((2, 60_000)), 512, 64)[0].image.shape[1] == 320  # as wide as allowed


@pytest.mark.parametrize(
    ("resolution", "multiple", "remedy"),
    [(500, 64, "448 or 512"), (30, 64, "64"), (0, 64, "64"), (-5, 8, "8")],
)
def test_a_resolution_that_is_no_multiple_is_refused_with_the_nearest(resolution, multiple, remedy):
    refused(lambda: prepare(image_set((8, 8)), resolution, multiple), str(resolution), f"give {remedy}.")


def test_a_mask_whose_subject_is_cropped_away_is_refused():
    mask = torch.zeros(1, 10, 100)
    mask[:, :, :5] = 1
    images = ImageSet([TrainImage("a.png", torch.zeros(3, 10, 100, dtype=torch.uint8), None, mask)], "")
    refused(lambda: prepare(images, 16, 16), "a.png", "16 x 16", "crop")


def test_notes_tell_of_many_sizes_and_enlarged_pictures():
    same = prepare(image_set((64, 64), (70, 70)), 32, 8)
    assert bucket_notes(same, 2) == []
    mixed = prepare(image_set((64, 64), (30, 60), (20, 20)), 32, 8)
    sizes, small = bucket_notes(mixed, 2)
    assert bucket_notes(mixed, 1) == [small], "a batch of one picture has one size in any case"
    assert "2 sizes" in sizes and "32 x 32: 2" in sizes
    assert "2.png" in small and "0.png" not in small


def test_a_panorama_that_loses_most_of_itself_is_told():
    assert not any("0.png" in note for note in bucket_notes(prepare(image_set((64, 180)), 64, 16), 1))
    panoramas = bucket_notes(prepare(image_set((100, 800), (64, 64), (800, 100)), 64, 16), 1)[-1]
    assert "0.png loses 62% and 2.png loses 62%" in panoramas and "1.png" not in panoramas
    many = bucket_notes(prepare(image_set(*[(10, 80)] * 40), 64, 16), 1)[-1]
    assert "35 others" in many and len(many) < 300
