"""B10: what the storer adds to a submit with a good credential, in a pool of its own (tests/pool/submit-cost): wall time
and processes on top of the one condor_store_cred that any storer must run, beside HTCondor's own storer on its Pelican way,
which asks credd alone."""
import os
import re
import subprocess

from .machine import BINARIES, HERE, Failed
from .report import Row, at_most


def figure(pattern, text):
    """The number in a line of its report."""
    found = re.search(pattern, text, re.MULTILINE)
    if not found:
        raise Failed(f"submit-cost does not tell {pattern}: {text}")
    return float(found[1])


def rows(place, quick):
    if not place.stock:
        return
    command = [os.path.join(HERE, "..", "tests", "pool", "submit-cost"), os.path.dirname(place.root), BINARIES, "10" if quick else "60"]
    asked = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if asked.returncode:
        raise Failed(f"submit-cost ends with {asked.returncode}: {asked.stdout}{asked.stderr}")

    def processes(program):
        return figure(rf"^{program} +(\d+) processes below it", asked.stdout)

    wall = figure(r"^on top of condor_store_cred +(-?[\d.]+)", asked.stdout)
    theirs = figure(r"^HTCondor's storer, on top of it +(-?[\d.]+)", asked.stdout)
    yield Row("B10", "a submit with a good credential: the storer on top of condor_store_cred, median", "ms", wall, at_most(30),
              [("HTCondor's storer", theirs)], more={"report": asked.stdout})
    # Each of them is itself one on top of what condor_store_cred starts.
    alone = processes("condor_store_cred")
    more, theirs = (processes(program) - alone for program in ("evercred_storer", "condor_credential_storer"))
    yield Row("B10", "the same: processes on top of condor_store_cred", "", more, at_most(1), [("HTCondor's storer", theirs)])
