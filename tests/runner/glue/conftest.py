import os
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lorsa.runner.schema import DataConfig, TaskConfig


@pytest.fixture
def task() -> Callable[[str], TaskConfig]:
    """The task as a run gets it: its YAML merged onto the schema."""

    def load(name: str) -> TaskConfig:
        yaml = OmegaConf.create(files("lorsa.conf").joinpath(f"task/{name}.yaml").read_text())
        return OmegaConf.merge(OmegaConf.structured(TaskConfig), yaml)

    return load


@pytest.fixture
def local() -> Callable[..., DataConfig]:
    def config(path: Path, **settings) -> DataConfig:
        return DataConfig(name="local", path=str(path), **settings)

    return config


@pytest.fixture
def real_data() -> Path:
    """Real GLUE for four tasks, in both layouts."""
    shared = os.environ.get("LORSA_SHARED")
    if not shared:
        pytest.skip("LORSA_SHARED is not set: no real GLUE files here")
    return Path(shared) / "data"


@pytest.fixture
def write() -> Callable[[Path, str], Path]:
    """Write a text file byte for byte, with the folders above it."""

    def write_bytes(file: Path, text: str) -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode())
        return file

    return write_bytes


@pytest.fixture
def write_parquet() -> Callable[..., None]:
    """Write one split in the hub's layout."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def write_table(root: Path, task: str, split: str, shard: str = "00000-of-00001", **columns) -> None:
        (root / task).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), root / task / f"{split}-{shard}.parquet")

    return write_table
