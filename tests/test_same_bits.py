"""The script that compares two versions' bits: equal where nothing changed, and it would notice if something had."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from tests import same_bits

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    same_bits.keep(folder)
    return folder


@pytest.mark.parametrize("name", same_bits.RUNS)
def test_a_run_makes_the_same_bits_again(name: str, kept: Path, tmp_path: Path) -> None:
    assert same_bits.differences(name, kept, tmp_path) == []


def test_no_two_of_the_runs_are_alike(kept: Path) -> None:
    """Else one of them would show nothing of what it is there for."""
    found = {name: (kept / name / "numbers.json").read_bytes() for name in same_bits.RUNS}
    for first, second in itertools.combinations(same_bits.RUNS, 2):
        assert found[first] != found[second], (first, second)


def test_a_changed_bit_is_named(kept: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = kept / "dco word" / "tensors.safetensors"
    tensors = load_file(path)
    name = next(key for key in sorted(tensors) if key.endswith("lora_up.weight"))
    changed = tensors[name].clone()
    changed.view(torch.int32).view(-1)[0] ^= 1
    save_file({**tensors, name: changed}, path)
    try:
        assert same_bits.differences("dco word", kept, tmp_path) == [name]
    finally:
        save_file(tensors, path)
