"""What each process of tests/runner/test_engines.py runs: several jobs, one after the other.

python one_of_several.py jobs.json outcome-RANK.json

A job is {"overrides": […], "stop_at": update or null, "crash": [rank, update] or null}. With `stop_at` all processes
leave after that update; with `crash` one of them does. The outcome of each job is {"error": text or null,
"computed": number of singular bases taken, "checkpoint_bytes": size of the newest checkpoint}.
"""

import json
import sys
from pathlib import Path
from typing import Any

from lorsa.methods.lorsa import cache
from lorsa.runner import callbacks, distributed
from lorsa.runner.compose import compose
from lorsa.runner.errors import UserError
from lorsa.runner.job import run
from lorsa.runner.signature import signature

computed: list[str] = []
take = cache.singular_basis
ask = callbacks.Recorder.on_step_end
plan: dict[str, Any] = {}


def counted(weight, name="weight"):
    computed.append(name)
    return take(weight, name)


def stopping(self, args, state, control, **kwargs):
    if plan.get("stop_at") == state.global_step:
        stop = UserError("stopped for the test")
        stop.agreed = True
        raise stop
    if plan.get("crash") == [distributed.rank(), state.global_step]:
        raise RuntimeError("crashed for the test")
    return ask(self, args, state, control, **kwargs)


cache.singular_basis = counted
callbacks.Recorder.on_step_end = stopping

outcomes = []
for plan in json.loads(Path(sys.argv[1]).read_text()):
    computed.clear()
    cfg = compose(*plan["overrides"])
    error = None
    try:
        run(cfg)
    except UserError as caught:
        error = str(caught)
    checkpoints = sorted((Path(cfg.runs_dir) / signature(cfg) / "checkpoints").glob("checkpoint-*"))
    files = [path for path in (checkpoints[-1].rglob("*") if checkpoints else ()) if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    outcomes.append({"error": error, "computed": len(computed), "checkpoint_bytes": size})
    Path(sys.argv[2]).write_text(json.dumps(outcomes))
