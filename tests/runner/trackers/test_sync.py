"""`lorsa sync` and `lorsa dashboard`, on a server that is made up, and without one."""

import json
import subprocess
import sys

import pytest
from logged import lines
from wandb_server import KEY

from lorsa.runner.app import EXIT_BAD_INPUT
from lorsa.runner.trackers.rows import read_rows
from lorsa.runner.trackers.workspace import TASKS, make_workspace, spec


def refusal(done):
    assert done.returncode == EXIT_BAD_INPUT
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("lorsa: ")
    return sentence


def shown(server, run):
    """The history that the server has of a run."""
    return [{k: v for k, v in row.items() if k[0] != "_"} for row in server.runs[run.name].history]


def values(run):
    return [row.values for row in read_rows(run / "metrics.jsonl")]


def test_runs_are_sent_once_whatever_they_were_made_with(make_run, lorsa, server, tmp_path):
    plain = make_run("aaaaaaaaaaaaaaaa", tracker="none")
    (plain / "job.json").write_text(json.dumps({"sweep": "/runs/sweeps/2026-01-01_00-00-00"}))
    half = make_run("bbbbbbbbbbbbbbbb", done=False, log=lines(10, 60) + '{"step": 70, "lo')
    offline = half / "wandb" / "offline-run-20260101_000000-bbbbbbbbbbbbbbbb"
    offline.mkdir(parents=True)
    (offline / "run-bbbbbbbbbbbbbbbb.wandb").touch()
    (tmp_path / "runs" / "notes").mkdir()
    done = lorsa("sync", "--json", "--project", "mine")
    assert done.returncode == 0, done.stderr
    first, second, other = json.loads(done.stdout)
    assert (first["state"], second["state"], other["state"]) == ("sent", "sent", "left out")
    assert first["url"] == f"{server.url}/someone/mine/runs/{plain.name}"
    assert "no run's folder" in other["reason"]
    assert shown(server, plain) == values(plain)
    # Its last update may get a score yet.
    assert shown(server, half) == values(half)[:-1]
    assert server.runs[plain.name].fields["groupName"] == "2026-01-01_00-00-00"
    assert server.runs[plain.name].artifacts == {f"adapter-{plain.name}": "model", f"report-{plain.name}": "report"}
    # wandb's own command would send it a second time.
    assert (offline / "run-bbbbbbbbbbbbbbbb.wandb.synced").exists()

    again = json.loads(lorsa("sync", "--json", "--project", "mine").stdout)
    assert [each["state"] for each in again] == ["up to date", "up to date", "left out"]
    # The half-made run went on, and what was noted of the other is lost.
    (half / "metrics.jsonl").write_text(lines(10, 60) + '{"step": 60, "primary": 0.5}\n' + lines(70, 100))
    (plain / "wandb" / "state.json").unlink()
    third = json.loads(lorsa("sync", "--json", "--project", "mine").stdout)
    assert [each["state"] for each in third[:2]] == ["sent", "sent"]
    assert shown(server, plain) == values(plain)
    assert shown(server, half) == values(half)[:-1]
    assert [row["eval/primary"] for row in shown(server, half) if row["step"] == 60] == [0.5]
    assert {name: len(versions) for name, versions in server.artifacts.items()} == {
        f"adapter-{plain.name}": 1,
        f"report-{plain.name}": 1,
    }


def test_runs_go_where_training_sends_them_and_a_failed_one_is_whole(make_run, lorsa, server, monkeypatch):
    failed = make_run("aaaaaaaaaaaaaaaa", done=False)
    (failed / "status.json").write_text(json.dumps({"state": "failed"}))
    monkeypatch.setenv("WANDB_ENTITY", "team")
    (sent,) = json.loads(lorsa("sync", "--json").stdout)
    assert sent["url"] == f"{server.url}/team/lorsa/runs/{failed.name}"
    assert shown(server, failed) == values(failed)


def test_a_damaged_run_that_is_named_is_refused_and_keeps_no_other(make_run, lorsa, server, tmp_path):
    good, bad, bare = make_run("aaaaaaaaaaaaaaaa"), make_run("bbbbbbbbbbbbbbbb"), make_run("cccccccccccccccc")
    (bad / "result.json").write_text('{"schema')
    (bare / "config.yaml").unlink()
    sentence = refusal(lorsa("sync", bad, good, bare))
    assert "2 of 3 runs could not be sent" in sentence and "result.json is damaged" in sentence
    assert list(server.runs) == [good.name]
    sentence = refusal(lorsa("sync"))
    assert "1 of 3 runs could not be sent" in sentence and "result.json is damaged" in sentence
    (tmp_path / "other").mkdir()
    assert "is no run's folder and holds none" in refusal(lorsa("sync", tmp_path / "other"))
    assert "There is no run nothing" in refusal(lorsa("sync", "nothing"))


def test_without_a_valid_key_or_a_server_it_says_so(make_run, lorsa, server, monkeypatch):
    make_run()
    server.status = 401
    for words in (["sync"], ["dashboard"]):
        assert "does not take the key: it is wrong, or its session has expired" in refusal(lorsa(*words))
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert "The wandb key is wrong" in refusal(lorsa("sync"))
    monkeypatch.delenv("WANDB_API_KEY")
    assert "There is no key for wandb" in refusal(lorsa("sync"))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert "cannot be reached" in refusal(lorsa("sync"))


@pytest.mark.parametrize(("package", "words"), [("wandb", ["sync"]), ("wandb_workspaces", ["dashboard", "--out", "x"])])
def test_without_the_package_it_says_how_to_install_it(make_run, tmp_path, package, words):
    make_run()
    code = (
        f"import sys; sys.modules[{package!r}] = None; from lorsa.runner.app import main; sys.argv[0] = 'lorsa'; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "is not installed" in refusal(done) and "pip install 'lorsa[wandb]'" in done.stderr


def test_a_dashboard_is_saved_in_place_of_the_one_before(make_run, lorsa, server):
    assert "There is no project someone/lorsa" in refusal(lorsa("dashboard"))
    make_run()
    assert lorsa("sync").returncode == 0
    for _ in range(2):
        done = lorsa("dashboard", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["workspace"].startswith(f"{server.url}/someone/lorsa?nw=")
    (view,) = server.views.values()
    assert view["displayName"] == "lorsa"


def test_a_dashboard_in_a_file_needs_no_key_and_shows_what_is_logged(make_run, lorsa, tmp_path):
    done = lorsa("dashboard", "--out", tmp_path / "workspace.json")
    assert done.returncode == 0, done.stderr
    sections = json.loads((tmp_path / "workspace.json").read_text())["section"]["panelBankConfig"]["sections"]
    panels = {section["name"]: section["panels"] for section in sections}
    scores = [panel["config"]["metrics"] for panel in panels["Score by method and task"]]
    assert scores == [[f"score/by_task/{task}"] for task in TASKS]
    pareto = [panel["config"] for panel in panels["Pareto: score by trained parameters"]]
    assert all(each["xAxisLogScale"] and each["showMaxYAxisLine"] for each in pareto)
    assert {"Curves", "Memory and time", "LoRSA's components"} <= set(panels)
    assert "there is no folder" in refusal(lorsa("dashboard", "--out", tmp_path / "none" / "x.json"))


def test_every_panel_has_a_name_of_its_own():
    sections = spec(make_workspace("someone", "lorsa", "mine"))["section"]["panelBankConfig"]["sections"]
    assert all(section["panels"] for section in sections)
