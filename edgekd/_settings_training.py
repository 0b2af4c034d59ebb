"""The recipe's tables about computing and training."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["AugmentSettings", "CacheSettings", "ComputeSettings", "Section", "TrainSettings", "WatchSettings"]


class Section(BaseModel):
    """A table of the recipe: unknown keys and values of another type are problems."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ComputeSettings(Section):
    """Where and how training computes."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: int | None = Field(None, ge=1, description="CPU threads; default: all cores")
    compile: Literal["off", "auto"] = Field(
        "off", description="torch.compile; auto times some steps with and without it, and keeps what is faster"
    )
    checkpoint_seconds: float = Field(
        30.0, gt=0.0, description="write a checkpoint at least this often; one is written after every epoch too"
    )
    sync_batch_norm: bool = Field(
        True, description="several processes normalise by the statistics of the whole batch, as one would"
    )
    shard_teacher: bool = Field(
        False, description="several processes share the teacher's weights (FSDP2), for one that does not fit"
    )


class AugmentSettings(Section):
    """Random changes of training batches, seeded per sample and epoch."""

    crop: int = Field(0, ge=0, description="pad by this many pixels on each side, then crop back")
    flip: bool = Field(False, description="mirror left-right with probability 0.5")
    cutout: int = Field(0, ge=0, description="side in pixels of one square set to the mean")
    mixup: float = Field(0.0, ge=0.0, description="alpha of the Beta distribution of the mixing ratio; 0 is off")


class TrainSettings(Section):
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
    accumulate: int = Field(
        1, ge=1, description="compute each batch in so many parts, one after the other; for a batch that does not fit"
    )
    keep: Literal["last", "best"] = Field("last", description="the last epoch's weights, or the best on validation")

    def deciding(self) -> dict[str, Any]:
        """All that decides the result, as plain values; what was added later is left out where it has its default."""
        plain = self.model_dump(mode="json")
        later = {"accumulate": 1, "keep": "last"}
        return {key: value for key, value in plain.items() if key not in later or value != later[key]}


class CacheSettings(Section):
    """The teacher's answers, computed once and kept: `edgekd cache`."""

    path: str | None = Field(
        None, description="folder or URL (s3://...) of the cache; default: cache/ in the run's folder"
    )
    top_k: int | None = Field(
        None,
        ge=1,
        description="keep the largest logits and the mass of the rest; default: all up to 64 classes, else 32",
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="of what is kept; auto: float32 for all classes, float16 for some"
    )
    epochs: int | None = Field(
        None, ge=1, description="how many epochs of views to keep, which then repeat; default: those of the training"
    )
    taps: list[str] = Field([], description="the teacher's layers whose outputs are kept too, for losses on features")
    local_mb: int = Field(4096, ge=64, description="of a cache at a URL, how much may lie on this machine at once, MiB")
    build: bool = Field(True, description="a run builds what is missing; false: it stops, `edgekd cache build` does it")


class WatchSettings(Section):
    """Who follows a run, beside the progress on the screen and `metrics.jsonl`."""

    trackers: list[Literal["tensorboard", "mlflow", "wandb"]] = Field(
        ["tensorboard"], description="tensorboard writes into the run's folder; mlflow and wandb are extras"
    )
    every_seconds: float = Field(2.0, ge=0.0, description="at most one line of steps in metrics.jsonl this often")
