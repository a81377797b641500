"""B7: one dead, one hanging and one corrupt credential among 1,000. All others are looked at over three half-lives of
their tokens; whoever is late once is counted."""
import json
import os
import shutil
import time

from . import spool
from .issuer import Issuer
from .ours import Ours
from .report import Row

LIFETIME = 30


def late(directory, names, service):
    """How many of them have no token that lives."""
    now, found = time.time(), 0
    for name in names:
        try:
            with open(f"{directory}/{name}/{service}.use") as f:
                found += json.load(f)["expires_at"] <= now
        except FileNotFoundError:
            found += 1
    return found


def rows(place, quick):
    directory = spool.make(place.disk + "/bad")
    with Issuer(place.work, LIFETIME, "strict") as issuer:
        ours = Ours(directory, place.home("ours"), issuer)
        tokens = issuer.tokens(1000)
        for n, token in enumerate(tokens):
            os.mkdir(f"{directory}/user{n}", 0o700)
            spool.put(f"{directory}/user{n}/{ours.service}.top", ours.top("", token) if n != 2 else '{"refresh_token": ')
        issuer.ask("revoke", {"token": tokens[0]})
        issuer.ask("fault", {"user": "user1", "fault": "hang"})
        good = [f"user{n}" for n in range(3, 1000)]
        try:
            ours.start()
            end = time.monotonic() + 60
            while late(directory, good, ours.service) and time.monotonic() < end:
                time.sleep(0.1)
            worst, looks, end = 0, 0, time.monotonic() + LIFETIME * 1.5
            while time.monotonic() < end:
                worst, looks = max(worst, late(directory, good, ours.service)), looks + 1
                time.sleep(0.5)
            records = {one["user"]: one["exchanges"] for one in issuer.ask("records")}
            renewed = sum(records[name] >= 3 for name in good)
            on_time = min(renewed, 997 - worst)
            yield Row("B7", "of 997 good ones among 1 dead, 1 hanging, 1 corrupt: renewed on time", "", on_time, "997", on_time == 997,
                      note=f"(each at least twice, none late in {looks} looks)" if on_time == 997 else f"({worst} late at once)")
        finally:
            ours.stop()
            shutil.rmtree(directory, ignore_errors=True)
