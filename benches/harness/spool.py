"""Credential directories as credd leaves them."""
import json
import os
import shutil
import time


def make(path):
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    os.chmod(path, 0o2770)
    return path


def put(path, text):
    """As credd stores: a new file beside it, renamed into place."""
    fd = os.open(path + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(fd, text.encode())
    os.close(fd)
    os.rename(path + ".tmp", path)


def fresh_use(token):
    """A `.use` of ours that is good for a day."""
    now = int(time.time())
    return json.dumps({"access_token": token, "token_type": "Bearer", "expires_in": 86400, "expires_at": now + 86400,
                       "issued_at": now, "scope": "storage.read:/"}) + "\n"


def populate(path, count, service, top, use=None, meta=None):
    """COUNT users with one credential each; `use`, `meta`: the `.use` and `.meta` that they have already."""
    for n in range(count):
        home = f"{path}/user{n}"
        os.makedirs(home, 0o700, exist_ok=True)
        put(f"{home}/{service}.top", top(n))
        for ending, text in (("meta", meta), ("use", use)):
            if text:
                put(f"{home}/{service}.{ending}", text)


def now():
    """A time that divides what was written before from what is written after: the kernel stamps files by its last tick."""
    time.sleep(0.02)
    divide = time.time()
    time.sleep(0.02)
    return divide


def changed(path, count, service):
    """When the `.use` of each of COUNT users appeared (ctime), of those that have one."""
    times = []
    for n in range(count):
        try:
            times.append(os.stat(f"{path}/user{n}/{service}.use").st_ctime)
        except FileNotFoundError:
            pass
    return times
