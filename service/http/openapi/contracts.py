"""What each route takes and answers, for the OpenAPI document: the table of routes names them.

A contract states what is special to a route. Errors, headers and limits that all routes share are
in `document`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from service.core.errors import (
    AlreadyExists,
    DeadlineExceeded,
    ModelNotFound,
    NoSuchEndpoint,
    NotFound,
    Overloaded,
    ServiceError,
    Unavailable,
    Unimplemented,
)
from service.http.digits import LONGEST_TIMEOUT_S
from service.http.message import JSON, OCTETS
from service.http.openapi.schemas import (
    BYTES,
    STRING,
    VERSION,
    Schema,
    any_of,
    reference,
)
from service.http.pictures import FORM, PICTURES

HTML, TEXT = "text/html", "text/plain"


class Contract(NamedTuple):
    """A route for people and programs that call it.

    `tag` is the group of the route, `body` and `answer` map content types to schemas; `answer` is
    None for a route that always fails. `query`,
    `headers` and `answer_headers` map names to schemas; none of them is required. `name` is the
    operation's if it is not the route's. `otherwise` has answers of other statuses than 200.
    """

    tag: str
    summary: str
    answer: Mapping[str, Schema] | None
    body: Mapping[str, Schema] = {}
    is_body_required: bool = False
    query: Mapping[str, Schema] = {}
    headers: Mapping[str, Schema] = {}
    answer_headers: Mapping[str, Schema] = {}
    errors: tuple[type[ServiceError], ...] = ()
    otherwise: Mapping[int, Mapping[str, Schema]] = {}
    name: str = ""
    description: str = ""


def _json(name: str) -> dict[str, Schema]:
    return {JSON: reference(name)}


# The groups of the document, in its order.
PEOPLE, PROTOCOL, CONTROL, MEMORY, OPERATION, PAGES = TAGS = (
    "Digits and pictures",
    "Open Inference Protocol",
    "Models and settings",
    "Shared memory",
    "Operation",
    "Pages and documents",
)
_PICTURE: dict[str, Schema] = {**dict.fromkeys(PICTURES, BYTES), FORM: reference("Form")}
_WHICH: dict[str, Schema] = {
    "model": {**STRING, "description": "The model; by default that of the server."},
    "version": {**VERSION, "description": "The version; by default the newest."},
}
_TIMEOUT: dict[str, Schema] = {
    "timeout": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": LONGEST_TIMEOUT_S,
        "description": "Seconds within which the answer must be ready.",
    }
}
_TIMING: dict[str, Schema] = {
    "server-timing": {**STRING, "description": "Milliseconds of the picture and of the model."}
}
_RUNS = (ModelNotFound, DeadlineExceeded, Overloaded)
_CACHED: dict[str, Schema] = {
    "etag": STRING,
    "cache-control": STRING,
    "content-security-policy": STRING,
}
_UNLESS: dict[str, Schema] = {"if-none-match": {**STRING, "description": "The etag of a copy."}}

PREDICT = Contract(
    PEOPLE,
    "Classify images",
    {JSON: any_of(reference("Digits"), reference("Classes"))},
    {
        **_PICTURE,
        OCTETS: {**BYTES, "description": "Raw pixels, 784 bytes per image."},
        JSON: any_of(reference("ImageObject"), reference("Pixels"), reference("Rows")),
    },
    is_body_required=True,
    query={
        **_WHICH,
        **_TIMEOUT,
        "explain": {
            "type": "string",
            "enum": ["true", "false", "1", "0", ""],
            "description": "Whether to return the steps from the picture to the pixels.",
        },
        "top": {
            "type": "integer",
            "minimum": 1,
            "maximum": 1000,
            "default": 10,
            "description": "How many probabilities to return, for models of anything but digits.",
        },
    },
    answer_headers=_TIMING,
    errors=_RUNS,
    description="Pictures of any size, raw pixels or JSON in; digits, or what else the model "
    "classifies, with their probabilities out.",
)
READ = Contract(
    PEOPLE,
    "Read all digits on a picture",
    _json("Reading"),
    {**_PICTURE, JSON: any_of(reference("PictureObject"), reference("DataUrl"))},
    is_body_required=True,
    query={**_WHICH, **_TIMEOUT},
    answer_headers=_TIMING,
    errors=_RUNS,
)
INFER = Contract(
    PROTOCOL,
    "Run a model on tensors",
    {**_json("InferResponse"), OCTETS: {**BYTES, "description": "JSON, then binary tensors."}},
    {**_json("InferRequest"), OCTETS: {**BYTES, "description": "JSON, then binary tensors."}},
    is_body_required=True,
    headers={
        "inference-header-content-length": {
            "type": "integer",
            "minimum": 0,
            "description": "Bytes of the body that are JSON; binary tensors follow. 0: the body "
            "is the content of the model's only input.",
        }
    },
    answer_headers={
        "inference-header-content-length": {
            "type": "integer",
            "minimum": 2,
            "description": "Bytes of the answer that are JSON, if binary tensors follow.",
        }
    },
    errors=_RUNS,
)
SERVER_METADATA = Contract(
    PROTOCOL, "Name, version and extensions of the server", _json("ServerMetadata")
)
LIVE = Contract(PROTOCOL, "Whether the process answers", _json("Live"))
READY = Contract(
    PROTOCOL,
    "Whether the server takes requests",
    _json("Ready"),
    otherwise={503: {JSON: any_of(reference("Ready"), reference("Error"))}},
)
MODEL_METADATA = Contract(
    PROTOCOL, "Inputs and outputs of a model", _json("ModelMetadata"), errors=(ModelNotFound,)
)
MODEL_READY = Contract(
    PROTOCOL, "Whether a model is loaded", _json("ModelReady"), errors=(ModelNotFound,)
)
MODEL_CONFIG = Contract(
    CONTROL, "How a model is served", _json("ModelConfig"), errors=(ModelNotFound,)
)
MODEL_CARD = Contract(
    CONTROL,
    "The model.json of a version",
    _json("ModelCard"),
    errors=(ModelNotFound, Unavailable),
)
STATISTICS = Contract(
    CONTROL,
    "Counters and times of the models",
    _json("Statistics"),
    errors=(ModelNotFound, Unavailable),
)
REPOSITORY_INDEX = Contract(
    CONTROL, "All versions on disk", _json("Index"), _json("IndexRequest"), errors=(Unavailable,)
)
LOAD = Contract(
    CONTROL,
    "Load the newest versions of a model",
    _json("Nothing"),
    _json("LoadRequest"),
    errors=(ModelNotFound, Unimplemented, Unavailable),
)
UNLOAD = LOAD._replace(summary="Unload a model")
LOG_SETTINGS = Contract(CONTROL, "The settings of the log", _json("LogSettings"))
CHANGE_LOG_SETTINGS = Contract(
    CONTROL,
    "Change settings of the log",
    _json("LogSettings"),
    _json("LogChanges"),
    errors=(Unimplemented, Unavailable),
)
TRACE_SETTINGS = Contract(CONTROL, "The settings of tracing", _json("TraceSettings"))
CHANGE_TRACE_SETTINGS = Contract(
    CONTROL,
    "Change settings of tracing, which stays off",
    _json("TraceSettings"),
    _json("TraceChanges"),
    errors=(Unimplemented,),
    name="change_trace_settings",
)
MODEL_TRACE_SETTINGS = TRACE_SETTINGS._replace(errors=(ModelNotFound,))
CHANGE_MODEL_TRACE_SETTINGS = CHANGE_TRACE_SETTINGS._replace(errors=(ModelNotFound, Unimplemented))
REGIONS = Contract(MEMORY, "Registered regions", _json("Regions"))
REGION = REGIONS._replace(summary="A registered region", errors=(NotFound,))
REGISTER = Contract(
    MEMORY,
    "Register a region of system shared memory",
    _json("Nothing"),
    _json("RegionRequest"),
    is_body_required=True,
    errors=(AlreadyExists, Unavailable),
)
UNREGISTER = Contract(MEMORY, "Unregister a region", _json("Nothing"), errors=(Unavailable,))
UNREGISTER_ALL = UNREGISTER._replace(summary="Unregister all regions")
REGISTER_CUDA = Contract(
    MEMORY, "Refused: this server maps no CUDA memory", None, errors=(Unimplemented,)
)
METRICS = Contract(OPERATION, "The metrics of all workers", {TEXT: STRING}, errors=(Unavailable,))
INDEX = Contract(
    PAGES,
    "The playground for browsers; name, version and endpoints for others",
    {**_json("Server"), HTML: STRING},
    headers=_UNLESS,
    answer_headers=_CACHED,
    otherwise={304: {}},
)
FILES = Contract(
    PAGES,
    "A file of a page",
    {"text/css": STRING, "text/javascript": STRING, "image/png": BYTES, "image/svg+xml": STRING},
    headers=_UNLESS,
    answer_headers=_CACHED,
    otherwise={304: {}},
    errors=(NoSuchEndpoint,),
)
DOCUMENT = Contract(
    PAGES,
    "The OpenAPI document",
    {JSON: {"type": "object"}},
    headers=_UNLESS,
    answer_headers=_CACHED,
    otherwise={304: {}},
)
VIEWER = Contract(
    PAGES,
    "The page that shows the OpenAPI document",
    {HTML: STRING},
    headers=_UNLESS,
    answer_headers={**_CACHED, "location": STRING},
    otherwise={304: {}, 308: {}},  # 308: with a slash at the end of the path
    errors=(NoSuchEndpoint,),
)
_PREFLIGHT = ("access-control-allow-methods", "access-control-allow-headers")
OPTIONS = Contract(
    PAGES,
    "The methods of the path, and what a page of another server may send (CORS preflight)",
    {},
    answer_headers={
        "allow": STRING,
        **dict.fromkeys(_PREFLIGHT, STRING),
        "access-control-max-age": {"type": "integer"},
    },
    otherwise={204: {}},
)
