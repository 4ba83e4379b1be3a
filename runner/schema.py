"""The shape of a job: every key that a config may have, with its type.

`lorsa-run` merges the composed YAML onto these classes, so an unknown key or a wrong type is refused before anything is
loaded. What a value means and which ones are sensible is said in the YAML files under conf/; ranges and combinations
are checked in `validate.py`. Nothing heavy may be imported here: this module is on the path of `lorsa-run --help`.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

from omegaconf import MISSING, DictConfig, OmegaConf


@dataclass
class ModuleGroups:
    """Names of the linear modules of one architecture, as PEFT's `target_modules` takes them: list or regex."""

    attention: Any = MISSING
    mlp: Any = MISSING
    all: Any = MISSING
    ia3: Any = None
    ia3_feedforward: Any = None


@dataclass
class ModelConfig:
    """A pretrained model and how to load it."""

    name: str = MISSING
    path: str = MISSING
    revision: str | None = None
    gguf_file: str | None = None
    dtype: str = "float32"
    attn_implementation: str = "sdpa"
    pad_token: str | None = None
    modules: ModuleGroups = field(default_factory=ModuleGroups)


@dataclass
class TaskConfig:
    """One GLUE task: its columns, labels, metrics and usual training settings."""

    name: str = MISSING
    folder: str = MISSING
    train_from: str = "${task.name}"
    columns: list[str] = MISSING
    labels: list[str] = MISSING
    metrics: list[str] = MISSING
    train_split: str = "train"
    eval_splits: list[str] = field(default_factory=lambda: ["validation"])
    predict_splits: list[str] = field(default_factory=lambda: ["test"])
    epochs: float = MISSING
    batch_size: int = MISSING
    max_length: int = MISSING


@dataclass
class DataConfig:
    """Where a task's rows come from and how the training set is cut."""

    name: str = MISSING
    path: str | None = None
    revision: str | None = None
    version: int | None = None
    train_rows: int | None = None
    dev_fraction: float = 0.1
    dev_max_rows: int = 1000
    split_seed: int = 0
    epochs: float | None = None


@dataclass
class MethodChoice:
    """A PEFT method: its config by `_target_`, and the learning rates it wants."""

    name: str = MISSING
    config: dict[str, Any] = MISSING
    lr: float = MISSING
    head_lr: float = MISSING
    calibration_rows: int = 0


@dataclass
class OptimConfig:
    """The optimizer and the learning-rate schedule."""

    name: str = MISSING
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    schedule: str = "linear"
    warmup: float = 0.06


@dataclass
class TrainConfig:
    """The loop: by default filled in from the task and the method."""

    epochs: float = MISSING
    max_steps: int = -1
    batch_size: int = MISSING
    eval_batch_size: int = 64
    max_length: int = MISSING
    lr: float = MISSING
    head_lr: float = MISSING
    probe_rows: int | None = None
    gradient_accumulation: int = 1
    gradient_checkpointing: bool = False
    checkpoint_every: int | None = None
    overfit_rows: int | None = None
    profile: bool = False


@dataclass
class EngineConfig:
    """How the training is spread over processes and devices."""

    name: str = MISSING
    device: str = "auto"
    precision: str = "fp32"
    threads: int | None = None
    zero: dict[str, Any] | None = None


@dataclass
class TrackerConfig:
    """Where metrics go besides metrics.jsonl."""

    name: str = MISSING
    project: str = "lorsa"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    mode: str = "auto"
    artifacts: bool = True
    finish_seconds: float = 30.0


@dataclass
class ResourcesConfig:
    """What one run asks of a cluster, and how long it may take. No part of a result, but for the number of tasks."""

    name: str = MISSING
    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int = 1
    mem_gb: float | None = None
    minutes: int = 60
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    signal_seconds: int = 120
    retries: int = 3
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class JobConfig:
    """One run, or with `-m` one element of a sweep."""

    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodChoice = field(default_factory=MethodChoice)
    task: TaskConfig = field(default_factory=TaskConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    protocol: str = "split"
    seed: int = 0
    runs_dir: str = "runs"
    force: bool = False
    dry_run: bool = False


def register_resolvers() -> None:
    """Make two resolvers known to OmegaConf.

    `${either:a,b}` is a, unless it is null, else b. `${choose:key,{x: 1, y: 2},3}` is what the table has for the key,
    else the last: for what depends on a choice, such as the resources on the method.
    """
    OmegaConf.register_new_resolver("either", lambda a, b: b if a is None else a, replace=True)
    OmegaConf.register_new_resolver("choose", lambda key, table, other: table.get(key, other), replace=True)


def typed(cfg: DictConfig) -> JobConfig:
    """Return the composed config with the types of `JobConfig`: still a `DictConfig`, but checked.

    The classes are merged here and not given to Hydra's ConfigStore, which would copy them for every group it lists.

    Raises:
        omegaconf.errors.OmegaConfBaseException: a value has the wrong type, or a key is unknown.
    """
    return cast(JobConfig, OmegaConf.merge(_empty(), cfg))


@cache
def _empty() -> DictConfig:
    """Return a config of the classes' defaults; made once, since it takes as long as the rest of a merge."""
    return OmegaConf.structured(JobConfig)


def in_one_process(cfg: JobConfig) -> JobConfig:
    """Return a run's config with engine=single, for what reads its model or data outside of the run."""
    alone = cast(JobConfig, cast(DictConfig, cfg).copy())
    alone.engine.name, alone.engine.zero = "single", None
    return alone
