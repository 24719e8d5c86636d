"""mnist-predict: send images to a running service and show its predictions."""

from __future__ import annotations

import argparse
import io
import json
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError
from rich.columns import Columns
from rich.console import Console
from rich.text import Text

_BAR_WIDTH = 32
_THUMBNAIL = 28
_SHADES = " ░▒▓█"
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
# What a reason says, for people.
_REASONS = {
    "blank": "it is blank",
    "several_digits": "it shows several digits",
    "not_a_digit": "it does not look like a digit",
    "unsure": "the model is not sure",
}


class PredictError(Exception):
    """A prediction failed; the message is a sentence for the user."""


class Answer(NamedTuple):
    """The prediction for one image. `probabilities` are ten floats, indexed by digit.

    `accepted` is whether the image shows one digit, or None if the model does not judge; the other
    fields are those of the API.
    """

    model_name: str
    model_version: str
    digit: int
    probabilities: list[float]
    entropy_bits: float
    prediction_set: list[int] | None = None
    accepted: bool | None = None
    reason: str = ""
    hint: str = ""


def predict_http(image: bytes, address: str, model: str, version: str, timeout: float) -> Answer:
    """POST one picture to /predict. Raises PredictError."""
    body = _post(image, address, "predict", model, version, timeout)
    prediction = body["predictions"][0]
    if "digit" not in prediction:
        raise PredictError(
            f"Model '{body['model_name']}' classifies something else than digits; its answer is "
            f"{prediction.get('label')}."
        )
    return Answer(model_name=body["model_name"], model_version=body["model_version"], **prediction)


def predict_grpc(image: bytes, address: str, model: str, version: str, timeout: float) -> Answer:
    """Call digits.v1.DigitClassifier/Predict with one picture. Raises PredictError."""
    from service.stubs.digits.v1 import digits_pb2

    request = digits_pb2.PredictRequest(image=image, model_name=model, model_version=version)
    response = _call("Predict", request, address, timeout)
    prediction = response.predictions[0]
    return Answer(
        model_name=response.model_name,
        model_version=response.model_version,
        digit=prediction.digit,
        probabilities=list(prediction.probabilities),
        entropy_bits=prediction.entropy_bits,
        prediction_set=list(prediction.prediction_set) or None,
        accepted=prediction.accepted if prediction.HasField("accepted") else None,
        reason=prediction.reason,
        hint=prediction.hint,
    )


class Digit(NamedTuple):
    """One digit on a picture: its box (left, top, right, bottom, in pixels), and what it is."""

    box: tuple[int, int, int, int]
    digit: int
    accepted: bool | None
    reason: str


class Reading(NamedTuple):
    """What a picture says; `hint` says what may be wrong if there are no digits."""

    model_name: str
    model_version: str
    text: str
    digits: list[Digit]
    hint: str


def read_http(image: bytes, address: str, model: str, version: str, timeout: float) -> Reading:
    """POST one picture to /read. Raises PredictError."""
    body = _post(image, address, "read", model, version, timeout)
    digits = [
        Digit(tuple(row["box"]), row["digit"], row["accepted"], row.get("reason", ""))
        for row in body["digits"]
    ]
    return Reading(
        body["model_name"], body["model_version"], body["text"], digits, body.get("hint", "")
    )


def read_grpc(image: bytes, address: str, model: str, version: str, timeout: float) -> Reading:
    """Call digits.v1.DigitClassifier/Read with one picture. Raises PredictError."""
    from service.stubs.digits.v1 import digits_pb2

    request = digits_pb2.ReadRequest(image=image, model_name=model, model_version=version)
    response = _call("Read", request, address, timeout)
    digits = []
    for row in response.digits:
        box, prediction = row.box, row.prediction
        accepted = prediction.accepted if prediction.HasField("accepted") else None
        edges = box.left, box.top, box.right, box.bottom
        digits.append(Digit(edges, prediction.digit, accepted, prediction.reason))
    return Reading(
        response.model_name, response.model_version, response.text, digits, response.hint
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict every file. Returns 0 if every prediction succeeds, else 1."""
    options = _parser().parse_args(arguments)
    predict = predict_grpc if options.grpc else predict_http
    address = options.address or f"127.0.0.1:{8001 if options.grpc else 8000}"
    console, errors = Console(), Console(stderr=True)
    if options.out and not (options.read and len(options.files) == 1):
        errors.print("[red]--out[/] needs --read and one file.", highlight=False)
        return 1
    failed = False
    for path in options.files:
        try:
            image = _read(path)
            if options.read:
                read = read_grpc if options.grpc else read_http
                reading = read(image, address, options.model, options.version, options.timeout)
                _show(reading, image, path, options, console)
                continue
            answer = predict(image, address, options.model, options.version, options.timeout)
        except PredictError as error:
            errors.print(f"[red]{path}[/]: {error}", highlight=False)
            failed = True
            continue
        if options.json:
            print(json.dumps({"file": str(path), **answer._asdict()}))
        else:
            transport = "gRPC" if options.grpc else "HTTP"
            console.print(f"[bold]{path}[/] over {transport}", highlight=False)
            console.print(Columns([_thumbnail(image), bars(answer)], padding=(0, 3)))
    return int(failed)


def bars(answer: Answer) -> Text:
    """Draw the distribution as ten bars, with the most probable digit in colour."""
    text = Text()
    for digit, probability in enumerate(answer.probabilities):
        filled = round(probability * _BAR_WIDTH)
        style = "bold green" if digit == answer.digit else "dim"
        text.append(f"{digit} ", style)
        text.append("█" * filled + "·" * (_BAR_WIDTH - filled), style)
        text.append(f" {probability:8.3%}\n", style)
    if answer.accepted is False:
        reason = _REASONS.get(answer.reason, answer.reason)
        text.append(f"Not accepted: {reason}. {answer.hint}\n", "bold yellow")
        text.append(f"The closest digit is {answer.digit}")
    else:
        text.append(f"It is a {answer.digit}", "bold")
    text.append(
        f", entropy {answer.entropy_bits:.3f} bits "
        f"({answer.model_name} version {answer.model_version})\n"
    )
    return text


def boxes_on(image: bytes, reading: Reading) -> Image.Image:
    """The picture as people see it, with a box around each digit and the digit above it.

    Boxes are green; red for what is not accepted.
    """
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(image))).convert("RGB")
    pen = ImageDraw.Draw(picture)
    line = max(1, max(picture.size) // 300)
    for digit, character in zip(reading.digits, reading.text.replace("\n", ""), strict=True):
        left, top, right, bottom = digit.box
        colour = (200, 30, 30) if digit.accepted is False else (0, 140, 60)
        edges = left - line, top - line, right - 1 + line, bottom - 1 + line
        pen.rectangle(edges, outline=colour, width=line)
        size = max(10, (bottom - top) // 3)
        pen.text((left, top - line), character, colour, anchor="lb", font_size=size)
    return picture


def _show(
    reading: Reading, image: bytes, path: Path, options: argparse.Namespace, console: Console
) -> None:
    """Print what was read, or save it. Raises PredictError."""
    if options.out:
        try:
            boxes_on(image, reading).save(options.out, "PNG")
        except OSError as error:
            raise PredictError(
                f"the boxes cannot be saved as {options.out}: {error.strerror or error}."
            ) from None
    if options.json:
        digits = [digit._asdict() for digit in reading.digits]
        print(json.dumps({"file": str(path), **reading._asdict(), "digits": digits}))
        return
    if not options.out:
        picture = boxes_on(image, reading)
        width = min(console.width, picture.width)
        height = max(2, round(picture.height * width / picture.width) // 2 * 2)
        picture = picture.resize((width, height))
        # Each character shows two pixels, one above the other.
        for row in range(0, height, 2):
            text = Text(no_wrap=True)
            for column in range(width):
                upper, lower = (picture.getpixel((column, row + below)) for below in (0, 1))
                text.append("▀", f"rgb{upper} on rgb{lower}".replace(" ", "").replace("on", " on "))
            console.print(text)
    console.print(reading.text or reading.hint, highlight=False, markup=False)
    refused = sum(digit.accepted is False for digit in reading.digits)
    if refused:
        console.print(f"{refused} not accepted (red in the picture)", style="yellow")


def _post(
    image: bytes, address: str, path: str, model: str, version: str, timeout: float
) -> dict[str, Any]:
    """POST one picture and return the answer. Raises PredictError."""
    query = urllib.parse.urlencode({"model": model, "version": version})
    request = urllib.request.Request(
        f"http://{address}/{path}?{query}", data=image, headers={"content-type": _type_of(image)}
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:  # noqa: S310 (the URL begins with http://)
            body: dict[str, Any] = json.load(response)
    except urllib.error.HTTPError as error:
        raise PredictError(_error_of(error)) from None
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise PredictError(_unreachable("HTTP", address, getattr(error, "reason", error))) from None
    return body


def _call(method: str, request: object, address: str, timeout: float) -> Any:
    """Call a method of digits.v1.DigitClassifier. Raises PredictError."""
    import grpc

    from service.stubs.digits.v1 import digits_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        stub: Any = digits_pb2_grpc.DigitClassifierStub(channel)  # type: ignore[no-untyped-call]
        try:
            return getattr(stub, method)(request, timeout=timeout)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                reason = _unreachable("gRPC", address, error.details())
                raise PredictError(reason) from None
            raise PredictError(f"The server says: {error.details()}") from None


def _thumbnail(image: bytes) -> Text:
    grey = Image.open(io.BytesIO(image)).convert("L").resize((_THUMBNAIL, _THUMBNAIL // 2))
    pixels = grey.tobytes()
    lines = []
    for row in range(grey.height):
        line = pixels[row * grey.width : (row + 1) * grey.width]
        lines.append("".join(_SHADES[value * len(_SHADES) // 256] for value in line))
    return Text("\n".join(lines), no_wrap=True)


def _read(path: Path) -> bytes:
    try:
        image = path.read_bytes()
        Image.open(io.BytesIO(image), formats=_FORMATS).verify()
    except UnidentifiedImageError:
        raise PredictError("this is not a PNG, JPEG, WebP, BMP or GIF image.") from None
    except OSError as error:
        raise PredictError(f"cannot be read: {error.strerror or error}.") from None
    return image


def _type_of(image: bytes) -> str:
    kind = Image.open(io.BytesIO(image), formats=_FORMATS).format
    # Pillow has a format of its own for JPEGs of some phones, with several pictures.
    return f"image/{kind.lower() if kind in _FORMATS else 'jpeg'}"


def _error_of(error: urllib.error.HTTPError) -> str:
    try:
        return f"The server says: {json.load(error)['error']}"
    except (ValueError, KeyError, TypeError):
        return f"The server answers with status {error.code} {error.reason}."


def _unreachable(transport: str, address: str, reason: object) -> str:
    return (
        f"No {transport} answer from {address} ({reason}). "
        "Start a server with mnist-serve, or name another with --address."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mnist-predict", description="Ask a running service which digit each image shows."
    )
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="pictures (PNG, JPEG, WebP, BMP, GIF)"
    )
    parser.add_argument("--grpc", action="store_true", help="call over gRPC instead of HTTP")
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="server (default: 127.0.0.1:8000; with --grpc 127.0.0.1:8001)",
    )
    parser.add_argument("--model", default="", help="model (default: the server's default model)")
    parser.add_argument("--version", default="", help="model version (default: the newest)")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds (default: 10)")
    parser.add_argument("--read", action="store_true", help="read all digits of each picture")
    parser.add_argument(
        "--out", type=Path, metavar="PNG", help="with --read: save the picture with boxes here"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line, no pictures")
    return parser


if __name__ == "__main__":
    sys.exit(main())
