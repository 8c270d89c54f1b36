"""APT Attention Align Preview: where a model and its tuned version look for each word of a prompt, side by side."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..apt_train.errors import InputError
from .checks import check_widgets
from .host import attention, preview_latent
from .wires import AptRun, AptRunWire

if TYPE_CHECKING:
    from .prompt_columns import Columns, Texts

MAPS, OVER = "maps", "over the picture"
PER_ROW, TEXT_SIZE = 6, 20  # legible when the sheet is shown about 450 pixels wide, as on a node


class APTAttentionAlignPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="APTAttentionAlignPreview",
            display_name="APT Attention Align Preview",
            category="training/APT",
            description=(
                "Shows where a model looks for each word of a prompt before and after tuning. A tuned model that "
                "still reads the rest of a prompt keeps its attention on it. An overfitted one tends to dim every word "
                "but the subject. Works for any two versions of one SD1.5 or SDXL model, also with LoRAs made "
                "elsewhere."
            ),
            search_aliases=["attention map", "cross attention", "compare lora", "overfitting", "DAAM", "heat map"],
            is_output_node=True,
            inputs=_inputs(),
            outputs=[
                io.Image.Output(
                    "tiles",
                    tooltip="One picture: for each token the prior's map, the tuned model's and the difference.",
                ),
                io.Float.Output(
                    "alignment",
                    tooltip=(
                        "How alike the two models' attention is, from 0 to 1. It is one minus half the summed absolute "
                        "difference over all tokens, averaged over positions, heads and layers. 1 means equal."
                    ),
                ),
                io.String.Output(
                    "table",
                    tooltip="The score, what each model read, and for each token its mean attention in both, as text.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, **inputs: Any) -> bool:
        """True, or an InputError that the host shows on the node before anything runs. Wired inputs are None here."""
        from .prompt_columns import Texts

        check_widgets(inputs, cls.define_schema().inputs)
        _require_one_start(*("wired" if name in inputs else None for name in ("image", "vae", "latent")))
        _require_picture(inputs.get("draw"), "image" in inputs)
        texts: dict[str, Any] = {name: inputs.get(name) for name in ("prompt", "trigger", "class_word")}
        if "run" not in inputs and None not in texts.values():
            Texts.of(**texts)
        return True

    @classmethod
    def execute(
        cls, model: Any, tuned: Any, clip: Any, prompt: str, trigger: str, class_word: str, noise_level: float,
        layers: str, tokens: str, seed: int, image: Tensor | None = None, vae: Any = None,
        latent: dict[str, Any] | None = None, run: AptRun | None = None, tuned_clip: Any = None, draw: str = MAPS,
    ) -> io.NodeOutput:  # fmt: skip
        from ..apt_train.rng import generator
        from ..apt_train.wording import counted
        from .host.loras import require_without, with_any_lora
        from .host.prompt_reading import read_prompt
        from .prompt_columns import Texts, choose, match

        attention.require_pair(model, model if isinstance(tuned, dict) else tuned)
        texts = Texts.of(prompt, *_subject(trigger, class_word, run))
        read = partial(read_prompt, clip)
        columns = match(texts, read)
        shown = choose(columns, tokens, texts, read)
        compared = not isinstance(tuned, dict) and tuned_clip in (None, clip)  # else the text encoders may differ
        remarks = attention.remarks_on(model, tuned) if compared else []
        if isinstance(tuned, dict):
            require_without(model, [tuned])
            tuned, clip_of_lora, added = with_any_lora(model, clip, tuned)
            if not added:
                raise InputError("The LoRA on tuned fits no layer of the model: wire the model that it was trained on.")
            tuned_clip = tuned_clip or clip_of_lora
        start = _start(model, image, vae, latent)
        noise = torch.randn(start.shape, generator=generator(seed, "attention preview"))
        view = attention.View(start, noise, attention.sigma_at(model, noise_level), seed)
        maps = _both(model, tuned, clip, tuned_clip or clip, texts, view, columns, layers)
        on = "" if start.any() else ", on plain noise"
        settings = f"noise level {noise_level:.2f}{on}; {layers}, {counted(len(maps[0]), 'layer')}"
        return _shown(
            cls, maps, columns, shown, [settings, *texts.sentences, *remarks], start, image, over=draw == OVER
        )


def _inputs() -> list[Any]:
    return [
        io.Model.Input("model", tooltip="The prior: the model as it was before tuning."),
        io.MultiType.Input(
            "tuned",
            [io.Model, io.LoraModel],
            tooltip=(
                "The tuned model: a MODEL with a LoRA on it, from APT Train or any LoRA loader. Or a LORA_MODEL, "
                "which is put on the model and the clip at full strength."
            ),
        ),
        io.Clip.Input("clip", tooltip="The text encoder that reads the prompt for both models."),
        io.Image.Input(
            "image",
            optional=True,
            tooltip=(
                "A picture for both models to look at, for example one of the subject; needs vae. The first of a "
                "batch counts; larger than the model's own size it is shrunk. Without image and latent both look at "
                "plain noise."
            ),
        ),
        io.Vae.Input("vae", optional=True, tooltip="Encodes image. Not needed for a latent."),
        io.Latent.Input(
            "latent",
            optional=True,
            tooltip="Instead of image: a latent, for example a sampler's result. The first of a batch counts.",
        ),
        AptRunWire.Input(
            "run",
            optional=True,
            tooltip="A run of APT Train: fills trigger and class_word where they are empty.",
        ),
        io.Clip.Input(
            "tuned_clip",
            optional=True,
            tooltip=(
                "Reads the prompt for the tuned model, where its LoRA changes the text encoder too: the CLIP output "
                "of its LoRA loader. Empty: clip reads for both."
            ),
        ),
        io.String.Input(
            "prompt",
            multiline=True,
            default="a photo of {subject} on the beach",
            tooltip=(
                "What both models read. {subject} stands for the trigger in the tuned model's text and for the "
                "class word in the prior's; without {subject} both read the same."
            ),
        ),
        io.String.Input(
            "trigger",
            default="",
            tooltip=(
                "What the tuned model reads for {subject}, for example embedding:my_toy or sks toy. Empty: the "
                "run's; without a run, the class word."
            ),
        ),
        io.String.Input(
            "class_word",
            default="",
            tooltip=(
                "What the prior reads for {subject}: the kind of thing it is, for example toy. Empty: the run's; "
                "without a run, the trigger."
            ),
        ),
        io.Float.Input(
            "noise_level",
            default=0.5,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip=(
                "How noisy the picture is that both models see, as a fraction of the schedule. 1 is where sampling "
                "starts and layout is set. 0 is the clean picture."
            ),
        ),
        io.Combo.Input(
            "layers",
            options=list(attention.LAYERS),
            default="decoder",
            tooltip=(
                "Which cross-attention is looked at: the decoder's, as training aligns by default; the middle's too; "
                "or all."
            ),
        ),
        io.String.Input(
            "tokens",
            default="",
            tooltip=(
                "Which words to show, separated by commas, for example beach, {subject}, <rest>. Empty: all. The "
                "score always counts all."
            ),
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=io.ControlAfterGenerate.fixed,
            tooltip="Seed of the noise, which is the same for both models.",
        ),
        io.Combo.Input(
            "draw",
            options=[MAPS, OVER],
            default=MAPS,
            optional=True,
            tooltip=(
                "maps: each map by itself, which shows small differences best. over the picture: on top of image, "
                "which shows through where there is little attention."
            ),
        ),
    ]


def _subject(trigger: str, class_word: str, run: AptRun | None) -> tuple[str, str]:
    if run is None:
        return trigger, class_word
    return trigger.strip() or run.trigger, class_word.strip() or run.class_word


def _require_one_start(image: Any, vae: Any, latent: Any) -> None:
    if image is not None and latent is not None:
        raise InputError("image and latent are both wired, but both models look at one thing: disconnect one of them.")
    if image is not None and vae is None:
        raise InputError("image needs a VAE beside it: wire vae, or wire a latent instead of the picture.")


def _require_picture(draw: str | None, is_wired: bool) -> None:
    if draw == OVER and not is_wired:
        raise InputError(f"draw is {OVER!r}, but no image is wired: wire image, or choose maps.")


def _start(model: Any, image: Tensor | None, vae: Any, latent: dict[str, Any] | None) -> Tensor:
    _require_one_start(image, vae, latent)
    if image is not None:
        return preview_latent.latent_of_picture(image, vae, model)
    if latent is not None:
        return preview_latent.latent_of_wire(latent, model)
    return preview_latent.empty_latent(model)


_Maps = tuple[list[Tensor], list[Tensor]]


def _both(
    model: Any, tuned: Any, clip: Any, tuned_clip: Any, texts: Texts, view: attention.View, columns: Columns,
    layers: str,
) -> _Maps:  # fmt: skip
    """The maps of the prior and of the tuned model, layer by layer."""
    count = len(columns.labels)
    before = after = attention.encode_text(clip, texts.prior)
    if tuned_clip is not clip or texts.tuned != texts.prior:
        after = attention.encode_text(tuned_clip, texts.tuned)
    prior = attention.attention_of(model, before, view, columns.prior, count, layers)
    other = attention.attention_of(tuned, after, view, columns.tuned, count, layers)
    if {layer: maps.shape for layer, maps in prior.items()} != {layer: maps.shape for layer, maps in other.items()}:
        raise InputError("The two models have other layers: wire two versions of one model.")
    if not all(torch.isfinite(maps).all() for maps in [*prior.values(), *other.values()]):
        raise InputError("The attention holds values that are not numbers: run the model in bf16 or fp32.")
    return list(prior.values()), [other[layer] for layer in prior]


def _shown(
    cls: type[io.ComfyNode], maps: _Maps, columns: Columns, shown: list[int], says: list[str], start: Tensor,
    image: Tensor | None, *, over: bool,
) -> io.NodeOutput:  # fmt: skip
    from ..apt_train.report.attention_tiles import attention_tiles
    from ..apt_train.training.capture import merge_layers
    from .attention_table import compare, table
    from .host.pictures import pil_image, shown_on_node

    comparison = compare(*maps)
    heading = [f"alignment {comparison.alignment:.4f} (1: equal); {says[0]}", *says[1:]]
    aspect = start.shape[2] / start.shape[3]
    prior, tuned = (merge_layers([layer.mean(dim=0) for layer in side], aspect)[shown] for side in maps)
    labels = [columns.labels[i] for i in shown]
    picture = None if image is None else pil_image(image[0])
    sheet = attention_tiles(
        (prior, tuned), labels, picture, heading=heading, per_row=PER_ROW, text_size=TEXT_SIZE, over=over
    )
    tiles, on_node = shown_on_node(sheet, cls)
    text = table(comparison, columns.labels, shown, heading)
    return io.NodeOutput(tiles, comparison.alignment, text, ui=on_node)
