"""Identity of one process among those of a launcher."""

from __future__ import annotations

import socket

import pytest

from autogen_team._process import identity


@pytest.mark.parametrize(
    ("variables", "is_named", "leads"),
    [
        ({}, False, False),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "0"}, False, False),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"}, True, True),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}, True, False),
        ({"WORLD_SIZE": "4", "SLURM_NNODES": "2", "SLURM_LOCALID": "0"}, True, True),
        ({"WORLD_SIZE": "4", "SLURM_NNODES": "1", "SLURM_LOCALID": "0"}, False, False),
        ({"SLURM_NNODES": "2", "SLURM_LOCALID": "0"}, False, False),
        ({"WORLD_SIZE": "four", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"}, False, False),
    ],
)
def test_a_machine_has_a_name_where_there_are_several(monkeypatch, variables, is_named, leads):
    """The name of the machine is used if torchrun or Slurm reports several."""
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "SLURM_NNODES", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert identity.node() == (socket.gethostname() if is_named else None)
    assert identity.leads_node() == leads
