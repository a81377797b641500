"""B2: how long a new `.top` waits for its `.use`, with so many credentials present that need nothing: from the rename
that stores it (and, where said, the signal that credd sends) to the rename that publishes."""
import os
import shutil
import time

from . import spool
from .issuer import Issuer
from .machine import Failed
from .ours import Ours
from .report import Row, at_most, median, no_goal, percentile
from .stock import Stock
from .watch import Watch


def store(credmon, directory, user, token, signal, patience):
    """Store as credd does; the seconds until the `.use`."""
    home = f"{directory}/{user}"
    os.makedirs(home, 0o700, exist_ok=True)
    watch = Watch(home)
    top = credmon.top(user, token)
    begin = time.monotonic()
    spool.put(f"{home}/{credmon.service}.top", top)
    if signal:
        credmon.hang_up()
    end = watch.wait(f"{credmon.service}.use", patience)
    watch.close()
    if end is None:
        raise Failed(f"{credmon.name}: no .use in {patience} s: {credmon.tail()}")
    return end - begin


def waits(credmon, directory, issuer, samples, signal, pause, patience=150):
    """SAMPLES new users, one after the other."""
    found = []
    for n, token in enumerate(issuer.tokens(samples, "new")):
        user = f"new{int(signal)}x{n}"
        found.append(store(credmon, directory, user, token, signal, patience))
        time.sleep(pause)
    return found


def ours(place, where, present, samples):
    directory = spool.make(where + "/ours")
    with Issuer(place.work) as issuer:
        credmon = Ours(directory, place.home("ours"), issuer)
        spool.populate(directory, present, credmon.service, lambda n: credmon.top("", f"old-{n}"), credmon.fresh_use())
        try:
            credmon.start()
            time.sleep(2)
            waits(credmon, directory, issuer, 10, True, 0.02)  # The first exchange makes the connection.
            quiet = waits(credmon, directory, issuer, samples, False, 0.02)
            return quiet, waits(credmon, directory, issuer, samples, True, 0.02)
        finally:
            credmon.stop()
            shutil.rmtree(directory, ignore_errors=True)


def stock(place, where, present, samples, signal=True):
    directory = spool.make(where + "/vault")
    with Issuer(place.work) as issuer:
        credmon = Stock("vault", place.root, directory, place.home("vault"), issuer)
        spool.populate(directory, present, credmon.service, lambda n: credmon.top("", f"old-{n}"), credmon.fresh_use())
        try:
            credmon.start()
            time.sleep(3)
            waits(credmon, directory, issuer, 1, True, 1)
            return waits(credmon, directory, issuer, samples, signal, 0.02)
        finally:
            credmon.stop()
            shutil.rmtree(directory, ignore_errors=True)


def rows(place, quick):
    samples = 50 if quick else 300
    for present in (0, 1000) if quick else (0, 10_000, 100_000):
        quiet, signalled = ours(place, place.disk, present, samples)
        peer = stock(place, place.disk, present, 20 if present <= 10_000 else 5) if place.stock else []
        for what, found in (("without a signal", quiet), ("with SIGHUP", signalled)):
            half, most = percentile(found, 50) * 1000, percentile(found, 99) * 1000
            beside = []
            if peer and what == "with SIGHUP":
                beside = [("VaultCredmon p50", median(peer) * 1000), ("its slowest", max(peer) * 1000)]
            yield Row("B2", f"new .top → .use, {present:,} present, disk, {what}: p50", "ms", half, at_most(5), beside,
                      more={"ms": [round(one * 1000, 3) for one in found], "peer_ms": [one * 1000 for one in peer]})
            yield Row("B2", "… p99", "ms", most, at_most(20))
    if place.stock and not quick:
        unasked = stock(place, place.disk, 0, 2, signal=False)
        yield Row("B2", "VaultCredmon without a signal looks once a minute", "ms", None, no_goal(),
                  [("VaultCredmon, mean of 2", sum(unasked) / 2 * 1000)])
