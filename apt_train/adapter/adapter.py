"""The adapter on a UNet, built with peft. Its layers are looked up once, so no step walks the module tree.

In: switching on and off, ranks by timestep, loading and reading weights. Not in: the kinds (`adapter_kinds`), names in
a file (`export`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..adapter_kinds import KINDS, Kind
from ..config import AdapterConfig
from ..errors import InputError
from ..families.components import Family
from ..families.swapped import sent
from ..rng import seeded

ADAPTER = "apt"
_OFF = "_disable_adapters"  # the attribute that peft's layers check in their forward pass


@dataclass(frozen=True)
class RankByTimestep:
    """T-LoRA (arXiv 2507.05964), where the noisier the latent is, the fewer of the ranks are active.

    r(t) = floor((r - r_min) (T - t) / T) + r_min, with the noise level for t / T.
    `levels`: the noise level of each timestep, float64 (num_timesteps,) in [0, 1].
    """

    rank: int
    min_rank: int
    levels: Tensor

    def at(self, timesteps: Tensor) -> Tensor:
        """The number of active ranks, int64 (N,), at int64 timesteps (N,)."""
        half = 0.5 / len(self.levels)  # half a timestep, against rounding
        ranks = ((self.rank - self.min_rank) * (1 - self.levels) + half).long() + self.min_rank
        return sent(ranks, timesteps.device)[timesteps]

    def mask(self, timesteps: Tensor) -> Tensor:
        """1 for an active rank, otherwise 0: float32 (N, rank)."""
        columns = torch.arange(self.rank, device=timesteps.device)
        return (columns < self.at(timesteps)[:, None]).float()


class Adapter:
    """The adapter on a UNet.

    `parameters`: float32, by module path without the adapter's own name (`...to_q.lora_A.weight`). `ranks`: the ranks
    that are active at each timestep, inside `at`; None: always all of them.
    """

    def __init__(self, unet: nn.Module, ranks: RankByTimestep | None = None, kind: str = "lora") -> None:
        self._unet, self._ranks = unet, ranks
        self._layers = dict(_layers(unet))
        self.parameters: dict[str, nn.Parameter] = {
            f".{name}.".replace(f".{ADAPTER}.", ".").strip("."): parameter
            for name, parameter in unet.named_parameters()
            if ADAPTER in name.split(".")
        }
        # peft's own switch visits every parameter through a slow `__setattr__`: seconds per run for a flag.
        self._switches: list[dict[str, Any]] = [vars(layer) for layer in self._layers.values()]
        self._mask: Tensor | None = None
        # The hooks stay registered, so that gradient checkpointing recomputes with the same mask.
        assert ranks is None or KINDS[kind].by_rank, f"{kind} has no ranks to take away"
        downs = [getattr(layer, KINDS[kind].by_rank)[ADAPTER] for layer in self._layers.values()] if ranks else []
        self._hooks = [down.register_forward_hook(self._apply_mask) for down in downs]

    @contextlib.contextmanager
    def disabled(self) -> Generator[None]:
        """Inside the block the UNet is bit for bit the prior."""
        on = [switch for switch in self._switches if not switch.get(_OFF)]  # those already off stay off afterwards
        try:
            for switch in on:
                switch[_OFF] = True
            yield
        finally:
            for switch in on:
                switch[_OFF] = False

    @contextlib.contextmanager
    def at(self, timesteps: Tensor) -> Generator[None]:
        """Inside the block each sample has the ranks of its timestep, int64 (N,); so does a backward pass in it.

        A LoRA file cannot express this, so other programs sample with all ranks, and so do previews.
        """
        self._mask = self._ranks.mask(timesteps) if self._ranks else None
        try:
            yield
        finally:
            self._mask = None

    def state(self) -> dict[str, Tensor]:
        """A copy of the weights, float32 on the CPU; for a LoRA lora_A (rank, in) and lora_B (out, rank)."""
        return {
            name: parameter.detach().to("cpu", torch.float32, copy=True) for name, parameter in self.parameters.items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        assert self.parameters.keys() == state.keys(), "the saved adapter sits on other layers"
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state[name])

    def remove(self) -> None:
        """Remove the adapter; the UNet is as it was before `add_adapter`."""
        for hook in self._hooks:
            hook.remove()
        for name, layer in self._layers.items():
            parent, _, child = name.rpartition(".")
            setattr(self._unet.get_submodule(parent), child, layer.get_base_layer())
        self._layers, self._switches = {}, []
        if hasattr(self._unet, "peft_config"):
            del self._unet.peft_config

    def _apply_mask(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if self._mask is None:
            return None
        axis = 1 if isinstance(module, nn.Conv2d) else -1  # of the ranks
        mask = self._mask.view(len(self._mask), *[1] * (output.dim() - 2), -1).to(output.dtype)
        return (output.movedim(axis, -1) * mask).movedim(-1, axis)


def add_adapter(
    unet: nn.Module,
    settings: AdapterConfig,
    *,
    targets: tuple[str, ...] = Family.attention,
    seed: int = 0,
    ranks: RankByTimestep | None = None,
) -> Adapter:
    """Attach a float32 adapter to layers of the UNet and freeze the base weights.

    `targets`: the ends of the layers' paths, in place of the settings' word; by default diffusers' names of attention.
    Random initial weights come from `seed` (in a LoRA lora_A, while lora_B is zero). Until the first step the output is
    the base's. The update is scaled by alpha / rank, whatever the kind. InputError: the UNet already has an adapter.
    """
    check_no_adapter(unet)
    kind = KINDS[settings.kind]
    unet.requires_grad_(False)
    try:
        with seeded(seed, "adapter"):
            inject_adapter_in_model(kind.config(settings, list(targets)), unet, adapter_name=ADAPTER)
            for _, layer in _layers(unet):
                kind.put_on(layer, ADAPTER, settings)
            adapter = Adapter(unet, ranks, settings.kind)
            _draw(adapter.parameters, kind)
        nameless = [name for name in adapter.parameters if not _is_among(kind.parts, name)]
        assert not nameless, f"{nameless[0]} has no name in a file: list it in the kind's parts"
    except BaseException:  # out of memory, for example: leave no partial adapter
        Adapter(unet).remove()
        raise
    return adapter


def adapter_of(
    unet: nn.Module, settings: AdapterConfig, family: Family, levels: Tensor | None, seed: int = 0
) -> Adapter:
    """Attach the adapter that the settings describe. `levels`: each timestep's, for T-LoRA; None: all ranks always."""
    ranks = None if levels is None else RankByTimestep(settings.rank, settings.resolved_min_rank, levels)
    return add_adapter(unet, settings, targets=family.adapted(settings.targets), seed=seed, ranks=ranks)


def check_no_adapter(unet: nn.Module) -> None:
    """InputError if the UNet already has an adapter, ours or another."""
    if any(True for _ in _layers(unet)):
        raise InputError("The model already has an adapter: remove it, or merge it, before training.")


def _draw(parameters: Mapping[str, nn.Parameter], kind: Kind) -> None:
    """Draw again in float32 on the CPU: peft draws in the base's dtype on its device, where the bits would differ."""
    for parameter in parameters.values():
        parameter.data = parameter.data.float()
    for name, parameter in parameters.items():
        if _is_among(kind.drawn, name):
            parameter.data.copy_(nn.init.kaiming_uniform_(torch.empty(parameter.shape), a=5**0.5))


def _is_among(parts: Iterable[str], name: str) -> bool:
    return name.endswith(tuple(f".{part}" for part in parts))


def _layers(unet: nn.Module) -> Iterator[tuple[str, Any]]:
    # Any: peft's BaseTunerLayer is a mixin; only its subclasses are modules.
    for name, module in cast("Iterator[tuple[str, nn.Module]]", unet.named_modules()):
        if isinstance(module, BaseTunerLayer):
            yield name, module
