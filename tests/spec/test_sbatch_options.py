"""`executor.sbatch`: an abbreviated option counts as the option that it abbreviates, as for sbatch itself."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from stagger.spec.executors import RESERVED_OPTIONS, SBATCH_OPTIONS, SlurmSpec


def options(**given: str) -> dict[str, object]:
    return dict(SlurmSpec(type="slurm", sbatch={key.replace("_", "-"): value for key, value in given.items()}).sbatch)


@pytest.mark.parametrize("reserved", RESERVED_OPTIONS)
def test_every_beginning_of_a_reserved_option_is_refused(reserved: str) -> None:
    assert reserved in SBATCH_OPTIONS
    for length in range(1, len(reserved) + 1):
        beginning = reserved[:length]
        if beginning == reserved or beginning not in SBATCH_OPTIONS:  # `mem` is an option of its own.
            with pytest.raises(ValidationError, match=f"'{beginning}'"):
                options(**{beginning: "x"})


def test_other_abbreviations_get_their_full_name() -> None:
    assert options(constr="a100", no_req="x", mem="4G") == {"constraint": "a100", "no-requeue": "x", "mem": "4G"}
    assert options(wait_all_nodes="1", site_plugin="x") == {"wait-all-nodes": "1", "site-plugin": "x"}


@pytest.mark.parametrize("written", ["J", "Array", "ARRAY", "job_name", "--array", " output", "output ", "array=1", ""])
def test_what_is_no_long_option_is_refused(written: str) -> None:
    with pytest.raises(ValidationError, match="is not a long option of sbatch"):
        SlurmSpec(type="slurm", sbatch={written: "x"})


def test_one_option_under_two_names_is_refused() -> None:
    with pytest.raises(ValidationError, match="'constraint' is given twice"):
        options(constraint="a", constr="b")


def test_an_ambiguous_beginning_names_what_it_can_stand_for() -> None:
    with pytest.raises(ValidationError, match="'tim' can stand for time, time-min"):
        options(tim="1")
