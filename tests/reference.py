"""The method a second time, on one page of plain torch, to be compared with the trainer step by step.

Written from docs/method.md and the help of the settings, not from the trainer: loops where it has tensors, a second
UNet where it switches the adapter off. Only what is random is the trainer's: the samples and the initial LoRA. To learn
the method, start at `reference`, the last function. Not in: drawing, learning-rate schedules, DoRA, dropout.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from apt_train.config import TrainConfig

PARTS = {"up": ("up",), "mid+up": ("mid", "up"), "all": ("down", "mid", "up")}  # of the UNet, as its paths begin
Chunk = list[tuple[int, str]]  # id and attention column of each position
Losses = dict[int, list[float]]  # by bin: of the prior and of the tuned model


def ids_of(encoder: Any, words: str) -> list[int]:
    return encoder.tokenizer(words, add_special_tokens=False)["input_ids"]


def chunks_of(encoder: Any, caption: str, subject: list[int], is_group: bool) -> list[Chunk]:
    """A caption in chunks, cut as ComfyUI does: only groups of 8 tokens or more are split."""
    groups: list[Chunk] = [[]]
    for i, text in enumerate(caption.split("{subject}")):
        span = [(id, f"subject {i}") for id in subject] if i else []
        groups = [*groups, span, []] if is_group else [*groups[:-1], groups[-1] + span]
        groups[-1] += [(id, f"word {i} {k}") for k, id in enumerate(ids_of(encoder, text))]
    words, room, chunks = encoder.tokenizer, encoder.tokenizer.model_max_length - 2, [[]]
    for group in groups:
        is_large = len(group) >= 8
        while len(group) > (free := room - len(chunks[-1])):
            chunks[-1], group = chunks[-1] + group[: free * is_large], group[free * is_large :]
            chunks.append([])
        chunks[-1] = chunks[-1] + group
    for i, chunk in enumerate(chunks):  # only the first chunk's ends have columns of their own
        start, end = ("rest", "rest") if i else ("start", "end")
        padding = [(words.pad_token_id, "rest")] * (room - len(chunk))
        chunks[i] = [(words.bos_token_id, start), *chunk, (words.eos_token_id, end), *padding]
    return chunks


class Text:
    """Encodes captions. The learned identifier's ids follow the vocabulary, as its rows follow the table."""

    def __init__(self, encoders: list[Any], config: TrainConfig, captions: list[str]) -> None:
        self.encoders, self.config, self.learned = encoders, config, config.identifier_mode == "learned"
        word = config.resolved_init_word if self.learned else ""
        self.rows = [nn.Parameter(encoder.table[ids_of(encoder, word)].clone()) for encoder in encoders]
        self.norms = [row.detach().norm(dim=1, keepdim=True) for row in self.rows]
        versions = [self.chunks(encoders[0], caption, tuned) for caption in captions for tuned in (True, False)]
        self.count = max(map(len, versions))  # chunks, to which every caption is padded

    def chunks(self, encoder: Any, caption: str, tuned: bool) -> list[Chunk]:
        words, is_group = self.config.class_word, tuned and self.learned
        subject = ids_of(encoder, f"{self.config.name} {words}" if tuned else words)
        learned = [len(encoder.table) + k for k in range(len(self.rows[0]))]
        return chunks_of(encoder, caption, learned if is_group else subject, is_group)

    def encode(self, caption: str, tuned: bool) -> tuple[Tensor, Tensor | None, list[str]]:
        """Hidden states, SDXL's pooled vector, and the columns."""
        states, pooled, columns = [], None, []
        for encoder, rows in zip(self.encoders, self.rows, strict=True):
            chunks = self.chunks(encoder, caption, tuned)
            empty = [(id, "rest") for id, _ in chunks_of(encoder, "", [], False)[0]]
            padded = chunks + [empty] * (self.count - len(chunks))
            columns = [column for chunk in padded for _, column in chunk]
            ids = torch.tensor([[id for id, _ in chunk] for chunk in padded])
            table = next(name for name in encoder.model.state_dict() if name.endswith("token_embedding.weight"))
            asked = {"input_ids": ids, "output_hidden_states": True}
            output = functional_call(encoder.model, {table: torch.cat([encoder.table, rows])}, (), asked)
            last = output.last_hidden_state if encoder.layer == -1 else output.hidden_states[encoder.layer]
            states.append(last.flatten(0, 1))
            if encoder.pooled:
                pooled = encoder.model.text_projection(output.last_hidden_state[0, columns.index("end")])
        return torch.cat(states, dim=-1), pooled, columns


class Pass:
    """A prediction, and by layer the self-attention outputs and cross-attention maps."""

    def __init__(self, unet: Any, noisy: Tensor, batch: list[Any], texts: list[Any]) -> None:
        hidden, pooled, self.columns = zip(*texts, strict=True)
        sizes = torch.tensor([sample.size_ids for sample in batch])
        extra = None if pooled[0] is None else {"text_embeds": torch.stack(pooled), "time_ids": sizes}
        outputs: dict[str, Tensor] = {}
        hooks = [
            module.register_forward_hook(lambda *call, path=path: outputs.__setitem__(path, call[2]))
            for path, module in unet.named_modules()
        ]
        times = torch.tensor([sample.timestep for sample in batch])
        self.prediction = unet(noisy, times, torch.stack(hidden), added_cond_kwargs=extra).sample
        for hook in hooks:
            hook.remove()
        self.features = {path: output for path, output in outputs.items() if path.endswith("attn1")}
        self.maps: dict[str, Tensor] = {}
        for path in (path for path in outputs if path.endswith("attn2")):
            heads = unet.get_submodule(path).heads
            q, k = (outputs[f"{path}.{end}"].unflatten(2, (heads, -1)).transpose(1, 2) for end in ("to_q", "to_k"))
            self.maps[path] = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]), dim=-1)


def stabilization(tuned: Pass, prior: Pass, apt: Any) -> Tensor:
    """L_mu + L_sigma: moments of self-attention outputs over positions, per channel, layer and sample."""
    found: list[Tensor] = []
    for path in (path for path in tuned.features if path.startswith(PARTS[apt.dist_layers])):
        for a, b in zip(tuned.features[path], prior.features[path], strict=True):  # (positions, channels)
            mu = (a.mean(0) - b.mean(0)).square().mean()
            sigma = (a.std(0, correction=0) - b.std(0, correction=0)).square().mean()
            found.append((mu + sigma) / (b.var(0, correction=0).mean() + 1e-6 if apt.dist_mode == "relative" else 1))
    return torch.stack(found).mean()


def alignment(tuned: Pass, prior: Pass, apt: Any, weights: list[float]) -> Tensor:
    """L_attn: change of the cross-attention maps, positions of one column added up. `weights`: of the samples."""
    found: list[Tensor] = []
    for path in (path for path in tuned.maps if path.startswith(PARTS[apt.attn_layers])):
        for i, weight in enumerate(weights):
            moved: dict[str, Any] = defaultdict(float)  # by column, (heads, positions)
            for one, sign in ((tuned, 1), (prior, -1)):
                for place, column in enumerate(one.columns[i]):
                    moved[column] = moved[column] + sign * one.maps[path][i, :, :, place]
            found.append(weight * torch.stack(list(moved.values())).square().sum(0).mean())
    return torch.stack(found).mean()


def denoising(error: Tensor, batch: list[Any]) -> Tensor:
    """The mean of squared errors (N, C, h, w), each weighted by its sample's mask: (N,)."""
    masks = torch.stack([torch.ones_like(error[0]) * (1 if sample.mask is None else sample.mask) for sample in batch])
    return (masks * error.square()).flatten(1).sum(1) / masks.flatten(1).sum(1)


def noised(batch: list[Any], schedule: Any) -> tuple[Tensor, Tensor, Tensor, Any]:
    """The noisy latents, the noise, what the model should predict, and how a prediction becomes epsilon."""
    x, noise = (torch.stack([getattr(sample, name) for sample in batch]) for name in ("latent", "noise"))
    kept = schedule.alphas_cumprod[[sample.timestep for sample in batch]].view(-1, 1, 1, 1)
    signal, sigma = kept.sqrt(), (1 - kept).sqrt()
    noisy = signal * x + sigma * noise
    if schedule.prediction == "epsilon":
        return noisy, noise, noise, lambda prediction: prediction
    return noisy, noise, signal * noise - sigma * x, lambda prediction: signal * prediction + sigma * noisy


def moved_averages(old: Losses, seen: dict[int, list[list[float]]], ema: float) -> Losses:
    """After a step's samples: a bin moves once, by their mean, and starts there."""
    new = dict(old)
    for b, pairs in seen.items():
        means = [sum(losses) / len(pairs) for losses in zip(*pairs, strict=True)]
        new[b] = [(1 - ema) * e + ema * mean for e, mean in zip(old.get(b, means), means, strict=True)]
    return new


def gamma_of(averages: Losses, apt: Any) -> list[float]:
    gamma = [0.0] * apt.bins
    for b, (prior, tuned) in averages.items():
        exponent = 5 * (prior - tuned) / prior if apt.temperature == "auto" else apt.temperature * (prior - tuned)
        gamma[b] = min(1.0, max(0.0, 1 - math.exp(-exponent)))
    return gamma


def reference(
    parts: Any, config: TrainConfig, initial: dict[str, Tensor], captions: list[str], classes: list[str], drawn: Any
) -> Iterator[dict[str, Any]]:
    """What each step comes to. `drawn`: samples by stream and step; `classes`: the prior-preservation captions."""
    apt, opt, method, rank = config.apt, config.optimizer, config.method, config.adapter.rank
    prior_unet, unet = parts.unet, copy.deepcopy(parts.unet)
    text = Text(parts.text_encoders, config, captions + classes)
    lora = {name: nn.Parameter(weight.clone()) for name, weight in initial.items()}
    ranks, averages = torch.ones(0), Losses()  # ranks: (N, rank), 1 where active in this pass

    def adapted(path: str, x: Tensor, output: Tensor) -> Tensor:
        down, up = lora[f"{path}.lora_A.weight"], lora[f"{path}.lora_B.weight"]
        return output + config.adapter.resolved_alpha / rank * (x @ down.T * ranks[:, None]) @ up.T

    for path in {name.rpartition(".lora_")[0] for name in lora}:
        unet.get_submodule(path).register_forward_hook(lambda _, x, out, path=path: adapted(path, x[0], out))
    shared: Any = {"lr": opt.learning_rate, "betas": (opt.beta1, opt.beta2), "eps": opt.epsilon}
    optimizer = torch.optim.AdamW([*lora.values()], weight_decay=opt.weight_decay, **shared)
    optimizer.add_param_group({"params": text.rows, "lr": opt.embedding_learning_rate, "weight_decay": 0.0})

    def run(net: Any, batch: list[Any], noisy: Tensor, words: list[str], tuned: bool) -> Pass:
        nonlocal ranks
        least = config.adapter.resolved_min_rank if method == "tlora" else rank
        active = [(rank - least) * (1000 - sample.timestep) // 1000 + least for sample in batch]
        ranks = torch.tensor([[float(k < count) for k in range(rank)] for count in active])
        return Pass(net, noisy, batch, [text.encode(words[sample.image], tuned) for sample in batch])

    for step in range(config.steps):
        seen, terms = defaultdict(list), defaultdict(list)
        p_max = apt.p_max if method == "apt" and apt.adaptive_augmentation else 0.0
        p_aug = [min(gamma, p_max) for gamma in gamma_of(averages, apt)]
        optimizer.zero_grad()
        for start in range(0, opt.accumulation * opt.batch_size, opt.batch_size):
            # The two passes: the same noisy latents, other captions.
            batch = drawn["subject"][step][start : start + opt.batch_size]
            noisy, noise, target, to_epsilon = noised(batch, parts.schedule)
            prior, tuned = None, run(unet, batch, noisy, captions, tuned=True)
            if method in ("apt", "dco") and step % apt.lazy_prior == 0:
                with torch.no_grad():
                    prior = run(prior_unet, batch, noisy, captions, tuned=False)

            # The indicator: errors of epsilon, without mask and weight.
            bins = [sample.timestep * apt.bins // 1000 for sample in batch]
            for i, b in enumerate(bins if prior else []):
                errors = [to_epsilon(one.prediction)[i] - noise[i] for one in (prior, tuned) if one]
                seen[b].append([error.square().mean().item() for error in errors])
            gamma = [gamma_of(moved_averages(averages, seen, apt.ema), apt)[b] for b in bins]

            # The total.
            data = denoising(tuned.prediction - target, batch)
            terms["denoising"].append(data.mean())
            if method == "dco" and prior:
                gap = data - denoising(prior.prediction - target, batch)
                data = -nn.functional.logsigmoid(-config.dco_beta * gap)
            if method == "apt" and apt.adaptive_loss_weight:
                data = (1 - torch.tensor(gamma)) * data
            total = data.mean()
            if method == "apt" and prior:
                terms["stabilization"].append(stabilization(tuned, prior, apt))
                terms["alignment"].append(alignment(tuned, prior, apt, [1.0 for _ in batch]))
                share = step / (config.steps - 1) if apt.attn_schedule == "linear" else 1.0
                course = gamma if apt.attn_schedule == "indicator" else [share for _ in batch]
                total = total + apt.lazy_prior * apt.dist_weight * terms["stabilization"][-1]
                total = total + apt.lazy_prior * apt.attn_weight * alignment(tuned, prior, apt, course)
            if "preservation" in drawn:
                batch = drawn["preservation"][step][start : start + opt.batch_size]
                noisy, _, target, _ = noised(batch, parts.schedule)
                error = run(unet, batch, noisy, classes, tuned=False).prediction - target
                terms["prior_preservation"].append(denoising(error, batch).mean())
                total = total + config.data.prior_preservation_weight * terms["prior_preservation"][-1]
            terms["loss"].append(total)
            (total / opt.accumulation).backward()

        averages = moved_averages(averages, seen, apt.ema)
        norm = nn.utils.clip_grad_norm_([*lora.values(), *text.rows], opt.max_grad_norm or math.inf)
        optimizer.step()
        for row, length in zip(text.rows, text.norms, strict=True):
            row.data.mul_(length / row.data.norm(dim=1, keepdim=True))
        terms = {name: torch.stack(found).mean().item() for name, found in terms.items()}
        yield {**terms, "grad_norm": norm.item(), "gamma": gamma_of(averages, apt), "p_aug": p_aug}
    yield {"lora": lora, "rows": text.rows if text.learned else []}
