"""LoRA files as the host's own loader takes them, and a learned word's file beside its LoRA.

Not here: merging on a real host (`tests/host/test_check_up.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from safetensors.torch import save_file

from .node_modules import node_module

HALF = {"layer.lora_up.weight": torch.ones(2, 2)}
NAMES = ("comfy", "comfy.lora", "comfy.lora_convert", "comfy.sd", "folder_paths")


@pytest.fixture
def loras(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, in a host without any files."""
    for name in NAMES:
        monkeypatch.setitem(sys.modules, name, MagicMock())
    monkeypatch.setattr(sys.modules["comfy"], "lora", sys.modules["comfy.lora"])
    sys.modules["folder_paths"].get_filename_list.return_value = []
    with node_module("host.loras") as module:
        yield module


@pytest.mark.parametrize("error", [KeyError("layer.lora_down.weight"), RuntimeError("alpha of two numbers")])
def test_a_lora_that_the_host_fails_on_is_told_in_words(loras: Any, error: Exception) -> None:
    loras.comfy.lora.load_lora.side_effect = loras.comfy.sd.load_lora_for_models.side_effect = error
    assert loras.taken_by_host(MagicMock(), MagicMock(), HALF) is None
    with pytest.raises(loras.InputError, match="own loader fails on this LoRA"):
        loras.with_any_lora(MagicMock(), None, HALF)


def test_a_word_is_found_beside_its_lora_by_its_name(loras: Any, tmp_path: Path) -> None:
    """As the sentence says that asks for it."""
    rows, beside = torch.ones(2, 768), tmp_path / "my_toy_embedding.safetensors"
    save_file({"clip_l": rows}, beside)
    assert torch.equal(loras.embedding_rows("embedding:my_toy_embedding", beside)["clip_l"], rows)
    assert loras.embedding_rows("embedding:another", beside) is None
    assert loras.embedding_rows("embedding:my_toy_embedding", None) is None
    assert loras.embedding_rows("sks toy", beside) is None


def test_a_lora_is_on_the_model_already_only_if_all_of_it_is(loras: Any) -> None:
    """Two of one training share what it froze, for example the random half of each layer."""
    up, down = torch.ones(2, 2), torch.arange(4.0)
    there, other = SimpleNamespace(weights=(up, down, 1.0)), SimpleNamespace(weights=(2 * up, down, 1.0))
    model = SimpleNamespace(patches={"layer": [(1.0, there)]})
    for added in (other, there):
        tuned = SimpleNamespace(patches={"layer": [(1.0, there), (1.0, added)]})
        loras.comfy.sd.load_lora_for_models.return_value = tuned, None
        with pytest.raises(loras.InputError, match="already") if added is there else nullcontext():
            loras.require_without(model, [{}])


def test_the_weights_a_lora_changes_are_counted_beside_those_of_earlier_ones(loras: Any) -> None:
    """The count tells whether all of the LoRA has found its place."""
    model, clip = (SimpleNamespace(patches={"layer": ["earlier"]}) for _ in range(2))
    tuned, tuned_clip = (SimpleNamespace(patches={"layer": ["earlier", "new"], "next": ["new"]}) for _ in range(2))
    loras.comfy.sd.load_lora_for_models.return_value = tuned, SimpleNamespace(patcher=tuned_clip)
    assert loras.with_any_lora(model, None, HALF)[2] == 2
    assert loras.with_any_lora(model, SimpleNamespace(patcher=clip), HALF)[2] == 4
