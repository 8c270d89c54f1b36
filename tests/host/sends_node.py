"""A node for tests, put among the host's custom nodes: it gives what a script or a stranger's node may give.

Not imported by the tests: it runs inside the host.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from comfy_api.latest import ComfyExtension, io

VALUES: dict[str, list[Any]] = {
    "null": [None],
    "nothing": [],
    "nan": [math.nan],
    "fraction": [2.5],
    "digit": ["3"],
    "mask": [torch.zeros(8, 8)],
    "empty": [{}],
    "words": [{"samples": "x", "a": "b"}],
    "array": [np.zeros((2, 2))],
    "odd": ["x" * 20_000 + "\ud800\0"],
}


class AptSends(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        outputs = [io.Custom("*").Output(is_output_list=True)]
        return io.Schema(node_id="AptSends", category="test", inputs=[io.String.Input("what")], outputs=outputs)

    @classmethod
    def execute(cls, what: str) -> io.NodeOutput:
        return io.NodeOutput(VALUES[what])


class SendsExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [AptSends]


async def comfy_entrypoint() -> SendsExtension:
    return SendsExtension()
