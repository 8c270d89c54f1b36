"""dev.py: what it refuses, what it passes on, and when it installs again. Nothing is installed here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import dev

ROOT = Path(__file__).resolve().parent.parent


def shell(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "dev.py"), *options], capture_output=True, text=True)


@pytest.mark.parametrize("options", [["tset"], ["lint", "--fix"]])
def test_a_command_it_does_not_know_is_one_sentence_and_exit_code_2(options: list[str]) -> None:
    done = shell(*options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("dev.py: ") and done.stderr.count("\n") == 1
    assert options[-1] in done.stderr


@pytest.mark.parametrize("options", [[], ["--help"]])
def test_help_names_every_command(options: list[str]) -> None:
    done = shell(*options)
    assert done.returncode == 0
    assert all(f"python dev.py {command}" in done.stdout for command in ("demo", "test", "test --oldest", "lint"))


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


def test_a_second_call_installs_nothing(installs: list[tuple[str, list[str]]]) -> None:
    assert dev.prepare(*dev.NEWEST, extras=["test"]) == dev.prepare(*dev.NEWEST, extras=["test"])
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
