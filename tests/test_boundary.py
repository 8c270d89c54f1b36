"""The two rooms stay apart: apt_train knows no host and costs nothing to import; the pack loads as the host loads it.

Not here: what the nodes do.
"""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import inspect
import io
import json
import pkgutil
import re
import shutil
import subprocess
import sys
import textwrap
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import apt_train

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "apt_train"
NODES = ROOT / "nodes"
HOST = {"comfy", "comfy_api", "comfy_extras", "comfy_execution", "execution", "folder_paths", "nodes", "server"}
LIGHT = ("apt_train", "apt_train.config", "apt_train.errors", "apt_train.events", "apt_train.cli")
HEAVY = {"torch", "diffusers", "transformers", "peft", "numpy", "PIL", "matplotlib", "safetensors"}


@cache
def trees() -> dict[Path, ast.Module]:
    """Every source file of the package, parsed."""
    found = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
    assert PACKAGE / "config.py" in found
    return found


def absolute_imports(tree: ast.Module) -> Iterator[str]:
    """The first part of every absolutely imported name, also of imports inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").split(".")[0]


def importers(names: set[str]) -> dict[str, set[str]]:
    """Which files import any of these, and what."""
    found = {path.name: names & set(absolute_imports(tree)) for path, tree in trees().items()}
    return {name: hits for name, hits in found.items() if hits}


def test_no_file_imports_the_host() -> None:
    comfy = {name for tree in trees().values() for name in absolute_imports(tree) if name.startswith("comfy")}
    assert importers(HOST | comfy) == {}


def test_the_package_names_itself_only_relatively() -> None:
    """In the host it bears another name, and another `apt_train` may be installed beside it."""
    assert importers({"apt_train"}) == {}


def test_relative_imports_stay_inside() -> None:
    for path, tree in trees().items():
        depth = len(path.relative_to(PACKAGE).parts)
        levels = [node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert max(levels, default=0) <= depth, path.name


# A floor calls only floors below it; the files beside the rooms are the words that everybody speaks.
FLOORS = (
    "disk", "families", "data", "text", "adapter", "run", "sample", "verdict", "report", "photo_check", "training",
    "console", "lora_check", "demo",
)  # fmt: skip
DOORS = {"__init__.py", "__main__.py", "cli.py", "indicator.py", "losses.py", "augment.py"}  # open onto every floor


def room_of(path: Path) -> str:
    """The room that a file of the package stands in; "" beside them."""
    first, *inner = path.relative_to(PACKAGE).parts
    return first if inner else ""


def rooms_called(path: Path, tree: ast.Module) -> set[str]:
    """The rooms of the package that a file imports from, "" for the files beside them."""
    home = path.relative_to(PACKAGE).parts[:-1]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            target = (*home[: len(home) - node.level + 1], *(node.module or node.names[0].name).split("."))
            found.add(target[0] if target[0] in FLOORS else "")
    return found


TOLD = {tokenize.NAME, tokenize.NUMBER, tokenize.STRING, tokenize.OP}
METHOD = (
    "data/augment.py", "sample/drift.py",
    *(f"training/{name}.py" for name in (
        "attention_probe", "capture", "indicator", "losses", "objective", "optimizer", "passes", "step", "step_values",
        "terms", "update",
    )),
)  # fmt: skip


def lines_of_code(path: Path) -> int:
    """Lines that hold more than a comment or a docstring."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    told = {line for kind, _, (first, _), (last, _), _ in tokens if kind in TOLD for line in range(first, last + 1)}
    nodes = [node for node in ast.walk(trees()[path]) if isinstance(node, ast.Expr)]
    said = [node for node in nodes if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)]
    return len(told - {line for node in said for line in range(node.lineno, (node.end_lineno or 0) + 1)})


def test_the_report_is_not_larger_than_the_method() -> None:
    method = sum(lines_of_code(PACKAGE / name) for name in METHOD)
    report = sum(lines_of_code(path) for path in trees() if room_of(path) == "report")
    assert 0 < report <= method


def test_the_way_through_a_step_is_soon_read() -> None:
    """What a newcomer reads first, comments and all."""
    ways = [PACKAGE / "training" / f"{name}.py" for name in ("terms", "step", "update", "loop")]
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in ways) < 600


@pytest.mark.parametrize("room", ("", *FLOORS))
def test_a_floor_calls_only_floors_below_it(room: str) -> None:
    above = set(FLOORS[FLOORS.index(room) + 1 :] if room else FLOORS)
    for path, tree in trees().items():
        if room_of(path) == room and (room or path.name not in DOORS):
            assert not rooms_called(path, tree) & above, path


def files_called(path: Path, tree: ast.Module, package: Path) -> set[Path]:
    """The files of a package that a file imports from when it runs, anywhere in it; for types alone does not count."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    home, found = path.parent, set[Path]()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            place = home.joinpath(*[".."] * (node.level - 1), *(node.module or "").split(".")).resolve()
            for name in [place, *(place / alias.name for alias in node.names)]:
                found |= {file for file in (name.with_suffix(".py"), name / "__init__.py") if file.is_file()}
    return {file for file in found if file.is_relative_to(package)} - {path}


@pytest.mark.parametrize("package", [PACKAGE, NODES], ids=lambda package: package.name)
def test_no_files_need_each_other(package: Path) -> None:
    """Not even from inside a function, in a circle of any length."""
    sources = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(package.rglob("*.py"))}
    calls = {path: files_called(path, tree, package) for path, tree in sources.items()}
    assert sum(map(len, calls.values())) > 50
    graphlib.TopologicalSorter(calls).prepare()  # CycleError: names the circle


OF_ONE_FAMILY = re.compile(
    r"is_sdxl|\bsd15\b|\bsdxl\b|\battn[12]\b|\b(?:up|down|mid)_blocks?\b|UNet2D\w*|StableDiffusion\b"
)
DEFAULT_NETWORK = "families/components.py"  # what a caller who names none has always got


def test_one_family_is_known_in_its_own_folder_alone() -> None:
    """In code, not in comments and docstrings; among the nodes in the room that knows the host's models."""
    nodes = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(NODES.glob("*.py"))}
    for path, tree in {**trees(), **nodes}.items():
        if path.is_relative_to(PACKAGE / "families" / "sd") or path == PACKAGE / DEFAULT_NETWORK:
            continue
        known = [text for text in _words(tree) if OF_ONE_FAMILY.search(text)]
        assert not known, f"{path}: {known}"


def test_a_family_is_entered_by_its_door_alone() -> None:
    """The door is `families/load.py`. What else a room asks of a model goes through `Family` and `Network`."""
    for path, tree in trees().items():
        home = path.relative_to(PACKAGE).parts[:-1]
        for node in ast.walk(tree):
            if home[:1] != ("families",) and isinstance(node, ast.ImportFrom) and node.level:
                target = (*home[: len(home) - node.level + 1], *(node.module or "").split("."))
                assert target[:2] != ("families", "sd"), path


def _words(tree: ast.AST) -> Iterator[str]:
    """Names and short texts; a sentence may speak of a model."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute, ast.alias)):
            yield getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "name", "")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            yield node.value


MEETS_ALL = {"cli.py": 11, "training/plan.py": 11, "training/train.py": 14, "families/sd/single_file.py": 14}
ASKS_MUCH = {"train": 9, "add_adapter": 8, "attention_tiles": 7}  # what a user calls with names


def test_a_file_calls_few_others() -> None:
    """Ten of the package's own at most, those aside where a run, a command or a checkpoint is put together."""
    for path, tree in trees().items():
        called = {
            "." * node.level + (node.module or name.name)
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.level
            for name in node.names
        }
        assert len(called) <= MEETS_ALL.get(path.relative_to(PACKAGE).as_posix(), 10), path


def test_a_function_asks_for_few_things() -> None:
    """Six arguments at most: what belongs together is an object."""
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                asked = [argument for argument in given if argument.arg not in ("self", "cls")]
                assert len(asked) <= ASKS_MUCH.get(node.name, 6), (path, node.name)


def test_every_folder_is_a_floor() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders == set(FLOORS)


def test_nothing_runs_what_it_reads() -> None:
    """Strangers' files are read here: no pickle, no eval."""
    assert importers({"pickle", "dill", "marshal", "shelve"}) == {}
    forbidden = {"eval", "exec", "__import__", "torch.load", "torch.save"}
    for path, tree in trees().items():
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not calls & forbidden, path.name


def test_no_file_reaches_for_the_network_or_installs() -> None:
    """No network call at run time: neither by Python's own modules nor through the hub."""
    assert importers({"requests", "httpx", "aiohttp", "urllib", "socket", "http", "huggingface_hub", "pip"}) == {}


# ---- the nodes: relative imports alone, and the host's internals in one room ---------------------------------

PROMISED = {"comfy_api"}  # the host's versioned interface, for every node file
BESIDE = {"live.py": {"server", "aiohttp"}}  # routes and messages have no place in it


def test_the_hosts_internals_are_touched_in_one_room() -> None:
    for path in sorted(NODES.glob("*.py")):
        found = set(absolute_imports(ast.parse(path.read_text(encoding="utf-8"))))
        foreign = found & (HOST | {"aiohttp", "app", "utils"}) - PROMISED - BESIDE.get(path.name, set())
        assert not foreign, f"{path.name}: {foreign}"


def test_the_nodes_import_the_pack_relatively_and_never_run_what_they_read() -> None:
    for path in sorted(NODES.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        foreign = {"apt_train", "nodes", "pickle", "subprocess", "requests", "urllib"}
        assert not set(absolute_imports(tree)) & foreign, path
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not calls & {"eval", "exec", "__import__", "torch.load", "torch.save"}, path


def python(code: str, *path: Path) -> str:
    """Run code in a fresh interpreter that sees `path` before anything else; what it printed."""
    head = f"import sys; sys.path[:0] = {[str(folder) for folder in path]!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(code)], capture_output=True, text=True, cwd=path[0]
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", LIGHT)
def test_importing_costs_nothing(module: str) -> None:
    loaded = python(f"import json, {module}; print(json.dumps(sorted(sys.modules)))", ROOT)
    assert not HEAVY & set(json.loads(loaded))


def test_matplotlib_is_loaded_only_where_figures_are_drawn() -> None:
    """It takes half a second and 30 MB, and a training process needs it at its end alone.

    One process imports them all, as each of them takes torch's seconds: the first that loads it is named.
    """
    modules = ["apt_train.training.train", "apt_train.report", "apt_train.report.live_images"]
    code = f"import importlib\nfor name in {modules}: importlib.import_module(name); print('matplotlib' in sys.modules)"
    assert dict(zip(modules, python(code, ROOT).split(), strict=True)) == dict.fromkeys(modules, "False")


CALLERS = [path for room in ("tests", "benchmarks") for path in sorted((ROOT / room).rglob("*.py"))]


def test_what_tests_and_benchmarks_import_is_there() -> None:
    """Also in files that no default test runs, where a renamed module would go unseen: the host's and the slow ones."""
    asked = [(path, *one) for path in CALLERS for one in names_imported(ast.parse(path.read_text(encoding="utf-8")))]
    assert len(asked) > 500
    assert [f"{path.name}: {module}.{name}" for path, module, name in asked if not is_there(module, name)] == []


def names_imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Module and name of every `from apt_train... import ...`, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "apt_train":
            yield from ((node.module or "", alias.name) for alias in node.names)


def is_there(module: str, name: str) -> bool:
    """Whether the module has such a name, or is a package with such a module."""
    if importlib.util.find_spec(module) is None:
        return False
    found = importlib.import_module(module)
    return hasattr(found, name) or (
        hasattr(found, "__path__") and importlib.util.find_spec(f"{module}.{name}") is not None
    )


def test_every_public_name_has_a_home() -> None:
    assert [name for name in apt_train.__all__ if getattr(apt_train, name).__name__ != name] == []


# What other code calls, with the parameters it may give by their place; more may follow.
CALLED = {
    "apt_train.train": "components images config",
    "apt_train.load_checkpoint": "path",
    "apt_train.load_images": "folder",
    "apt_train.config.choices_of": "item hint",
    "apt_train.indicator.OverfitIndicator": "bins ema temperature num_timesteps",
    "apt_train.indicator.OverfitIndicator.update": "self timesteps prior_loss tuned_loss",
    "apt_train.indicator.OverfitIndicator.gamma_at": "self timesteps",
    "apt_train.losses.stabilization_loss": "tuned prior mode",
    "apt_train.losses.alignment_loss": "tuned prior sample_weight",
    "apt_train.losses.dco_loss": "tuned_loss prior_loss beta",
    "apt_train.augment.affine": "image zoom degrees shift_x shift_y",
}


@pytest.mark.parametrize("name", CALLED)
def test_what_other_code_calls_stays(name: str) -> None:
    given = CALLED[name].split()
    assert list(inspect.signature(pkgutil.resolve_name(name)).parameters)[: len(given)] == given


# ---- the pack as the host loads it: an odd name, a hyphenated folder, another apt_train installed ----------

LOAD = """
import importlib.util
def load(folder):
    name = folder.replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder + "/__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
"""


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    folder = tmp_path / "custom_nodes" / "my-apt-train.v1"
    shutil.copytree(PACKAGE, folder / "apt_train", ignore=shutil.ignore_patterns("__pycache__", "assets"))
    shutil.copy(ROOT / "__init__.py", folder)
    (tmp_path / "site" / "apt_train").mkdir(parents=True)
    (tmp_path / "site" / "apt_train" / "__init__.py").write_text("other = True\n")
    return folder


def test_without_the_host_the_pack_exports_nothing(pack: Path, tmp_path: Path) -> None:
    out = python(
        LOAD + f"pack = load({str(pack)!r})\n"
        "names = 'comfy_entrypoint', 'NODE_CLASS_MAPPINGS'\n"
        "print(*(hasattr(pack, name) for name in names), 'apt_train' in sys.modules)",
        tmp_path / "site",
    )
    assert out.split() == ["False", "False", "False"]


def test_the_pack_uses_its_own_apt_train(pack: Path, tmp_path: Path) -> None:
    out = python(
        LOAD + f"pack = load({str(pack)!r})\n"
        "import apt_train, importlib\n"
        "own = importlib.import_module('.apt_train', pack.__name__)\n"
        "print(apt_train.other, own.__file__, own.TrainConfig(class_word='toy').name, sep='\\n')",
        tmp_path / "site",
    )
    assert out.splitlines() == ["True", str(pack / "apt_train" / "__init__.py"), "toy_subject"]


def test_inside_the_host_the_entrypoint_is_handed_on(pack: Path, tmp_path: Path) -> None:
    host = tmp_path / "host"
    (host / "comfy_api").mkdir(parents=True)
    (host / "comfy_api" / "__init__.py").touch()
    (host / "nodes.py").write_text("raise AssertionError('this is the host's own module')\n")
    (pack / "nodes").mkdir(exist_ok=True)
    (pack / "nodes" / "__init__.py").write_text("def comfy_entrypoint(): return 'ours'\n")
    out = python(LOAD + f"print(load({str(pack)!r}).comfy_entrypoint())", host, tmp_path / "site")
    assert out.strip() == "ours"


def test_an_error_in_the_nodes_is_not_hidden(pack: Path, tmp_path: Path) -> None:
    host = tmp_path / "host"
    (host / "comfy_api").mkdir(parents=True)
    (host / "comfy_api" / "__init__.py").touch()
    (pack / "nodes").mkdir(exist_ok=True)
    (pack / "nodes" / "__init__.py").write_text("import a_module_that_is_missing\n")
    with pytest.raises(AssertionError, match="a_module_that_is_missing"):
        python(LOAD + f"load({str(pack)!r})", host)
