"""B8: an outage of six hours and the recovery, in virtual time: the planner's simulator (tests/simulator.rs) with its
50,000 credentials, an hour of life each, a provider's limit of 100 a second."""
import os
import re
import subprocess

from .machine import HERE, Failed
from .report import Row, at_most, exactly


def rows(_place, _quick):
    run = subprocess.run(["cargo", "test", "--release", "--locked", "--test", "simulator", "a_six_hour_outage", "--", "--nocapture"],
                         cwd=HERE + "/..", capture_output=True, text=True)
    line = next((line for line in run.stdout.splitlines() if line.startswith("outage: ") and "peak" in line), None)
    if run.returncode or line is None:
        raise Failed(f"the simulator failed:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    peak = int(re.search(r"peak (\d+)/s", line).group(1))
    healthy = int(re.search(r"expired while healthy (\d+)", line).group(1))
    yield Row("B8", "6 h outage, 50,000 credentials, virtual time: peak after it", "/s", peak, at_most(100, "100: the limit"))
    yield Row("B8", "… expired though the issuer answered", "", healthy, exactly(0), note=f"({line.removeprefix('outage: ')})")
