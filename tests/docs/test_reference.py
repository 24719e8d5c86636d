"""The pages of docs/reference/ are what the code says now."""

from __future__ import annotations

import pytest

from docs.site.hooks import DOCS
from docs.site.reference import PAGES, current


@pytest.mark.parametrize("name", PAGES)
def test_page_is_what_the_code_says_now(name: str) -> None:
    text = (DOCS / name).read_text()
    assert text == current(name, text), "Run: python -m docs.site.reference"
