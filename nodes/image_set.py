"""`APT Image Set`: a folder, or wired images, as pictures, captions and masks for training, checked on the way.

In: the node and its outputs. Not in: reading a folder (`apt_train.data.dataset`), the findings and the sheet
(`apt_train.photo_check`), which folders may be read (`host.folders`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..apt_train.errors import InputError
from ..apt_train.wording import printable
from .checks import check_ranges, is_wired, known, single
from .host.folders import input_folders, picture_folder

if TYPE_CHECKING:
    from ..apt_train.data.dataset import AtPicture, ImageSet

NO_FOLDER = "none"
_WIRES = ("images", "captions", "masks")
_SKIPS = "skip_bad_images"


class APTImageSet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="APTImageSet",
            display_name="APT Image Set",
            category="training/APT",
            description="A folder of photos as images, captions and masks for APT Train. Shows each photo as it will "
            "be trained on, and says before training what would spoil the result.",
            search_aliases=["load folder", "dataset", "captions", "masks", "contact sheet", "preflight", "check"],
            is_input_list=True,
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Combo.Input(
                    "folder", options=[NO_FOLDER, *input_folders()], default=NO_FOLDER,
                    tooltip="A folder inside ComfyUI's input folder. A new one appears after a refresh (key R). none: "
                    "the path below, or wired images.",
                ),
                io.String.Input(
                    "path", default="", placeholder="or the path of a folder",
                    tooltip="A folder anywhere on the machine that ComfyUI runs on. Captions lie beside the photos as "
                    "X.txt, masks as X-mask.png. If ComfyUI listens to other machines, only its own folders.",
                ),
                io.Int.Input(
                    "resolution", default=512, min=64, max=4096, step=64,
                    tooltip="The training size, as in APT Train: 512 for SD1.5, 1024 for SDXL. It decides the crops "
                    "shown and what is too small. The images are passed on as they are.",
                ),
                io.String.Input(
                    "class_word", default="", placeholder="for example toy",
                    tooltip="What the subject is. Captions are searched for it. Empty: as in the APT Train that the "
                    "images go to.",
                ),
                io.String.Input(
                    "subject", default="", placeholder="for example my_toy",
                    tooltip="The subject's name, where captions use it. Empty: as in the APT Train that the images go "
                    "to.",
                ),
                io.Boolean.Input(
                    "alpha_masks", default=False,
                    tooltip="Take a photo's transparency as its mask, where it has no mask file.",
                ),
                io.String.Input(
                    "background", default="white", advanced=True,
                    tooltip="Colour (a name or #rrggbb) behind transparent parts.",
                ),
                io.Boolean.Input(
                    "skip_bad_images", default=False, advanced=True,
                    tooltip="Leave out files that cannot be read, and say so. Off: refuse the folder.",
                ),
                io.Image.Input(
                    "images", optional=True,
                    tooltip="Pictures in place of a folder: a batch, or lists of different sizes.",
                ),
                io.String.Input(
                    "captions", optional=True, force_input=True,
                    tooltip="Captions in place of the folder's: one per picture, as a list or as lines of one text.",
                ),
                io.Mask.Input(
                    "masks", optional=True,
                    tooltip="Masks in place of the folder's, one per picture. White is learned.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "images_out", display_name="images", is_output_list=True, tooltip="The pictures, for APT Train."
                ),
                io.String.Output(
                    "captions_out", display_name="captions", is_output_list=True,
                    tooltip="Their captions, for APT Train. Empty: the caption template.",
                ),
                io.Mask.Output(
                    "masks_out", display_name="masks", is_output_list=True,
                    tooltip="Their masks, for APT Train. White all over where a picture has none.",
                ),
                io.String.Output(
                    "findings", tooltip="What was found, what it does to the result and what to do, as text."
                ),
                io.Image.Output("sheet", tooltip="The contact sheet, as shown on the node."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> Any:
        """Changes as soon as any file of the folder changes, and every time if the folder comes by a wire."""
        from ..apt_train.data.folder_files import folder_state

        if is_wired(inputs, "folder", "path"):
            return float("nan")
        folder = _folder(known(inputs))
        return [] if folder is None else folder_state(folder)  # on an error the host runs the node, which says it

    @classmethod
    def validate_inputs(cls, **inputs: Any) -> bool:
        """True, or an InputError about a widget that the host shows on the node before anything runs."""
        from ..apt_train.data.folder_files import sort_folder
        from ..apt_train.data.pictures import parse_color

        shown, slots = known(inputs), cls.define_schema().inputs
        given = [name for name in ("folder", "path", "images") if _is_given(name, inputs)]
        if not given:
            raise InputError("No pictures are given: choose a folder, write the path of one, or wire images.")
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} are both given: leave one of them, as pictures come from one.")
        parse_color(shown.get("background", "white"))
        check_ranges(shown, slots)
        _check_names(shown)
        folder = _folder(shown)
        if folder is not None:
            with _in_the_users_words(folder, shown):
                sort_folder(folder)
        return True

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        import torch

        from ..apt_train.photo_check.preflight import preflight
        from ..apt_train.photo_check.sheet import contact_sheet
        from .host.language import translated
        from .host.pictures import shown_on_node
        from .host.progress import NodeProgress, stop_if_cancelled

        shown, node = single(inputs, *_WIRES), cls.hidden.unique_id

        def at_picture(done: int, total: int) -> None:
            stop_if_cancelled()
            NodeProgress(node, total).show(done, total)

        _check_names(shown)
        with torch.inference_mode(False):
            wires = {name: inputs[name] for name in _WIRES if inputs.get(name)}
            images = _image_set(shown, wires, at_picture)
            names = {"class_word": shown["class_word"], "identifier": _identifier(shown)}
            found = preflight(images, shown["resolution"], **names, at_picture=at_picture)
            pictures, captions, masks = images.to_tensors()
        text, (sheet, on_node) = "\n".join(found.lines(translated)), shown_on_node(contact_sheet(found), cls)
        return io.NodeOutput(pictures, captions, masks, text, sheet, ui=on_node)


def _identifier(shown: Mapping[str, Any]) -> str:
    return "_".join(shown.get("subject", "").split())


def _check_names(shown: Mapping[str, Any]) -> None:
    """InputError: a class word or a name that APT Train would refuse, under the widget's name."""
    from ..apt_train.photo_check.preflight import called_of, sizes_of

    sizes_of(shown.get("resolution", 512), 0)
    try:
        called_of(shown.get("class_word", ""), _identifier(shown))
    except InputError as error:
        raise InputError(str(error).replace("identifier is", "subject is", 1)) from None


def _is_given(name: str, inputs: Mapping[str, Any]) -> bool:
    """A wired widget counts as given, whatever its value will be."""
    if name not in inputs or name == "images":
        return name in inputs
    value = next(iter(inputs[name] or [None]))
    return value is None or (value != NO_FOLDER if name == "folder" else bool(str(value).strip()))


def _folder(shown: Mapping[str, Any]) -> Path | None:
    """The chosen folder; None: none is chosen. InputError: it may not be read."""
    given = _given_folder(shown)
    return picture_folder(given) if given else None


def _given_folder(shown: Mapping[str, Any]) -> str:
    """The folder as the user gave it; empty: none."""
    chosen = shown.get("folder", NO_FOLDER)
    return str(shown.get("path", "")).strip() or ("" if chosen == NO_FOLDER else chosen)


@contextlib.contextmanager
def _in_the_users_words(folder: Path, shown: Mapping[str, Any]) -> Iterator[None]:
    """Make refusals name the folder as given, not its place on the host, and the widget instead of the option."""
    try:
        yield
    except InputError as error:
        said = str(error).replace(printable(str(folder)), printable(_given_folder(shown)))
        raise InputError(said.replace("--skip-bad-images", _SKIPS)) from None


def _image_set(shown: Mapping[str, Any], wires: Mapping[str, Sequence[Any]], at_picture: AtPicture) -> ImageSet:
    """The folder's pictures, or the wired ones; wired captions and masks replace the folder's."""
    from ..apt_train.data.dataset import load_images

    folder = _folder(shown)
    if (folder is None) == ("images" not in wires):
        raise InputError("Pictures come from a folder or from images, and from one of them: give one.")
    if folder is None:
        return _of_wires(wires["images"], wires.get("captions"), wires.get("masks"), shown)
    reading = {name: shown[name] for name in ("background", "alpha_masks", _SKIPS)}
    with _in_the_users_words(folder, shown):
        images = load_images(folder, **reading, at_picture=at_picture)
    if "captions" not in wires and "masks" not in wires:
        return images
    pictures, captions, masks = images.to_tensors()
    changed = _of_wires(pictures, wires.get("captions", captions), wires.get("masks", masks), shown)
    for image, own in zip(changed.images, images.images, strict=True):
        image.name = own.name
    return type(images)(changed.images, changed.digest, [*images.notes, *changed.notes])


def _of_wires(images: Any, captions: Any, masks: Any, shown: Mapping[str, Any]) -> ImageSet:
    from .training import image_set
    from .wires import AptOptions

    return image_set(images, captions, masks, AptOptions({}, shown["background"], shown["alpha_masks"]))
