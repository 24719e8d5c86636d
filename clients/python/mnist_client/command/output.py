"""How mnist-predict writes its answers: drawings, a table, JSON lines, CSV; and its progress."""

from __future__ import annotations

import contextlib
import csv
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TextIO

from mnist_client.command.drawing import boxes_on, drawing, in_characters, printable, styled
from mnist_client.results import Prediction, Reading

Answer = Prediction | Reading
Writer = Callable[[str, bytes, Answer], None]
FORMATS = ("drawing", "table", "jsonl", "csv")
_LONG_LIST = 20
_REDRAW_S = 0.1


class Progress:
    """A line on stderr that says how far a long list is; nothing unless stderr is a terminal."""

    def __init__(self, total: int | None, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._total = total
        self._on = self._stream.isatty() and (total is None or total >= _LONG_LIST)
        self._drawn_at = self._began = time.monotonic()
        self._shown = False

    def clear(self) -> None:
        """Remove the line before something else is written."""
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown = False

    def show(self, done: int) -> None:
        """Draw the line again, unless that was a moment ago."""
        now = time.monotonic()
        if not self._on or now - self._drawn_at < _REDRAW_S:
            return
        self._drawn_at, self._shown = now, True
        rate = done / max(now - self._began, 1e-9)
        of = f" of {self._total}" if self._total is not None else ""
        self._stream.write(f"\r\x1b[K{done}{of} pictures, {rate:.0f} per second")
        self._stream.flush()


def writer(kind: str, *, reads: bool, transport: str, width: int, colour: bool) -> Writer:
    """The function that writes one answer to stdout. A table's header is written with the first."""
    # `width` is that of the terminal in characters, 0 to draw no pictures of `read`.
    if kind == "jsonl":
        return lambda name, data, answer: print(json.dumps({"file": name, **fields_of(answer)}))
    if kind == "csv":
        return _csv(reads)
    if kind == "table":
        return _table(reads)

    def draw(name: str, data: bytes, answer: Answer) -> None:
        if isinstance(answer, Reading):
            # Without Pillow, or for boxes that cannot be drawn, the text alone.
            with contextlib.suppress(ImportError, OSError, ValueError, OverflowError):
                if width:
                    sys.stdout.write(in_characters(boxes_on(data, answer), width, colour))
            print("\n".join(map(printable, (answer.text or answer.hint).split("\n"))))
            if refused := _refused(answer):
                print(styled(f"{refused} not accepted (red in the picture)", "33", colour))
        else:
            print(styled(printable(name), "1", colour), "over", transport)
            print(drawing(data, answer, colour))

    return draw


def fields_of(answer: Answer) -> dict[str, Any]:
    """An answer with the fields of the HTTP API."""
    if isinstance(answer, Prediction):
        fields = asdict(answer)
        return {name: fields[name] for name in _PREDICTION_FIELDS}
    return {
        "model_name": answer.model_name,
        "model_version": answer.model_version,
        "text": answer.text,
        "lines": answer.lines,
        "digits": [
            {
                "box": list(asdict(digit.box).values()),
                "line": digit.line,
                **{name: getattr(digit.prediction, name) for name in _PREDICTION_FIELDS[2:]},
            }
            for digit in answer.digits
        ],
        "hint": answer.hint,
    }


_PREDICTION_FIELDS = (
    "model_name",
    "model_version",
    "digit",
    "probabilities",
    "entropy_bits",
    "prediction_set",
    "accepted",
    "reason",
    "hint",
)
_WORDS = {True: "yes", False: "no", None: ""}


def _refused(reading: Reading) -> int:
    return sum(digit.prediction.accepted is False for digit in reading.digits)


def _csv(reads: bool) -> Writer:
    rows = csv.writer(sys.stdout, lineterminator="\n")
    model = ("model_name", "model_version")
    if reads:
        rows.writerow(("file", "text", "digits", "not_accepted", *model))
    else:
        judgement = "digit", "probability", "accepted", "reason", "prediction_set", "entropy_bits"
        rows.writerow(("file", *judgement, *model, *(f"p{digit}" for digit in range(10))))

    def write(name: str, data: bytes, answer: Answer) -> None:
        columns: list[Any] = [name]
        if isinstance(answer, Reading):
            columns += answer.text, len(answer.digits), _refused(answer)
        else:
            columns += answer.digit, answer.probabilities[answer.digit]
            columns += _WORDS[answer.accepted], answer.reason
            columns += " ".join(map(str, answer.prediction_set or ())), answer.entropy_bits
        columns += answer.model_name, answer.model_version
        if isinstance(answer, Prediction):
            columns += answer.probabilities
        # What is not UTF-8, such as a name, cannot be written as it is.
        rows.writerow(
            column.encode("utf-8", "backslashreplace").decode()
            if isinstance(column, str)
            else column
            for column in columns
        )

    return write


def _table(reads: bool) -> Writer:
    is_begun = False

    def write(name: str, data: bytes, answer: Answer) -> None:
        nonlocal is_begun
        if not is_begun:
            is_begun = True
            header = "text" if reads else "digit  probability"
            print(f"{header:18}  accepted             file")
        _table_row(name, data, answer)

    return write


def _table_row(name: str, data: bytes, answer: Answer) -> None:
    if isinstance(answer, Reading):
        cell = printable(answer.text.replace("\n", " / ")) or "nothing found"
        accepted = f"{len(answer.digits) - _refused(answer)} of {len(answer.digits)}"
    else:
        cell = f"{answer.digit:>5}  {answer.probabilities[answer.digit]:11.3%}"
        reason = printable(answer.reason)
        accepted = _WORDS[answer.accepted] + (f": {reason}" if reason else "")
    print(f"{cell:18}  {accepted:19}  {printable(name)}")
