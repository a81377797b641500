"""B12: one renewed token to 100 sites of two kinds, from the rename that publishes it to each site's confirmation: 50
directories on the disk (a durable write each), and 50 programs that take 100 ms, as a round trip does, and write a file."""
import json
import os
import shutil
import subprocess
import time
from datetime import datetime

from . import spool
from .issuer import Issuer
from .machine import BINARIES, Failed
from .ours import Ours
from .report import Row, at_most, median, percentile
from .watch import Watch

TRIP = 0.1
HALF = 50
PROGRAM = f"""#!/bin/sh
sleep {TRIP}
umask 077
cat > "$1.new" && mv "$1.new" "$1"
"""


def evercred(ours, *words):
    done = subprocess.run([BINARIES + "/evercred", *words, "--socket", ours.socket], capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"evercred {' '.join(words)}: {done.stdout[-300:]}{done.stderr[-300:]}{ours.tail()}")
    return done.stdout


def configure(ours, place):
    far, program = place.disk + "/far", place.home("far") + "/program"
    os.makedirs(far)
    with open(program, "w") as f:
        f.write(PROGRAM)
    os.chmod(program, 0o755)
    os.chown(far, 65534, 65534)
    with open(ours.config) as f:
        text = f.read().replace("[daemon]\n", f'[daemon]\nstate_directory = "{place.disk}/state"\nreplicate_user = "nobody"\n', 1)
    for n in range(HALF):
        os.makedirs(f"{far}/d{n}")
        os.chown(f"{far}/d{n}", 65534, 65534)
        text += f'[site.d{n}]\nkind = "directory"\nservices = ["{ours.service}"]\ndirectory = "{far}/d{n}"\n'
        text += f'[site.e{n}]\nkind = "exec"\nservices = ["{ours.service}"]\ncommand = ["{program}", "{far}/e{n}"]\n'
    with open(ours.config, "w") as f:
        f.write(text)


def replicas(ours):
    """By site: when it confirmed, of those that have the newest."""
    page = json.loads(evercred(ours, "status", "--json"))
    rows = [row for one in page["credentials"] for row in one["replicas"]]
    return {row["site"]: datetime.fromisoformat(row["confirmed"].replace("Z", "+00:00")).timestamp() for row in rows if not row["behind"]}


def everywhere(ours, patience):
    end = time.monotonic() + patience
    while time.monotonic() < end:
        found = replicas(ours)
        if len(found) == 2 * HALF:
            return found
        time.sleep(0.2)
    raise Failed(f"{len(found)} of {2 * HALF} sites after {patience} s: {ours.tail()}")


def rows(place, quick):
    directory = spool.make(place.disk + "/sites")
    found, last = [], []
    with Issuer(place.work) as issuer:
        ours = Ours(directory, place.home("ours"), issuer)
        configure(ours, place)
        user = directory + "/alice"
        os.makedirs(user, 0o700)
        spool.put(f"{user}/{ours.service}.top", ours.top("alice", issuer.tokens(1, "alice")[0]))
        try:
            ours.start()
            everywhere(ours, 120)
            for _ in range(3 if quick else 20):
                watch = Watch(user)
                evercred(ours, "renew", f"alice/{ours.service}")
                if watch.wait(f"{ours.service}.use", 30) is None:
                    raise Failed(f"not renewed: {ours.tail()}")
                watch.close()
                begin = os.stat(f"{user}/{ours.service}.use").st_mtime
                time.sleep(1)
                took = [at - begin for at in everywhere(ours, 60).values()]
                if min(took) < 0:
                    raise Failed("a confirmation is older than the token")
                found += took
                last.append(max(took))
        finally:
            ours.stop()
            shutil.rmtree(directory, ignore_errors=True)
    p99 = percentile(found, 99)
    yield Row("B12", f"one token to {2 * HALF} sites (50 directory, 50 exec of {TRIP * 1000:.0f} ms), p99", "s", p99,
              at_most(2 + TRIP, f"2 + {TRIP:.1f}"), [("one site's round trip", TRIP)],
              note=f"p50 {median(found):.2f} s; the last of all, median {median(last):.2f} s, worst {max(last):.2f} s",
              more={"last": [round(one, 3) for one in last]})
