"""A wired MODEL as the trainer's UNet, family and noise schedule; what cannot be trained is refused by name.

In: identifying the host's models. Not in: reading weights (`weights`), text (`text`), pictures (`vae`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import comfy.model_base
import comfy.model_sampling
import comfy.supported_models
import torch
from torch import Tensor

from ...apt_train.errors import InputError
from ...apt_train.families.noise import NoiseSchedule, PredictionType
from ...apt_train.families.sd.published import FamilySpec, load_family
from .loras import with_any_lora
from .vae_family import loaded_from
from .weights import baked

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

UNET = "diffusion_model."
_WORKS = "load a model of SD1.5 or SDXL (Pony, Illustrious, NoobAI, SSD-1B and the like)"
_IGNORED = ("patches", "patches_replace")
_NAMELESS = "a model wrapper"


def family_spec(model: Any) -> FamilySpec:
    """The family of a MODEL. InputError: any other kind, which is named."""
    kind, config = type(model.model), model.model.model_config
    channels = config.unet_config.get("in_channels", 4)
    if kind in (comfy.model_base.BaseModel, comfy.model_base.SDXL) and channels == 4:
        if isinstance(config, comfy.supported_models.SDXL):
            return load_family("sdxl")
        if isinstance(config, comfy.supported_models.SD15):
            return load_family("sd15")
    what = kind_of(model)
    if channels == 9:
        what += " with an inpainting UNet"
    elif channels == 8:
        what += " with a picture-editing UNet"
    raise InputError(f"The MODEL is a {what}, which cannot be trained here: {_WORKS}.")


def unet_of(model: Any, family: FamilySpec, dtype: torch.dtype) -> UNet2DConditionModel:
    """The UNet on the CPU, with the MODEL's LoRAs baked in. InputError: diffusers cannot build it."""
    from ...apt_train.families.sd.single_file import build_unet

    return build_unet(baked(model, UNET, dtype), family, "The MODEL", dtype)


def schedule_of(model: Any) -> NoiseSchedule:
    """The noise schedule, including ModelSampling nodes. InputError: not epsilon or v over a discrete schedule.

    Flow and EDM models have no timesteps that could be divided into the indicator's bins.
    """
    sampling = model.get_model_object("model_sampling")
    kinds: dict[type, PredictionType] = {
        comfy.model_sampling.EPS: "epsilon",
        comfy.model_sampling.V_PREDICTION: "v_prediction",
    }
    kind = next((base for base in type(sampling).__mro__[1:] if not issubclass(base, torch.nn.Module)), object)
    if kind not in kinds or not _is_plain(sampling):
        raise InputError(
            f"The MODEL samples as {kind.__name__} over {type(sampling).__mro__[1].__name__}: only epsilon and "
            "v-prediction over 1000 timesteps can be trained, so remove ModelSampling nodes or distilled models."
        )
    sigmas = sampling.sigmas.detach().cpu().double()  # in two calls: Apple's GPU has no float64
    return NoiseSchedule((1 / (sigmas**2 + 1)).float(), kinds[kind])


def _is_plain(sampling: Any) -> bool:
    """Whether timestep t is the t-th sigma, which is not so for distilled and continuous samplings."""
    sigmas = sampling.sigmas.detach()
    return bool(torch.equal(sampling.timestep(sigmas).float().cpu(), torch.arange(len(sigmas)).float()))


def notes_of(model: Any) -> list[str]:
    """Sentences about what the MODEL carries and training ignores."""
    options = model.model_options.get("transformer_options", {})
    patches = {name for key in _IGNORED for name in options.get(key, {})}
    for by_name in [*model.wrappers.values(), *options.get("wrappers", {}).values()]:
        patches |= {name or _NAMELESS for name, wrappers in by_name.items() if wrappers}
    if "model_function_wrapper" in model.model_options:
        patches.add(_NAMELESS)
    if not patches:
        return []
    return [f"Patches on the MODEL that act only when sampling are left out of training: {', '.join(sorted(patches))}."]


def name_of(model: Any) -> str:
    """The checkpoint's file name if the loader recorded it, otherwise the kind of model."""
    file = loaded_from(model)
    return kind_of(model) if file is None else file.name


def kind_of(model: Any) -> str:
    """The host's name for the MODEL's kind."""
    return type(model.model.model_config).__name__


def with_lora(model: Any, lora: Mapping[str, Tensor], strength: float = 1.0) -> Any:
    """A clone of the MODEL with a LoRA. InputError: some module of the LoRA has no place on the MODEL."""
    patched, _, added = with_any_lora(model, None, lora, strength)
    modules = {key.rsplit(".alpha", 1)[0] for key in lora if key.endswith(".alpha")}
    if added != len(modules):
        raise InputError(
            f"The MODEL does not take all modules of the LoRA ({added} of {len(modules)}): wire the model that it was "
            "trained on."
        )
    return patched
