"""The folder of one sweep: what was asked for, frozen, and the jobs that it was submitted as.

<runs_dir>/sweeps/<time>/
    sweep.json        the command, the launcher's settings, and the runs: signature, overrides, resources
    configs/          the resolved config of every run, by signature; what a job runs
    code/             a copy of the code, if that was asked for
    jobs.jsonl        one line for each job as it is submitted: its id, and its runs
    submitit/         scripts and output of the jobs themselves; a run's own output is in its logs/
"""

from __future__ import annotations

import json
import shlex
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lorsa.runner.errors import UserError

SWEEPS = "sweeps"


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        signature: the run's name.
        overrides: what sets it apart from the other runs.
        resources: what its job asks for: the keys of conf/resources.
    """

    signature: str
    overrides: list[str]
    resources: dict[str, Any]


class Sweep:
    """A sweep's folder.

    Args:
        path: `<runs_dir>/sweeps/<time>`, absolute.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()

    @property
    def runs_dir(self) -> Path:
        """The folder of the runs."""
        return Path(self._stored["runs_dir"])

    @property
    def configs(self) -> Path:
        """Folder of the frozen configs."""
        return self.path / "configs"

    @property
    def code(self) -> Path:
        """Folder of the copied code."""
        return self.path / "code"

    @property
    def jobs(self) -> Path:
        """Folder that submitit writes to."""
        return self.path / "submitit"

    @cached_property
    def runs(self) -> list[SweepRun]:
        """The runs, in the order of the sweep."""
        return [SweepRun(**run) for run in self._stored["runs"]]

    @property
    def launcher(self) -> dict[str, Any]:
        """The launcher's settings: `kind`, slurm or local, and the keys of conf/hydra/launcher."""
        settings: dict[str, Any] = self._stored["launcher"]
        return settings

    @property
    def has_jobs(self) -> bool:
        """Whether any job was submitted."""
        return (self.path / "jobs.jsonl").exists()

    def config(self, signature: str) -> Path:
        """Return where the frozen config of a run is."""
        return self.configs / f"{signature}.yaml"

    def shell_lines(self, settings: Mapping[str, Any]) -> list[str]:
        """Return what a job's shell does first."""
        lines = list(settings["setup"])
        if settings["offline"]:
            lines.append("export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1")
        if settings["snapshot"]:
            lines.append(f"export PYTHONPATH={shlex.quote(str(self.code))}${{PYTHONPATH:+:$PYTHONPATH}}")
        return lines

    def write(
        self, runs_dir: Path, command: list[str], launcher: dict[str, Any], runs: Iterable[SweepRun], configs: list[str]
    ) -> None:
        """Write the folder: the configs, then the list that names them.

        Args:
            runs_dir: the folder of the runs.
            command: the command line.
            launcher: see `launcher`.
            runs: the runs.
            configs: the text of each run's config.

        Raises:
            UserError: it cannot be written.
        """
        from lorsa.runner.rundir import write_atomic, writing

        runs = list(runs)
        document = {
            "command": command,
            "created": _time(time.time()),
            "runs_dir": str(runs_dir.absolute()),
            "launcher": launcher,
            "runs": [asdict(run) for run in runs],
        }
        with writing(self.path):
            self.configs.mkdir(parents=True, exist_ok=True)
            for run, text in zip(runs, configs, strict=True):
                self.config(run.signature).write_text(text, encoding="utf-8")
            write_atomic(self.path / "sweep.json", json.dumps(document, indent=1))
        self._forget()

    def record_jobs(self, jobs: Mapping[str, Sequence[str]]) -> None:
        """Add jobs that were submitted, to the sweep's list at once and then to each of their runs.

        Args:
            jobs: the runs of each job, by its id.
        """
        from lorsa.runner.launch.scheduler import Scheduler
        from lorsa.runner.rundir import write_atomic

        scheduler = Scheduler()
        about = {
            "launcher": self.launcher["kind"],
            "host": socket.gethostname(),
            "user": scheduler.user,
            "cluster": (scheduler.cluster or None) if self.launcher["kind"] == "slurm" else None,
            "sweep": str(self.path),
            "submitted": time.time(),
        }
        lines = [json.dumps({"job_id": job_id, **about, "runs": list(runs)}) + "\n" for job_id, runs in jobs.items()]
        with (self.path / "jobs.jsonl").open("a", encoding="utf-8") as file:
            file.write("".join(lines))
        for job_id, runs in jobs.items():
            for signature in runs:
                write_atomic(self.runs_dir / signature / "job.json", json.dumps({"job_id": job_id, **about}))

    def runs_by_job(self) -> dict[str, list[Path]]:
        """Return the directories of the runs of each job, as far as the sweep's folder is still there."""
        members: dict[str, list[Path]] = {}
        with suppress(FileNotFoundError, UserError):
            for line in (self.path / "jobs.jsonl").read_text(encoding="utf-8").splitlines():
                with suppress(ValueError, KeyError, TypeError):  # a line that was not written to the end
                    job = json.loads(line)
                    members[job["job_id"]] = [self.runs_dir / name for name in job["runs"]]
        return members

    def replace_runs(self, runs: Iterable[SweepRun]) -> None:
        """Put these in the place of the runs with the same signatures."""
        from lorsa.runner.rundir import write_atomic

        new = {run.signature: asdict(run) for run in runs}
        stored = self._stored | {"runs": [new.get(run["signature"], run) for run in self._stored["runs"]]}
        write_atomic(self.path / "sweep.json", json.dumps(stored, indent=1))
        self._forget()

    @property
    def created(self) -> str:
        """When it was made, in UTC; where its list is damaged, when that was written last."""
        try:
            return str(self._stored["created"])
        except (UserError, KeyError):
            return _time((self.path / "sweep.json").stat().st_mtime)

    def _forget(self) -> None:
        for name in ("_stored", "runs"):
            self.__dict__.pop(name, None)

    @cached_property
    def _stored(self) -> dict[str, Any]:
        try:
            stored: dict[str, Any] = json.loads((self.path / "sweep.json").read_text(encoding="utf-8"))
            stored["runs_dir"], stored["launcher"]["kind"], stored["runs"]
        except FileNotFoundError:
            raise UserError(f"{self.path} is no sweep's folder: it has no sweep.json.") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path / 'sweep.json'} is damaged ({type(error).__name__}: {error}).") from error
        return stored


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def find_sweep(name: str, runs_dir: Path) -> Sweep:
    """Return the sweep that a person names: a folder, a name under `<runs_dir>/sweeps`, or `latest`, the last made.

    Raises:
        UserError: there is none.
    """
    folder = runs_dir.expanduser() / SWEEPS
    known = sorted(path.parent.name for path in folder.glob("*/sweep.json"))
    if name == "latest" and known:
        return max((Sweep(folder / each) for each in known), key=lambda sweep: (sweep.created, sweep.path.name))
    for path in (folder / name, Path(name).expanduser()):
        if (path / "sweep.json").is_file():
            return Sweep(path)
    none = "there are none, which hydra/launcher=local or slurm would have left"
    there = f"the sweeps there are {', '.join(known[-5:])}" if known else none
    raise UserError(f"There is no sweep {name} in {folder}; {there}.")
