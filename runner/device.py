"""The device and the precision of a run, and what is known about the machine."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorsa.runner.errors import UserError
from lorsa.runner.heap import return_large_blocks
from lorsa.runner.schema import EngineConfig
from lorsa.runner.zero import is_zero3

if TYPE_CHECKING:
    from lorsa.methods.apply import MethodConfig

RECORDED_PACKAGES = (
    "lorsa",
    "torch",
    "transformers",
    "peft",
    "datasets",
    "evaluate",
    "accelerate",
    "safetensors",
    "hydra-core",
    "numpy",
    "scikit-learn",
    "scipy",
)
_PACKAGES = ("conf", "kernels", "methods", "runner")


def quiet_deepspeed() -> None:
    """Where there is no GPU, tell DeepSpeed so: Accelerate imports it if it is installed, and it would warn of that."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def prepare_device(engine: EngineConfig) -> torch.device:
    """Check that the device and the precision asked for are there, and set the number of threads.

    Raises:
        UserError: they are not. Nothing is switched to something else silently.
    """
    if engine.threads is not None:
        torch.set_num_threads(engine.threads)
    gpu = torch.cuda.is_available()
    quiet_deepspeed()
    if engine.device == "cuda" and not gpu:
        build = "this PyTorch is built without CUDA" if torch.version.cuda is None else "PyTorch sees no GPU"
        raise UserError(f"engine.device=cuda, but {build}; use engine.device=cpu, or auto.")
    device = torch.device("cuda" if gpu and engine.device != "cpu" else "cpu")
    if engine.precision == "bf16" and not has_bf16(device):
        raise UserError(
            f"engine.precision=bf16, but this {'GPU' if device.type == 'cuda' else 'CPU'} has no bfloat16 arithmetic; "
            "use engine.precision=fp32."
        )
    if engine.precision == "fp16" and device.type == "cpu":
        raise UserError("engine.precision=fp16 needs a GPU; use engine.precision=fp32.")
    if device.type == "cpu" and is_zero3(engine):
        return_large_blocks()
    return device


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def autocast(engine: EngineConfig, device: torch.device) -> torch.autocast:
    """Return the context in which the training's forward passes run, except that fp16 is left to a loss scale."""
    return torch.autocast(device.type, torch.bfloat16, enabled=engine.precision == "bf16")


def reset_peak_memory() -> None:
    """Forget the peaks of earlier runs in this process, where the system can: CUDA, and Linux."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Return the most bytes in use since the reset: of the GPU, or else resident in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def hardware(device: torch.device) -> dict[str, Any]:
    """Return what a result says about the machine it was made on."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "device": device.type,
        "gpus": gpus if device.type == "cuda" else [],
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def kernels_version(method: MethodConfig, device: torch.device) -> dict[str, str]:
    """Return what computes LoRSA's operators there, {} for a method that has none of them."""
    from lorsa.kernels import implementation
    from lorsa.methods import LorsaConfig

    return {"kernels": implementation(device.type, method.r)} if isinstance(method, LorsaConfig) else {}


def git_state() -> dict[str, Any]:
    """Return the commit of the checkout that this code runs from and whether the code differs; nulls outside one."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    # A wheel in an environment that lies inside some other project's checkout has no commit.
    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return {"commit": None, "dirty": None}
    # A method's YAML that was just added counts, another document or table of results does not.
    changes = git("status", "--porcelain", "--", *(str(folder.parent / package) for package in _PACKAGES))
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
