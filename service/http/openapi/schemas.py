"""The JSON Schemas of the values in requests and answers, by their names in the OpenAPI document.

Answers that are typed dictionaries in the operations get their schemas from those types.

Source: JSON Schema, draft 2020-12, the dialect of OpenAPI 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import getdoc
from types import NoneType, UnionType
from typing import Any, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

import orjson

from service.core.datatypes import DTYPES
from service.core.digits import REASONS
from service.http.pictures import PICTURES
from service.operations.replication import VersionStatistics
from service.repository.card import SCHEMA_FILE
from service.repository.model_config import ModelConfig

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
NULL: Schema = {"type": "null"}
VERSION: Schema = {"type": "string", "pattern": "^[1-9][0-9]{0,17}$"}
# What a body holds as it is, not as JSON.
BYTES: Schema = {"type": "string", "format": "binary"}
_TYPES = {str: STRING, bool: BOOLEAN, int: INTEGER, float: NUMBER, NoneType: NULL}


def reference(name: str) -> Schema:
    """A reference to one of `SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


def list_of(items: Schema, **bounds: int) -> Schema:
    """A list of `items`, with `minItems` and `maxItems` as `bounds`."""
    return {"type": "array", "items": items, **bounds}


def map_of(values: Schema) -> Schema:
    """An object with any names and these values."""
    return {"type": "object", "additionalProperties": values}


def any_of(*schemas: Schema) -> Schema:
    """A value that fits one of the schemas."""
    return {"anyOf": list(schemas)}


def record(description: str, optional: str = "", /, **fields: Schema) -> Schema:
    """An object of an answer: all fields; those in `optional` (words) may be missing."""
    required = [name for name in fields if name not in optional.split()]
    schema = request_record(description, " ".join(required), **fields)
    return schema | {"additionalProperties": False}


def request_record(description: str, required: str = "", /, **fields: Schema) -> Schema:
    """An object of a request; `required` names the fields that it needs, as words.

    Other fields are ignored, as the protocol demands.
    """
    schema: Schema = {"type": "object", "description": description, "properties": fields}
    return schema | ({"required": required.split()} if required else {})


def schema_of(kind: Any) -> Schema:
    """The schema of a type: a typed dictionary, list, dict or union, or a plain value."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_typeddict(kind):
        hints = get_type_hints(kind, include_extras=True)
        fields = {name: schema_of(_without_mark(hint)) for name, hint in hints.items()}
        optional = [
            name
            for name, hint in hints.items()
            if get_origin(hint) is NotRequired or not kind.__total__
        ]
        return record((getdoc(kind) or "").partition("\n")[0], " ".join(optional), **fields)
    if origin is list:
        return list_of(schema_of(*arguments))
    if origin is dict:
        return map_of(schema_of(arguments[1]))
    if origin in (Union, UnionType):
        return any_of(*map(schema_of, arguments))
    return _TYPES[kind]


def _without_mark(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is NotRequired else hint


def _model_card() -> Schema:
    """The schema of model.json, with the addresses that its definitions have in the document."""
    text = SCHEMA_FILE.read_bytes().replace(b"#/$defs/", b"#/components/schemas/ModelCard/$defs/")
    schema: Schema = orjson.loads(text)
    del schema["$schema"]
    return schema


_ROW = list_of(reference("Pixel"), minItems=28, maxItems=28)
_SQUARE = list_of(_ROW, minItems=28, maxItems=28)
_FLAT = list_of(reference("Pixel"), minItems=784, maxItems=784)
_TENSOR = {"name": STRING, "datatype": reference("Datatype"), "shape": list_of(INTEGER)}
_PARAMETERS = reference("Parameters")
_DIGIT = {
    "digit": {"type": "integer", "minimum": 0, "maximum": 9, "description": "The most probable."},
    "probabilities": {
        **list_of(NUMBER, minItems=10, maxItems=10),
        "description": "Calibrated, by digit; they sum to 1.",
    },
    "entropy_bits": {**NUMBER, "description": "Of the distribution: 0 is certain, 3.32 uniform."},
    "prediction_set": {
        **any_of(list_of(INTEGER, minItems=1, maxItems=10), NULL),
        "description": "The digits among which the right one is, with 99.9 % coverage; null if "
        "the model does not judge its input.",
    },
    "accepted": {
        "type": ["boolean", "null"],
        "description": "Whether the image shows one digit that the model is sure of; null if the "
        "model does not judge its input.",
    },
    "reason": {"type": "string", "enum": list(REASONS), "description": "Why it is not accepted."},
    "hint": {**STRING, "description": "What is wrong with the image, and what would help."},
}
_MODEL = {"model_name": STRING, "model_version": VERSION}
_BLANK = {
    "inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "data": [0] * 784}]
}
# A test image of MNIST, for people to try.
_SEVEN = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAABwAAAAcCAAAAABXZoBIAAAA1ElEQVR42mNgGDaAEULZxv84+sM7+T8Dw60jP6Ze"
    "R1Eidf7f379/v746/PLly29/P0qgSC77++/v3wYDBgYGBgaDR3/DkaRY1v3++6VGmAnKvfZXGEmy5e/fjbpwnt4X"
    "FMmGw1FIvM3/ZuB0Pse/3x44JZf+W4pTTvXHPz04hwlNUoN17W1cGoXf/0P2I4ockyff/+v/Ge57Y9O3/O/fv//+"
    "/r2KzdCTf//+3VmqJCyATbLc8+BbFZweCfh3DcUJKJJq/y/hlmRgOItPEg/wOKhEtFoAr0BRvGOGO6kAAAAASUVO"
    "RK5CYII="
)
_LOG = {
    "log_file": STRING,
    "log_error": BOOLEAN,
    "log_warning": BOOLEAN,
    "log_info": BOOLEAN,
    "log_verbose_level": {"type": "integer", "minimum": 0},
    "log_format": STRING,
}
_TRACE = {
    "trace_level": list_of(STRING),
    "trace_rate": STRING,
    "trace_count": STRING,
    "log_frequency": STRING,
    "trace_file": STRING,
    "trace_mode": STRING,
}


def _changes(settings: Mapping[str, Schema], description: str) -> Schema:
    """Some of the settings; null resets one."""
    fields = {name: any_of(schema, NULL) for name, schema in settings.items()}
    return request_record(description, **fields) | {"additionalProperties": False}


SCHEMAS: dict[str, Schema] = {
    "Error": record("Why a request failed.", error={**STRING, "description": "One sentence."}),
    # Pictures, digits and other classes
    "Pixel": {
        "type": "integer",
        "minimum": 0,
        "maximum": 255,
        "description": "0 is background, 255 is full ink.",
    },
    "Pixels": {
        **any_of(_SQUARE, list_of(_SQUARE, minItems=1), _FLAT),
        "description": "28x28, Nx28x28 or 784 pixels.",
    },
    "DataUrl": {
        "type": "string",
        "pattern": f"^data:({'|'.join(PICTURES)});base64,",
        "description": "A picture in base64.",
        "examples": [_SEVEN],
    },
    "Form": record("A picture as the only file of a form.", image=BYTES),
    "PictureObject": request_record("A picture.", "image", image=reference("DataUrl")),
    "ImageObject": request_record(
        "Pixels, or a picture.", "image", image=any_of(reference("Pixels"), reference("DataUrl"))
    )
    | {"examples": [{"image": _SEVEN}]},
    "Rows": {
        **any_of(map_of(reference("Values")), list_of(reference("Values"))),
        "description": "What a model of anything but digits takes: an object with a field per "
        "input, which holds one row or a list of N; a list of such objects; or the rows alone.",
    },
    "Values": {
        **any_of(
            {"type": ["number", "string", "boolean", "null"]},
            list_of(reference("Values")),
            map_of(reference("Values")),
        ),
        "description": "Values, in any nesting.",
    },
    "Prediction": record("What one image shows.", "reason hint", **_DIGIT),
    "Step": record(
        "A step from the picture to what the model sees.",
        name=STRING,
        png={**STRING, "description": "A data URL."},
    ),
    "Digits": record(
        "One prediction per image.",
        "steps",
        **_MODEL,
        predictions=list_of(reference("Prediction")),
        steps=list_of(reference("Step")),
    ),
    "Classification": record(
        "The most probable class of one row.",
        **{"label": STRING, "class": INTEGER},
        probabilities={**map_of(NUMBER), "description": "The most probable classes, by label."},
        entropy_bits=NUMBER,
    ),
    "Classes": record(
        "One classification per row.",
        "steps",
        **_MODEL,
        predictions=list_of(reference("Classification")),
        steps=list_of(reference("Step")),
    ),
    "ReadDigit": record(
        "A digit on a picture.",
        "reason hint",
        box={
            **list_of(INTEGER, minItems=4, maxItems=4),
            "description": "[left, top, right, bottom] in pixels of the upright picture.",
        },
        line={"type": "integer", "minimum": 0, "description": "The index in `lines`."},
        **_DIGIT,
    ),
    "Reading": record(
        "The digits on a picture, in reading order.",
        "hint",
        **_MODEL,
        text={**STRING, "description": "A character per digit, a line break between lines."},
        digits=list_of(reference("ReadDigit")),
        lines=list_of(STRING),
        hint={**STRING, "description": "Only if nothing was found."},
    ),
    # The Open Inference Protocol
    "Server": record("The server.", name=STRING, version=STRING, endpoints={**list_of(STRING)}),
    "ServerMetadata": record(
        "The server.", name=STRING, version=STRING, extensions=list_of(STRING)
    ),
    "Live": record("The process answers.", live={"const": True}),
    "Ready": record(
        "Whether the server takes requests.",
        ready=BOOLEAN,
        reason={**STRING, "description": "Why not; empty if it does."},
        failures={**map_of(STRING), "description": "Versions that could not be loaded, and why."},
    ),
    "ModelReady": record("A model that is loaded.", name=STRING, ready={"const": True}),
    "ModelMetadata": record(
        "A loaded model.",
        name=STRING,
        versions=list_of(VERSION),
        platform=STRING,
        inputs=list_of(reference("TensorMetadata")),
        outputs=list_of(reference("TensorMetadata")),
        parameters=map_of(STRING),
    ),
    "TensorMetadata": record("An input or output; -1 in a shape is any size.", **_TENSOR),
    "Datatype": {"type": "string", "enum": [*DTYPES]},
    "Parameters": {
        **map_of({"type": ["string", "number", "boolean"]}),
        "description": "Parameters of the protocol; docs/protocol.md lists those with an effect.",
    },
    "InferRequest": request_record(
        "Tensors for a model.",
        "inputs",
        id=STRING,
        parameters=_PARAMETERS,
        inputs=list_of(reference("InputTensor"), maxItems=1024),
        outputs=list_of(reference("RequestedOutput"), maxItems=1024),
    )
    | {"examples": [_BLANK]},
    "InputTensor": request_record(
        "An input: its `data`, or `binary_data_size` or a region of shared memory in `parameters`.",
        "name datatype shape",
        **_TENSOR,
        parameters=_PARAMETERS,
        data=list_of(reference("Values")),
    ),
    "RequestedOutput": request_record("An output.", "name", name=STRING, parameters=_PARAMETERS),
    "InferResponse": record(
        "Tensors of a model.",
        "id parameters",
        **_MODEL,
        id=STRING,
        parameters=_PARAMETERS,
        outputs=list_of(reference("OutputTensor")),
    ),
    "OutputTensor": record(
        "An output. `data` is flat, in row-major order; null is NaN. Infinities "
        "are `Infinity` and `-Infinity`, which strict JSON lacks.",
        "parameters data",
        **_TENSOR,
        parameters=_PARAMETERS,
        data=list_of({"type": ["number", "string", "boolean", "null"]}),
    ),
    # The control plane
    "ModelConfig": schema_of(ModelConfig),
    "ModelCard": _model_card(),
    "Statistics": record(
        "The counters of all workers.", model_stats=list_of(schema_of(VersionStatistics))
    ),
    "IndexRequest": request_record("Which versions.", ready=BOOLEAN),
    "Index": list_of(
        record(
            "A version on disk, or a model without any.",
            name=STRING,
            version=STRING,
            state={"type": "string", "enum": ["READY", "UNAVAILABLE"]},
            reason=STRING,
        )
    ),
    "LoadRequest": request_record("How to load.", parameters={"type": "object"}),
    "LogSettings": record("The log.", **_LOG),
    "LogChanges": _changes(_LOG, "Settings of the log; null resets one."),
    "TraceSettings": record("Tracing, which is off.", **_TRACE),
    "TraceChanges": _changes(_TRACE, "Settings of tracing; only those that leave it off."),
    "RegionRequest": request_record(
        "A part of a shared memory object.",
        "key byte_size",
        key={
            "type": "string",
            "pattern": r"^/?(?!\.{1,2}$)[A-Za-z0-9_.-]{1,255}$",
            "description": "The object's name in /dev/shm.",
        },
        offset={"type": "integer", "minimum": 0},
        byte_size={"type": "integer", "minimum": 1},
    ),
    "Regions": list_of(
        record("A registered region.", name=STRING, key=STRING, offset=INTEGER, byte_size=INTEGER)
    ),
    "Nothing": record("An empty object."),
}
