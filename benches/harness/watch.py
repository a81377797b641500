"""inotify, to see a file appear without asking for it."""
import ctypes
import os
import select
import struct
import time

_libc = ctypes.CDLL(None, use_errno=True)
MOVED_TO, CREATE, CLOSE_WRITE, ATTRIB = 0x80, 0x100, 0x8, 0x4


class Watch:
    """Watches one directory."""

    def __init__(self, directory):
        self.fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if _libc.inotify_add_watch(self.fd, os.fsencode(directory), MOVED_TO | CREATE | CLOSE_WRITE | ATTRIB) < 0:
            raise OSError(ctypes.get_errno(), directory)

    def wait(self, name, patience):
        """The time at which something happens to `name`; None if nothing does."""
        end = time.monotonic() + patience
        while (left := end - time.monotonic()) > 0:
            if not select.select([self.fd], [], [], left)[0]:
                return None
            now = time.monotonic()
            data = os.read(self.fd, 1 << 16)
            while data:
                _, _, _, length = struct.unpack_from("iIII", data)
                if data[16:16 + length].rstrip(b"\0").decode() == name:
                    return now
                data = data[16 + length:]
        return None

    def close(self):
        os.close(self.fd)
