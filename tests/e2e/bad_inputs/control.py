"""The control plane, metadata and health over both transports.

Sources: Triton's extensions of the protocol; the gRPC Health Checking Protocol; docs/protocol.md.
"""

from __future__ import annotations

from typing import Any

from grpc_health.v1 import health_pb2
from tritonclient.grpc import service_pb2 as pb

from tests.e2e.bad_inputs.case import (
    EXISTS,
    INVALID,
    NOT_FOUND,
    UNIMPLEMENTED,
    Grpc,
    Http,
    Kind,
    call,
    framed,
    post,
    request,
)

LOAD, UNLOAD = "/v2/repository/models/mnist/load", "/v2/repository/models/mnist/unload"
LOG, TRACE = "/v2/logging", "/v2/trace/setting"


def both(
    name: str, kind: Kind, words: str, content: bytes, method: str, message: Any
) -> list[Http | Grpc]:
    """The same request over both transports."""
    status, code = kind
    return [Http(name, content, status, words), call(name, method, message, code, words)]


def bodies(name: str, path: str) -> list[Http]:
    """Bodies that are no JSON object."""
    return [
        Http(f"{name} with a list", post(path, []), 400, "object"),
        Http(f"{name} with text", post(path, "x"), 400, "object"),
        Http(f"{name} above max_json_bytes", post(path, b" " * (3 << 20)), 413, "max_json_bytes"),
        Http(f"{name} with null", post(path, b"null"), 400, "object"),
        Http(f"{name} with half of an object", post(path, b'{"a": '), 400, "JSON"),
        Http(
            f"{name} with a form",
            post(path, b"a=b", "application/x-www-form-urlencoded"),
            400,
            "JSON",
        ),
    ]


def get(path: str) -> bytes:
    return request("GET", path)


READS = [
    *both(
        "metadata of no model",
        NOT_FOUND,
        "'none'",
        get("/v2/models/none"),
        "ModelMetadata",
        pb.ModelMetadataRequest(name="none"),
    ),
    *both(
        "metadata of no version",
        NOT_FOUND,
        "77",
        get("/v2/models/mnist/versions/77"),
        "ModelMetadata",
        pb.ModelMetadataRequest(name="mnist", version="77"),
    ),
    *both(
        "metadata of a version that is text",
        INVALID,
        "'x'",
        get("/v2/models/mnist/versions/x"),
        "ModelMetadata",
        pb.ModelMetadataRequest(name="mnist", version="x"),
    ),
    *both(
        "configuration of no model",
        NOT_FOUND,
        "'none'",
        get("/v2/models/none/config"),
        "ModelConfig",
        pb.ModelConfigRequest(name="none"),
    ),
    *both(
        "configuration of no version",
        NOT_FOUND,
        "9",
        get("/v2/models/mnist/versions/9/config"),
        "ModelConfig",
        pb.ModelConfigRequest(name="mnist", version="9"),
    ),
    *both(
        "statistics of no model",
        NOT_FOUND,
        "'none'",
        get("/v2/models/none/stats"),
        "ModelStatistics",
        pb.ModelStatisticsRequest(name="none"),
    ),
    *both(
        "statistics of no version",
        NOT_FOUND,
        "9",
        get("/v2/models/mnist/versions/9/stats"),
        "ModelStatistics",
        pb.ModelStatisticsRequest(name="mnist", version="9"),
    ),
    Http("readiness of no model", get("/v2/models/none/ready"), 404, "'none'"),
    Http("readiness of no version", get("/v2/models/mnist/versions/9/ready"), 404, "9"),
    Grpc(
        "health of no service",
        "/grpc.health.v1.Health/Check",
        [framed(health_pb2.HealthCheckRequest(service="none"))],
        "NOT_FOUND",
        "'none'",
    ),
]

REPOSITORY = [
    *both(
        "load of no model",
        NOT_FOUND,
        "'none'",
        post("/v2/repository/models/none/load", b""),
        "RepositoryModelLoad",
        pb.RepositoryModelLoadRequest(model_name="none"),
    ),
    *both(
        "load of a path",
        NOT_FOUND,
        "'..'",
        post("/v2/repository/models/../load", b""),
        "RepositoryModelLoad",
        pb.RepositoryModelLoadRequest(model_name=".."),
    ),
    *both(
        "unload of no model",
        NOT_FOUND,
        "'none'",
        post("/v2/repository/models/none/unload", b""),
        "RepositoryModelUnload",
        pb.RepositoryModelUnloadRequest(model_name="none"),
    ),
    *both(
        "load with a configuration",
        UNIMPLEMENTED,
        "config",
        post(LOAD, {"parameters": {"config": "{}"}}),
        "RepositoryModelLoad",
        pb.RepositoryModelLoadRequest(
            model_name="mnist", parameters={"config": {"string_param": "{}"}}
        ),
    ),
    *both(
        "load with a file",
        UNIMPLEMENTED,
        "file:1/model.onnx",
        post(LOAD, {"parameters": {"file:1/model.onnx": "AAAA"}}),
        "RepositoryModelLoad",
        pb.RepositoryModelLoadRequest(
            model_name="mnist", parameters={"file:1/model.onnx": {"bytes_param": b"\0"}}
        ),
    ),
    Http("load with parameters in a list", post(LOAD, {"parameters": []}), 400, "parameters"),
    Http("unload with parameters as text", post(UNLOAD, {"parameters": "x"}), 400, "parameters"),
    *bodies("load", LOAD),
    *bodies("unload", UNLOAD),
    *bodies("index", "/v2/repository/index"),
    Http("index of ready as text", post("/v2/repository/index", {"ready": "yes"}), 400, "ready"),
    Http("index of ready as a number", post("/v2/repository/index", {"ready": 1}), 400, "ready"),
    *(
        call(
            f"{method} of another repository",
            method,
            message(repository_name="other"),
            "INVALID_ARGUMENT",
            "repository_name",
        )
        for method, message in (
            ("RepositoryIndex", pb.RepositoryIndexRequest),
            ("RepositoryModelLoad", pb.RepositoryModelLoadRequest),
            ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest),
        )
    ),
]


def page(name: str, headers: dict[str, str], words: str, path: str = LOAD) -> Http:
    """A change that the headers show to come from a web page, or from another host.

    Its body is not read, so the connection ends with the answer.
    """
    return Http(name, request("POST", path, b"{}", headers), 403, words, closes=True)


ORIGINS = [
    page("origin of another site", {"Origin": "http://evil.example"}, "evil.example"),
    page("origin null", {"Origin": "null"}, "null"),
    page("origin of another port", {"Origin": "http://localhost:1"}, "localhost:1"),
    page("origin malformed", {"Origin": "http://[::1"}, "Origin"),
    page("origin with an unknown port", {"Origin": "http://localhost:abc"}, "Origin"),
    page("origin of a page that changes logs", {"Origin": "http://evil.example"}, "evil", LOG),
    page("origin of a page that unloads", {"Origin": "http://evil.example"}, "evil", UNLOAD),
    page(
        "origin of a page that registers memory",
        {"Origin": "http://evil.example"},
        "evil",
        "/v2/systemsharedmemory/region/r/register",
    ),
    page(
        "origin of a page that unregisters memory",
        {"Origin": "http://evil.example"},
        "evil",
        "/v2/systemsharedmemory/unregister",
    ),
    page("host of another machine", {"Host": "evil.example"}, "evil.example"),
    page("host that looks like an address", {"Host": "127.0.0.1.evil.example"}, "evil.example"),
    page("host malformed", {"Host": "[::1"}, "Host"),
    page("host with a port of text", {"Host": "localhost:abc"}, "Host"),
    page("host with a port of 99999", {"Host": "localhost:99999"}, "Host"),
]


def log(name: str, kind: Kind, words: str, setting: str, value: Any) -> list[Http | Grpc]:
    """A change of one log setting; over gRPC if the value has a field there."""
    field = {bool: "bool_param", int: "uint32_param", str: "string_param"}.get(type(value))
    status, code = kind
    cases: list[Http | Grpc] = [Http(name, post(LOG, {setting: value}), status, words)]
    if field and value != -1:
        message = pb.LogSettingsRequest()
        setattr(message.settings[setting], field, value)
        cases.append(call(name, "LogSettings", message, code, words))
    return cases


LOGS = [
    *log("log setting unknown", INVALID, "'log_colour'", "log_colour", True),
    *log("log setting empty", INVALID, "''", "", True),
    *log("log_file of a path", UNIMPLEMENTED, "log_file", "log_file", "/etc/passwd"),
    *log("log_format ISO8601", UNIMPLEMENTED, "log_format", "log_format", "ISO8601"),
    *log("log_info number", INVALID, "log_info", "log_info", 1),
    *log("log_info text", INVALID, "log_info", "log_info", "true"),
    *log("log_info list", INVALID, "log_info", "log_info", [True]),
    *log("log_file number", INVALID, "log_file", "log_file", 5),
    *log("log_verbose_level text", INVALID, "log_verbose_level", "log_verbose_level", "1"),
    *log("log_verbose_level true", INVALID, "log_verbose_level", "log_verbose_level", True),
    *log("log_verbose_level negative", INVALID, "log_verbose_level", "log_verbose_level", -1),
    *log("log_verbose_level fraction", INVALID, "log_verbose_level", "log_verbose_level", 0.5),
    *log("log_error off with warnings on", INVALID, "log_error", "log_error", False),
    *log("log_warning off with information on", INVALID, "log_warning", "log_warning", False),
    *bodies("log settings", LOG),
]


def trace(name: str, kind: Kind, words: str, setting: str, *values: str) -> list[Http | Grpc]:
    message = pb.TraceSettingRequest()
    message.settings[setting].value.extend(values)
    return both(name, kind, words, post(TRACE, {setting: list(values)}), "TraceSetting", message)


TRACES = [
    *trace("trace setting unknown", INVALID, "'trace_colour'", "trace_colour", "x"),
    *trace("trace_level TIMESTAMPS", UNIMPLEMENTED, "trace_level", "trace_level", "TIMESTAMPS"),
    *trace("trace_level of two", UNIMPLEMENTED, "trace_level", "trace_level", "OFF", "TENSORS"),
    *trace("trace_rate 1", UNIMPLEMENTED, "trace_rate", "trace_rate", "1"),
    *trace("trace_file of a path", UNIMPLEMENTED, "trace_file", "trace_file", "/tmp/trace.json"),
    *trace("trace_mode opentelemetry", UNIMPLEMENTED, "trace_mode", "trace_mode", "opentelemetry"),
    Http("trace_rate object", post(TRACE, {"trace_rate": {}}), 501, "trace_rate"),
    *both(
        "trace settings of no model",
        NOT_FOUND,
        "'none'",
        get("/v2/models/none/trace/setting"),
        "TraceSetting",
        pb.TraceSettingRequest(model_name="none"),
    ),
    *bodies("trace settings", TRACE),
]


def region(
    name: str, kind: Kind, words: str, region: str = "new", **changed: Any
) -> list[Http | Grpc]:
    """The registration of 100 bytes of the object `{key}`, with some fields changed."""
    fields = {"key": "{key}", "byte_size": 100} | changed
    fields = {key: value for key, value in fields.items() if value is not None}
    path = f"/v2/systemsharedmemory/region/{region}/register"
    cases: list[Http | Grpc] = [Http(name, post(path, fields), kind[0], words)]
    try:
        message = pb.SystemSharedMemoryRegisterRequest(name=region, **fields)
    except (TypeError, ValueError):
        return cases
    return [*cases, call(name, "SystemSharedMemoryRegister", message, kind[1], words)]


MEMORY = [
    *region("register without a key", INVALID, "key", key=None),
    *region("register with an empty key", INVALID, "key", key=""),
    *region("register with a key of a path", INVALID, "key", key="../../etc/passwd"),
    *region("register with a key of dots", INVALID, "key", key=".."),
    *region("register with a key of an absolute path", INVALID, "key", key="/etc/passwd"),
    *region("register with a key of a zero byte", INVALID, "key", key="a\0b"),
    *region("register with a key of 300 letters", INVALID, "key", key="k" * 300),
    *region("register with a key of a number", INVALID, "key", key=5),
    *region("register with an object that does not exist", INVALID, "'not-there'", key="not-there"),
    *region("register without a size", INVALID, "byte_size", byte_size=None),
    *region("register with size 0", INVALID, "byte_size", byte_size=0),
    *region("register with a negative size", INVALID, "byte_size", byte_size=-1),
    *region("register with a size of text", INVALID, "byte_size", byte_size="100"),
    *region("register with a size of a fraction", INVALID, "byte_size", byte_size=1.5),
    *region("register with a size past the object", INVALID, "bytes", byte_size=10**6),
    *region("register with a size at the limit of INT64", INVALID, "bytes", byte_size=2**63 - 1),
    *region("register with a size at the limit of UINT64", INVALID, "bytes", byte_size=2**64 - 1),
    *region("register with a negative offset", INVALID, "offset", offset=-1),
    *region("register with an offset past the object", INVALID, "bytes", offset=10**6),
    *region("register with an offset of text", INVALID, "offset", offset="0"),
    *region("register a name that is taken", EXISTS, "'pixels'", region="pixels"),
    *bodies("register", "/v2/systemsharedmemory/region/new/register"),
    *both(
        "memory status of no region",
        NOT_FOUND,
        "'none'",
        get("/v2/systemsharedmemory/region/none/status"),
        "SystemSharedMemoryStatus",
        pb.SystemSharedMemoryStatusRequest(name="none"),
    ),
    *both(
        "CUDA memory status of no region",
        NOT_FOUND,
        "'none'",
        get("/v2/cudasharedmemory/region/none/status"),
        "CudaSharedMemoryStatus",
        pb.CudaSharedMemoryStatusRequest(name="none"),
    ),
    *both(
        "CUDA memory register",
        UNIMPLEMENTED,
        "CUDA",
        post("/v2/cudasharedmemory/region/c/register", {"raw_handle": {"b64": ""}}),
        "CudaSharedMemoryRegister",
        pb.CudaSharedMemoryRegisterRequest(name="c"),
    ),
]

CASES: list[Http | Grpc] = [*(*READS, *REPOSITORY, *ORIGINS, *LOGS, *TRACES, *MEMORY)]
