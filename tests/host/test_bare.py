"""The host alone and our dealings with it: the tiny checkpoints draw, the pack is imported, failures are told."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from dev import PACK

from .checkpoints import KINDS
from .server import Host, HostError
from .workflows import Graph, checkpoint, text_to_image


def drawing(kind: str, prompt: str = "a photo of a dog", seed: int = 0, steps: int = 2) -> Graph:
    g = Graph()
    text_to_image(g, *checkpoint(g, f"{kind}.safetensors"), prompt, seed, steps=steps)
    return g


def picture(host: Host, g: Graph) -> Image.Image:
    (entry,) = host.run(g.prompt).images
    return host.image(entry)


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean over the pixels, of 255."""
    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean())


# ---- the host ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "sd15_kl"])
def test_a_tiny_checkpoint_makes_pictures_that_hear_prompt_and_seed(host: Host, kind: str) -> None:
    first = picture(host, drawing(kind))
    assert first.size == (64, 64)
    assert np.mean((np.asarray(first) == 0) | (np.asarray(first) == 255)) < 0.3, "mostly black or white"
    assert np.asarray(first, dtype=float).std() > 10, "flat"
    assert difference(first, picture(host, drawing(kind, seed=1))) > 10
    assert difference(first, picture(host, drawing(kind, "a red car in the snow"))) > 10


def test_the_pack_is_imported(host: Host) -> None:
    assert f"custom_nodes/{PACK}" in host.log_text().replace("\\", "/")
    failed = [line for line in host.log_text().splitlines() if "IMPORT FAILED" in line]
    assert [line for line in failed if PACK in line] == []
    ours = [info["python_module"] for info in host.object_info().values() if PACK in info["python_module"]]
    assert set(ours) == {f"custom_nodes.{PACK}"}


def test_it_lives_in_its_own_folder(host: Host) -> None:
    """Its models, nodes, input, output and user data: no path of the installation itself is written to."""
    known = host.get("/internal/folder_paths")
    assert len(known) > 10
    assert [path for paths in known.values() for path in paths if not Path(path).is_relative_to(host.folder)] == []
    assert (host.folder / "user").is_dir() and (host.folder / "temp").is_dir()


def test_a_lora_that_the_host_saved_is_found_by_its_loader(host: Host) -> None:
    folder = host.folder / "output" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.safetensors").write_bytes(b"")
    names, _options = host.object_info("LoraLoader")["input"]["required"]["lora_name"]
    assert "mine.safetensors" in names


# ---- our dealings with it ----------------------------------------------------------------------------------------


def test_a_prompt_that_is_refused_says_what_the_host_says(host: Host) -> None:
    g = Graph()
    text_to_image(g, *checkpoint(g, "absent.safetensors"), "a dog")
    with pytest.raises(HostError, match="CheckpointLoaderSimple: Value not in list.*absent") as caught:
        host.run(g.prompt)
    assert caught.value.kind == "refused"


def test_a_node_that_fails_says_why_and_which_it_was(host: Host) -> None:
    (host.folder / "models" / "checkpoints" / "broken.safetensors").write_bytes(b"no such file format")
    g = Graph()
    text_to_image(g, *checkpoint(g, "broken.safetensors"), "a dog")
    with pytest.raises(HostError, match="broken.safetensors|header") as caught:
        host.run(g.prompt)
    assert (caught.value.kind, caught.value.node, caught.value.node_type) == ("failed", "1", "CheckpointLoaderSimple")


def test_progress_is_heard_and_a_running_prompt_can_be_interrupted(host: Host) -> None:
    with host.events() as events:
        prompt_id = host.queue(drawing("sd15", seed=7, steps=500).prompt, events.client_id)
        progress = events.wait_for(lambda event: event.kind == "progress" and event.data["value"] >= 2)
        host.interrupt()
        with pytest.raises(HostError) as caught:
            host.wait(prompt_id)
        events.wait_for("execution_interrupted")
    assert progress.data["max"] == 500 and progress.data["prompt_id"] == prompt_id
    assert (caught.value.kind, caught.value.node_type) == ("interrupted", "KSampler")


def test_an_unchanged_prompt_is_not_run_again(host: Host) -> None:
    g = drawing("sd15", seed=11)
    assert host.run(g.prompt).cached < host.run(g.prompt).cached == set(g.prompt)


def test_an_uploaded_picture_comes_back(host: Host) -> None:
    image = Image.fromarray(np.arange(48 * 32 * 3, dtype=np.uint8).reshape(48, 32, 3))
    g = Graph()
    loaded = g.node("LoadImage", image=host.upload("subject.png", image))
    g.node("PreviewImage", images=loaded[0])
    assert difference(picture(host, g), image) == 0


def test_results_are_let_go_on_request(host: Host) -> None:
    g = drawing("sd15", seed=12)
    host.run(g.prompt)
    host.free()
    assert host.until(lambda: not host.run(g.prompt).cached, 30, "kept its results")
    assert 100e6 < host.memory() < 16e9


def test_after_a_restart_the_folder_is_as_it_was(host: Host) -> None:
    before = picture(host, drawing("sd15", seed=13))
    host.upload("kept.png", before)
    assert host.process is not None
    gone = psutil.Process(host.process.pid)
    host.restart()
    assert not gone.is_running()
    assert "kept.png" in host.object_info("LoadImage")["input"]["required"]["image"][0]
    assert difference(before, picture(host, drawing("sd15", seed=13))) == 0


def test_a_host_that_does_not_start_says_why(place: tuple[Path, str], tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="unrecognized arguments: --no-such-option"):
        Host(tmp_path, *place, options=("--no-such-option",)).start()


def test_no_other_address_is_reachable() -> None:
    with socket.socket() as probe, pytest.raises(AssertionError, match="asked for the network"):
        probe.connect(("192.0.2.1", 80))
