"""The pack on a host with switches of its own: several users, and a cache that keeps what earlier prompts have made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .editor import SETTINGS, Browser, Editor, lacking
from .graphs import training_graph, upload_pictures
from .server import Host, HostError
from .trained import log_of, new_run
from .workflows import Graph

SPEAKS = {"default": "zh", "zhang": "zh", "ann": "en"}


@pytest.fixture(scope="module")
def host(place: tuple[Path, str], folder: Path) -> Iterator[Host]:
    for user, language in SPEAKS.items():
        settings = folder / "user" / user / "comfy.settings.json"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps({**SETTINGS, "Comfy.Locale": language}))
    (folder / "user" / "users.json").write_text(json.dumps({user: user for user in SPEAKS}))
    with Host(folder, *place, options=("--multi-user", "--cache-lru", "20")) as running:
        yield running


@pytest.fixture(scope="module")
def names(host: Host) -> list[str]:
    return upload_pictures(host)


# ---- several users


def told(host: Host, g: Graph, client: str | None) -> str:
    """What a page with that id is told of a mistake."""
    with pytest.raises(HostError) as caught:
        host.wait(host.queue(g.prompt, client))
    return caught.value.sentence


def test_each_page_is_spoken_to_in_its_own_language(host: Host, names: list[str]) -> None:
    """When a prompt is queued and when it runs; the default user's settings, who may be nobody, do not count."""
    queued, _ = training_graph(names, class_word="")
    running, node = training_graph(names)
    running.prompt[node.id]["inputs"]["class_word"] = running.node("PrimitiveString", value="")[0]
    host.request("/apt_train/language?client=first", b"zh")
    host.request("/apt_train/language?client=second", b"en")
    for g in (queued, running):
        assert told(host, g, "first").startswith("class_word 为空")
        for other in ("second", "stranger", None):
            assert told(host, g, other).startswith("class_word is empty")


@pytest.mark.skipif(bool(lacking()), reason=lacking())
@pytest.mark.parametrize("user", ["zhang", "ann"])
def test_the_editor_says_which_page_it_is(host: Host, names: list[str], user: str) -> None:
    mistake, _ = training_graph(names, class_word="")
    with Browser() as browser:
        visitor = browser.chromium.new_context(viewport={"width": 1600, "height": 1000}, locale="en-US")
        visitor.add_init_script(f"localStorage['Comfy.userId'] = localStorage['Comfy.userName'] = '{user}'")
        with Editor(host, visitor.new_page()) as editor:
            client = editor.until("() => { const { api } = window.comfyAPI.api; return api.clientId }")
            wanted = "class_word 为空" if SPEAKS[user] == "zh" else "class_word is empty"
            host.until(lambda: wanted in told(host, mistake, client), 30, f"did not speak {SPEAKS[user]}", pause=0.5)


# ---- a cache that keeps earlier prompts' results


def test_a_cancelled_restart_goes_on_though_the_host_holds_the_finished_result(host: Host, names: list[str]) -> None:
    g, node = training_graph(names, seed=5, steps=12)
    run = new_run(host, lambda: host.run(g.prompt))
    assert node.id in host.run(g.prompt).cached
    again: dict[str, Any] = training_graph(names, seed=5, steps=12, resume="restart")[0].prompt
    with host.events() as events:
        queued = host.queue(again, events.client_id)
        events.wait_for(lambda event: event.kind == "apt_train.steps" and event.data["points"][-1]["step"] >= 2)
        host.interrupt()
        with pytest.raises(HostError, match="interrupted"):
            host.wait(queued)
    assert len(log_of(run)) < 12
    host.run(g.prompt)
    assert len(log_of(run)) == 12
    assert node.id in host.run(g.prompt).cached
