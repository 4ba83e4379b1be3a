"""Hydra's launchers `slurm` and `local`; installed as hydra_plugins.lorsa_launcher, where Hydra looks for them.

Hydra imports this at every start, so nothing heavy is imported before a sweep is launched.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

if TYPE_CHECKING:
    from hydra.types import HydraContext, TaskFunction
    from omegaconf import DictConfig

    from lorsa.runner.launch.states import RunState
    from lorsa.runner.schema import JobConfig

BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


class SweepLauncher(Launcher):
    """What the two launchers share.

    Args:
        settings: the keys of their file under conf/hydra/launcher.
    """

    kind = ""

    def __init__(self, **settings: Any) -> None:
        self._given = settings

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as plain values, checked.

        Raises:
            UserError: one is unknown, or not of its type.
        """
        from omegaconf import OmegaConf

        from lorsa.runner.launch.plan import check_settings

        plain: dict[str, Any] = OmegaConf.to_container(OmegaConf.create(self._given), resolve=True)  # type: ignore[assignment]
        check_settings(plain)
        return plain

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives to a launcher; the sweeper composes through the same context, so it is fast as well."""
        from lorsa.runner.launch.composer import SweepComposer

        self.composer = SweepComposer(hydra_context.config_loader)
        hydra_context.config_loader = self.composer  # type: ignore[assignment]
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit runs, and if the settings say so, wait for them.

        Returns:
            The runs' dev scores, or an empty list where they were submitted and not waited for.

        Raises:
            UserError: see `lorsa.runner.launch.launch.launch`.
        """
        from lorsa.runner.errors import UserError
        from lorsa.runner.launch.launch import launch

        settings = self.settings
        waits = self.kind == "local" or settings["wait"]
        self._check_sweeper(waits)
        folder = Path(self.config.hydra.sweep.dir)
        if initial_job_idx:  # a sweeper that asks for one batch after the other
            folder = folder / f"batch-{initial_job_idx}"
        composed = [(overrides, self._composer(overrides)) for overrides in job_overrides]
        try:
            states = launch(self.kind, composed, folder, settings)
        finally:
            _drop_unused(folder)
        if not waits or self.config.dry_run:
            return []
        missing = [state for state in states if state.state != "done"]
        if missing and self._basic:
            raise UserError(f"{len(missing)} of {len(states)} runs are not done; see lorsa errors {folder}")
        return [_job_return(overrides, state) for overrides, state in zip(job_overrides, states, strict=True)]

    def _composer(self, overrides: Sequence[str]) -> Callable[[], JobConfig]:
        return lambda: self.composer.job_config(self.config, list(overrides))

    @property
    def _basic(self) -> bool:
        """Whether the sweeper makes nothing of the results."""
        return bool(self.config.hydra.sweeper._target_ == BASIC_SWEEPER)

    def _check_sweeper(self, waits: bool) -> None:
        from lorsa.runner.errors import UserError

        if not self._basic and not waits:
            raise UserError(
                f"{self.config.hydra.runtime.choices['hydra/sweeper']} chooses runs by the results of others, so it "
                "has to wait for them; add hydra.launcher.wait=true."
            )


class SlurmLauncher(SweepLauncher):
    """`hydra/launcher=slurm`."""

    kind = "slurm"


class LocalLauncher(SweepLauncher):
    """`hydra/launcher=local`."""

    kind = "local"


def _job_return(overrides: Sequence[str], state: RunState) -> JobReturn:
    from lorsa.runner.errors import UserError

    done = state.state == "done"
    returned = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED if done else JobStatus.FAILED)
    error = UserError(f"{' '.join(overrides)}: {state.state}{f' ({state.reason})' if state.reason else ''}")
    returned.return_value = _dev_score(state.path) if done else error
    return returned


def _dev_score(path: Path) -> float | None:
    score: float | None = json.loads((path / "result.json").read_bytes())["primary_metric"]["dev"]
    return score


def _drop_unused(folder: Path) -> None:
    """Remove the folder that Hydra's sweeper made, where nothing was submitted."""
    if not (folder / "sweep.json").exists():
        (folder / "multirun.yaml").unlink(missing_ok=True)
        with suppress(OSError):  # until one that is not empty
            for unused in (folder, *folder.parents[:2]):
                unused.rmdir()
