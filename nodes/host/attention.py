"""Cross-attention maps of a host's MODEL on one noised latent, token by token, as its own sampler would compute them.

In: one evaluation by the host (which loads, patches and frees the model as usual) with a tap on its cross-attention.
Not in: which columns there are (`prompt_columns`), comparing two models' maps (`attention_table`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.sample
import comfy.samplers
import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from ...apt_train.errors import InputError
from .progress import stop_if_cancelled

Layer = tuple[str, int, int]  # the host's names: input, middle or output; block number; transformer within it
Conditioning = list[Any]

LAYERS: dict[str, tuple[str, ...]] = {
    "decoder": ("output",),
    "middle + decoder": ("middle", "output"),
    "all": ("input", "middle", "output"),
}
# Other nodes' guidance acts on the sampled picture, and some of it evaluates the model a second time.
_GUIDANCE = (
    "sampler_cfg_function", "sampler_pre_cfg_function", "sampler_post_cfg_function", "sampler_calc_cond_batch_function",
    "disable_cfg1_optimization",
)  # fmt: skip


@dataclass(frozen=True)
class View:
    """What both models look at: a latent as on a wire, (1, C, h, w); noise of that shape; its sigma."""

    latent: Tensor
    noise: Tensor
    sigma: Tensor
    seed: int


@dataclass
class Listener:
    """Captures maps by layer, float32 (heads, positions, columns) on the CPU, rows summing to 1.

    `columns` (text positions, columns): 1 if a position belongs to a column.
    """

    columns: Tensor
    parts: Sequence[str]
    maps: dict[Layer, Tensor] = field(default_factory=dict)

    def on(self, model: Any) -> Any:
        """A clone of the MODEL whose cross-attention is captured, even if another node has replaced it."""
        model = model.clone()
        for name in _GUIDANCE:
            model.model_options.pop(name, None)
        replaced = model.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
        for block in dict.fromkeys([*_blocks(model.model.diffusion_model), *replaced]):
            if block[0] in self.parts:
                model.set_model_attn2_replace(self._around(replaced.get(block)), *block)
        return model

    def _around(self, replacement: Callable[..., Tensor] | None) -> Callable[..., Tensor]:
        def attend(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
            self.hear(q, k, options)
            if replacement is not None:
                return replacement(q, k, v, options)
            kept = {"attn_precision": options["attn_precision"], "transformer_options": options}
            return optimized_attention(q, k, v, options["n_heads"], **kept)

        return attend

    def hear(self, q: Tensor, k: Tensor, options: dict[str, Any]) -> None:
        """q, k: (batch, positions, heads x width), from the model's own projections."""
        layer, kinds = (*options["block"], options["block_index"]), options["cond_or_uncond"]
        if layer in self.maps or 0 not in kinds:
            return
        if k.shape[1] != len(self.columns):
            raise InputError(
                f"The cross-attention reads {k.shape[1]} positions, the text has {len(self.columns)}: another node "
                "adds to what the model reads, so take it off before this preview."
            )
        row = kinds.index(0) * (len(q) // len(kinds))
        heads, columns = options["n_heads"], self.columns.to(q.device)
        queries, keys = (x[row].float().unflatten(-1, (heads, -1)).movedim(1, 0) for x in (q, k))
        scale = queries.shape[-1] ** -0.5
        # Head by head: SDXL's full maps at 1024 pixels would take half a gigabyte.
        maps = [torch.softmax(a @ b.T * scale, dim=-1) @ columns for a, b in zip(queries, keys, strict=True)]
        self.maps[layer] = torch.stack(maps).cpu()


def attention_of(
    model: Any, conditioning: Conditioning, view: View, columns: Sequence[int], count: int, layers: str
) -> dict[Layer, Tensor]:
    """Maps of the chosen layers, one of LAYERS; `columns`: the column of each text position, `count`: their number.

    It evaluates the model once, without guidance. InputError: a text that the model cannot read, or no such layers.
    """
    stop_if_cancelled()
    _require_fit(model, conditioning, len(columns))
    listener = Listener(F.one_hot(torch.tensor(columns), count).float(), LAYERS[layers])
    comfy.sample.sample_custom(
        listener.on(model), view.noise, 1.0, comfy.samplers.KSAMPLER(_evaluate_once),
        torch.stack([view.sigma, torch.zeros_like(view.sigma)]), conditioning, conditioning, view.latent,
        disable_pbar=True, seed=view.seed,
    )  # fmt: skip
    if not listener.maps:
        raise InputError(f"The model has no cross-attention in its {layers} layers: choose others.")
    return listener.maps


def _evaluate_once(model: Any, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], **_: Any) -> Tensor:
    """A sampler that evaluates once and takes no step."""
    return model(x, sigmas[0] * x.new_ones(len(x)), **extra_args)


def _blocks(unet: UNetModel) -> list[tuple[str, int]]:
    inputs = [("input", number) for number in range(len(unet.input_blocks))]
    return [*inputs, ("middle", 0), *(("output", number) for number in range(len(unet.output_blocks)))]


def encode_text(clip: Any, text: str) -> Conditioning:
    """Encode as the host's own text node does."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def sigma_at(model: Any, level: float) -> Tensor:
    """The sigma at a noise level from 0 (clean) to 1, a fraction of the schedule, including ModelSampling nodes."""
    sigmas = model.get_model_object("model_sampling").sigmas
    return sigmas[round(level * (len(sigmas) - 1))].detach().float().cpu()


def require_pair(prior: Any, tuned: Any) -> None:
    """InputError: a model without a UNet's cross-attention, or two models of different kinds."""
    from .model import kind_of

    for wire, model in (("model", prior), ("tuned", tuned)):
        if not isinstance(model.model.diffusion_model, UNetModel):
            raise InputError(
                f"The {wire} is a {kind_of(model)}, which has no cross-attention from picture to text to look at: "
                "wire a model of SD1.5 or SDXL."
            )
    if _shape(prior) != _shape(tuned):
        raise InputError(
            f"The model is a {kind_of(prior)} and tuned a {kind_of(tuned)}, with other layers: wire two versions of "
            "one model."
        )


def remarks_on(prior: Any, tuned: Any) -> list[str]:
    """Sentences about two wires of one model that can hardly be meant."""
    if not prior.is_clone(tuned) or any(wire.injections for wire in (prior, tuned)):
        return []
    if prior.patches_uuid == tuned.patches_uuid:
        return ["model and tuned have the same weights: wire the model as it was before tuning into model."]
    if prior.patches and not tuned.patches:
        return ["model carries a LoRA and tuned carries none: they may be swapped."]
    return []


def _shape(model: Any) -> list[Any]:
    keys = ("context_dim", "adm_in_channels", "in_channels", "channel_mult", "transformer_depth")
    return [model.model.model_config.unet_config.get(key) for key in keys]


def _require_fit(model: Any, conditioning: Conditioning, positions: int) -> None:
    from .model import kind_of

    width = model.model.model_config.unet_config.get("context_dim")
    found = conditioning[0][0].shape
    if found[-1] != width:
        raise InputError(
            f"The CLIP gives texts {found[-1]} wide, the {kind_of(model)} reads {width}: wire the CLIP of the same "
            "checkpoint."
        )
    if found[1] != positions:
        raise InputError(
            f"The CLIP gives {found[1]} positions for a text of {positions}: another node changes how it encodes, so "
            "take it off before this preview."
        )
