"""Trackers: where a run's curves go besides metrics.jsonl, which is always written and is what every tracker shows.

tracking.py      in the training process: starts a companion process, and at the end waits for it, a bounded time
companion.py     that process: follows metrics.jsonl and hands new rows to one tracker
rows.py          what trackers show of a run: rows of its history, its summary, tags
wandb_run.py     wandb: a run of its own id, from whatever is in a run's directory, online or offline
wandb_live.py    wandb while the run trains
wandb_sync.py    wandb after the fact: `lorsa sync`
wandb_account.py which key there is, and what the server says to it
state.py         what became of a run's copy at wandb
workspace.py     the panels of `lorsa dashboard`
tensorboard.py   event files

Nothing of a tracker is imported in the training process, and nothing there waits for a network: what a tracker does
can neither fail nor slow a run; at its end a run waits for what is left, `tracker.finish_seconds` at most.
"""
