"""B7: one dead, one hanging and one corrupt credential among 1,000, at a quarter, half and three quarters of the
directory's order, in which the stock credmons go. evercred: the other 997 are looked at over three half-lives of their
tokens, and whoever is late once is counted. The stock ones look once a minute, whatever the life of a token: all are due
at one signal, and those of the 997 are counted that have a new token two minutes later."""
import json
import os
import shutil
import time

from . import spool
from .issuer import Issuer
from .machine import Failed
from .ours import Ours
from .report import Row, exactly
from .stock import NAMES, Stock

COUNT, LIFETIME, PATIENCE = 1000, 30, 120


def fill(credmon, directory, issuer):
    """A thousand users of whom three are bad; the names of the others."""
    tokens = issuer.tokens(COUNT)
    spool.populate(directory, COUNT, credmon.service, lambda n: credmon.top(f"user{n}", tokens[n]), credmon.due_use(),
                   credmon.meta())
    order = [entry.name for entry in os.scandir(directory) if entry.is_dir()]
    dead, hanging, corrupt = (order[COUNT * part // 4] for part in (1, 2, 3))
    issuer.ask("revoke", {"token": tokens[int(dead.removeprefix("user"))]})
    issuer.ask("fault", {"user": hanging, "fault": "hang"})
    spool.put(f"{directory}/{corrupt}/{credmon.service}.top", '{"refresh_token": ')
    return [name for name in order if name not in (dead, hanging, corrupt)]


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


def ours(place):
    """How many of the good ones were renewed on time, how often it was looked, how many were late at once."""
    directory = spool.make(place.disk + "/bad")
    with Issuer(place.work, LIFETIME, "strict") as issuer:
        credmon = Ours(directory, place.home("ours"), issuer)
        good = fill(credmon, directory, issuer)
        try:
            credmon.start()
            end = time.monotonic() + 60
            while late(directory, good, credmon.service) and time.monotonic() < end:
                time.sleep(0.1)
            worst, looks, end = 0, 0, time.monotonic() + LIFETIME * 1.5
            while time.monotonic() < end:
                worst, looks = max(worst, late(directory, good, credmon.service)), looks + 1
                time.sleep(0.5)
            records = {one["user"]: one["exchanges"] for one in issuer.ask("records")}
            renewed = sum(records[name] >= 3 for name in good)
            return min(renewed, len(good) - worst), looks, worst
        finally:
            credmon.stop()
            shutil.rmtree(directory, ignore_errors=True)


def stock(place, kind):
    """How many of the good ones a stock credmon renewed."""
    directory = spool.make(f"{place.disk}/{kind}")
    with Issuer(place.work) as issuer:
        credmon = Stock(kind, place.root, directory, place.home(kind), issuer)
        try:
            credmon.start()
            time.sleep(1.5)
            good = fill(credmon, directory, issuer)
            begin = spool.now()
            credmon.hang_up()
            time.sleep(PATIENCE)
            if credmon.process.poll() is not None:
                raise Failed(f"{credmon.name} has ended: {credmon.tail()}")
            found = 0
            for name in good:
                try:
                    found += os.stat(f"{directory}/{name}/{credmon.service}.use").st_ctime > begin
                except FileNotFoundError:
                    pass
            return found
        finally:
            credmon.stop()
            shutil.rmtree(directory, ignore_errors=True)


def rows(place, _quick):
    on_time, looks, worst = ours(place)
    beside = [(f"{NAMES[kind]}, in {PATIENCE} s", stock(place, kind)) for kind in ("vault", "oauth")] if place.stock else []
    told = f"(each at least twice, none late in {looks} looks)" if on_time == COUNT - 3 else f"({worst} late at once)"
    yield Row("B7", f"of {COUNT - 3} good ones among 1 dead, 1 hanging, 1 corrupt: renewed on time", "", on_time, exactly(COUNT - 3),
              beside, note=told)
