"""Settings of Spectral and its presets. Every value is public and fixed before the first touch."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sfumato.methods.labelcheck import LabelCheckConfig
from sfumato.methods.presets import filled
from sfumato.nets.adapters import Trained
from sfumato.nets.autoregressive import Condition, Taste
from sfumato.nets.tokenizer import TokenizerShape
from sfumato.nets.transformer import TransformerShape
from sfumato.privacy.accounting import gaussian_mu
from sfumato.privacy.gradients.engine import groupable, rounding_slack
from sfumato.privacy.plan import Request, SumRequest, TrainingRequest

WARM_START, FINE_TUNING = "warm start", "fine-tuning"

Image = tuple[int, int, int]
"""`(C, H, W)` of a picture."""

RATES: MappingProxyType[Trained, float] = MappingProxyType({"full": 4e-4, "lora": 1e-3, "norms": 3e-3, "head": 1e-3})
"""Peak learning rates by trained set, where none is set; ours."""

PRESETS = MappingProxyType(
    {
        "laptop": {},
        # What is known of the paper: the approximation of an AR-SIT, low-rank adapters, PLD. All numbers are ours.
        "paper": {
            "levels": 3,
            "patch": 2,
            "vocabulary": 8192,
            "width": 1024,
            "layers": 24,
            "heads": 16,
            "condition": "captions",
            "trained": "lora",
            "check": {"share": 0.0},
            "rank": 8,
            "batch": 4096,
            "steps": 1000,
            "clipping": "flat",
            "clip_norm": 0.1,
            "warm_share": 0.0,
            "tokenizer": {"width": 512, "layers": 8, "heads": 8, "steps": 100_000, "batch": 256},
            "pretraining": {"steps": 300_000, "batch": 512, "rate": 3e-4},
            "chunk": 16,
            "detail": "realesrgan-x4plus",
        },
    }
)


def refuse_prompts(prompts: Sequence[str]) -> None:
    """Refuses prompts that are empty, or longer than a line (ValueError)."""
    if isinstance(prompts, str) or any(not text.strip() or len(text.splitlines()) > 1 for text in prompts):
        raise ValueError("prompts must be a list of texts of one line each, none of them empty")


class TokenizerConfig(BaseModel):
    """How the tokenizer learns from public images.

    Attributes:
        width, layers, heads: of its decoder.
        rounds: of k-means, for each codebook.
        patches: most patches that k-means sees.
        steps: of the decoder's training.
        batch: images a step.
        rate: peak of its learning rate.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(128, ge=4)
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    rounds: int = Field(15, ge=1)
    patches: int = Field(100_000, ge=1)
    steps: int = Field(300, ge=0)
    batch: int = Field(32, ge=1)
    rate: float = Field(1e-3, gt=0)


class TokenPretrainingConfig(BaseModel):
    """How the autoregressive model learns from public tokens.

    Attributes:
        steps: of Adam.
        batch: images a step.
        rate: peak of its learning rate.
        coarse_share: share of the steps that see the coarse scale alone; they cost less, and private training goes on
            from there. Where detail is not drawn as tokens, all steps do.
        label_dropout: share of the images shown without their text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(600, ge=0)
    batch: int = Field(64, ge=1)
    rate: float = Field(1e-3, gt=0)
    coarse_share: float = Field(0.5, ge=0, le=1)
    label_dropout: float = Field(0.1, ge=0, le=1)


class SuperResolutionConfig(BaseModel):
    """How detail is learnt from public images and drawn, where diffusion draws it.

    Attributes:
        width: channels of the U-Net at half and at a quarter of the image's sides.
        blocks: residual blocks there.
        steps: of AdamW.
        batch: images a step.
        rate: peak of its learning rate.
        levels: noise levels visited for an image; the network is called twice as often.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: tuple[int, int] = (48, 96)
    blocks: tuple[int, int] = (2, 2)
    steps: int = Field(1000, ge=0)
    batch: int = Field(32, ge=1)
    rate: float = Field(2e-3, gt=0)
    levels: int = Field(12, ge=2)


class ExamplesConfig(BaseModel):
    """How public images are put together, where they are examples of detail.

    Attributes:
        count: most public images that are kept as examples, in memory and with the model.
        window: side of a piece, in tokens; pieces overlap by half.
        choices: nearest examples among which the one is taken that agrees best with its neighbours.
        agreement: weight of that, against the tokens' error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int = Field(8000, ge=1)
    window: int = Field(4, ge=1)
    choices: int = Field(32, ge=1)
    agreement: float = Field(0.3, ge=0)


class TasteConfig(BaseModel):
    """How tokens are drawn; see `sfumato.nets.autoregressive.Taste`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(1.0, ge=0)
    top_k: int = Field(0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    guidance: float = Field(1.0, ge=0)

    def taste(self) -> Taste:
        """The constants."""
        return Taste(**self.model_dump())


class SpectralConfig(BaseModel):
    """Settings of the method; the defaults are the `laptop` preset, made for two cores and images of 32 to 64 pixels.

    Attributes:
        preset: values for whatever is not set; `paper` is as near to the paper as it is known to us.
        levels: of the Haar transform; the private stage sees the image reduced to `1 / 2^levels` of its sides.
        patch: side of a coarse token in pixels of the reduced image.
        vocabulary: codes of each scale.
        width, layers, heads: of the autoregressive model.
        condition: what it is told of an image: "class", a declared class as a number; "text", the class's name as a
            vector of a public text embedder, which lets public classes teach what names mean; "captions", the image's
            own caption as such a vector. Captions of private images are read by private training alone.
        text_embedder: its name in the zoo.
        prompts: public texts under which images are drawn, where captions are told; by default captions of public
            images.
        tokenizer: its training.
        pretraining: of the autoregressive model.
        trained: what private training moves; "auto" takes the largest set that the budget can carry (`trained_set`).
        rank: of low-rank adapters.
        noise_limit: of `trained_set`.
        batch: expected records per step.
        rate_without_size: sampling rate where no size is declared.
        steps: of private training.
        clip_norm: bound on a record's gradient.
        clipping: "automatic" scales every gradient to about the bound, "flat" only longer ones.
        learning_rate: peak of Adam's; by default that of the trained set in `RATES`.
        final_rate: share of the peak at the end, after a cosine fall.
        average: decay of the moving average of the weights that is released.
        label_dropout: share of the records shown without class or caption; guidance needs some.
        warm_share: share of mu^2 that the warm start may spend; 0 leaves it out.
        warm_attempts: attempts bought for the warm start; one is a spare.
        warm_steps: of training on what the warm start chooses.
        warm_batch: images a step of it.
        warm_rate: its learning rate.
        warm_source: "public" chooses public images that look like the private ones in the coarse band, "model" draws
            from the released class models, "auto" decides by how many public images are left.
        chunk: images per forward pass, public and private; changes speed and memory only.
        check: the private classifier that says which class a thumbnail shows.
        sampler: how coarse tokens are drawn.
        detail: "examples" for pieces of public images, "diffusion" for super-resolution learnt from them, "tokens" for
            detail scales behind the coarse tokens, "lanczos", an upscaler of the zoo, or one of `diffusers`
            ("huggingface:NAME").
        examples: of "examples".
        superresolution: of "diffusion".
        detail_sampler: how detail tokens are drawn.
        enlarge: what makes released images larger than the run's shape: None, "lanczos" or an upscaler as in `detail`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Literal["laptop", "paper"] = "laptop"
    levels: int = Field(2, ge=1, le=6)
    patch: int = Field(2, ge=1, le=16)
    vocabulary: int = Field(512, ge=2, le=65_536)
    width: int = Field(192, ge=4)
    layers: int = Field(4, ge=1)
    heads: int = Field(6, ge=1)
    condition: Literal["class", "text", "captions"] = "class"
    text_embedder: str = "minilm"
    prompts: tuple[str, ...] | None = Field(None, min_length=1)
    tokenizer: TokenizerConfig = TokenizerConfig()
    pretraining: TokenPretrainingConfig = TokenPretrainingConfig()
    trained: Literal["auto", "full", "lora", "norms", "head"] = "auto"
    rank: int = Field(8, ge=1)
    noise_limit: float = Field(0.15, gt=0)
    batch: int = Field(1024, ge=1)
    rate_without_size: float = Field(0.03, gt=0, le=1)
    steps: int = Field(100, ge=1, le=1_000_000)
    clip_norm: float = Field(1.0, gt=0)
    clipping: Literal["flat", "automatic"] = "automatic"
    learning_rate: float | None = Field(None, gt=0)
    final_rate: float = Field(0.05, ge=0, le=1)
    average: float = Field(0.9, ge=0, lt=1)
    label_dropout: float = Field(0.1, ge=0, lt=1)
    warm_share: float = Field(0.08, ge=0, lt=1)
    warm_attempts: int = Field(2, ge=1)
    warm_steps: int = Field(150, ge=0)
    warm_batch: int = Field(64, ge=1)
    warm_rate: float = Field(3e-4, gt=0)
    warm_source: Literal["auto", "public", "model"] = "auto"
    chunk: int = Field(128, ge=1)
    check: LabelCheckConfig = LabelCheckConfig()
    sampler: TasteConfig = TasteConfig()
    detail: str = "examples"
    examples: ExamplesConfig = ExamplesConfig()
    superresolution: SuperResolutionConfig = SuperResolutionConfig()
    detail_sampler: TasteConfig = TasteConfig()
    enlarge: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _filled_by_preset(cls, given: Any) -> Any:
        return filled(PRESETS, given, "laptop")

    @model_validator(mode="after")
    def _consistent(self) -> SpectralConfig:
        for width, heads in ((self.width, self.heads), (self.tokenizer.width, self.tokenizer.heads)):
            if width % heads:
                raise ValueError(f"a width of {width} cannot be shared by {heads} heads; give a multiple")
        if self.prompts is not None and self.condition != "captions":
            raise ValueError("prompts are for models that are told captions; set 'condition' to captions")
        refuse_prompts(self.prompts or ())
        if self.sampler.guidance != 1 and not self.label_dropout:
            raise ValueError("guidance needs a model that knows 'no class'; set 'label_dropout', for example to 0.1")
        return self

    def refuse_sizes(self, image: Image) -> None:
        """Refuses images that scales and patches do not divide (ValueError)."""
        side = self.patch << self.levels
        if image[1] % side or image[2] % side:
            raise ValueError(
                f"images of {image[1]}x{image[2]} pixels cannot be cut into {self.levels} levels with patches of "
                f"{self.patch}: their sides must be multiples of {side}; set spectral.levels or spectral.patch"
            )
        if self.detail == "diffusion" and (image[1] % 4 or image[2] % 4):
            raise ValueError(
                f"images of {image[1]}x{image[2]} pixels cannot get detail by diffusion: their sides must be multiples "
                "of 4; set spectral.detail, for example to tokens"
            )

    @property
    def own_detail(self) -> bool:
        """Whether detail comes from the run's public images, and not from an upscaler."""
        return self.detail in ("examples", "diffusion", "tokens")

    @property
    def decoder_steps(self) -> int:
        """Of the tokenizer's decoder: examples take its place, and codes stand for themselves."""
        return 0 if self.detail == "examples" else self.tokenizer.steps

    def shape(self, image: Image) -> TokenizerShape:
        """The tokenizer for images `(C, H, W)`."""
        self.refuse_sizes(image)
        decoder = TransformerShape(self.tokenizer.width, self.tokenizer.layers, self.tokenizer.heads)
        return TokenizerShape(image, self.levels, self.patch, self.vocabulary, decoder)

    def transformer(self) -> TransformerShape:
        """The autoregressive model, but for its positions."""
        return TransformerShape(self.width, self.layers, self.heads)

    def condition_of(self, classes: int, dimensions: int) -> Condition:
        """What images are drawn from: `classes` declared ones (0: none), texts of `dimensions`."""
        if self.condition == "captions":
            return Condition("text", dimensions)
        if not classes:
            return Condition()
        return Condition("text", dimensions) if self.condition == "text" else Condition("class", classes)

    def sampling_rate(self, size: int | None) -> float:
        """Poisson rate, from public values."""
        return self.rate_without_size if size is None else min(1.0, self.batch / size)

    def requests(self, size: int | None, classes: int) -> tuple[Request, ...]:
        """The touches that the method asks the plan for."""
        requests: list[Request] = []
        if self.warm_share:
            requests.append(SumRequest(WARM_START, 1.0, attempts=self.warm_attempts, share=self.warm_share))
        if self.check.spent(classes):
            requests.append(self.check.request(size))
        return *requests, self.training_request(size)

    def training_request(self, size: int | None) -> TrainingRequest:
        """The main touch."""
        return TrainingRequest(
            FINE_TUNING,
            sampling_rate=self.sampling_rate(size),
            steps=self.steps,
            clip_norm=self.clip_norm,
            slack=rounding_slack(self.batch, groupable(self.batch)),
            clipping=self.clipping,
            grouped=groupable(self.batch),
        )

    def trained_set(self, epsilon: float, delta: float, size: int | None, parameters: dict[Trained, int]) -> Trained:
        """What private training moves, by a public rule.

        All noise of a training taken together, seen as one release of the mean gradient, has standard deviation of at
        least `1 / (mu n)` in units of the bound, where mu is the budget's Gaussian-DP parameter and n the number of
        records; so much if all of them took part in every step, and some times as much in practice. On P parameters its
        norm is `sqrt(P)` times that, against a mean gradient of norm at most 1. Taken is the largest set for which this
        floor stays below `noise_limit`, or the smallest one.

        Args:
            epsilon, delta: of the plan.
            size: declared number of records; without one, as many as make the expected batch.
            parameters: by set.
        """
        if self.trained != "auto":
            return self.trained
        records = size or self.batch / self.rate_without_size
        most = (self.noise_limit * gaussian_mu(epsilon, delta) * records) ** 2
        by_size: list[Trained] = sorted(get_args(Trained), key=lambda kind: -parameters[kind])
        return next((kind for kind in by_size if parameters[kind] <= most), by_size[-1])

    def expected_batch(self, size: int | None) -> float:
        """Records of a step, on average; public."""
        return self.sampling_rate(size) * size if size else float(self.batch)
