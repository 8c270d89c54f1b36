"""The UNet's configuration out of tensor shapes, against the published ones, at full size without memory."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from apt_train.errors import InputError
from apt_train.families.reading.meta_build import renamed
from apt_train.families.sd.ldm_unet import original_layers, read_layout, unet_config
from apt_train.families.sd.published import family_of, load_family
from tests.tiny_checkpoint import unet_to_ldm

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"
XL = dict(
    sample_size=128, block_out_channels=(320, 640, 1280), attention_head_dim=(5, 10, 20), cross_attention_dim=2048,
    down_block_types=(PLAIN, CROSS, CROSS), up_block_types=(CROSS_UP, CROSS_UP, PLAIN_UP), use_linear_projection=True,
    addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
)  # fmt: skip
PUBLISHED = {
    "sd15": dict(
        sample_size=64, block_out_channels=(320, 640, 1280, 1280), attention_head_dim=8, cross_attention_dim=768
    ),
    "sdxl": {**XL, "transformer_layers_per_block": (1, 2, 10)},
    "koala-700m": {**XL, "transformer_layers_per_block": (1, 2, 5), "layers_per_block": 1, "mid_block_type": None},
    "koala-1b": {**XL, "transformer_layers_per_block": (1, 2, 6), "layers_per_block": 1},
    "segmind-vega": {**XL, "transformer_layers_per_block": (1, 1, 2), "mid_block_type": "UNetMidBlock2D"},
    "ssd-1b": {
        **XL, "transformer_layers_per_block": [1, [2, 2], [4, 4]], "mid_block_type": "UNetMidBlock2D",
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
    },
}  # fmt: skip


def ldm_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    return {name: tuple(tensor.shape) for name, tensor in unet_to_ldm(unet).items()}


def read_config(shapes, name: str) -> dict:
    return unet_config(shapes, read_layout(shapes), load_family("sd15" if name == "sd15" else "sdxl"))


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_configuration_is_the_published_one(name):
    config = read_config(ldm_shapes(PUBLISHED[name]), name)
    with torch.device("meta"):
        ours, published = UNet2DConditionModel(**config), UNet2DConditionModel(**PUBLISHED[name])
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in published.state_dict().items()}
    heads = [[m.heads for m in unet.modules() if hasattr(m, "heads")] for unet in (ours, published)]
    assert heads[0] == heads[1]
    differing = {key for key in published.config if _plain(ours.config[key]) != _plain(published.config[key])}
    nested = {"transformer_layers_per_block"} if name == "ssd-1b" else set()  # [2, 2] there, 2 here
    assert differing <= nested | {"_use_default_values"}
    assert family_of(ours.config, 1 if name == "sd15" else 2, 8).name == ("sd15" if name == "sd15" else "sdxl")


def _plain(value):
    """Lists and tuples alike; one number for a row of equal ones."""
    if isinstance(value, (list, tuple)):
        value = [_plain(item) for item in value]
        return value[0] if value and all(item == value[0] for item in value) else value
    return value


def test_every_name_finds_its_place():
    shapes = ldm_shapes(PUBLISHED["ssd-1b"])
    with torch.device("meta"):
        ours, published = (UNet2DConditionModel(**how) for how in (read_config(shapes, "ssd-1b"), PUBLISHED["ssd-1b"]))
    layers = original_layers(ours)
    assert {renamed(name, layers) for name in shapes} == set(published.state_dict())
    assert renamed("diffusion.unknown.weight", layers) == "diffusion.unknown.weight"


def test_shapes_diffusers_cannot_build_are_refused():
    shapes = ldm_shapes(PUBLISHED["koala-1b"])
    deeper = {
        name.replace("middle_block.1.transformer_blocks.5.", "middle_block.1.transformer_blocks.7."): s
        for name, s in shapes.items()
    }
    with pytest.raises(InputError, match="middle block of depth 8"):
        read_config(deeper, "koala-1b")
    gap = {name: shape for name, shape in shapes.items() if not name.startswith("output_blocks.0.1.")}
    with pytest.raises(InputError, match="only some blocks have attention"):
        read_config(gap, "koala-1b")
    short = {name: shape for name, shape in shapes.items() if not name.startswith("output_blocks.5.")}
    with pytest.raises(InputError, match="mirror the encoder"):
        read_config(short, "koala-1b")


def test_family_needs_its_whole_shape():
    xl = {"addition_embed_type": "text_time", "cross_attention_dim": 2048, "sample_size": 128}
    assert family_of(xl, 2, 8).name == "sdxl" and family_of(xl, 2, 8).resolution == 1024
    assert family_of(xl, 1, 8).name == "custom"
    assert family_of({"cross_attention_dim": 768, "sample_size": 64}, 1, 8).name == "sd15"
    assert family_of({"cross_attention_dim": 1024, "sample_size": 96}, 1, 8).name == "sd2-768"
    assert family_of({"cross_attention_dim": 1024, "sample_size": 64}, 1, 8).name == "sd2"
    assert family_of({"cross_attention_dim": 1024, "sample_size": 64}, 2, 8).name == "custom"
    assert family_of({"cross_attention_dim": 64, "sample_size": [16, 32]}, 1, 4).resolution == 64
