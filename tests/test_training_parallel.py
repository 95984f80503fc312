"""Data-parallel training against one process."""

import json

import torch

from explorer.training import OptimizerPlan, Plan
from tests.regressions import Regression, Repeat, line, run, weights


def test_two_processes_average_to_the_full_batch(tmp_path):
    from torch import multiprocessing as mp

    mp.start_processes(_worker, (str(tmp_path),), nprocs=2, start_method="fork")
    method = Regression()
    run(method, Repeat(line()), Plan(5, optimizer=OptimizerPlan(lr=0.05)))
    for rank in range(2):
        theirs = torch.tensor(json.loads((tmp_path / f"{rank}.json").read_text()), dtype=torch.float64)
        assert (theirs - weights(method)).abs().max() < 1e-12


def _worker(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    method = Regression()
    run(method, Repeat(line().chunk(2)[rank]), Plan(5, optimizer=OptimizerPlan(lr=0.05)))
    with open(f"{folder}/{rank}.json", "w") as stream:
        json.dump(weights(method).tolist(), stream)
    torch.distributed.destroy_process_group()
