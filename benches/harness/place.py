"""Where a run takes place: own namespaces, one directory on disk and one on tmpfs, the stock credmons' root."""
import os
import shutil
import subprocess
import sys


def enter(arguments):
    """Run again in namespaces of our own: nothing that we mount, listen on or start stays behind."""
    if os.environ.get("EVERCRED_BENCH_INSIDE"):
        return
    os.environ["EVERCRED_BENCH_INSIDE"] = "1"
    os.execvp("unshare", ["unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc",
                          sys.executable, *arguments])


class Place:
    def __init__(self, work, condor):
        self.work, self.root = os.path.realpath(work), condor + "/root"
        shutil.rmtree(self.work, ignore_errors=True)
        for name in ("disk", "tmpfs"):
            os.makedirs(f"{self.work}/{name}")
        self.disk, self.tmpfs = self.work + "/disk", self.work + "/tmpfs"
        def do(*command):
            subprocess.run(command, check=True)
        do("mount", "--make-rprivate", "/")
        do("mount", "-t", "tmpfs", "-o", "mode=755,size=80%", "tmpfs", self.tmpfs)
        do("ip", "link", "set", "lo", "up")
        do("hostname", "condorlab")  # HTCondor looks its own name up; the root knows this one.
        self.stock = os.path.isdir(self.root)
        if self.stock:
            # The same path inside of the root and outside.
            inside = self.root + self.work
            os.makedirs(inside, exist_ok=True)
            do("mount", "--rbind", self.work, inside)
            do("mount", "-t", "proc", "proc", self.root + "/proc")
            do("mount", "--bind", "/dev", self.root + "/dev")

    def home(self, name):
        """A directory for logs and configuration."""
        path = f"{self.work}/tmpfs/home-{name}"
        shutil.rmtree(path, ignore_errors=True)
        os.makedirs(path)
        return path

    def clear(self):
        shutil.rmtree(self.disk, ignore_errors=True)
