"""A finished run, read back: its config, its result, and its model with the trained adapter."""

from __future__ import annotations

import json
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from lorsa.runner.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from lorsa.runner.models import BaseModel
    from lorsa.runner.result import Result
    from lorsa.runner.rundir import RunDirectory
    from lorsa.runner.schema import JobConfig

PEFT_CONFIG = "adapter_config.json"
SELECTED_CONFIG = "selected_config.json"


@dataclass(frozen=True)
class FinishedRun:
    """A run that has its result.

    Attributes:
        directory: where it is.
        cfg: its config, typed and checked, but for one process, whatever number it was trained by.
        peft_type: PEFT's name of the method, or None for `full`, `head` and `bitfit`.
        result: its result.json.
    """

    directory: RunDirectory
    cfg: JobConfig
    peft_type: str | None
    result: Result


def read_run(path: Path) -> FinishedRun:
    """Read a run's files, without loading a model.

    Args:
        path: `<runs_dir>/<signature>`.

    Raises:
        UserError: there is no such run, it is not finished, or its files are damaged.
    """
    directory, result = read_result(path)
    config, peft_type = _config(directory, result), _peft_type(directory.adapter)
    return FinishedRun(directory, config, peft_type, result)


def read_result(path: Path) -> tuple[RunDirectory, Result]:
    """Return the directory of a finished run and its result.json.

    Raises:
        UserError: there is no such run, it is not finished, or its result is damaged.
    """
    from lorsa.runner.rundir import RunDirectory

    path = path.expanduser()
    if not path.is_dir():
        raise UserError(f"There is no run {path}{_nearest_run(path)}")
    absolute = path.absolute()
    directory = RunDirectory(str(absolute.parent), absolute.name)
    result = directory.result()
    if result is None:
        raise UserError(_unfinished(path, directory))
    return directory, result


def load_run(run: FinishedRun) -> tuple[BaseModel, nn.Module]:
    """Load the run's base model, and its trained model on the CPU in evaluation mode.

    Returns:
        The base model, changed in place by the adapter, and the trained model: a `PeftModel`, or the base itself.

    Raises:
        UserError: the base model cannot be loaded, is another one now, or is quantised; or the adapter is damaged.
    """
    import transformers

    from lorsa.runner.device import quiet_deepspeed
    from lorsa.runner.glue.fingerprint import content_fingerprint
    from lorsa.runner.models import load_model, load_tokenizer
    from lorsa.runner.signature import model_folder

    folder = model_folder(run.cfg.model.path)
    if folder is not None and run.result.get("model_content") not in (None, content_fingerprint(folder)):
        raise UserError(f"{folder} is not the model that {run.directory.path} was trained on: its files have changed.")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    quiet_deepspeed()
    base = load_model(run.cfg, load_tokenizer(run.cfg))
    if getattr(base.model, "is_quantized", False):
        raise UserError(f"model {run.cfg.model.path}: its weights are quantised; name one in floating point.")
    return base, _load_adapter(run, base).eval()


def _nearest_run(path: Path) -> str:
    runs = sorted(each.name for each in path.parent.glob("*") if (each / "result.json").is_file())
    if not runs:
        return f"; {path.parent} holds no finished run."
    close = get_close_matches(path.name, runs, n=1, cutoff=0.0)
    return f"; the nearest is {path.parent / close[0]}."


def _unfinished(path: Path, directory: RunDirectory) -> str:
    status = directory.status()
    if not status:
        return f"{path} is no run's folder: it has no result.json{_nearest_run(path / '_')}"
    return f"{path} is not finished (state: {status.get('state', '?')}); the command that started it goes on with it."


def _config(directory: RunDirectory, result: Result) -> JobConfig:
    from omegaconf import OmegaConf

    from lorsa.runner.schema import in_one_process, register_resolvers, typed
    from lorsa.runner.signature import model_folder
    from lorsa.runner.validate import check

    file = directory.path / "config.yaml"
    register_resolvers()
    try:
        cfg = typed(OmegaConf.load(file))  # type: ignore[arg-type]
    except Exception as error:
        raise UserError(f"{file} is missing or damaged ({_first_line(error)}).") from error
    cfg.tracker.name = "none"  # what it was tracked with need not be installed here
    check(cfg)
    cfg = in_one_process(cfg)
    if model_folder(cfg.model.path) is None:
        commit = result.get("model_commit")
        if commit is None and cfg.model.gguf_file is None:
            raise UserError(
                f"The run's model was the folder {cfg.model.path}, which is not here; start the command where the run "
                "was started."
            )
        # The same weights, whatever the hub's repository has by now.
        cfg.model.revision = cfg.model.revision or commit
    return cfg


def _peft_type(adapter: Path) -> str | None:
    if (adapter / SELECTED_CONFIG).is_file():
        return None
    try:
        return str(json.loads((adapter / PEFT_CONFIG).read_text(encoding="utf-8"))["peft_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(adapter, error) from error


def _load_adapter(run: FinishedRun, base: BaseModel) -> nn.Module:
    import warnings

    from peft import PeftModel

    import lorsa.methods  # noqa: F401  # makes LoRSA known to PEFT

    adapter = run.directory.adapter
    try:
        if run.peft_type is None:
            return _load_selected(adapter, base)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # An adapter without a part of its tensors gets a warning alone from PEFT.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            return PeftModel.from_pretrained(base.model, str(adapter))
    except MemoryError:
        raise
    except Exception as error:
        raise _damaged(adapter, error) from error


def _load_selected(adapter: Path, base: BaseModel) -> nn.Module:
    from safetensors import safe_open

    from lorsa.methods.selected import SelectedConfig, load_selected, select_parameters
    from lorsa.methods.selected.model import WEIGHTS_FILE

    config = SelectedConfig(**json.loads((adapter / SELECTED_CONFIG).read_text(encoding="utf-8")))
    select_parameters(base.model, config, base.head)
    with safe_open(adapter / WEIGHTS_FILE, framework="pt") as file:
        stored = set(file.keys())
    trained = {name for name, parameter in base.model.named_parameters() if parameter.requires_grad}
    if missing := sorted(trained - stored):
        raise ValueError(f"it lacks {missing[0]}")
    return load_selected(base.model, adapter)


def _damaged(adapter: Path, error: Exception) -> UserError:
    return UserError(f"{adapter} is damaged, or not of this base model ({_first_line(error)}).")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
