"""What the parser knows, for tests that look at every option of a command."""

from __future__ import annotations

import argparse

from apt_train import cli


def commands() -> set[str]:
    """The names of all of them."""
    return set(_commands())


def actions_of(command: str) -> list[argparse.Action]:
    """Of one command, `--help` with the others."""
    return list(_commands()[command]._actions)


def _commands() -> dict[str, argparse.ArgumentParser]:
    found = next(a for a in cli.build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(found.choices)


def options_of(command: str) -> set[str]:
    """`--name` of an option, and the names of what is given without one; `--help` left out."""
    names = {next(iter(action.option_strings), action.dest) for action in actions_of(command)}
    return names - {"-h"}
