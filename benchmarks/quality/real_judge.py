"""The judge of real pictures: CLIP, and DINOv2 and HPSv2 if their folders are given.

In: the networks from local transformers folders (safetensors only), and the measures. Not in: distances between sets
(`distances`), where pictures come from (`real_subjects`).

True pictures of the subject cannot be made here. Unlike the drawn world's judge, this one measures likeness by cosines
alone, so there is no `recognised` and no `kept`. `scene` is left out too: CLIP sees the whole picture, so its cosine to
the prior's picture would fall as the subject appears. Pictures are centre-cropped to a square, as the folders' own
processors do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, CLIPModel, Dinov2Model

from apt_train.errors import InputError
from apt_train.families.reading.tokenizer_files import load_tokenizer
from apt_train.text.captions import class_caption

from .subjects import Prompt, Subject

BATCH = 32
# Settings in which transformers reads a repository's name: of a kernel, of code, of a quantizer.
_LEADING_ELSEWHERE = {"attn_implementation", "_attn_implementation", "auto_map", "quantization_config"}
_T = TypeVar("_T")


class RealJudge:
    """Scores pictures of one subject. See `Judge`.

    Likeness is measured to the held-out pictures, or to the training pictures if there are none. `Subject.group` says
    which.
    """

    def __init__(self, subject: Subject, networks: Networks) -> None:
        self.space = f"unit image embedding of {networks.clip.name}"
        self._class_word, self._networks = subject.class_word, networks
        shown = [item.picture for item in subject.heldout or subject.training]
        self._shown, self._shown_clip = networks.likeness.pictures(shown), networks.clip.pictures(shown)
        self._training = networks.likeness.pictures([item.picture for item in subject.training])

    def ideal(self, prompts: Sequence[Prompt], prior: Sequence[Image.Image]) -> None:
        """None: true photographs of the prompts do not exist."""
        return None

    def features(self, pictures: Sequence[Image.Image]) -> dict[str, np.ndarray]:
        return {"all": self._networks.clip.pictures(pictures).double().numpy()}

    def score(
        self, pictures: Sequence[Image.Image], prompts: Sequence[Prompt], prior: Sequence[Image.Image]
    ) -> dict[str, float]:
        """Means over the prompts of each kind. `prior` is ignored.

        On the subject's prompts: `fidelity`, the mean cosine to the subject's pictures (of DINOv2's embeddings, of
        CLIP's without DINOv2); `clip_i`, the same by CLIP; `copied`, the largest cosine to a training picture, in
        fidelity's space; `aligned`, CLIP's cosine of picture and prompt, the class word in the subject's place.
        `leak`: fidelity's cosine on the class word's pictures. The prior has one too, as its class resembles the
        subject. `aligned_elsewhere`: as `aligned`, on the class word's and the other prompts. With HPSv2, `hps` and
        `hps_elsewhere`: cosine of picture and prompt times the logit scale (100 as published).
        """
        networks, kinds = self._networks, np.array([prompt.kind for prompt in prompts])
        named, klass = torch.from_numpy(kinds == "subject"), torch.from_numpy(kinds == "class")
        texts = [class_caption(prompt.text, self._class_word) for prompt in prompts]
        clip = networks.clip.pictures(pictures)
        ours = networks.dino.pictures(pictures) if networks.dino else clip
        likeness, aligned = (ours @ self._shown.T).mean(dim=1), _row_by_row(clip, networks.clip.texts(texts))
        found = {
            "fidelity": likeness[named],
            "clip_i": (clip @ self._shown_clip.T).mean(dim=1)[named],
            "aligned": aligned[named],
            "copied": (ours @ self._training.T).amax(dim=1)[named],
            "leak": likeness[klass],
            "aligned_elsewhere": aligned[~named],
        }
        if networks.hps:
            liked = networks.hps.scale * _row_by_row(networks.hps.pictures(pictures), networks.hps.texts(texts))
            found |= {"hps": liked[named], "hps_elsewhere": liked[~named]}
        return {name: float(values.mean()) for name, values in found.items()}


@dataclass(frozen=True)
class Networks:
    """The networks. `hps`: HPSv2, a CLIP trained on human preferences."""

    clip: ClipNetwork
    dino: DinoNetwork | None = None
    hps: ClipNetwork | None = None

    @property
    def likeness(self) -> ClipNetwork | DinoNetwork:
        return self.dino or self.clip


def load_networks(clip: Path, dino: Path | None = None, hps: Path | None = None, *, device: str = "cpu") -> Networks:
    """Load transformers folders, in float32 on the device. InputError: a folder that cannot be used."""
    return Networks(
        ClipNetwork(clip, device, "CLIP"),
        None if dino is None else DinoNetwork(dino, device),
        None if hps is None else ClipNetwork(hps, device, "HPSv2"),
    )


class ClipNetwork:
    """A CLIP folder: unit embeddings of pictures and texts, float32 (N, D) on the CPU.

    InputError: a folder without CLIP's configuration, .safetensors, preprocessor or vocabulary.
    """

    def __init__(self, folder: Path, device: str, what: str) -> None:
        self.name = folder.resolve().name
        self._model = _load(CLIPModel, "clip", folder, device, what)
        self._processor = _image_processor(folder, what)
        text = self._model.config.text_config
        self._tokenizer = load_tokenizer(folder, max_length=text.max_position_embeddings, rows=text.vocab_size)

    @property
    def scale(self) -> float:
        """The factor by which the network scales its cosines."""
        return float(self._model.logit_scale.exp())

    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        return _unit_rows(pictures, self._embed_pictures)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Texts are truncated to the network's limit."""
        return _unit_rows(texts, self._embed_texts)

    def _embed_pictures(self, pictures: list[Image.Image]) -> Tensor:
        model = self._model  # by its parts: what get_image_features returns depends on transformers' version
        pixels = _pixels(self._processor, pictures).to(model.device)
        return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)

    def _embed_texts(self, texts: list[str]) -> Tensor:
        model = self._model
        tokens = self._tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(model.device)
        output = model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return model.text_projection(output.pooler_output)


class DinoNetwork:
    """A DINOv2 folder: unit class-token embeddings of pictures, float32 (N, D) on the CPU.

    Published subject fidelities use DINO (ViT-S/16), so do not compare these with them. InputError: a
    folder without DINOv2's configuration, .safetensors or preprocessor.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self._model = _load(Dinov2Model, "dinov2", folder, device, "DINOv2")
        self._processor = _image_processor(folder, "DINOv2")

    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        return _unit_rows(pictures, self._embed)

    def _embed(self, pictures: list[Image.Image]) -> Tensor:
        pixels = _pixels(self._processor, pictures).to(self._model.device)
        return self._model(pixel_values=pixels).last_hidden_state[:, 0]


def _row_by_row(ours: Tensor, theirs: Tensor) -> Tensor:
    """Cosines of unit rows (N, D) and (N, D): (N,)."""
    return (ours * theirs).sum(dim=1)


@torch.no_grad()
def _unit_rows(items: Sequence[_T], embed: Callable[[list[_T]], Tensor]) -> Tensor:
    parts = [embed(list(items[first : first + BATCH])).cpu() for first in range(0, len(items), BATCH)]
    return F.normalize(torch.cat(parts), dim=1)


def _pixels(processor: Any, pictures: list[Image.Image]) -> Tensor:
    return processor(images=[picture.convert("RGB") for picture in pictures], return_tensors="pt")["pixel_values"]


def _load(kind: Any, model_type: str, folder: Path, device: str, what: str) -> Any:
    """The folder's network in float32 and eval mode, without gradients."""
    _check_folder(folder, model_type, what)
    try:
        model, report = kind.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers and safetensors may raise anything on a broken folder
        raise InputError(f"The {what} folder {folder} cannot be loaded ({error}): get it again.") from error
    if report["missing_keys"]:  # transformers would continue with random weights
        lacking = sorted(report["missing_keys"])[0]
        raise InputError(f"The {what} folder {folder} lacks weights, {lacking} for one: get the whole model.")
    return model.float().eval().requires_grad_(False).to(device)


def _check_folder(folder: Path, model_type: str, what: str) -> None:
    """InputError: not a transformers folder of that kind with .safetensors weights."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError
    except (OSError, ValueError, RecursionError):
        raise InputError(
            f"The {what} folder {folder} has no readable config.json: give a transformers folder of {what}."
        ) from None
    if config.get("model_type") != model_type:
        raise InputError(
            f"The {what} folder {folder} holds a model of type {config.get('model_type')}: give one of {model_type}."
        )
    if named := sorted(_LEADING_ELSEWHERE & {key for part in _parts(config) for key in part}):
        raise InputError(
            f"The config.json of the {what} folder {folder} has {named[0]}, which can lead to code from elsewhere: "
            "take that line out."
        )
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for ending in ("bin", "pt", "pth") for path in folder.glob(f"*.{ending}"))
        found = f"{pickles[0]} only, a pickle, which can run code when opened" if pickles else "no weights"
        raise InputError(f"The {what} folder {folder} holds {found}: get the model's .safetensors files.")


def _parts(config: dict[str, Any]) -> list[dict[str, Any]]:
    """A configuration and those of its parts (CLIP's text and vision)."""
    return [config, *(value for value in config.values() if isinstance(value, dict))]


def _image_processor(folder: Path, what: str) -> Any:
    """The folder's own processor, on Pillow: torchvision may be absent, and scales slightly differently."""
    by_pillow = {"backend": "pil"} if hasattr(transformers, "PilBackend") else {"use_fast": False}
    try:
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **by_pillow)
    except Exception as error:  # see _load
        raise InputError(
            f"The {what} folder {folder} has no usable preprocessor_config.json ({error}): get the whole model."
        ) from error
