"""The pack's nodes: the list that ComfyUI asks for, and the HTTP routes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .host.requirements import check_host


class AptTrainExtension(ComfyExtension):
    """All nodes. Their heavy imports happen when they run, so that ComfyUI starts quickly."""

    async def on_load(self) -> None:
        from .host.copies import first_copy, step_aside
        from .live import register_routes

        if (first := first_copy()) is not None:
            step_aside(first)
        else:
            register_routes()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from .host.copies import first_copy

        if first_copy() is not None:
            return []
        from .all_options import APTTrainOptions
        from .attention_preview import APTAttentionAlignPreview
        from .boundary import speaks_plainly
        from .check_up import APTLoRACheckUp
        from .image_set import APTImageSet
        from .load_run import APTLoadRun
        from .monitor import APTOverfitIndicatorMonitor
        from .options import APTAdapterOptions, APTDataOptions, APTMethodOptions, APTSampleOptions
        from .snapshot_sheet import APTSnapshotSheet
        from .train import APTTrain

        options = [APTMethodOptions, APTAdapterOptions, APTDataOptions, APTSampleOptions, APTTrainOptions]
        looks = [APTAttentionAlignPreview, APTOverfitIndicatorMonitor, APTSnapshotSheet, APTLoadRun]
        nodes = [APTTrain, *options, *looks, APTImageSet, APTLoRACheckUp]
        return [speaks_plainly(node) for node in nodes]


async def comfy_entrypoint() -> AptTrainExtension:
    check_host()
    return AptTrainExtension()
