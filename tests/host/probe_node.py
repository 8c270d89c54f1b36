"""A node for tests, put among the host's custom nodes: does the trainer see what the host computes?

`AptProbe` turns wires into the trainer's components and compares UNet, text encoders, VAE and schedule with the host's
own on the same inputs. Not imported by the tests: it runs inside the host.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

import comfy.model_management
import folder_paths
import torch
from comfy_api.latest import ComfyExtension, io
from safetensors import safe_open
from safetensors.torch import load_file


def pack(name: str) -> Any:
    """A module of the pack, which the host has loaded under the name of its folder."""
    root = next(key for key in sys.modules if key.endswith("comfyui-apt-train"))
    return importlib.import_module(f"{root}.{name}")


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    return float((ours.float().cpu() - theirs.float().cpu()).abs().max() / theirs.float().abs().max())


def of_text(components: Any, clip: Any, prompt: str) -> dict[str, float]:
    for encoder in components.text_encoders:
        encoder.model.float()  # as the trainer does on the CPU, and the host
    conditioner = pack("apt_train.text.conditioning").Conditioner(
        components.text_encoders, None, class_word="toy", name="x"
    )
    ours = conditioner.encode([prompt], tuned=False)
    hidden, pooled = clip.encode_from_tokens(clip.tokenize(prompt), return_pooled=True)
    found = {"text": relative(ours.hidden, hidden)}
    return found if ours.pooled is None else {**found, "pooled": relative(ours.pooled, pooled)}


def of_unet(components: Any, model: Any) -> dict[str, float]:
    """One call at a middle timestep on noise."""
    draw = torch.Generator().manual_seed(0)
    noisy = torch.randn(1, 4, 8, 6, generator=draw)
    context = torch.randn(1, 77, components.unet.config["cross_attention_dim"], generator=draw)
    added, extra = {}, {}
    if pack("apt_train.families.sd.network").reads_size_ids(components.unet):
        pooled, ids = torch.randn(1, 1280, generator=draw), torch.tensor([[64.0, 48.0, 0.0, 0.0, 64.0, 48.0]])
        added = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}}
        extra = {"y": model.model.encode_adm(pooled_output=pooled, width=48, height=64, device="cpu")}
    step = torch.tensor([400])
    comfy.model_management.load_models_gpu([model])
    theirs = model.model.diffusion_model(noisy, step.float(), context=context, **extra)
    return {"unet": relative(components.unet(noisy, step, encoder_hidden_states=context, **added).sample, theirs)}


def of_schedule(components: Any, model: Any) -> dict[str, float]:
    sigmas, schedule = model.get_model_object("model_sampling").sigmas, components.schedule
    return {
        "schedule": relative(schedule.alphas_cumprod, 1 / (sigmas**2 + 1)),
        "v": float(schedule.prediction == "v_prediction"),
        "zero_snr": float(schedule.zero_terminal_snr),
    }


def of_pictures(components: Any, model: Any, vae: Any) -> dict[str, float]:
    image = torch.rand(1, 64, 48, 3, generator=torch.Generator().manual_seed(1))  # NHWC
    mean, std = components.encode(image.movedim(-1, 1) * 2 - 1)
    theirs = model.model.process_latent_in(vae.encode(image))
    back = (components.decode(mean).movedim(1, -1) + 1) / 2
    return {
        "vae": relative(mean, theirs),
        "decode": relative(back, vae.decode(model.model.process_latent_out(theirs))),
        "std": 0.0 if std is None else float(std.mean()),
    }


def of_lora(components: Any, model: Any, name: str) -> dict[str, float]:
    """The trainer's UNet with a file's adapter on it, against the host's with that file."""
    path = folder_paths.get_full_path_or_raise("loras", name)
    lora, settings = load_file(path), pack("apt_train.config")
    with safe_open(path, framework="pt") as file:
        said = file.metadata() or {}
    adapter = settings.AdapterConfig(**json.loads(said["adapter"]))
    config = settings.TrainConfig(class_word="toy", adapter=adapter)
    put_on = pack("apt_train.sample.apply").personalized(components, lora, None, config)
    patched = pack("nodes.host.model").with_lora(model, lora)
    plain = of_unet(components, patched)["unet"]
    with put_on:
        return {"tuned": of_unet(components, patched)["unet"], "untuned": plain}


class AptProbe(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Model.Input("model"), io.Clip.Input("clip"), io.Vae.Input("vae"), io.String.Input("prompt")]
        inputs.append(io.String.Input("lora", default="", optional=True))
        return io.Schema(node_id="AptProbe", category="test", is_output_node=True, inputs=inputs)

    @classmethod
    def execute(cls, model: Any, clip: Any, vae: Any, prompt: str, lora: str = "") -> io.NodeOutput:
        with torch.inference_mode(False), torch.no_grad():
            wires = pack("nodes.host.components").Wires.checked(model, clip, vae)
            components = wires.components(torch.float32, "")
            digest = wires.digest(pack("nodes.host.weights").DigestCache(), lambda *_: None)
            found = of_text(components, clip, prompt) | of_unet(components, model) | of_schedule(components, model)
            found |= of_pictures(components, model, vae)
            found |= of_lora(components, model, lora) if lora else {}
        return io.NodeOutput(ui={"text": [json.dumps({**found, "digest": digest, "notes": components.notes})]})


class ProbeExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [AptProbe]


async def comfy_entrypoint() -> ProbeExtension:
    return ProbeExtension()
