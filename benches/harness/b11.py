"""B11: `evercred status` of 10,000 credentials, from the start of the program to its end: the page for people, and JSON."""
import shutil
import subprocess
import time

from . import spool
from .issuer import Issuer
from .machine import BINARIES, Failed
from .ours import Ours
from .report import Row, at_most, median


def rows(place, quick):
    count, times = (1000, 3) if quick else (10_000, 15)
    directory = spool.make(place.disk + "/status")
    with Issuer(place.work) as issuer:
        ours = Ours(directory, place.home("ours"), issuer)
        spool.populate(directory, count, ours.service, lambda n: ours.top("", f"old-{n}"), ours.fresh_use())
        try:
            ours.start()
            time.sleep(2)
            for form in ([], ["--json"]):
                found = []
                for _ in range(times):
                    begin = time.monotonic()
                    said = subprocess.run([BINARIES + "/evercred", "status", "--socket", ours.socket, *form], capture_output=True, text=True)
                    found.append((time.monotonic() - begin) * 1000)
                    if said.returncode or said.stdout.count("user") < count:
                        raise Failed(f"status: {said.returncode}: {said.stdout[:200]}{said.stderr[:500]}")
                took = median(found)
                yield Row("B11", f"evercred status{' --json' if form else ''} of {count:,} credentials", "ms", took, at_most(100),
                          more={"ms": [round(one, 2) for one in found]})
        finally:
            ours.stop()
            shutil.rmtree(directory, ignore_errors=True)
