"""wandb while a run trains: curves as they grow where there is a key and a server, else files at the end."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorsa.runner.errors import UserError
from lorsa.runner.trackers.rows import Row
from lorsa.runner.trackers.state import State, digest, write_state
from lorsa.runner.trackers.wandb_account import (
    Account,
    UnreachableError,
    check_account,
    find_key,
    quiet,
    require,
)
from lorsa.runner.trackers.wandb_run import drop_files, log_result, log_rows, open_run, write_offline

if TYPE_CHECKING:
    import wandb

# Between questions to a server that does not answer.
RETRY_SECONDS = 60.0
# Of the time that the run waits; the rest is for the files.
SENDING_SHARE = 0.8
# For an answer, where the run is over already.
LAST_WORD_SECONDS = 1.0


class LiveWandb:
    """A run's copy at wandb.

    Args:
        run: the run's directory.
        config: its config.
        group: the sweep.
    """

    def __init__(self, run: Path, config: Mapping[str, Any], group: str | None) -> None:
        self._run, self._config, self._group = run, config, group
        self._opened: wandb.Run | None = None
        self._account: Account | None = None
        self._sent: State | None = None
        self._last = -1
        self._reason = ""  # why it is offline
        self._hopeless = False
        quiet()
        require()
        import wandb

        # Its service starts now, and not when the run waits for the end.
        wandb.setup()
        self._key = self._find_key()
        self._ask()

    def _find_key(self) -> str | None:
        mode = self._config["tracker"]["mode"]
        if mode == "auto" and os.environ.get("WANDB_MODE", "online") not in ("online", "run"):
            mode = "offline"
        if mode == "offline":
            self._give_up("as asked for")
            return None
        try:
            key = find_key()
        except UserError as error:
            self._give_up(str(error))
            return None
        if key is None:
            self._give_up("there is no key: set WANDB_API_KEY or run wandb login")
        return key

    def _give_up(self, reason: str) -> None:
        self._reason, self._hopeless = reason.rstrip("."), True
        print(f"wandb: offline: {self._reason}", flush=True)

    def update(self, rows: list[Row]) -> None:
        """Send what is new, all but the last row: its score may be missing yet."""
        if self._opened is None and not self._hopeless:
            if self._account is not None:
                self._open()
            elif time.monotonic() - self._asked > RETRY_SECONDS:
                self._ask()
        if self._opened is not None:
            try:
                self._last = log_rows(self._opened, rows[:-1], self._last)
            except Exception as error:  # wandb's own process may be gone
                self._opened = None
                self._give_up(f"{type(error).__name__}: {error}")

    def _ask(self) -> None:
        """Ask the server who the key is of, beside this thread, which must not wait for it."""
        self._asked = time.monotonic()
        self._question = threading.Thread(target=self._answer, daemon=True)
        if not self._hopeless:
            self._question.start()

    def _answer(self) -> None:
        try:
            self._account = check_account(self._key)
        except UnreachableError as error:
            self._reason = str(error).rstrip(".")
            print(f"wandb: {error}", flush=True)
        except Exception as error:
            self._give_up(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")

    def _open(self) -> None:
        drop_files(self._run)
        try:
            self._opened = open_run(
                self._run,
                self._config,
                self._group,
                online=True,
                finish_seconds=max(1.0, SENDING_SHARE * self._config["tracker"]["finish_seconds"]),
                watched=os.getppid(),
            )
        except Exception as error:  # whatever a server may do to it
            self._give_up(f"{type(error).__name__}: {error}")
            return
        self._last = self._opened.starting_step - 1
        print(f"wandb: {self._opened.url}", flush=True)

    def finish(self, rows: list[Row], end: str) -> None:
        """Send the rest, or write it to files where that cannot be, or takes too long."""
        if not self._hopeless:
            # Some of wandb's calls have no time limit of their own.
            sender = threading.Thread(target=self._send, args=(rows, end), daemon=True)
            sender.start()
            sender.join(SENDING_SHARE * self._config["tracker"]["finish_seconds"])
            if sender.is_alive():
                self._reason = self._reason or "the server was too slow"
        if self._sent is None:
            reason = self._reason or "the server did not answer while the run lasted"
            # First what is certain; the files are for those who use wandb's own commands.
            write_state(self._run, State("offline", reason=reason, group=self._group))
            write_offline(self._run, self._config, self._group)
        else:
            write_state(self._run, self._sent)

    def _send(self, rows: list[Row], end: str) -> None:
        try:
            if self._opened is None:
                # A run may be shorter than the question.
                self._question.join(LAST_WORD_SECONDS)
                if self._account is not None:
                    self._open()
            if self._opened is not None:
                self._sent = self._finish_online(self._opened, rows, end)
        except Exception as error:
            traceback.print_exc()
            self._reason = f"{type(error).__name__}: {error}"

    def _finish_online(self, opened: wandb.Run, rows: list[Row], end: str) -> State:
        final = end in ("done", "failed")
        log_rows(opened, rows if final else rows[:-1], self._last)
        artifacts = log_result(opened, self._run, self._config) if end == "done" else []
        if not final:
            opened.mark_preempting()
        url = str(opened.url)
        place = f"{opened.settings.base_url}/{opened.entity}/{opened.project}"
        opened.finish(exit_code=0 if end == "done" else 1)
        # A LoRSA run's figure takes too long for a job: `lorsa sync` adds it, and artifacts that did not arrive.
        whole = end == "done" and not self._has_figure() and all(map(_arrived, artifacts))
        return State("online", url, digest(self._run, place) if whole else "", group=self._group)

    def _has_figure(self) -> bool:
        return str(self._config["method"]["config"].get("_target_", "")).startswith("lorsa.methods.LorsaConfig")


def _arrived(artifact: wandb.Artifact) -> bool:
    """Whether the server has an artifact, once its run is finished."""
    try:
        artifact.wait(timeout=0)
    except Exception:  # refused, or not known to be there
        return False
    return True
