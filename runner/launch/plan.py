"""From a sweep's configs to what has to be submitted: checked, told apart, and grouped into jobs and arrays."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lorsa.runner.errors import UserError, nearest
from lorsa.runner.launch.scheduler import Scheduler
from lorsa.runner.launch.states import ACTIVE, RunState, read_runs
from lorsa.runner.launch.sweep import SweepRun
from lorsa.runner.rundir import RunDirectory
from lorsa.runner.schema import JobConfig


@dataclass(frozen=True)
class PlannedRun:
    """A run that was composed and checked.

    Attributes:
        run: its name, overrides and resources.
        cfg: its resolved config, with absolute paths.
        state: how it is doing already.
    """

    run: SweepRun
    cfg: JobConfig
    state: RunState

    @property
    def wanted(self) -> bool:
        """Whether it has to be submitted."""
        return self.state.state not in ACTIVE and (self.state.state != "done" or self.cfg.force)


@dataclass
class Plan:
    """All runs of a sweep.

    Attributes:
        runs: each once, in order.
        asked: the names of the command's runs; one can be there more than once.
    """

    runs: list[PlannedRun] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    @property
    def wanted(self) -> list[PlannedRun]:
        """The runs that have to be submitted."""
        return [run for run in self.runs if run.wanted]


def make_plan(composed: Iterable[tuple[Sequence[str], Callable[[], JobConfig]]], scheduler: Scheduler) -> Plan:
    """Check every run of a sweep, before any is submitted.

    Args:
        composed: for each run its overrides, and what composes its config.
        scheduler: what knows which runs are on their way.

    Raises:
        UserError: a run cannot be; the sentence names it by its overrides.
    """
    from lorsa.runner.cli import explain
    from lorsa.runner.signature import signature

    checked: dict[str, tuple[SweepRun, JobConfig]] = {}
    asked = []
    runs_dir = ""
    known_fits: set[str] = set()
    for overrides, compose in composed:
        try:
            cfg = compose()
            check_run(cfg, known_fits)
            freeze_paths(cfg)
            name = signature(cfg)
            runs_dir = runs_dir or cfg.runs_dir
            if cfg.runs_dir != runs_dir:
                raise UserError(f"runs_dir={cfg.runs_dir}, and {runs_dir} in another run; a sweep has one.")
        except (UserError, HydraException, OmegaConfBaseException) as error:
            raise UserError(f"{' '.join(overrides)}: {explain(error)} Nothing was submitted.") from error
        asked.append(name)
        resources: dict[str, Any] = OmegaConf.to_container(cfg.resources)  # type: ignore[assignment]
        checked.setdefault(name, (SweepRun(name, list(overrides), resources), cfg))
    states = read_runs([Path(cfg.runs_dir) / name for name, (_, cfg) in checked.items()], scheduler)
    runs = [PlannedRun(run, cfg, state) for (run, cfg), state in zip(checked.values(), states, strict=True)]
    for run in runs:
        if run.state.state == "done" and not run.cfg.force:
            try:
                RunDirectory(run.cfg.runs_dir, run.run.signature).result()
            except UserError as error:  # damaged, or of another schema
                raise UserError(f"{' '.join(run.run.overrides)}: {error} Nothing was submitted.") from error
    return Plan(runs, asked)


def check_run(cfg: JobConfig, known_fits: set[str]) -> None:
    """Check what can be known of a run without its data, its weights and the machine that it will run on.

    Args:
        cfg: resolved in place.
        known_fits: methods on models that were found good before; added to.

    Raises:
        UserError: the run cannot be.
    """
    from transformers.training_args import OptimizerNames

    from lorsa.runner.estimate.parameters import check_fits
    from lorsa.runner.method import build_method
    from lorsa.runner.validate import check

    check(cfg)
    optimizers = [each.value for each in OptimizerNames]
    if cfg.optim.name not in optimizers:
        raise UserError(f"optim.name={cfg.optim.name} is not known{nearest(cfg.optim.name, optimizers)}")
    method: dict[str, Any] = OmegaConf.to_container(cfg.method.config, resolve=True)  # type: ignore[assignment]
    model = OmegaConf.to_container(cfg.model, resolve=True)
    fit = json.dumps([{key: value for key, value in method.items() if key != "seed"}, model], sort_keys=True)
    if fit not in known_fits:
        build_method(cfg.method)
        check_fits(cfg)
        known_fits.add(fit)


def freeze_paths(cfg: JobConfig) -> None:
    """Make relative paths absolute, since a job may start in another folder."""
    from lorsa.runner.signature import EMBEDDED

    cfg.runs_dir = str(Path(cfg.runs_dir).expanduser().absolute())
    model = Path(cfg.model.path).expanduser()
    if not cfg.model.path.startswith(EMBEDDED) and model.is_dir():
        cfg.model.path = str(model.absolute())
    if cfg.data.name == "local" and cfg.data.path is not None:
        cfg.data.path = str(Path(cfg.data.path).expanduser().absolute())


def group(runs: Sequence[SweepRun], runs_per_job: int, max_array: int) -> list[tuple[dict[str, Any], list[list[str]]]]:
    """Return arrays: what each element asks for, and the runs of each element.

    Runs that ask for the same share an array, in the order of the sweep; an array has at most `max_array` elements.
    """
    shapes: dict[str, list[SweepRun]] = {}
    for run in runs:
        shapes.setdefault(json.dumps(run.resources, sort_keys=True), []).append(run)
    arrays = []
    for shape in shapes.values():
        names = [run.signature for run in shape]
        jobs = [names[start : start + runs_per_job] for start in range(0, len(names), runs_per_job)]
        arrays += [(shape[0].resources, jobs[start : start + max_array]) for start in range(0, len(jobs), max_array)]
    return arrays


_SETTINGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "wait": (lambda x: isinstance(x, bool), "true or false"),
    "snapshot": (lambda x: isinstance(x, bool), "true or false"),
    "offline": (lambda x: isinstance(x, bool), "true or false"),
    "runs_per_job": (lambda x: isinstance(x, int) and x > 0, "a number above 0"),
    "parallel": (lambda x: isinstance(x, int) and x > 0, "a number above 0"),
    "setup": (lambda x: isinstance(x, list) and all(isinstance(line, str) for line in x), "a list of shell lines"),
}


def check_settings(settings: dict[str, Any]) -> None:
    """Check the keys of hydra.launcher.

    Raises:
        UserError: one is unknown, or not what it has to be.
    """
    for key, value in settings.items():
        if key not in _SETTINGS:
            raise UserError(f"there is no key 'hydra.launcher.{key}'{nearest(key, _SETTINGS)}")
        valid, words = _SETTINGS[key]
        if not valid(value):
            raise UserError(f"hydra.launcher.{key}={value} must be {words}.")


def check_sharing(runs: Iterable[SweepRun], runs_per_job: int) -> None:
    """Refuse jobs that would run runs of several processes one after the other.

    Raises:
        UserError: there are such runs.
    """
    for run in runs:
        processes = run.resources["nodes"] * run.resources["tasks_per_node"]
        if runs_per_job > 1 and processes > 1:
            raise UserError(
                f"{' '.join(run.overrides)}: hydra.launcher.runs_per_job={runs_per_job} is for runs of one process, "
                f"and this one has {processes}; use runs_per_job=1."
            )


def check_one_node(runs: Iterable[SweepRun]) -> None:
    """Refuse runs that need several machines, where there is this one alone.

    Raises:
        UserError: there are such runs.
    """
    for run in runs:
        if run.resources["nodes"] > 1:
            raise UserError(f"{' '.join(run.overrides)}: resources.nodes must be 1 with hydra/launcher=local.")
