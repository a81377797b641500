"""B5, B6: memory of both processes and the time to CREDMON_COMPLETE, with so many credentials that need nothing."""
import shutil
import time

from . import spool
from .issuer import Issuer
from .machine import memory_mib
from .ours import Ours
from .report import Row, at_most, median
from .stock import NAMES, Stock


def starts(place, where, credmon_of, present, runs):
    """Start RUNS times: seconds until complete, memory after that, requests that were sent."""
    directory = spool.make(where + "/start")
    found = []
    with Issuer(place.work) as issuer:
        credmon = credmon_of(directory, issuer)
        spool.populate(directory, present, credmon.service, lambda n: credmon.top("", f"old-{n}"), credmon.fresh_use(), credmon.meta())
        try:
            for _ in range(runs):
                before = issuer.stats()["requests"]
                took = credmon.start()
                time.sleep(3)
                rss, pss = memory_mib(credmon.process.pid)
                found.append({"seconds": took, "rss_mib": rss, "pss_mib": pss, "requests": issuer.stats()["requests"] - before})
                credmon.stop()
        finally:
            credmon.stop()
            shutil.rmtree(directory, ignore_errors=True)
    return found


def rows(place, quick):
    goals = {0: (14, None), 10_000: (20, 0.15), 100_000: (75, 1.0)}
    for present, (memory, seconds) in goals.items():
        if quick and present > 10_000:
            continue
        found = starts(place, place.disk, lambda d, i: Ours(d, place.home("ours"), i), present, 1 if quick else 5)
        kinds = [] if not place.stock else ["vault"] if present > 10_000 else NAMES
        peers = {NAMES[kind]: starts(place, place.disk, lambda d, i: Stock(kind, place.root, d, place.home(kind), i), present, 1)
                 for kind in kinds}
        def of(what, rows):
            return median([one[what] for one in rows])
        def beside(what):
            return [(name, of(what, rows)) for name, rows in peers.items()]
        # Both are one program: the sum of their resident sizes has its pages twice, the proportional one as often as they are there.
        yield Row("B5", f"memory of both processes, {present:,} credentials", "MiB", of("pss_mib", found), at_most(memory),
                  beside("pss_mib"), more={"runs": found, "peer_runs": peers})
        yield Row("B5", "… as the sum of both resident sizes, shared pages twice", "MiB", of("rss_mib", found), at_most(memory),
                  beside("rss_mib"))
        if seconds:
            asked = max(one["requests"] for one in found)
            yield Row("B6", f"start to CREDMON_COMPLETE, {present:,} credentials, all fresh", "s", of("seconds", found),
                      at_most(seconds, f"{seconds}, 0 requests", asked == 0), beside("seconds"), note=f"({asked} requests)")
