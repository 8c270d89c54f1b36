"""Sorts a folder's files: pictures with their captions and loss masks; every other file is mentioned in a note.

In: file endings, pairing by name, what other trainers' folders contain, notes about ignored files, detecting changed
files. Not in: reading pictures (`pictures`) or captions (`caption_files`), the set made of them (`dataset`).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError
from ..names import CONFIG, LOG
from ..wording import listed, printable
from .pictures import is_picture, readable_suffixes

CAPTION_SUFFIXES = (".txt", ".caption")  # .caption is kohya's; if both have text, the first counts
UNREAD_SUFFIXES = (".heic", ".heif", ".avif", ".avifs", ".jxl", ".jp2", ".psd", ".svg", ".exr", ".hdr")
# Raw files of cameras. Many open as a TIFF, which is but their small preview.
RAW_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2")
MASK_ENDINGS = ("-mask", "-masklabel", "_mask", "_masklabel", ".mask")  # ours, OneTrainer's, common. The first counts
# Masks only if a picture of that name exists: otherwise "carnival mask.png" could not show a subject.
_MASKS_BY_PICTURE = ("{} mask", "{} (mask)", "{}(mask)", "mask_{}", "mask-{}", "mask {}", "mask.{}")
_OF_NOTHING = ("mask", "masks", "masklabel", "alpha", "matte")  # perhaps a mask, but of no picture by name
# What masking, ControlNet and gallery tools write next to a picture X.
_MADE_FROM = re.compile(
    r"(?P<picture>.+?)[ ._(-]+(alpha|matte|trimap|masks?|masklabel|seg|segmentation|depth|depthmap|canny|hed|lineart|"
    r"softedge|openpose|normalmap|cond|conditioning|thumb|thumbnail)[ ._-]*[0-9]*\)?"
)
CONDITION_ENDING = "-condlabel"  # OneTrainer's pictures for the conditioning, not of the subject
_LEFT_BY_SYSTEMS = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir")
_LOOKED_THROUGH = 1000  # entries of a sub-folder inspected for pictures
_DEEPEST, _MOST_FOLDERS = 3, 100  # levels, and folders within a sub-folder, inspected likewise


@dataclass(frozen=True)
class PictureFiles:
    """A picture file and the files that belong to it."""

    path: Path
    mask: Path | None
    captions: list[Path]  # the first with text counts


@dataclass
class Folder:
    """A folder's files, sorted by kind."""

    pictures: list[PictureFiles] = field(default_factory=list[PictureFiles])  # sorted by name
    with_pictures: list[Path] = field(default_factory=list[Path])  # sub-folders with pictures, which are not read
    notes: list[str] = field(default_factory=list[str])


@dataclass
class _Found:
    """Visible entries, classified by name or, if the name says nothing, by content."""

    pictures: list[Path] = field(default_factory=list[Path])
    captions: list[Path] = field(default_factory=list[Path])
    masks: list[tuple[str, Path]] = field(default_factory=list[tuple[str, Path]])  # each with its picture's stem
    conditions: list[Path] = field(default_factory=list[Path])
    unread: list[Path] = field(default_factory=list[Path])
    misnamed: list[Path] = field(default_factory=list[Path])
    folders: list[Path] = field(default_factory=list[Path])
    others: list[Path] = field(default_factory=list[Path])
    hidden: list[Path] = field(default_factory=list[Path])  # pictures by content
    in_cloud: list[Path] = field(default_factory=list[Path])  # macOS keeps `.X.png.icloud` in its place
    by_picture: list[Path] = field(default_factory=list[Path])  # masks only because a picture of that name exists
    made: list[Path] = field(default_factory=list[Path])  # by their name, derived from another picture here


def sort_folder(folder: Path) -> Folder:
    """Assign every file of the folder to its kind, or mention it in a note.

    Raises:
        InputError: no such folder, or one that cannot be read.
    """
    found = _Found()
    for path in _entries(folder):
        _put(found, path)
    _find_masks_by_picture(found)
    _find_made(found)
    owner = _owners(found.pictures)
    found.masks = [(owner(stem), path) for stem, path in found.masks]
    masks, captions = _by_stem(found.masks), _by_stem([(owner(path.stem), path) for path in found.captions])
    sorted_ = Folder(with_pictures=[inner for path in found.folders for inner in _with_pictures(path)])
    for path in found.pictures:
        beside = [*captions.get(path.stem, []), *captions.get(path.name, [])]
        beside.sort(key=lambda caption: CAPTION_SUFFIXES.index(caption.suffix.lower()))
        sorted_.pictures.append(PictureFiles(path, next(iter(masks.get(path.stem, [])), None), beside))
    used = {file for picture in sorted_.pictures for file in (*picture.captions, picture.mask)}
    sorted_.notes = [*_notes(folder, found, used, sorted_), *_masks_elsewhere(folder, found.pictures)]
    return sorted_


def folder_state(folder: Path) -> list[str]:
    """A line per file of the folder that changes when the file is written or replaced; contents are not read.

    Empty: the folder cannot be read.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return sorted(f"{entry.name!r} {_written(entry)}" for entry in entries)
    return []


def _written(entry: os.DirEntry[str]) -> str:
    """Size and times of a file, or of a link's target; empty if the link is broken."""
    with contextlib.suppress(OSError):
        about = entry.stat()
        return f"{about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}"
    return ""


def _entries(folder: Path) -> list[Path]:
    """The folder's visible entries, sorted by name so that every system has the same order."""
    shown = printable(str(folder))
    if not os.path.isdir(folder):
        what = "is a file" if os.path.exists(folder) else "does not exist"
        raise InputError(f"The image folder {shown} {what}: give a folder with pictures of the subject.")
    try:
        entries = [path for path in folder.iterdir() if not _is_system_file(path.name)]
    except OSError as error:
        raise InputError(f"The image folder {shown} cannot be read: {error.strerror}.") from error
    return sorted(entries, key=lambda path: path.name)


def _is_system_file(name: str) -> bool:
    """Files that systems leave behind. macOS writes `._X.png` next to X.png on foreign disks."""
    return name.startswith("._") or name.lower() in _LEFT_BY_SYSTEMS


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or _is_system_file(name)


def _put(found: _Found, path: Path) -> None:
    suffix, stem = path.suffix.lower(), path.stem
    if _is_hidden(path.name) and suffix == ".icloud":
        real = path.with_name(stem[1:])  # as the Finder shows it
        counts = real.suffix.lower() in (*readable_suffixes(), *UNREAD_SUFFIXES, *CAPTION_SUFFIXES)
        return found.in_cloud.append(real) if counts else None
    if _is_hidden(path.name):
        return found.hidden.append(path) if os.path.isfile(path) and is_picture(path) else None
    if os.path.isdir(path):  # Path.is_dir raises if a folder may be listed but not entered
        return found.folders.append(path)
    if suffix in CAPTION_SUFFIXES:
        return found.captions.append(path)
    if suffix not in readable_suffixes() and (place := _unnamed(found, path)) is not None:
        return place.append(path)
    mask_ending = next((ending for ending in MASK_ENDINGS if stem.lower().endswith(ending)), None)
    if mask_ending:
        return found.masks.append((stem[: -len(mask_ending)], path))
    (found.conditions if stem.lower().endswith(CONDITION_ENDING) else found.pictures).append(path)


def _unnamed(found: _Found, path: Path) -> list[Path] | None:
    """The list for a file without a readable picture's ending; None: its content is a picture after all."""
    if path.suffix.lower() in RAW_SUFFIXES:
        return found.unread
    by_content = os.path.isfile(path) and is_picture(path)
    if path.suffix.lower() in UNREAD_SUFFIXES:
        return None if by_content else found.unread
    if path.suffix in ("", "."):
        return None if by_content else found.others
    return found.misnamed if by_content else found.others


def _find_masks_by_picture(found: _Found) -> None:
    pictures = {path.stem.lower(): path for path in found.pictures}
    called = {form.format(stem): owner for stem, owner in pictures.items() for form in _MASKS_BY_PICTURE}
    found.by_picture = [path for path in found.pictures if path.stem.lower() in called]
    found.pictures = [path for path in found.pictures if path not in found.by_picture]
    found.masks += [(called[path.stem.lower()].stem, path) for path in found.by_picture]


def _find_made(found: _Found) -> None:
    stems = {path.stem.lower() for path in found.pictures}
    named = {path: _MADE_FROM.fullmatch(path.stem.lower()) for path in found.pictures}
    found.made = [path for path, match in named.items() if match and match["picture"] in stems]
    found.pictures = [path for path in found.pictures if path not in found.made]


def _owners(pictures: list[Path]) -> Callable[[str], str]:
    """A function from a file's stem to its picture's stem or name: an exact match, else the only similar spelling.

    Similar means equal but for case or the encoding of accents, which Windows and macOS may change.
    """
    names = {name for path in pictures for name in (path.stem, path.name)}
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_folded(name), []).append(name)

    def owner(stem: str) -> str:
        meant = alike.get(_folded(stem), [])
        return meant[0] if stem not in names and len(meant) == 1 else stem

    return owner


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _by_stem(files: list[tuple[str, Path]]) -> dict[str, list[Path]]:
    """Files by the stem of their picture; among several masks, ours come first."""

    def rank(path: Path) -> int:
        has = [path.stem.lower().endswith(ending) for ending in MASK_ENDINGS]
        return [*has, True].index(True)

    sorted_: dict[str, list[Path]] = {}
    for stem, path in sorted(files, key=lambda file: rank(file[1])):
        sorted_.setdefault(stem, []).append(path)
    return sorted_


def _with_pictures(folder: Path) -> list[Path]:
    """The folder if it contains pictures, otherwise the folders inside it that do (kohya's `img/10_name`)."""
    layer, looked_into = [folder], 0
    for _ in range(_DEEPEST):
        names = {path: _some_names(path) for path in layer[: max(0, _MOST_FOLDERS - looked_into)]}
        looked_into += len(names)
        if found := [path for path in names if any(Path(n).suffix.lower() in readable_suffixes() for n in names[path])]:
            return found
        inside = [path / name for path in names for name in sorted(names[path])]
        layer = [path for path in inside if os.path.isdir(path) and not path.is_symlink()]
    return []


def _some_names(folder: Path) -> list[str]:
    """Some visible names in a folder; none of a run's, whose pictures are curves and samples."""
    names: list[str] = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        names = [entry.name for entry in itertools.islice(entries, _LOOKED_THROUGH) if not _is_hidden(entry.name)]
    return [] if {CONFIG, LOG} <= set(names) else names


def _notes(folder: Path, found: _Found, used: set[Path | None], sorted_: Folder) -> list[str]:
    """One sentence for each kind of ignored file."""
    pictures = {path.stem for path in found.pictures}
    masks = [path for _, path in found.masks]
    lone = [path for stem, path in found.masks if stem not in pictures]
    second = [path for path in masks if path not in used and path not in lone]
    orphans = [path for path in found.captions if path not in used]
    guessed = [path for path in found.by_picture if path in used]
    nameless = [path for path in found.pictures if path.stem.lower() in _OF_NOTHING]
    in_folders = [path for path in sorted_.with_pictures if "mask" not in path.name.lower()]
    of_masks = [path for path in sorted_.with_pictures if "mask" in path.name.lower()]
    empty = [path for path in found.folders if not any(inner.is_relative_to(path) for inner in sorted_.with_pictures)]
    others = [*found.others, *empty]
    sentences = (
        (found.unread, "{is} left out: convert {it} to png or jpg."),
        (found.misnamed, "{is} left out, although the content is a picture: give {it} the ending .png or .jpg."),
        (found.conditions, "{is} left out: conditioning pictures of OneTrainer do not show the subject."),
        (
            lone,
            "{is} left out as a loss mask by name, but there is no picture for {it}: rename {it}, or add the picture.",
        ),
        (guessed, "{is} taken as a loss mask because of the name: rename {it} to train on {it} as a picture."),
        (nameless, "{is} taken as a picture of the subject: a loss mask of X.png is called X-mask.png."),
        (found.made, "{is} left out as made from another picture here, by the name: rename {it} to train on {it}."),
        (found.hidden, "{is} hidden, so left out: remove the dot at the beginning of the name to use {it}."),
        (found.in_cloud, "{is} in iCloud only, so left out: download {it} in Finder."),
        (second, "{is} not used: another file is the loss mask of the same picture."),
        (orphans, "{belongs} to no picture: a caption has the name of its picture."),
        (
            in_folders,
            "{is} not read, although there are pictures inside: move these here, or give the sub-folder itself.",
        ),
        (of_masks, "{is} not read: a loss mask of X.png stands beside it, as X-mask.png."),
        (others, "{is} not read: neither picture nor caption nor mask."),
    )
    return [_sentence(folder, paths, text) for paths, text in sentences if paths]


def _sentence(folder: Path, paths: Sequence[Path], text: str) -> str:
    one = len(paths) == 1
    words = {"is": "is", "belongs": "belongs", "it": "it"} if one else {"is": "are", "belongs": "belong", "it": "them"}
    return f"{listed([_shown(folder, path) for path in paths])} {text.format(**words)}"


def _shown(folder: Path, path: Path) -> str:
    return printable(path.relative_to(folder).as_posix()) + ("/" if os.path.isdir(path) else "")


def _masks_elsewhere(folder: Path, pictures: list[Path]) -> list[str]:
    """Notes about sibling folders in which other trainers look for loss masks with the pictures' own names."""
    here = folder.absolute()
    names = [f"{here.name}{joint}{word}" for joint in "-_" for word in ("mask", "masks")] + ["mask", "masks"]
    places = [here.parent / name for name in names if name != here.name and os.path.isdir(here.parent / name)]
    files = [name for path in pictures for name in (path.name, f"{path.stem}.png")]
    found = [printable(place.name) for place in places if any(os.path.isfile(place / file) for file in files)]
    note = f"The masks in {listed(found)} beside the folder are not read: put them here as X-mask.png."
    return [note] if found else []
