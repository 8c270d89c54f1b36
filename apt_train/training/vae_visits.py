"""The VAE on the device while it works, and the network off it meanwhile if there is no room for both."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Generator
from functools import partial

import torch
from torch import nn

from ..data.latent_bank import Encoder
from ..errors import InputError
from ..families.components import Components
from .memory import empty_cache


class Stranded(InputError):
    """Weights are in main memory that no step can do without."""


def encoder_of(components: Components, device: torch.device, *, alone: bool = False) -> Encoder:
    """The VAE as a latent bank uses it, on the device while it works; `alone`: see `vae_on`."""
    work = partial(vae_on, components, device, alone=alone)
    return Encoder(components.encode, components.family.vae_factor, on_device=work)


@contextlib.contextmanager
def vae_on(components: Components, device: torch.device, *, alone: bool = False) -> Generator[None]:
    """The VAE on the compute device inside the block; `alone`: the network's frozen weights leave it meanwhile.

    What torch holds there unused is given back first and at the end: on Windows a full GPU spills instead of refusing,
    and only a refusal makes torch do so by itself.
    """
    with contextlib.ExitStack() as stack:
        if alone:
            stack.enter_context(_aside(components.unet, device))
        empty_cache(device)
        stack.callback(empty_cache, device)
        if components.vae is not None:
            stack.callback(components.vae.to, "cpu")
            components.vae.to(device)
        yield


@contextlib.contextmanager
def _aside(network: nn.Module, device: torch.device) -> Generator[None]:
    """Move frozen weights off the device and back. Copies are exact. Trained weights stay, with their moments.

    Stranded: another program has taken their place.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # a block that was fetched ahead may still be arriving, on a stream of its own
    moved = [one for one in network.parameters() if not one.requires_grad and one.device.type == device.type]
    try:
        for parameter in moved:
            parameter.data = parameter.data.to("cpu")
        yield
    except (RuntimeError, MemoryError) as error:
        traceback.clear_frames(error.__traceback__)  # they hold what the VAE had made, where the weights must return
        raise
    finally:
        try:
            for parameter in moved:
                parameter.data = parameter.data.to(device)
        except RuntimeError as error:
            raise Stranded(
                "The network has made way for the VAE and finds no room to return: free memory, then resume the run."
            ) from error
