"""The workshop: demo, test, lint, bench. Standard library only, Python 3.10 or newer, Linux, macOS and Windows.

    python dev.py demo [options]     train on the embedded model and draw the sheet (options: of apt-train demo)
    python dev.py test [options]     run the tests (options: of pytest)
    python dev.py test --oldest      the same on the oldest libraries that pyproject.toml admits
    python dev.py lint               ruff on everything, pyright on apt_train/
    python dev.py bench cost         what a step costs by method, as ratios (options: of benchmarks/cost.py)

Each command makes the virtual environment it needs beside this file (`.venv`, or `.venv-oldest`), installs the
package into it under a constraints file, and runs there. A stamp in the environment remembers what was installed,
so that the next call starts at once. Exit codes are passed on; what this file cannot do itself ends with one
sentence and exit code 2.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
NEWEST = (".venv", "constraints/test.txt")
OLDEST = (".venv-oldest", "constraints/oldest.txt")
STAMP = "apt-train-installed.json"


class Failure(Exception):
    """One sentence for the user: what cannot be done, and what to do about it."""


def main(arguments: list[str]) -> int:
    if sys.version_info < (3, 10):  # noqa: UP036 - this file is what an older Python meets first
        raise Failure(f"Python {sys.version.split()[0]} is too old: run dev.py with Python 3.10 or newer.")
    command, options = (arguments or ["--help"])[0], arguments[1:]
    if command in ("-h", "--help"):
        print(__doc__)
        return 0
    if command == "demo":
        return demo(options)
    if command == "test":
        return test([option for option in options if option != "--oldest"], oldest="--oldest" in options)
    if command == "bench":
        return bench(options)
    if command == "lint" and not options:
        return lint()
    if command == "lint":
        raise Failure(f"lint takes no options, it was given {options[0]}: run `python dev.py lint`.")
    raise Failure(f"there is no command {command}: say demo, test, lint or bench.")


# ---- the commands ------------------------------------------------------------------------------------------


def demo(options: list[str]) -> int:
    python = prepare(*NEWEST, extras=[])
    return run([python, "-m", "apt_train", "demo", *options])


def test(options: list[str], *, oldest: bool) -> int:
    """pytest in one process per core with one torch thread each.

    Threads of several processes would only wait for one another, and the trainer's bit-exactness is promised at
    a fixed thread count.
    """
    python = prepare(*(OLDEST if oldest else NEWEST), extras=["test"])
    if not any(option.startswith(("-n", "--numprocesses", "--pdb")) for option in options):
        options = ["-n", str(min(cores(), 8)), "--dist", "worksteal", *options]
    return run([python, "-m", "pytest", *options], OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")


def lint() -> int:
    """Both linters, the second also when the first finds something."""
    python = prepare(*NEWEST, extras=["lint", "test"])
    return max(
        run([python, "-m", "ruff", "check", "."]),
        run([python, "-m", "pyright", "--pythonpath", python]),
    )


def bench(options: list[str]) -> int:
    """`bench NAME`: runs benchmarks/NAME.py with the options that follow."""
    names = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "__init__")
    if not options or options[0] not in names:
        raise Failure(f"bench needs the name of a benchmark: {' or '.join(names)}.")
    return run([prepare(*NEWEST, extras=[]), "-m", f"benchmarks.{options[0]}", *options[1:]])


# ---- the virtual environment -------------------------------------------------------------------------------


def prepare(folder: str, constraints: str, *, extras: list[str]) -> str:
    """Bring the environment to what the constraints and extras ask for; returns its Python's path."""
    venv = ROOT / folder
    python = str(venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    wanted = {"python": sys.version, "root": str(ROOT), "digest": digest()}
    stamp = read_stamp(venv)
    installed = stamp.pop("extras", [])
    if stamp != wanted:
        installed = []
        if not is_usable(python):
            create(venv)
    if stamp != wanted or not set(extras) <= set(installed):
        extras = sorted({*installed, *extras})
        install(python, constraints, extras)
        (venv / STAMP).write_text(json.dumps({**wanted, "extras": extras}, indent=1), encoding="utf-8")
    return python


def digest() -> str:
    """Of every file that decides what is installed."""
    files = [ROOT / "pyproject.toml", *sorted((ROOT / "constraints").glob("*.txt"))]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def read_stamp(venv: Path) -> dict:
    """What the last successful installation left; empty where there was none."""
    try:
        return json.loads((venv / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def is_usable(python: str) -> bool:
    """Whether an environment stands there that has pip and is of this Python."""
    try:
        probe = [python, "-c", "import sys, pip; print(sys.version, end='')"]
        answer = subprocess.run(probe, env=environment(), capture_output=True, text=True)
    except OSError:
        return False
    return answer.returncode == 0 and answer.stdout == sys.version


def create(venv: Path) -> None:
    print(f"dev.py: making {venv.name} with Python {sys.version.split()[0]}", flush=True)
    try:
        if venv.exists():
            shutil.rmtree(venv)
    except OSError as error:
        raise Failure(f"{venv} cannot be replaced ({error.strerror}): remove it by hand.") from error
    if run([sys.executable, "-m", "venv", str(venv)]) != 0:
        raise Failure(
            f"{venv} could not be made, for the reason above: most often this Python lacks the venv module "
            "(Debian and Ubuntu: install python3-venv) or the folder is not writable."
        )


def install(python: str, constraints: str, extras: list[str]) -> None:
    target = f".[{','.join(extras)}]" if extras else "."
    print(f"dev.py: installing {target} under {constraints}; the first time takes some minutes", flush=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    if run([*pip, "--constraint", constraints, "--editable", target]) != 0:
        raise Failure("the installation failed: mend what pip names above and run the same command again.")


# ---- the host ----------------------------------------------------------------------------------------------


def find_host() -> tuple[Path, str] | None:
    """The folder of the ComfyUI to work with, and its Python; None where there is none.

    The folder: $COMFYUI_PATH, else ~/comfy/ComfyUI, else the one whose custom_nodes/ holds this pack. The Python:
    $COMFYUI_PYTHON, else that of the environment in or beside the folder, else the current one.
    """
    named = os.environ.get("COMFYUI_PATH")
    if named and not (Path(named) / "main.py").is_file():
        raise Failure(f"COMFYUI_PATH is {named}, where no main.py is: name ComfyUI's own folder, or unset it.")
    around = [ROOT.parent.parent] if ROOT.parent.name == "custom_nodes" else []
    places = [Path(named)] if named else [Path.home() / "comfy" / "ComfyUI", *around]
    found = next((place for place in places if (place / "main.py").is_file()), None)
    return None if found is None else (found.resolve(), host_python(found.resolve()))


def host_python(host: Path) -> str:
    """The portable Windows release keeps its Python beside the folder."""
    places = [
        *(host / venv / inner for venv in (".venv", "venv") for inner in ("bin/python", "Scripts/python.exe")),
        host.parent / "python_embeded" / "python.exe",
    ]
    found = next((str(place) for place in places if place.is_file()), sys.executable)
    return os.environ.get("COMFYUI_PYTHON") or found


# ---- processes ---------------------------------------------------------------------------------------------


def run(command: list[str], **variables: str) -> int:
    """Run in the repository's root and return the exit code. Ctrl-C is the child's to answer: we wait on."""
    try:
        process = subprocess.Popen(command, cwd=ROOT, env={**environment(), **variables})
    except OSError as error:
        raise Failure(f"{command[0]} does not start ({error.strerror}): remove its folder.") from error
    while True:
        try:
            code = process.wait()
            return code if code >= 0 else 128 - code
        except KeyboardInterrupt:
            continue


def environment() -> dict[str, str]:
    """This process's variables without those that let other packages in; the model hub is switched off."""
    foreign = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if name not in foreign}
    return {**kept, "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1", "MPLBACKEND": "Agg"}


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Failure as failure:
        print(f"dev.py: {failure}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
