"""The unmodified SDK against the double on port 5000: what it registers, submits and reads is what the double knows."""
import os, tempfile, time
os.environ.update(GLOBUS_SDK_ENVIRONMENT="local", GLOBUS_SDK_SERVICE_URL_AUTH="http://localhost:5000/",
                  GLOBUS_COMPUTE_CLIENT_ID="9f1a3c52-0000-4000-8000-000000000001", GLOBUS_COMPUTE_CLIENT_SECRET="s",
                  GLOBUS_COMPUTE_USER_DIR=tempfile.mkdtemp())
from globus_compute_sdk import Client
from globus_compute_sdk.serialize import ComputeSerializer, JSONData, PureSourceTextInspect


def double(x):
    return x * 2


client = Client(code_serialization_strategy=PureSourceTextInspect(), data_serialization_strategy=JSONData())
function = client.register_function(double)
task = client.run(21, endpoint_id="9f1a3c52-0000-4000-8000-000000000002", function_id=function)
for _ in range(100):
    if not client.get_task(task).get("pending", True):
        break
    time.sleep(0.2)
assert client.get_result(task) == 42
print("the SDK's own task came back as 42")
