"""dev.py: what it refuses, what it passes on, when it installs again, and how it deals with a host.

Nothing is installed here and no host is started.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import dev

ROOT = Path(__file__).resolve().parent.parent


def shell(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "dev.py"), *options], capture_output=True, text=True)


@pytest.mark.parametrize("options", [["tset"], ["lint", "--fix"], ["docs", "--serve"]])
def test_a_command_it_does_not_know_is_one_sentence_and_exit_code_2(options: list[str]) -> None:
    done = shell(*options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("dev.py: ") and done.stderr.count("\n") == 1
    assert options[-1] in done.stderr


@pytest.mark.parametrize("options", [[], ["--help"]])
def test_help_names_every_command(options: list[str]) -> None:
    done = shell(*options)
    assert done.returncode == 0
    benches = {path.stem for path in (dev.ROOT / "benchmarks").glob("[!_]*.py")} | {"quality"}
    commands = ("demo", "test", "test --oldest", "lint", "docs", "host", "fuzz", *(f"bench {name}" for name in benches))
    assert all(f"python dev.py {command}" in done.stdout for command in commands)


def test_all_code_is_typed_and_the_trainer_strictly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the strict rules two are off: what they would name is how torch, numpy and matplotlib are annotated."""
    asked: list[list[str]] = []
    monkeypatch.setattr(dev, "prepare", lambda *_, **__: "python")
    monkeypatch.setattr(dev, "run", lambda command: len(asked.append(command) or ()))
    assert dev.lint() == 0
    assert [command[5:] for command in asked if "pyright" in command] == [[], ["--project", "pyright.basic.json"]]
    text = (dev.ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[tool.pyright]")[2].partition("\n[")[0]
    assert 'include = ["apt_train"]' in text and 'typeCheckingMode = "strict"' in text
    assert re.findall(r"^report\w+ = (\w+)", text, re.MULTILINE) == ["false", "false"]
    basic = (dev.ROOT / "pyright.basic.json").read_text(encoding="utf-8")
    assert '"include": ["nodes", "benchmarks", "tests", "dev.py"]' in basic
    assert '"enableTypeIgnoreComments": false' in basic
    off = {"PrivateImportUsage", "MissingModuleSource", "IncompatibleMethodOverride", "MissingImports"}
    assert set(re.findall(r'"report(\w+)": false', basic)) == off


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.html", '<script defer src="https://cdn.example/x.js"></script>'),
        ("a.html", "<link rel=stylesheet href=//fonts.example/css?family=Roboto>"),
        ("a.html", '<p>text <img alt="" src="http://pictures.example/1.png"></p>'),
        ("b/a.css", "@font-face { src: url(https://fonts.example/r.woff2) }"),
        ("b/a.css", "@import 'https://fonts.example/r.css';"),
    ],
)
def test_a_site_that_loads_from_another_host_is_found(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / name).write_text(f"<p>before</p>\n{text}\n", encoding="utf-8")
    (found,) = dev.loaded_from_elsewhere(tmp_path)
    assert ".example/" in found and found.endswith(str(Path(name)))


@pytest.mark.parametrize("built", [0, 1])
def test_the_site_is_refused_where_it_would_load_and_a_failed_build_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: int
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text('<script src="https://cdn.example/x.js">', encoding="utf-8")
    monkeypatch.setattr(dev, "ROOT", tmp_path)
    monkeypatch.setattr(dev, "prepare", lambda *_, **__: "python")
    monkeypatch.setattr(dev, "run", lambda command, **_: built if "--strict" in command else 9)
    if built:
        assert dev.docs() == 1
    else:
        with pytest.raises(dev.Failure, match="cdn.example"):
            dev.docs()


def test_what_a_site_has_itself_and_what_it_links_to_are_no_loads(tmp_path: Path) -> None:
    page = '<script src="js/x.js"></script><a href="https://arxiv.org/abs/1">paper</a><code>&lt;img src="https://x"&gt;'
    (tmp_path / "a.html").write_text(page, encoding="utf-8")
    (tmp_path / "a.css").write_text('b { background: url("data:image/svg+xml,<svg xmlns=http://w3/>") }')
    assert dev.loaded_from_elsewhere(tmp_path) == []


def test_it_imports_the_standard_library_alone() -> None:
    code = "import sys, dev; print({name.split('.')[0] for name in sys.modules} - sys.stdlib_module_names)"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() in ("{'dev', '__main__'}", "{'__main__', 'dev'}")


def test_exit_codes_are_passed_on() -> None:
    assert dev.run([sys.executable, "-c", "raise SystemExit(7)"]) == 7


@pytest.mark.skipif(os.name == "nt", reason="signals are of another kind there")
def test_a_child_that_was_killed_is_a_failure() -> None:
    assert dev.run([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]) == 128 + 9


@pytest.mark.skipif(os.name == "nt", reason="signals are of another kind there")
def test_ctrl_c_waits_for_the_child() -> None:
    """As in a terminal both get the signal; the child saves its work and says how it ended."""
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's & switches it off
    child = (
        f"{heard}import sys, time\ntry:\n print('up', flush=True); time.sleep(60)\n"
        "except KeyboardInterrupt:\n time.sleep(0.5); sys.exit(5)"
    )
    code = f"{heard}import sys, dev; sys.exit(dev.run([sys.executable, '-c', {child!r}]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=45) == 5


@pytest.mark.skipif(os.name == "nt", reason="signals are of another kind there")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_to_the_workshop_ends_what_it_runs(name: str) -> None:
    """It comes to this process alone; the child ends as it likes, and its code is passed on."""
    child = (
        "import signal, sys, time\n"
        f"signal.signal(signal.{name}, lambda *_: (time.sleep(0.3), sys.exit(6)))\n"
        "print('up', flush=True); time.sleep(60)"
    )
    process = workshop(f"dev.run([sys.executable, '-c', {child!r}])")
    os.kill(process.pid, getattr(signal, name))
    assert process.wait(timeout=45) == 6


@pytest.mark.skipif(os.name == "nt", reason="signals are of another kind there")
def test_a_hang_up_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with dev.passed_on([]):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(os.name == "nt", reason="signals are of another kind there")
def test_a_host_ends_also_where_ctrl_c_came_to_the_workshop_alone() -> None:
    child = (
        "print('up', flush=True)\nimport time\ntry:\n time.sleep(60)\nexcept KeyboardInterrupt:\n raise SystemExit(7)"
    )
    heard = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    process = workshop(f"dev.run([sys.executable, '-c', {heard + child!r}], ends_with_us=True)")
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=45) == 7


def workshop(call: str) -> subprocess.Popen[str]:
    """A process that makes the call, once its child has said that it is up."""
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a shell's & switches it off
    heard += "; signal.signal(getattr(signal, 'SIGHUP', signal.SIGTERM), signal.SIG_DFL)"  # and `nohup` this
    process = subprocess.Popen(
        [sys.executable, "-c", f"{heard}; import sys, dev; sys.exit({call})"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    return process


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("where", [">&-", ">/dev/full", "| true", "2>&-", "2>/dev/full"])
def test_what_cannot_be_printed_is_lost_and_nothing_else(where: str) -> None:
    command, code = ("tset", 2) if where.startswith("2") else ("--help", 0)
    script = f'"$1" dev.py {command} {where}; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", script, "", sys.executable], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_foreign_packages_and_the_hub_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    assert "PYTHONPATH" not in dev.environment() and dev.environment()["HF_HUB_OFFLINE"] == "1"


# ---- installing: recorded instead of done ----------------------------------------------------------------------


@pytest.fixture
def installs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """A workshop in an empty folder; the list gets `("create", [])` and `("install", extras)`."""
    done: list[tuple[str, list[str]]] = []

    def create(venv: Path) -> None:
        venv.mkdir(exist_ok=True)
        done.append(("create", []))

    (tmp_path / "constraints").mkdir()
    (tmp_path / "pyproject.toml").write_text("one")
    monkeypatch.setattr(dev, "ROOT", tmp_path)
    monkeypatch.setattr(dev, "create", create)
    monkeypatch.setattr(dev, "install", lambda python, constraints, extras: done.append(("install", extras)))
    return done


def test_a_second_call_installs_nothing(installs: list[tuple[str, list[str]]], tmp_path: Path) -> None:
    first, second = (dev.prepare(*dev.NEWEST, extras=["test"]) for _ in range(2))
    assert first == second
    assert Path(first).parent == tmp_path / ".venv" / Path(sys.executable).parent.name, "as in any environment"
    assert installs == [("create", []), ("install", ["test"])]


def test_what_is_installed_stays(installs: list[tuple[str, list[str]]]) -> None:
    """The demo after the tests needs nothing; the linters after the tests add theirs."""
    for extras in (["test"], [], ["lint", "test"], ["test"]):
        dev.prepare(*dev.NEWEST, extras=extras)
    assert installs == [("create", []), ("install", ["test"]), ("install", ["lint", "test"])]


def test_other_requirements_install_again(
    installs: list[tuple[str, list[str]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(dev, "is_usable", lambda python: len(installs) > 0)
    dev.prepare(*dev.NEWEST, extras=["test"])
    for changed in ("pyproject.toml", "constraints/test.txt"):
        (tmp_path / changed).write_text("two")
        dev.prepare(*dev.NEWEST, extras=["test"])
    assert installs == [("create", []), *[("install", ["test"])] * 3]


def test_an_installation_that_failed_leaves_no_stamp(
    installs: list[tuple[str, list[str]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*arguments: object) -> None:
        raise dev.Failure("no")

    with monkeypatch.context() as patch:
        patch.setattr(dev, "install", fail)
        with pytest.raises(dev.Failure):
            dev.prepare(*dev.NEWEST, extras=[])
    assert not (tmp_path / ".venv" / dev.STAMP).exists()
    dev.prepare(*dev.NEWEST, extras=[])
    assert json.loads((tmp_path / ".venv" / dev.STAMP).read_text())["extras"] == []


def test_only_an_environment_of_this_python_is_usable(tmp_path: Path) -> None:
    assert dev.is_usable(sys.executable)
    assert not dev.is_usable(str(tmp_path / "python"))


# ---- the tests and the host: recorded instead of run -----------------------------------------------------------------


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """Every command with its variables; all succeed. No host is found until a test says otherwise."""
    done: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(dev, "prepare", lambda *arguments, **named: "python")
    monkeypatch.setattr(dev, "run", lambda command, **variables: done.append((command, variables)) or 0)
    monkeypatch.setattr(dev, "find_host", lambda: None)
    return done


def found(monkeypatch: pytest.MonkeyPatch, folder: Path, lacks: str = "") -> None:
    monkeypatch.setattr(dev, "find_host", lambda: (folder, "the host's python"))
    monkeypatch.setattr(dev, "lacking", lambda host, python: lacks)


def test_the_host_tests_follow_the_others(
    runs: list[tuple[list[str], dict[str, str]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found(monkeypatch, tmp_path)
    assert dev.main(["test", "-x", "-k", "nodes"]) == 0
    (first, _), (second, variables) = runs
    assert "--ignore=tests/host" in first and "tests/host" not in first
    assert second[-4:] == ["tests/host", "-x", "-k", "nodes"] and "loadfile" in second
    assert variables["COMFYUI_PYTHON"] == "the host's python"


@pytest.mark.parametrize(("code", "number"), [(1, 2), (5, 2), (2, 1), (4, 1), (130, 1)])
def test_after_ctrl_c_nothing_more_is_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, number: int
) -> None:
    """Failures and no tests at all do not keep the host tests back."""
    done: list[list[str]] = []
    found(monkeypatch, tmp_path)
    monkeypatch.setattr(dev, "prepare", lambda *arguments, **named: "python")
    monkeypatch.setattr(dev, "run", lambda command, **variables: done.append(command) or code)
    assert (dev.main(["test"]), len(done)) == (code, number)


def test_without_a_host_one_line_says_so(
    runs: list[tuple[list[str], dict[str, str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert dev.main(["test"]) == 0
    assert len(runs) == 1 and "--ignore=tests/host" in runs[0][0]
    said = "dev.py: no ComfyUI found (COMFYUI_PATH, ~/comfy/ComfyUI): the host tests are skipped\n"
    assert capsys.readouterr().out == said


def test_what_a_host_lacks_is_said_before_its_tests(
    runs: list[tuple[list[str], dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found(monkeypatch, tmp_path, lacks="it lacks peft: install it.")
    dev.main(["test"])
    assert "will fail: it lacks peft: install it." in capsys.readouterr().out and len(runs) == 2


@pytest.mark.parametrize("name", ["tests/test_dev.py", "tests/test_dev.py::test_x", "tests/host"])
def test_a_named_test_is_the_only_one(
    runs: list[tuple[list[str], dict[str, str]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    found(monkeypatch, tmp_path)
    dev.main(["test", "-x", name])
    assert [command[-2:] for command, _ in runs] == [["-x", name]]
    assert ("loadfile" in runs[0][0]) == (name == "tests/host")


def test_the_oldest_libraries_are_not_the_hosts(
    runs: list[tuple[list[str], dict[str, str]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found(monkeypatch, tmp_path)
    dev.main(["test", "--oldest"])
    assert len(runs) == 1 and "--ignore=tests/host" in runs[0][0]


def test_the_worse_result_counts() -> None:
    assert [dev.worst(0, 1), dev.worst(1, 0), dev.worst(0, 5), dev.worst(5, 5)] == [1, 1, 0, 5]


def test_the_host_is_started_with_pack_and_checkpoints(
    runs: list[tuple[list[str], dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found(monkeypatch, tmp_path)
    (tmp_path / "custom_nodes").mkdir()
    models = tmp_path / "models" / "checkpoints"
    models.mkdir(parents=True)
    (models / "apt_tiny_sdxl.safetensors").touch()
    assert dev.main(["host", "--cpu"]) == 0
    *writers, (start, _) = runs
    assert [command[-2:] for command, _ in writers] == [["sd15", str(models)], ["sdxl_v", str(models)]]
    assert (tmp_path / "custom_nodes" / dev.PACK).resolve() == ROOT
    port = start[start.index("--port") + 1]
    assert start == ["the host's python", str(tmp_path / "main.py"), "--port", port, "--cpu"]
    assert f"http://127.0.0.1:{port};" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("torch", "options", "added"),
    [
        ("found", [], False),
        ("none", [], True),
        ("none", ["--cpu"], False),
        ("none", ["--directml"], False),
        ("broken", [], False),
    ],
)
def test_without_a_gpu_the_host_is_started_on_the_cpu(
    runs: list[tuple[list[str], dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    torch: str,
    options: list[str],
    added: bool,
) -> None:
    """The host's own torch is asked; where it cannot be, the host itself says what is wrong."""
    package = tmp_path / "torch"
    package.mkdir()
    (tmp_path / "custom_nodes").mkdir()
    (package / "__init__.py").write_text(
        "import types\n"
        f"def is_available(): return {torch == 'found'}\n"
        "cuda = types.SimpleNamespace(is_available=is_available)\n"
        "backends = types.SimpleNamespace(mps=types.SimpleNamespace(is_available=lambda: False))\n"
        + ("raise ImportError('no such library')\n" if torch == "broken" else "")
    )
    monkeypatch.setattr(dev, "find_host", lambda: (tmp_path, sys.executable))
    monkeypatch.setattr(dev, "lacking", lambda host, python: "")
    monkeypatch.setattr(dev, "environment", lambda: {**os.environ, "PYTHONPATH": str(tmp_path)})
    assert dev.main(["host", "--port", "1", *options]) == 0
    assert runs[-1][0][2:] == ["--port", "1", *options, *(["--cpu"] if added else [])]
    assert ("--cpu is added" in capsys.readouterr().out) is added


@pytest.mark.parametrize("asked", [["--port", "8188"], ["--port=8188"]])
def test_a_port_that_was_asked_for_is_kept_and_told(
    runs: list[tuple[list[str], dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    asked: list[str],
) -> None:
    found(monkeypatch, tmp_path)
    (tmp_path / "custom_nodes").mkdir()
    dev.main(["host", *asked])
    assert runs[-1][0][2:] == ["--port", "8188"] and "http://127.0.0.1:8188;" in capsys.readouterr().out


def test_what_a_host_lacks_is_one_sentence_and_nothing_is_started(
    runs: list[tuple[list[str], dict[str, str]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found(monkeypatch, tmp_path, lacks="it lacks peft: install it.")
    with pytest.raises(dev.Failure, match="it lacks peft"):
        dev.main(["host"])
    assert runs == []


@pytest.mark.parametrize("named", ["", "/no/such/place"])
def test_no_host_is_one_sentence_and_exit_code_2(named: str, tmp_path: Path) -> None:
    empty = {**os.environ, "COMFYUI_PATH": named, "HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    command = [sys.executable, str(ROOT / "dev.py"), "host"]
    done = subprocess.run(command, capture_output=True, text=True, env=empty)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("dev.py: ") and done.stderr.count("\n") == 1
    assert (named or "no ComfyUI found") in done.stderr and "COMFYUI_PATH" in done.stderr


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A world with three hosts: `named`, `home/comfy/ComfyUI` and `around`, whose custom_nodes/ holds the pack."""
    for place in ("named", "home/comfy/ComfyUI", "around"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "main.py").touch()
    monkeypatch.setattr(dev, "ROOT", tmp_path / "around" / "custom_nodes" / "pack")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "named"))
    monkeypatch.delenv("COMFYUI_PYTHON", raising=False)
    return tmp_path


def test_the_order_in_which_a_host_is_looked_for(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dev.find_host() == ((places / "named").resolve(), sys.executable)
    monkeypatch.delenv("COMFYUI_PATH")
    assert dev.find_host() == ((places / "home" / "comfy" / "ComfyUI").resolve(), sys.executable)
    (places / "home" / "comfy" / "ComfyUI" / "main.py").unlink()
    assert dev.find_host() == ((places / "around").resolve(), sys.executable)
    (places / "around" / "main.py").unlink()
    assert dev.find_host() is None


def test_a_tilde_is_read_and_no_home_directory_is_no_error(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("HOME", str(places))
    monkeypatch.setenv("USERPROFILE", str(places))
    monkeypatch.setenv("COMFYUI_PATH", "~/named")
    assert dev.find_host() == ((places / "named").resolve(), sys.executable)
    monkeypatch.setattr(dev.Path, "home", homeless)
    monkeypatch.delenv("COMFYUI_PATH")
    assert dev.find_host() == ((places / "around").resolve(), sys.executable)


def test_a_hosts_python_is_its_environments_unless_another_is_named(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = places / "named" / ".venv" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.touch()
    assert dev.find_host() == ((places / "named").resolve(), str((places / "named").resolve() / ".venv/bin/python"))
    monkeypatch.setenv("COMFYUI_PYTHON", "mine")
    assert dev.find_host() == ((places / "named").resolve(), "mine")


def test_the_pack_is_linked_once_and_never_over_something_else(tmp_path: Path) -> None:
    dev.link_pack(tmp_path)
    dev.link_pack(tmp_path)
    link = tmp_path / dev.PACK
    assert link.resolve() == ROOT
    link.unlink()
    link.mkdir()
    with pytest.raises(dev.Failure, match="is not this pack"):
        dev.link_pack(tmp_path)


def test_requirements_that_are_not_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dev, "ROOT", tmp_path)
    (tmp_path / "requirements.txt").write_text("# all\npytest>=8\npytest>=999.1\nno-such-thing>=0.1\n")
    assert dev.missing_requirements() == ["pytest>=999.1", "no-such-thing>=0.1"]


def test_a_host_that_lacks_something_gets_its_own_pip_command() -> None:
    assert dev.lacking(ROOT, sys.executable) == ""
    assert "COMFYUI_PYTHON" in dev.lacking(ROOT, "/no/such/python")
