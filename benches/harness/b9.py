"""B9: connections that one issuer accepts for 10,000 renewals due at once, counted by the issuer since evercred started:
those of the first 10,000 exchanges, which find none open, are in it. Beside it how many were open at one time."""
from .b1 import Peer, storms
from .report import Row, at_most
from .stock import NAMES


def rows(place, quick):
    count = 2000 if quick else 10_000
    made, opened = 0, 0
    # At once, where the fewest are needed, and with latency, where a client may be tempted to open more.
    for latency in (0, 50):
        for one in storms(place, place.tmpfs, count, latency, 64, 1):
            made, opened = max(made, one["connections"]), max(opened, one["peak_open"])
    peers = {}
    for kind in ("vault", "oauth") if place.stock else ():
        peers[NAMES[kind]] = Peer(place, kind, place.tmpfs, count).run().found[0]
    told = "; ".join([f"open at one time: {opened}", *(f"{name} {figures['peak_open']}" for name, figures in peers.items())])
    yield Row("B9", f"connections made for {count:,} renewals at one issuer", "", made, at_most(8),
              [(name, figures["connections"]) for name, figures in peers.items()], note=f"({told})", more={"peers": peers})
