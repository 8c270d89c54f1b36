"""The host reads the nodes' texts as `tests/node_texts.py` does, and serves languages and help pages to the editor.

Not here: what the texts say (`tests/test_node_texts.py`).
"""

from __future__ import annotations

from typing import Any

import pytest

from dev import PACK
from tests.node_texts import LOCALES, node_defs, nodes

from .server import Host


def texts_of(info: dict[str, Any]) -> dict[str, Any]:
    """The host's own account of a node, in the form of a locale file."""
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    outputs = zip(info["output_name"], info["output_tooltips"], strict=True)
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": {
            name: {"name": more.get("display_name", name), "tooltip": more["tooltip"]}
            for name, (_kind, more) in inputs.items()
        },
        "outputs": {str(i): {"name": name, "tooltip": tooltip} for i, (name, tooltip) in enumerate(outputs)},
    }


def test_the_host_reads_the_schemas_alike(host: Host) -> None:
    ours = {name: info for name, info in host.object_info().items() if info["python_module"] == f"custom_nodes.{PACK}"}
    assert {name: texts_of(info) for name, info in ours.items()} == node_defs()


@pytest.mark.parametrize("language", sorted(path.name for path in LOCALES.iterdir()))
def test_the_host_serves_the_languages(host: Host, language: str) -> None:
    served = host.get("/i18n")[language]["nodeDefs"]
    assert {name: set(served[name]["inputs"]) for name in nodes()} == {
        name: {slot.id for slot in node.inputs} for name, node in nodes().items()
    }


@pytest.mark.parametrize("node", list(nodes()))
def test_the_host_serves_the_help_pages(host: Host, node: str) -> None:
    """Where the editor asks for them: under the folder of the pack."""
    text = host.get(f"/extensions/{PACK}/docs/{node}.md").decode("utf-8")
    assert text.startswith(f"# {nodes()[node].display_name}\n")


@pytest.mark.parametrize("language", sorted({path.name for path in LOCALES.iterdir()} - {"en"}))
@pytest.mark.parametrize("node", list(nodes()))
def test_the_host_serves_the_translated_help_pages(host: Host, node: str, language: str) -> None:
    """Which the editor asks for first."""
    text = host.get(f"/extensions/{PACK}/docs/{node}/{language}.md").decode("utf-8")
    assert text.startswith("# ") and "| `" in text
