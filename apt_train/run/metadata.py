"""What a LoRA file says about itself, in the three dialects that programs read.

`ss_*`: kohya's, read by A1111, model managers and the host's scanner. `modelspec.*`: the Stability AI model
metadata standard, read by ComfyUI's side bar. `apt_*`: ours, everything needed to say how the file was made.
All values are strings. In none of them: a clock (equal runs give equal files) or a folder of the user's
machine.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .. import __version__
from ..adapter_kinds import KINDS, Kind
from ..disk.json_file import is_list, is_object
from ..disk.tensor_writer import header_bytes
from ..families.components import Family

if TYPE_CHECKING:
    from PIL import Image

MAX_HEADER = 1 << 20  # bytes; ComfyUI refuses to read the metadata of a file with a longer header

OWNER = "apt_run"  # of a copy: eight digits of the run that it belongs to
MOST_NOTES = 4000  # letters
METHOD_TITLES = {"apt": "APT", "dreambooth": "DreamBooth", "dco": "DCO", "tlora": "T-LoRA"}
_IN_FOLDERS = re.compile(r"(?<![\w.])(~|[A-Za-z]:)?[/\\]{1,2}([^\s/\\]+[/\\])+")  # what stands before a file's name
_ABSOLUTE_PATH = re.compile(r"(~[/\\]|/|[A-Za-z]:[/\\]|\\\\)\S.*")


def lora_metadata(
    *,
    name: str,
    trigger: str,
    class_word: str,
    family: Family,
    prediction_type: str,
    rank: int,
    alpha: float,
    steps: int,
    config: Mapping[str, Any],
    captions: Sequence[str],
    base_name: str,
    base_digest: str = "",
    resolution: int | tuple[int, int] | None = None,
    zero_terminal_snr: bool = False,
    embedding_name: str = "",
    thumbnail: Image.Image | str | None = None,
    summary: Mapping[str, Any] | None = None,
    author: str = "",
    date: str = "",
) -> dict[str, str]:
    """The metadata of a trained LoRA.

    Args:
        name: the subject's name, also the file's stem.
        trigger: what a prompt must say.
        alpha: as trained: the update is multiplied by alpha / rank.
        steps: done so far; the planned number stands in `config`.
        config: `TrainConfig.to_dict()`.
        captions: one per picture; `{subject}` in them is written as the trigger.
        base_name: the checkpoint's name; folders before it are cut off.
        base_digest: hash of the checkpoint's weights.
        resolution: pixels, (width, height) or the side of a square; None: the family's own.
        embedding_name: stem of the learned identifier's file; empty when none was learned.
        thumbnail: a picture, or a `data:image/...` URI.
        summary: how the run went (verdict, last gamma), plain values.
        author, date: left out when empty; date in ISO 8601.
    """
    base = file_name(base_name)
    width, height = _size(resolution or family.resolution)
    spec = {
        "sai_model_spec": "1.0.1",
        "architecture": family.file_words.architecture + "/lora",
        "implementation": family.file_words.implementation,
        "title": name,
        "author": author,
        "date": date,
        "description": _description(name, class_word, base, config, steps),
        "resolution": f"{width}x{height}",
        "prediction_type": "v" if prediction_type == "v_prediction" else prediction_type,
        "trigger_phrase": trigger,
        "usage_hint": _usage_hint(trigger, embedding_name),
        "tags": class_word,
        "thumbnail": thumbnail if isinstance(thumbnail, str) or thumbnail is None else _data_uri(thumbnail),
    }
    kohya = {
        "base_model_version": family.file_words.base_version,
        "v2": False,
        "sd_model_name": base,
        "output_name": name,
        **{f"network_{key}": text for key, text in _kind(config).network.items()},
        "network_dim": rank,
        "network_alpha": float(alpha),
        "steps": steps,
        "resolution": f"({width}, {height})",
        "num_train_images": len(captions),
        "tag_frequency": _json({name: _tags(captions, trigger)}),
        "zero_terminal_snr": zero_terminal_snr,
        **_kohya_settings(config),
    }
    ours = {
        "version": __version__,
        "name": name,
        "class_word": class_word,
        "embedding": embedding_name,
        "base_digest": base_digest,
        "config": _json(_without_folders(config)),
        "summary": _json(_without_folders(summary)) if summary else None,
    }
    return {**_strings("modelspec.", spec), **_strings("ss_", kohya), **_strings("apt_", ours)}


def embedding_metadata(
    *,
    name: str,
    trigger: str,
    class_word: str,
    family: Family,
    steps: int,
    base_name: str,
    base_digest: str = "",
) -> dict[str, str]:
    """The metadata of the learned identifier's file; arguments as `lora_metadata`."""
    base = file_name(base_name)
    spec = {
        "sai_model_spec": "1.0.1",
        "architecture": family.file_words.architecture + "/textual-inversion",
        "implementation": "sgm",
        "title": name,
        "description": f"The learned words of {name} ({class_word}) on {base}; belongs to the LoRA {name}.",
        "trigger_phrase": trigger,
        "tags": class_word,
    }
    ours = {
        "version": __version__,
        "name": name,
        "class_word": class_word,
        "base_digest": base_digest,
        "steps": steps,
    }
    return {**_strings("modelspec.", spec), **_strings("apt_", ours)}


def renamed_metadata(
    metadata: Mapping[str, str],
    *,
    embedding: tuple[str, str] | None,
    stem: str,
    thumbnail: Image.Image | None = None,
    owner: str = "",
    notes: Sequence[str] = (),
) -> dict[str, str]:
    """The metadata of a copy under another file name.

    Args:
        embedding: stem of the learned word's file before and now, wherever the texts name it (the trigger, the hint);
            None: there is none.
        stem: the copy's own.
        thumbnail: a picture for the side bar; None: as it was.
        owner: eight digits of the run that the copy belongs to.
        notes: what the user was told of the run, shown as the author's notes by programs that read kohya's names.
    """
    before, now = embedding or ("", "")
    texts = {key: text.replace(before, now) if before else text for key, text in metadata.items()}
    more = {
        "ss_output_name": stem,
        "ss_training_comment": _IN_FOLDERS.sub("", "\n".join(notes))[:MOST_NOTES],
        "modelspec.thumbnail": _data_uri(thumbnail) if thumbnail is not None else "",
        OWNER: owner,
    }
    return {**texts, **{key: text for key, text in more.items() if text}}


def fit_metadata(metadata: Mapping[str, str], tensors: Mapping[str, Tensor], limit: int = MAX_HEADER) -> dict[str, str]:
    """The metadata, shortened until the file's header has at most `limit` bytes.

    What goes, in this order: the thumbnail, the rarer half of the tags again and again, the settings and
    summary, the ends of long texts. The tensors' own entries stay, whatever their size.
    """
    fitted = dict(metadata)
    while len(header_bytes(tensors, fitted)) > limit and _shorten(fitted):
        pass
    return fitted


def file_name(path: str) -> str:
    """The last part of a path of any system, so that no folder of the user's machine reaches a file."""
    return PurePosixPath(PureWindowsPath(path).name).name


def _shorten(metadata: dict[str, str]) -> bool:
    """Take one thing away, in place; False when nothing is left that may go."""
    if metadata.pop("modelspec.thumbnail", None) is not None:
        return True
    if _halve_tags(metadata):
        return True
    for key in ("apt_config", "apt_summary"):
        if metadata.pop(key, None) is not None:
            return True
    longest = max(metadata, key=lambda key: len(metadata[key]), default=None)
    if longest is None or len(metadata[longest]) < 100:
        return False
    metadata[longest] = metadata[longest][: len(metadata[longest]) // 2]
    return True


def _halve_tags(metadata: dict[str, str]) -> bool:
    text = metadata.pop("ss_tag_frequency", None)
    if text is None:
        return False
    folders = {folder: dict(list(tags.items())[: len(tags) // 2]) for folder, tags in json.loads(text).items()}
    if any(folders.values()):
        metadata["ss_tag_frequency"] = _json(folders)
    return True


def _tags(captions: Sequence[str], trigger: str) -> dict[str, int]:
    """How often each comma-separated part of the captions occurs, the most frequent first."""
    parts = (part.strip() for caption in captions for part in caption.replace("{subject}", trigger).split(","))
    counts = Counter(part for part in parts if part)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _kohya_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that other programs know by kohya's names."""
    optimizer = config.get("optimizer", {})
    rate, chosen = optimizer.get("learning_rate"), optimizer.get("optimizer", "adamw")
    return {
        "max_train_steps": config.get("steps"),
        "seed": config.get("seed"),
        "learning_rate": rate,
        "unet_lr": rate,
        "lr_scheduler": optimizer.get("lr_schedule"),
        "lr_warmup_steps": optimizer.get("warmup_steps"),
        "optimizer": "torch.optim.AdamW" if chosen == "adamw" else chosen,
        "total_batch_size": optimizer.get("batch_size"),
        "gradient_accumulation_steps": optimizer.get("accumulation"),
        "max_grad_norm": optimizer.get("max_grad_norm"),
        "network_dropout": config.get("adapter", {}).get("dropout"),
    }


def _kind(config: Mapping[str, Any]) -> Kind:
    return KINDS[config.get("adapter", {}).get("kind", "lora")]


def _description(name: str, class_word: str, base: str, config: Mapping[str, Any], steps: int) -> str:
    method, kind = str(config.get("method", "")), _kind(config)
    how = METHOD_TITLES.get(method, method) or "APT Train"
    if kind is not KINDS["lora"]:
        how += f" with {kind.title}"
    return f"{name} ({class_word}), learned from a few pictures on {base} by {how} in {steps} steps."


def _usage_hint(trigger: str, embedding_name: str) -> str:
    if not embedding_name:
        return f"Write {trigger} where the subject belongs."
    return (
        f"Needs the embedding file {embedding_name}.safetensors. Where the subject belongs, write "
        f"embedding:{embedding_name} in ComfyUI, {embedding_name} in programs that go by the name alone."
    )


def _data_uri(picture: Image.Image) -> str:
    """A JPEG of at most 256 x 256 pixels, the size the standard recommends."""
    small = picture.convert("RGB")
    small.thumbnail((256, 256))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _without_folders(value: Any) -> Any:
    """Plain values with every absolute path cut down to its last part."""
    if is_object(value):
        return {key: _without_folders(item) for key, item in value.items()}
    if is_list(value):
        return [_without_folders(item) for item in value]
    return file_name(value) if isinstance(value, str) and _ABSOLUTE_PATH.fullmatch(value) else value


def _size(resolution: int | tuple[int, int]) -> tuple[int, int]:
    return (resolution, resolution) if isinstance(resolution, int) else resolution


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _strings(prefix: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Values as text under their prefix; without None and empty ones, `?` for what UTF-8 cannot hold."""
    texts = {prefix + key: str(value) for key, value in values.items() if value is not None and value != ""}
    return {key: text.encode("utf-8", "replace").decode() for key, text in texts.items()}
