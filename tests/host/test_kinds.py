"""Each kind of adapter acts in the host, from its file, as it acted in training."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from apt_train.adapter import adapter_of
from apt_train.adapter_kinds import KINDS
from apt_train.config import AdapterConfig
from apt_train.families.load import load_checkpoint
from apt_train.run.export import lora_to_kohya, save_lora

from ..tiny import unet_of
from .server import Host
from .workflows import Graph, checkpoint

NODE = "probe_node.py"


@pytest.fixture(autouse=True)
def tokenizers(place: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's own, as a single file has none."""
    monkeypatch.setenv("COMFYUI_PATH", str(place[0]))


def write_lora(path: Path, base: Path, kind: str) -> None:
    """An adapter of that kind that does something, on every layer it can sit on."""
    parts, draw = load_checkpoint(base), torch.Generator().manual_seed(0)
    settings = AdapterConfig(rank=4, alpha=3.0, targets="attention+ff", kind=kind)
    adapter = adapter_of(parts.unet, settings, parts.family, None)
    with torch.no_grad():
        for parameter in adapter.parameters.values():
            parameter.add_((0.1 + 0.2 * parameter.abs().mean()) * torch.randn(parameter.shape, generator=draw))
    path.parent.mkdir(parents=True, exist_ok=True)
    lora = lora_to_kohya(adapter.state(), settings.effective_alpha, parts.family, unet_of(parts).config)
    save_lora(path, lora, {"adapter": json.dumps(asdict(settings))})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_its_file_is_the_trained_model(host: Host, checkpoints: dict[str, Path], kind: str, model: str) -> None:
    name = f"{model}_{kind}.safetensors"
    write_lora(host.folder / "models" / "loras" / name, checkpoints[model], kind)
    g = Graph()
    wires = dict(zip(("model", "clip", "vae"), checkpoint(g, f"{model}.safetensors"), strict=True))
    node = g.node("AptProbe", **wires, prompt="a toy", lora=name)
    found = json.loads(host.run(g.prompt, timeout=300).outputs[node.id]["text"][0])
    assert found["tuned"] < 1e-5 and found["untuned"] > 1e-3, found
    assert "lora key not loaded" not in host.log_text() and "ERROR lora" not in host.log_text()
