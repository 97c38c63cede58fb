"""A part of what ``scripts/fuzz`` tries: damaged and foreign input of each kind, none of which may end in a fault."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("fuzz")
MINUTES = 0.2


@pytest.mark.parametrize("subject", ["client", "data", "recipes", "runs", "server"])
def test_foreign_input_ends_in_a_result_or_one_line(subject):
    command = [sys.executable, str(FUZZ), subject, "--minutes", str(MINUTES), "--seed", "0"]
    fuzz = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert fuzz.returncode == 0, fuzz.stdout + fuzz.stderr[-2000:]
    assert re.search(r"\b[1-9]\d* done\b.*; 0 faults", fuzz.stdout), fuzz.stdout
