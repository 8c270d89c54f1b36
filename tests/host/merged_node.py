"""A node for tests, put among the host's custom nodes: does a check-up merge a LoRA as the host does?

`AptMerged` puts a LoRA file on the wired model twice, by the host's own loader and by the check-up, and compares every
weight. Not imported by the tests: it runs inside the host.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import ComfyExtension, io


def pack(name: str) -> Any:
    """A module of the pack, which the host has loaded under the name of its folder."""
    root = next(key for key in sys.modules if key.endswith("comfyui-apt-train"))
    return importlib.import_module(f"{root}.{name}")


def apart(ours: torch.nn.Module, theirs: torch.nn.Module, base: dict[str, torch.Tensor]) -> dict[str, float]:
    """Largest difference over the largest change, and how many weights the host has changed."""
    others, worst, largest, changed = theirs.state_dict(), 0.0, 0.0, 0
    for name, tensor in ours.state_dict().items():
        moved = float((others[name].float() - base[name].float()).abs().max())
        worst, largest = max(worst, float((tensor.float() - others[name].float()).abs().max())), max(largest, moved)
        changed += moved > 0
    return {"apart": worst / largest if largest else worst, "changed": changed}


class AptMerged(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AptMerged",
            inputs=[
                io.Model.Input("model"), io.Clip.Input("clip"), io.Vae.Input("vae"), io.String.Input("lora_name"),
                io.Float.Input("strength"),
            ],
            outputs=[io.String.Output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Any, clip: Any, vae: Any, lora_name: str, strength: float) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("loras", lora_name)
        with torch.inference_mode(False), torch.no_grad():
            wires = pack("nodes.host.components").Wires.checked(model, clip, vae)
            components = wires.components(torch.float32, "")
            encoders = [encoder.model for encoder in components.text_encoders]
            for module in (components.unet, *encoders):
                module.float()
            base = [{k: v.clone() for k, v in m.state_dict().items()} for m in (components.unet, *encoders)]
            tensors = comfy.utils.load_torch_file(path)
            tuned, tuned_clip = comfy.sd.load_lora_for_models(model, clip, tensors, strength, strength)
            theirs = pack("nodes.host.components").Wires.checked(tuned, tuned_clip, vae).components(torch.float32, "")
            lora = pack("apt_train.lora_check.lora_file").read_lora(Path(path))
            ready = pack("apt_train.lora_check.with_lora").lora_ready
            with ready(components, lora, "cpu", "fp32") as merged, merged.at(strength):
                placement = merged.placement
                others = (theirs.unet, *(encoder.model for encoder in theirs.text_encoders))
                pairs = zip((components.unet, *encoders), others, base, strict=True)
                found = [apart(*pair) for pair in pairs]
        numbers = {
            "parts": found, "kinds": sorted({item.kind for item in placement.placed}), "placed": len(placement.placed),
            "left": placement.unplaced + placement.unfit + lora.unread,
            "taken": pack("nodes.host.loras").taken_by_host(model, clip, tensors),
        }  # fmt: skip
        return io.NodeOutput(json.dumps(numbers))


class Extension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [AptMerged]


async def comfy_entrypoint() -> Extension:
    return Extension()
