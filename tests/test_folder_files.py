"""What of a folder becomes a picture, a caption or a mask, and that everything else in it is named once.

Not here: what pictures and captions hold (`test_pictures`, `test_dataset`).
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, features

from apt_train.data.dataset import ImageSet, load_images
from apt_train.data.folder_files import folder_state
from apt_train.errors import InputError

SIZE = (8, 8)
READS_AVIF = "avif" in features.modules and bool(features.check_module("avif"))


def save(path: Path, color: Any = (200, 80, 60), mode: str = "RGB", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, SIZE, color).save(path, **options)
    return path


def names(images: ImageSet) -> list[str]:
    return [image.name for image in images.images]


def said_once(images: ImageSet, name: str) -> str:
    """The one note that names the file."""
    (note,) = [note for note in images.notes if name in note]
    assert note.count(name) == 1 and note.endswith(".")
    return note


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one picture, a.png."""
    save(tmp_path / "set" / "a.png")
    return tmp_path / "set"


# ---- pictures


@pytest.mark.parametrize(
    ("name", "written_as"),
    [
        ("b.jfif", "JPEG"),
        ("b.jpe", "JPEG"),
        ("b.JFIF", "JPEG"),
        ("b.apng", "PNG"),
        ("b.bmp", "BMP"),
        ("b.gif", "GIF"),
        ("b.tif", "TIFF"),
        ("b.TIFF", "TIFF"),
        ("b.tga", "TGA"),
        ("b.heic", "JPEG"),
        ("b.png", "TIFF"),
        ("b", "PNG"),
        ("photo of b", "WEBP"),
        pytest.param("b.avif", "AVIF", marks=pytest.mark.skipif(not READS_AVIF, reason="this Pillow has no AVIF")),
    ],
)
def test_a_picture_is_read_by_its_ending_or_its_content(folder: Path, name: str, written_as: str) -> None:
    save(folder / name, format=written_as)
    images = load_images(folder)
    assert names(images) == ["a.png", name] and images.notes == []
    assert images.images[1].pixels.float().mean(dim=(1, 2)).tolist() == pytest.approx([200, 80, 60], abs=6)


@pytest.mark.parametrize("name", ["b.heic", "b.HEIF", "b.jxl", "b.jp2", "b.psd", "b.exr", "b.cr3"])
def test_a_picture_of_a_format_that_is_not_read_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"not for Pillow")
    assert "convert it to png or jpg" in said_once(load_images(folder), name)


@pytest.mark.parametrize("name", ["b.dng", "b.NEF", "b.arw"])
def test_the_small_preview_in_a_raw_file_is_no_picture(folder: Path, name: str) -> None:
    save(folder / name, format="TIFF")
    images = load_images(folder)
    assert names(images) == ["a.png"] and "convert it to png or jpg" in said_once(images, name)


@pytest.mark.parametrize("name", ["b.jpg_large", "b.png~", "b.2024", "b.dat"])
def test_a_picture_with_a_strange_ending_is_named(folder: Path, name: str) -> None:
    save(folder / name, format="JPEG")
    images = load_images(folder)
    assert names(images) == ["a.png"] and "ending" in said_once(images, name)


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"P6 8 8 255\n" + bytes(192)]
)
def test_no_rarer_decoder_is_started_whatever_the_ending(folder: Path, content: bytes) -> None:
    for name in ("b", "b.eps", "b.ppm", "b.ai"):
        (folder / name).write_bytes(content)
    images = load_images(folder)
    assert names(images) == ["a.png"]
    assert all(said_once(images, name) for name in ("b.eps", "b.ppm", "b.ai"))
    (folder / "b.tga").write_bytes(content)
    with pytest.raises(InputError, match=r"b\.tga"):
        load_images(folder)


def test_a_targa_is_read_by_its_ending_alone(folder: Path) -> None:
    """It has no mark, so nearly any bytes could pose as one."""
    save(folder / "b.png", format="TGA")
    with pytest.raises(InputError, match=r"b\.png cannot be read"):
        load_images(folder)


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
@pytest.mark.parametrize("kind", ["dangling", "loop", "pipe"])
def test_a_picture_that_is_no_file_is_refused_by_name(folder: Path, kind: str) -> None:
    place = folder / "b.png"
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(place if kind == "loop" else folder / "gone.png")
    with pytest.raises(InputError, match=r"b\.png cannot be read \(|b\.png cannot be read, as it is not a file"):
        load_images(folder)
    images = load_images(folder, skip_bad_images=True)
    assert names(images) == ["a.png"] and "Left out" in said_once(images, "b.png")


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
@pytest.mark.parametrize("name", ["a.txt", "a.caption", "a-mask.png"])
def test_a_dangling_caption_or_mask_is_refused_by_name(folder: Path, name: str) -> None:
    (folder / name).symlink_to(folder / "gone")
    with pytest.raises(InputError, match=name):
        load_images(folder)


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_to_pictures_are_read(folder: Path) -> None:
    save(folder.parent / "elsewhere" / "far.png", 7, "L")
    (folder / "b.png").symlink_to(folder.parent / "elsewhere" / "far.png")
    assert names(load_images(folder)) == ["a.png", "b.png"]


def test_pictures_left_out_are_named_shortly(folder: Path) -> None:
    for index in range(100):
        (folder / f"{index}.png").write_bytes(b"")
    notes = load_images(folder, skip_bad_images=True).notes
    assert len(notes) == 6 and "95 more" in notes[-1]


def test_names_that_are_no_text_are_shown_all_the_same(folder: Path) -> None:
    if os.name == "nt":
        pytest.skip("such names cannot be written there")
    os.rename(folder / "a.png", os.fsencode(folder) + b"/caf\xe9\n.png")
    (Path(os.fsdecode(os.fsencode(folder) + b"/\xff\x1b[2J.md"))).write_text("")
    images = load_images(folder)
    assert names(images) == ["caf??.png"]
    assert said_once(images, "??[2J.md").encode().isascii()


# ---- masks


@pytest.mark.parametrize(
    "name",
    ["a-mask.png", "a-masklabel.png", "a_mask.png", "a-MaskLabel.PNG", "a_MASK.jpg", "a.mask.png", "a_masklabel.png"],
)
def test_loss_masks_of_other_trainers_are_read_and_are_no_pictures(folder: Path, name: str) -> None:
    save(folder / name, 128, "L")
    images = load_images(folder)
    assert names(images) == ["a.png"] and images.notes == []
    assert images.images[0].mask is not None and images.images[0].mask.mean().item() == pytest.approx(128 / 255)


@pytest.mark.parametrize("name", ["a mask.png", "A Mask.png", "a (mask).jpg", "mask_a.png", "mask-a.png", "Mask a.png"])
def test_what_is_called_the_mask_of_a_picture_there_is_one_and_named(folder: Path, name: str) -> None:
    """Else it would be trained as a picture of the subject."""
    save(folder / name, 128, mode="L")
    images = load_images(folder)
    assert names(images) == ["a.png"] and images.images[0].mask is not None
    assert images.images[0].mask.mean().item() == pytest.approx(128 / 255, abs=0.01)
    assert "rename it" in said_once(images, name)


@pytest.mark.parametrize("name", ["carnival mask.png", "mask_old.png", "mask.png", "b mask.png"])
def test_a_picture_of_a_mask_is_a_picture(folder: Path, name: str) -> None:
    save(folder / name)
    assert names(load_images(folder)) == sorted(["a.png", name])


@pytest.mark.parametrize(
    "name",
    ["a-mask2.png", "a_mask_1.png", "A masks.png", "a-alpha.png", "a.matte.png", "a_seg.jpg", "a_depth.png",
     "a_canny.png", "a-openpose.webp", "a (depth 2).png", "a_thumb.jpg", "A_Conditioning.png", "a__lineart.png"],
)  # fmt: skip
def test_what_is_made_from_a_picture_is_no_picture_of_the_subject_and_named(folder: Path, name: str) -> None:
    save(folder / name)
    images = load_images(folder)
    assert names(images) == ["a.png"] and images.images[0].mask is None
    assert "left out as made from another picture here, by the name: rename it" in said_once(images, name)


@pytest.mark.parametrize("name", ["b_depth.png", "depth.png", "ahead.png", "a normal day.png", "a_seg_old.png"])
def test_a_picture_of_such_a_name_without_its_picture_is_one(folder: Path, name: str) -> None:
    save(folder / name)
    assert names(load_images(folder)) == sorted(["a.png", name])


@pytest.mark.parametrize(
    ("picture", "beside"),
    [("IMG_1.PNG", "img_1"), ("img_1.png", "IMG_1"), ("caf\u00e9.png", "cafe\u0301"), ("Stra\u00dfe.png", "STRASSE"),
     ("B.jpg", "b.JPG")],
)  # fmt: skip
def test_names_that_some_systems_do_not_know_apart_belong_together(folder: Path, picture: str, beside: str) -> None:
    """A caption and a mask that have been on Windows, or on a Mac."""
    save(folder / picture)
    (folder / f"{beside}.txt").write_text("a toy", encoding="utf-8")
    save(folder / f"{beside.removesuffix('.JPG')}-mask.png", 128, "L")
    images = load_images(folder)
    (found,) = [image for image in images.images if image.name == picture]
    assert found.caption == "a toy" and found.mask is not None and images.notes == []


def test_where_two_pictures_differ_in_case_alone_each_has_its_own(folder: Path) -> None:
    save(folder / "A.png")
    if len(list(folder.iterdir())) == 1:
        pytest.skip("a file system that does not know them apart")
    (folder / "A.txt").write_text("a toy")
    (folder / "\u00c1.txt").write_text("nobody's")
    images = load_images(folder)
    assert [image.caption for image in images.images] == ["a toy", None]
    assert "belongs to no picture" in said_once(images, "\u00c1.txt")


def test_of_a_mask_by_name_and_ours_ours_counts(folder: Path) -> None:
    save(folder / "a mask.png", 100, mode="L")
    save(folder / "a-mask.png", 50, mode="L")
    images = load_images(folder)
    assert images.images[0].mask is not None and images.images[0].mask.mean().item() == pytest.approx(50 / 255)
    assert "not used" in said_once(images, "a mask.png")


@pytest.mark.parametrize("name", [".mask_a.png", ".a-mask.png", ".b.png"])
def test_a_hidden_picture_is_left_out_and_named(folder: Path, name: str) -> None:
    save(folder / name)
    images = load_images(folder)
    assert names(images) == ["a.png"] and images.images[0].mask is None
    assert "hidden" in said_once(images, name)


def test_what_systems_leave_is_not_named(folder: Path) -> None:
    for name in (".DS_Store", "._a.png", "Thumbs.db", ".gitignore"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    assert load_images(folder).notes == []


def test_a_picture_that_is_in_the_cloud_only_is_named(folder: Path) -> None:
    (folder / ".b.jpg.icloud").write_bytes(b"bplist00")
    (folder / ".letter.pdf.icloud").write_bytes(b"bplist00")
    assert said_once(load_images(folder), "iCloud") == "b.jpg is in iCloud only, so left out: download it in Finder."


def test_of_several_masks_ours_counts_and_the_others_are_named(folder: Path) -> None:
    for value, name in ((50, "a-mask.png"), (100, "a-masklabel.png"), (150, "a_mask.png")):
        save(folder / name, value, "L")
    images = load_images(folder)
    assert images.images[0].mask is not None and images.images[0].mask.mean().item() == pytest.approx(50 / 255)
    assert said_once(images, "a-masklabel.png") == said_once(images, "a_mask.png")
    (folder / "a-mask.png").unlink()
    images = load_images(folder)
    assert images.images[0].mask is not None and images.images[0].mask.mean().item() == pytest.approx(100 / 255)


@pytest.mark.parametrize("name", ["gas-mask.png", "b-masklabel.png", "old_mask.jpg", "-mask.png"])
def test_a_mask_without_its_picture_is_no_picture_and_named(folder: Path, name: str) -> None:
    save(folder / name, 128, "L")
    images = load_images(folder)
    assert names(images) == ["a.png"] and "rename it" in said_once(images, name)


@pytest.mark.parametrize("name", ["a-condlabel.png", "b-condlabel.png", "a-CondLabel.JPG"])
def test_a_conditioning_picture_is_no_picture_of_the_subject(folder: Path, name: str) -> None:
    save(folder / name)
    images = load_images(folder)
    assert names(images) == ["a.png"] and "conditioning" in said_once(images, name)


@pytest.mark.parametrize("place", ["set_mask", "set-masks", "mask", "masks"])
def test_masks_in_a_folder_beside_this_one_are_named(folder: Path, place: str) -> None:
    save(folder.parent / place / "a.png", 255, "L")
    save(folder.parent / "other" / "a.png", 255, "L")
    images = load_images(folder)
    assert len(images.notes) == 1 and f"masks in {place} " in images.notes[0] and "X-mask.png" in images.notes[0]


@pytest.mark.parametrize("place", ["mask", "Masks", "a_mask"])
def test_masks_in_a_sub_folder_are_named(folder: Path, place: str) -> None:
    save(folder / place / "a.png", 255, "L")
    images = load_images(folder)
    assert len(images.notes) == 1 and "X-mask.png" in said_once(images, f"{place}/")


# ---- sub-folders and everything else


def test_sub_folders_with_pictures_are_named(folder: Path) -> None:
    save(folder / "10_toy" / "b.jfif")
    save(folder / "x.png" / "c.png")
    (folder / "empty").mkdir()
    images = load_images(folder)
    assert names(images) == ["a.png"]
    assert said_once(images, "10_toy/") == said_once(images, "x.png/") != said_once(images, "empty/")


def test_where_only_sub_folders_hold_pictures_they_are_offered(tmp_path: Path) -> None:
    save(tmp_path / "10_my toy" / "a.png")
    save(tmp_path / "5_other" / "a.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        load_images(tmp_path)
    assert str(tmp_path / "10_my toy") in str(caught.value) and str(tmp_path / "5_other") in str(caught.value)
    assert str(tmp_path / "empty") not in str(caught.value)


@pytest.mark.parametrize("place", ["run", "runs/toy"])
def test_a_runs_curves_and_samples_are_offered_to_nobody(folder: Path, place: str) -> None:
    """Its output folder may be among the pictures."""
    save(folder / place / "indicator.png")
    save(folder / place / "previews" / "step_000001_0_tuned.png")
    for name in ("config.json", "log.jsonl"):
        (folder / place / name).touch()
    assert said_once(load_images(folder), f"{place.split('/')[0]}/ is not read: neither")
    (folder / "a.png").unlink()
    with pytest.raises(InputError, match="put png, jpg or webp files there"):
        load_images(folder)


@pytest.mark.parametrize("place", ["img/10_my toy", "train/x/y", "10_a/b"])
def test_folders_deeper_inside_are_offered_too(tmp_path: Path, place: str) -> None:
    """As kohya's: it is given the folder above the numbered ones."""
    save(tmp_path / place / "a.png")
    (tmp_path / place.split("/")[0] / "loop").symlink_to(tmp_path)
    (tmp_path / "log").mkdir()
    with pytest.raises(InputError) as caught:
        load_images(tmp_path)
    assert f"give the folder that holds them, {tmp_path / place}." in str(caught.value)
    save(tmp_path / "a.png")
    notes = load_images(tmp_path).notes
    assert [note for note in notes if f"{place}/ is not read, although there are pictures inside" in note] and len(
        notes
    ) == 2
    assert [note for note in notes if note.startswith("log/ is not read: neither")]


@pytest.mark.parametrize(
    "name", [".DS_Store", "._a.png", "Thumbs.db", "thumbs.db", "desktop.ini", ".hidden.png", ".cache/a.png"]
)
def test_what_systems_leave_counts_for_nothing(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"\0\1")
    images = load_images(folder)
    assert names(images) == ["a.png"] and images.notes == []


@pytest.mark.parametrize(
    "name", ["metadata.jsonl", "a.json", "a.npz", "a.safetensors", "clip.mp4", "notes", "zero", "a.TXT.bak", "a.cap"]
)
def test_every_other_file_is_named_once(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"" if name == "zero" else b"\0something else")
    images = load_images(folder)
    assert names(images) == ["a.png"] and images.images[0].caption is None
    assert "not read" in said_once(images, name)


@pytest.mark.parametrize("ending", [".npz", ".txt", ".heic", "-mask.png", "-condlabel.png"])
def test_a_thousand_of_a_kind_are_one_short_sentence(folder: Path, ending: str) -> None:
    for index in range(300):
        (folder / f"{index:03}{ending}").write_bytes(b"text")
    (note,) = load_images(folder).notes
    assert "000" in note and "295 others" in note and len(note) < 250


# ---- whether a file has changed


def test_a_folders_state_is_another_with_every_change_and_with_nothing_else(folder: Path) -> None:
    (folder / "lost").symlink_to(folder / "nowhere")
    (folder / "b.txt").write_text("a toy", encoding="utf-8")
    states = [folder_state(folder)]
    assert folder_state(folder) == states[0]
    changes = (
        lambda: (folder / "b.txt").write_text("a hat", encoding="utf-8"),  # of the same size
        lambda: (folder / "b.txt").rename(folder / "c.txt"),
        lambda: save(folder / "d.png"),
        lambda: (folder / "d.png").unlink(),
        lambda: (folder / "nowhere").touch(),
    )
    for change in changes:
        time.sleep(0.02)  # a file's times are not finer than the system's clock
        change()
        states.append(folder_state(folder))
        assert states[-1] != states[-2]
    assert folder_state(folder / "nothing") == []
