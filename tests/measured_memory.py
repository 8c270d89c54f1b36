"""A process of its own that trains two steps and says what it took of main memory, and what was estimated before.

    python -m tests.measured_memory METHOD SIDE CHECKPOINTING     prints {"estimated": bytes, "measured": bytes}

Measured is the peak of the resident set, less what it was before the model was there.
"""

from __future__ import annotations

import gc
import json
import sys
from typing import Any

import psutil
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from apt_train.config import AptConfig, DataConfig, OutputConfig, TrainConfig
from apt_train.data.dataset import ImageSet
from apt_train.families.components import Components, Family, TextEncoder
from apt_train.training.estimate import estimated
from apt_train.training.plan import plan_run
from apt_train.training.train import train
from tests.tiny import scaled_linear_schedule, tiny_tokenizer
from tests.training import run


def model(side: int) -> Components:
    """38 million weights of SD1.5's shape. Its VAE is a stand-in that takes nothing."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(64, 128, 256, 256), cross_attention_dim=768, attention_head_dim=8,
        down_block_types=(*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    )  # fmt: skip
    tokenizer = tiny_tokenizer(77)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=768, num_hidden_layers=1, num_attention_heads=12, bos_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    return Components(
        unet, [TextEncoder(CLIPTextModel(config).eval(), tokenizer)],
        lambda images: (torch.zeros(1, 4, *(n // 8 for n in images.shape[2:])), None), lambda latents: latents[:, :3],
        scaled_linear_schedule(), Family("sd15", side, vae_factor=8),
    )  # fmt: skip


def main(method: Any, side: str, checkpointing: str) -> None:
    torch.set_num_threads(1)
    run(steps=1)  # loads what libraries load when they are first used
    images = ImageSet.from_tensors([torch.rand(int(side), int(side), 3) for _ in range(3)])
    gc.collect()
    before = psutil.Process().memory_info().rss
    parts = model(int(side))
    config = TrainConfig(
        class_word="toy", method=method, steps=2, gradient_checkpointing=checkpointing == "on",
        apt=AptConfig(adaptive_augmentation=False), data=DataConfig(resolution=int(side)),
        output=OutputConfig(watch_drift=False, snapshot_every=0),
    )  # fmt: skip
    plan = plan_run(parts, images, config, device="cpu")
    found = estimated(plan, plan.savings)
    assert found is not None
    train(parts, images, config, device="cpu")
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    print(json.dumps({"estimated": found.peak(makes_way=False), "measured": peak - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
