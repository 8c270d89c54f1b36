"""What a LoRA file says about itself, in the three dialects that programs read.

`ss_*`: kohya's, read by A1111, model managers and ComfyUI's scanner. `modelspec.*`: the Stability AI model metadata
standard, read by ComfyUI's side bar. `apt_*`: ours, everything needed to tell how the file was made. All values are
strings. None contains a time (equal runs give equal files) or a folder of the user's machine.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from PIL import Image
from torch import Tensor

from .. import __version__
from ..adapter_kinds import KINDS
from ..config import METHOD_TITLES, TrainConfig
from ..disk.json_file import is_list, is_object
from ..disk.tensor_writer import header_bytes
from ..families.components import Components
from ..names import EMBEDDING, embedding_stem
from ..wording import counted

MAX_HEADER = 1 << 20  # bytes; ComfyUI refuses to read the metadata of a file with a longer header

OWNER = "apt_run"  # in a copy: eight digits that identify its run
MOST_NOTES = 4000  # letters
_IN_FOLDERS = re.compile(r"(?<![\w.])(~|[A-Za-z]:)?[/\\]{1,2}([^\s/\\]+[/\\])+")  # the folders before a file's name
_ABSOLUTE_PATH = re.compile(r"(~[/\\]|/|[A-Za-z]:[/\\]|\\\\)\S.*")


def lora_metadata(
    config: TrainConfig,
    model: Components,
    *,
    captions: Sequence[str],
    steps: int,
    summary: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """The metadata of a trained LoRA.

    Args:
        model: of which its family, its file's name, its weights' hash and its noise schedule are told.
        captions: one per picture; `{subject}` in them is replaced by the trigger.
        steps: completed so far; the planned number is in `config`.
        summary: how the run went (last gamma), as plain values.
    """
    side, predicts = config.data.resolution or model.family.resolution, model.schedule.prediction
    embedding = embedding_stem(config.name) if config.identifier_mode == "learned" else ""
    spec = {
        "implementation": model.family.file_words.implementation,
        "description": _description(config, model, steps),
        "resolution": f"{side}x{side}",
        "prediction_type": "v" if predicts == "v_prediction" else predicts,
        "usage_hint": _usage_hint(config.trigger, embedding),
    }
    ours = {
        "embedding": embedding,
        "config": _json(_without_folders(config.to_dict())),
        "summary": _json(_without_folders(summary)) if summary else None,
    }
    tags = _json({config.name: _tags(captions, config.trigger)})
    return {
        **_strings("ss_", _kohya(config, model, side, steps)),
        **_strings("ss_", {"num_train_images": len(captions), "tag_frequency": tags}),
        **_described(config, model, "lora", spec, ours),
    }


def embedding_metadata(config: TrainConfig, model: Components, *, steps: int) -> dict[str, str]:
    """The metadata of the learned identifier's file; arguments as in `lora_metadata`."""
    whose = f"The learned words of {config.name} ({config.class_word}) on {file_name(model.source)}"
    spec = {"implementation": "sgm", "description": f"{whose}; belongs to the LoRA {config.name}."}
    return _described(config, model, "textual-inversion", spec, {"steps": steps})


def _described(
    config: TrainConfig, model: Components, what: str, spec: Mapping[str, Any], ours: Mapping[str, Any]
) -> dict[str, str]:
    """The standard's entries and ours: those that every file has, and the given ones."""
    names = {"name": config.name, "class_word": config.class_word}
    common = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{model.family.file_words.architecture}/{what}",
        "title": config.name,
        "trigger_phrase": config.trigger,
        "tags": config.class_word,
    }
    return {
        **_strings("modelspec.", {**common, **spec}),
        **_strings("apt_", {"version": __version__, **names, "base_digest": model.digest, **ours}),
    }


def _kohya(config: TrainConfig, model: Components, side: int, steps: int) -> dict[str, Any]:
    """The entries that other programs know under kohya's names."""
    optimizer, adapter, version = config.optimizer, config.adapter, model.family.file_words.base_version
    return {
        "base_model_version": version,
        "v2": version.startswith("sd_v2"),  # by which A1111 lists a LoRA for SD2 alone
        "sd_model_name": file_name(model.source),
        "output_name": config.name,
        **{f"network_{key}": text for key, text in KINDS[adapter.kind].network.items()},
        "network_dim": adapter.rank,
        "network_alpha": adapter.effective_alpha,
        "network_dropout": adapter.dropout,
        "steps": steps,
        "max_train_steps": config.steps,
        "resolution": f"({side}, {side})",
        "zero_terminal_snr": model.schedule.zero_terminal_snr,
        "seed": config.seed,
        "learning_rate": optimizer.learning_rate,
        "unet_lr": optimizer.learning_rate,
        "lr_scheduler": optimizer.lr_schedule,
        "lr_warmup_steps": optimizer.warmup_steps,
        "optimizer": "torch.optim.AdamW" if optimizer.optimizer == "adamw" else optimizer.optimizer,
        "total_batch_size": optimizer.batch_size,
        "gradient_accumulation_steps": optimizer.accumulation,
        "max_grad_norm": optimizer.max_grad_norm,
    }


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
        embedding: old and new stem of the learned word's file, to replace in all texts (the trigger, the hint); None:
            there is none.
        stem: the copy's own.
        thumbnail: a picture for the side bar; None: keep the present one.
        owner: eight digits that identify the copy's run.
        notes: the run's notices, which programs that read kohya's names show as the author's notes.
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

    Dropped in this order: the thumbnail, the rarer half of the tags (repeatedly), settings and summary, the ends of
    long texts. The tensors' own entries stay, whatever their size.
    """
    fitted = dict(metadata)
    while len(header_bytes(tensors, fitted)) > limit and _shorten(fitted):
        pass
    return fitted


def file_name(path: str) -> str:
    """The last part of a path from any system, so that no folder of the user's machine ends up in a file."""
    return PurePosixPath(PureWindowsPath(path).name).name


def _shorten(metadata: dict[str, str]) -> bool:
    """Drop one thing, in place; False if nothing is left to drop."""
    if metadata.pop("modelspec.thumbnail", None) is not None or _halve_tags(metadata):
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
    """Counts of the comma-separated parts of the captions, the most frequent first."""
    parts = (part.strip() for caption in captions for part in caption.replace("{subject}", trigger).split(","))
    counts = Counter(part for part in parts if part)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _description(config: TrainConfig, model: Components, steps: int) -> str:
    kind = KINDS[config.adapter.kind]
    how = METHOD_TITLES[config.method]
    if kind is not KINDS["lora"]:
        how += f" with {kind.title}"
    subject = f"{config.name} ({config.class_word})"
    return f"{subject}, learned from a few pictures on {file_name(model.source)} by {how} in {counted(steps, 'step')}."


def _usage_hint(trigger: str, embedding_name: str) -> str:
    if not embedding_name:
        return f"Write {trigger} where the subject belongs."
    return (
        f"Needs the embedding file {embedding_name}.safetensors. Where the subject belongs, write "
        f"{EMBEDDING}{embedding_name} in ComfyUI, {embedding_name} in programs that go by the name alone."
    )


def _data_uri(picture: Image.Image) -> str:
    """A JPEG data URI of at most 256 x 256 pixels, the size the standard recommends."""
    small = picture.convert("RGB")
    small.thumbnail((256, 256))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _without_folders(value: Any) -> Any:
    """Plain values with every absolute path reduced to its last part."""
    if is_object(value):
        return {key: _without_folders(item) for key, item in value.items()}
    if is_list(value):
        return [_without_folders(item) for item in value]
    return file_name(value) if isinstance(value, str) and _ABSOLUTE_PATH.fullmatch(value) else value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _strings(prefix: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Values as text under their prefix. None and empty values are dropped; `?` replaces what UTF-8 cannot encode."""
    texts = {prefix + key: str(value) for key, value in values.items() if value is not None and value != ""}
    return {key: text.encode("utf-8", "replace").decode() for key, text in texts.items()}
