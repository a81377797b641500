"""B3: new credentials during a storm: 10,000 renewals due at once at an issuer that takes 50 ms, and beside them users
who store a `.top` one after the other. From the rename that stores to the rename that publishes. VaultCredmon, which
renews one after the other, has a tenth of the storm, and one new user in each."""
import shutil
import time

from . import spool
from .b1 import settle
from .b2 import store
from .issuer import Issuer
from .ours import Ours
from .report import Row, at_most, median, no_goal, percentile
from .stock import Stock

LATENCY, LIFETIME = 50, 40


def ours(place, count):
    """Milliseconds of each who came during the storm."""
    directory = spool.make(place.disk + "/ours")
    with Issuer(place.work, LIFETIME) as issuer:
        credmon = Ours(directory, place.home("ours"), issuer)
        tokens, late = issuer.tokens(count), issuer.tokens(1000, "late")
        spool.populate(directory, count, credmon.service, lambda n: credmon.top("", tokens[n]))
        try:
            credmon.start()
            settle(credmon, issuer, directory, count, count, 60)
            credmon.freeze()
            time.sleep(LIFETIME * 0.55 + 1.5)
            issuer.latency(LATENCY)
            begin, found = issuer.stats()["exchanges"], []
            credmon.thaw()
            time.sleep(0.2)
            # Who came last may have waited past the end, but not for the storm.
            while issuer.stats()["exchanges"] < begin + count and len(found) < len(late):
                found.append(store(credmon, directory, f"late{len(found)}", late[len(found)], True, 60) * 1000)
            return found
        finally:
            credmon.stop()
            shutil.rmtree(directory, ignore_errors=True)


def stock(place, count, storms):
    """The same of VaultCredmon."""
    directory, found = spool.make(place.disk + "/vault"), []
    with Issuer(place.work) as issuer:
        credmon = Stock("vault", place.root, directory, place.home("vault"), issuer)
        tokens, late = issuer.tokens(count), issuer.tokens(storms, "late")
        try:
            credmon.start()
            time.sleep(1.5)
            issuer.latency(LATENCY)
            for n, token in enumerate(late):
                spool.populate(directory, count, credmon.service, lambda m: credmon.top(f"user{m}", tokens[m]))
                credmon.hang_up()
                time.sleep(1)
                found.append(store(credmon, directory, f"late{n}", token, True, 60 + count * LATENCY / 250) * 1000)
            return found
        finally:
            credmon.stop()
            shutil.rmtree(directory, ignore_errors=True)


def rows(place, quick):
    count = 2000 if quick else 10_000
    found = ours(place, count)
    peer = stock(place, count // 10, 1 if quick else 3) if place.stock else []
    beside = [("round trip", LATENCY)] + ([(f"VaultCredmon, during {count // 10:,}", median(peer))] if peer else [])
    yield Row("B3", f"new .top → .use during {count:,} renewals at {LATENCY} ms, disk: p50", "ms", percentile(found, 50), no_goal(),
              beside, note=f"({len(found)} samples)", more={"ms": [round(one, 2) for one in found], "peer_ms": peer})
    yield Row("B3", "… p99", "ms", percentile(found, 99), at_most(60 + 2 * LATENCY, f"60 + 2 × {LATENCY}"), beside)
