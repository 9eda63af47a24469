"""The pages of docs/ are current."""

import re
from pathlib import Path

import pytest

from docs.write_settings import PAGE, page

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)]*))?\)")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_settings_page_is_what_the_settings_models_say():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m docs.write_settings"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_links_to_files_and_headings_that_are_there(page):
    missing = []
    for place, heading in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in place:
            continue
        target = page.parent / place if place else page
        if not target.exists() or (heading and heading not in headings_of(target)):
            missing.append(f"{place}#{heading}")
    assert missing == []


def headings_of(page):
    """Return the anchors that GitHub gives a page's headings."""
    lines = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}
