"""The playground in a real browser, on a server of two workers and behind Envoy."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw
from playwright.sync_api import Browser

from service.core.digits import HINTS
from service.http.playground.pages import STATIC
from tests.conftest import SHIPPED_MODELS, Mnist, Server
from tests.e2e import screenshot
from tests.e2e.browser import Playground, running_browser, violations
from tests.e2e.strokes import DIGITS, Stroke, moved
from tests.e2e.test_envoy import running_envoy
from tests.service.classifiers import publish_lengths

MOST_BYTES = 80 * 1024
BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
TWO_DIGITS = [*moved(DIGITS[4], -120, 0.6), *moved(DIGITS[7], 120, 0.6)]
RUN = {"curl": ["bash"], "python": [sys.executable], "javascript": ["node", "--input-type=module"]}


@pytest.fixture(scope="module")
def two_workers(start_server: Callable[..., Server]) -> Server:
    return start_server(workers=2)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def opened(browser: Browser, two_workers: Server) -> Iterator[Playground]:
    playground = Playground(browser, two_workers.http)
    yield playground
    playground.close()


@pytest.fixture
def playground(opened: Playground) -> Iterator[Playground]:
    """The page as it is when it is opened; it must not complain in any test."""
    opened.open()
    yield opened
    complaints, opened.complaints[:] = opened.complaints[:], []
    assert complaints == []


def photo(strokes: list[Stroke], size: tuple[int, int] = (1200, 900)) -> bytes:
    """A noisy JPEG of digits on paper with a shadow over one side."""
    width, height = size
    scale = width / 560
    paper = Image.new("L", size, 255)
    pen = ImageDraw.Draw(paper)
    for stroke in strokes:
        points = [(x * scale, y * scale) for x, y in stroke]
        pen.line(points, fill=60, width=round(22 * scale), joint="curve")
    light = np.linspace(0.6, 0.9, width) + np.random.default_rng(0).normal(0, 0.02, (height, width))
    file = io.BytesIO()
    Image.fromarray((np.asarray(paper) * light).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def wait_for_address(address: str) -> None:
    """Wait until a proxy answers as its server does."""
    server = Server.__new__(Server)
    server.http = address
    end = time.monotonic() + 60
    while not server.is_ready():
        assert time.monotonic() < end
        time.sleep(0.02)


COLOURS = ("red", "green", "blue")


def publish_colours(root: Path, labels: Sequence[str] = COLOURS) -> None:
    """Publish `colours`, which says whether a picture is red, green or blue."""
    tensor, nodes = (
        helper.make_tensor_value_info,
        [
            helper.make_node("ReduceMean", ["picture", "axes"], ["mean"], keepdims=0),
            helper.make_node("Softmax", ["mean"], ["probabilities"]),
        ],
    )
    graph = helper.make_graph(
        nodes,
        "colours",
        [tensor("picture", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [tensor("probabilities", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.array([2, 3]), "axes")],
    )
    folder = root / "colours" / "1"
    folder.mkdir(parents=True)
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "model.onnx")
    card = {"batching": True, "labels": list(labels), "picture": {}}
    (folder / "model.json").write_text(json.dumps(card))


def expect_complaints(playground: Playground, *texts: str) -> None:
    """What the browser itself reports of failed requests; each complaint has one of the texts."""
    for complaint in playground.complaints:
        assert any(text in complaint for text in texts), complaint
    assert playground.complaints
    playground.complaints.clear()


def close_after_complaints(playground: Playground, *texts: str) -> None:
    """Close the page; what it is still asking for may add to the complaints until then."""
    playground.context.close()
    expect_complaints(playground, *texts)


def upload(playground: Playground, name: str, kind: str, content: bytes) -> None:
    playground.page.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": content})


def hand_over(playground: Playground, event: str, content: bytes) -> None:
    """Drop or paste a picture, as the browser's own events do it."""
    playground.page.evaluate(
        """([kind, base64]) => {
            const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], "photo.jpg", {type: "image/jpeg"}));
            const event = kind === "paste"
                ? new ClipboardEvent("paste", {clipboardData: data})
                : new DragEvent("drop", {dataTransfer: data, cancelable: true});
            dispatchEvent(event);
        }""",
        [event, b64encode(content).decode()],
    )


def evidence(playground: Playground, side: int) -> Any:
    """What counted, as it is drawn over the pixels: [side,side,4], red, green, blue and opacity."""
    values = playground.page.evaluate(
        """side => [...document.getElementById("evidence").getContext("2d")
            .getImageData(0, 0, side, side).data]""",
        side,
    )
    return np.array(values).reshape(side, side, 4)


def test_the_page_is_small_and_strict(two_workers: Server) -> None:
    size = sum(len(gzip.compress(path.read_bytes())) for path in STATIC.iterdir())
    assert size <= MOST_BYTES
    status, page = two_workers.request("GET", "/", headers=BROWSER)
    assert status == 200
    assert b'data-model="mnist"' in page
    # What curl, and other clients without a preference, get.
    for headers in ({}, {"accept": "*/*"}, {"accept": "application/json"}):
        assert json.loads(two_workers.request("GET", "/", headers=headers)[1])["endpoints"]


def test_ten_digits_are_drawn_and_recognised(playground: Playground) -> None:
    for digit, strokes in DIGITS.items():
        playground.draw(strokes)
        playground.wait_for("accepted", str(digit))
        playground.clear()


def test_bars_move_while_the_pen_is_down(playground: Playground) -> None:
    mouse = playground.page.mouse
    (stroke,) = DIGITS[7]
    mouse.move(*playground.at(*stroke[0]))
    mouse.down()
    mouse.move(*playground.at(*stroke[1]), steps=5)
    playground.page.wait_for_selector("#bars .top")
    mouse.move(*playground.at(*stroke[2]), steps=5)
    playground.wait_for("accepted", "7")
    mouse.up()


def test_bars_and_times_are_those_of_the_answer(
    playground: Playground, two_workers: Server
) -> None:
    playground.draw(DIGITS[2])
    playground.wait_for("accepted", "2")
    playground.page.wait_for_function(
        "() => document.getElementById('live').textContent.includes('sure')"
    )
    body = playground.posts[-1].post_data_buffer
    _, answer = two_workers.post("/predict?explain=true", body, "image/png")
    (prediction,) = answer["predictions"]
    assert [step["name"] for step in answer["steps"]] == ["picture", "ink", "digit", "pixels"]
    shown = [float(text.split(": ")[1].strip("<> %")) for text in playground.bars()]
    for percent, p in zip(shown, prediction["probabilities"], strict=True):
        assert abs(percent / 100 - p) < 0.002
    for name in ("call", "picture", "model"):
        assert float(playground.text(f"#time-{name}").removesuffix(" ms")) >= 0
    assert playground.page.locator("#steps img").count() == len(answer["steps"])


def test_a_photo_is_uploaded_pasted_and_dropped(playground: Playground) -> None:
    upload(playground, "photo.jpg", "image/jpeg", photo(DIGITS[3]))
    playground.wait_for("accepted", "3")
    hand_over(playground, "paste", photo(DIGITS[5]))
    playground.wait_for("accepted", "5")
    hand_over(playground, "drop", photo(DIGITS[0]))
    playground.wait_for("accepted", "0")
    playground.page.click("#undo")
    playground.wait_for("accepted", "5")


def test_undo_goes_back_over_ten_pictures(playground: Playground) -> None:
    """More of them would take hundreds of megabytes."""
    for number in range(12):
        upload(playground, f"{number}.jpg", "image/jpeg", photo(DIGITS[number % 10]))
        playground.wait_for("accepted", str(number % 10))
    undone = 0
    while playground.page.locator("#undo").is_enabled():
        playground.page.click("#undo")
        undone += 1
    assert undone == 10
    playground.wait_for("accepted", "1")


def test_what_is_not_accepted_does_not_look_certain(playground: Playground) -> None:
    page = playground.page
    playground.draw(TWO_DIGITS)
    page.wait_for_selector("#as-number:not([hidden])")
    digit = playground.text("#digit")
    assert re.fullmatch(rf"Closest: {digit} \([\d.]+ %\)", playground.text("#sure"))
    assert page.locator("#set").is_hidden()

    Image.new("L", (320, 240), 255).save(file := io.BytesIO(), "PNG")
    upload(playground, "paper.png", "image/png", file.getvalue())
    playground.wait_for("refused", "?")
    assert playground.text("#badge") == "Nothing there"
    assert playground.text("#sure") == ""
    assert page.locator("#set").is_hidden()
    assert playground.bars() == [f"{digit}: no answer" for digit in range(10)]


def test_a_number_is_as_sure_as_its_accepted_digits(playground: Playground) -> None:
    shown = playground.page.evaluate(
        """async () => {
            const view = await import("/playground/view.js");
            const digit = {box: [0, 0, 9, 9], digit: 1, entropy_bits: 0.2};
            const accepted = {...digit, probabilities: [0.03, 0.97], accepted: true};
            const refused = {...digit, probabilities: [0.01, 0.99], accepted: false,
                reason: "not_a_digit"};
            const shown = [];
            for (const digits of [[accepted, refused], [refused]]) {
                view.showReading({digits, lines: ["11"], times: {}}, {placement: [0, 0, 1]});
                shown.push(document.getElementById("sure").textContent);
            }
            return [...shown, document.getElementById("found").textContent];
        }"""
    )
    assert shown == ["At least 97.0 % sure of the others", "", "?closest: 1"]


def test_a_damaged_file_is_reported(playground: Playground) -> None:
    upload(playground, "photo.png", "image/png", b"not a picture")
    playground.wait_for("error", "!")
    assert "cannot open the file" in playground.text("#sure")


def test_no_answer_to_the_sheet_follows_the_error_of_a_file(
    browser: Browser, two_workers: Server
) -> None:
    playground = Playground(browser, two_workers.http)
    playground.page.clock.pause_at(time.time() + 60)
    playground.draw(DIGITS[7])  # which is to be asked about
    upload(playground, "photo.png", "image/png", b"not a picture")
    playground.wait_for("error", "!")
    playground.page.clock.run_for(1000)
    assert not [post for post in playground.posts if "predict" in post.url]
    playground.page.click("#undo")
    playground.wait_for("empty", "?")
    playground.close()


def test_what_the_server_refuses_is_shown_in_its_words(
    browser: Browser, start_server: Callable[..., Server]
) -> None:
    playground = Playground(browser, start_server(max_decoded_pixels=10_000).http)
    page = playground.page
    playground.draw(DIGITS[7])
    playground.wait_for("error", "!")
    assert "max_decoded_pixels" in playground.text("#sure")
    # The same would be refused again, so the page does not ask again.
    assert playground.text("#hint") == ""
    expect_complaints(playground, "413")
    # Nothing of an earlier answer stays beside an error.
    page.click("#clear")
    upload(playground, "small.jpg", "image/jpeg", photo(DIGITS[3], (280, 210)))
    playground.wait_for("accepted", "3")
    assert page.locator("#steps img").count()
    playground.draw(DIGITS[7])
    playground.wait_for("error", "!")
    assert page.locator("#steps img").count() == 0
    assert playground.text("#time-model") == "-"
    assert page.locator("#heat").is_disabled()
    close_after_complaints(playground, "413")


def test_a_huge_picture_is_scaled_down_here(playground: Playground) -> None:
    file = io.BytesIO()
    with Image.open(io.BytesIO(photo(DIGITS[3], (5600, 4200)))) as image:
        image.point(lambda value: 255 * (value > 110)).convert("1").save(file, "PNG")
    upload(playground, "scan.png", "image/png", file.getvalue())
    playground.wait_for("accepted", "3")
    post = playground.posts[-1]
    assert post.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(post.post_data_buffer)).size == (2000, 1500)


@pytest.mark.parametrize(
    ("status", "body", "says", "is_asked_again"),
    [
        (200, "<h1>Log in</h1>", "The answer is not JSON, so it is not from mnist-service.", False),
        (403, '{"error": "Not from here."}', "Not from here.", False),
        (502, "Bad Gateway", "The server answered with 502.", True),
        (504, '{"error": "Too late."}', "Too late.", True),
        (418, '{"error": {"code": 7}}', "The server answered with 418.", False),
    ],
)
def test_what_a_proxy_says_is_shown(
    browser: Browser,
    two_workers: Server,
    status: int,
    body: str,
    says: str,
    is_asked_again: bool,
) -> None:
    playground = Playground(browser, two_workers.http)
    page = playground.page
    page.route("**/predict*", lambda route: route.fulfill(status=status, body=body))
    playground.draw(DIGITS[7])
    playground.wait_for("error", "!")
    assert playground.text("#sure") == says
    assert playground.text("#hint") == ("The page keeps trying." if is_asked_again else "")
    page.unroute("**/predict*")
    if is_asked_again:
        playground.wait_for("accepted", "7")
    if status == 200:
        playground.close()
    else:
        close_after_complaints(playground, str(status))


@pytest.mark.parametrize("is_behind_envoy", [False, True], ids=["alone", "behind Envoy"])
def test_it_continues_when_the_server_is_back(
    browser: Browser, start_server: Callable[..., Server], tmp_path: Path, is_behind_envoy: bool
) -> None:
    server = start_server()
    address = server.http
    with contextlib.ExitStack() as stack:
        if is_behind_envoy:
            address = stack.enter_context(running_envoy(server, tmp_path, "http"))
            wait_for_address(address)
        playground = Playground(browser, address)
        playground.draw(DIGITS[7])
        playground.wait_for("accepted", "7")
        server.stop()
        playground.page.click("#examples button:nth-child(3)")
        playground.wait_for("error", "!")
        says = "answered with 503" if is_behind_envoy else "does not answer"
        assert playground.text("#sure") == f"The server {says}."
        assert playground.text("#hint") == "The page keeps trying."
        assert playground.page.locator("#steps img").count() == 0
        # With one version less, which the page sees too.
        shutil.copytree(SHIPPED_MODELS / "mnist" / "2", tmp_path / "models" / "mnist" / "2")
        start_server(tmp_path / "models", ready=False, http_port=server.http_port)
        playground.wait_for("accepted", "2")
        playground.page.wait_for_function(
            "() => document.getElementById('version').options.length === 2"
        )
        close_after_complaints(playground, "ERR_CONNECTION_REFUSED", "ERR_EMPTY_RESPONSE", "503")


def test_the_page_says_that_it_waits_for_the_server(playground: Playground) -> None:
    page = playground.page
    held: list[Any] = []
    is_held = False

    def take(route: Any) -> None:
        if is_held:
            held.append(route)
        else:
            route.continue_()

    def hold_and_draw() -> None:
        nonlocal is_held
        is_held = True
        playground.draw(DIGITS[4])
        page.wait_for_function(
            "() => document.getElementById('badge').textContent === 'Waiting for the server'"
        )

    def answer() -> None:
        nonlocal is_held
        is_held = False
        while held:
            held.pop().continue_()
        playground.wait_for("accepted", "4")

    page.route("**/predict*", take)
    hold_and_draw()
    assert page.get_attribute("#verdict", "data-state") == "empty"
    assert playground.text("#sure") == ""
    answer()
    # An earlier answer stays, but no longer as an accepted one.
    hold_and_draw()
    assert page.get_attribute("#verdict", "data-state") == "open"
    assert playground.text("#digit") == "4"
    answer()
    page.unroute("**/predict*")


def test_a_server_that_hangs_is_asked_again(
    browser: Browser, start_server: Callable[..., Server]
) -> None:
    server = start_server()
    playground = Playground(browser, server.http)
    clock = playground.page.clock
    clock.pause_at(time.time() + 60)
    pids = [server.process.pid, *server.worker_pids()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        playground.draw(DIGITS[7])
        clock.run_for(100)
        clock.run_for(30_000)
        playground.wait_for("error", "!")
        assert playground.text("#sure") == "The server does not answer in time."
    finally:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)
    clock.run_for(2000)
    playground.wait_for("accepted", "7")
    playground.close()


def test_a_limit_delays_the_answer_and_does_not_lose_it(
    browser: Browser, start_server: Callable[..., Server]
) -> None:
    server = start_server(max_requests_per_second=0.5, request_burst=4)
    playground = Playground(browser, server.http)
    playground.page.evaluate(
        """() => {
            window.shown = new Set();
            const sure = document.getElementById("sure");
            const note = () => shown.add(sure.textContent);
            new MutationObserver(note).observe(sure, {childList: true});
        }"""
    )
    while not playground.complaints:  # until one is refused
        playground.draw([[(20, 20), (21, 21)]])
        playground.page.wait_for_timeout(50)
    playground.page.click("#clear")
    playground.draw(DIGITS[0])
    playground.wait_for("accepted", "0")
    shown = playground.page.evaluate("[...shown]")
    assert any("max_requests_per_second" in text for text in shown), shown
    close_after_complaints(playground, "429")


def test_a_limit_delays_the_card(browser: Browser, start_server: Callable[..., Server]) -> None:
    server = start_server(max_requests_per_second=0.5, request_burst=1)
    playground = Playground(browser, server.http)
    playground.page.wait_for_selector("#card .tile")
    close_after_complaints(playground, "429")


def test_what_counted_may_be_beyond_a_limit(
    browser: Browser, start_server: Callable[..., Server]
) -> None:
    server = start_server(max_images_per_second=100, image_burst=100)
    playground = Playground(browser, server.http)
    playground.page.click("#examples button:nth-child(8)")
    playground.wait_for("accepted", "7")
    playground.page.click("#heat")
    playground.page.wait_for_selector("#heat-problem:not([hidden])")
    assert playground.text("#heat-problem").startswith("What counted is not known: ")
    playground.wait_for("accepted", "7")
    playground.page.click("#heat")
    assert playground.page.locator("#heat-problem").is_hidden()
    close_after_complaints(playground, "413")


@pytest.mark.parametrize("language", RUN)
def test_a_copied_snippet_makes_the_same_call(
    playground: Playground, two_workers: Server, tmp_path: Path, language: str
) -> None:
    page = playground.page
    page.click(f"#tab-{language}")
    contents = {"drawing.png": b"", "it's a photo.jpg": photo(DIGITS[6])}
    for name, content in contents.items():
        if content:
            upload(playground, name, "image/jpeg", content)
            playground.wait_for("accepted", "6")
            with page.expect_download() as download:
                page.click("#save")
            download.value.save_as(tmp_path / name)
            assert (tmp_path / name).read_bytes() == content
        else:
            playground.draw(DIGITS[4])
            playground.wait_for("accepted", "4")
        page.click("#copy")
        page.wait_for_selector("#copied:not(:empty)")
        source = page.evaluate("navigator.clipboard.readText()")
        assert f"http://{two_workers.http}/predict?explain=true" in source
        run = subprocess.run(
            RUN[language], input=source, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        sent = content or playground.posts[-1].post_data_buffer
        kind = "image/jpeg" if content else "image/png"
        expected = two_workers.post("/predict?explain=true", sent, kind)[1]
        assert json.loads(run.stdout) == expected


def test_several_digits_are_read_as_a_number(playground: Playground) -> None:
    page = playground.page
    playground.draw(TWO_DIGITS)
    page.click("#as-number")
    playground.wait_for("accepted", "47")
    assert page.locator("#boxes g").count() == 2
    assert page.locator("#found button").count() == 2
    page.click("#found button:nth-child(2)")
    assert page.locator("#bars .top .name").inner_text() == "7"
    # The boxes are around the strokes: of the 4 on the left, of the 7 on the right.
    lefts = [float(box.get_attribute("x") or 0) for box in page.locator("#boxes rect").all()]
    assert 60 < lefts[0] < 130
    assert 300 < lefts[1] < 360


def test_a_model_that_does_not_judge_reads_without_judgement(playground: Playground) -> None:
    page = playground.page
    page.select_option("#version", "1")
    page.check("#mode [value=read]", force=True)
    playground.draw(TWO_DIGITS)
    playground.wait_for("open", "47")
    assert playground.text("#badge") == "2 digits, not judged"
    assert page.locator("#boxes .open").count() == 2


def test_ten_digits_in_two_lines_are_read(playground: Playground) -> None:
    page = playground.page
    page.check("#mode [value=read]", force=True)
    page.fill("#pen", "9")
    for digit, strokes in DIGITS.items():
        small = moved(strokes, 100 * (digit % 5) - 200, 0.25)
        down = 90 if digit >= 5 else -90
        playground.draw([[(x, y + down) for x, y in stroke] for stroke in small])
    playground.wait_for("accepted", "01234 56789")
    assert page.locator("#boxes g").count() == 10
    assert page.locator("#found button").count() == 10


def test_bars_stay_near_the_choice_of_many_digits(playground: Playground, mnist: Mnist) -> None:
    page = playground.page
    paper = Image.new("L", (1200, 900), 255)
    for i in range(60):
        digit = Image.fromarray(255 - mnist.images[i]).resize((70, 70))
        paper.paste(digit, (20 + i % 10 * 115, 30 + i // 10 * 145))
    paper.save(file := io.BytesIO(), "PNG")
    page.check("#mode [value=read]", force=True)
    upload(playground, "many.png", "image/png", file.getvalue())
    page.wait_for_selector("#found button:nth-child(60)", state="attached")
    box = page.locator("#found").bounding_box()
    assert box is not None
    assert box["height"] < 250
    page.focus("#found button:nth-child(60)")
    page.keyboard.press("Enter")
    assert page.locator("#found [aria-pressed=true]").count() == 1


def test_models_and_versions_are_chosen(playground: Playground) -> None:
    page = playground.page
    assert page.locator("#version option").all_inner_texts() == ["newest (2)", "2", "1"]
    accuracy = playground.text("#card .tile >> nth=0")
    assert page.locator(".confusion rect").count() == 100
    playground.draw(DIGITS[8])
    playground.wait_for("accepted", "8")
    page.select_option("#version", "1")
    playground.wait_for("open", "8")  # version 1 does not judge
    assert playground.posts[-1].url.endswith("/predict?explain=true&version=1")
    page.wait_for_function(
        "before => document.querySelector('#card .tile').innerText !== before", arg=accuracy
    )


def test_versions_that_come_and_go_are_noticed(
    browser: Browser, start_server: Callable[..., Server], tmp_path: Path
) -> None:
    models = tmp_path / "models"
    shutil.copytree(SHIPPED_MODELS / "mnist" / "1", models / "mnist" / "1")
    server = start_server(models)
    playground = Playground(browser, server.http)
    page = playground.page
    playground.draw(DIGITS[8])
    playground.wait_for("open", "8")
    page.select_option("#version", "1")
    playground.wait_for("open", "8")

    shutil.copytree(SHIPPED_MODELS / "mnist" / "2", tmp_path / "2")
    (tmp_path / "2").rename(models / "mnist" / "2")
    server.wait_until(lambda: server.get("/v2/models/mnist/versions/2/ready")[0] == 200)
    (models / "mnist" / "1").rename(tmp_path / "1")
    server.wait_until(lambda: server.get("/v2/models/mnist/versions/1/ready")[0] != 200)
    playground.clear()
    playground.draw(DIGITS[8])
    playground.wait_for("error", "!")
    page.wait_for_selector("#version option:has-text('1 (not loaded)')", state="attached")
    assert page.input_value("#version") == "1"
    page.select_option("#version", "")
    playground.wait_for("accepted", "8")
    assert page.locator("#version option").first.inner_text() == "newest (2)"

    (tmp_path / "1").rename(models / "mnist" / "3")
    server.wait_until(lambda: server.get("/v2/models/mnist/versions/3/ready")[0] == 200)
    playground.clear()
    playground.draw(DIGITS[8])
    playground.wait_for("open", "8")
    page.wait_for_selector("#version option:has-text('newest (3)')", state="attached")
    close_after_complaints(playground, "404")


def test_without_a_model_of_digits_it_takes_one_that_is_loaded(
    browser: Browser, start_server: Callable[..., Server], tmp_path: Path
) -> None:
    publish_colours(tmp_path)
    publish_lengths(tmp_path, labels=["long", "short"], output_kinds={"y": "logits"})
    playground = Playground(browser, start_server(tmp_path).http)
    page = playground.page
    assert page.input_value("#model") == "colours"
    assert playground.text("#sure") == "The most probable classes appear here."
    assert page.locator("#bars").is_hidden()
    assert page.locator("#mode").is_hidden()  # numbers have digits
    assert playground.text("#draw-title") == "Draw a picture"
    playground.draw(DIGITS[7])
    playground.page.wait_for_selector("#verdict[data-state=open]")
    # One that takes no pictures says so, and names those that do.
    page.select_option("#model", "lengths")
    playground.wait_for("error", "!")
    assert "colours" in playground.text("#sure")
    close_after_complaints(playground, "400")


def test_long_names_of_classes_fit_a_phone(
    browser: Browser, start_server: Callable[..., Server], tmp_path: Path
) -> None:
    publish_colours(tmp_path, ["r" * 200, "a very long name of green " * 8, "b"])
    playground = Playground(
        browser, start_server(tmp_path).http, viewport={"width": 360, "height": 740}
    )
    page = playground.page
    for colour in ((230, 30, 30), (30, 230, 30)):
        picture = io.BytesIO()
        Image.new("RGB", (64, 64), colour).save(picture, "PNG")
        upload(playground, "colour.png", "image/png", picture.getvalue())
        name = "r" * 200 if colour[0] > 200 else ("a very long name of green " * 8)
        playground.wait_for("open", name)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        box = page.locator("#verdict").bounding_box()
        assert box is not None
        assert box["height"] < 740
    playground.close()


def test_a_model_of_other_classes_shows_its_labels(
    browser: Browser, start_server: Callable[..., Server], tmp_path: Path
) -> None:
    publish_colours(tmp_path)
    playground = Playground(browser, start_server(tmp_path, model="colours").http)
    green = io.BytesIO()
    Image.new("RGB", (300, 200), (30, 200, 90)).save(green, "PNG")
    upload(playground, "green.png", "image/png", green.getvalue())
    playground.wait_for("open", "green")
    labels = playground.page.locator("#labels li").all_inner_texts()
    assert [label.split()[0] for label in labels] == ["green", "blue", "red"]
    assert playground.page.locator("#bars").is_hidden()
    assert playground.text("#time-model").endswith(" ms")
    # What counted of a picture that is half green: its green half, at the size of this model.
    half = Image.new("RGB", (320, 320), (60, 60, 60))
    half.paste((30, 220, 60), (0, 0, 160, 320))
    half.save(green := io.BytesIO(), "PNG")
    upload(playground, "half.png", "image/png", green.getvalue())
    playground.page.click("#heat")
    playground.page.wait_for_selector("#legend:not([hidden])")
    assert re.search(r"Each of \d+ copies hides one patch", playground.text("#legend"))
    assert playground.posts[-1].url.endswith("top=1000")
    red, _, blue, alpha = np.moveaxis(evidence(playground, 32), -1, 0)
    assert (red > blue)[:, :8].all()  # for the answer
    assert (blue > red)[:, 24:].all()  # against it
    assert (alpha > 0).mean() > 0.9
    playground.close()


def test_labels_that_look_like_numbers_are_in_the_order_of_their_probabilities(
    playground: Playground,
) -> None:
    playground.page.evaluate(
        """async () => {
            const view = await import("/playground/view.js");
            const probabilities = {b: 0.45, "30": 0.3, "7": 0.2, "10": 0.05};
            const prediction = {label: "b", class: 1, probabilities, entropy_bits: 1.7};
            view.showPrediction({predictions: [prediction], times: {}});
        }"""
    )
    labels = playground.page.locator("#labels li").all_inner_texts()
    assert [label.split()[0] for label in labels] == ["b", "30", "7", "10"]


def test_names_of_classes_fit_the_confusion_matrix(playground: Playground) -> None:
    widths = playground.page.evaluate(
        """async () => {
            const {cardOf} = await import("/playground/card.js");
            const labels = ["Wwwwwwwwww", "Ankle boot", "7"];
            const card = {labels, evaluation: {confusion: [[9, 1, 0], [0, 9, 0], [0, 2, 9]]}};
            document.getElementById("card-body").replaceChildren(...cardOf(card, "fashion", "1"));
            const axis = document.querySelectorAll("#card .confusion .axis");
            return [...axis].map((text) => text.getBBox().width);
        }"""
    )
    assert len(widths) == 6
    assert max(widths) <= 26  # of a cell
    assert "Ankle boot for Wwwwwwwwww" not in playground.text("#card figcaption")
    assert "7 for Ankle boot (2 times)" in playground.text("#card figcaption")
    titles = playground.page.locator("#card .axis title").all_text_contents()
    assert "Ankle boot" in titles


def test_what_counted_is_one_call_of_copies_with_a_hidden_patch(playground: Playground) -> None:
    playground.page.click("#examples button:nth-child(8)")
    playground.wait_for("accepted", "7")
    playground.page.click("#heat")
    playground.page.wait_for_selector("#legend:not([hidden])")
    body = playground.posts[-1].post_data_buffer
    assert len(body) == 784 * (1 + 14 * 14)
    assert "Each of 196 copies hides one patch; they are one call" in playground.text("#legend")
    opacity = evidence(playground, 28)[..., 3]
    # Ink in the middle counts, the empty corner does not.
    assert opacity.max() > 200
    assert opacity[0, 27] < 30


def test_drawing_needs_no_mouse(playground: Playground) -> None:
    page, keyboard = playground.page, playground.page.keyboard
    page.focus("#pad")
    keyboard.press("Space")
    for _ in range(6):
        keyboard.press("Shift+ArrowDown")
    playground.wait_for("accepted", "1")
    keyboard.press("Backspace")
    playground.wait_for("empty", "?")
    keyboard.press("Control+z")
    playground.wait_for("accepted", "1")


def test_the_pen_of_the_keyboard_is_announced(playground: Playground) -> None:
    page, keyboard = playground.page, playground.page.keyboard
    page.focus("#pad")

    def state() -> str | None:
        return page.text_content("#pen-state[role=status]")

    assert state() == ""
    for expected in ("Pen down", "Pen up", "Pen down"):
        keyboard.press("Space")
        assert state() == expected
    # The sheet and the stroke go, and so does what the pen was drawing.
    keyboard.press("Backspace")
    assert state() == "Pen up"
    keyboard.press("Space")
    assert state() == "Pen down"
    for _ in range(6):
        keyboard.press("Shift+ArrowDown")
    playground.wait_for("accepted", "1")
    page.mouse.click(*playground.at(10, 10))  # the keyboard's pen stays down
    assert state() == "Pen down"
    keyboard.press("ArrowDown")
    keyboard.press("Space")
    assert state() == "Pen up"
    keyboard.press("Space")
    page.focus("#undo")
    assert state() == "Pen up"


def test_a_button_that_goes_hands_the_focus_on(playground: Playground) -> None:
    page = playground.page
    playground.draw(TWO_DIGITS)
    page.wait_for_selector("#as-number:not([hidden])")
    page.focus("#as-number")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.value") == "read"
    playground.wait_for("accepted", "47")
    page.focus("#clear")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "pad"


def test_a_result_is_read_aloud_once(browser: Browser, two_workers: Server) -> None:
    playground = Playground(browser, two_workers.http)
    page = playground.page
    page.evaluate(
        """() => {
            window.said = [];
            const live = document.getElementById("live");
            const note = () => live.textContent && said.push(live.textContent);
            new MutationObserver(note).observe(live, {childList: true});
        }"""
    )
    page.clock.pause_at(time.time() + 60)
    first, second = DIGITS[4]
    for stroke in (first, second):
        playground.draw([stroke])
        page.clock.run_for(100)
        page.wait_for_selector("#bars .top")
    playground.wait_for("accepted", "4")
    assert page.evaluate("said") == []  # not while it still changes
    page.clock.run_for(1000)
    assert len(page.evaluate("said")) == 1
    assert re.fullmatch(r"4, (> )?[\d.]+ % sure\. Accepted\.", page.evaluate("said[0]"))
    # The same answer once more, with what counted.
    page.click("#heat")
    page.clock.run_for(100)
    page.wait_for_selector("#legend:not([hidden])")
    page.clock.run_for(1000)
    assert len(page.evaluate("said")) == 1
    playground.close()


def test_a_hint_that_is_a_question_is_read_aloud_as_one(playground: Playground) -> None:
    playground.page.evaluate(
        """async () => {
            const view = await import("/playground/view.js");
            const prediction = {digit: 1, probabilities: [0.03, 0.97], entropy_bits: 0.2,
                accepted: false, reason: "not_a_digit", hint: "Is it inverted?"};
            view.showPrediction({predictions: [prediction], times: {}});
        }"""
    )
    live = playground.page.locator("#live:not(:empty)")
    expected = "Not accepted. Not a digit. Closest: 1 (97.0 %). Is it inverted?"
    assert live.text_content() == expected


def test_a_contrast_theme_shows_strokes_bars_and_choices(
    browser: Browser, two_workers: Server
) -> None:
    playground = Playground(browser, two_workers.http, forced_colors="active", color_scheme="dark")
    page = playground.page
    playground.draw(DIGITS[2])
    playground.wait_for("accepted", "2")

    def colour(selector: str, name: str = "backgroundColor") -> str:
        text: str = page.evaluate(
            "([selector, name]) => getComputedStyle(document.querySelector(selector))[name]",
            [selector, name],
        )
        return text

    assert colour(".top .fill") != colour(".top .track")
    assert colour("[aria-selected=true]") != colour("[aria-selected=false]")
    assert colour(".switch :checked + span") != colour(".switch input:not(:checked) + span")
    # A pixel of the stroke against the sheet.
    stroke = page.evaluate(
        """() => {
            const canvas = document.getElementById("pad");
            const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            const at = data.findIndex((value, i) => i % 4 === 3 && value === 255);
            return `rgb(${data.slice(at - 3, at).join(", ")})`;
        }"""
    )
    assert stroke != colour("#pad")
    playground.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_of_another_shape_than_their_frames_are_on_neither_ink_nor_paper(
    browser: Browser, two_workers: Server, scheme: str
) -> None:
    playground = Playground(browser, two_workers.http, color_scheme=scheme)
    playground.draw(DIGITS[2])
    playground.wait_for("accepted", "2")
    colour = playground.page.evaluate(
        "getComputedStyle(document.querySelector('#steps .frame')).backgroundColor"
    )
    values = [int(value) for value in re.findall(r"\d+", colour)]
    assert min(values) > 40
    assert max(values) < 220
    playground.close()


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Browser, two_workers: Server, scheme: str, width: int) -> None:
    playground = Playground(
        browser,
        two_workers.http,
        color_scheme=scheme,
        reduced_motion="reduce",
        viewport={"width": width, "height": 740},
    )
    playground.draw(DIGITS[2])
    playground.wait_for("accepted", "2")
    playground.page.click("#heat")
    playground.page.wait_for_selector("#legend:not([hidden])")
    assert violations(playground.page) == []
    playground.page.click("#examples button:last-child")
    playground.wait_for("accepted", "1492")
    assert violations(playground.page) == []
    playground.page.click("#examples button:nth-child(11)")
    playground.wait_for("refused", "4")
    assert violations(playground.page) == []
    playground.close()


def test_a_phone_of_360_pixels_draws_with_a_finger(browser: Browser, two_workers: Server) -> None:
    playground = Playground(
        browser, two_workers.http, viewport={"width": 360, "height": 740}, has_touch=True
    )
    page = playground.page
    page.locator("#pad").scroll_into_view_if_needed()
    playground.touch(DIGITS[7])
    playground.wait_for("accepted", "7")
    for tab in ("python", "javascript", "curl"):
        page.click(f"#tab-{tab}")
        assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.click("#examples button:last-child")
    playground.wait_for("accepted", "1492")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    playground.close()


@pytest.mark.parametrize("size", [(360, 740), (740, 360), (844, 390)])
def test_the_sheet_and_the_bars_fit_the_screen_of_a_phone(
    browser: Browser, two_workers: Server, size: tuple[int, int]
) -> None:
    width, height = size
    playground = Playground(browser, two_workers.http, viewport={"width": width, "height": height})
    page = playground.page
    first, *rest = DIGITS[8]
    mouse = page.mouse
    mouse.move(*playground.at(*first[0]))
    mouse.down()
    for point in first[1:]:
        mouse.move(*playground.at(*point))
    page.wait_for_selector("#bars .top")
    # Whatever the half of an eight is taken for: the longest sentence needs the most room.
    page.evaluate("text => document.getElementById('hint').textContent = text", max(HINTS, key=len))
    for selector in ("#pad", "#bars"):
        box = page.locator(selector).bounding_box()
        assert box is not None
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= height, selector
    mouse.up()
    playground.draw(rest)
    playground.wait_for("accepted", "8")
    assert page.evaluate("scrollY") == 0
    assert page.evaluate("document.documentElement.scrollWidth") == width
    playground.close()


def test_a_stylus_draws_and_its_pressure_changes_the_width(playground: Playground) -> None:
    session = playground.context.new_cdp_session(playground.page)
    (stroke,) = DIGITS[7]
    ink = []
    for force in (0.2, 0.9):
        for i, point in enumerate([*stroke, stroke[-1]]):
            x, y = playground.at(*point)
            kind = "mouseReleased" if i == len(stroke) else "mouseMoved" if i else "mousePressed"
            event = {"x": x, "y": y, "button": "left", "buttons": 1, "clickCount": 1}
            pen = {"type": kind, "pointerType": "pen", "force": force}
            session.send("Input.dispatchMouseEvent", event | pen)
        playground.wait_for("accepted", "7")
        with Image.open(io.BytesIO(playground.posts[-1].post_data_buffer)) as sent:
            ink.append((np.asarray(sent.convert("L")) < 128).sum())
        playground.clear()
    assert ink[1] > 1.5 * ink[0]


def test_it_works_behind_envoy(browser: Browser, two_workers: Server, tmp_path: Path) -> None:
    with running_envoy(two_workers, tmp_path, "http") as address:
        wait_for_address(address)
        playground = Playground(browser, address)
        playground.draw(DIGITS[9])
        playground.wait_for("accepted", "9")
        assert f"http://{address}/predict" in playground.text("#source")
        playground.close()


def test_the_picture_in_the_readme_is_made_by_a_script(
    browser: Browser, two_workers: Server, tmp_path: Path
) -> None:
    screenshot.take(browser, two_workers.http, tmp_path / "playground.png")
    with Image.open(tmp_path / "playground.png") as new, Image.open(screenshot.FILE) as kept:
        assert new.size == kept.size
    assert screenshot.FILE.stat().st_size < 100_000


def test_it_can_be_switched_off(start_server: Callable[..., Server]) -> None:
    server = start_server(playground=False)
    status, body = server.request("GET", "/", headers=BROWSER)
    assert status == 200
    assert json.loads(body)["endpoints"]
    for path in ("/playground/main.js", "/docs", "/docs/main.js"):
        assert server.get(path)[0] == 404
    assert server.get("/openapi.json")[0] == 200


def test_the_card_is_model_json(two_workers: Server) -> None:
    def card(path: str) -> tuple[int, Any]:
        status, body = two_workers.get(path)
        return status, json.loads(body)

    newest = card("/v2/models/mnist/card")
    assert newest == card("/v2/models/mnist/versions/2/card")
    assert newest[1]["evaluation"]["confusion"]
    assert newest != card("/v2/models/mnist/versions/1/card")
    assert card("/v2/models/missing/card")[0] == 404
