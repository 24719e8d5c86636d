"""Our compiled messages against those of tritonclient: names, numbers, types, methods."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from google.protobuf import descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2

# Both define the package `inference`, so they cannot be in one process.
_DUMP = """
import sys
from google.protobuf import descriptor_pb2
from service.stubs.inference import inference_pb2, model_config_pb2
files = descriptor_pb2.FileDescriptorSet()
for module in (inference_pb2, model_config_pb2):
    module.DESCRIPTOR.CopyToProto(files.file.add())
sys.stdout.buffer.write(files.SerializeToString())
"""


def ours() -> list[descriptor_pb2.FileDescriptorProto]:
    done = subprocess.run([sys.executable, "-c", _DUMP], capture_output=True, check=True)
    return list(descriptor_pb2.FileDescriptorSet.FromString(done.stdout).file)


def theirs() -> list[descriptor_pb2.FileDescriptorProto]:
    files = []
    for module in (service_pb2, model_config_pb2):
        files.append(descriptor_pb2.FileDescriptorProto())
        module.DESCRIPTOR.CopyToProto(files[-1])
    return files


def flat(files: list[descriptor_pb2.FileDescriptorProto]) -> dict[str, Any]:
    """Everything with a name of its own: fields, enum values and methods by their full names."""
    found: dict[str, Any] = {}

    def enum(prefix: str, one: Any) -> None:
        for value in one.value:
            found[f"{prefix}.{one.name}.{value.name}"] = value.number

    def message(prefix: str, one: Any) -> None:
        name = f"{prefix}.{one.name}"
        found[name] = "message"
        for field in one.field:
            choice = one.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
            found[f"{name}.{field.name}"] = (
                field.number,
                field.label,
                field.type,
                field.type_name,
                choice,
            )
        for inner in one.nested_type:
            message(name, inner)
        for inner in one.enum_type:
            enum(name, inner)

    for file in files:
        for each in file.message_type:
            message(f".{file.package}", each)
        for each in file.enum_type:
            enum(f".{file.package}", each)
        for service in file.service:
            for method in service.method:
                found[f"{service.name}/{method.name}"] = (
                    method.input_type,
                    method.output_type,
                    method.client_streaming,
                    method.server_streaming,
                )
    return found


def test_what_we_define_is_what_tritonclient_has() -> None:
    mine, other = flat(ours()), flat(theirs())
    assert len(mine) > 250
    assert {name: mine[name] for name in mine} == {name: other.get(name) for name in mine}


def test_nothing_of_the_service_is_missing() -> None:
    """All of the public service file; of the model configuration we define a part."""
    mine, other = flat(ours()), flat([theirs()[0]])
    assert set(other) - set(mine) == set()
