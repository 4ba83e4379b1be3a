"""What SLURM is asked, how often, and what becomes of answers that do not come."""

import time

import pytest

from lorsa.runner.errors import UserError
from lorsa.runner.launch import scheduler as module
from lorsa.runner.launch.scheduler import JobState, Scheduler, command, max_array_size


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves on."""

    class Clock:
        now = 1000.0

        def __call__(self):
            return self.now

    made = Clock()
    monkeypatch.setattr(module.time, "monotonic", made)
    return made


def test_elements_of_arrays_and_their_reasons_are_read(slurm):
    slurm.queue("7_0|RUNNING|None", "7_1|PENDING|Priority", "8|PENDING|a|b", "a line of something else")
    scheduler = Scheduler()
    assert scheduler.state("7_0") == JobState("RUNNING", "None")
    assert scheduler.state("8") == JobState("PENDING", "a|b")
    assert scheduler.state("9") is None
    assert "--me" in slurm.calls("squeue")[0]


def test_slurm_is_asked_once_a_minute(slurm, clock):
    scheduler = Scheduler()
    for _ in range(30):
        scheduler.queue()
        scheduler.over({"7"})
        clock.now += 2
    assert len(slurm.calls("squeue")) == 1
    clock.now += 1
    scheduler.queue()
    assert len(slurm.calls("squeue")) == 2


def test_a_clock_that_jumps_changes_nothing(slurm, monkeypatch):
    scheduler = Scheduler()
    scheduler.queue()
    for jump in (1e9, -1e9):
        now = time.time()
        monkeypatch.setattr(module.time, "time", lambda now=now, jump=jump: now + jump)
        scheduler.queue()
    assert len(slurm.calls("squeue")) == 1


def test_the_accounting_is_asked_once_for_each_answer_of_the_queue(slurm, clock):
    slurm.command("sacct", "exit 1")
    scheduler = Scheduler()
    for _ in range(10):
        for job_id in scheduler.over({"7_0", "7_1"}):
            assert scheduler.past({job_id}) == {}
        clock.now += 2
    assert len(slurm.calls("sacct")) == 2
    assert "-j 7 " in slurm.calls("sacct")[0]


def test_an_accounting_that_lags_behind_is_asked_again(slurm, clock):
    slurm.accounting("7|RUNNING", "8|OUT_OF_MEMORY", "9|CANCELLED by 1000")
    scheduler = Scheduler()
    known = {"8": JobState("OUT_OF_MEMORY"), "9": JobState("CANCELLED")}
    assert scheduler.past({"7", "8", "9"}) == known
    slurm.accounting("7|TIMEOUT")
    clock.now += 61
    scheduler.queue()
    assert scheduler.past({"7", "8", "9"}) == known | {"7": JobState("TIMEOUT")}
    assert "-j 7 " in slurm.calls("sacct")[-1]


def test_a_cluster_without_accounting_knows_no_past(slurm):
    assert Scheduler().past({"7"}) == {}


def test_many_jobs_are_asked_for_in_several_questions(slurm, monkeypatch):
    monkeypatch.setattr(module, "IDS_PER_QUESTION", 2)
    slurm.accounting("3_1|FAILED", "3|FAILED")
    assert Scheduler().past({"1", "2", "3_0", "3_1"}) == {"3_1": JobState("FAILED")}
    assert len(slurm.calls("sacct")) == 2


def test_a_job_that_was_submitted_after_the_last_answer_is_not_over(slurm, clock):
    scheduler = Scheduler()
    assert scheduler.over({"7"}) == {"7"}
    slurm.queue("8|PENDING|None")
    assert scheduler.over({"7", "8", "9"}) == {"7"}
    clock.now += 61
    assert scheduler.over({"7", "8", "9"}) == {"7", "9"}


def test_no_job_is_over_where_slurm_does_not_answer(slurm, clock):
    slurm.command("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    scheduler = Scheduler()
    assert scheduler.over({"7"}) == set()
    slurm.queue()
    assert scheduler.over({"7"}) == set()
    clock.now += 61
    assert scheduler.over({"7"}) == {"7"}


def test_slurm_that_hangs_is_given_up(slurm, monkeypatch):
    slurm.command("squeue", "read -t 30 <> <(:)")
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    assert Scheduler().over({"7"}) == set()
    with pytest.raises(UserError, match="SLURM did not answer squeue"):
        command(["squeue"])


def test_a_machine_without_slurm_has_an_empty_queue_and_says_so_on_submission(no_slurm):
    assert Scheduler().queue() == {}
    with pytest.raises(UserError, match=r"no scontrol on this machine; .* or use hydra/launcher=local"):
        max_array_size()


def test_slurms_own_words_are_shown(slurm):
    slurm.command("scontrol", "echo 'slurm_load_ctl_conf error:' >&2; echo '  Zero Bytes' >&2; exit 1")
    with pytest.raises(UserError, match="SLURM refused: slurm_load_ctl_conf error: Zero Bytes"):
        max_array_size()
    slurm.command("scontrol", "exit 3")
    with pytest.raises(UserError, match="scontrol exited 3"):
        max_array_size()


def test_the_largest_array_is_the_clusters(slurm):
    assert max_array_size() == 1001
    slurm.command("scontrol", "echo 'MaxArraySize = 4'")
    assert max_array_size() == 4
    slurm.command("scontrol", "echo 'SlurmUser = root'")
    assert max_array_size() == 1001
