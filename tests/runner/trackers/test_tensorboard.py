"""TensorBoard's files, read by TensorBoard."""

from logged import lines
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lorsa.runner.trackers.rows import read_rows


def scalars(run):
    accumulator = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def test_a_run_that_was_killed_and_went_on_is_one_curve(make_run, companion):
    run = make_run(log=lines(10, 60), tracker="tensorboard")
    companion(run).end("")
    assert [step for step, _ in scalars(run)["train/loss"]] == [10, 20, 30, 40, 50, 60]
    (run / "metrics.jsonl").write_text(lines(10, 100))
    companion(run).end("done")
    found = scalars(run)
    rows = read_rows(run / "metrics.jsonl")
    assert [step for step, _ in found["train/loss"]] == [row.step for row in rows]
    assert [round(value, 6) for _, value in found["train/loss"]] == [round(row.values["train/loss"], 6) for row in rows]
    assert [step for step, _ in found["eval/primary"]] == [50, 100]
    assert found["score/test"] == [(100, 0.5)]
