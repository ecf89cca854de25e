"""Two processes compute what one does: sharded, with experts apart, and as a pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.model import ranks

RELATIVE = {"cpu": 2e-5, "cuda": 1e-3}
"""Of a tensor's largest number: what the order of summation changes in FP32."""


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def kind(request: pytest.FixtureRequest) -> str:
    """Where the ranks compute: on the CPU over gloo, or on two GPUs over NCCL."""
    if request.param == "cuda" and torch.cuda.device_count() < ranks.RANKS:
        pytest.skip("there are no two GPUs")
    return str(request.param)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory, kind: str) -> Path:
    """Plays all scenes of `ranks` on two processes, which import torch only once."""
    from model import V3Config, V3ForCausalLM

    folder, scratch = tmp_path_factory.mktemp("parallel-model"), tmp_path_factory.mktemp("parallel")
    torch.manual_seed(0)
    V3ForCausalLM(V3Config(**ranks.SHAPE, num_nextn_predict_layers=2)).save_pretrained(folder)
    torch.multiprocessing.spawn(ranks.play, (folder, scratch, kind), nprocs=ranks.RANKS)
    return scratch


@pytest.mark.parametrize("rank", range(ranks.RANKS))
@pytest.mark.parametrize("scene", ranks.SCENES)
def test_two_processes_compute_what_one_does(scratch: Path, kind: str, scene: str, rank: int) -> None:
    found = json.loads((scratch / f"{scene}-{rank}.json").read_text())
    assert isinstance(found, dict), found
    assert found
    assert {name: value for name, value in found.items() if not value <= RELATIVE[kind]} == {}


def test_layers_are_cut_evenly() -> None:
    from model.parallel.pipeline import split

    assert split(7, 3) == [range(3), range(3, 5), range(5, 7)]
    assert split(61, 16)[0].start == 0
    assert [len(part) for part in split(61, 16)].count(4) == 13
    with pytest.raises(ValueError, match="3 layers cannot be cut into 4"):
        split(3, 4)
