"""The same jobs on a GPU."""

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("method", ["lorsa", "lorsa_selected", "lorsa_subspace", "lora", "full"])
def test_a_job_runs_on_the_gpu_in_every_precision(job, method, precision):
    result = job("debug=smoke", "engine.device=cuda", f"engine.precision={precision}", f"method={method}")
    assert result["hardware"]["device"] == "cuda"
    assert result["hardware"]["gpus"]
    assert 0 < result["memory"]["peak_bytes"] < torch.cuda.get_device_properties(0).total_memory
    assert result["primary_metric"]["test"] is not None


def test_the_gpu_trains_as_the_cpu_does(job):
    options = ["train.overfit_rows=32", "train.epochs=4", "task=rte"]
    on_cpu, on_gpu = (job(*options, f"engine.device={device}") for device in ("cpu", "cuda"))
    assert on_gpu["components"] == on_cpu["components"]
    assert on_gpu["primary_metric"]["dev"] == pytest.approx(on_cpu["primary_metric"]["dev"], abs=0.07)
