"""What conf/resources and conf/hydra/launcher hold by default, as plain dictionaries."""

RESOURCES = {
    "name": "cpu",
    "nodes": 1,
    "tasks_per_node": 1,
    "gpus_per_node": 0,
    "cpus_per_task": 2,
    "mem_gb": None,
    "minutes": 60,
    "partition": None,
    "account": None,
    "qos": None,
    "constraint": None,
    "signal_seconds": 120,
    "retries": 3,
    "extra": {},
}
SLURM = {
    "kind": "slurm",
    "wait": False,
    "runs_per_job": 1,
    "parallel": 256,
    "snapshot": False,
    "offline": False,
    "setup": [],
}
