"""One run of a sweep, in a process of its own: `python -m lorsa.runner.launch.worker CONFIG`.

Exits as `lorsa-run` does: 0 done, 1 a defect, 2 refused; and 75 when it was told to stop and can go on.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from lorsa.runner import stop
from lorsa.runner.launch.task import CANCEL_SIGNAL

# A shared file system may show a new file late.
FILE_SECONDS = 60.0


def main() -> None:
    """Run the frozen config that the command line names."""
    stop.listen()
    # Meant for the process that started this one; some clusters send it to every process of a job.
    signal.signal(CANCEL_SIGNAL, signal.SIG_IGN)
    from omegaconf import OmegaConf

    from lorsa.runner.cli import EXIT_BAD_INPUT
    from lorsa.runner.distributed import is_main
    from lorsa.runner.errors import UserError
    from lorsa.runner.job import run
    from lorsa.runner.rundir import JOB_ID, RunDirectory
    from lorsa.runner.schema import register_resolvers, typed
    from lorsa.runner.signature import signature

    path = Path(sys.argv[1])
    directory = None
    try:
        wait_for(path)
        register_resolvers()
        cfg = typed(OmegaConf.load(path))  # type: ignore[arg-type]
        directory = RunDirectory(cfg.runs_dir, path.stem)
        # `force` throws away what was there before the sweep, not what an earlier attempt of it left.
        cfg.force = cfg.force and not directory.status().get("training", False)
        if signature(cfg) != path.stem:
            raise UserError(
                f"{path} is not this run any more: the code, the model's or the data's files changed since it was "
                "submitted; run the sweep's command again, with hydra.launcher.snapshot=true to keep the code."
            )
        run(cfg)
    except UserError as error:
        print(f"lorsa: {error}", file=sys.stderr)
        # What is refused before the run holds its directory is recorded nowhere else.
        status = {} if directory is None else directory.status()
        if directory is not None and is_main() and status.get("state") == "queued":
            refused = {"state": "failed", "job_id": os.environ.get(JOB_ID), "error": f"UserError: {error}"}
            directory.write("status.json", json.dumps(status | refused, indent=2))
        sys.exit(EXIT_BAD_INPUT)
    except stop.StopRequested as request:
        print(f"lorsa: stopped by {request}; the next attempt goes on from the last checkpoint.", file=sys.stderr)
        sys.exit(stop.EXIT_STOPPED)


def wait_for(path: Path) -> None:
    """Wait until a file that another machine wrote is seen here.

    Raises:
        UserError: it is not there after a minute.
    """
    from lorsa.runner.errors import UserError

    until = time.monotonic() + FILE_SECONDS
    while not path.exists():
        if time.monotonic() > until:
            raise UserError(f"{path} is not there, after a wait of {FILE_SECONDS:.0f} s; was the sweep deleted?")
        time.sleep(1)


if __name__ == "__main__":
    main()
