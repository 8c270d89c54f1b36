"""Subjects from a folder of pictures: one sub-folder per subject, its name of letters, digits, `_` and `-`.

    backpack/              the training pictures: png, jpg or webp, captions `X.txt` beside `X.png`
    backpack/class_word.txt  one line, what it is: backpack
    backpack/heldout/      pictures of the same subject elsewhere, which no run sees

In: reading them, and our own prompts. Not in: who judges the pictures (`real_judge`). Captions are read as the
trainer reads them. A picture without one is `a photo of {subject}`. Loss masks are ignored.

`heldout/` may be absent. Then there is no held-out loss, and `memorised` is unknown. Fidelity is measured to the
training pictures, so a run that copies them scores highest. `Subject.group` says which of the two a unit used.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from apt_train.config import NAME_PATTERN
from apt_train.data.dataset import TrainImage, load_images
from apt_train.data.pictures import readable_suffixes
from apt_train.errors import InputError
from apt_train.text.captions import SUBJECT, caption_for

from .subjects import Captioned, Prompt, Subject

CLASS_WORD_FILE, HELDOUT_FOLDER = "class_word.txt", "heldout"
WITH_HELDOUT, WITHOUT_HELDOUT = "fidelity to held-out pictures", "fidelity to training pictures"
SUBJECT_PROMPTS, CLASS_PROMPTS, OTHER_PROMPTS = 64, 32, 128

TEMPLATES = (
    "a photo of {subject} on a windowsill on a rainy day",
    "an oil painting of {subject} in a harbour",
    "a photo of {subject} beside a stack of old books",
    "a photo of {subject} in a desert under a clear sky",
    "a pencil drawing of {subject} on white paper",
    "a photo of {subject} next to a bowl of oranges",
    "a photo of {subject} on a kitchen table in the morning",
    "a low-poly 3d render of {subject}",
    "a photo of {subject} in a shop window at night",
    "a watercolour of {subject} in a garden",
    "a photo of {subject} between two candles",
    "a photo of {subject} on a rock by a waterfall",
    "a travel poster of {subject} in flat colours",
    "a photo of {subject} in a train compartment",
    "a photo of {subject} on a park bench in autumn fog",
    "a stained glass window that shows {subject}",
)
"""The subject elsewhere, in a style, or beside something else. Any few in a row mix these."""

OTHERS = (
    "a lighthouse on a cliff at dusk",
    "a bowl of noodles on a wooden table",
    "an astronaut walking on the moon",
    "a red tram in a narrow street",
    "a field of tulips in spring",
    "a portrait of an old fisherman",
    "a waterfall in a rainforest",
    "a black and white photo of a jazz band",
    "a violin on a velvet cloth",
    "a spiral staircase in a library",
    "a hot air balloon above a valley",
    "an oil painting of sailing ships in a storm",
    "a slice of cherry pie on a plate",
    "a steam locomotive crossing a bridge",
    "a watercolour of a mountain village",
    "a neon sign in a dark alley",
    "a giraffe on the savannah",
    "a market stall full of vegetables",
    "a child flying a kite on a hill",
    "a frozen lake under the northern lights",
    "a game of chess in a park",
    "a woodcut of a pine forest",
    "a typewriter on a desk by a window",
    "a surfer on a big wave",
)


def subject_names(folder: Path) -> list[str]:
    """The subjects in the folder, by name. Hidden sub-folders are ignored.

    InputError: no such folder, no sub-folder in it, or one whose name or class_word.txt cannot be used.
    """
    if not folder.is_dir():
        raise InputError(f"The folder of subjects {folder} does not exist: give one with a sub-folder per subject.")
    if (folder / CLASS_WORD_FILE).exists():
        raise InputError(f"{folder} is one subject, it holds {CLASS_WORD_FILE} itself: give the folder above it.")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise InputError(f"{folder} holds no sub-folder: make one per subject, of its pictures and {CLASS_WORD_FILE}.")
    for name in names:
        _class_word(_subject_folder(folder, name))
    return names


def real_subject(name: str, folder: Path, share: float = 1.0) -> Subject:
    """The subject in the sub-folder of that name. `share`: of the usual number of prompts, for quick runs.

    InputError: a name, picture, caption or class_word.txt that cannot be used.
    """
    place = _subject_folder(folder, name)
    class_word = _class_word(place)
    heldout = _captioned(place / HELDOUT_FOLDER, class_word) if (place / HELDOUT_FOLDER).is_dir() else []
    return Subject(
        name=name,
        class_word=class_word,
        training=_captioned(place, class_word),
        heldout=heldout,
        prompts=prompts_for(class_word, share),
        group=WITH_HELDOUT if heldout else WITHOUT_HELDOUT,
    )


def prompts_for(class_word: str, share: float = 1.0) -> list[Prompt]:
    """Prompts of the subject, its class word and other things, kind by kind. Texts repeat, each time with new noise.

    The other things are the same for all subjects, except that texts sharing a word with the class word are left out.
    """
    named, klass, other = (max(4, round(share * count)) for count in (SUBJECT_PROMPTS, CLASS_PROMPTS, OTHER_PROMPTS))
    words = set(class_word.lower().split())
    elsewhere = [text for text in OTHERS if not words & set(text.split())]
    return [
        *(Prompt(text, "subject") for text in _cycled(TEMPLATES, named)),
        *(Prompt(text.replace(SUBJECT, f"a {class_word}"), "class") for text in _cycled(TEMPLATES, klass)),
        *(Prompt(text, "other") for text in _cycled(elsewhere, other)),
    ]


def _cycled(texts: Sequence[str], count: int) -> list[str]:
    return list(itertools.islice(itertools.cycle(texts), count))


def _subject_folder(folder: Path, name: str) -> Path:
    if NAME_PATTERN.fullmatch(name) is None:
        raise InputError(
            f"The subject folder {name!r} in {folder} gives its name to files: rename it with letters, digits, _ and -."
        )
    return folder / name


def _class_word(place: Path) -> str:
    """The one line of class_word.txt."""
    path = place / CLASS_WORD_FILE
    remedy = f"write what the subject is in {path}, on one line, for example backpack"
    try:
        lines = [" ".join(line.split()) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except FileNotFoundError:
        raise InputError(f"The subject {place.name} has no {CLASS_WORD_FILE}: {remedy}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text ({error}): {remedy}.") from error
    if len(lines) != 1:
        raise InputError(f"{path} has {len(lines)} lines of text: {remedy}.")
    return lines[0]


def _captioned(place: Path, class_word: str) -> list[Captioned]:
    """A folder's pictures, upright and without alpha, with captions that contain `{subject}`."""
    if place.is_dir() and not any(path.suffix.lower() in readable_suffixes() for path in place.iterdir()):
        raise InputError(f"There are no pictures in {place}: put png, jpg or webp files of the subject there.")
    try:
        found = load_images(place)
        captioned = [Captioned(_picture(image), _caption(image, class_word)) for image in found.images]
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    for note in found.notes:
        if not note.startswith((CLASS_WORD_FILE, HELDOUT_FOLDER)):
            warnings.warn(f"{place}: {note}", stacklevel=2)
    return captioned


def _picture(image: TrainImage) -> Image.Image:
    return Image.fromarray(image.pixels.permute(1, 2, 0).numpy())


def _caption(image: TrainImage, class_word: str) -> str:
    """As the trainer makes it, so that probes and training see the same."""
    return caption_for(
        image.caption, image.name, template=f"a photo of {SUBJECT}", name="the_subject", class_word=class_word
    )
