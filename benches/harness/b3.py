"""B3: new credentials during a storm: 10,000 renewals due at once at an issuer that takes 50 ms, and beside them users
who store a `.top` one after the other. From the rename that stores to the rename that publishes."""
import shutil
import time

from . import spool
from .b1 import settle
from .b2 import store
from .issuer import Issuer
from .ours import Ours
from .report import Row, percentile

LATENCY, LIFETIME = 50, 40


def rows(place, quick):
    count = 2000 if quick else 10_000
    directory = spool.make(place.disk + "/ours")
    with Issuer(place.work, LIFETIME) as issuer:
        ours = Ours(directory, place.home("ours"), issuer)
        tokens = issuer.tokens(count)
        late = issuer.tokens(1000, "late")
        spool.populate(directory, count, ours.service, lambda n: ours.top("", tokens[n]))
        try:
            ours.start()
            settle(ours, issuer, directory, count, count, 60)
            ours.freeze()
            time.sleep(LIFETIME * 0.55 + 1.5)
            issuer.latency(LATENCY)
            begin, found = issuer.stats()["exchanges"], []
            ours.thaw()
            time.sleep(0.2)
            while issuer.stats()["exchanges"] < begin + count and len(found) < len(late):
                found.append(store(ours, directory, f"late{len(found)}", late[len(found)], True, 60) * 1000)
            half, most = percentile(found, 50), percentile(found, 99)
            goal = 60 + 2 * LATENCY
            yield Row("B3", f"new .top → .use during {count:,} renewals at {LATENCY} ms, disk: p50", "ms", half, "", None,
                      [("round trip", LATENCY)], note=f"({len(found)} samples)", more={"ms": [round(one, 2) for one in found]})
            yield Row("B3", "… p99", "ms", most, f"≤ 60 + 2 × {LATENCY}", most <= goal)
        finally:
            ours.stop()
            shutil.rmtree(directory, ignore_errors=True)
