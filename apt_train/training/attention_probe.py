"""Where the prior and the tuned model look, token by token, on one picture: the paper's attention figure."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.batch import Sample, collate, unaltered
from ..families.levels import timestep_at
from ..run.attention_file import AttentionMaps
from ..sample.sampler import eval_mode
from .capture import Capture, attention_capture, attention_maps, merge_layers
from .running import Run

_SHOWN = 0  # place of the picture in the set, as of `Stream.example`


@torch.no_grad()
def attention_of(run: Run) -> AttentionMaps | None:
    """The prior's and the tuned model's maps of the first picture at the middle noise level, on the CPU.

    Averaged over heads and the layers of `attn_layers`, or all if it has none, at the finest layer's resolution. Both
    see the same noise, drawn from the run's seed. None: the network has no cross-attention.
    """
    capture = attention_capture(run.components.network, run.components.unet, run.config.apt.attn_layers, "all")
    if capture is None:
        return None
    middle = timestep_at(run.components.levels, 0.5)
    sample = unaltered(run.bank, _SHOWN, middle, run.config.seed, "attention", _SHOWN)
    with eval_mode(run.components.unet):
        with run.adapter.disabled():
            prior, labels = _maps(run, capture, sample, tuned=False)
        tuned, _ = _maps(run, capture, sample, tuned=True)
    return AttentionMaps(prior, tuned, labels, run.inputs.subject.example)


def _maps(run: Run, capture: Capture, sample: Sample, *, tuned: bool) -> tuple[Tensor, list[str]]:
    components = run.components
    batch = collate([sample], run.inputs.subject.captions, run.device)
    noisy = components.schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
    conditioning = run.inputs.conditioner.encode(batch.captions, tuned=tuned)
    with capture.record() as captured:
        run.training_step.predict(noisy, batch, conditioning)
    maps = attention_maps(captured, conditioning.columns, conditioning.num_columns, mask=conditioning.mask)
    height, width = batch.latents.shape[-2:]
    return merge_layers([layer.mean(dim=1)[0] for layer in maps], height / width), conditioning.labels[0]
