from __future__ import annotations

import io
import struct
import threading
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.core.errors import InvalidArgument, RequestTooLarge
from service.core.pictures import files
from service.core.pictures.digit import find_digit
from service.core.pictures.files import open_picture
from tests.conftest import Mnist
from tests.hostile_pictures import jpeg, jpeg_in_scans
from tests.hostile_pictures import png as hostile_png


def png(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def _pixels(image: Image.Image) -> np.ndarray:
    return find_digit(image).pixels


def decode(body: bytes) -> np.ndarray:
    return _pixels(open_picture(body, 1_000_000, 1_000_000))


def closeness(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_an_mnist_image_passes_untouched(mnist: Mnist) -> None:
    for image in mnist.images[:200]:
        assert np.array_equal(decode(png(Image.fromarray(image)))[0], image)


def test_drawings_of_every_form_come_back_as_mnist(mnist: Mnist) -> None:
    results: dict[str, list[float]] = {}
    for image in mnist.images[:50]:
        large = Image.fromarray(255 - image).resize((280, 280), Image.Resampling.BICUBIC)
        transparent = Image.new("RGBA", large.size, (0, 0, 0, 0))
        transparent.paste((0, 0, 0, 255), mask=Image.fromarray(255 - np.asarray(large)))
        deep = Image.fromarray(np.asarray(large, np.uint16) * 257)
        for form in (large, large.convert("RGB"), large.convert("P"), transparent, deep):
            results.setdefault(form.mode, []).append(closeness(decode(png(form))[0], image))
        results.setdefault("JPEG", []).append(closeness(decode(png(large, "JPEG"))[0], image))
    assert len(results) == 6
    for form, closenesses in results.items():
        # One pixel of rounding matters for a thin stroke, so only the mean must be high.
        assert np.mean(closenesses) > 0.93, form


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_webp_is_decoded_as_pillow_does_and_its_decoder_goes(mode: str) -> None:
    """The decoder has 8 bytes per pixel, for as long as it exists."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, len(mode)), np.uint8)
    file = io.BytesIO()
    frames = [Image.fromarray(pixels), Image.fromarray(pixels[::-1].copy())]
    frames[0].save(file, "WEBP", lossless=True, exact=True, save_all=True, append_images=frames[1:])
    opened = open_picture(file.getvalue(), 1_000_000, 1_000_000)
    files.decode(opened)
    assert opened.mode == mode
    assert np.array_equal(np.asarray(opened), np.asarray(Image.open(file)))
    assert not hasattr(opened, "_decoder")
    files.decode(opened)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_blank_page_is_answered_as_blank(value: int) -> None:
    found = find_digit(open_picture(png(Image.new("L", (100, 60), value)), 10_000, 10_000))
    assert found.reason == "blank"
    assert "No ink was found" in found.hint
    assert not found.pixels.any()


def test_a_page_with_one_dark_pixel_is_not_an_error() -> None:
    page = Image.new("L", (300, 200), 255)
    page.putpixel((7, 9), 0)
    assert decode(png(page)).shape == (1, 28, 28)


def test_a_truncated_file_is_refused(mnist: Mnist) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 100), np.uint8)
    for kind in ("PNG", "JPEG"):
        body = png(Image.fromarray(noise), kind)
        with pytest.raises(InvalidArgument, match="image"):
            decode(body[: len(body) // 2])


def test_a_huge_picture_is_refused_before_it_is_decoded() -> None:
    body = png(Image.new("1", (20_000, 20_000)))
    assert len(body) < 100_000
    with pytest.raises(RequestTooLarge, match="pixels"):
        open_picture(body, 1_000_000, 1_000_000)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(mnist: Mnist, mode: str) -> None:
    closenesses = []
    for image in mnist.images[:10]:
        page = Image.new("L", (1200, 900), 255)
        page.paste(
            Image.fromarray(255 - image).resize((280, 280), Image.Resampling.BICUBIC), (200, 300)
        )
        body = png(page.convert(mode), "JPEG")
        whole = _pixels(open_picture(body, 2_000_000, 2_000_000))
        for limit, size in ((300_000, (600, 450)), (70_000, (300, 225)), (10_000, (150, 113))):
            opened = open_picture(body, 2_000_000, limit)
            reduced = _pixels(opened)
            assert opened.size == size
            closenesses.append(closeness(reduced, whole))
    # A digit of 26 pixels on the smallest: the edge of its box is one pixel off.
    assert np.mean(closenesses) > 0.9


def test_a_picture_that_must_be_decoded_as_a_whole_has_a_limit_of_its_own() -> None:
    for body in (
        jpeg(400, "RGB", progressive=True),
        jpeg(400, "L", progressive=True),
        jpeg_in_scans(400, 3),
        jpeg_in_scans(400, 4),
        hostile_png(400, depth=8, colour=6),
    ):
        open_picture(body, 1_000_000, 160_000)
        with pytest.raises(RequestTooLarge, match="max_decoded_pixels"):
            open_picture(body, 1_000_000, 159_999)
        with pytest.raises(RequestTooLarge, match="max_image_pixels"):
            open_picture(body, 159_999, 1_000_000)
    with pytest.raises(RequestTooLarge, match="max_image_pixels"):
        open_picture(jpeg(400), 159_999, 1000)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"]))
def test_no_bytes_fail_in_another_way(body: bytes, magic: bytes) -> None:
    with pytest.raises(InvalidArgument):
        decode(magic + body)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_picture_with_flipped_bytes_is_decoded_or_refused(data: st.DataObject) -> None:
    body = bytearray(png(Image.fromarray(np.eye(28, dtype=np.uint8) * 255), "JPEG"))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(2, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = decode(bytes(body))
    except InvalidArgument:
        return
    assert pixels.shape == (1, 28, 28)


def test_two_specks_on_a_large_page_are_blank() -> None:
    page = np.full((1000, 1000), 255, np.uint8)
    page[5, 5] = page[-6, -6] = 0
    found = find_digit(open_picture(png(Image.fromarray(page)), 16_000_000, 4_000_000))
    assert found.reason == "blank"


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_png_of_palette_colours_without_a_palette_is_refused(depth: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", 28, 28, depth, 3, 0, 0, 0)
    rows = zlib.compress(bytes(28 * (1 + (28 * depth + 7) // 8)))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    with pytest.raises(InvalidArgument, match="damaged"):
        decode(b"\x89PNG\r\n\x1a\n" + chunks)


def test_room_for_pictures_is_given_in_order_and_never_exceeded() -> None:
    room = files.Room(10)
    begun, held, most, lock = [], [], [], threading.Lock()
    first = threading.Event()

    def work(name: str, size: int) -> None:
        with room.of(size):
            with lock:
                begun.append(name)
                held.append(size)
                most.append(sum(held))
            if name == "first":
                first.wait()
            with lock:
                held.remove(size)

    threads = []
    for name, size in [("first", 4), ("large", 8), *((f"small {i}", 3) for i in range(20))]:
        threads.append(threading.Thread(target=work, args=(name, size)))
        threads[-1].start()
        while (name == "first" and not begun) or (name == "large" and not room._first.locked()):
            time.sleep(0.001)
    assert begun == ["first"]  # the small ones would fit, but the large one is the next
    first.set()
    for thread in threads:
        thread.join()
    assert begun[:2] == ["first", "large"]
    assert len(begun) == 22
    assert max(most) <= 10
    with room.of(11):  # more than there is
        pass


def test_memory_of_a_picture_is_what_its_format_takes() -> None:
    for body, expected in (
        (hostile_png(100, depth=8, colour=6), 4),
        (jpeg(100, "RGB"), 4),
        (jpeg(100, "RGB", progressive=True), 12),
        (jpeg_in_scans(96, 4), 12),
        (png(Image.new("RGB", (100, 100)), "WEBP"), 12),
    ):
        image = open_picture(body, 1_000_000, 1_000_000)
        assert files.memory_of(image) == image.width * image.height * expected
