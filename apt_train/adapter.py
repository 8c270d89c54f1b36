"""LoRA on the UNet, by peft: put on, switched off for the prior pass, read out, and T-LoRA's rank by timestep."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from .errors import InputError
from .rng import seeded

ADAPTER = "apt"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")


def add_adapter(
    unet: nn.Module,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    targets: Literal["attention", "attention+ff"] = "attention",
    seed: int = 0,
) -> None:
    """Put a float32 LoRA on the UNet's attention (and feed-forward) layers; the base weights are frozen.

    lora_A starts random from `seed`, lora_B at zero: the output is the base's until the first step. InputError: the
    UNet carries an adapter already.
    """
    check_no_adapter(unet)
    modules = [*ATTENTION, *(FEED_FORWARD if targets == "attention+ff" else ())]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=modules)  # type: ignore[arg-type]
    # Asked for by name, as peft else asks every quantisation library that is installed and gives up where another
    # package's torchao is too old for it.
    config._register_custom_module({nn.Linear: Linear})
    unet.requires_grad_(False)
    with seeded(seed, "adapter"):
        inject_adapter_in_model(config, unet, adapter_name=ADAPTER)
        # Drawn anew in float32 on the CPU: peft draws in the base's dtype on its device, where the bits would differ.
        for parameter in adapter_parameters(unet).values():
            parameter.data = parameter.data.float()
        for name, parameter in adapter_parameters(unet).items():
            if ".lora_A." in name:
                parameter.data.copy_(_kaiming(parameter.shape))


def check_no_adapter(unet: nn.Module) -> None:
    """InputError where the UNet carries an adapter already, ours or another's."""
    if any(True for _ in _layers(unet)):
        raise InputError("The UNet carries an adapter already: take it off, or merge it, before training.")


def _kaiming(shape: torch.Size) -> Tensor:
    weight = torch.empty(shape)
    nn.init.kaiming_uniform_(weight, a=5**0.5)
    return weight


def remove_adapter(unet: nn.Module) -> None:
    """Take the LoRA off again: the module is as it was before `add_adapter`."""
    for name, layer in list(_layers(unet)):
        parent, _, child = name.rpartition(".")
        setattr(unet.get_submodule(parent), child, layer.get_base_layer())
    if hasattr(unet, "peft_config"):
        del unet.peft_config


def adapter_parameters(unet: nn.Module) -> dict[str, nn.Parameter]:
    """The LoRA's parameters by module path, without the adapter's name: `...attn1.to_q.lora_A.weight`."""
    return {
        name.replace(f".{ADAPTER}.", "."): parameter
        for name, parameter in unet.named_parameters()
        if f".{ADAPTER}." in name
    }


def adapter_state(unet: nn.Module) -> dict[str, Tensor]:
    """The LoRA as float32 tensors on the CPU: lora_A (rank, in), lora_B (out, rank)."""
    return {
        name: parameter.detach().to("cpu", torch.float32, copy=True)
        for name, parameter in adapter_parameters(unet).items()
    }


def load_adapter_state(unet: nn.Module, state: dict[str, Tensor]) -> None:
    """The inverse of `adapter_state`."""
    parameters = adapter_parameters(unet)
    assert parameters.keys() == state.keys(), "the saved adapter sits on other layers"
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])


@contextlib.contextmanager
def adapter_disabled(unet: nn.Module) -> Iterator[None]:
    """Inside the block the UNet is the prior, to the bit."""
    layers = [layer for _, layer in _layers(unet) if not layer.disable_adapters]  # off already: left to who did it
    before = [(layer, parameter.requires_grad) for layer in layers for parameter in _own_parameters(layer)[:1]]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for layer, trains in before:  # enable_adapters switches gradients on, also where they were off
            for parameter in _own_parameters(layer):
                parameter.requires_grad_(trains)


def _own_parameters(layer: nn.Module) -> list[nn.Parameter]:
    return [parameter for name, parameter in layer.named_parameters() if f".{ADAPTER}." in name]


def _layers(unet: nn.Module) -> Iterator[tuple[str, Any]]:
    # Any: peft's BaseTunerLayer is a mixin, a module only by its subclasses.
    for name, module in unet.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield name, module


class TimestepRank:
    """T-LoRA (arXiv 2507.05964): the noisier the timestep, the fewer of the LoRA's ranks take part.

    r(t) = floor((r - r_min) (T - t) / T) + r_min. The hooks stay on the modules, so that gradient checkpointing
    recomputes with the same mask; `set` chooses the ranks of the next forward pass.
    """

    def __init__(self, unet: nn.Module, *, rank: int, min_rank: int, num_timesteps: int) -> None:
        self.rank, self.min_rank, self.num_timesteps = rank, min_rank, num_timesteps
        self._mask: Tensor | None = None
        self._handles = [
            module.register_forward_hook(self._apply)
            for name, module in unet.named_modules()
            if name.endswith(f".lora_A.{ADAPTER}")
        ]

    def ranks_at(self, timesteps: Tensor) -> Tensor:
        """The rank in force, int64 (N,), at int64 timesteps (N,)."""
        left = self.num_timesteps - timesteps
        return (self.rank - self.min_rank) * left // self.num_timesteps + self.min_rank

    def set(self, timesteps: Tensor | None) -> None:
        """Ranks for the next forward pass; None: all of them."""
        if timesteps is None:
            self._mask = None
            return
        columns = torch.arange(self.rank, device=timesteps.device)
        self._mask = (columns < self.ranks_at(timesteps)[:, None]).float()

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _apply(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        return None if self._mask is None else output * self._mask[:, None, :].to(output.dtype)
