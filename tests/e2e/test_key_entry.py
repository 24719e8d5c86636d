"""The pages for browsers on a server that asks for keys: they ask for one, and store it nowhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from service.access.keys import Key, KeysFile, Scope, digest_of, new_key
from tests.conftest import ROOT, Server
from tests.e2e.browser import Playground, running_browser, violations
from tests.e2e.strokes import DIGITS

KEYS: dict[tuple[Scope, ...], str] = {("predict", "read"): new_key(), ("predict",): new_key()}
KEY = KEYS["predict", "read"]
MNIST_PREDICT = (sys.executable, "-m", "mnist_client.command.main")
RUN = {"curl": ["bash"], "python": [sys.executable], "javascript": ["node", "--input-type=module"]}
# What the browser itself reports of an answer.
EXPECTED = {
    f"Failed to load resource: the server responded with a status of {status}"
    for status in ("401 (Unauthorized)", "403 (Forbidden)")
}


@pytest.fixture(scope="module")
def keyed(start_server: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Server:
    file = tmp_path_factory.mktemp("keys") / "keys"
    keys = [
        Key("-".join(scopes), frozenset(scopes), None, digest_of(key))
        for scopes, key in KEYS.items()
    ]
    KeysFile(file).change(lambda none: [*none, *keys])
    return start_server(keys_file=file)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


@pytest.fixture
def playground(browser: Browser, keyed: Server) -> Iterator[Playground]:
    playground = Playground(browser, keyed.http)
    yield playground
    assert set(playground.complaints) <= EXPECTED
    playground.complaints.clear()
    playground.close()


def enter(playground: Playground, key: str) -> None:
    playground.page.fill("#key", key)
    playground.page.keyboard.press("Enter")


def is_listed(playground: Playground) -> None:
    """Wait until the page has the list of versions, which needs a key."""
    playground.page.wait_for_selector("#version option:nth-child(3)", state="attached")


def test_the_playground_asks_for_a_key_and_uses_it(playground: Playground) -> None:
    page = playground.page
    assert playground.text("#key-why") == "This server asks for a key."
    assert violations(page) == []
    enter(playground, "a wrong key")
    assert "no spaces" in playground.text("#key-why")
    enter(playground, "mnist_wrong")
    page.wait_for_function(
        "() => document.getElementById('key-why').textContent.includes('does not accept')"
    )
    playground.draw(DIGITS[7])
    playground.wait_for("error", "!")
    assert playground.text("#sure") == "The server asks for a key: enter it at the top."
    enter(playground, KEY)
    playground.wait_for("accepted", "7")
    is_listed(playground)
    assert page.locator("#key-form").is_hidden()
    assert playground.text("#key-open") == "Key in use"
    assert violations(page) == []
    page.click("#key-open")
    assert violations(page) == []
    page.click("#key-forget")
    playground.wait_for("error", "!")
    assert playground.text("#key-why") == "This server asks for a key."


def test_the_key_is_kept_in_memory_only(playground: Playground) -> None:
    page = playground.page
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    enter(playground, KEY)
    is_listed(playground)
    playground.draw(DIGITS[4])
    playground.wait_for("accepted", "4")
    assert playground.posts[-1].headers["authorization"] == f"Bearer {KEY}"
    page.click("#key-open")
    kept = page.evaluate(
        """async () => JSON.stringify([
            {...localStorage}, {...sessionStorage}, document.cookie, location.href, history.state,
            document.documentElement.outerHTML, document.getElementById("key").value,
            await indexedDB.databases(), await caches.keys().catch(() => []),
        ])"""
    )
    assert KEY not in kept
    assert KEY not in "\n".join(requested)
    playground.open()
    assert playground.text("#key-why") == "This server asks for a key."


@pytest.mark.parametrize("language", RUN)
def test_a_copied_snippet_takes_the_key_from_the_environment(
    playground: Playground, language: str
) -> None:
    page = playground.page
    enter(playground, KEY)
    is_listed(playground)
    playground.draw(DIGITS[2])
    playground.wait_for("accepted", "2")
    page.click(f"#tab-{language}")
    page.click("#copy")
    page.wait_for_selector("#copied:not(:empty)")
    source = page.evaluate("navigator.clipboard.readText()")
    assert KEY not in source
    assert KEY not in playground.text("#source")
    run = subprocess.run(
        RUN[language],
        input=source,
        env=os.environ | {"MNIST_KEY": KEY},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(run.stdout)["predictions"][0]["digit"] == 2


def test_undo_in_the_field_of_the_key_leaves_the_drawing(playground: Playground) -> None:
    playground.draw(DIGITS[7])
    playground.wait_for("error", "!")
    playground.page.fill("#key", "mnist_wrong")
    playground.page.keyboard.press("Control+z")
    assert playground.page.locator("#clear").is_enabled()


def test_a_key_that_may_only_predict_draws(playground: Playground) -> None:
    enter(playground, KEYS[("predict",)])
    playground.page.wait_for_function(
        "() => document.getElementById('card-body').textContent.includes('scope read')"
    )
    playground.draw(DIGITS[0])
    playground.wait_for("accepted", "0")


def test_a_phone_has_room_for_it(browser: Browser, keyed: Server) -> None:
    size = {"width": 360, "height": 740}
    playground = Playground(browser, keyed.http, viewport=size, color_scheme="dark")
    assert playground.page.evaluate("document.documentElement.scrollWidth") == 360
    assert violations(playground.page) == []
    playground.complaints.clear()
    playground.close()


def test_docs_sends_the_key_and_shows_a_placeholder(browser: Browser, keyed: Server) -> None:
    page = browser.new_context().new_page()
    page.set_default_timeout(60_000)
    page.goto(f"http://{keyed.http}/docs#predict")
    page.wait_for_selector("html[data-ready]")
    form = page.locator("#predict form")
    form.locator("select").select_option("multipart/form-data")
    form.locator("input[type=file]").set_input_files(ROOT / "docs" / "seven.png")
    form.locator("button.main").click()
    form.locator("output .status").wait_for()
    assert form.locator("output .status").inner_text().startswith("401")
    assert page.locator("#key-why").inner_text() == "This server asks for a key."
    assert page.locator("#key-open").is_visible()
    assert violations(page) == []
    page.fill("#key", KEY)
    page.keyboard.press("Enter")
    form.locator("button.main").click()
    page.wait_for_function(
        "() => document.querySelector('#predict output').textContent.includes('\"digit\": 7')"
    )
    command = form.locator("pre").first.inner_text()
    assert KEY not in page.content()
    answer = subprocess.check_output(
        ["bash", "-c", f"{command} -s"],
        cwd=ROOT / "docs",
        env=os.environ | {"MNIST_KEY": KEY},
    )
    assert json.loads(answer)["predictions"][0]["digit"] == 7
    page.context.close()


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_mnist_predict_takes_the_key_from_the_environment_or_a_file(
    keyed: Server, tmp_path: Path, transport: str
) -> None:
    def predict(key: str, *options: str) -> subprocess.CompletedProcess[str]:
        address = f"{transport}://{keyed.http if transport == 'http' else keyed.grpc}"
        picture = ROOT / "docs" / "seven.png"
        return subprocess.run(
            [*MNIST_PREDICT, "--address", address, "--json", picture, *options],
            env=os.environ | {"MNIST_KEY": key},
            capture_output=True,
            text=True,
            check=False,
        )

    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    for done in (predict(KEY), predict("another", "--key-file", str(file))):
        assert json.loads(done.stdout)["digit"] == 7, done.stderr
    for key in ("", f"{KEY}x"):
        refused = predict(key)
        assert refused.returncode == 1
        assert "Use --key-file, or set MNIST_KEY." in refused.stderr
        assert KEY not in refused.stderr
