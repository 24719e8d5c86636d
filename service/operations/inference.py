"""The data plane of the Open Inference Protocol, for every transport.

A transport turns its bytes into the values of `core.request`, awaits one of these operations, and
turns the answer back into bytes. Whatever is wrong with a request is raised as one of `errors`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence, Set
from typing import NamedTuple

from service import SERVER_NAME
from service.access.limits import Limits
from service.core.batching import Batcher
from service.core.datatypes import BF16, BYTES, MISSING, Array, one_element
from service.core.errors import (
    DeadlineExceeded,
    InvalidArgument,
    Overloaded,
    ServiceError,
    excerpt,
)
from service.core.off_loop import INLINE_BYTES, MAX_JSON_BYTES, off_loop
from service.core.request import (
    InferRequest,
    InferResponse,
    InputTensor,
    OutputTensor,
    RequestedOutput,
    scheduling_of,
)
from service.core.tensors import (
    Tensor,
    TensorSpec,
    from_bytes,
    from_values,
    shape_of_raw,
    to_bytes,
)
from service.core.top_classes import classes
from service.core.trace import Trace
from service.repository.models import Repository, ServedModel
from service.repository.triton_config import PLATFORM
from service.runtime.shared_memory import SharedRegions

# Up to this many values, their top classes are found within a millisecond.
_INLINE_CLASSES = 1024


_VOID_TIMEOUT = "timeout: without effect; allow_timeout_override in config.pbtxt is not true."

# numpy has no fast check for NaN in these. It still is 16 times as fast as to decode values.
_SLOW_TO_CHECK = (BF16, "FP16")


class ModelMetadata(NamedTuple):
    """The protocol's metadata of a model, the execution provider that runs it, and its batching."""

    name: str
    versions: list[str]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    provider: str
    fallback: str
    batching: str

    @property
    def properties(self) -> dict[str, str]:
        """How the model is served."""
        return {
            "execution_provider": self.provider,
            "execution_provider_fallback": self.fallback,
            "batching": self.batching,
        }


class Readiness(NamedTuple):
    """Whether the server takes requests, and the reason if not.

    `failures` maps versions that could not be loaded to the reason; a ready server may have some.
    """

    ready: bool
    reason: str
    failures: dict[str, str]


class Inference:
    """Inference, metadata and readiness of one repository's models. Lives on one event loop.

    `overloaded` holds the batchers that keep their queue short at the moment. `server_name` is for
    the metadata; `typed_answers` says whether typed gRPC requests get typed answers. `limits` are
    those of images, which are rows. With `hides_models`, health, which everyone may ask for over
    HTTP, does not name them.
    """

    def __init__(
        self,
        repository: Repository,
        default_model: str,
        regions: SharedRegions,
        overloaded: Set[Batcher] = frozenset(),
        max_json_bytes: int = MAX_JSON_BYTES,
        *,
        server_name: str = SERVER_NAME,
        typed_answers: bool = False,
        limits: Limits | None = None,
        hides_models: bool = False,
    ) -> None:
        self._limits = limits
        self.hides_models = hides_models
        self.server_name = server_name
        self.typed_answers = typed_answers
        self.overloaded = overloaded
        self.max_json_bytes = max_json_bytes
        self.repository = repository
        self.default_model = default_model
        self._regions = regions
        self.stopping = False

    async def infer(self, request: InferRequest, trace: Trace | None = None) -> InferResponse:
        """Run a model on the tensors of a request of the Open Inference Protocol.

        Raises ModelNotFound; InvalidArgument, naming the tensor or parameter that is missing,
        unknown, repeated or not of the model's datatype and shape; and what `Limits.images` and
        `Batcher.submit` raise.
        """
        served = self.repository.get(request.model, request.version)
        requested = _requested(served, request.outputs) if request.outputs else None
        timeout, warning = scheduling_of(request.parameters) if request.parameters else (None, "")
        if timeout is not None and not served.config.queue.obeys_timeouts:
            timeout, warning = None, " ".join(filter(None, [_VOID_TIMEOUT, warning]))
        inputs, size = list(request.inputs), 0
        for index, tensor in enumerate(inputs):
            if tensor.region is not None:
                inputs[index] = self._fetched(tensor)
            elif tensor.raw is not None and len(tensor.raw) <= INLINE_BYTES:
                continue  # next to nothing, as for most requests
            size = max(size, _decoding_bytes(inputs[index], request.size))
        if size > INLINE_BYTES:
            arrays = await off_loop(_arrays, served, inputs, size=size)
        else:
            arrays = _arrays(served, inputs)
        # A request without rows counts as one, so that the queue bounds these as well. A batch with
        # it has too few outputs, and its requests then run alone.
        rows = (arrays[0].shape[0] or 1) if served.session.has_rows else 1
        if len(arrays) > 1 and served.session.batchable and len({len(a) for a in arrays}) > 1:
            raise _different_rows(served, arrays)
        if self._limits is not None:
            self._limits.images(request.caller, rows)
        if timeout is None:
            outputs = await served.batcher.submit(
                arrays, rows, request.deadline, request.caller, trace
            )
        else:
            outputs = await _within(timeout, served.batcher, arrays, rows, request, trace)
        specs = served.session.outputs
        if requested is None:
            tensors = [
                OutputTensor(spec.name, spec.datatype, array)
                for spec, array in zip(specs, outputs, strict=True)
            ]
        else:
            tensors = [
                await self._output(served, specs[i], output, outputs[i]) for i, output in requested
            ]
        # By position: keywords take 0.4 us more, for every request.
        return InferResponse(served.name, served.version, request.id, tensors, warning)

    def refusal(
        self, model: str, version: str, deadline: float | None = None, caller: str = ""
    ) -> Overloaded | None:
        """The error for a request to an overloaded model, before any work on it; else None.

        Call it only while `overloaded` is not empty: it makes refusals cheap, and decides nothing
        that `Batcher.submit` would decide differently.
        """
        try:
            served = self.repository.get(model, version)
        except ServiceError:  # reported when the request is read
            return None
        return served.batcher.early_refusal(deadline, caller)

    def raw_request(self, model: str, version: str, raw: bytes, caller: str = "") -> InferRequest:
        """A request whose body is the contents of the model's only input.

        Raises ModelNotFound; InvalidArgument if the model has several inputs, or if the shape
        does not follow from the number of bytes.
        """
        served = self.repository.get(model, version)
        if len(served.session.inputs) != 1:
            raise InvalidArgument(
                "Raw request must only have 1 input (found 1) to be deduced but got "
                f"{len(served.session.inputs)} inputs in '{served.name}' model configuration; name "
                "them in a JSON header before the binary data."
            )
        spec = served.session.inputs[0]
        if not raw and spec.datatype != BYTES:
            raise InvalidArgument(f"The body is empty; it must hold the input '{spec.name}'.")
        shape = shape_of_raw(spec, len(raw))
        content = one_element(raw) if spec.datatype == BYTES else raw
        tensor = InputTensor(name=spec.name, datatype=spec.datatype, shape=shape, raw=content)
        return InferRequest(model, version, [tensor], caller=caller)

    def _fetched(self, tensor: InputTensor) -> InputTensor:
        """The tensor, with its contents read from shared memory if that is where they are."""
        if tensor.region is None:
            return tensor
        field = f"Input '{excerpt(tensor.name)}'"
        return tensor._replace(raw=self._regions.read(field, tensor.region))

    async def _output(
        self, served: ServedModel, spec: TensorSpec, requested: RequestedOutput, array: Array
    ) -> OutputTensor:
        """An output as requested: itself or its top classes, in the response or in a region."""
        tensor = Tensor(spec.name, spec.datatype, array)
        if requested.top_classes:
            labels = served.labels.get(spec.name, ())
            # A declared batch counts as such, although the model may fix its size.
            has_rows = served.session.has_rows or bool(served.config.max_batch_size and array.ndim)
            how = (requested.top_classes, labels, has_rows)
            if array.size > _INLINE_CLASSES:
                tensor = await off_loop(classes, tensor, *how, size=array.nbytes)
            else:
                tensor = classes(tensor, *how)
        if requested.region is None:
            return OutputTensor(*tensor)
        field = f"Output '{spec.name}'"
        return OutputTensor(
            *tensor, region=self._regions.write(field, requested.region, to_bytes(tensor))
        )

    def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        """The metadata of a loaded model. Raises ModelNotFound."""
        served = self.repository.get(name, version)
        session = served.session
        return ModelMetadata(
            name=served.name,
            versions=[version] if version else self.repository.versions(name),
            platform=PLATFORM,
            inputs=session.inputs,
            outputs=session.outputs,
            provider=session.provider,
            fallback=session.fallback,
            batching=session.batching.reason,
        )

    def extensions(self) -> list[str]:
        """The protocol's extensions that this server implements, by Triton's names."""
        return [
            "classification",
            "model_repository",
            "model_repository(unload_dependents)",
            "model_configuration",
            "binary_tensor_data",
            "parameters",
            "statistics",
            "logging",
            *(["system_shared_memory"] if self._regions.enabled else []),
        ]

    def readiness(self) -> Readiness:
        """Ready means that the server is not stopping and the default model is loaded.

        Without a default model in the repository, all models that are to be served must be loaded.
        """
        failures = dict(self.repository.failures)
        if self.stopping:
            return Readiness(False, "The server is stopping.", failures)
        wanted = self.repository.wanted
        decisive = wanted
        if self.default_model in wanted or self.repository.is_empty:
            decisive = {self.default_model}
        for name in sorted(decisive):
            if not self.repository.versions(name):
                return Readiness(False, f"Model '{name}' is not loaded.", failures)
        return Readiness(True, "", failures)


async def _within(
    seconds: float,
    batcher: Batcher,
    inputs: Sequence[Array],
    rows: int,
    request: InferRequest,
    trace: Trace | None,
) -> list[Array]:
    """The outputs, if inference ends within `seconds`. Raises DeadlineExceeded otherwise.

    This is for timeouts in the request's parameters; a transport ends calls at their `deadline`.
    """
    end = asyncio.get_running_loop().time() + seconds
    try:
        async with asyncio.timeout_at(end):
            until = end if request.deadline is None else min(end, request.deadline)
            return await batcher.submit(inputs, rows, until, request.caller, trace)
    except TimeoutError:
        raise DeadlineExceeded.of("timeout") from None


def _decoding_bytes(tensor: InputTensor, size: int) -> int:
    """Bytes to decode value by value; next to none if the tensor is a view of the request."""
    if tensor.raw is None:
        return size
    if tensor.datatype in _SLOW_TO_CHECK:
        return len(tensor.raw) // 16
    return len(tensor.raw) if tensor.datatype == BYTES else 0


def _arrays(served: ServedModel, tensors: Sequence[InputTensor]) -> list[Array]:
    """The validated arrays of a request, in the model's order."""
    session = served.session
    specs = session.inputs
    if len(specs) == len(tensors) == 1 and tensors[0].name == specs[0].name:
        return [_array(specs[0], tensors[0], served.name)]
    by_name = {tensor.name: tensor for tensor in tensors}
    if len(by_name) != len(tensors):
        raise _twice("input", [tensor.name for tensor in tensors])
    if session.defaults and any(spec.name in by_name for spec in session.defaults):
        if session.batchable:
            raise InvalidArgument(
                f"Model '{served.name}' has a value of its own for "
                f"{', '.join(spec.name for spec in session.defaults)}, which requests cannot "
                'replace because they are batched; set "batching": false in model.json to allow it.'
            )
        specs = (*specs, *session.defaults)
    names = [spec.name for spec in specs]
    for name in by_name:
        if name not in names:
            raise InvalidArgument(
                f"unexpected inference input '{excerpt(name)}' for model '{served.name}', which "
                f"takes: {', '.join(names)}."
            )
    for spec in specs:
        if spec.name not in by_name and not spec.is_optional:
            raise _missing(served, specs, by_name.keys())
    return [
        _array(spec, by_name[spec.name], served.name) if spec.name in by_name else MISSING
        for spec in specs
    ]


def _missing(
    served: ServedModel, specs: Sequence[TensorSpec], present: Set[str]
) -> InvalidArgument:
    """The error for a request without all inputs, in the words of Triton's."""
    required = [spec.name for spec in specs if not spec.is_optional]
    expected = f"{len(specs)} inputs"
    if len(required) < len(specs):
        expected = f"number of inputs between {len(required)} and {len(specs)}"
    names = ",".join(f"'{spec.name}'" for spec in specs if spec.name in present)
    missing = ",".join(f"'{name}'" for name in required if name not in present)
    return InvalidArgument(
        f"expected {expected} but got {len(present)} inputs for model '{served.name}'. Got "
        f"input(s) [{names}], but missing required input(s) [{missing}]. Please provide all "
        "required input(s)."
    )


def _different_rows(served: ServedModel, arrays: Sequence[Array]) -> InvalidArgument:
    """The error for inputs of a batched model that have different numbers of rows."""
    counts = [len(array) for array in arrays]
    other = next(i for i, count in enumerate(counts) if count != counts[0])
    names = [spec.name for spec in served.session.inputs]
    return InvalidArgument(
        f"input '{names[other]}' batch size does not match other inputs for '{served.name}': it "
        f"has {counts[other]} rows, and '{names[0]}' has {counts[0]}."
    )


def _twice(kind: str, names: Sequence[str]) -> InvalidArgument:
    """The error for a request that names an input or output twice."""
    twice = next(name for i, name in enumerate(names) if name in names[:i])
    return InvalidArgument(f"{kind} '{excerpt(twice)}' already exists in request.")


def _array(spec: TensorSpec, tensor: InputTensor, model: str) -> Array:
    if tensor.raw is not None:
        return from_bytes(spec, tensor.datatype, tensor.shape, tensor.raw, model)
    return from_values(spec, tensor.datatype, tensor.shape, tensor.values, model)


def _requested(
    served: ServedModel, outputs: Sequence[RequestedOutput]
) -> list[tuple[int, RequestedOutput]]:
    """The requested outputs in their order, each with its index among the model's outputs."""
    names = [spec.name for spec in served.session.outputs]
    for output in outputs:
        if output.name not in names:
            raise InvalidArgument(
                f"unexpected inference output '{excerpt(output.name)}' for model "
                f"'{served.name}', which gives: {', '.join(names)}."
            )
    if len({output.name for output in outputs}) != len(outputs):
        raise _twice("output", [output.name for output in outputs])
    return [(names.index(output.name), output) for output in outputs]
