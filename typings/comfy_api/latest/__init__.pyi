"""What the nodes use of the host's versioned interface; the host is not installed where types are checked."""

from . import io as io
from . import ui as ui

class ComfyExtension:
    async def on_load(self) -> None: ...
    async def get_node_list(self) -> list[type[io.ComfyNode]]: ...
