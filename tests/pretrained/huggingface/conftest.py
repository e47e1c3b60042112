"""Small models of the real classes, saved as the hub keeps them: random, but lively, so that inputs matter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from sfumato.pretrained.huggingface._snapshot import library
from sfumato.pretrained.interfaces import Images

TEMPLATE = (
    "{% for turn in messages %}{% if turn.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<{{ turn.role }}>{% if turn.content is string %}{{ turn.content }}{% else %}{% for part in turn.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPECIAL = ("<pad>", "<s>", "</s>", "<user>", "<assistant>", "<image>")


class Hf:
    """The two libraries, with everything quiet."""

    def __init__(self) -> None:
        self.transformers: Any = library("transformers")

    @property
    def diffusers(self) -> Any:
        return library("diffusers")


@pytest.fixture(scope="session")
def hf() -> Hf:
    return Hf()


def lively(model: Any, scale: float = 0.25, seed: int = 1) -> Any:
    """The model with weights that make its outputs depend on its inputs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.normal_(0, scale, generator=generator)
    return model.eval()


def byte_tokenizer(hf: Hf, framed: bool = False) -> Any:
    """One token a byte, and some special ones; `framed`: one before and one after each text, as BERT has them."""
    signs = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({sign: number for number, sign in enumerate(signs)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if framed:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return hf.transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<user>", "<assistant>", "<image>"],
        model_max_length=512,
    )


def clip_tokenizer(hf: Hf) -> Any:
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    signs = [*signs, *(f"{sign}</w>" for sign in signs), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {sign: number for number, sign in enumerate(signs)}
    return hf.transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def llama_settings(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip


def clip_text_settings(**changes: Any) -> dict[str, Any]:
    return {
        "vocab_size": 514, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "projection_dim": 32, "bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513,
    } | changes  # fmt: skip


VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION |= {"image_size": 32, "patch_size": 8}
SMALL = {"size": {"height": 32, "width": 32}, "crop_size": {"height": 32, "width": 32}}

Saved = Callable[[str], Path]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory, hf: Hf) -> Saved:
    """Builds a model at its first use and gives its folder."""
    root = tmp_path_factory.mktemp("models")

    def folder(name: str) -> Path:
        place = root / name
        if not place.exists():
            with torch.random.fork_rng():
                torch.manual_seed(0)
                globals()[f"save_{name}"](hf, place)
        return place

    return folder


def save_blip(hf: Hf, place: Path) -> None:
    t = hf.transformers
    text = {
        "vocab_size": 262,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "encoder_hidden_size": 32,
    }
    text |= {"num_attention_heads": 4, "bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2, "pad_token_id": 0}
    text |= {"max_position_embeddings": 128}
    model = t.BlipForConditionalGeneration(
        t.BlipConfig(text_config=text, vision_config=VISION, image_text_hidden_size=32)
    )
    lively(model).save_pretrained(place)
    pixels = t.BlipImageProcessorPil(size=SMALL["size"])
    t.BlipProcessor(pixels, byte_tokenizer(hf, framed=True)).save_pretrained(place)


def save_llava(hf: Hf, place: Path) -> None:
    t = hf.transformers
    tokenizer = byte_tokenizer(hf)
    config = t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(**VISION), text_config=t.LlamaConfig(**llama_settings(tokenizer)),
        image_token_index=SPECIAL.index("<image>"), vision_feature_layer=-1,
    )  # fmt: skip
    lively(t.LlavaForConditionalGeneration(config)).save_pretrained(place)
    t.LlavaProcessor(
        t.CLIPImageProcessorPil(**SMALL), tokenizer, patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATE,
    ).save_pretrained(place)  # fmt: skip


def save_llama(hf: Hf, place: Path) -> None:
    t = hf.transformers
    tokenizer = byte_tokenizer(hf)
    tokenizer.chat_template = TEMPLATE
    model = lively(t.LlamaForCausalLM(t.LlamaConfig(**llama_settings(tokenizer))))
    model.generation_config.update(do_sample=True, top_k=1, repetition_penalty=5.0)  # a taste that must not show
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)


def save_clip(hf: Hf, place: Path) -> None:
    t = hf.transformers
    config = t.CLIPConfig(text_config=clip_text_settings(), vision_config=VISION, projection_dim=24)
    lively(t.CLIPModel(config)).save_pretrained(place)
    t.CLIPProcessor(t.CLIPImageProcessorPil(**SMALL), clip_tokenizer(hf)).save_pretrained(place)


def save_dinov2(hf: Hf, place: Path) -> None:
    t = hf.transformers
    config = t.Dinov2Config(**VISION, mlp_ratio=2)
    lively(t.Dinov2Model(config)).save_pretrained(place)
    t.BitImageProcessorPil(**SMALL).save_pretrained(place)


def save_dino(hf: Hf, place: Path) -> None:
    """As DINO's first version: weights without a pooling layer."""
    t = hf.transformers
    lively(t.ViTModel(t.ViTConfig(**VISION), add_pooling_layer=False)).save_pretrained(place)
    t.ViTImageProcessorPil(size=SMALL["size"]).save_pretrained(place)


def save_resnet(hf: Hf, place: Path) -> None:
    t = hf.transformers
    config = t.ResNetConfig(embedding_size=16, hidden_sizes=[16, 40], depths=[1, 1])
    lively(t.ResNetModel(config)).save_pretrained(place)
    t.ConvNextImageProcessorPil(size={"shortest_edge": 32}).save_pretrained(place)


def save_sentences(hf: Hf, place: Path) -> None:
    t = hf.transformers
    tokenizer = byte_tokenizer(hf, framed=True)
    config = t.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=128, pad_token_id=0,
    )  # fmt: skip
    lively(t.BertModel(config, add_pooling_layer=False)).save_pretrained(place)
    tokenizer.save_pretrained(place)


def unet(hf: Hf, **changes: Any) -> Any:
    settings = {
        "block_out_channels": (32, 64), "layers_per_block": 1, "sample_size": 8, "in_channels": 4, "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "cross_attention_dim": 32, "norm_num_groups": 8,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 8, "use_linear_projection": True,
    }  # fmt: skip
    return lively(hf.diffusers.UNet2DConditionModel(**settings | changes), 0.1)


def autoencoder(hf: Hf, blocks: int) -> Any:
    return lively(
        hf.diffusers.AutoencoderKL(
            block_out_channels=(16,) * blocks, down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks, latent_channels=4, norm_num_groups=8, scaling_factor=0.13,
        ),
        0.1,
    )  # fmt: skip


def save_sdxl(hf: Hf, place: Path) -> None:
    t, d = hf.transformers, hf.diffusers
    tokenizer = clip_tokenizer(hf)
    d.StableDiffusionXLPipeline(
        vae=autoencoder(hf, 4),
        text_encoder=lively(t.CLIPTextModel(t.CLIPTextConfig(**clip_text_settings()))),
        text_encoder_2=lively(t.CLIPTextModelWithProjection(t.CLIPTextConfig(**clip_text_settings())), seed=2),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet(
            hf, addition_embed_type="text_time", addition_time_embed_dim=8, transformer_layers_per_block=(1, 1),
            projection_class_embeddings_input_dim=6 * 8 + 32, cross_attention_dim=64,
        ),
        scheduler=d.EulerAncestralDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing"
        ),
    ).save_pretrained(place)  # fmt: skip


def save_x4(hf: Hf, place: Path) -> None:
    t, d = hf.transformers, hf.diffusers
    d.StableDiffusionUpscalePipeline(
        vae=autoencoder(hf, 3), unet=unet(hf, in_channels=7, num_class_embeds=100), tokenizer=clip_tokenizer(hf),
        text_encoder=lively(t.CLIPTextModel(t.CLIPTextConfig(**clip_text_settings()))),
        low_res_scheduler=d.DDPMScheduler(), scheduler=d.DDIMScheduler(prediction_type="v_prediction"),
    ).save_pretrained(place)  # fmt: skip


def save_x2(hf: Hf, place: Path) -> None:
    t, d = hf.transformers, hf.diffusers
    down, up = "KCrossAttnDownBlock2D", "KCrossAttnUpBlock2D"
    model = d.UNet2DConditionModel(
        act_fn="gelu", attention_head_dim=8, norm_num_groups=None, block_out_channels=[32, 32, 64, 64],
        time_cond_proj_dim=160, conv_in_kernel=1, conv_out_kernel=1, cross_attention_dim=32, in_channels=8,
        down_block_types=("KDownBlock2D", down, down, down), mid_block_type=None, only_cross_attention=False,
        out_channels=5, resnet_time_scale_shift="scale_shift", time_embedding_type="fourier",
        timestep_post_act="gelu", up_block_types=(up, up, up, "KUpBlock2D"),
    )  # fmt: skip
    d.StableDiffusionLatentUpscalePipeline(
        vae=autoencoder(hf, 4), unet=lively(model, 0.1), tokenizer=clip_tokenizer(hf),
        text_encoder=lively(t.CLIPTextModel(t.CLIPTextConfig(**clip_text_settings(hidden_act="quick_gelu")))),
        scheduler=d.EulerDiscreteScheduler(prediction_type="sample"),
    ).save_pretrained(place)  # fmt: skip


@pytest.fixture(scope="session")
def images() -> Images:
    """Seven pictures of colour and noise, `(7, 3, 40, 40)`."""
    draws = np.random.default_rng(3)
    flat = draws.integers(0, 256, (7, 3, 1, 1))
    return (flat // 2 + draws.integers(0, 128, (7, 3, 40, 40))).astype(np.uint8)
