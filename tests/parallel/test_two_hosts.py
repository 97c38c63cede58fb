"""``scripts/two-hosts``: a run on two hosts, of which one is cut off and brought back."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PROBE = f"grpaint-probe-{os.getpid()}"


def permitted():
    """Whether this process may make network namespaces."""
    if not shutil.which("ip"):
        return False
    made = subprocess.run(["ip", "netns", "add", PROBE], capture_output=True, check=False).returncode == 0
    if made:
        subprocess.run(["ip", "netns", "del", PROBE], check=True)
    return made


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_whose_second_host_is_cut_off_ends_by_its_limit_and_resumes_to_the_same_numbers(tmp_path):
    if not permitted():
        pytest.skip("network namespaces need root and iproute2")
    settings = {"VENV": str(Path(sys.executable).parent.parent), "LIMIT_S": "20"}
    done = subprocess.run(
        [ROOT / "scripts/two-hosts", tmp_path / "hosts"],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ended = re.search(
        r"the first host ended (\d+) s later, exit code 1, and said\ngrpaint: (.*)\nthe second", done.stdout
    )
    assert ended
    assert 20 <= int(ended[1]) < 120
    assert re.match(r"rank 0 waited 2\d s in the phase ", ended[2])
    assert " for rank 1 (node 1), last in the phase " in ended[2]
    assert ended[2].endswith("It took longer than processes.limit_s = 20; continue with --resume.")
    assert done.stdout.endswith("8 iterations\nmetrics: the same\nweights: the same bytes\n")
