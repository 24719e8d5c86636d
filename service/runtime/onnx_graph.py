"""Reads the nodes of an ONNX file, and adds outputs to it, without the package onnx.

The service does not depend on that package, and ONNX Runtime does not show the nodes of a graph.
The few fields that are needed here are read from protobuf's wire format; weights are skipped over.

Source: onnx.proto of ONNX (field numbers), protobuf's "Encoding".
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from typing import NamedTuple

from service.core.datatypes import Buffer

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_GRAPH_NODE, _GRAPH_WEIGHT, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 5, 11, 12
_GRAPH_SPARSE = 15
_NODE_INPUT, _NODE_OUTPUT, _NODE_OP_TYPE, _NODE_ATTRIBUTE = 1, 2, 4, 5
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 5, 6, 10, 11
_ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES = 22, 23
_VALUE_NAME, _VALUE_TYPE, _WEIGHT_NAME = 1, 2, 8
_TYPE_TENSOR, _TYPE_OPTIONAL, _OPTIONAL_TYPE, _TENSOR_TYPE, _TENSOR_SHAPE = 1, 9, 1, 1, 2
_SHAPE_DIMENSION, _DIMENSION_NAME = 1, 2
_SPARSE_VALUES, _SPARSE_INDICES = 1, 2
_WEIGHT_EXTERNAL, _ENTRY_KEY, _ENTRY_VALUE = 13, 1, 2
_FUNCTION_NODE = 7


class Node(NamedTuple):
    """A node of a graph; a missing optional input or output has an empty name.

    `has_body` says that it runs graphs of its own, as If, Loop and Scan do.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    has_body: bool


class Graph(NamedTuple):
    """A model's nodes, and the names of its inputs (without weights) and outputs.

    `has_functions` says whether it defines functions of its own. `unranked` are the inputs and
    outputs whose type says nothing about their shape; `external` are the files that hold weights,
    as paths from the folder of the model's file. `only_rows_are_open` says that each input has a
    shape whose dimensions, but for the first, are numbers.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    has_functions: bool
    unranked: frozenset[str] = frozenset()
    external: tuple[str, ...] = ()
    only_rows_are_open: bool = False


def read(model: Buffer) -> Graph:
    """The graph of a serialized ModelProto. Raises ValueError if it is malformed."""
    try:
        return _read(model)
    except RecursionError:
        raise ValueError("graphs are nested too deeply in an ONNX file") from None


def _read(model: Buffer) -> Graph:
    nodes: list[Node] = []
    names: dict[int, list[str]] = {_GRAPH_WEIGHT: [], _GRAPH_INPUT: [], _GRAPH_OUTPUT: []}
    has_functions = False
    unranked: set[str] = set()
    only_rows_are_open = True
    external: dict[str, None] = {}
    for field, value in _fields(memoryview(model)):
        if field == _MODEL_FUNCTIONS:
            has_functions = True
            for number, node in _fields(value):
                if number == _FUNCTION_NODE:
                    external.update(dict.fromkeys(_external_of_node(node)))
        if field != _MODEL_GRAPH:
            continue
        external.update(dict.fromkeys(_external_of_graph(value)))
        for number, part in _fields(value):
            if number == _GRAPH_NODE:
                nodes.append(_node(part))
            elif number in names:
                key = _WEIGHT_NAME if number == _GRAPH_WEIGHT else _VALUE_NAME
                found = [str(name, "utf-8") for n, name in _fields(part) if n == key]
                names[number] += found
                if number != _GRAPH_WEIGHT and not _has_rank(part):
                    unranked.update(found)
                if number == _GRAPH_INPUT:
                    only_rows_are_open &= _is_open_in_rows_alone(part)
    # Before version 4 of the format, weights were inputs as well.
    weights = set(names[_GRAPH_WEIGHT])
    return Graph(
        nodes=tuple(nodes),
        inputs=tuple(name for name in names[_GRAPH_INPUT] if name not in weights),
        outputs=tuple(names[_GRAPH_OUTPUT]),
        has_functions=has_functions,
        unranked=frozenset(unranked),
        external=tuple(external),
        only_rows_are_open=only_rows_are_open,
    )


def _has_rank(value: memoryview) -> bool:
    """Whether the type of an input or output has a shape."""
    return bool(
        _at(value, _VALUE_TYPE, _TYPE_TENSOR, _TENSOR_SHAPE)
        or _at(value, _VALUE_TYPE, _TYPE_OPTIONAL, _OPTIONAL_TYPE, _TYPE_TENSOR, _TENSOR_SHAPE)
    )


def _is_open_in_rows_alone(value: memoryview) -> bool:
    """Whether an input is a tensor whose dimensions, but for the first, are numbers."""
    for shape in _at(value, _VALUE_TYPE, _TYPE_TENSOR, _TENSOR_SHAPE):
        others = _at(shape, _SHAPE_DIMENSION)[1:]
        # A dimension without content is unknown; the field of a number is not listed.
        return all(len(other) and not _at(other, _DIMENSION_NAME) for other in others)
    return False


def _at(message: memoryview, *path: int) -> list[memoryview]:
    """The values at a path of fields."""
    parts = [message]
    for field in path:
        parts = [inner for part in parts for number, inner in _fields(part) if number == field]
    return parts


def _external_of_graph(graph: memoryview) -> Iterator[str]:
    """The files that hold weights of a graph, and of the graphs inside it."""
    for number, part in _fields(graph):
        if number == _GRAPH_WEIGHT:
            yield from _external_of_tensor(part)
        elif number == _GRAPH_SPARSE:
            yield from _external_of_sparse(part)
        elif number == _GRAPH_NODE:
            yield from _external_of_node(part)


def _external_of_node(node: memoryview) -> Iterator[str]:
    for field, attribute in _fields(node):
        if field != _NODE_ATTRIBUTE:
            continue
        for number, part in _fields(attribute):
            if number in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
                yield from _external_of_tensor(part)
            elif number in (_ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES):
                yield from _external_of_sparse(part)
            elif number in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                yield from _external_of_graph(part)


def _external_of_sparse(sparse: memoryview) -> Iterator[str]:
    for number, tensor in _fields(sparse):
        if number in (_SPARSE_VALUES, _SPARSE_INDICES):
            yield from _external_of_tensor(tensor)


def _external_of_tensor(tensor: memoryview) -> Iterator[str]:
    for number, entry in _fields(tensor):
        if number == _WEIGHT_EXTERNAL:
            texts = {key: str(text, "utf-8") for key, text in _fields(entry)}
            if texts.get(_ENTRY_KEY) == "location":
                yield texts.get(_ENTRY_VALUE, "")


def with_outputs(model: bytes, names: Iterable[str]) -> bytes:
    """The model with these values of its graph as further outputs.

    A message field that occurs twice in protobuf's wire format is merged, and its repeated fields
    are concatenated. So a second graph with nothing but outputs adds them to the first one.
    """
    outputs = b"".join(_field(_GRAPH_OUTPUT, _field(_VALUE_NAME, name.encode())) for name in names)
    return model + _field(_MODEL_GRAPH, outputs)


def with_free_values(model: bytes, types: Mapping[str, int], outputs: Iterable[str]) -> bytes:
    """The model whose nodes take these values of its graph from inputs named by `free_name`.

    The nodes that make a value still do so, under its own name. `types` are the element types of
    the values, as numbers of TensorProto.DataType; `outputs` are further outputs.
    """
    inputs = [
        _field(
            _GRAPH_INPUT,
            _field(_VALUE_NAME, free_name(name).encode())
            + _field(_VALUE_TYPE, _field(_TYPE_TENSOR, _number_field(_TENSOR_TYPE, kind))),
        )
        for name, kind in types.items()
    ]
    parts: list[Buffer] = []
    for number, value, whole in _whole_fields(memoryview(model)):
        if number != _MODEL_GRAPH:
            parts.append(whole)
            continue
        graph = [
            _field(inner, _with_free_inputs(part, types)) if inner == _GRAPH_NODE else field
            for inner, part, field in _whole_fields(value)
        ]
        parts += (_header(number, sum(map(len, graph))), *graph)
    added = _field(_MODEL_GRAPH, b"".join(inputs))
    return b"".join([*parts, added, with_outputs(b"", outputs)])


def free_name(name: str) -> str:
    """The name of the input that `with_free_values` makes for a value."""
    return f"{name} (free)"


def _with_free_inputs(node: memoryview, names: Container[str]) -> bytes:
    parts: list[Buffer] = []
    for number, value, whole in _whole_fields(node):
        is_freed = number == _NODE_INPUT and str(value, "utf-8") in names
        parts.append(_field(number, free_name(str(value, "utf-8")).encode()) if is_freed else whole)
    return b"".join(parts)


def _node(message: memoryview) -> Node:
    op, inputs, outputs, has_body = "", [], [], False
    for field, value in _fields(message):
        if field == _NODE_INPUT:
            inputs.append(str(value, "utf-8"))
        elif field == _NODE_OUTPUT:
            outputs.append(str(value, "utf-8"))
        elif field == _NODE_OP_TYPE:
            op = str(value, "utf-8")
        elif field == _NODE_ATTRIBUTE:
            numbers = {number for number, _ in _fields(value)}
            has_body |= not numbers.isdisjoint((_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS))
    return Node(op=op, inputs=tuple(inputs), outputs=tuple(outputs), has_body=has_body)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The number and contents of each field that has a length; fields of numbers are skipped."""
    for number, contents, whole in _whole_fields(message):
        if whole[0] & 7 == _BYTES:
            yield number, contents


def _whole_fields(message: memoryview) -> Iterator[tuple[int, memoryview, Buffer]]:
    """The number and contents of each field, and all of its bytes."""
    position = 0
    while position < len(message):
        begin = start = position
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == _VARINT:
            _, position = _varint(message, position)
        elif kind == _BYTES:
            size, start = _varint(message, position)
            position = start + size
        elif kind in (_FIXED64, _FIXED32):
            position += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} in an ONNX file")
        if position > len(message):
            raise ValueError("an ONNX file ends inside a field")
        yield tag >> 3, message[start:position], message[begin:position]


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """A number, and the position behind it."""
    number = shift = 0
    while True:
        if position == len(message) or shift > 63:
            raise ValueError("a malformed number in an ONNX file")
        byte = message[position]
        number |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return number, position


def _field(number: int, content: bytes) -> bytes:
    return _header(number, len(content)) + content


def _header(number: int, size: int) -> bytes:
    return _as_varint(number << 3 | _BYTES) + _as_varint(size)


def _number_field(number: int, value: int) -> bytes:
    return _as_varint(number << 3 | _VARINT) + _as_varint(value)


def _as_varint(number: int) -> bytes:
    if number < 0x80:
        return bytes([number])
    return bytes([number & 0x7F | 0x80]) + _as_varint(number >> 7)
