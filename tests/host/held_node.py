"""A node for tests, put among the host's custom nodes: what of the pack's is still held in memory?

Not imported by the tests: it runs inside the host.
"""

from __future__ import annotations

import gc
import json
from collections import Counter
from typing import Any

import torch
from comfy_api.latest import ComfyExtension, io

LIBRARIES = ("diffusers", "transformers", "peft")  # of what the trainer builds


def tensor_bytes(found: list[Any]) -> int:
    """Of all tensors among these, each storage once. Not `isinstance`: that would wake lazy proxies."""
    storages = {}
    for value in found:
        if issubclass(type(value), torch.Tensor) and value.device.type == "cpu":
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def is_built(value: Any) -> bool:
    """Whether it is a network of the trainer's libraries; activation functions are theirs by the import alone."""
    kind = type(value)
    return issubclass(kind, torch.nn.Module) and kind.__module__.partition(".")[0] in LIBRARIES


def of_the_pack(value: Any) -> str | None:
    """The class of one of the pack's own objects."""
    module = getattr(type(value), "__module__", "")
    if isinstance(module, str) and "comfyui-apt-train" in module:
        return type(value).__name__
    return None


class AptHeld(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AptHeld", category="test", is_output_node=True, inputs=[io.Int.Input("nonce", default=0)]
        )

    @classmethod
    def execute(cls, nonce: int) -> io.NodeOutput:
        gc.collect()
        everything = gc.get_objects()
        modules = Counter(type(value).__name__ for value in everything if is_built(value))
        kinds = Counter(filter(None, map(of_the_pack, everything)))
        answer = {"tensors": tensor_bytes(everything), "kinds": kinds, "modules": modules}
        return io.NodeOutput(ui={"text": [json.dumps(answer)]})


class HeldExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [AptHeld]


async def comfy_entrypoint() -> HeldExtension:
    return HeldExtension()
