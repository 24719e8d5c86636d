"""What model.json, config.pbtxt and the model itself say of one model, brought together.

Where two of them contradict each other, the model is not loaded: whichever of them were obeyed, the
other one's author would get wrong answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from service.core.batching import Batching
from service.core.classification.pictures import PictureRule
from service.core.errors import ModelLoadError, excerpt
from service.core.tensors import TensorSpec
from service.repository.card import Card
from service.repository.triton_config import NO_FORMAT, TensorConfig, TritonConfig
from service.repository.versions import CARD_FILE, CONFIG_FILE, open_inside
from service.runtime.presented import Tensor
from service.runtime.session import Session

_MAX_LABEL_BYTES = 16 * 1024 * 1024
_MAX_LABELS = 100_000


def declared_batching(card: Card, config: TritonConfig) -> Batching | None:
    """What the two files declare; None if neither says anything.

    Raises ModelLoadError if they contradict each other.
    """
    size = config.max_batch_size
    if size is None:
        if card.batching is None:
            return None
        if card.batching:
            return Batching(True, f"declared in {CARD_FILE}")
        return Batching(False, f"off: declared in {CARD_FILE}")
    if card.batching is not None and card.batching != (size > 0):
        raise ModelLoadError(
            f'{CARD_FILE} says "batching": {str(card.batching).lower()}, but {CONFIG_FILE} says '
            f"max_batch_size: {size}; remove one of them"
        )
    if size:
        return Batching(True, f"declared in {CONFIG_FILE}", max_rows=size)
    return Batching(False, f"off: max_batch_size is 0 in {CONFIG_FILE}")


def labels_of(
    card: Card, config: TritonConfig, outputs: Sequence[TensorSpec], folder: Path
) -> Mapping[str, Sequence[str]]:
    """The names of classes by output. `folder` is the model's, which holds the files of labels.

    Those of a card belong to the outputs of a known kind. Raises ModelLoadError if a file cannot
    be read, or has other labels than the card.
    """
    known = [spec for spec in outputs if card.kind(spec.name)]
    if not known and len(outputs) == 1 and _may_have(card.labels, outputs[0]):
        known = list(outputs)  # there is no doubt which output they are about
    labels = {spec.name: card.labels for spec in known if card.labels}
    for output in config.outputs:
        if not output.label_filename:
            continue
        path = folder / output.label_filename
        try:
            with open_inside(path, folder, folder / CONFIG_FILE) as file:
                content = file.read(_MAX_LABEL_BYTES + 1)
            # Not splitlines(): a label may hold what it takes for ends of lines, as U+2028.
            *lines, last = content.decode().replace("\r\n", "\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelLoadError(f"cannot read the labels of '{output.name}': {error}") from error
        if len(content) > _MAX_LABEL_BYTES:
            raise ModelLoadError(f"{path} has more than {_MAX_LABEL_BYTES} bytes")
        names = (*lines, last) if last else tuple(lines)
        if len(names) > _MAX_LABELS:
            raise ModelLoadError(f"{path} has more than {_MAX_LABELS} labels, one per line")
        if tuple(labels.get(output.name, names)) != names:
            raise ModelLoadError(
                f"the labels of '{output.name}' in {CARD_FILE} are not those of "
                f"{output.label_filename}, its label_filename in {CONFIG_FILE}; remove one of them"
            )
        labels[output.name] = names
    return labels


def unused_of(
    card: Card, labels: Mapping[str, Sequence[str]], outputs: Sequence[TensorSpec]
) -> list[str]:
    """What the card or a file of labels says without effect on this model, with the reason."""
    names = {spec.name for spec in outputs}
    unused = [
        f"output_kinds of '{excerpt(name)}' (the model serves no such output)"
        for name in card.output_kinds
        if name not in names
    ]
    if card.labels and not labels:
        unused.append("labels (output_kinds does not say which output has logits or probabilities)")
    for spec in outputs:
        count, classes = len(labels.get(spec.name, ())), _classes(spec)
        if count and classes > 0 and count != classes:
            unused.append(f"some labels of '{spec.name}' ({count} labels for {classes} classes)")
    return unused


def _may_have(labels: Sequence[str], spec: TensorSpec) -> bool:
    """Whether an output can have a value for each label."""
    return spec.datatype in ("FP16", "FP32", "FP64") and _classes(spec) in (-1, len(labels))


def _classes(spec: TensorSpec) -> int:
    """The classes of an output, as `classifier_of` counts them; -1 if open, 0 if there are none."""
    if not spec.shape[1:]:
        return 0
    sizes = [size for size in spec.shape[1:] if size != 1] or [2]
    return sizes[0] if len(sizes) == 1 else 0


def picture_rule(
    card: Card, config: TritonConfig, inputs: Sequence[TensorSpec]
) -> PictureRule | None:
    """What a picture becomes by the card, in the order of config.pbtxt if it names none.

    Raises ModelLoadError if they have different orders.
    """
    rule = card.picture
    formats = {tensor.name: tensor.format for tensor in config.inputs}
    order = formats.get(inputs[0].name, NO_FORMAT) if inputs else NO_FORMAT
    if rule is None or order == NO_FORMAT:
        return rule
    layout = order.removeprefix("FORMAT_")
    if not rule.layout:
        return rule._replace(layout=layout if len(inputs[0].shape) == 4 else layout[1:])
    if rule.layout.removeprefix("N") != layout[1:]:
        raise ModelLoadError(
            f"{CARD_FILE} says that picture.layout is {rule.layout}, but format of "
            f"'{inputs[0].name}' in {CONFIG_FILE} is {order}; remove one of them"
        )
    return rule


def fixed_rows_of(session: Session) -> int:
    """Rows of every request to a model that is declared to be batched, and is not; at least 1."""
    return max([1, *(spec.shape[0] for spec in session.inputs if spec.shape)])


def ignored_by(session: Session, config: TritonConfig) -> list[str]:
    """What config.pbtxt sets with effect on other models, but not on this one, with the reason."""
    ignored = []
    size = config.max_batch_size
    if size and not session.batchable and size != fixed_rows_of(session):
        reason = session.batching.reason.removeprefix("off: ")
        ignored.append(f"max_batch_size ({reason})")
    if config.queue.preferred_rows and not config.queue.max_delay_s:
        ignored.append("dynamic_batching.preferred_batch_size (max_queue_delay_microseconds is 0)")
    optional = {tensor.name for tensor in config.inputs if tensor.optional}
    ignored += [
        f"optional of '{spec.name}' (the model needs it)"
        for spec in session.inputs
        if spec.name in optional and not spec.is_optional
    ]
    if session.batchable:
        named = {tensor.name for tensor in config.inputs}
        ignored += [
            f"input '{spec.name}' (requests that are batched share its value in the model)"
            for spec in session.defaults
            if spec.name in named
        ]
    return ignored


def presented(
    declared: Sequence[TensorConfig],
    specs: Sequence[TensorSpec],
    max_batch_size: int | None,
    *,
    are_inputs: bool,
    defaults: Sequence[TensorSpec] = (),
) -> list[Tensor]:
    """The inputs or outputs as requests see them: those of the model, as config.pbtxt has them.

    An input that it leaves out is as in the model; if it has outputs, others are not served. The
    `defaults` of a session follow its inputs; they need no batch dimension.
    Raises ModelLoadError for a tensor that is not as the model has it.
    """
    kind = "input" if are_inputs else "output"
    by_name = {tensor.name: tensor for tensor in declared}
    count, specs = len(specs), (*specs, *defaults)
    names = [spec.name for spec in specs]
    for name in by_name:
        if name not in names:
            raise ModelLoadError(
                f"{CONFIG_FILE} has an {kind} '{excerpt(name)}', but the {kind}s of the model are "
                f"{', '.join(names)}"
            )
    return [
        Tensor(position, spec, spec.shape)
        if spec.name not in by_name
        else _presented(
            by_name[spec.name], spec, position, max_batch_size if position < count else None
        )
        for position, spec in enumerate(specs)
        if are_inputs or not declared or spec.name in by_name
    ]


def _presented(
    tensor: TensorConfig, spec: TensorSpec, position: int, max_batch_size: int | None
) -> Tensor:
    if tensor.datatype not in ("", spec.datatype):
        raise ModelLoadError(
            f"'{spec.name}' has datatype {tensor.datatype} in {CONFIG_FILE}, but {spec.datatype} "
            "in the model"
        )
    if not tensor.dims:
        return Tensor(position, spec, spec.shape)
    own = tensor.dims if tensor.reshape is None else tensor.reshape
    # Without max_batch_size, dims may be of either kind.
    has_batch = bool(max_batch_size) or (
        max_batch_size is None and spec.has_rank and len(own) == len(spec.shape) - 1
    )
    batch = spec.shape[:1] or (-1,) if has_batch else ()
    shape = batch + own
    if not spec.has_rank:
        return Tensor(position, spec._replace(shape=batch + tensor.dims, has_rank=True), shape)
    fits = len(shape) == len(spec.shape) and all(
        -1 in sizes or sizes[0] == sizes[1] for sizes in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        what = "dims" if tensor.reshape is None else "reshape"
        without = ", without the batch" if has_batch else ""
        raise ModelLoadError(
            f"{what} of '{spec.name}' in {CONFIG_FILE} are {list(own)}{without}, but its shape in "
            f"the model is {list(spec.shape)}"
        )
    # A size that the file leaves open is as in the model. The open ones of requests are the same.
    closed = tuple(max(sizes) for sizes in zip(shape, spec.shape, strict=True))
    sizes = (size for size, declared in zip(closed, shape, strict=True) if declared < 0)
    requests = tuple(next(sizes) if size < 0 else size for size in batch + tensor.dims)
    return Tensor(position, spec._replace(shape=requests), closed)
