"""For the site alone: pages that link to files beside docs/, as they do in the repository.

A picture is taken into the site at the same place. Of any other such file the text of the link is left.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(!?)\[([^\]]*)\]\(((?:\.\./)+)([^)#\s]+)(#[^)]*)?\)")
PICTURES = (".png", ".jpg", ".svg")


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    depth = page.file.src_uri.count("/")

    def inside(link: re.Match[str]) -> str:
        mark, text, up, path, _ = link.groups()
        if up.count("../") <= depth:
            return link[0]
        if not path.endswith(PICTURES):
            return text
        if files.get_file_from_path(path) is None:
            picture = File.generated(config, path, abs_src_path=str(ROOT / path))
            files.append(picture)
        return f"{mark}[{text}]({'../' * depth}{path})"

    return LINK.sub(inside, markdown)
