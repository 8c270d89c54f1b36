"""Nodes for tests, put among the host's custom nodes: a second opinion on cross-attention, and uncommon wires.

`AptWitness` takes maps by hooks on the UNet's own projections, in a plain call of the model with noise, text and size
vector put together by hand, and compares them with what the pack's preview hears. Not imported by the tests.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import folder_paths
import safetensors.torch
import torch
from comfy_api.latest import ComfyExtension, io
from torch import Tensor


def pack(name: str) -> Any:
    """A module of the pack, which the host has loaded under the name of its folder."""
    root = next(key for key in sys.modules if key.endswith("comfyui-apt-train"))
    return importlib.import_module(f"{root}.{name}")


def projections(model: Any, part: str) -> dict[str, dict[str, Any]]:
    """Where the queries and keys of every cross-attention of a part of the UNet will stand, by the layer's name."""
    found: dict[str, dict[str, Any]] = {}
    for name, module in model.model.diffusion_model.named_modules():
        if name.startswith(part) and name.endswith("attn2"):
            found[name] = {"heads": module.heads}
            for side in ("to_q", "to_k"):
                getattr(module, side).register_forward_hook(
                    lambda _module, _inputs, output, at=found[name], side=side: at.__setitem__(side, output.clone())
                )
    return found


def call(model: Any, context: Tensor, pooled: Tensor, latent: Tensor, noise: Tensor, sigma: Tensor) -> None:
    """One plain call of the model, without the host's samplers."""
    comfy.model_management.load_models_gpu([model])
    base, extra = model.model, {}
    if base.adm_channels:
        height, width = (8 * side for side in latent.shape[2:])
        extra = {"y": base.encode_adm(pooled_output=pooled, width=width, height=height, device="cpu")}
    clean = base.process_latent_in(latent) if latent.any() else latent
    noisy = clean + sigma * noise
    options = model.model_options["transformer_options"]
    base.apply_model(noisy, sigma[None], c_crossattn=context, transformer_options=options, **extra)


def by_hooks(model: Any, part: str, columns: list[int], *call_with: Any) -> list[Tensor]:
    """(heads, positions, columns) of each layer."""
    found = projections(model, part)
    call(model, *call_with)
    maps = []
    for layer in found.values():
        q, k = (layer[side][0].double().unflatten(-1, (layer["heads"], -1)) for side in ("to_q", "to_k"))
        scores = torch.einsum("phd,thd->hpt", q, k) / q.shape[-1] ** 0.5
        full = scores.exp() / scores.exp().sum(dim=-1, keepdim=True)
        at = torch.tensor(columns)
        maps.append(torch.stack([full[..., at == c].sum(dim=-1) for c in range(max(columns) + 1)], dim=-1))
    for module in model.model.diffusion_model.modules():
        module._forward_hooks.clear()
    return maps


class AptWitness(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Model.Input("model"), io.Clip.Input("clip"), io.Latent.Input("latent"), io.String.Input("text")]
        inputs += [io.String.Input("columns"), io.Float.Input("noise_level"), io.Int.Input("seed")]
        return io.Schema(node_id="AptWitness", category="test", is_output_node=True, inputs=inputs)

    @classmethod
    def execute(
        cls, model: Any, clip: Any, latent: Any, text: str, columns: str, noise_level: float, seed: int
    ) -> io.NodeOutput:
        attention, places = pack("nodes.host.attention"), json.loads(columns)
        samples = latent["samples"]
        noise = torch.randn(samples.shape, generator=pack("apt_train.rng").generator(seed, "attention preview"))
        sigmas = model.get_model_object("model_sampling").sigmas
        sigma = sigmas[round(noise_level * (len(sigmas) - 1))]
        view = attention.View(samples, noise, attention.sigma_at(model, noise_level), seed)
        encoded = attention.encode_text(clip, text)
        heard = list(attention.attention_of(model, encoded, view, places, max(places) + 1, "decoder").values())
        context, pooled = encoded[0][0], encoded[0][1]["pooled_output"]
        seen = by_hooks(model, "output_blocks", places, context, pooled, samples, noise, sigma)
        answer = {
            "layers": [len(heard), len(seen)],
            "difference": max(float((h - s).abs().max()) for h, s in zip(heard, seen, strict=True)),
            "rows": max(float((h.sum(dim=-1) - 1).abs().max()) for h in heard),
            "means": torch.stack([s.mean(dim=(0, 1)) for s in seen]).mean(dim=0).tolist(),
        }
        return io.NodeOutput(ui={"text": [json.dumps(answer)]})


class AptWitnessLora(io.ComfyNode):
    """A LoRA file as a LORA_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs, outputs = [io.String.Input("name")], [io.LoraModel.Output()]
        return io.Schema(node_id="AptWitnessLora", category="test", inputs=inputs, outputs=outputs)

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        return io.NodeOutput(safetensors.torch.load_file(folder_paths.get_full_path_or_raise("loras", name)))


class AptWitnessRun(io.ComfyNode):
    """A run as APT Train gives it, with these words."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs, outputs = [io.String.Input("trigger"), io.String.Input("class_word")], [io.Custom("APT_RUN").Output()]
        return io.Schema(node_id="AptWitnessRun", category="test", inputs=inputs, outputs=outputs)

    @classmethod
    def execute(cls, trigger: str, class_word: str) -> io.NodeOutput:
        words = {"subject": "my_toy", "class_word": class_word, "trigger": trigger}
        return io.NodeOutput(pack("nodes.wires").AptRun(folder=Path("run"), stem="my_toy", steps=1, **words))


class AptWitnessReplaced(io.ComfyNode):
    """A model whose cross-attention another node has replaced in the decoder's first block: it looks at nothing."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs, outputs = [io.Model.Input("model")], [io.Model.Output()]
        return io.Schema(node_id="AptWitnessReplaced", category="test", inputs=inputs, outputs=outputs)

    @classmethod
    def execute(cls, model: Any) -> io.NodeOutput:
        model = model.clone()
        model.set_model_attn2_replace(lambda q, k, v, options: torch.zeros_like(q), "output", 0, 0)
        return io.NodeOutput(model)


class AptWitnessFlux(io.ComfyNode):
    """A MODEL of another family, as small as it can be."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="AptWitnessFlux", category="test", inputs=[], outputs=[io.Model.Output()])

    @classmethod
    def execute(cls) -> io.NodeOutput:
        shape = {
            "in_channels": 16, "out_channels": 16, "vec_in_dim": 8, "context_in_dim": 8, "hidden_size": 16,
            "num_heads": 1, "mlp_ratio": 1.0, "depth": 1, "depth_single_blocks": 1, "axes_dim": [4, 6, 6], "theta": 100,
            "txt_ids_dims": [], "patch_size": 2, "qkv_bias": True, "guidance_embed": False, "image_model": "flux",
        }  # fmt: skip
        config = comfy.supported_models.Flux(shape)
        config.set_inference_dtype(torch.float32, None)
        device = torch.device("cpu")
        return io.NodeOutput(comfy.model_patcher.ModelPatcher(config.get_model({}, "", device), device, device))


class WitnessExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [AptWitness, AptWitnessLora, AptWitnessRun, AptWitnessReplaced, AptWitnessFlux]


async def comfy_entrypoint() -> WitnessExtension:
    return WitnessExtension()
