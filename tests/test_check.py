"""The preflight: each finding on a folder made for it, none on good pictures; the contact sheet; `apt-train check`.

Not here: the node (`tests/host/test_image_set.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from apt_train import cli
from apt_train.data.buckets import bucket_notes, prepare
from apt_train.data.dataset import load_images
from apt_train.errors import InputError
from apt_train.palette import BLUE, ORANGE
from apt_train.photo_check.look import sharpness_of
from apt_train.photo_check.preflight import Preflight, preflight
from apt_train.photo_check.sheet import MOST, RED, _lines_below, contact_sheet
from apt_train.text.captions import caption_for

from .command_line import options_of
from .photo_sets import FOLDERS, GOOD, SIDE, Photo, background, change, save

DEMO = Path(cli.__file__).parent / "assets" / "demo"


UNKNOWN = "\U00013080\U00013081\U00013082"  # hieroglyphs, which no typeface of ours has


def looked_through(folder: Path, resolution: int = SIDE, **more: Any) -> Preflight:
    return preflight(load_images(folder), resolution, **{"class_word": "toy", **more})


def kinds(found: Preflight) -> list[str]:
    return [finding.kind for finding in found.findings]


# ---- findings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_made_for_a_finding_has_that_one(kind: str, tmp_path: Path) -> None:
    make, names = FOLDERS[kind]
    make(tmp_path)
    (finding,) = looked_through(tmp_path, 64 if kind == "many pictures" else SIDE).findings
    assert finding.kind == kind
    assert [sorted(path.name for path in tmp_path.glob("?.png"))[place] for place in finding.pictures] == names
    assert all(name in finding.text for name in names)


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_finding_says_what_it_does_and_what_to_do(kind: str, tmp_path: Path) -> None:
    FOLDERS[kind][0](tmp_path)
    (finding,) = looked_through(tmp_path, 64 if kind == "many pictures" else SIDE).findings
    sentences = finding.text.split(". ")
    assert len(sentences) == 2 and finding.text.endswith(".")
    assert all(len(sentence.split()) < 25 for sentence in sentences)


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("captions", [True, False])
def test_good_pictures_have_no_findings(masks: bool, captions: bool, tmp_path: Path) -> None:
    found = looked_through(save(tmp_path, masks=masks, captions=captions))
    assert kinds(found) == [] and found.heading == "No findings in 4 pictures at 256 pixels."
    assert any("no masks" in sentence for sentence in found.unchecked) != masks


@pytest.mark.parametrize("folder", ["subject", "heldout"])
def test_the_demos_pictures_have_none_at_their_own_size(folder: str) -> None:
    """Also where all stand on one lawn, as their captions say so."""
    found = looked_through(DEMO / folder, 64)
    assert [kind for kind in kinds(found) if folder == "subject" or kind != "same background"] == []


def test_the_check_and_the_run_agree_on_what_is_too_small(tmp_path: Path) -> None:
    save(tmp_path, (*GOOD[:3], replace(GOOD[3], size=(230, 230))))
    change(tmp_path, "0.png", lambda picture: picture.resize((200, 200), Image.Resampling.LANCZOS))
    images = load_images(tmp_path)
    (noted,) = bucket_notes(prepare(images, SIDE, 64), 1)
    (finding,) = looked_through(tmp_path).findings
    assert "enlarged: 0.png." in noted and [images.images[place].name for place in finding.pictures] == ["0.png"]


def test_drawn_pictures_at_a_larger_size_are_enlarged_and_nothing_else(tmp_path: Path) -> None:
    assert kinds(looked_through(DEMO / "subject", 512)) == ["enlarged"]
    for path in (DEMO / "subject").glob("*.png"):  # pixel art as it is kept
        Image.open(path).resize((512, 512), Image.Resampling.NEAREST).save(tmp_path / path.name)
        (tmp_path / path.name).with_suffix(".txt").write_bytes(path.with_suffix(".txt").read_bytes())
    assert kinds(looked_through(tmp_path, 512)) == []


def test_noise_of_any_grain_is_neither_blurred_nor_alike(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for i, cells in enumerate((8, 32, 128, 256)):
        tint = np.array([(230, 90, 90), (90, 200, 90), (90, 110, 240), (220, 200, 80)][i])
        pixels = (tint * draw.uniform(0.4, 1, (cells, cells, 1))).astype(np.uint8)
        Image.fromarray(pixels).resize((256, 256), Image.Resampling.NEAREST).save(tmp_path / f"{i}.png")
    assert kinds(looked_through(tmp_path)) == []


@pytest.mark.parametrize("radius", [1.5, 2, 3, 5, 8])
@pytest.mark.parametrize("contrast", [0.5, 1])
def test_blur_is_found_at_any_contrast(radius: float, contrast: float) -> None:
    picture = Photo(1, size=(512, 512)).draw().point(lambda value: int(128 + contrast * (value - 128)))
    sharp, soft = sharpness_of(picture), sharpness_of(picture.filter(ImageFilter.GaussianBlur(radius)))
    assert sharp is not None and sharp > 0.2
    assert soft is None or soft < 0.06


def test_a_background_out_of_focus_is_no_blur(tmp_path: Path) -> None:
    save(tmp_path)

    def bokeh(picture: Image.Image) -> Image.Image:
        soft = picture.filter(ImageFilter.GaussianBlur(4))
        soft.paste(picture, (0, 0), GOOD[2].mask())
        return soft

    change(tmp_path, "2.png", bokeh)
    assert kinds(looked_through(tmp_path)) == []


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("sides", [(8, 8, 8, 8), (13, 13, 13, 13), (25, 25, 25, 25), (20, 20, 0, 0), (0, 0, 25, 10)])
def test_a_picture_cropped_a_little_is_a_copy(sides: tuple[int, int, int, int], flip: bool, tmp_path: Path) -> None:
    left, top, right, bottom = sides
    cut = GOOD[0].draw().crop((left, top, SIDE - right, SIDE - bottom))
    (ImageOps.mirror(cut) if flip else cut).resize((SIDE, SIDE)).save(save(tmp_path) / "9.png")
    (finding,) = looked_through(tmp_path).findings
    assert (finding.kind, finding.pictures) == ("mirrored" if flip else "near-duplicate", (0, 4))


def test_a_burst_from_a_moving_hand_is_copies(tmp_path: Path) -> None:
    wide = Photo(1, 0, (0.45, 0.5), 0.3, (SIDE + 24, SIDE + 24)).draw()
    for i, (x, y, turn) in enumerate([(0, 0, 0), (9, 4, 0.5), (4, 11, -0.5)]):
        shot = wide.rotate(turn, Image.Resampling.BICUBIC).crop((6 + x, 6 + y, SIDE + x, SIDE + y))
        shot.resize((SIDE, SIDE)).save(tmp_path / f"burst{i}.png")
    save(tmp_path, GOOD[1:])
    (finding,) = looked_through(tmp_path).findings
    assert (finding.kind, finding.pictures) == ("near-duplicate", (3, 4, 5))


def test_a_subject_turned_where_it_stands_is_no_copy(tmp_path: Path) -> None:
    """From a tripod most of the picture stays, and yet each shows another side."""
    place = Photo(1, 0, (0.4, 0.4), 0.13)
    for turn in range(5):
        picture = background(1, 0, place.size).copy()
        picture.paste(background(2000 + turn, 0, place.size), (0, 0), place.mask())
        picture.save(tmp_path / f"{turn}.png")
    assert kinds(looked_through(tmp_path)) == ["same background"]


@pytest.mark.parametrize(("name", "alike", "pair"), [("9.png", (0, 4, 5), (0, 6)), ("4.png", (0, 5, 6), (0, 4))])
def test_of_copies_one_is_named_as_mirrored(
    name: str, alike: tuple[int, ...], pair: tuple[int, ...], tmp_path: Path
) -> None:
    """Whether the mirrored one comes after its copies or before."""
    save(tmp_path)
    for copy in ("7.png", "8.png"):
        (tmp_path / copy).write_bytes((tmp_path / "0.png").read_bytes())
    ImageOps.mirror(GOOD[0].draw()).save(tmp_path / name)
    copies, mirrored = looked_through(tmp_path).findings
    assert (copies.kind, copies.pictures) == ("near-duplicate", alike)
    assert (mirrored.kind, mirrored.pictures) == ("mirrored", pair)


def test_things_of_one_outline_on_white_are_no_copies(tmp_path: Path) -> None:
    """A difference hash takes them for such: most of its bits are those of the empty paper."""
    draw = np.random.default_rng(0)
    for i, (shape, colour) in enumerate([("ellipse", "navy"), ("rectangle", "olive"), ("ellipse", "firebrick")]):
        picture = Image.new("RGB", (256, 256), "white")
        getattr(ImageDraw.Draw(picture), shape)((70, 75, 190, 195), colour)
        grain = np.asarray(picture) + draw.normal(0, 2, (256, 256, 1))
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{i}.png")
    assert kinds(looked_through(tmp_path)) == ["same background"]


@pytest.mark.parametrize("colour", ["teal", (0, 0, 0, 0)], ids=["opaque", "transparent"])
def test_a_picture_of_one_colour_is_called_that_and_not_blurred(colour: Any, tmp_path: Path) -> None:
    """Such as a layer that was exported without anything on it."""
    save(tmp_path)
    Image.new("RGBA", (256, 256), colour).save(tmp_path / "5.png")
    found = looked_through(tmp_path)
    assert kinds(found) == ["one colour"] and found.findings[0].serious and "5.png" in found.findings[0].text


def test_one_background_is_no_finding_where_masks_or_captions_account_for_it(tmp_path: Path) -> None:
    FOLDERS["same background"][0](tmp_path)
    for photo, name in zip(GOOD, "0123", strict=True):
        photo.mask().save(tmp_path / f"{name}-mask.png")
    assert kinds(looked_through(tmp_path)) == []
    for name in "0123":
        (tmp_path / f"{name}-mask.png").unlink()
        (tmp_path / f"{name}.txt").write_text(f"{{subject}} number {name} on moss", encoding="utf-8")
    assert kinds(looked_through(tmp_path)) == []
    (tmp_path / "3.txt").write_text("{subject} from behind", encoding="utf-8")
    assert kinds(looked_through(tmp_path)) == ["same background"]


def test_how_much_of_the_subject_the_crop_takes_is_said(tmp_path: Path) -> None:
    """Of a subject that reaches from the middle to the end, the same share as of the picture."""
    wide = Photo(4, 3, size=(4 * SIDE, SIDE))
    save(tmp_path, (*GOOD[:3], wide))
    mask = Image.new("L", wide.size)
    mask.paste(255, (2 * SIDE, SIDE // 4, 4 * SIDE, SIDE // 2))
    mask.save(tmp_path / "3-mask.png")
    found = looked_through(tmp_path)
    (finding,) = [one for one in found.findings if one.kind == "subject cropped"]
    assert found.looks[3].crop.lost > 0.2
    assert f"3.png loses {found.looks[3].crop.lost:.0%}" in finding.text and finding.serious


def test_the_background_of_a_masked_picture_is_what_the_mask_leaves_out(tmp_path: Path) -> None:
    """A subject that fills most of the border, as without a mask its own colours are taken for the background."""
    large = Photo(4, 0, (0.5, 0.85), 0.7)
    save(tmp_path, (*(replace(photo, tint=0) for photo in GOOD[:3]), large))
    assert kinds(looked_through(tmp_path)) == []
    large.mask().save(tmp_path / "3-mask.png")
    assert kinds(looked_through(tmp_path)) == ["same background", "subject cut off"]


@pytest.mark.parametrize("ends", [((0, 0, 0), (255, 255, 255)), ((30, 15, 5), (255, 240, 200))], ids=["grey", "sepia"])
def test_unrelated_pictures_without_colour_share_no_background(ends: tuple[Any, Any], tmp_path: Path) -> None:
    """Different light alone tells them apart, where colours would have; the same light is still one background."""
    save(tmp_path, tuple(replace(photo, tint=tint) for photo, tint in zip(GOOD, (0, 1, 3, 6), strict=True)))
    for i in range(len(GOOD)):
        change(tmp_path, f"{i}.png", lambda picture: ImageOps.colorize(picture.convert("L"), *ends))
    assert kinds(looked_through(tmp_path)) == []
    save(tmp_path, tuple(replace(photo, tint=0) for photo in GOOD))
    for i in range(len(GOOD)):
        change(tmp_path, f"{i}.png", lambda picture: ImageOps.colorize(picture.convert("L"), *ends))
    assert kinds(looked_through(tmp_path)) == ["same background"]


def test_a_mask_that_covers_the_border_is_asked_about_and_cuts_nothing_off(tmp_path: Path) -> None:
    """Inverted around a subject at the side, or of a subject that fills the picture: the mask cannot tell."""
    save(tmp_path, tuple(replace(photo, at=(0.2, 0.6), reach=0.2) for photo in GOOD), masks=True)
    for i in range(len(GOOD)):
        change(tmp_path, f"{i}-mask.png", ImageOps.invert)
    (finding,) = looked_through(tmp_path).findings
    assert finding.kind == "mask inverted?" and not finding.serious and "invert the mask if" in finding.text


def test_a_mask_that_leaves_a_watermark_out_is_no_finding(tmp_path: Path) -> None:
    save(tmp_path, masks=True)
    for i in range(len(GOOD)):
        mask = Image.new("L", (SIDE, SIDE), 255)
        mask.paste(0, (SIDE - 60, SIDE - 20, SIDE, SIDE))
        mask.save(tmp_path / f"{i}-mask.png")
    assert kinds(looked_through(tmp_path)) == []


def test_without_a_class_word_only_the_placeholder_is_known(tmp_path: Path) -> None:
    save(tmp_path, captions=True)
    (tmp_path / "0.txt").write_text("my_toy on grass", encoding="utf-8")
    unknown, told = looked_through(tmp_path, class_word=""), looked_through(tmp_path, identifier="my_toy")
    assert kinds(unknown) == kinds(told) == []
    assert any("no class word" in sentence for sentence in unknown.unchecked)
    assert not any("no class word" in sentence for sentence in told.unchecked)


CAPTIONS = (
    "a photo of {subject}", "a toy on grass", "my_toy on grass", "embedding:my_toy on grass",
    "embedding:my_toy_embedding.safetensors", "embedding:other on grass", "Embedding:other", "a thing on grass", "toys",
)  # fmt: skip


@pytest.mark.parametrize("caption", CAPTIONS)
def test_a_caption_is_found_fault_with_where_training_refuses_it(caption: str, tmp_path: Path) -> None:
    save(tmp_path, captions=True)
    (tmp_path / "1.txt").write_text(caption, encoding="utf-8")
    try:
        caption_for(caption, "1.png", template="", name="my_toy", class_word="toy")
        refused = False
    except InputError:
        refused = True
    assert ("subject not named" in kinds(looked_through(tmp_path, identifier="my_toy"))) == refused


def test_a_name_without_a_class_word_is_searched_for_all_the_same(tmp_path: Path) -> None:
    """Whatever lacks it may still have the class word."""
    save(tmp_path, captions=True)
    for name in "0123":
        (tmp_path / f"{name}.txt").write_text("my_toy", encoding="utf-8")
    known: dict[str, Any] = {"class_word": "", "identifier": "my_toy"}
    assert kinds(looked_through(tmp_path, **known)) == ["background not named"]
    assert not any("no class word" in sentence for sentence in looked_through(tmp_path, **known).unchecked)
    assert kinds(looked_through(tmp_path, class_word="")) == ["same caption"]
    (tmp_path / "1.txt").write_text("a toy on grass", encoding="utf-8")
    found = looked_through(tmp_path, **known)
    assert "subject not named" not in kinds(found) and any("no class word" in line for line in found.unchecked)


def test_a_crop_that_keeps_all_of_the_masked_subject_is_no_finding(tmp_path: Path) -> None:
    save(tmp_path, (*GOOD[:3], Photo(4, 3, (0.5, 0.5), 0.4, (1280, 256))), masks=True)
    assert kinds(looked_through(tmp_path)) == []


def test_a_soft_mask_is_judged_by_what_it_counts_most(tmp_path: Path) -> None:
    def third(value: int) -> int:
        return value // 3

    save(tmp_path, masks=True)
    for name in "0123":
        change(tmp_path, f"{name}-mask.png", lambda mask: mask.point(third))
    assert kinds(looked_through(tmp_path)) == []


def test_what_the_reader_notes_is_told_too(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "notes.pdf").touch()
    assert any("notes.pdf" in line for line in looked_through(tmp_path).lines())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("masks", [True, False])
def test_pictures_of_any_size_can_be_looked_at_and_drawn(masks: bool, tmp_path: Path) -> None:
    def half(value: int) -> int:
        return value // 2

    sizes = [(1, 1), (2, 3), (1, 400), (400, 1), (3, 900), (47, 48), (700, 40), (20000, 1), (1, 20000)]
    for i, size in enumerate(sizes):
        Image.effect_noise(size, 80).convert("RGB").save(tmp_path / f"{i}.png")
        if masks:
            Image.new("L", size, 255).save(tmp_path / f"{i}-mask.png")
            Image.open(tmp_path / f"{i}-mask.png").point(half).save(tmp_path / f"{i}-mask.png")
    found = looked_through(tmp_path, 64)
    assert "enlarged" in kinds(found) and contact_sheet(found).width


# ---- the sheet ---------------------------------------------------------------------------------------------------


def test_the_sheet_shows_crops_masks_and_findings_in_colour(tmp_path: Path) -> None:
    save(tmp_path, (*GOOD[:3], Photo(4, 3, (0.5, 0.5), 0.4, (1280, 256))), masks=True)
    plain = contact_sheet(looked_through(tmp_path))
    assert colours(plain) & {RED, ORANGE, BLUE} == {BLUE}
    FOLDERS["mask inverted?"][0](tmp_path)
    change(tmp_path, "2.png", lambda picture: picture.filter(ImageFilter.GaussianBlur(2)))
    found = looked_through(tmp_path)
    marked = contact_sheet(found)
    assert kinds(found) == ["mask inverted?", "blurred"] and {RED, ORANGE, BLUE} <= colours(marked)
    assert marked.width == plain.width and marked.height > plain.height


def colours(sheet: Image.Image) -> set[tuple[int, ...]]:
    found: Any = sheet.getcolors(sheet.width * sheet.height)
    return {colour for _, colour in found or ()}


def test_what_is_cut_away_is_pale_on_the_sheet(tmp_path: Path) -> None:
    for i in range(3):
        Image.new("RGB", (768, 256), (0, 90, 0)).resize((768, 192)).save(tmp_path / f"{i}.png")
    (look, *_) = looked_through(tmp_path, 512).looks
    assert look.crop.lost > 0.2
    assert {(0, 90, 0)} < colours(contact_sheet(looked_through(tmp_path, 512)))
    pale = tuple(round(255 * 0.72 + value * 0.28) for value in (0, 90, 0))
    sheet = contact_sheet(looked_through(tmp_path, 512))
    assert any(max(abs(a - b) for a, b in zip(pale, colour, strict=True)) <= 2 for colour in colours(sheet))


def test_the_sheet_writes_a_name_as_it_is(tmp_path: Path) -> None:
    found = looked_through(save(tmp_path))
    spaced, joined = (
        replace(found, looks=[replace(found.looks[0], name=name), *found.looks[1:]]) for name in ("a b.png", "a_b.png")
    )
    assert contact_sheet(spaced) != contact_sheet(joined)


def test_a_sheet_of_many_pictures_with_odd_names_is_drawn(tmp_path: Path) -> None:
    for i in range(MOST + 3):
        background(i, i % 7, (24, 16 + i % 9)).save(tmp_path / f"{'长' * (i % 3)}{'name ' * (i % 9)}{i}.png")
    found = looked_through(tmp_path, 64)
    assert contact_sheet(found).width == contact_sheet(looked_through(DEMO / "subject", 64)).width
    assert [line.text for line in _lines_below(found)][1] == "Not shown: 3 more pictures."


# ---- the command -------------------------------------------------------------------------------------------------


def test_a_name_that_the_sheet_cannot_write_is_a_number_there(tmp_path: Path) -> None:
    """In the sentences, too; the text output keeps the name. Accents that macOS keeps apart are no such letters."""
    save(tmp_path, captions=True)
    (tmp_path / "2.png").rename(tmp_path / f"{UNKNOWN}.png")
    (tmp_path / "2.txt").rename(tmp_path / f"{UNKNOWN}.txt")
    (tmp_path / "1.png").rename(tmp_path / "e\u0301te\u0301.png")
    (tmp_path / "1.txt").unlink()
    change(tmp_path, f"{UNKNOWN}.png", lambda picture: picture.filter(ImageFilter.GaussianBlur(2)))
    found = looked_through(tmp_path)
    assert any(f"{UNKNOWN}.png" in line for line in found.lines())
    told = [line.text for line in _lines_below(found)]
    assert any("Blurred: picture 4." in text for text in told) and not any(UNKNOWN in text for text in told)

    def as_if(**names: str) -> Preflight:
        looks = [replace(look, name=names.get(look.name, look.name)) for look in found.looks]
        said = [
            replace(each, text=each.text.replace(f"{UNKNOWN}.png", names[f"{UNKNOWN}.png"])) for each in found.findings
        ]
        return replace(found, looks=looks, findings=said)

    written = {f"{UNKNOWN}.png": "picture 4", "e\u0301te\u0301.png": "\xe9t\xe9.png"}
    assert contact_sheet(found) == contact_sheet(as_if(**written))


def test_a_sentence_that_begins_with_a_hebrew_name_keeps_its_order(tmp_path: Path) -> None:
    """Drawn by a Pillow that can turn text round, it would begin at the right."""
    save(tmp_path, GOOD[:1])
    found = preflight(load_images(tmp_path), SIDE)
    name = "\u05e9\u05dd.png"
    ends = [contact_sheet(replace(found, findings=[], notes=[f"{name} has several frames{end}"])) for end in "!+"]
    differing = ImageChops.difference(*ends).getbbox()
    assert differing is not None and differing[0] > 150, "what follows last stands last"


def test_a_class_word_in_other_letters_is_a_finding(tmp_path: Path) -> None:
    found = looked_through(save(tmp_path), class_word="玩具", identifier="my_toy")
    assert kinds(found) == ["not in English"] and found.findings[0].serious
    assert kinds(looked_through(tmp_path, class_word="Löwe", identifier="leo")) == []


@pytest.mark.parametrize("caption", ["{subject} 在桌子上", "a photo of my_toy 在桌上", "a toy 在桌上"])
def test_the_subjects_own_name_does_not_make_a_caption_english(caption: str, tmp_path: Path) -> None:
    save(tmp_path, captions=True)
    (tmp_path / "1.txt").write_text(caption, encoding="utf-8")
    assert kinds(looked_through(tmp_path, identifier="my_toy")) == ["not in English"]


def test_check_says_that_nothing_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(save(tmp_path / "toy")), "--resolution", "256"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "No findings in 4 pictures at 256 pixels."


@pytest.mark.parametrize(("count", "says"), [(1, "only 1 picture."), (2, "only 2 pictures.")])
def test_few_pictures_are_counted(count: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(save(tmp_path / "toy", GOOD[:count])), "--resolution", "256"]) == 1
    assert f"The subject has {says} Pose" in capsys.readouterr().out


def test_check_names_findings_and_draws_the_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, sheet = tmp_path / "toy", tmp_path / "sheet.png"
    folder.mkdir()
    FOLDERS["subject not named"][0](folder)
    command = ["check", str(folder), "--resolution", "256", "--class-word", "toy", "--sheet", str(sheet)]
    assert cli.main(command) == 1
    heading, finding, *_ = capsys.readouterr().out.splitlines()
    assert heading == "1 finding in 4 pictures at 256 pixels."
    assert finding.startswith("1. Captions that do not name the subject: 1.png.")
    with Image.open(sheet) as drawn:
        assert drawn.size == contact_sheet(looked_through(folder)).size


MISTAKES = {
    "no folder": (["nowhere"], "nowhere does not exist"),
    "another size": (["toy", "--resolution", "250"], "resolution is 250, not a multiple of 8: give 248 or 256"),
    "no size": (["toy", "--resolution", "0"], "resolution is 0: give the size to train at"),
    "below nothing": (["toy", "--resolution=-512"], "resolution is -512"),
    "a multiple": (["toy", "--bucket-multiple", "3"], "bucket_multiple is 3: give a multiple of 8"),
    "a class word": (["toy", "--class-word", "{subject}"], "class_word is '{subject}'"),
    "a name": (["toy", "--identifier", "a/b"], "identifier is 'a/b'"),
    "a name that is no text": (["toy", "--class-word", "to\0y"], "leave out what is no letter"),
    "a sheet among the pictures": (["toy", "--sheet", "toy/sheet.png"], "where it would be trained on"),
    "no picture's name": (["toy", "--sheet", "sheet.txt"], "give the name of a .png file"),
    "no place for it": (["toy", "--sheet", "nowhere/sheet.png"], "nowhere"),
    "a name for no file": (["toy", "--sheet", "con.png"], "con.png is a reserved name"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_sentence(
    mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "toy")
    given, sentence = MISTAKES[mistake]
    assert cli.main(["check", *given]) == 2
    said = capsys.readouterr()
    assert sentence in said.err and len(said.err.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy"]


OTHERS: dict[str, Callable[[Path], object]] = {
    "a picture": lambda path: Image.new("RGB", (4, 4)).save(path),
    "text": lambda path: path.write_text("mine"),
    "nothing": lambda path: path.touch(),
    "a link to a picture": lambda path: path.symlink_to("other.png"),
    "a link to nowhere": lambda path: path.symlink_to("nowhere.png"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_sheet_is_drawn_over_a_sheet_and_nothing_else(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "toy")
    OTHERS[name](tmp_path / "s.png")
    before = [os.readlink("s.png")] if os.path.islink("s.png") else [Path("s.png").read_bytes()]
    assert cli.main(["check", "toy", "--sheet", "s.png"]) == 2
    assert ", a file that is not a contact sheet: give another name." in capsys.readouterr().err
    assert before == ([os.readlink("s.png")] if os.path.islink("s.png") else [Path("s.png").read_bytes()])
    Path("s.png").unlink()
    assert cli.main(["check", "toy", "--sheet", "s.png"]) < 2 and cli.main(["check", "toy", "--sheet", "s.png"]) < 2


# ---- every option has its effect ---------------------------------------------------------------------------------


def odd_set(folder: Path) -> Path:
    """Pictures that every option reads in another way."""
    save(folder, captions=True)
    (folder / "0.txt").write_text("my_toy on a thing", encoding="utf-8")
    Photo(5, 4, size=(256, 400)).draw().save(folder / "4.png")
    clear = GOOD[1].draw()
    clear.putalpha(GOOD[1].mask())
    clear.save(folder / "5.png")
    return folder


EFFECTS: dict[str, tuple[list[str], list[str]]] = {
    "--resolution": ([], ["--resolution", "512"]),
    "--bucket-multiple": ([], ["--bucket-multiple", "128"]),
    "--class-word": ([], ["--class-word", "thing"]),
    "--identifier": ([], ["--identifier", "my_toy"]),
    "--background": ([], ["--background", "red"]),
    "--alpha-masks": ([], ["--alpha-masks"]),
}
ELSEWHERE = {"folder", "--skip-bad-images", "--sheet"}  # below, and above


@pytest.mark.parametrize("option", EFFECTS)
def test_an_option_has_its_effect(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, seen = odd_set(tmp_path / "odd"), list[tuple[str, bytes]]()
    for given in EFFECTS[option]:
        sheet = tmp_path / f"sheet-{len(seen)}.png"
        assert cli.main(["check", str(folder), "--resolution", "256", *given, "--sheet", str(sheet)]) < 2
        said = capsys.readouterr().out.replace(str(sheet), "")
        seen.append((said, sheet.read_bytes()))
    assert seen[0][1] != seen[1][1] and (option == "--background" or seen[0][0] != seen[1][0])


def test_bad_pictures_are_left_out_where_that_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save(tmp_path / "toy")
    (folder / "9.png").write_bytes(b"x")
    assert cli.main(["check", str(folder), "--resolution", "256"]) == 2
    assert cli.main(["check", str(folder), "--resolution", "256", "--skip-bad-images"]) == 0
    assert "in 4 pictures" in capsys.readouterr().out


def test_every_option_is_tried() -> None:
    assert set(EFFECTS) | ELSEWHERE == options_of("check")
