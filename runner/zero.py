"""DeepSpeed's ZeRO: its config, made from ours, and what a model needs whose weights are spread over processes.

ZeRO 1 spreads the optimizer's state over the processes, ZeRO 2 the gradients too, ZeRO 3 the weights too.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from lorsa.runner.errors import UserError
from lorsa.runner.schema import EngineConfig, JobConfig

if TYPE_CHECKING:
    from torch import nn


# Values of LoRA's init_lora_weights that change the weights of the model.
_DECOMPOSING = ("pissa", "olora", "corda", "eva", "loftq", "lora_ga")
# Optimizers whose step on a piece of a parameter is the piece of their step on the parameter.
_ELEMENTWISE = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")


def is_zero(engine: EngineConfig) -> bool:
    """Say whether the engine is one of DeepSpeed's."""
    return engine.zero is not None


def is_zero3(engine: EngineConfig) -> bool:
    """Say whether the engine spreads the weights."""
    return engine.zero is not None and engine.zero.get("stage") == 3


def check_method(cfg: JobConfig) -> None:
    """Refuse what cannot be trained under the engine. All other methods give the numbers of one process there.

    Raises:
        UserError: says why, and which engines can.
    """
    if not is_zero(cfg.engine):
        return
    if cfg.engine.precision == "fp16":
        raise UserError(f"engine.precision=fp16 is not possible under engine={cfg.engine.name}; use bf16 or fp32.")
    if cfg.optim.name not in _ELEMENTWISE:
        raise UserError(
            f"optim={cfg.optim.name} under engine={cfg.engine.name}: ZeRO gives the optimizer flat pieces of the "
            f"parameters, which serves those that treat each number alone: {', '.join(_ELEMENTWISE)}."
        )
    class_name = str(cfg.method.config.get("_target_", "")).rpartition(".")[2]
    if class_name == "AdaLoraConfig":
        raise UserError(
            f"method={cfg.method.name} under engine={cfg.engine.name}: AdaLoRA prunes by whole gradients, of which "
            "ZeRO leaves each process a part; use engine=ddp or single."
        )
    decomposes = str(cfg.method.config.get("init_lora_weights")).startswith(_DECOMPOSING)
    if is_zero3(cfg.engine) and (class_name == "PsoftConfig" or decomposes):
        raise UserError(
            f"method={cfg.method.name} under engine={cfg.engine.name}: it starts from a decomposition of weights that "
            "it then changes, and ZeRO-3 leaves each process a part of them; use engine=zero2, ddp or single."
        )


def require_deepspeed(engine: EngineConfig) -> None:
    """Refuse where DeepSpeed is not installed.

    Raises:
        UserError: says how to install it.
    """
    if find_spec("deepspeed") is None:
        raise UserError(f"engine={engine.name} needs DeepSpeed, which is not installed: pip install 'lorsa[deepspeed]'")


def start_deepspeed(cpu: bool) -> None:
    """Let DeepSpeed use the process group that is there."""
    from lorsa.methods.lorsa import default_folder

    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(default_folder() / "torch_extensions"))
    os.environ.setdefault("DS_ACCELERATOR", "cpu" if cpu else "cuda")
    # Said at every collective call, of names that DeepSpeed uses.
    warnings.filterwarnings("ignore", message="`torch.distributed.*is deprecated", category=FutureWarning)
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel("ERROR")  # what it says is for its developers
    # A reduction through shared memory that inference uses: compiling it would take the first run half a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo" if cpu else "nccl", auto_mpi_discovery=False, verbose=False)


def deepspeed_config(cfg: JobConfig, world_size: int) -> dict[str, Any]:
    """Return DeepSpeed's config for training.

    Weights keep their own dtypes, and arithmetic of lower precision is autocast's, as without DeepSpeed. Communication
    of a module's parameters in autocast's dtype is switched off, since it would round them.
    """
    assert cfg.engine.zero is not None
    per_process, passes = cfg.train.batch_size, cfg.train.gradient_accumulation
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": per_process,
        "gradient_accumulation_steps": passes,
        "train_batch_size": per_process * passes * world_size,
        "gradient_clipping": cfg.optim.max_grad_norm,
        "zero_optimization": OmegaConf.to_container(cfg.engine.zero, resolve=True),
        # The optimizer is PyTorch's, the one that engine=single has.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
    if cfg.engine.precision == "bf16":
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return config


@contextmanager
def announced(cfg: JobConfig, world_size: int) -> Iterator[None]:
    """Within, transformers and PEFT know that weights are spread, where the engine spreads them.

    `from_pretrained` then leaves each process its part, and PEFT gathers what a method looks at when it starts.
    """
    if not is_zero3(cfg.engine):
        yield
        return
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    config = deepspeed_config(cfg, world_size)
    # What is created while loading gets this dtype, and no other.
    if cfg.model.dtype != "float32":
        config["bf16" if cfg.model.dtype == "bfloat16" else "fp16"] = {"enabled": True}
    kept = HfDeepSpeedConfig(config)  # looked up through a weak reference
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del kept


def make_whole(model: nn.Module, modules: Sequence[str]) -> None:
    """Give every process all of some modules: those that train are small, and DeepSpeed spreads them in the end."""
    import torch

    from lorsa.methods.partitioned import is_partitioned, whole

    for name in modules:
        for module in model.get_submodule(name).modules():
            for key, parameter in list(module.named_parameters(recurse=False)):
                if is_partitioned(parameter):
                    with whole([parameter]):
                        value = parameter.detach().clone()
                    setattr(module, key, torch.nn.Parameter(value, requires_grad=parameter.requires_grad))


def runnable(model: nn.Module, cfg: JobConfig, world_size: int) -> Any:
    """Return a context in which a model with spread weights runs, forward and backward, before DeepSpeed trains it.

    Each module's weights are gathered when it runs, and let go afterwards. The head's are there already.
    """
    from lorsa.methods.partitioned import is_partitioned

    if not any(map(is_partitioned, model.parameters())):
        return nullcontext()
    return _hooked(getattr(model, str(model.base_model_prefix)), cfg, world_size)


@contextmanager
def _hooked(backbone: nn.Module, cfg: JobConfig, world_size: int) -> Iterator[None]:
    import deepspeed
    from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
    from deepspeed.utils.timer import NoopTimer

    config = deepspeed.DeepSpeedConfig(deepspeed_config(cfg, world_size))
    zero = config.zero_config
    hooks = DeepSpeedZeRoOffload(
        backbone,
        timers=NoopTimer(),
        ds_config=config,
        overlap_comm=False,
        prefetch_bucket_size=0,
        max_reuse_distance=0,
        max_live_parameters=zero.max_live_parameters,
        param_persistence_threshold=zero.param_persistence_threshold,
        offload_param_config=zero.offload_param,
    )
    try:
        yield
    finally:
        hooks.partition_all_parameters()
        hooks.destroy()


def prepare_model(model: nn.Module, engine: EngineConfig) -> None:
    """Make an adapted model fit for DeepSpeed.

    Every tensor is stored row by row, since DeepSpeed sends them as bytes. Under ZeRO-3 the layers of PEFT's kind name
    the parameters that they read without running the module that owns them: those of the adapter, and the bias.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    from lorsa.methods.partitioned import is_partitioned

    for tensor in (*model.parameters(), *model.buffers()):
        # A single column counts as contiguous whatever its stride, but not as bytes.
        if tensor.ndim and tensor.stride(-1) != 1:
            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    if not is_zero3(engine):
        return
    import deepspeed

    for module in model.modules():
        for name, empty in list(module.named_parameters(recurse=False)):
            if empty.numel() == 0 and not is_partitioned(empty):
                # Nothing to train and, for DeepSpeed, nothing to gather: it stops there.
                delattr(module, name)
                module.register_buffer(name, empty.detach())
    for layer in model.modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        base = layer.get_base_layer()
        read = [base.bias] if isinstance(getattr(base, "bias", None), torch.nn.Parameter) else []
        for child in layer.children():
            if isinstance(child, torch.nn.ParameterDict):
                read += child.parameters()
        for parameter in read:
            deepspeed.zero.register_external_parameter(layer, parameter)


def finish_fetching(engine: Any) -> None:
    """Let go what ZeRO-3 fetched ahead in a forward pass that no backward pass follows.

    DeepSpeed does so when the next pass begins. Until then it stops at a gathering of weights that are on their way.

    Args:
        engine: DeepSpeed's.
    """
    engine.optimizer.parameter_offload.get_param_coordinator().reset_step()
