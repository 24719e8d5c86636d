"""Shared memory as tritonclient uses it: system memory works, CUDA memory is rejected."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import (
    InferenceServerException,
    serialize_byte_tensor,
    shared_memory,
)

from tests.conftest import SHIPPED_MODELS, Mnist, Server
from tests.e2e.onnx_models import publish_identity
from tests.e2e.triton import Triton, fixture_of

KEY = f"/mnist-service-test-{os.getpid()}"
IMAGES = 3 * 784
SCORES = 3 * 10 * 4


@pytest.fixture(scope="module")
def memory_server(
    start_server: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory
) -> Server:
    """Two workers, so that a region must reach both."""
    root = tmp_path_factory.mktemp("models")
    shutil.copytree(SHIPPED_MODELS / "mnist", root / "mnist")
    publish_identity(root, "BYTES")
    server = start_server(root, workers=2, shared_memory_regions=3)
    server.wait_until(lambda: server.log.read_text().count("Serving mnist") == 2)
    return server


triton = fixture_of("memory_server")


@pytest.fixture
def memory(mnist: Mnist, triton: Triton) -> Iterator[Any]:
    """A shared memory object that starts with three images, registered as `both`."""
    handle = shared_memory.create_shared_memory_region("both", KEY, IMAGES + SCORES + 100)
    shared_memory.set_shared_memory_region(handle, [mnist.images[:3]])
    triton.unregister_system_shared_memory()
    triton.unregister_cuda_shared_memory()  # Triton's own examples start with these calls
    triton.register_system_shared_memory("both", KEY, IMAGES + SCORES + 100)
    yield handle
    triton.unregister_system_shared_memory()
    shared_memory.destroy_shared_memory_region(handle)


def in_memory(triton: Triton, size: int = IMAGES, offset: int = 0, region: str = "both") -> Any:
    tensor = triton.empty_input("image", [3, 28, 28], "UINT8")
    tensor.set_shared_memory(region, size, offset=offset)
    return tensor


def to_memory(triton: Triton, size: int = SCORES, offset: int = IMAGES, **options: Any) -> Any:
    output = triton.output("probabilities", **options)
    output.set_shared_memory("both", size, offset=offset)
    return output


def test_inputs_and_outputs_pass_through_shared_memory(
    triton: Triton, memory: Any, mnist: Mnist
) -> None:
    for _ in range(8):  # until both workers have very likely answered
        outputs = [to_memory(triton), triton.output("logits")]
        result = triton.infer("mnist", [in_memory(triton)], outputs=outputs)
        assert result.as_numpy("logits").argmax(axis=1).tolist() == mnist.labels[:3].tolist()
        assert len(triton.answer(result)["outputs"]) == 2
        written = shared_memory.get_contents_as_numpy(memory, np.float32, [3, 10], IMAGES)
        assert written.argmax(axis=1).tolist() == mnist.labels[:3].tolist()
        shared_memory.set_shared_memory_region(memory, [np.zeros((3, 10), np.float32)], IMAGES)


def test_sent_input_and_output_in_shared_memory_may_be_combined(
    triton: Triton, memory: Any, mnist: Mnist
) -> None:
    tensor = triton.input("image", mnist.images[:3], "UINT8")
    result = triton.infer("mnist", [tensor], outputs=[to_memory(triton, size=SCORES + 100)])
    (output,) = triton.answer(result)["outputs"]
    assert "data" not in output
    if triton.is_grpc:
        assert int(output["parameters"]["shared_memory_byte_size"]["int64_param"]) == SCORES
    else:
        assert "parameters" not in output  # Triton's C++ client takes any for binary data


def test_strings_pass_through_shared_memory(triton: Triton, memory: Any) -> None:
    texts = np.array([[b"seven", b""], [b"\xc3\xa9", b"7"]], object)
    packed = serialize_byte_tensor(texts)
    shared_memory.set_shared_memory_region(memory, [packed])
    tensor = triton.empty_input("x", [2, 2], "BYTES")
    tensor.set_shared_memory("both", len(packed.item()))
    output = triton.output("y")
    output.set_shared_memory("both", 100, offset=IMAGES)
    triton.infer("identity_bytes", [tensor], outputs=[output])
    written = shared_memory.get_contents_as_numpy(memory, np.object_, [2, 2], IMAGES)
    assert written.tolist() == texts.tolist()


def test_status_lists_the_regions(triton: Triton, memory: Any) -> None:
    def regions(*name: str) -> dict[str, dict[str, Any]]:
        status = triton.get_system_shared_memory_status(*name)
        if not triton.is_grpc:
            return {region["name"]: region for region in status}
        return {
            name: {"key": r.key, "offset": r.offset, "byte_size": r.byte_size}
            for name, r in status.regions.items()
        }

    assert list(regions()) == ["both"]
    assert regions("both")["both"]["key"] == KEY
    assert regions("both")["both"]["byte_size"] == IMAGES + SCORES + 100
    with pytest.raises(InferenceServerException, match="'none'") as caught:
        regions("none")
    assert triton.code(caught.value) == "NOT_FOUND"


def test_access_outside_a_region_is_rejected(triton: Triton, memory: Any) -> None:
    for inputs, outputs, word in (
        ([in_memory(triton, size=10)], [], "byte size mismatch"),
        ([in_memory(triton, offset=SCORES + 101)], [], "outside"),
        ([in_memory(triton, region="none")], [], "'none' is not registered"),
        ([in_memory(triton, size=1 << 40)], [], "max_request_bytes"),
        ([in_memory(triton)], [to_memory(triton, size=SCORES - 1)], "to hold the results"),
        ([in_memory(triton)], [to_memory(triton, offset=IMAGES + 101)], "outside"),
    ):
        with pytest.raises(InferenceServerException, match=word) as caught:
            triton.infer("mnist", inputs, outputs=outputs or None)
        assert triton.code(caught.value) == "INVALID_ARGUMENT"


def test_invalid_regions_are_rejected(triton: Triton, memory: Any, tmp_path: Path) -> None:
    for name, key, size, word, code in (
        ("x", "/no-such-object", 10, "cannot be opened", "INVALID_ARGUMENT"),
        ("x", "../../etc/passwd", 10, "slashes", "INVALID_ARGUMENT"),
        ("x", "..", 10, "slashes", "INVALID_ARGUMENT"),
        ("x", KEY, 1 << 40, "has", "INVALID_ARGUMENT"),
        ("x", KEY, 0, "out of range", "INVALID_ARGUMENT"),
        ("both", KEY, 10, "already in manager", "ALREADY_EXISTS"),
    ):
        with pytest.raises(InferenceServerException, match=word) as caught:
            triton.register_system_shared_memory(name, key, size)
        assert triton.code(caught.value) == code
    triton.register_system_shared_memory("second", KEY, 10)
    triton.register_system_shared_memory("third", KEY, 10, offset=5)
    with pytest.raises(InferenceServerException, match="shared_memory_regions"):
        triton.register_system_shared_memory("fourth", KEY, 10)


def test_object_that_shrinks_fails_only_the_requests_that_use_it(
    triton: Triton, memory: Any, memory_server: Server, mnist: Mnist
) -> None:
    os.truncate(f"/dev/shm{KEY}", 100)
    with pytest.raises(InferenceServerException, match="smaller"):
        triton.infer("mnist", [in_memory(triton)])
    sent = [triton.input("image", mnist.images[:3], "UINT8")]
    with pytest.raises(InferenceServerException, match="smaller"):
        triton.infer("mnist", sent, outputs=[to_memory(triton)])
    assert triton.infer("mnist", sent).as_numpy("logits").shape == (3, 10)
    assert "Traceback" not in memory_server.log.read_text()
    os.truncate(f"/dev/shm{KEY}", IMAGES + SCORES + 100)


def test_cuda_memory_is_rejected_as_unimplemented(triton: Triton) -> None:
    assert not (
        triton.get_cuda_shared_memory_status().regions
        if triton.is_grpc
        else triton.get_cuda_shared_memory_status()
    )
    with pytest.raises(InferenceServerException, match="CUDA shared memory") as caught:
        triton.register_cuda_shared_memory("x", b"aGFuZGxl", 0, 100)
    assert triton.code(caught.value) == "UNIMPLEMENTED"
    triton.unregister_cuda_shared_memory()


def test_shared_memory_is_off_by_default(server: Server) -> None:
    body = b'{"key": "/x", "offset": 0, "byte_size": 10}'
    path = "/v2/systemsharedmemory/region/x/register"
    status, answer = server.post(path, body, "application/json")
    assert status == 403
    assert "--shared-memory-regions" in answer["error"]
    assert server.get("/v2/systemsharedmemory/status") == (200, b"[]")
    request = {
        "inputs": [
            {
                "name": "image",
                "datatype": "UINT8",
                "shape": [1, 28, 28],
                "parameters": {"shared_memory_region": "x", "shared_memory_byte_size": 784},
            }
        ]
    }
    infer = json.dumps(request).encode()
    status, answer = server.post("/v2/models/mnist/infer", infer, "application/json")
    assert status == 400
    assert "'x' is not registered" in answer["error"]
