"""Reads config.pbtxt, Triton's configuration of a model, from the model's folder.

docs/models.md says field by field what has an effect; `TritonConfig.ignored` names the others that
a file sets.

Source: Triton's "Model Configuration"; proto/inference/model_config.proto.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from google.protobuf import text_format

from service.core.batching import QueueLimits
from service.core.datatypes import BYTES
from service.core.errors import ModelLoadError, excerpt, is_used_up
from service.repository.versions import CONFIG_FILE, MODEL_FILE, open_regular

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from service.stubs.inference import model_config_pb2 as pb

PLATFORM = "onnxruntime_onnx"
BACKEND = "onnxruntime"
NO_FORMAT = "FORMAT_NONE"
_MAX_BYTES = 1 << 18  # the parser takes a second for them, and Triton's files are small
_MAX_DELAY_US = 10**9
_MAX_NAME_BYTES = 255  # Linux's limit for the name of a file

# The fields with an effect; of a message, its fields.
_Fields = Mapping[str, "_Fields | None"]
_TENSOR: _Fields = dict.fromkeys(["name", "data_type", "dims", "format", "reshape"])
_HONOURED: _Fields = {
    **dict.fromkeys(["name", "platform", "backend", "version_policy", "max_batch_size"]),
    "input": {**_TENSOR, "optional": None},
    "output": {**_TENSOR, "label_filename": None},
    "default_model_filename": None,
    "dynamic_batching": {
        **dict.fromkeys(["max_queue_delay_microseconds", "preferred_batch_size"]),
        "default_queue_policy": dict.fromkeys(
            ["default_timeout_microseconds", "allow_timeout_override", "max_queue_size"]
        ),
    },
    **dict.fromkeys(["model_warmup", "parameters"]),
}
INTRA_OP_THREADS = "intra_op_thread_count"
# What Triton's backend reads from the parameters, and this server does not.
_IGNORED_PARAMETERS = {
    "arena_extend_strategy",
    "cudnn_conv_algo_search",
    "cudnn_conv_use_max_workspace",
    "do_copy_in_default_stream",
    "enable_mem_arena",
    "enable_mem_pattern",
    "execution_mode",
    "gpu_mem_limit",
    "inter_op_thread_count",
    "memory.enable_memory_arena_shrinkage",
}


class TensorConfig(NamedTuple):
    """An input or output as config.pbtxt declares it.

    `datatype` is empty and `dims` is empty where the file leaves them to the model. `dims` are
    those of requests; the model's own are `reshape`, unless that is None. Neither has the batch
    dimension of a model with `max_batch_size`.
    """

    name: str
    datatype: str = ""
    dims: tuple[int, ...] = ()
    format: str = NO_FORMAT
    reshape: tuple[int, ...] | None = None
    label_filename: str = ""
    optional: bool = False


class VersionPolicy(NamedTuple):
    """The versions to serve: the newest `latest`, or all in `specific` if that is not empty."""

    latest: int = sys.maxsize
    specific: tuple[int, ...] = ()

    def selects(self, version: int) -> bool:
        """Whether a version may be served, if it is new enough."""
        return not self.specific or version in self.specific


class WarmUpInput(NamedTuple):
    """An input of a sample: `source` is `zero_data`, `random_data` or the name of a file."""

    datatype: str
    dims: tuple[int, ...]
    source: str
    is_file: bool = False


class WarmUp(NamedTuple):
    """A sample request, to be run `repeats` times; `rows` is 0 for a model without a batch."""

    name: str
    rows: int
    repeats: int
    inputs: Mapping[str, WarmUpInput]


class TritonConfig(NamedTuple):
    """The fields with an effect, and in `ignored` the names of others that the file sets.

    `max_batch_size` is None if the file does not have it. `problem` says why the file is unusable;
    then all else is as without a file.
    """

    max_batch_size: int | None = None
    inputs: Sequence[TensorConfig] = ()
    outputs: Sequence[TensorConfig] = ()
    version_policy: VersionPolicy | None = None
    model_file: str = MODEL_FILE
    queue: QueueLimits = QueueLimits()
    warm_ups: Sequence[WarmUp] = ()
    parameters: Mapping[str, str] = MappingProxyType({})
    ignored: Sequence[str] = ()
    problem: str = ""

    @property
    def intra_op_threads(self) -> int:
        """Threads per inference by the parameter of Triton's backend; 0 if it is not set."""
        return int(self.parameters.get(INTRA_OP_THREADS, 0))


class TritonConfigs:
    """The configurations of a repository's models, each read again when its file changes."""

    # Of a model that cannot have a file.
    nothing: tuple[TritonConfig, tuple[int, ...]] = (TritonConfig(), ())

    def __init__(self) -> None:
        self._known: dict[tuple[Path, str], tuple[Sequence[int], TritonConfig]] = {}

    def of(self, folder: Path, name: str = "") -> tuple[TritonConfig, tuple[int, ...]]:
        """The configuration of the model in `folder`, and a signature of its files.

        The model has the name of the folder, unless it has another `name`.

        Raises OSError if descriptors or memory are used up.
        """
        own = _signature(folder / CONFIG_FILE)
        if not own:
            return TritonConfig(), ()
        known = self._known.get((folder, name))
        if known is None or known[0] != own:
            try:
                config = read(folder, name)
            except ModelLoadError as error:
                if is_used_up(error) and isinstance(error.__cause__, OSError):
                    raise error.__cause__ from None
                config = TritonConfig(problem=error.message)
            known = self._known[folder, name] = own, config
        labels = sorted({output.label_filename for output in known[1].outputs} - {""})
        return known[1], own + tuple(n for name in labels for n in _signature(folder / name))


def read(folder: Path, name: str = "") -> TritonConfig:
    """Read the configuration of the model in `folder`; without a file, one that says nothing.

    The model has the name of the folder, unless it has another `name`.

    Raises ModelLoadError for a file that is malformed, has a field that Triton's configuration
    lacks or belongs to another model, and for one of another backend.
    """
    path = folder / CONFIG_FILE
    try:
        with open_regular(path) as file:
            content = file.read(_MAX_BYTES + 1)
        text = content.decode()
    except FileNotFoundError:
        return TritonConfig()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"cannot read {path}: {error}") from error
    if len(content) > _MAX_BYTES:
        raise ModelLoadError(f"{path} has more than {_MAX_BYTES} bytes, the most that is read")
    # Not at the top: tests hold tritonclient's messages, and a process has room for one definition
    # of them.
    from service.stubs.inference.model_config_pb2 import ModelConfig

    message, has_batch_size = ModelConfig(), False
    try:
        text_format.Parse(text, message)
        if "max_batch_size" in text:
            # The field has no presence in proto3, so 0 may be what the file says or what it leaves
            # out. Merging tells them apart: an absent field leaves the 1 as it is.
            merged = ModelConfig(max_batch_size=1)
            text_format.Merge(text, merged)
            has_batch_size = message.max_batch_size == merged.max_batch_size
    except text_format.ParseError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelLoadError(f"{path} is not a valid model configuration: {reason}") from error
    try:
        return _config_of(message, name or folder.name, has_batch_size)
    except ValueError as error:
        raise ModelLoadError(f"{path}: {error}") from error


def _config_of(message: pb.ModelConfig, folder: str, has_batch_size: bool) -> TritonConfig:
    """The values of a message. Raises ValueError with a sentence that names the field."""
    if message.name not in ("", folder):
        raise ValueError(
            f"name is '{excerpt(message.name)}', but the folder of the model is '{folder}'"
        )
    for field, value, own in (
        ("platform", message.platform, PLATFORM),
        ("backend", message.backend, BACKEND),
    ):
        if value not in ("", own):
            raise ValueError(
                f"{field} '{excerpt(value)}' is not supported; this server runs '{own}' only"
            )
    if message.max_batch_size < 0:
        raise ValueError("max_batch_size must be 0 or more")
    for kind, names in (
        ("input", [each.name for each in message.input]),
        ("output", [each.name for each in message.output]),
    ):
        if not all(names):
            raise ValueError(f"an {kind} has no name")
        if len(set(names)) < len(names):
            raise ValueError(f"two {kind}s have one name")
    parameters = {key: parameter.string_value for key, parameter in message.parameters.items()}
    threads = parameters.get(INTRA_OP_THREADS, "0")
    if not (threads.isascii() and threads.isdigit() and len(threads) < 5 and int(threads) <= 1024):
        raise ValueError(f"parameter {INTRA_OP_THREADS} must be a number up to 1024")
    ignored = list(_ignored(message, _HONOURED))
    for key in sorted(parameters):
        if key in _IGNORED_PARAMETERS or key.startswith("session."):
            ignored.append(f"parameters.{key}")
    return TritonConfig(
        max_batch_size=message.max_batch_size if has_batch_size else None,
        inputs=[_tensor(each) for each in message.input],
        outputs=[_tensor(each) for each in message.output],
        version_policy=_version_policy(message),
        model_file=_inner_path("default_model_filename", message.default_model_filename)
        or MODEL_FILE,
        queue=_queue_limits(message),
        warm_ups=[_warm_up(each) for each in message.model_warmup],
        parameters=parameters,
        ignored=ignored,
    )


def _ignored(message: Message, honoured: _Fields) -> Iterator[str]:
    """Names of the fields that are set and have no effect, each once."""
    for field, value in message.ListFields():
        inner = honoured.get(field.name)
        if field.name not in honoured:
            # What is set to a default asks for nothing.
            if not (field.message_type and not field.is_repeated and not value.ByteSize()):
                yield field.name
        elif inner is not None:
            messages = value if field.is_repeated else [value]
            names = (name for each in messages for name in _ignored(each, inner))
            yield from (f"{field.name}.{name}" for name in dict.fromkeys(names))


def _datatype(number: pb.DataType.ValueType) -> str:
    """The protocol's datatype of an enum's number; empty if it is unspecified."""
    from service.stubs.inference.model_config_pb2 import DataType

    name = DataType.Name(number).removeprefix("TYPE_") if number else ""
    return BYTES if name == "STRING" else name


def _tensor(message: pb.ModelInput | pb.ModelOutput) -> TensorConfig:
    from service.stubs.inference.model_config_pb2 import ModelInput

    name = f"'{excerpt(message.name)}'"
    dims = tuple(message.dims)
    reshape = tuple(message.reshape.shape) if message.HasField("reshape") else None
    for field, sizes in (("dims", dims), ("reshape", reshape or ())):
        if any(size < -1 or size == 0 for size in sizes):
            raise ValueError(f"{field} of {name} must be sizes from 1 up, or -1 for any")
    if reshape is not None and not dims:
        raise ValueError(f"{name} has a reshape, so it must specify dims, the shape of requests")
    if reshape is not None and _elements(dims) != _elements(reshape):
        raise ValueError(
            f"reshape of {name} is {list(reshape)}, which does not hold the elements of its dims "
            f"{list(dims)}"
        )
    tensor = TensorConfig(
        name=message.name,
        datatype=_datatype(message.data_type),
        dims=dims,
        reshape=None if reshape == dims else reshape,
    )
    if not isinstance(message, ModelInput):
        field = f"label_filename of {name}"
        return tensor._replace(label_filename=_inner_path(field, message.label_filename))
    if message.format and len(dims) != 3:
        raise ValueError(f"format of {name} needs three dims, not {list(dims)}")
    return tensor._replace(format=ModelInput.Format.Name(message.format), optional=message.optional)


def _elements(sizes: Sequence[int]) -> list[int]:
    """The number of elements between each two open sizes."""
    ends = [i for i, size in enumerate(sizes) if size < 0]
    starts = [0, *(end + 1 for end in ends)]
    return [prod(sizes[start:end]) for start, end in zip(starts, [*ends, len(sizes)], strict=True)]


def _inner_path(field: str, name: str) -> str:
    """The name of a file. Raises ValueError if it may lie outside its folder, or is too long."""
    if len(name.encode()) > _MAX_NAME_BYTES:
        raise ValueError(f"{field} has more than {_MAX_NAME_BYTES} bytes")
    if name and (Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name):
        raise ValueError(f"{field} is '{excerpt(name)}', which must be inside the model's folder")
    return name


def _version_policy(message: pb.ModelConfig) -> VersionPolicy | None:
    policy = message.version_policy
    match policy.WhichOneof("policy_choice"):
        case "latest":
            if not policy.latest.num_versions:
                raise ValueError("version_policy.latest.num_versions must be 1 or more")
            return VersionPolicy(latest=policy.latest.num_versions)
        case "all":
            return VersionPolicy()
        case "specific":
            if not policy.specific.versions:
                raise ValueError("version_policy.specific names no version")
            return VersionPolicy(specific=tuple(policy.specific.versions))
    return None


def _queue_limits(message: pb.ModelConfig) -> QueueLimits:
    """What `dynamic_batching` says; a 0 says nothing."""
    dynamic = message.dynamic_batching
    policy = dynamic.default_queue_policy
    delay = dynamic.max_queue_delay_microseconds
    if delay > _MAX_DELAY_US:
        raise ValueError(
            f"dynamic_batching.max_queue_delay_microseconds must be at most {_MAX_DELAY_US}"
        )
    preferred = tuple(dynamic.preferred_batch_size)
    most = message.max_batch_size or max(preferred, default=0)
    if any(not 0 < size <= most for size in preferred):
        raise ValueError(
            "dynamic_batching.preferred_batch_size must be sizes from 1 to max_batch_size, not "
            f"{excerpt(list(preferred))}"
        )
    return QueueLimits(
        max_delay_s=delay / 1e6 if delay else None,
        preferred_rows=preferred,
        max_requests=policy.max_queue_size or None,
        timeout_s=policy.default_timeout_microseconds / 1e6 or None,
        obeys_timeouts=policy.allow_timeout_override
        or not dynamic.HasField("default_queue_policy"),
    )


def _warm_up(message: pb.ModelWarmup) -> WarmUp:
    inputs = {}
    for name, each in message.inputs.items():
        kind = each.WhichOneof("input_data_type")
        field = f"model_warmup '{excerpt(message.name)}', input '{excerpt(name)}'"
        if kind is None:
            raise ValueError(f"{field}: zero_data, random_data or input_data_file is missing")
        if any(size < 0 for size in each.dims):
            raise ValueError(f"{field}: dims must be sizes from 0 up")
        is_file = kind == "input_data_file"
        inputs[name] = WarmUpInput(
            datatype=_datatype(each.data_type),
            dims=tuple(each.dims),
            source=_inner_path(field, each.input_data_file) if is_file else kind,
            is_file=is_file,
        )
    return WarmUp(message.name, message.batch_size, max(1, message.count), inputs)


def _signature(path: Path) -> tuple[int, ...]:
    """Inode, size and modification time (ns) of a file; nothing if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return ()
    except OSError:  # reading it gives the reason
        return (0,)
    return (status.st_ino, status.st_size, status.st_mtime_ns)
