"""The options of every command that loads a model. Not in: the options of one command (`cli`, `lora_check.command`)."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def add_model_options(add: Callable[..., object]) -> None:
    """What a model's file may leave open, and the device. `add`: a parser's or a group's `add_argument`."""
    add(
        "--prediction-type",
        choices=("epsilon", "v_prediction"),
        help="what the model predicts, for a file that does not say so itself (else epsilon)",
    )
    add(
        "--zero-terminal-snr",
        action=argparse.BooleanOptionalAction,
        help="whether the noise schedule ends in pure noise, for a v-prediction file that does not say so itself",
    )
    add("--vae", help="a VAE to use instead of the model's own: a .safetensors or a diffusers folder")
    add(
        "--tokenizer",
        help="folder of the CLIP vocabulary, for a single file (else $COMFYUI_PATH, else the local cache)",
    )
    add("--device", help="cpu, cuda, cuda:1 ... (default: CUDA if there is one)")
