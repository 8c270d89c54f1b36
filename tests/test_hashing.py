"""Hashing gigabytes of weights tells how far it is, and ends at once where Cancel is pressed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from .node_modules import node_module

TENSORS = {f"layer {n}": torch.full((4, 3), float(n)) for n in range(40)}


@pytest.fixture(scope="module")
def hashing() -> Iterator[Any]:
    with node_module("hashing") as module:
        yield module


def test_every_piece_is_told_before_it_is_awaited(hashing: Any) -> None:
    told: list[tuple[int, int]] = []
    found = dict(hashing.hashes(TENSORS, lambda *piece: told.append(piece), hashing.tensor_hash))
    assert told == [(done, 40) for done in range(40)]
    assert found == {name: hashing.tensor_hash(tensor) for name, tensor in TENSORS.items()}
    assert len(set(found.values())) == 40


def test_cancel_leaves_what_was_not_begun(hashing: Any) -> None:
    """And what is finished by then has been handed over."""
    hashed: list[float] = []
    cancelled, kept = threading.Event(), []

    def hash_of(tensor: torch.Tensor) -> str:
        if tensor[0, 0] >= 3:
            assert cancelled.wait(30)
        hashed.append(float(tensor[0, 0]))
        return "hash"

    def at_piece(done: int, total: int) -> None:
        if done == 3:
            cancelled.set()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        for name, _ in hashing.hashes(TENSORS, at_piece, hash_of):
            kept.append(name)
    assert kept == list(TENSORS)[:3] and len(hashed) < 20


def test_one_thread_at_a_time_reads_from_a_device(hashing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that use Apple's GPU at once end the process."""
    reading: list[int] = []
    most, cpu = [0], torch.Tensor.cpu

    def read(tensor: torch.Tensor) -> torch.Tensor:
        reading.append(1)
        most.append(len(reading))
        time.sleep(0.002)
        reading.pop()
        return cpu(tensor)

    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(torch.Tensor, "cpu", read)
    monkeypatch.setattr(hashing, "raw_bytes", lambda tensor: b"")
    assert len(dict(hashing.hashes(TENSORS, lambda *_: None, hashing.tensor_hash))) == 40
    assert max(most) == 1


def test_an_error_in_a_piece_reaches_the_caller(hashing: Any) -> None:
    def hash_of(tensor: torch.Tensor) -> str:
        raise ValueError("The weight is kept as a Strange, which cannot be read.")

    with pytest.raises(ValueError, match="Strange"):
        list(hashing.hashes(TENSORS, lambda *_: None, hash_of))


def test_the_hash_is_of_type_shape_and_bytes(hashing: Any) -> None:
    zeros = torch.zeros(4, 3)
    others = [zeros.view(3, 4), zeros.half(), zeros + 1, zeros.to(torch.int32)]
    assert hashing.tensor_hash(zeros) not in map(hashing.tensor_hash, others)
    assert hashing.tensor_hash(zeros.T.contiguous().T) == hashing.tensor_hash(zeros)
    assert hashing.joined({"a": "1", "b": "2"}) == hashing.joined({"b": "2", "a": "1"})
