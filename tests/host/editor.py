"""The host's own editor in a headless Chromium: its page, workflows in it, what its console says.

In: starting the browser, opening a page, loading and queueing. Not in: what a test expects of it, and how the example
workflows are made (`build_examples`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

from .server import Host, refusal

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-proxy-server", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--force-color-profile=srgb"),
)
# A first visit greets with templates and a map that lie over the graph; and drawing is work for the processor here.
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "LiteGraph.Canvas.MaximumFps": 10}
READY = "() => window.app?.vueAppReady && window.app.graph && app.extensionManager.workflow?.activeWorkflow"
NODES = "[app.rootGraph, ...app.rootGraph.subgraphs.values()].flatMap((graph) => graph.nodes)"
UNKNOWN = f"""() => {NODES}
  .filter((node) => !node.isSubgraphNode?.() && !(node.type in LiteGraph.registered_node_types))
  .map((node) => node.type)"""
SET = f"""([type, values]) => {{
  for (const node of {NODES}.filter((node) => node.type === type)) {{
    for (const [name, value] of Object.entries(values)) {{
      const widget = node.widgets.find((widget) => widget.name === name);
      widget.value = value;
      widget.callback?.(value);
    }}
  }}
}}"""
LOUD = ("error", "warning")


def chromium() -> str | None:
    """$CHROMIUM, else the first browser of its family on the path."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def lacking() -> str:
    """Why there is no editor to test with; empty where there is one."""
    if find_spec("playwright") is None:
        return "no editor: playwright is not installed"
    return "" if chromium() else "no editor: no Chromium found (CHROMIUM, or the path)"


class Browser:
    """A headless Chromium; a context manager. Every page it opens is a visitor of its own."""

    def __init__(self) -> None:
        self.open = ExitStack()

    def __enter__(self) -> Browser:
        from playwright.sync_api import sync_playwright

        driver = self.open.enter_context(sync_playwright())
        self.chromium = driver.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        self.open.callback(self.chromium.close)
        return self

    def __exit__(self, *exception: object) -> None:
        self.open.close()

    def page(self, host: Host, width: int = 1600, height: int = 1000, scale: float = 1, **settings: Any) -> Editor:
        """The host's page, ready, `width` x `height` CSS pixels of `scale` pixels each. `settings`: the editor's."""
        named = {name.replace("__", "."): value for name, value in settings.items()}
        host.post("/settings", **{**SETTINGS, **named})
        visitor = self.chromium.new_context(
            viewport={"width": width, "height": height}, device_scale_factor=scale, locale="en-US"
        )
        return Editor(host, visitor.new_page())


class Editor:
    """One page of a host; `said` is what its console printed loudly, as `source: text`."""

    elements = False  # whether the page draws the nodes itself, as in Nodes 2.0

    def __init__(self, host: Host, page: Any) -> None:
        self.host, self.page, self.said = host, page, []
        page.on("console", lambda message: message.type in LOUD and self.said.append(told(message, host)))
        page.on("pageerror", lambda error: self.said.append(f"page: {error}"))
        self.reopen()

    def reopen(self) -> None:
        """As a visitor does who closed the page, or reloads it."""
        self.page.goto(self.host.address, wait_until="domcontentloaded")
        self.page.wait_for_function(READY, timeout=60_000)

    def close(self) -> None:
        self.page.context.close()

    def __enter__(self) -> Editor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def do(self, script: str, *values: Any) -> Any:
        """What a JavaScript function returns, called with one array of values; a promise is waited for."""
        return self.page.evaluate(script, list(values))

    def until(self, script: str, *values: Any, timeout: float = 300) -> Any:
        """What a JavaScript function returns once it is true; it is asked at every picture the page draws."""
        return self.page.wait_for_function(script, arg=list(values), timeout=timeout * 1000).json_value()

    # ---- workflows

    def load(self, workflow: Mapping[str, Any]) -> None:
        """Opens a workflow. Nodes that the host lacks raise AssertionError."""
        self.do("async ([workflow]) => { await app.loadGraphData(workflow) }", workflow)
        self.fit()
        assert not self.unknown(), self.unknown()

    def unknown(self) -> list[str]:
        """Types of nodes in the open workflow that the host lacks."""
        return self.do(UNKNOWN)

    def set(self, node_type: str, **values: Any) -> None:
        """Widgets of all nodes of a type, also inside subgraphs."""
        self.do(SET, node_type, values)

    def workflow(self) -> dict[str, Any]:
        """What File > Export writes."""
        return json.loads(self.do("async () => JSON.stringify((await app.graphToPrompt()).workflow)"))

    def prompt(self) -> dict[str, Any]:
        """What File > Export (API) writes, and what is queued."""
        return json.loads(self.do("async () => JSON.stringify((await app.graphToPrompt()).output)"))

    def queue(self) -> str:
        """Queues the open workflow as the Run button does; returns the prompt's id. HostError: it was refused."""
        with self.page.expect_response(re.compile(r"/prompt$")) as answer:
            self.do("async () => { await app.queuePrompt(0) }")
        content = json.loads(answer.value.text())
        if answer.value.status != 200:
            raise refusal(content)
        return content["prompt_id"]

    # ---- looking

    def fit(self) -> None:
        """The whole graph comes into view."""
        self.do("async () => { await app.extensionManager.command.execute('Comfy.Canvas.FitView') }")
        self.page.wait_for_timeout(500)

    def screenshot(self, **options: Any) -> bytes:
        return self.page.screenshot(**options)


def told(message: Any, host: Host) -> str:
    """Without what differs from one host and visit to the next: addresses and long numbers."""
    source = (message.location or {}).get("url", "").replace(host.address, "")
    text = message.text.replace(host.address, "")
    return re.sub(r"[0-9a-f-]{12,}|\d{4,}", "#", f"{source}: {text}")
