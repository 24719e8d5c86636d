"""The built site: every page is there, every link leads somewhere, no other host is asked."""

from __future__ import annotations

import http.server
import json
import re
import subprocess
import threading
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

import pytest

from docs.site.hooks import DOCS
from tests.e2e.browser import running_browser, violations
from tests.e2e.make_run import clone
from tests.e2e.screenshot import Silent

# Attributes that make a browser fetch something.
FETCHED = {("img", "src"), ("script", "src"), ("iframe", "src"), ("source", "src")}


class Html(HTMLParser):
    """What a page links to, what it loads, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.anchors.add(value or "")
            elif tag == "a" and name == "href":
                self.links.append(value or "")
            elif (tag, name) in FETCHED or (tag == "link" and name == "href"):
                self.loads.append(value or "")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone, since `make docs` writes into its tree."""
    folder = tmp_path_factory.mktemp("clone")
    clone(folder)
    return folder


def make_docs(tree: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "docs"], cwd=tree, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture(scope="module")
def site(tree: Path) -> Path:
    """The site, built in strict mode: a warning fails it."""
    built = make_docs(tree)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "INFO  " not in built.stdout + built.stderr
    # Other tests build into this folder again.
    return (tree / "build" / "site").rename(tree / "build" / "site-of-this-tree")


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Html]:
    return {path: Html(path.read_text()) for path in site.rglob("*.html")}


DEFECTS = {
    "a dead link": ("tutorial.md", "\n[Gone](no-such-page.md)\n", "link 'no-such-page.md'"),
    "a page without a nav entry": ("lost.md", "# Lost\n", "- lost.md"),
}


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.usefixtures("site")  # which has been built from this tree as it was
def test_make_docs_fails_because_of(defect: str, tree: Path) -> None:
    name, text, message = DEFECTS[defect]
    page = tree / "docs" / name
    before = page.read_text() if page.exists() else None
    page.write_text((before or "") + text)
    try:
        built = make_docs(tree)
    finally:
        if before is None:
            page.unlink()
        else:
            page.write_text(before)
    assert built.returncode != 0
    assert message in built.stdout
    assert "Aborted with 1 warning" in built.stdout


def test_every_document_is_a_page(site: Path) -> None:
    for document in DOCS.rglob("*.md"):
        name = document.relative_to(DOCS).with_suffix("")
        folder = name.parent if name.name == "README" else name
        assert (site / folder / "index.html").exists(), document


def test_every_link_leads_to_a_file_and_an_anchor_of_the_site(pages: dict[Path, Html]) -> None:
    assert len(pages) > 60
    broken = []
    for path, html in pages.items():
        if path.name == "404.html":  # its links are from the root of a host
            continue
        for link in html.links + html.loads:
            url = urlsplit(link)
            if url.scheme or link.startswith("data:"):
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            if target.is_dir():
                target /= "index.html"
            page = pages.get(target)
            is_known = not url.fragment or page is None or unquote(url.fragment) in page.anchors
            if not target.exists() or not is_known:
                broken.append(f"{path.parent.name}: {link}")
    assert broken == []


def test_nothing_is_loaded_from_another_host(pages: dict[Path, Html], site: Path) -> None:
    for path, html in pages.items():
        foreign = [url for url in html.loads if urlsplit(url).netloc]
        assert foreign == [], path
    for style in site.rglob("*.css"):
        assert re.findall(r"url\([\"']?(?:https?:)?//[^)]*", style.read_text()) == [], style


def test_lists_and_tables_are_what_a_code_host_makes_of_them(pages: dict[Path, Html]) -> None:
    """Python-Markdown, unlike a code host, wants an empty line before a list or a table."""
    flat = []
    for path in pages:
        if "source" in path.parts:
            continue
        text = re.sub(r"<pre>.*?</pre>", "", path.read_text(), flags=re.DOTALL)
        for paragraph in re.findall(r"<p>(.*?)</p>", text, re.DOTALL):
            if re.search(r"^(- |\* |\d+\. |\|.*\|$)", paragraph, re.MULTILINE):
                flat.append(f"{path}: {paragraph[-200:]}")
    assert flat == []


def test_the_settings_are_the_first_that_a_search_finds(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text())
    boosted = {entry["location"].split("#")[0] for entry in index["docs"] if "boost" in entry}
    assert boosted == {"settings/"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_that_the_theme_lets_us_mend(
    site: Path, scheme: Literal["light", "dark"]
) -> None:
    handler = partial(Silent, directory=str(site))
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
        running_browser() as browser,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page(color_scheme=scheme)
        found = []
        for name in ("", "tutorial/", "howto/clients/"):
            page.goto(f"http://127.0.0.1:{server.server_port}/{name}")
            # The script of the theme gives all buttons that copy code one unnamed <nav> each.
            found += [each for each in violations(page) if not each.startswith("landmark-unique")]
        server.shutdown()
    assert found == []


def test_files_outside_of_docs_are_pages_with_their_text(site: Path) -> None:
    page = (site / "source" / "tests" / "e2e" / "test_lifecycle.py" / "index.html").read_text()
    assert "test_a_new_version_is_served_without_losing_a_request" in page
    assert (site / "source" / "benchmarks" / "results").is_dir()
    index = (site / "search" / "search_index.json").read_text()
    assert '"location": "tutorial/' in index.replace('":"', '": "')
    assert "source/tests" not in index
