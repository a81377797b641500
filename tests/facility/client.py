"""NERSC's own client, unmodified, against the double: token, ls, upload, download, command and its task.

    client.py PORT CLIENT_FILE DIRECTORY
"""
import io, sys

from sfapi_client import Client
from sfapi_client.compute import Machine

port, client_file, directory = sys.argv[1:]
base = f"http://127.0.0.1:{port}"
with Client(key=client_file, api_base_url=f"{base}/api/v1.2", token_url=f"{base}/c2id/token") as client:
    machine = client.compute(Machine.perlmutter)
    [folder] = machine.ls(directory, directory=True)
    assert folder.is_dir()
    content = io.BytesIO(b"from the real client")
    content.filename = "real"
    folder.upload(content)
    [there] = machine.ls(f"{directory}/real")
    assert there.download().read() == "from the real client"
    assert machine.run(f"cat {directory}/real") == "from the real client"
print("the real client had its way")
