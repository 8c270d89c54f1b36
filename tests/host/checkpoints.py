"""Tiny checkpoints that an unmodified ComfyUI loads and draws pictures with, random and the same on every machine.

    python tests/host/checkpoints.py sd15|sdxl|sdxl_v FOLDER

writes FOLDER/apt_tiny_KIND.safetensors. The host's interpreter runs this too: it needs torch alone and imports nothing
else of the tests. What the host tells the families apart by has the real size (the UNet's width, the text encoders,
the VAE's encoder); depths are the smallest it admits, one layer of every text encoder is alive, and the rest are
zeros, which are holes in the file: much in `ls -l`, little on the disk.
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

KINDS = ("sd15", "sdxl", "sdxl_v")
_WORDS = 4096  # living rows of a vocabulary, the most common words; and the last 8, among them begin and end
_PIECE = 1 << 16  # bytes; a piece of zeros becomes a hole
_NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.int64: "I64"}


def write_checkpoint(
    path: Path, kind: str, *, dtype: torch.dtype = torch.float16, vae: str = "taesd", decoder_width: int = 32
) -> Path:
    """A checkpoint of one of KINDS; `sdxl_v` predicts v and has zero terminal SNR.

    `vae` is "taesd" (small and fast; its encoder gives no deviation) or "kl" (the usual one, with mean and deviation;
    its decoder is `decoder_width` wide, a multiple of 32). The file appears whole or not at all.
    """
    weights = Weights(dtype)
    if kind == "sd15":
        sd15(weights)
    else:
        sdxl(weights, own=0.4 if kind == "sdxl" else 0.9)
    if kind == "sdxl_v":
        weights.zeros("v_pred", 1)
        weights.zeros("ztsnr", 1)
    if vae == "taesd":
        taesd(weights, "first_stage_model.", scale=0.18215 if kind == "sd15" else 0.13025)
    else:
        kl_vae(weights, "first_stage_model.", decoder_width)
    return write_sparse(path, weights.tensors)


@dataclass
class Weights:
    """Named tensors under construction. A tensor of zeros stands on `meta`: the file has a hole for it."""

    dtype: torch.dtype
    tensors: dict[str, Tensor] = field(default_factory=dict)
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def add(self, name: str, tensor: Tensor) -> None:
        self.tensors[name] = tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def zeros(self, name: str, *shape: int) -> None:
        self.tensors[name] = torch.empty(shape, dtype=self.dtype, device="meta")

    def random(self, name: str, *shape: int, std: float) -> None:
        self.add(name, torch.randn(shape, generator=self.generator) * std)

    def linear(
        self, name: str, outputs: int, inputs: int, kernel: Sequence[int] = (), *, gain: float = 1.0, bias: bool = True
    ) -> None:
        """A layer that keeps the variance, times `gain` squared; a convolution when it has a kernel."""
        self.random(name + ".weight", outputs, inputs, *kernel, std=gain / math.sqrt(inputs * math.prod(kernel)))
        if bias:
            self.zeros(name + ".bias", outputs)

    def conv(self, name: str, outputs: int, inputs: int, size: int = 3, **how: Any) -> None:
        self.linear(name, outputs, inputs, (size, size), **how)

    def norm(self, name: str, channels: int) -> None:
        self.add(name + ".weight", torch.ones(channels))
        self.zeros(name + ".bias", channels)

    def embedding(self, name: str, rows: int, width: int, living: int) -> None:
        """The first `living` rows and the last 8 are random, the others zero."""
        table = torch.zeros(rows, width, dtype=self.dtype)
        for part in (table[:living], table[-8:]):
            part.copy_(torch.randn(part.shape, generator=self.generator) * 0.5)
        self.tensors[name] = table


# ---- the families ----------------------------------------------------------------------------------------------


def sd15(weights: Weights) -> None:
    unet(weights, Unet(context=768, down=(1, 1), middle=1, up=(1, 1, 1, 1), linear=False, own=0.1))
    clip_l(weights, "cond_stage_model.transformer.text_model.")


def sdxl(weights: Weights, own: float) -> None:
    """KOALA's depths, the smallest that the host takes for SDXL; the rising path's are free."""
    down, up = (0, 2, 5), (1, 1, 1, 1, 0, 0)
    unet(weights, Unet(context=2048, down=down, middle=5, up=up, linear=True, own=own, vector=2816))
    clip_l(weights, "conditioner.embedders.0.transformer.text_model.")
    clip_g(weights, "conditioner.embedders.1.model.")


# ---- the UNet --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unet:
    """Transformer depths: one per level going down (one residual block each), one per block going up (two each).

    `own` is how much the network adds to what it is given.
    """

    context: int
    down: tuple[int, ...]
    middle: int
    up: tuple[int, ...]
    linear: bool
    own: float
    vector: int = 0
    width: int = 320


def unet(weights: Weights, net: Unet) -> None:
    """Its answer is what it is given, by the outermost skip connection, and something of timestep, prompt and place."""
    p, c = "model.diffusion_model.", net.width
    embeddings = ["time_embed.0", "time_embed.2"] + (["label_emb.0.0", "label_emb.0.2"] if net.vector else [])
    for name, inputs in zip(embeddings, (c, 4 * c, net.vector, 4 * c), strict=False):
        weights.linear(p + name, 4 * c, inputs)
    weights.add(p + "input_blocks.0.0.weight", copies(c))
    weights.zeros(p + "input_blocks.0.0.bias", c)
    number = 1
    for level, depth in enumerate(net.down):
        unet_block(weights, net, f"{p}input_blocks.{number}", c, depth)
        if level < len(net.down) - 1:
            weights.conv(f"{p}input_blocks.{number + 1}.0.op", c, c)
        number += 2
    unet_block(weights, net, p + "middle_block", c, net.middle)
    residual(weights, p + "middle_block.2", c, c)
    for number, depth in enumerate(net.up):
        unet_block(weights, net, f"{p}output_blocks.{number}", 2 * c, depth)
        pass_on(weights, f"{p}output_blocks.{number}.0.skip_connection", c, net.own)
        if number % 2 and number < len(net.up) - 1:
            weights.conv(f"{p}output_blocks.{number}.{2 if depth else 1}.conv", c, c)
    weights.norm(p + "out.0", c)
    weights.add(p + "out.2.weight", copies(c).transpose(0, 1) * 8 / c)
    weights.zeros(p + "out.2.bias", 4)


def copies(channels: int) -> Tensor:
    """The kernel that writes every latent into channels / 8 pairs of channels, as it is and negated.

    SiLU leaves the difference of a pair as it is, so the same kernel turned round reads the latent back.
    """
    return centre(torch.cat([torch.eye(4), -torch.eye(4)]).repeat(channels // 8, 1))


def unet_block(weights: Weights, net: Unet, name: str, inputs: int, depth: int) -> None:
    residual(weights, name + ".0", inputs, net.width)
    if depth:
        transformer(weights, net, name + ".1", depth)


def residual(weights: Weights, name: str, inputs: int, outputs: int) -> None:
    weights.norm(name + ".in_layers.0", inputs)
    weights.conv(name + ".in_layers.2", outputs, inputs)
    weights.linear(name + ".emb_layers.1", outputs, 4 * outputs)
    weights.norm(name + ".out_layers.0", outputs)
    weights.conv(name + ".out_layers.3", outputs, outputs, gain=0.3)


def pass_on(weights: Weights, name: str, channels: int, own: float) -> None:
    """Of a block going up: the half that comes by the skip connection as it is, a random mixture of the other."""
    mixture = torch.randn(channels, channels, generator=weights.generator) * own / math.sqrt(channels)
    weights.add(name + ".weight", torch.cat([mixture, torch.eye(channels)], 1)[:, :, None, None])
    weights.zeros(name + ".bias", channels)


def transformer(weights: Weights, net: Unet, name: str, depth: int) -> None:
    c, kernel = net.width, () if net.linear else (1, 1)
    weights.norm(name + ".norm", c)
    weights.linear(name + ".proj_in", c, c, kernel)
    weights.linear(name + ".proj_out", c, c, kernel, gain=net.own)
    for block in (f"{name}.transformer_blocks.{number}" for number in range(depth)):
        attention(weights, block + ".attn1", c, c)
        attention(weights, block + ".attn2", c, net.context, gain=2.0)
        weights.linear(block + ".ff.net.0.proj", 8 * c, c)
        weights.linear(block + ".ff.net.2", c, 4 * c)
        for number in (1, 2, 3):
            weights.norm(f"{block}.norm{number}", c)


def attention(weights: Weights, name: str, width: int, context: int, gain: float = 1.0) -> None:
    for part, inputs in (("to_q", width), ("to_k", context), ("to_v", context)):
        weights.linear(f"{name}.{part}", width, inputs, gain=gain, bias=False)
    weights.linear(name + ".to_out.0", width, width)


# ---- the text encoders: the first layer lives, the others pass their input on ---------------------------------------


def clip_l(weights: Weights, p: str) -> None:
    """CLIP-L under transformers' names."""
    width = 768
    weights.embedding(p + "embeddings.token_embedding.weight", 49408, width, _WORDS)
    weights.random(p + "embeddings.position_embedding.weight", 77, width, std=0.05)
    weights.add(p + "embeddings.position_ids", torch.arange(77)[None])
    for number in range(12):
        layer = f"{p}encoder.layers.{number}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            text_linear(weights, f"{layer}.self_attn.{part}.", width, width, living=number == 0)
        text_linear(weights, layer + ".mlp.fc1.", 4 * width, width, living=number == 0)
        text_linear(weights, layer + ".mlp.fc2.", width, 4 * width, living=number == 0)
        weights.norm(layer + ".layer_norm1", width)
        weights.norm(layer + ".layer_norm2", width)
    weights.norm(p + "final_layer_norm", width)


def clip_g(weights: Weights, p: str) -> None:
    """OpenCLIP-bigG under its own names."""
    width = 1280
    weights.embedding(p + "token_embedding.weight", 49408, width, _WORDS)
    weights.random(p + "positional_embedding", 77, width, std=0.05)
    weights.random(p + "text_projection", width, width, std=width**-0.5)
    weights.add(p + "logit_scale", torch.tensor(4.6))
    for number in range(32):
        layer = f"{p}transformer.resblocks.{number}"
        text_linear(weights, layer + ".attn.in_proj_", 3 * width, width, living=number == 0)
        text_linear(weights, layer + ".attn.out_proj.", width, width, living=number == 0)
        text_linear(weights, layer + ".mlp.c_fc.", 4 * width, width, living=number == 0)
        text_linear(weights, layer + ".mlp.c_proj.", width, 4 * width, living=number == 0)
        weights.norm(layer + ".ln_1", width)
        weights.norm(layer + ".ln_2", width)
    weights.norm(p + "ln_final", width)


def text_linear(weights: Weights, stem: str, outputs: int, inputs: int, *, living: bool) -> None:
    if living:
        weights.random(stem + "weight", outputs, inputs, std=inputs**-0.5)
    else:
        weights.zeros(stem + "weight", outputs, inputs)
    weights.zeros(stem + "bias", outputs)


# ---- the first stage -------------------------------------------------------------------------------------------


def taesd(weights: Weights, p: str, scale: float) -> None:
    """The tiny autoencoder: c is its convolution in or out, b a block, d a convolution between blocks."""
    for side, layers, first, last in (("encoder", "cbdbbbdbbbdbbbc", 3, 4), ("decoder", "-c-bbb-dbbb-dbbb-dbc", 4, 3)):
        for number, layer in enumerate(layers):
            name = f"{p}taesd_{side}.{number}"
            if layer == "b":
                for part in (0, 2, 4):
                    weights.conv(f"{name}.conv.{part}", 64, 64, gain=0.5)
            elif layer == "d":
                weights.add(name + ".weight", centre(torch.eye(64)))
            elif layer == "c":
                outwards = number > 1
                weights.conv(name, last if outwards else 64, 64 if outwards else first)
    balance(weights, f"{p}taesd_encoder.14", gain=2.0, bias=0.0)
    balance(weights, f"{p}taesd_decoder.19", gain=0.7, bias=0.5)
    weights.add(p + "vae_scale", torch.tensor(scale))
    weights.zeros(p + "vae_shift")


def balance(weights: Weights, name: str, gain: float, bias: float) -> None:
    """Takes from a last layer what it says of the mean over its inputs, which ReLU leaves large."""
    weight = weights.tensors[name + ".weight"].float()
    weights.add(name + ".weight", (weight - weight.mean(1, keepdim=True)) * gain)
    weights.add(name + ".bias", torch.full((len(weight),), bias))


def centre(matrix: Tensor) -> Tensor:
    """The 3x3 kernel that looks at its own place alone."""
    kernel = torch.zeros(*matrix.shape, 3, 3)
    kernel[:, :, 1, 1] = matrix
    return kernel


def kl_vae(weights: Weights, p: str, decoder_width: int) -> None:
    """The usual autoencoder; the host wants its encoder 128 wide and reads the decoder's width off the file."""
    kl_encoder(weights, p + "encoder.", 128)
    kl_decoder(weights, p + "decoder.", decoder_width)
    mean_and_log_variance = torch.diag(torch.tensor([12.0] * 4 + [1.0] * 4))
    weights.add(p + "quant_conv.weight", mean_and_log_variance[:, :, None, None])
    weights.add(p + "quant_conv.bias", torch.tensor([0.0] * 4 + [-4.0] * 4))
    weights.conv(p + "post_quant_conv", 4, 4, 1)


def kl_encoder(weights: Weights, p: str, width: int) -> None:
    widths = [width, width, 2 * width, 4 * width, 4 * width]
    weights.conv(p + "conv_in", width, 3)
    for level, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
        kl_residual(weights, f"{p}down.{level}.block.0", inputs, outputs)
        kl_residual(weights, f"{p}down.{level}.block.1", outputs, outputs)
        if level < 3:
            weights.conv(f"{p}down.{level}.downsample.conv", outputs, outputs)
    kl_middle(weights, p + "mid.", 4 * width)
    weights.norm(p + "norm_out", 4 * width)
    weights.conv(p + "conv_out", 8, 4 * width)


def kl_decoder(weights: Weights, p: str, width: int) -> None:
    widths = [4 * width, 4 * width, 4 * width, 2 * width, width]
    weights.conv(p + "conv_in", 4 * width, 4)
    kl_middle(weights, p + "mid.", 4 * width)
    for level, inputs, outputs in zip((3, 2, 1, 0), widths, widths[1:], strict=False):
        kl_residual(weights, f"{p}up.{level}.block.0", inputs, outputs)
        kl_residual(weights, f"{p}up.{level}.block.1", outputs, outputs)
        kl_residual(weights, f"{p}up.{level}.block.2", outputs, outputs)
        if level:
            weights.conv(f"{p}up.{level}.upsample.conv", outputs, outputs)
    weights.norm(p + "norm_out", width)
    weights.conv(p + "conv_out", 3, width)


def kl_middle(weights: Weights, p: str, width: int) -> None:
    kl_residual(weights, p + "block_1", width, width)
    kl_residual(weights, p + "block_2", width, width)
    weights.norm(p + "attn_1.norm", width)
    for part in ("q", "k", "v"):
        weights.conv(f"{p}attn_1.{part}", width, width, 1)
    weights.conv(p + "attn_1.proj_out", width, width, 1, gain=0.3)


def kl_residual(weights: Weights, name: str, inputs: int, outputs: int) -> None:
    weights.norm(name + ".norm1", inputs)
    weights.conv(name + ".conv1", outputs, inputs)
    weights.norm(name + ".norm2", outputs)
    weights.conv(name + ".conv2", outputs, outputs, gain=0.3)
    if inputs != outputs:
        weights.conv(name + ".nin_shortcut", outputs, inputs, 1)


# ---- the file --------------------------------------------------------------------------------------------------


def write_sparse(path: Path, tensors: dict[str, Tensor]) -> Path:
    """A safetensors file in which zeros are holes; written beside its place and then moved there."""
    header, places, end = {}, [], 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        span = [end, end + size]
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
        places.append((end, tensor))
        end += size
    text = json.dumps(header).encode()
    text = struct.pack("<Q", len(text) + -len(text) % 8) + text + b" " * (-len(text) % 8)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    with beside.open("wb") as file:
        file.write(text)
        file.truncate(len(text) + end)
        for start, tensor in places:
            write_pieces(file, len(text) + start, tensor)
    os.replace(beside, path)
    return path


def write_pieces(file: BinaryIO, start: int, tensor: Tensor) -> None:
    """Only what is not zero; nothing of a tensor on `meta`."""
    if tensor.device.type == "meta":
        return
    for number, piece in enumerate(tensor.contiguous().reshape(-1).view(torch.uint8).split(_PIECE)):
        if piece.any():
            file.seek(start + number * _PIECE)
            file.write(bytes(piece.numpy()))


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] not in KINDS:
        print(__doc__, file=sys.stderr)
        return 2
    kind, folder = arguments
    print(write_checkpoint(Path(folder) / f"apt_tiny_{kind}.safetensors", kind))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
