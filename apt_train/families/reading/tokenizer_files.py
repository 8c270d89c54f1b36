"""Finds CLIP's vocabulary on this machine and builds tokenizers from it. Never uses the network."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, cast

from transformers import CLIPTokenizerFast, PreTrainedTokenizerFast  # type: ignore[attr-defined]

from ...disk.silenced import quiet_libraries, stderr_silenced
from ...errors import InputError
from ...paths import expanded
from ...wording import counted, reason_of
from .config_check import libraries_answer
from .tokenizer_check import copy_checked

_CACHED = (  # repositories in the Hugging Face cache with CLIP's vocabulary, and its folder in each
    ("models--openai--clip-vit-large-patch14", ""),
    ("models--stable-diffusion-v1-5--stable-diffusion-v1-5", "tokenizer"),
    ("models--runwayml--stable-diffusion-v1-5", "tokenizer"),
    ("models--stabilityai--stable-diffusion-xl-base-1.0", "tokenizer"),
)


_PROBE = "A photo of a dog, 1. \u00e9e\u0301 \u72ac \U0001f415"  # letters of 1 to 4 bytes, one of 2 code points


def find_clip_vocabulary(given: str | Path | None) -> Path:
    """The folder of CLIP's vocabulary: the given one, otherwise in $COMFYUI_PATH, otherwise in the Hugging Face cache.

    InputError: the given folder has none (the search ends there), or none was found.
    """
    if given is not None:
        given = expanded(given, "The tokenizer folder")
    places = _usual_places() if given is None else (given, given / "tokenizer")
    if found := next(filter(_has_vocabulary, places), None):
        return found
    if given is not None:
        raise InputError(
            f"The tokenizer folder {given} has neither vocab.json and merges.txt nor tokenizer.json: give one that has."
        )
    raise InputError(
        "A single-file checkpoint carries no tokenizer, and none was found: give --tokenizer a folder with CLIP's "
        "vocab.json and merges.txt (the `tokenizer` of any SD1.5 or SDXL diffusers folder will do), or set "
        "COMFYUI_PATH to a ComfyUI install."
    )


def _usual_places() -> Iterator[Path]:
    if host := os.environ.get("COMFYUI_PATH"):
        yield Path(os.path.expanduser(host)) / "comfy" / "sd1_tokenizer"
    for repository, inside in _CACHED:
        for snapshot in sorted((_hugging_face_cache() / repository / "snapshots").glob("*")):
            yield snapshot / inside


def _hugging_face_cache() -> Path:
    """huggingface_hub's download folder, by its own environment variables."""
    if folder := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(os.path.expanduser(folder))
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.path.expanduser(home)) / "hub"  # without a home directory this does not exist


def _has_vocabulary(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file() or _has_clip_files(folder)


def _has_clip_files(folder: Path) -> bool:
    return (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()


def load_tokenizer(
    folder: Path, *, max_length: int, rows: int, pad_token: str | None = None, starts: bool = True
) -> Any:
    """A tokenizer from vocab.json + merges.txt (CLIP's) or from a tokenizer.json of any kind.

    `max_length`: the text encoder's positions; a longer `model_max_length` is reduced to it. `rows`: the encoder's
    vocabulary size. `pad_token` None: the folder's own. It is set after loading, so that the same character in a prompt
    is still read as a character. `starts`: see `TextEncoder`. InputError: no vocabulary, an unreadable one, one without
    begin or end token, or more tokens than rows. transformers reads a checked copy, which has none of the code or file
    references it would follow.
    """
    if not _has_vocabulary(folder):
        raise InputError(
            f"The tokenizer folder {folder} has neither vocab.json and merges.txt nor tokenizer.json: complete it."
        )
    kind = cast("Any", CLIPTokenizerFast if _has_clip_files(folder) else PreTrainedTokenizerFast)
    what, advice = f"The tokenizer in {folder}", "give another with --tokenizer"
    # transformers warns if a folder names its other version's class for the same tokenizer.
    with _temporary_folder() as copy, quiet_libraries():
        try:
            copy_checked(folder, copy)
        except InputError as wrong:
            if isinstance(wrong.__cause__, OSError):  # the copy could not be written; the folder itself is fine
                raise _copy_failed(wrong.__cause__) from None
            raise InputError(f"{what} cannot be read ({str(wrong).rpartition(': ')[0]}): {advice}.") from None
        with libraries_answer(what, advice), stderr_silenced():  # the library also prints its panics
            tokenizer = kind.from_pretrained(copy, local_files_only=True)
            tokenizer(_PROBE, add_special_tokens=False)
    tokenizer.name_or_path = str(folder)
    if pad_token is not None:
        tokenizer.pad_token = pad_token
    needed = ("bos", "eos", "pad") if starts else ("eos", "pad")
    if any(getattr(tokenizer, f"{name}_token_id") is None for name in needed):
        raise InputError(f"{what} names no begin, end or padding token: complete its tokenizer_config.json.")
    if len(tokenizer) > rows or max(tokenizer.get_vocab().values()) >= rows:
        count = counted(len(tokenizer), "token")
        raise InputError(f"{what} has {count}, the text encoder {rows}: give the model's own.")
    tokenizer.model_max_length = int(min(tokenizer.model_max_length, max_length))
    return tokenizer


@contextlib.contextmanager
def _temporary_folder() -> Generator[Path]:
    try:
        made = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # a scanner may look at it
    except OSError as error:
        raise _copy_failed(error) from None
    with made as path:
        yield Path(path)


def _copy_failed(error: OSError) -> InputError:
    return InputError(
        f"The tokenizer's checked copy could not be written to the folder for temporary files ({reason_of(error)}): "
        "free space there, or name another folder in the environment as TMPDIR."
    )
