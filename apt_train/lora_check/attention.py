"""Where the model looks, relative to the prior: attention over matched columns, as training aligns it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sample.sampler import Sampler
from ..sample.trajectories import Trail
from ..text.conditioning import Conditioner
from ..text.tokens import END_LABEL, REST_LABEL, START_LABEL, SUBJECT_LABEL
from ..training.capture import Capture, attention_capture, attention_maps

_NO_WORDS = {START_LABEL, SUBJECT_LABEL, END_LABEL, REST_LABEL}


class Looking:
    """Reads attention at a middle noise level of each trail. Create it while the model is the prior."""

    def __init__(
        self, sampler: Sampler, capture: Capture, conditioner: Conditioner, trails: list[Trail], texts: list[str]
    ) -> None:
        self._sampler, self._capture, self._trails, self._texts = sampler, capture, trails, texts
        self._prior = [self._maps(conditioner, trail, tuned=False)[0] for trail in trails]

    @torch.no_grad()
    def looks(self, conditioner: Conditioner) -> tuple[float, float | None]:
        """How alike the attention is: 1 is the prior's own, 0 no overlap with it. And the attention on the prompt's
        other words, relative to the prior's; None: there are no other words."""
        apart: list[float] = []
        before: list[float] = []
        after: list[float] = []
        for trail, prior in zip(self._trails, self._prior, strict=True):
            tuned, labels = self._maps(conditioner, trail, tuned=True)
            for layer, other in zip(tuned, prior, strict=True):
                apart += ((layer - other).abs().sum(dim=-1) / 2).mean(dim=(1, 2)).tolist()
                for row, names in enumerate(labels):
                    words = [column for column, name in enumerate(names) if name not in _NO_WORDS]
                    before.append(float(other[row, :, :, words].sum(dim=-1).mean()))
                    after.append(float(layer[row, :, :, words].sum(dim=-1).mean()))
        context = sum(after) / sum(before) if sum(before) else None
        return 1 - sum(apart) / len(apart), context

    @torch.no_grad()
    def _maps(self, conditioner: Conditioner, trail: Trail, *, tuned: bool) -> tuple[list[Tensor], list[list[str]]]:
        """Maps (N, heads, positions, columns) per layer, on the CPU, and each prompt's column labels."""
        rows, trajectory = trail
        time, noisy, _ = trajectory[len(trajectory) // 2]
        texts = [self._texts[k] for k in rows]
        text = conditioner.encode(texts, tuned=tuned)
        with self._capture.record() as captured:
            self._sampler.predictor(text)(noisy.to(self._sampler.device), time)
        maps = attention_maps(captured, text.columns, text.num_columns, mask=text.mask)
        return [layer.cpu() for layer in maps], text.labels


def capture_of(sampler: Sampler) -> Capture | None:
    """Captures the decoder's attention, otherwise any; None: the network has no attention."""
    return attention_capture(sampler.components.network, sampler.components.unet, "up", "all")
