"""The recipe: one TOML file, every key a field of a typed model, every problem reported at once."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgekd.catalog import CATALOGS, user_code_beside
from edgekd.errors import EdgeKDError, RecipeError, did_you_mean

__all__ = [
    "AugmentSettings",
    "BenchSettings",
    "ComputeSettings",
    "DataSettings",
    "DistillSettings",
    "ExportSettings",
    "LossSettings",
    "ModelSettings",
    "QuantizeSettings",
    "Recipe",
    "TeacherSettings",
    "TensorRTSettings",
    "TrainSettings",
    "json_schema",
    "load_recipe",
    "parse_recipe",
]


class _Section(BaseModel):
    """A table of the recipe: unknown keys and values of another type are problems."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class _Member(BaseModel):
    """A table that names a catalog member; its other keys are that member's options."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)

    @property
    def options(self) -> dict[str, Any]:
        """The keys that belong to the member."""
        return dict(self.model_extra or {})


class ComputeSettings(_Section):
    """Where and how training computes."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: int | None = Field(None, ge=1, description="CPU threads; default: all cores")


class AugmentSettings(_Section):
    """Random changes of training batches, seeded per sample and epoch."""

    crop: int = Field(0, ge=0, description="pad by this many pixels on each side, then crop back")
    flip: bool = Field(False, description="mirror left-right with probability 0.5")
    cutout: int = Field(0, ge=0, description="side in pixels of one square set to the mean")
    mixup: float = Field(0.0, ge=0.0, description="alpha of the Beta distribution of the mixing ratio; 0 is off")


class DataSettings(_Member):
    """The data set (a member of `edgekd list datasets`), its split and its preprocessing."""

    name: str = "digits"
    val_fraction: float = Field(0.1, gt=0.0, lt=1.0, description="share of the training samples kept for validation")
    limit_train: int | None = Field(None, ge=1, description="use only this many training samples")
    size: list[int] | None = Field(None, min_length=2, max_length=2, description="resize to (H, W) pixels")
    mean: list[float] | None = None
    std: list[float] | None = None
    augment: AugmentSettings = AugmentSettings()


class TrainSettings(_Section):
    """One training run: optimizer, schedule and length."""

    epochs: int = Field(30, ge=1)
    batch_size: int = Field(128, ge=1, description="samples per optimizer step")
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.1, gt=0.0, description="peak learning rate")
    momentum: float = Field(0.9, ge=0.0, lt=1.0)
    nesterov: bool = True
    weight_decay: float = Field(5e-4, ge=0.0, description="not applied to biases and normalisation")
    schedule: Literal["cosine", "steps", "constant"] = "cosine"
    milestones: list[float] = Field([0.5, 0.75], description="steps: fractions of training where lr drops")
    gamma: float = Field(0.1, gt=0.0, le=1.0, description="steps: factor of each drop")
    warmup_epochs: float = Field(1.0, ge=0.0, description="linear warm-up from 0")
    clip_grad_norm: float | None = Field(None, gt=0.0)
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)
    ema_decay: float | None = Field(None, gt=0.0, lt=1.0, description="keep a moving average of the weights")


class ModelSettings(_Member):
    """A model (a member of `edgekd list models`, or module:function) and its options."""

    model: str
    weights: str | None = Field(None, description="safetensors file, or a state dict that weights_only=True can read")


class TeacherSettings(ModelSettings):
    """The teacher: trained by the recipe, or loaded from `weights`."""

    train: TrainSettings = TrainSettings()


class LossSettings(_Member):
    """One weighted term of the objective (a member of `edgekd list losses`) and its options."""

    name: str
    weight: float = Field(1.0, ge=0.0)


class DistillSettings(_Section):
    """Who learns from whom, by which losses, for how long."""

    method: str = "offline"
    losses: list[LossSettings] = Field(
        [LossSettings(name="cross_entropy", weight=0.1), LossSettings(name="kd", weight=0.9)], min_length=1
    )
    baseline: bool = Field(True, description="train the same student without a teacher too")
    repeats: int = Field(1, ge=1, description="train the student stages with this many seeds; the first goes on")
    train: TrainSettings = TrainSettings()


class QuantizeSettings(_Section):
    """From the float student to int8."""

    mode: Literal["qat", "ptq"] = "qat"
    calibrator: str = "mse"
    calibrator_options: dict[str, Any] = Field({}, description="the calibrator's own keys, { percentile = 99.9 }")
    calibration_samples: int = Field(512, ge=1)
    reduce_range: bool | Literal["auto"] = Field(
        "auto", description="7-bit weights, so that x86 without VNNI does not saturate; auto looks at this CPU"
    )
    losses: list[LossSettings] | None = Field(None, description="default: those of [distill]")
    epochs: int | None = Field(None, ge=1, description="default: a tenth of the student's epochs, rounded up")
    optimizer: Literal["sgd", "adamw"] = Field(
        "adamw", description="adamw steps are relative to each weight's own gradients, which folding leaves uneven"
    )
    lr: float = Field(2e-4, gt=0.0, description="peak learning rate")
    clip_grad_norm: float | None = Field(1.0, gt=0.0)
    batch_size: int | None = Field(None, ge=1, description="default: the student's")
    freeze_observers_at: float = Field(0.5, ge=0.0, le=1.0, description="fraction of training")


class TensorRTSettings(_Section):
    """The TensorRT engine."""

    engine: Literal["auto", "required", "off"] = Field("auto", description="auto: build it if the library is here")
    compute_capability: list[str] = Field(["8.6", "8.9"], description="GPU generations, '8.6' is SM86")
    batch: list[int] = Field([1, 1, 8], min_length=3, max_length=3, description="min, opt, max of the profile")


class ExportSettings(_Section):
    """What is shipped."""

    targets: list[str] = Field(["onnxruntime_x86"], min_length=1)
    opset: int = Field(20, ge=18, le=20)
    min_agreement: float = Field(
        0.999, ge=0.0, le=1.0, description="parity gate: top-1 agreement with torch; one sample is always allowed"
    )
    tensorrt: TensorRTSettings = TensorRTSettings()


class BenchSettings(_Section):
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


class Recipe(_Section):
    """Everything one run does."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=0)
    allow_user_code: bool = Field(False, description="load module:function entries of this recipe")
    compute: ComputeSettings = ComputeSettings()
    data: DataSettings = DataSettings()
    teacher: TeacherSettings
    student: ModelSettings
    distill: DistillSettings = DistillSettings()
    quantize: QuantizeSettings = QuantizeSettings()
    export: ExportSettings = ExportSettings()
    bench: BenchSettings = BenchSettings()

    @model_validator(mode="after")
    def _targets_once(self) -> Self:
        if len(set(self.export.targets)) != len(self.export.targets):
            raise ValueError("export.targets: each target once")
        return self

    def resolved(self) -> dict[str, Any]:
        """The whole recipe with every default written out, as plain JSON values."""
        return self.model_dump(mode="json")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe file.

    Args:
        path: a TOML file.
        overrides: "a.b=value" strings; the value is TOML, or a plain string if it is not.

    Raises:
        RecipeError: everything that is wrong with it, in one error.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(str(path), ["no such file. `edgekd init FOLDER` writes a recipe to start from."]) from error
    except IsADirectoryError as error:
        raise RecipeError(str(path), ["is a folder, not a recipe file."]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(str(path), [f"not valid TOML: {error}"]) from error
    except OSError as error:
        raise RecipeError(str(path), [f"cannot be read: {error.strerror}."]) from error
    return parse_recipe(values, overrides, source=str(path), folder=path.parent)


def parse_recipe(
    values: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    source: str = "recipe",
    folder: Path | None = None,
) -> Recipe:
    """Check a recipe given as nested plain values; see `load_recipe`.

    Args:
        values: the recipe's tables.
        overrides: see `load_recipe`.
        source: what messages call it.
        folder: where user code that it allows may lie.

    Raises:
        RecipeError: everything that is wrong with it, in one error.
    """
    table: dict[str, Any] = json.loads(json.dumps(values, default=str))
    problems = [problem for override in overrides if (problem := _override(table, override))]
    if folder is not None and table.get("allow_user_code") is True:
        user_code_beside(folder)
    recipe: Recipe | None = None
    try:
        recipe = Recipe.model_validate(table)
    except ValidationError as error:
        problems += [_sentence(Recipe, dict(one)) for one in error.errors()]
    problems += _member_problems(table)
    if problems or recipe is None:
        raise RecipeError(source, list(dict.fromkeys(problems)))
    return recipe


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, for editors."""
    return Recipe.model_json_schema()


def _override(values: dict[str, Any], text: str) -> str | None:
    """Apply one "a.b=c" in place; the problem, if there is one."""
    key, equals, raw = text.partition("=")
    if not equals or not key.strip():
        return f"--set {text}: must look like a.b=value"
    *parents, last = key.strip().split(".")
    table = values
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            return f"--set {text}: '{parent}' is a value, not a table"
    try:
        table[last] = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        table[last] = raw
    return None


def _sentence(model: type[BaseModel], error: dict[str, Any], *, within: str = "") -> str:
    """One pydantic error as: where (the model's own place is `within`), what is wrong with which value."""
    location = [part for part in error["loc"] if not (isinstance(part, str) and part in _UNION_TAGS)]
    where = ".".join(str(part) for part in (within, *location) if part != "") or "recipe"
    if error["type"] == "extra_forbidden":
        table = ".".join(str(part) for part in location[:-1])
        valid = _fields_at(model, location[:-1])
        unknown = str(location[-1])
        return f"{where}: unknown key '{unknown}' in [{table or 'top level'}]. {did_you_mean(unknown, valid)}"
    if error["type"] == "missing":
        return f"{where}: missing. Add it to the recipe."
    message = error["msg"].removeprefix("Value error, ")
    # a rule over a whole table says itself which key it is about, and its input is all of the table
    whole = error["type"] == "value_error" and isinstance(error["input"], dict)
    got = "" if whole else f", got {error['input']!r}"
    return f"{where}: {message[0].lower()}{message[1:]}{got}"


_UNION_TAGS = {"bool", "literal['auto']", "int", "str", "float"}


def _fields_at(model: type[BaseModel], location: Iterable[Any]) -> list[str]:
    current: Any = model
    for part in location:
        if isinstance(part, int):
            continue
        annotation = current.model_fields[part].annotation
        candidates = [annotation, *get_args(annotation)]
        current = next((one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel)), current)
    return list(current.model_fields)


def _member_problems(values: Mapping[str, Any]) -> list[str]:
    """Check every table that names a catalog member against that member's own options."""
    allow = values.get("allow_user_code") is True
    problems: list[str] = []
    for catalog, key, table, name, section in _member_tables(values):
        try:
            options = CATALOGS[catalog].options(name, allow_user_code=allow)
        except EdgeKDError as error:
            problems.append(f"{key}: {error}")
            continue
        extra = {k: v for k, v in table.items() if k not in section.model_fields}
        problems += _option_problems(options, extra, key, [*section.model_fields, *options.model_fields])
    for catalog, key, name in _member_names(values):
        if name not in CATALOGS[catalog].names():
            try:
                CATALOGS[catalog].load(name, allow_user_code=allow)
            except EdgeKDError as error:
                problems.append(f"{key}: {error}")
    return problems


def _option_problems(options: type[BaseModel], extra: dict[str, Any], key: str, valid: list[str]) -> list[str]:
    try:
        options.model_validate(extra)
    except ValidationError as error:
        found = []
        for one in error.errors():
            if one["type"] == "extra_forbidden":
                name = str(one["loc"][-1])
                found.append(f"{key}.{name}: unknown key '{name}' in [{key}]. {did_you_mean(name, valid)}")
            else:
                found.append(_sentence(options, dict(one), within=key))
        return found
    return []


def _member_tables(
    values: Mapping[str, Any],
) -> Iterable[tuple[str, str, dict[str, Any], str, type[BaseModel]]]:
    """(catalog, key, table, member name, section model) of each table that carries a member's options."""
    data = values.get("data", {})
    if isinstance(data, dict):
        yield "datasets", "data", data, str(data.get("name", "digits")), DataSettings
    sections: list[tuple[str, type[BaseModel]]] = [("teacher", TeacherSettings), ("student", ModelSettings)]
    for key, section in sections:
        table = values.get(key)
        if isinstance(table, dict) and isinstance(table.get("model"), str):
            yield "models", key, table, table["model"], section
    for key in ("distill", "quantize"):
        stage = values.get(key)
        losses = stage.get("losses") if isinstance(stage, dict) else None
        for index, table in enumerate(losses if isinstance(losses, list) else []):
            if isinstance(table, dict) and isinstance(table.get("name"), str):
                yield "losses", f"{key}.losses.{index}", table, table["name"], LossSettings
    quantize = values.get("quantize")
    if isinstance(quantize, dict) and isinstance(quantize.get("calibrator_options"), dict):
        name = str(quantize.get("calibrator", "mse"))
        yield "calibration", "quantize.calibrator_options", quantize["calibrator_options"], name, _Section


def _member_names(values: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
    """(catalog, key, name) of each key that only names a member."""
    wanted = [
        ("methods", "distill", "method"),
        ("calibration", "quantize", "calibrator"),
        ("devices", "bench", "device"),
    ]
    for catalog, section, key in wanted:
        table = values.get(section)
        if isinstance(table, dict) and isinstance(table.get(key), str):
            yield catalog, f"{section}.{key}", table[key]
    export = values.get("export")
    targets = export.get("targets") if isinstance(export, dict) else None
    for index, name in enumerate(targets if isinstance(targets, list) else []):
        if isinstance(name, str):
            yield "targets", f"export.targets.{index}", name
