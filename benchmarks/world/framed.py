"""Teach the embedded UNet pictures that are small, turned and framed in black, as a model of photographs knows.

    python -m benchmarks.world.framed --out .cache/framed

The drawn world has objects of one size and no borders, so APT's affine augmentation shows its prior pictures it has
never seen. This script continues the UNet's pretraining on the world's pictures, one in eight under that augmentation.
It writes a model folder whose other parts are the embedded model's. It answers one question of the benchmark
(`bench quality --grid framed`): is it the augmentation that harms, or a prior that does not know its pictures?
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from apt_train.config import AptConfig
from apt_train.data.augment import PUBLISHED_ZOOM, Augmentation, draw_variant
from apt_train.demo.recipe import MODEL
from apt_train.families.components import Components
from apt_train.families.load import load_checkpoint
from apt_train.rng import generator
from apt_train.sample.sampler import from_pictures
from apt_train.text.conditioning import Conditioner
from benchmarks.world import draw

SEED = 77  # of the world's pictures. Pretraining used seed 0
ONE_MOVED_IN = 8
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the model")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pictures", type=int, default=3000, help="of the world, each plain and under one affine map")
    parser.add_argument("--lr", type=float, default=3e-4, help="peak learning rate of the UNet")
    args = parser.parse_args()
    torch.set_num_threads(1)
    teach(args.out, steps=args.steps, batch=args.batch, pictures=args.pictures, lr=args.lr)


def teach(out: Path, *, steps: int, batch: int, pictures: int, lr: float) -> list[float]:
    """Train and write the folder. Returns each step's loss, the plain mean squared error of epsilon."""
    components = load_checkpoint(MODEL)
    unet = components.unet.float()
    for encoder in components.text_encoders:
        encoder.model.float()
    latents, hidden = _data(components, pictures)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(2, steps), pct_start=0.1)
    average = {name: tensor.detach().clone() for name, tensor in unet.state_dict().items()}
    unet.requires_grad_(True).train()
    losses = []
    for step in range(steps):
        losses.append(_step(components, optimizer, latents, hidden, batch, step))
        schedule.step()
        _follow(average, unet.state_dict(), decay=min(0.995, (step + 1) / (step + 10)))
        if step % 100 == 99:
            print(f"step {step + 1}: loss {sum(losses[-100:]) / len(losses[-100:]):.4f}", flush=True)
    _write(out, average)
    return losses


def _data(components: Components, pictures: int) -> tuple[Tensor, Tensor]:
    """Latents (2, N, C, h, w), plain and under an affine map, and text (N, tokens, width), every tenth empty."""
    conditioner = Conditioner(components.text_encoders, None, class_word="toy", name="x")
    plain, moved, hidden, shipped = [], [], [], AptConfig()
    with torch.no_grad():
        for index in range(pictures):
            pixels, caption, _ = draw.world_item(SEED, index)
            picture = from_pictures([Image.fromarray(pixels)])[0]
            variant, _, _ = draw_variant(
                picture,
                None,
                Augmentation(("affine",), PUBLISHED_ZOOM, shipped.max_degrees),
                generator(SEED, index),
            )
            for place, image in ((plain, picture), (moved, variant)):
                place.append(components.encode(image[None])[0][0].float())
            text = "" if index % 10 == 9 else caption
            hidden.append(conditioner.encode([text], tuned=False).hidden[0])
    return torch.stack([torch.stack(plain), torch.stack(moved)]), torch.stack(hidden)


def _step(
    components: Components, optimizer: torch.optim.Optimizer, latents: Tensor, hidden: Tensor, batch: int, step: int
) -> float:
    """One step. Few pictures of a batch are moved: at half of them, samples had unrequested frames (docs/log.md)."""
    draws = generator(SEED, "step", step)
    rows = torch.randint(latents.shape[1], (batch,), generator=draws)
    clean = latents[(torch.arange(batch) % ONE_MOVED_IN == 0).long(), rows]
    times = torch.randint(components.schedule.num_timesteps, (batch,), generator=draws)
    noise = torch.randn(clean.shape, generator=draws)
    noisy = components.schedule.add_noise(clean, noise, times)
    loss = F.mse_loss(components.unet(noisy, times, encoder_hidden_states=hidden[rows]).sample, noise)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(components.unet.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def _follow(average: dict[str, Tensor], weights: dict[str, Tensor], decay: float) -> None:
    for name, tensor in average.items():
        tensor.lerp_(weights[name].to(tensor.dtype), 1 - decay)


def _write(out: Path, weights: dict[str, Tensor]) -> None:
    """A copy of the embedded model's folder with these UNet weights, in the file's own precision."""
    shutil.copytree(MODEL, out)
    before = load_file(out / WEIGHTS)
    save_file({name: weights[name].to(tensor.dtype).contiguous() for name, tensor in before.items()}, out / WEIGHTS)


if __name__ == "__main__":
    main()
