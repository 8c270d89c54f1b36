"""The pack in `custom_nodes` twice: it is said, one copy acts, and its scripts and routes are there once."""

from __future__ import annotations

import json
import urllib.error
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import dev

from .graphs import training_graph, upload_pictures
from .server import Host, copy_pack

OTHER = "apt-train-downloaded-again"


@pytest.fixture(scope="module")
def host(place: tuple[Path, str], folder: Path) -> Iterator[Host]:
    copy_pack(folder / "custom_nodes" / OTHER)
    with Host(folder, *place) as running:
        yield running


def used(host: Host) -> str:
    """The folder whose nodes the host knows."""
    (module,) = {host.object_info(name)["python_module"] for name in ("APTTrain", "APTOverfitIndicatorMonitor")}
    return module.removeprefix("custom_nodes.")


def test_the_log_names_both_folders_and_which_is_used(host: Host) -> None:
    (line,) = [line for line in host.log_text().splitlines() if "installed twice" in line]
    (unused,) = {dev.PACK, OTHER} - {used(host)}
    assert f"{used(host)} is used" in line and f"{unused} is not" in line
    assert "Error while calling comfy_entrypoint" not in host.log_text() and "IMPORT FAILED" not in host.log_text()


def test_scripts_and_routes_are_there_once(host: Host) -> None:
    scripts = Counter(path.rpartition("/")[2] for path in host.get("/extensions") if "apt" in path.lower())
    assert scripts["apt_train.js"] == 1 and set(scripts.values()) == {1}
    assert host.get("/apt_train/runs") == {"runs": []}
    with pytest.raises(urllib.error.HTTPError) as caught:
        host.get("/apt_train/runs/none")
    assert caught.value.code == 404


def test_a_run_tells_it_too_and_keeps_it(host: Host) -> None:
    g, node = training_graph(upload_pictures(host), steps=1)
    with host.events() as events:
        host.run(g.prompt, client_id=events.client_id)
        events.wait_for("apt_train.finished")
        lines = [event.data["text"] for event in events.of("text") if event.data["node"] == node.id]
        told = [event.data["text"] for event in events.of("apt_train.notice")]
    (notice,) = [text for text in told if "installed twice" in text]
    assert dev.PACK in notice and OTHER in notice and notice in lines
    counted = f" · {len(told)} notice{'s' * (len(told) > 1)} · "
    assert any(counted in line for line in lines if line.startswith("done: "))
    (run,) = (host.folder / "output" / "apt_train").iterdir()
    assert [json.loads(line)["text"] for line in (run / "notices.jsonl").read_text().splitlines()] == told
    assert host.get(f"/apt_train/runs/{run.name}")["notices"] == told
