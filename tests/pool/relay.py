#!/usr/bin/env python3
"""127.0.0.1:PORT of one network namespace leads to 127.0.0.1:PORT of another one.

relay.py PORT FROM TO     FROM, TO: processes in those namespaces. Prints `ready`; ends at SIGTERM.
"""
import ctypes, os, socket, sys, threading

port = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)


def enter(pid):
    with open(f"/proc/{pid}/ns/net") as namespace:
        if libc.setns(namespace.fileno(), 0x40000000):
            raise OSError(ctypes.get_errno(), f"setns {pid}")


def pump(source, sink):
    try:
        while part := source.recv(65536):
            sink.sendall(part)
        sink.shutdown(socket.SHUT_WR)
    except OSError:  # the other direction has ended it
        pass


enter(sys.argv[2])
listener = socket.create_server(("127.0.0.1", port))
enter(sys.argv[3])
print("ready", flush=True)
while True:
    client = listener.accept()[0]
    try:
        server = socket.create_connection(("127.0.0.1", port))
    except OSError:
        client.close()
        continue
    for pair in ((client, server), (server, client)):
        threading.Thread(target=pump, args=pair, daemon=True).start()
