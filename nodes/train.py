"""`APT Train`: from a checkpoint's wires and a batch of images to the model with its new LoRA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from ..apt_train.presets import PRESETS, PUBLISHED
from .checks import check_train, is_wired, known, single
from .settings import METHODS, Setting, train_config, widget
from .wires import AptOptions, AptOptionsWire, AptRunWire

if TYPE_CHECKING:
    from ..apt_train.config import TrainConfig
    from ..apt_train.data.dataset import ImageSet

MAIN = ("steps", "rank", "learning_rate", "resolution", "batch_size", "caption_template")
ON_TRAIN = {"identifier", "method", "seed", "class_word", *MAIN}  # not on options nodes


class APTTrain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="APTTrain",
            display_name="APT Train",
            category="training/APT",
            description="Teaches the model one subject from 3 to 10 pictures and holds back where it begins to "
            "overfit. Cancel keeps the work: queue again to continue.",
            search_aliases=["dreambooth", "train lora", "personalize", "finetune", "adaptive personalized training"],
            is_input_list=True,
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input(
                    "model", lazy=True, tooltip="The model to train on, SD1.5 or SDXL. LoRAs on it are baked in."
                ),
                io.Clip.Input("clip", lazy=True, tooltip="Its text encoders, as deep as CLIP Set Last Layer says."),
                io.Vae.Input(
                    "vae", lazy=True, tooltip="Its VAE: turns the pictures into latents, and samples into pictures."
                ),
                io.Image.Input(
                    "images", tooltip="3 to 10 pictures of the subject: a batch, or lists of different sizes."
                ),
                io.String.Input(
                    "subject", default="", placeholder="for example my_toy",
                    tooltip="A name for the subject and its files: letters, digits, _ and -. Empty: "
                    "<class-word>_subject.",
                ),
                widget(Setting("class_word"), placeholder="for example toy"),
                *(widget(Setting(name)) for name in MAIN),
                io.Combo.Input(
                    "method", options=list(METHODS), default="APT",
                    tooltip="APT; plain DreamBooth, DCO (consistency with the prior) and T-LoRA (rank by timestep; its "
                    "LoRA acts with all ranks once saved) to compare with.",
                ),
                widget(Setting("seed"), control_after_generate=io.ControlAfterGenerate.fixed),
                io.Combo.Input(
                    "resume", options=["automatic", "restart"], default="automatic",
                    tooltip="automatic: continue this very run where it was stopped, or load it if it is finished. "
                    "restart: train a finished run again, at every execution; the one that got furthest is kept beside "
                    "it as ..._previous. A cancelled restart continues.",
                ),
                io.String.Input(
                    "captions", optional=True, default="", multiline=True,
                    tooltip="What the pictures show: a wired list, or a line per picture; a single one counts for "
                    "all. Write {subject} or the subject's name where it stands. Without either, the class word is "
                    "taken for it. A caption with none of the three is refused. An empty line takes the caption "
                    "template.",
                ),
                io.Mask.Input(
                    "masks", optional=True,
                    tooltip="Which part of each picture is learned: white counts. Load Image's MASK of a cut-out "
                    "picture is white on the background and would train that: set mask_counts to black in the options.",
                ),
                AptOptionsWire.Input(
                    "options", optional=True,
                    tooltip="Further settings, from the options nodes: APT Method, Adapter, Data and Sample Options.",
                ),
                io.Combo.Input(
                    "preset", options=list(PRESETS), default=PUBLISHED, optional=True,
                    extra_dict={"sets": {preset.name: preset.sets for preset in PRESETS.values()}},
                    tooltip="Settings for a purpose. It sets what is not set by hand, here or in the options. A value "
                    "that equals its widget's default counts as not set. The picture's header says what it has set; "
                    "published sets nothing.",
                ),
                io.String.Input(
                    "sample_prompts", optional=True, default="", multiline=True, placeholder="a {subject} on a beach",
                    tooltip="What the samples show, a line per prompt, with {subject}. Empty: preview_prompts of the "
                    "options or the preset, or the caption template. One more asks for what the pictures never show "
                    "(unseen_prompt in APT Sample Options). Keep the last snapshot that still obeys it. They are drawn "
                    "in training: for a finished run use APT Snapshot Sheet.",
                ),
            ],
            outputs=[
                io.Model.Output("model_out", display_name="MODEL", tooltip="The model with the new LoRA on."),
                io.Clip.Output(
                    "clip_out", display_name="CLIP",
                    tooltip="The same CLIP. Take it from here, so that prompts with the trigger run after training.",
                ),
                io.LoraModel.Output(
                    "lora", display_name="LORA_MODEL", tooltip="The LoRA, for Load LoRA Model and Save LoRA Weights."
                ),
                AptRunWire.Output(
                    "run", display_name="APT_RUN", tooltip="The run, for every other APT node with an input called run."
                ),
                io.LossMap.Output("loss_map", display_name="LOSS_MAP", tooltip="The losses, for Plot Loss Graph."),
                io.String.Output("trigger", display_name="trigger", tooltip="Exactly what a prompt must say."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> list[str | int]:
        """Changes while a published file is missing; then the node runs and writes it again.

        Changes too where a restart has set a run aside: with `--cache-lru` the host may hold that run's result.
        Not with `restart`, where running may mean training again: a file that was moved away is no reason for that.
        (For a wired `resume` the host passes no value here.)
        """
        from .published import missing_files
        from .run_store import times_set_aside

        return [times_set_aside(), *missing_files()] if inputs.get("resume") == ["automatic"] else []

    @classmethod
    def validate_inputs(cls, **inputs: Any) -> bool:
        """True, or an InputError about a widget that the host shows on the node before anything runs."""
        check_train(known(inputs), cls.define_schema().inputs)
        return True

    @classmethod
    def check_lazy_status(cls, **inputs: Any) -> list[str]:
        """The model's wires, requested only after everything else is checked: bad settings load no checkpoint."""
        missing = [name for name in ("model", "clip", "vae") if is_wired(inputs, name)]
        if missing:
            _training_inputs(inputs)
        return missing

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        from .host.components import Wires
        from .host.model import with_lora
        from .host.pictures import image_tensor
        from .run_store import gamma_and_losses
        from .training import Job, finished_run
        from .watch import picture_of

        config, images, prior = _training_inputs(inputs)
        wires = Wires.checked(inputs["model"][0], inputs["clip"][0], inputs["vae"][0])
        restart = inputs["resume"][0] == "restart"
        job = Job(wires, images, prior, config, restart, preset=inputs.get("preset", [PUBLISHED])[0])
        run, published = finished_run(job, cls.hidden.unique_id)
        model = with_lora(wires.model, published.lora)
        picture = picture_of(run, config, job.preset)
        shown = {**ui.PreviewImage(image_tensor(picture), cls=cls).as_dict(), "picture_size": list(picture.size)}
        loss_map = {"loss": gamma_and_losses(run)[1]}
        return io.NodeOutput(model, wires.clip, published.lora, run, loss_map, published.trigger, ui=shown)


def _training_inputs(inputs: dict[str, Any]) -> tuple[TrainConfig, ImageSet, ImageSet | None]:
    """What to learn: settings, pictures with captions and masks, pictures of the class.

    InputError: a setting, caption or mask that cannot be trained with, alone or in combination.
    """
    import torch

    from ..apt_train.text.captions import subject_captions
    from .training import image_set, inverted_masks

    one = single(inputs, "images", "captions", "masks")
    options: AptOptions = one.get("options") or AptOptions({})
    config = train_config(one, options)
    with torch.inference_mode(False):
        images = image_set(inputs["images"], inputs.get("captions"), inputs.get("masks"), options)
        images.notes.extend(inverted_masks(images, options.mask_counts))
        prior = image_set(options.prior_images, None, None, options) if options.prior_images else None
    subject_captions(images, config)
    return config, images, prior
