"""Reads config.pbtxt, Triton's configuration of a model, from the model's folder.

Of its fields only `max_batch_size` has an effect here; the others must be well-formed.

Source: Triton's "Model Configuration"; proto/inference/model_config.proto.
"""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format

from service.core.errors import ModelLoadError
from service.repository.versions import open_regular

CONFIG_FILE = "config.pbtxt"
_MAX_BYTES = 1 << 20  # the parser is slow, and Triton's files are small


def read_max_batch_size(path: Path) -> int | None:
    """`max_batch_size` of a config.pbtxt; None without the field or without the file.

    0 says that requests must neither be joined nor split. Raises ModelLoadError for a file that is
    malformed or has a field that Triton's configuration lacks.
    """
    try:
        with open_regular(path) as file:
            content = file.read(_MAX_BYTES + 1)
        text = content.decode()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"cannot read {path}: {error}") from error
    if len(content) > _MAX_BYTES:
        raise ModelLoadError(f"{path} has more than {_MAX_BYTES} bytes")
    # Not at the top: tests hold tritonclient's messages, and a process has room for one definition
    # of them.
    from service.stubs.inference.model_config_pb2 import ModelConfig

    # The field has no presence in proto3, so 0 may be what the file says or what it leaves out.
    # Merging tells them apart: an absent field leaves the 1 as it is.
    config, merged = ModelConfig(), ModelConfig(max_batch_size=1)
    try:
        text_format.Parse(text, config)
        text_format.Merge(text, merged)
    except text_format.ParseError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelLoadError(f"{path} is not a valid model configuration: {reason}") from error
    size = config.max_batch_size
    if size < 0:
        raise ModelLoadError(f"{path}: max_batch_size must be 0 or more")
    return None if size != merged.max_batch_size else size
