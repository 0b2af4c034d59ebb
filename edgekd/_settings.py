"""The recipe's tables: every key is a field of a typed model, with its default and its bounds."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgekd._settings_training import (
    AugmentSettings,
    CacheSettings,
    ComputeSettings,
    Section,
    TrainSettings,
    WatchSettings,
)

__all__ = [
    "AssistantSettings",
    "AugmentSettings",
    "BenchSettings",
    "CacheSettings",
    "ComputeSettings",
    "CorrectionSettings",
    "DataSettings",
    "DistillSettings",
    "ExportSettings",
    "FileSettings",
    "LicenceSettings",
    "LossSettings",
    "ModelSettings",
    "QuantizeSettings",
    "Recipe",
    "Section",
    "TeacherSettings",
    "TensorRTSettings",
    "TrainSettings",
    "WatchSettings",
]


class _Member(BaseModel):
    """A table that names a catalog member; its other keys are that member's options."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)

    @property
    def options(self) -> dict[str, Any]:
        """The keys that belong to the member."""
        return dict(self.model_extra or {})


class DataSettings(_Member):
    """The data set (a member of `edgekd list datasets`), its split and its preprocessing."""

    name: str = "digits"
    val_fraction: float = Field(0.1, gt=0.0, lt=1.0, description="share of the training samples kept for validation")
    limit_train: int | None = Field(None, ge=1, description="use only this many training samples")
    size: list[int] | None = Field(None, min_length=2, max_length=2, description="resize to (H, W) pixels")
    mean: list[float] | None = None
    std: list[float] | None = None
    augment: AugmentSettings = AugmentSettings()


class ModelSettings(_Member):
    """A model (a member of `edgekd list models`, or module:function) and its options."""

    model: str
    weights: str | None = Field(None, description="safetensors file, or a state dict that weights_only=True can read")


class TeacherSettings(ModelSettings):
    """The teacher: trained by the recipe, or loaded from `weights`."""

    train: TrainSettings = TrainSettings()


class AssistantSettings(ModelSettings):
    """A network between teacher and student, distilled from those before it; see the method `assistant`."""

    train: TrainSettings | None = Field(None, description="default: that of [distill]")


class LossSettings(_Member):
    """One weighted term of the objective (a member of `edgekd list losses`) and its options."""

    name: str
    weight: float = Field(1.0, ge=0.0)


class DistillSettings(Section):
    """Who learns from whom, by which losses, for how long."""

    method: str = "offline"
    method_options: dict[str, Any] = Field({}, description="the method's own keys, { weighting = 'confidence' }")
    export: str = Field(
        "best", description="of several networks that a method trains: the best on validation, or its name"
    )
    losses: list[LossSettings] = Field(
        [LossSettings(name="cross_entropy", weight=0.1), LossSettings(name="kd", weight=0.9)], min_length=1
    )
    baseline: bool = Field(True, description="train the same student without a teacher too")
    repeats: int = Field(1, ge=1, description="train the student stages with this many seeds; the first goes on")
    cache: CacheSettings | None = Field(None, description="answer from a cache instead of running the teacher")
    train: TrainSettings = TrainSettings()


class CorrectionSettings(_Member):
    """One accuracy tool of post-training quantization (a member of `edgekd list corrections`) and its options."""

    name: str


class QuantizeSettings(Section):
    """From the float student to int8."""

    mode: Literal["qat", "ptq"] = "qat"
    calibrator: str = "mse"
    calibrator_options: dict[str, Any] = Field({}, description="the calibrator's own keys, { percentile = 99.9 }")
    calibration_samples: int = Field(512, ge=1)
    selection: Literal["random", "first", "k_center"] = Field(
        "random", description="which samples: k_center spreads them over the teacher's features"
    )
    corrections: list[CorrectionSettings] = Field(
        [CorrectionSettings(name="bias_correction")], description="accuracy tools of calibration, in this order"
    )
    float_layers: list[str] = Field(
        [], description="layers that stay float, by name or pattern: ['head', 'blocks.0.*']"
    )
    max_drop: float | None = Field(
        None,
        ge=0.0,
        lt=1.0,
        description="largest loss of validation accuracy; layers go back to float until it holds",
    )
    placement_search: bool = Field(False, description="time candidate placements on the target before training")
    reduce_range: bool | Literal["auto"] = Field(
        "auto",
        description="neighbouring weights share 8 bits, so that x86 without VNNI sums exactly; auto looks at this CPU",
    )
    losses: list[LossSettings] | None = Field(None, description="default: those of [distill]")
    epochs: int | None = Field(None, ge=1, description="default: a tenth of the student's epochs, rounded up")
    optimizer: Literal["sgd", "adamw"] = Field(
        "adamw", description="adamw steps are relative to each weight's own gradients, which folding leaves uneven"
    )
    lr: float = Field(2e-4, gt=0.0, description="peak learning rate")
    clip_grad_norm: float | None = Field(1.0, gt=0.0)
    batch_size: int | None = Field(None, ge=1, description="default: the student's")
    ranges: Literal["tracked", "learned"] = Field(
        "tracked", description="follow the batches by a moving average, or learn the scales by gradient (LSQ)"
    )
    scale_rate: float = Field(1.0, gt=0.0, description="learned: rate of the scales over that of the weights")
    dampening: float = Field(0.0, ge=0.0, description="pull weights that swing between two codes to their code")
    freeze_above: float | None = Field(
        None, gt=0.0, lt=1.0, description="turns per step above which a swinging weight is held at its code"
    )
    other_grids: Literal["retrain", "recalibrate"] = Field(
        "retrain",
        description="a further target whose grid cannot hold the first one's codes: train again, or only calibrate",
    )
    freeze_observers_at: float = Field(0.5, ge=0.0, le=1.0, description="fraction of training")


class TensorRTSettings(Section):
    """The TensorRT engine."""

    engine: Literal["auto", "required", "off"] = Field("auto", description="auto: build it if the library is here")
    compute_capability: list[str] = Field(["8.6", "8.9"], description="GPU generations, '8.6' is SM86")
    batch: list[int] = Field([1, 1, 8], min_length=3, max_length=3, description="min, opt, max of the profile")


class LicenceSettings(Section):
    """Under which licences a bundle's parts may be used; what is not stated here, its card says nobody stated."""

    teacher: str | None = Field(None, description="of the teacher's weights, an SPDX name such as 'Apache-2.0'")
    data: str | None = Field(None, description="of the data")
    model: str | None = Field(None, description="of what is shipped")


class ExportSettings(Section):
    """What is shipped."""

    targets: list[str] = Field(["onnxruntime_x86"], min_length=1)
    opset: int = Field(20, ge=18, le=20)
    min_agreement: float = Field(
        0.999, ge=0.0, le=1.0, description="parity gate: top-1 agreement with torch; one sample is always allowed"
    )
    preprocessing: Literal["outside", "inside"] = Field(
        "outside", description="inside: the ONNX file takes uint8 images (B, H, W, C) and normalises them itself"
    )
    licences: LicenceSettings = LicenceSettings()
    tensorrt: TensorRTSettings = TensorRTSettings()


class BenchSettings(Section):
    """The latency protocol and its verdict."""

    device: str = "cpu"
    budget_ms: float = Field(500.0, gt=0.0)
    percentile: float = Field(90.0, gt=0.0, lt=100.0)
    confidence: float = Field(0.99, gt=0.0, lt=1.0)
    batch: int = Field(1, ge=1)
    threads: int = Field(1, ge=1)
    profile: Literal["default", "mobile"] = "default"
    queries: int = Field(256, ge=1, description="timed runs of each model, interleaved")
    max_seconds: float = Field(60.0, gt=0.0, description="stop timing after this long")
    budget_is: Literal["inference", "end_to_end"] = Field(
        "inference", description="what the budget is about: the model alone, or image in to labels out"
    )
    provider: str = Field("CPUExecutionProvider", description="ONNX Runtime's, that every node must run on")
    allow_fallback: bool = Field(False, description="nodes elsewhere, and int8 nodes that compute on floats, may pass")
    cores: list[Annotated[int, Field(ge=0)]] = Field([], description="pin to these; default: the fastest ones")
    sweep_threads: list[Annotated[int, Field(ge=1)]] = Field([], description="numbers of threads to compare")
    sustained_seconds: float = Field(
        0.0, ge=0.0, le=86400.0, description="then run the model this long without a pause"
    )
    cold_repeats: int = Field(5, ge=1, description="new processes for the cold start")
    device_options: dict[str, Any] = Field({}, description="the device's own options")


class FileSettings(Section):
    """How an ONNX file without a recipe is quantized."""

    calibrator: str = "mse"
    calibrator_options: dict[str, Any] = Field({})
    samples: int = Field(512, ge=1)
    selection: Literal["first", "random", "k_center"] = Field(
        "random", description="which samples: k_center spreads them over the model's own outputs"
    )
    reduce_range: bool | Literal["auto"] = "auto"
    float_layers: list[str] = Field([])
    bias_correction: bool = Field(True, description="give back what rounding weights takes from each channel's mean")
    mean: list[float] | None = Field(None, description="per channel, of pixels in [0, 1]; for a folder of images")
    std: list[float] | None = None
    statistics: str | None = Field(None, description="JSON of what calibration saw: read if there, else written")
    threads: int = Field(1, ge=1)
    seed: int = Field(0, ge=0)


class Recipe(Section):
    """Everything one run does."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=0)
    allow_user_code: bool = Field(False, description="load module:function entries of this recipe")
    compute: ComputeSettings = ComputeSettings()
    data: DataSettings = DataSettings()
    teacher: TeacherSettings
    teachers: list[TeacherSettings] = Field([], description="more teachers, beside [teacher]")
    assistants: list[AssistantSettings] = Field([], description="a chain from the teacher to the student")
    student: ModelSettings
    distill: DistillSettings = DistillSettings()
    quantize: QuantizeSettings = QuantizeSettings()
    export: ExportSettings = ExportSettings()
    bench: BenchSettings = BenchSettings()
    watch: WatchSettings = WatchSettings()

    @model_validator(mode="after")
    def _targets_once(self) -> Self:
        if len(set(self.export.targets)) != len(self.export.targets):
            raise ValueError("export.targets: each target once")
        return self

    @model_validator(mode="after")
    def _inside_targets(self) -> Self:
        other = [name for name in self.export.targets if not name.startswith("onnxruntime")]
        if self.export.preprocessing == "inside" and other:
            raise ValueError(
                f"export.preprocessing = 'inside' is for ONNX Runtime's targets; {other[0]} takes normalised images"
            )
        return self

    @model_validator(mode="after")
    def _chain(self) -> Self:
        if bool(self.assistants) != (self.distill.method == "assistant"):
            raise ValueError("[[assistants]] and distill.method = 'assistant' belong together")
        return self

    def resolved(self) -> dict[str, Any]:
        """The whole recipe with every default written out, as plain JSON values."""
        return self.model_dump(mode="json")
