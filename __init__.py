"""The pack's door: inside ComfyUI it hands `comfy_entrypoint` on from `nodes/`; elsewhere it exports nothing.

The host imports this folder as a package, under a name of its own. Without the host (pytest, the command line)
there is no `comfy_api`, and nothing is imported. The conditions are asked beforehand instead of by try/except,
which would hide a real error in our own import.
"""

from importlib.util import find_spec

if __package__ and find_spec("comfy_api") is not None and find_spec(".nodes", __package__) is not None:
    from .nodes import comfy_entrypoint

    WEB_DIRECTORY = "./web"  # scripts of the editor, and the nodes' help pages
    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
