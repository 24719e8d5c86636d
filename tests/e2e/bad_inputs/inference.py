"""Inference requests: every field with what it must not be.

The words are those of the field's name in the sentence. Sources: Open Inference Protocol (KServe
V2); Triton's extensions; docs/protocol.md.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from tests.e2e.bad_inputs.case import (
    INVALID,
    LATE,
    NOT_FOUND,
    TOO_LARGE,
    Grpc,
    Http,
    Tensor,
    call,
    infer,
    post,
)

INFER = "/v2/models/mnist/infer"
PIXELS = bytes(784)
ZEROS = [0] * 784
IMAGE = Tensor("image", "UINT8", [1, 28, 28], ZEROS, PIXELS, {"uint_contents": ZEROS})
OUTSIDE = "'image'"


def image(**changed: Any) -> Tensor:
    return IMAGE._replace(**changed)


def pair(datatype: str, **changed: Any) -> dict[str, Any]:
    """Arguments of a request to an identity model: `x` [1,2]."""
    return {"model": f"identity_{datatype.lower()}", "x": Tensor("x", datatype, [1, 2], **changed)}


def of(name: str, datatype: str, words: str = "'x'", **changed: Any) -> list[Http | Grpc]:
    tensor = Tensor("x", datatype, [1, 2], **changed)
    return infer(name, INVALID, words, tensor, model=f"identity_{datatype.lower()}")


def floats(*values: float, kind: str = "<f4") -> bytes:
    return np.array(values, kind).tobytes()


A = Tensor("a", "FP32", [1, 3], [1, 2, 3], floats(1, 2, 3), {"fp32_contents": [1, 2, 3]})
B = A._replace(name="b")

NAMES = [
    *infer("input name unknown", INVALID, "'picture'", image(name="picture")),
    *infer("input name empty", INVALID, "input ''", image(name="")),
    *infer("input name in other case", INVALID, "'Image'", image(name="Image")),
    *infer("input name with a space", INVALID, "'image '", image(name="image ")),
    *infer("input name of an output", INVALID, "'logits'", image(name="logits")),
    *infer("input name of 10,000 letters", INVALID, "nnn...", image(name="n" * 10_000)),
    *infer("input name with controls", INVALID, "takes: image", image(name="a\x1b[31m\nb")),
    *infer("input given twice", INVALID, "already exists in request", IMAGE, IMAGE),
    *infer("input missing", INVALID, "'b'", A, model="sum"),
    *infer("input too many", INVALID, "'c'", A, B, A._replace(name="c"), model="sum"),
    *infer("no inputs", INVALID, "nput"),
    *infer("output unknown", INVALID, "'digits'", IMAGE, outputs=[{"name": "digits"}]),
    *infer("output name empty", INVALID, "output ''", IMAGE, outputs=[{"name": ""}]),
    *infer(
        "output twice",
        INVALID,
        "already exists in request",
        IMAGE,
        outputs=[{"name": "logits"}] * 2,
    ),
    *infer("output of an input", INVALID, "'image'", IMAGE, outputs=[{"name": "image"}]),
]

DATATYPES = [
    *infer("datatype of another protocol", INVALID, "UINT8", image(datatype="uint8_t", typed=None)),
    *infer("datatype in lower case", INVALID, "uint8", image(datatype="uint8", typed=None)),
    *infer(
        "datatype of config.pbtxt", INVALID, "TYPE_UINT8", image(datatype="TYPE_UINT8", typed=None)
    ),
    *infer("datatype empty", INVALID, "data-type is 'unset'", image(datatype="", typed=None)),
    *infer("datatype too wide", INVALID, "FP32", image(datatype="FP32", typed=None)),
    *infer(
        "datatype signed", INVALID, "INT8", image(datatype="INT8", typed={"int_contents": ZEROS})
    ),
    *infer("datatype BYTES for numbers", INVALID, "BYTES", image(datatype="BYTES", typed=None)),
    *infer(
        "datatype of 10,000 letters", INVALID, "DDD...", image(datatype="D" * 10_000, typed=None)
    ),
    call(
        "typed contents of FP16",
        "ModelInfer",
        pb.ModelInferRequest(
            model_name="identity_fp16",
            inputs=[
                {
                    "name": "x",
                    "datatype": "FP16",
                    "shape": [1, 2],
                    "contents": {"fp32_contents": [1, 2]},
                }
            ],
        ),
        "INVALID_ARGUMENT",
        "raw_input_contents",
    ),
    call(
        "typed contents of BF16",
        "ModelInfer",
        pb.ModelInferRequest(
            model_name="identity_bf16",
            inputs=[
                {
                    "name": "x",
                    "datatype": "BF16",
                    "shape": [1, 2],
                    "contents": {"fp32_contents": [1, 2]},
                }
            ],
        ),
        "INVALID_ARGUMENT",
        "raw_input_contents",
    ),
    call(
        "typed contents in the wrong field",
        "ModelInfer",
        pb.ModelInferRequest(
            model_name="mnist",
            inputs=[
                {
                    "name": "image",
                    "datatype": "UINT8",
                    "shape": [1, 28, 28],
                    "contents": {"int_contents": ZEROS},
                }
            ],
        ),
        "INVALID_ARGUMENT",
        "uint_contents",
    ),
    call(
        "typed contents in two fields",
        "ModelInfer",
        pb.ModelInferRequest(
            model_name="mnist",
            inputs=[
                {
                    "name": "image",
                    "datatype": "UINT8",
                    "shape": [1, 28, 28],
                    "contents": {"uint_contents": ZEROS, "int_contents": [1]},
                }
            ],
        ),
        "INVALID_ARGUMENT",
        "uint_contents",
    ),
    call(
        "typed contents above max_json_bytes",
        "ModelInfer",
        pb.ModelInferRequest(
            model_name="mnist",
            inputs=[
                {
                    "name": "image",
                    "datatype": "UINT8",
                    "shape": [4000, 28, 28],
                    "contents": {"uint_contents": ZEROS * 4000},
                }
            ],
        ),
        "INVALID_ARGUMENT",
        "max_json_bytes",
    ),
    call(
        "raw and typed contents",
        "ModelInfer",
        pb.ModelInferRequest(
            model_name="mnist",
            raw_input_contents=[PIXELS],
            inputs=[
                {
                    "name": "image",
                    "datatype": "UINT8",
                    "shape": [1, 28, 28],
                    "contents": {"uint_contents": ZEROS},
                }
            ],
        ),
        "INVALID_ARGUMENT",
        "raw_input_contents",
    ),
    call(
        "raw contents too many",
        "ModelInfer",
        pb.ModelInferRequest(
            model_name="mnist",
            raw_input_contents=[PIXELS] * 2,
            inputs=[
                {
                    "name": "image",
                    "datatype": "UINT8",
                    "shape": [1, 28, 28],
                }
            ],
        ),
        "INVALID_ARGUMENT",
        "raw_input_contents",
    ),
    call(
        "raw contents too few",
        "ModelInfer",
        pb.ModelInferRequest(
            model_name="sum",
            raw_input_contents=[floats(1, 2, 3)],
            inputs=[{"name": name, "datatype": "FP32", "shape": [1, 3]} for name in "ab"],
        ),
        "INVALID_ARGUMENT",
        "raw_input_contents",
    ),
    call(
        "contents missing",
        "ModelInfer",
        pb.ModelInferRequest(
            model_name="mnist",
            inputs=[
                {
                    "name": "image",
                    "datatype": "UINT8",
                    "shape": [1, 28, 28],
                }
            ],
        ),
        "INVALID_ARGUMENT",
        "'image'",
    ),
]

SHAPES = [
    *infer("shape of too few dimensions", INVALID, "got [784]", image(shape=[784])),
    *infer("shape of too many dimensions", INVALID, "got [1,1,28,28]", image(shape=[1, 1, 28, 28])),
    *infer("shape empty", INVALID, "got []", image(shape=[])),
    *infer("shape with a wrong size", INVALID, "got [1,28,27]", image(shape=[1, 28, 27])),
    *infer("shape in another order", INVALID, "got [28,28,1]", image(shape=[28, 28, 1])),
    *infer("shape of zero columns", INVALID, "got [1,28,0]", image(shape=[1, 28, 0])),
    *infer("shape of zero rows, with pixels", INVALID, "", image(shape=[0, 28, 28])),
    *infer("shape negative", INVALID, "got [-1,28,28]", image(shape=[-1, 28, 28])),
    *infer("shape at the limit of INT64", INVALID, "shape", image(shape=[2**63 - 1, 28, 28])),
    *infer("shape below the limit of INT64", INVALID, "shape", image(shape=[-(2**63), 28, 28])),
    *infer("shape above INT64", INVALID, "shape", image(shape=[2**63, 28, 28])),
    *infer("shape above UINT64", INVALID, "shape", image(shape=[2**64, 28, 28])),
    *infer("shape whose product wraps to 784", INVALID, "shape", image(shape=[2**60 + 1, 28, 28])),
    *infer("shape of 1,000 dimensions", INVALID, "shape", image(shape=[1] * 1000)),
    *infer("shape of more rows than data", INVALID, OUTSIDE, image(shape=[2, 28, 28])),
    *infer(
        "shape of fewer rows than data",
        INVALID,
        OUTSIDE,
        image(data=ZEROS * 2, raw=PIXELS * 2, typed={"uint_contents": ZEROS * 2}),
    ),
    *infer(
        "shape for a scalar",
        INVALID,
        "'x'",
        Tensor("x", "INT64", [1], [1], bytes(8), {"int64_contents": [1]}),
        model="scalar",
    ),
    *infer(
        "batch sizes that differ",
        INVALID,
        "batch size",
        A,
        Tensor("b", "FP32", [2, 3], [0] * 6, bytes(24), {"fp32_contents": [0] * 6}),
        model="sum",
    ),
]

DATA = [
    *infer(
        "data too short",
        INVALID,
        OUTSIDE,
        image(data=ZEROS[1:], raw=PIXELS[1:], typed={"uint_contents": ZEROS[1:]}),
    ),
    *infer(
        "data too long",
        INVALID,
        OUTSIDE,
        image(data=[*ZEROS, 0], raw=PIXELS + b"\0", typed={"uint_contents": [*ZEROS, 0]}),
    ),
    *infer("data empty", INVALID, OUTSIDE, image(data=[], raw=b"", typed={"uint_contents": []})),
    *infer(
        "UINT8 of 256",
        INVALID,
        "255",
        image(data=[*ZEROS[1:], 256], raw=None, typed={"uint_contents": [*ZEROS[1:], 256]}),
    ),
    *infer("UINT8 of -1", INVALID, "-1", image(data=[*ZEROS[1:], -1], raw=None, typed=None)),
    *infer(
        "UINT8 of 0.5", INVALID, "fraction", image(data=[*ZEROS[1:], 0.5], raw=None, typed=None)
    ),
    *infer(
        "UINT8 of true", INVALID, "numbers", image(data=[*ZEROS[1:], True], raw=None, typed=None)
    ),
    *infer(
        "UINT8 of text", INVALID, "numbers", image(data=[*ZEROS[1:], "1"], raw=None, typed=None)
    ),
    *infer(
        "UINT8 of null", INVALID, "numbers", image(data=[*ZEROS[1:], None], raw=None, typed=None)
    ),
    *infer(
        "UINT8 of an object", INVALID, "numbers", image(data=[*ZEROS[1:], {}], raw=None, typed=None)
    ),
    *of("INT8 of -129", "INT8", "-129", data=[0, -129], typed={"int_contents": [0, -129]}),
    *of("INT8 of 128", "INT8", "128", data=[0, 128], typed={"int_contents": [0, 128]}),
    *of("INT16 of 32768", "INT16", "32768", data=[0, 32768], typed={"int_contents": [0, 32768]}),
    *of("UINT16 of 65536", "UINT16", "65536", data=[0, 65536], typed={"uint_contents": [0, 65536]}),
    *of("INT32 of 2^31", "INT32", "2147483648", data=[0, 2**31]),
    *of("UINT32 of 2^32", "UINT32", "4294967296", data=[0, 2**32]),
    *of("INT64 of 2^63", "INT64", data=[0, 2**63]),
    *of("INT64 of 2^64", "INT64", data=[0, 2**64]),
    *of("INT64 of a double above 2^53", "INT64", "exact", data=[0, 1e16]),
    *of("UINT64 of -1", "UINT64", "-1", data=[0, -1]),
    *of("UINT64 of 2^64", "UINT64", data=[0, 2**64]),
    *of("UINT64 of -1 beside 2^64-1", "UINT64", data=[-1, 2**64 - 1]),
    *of("BOOL of 2", "BOOL", raw=b"\0\2"),
    *of("BOOL of 1", "BOOL", "true and false", data=[0, 1]),
    *of("FP16 of 70000", "FP16", data=[0, 70000]),
    *of("BF16 rounded to infinity", "BF16", "infinite", data=[0, 3.4e38]),
    *of("FP32 of 1e39", "FP32", "infinite", data=[0, 1e39]),
    *of("FP32 of text", "FP32", "numbers", data=[0, "1.0"]),
    *of("BYTES of numbers", "BYTES", "strings", data=["a", 1]),
    *of("BYTES of null", "BYTES", "strings", data=["a", None]),
    *of(
        "BYTES that are not UTF-8",
        "BYTES",
        "UTF-8",
        raw=b"\1\0\0\0a\1\0\0\0\xff",
        typed={"bytes_contents": [b"a", b"\xff"]},
    ),
    *of("BYTES cut in a length", "BYTES", "length", raw=b"\1\0\0\0a\1\0"),
    *of("BYTES cut in an element", "BYTES", "element", raw=b"\1\0\0\0a\2\0\0\0b"),
    *of("BYTES with a length of 4 GB", "BYTES", "element", raw=b"\1\0\0\0a\xff\xff\xff\xffb"),
    *of(
        "BYTES of too many elements",
        "BYTES",
        raw=b"\1\0\0\0a" * 3,
        data=["a"] * 3,
        typed={"bytes_contents": [b"a"] * 3},
    ),
    *of(
        "BYTES of too few elements",
        "BYTES",
        raw=b"\1\0\0\0a",
        data=["a"],
        typed={"bytes_contents": [b"a"]},
    ),
    *of("data of ragged rows", "FP32", "lengths", data=[[1, 2], [1]]),
    *of("data of a row beside a number", "FP32", data=[[1], 2]),
    *of("data nested 65 deep", "FP32", "deep", data=json.loads("[" * 65 + "1" + "]" * 65)),
    *of("data of another number", "FP32", data=[[1], [2], [3]]),
    *of("data empty rows", "FP32", "empty", data=[[], []]),
]


def body(**changed: Any) -> bytes:
    """JSON of a request whose only input has some fields changed; None leaves one out."""
    fields = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "data": ZEROS} | changed
    return json.dumps({"inputs": [{k: v for k, v in fields.items() if v is not None}]}).encode()


def bad(name: str, content: bytes | Any, words: str) -> Http:
    """An infer body that is refused with 400."""
    return Http(name, post(INFER, content), 400, words)


VALID = json.loads(body())

STRUCTURE = [
    bad("data text", body(data="AAAA"), "data"),
    bad("data object", body(data={"0": 1}), "data"),
    bad("data number", body(data=0), "data"),
    bad("data missing", body(data=None), "data"),
    bad("JSON array", [VALID], "object"),
    bad("JSON number", b"1", "object"),
    bad("JSON null", b"null", "object"),
    bad("JSON empty", b"", "empty"),
    bad("JSON of spaces", b"  \r\n ", "JSON"),
    bad("JSON cut short", body()[:-1], "JSON"),
    bad("JSON with a comma at its end", b'{"inputs": [1,]}', "JSON"),
    bad("JSON with NaN", b'{"inputs": NaN}', "must be a list"),
    bad("JSON with Infinity", b'{"inputs": [Infinity]}', "must be an object"),
    bad("JSON with -NaN", b'{"inputs": [-NaN]}', "JSON"),
    bad("JSON with Inf", b'{"inputs": [Inf]}', "JSON"),
    bad("JSON in single quotes", b"{'inputs': []}", "JSON"),
    bad("JSON with a comment", b'{"inputs": [] // none\n}', "JSON"),
    bad("JSON after a byte order mark", b"\xef\xbb\xbf{}", "JSON"),
    bad("JSON as UTF-16", '{"inputs": []}'.encode("utf-16"), "JSON"),
    bad("JSON that is not UTF-8", b'{"id": "\xff"}', "JSON"),
    bad("JSON with half a surrogate pair", b'{"id": "\\ud800"}', "JSON"),
    bad("JSON with a control character", b'{"id": "a\nb"}', "JSON"),
    bad("JSON twice", body() * 2, "JSON"),
    bad("JSON with a number too long", b'{"inputs": ' + b"9" * 400 + b"e999}", "JSON"),
    bad("JSON with a leading zero", b'{"inputs": 01}', "JSON"),
    bad("JSON of 100,000 brackets", b"[" * 100_000, "max_json_bytes"),
    bad("JSON nested 2,000 deep", b"[" * 2000 + b"]" * 2000, "JSON"),
    Http("JSON above max_json_bytes", post(INFER, b" " * (2 << 20) + b"{}"), 413, "max_json_bytes"),
    bad("inputs missing", {}, "inputs"),
    bad("inputs null", {"inputs": None}, "inputs"),
    bad("inputs object", {"inputs": VALID["inputs"][0]}, "inputs"),
    bad("inputs text", {"inputs": "image"}, "inputs"),
    bad("input list", {"inputs": [[]]}, "inputs[0]"),
    bad("input null", {"inputs": [*VALID["inputs"], None]}, "inputs[1]"),
    bad("input name number", body(name=1), "inputs[0].name"),
    bad("input name missing", body(name=None), "inputs[0].name"),
    bad("datatype number", body(datatype=8), "inputs[0].datatype"),
    bad("datatype missing", body(datatype=None), "inputs[0].datatype"),
    bad("shape missing", body(shape=None), "inputs[0].shape"),
    bad("shape text", body(shape="1,28,28"), "inputs[0].shape"),
    bad("shape number", body(shape=784), "inputs[0].shape"),
    bad("shape of fractions", body(shape=[1.0, 28, 28]), "inputs[0].shape"),
    bad("shape of texts", body(shape=["1", 28, 28]), "inputs[0].shape"),
    bad("shape of true", body(shape=[True, 28, 28]), "inputs[0].shape"),
    bad("shape nested", body(shape=[[1, 28, 28]]), "inputs[0].shape"),
    bad("id number", VALID | {"id": 1}, "id"),
    bad("id null", VALID | {"id": None}, "id"),
    bad("outputs object", VALID | {"outputs": {"name": "logits"}}, "outputs"),
    bad("outputs null", VALID | {"outputs": None}, "outputs"),
    bad("output text", VALID | {"outputs": ["logits"]}, "outputs[0]"),
    bad("output name missing", VALID | {"outputs": [{}]}, "outputs[0].name"),
    bad("output name list", VALID | {"outputs": [{"name": []}]}, "outputs[0].name"),
    bad(
        "output parameters list",
        VALID | {"outputs": [{"name": "logits", "parameters": [1]}]},
        "outputs[0].parameters",
    ),
    bad("parameters list", VALID | {"parameters": [1]}, "parameters"),
    bad("parameters text", VALID | {"parameters": "timeout"}, "parameters"),
    bad("parameter null", VALID | {"parameters": {"timeout": None}}, "parameters"),
    bad("parameter object", VALID | {"parameters": {"a": {}}}, "parameters"),
    bad("input parameters text", body(parameters="none"), "inputs[0].parameters"),
    bad("input parameter list", body(parameters={"a": []}), "inputs[0].parameters"),
    bad(
        "binary_data_output text",
        VALID | {"parameters": {"binary_data_output": "yes"}},
        "binary_data_output",
    ),
    bad(
        "binary_data_output number",
        VALID | {"parameters": {"binary_data_output": 1}},
        "binary_data_output",
    ),
    bad(
        "binary_data text",
        VALID | {"outputs": [{"name": "logits", "parameters": {"binary_data": "yes"}}]},
        "binary_data",
    ),
]

PARAMETERS = [
    case
    for name, parameters, words in (
        ("timeout text", {"timeout": "1000"}, "timeout"),
        ("timeout negative", {"timeout": -1}, "timeout"),
        ("timeout fraction", {"timeout": 1.5}, "timeout"),
        ("timeout true", {"timeout": True}, "timeout"),
        ("priority text", {"priority": "high"}, "priority"),
        ("priority negative", {"priority": -1}, "priority"),
        ("priority fraction", {"priority": 0.5}, "priority"),
        ("sequence_id fraction", {"sequence_id": 1.5}, "sequence_id"),
        ("sequence_id true", {"sequence_id": True}, "sequence_id"),
        ("sequence_start number", {"sequence_start": 1}, "sequence_start"),
        ("sequence_start text", {"sequence_start": "true"}, "sequence_start"),
        ("sequence_end text", {"sequence_end": "no"}, "sequence_end"),
    )
    for case in infer(name, INVALID, words, IMAGE, parameters=parameters)
] + [
    *infer("timeout passed", LATE, "timeout", IMAGE, parameters={"timeout": 1}),
    *(
        case
        for name, value in (
            ("classification text", "3"),
            ("classification negative", -1),
            ("classification fraction", 1.5),
            ("classification true", True),
        )
        for case in infer(
            name,
            INVALID,
            "classification",
            IMAGE,
            outputs=[{"name": "logits", "parameters": {"classification": value}}],
        )
    ),
    *(
        case
        for datatype, tensor in (
            ("BYTES", Tensor("x", "BYTES", [1, 2], ["a", "b"], b"\1\0\0\0a\1\0\0\0b")),
            ("BOOL", Tensor("x", "BOOL", [1, 2], [True, False], b"\1\0")),
        )
        for case in infer(
            f"classification of {datatype}",
            INVALID,
            "'y'",
            tensor,
            model=f"identity_{datatype.lower()}",
            outputs=[{"name": "y", "parameters": {"classification": 1}}],
        )
    ),
]

NOT_LOADED = [
    *infer("model unknown", NOT_FOUND, "'nothing'", IMAGE, model="nothing"),
    *infer("model in other case", NOT_FOUND, "'MNIST'", IMAGE, model="MNIST"),
    *infer("model of dots", NOT_FOUND, "'...'", IMAGE, model="..."),
    *infer("version unknown", NOT_FOUND, "999", IMAGE, version="999"),
    *infer("version 0", INVALID, "Version", IMAGE, version="0"),
    *infer("version text", INVALID, "'latest'", IMAGE, version="latest"),
    *infer("version negative", INVALID, "'-1'", IMAGE, version="-1"),
    *infer("version with a leading zero", INVALID, "'01'", IMAGE, version="01"),
    *infer("version with a point", INVALID, "'1.0'", IMAGE, version="1.0"),
    *infer("version of 30 digits", INVALID, "Version", IMAGE, version="9" * 30),
    call("model empty", "ModelInfer", pb.ModelInferRequest(), "NOT_FOUND", "model: ''"),
    call(
        "version of Arabic digits",
        "ModelInfer",
        pb.ModelInferRequest(model_name="mnist", model_version="\u0661"),
        "INVALID_ARGUMENT",
        "Version",
    ),
]


def binary(
    name: str, words: str, header: Any, tail: bytes = PIXELS, length: str = "", model: str = "mnist"
) -> Http:
    """A request with a JSON header of `length` bytes, by default its own."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    headers = {"Inference_Header_Content_Length": length or str(len(content))}
    path = f"/v2/models/{model}/infer"
    return Http(name, post(path, content + tail, "application/octet-stream", **headers), 400, words)


def sized(size: Any, **more: Any) -> Any:
    """A JSON header whose input has `size` as its binary_data_size."""
    fields = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], **more}
    return {"inputs": [fields | {"parameters": {"binary_data_size": size}}]}


LENGTH = "Inference-Header-Content-Length"
BINARY = [
    binary("binary_data_size too large", "binary_data_size", sized(785)),
    binary("binary_data_size too small", "1 bytes more", sized(783)),
    binary("binary_data_size negative", "binary_data_size", sized(-1)),
    binary("binary_data_size text", "binary_data_size", sized("784")),
    binary("binary_data_size fraction", "binary_data_size", sized(784.0)),
    binary("binary_data_size true", "binary_data_size", sized(True)),
    binary("binary_data_size above INT64", "binary_data_size", sized(2**63)),
    binary("binary_data_size above UINT64", "binary_data_size", sized(2**65)),
    binary("binary_data_size beside data", "inputs[0]", sized(784, data=ZEROS)),
    binary("binary data without binary_data_size", "784 bytes more", VALID),
    Http("binary_data_size without binary data", post(INFER, sized(784)), 400, "binary_data_size"),
    binary("header length too large", LENGTH, sized(784), length="9999"),
    binary("header length negative", LENGTH, sized(784), length="-1"),
    binary("header length signed", LENGTH, sized(784), length="+100"),
    binary("header length text", LENGTH, sized(784), length="all"),
    binary("header length hexadecimal", LENGTH, sized(784), length="0x10"),
    binary("header length with an underscore", LENGTH, sized(784), length="1_0"),
    binary("header length fraction", LENGTH, sized(784), length="100.0"),
    binary("header length twice in a list", LENGTH, sized(784), length="100, 100"),
    binary("header length of 40 digits", LENGTH, sized(784), length="9" * 40),
    binary("header length in the middle of the JSON", "JSON", sized(784), length="20"),
    binary("header length past the JSON", "JSON", sized(784), length="130"),
    Http(
        "header length above max_json_bytes",
        post(INFER, bytes(3 << 20), Inference_Header_Content_Length=str(3 << 20)),
        413,
        "max_json_bytes",
    ),
    binary("raw body of a wrong size", "'image'", b"", PIXELS[1:], length="0"),
    binary("raw body empty", "'image'", b"", b"", length="0"),
    binary("raw body for two inputs", "inputs", b"", floats(1, 2, 3), length="0", model="sum"),
    binary("raw body that is not UTF-8", "'x'", b"", b"\xff", length="0", model="identity_bytes"),
]


def in_memory(name: str, words: str, kind: Any = INVALID, **parameters: Any) -> list[Http | Grpc]:
    """An image in the registered region `pixels` of 1000 bytes, with some parameters changed."""
    given = {"shared_memory_region": "pixels", "shared_memory_byte_size": 784} | parameters
    tensor = image(
        data=None,
        raw=None,
        typed=None,
        parameters={k: v for k, v in given.items() if v is not None},
    )
    return infer(name, kind, words, tensor)


def to_memory(name: str, words: str, **parameters: Any) -> list[Http | Grpc]:
    """An output to the region `pixels`, with some parameters changed."""
    given = {"shared_memory_region": "pixels", "shared_memory_byte_size": 40} | parameters
    return infer(name, INVALID, words, IMAGE, outputs=[{"name": "logits", "parameters": given}])


SHARED_MEMORY = [
    *in_memory("region of an input unknown", "'none'", shared_memory_region="none"),
    *in_memory("region name empty", "shared_memory_region", shared_memory_region=""),
    *in_memory("region name number", "shared_memory_region", shared_memory_region=1),
    *in_memory("region size missing", "shared_memory_byte_size", shared_memory_byte_size=None),
    *in_memory("region size 0", "shared_memory_byte_size", shared_memory_byte_size=0),
    *in_memory("region size negative", "shared_memory_byte_size", shared_memory_byte_size=-1),
    *in_memory("region size text", "shared_memory_byte_size", shared_memory_byte_size="784"),
    *in_memory("region size fraction", "shared_memory_byte_size", shared_memory_byte_size=7.5),
    *in_memory("region size of another tensor", "'image'", shared_memory_byte_size=783),
    *in_memory("region size past the region", "region: 'pixels'", shared_memory_byte_size=1001),
    *in_memory(
        "region size above max_request_bytes",
        "max_request_bytes",
        TOO_LARGE,
        shared_memory_byte_size=10**9,
    ),
    *in_memory("region offset negative", "shared_memory_offset", shared_memory_offset=-1),
    *in_memory("region offset text", "shared_memory_offset", shared_memory_offset="0"),
    *in_memory("region offset past the region", "region: 'pixels'", shared_memory_offset=217),
    *in_memory("region offset at the limit of INT64", "region", shared_memory_offset=2**63 - 1),
    *to_memory("region of an output unknown", "'none'", shared_memory_region="none"),
    *to_memory("region of an output too small", "'logits'", shared_memory_byte_size=39),
    *to_memory("region of an output past its end", "'logits'", shared_memory_offset=990),
    *to_memory("region of an output negative", "offset", shared_memory_offset=-8),
    bad(
        "region beside data",
        body(parameters={"shared_memory_region": "pixels", "shared_memory_byte_size": 784}),
        "inputs[0]",
    ),
    binary(
        "region beside binary data",
        "inputs[0]",
        {
            "inputs": [
                {
                    "name": "image",
                    "datatype": "UINT8",
                    "shape": [1, 28, 28],
                    "parameters": {
                        "shared_memory_region": "pixels",
                        "shared_memory_byte_size": 784,
                        "binary_data_size": 784,
                    },
                }
            ]
        },
    ),
    call(
        "region beside typed contents",
        "ModelInfer",
        pb.ModelInferRequest(
            model_name="mnist",
            inputs=[
                {
                    "name": "image",
                    "datatype": "UINT8",
                    "shape": [1, 28, 28],
                    "contents": {"uint_contents": ZEROS},
                    "parameters": {
                        "shared_memory_region": {"string_param": "pixels"},
                        "shared_memory_byte_size": {"int64_param": 784},
                    },
                }
            ],
        ),
        "INVALID_ARGUMENT",
        "'image'",
    ),
]

CASES: list[Http | Grpc] = [
    *(*NAMES, *DATATYPES, *SHAPES, *DATA, *STRUCTURE, *PARAMETERS),
    *(*NOT_LOADED, *BINARY, *SHARED_MEMORY),
]
