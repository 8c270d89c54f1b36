"""The pack's nodes: the list that the host asks for."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io


class AptTrainExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from .options import APTTrainOptions
        from .train import APTTrain

        return [APTTrain, APTTrainOptions]


async def comfy_entrypoint() -> AptTrainExtension:
    return AptTrainExtension()
