"""Names, captions and prompts in other letters on the pictures: never boxes, and readable where a typeface has them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager
from PIL import Image

from apt_train.data.dataset import load_images
from apt_train.photo_check.preflight import preflight
from apt_train.photo_check.sheet import contact_sheet
from apt_train.report import typeface
from apt_train.report.grid import fit_label, labelled_grid
from apt_train.report.plots import as_picture
from apt_train.report.typeface import drawable, font
from tests.photo_sets import save

CHINESE = "玩具在草地上"
ACCENTED, CYRILLIC = "été, Löwe, Škoda", "игрушка на траве"
UNKNOWN = "\U00013080\U00013081\U00013082"  # hieroglyphs


@pytest.fixture
def chinese_typeface(tmp_path: Path) -> Iterator[str]:
    """A tiny typeface that has these six letters, installed under a name that Windows uses."""
    path = tmp_path / "chinese.ttf"
    names = {ord(letter): f"letter{i}" for i, letter in enumerate(CHINESE)}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap(names)
    glyphs = {".notdef": TTGlyphPen(None).glyph()}
    for place, name in enumerate(names.values(), 1):
        pen = TTGlyphPen(None)
        pen.moveTo((100, 0))
        pen.lineTo((100, 100 * place))
        pen.lineTo((900, 800))
        pen.closePath()
        glyphs[name] = pen.glyph()
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics({name: (1000, 0) for name in glyphs})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "SimHei", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    before = list(fontManager.ttflist)
    fontManager.addfont(path)
    forget()
    yield str(path)
    fontManager.ttflist[:] = before
    forget()


@pytest.fixture
def only_matplotlibs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose only typefaces are those that come with matplotlib."""
    kept = [entry for entry in fontManager.ttflist if entry.name.startswith("DejaVu")]
    monkeypatch.setattr(fontManager, "ttflist", kept)
    forget()
    yield
    forget()


def forget() -> None:
    for remembered in (typeface._path_for, typeface._installed, typeface._letters_in):
        remembered.cache_clear()


def sheet_of(label: str) -> Image.Image:
    return labelled_grid([[Image.new("RGB", (200, 20))]], [""], [label], text_size=20)


@pytest.mark.usefixtures("only_matplotlibs")
@pytest.mark.parametrize("text", [ACCENTED, CYRILLIC, "ελληνικά", "“plain” – and…"])
def test_letters_of_europe_are_drawn_on_any_machine(text: str) -> None:
    assert drawable(text, font(20, text)) == text
    assert fit_label(text, 1000, font(20, text)) == text
    assert sheet_of(text) != sheet_of("?" * len(text))


def test_plain_text_has_pillows_typeface_and_needs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typeface, "_installed", None)
    assert font(20, "a photo of my_toy, 50%").getlength("toy") == font(20).getlength("toy")


@pytest.mark.usefixtures("only_matplotlibs")
@pytest.mark.parametrize("text", [CHINESE, UNKNOWN])
def test_a_letter_that_no_typeface_has_is_a_question_mark(text: str) -> None:
    assert drawable(f"a {text}", font(20, f"a {text}")) == "a " + "?" * len(text)
    assert sheet_of(text) == sheet_of("?" * len(text))


def test_chinese_is_drawn_where_a_typeface_has_it(chinese_typeface: str) -> None:
    face = font(20, CHINESE)
    assert getattr(face, "path", None) == chinese_typeface and drawable(CHINESE, face) == CHINESE
    assert sheet_of(CHINESE) != sheet_of("?" * len(CHINESE)) and sheet_of("玩具") != sheet_of("草地")


@pytest.mark.usefixtures("chinese_typeface")
def test_chinese_is_wrapped_between_letters() -> None:
    face = font(20, CHINESE)
    assert fit_label(CHINESE, 61, face) == "玩具在\n草地上"
    assert fit_label("toy red", font(20).getlength("toy red"), font(20)) == "toy red"


def test_a_figure_draws_a_name_in_other_letters(chinese_typeface: str) -> None:
    def drawn(text: str) -> Image.Image:
        figure = Figure((4, 1))
        figure.text(0.1, 0.5, text, fontsize=20)
        return as_picture(figure, 400)

    assert drawn("玩具") != drawn("草地")
    assert findfont(FontProperties(family=["SimHei"])) == chinese_typeface
    assert drawn("été") != drawn("ete")


@pytest.mark.usefixtures("only_matplotlibs")
@pytest.mark.parametrize("caption", [ACCENTED, CYRILLIC])
def test_the_contact_sheet_draws_captions_in_other_letters(caption: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "toys")

    def drawn(text: str) -> Image.Image:
        (folder / "1.txt").write_text(text, encoding="utf-8")
        return contact_sheet(preflight(load_images(folder), 256, class_word="toy"))

    sheets = [drawn(text) for text in (caption, caption[::-1], UNKNOWN, UNKNOWN[::-1])]
    assert sheets[0] != sheets[1] and sheets[2] == sheets[3]
