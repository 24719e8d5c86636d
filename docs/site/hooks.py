"""Makes links to files outside of docs/ work on the site: each such file becomes a page of it.

On a code host, `[the test](../tests/e2e/test_docs.py)` leads to the file. The site has the same
file as a page below source/, highlighted, or as it is if it is a picture or JSON. MkDocs calls the
functions that begin with `on_`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
_ICON = ROOT / "service" / "http" / "playground" / "static" / "icon.svg"
_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
_FENCE = re.compile(r"^(```.*?^```)", re.MULTILINE | re.DOTALL)
_SEARCH = 'data-md-component="search" role="dialog"'
_AS_THEY_ARE = {".png", ".json", ".jsonl", ".svg"}
_LANGUAGES = {".py": "python", ".yml": "yaml", ".yaml": "yaml", ".proto": "protobuf", ".sh": "sh"}
_LANGUAGES |= {".json": "json", ".toml": "toml", ".mjs": "javascript", ".ts": "typescript"}
_LANGUAGES |= {".go": "go", ".js": "javascript"}

_origins: dict[str, Path] = {}  # source path of each page made here -> the file that it shows


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every file that a page links to, directly or through another such page."""
    _origins.clear()
    files.append(File.generated(config, "site/icon.svg", abs_src_path=str(_ICON)))
    pages = [DOCS / file.src_uri for file in files.documentation_pages()]
    for page in pages:  # grows while it is read
        for link in _links(page.read_text()):
            target = (page.parent / link).resolve()
            uri = _uri(target)
            if target.is_relative_to(DOCS) or uri in _origins or not target.exists():
                continue
            _origins[uri] = target
            if target.suffix in _AS_THEY_ARE:
                file = File.generated(config, uri, abs_src_path=str(target))
            else:
                file = File.generated(config, uri, content=_content(target))
                file.inclusion = InclusionLevel.NOT_IN_NAV
                if target.suffix == ".md":
                    pages.append(target)
            files.append(file)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links that leave docs/ to the pages made of their targets."""
    origin = _origins.get(page.file.src_uri)
    if origin is not None:
        page.meta["search"] = {"exclude": True}
        page.meta["hide"] = ["navigation"]
    if page.file.src_uri == "settings.md":
        # A search for a setting should find its row first, not each page that mentions it.
        page.meta["search"] = {"boost": 10}
    if page.is_homepage:
        page.meta["hide"] = ["navigation", "toc"]
    folder = (origin or DOCS / page.file.src_uri).parent

    def moved(link: str) -> str:
        target = (folder / link).resolve()
        if target.is_relative_to(DOCS):
            uri = target.relative_to(DOCS).as_posix()
        elif target.exists():
            uri = _uri(target)
        else:
            return link  # MkDocs warns of it
        return os.path.relpath(uri, Path(page.file.src_uri).parent)

    return _outside_code(
        markdown,
        lambda text: _LINK.sub(lambda m: m[1] + moved(m[2]) + m[3], text) if "](" in text else text,
    )


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Name the search, which the theme leaves without a name for screen readers."""
    return output.replace(_SEARCH, f'{_SEARCH} aria-label="Search"')


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Change everything but the fenced blocks."""
    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else change(part) for part in parts)


def _links(markdown: str) -> list[str]:
    """The relative links of a page, without their anchors."""
    found = [match[2] for match in _LINK.finditer(_outside_code(markdown, str))]
    return [link for link in found if "://" not in link and not link.startswith("mailto:")]


def _uri(target: Path) -> str:
    """Where the page of a file or folder is in the source of the site."""
    # MkDocs leaves out files and folders whose name begins with a dot.
    path = f"source/{os.path.relpath(target, ROOT)}".replace("/.", "/")
    return path if target.suffix in _AS_THEY_ARE | {".md"} else f"{path}.md"


def _content(target: Path) -> str:
    """The Markdown of the page of a file or folder."""
    name = target.relative_to(ROOT).as_posix()
    if target.is_dir():
        files = sorted(path.name for path in target.iterdir() if not path.name.startswith("__"))
        return f"# `{name}/`\n\n" + "".join(f"- `{file}`\n" for file in files)
    if target.suffix == ".md":
        return target.read_text()
    language = _LANGUAGES.get(target.suffix, "text")
    return f"# `{name}`\n\n``````{language}\n{target.read_text().rstrip()}\n``````\n"
