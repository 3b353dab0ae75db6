# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""A short version of campaigns/faults.py; `make faults` runs all of it."""

import re
from pathlib import Path

import pytest

from campaigns.faults import Campaign, Row, end


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    return Campaign(tmp_path_factory.mktemp("faults"), steps=4, seed=1)


def nothing_is_lost(row: Row, runs: int) -> bool:
    if row.problems and row.problems[0].startswith("skipped"):
        pytest.skip(f"{row.fault}: this system does not let a test mount a file system ({row.problems[0]})")
    assert row.problems == []
    return row.runs == row.equal == runs and row.leftover_bytes == 0


def test_runs_killed_at_any_change_to_their_files_resume_to_the_same_weights(campaign: Campaign) -> None:
    assert nothing_is_lost(campaign.killed("before a random file operation", 2), 2)


def test_a_run_killed_in_a_save_resumes_to_the_same_weights(campaign: Campaign) -> None:
    row = campaign.killed("in the middle of a save", 1, kills=1)

    assert nothing_is_lost(row, 1)
    assert row.most_checkpoints_on_disk < 4


def test_sigterm_ends_a_run_with_a_checkpoint_of_the_step_from_which_it_goes_on(campaign: Campaign) -> None:
    assert nothing_is_lost(campaign.terminated(1), 1)


def test_a_run_on_a_full_disk_keeps_its_checkpoints_and_goes_on_when_there_is_room(campaign: Campaign) -> None:
    assert nothing_is_lost(campaign.full_disk(1), 1)


def test_a_read_only_folder_is_rejected_at_once(campaign: Campaign) -> None:
    assert nothing_is_lost(campaign.read_only(1), 1)


def test_one_of_two_processes_killed_ends_the_other_and_the_run_resumes(campaign: Campaign) -> None:
    row = campaign.lost_rank(1)

    assert nothing_is_lost(row, 1)
    assert row.slowest_end < 60


def test_a_half_written_checkpoint_or_a_wrong_one_would_be_seen(campaign: Campaign, tmp_path: Path) -> None:
    """The campaign itself: it must find what it is there to find."""
    row, folder = Row("planted"), tmp_path / "run"
    assert end(campaign.fork(campaign.command(folder, save_total_limit=None))) == 0
    weights = (folder / "checkpoint-1" / "model.safetensors").read_bytes()
    (folder / "checkpoint-1" / "model.safetensors").write_bytes(weights[:-1])
    (folder / "checkpoint-2" / "optimizer.pt").unlink()
    (folder / "checkpoint-3" / "model.safetensors").write_bytes(weights)

    campaign.check(row, folder, before=5, status=-9)
    assert (row.checkpoints_seen, row.not_whole, row.lost) == (4, 3, 1)
    assert [re.search(r"checkpoint-\d", problem)[0] for problem in sorted(row.problems)][:3] == [
        "checkpoint-1",
        "checkpoint-2",
        "checkpoint-3",
    ]
    (folder / "model.safetensors").write_bytes(weights)
    campaign.compare(row, folder)
    assert row.equal == 0 and row.leftover_bytes > 0
