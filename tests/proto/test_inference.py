"""The compiled messages have the names, numbers, types and methods of tritonclient's."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from google.protobuf import descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2

# Both define the protobuf package `inference`, so one process cannot hold both.
_DUMP = """
import sys
from google.protobuf import descriptor_pb2
from service.stubs.inference import inference_pb2, model_config_pb2
files = descriptor_pb2.FileDescriptorSet()
for module in (inference_pb2, model_config_pb2):
    module.DESCRIPTOR.CopyToProto(files.file.add())
sys.stdout.buffer.write(files.SerializeToString())
"""


def our_files() -> list[descriptor_pb2.FileDescriptorProto]:
    done = subprocess.run([sys.executable, "-c", _DUMP], capture_output=True, check=True)
    return list(descriptor_pb2.FileDescriptorSet.FromString(done.stdout).file)


def their_files() -> list[descriptor_pb2.FileDescriptorProto]:
    files = []
    for module in (service_pb2, model_config_pb2):
        files.append(descriptor_pb2.FileDescriptorProto())
        module.DESCRIPTOR.CopyToProto(files[-1])
    return files


def flat(files: list[descriptor_pb2.FileDescriptorProto]) -> dict[str, Any]:
    """Fields, enum values, messages and methods by their full names."""
    definitions: dict[str, Any] = {}

    def enum(prefix: str, one: Any) -> None:
        for value in one.value:
            definitions[f"{prefix}.{one.name}.{value.name}"] = value.number

    def message(prefix: str, one: Any) -> None:
        name = f"{prefix}.{one.name}"
        definitions[name] = "message"
        for field in one.field:
            choice = one.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
            definitions[f"{name}.{field.name}"] = (
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
        for top in file.message_type:
            message(f".{file.package}", top)
        for top in file.enum_type:
            enum(f".{file.package}", top)
        for service in file.service:
            for method in service.method:
                definitions[f"{service.name}/{method.name}"] = (
                    method.input_type,
                    method.output_type,
                    method.client_streaming,
                    method.server_streaming,
                )
    return definitions


def test_every_definition_equals_that_of_tritonclient() -> None:
    defined, reference = flat(our_files()), flat(their_files())
    assert len(defined) > 250
    # Of the Open Inference Protocol; Triton's definition lacks it.
    metadata = ".inference.ModelMetadataResponse."
    assert defined.pop(f"{metadata}properties")[0] == 6
    for name in ("", ".key", ".value"):
        del defined[f"{metadata}PropertiesEntry{name}"]
    assert defined == {name: reference.get(name) for name in defined}


def test_everything_that_tritonclient_defines_is_defined_here() -> None:
    defined, reference = flat(our_files()), flat(their_files())
    assert reference.keys() - defined.keys() == set()
