"""Stand-ins for Slurm's commands, first on the PATH of the command line."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import Cli


def front(cli: Cli, folder: Path, **scripts: str) -> Path:
    """Write stand-ins for Slurm's commands that record their calls but run nothing. Returns the file of the calls."""
    place = folder / "front"
    place.mkdir()
    answers = {"sbatch": f"echo Submitted batch job $((9000 + $(wc -l < {place}/calls)))", "srun": "true"}
    answers |= {"scontrol": "echo MaxArraySize = 1001", "sacctmgr": "exit 1", "squeue": "true", "sacct": "true"}
    for name, script in {**answers, **scripts}.items():
        (place / name).write_text(f'#!/bin/bash\necho "{name} $*" >> {place}/calls\n{script}\n')
        (place / name).chmod(0o755)
    (place / "calls").touch()
    cli.env["PATH"] = f"{place}:{cli.env['PATH']}"
    return place / "calls"
