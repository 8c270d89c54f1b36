"""What a node shows while it runs reaches the page that queued it, and nothing that the host cannot send.

Not here: how often, and the words (`tests/host/test_train.py`).
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

import pytest
from PIL import Image, ImageOps

from .node_modules import node_module
from .test_watch import HOST


@pytest.fixture
def progress(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, beside stand-ins for the host's own that remember what they are given."""
    for name in HOST:
        monkeypatch.setitem(sys.modules, name, MagicMock())
    sys.modules["folder_paths"].get_user_directory.return_value = str(tmp_path)
    with node_module("host.progress") as module:
        yield module


@pytest.mark.parametrize("page", ["the page's id", None])
def test_a_line_is_told_to_the_page_that_queued_the_prompt(progress: Any, page: str | None) -> None:
    """Every other page would show it on its own node of the same number."""
    server = progress.PromptServer.instance
    server.client_id = page
    progress.NodeProgress("5", 9).say("step 1 of 9")
    server.send_progress_text.assert_called_once_with("step 1 of 9", "5", sid=page)


@pytest.mark.parametrize("size", [(40, 70_000), (70_000, 40), (300, 200)])
def test_the_host_can_send_a_live_picture_of_any_size(progress: Any, size: tuple[int, int]) -> None:
    """It saves it as told, where an error would end the whole host."""
    progress.NodeProgress("5", 9).show(1, 9, Image.new("RGBA", size))
    kind, picture, longest = progress.comfy.utils.ProgressBar.return_value.update_absolute.call_args.args[2]
    sent = ImageOps.contain(picture, (longest, longest))
    sent.save(io.BytesIO(), format=kind)
    assert sent.size == size or max(sent.size) >= 4096
