"""B1: 10,000 renewals due at once. The keeper is stopped (SIGSTOP) until all its tokens are past their half-life, as
after a suspend, and set going again: the time until the last new `.use`, by the files' own ctime."""
import os
import shutil
import time

from . import spool
from .issuer import Issuer
from .machine import Failed, cpu_seconds, load, memory_mib, raw, stop
from .ours import Ours
from .report import Row, at_least, median, no_goal
from .stock import Stock


def storms(place, where, count, latency, in_flight, runs, rotation="none", between=None, lifetime=40):
    """RUNS storms of one credmon; `between` runs before each, so that the machine's moods hit all alike."""
    home = place.home("ours")
    directory = spool.make(where + "/ours")
    found = []
    with Issuer(place.work, lifetime, rotation) as issuer:
        ours = Ours(directory, home, issuer, in_flight)
        tokens = issuer.tokens(count)
        spool.populate(directory, count, ours.service, lambda n: ours.top(n, tokens[n]))
        try:
            ours.start()
            settle(ours, issuer, directory, count, count, 60)
            for _ in range(runs):
                ours.freeze()
                frozen = time.time()
                if between:
                    between(found)
                # Due at half of the lifetime and 10 % of that; the last was issued before we froze.
                time.sleep(max(0, frozen + lifetime * 0.55 + 1.5 - time.time()))
                issuer.latency(latency)
                before, cpu, issuer_cpu = issuer.stats(), cpu_seconds(ours.process.pid), issuer.cpu()
                begin = spool.now()
                ours.thaw()
                settle(ours, issuer, directory, count, before["exchanges"] + count, 300, begin)
                took = max(spool.changed(directory, count, ours.service)) - begin
                after = issuer.stats()
                found.append({
                    "per_second": count / took, "cpu_us": (cpu_seconds(ours.process.pid) - cpu) / count * 1e6,
                    "issuer_cpu_us": (issuer.cpu() - issuer_cpu) / count * 1e6, "load": load(),
                    "exchanges": after["exchanges"] - before["exchanges"], "rss_mib": memory_mib(ours.process.pid)[0],
                    # Since the start: with the first exchanges, which found none open.
                    "connections": after["connections"], "peak_open": after["peak_open"],
                })
                issuer.latency(0)
        finally:
            ours.stop()
            shutil.rmtree(directory, ignore_errors=True)
    return found


def settle(ours, issuer, directory, count, exchanges, patience, since=0):
    """Until the issuer has answered so often and every `.use` is there and younger than that."""
    end = time.monotonic() + patience
    while issuer.stats()["exchanges"] < exchanges or sum(at > since for at in spool.changed(directory, count, ours.service)) < count:
        if time.monotonic() > end:
            raise Failed(f"{issuer.stats()} of {exchanges} in {patience} s: {ours.tail()}")
        time.sleep(0.05)
    time.sleep(0.3)


class Peer:
    """A stock credmon that is asked to renew everything, once each time."""

    def __init__(self, place, kind, where, count, latency=0):
        self.count, self.directory, self.latency = count, spool.make(f"{where}/{kind}"), latency
        self.place, self.kind = place, kind
        self.found = []

    def run(self, runs=1):
        with Issuer(self.place.work) as issuer:
            asks = 0 if self.kind == "local" else self.count
            stock = Stock(self.kind, self.place.root, self.directory, self.place.home(self.kind), issuer)
            tokens = issuer.tokens(self.count)
            try:
                stock.start()
                time.sleep(1.5)  # Its parent looks at CREDMON_COMPLETE each second.
                for _ in range(runs):
                    self.prepare(stock, tokens)
                    before, cpu = issuer.stats(), cpu_seconds(stock.process.pid)
                    issuer.latency(self.latency)
                    begin = spool.now()
                    took = stock.scan(600 + self.count * self.latency / 1000)
                    issuer.latency(0)
                    asked = issuer.stats()["exchanges"] - before["exchanges"]
                    renewed = sum(at > begin for at in spool.changed(self.directory, self.count, stock.service))
                    if (asked, renewed) != (asks, self.count):
                        raise Failed(f"{stock.name} asked {asked} times and renewed {renewed} of {self.count}: {stock.tail()}")
                    self.found.append({"per_second": self.count / took,
                                       "cpu_us": (cpu_seconds(stock.process.pid) - cpu) / self.count * 1e6,
                                       "connections": issuer.stats()["connections"] - before["connections"],
                                       "peak_open": issuer.stats()["peak_open"],
                                       "rss_mib": memory_mib(stock.process.pid)[0], "load": load()})
            finally:
                stock.stop()
        return self

    def prepare(self, stock, tokens):
        spool.populate(self.directory, self.count, stock.service, lambda n: stock.top(f"user{n}", tokens[n]), stock.due_use(),
                       stock.meta())

    def rate(self):
        return median([one["per_second"] for one in self.found])


def publish_limit(where, seconds):
    """The best rate at which this file system takes durable publishes, over numbers of threads."""
    best = None
    for threads in (1, 8, 16, 32, 64, 128):
        directory = spool.make(where + "/raw")
        found = raw("publish", directory, 2000, threads, seconds)
        shutil.rmtree(directory)
        if best is None or found["per_second"] > best["per_second"]:
            best = found
    return best


def exchange_limit(place, count, in_flight=64):
    """How many exchanges one client on one core gets through TLS, and no file is written."""
    with Issuer(place.work) as issuer:
        path = place.home("raw") + "/tokens"
        with open(path, "w") as f:
            f.write("\n".join(issuer.tokens(count)))
        return raw("exchange", issuer.url + "/token", issuer.ca, path, in_flight, core=0)


def rows(place, quick):
    count, runs = (2000, 1) if quick else (10_000, 3)
    tls = exchange_limit(place, count)["per_second"]
    # Disk, no latency: the raw rate is taken again before each storm.
    limit = publish_limit(place.disk, 1 if quick else 2)
    limits = [limit["per_second"]]
    def again(_found):
        directory = spool.make(place.disk + "/raw")
        limits.append(raw("publish", directory, 2000, limit["threads"], 2)["per_second"])
        shutil.rmtree(directory)
    disk = storms(place, place.disk, count, 0, 64, runs, between=again)
    rate, best = median([one["per_second"] for one in disk]), median(limits)
    vault = Peer(place, "vault", place.disk, count).run(runs) if place.stock else None
    beside = [(f"raw publish, {limit['threads']} threads", best), ("raw TLS", tls)]
    if vault:
        beside.append(("VaultCredmon", vault.rate()))
    yield Row("B1", f"{count:,} due, disk, 0 ms", "/s", rate, at_least(0.8 * best, "0.8 × raw publish"), beside,
              more={"runs": disk, "limits": limits, "peer_runs": vault.found if vault else []})
    rotating = storms(place, place.disk, count, 0, 64, runs, rotation="strict", between=again)
    rate = median([one["per_second"] for one in rotating])
    yield Row("B1", f"{count:,} due, disk, 0 ms, issuer rotates", "/s", rate, no_goal("none: two durable files each"),
              [("raw publish", median(limits))], more={"runs": rotating})
    # tmpfs: what the processor allows. Alternating with the peer.
    ours, vault = [], Peer(place, "vault", place.tmpfs, count) if place.stock else None
    for _ in range(runs):
        ours += storms(place, place.tmpfs, count, 0, 64, 1)
        if vault:
            vault.run()
    rate = median([one["per_second"] for one in ours])
    beside = []
    if vault:
        oauth, local = (Peer(place, kind, place.tmpfs, min(count, 3000)).run() for kind in ("oauth", "local"))
        beside = [("VaultCredmon", vault.rate()), ("OAuthCredmon", oauth.rate()),
                  ("LocalCredmon (asks nobody, signs itself)", local.rate())]
    beside.append(("raw TLS", tls))
    goal = at_least(2 * vault.rate() if vault else None, "2 × VaultCredmon")
    yield Row("B1", f"{count:,} due, tmpfs, 0 ms", "/s", rate, goal, beside,
              more={"runs": ours, "peer_runs": vault.found if vault else []})
    # Latency: what in-flight ÷ latency allows.
    serial = Peer(place, "vault", place.disk, 100, 50).run() if place.stock else None
    for latency, in_flight, floor in ((50, 64, 1150), (50, 256, None), (200, 64, 290), (200, 256, None)):
        if quick and (latency, in_flight) != (50, 64):
            continue
        found = storms(place, place.disk, count if latency == 50 else count // 2, latency, in_flight, 1 if quick else 2)
        rate, bound = median([one["per_second"] for one in found]), in_flight / latency * 1000
        goal = at_least(max(0.9 * bound, floor or 0), f"0.9 × {bound:,.0f}" + (f", ≥ {floor:,}" if floor else ""))
        beside = [("in flight ÷ latency", bound), ("raw publish", best)]
        if serial and latency == 50:
            beside.append(("VaultCredmon (100 credentials)", serial.rate()))
        yield Row("B1", f"{latency} ms, {in_flight} in flight, disk", "/s", rate, goal, beside,
                  more={"runs": found})
