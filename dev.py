"""The workshop: demo, test, lint, docs, bench, fuzz, host. Standard library only, Python 3.10+, on any system.

    python dev.py demo [options]     train on the embedded model and draw the sheet (options: of apt-train demo)
    python dev.py test [options]     run the tests, then those on a real ComfyUI if there is one (options: of pytest)
    python dev.py test --oldest      the same on the oldest libraries that pyproject.toml allows, but for torch
    python dev.py lint               ruff (rules and format) and pyright (strict on apt_train/, basic elsewhere)
    python dev.py docs               the pages in docs/ as a site in site/, which loads nothing from the network
    python dev.py bench quality      what each method learns, and what it costs the prior (docs/benchmark.md)
    python dev.py bench gpu          time and memory of a step on a GPU, in eight minutes (--tiny: does it run?)
    python dev.py bench speed        what a step costs by method, against a bare loop (options: of benchmarks/speed.py)
    python dev.py bench memory       what training needs of a GPU's memory, by arithmetic
    python dev.py bench layout       what another memory layout and compiled blocks bring to the network
    python dev.py bench recompute    what recomputing activations costs, in part of the network or in all of it
    python dev.py bench storage      what each way to store the frozen base rounds off, and what a step on it costs
    python dev.py bench setup        what comes before the first step, as a share of a run of 1,000 steps
    python dev.py bench host_trainer a DreamBooth step against ComfyUI's own trainer node, if there is a ComfyUI
    python dev.py fuzz [options]     hostile files and command lines, for 7 minutes (--seconds N, --seed S, targets)
    python dev.py host [options]     start ComfyUI with this pack and tiny checkpoints (options: of its main.py; without
                                     a GPU that its torch can use, --cpu is added)

ComfyUI is looked for in $COMFYUI_PATH, then in ~/comfy/ComfyUI, then around this pack if it lies in custom_nodes/.

Each command makes the virtual environment it needs beside this file (`.venv`, or `.venv-oldest`), installs the package
into it under a constraints file, and runs there. A stamp in the environment records what was installed, so that the
next call starts at once. Exit codes are passed on; a failure of this file itself ends with one sentence and exit code
2. SIGTERM and SIGHUP are passed on to the child process, which is waited for.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent
NEWEST = (".venv", "constraints/test.txt")
OLDEST = (".venv-oldest", "constraints/oldest.txt")
STAMP = "apt-train-installed.json"
PACK = "comfyui-apt-train"  # the pack's name among a host's custom nodes
HOST_TESTS = "tests/host"
NOTHING_RUN = 5  # pytest's exit code if it found no test
NO_HOST = "no ComfyUI found (COMFYUI_PATH, ~/comfy/ComfyUI)"


class Failure(Exception):
    """One sentence for the user: what cannot be done, and what to do about it."""


def main(arguments: list[str]) -> int:
    if sys.version_info < (3, 10):  # noqa: UP036 - this file is what an older Python meets first
        raise Failure(f"Python {sys.version.split()[0]} is too old: run dev.py with Python 3.10 or newer.")
    command, options = (arguments or ["--help"])[0], arguments[1:]
    if command in ("-h", "--help"):
        say(__doc__ or "")
        return 0
    if command == "demo":
        return demo(options)
    if command == "test":
        return test([option for option in options if option != "--oldest"], oldest="--oldest" in options)
    if command == "bench":
        return bench(options)
    if command == "host":
        return host(options)
    if command == "fuzz":
        return fuzz(options)
    if command in ("lint", "docs"):
        if options:
            raise Failure(f"{command} takes no options, it was given {options[0]}: run `python dev.py {command}`.")
        return lint() if command == "lint" else docs()
    raise Failure(f"there is no command {command}: say demo, test, lint, docs, bench, host or fuzz.")


# ---- the commands ------------------------------------------------------------------------------------------


def demo(options: list[str]) -> int:
    python = prepare(*NEWEST, extras=[])
    return run([python, "-m", "apt_train", "demo", *options])


def test(options: list[str], *, oldest: bool) -> int:
    """Run the tests, then those on a host if one is found; or only the tests that the options name.

    `--oldest` skips the host's: a host brings its own libraries, so nothing would differ.
    """
    found = None if oldest else find_host()
    python = prepare(*(OLDEST if oldest else NEWEST), extras=["bench", "test"])
    named = named_tests(options)
    if any(name.startswith(HOST_TESTS) for name in named):
        return test_on_host(python, found, options)
    if named:
        return pytest(python, options)
    code = pytest(python, [f"--ignore={HOST_TESTS}", *options])
    if oldest or code not in (0, 1, NOTHING_RUN):  # Ctrl-C, or options that pytest does not know
        return code
    return worst(code, test_on_host(python, found, [HOST_TESTS, *options]))


def test_on_host(python: str, found: tuple[Path, str] | None, options: list[str]) -> int:
    """At most two files at once, each in one process, because each file starts its own host."""
    if found is None:
        say(f"dev.py: {NO_HOST}: the host tests are skipped")
        return NOTHING_RUN
    if lacks := lacking(*found):
        say(f"dev.py: tests that need it will fail: {lacks}")
    return pytest(python, options, workers=2, spread="loadfile", COMFYUI_PYTHON=found[1])


def pytest(python: str, options: list[str], workers: int = 8, spread: str = "worksteal", **variables: str) -> int:
    """Run pytest with one process per core and one torch thread each.

    More threads would only wait for one another, and the trainer is bit-exact only at a fixed thread count.
    """
    if not any(option.startswith(("-n", "--numprocesses", "--pdb")) for option in options):
        options = ["-n", str(min(cores(), workers)), "--dist", spread, *options]
    variables |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return run([python, "-m", "pytest", *options], ends_with_us=False, **variables)


def named_tests(options: list[str]) -> list[str]:
    """Those of pytest's options that name a file, a folder or a test in one."""
    values = {place + 1 for place, option in enumerate(options) if option in ("-k", "-m", "-p", "-o", "-W")}
    plain = [option for place, option in enumerate(options) if not option.startswith("-") and place not in values]
    return [option for option in plain if (ROOT / option.partition("::")[0]).exists()]


def worst(*codes: int) -> int:
    """The highest exit code; "no test was found" counts only if no run found any."""
    return max((code for code in codes if code != NOTHING_RUN), default=NOTHING_RUN)


def lint() -> int:
    """Run all linters, even if one finds something. pyright is strict on apt_train/ only."""
    python = prepare(*NEWEST, extras=["bench", "lint", "test"])
    return max(
        run([python, "-m", "ruff", "check", "."]),
        run([python, "-m", "ruff", "format", "--check", "--quiet", "."]),
        run([python, "-m", "pyright", "--pythonpath", python]),
        run([python, "-m", "pyright", "--pythonpath", python, "--project", "pyright.basic.json"]),
    )


def docs() -> int:
    """Build the site with warnings as errors, and check what its pages would load."""
    python = prepare(*NEWEST, extras=["docs"])
    code = run([python, "-m", "mkdocs", "build", "--strict", "--quiet"], NO_MKDOCS_2_WARNING="1")
    if code == 0 and (found := loaded_from_elsewhere(ROOT / "site")):
        raise Failure(f"the site would load from the network: {found[0]}; take it out of mkdocs.yml or the page.")
    if code == 0:
        say(f"dev.py: open {ROOT / 'site' / 'index.html'}")
    return code


def loaded_from_elsewhere(site: Path) -> list[str]:
    """What a browser would fetch from another host to show a page, each with its file. Links are not fetched."""
    files = [file for file in sorted(site.rglob("*")) if file.suffix in (".html", ".css")]
    return [
        f"{found[0]} in {file.relative_to(site)}"
        for file in files
        for found in _FETCHED.finditer(file.read_text(encoding="utf-8"))
    ]


_HOST = r"""["']?(?:https?:)?//[^"'\s>)]+"""
_FETCHED = re.compile(
    rf"<(?:script|link|img|iframe|source|video|audio|embed|object)\b[^>]*\b(?:src|srcset|href|data)={_HOST}"
    rf"|\burl\({_HOST}|@import\s+{_HOST}",
    re.IGNORECASE,
)


def bench(options: list[str]) -> int:
    """`bench NAME`: runs benchmarks/NAME.py, or the package of that name, with the options that follow."""
    folder = ROOT / "benchmarks"
    files = [path.stem for path in folder.glob("*.py") if path.stem != "__init__"]
    names = sorted([*files, *(path.parent.name for path in folder.glob("*/__main__.py"))])
    if not options or options[0] not in names:
        raise Failure(f"bench needs the name of a benchmark: {' or '.join(names)}.")
    return run([prepare(*NEWEST, extras=["bench", "test"]), "-m", f"benchmarks.{options[0]}", *options[1:]])


def fuzz(options: list[str]) -> int:
    """Search for input that ends in anything but success or one sentence; single-threaded, as in the tests."""
    python = prepare(*NEWEST, extras=["bench", "test"])
    return run([python, "-m", "tests.fuzz", *options], OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="0")


def host(options: list[str]) -> int:
    """Start ComfyUI with the pack linked and the tiny checkpoints in place; returns when it ends."""
    found = find_host()
    if found is None:
        raise Failure(f"{NO_HOST}: install it, or set COMFYUI_PATH to its folder.")
    place, python = found
    if lacks := lacking(place, python):
        raise Failure(lacks)
    link_pack(place / "custom_nodes")
    write_checkpoints(place / "models" / "checkpoints", python)
    options = [part for option in options for part in re.split(r"(?<=^--port)=", option)]
    if "--port" not in options:
        options = ["--port", str(free_port()), *options]
    port = options[options.index("--port") + 1 :][:1]
    if not {"--cpu", "--directml"} & set(options) and not has_gpu(python):
        say("dev.py: the host's torch finds no GPU it can use: --cpu is added")
        options = [*options, "--cpu"]
    say(f"dev.py: {place} will answer at http://127.0.0.1:{''.join(port)}; Ctrl-C ends it")
    return run([python, str(place / "main.py"), *options], ends_with_us=True)


# ---- the virtual environment -------------------------------------------------------------------------------


def prepare(folder: str, constraints: str, *, extras: list[str]) -> str:
    """Update the environment to match the constraints and extras; returns the path of its Python."""
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
    """The digest of every file that decides what is installed."""
    files = [ROOT / "pyproject.toml", *sorted((ROOT / "constraints").glob("*.txt"))]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def read_stamp(venv: Path) -> dict:
    """The record of the last successful installation; empty if there was none."""
    try:
        return json.loads((venv / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def is_usable(python: str) -> bool:
    """Whether there is an environment with pip and this very Python."""
    try:
        probe = [python, "-c", "import sys, pip; print(sys.version, end='')"]
        answer = subprocess.run(probe, env=environment(), capture_output=True, encoding="utf-8")
    except OSError:
        return False
    return answer.stdout == sys.version


def create(venv: Path) -> None:
    say(f"dev.py: making {venv.name} with Python {sys.version.split()[0]}")
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
    say(f"dev.py: installing {target} under {constraints}; the first time takes some minutes")
    pip = [python, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    if run([*pip, "--constraint", constraints, "--editable", target]) != 0:
        raise Failure("the installation failed: fix what pip names above and run the same command again.")


# ---- the host ----------------------------------------------------------------------------------------------


def find_host() -> tuple[Path, str] | None:
    """The folder of the ComfyUI to work with, and its Python; None: there is none.

    The folder: $COMFYUI_PATH, else ~/comfy/ComfyUI, else the one whose custom_nodes/ holds this pack. The Python:
    $COMFYUI_PYTHON, else the environment's in or beside the folder, else the current one.
    """
    named = os.path.expanduser(os.environ.get("COMFYUI_PATH", ""))
    if named and not (Path(named) / "main.py").is_file():
        raise Failure(f"COMFYUI_PATH is {named}, where no main.py is: name ComfyUI's own folder, or unset it.")
    around = [ROOT.parent.parent] if ROOT.parent.name == "custom_nodes" else []
    with contextlib.suppress(RuntimeError):  # a user without a home directory
        around.insert(0, Path.home() / "comfy" / "ComfyUI")
    places = [Path(named)] if named else around
    found = next((place for place in places if (place / "main.py").is_file()), None)
    return None if found is None else (found.resolve(), host_python(found.resolve()))


def host_python(host: Path) -> str:
    """The host's Python; the portable Windows release keeps it beside the folder."""
    places = [
        *(host / venv / inner for venv in (".venv", "venv") for inner in ("bin/python", "Scripts/python.exe")),
        host.parent / "python_embeded" / "python.exe",
    ]
    found = next((str(place) for place in places if place.is_file()), sys.executable)
    return os.environ.get("COMFYUI_PYTHON") or found


def lacking(host: Path, python: str) -> str:
    """A sentence with what the host's Python lacks and how to install it; empty if nothing."""
    code = "import dev; print(*dev.missing_requirements(), sep=', ')"
    try:
        asked = subprocess.run([python, "-c", code], cwd=ROOT, env=environment(), capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return f"{python} does not run: set COMFYUI_PYTHON to the Python that {host} runs on."
    names = asked.stdout.decode().strip()
    return f"{host} lacks {names}: run `{python} -m pip install -r {ROOT / 'requirements.txt'}`." if names else ""


def has_gpu(python: str) -> bool:
    """Whether the host's torch can use a GPU of any kind; True if it cannot be asked."""
    try:
        asked = subprocess.run([python, "-c", _ASK_FOR_GPU], env=environment(), capture_output=True, encoding="utf-8")
    except OSError:
        return True
    return asked.stdout.strip() != "none"


_ASK_FOR_GPU = """
import importlib.util, torch
kinds = [getattr(torch, name, None) for name in ("accelerator", "cuda", "xpu", "npu", "mlu")] + [torch.backends.mps]
found = any(kind.is_available() for kind in kinds if hasattr(kind, "is_available"))
others = any(importlib.util.find_spec(name) for name in ("torch_npu", "torch_mlu"))  # they register theirs on import
print("some" if found or others else "none")
"""


def missing_requirements() -> list[str]:
    """The lines of requirements.txt that this interpreter does not satisfy."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line.partition(">=") for line in lines if line and not line.startswith("#")]
    return [name + rule + bound for name, rule, bound in wanted if numbers(installed(name)) < numbers(bound)]


def installed(name: str) -> str:
    """The version of a distribution; empty if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def link_pack(folder: Path) -> None:
    """Make the pack one of the host's custom nodes by a link."""
    link = folder / PACK
    if ROOT.parent == folder or link.resolve() == ROOT:
        return
    if link.exists() or link.is_symlink():
        raise Failure(f"{link} is not this pack: move it away, so that a link to {ROOT} can stand there.")
    try:
        link.symlink_to(ROOT, target_is_directory=True)
    except OSError as error:
        raise Failure(f"{link} cannot be made ({error.strerror}): copy the pack to that folder.") from error


def write_checkpoints(folder: Path, python: str) -> None:
    """Write the missing ones, with the host's own torch."""
    for kind in ("sd15", "sdxl", "sdxl_v"):
        absent = not (folder / f"apt_tiny_{kind}.safetensors").exists()
        if absent and run([python, f"{HOST_TESTS}/checkpoints.py", kind, str(folder)]) != 0:
            raise Failure(f"the tiny checkpoint {kind} could not be written to {folder}, for the reason above.")


def free_port() -> int:
    """A port that is free now; the system will not hand it out again for a while."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ---- processes ---------------------------------------------------------------------------------------------


def run(command: list[str], *, ends_with_us: bool = False, **variables: str) -> int:
    """Run in the repository's root and return the exit code.

    A terminal sends Ctrl-C to the child too, so we leave it to the child and keep waiting. SIGTERM and SIGHUP reach
    only us, so they are passed on. `ends_with_us`: also pass on Ctrl-C if the child still runs a second later.
    """
    started: list[subprocess.Popen[bytes]] = []
    with passed_on(started):
        try:
            started.append(subprocess.Popen(command, cwd=ROOT, env={**environment(), **variables}))
        except OSError as error:
            raise Failure(f"{command[0]} does not start ({error.strerror}): remove its folder.") from error
        try:
            code = waited_for(started[0], tell=ends_with_us)
        finally:
            end(started[0])
    return code if code >= 0 else 128 - code


@contextlib.contextmanager
def passed_on(started: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Inside the block SIGTERM and SIGHUP go to the child. Before there is a child they end this process."""
    asking = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in asking}

    def pass_on(number: int, frame: object) -> None:
        if not started:
            sys.exit(128 + number)
        started[0].send_signal(number)

    handled = [number for number, was in before.items() if was not in (signal.SIG_IGN, None)]  # nohup ignores SIGHUP
    for number in handled:
        signal.signal(number, pass_on)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])


def waited_for(process: subprocess.Popen[bytes], *, tell: bool) -> int:
    """The child's exit code, even if Ctrl-C comes while we wait."""
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            if tell and not ends_within(process, 1):  # only we received it
                process.send_signal(signal.SIGINT if os.name != "nt" else signal.SIGTERM)


def end(process: subprocess.Popen[bytes]) -> None:
    """Leave no process behind, however this one ends."""
    if process.poll() is None:
        process.terminate()
        if not ends_within(process, 10):
            process.kill()


def ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def environment() -> dict[str, str]:
    """This process's variables without those that let in other packages; the model hub is offline."""
    foreign = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if name not in foreign}
    return {**kept, "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1", "MPLBACKEND": "Agg"}


def say(text: str, *, as_error: bool = False) -> None:
    """Print a line. If that fails, for example on a full disk or a closed pipe, it is lost."""
    stream = sys.stderr if as_error else sys.stdout
    if stream is None:
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):  # otherwise the interpreter would complain at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Failure as failure:
        say(f"dev.py: {failure}", as_error=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
