"""The pages of docs/ are current."""

import re
from pathlib import Path

import pytest

from docs.write_settings import PAGE, page

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def test_the_settings_page_is_what_the_settings_models_say():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m docs.write_settings"


@pytest.mark.parametrize("name", ["quickstart", "tracking", "security", "scale", "settings"])
def test_a_page_links_to_files_that_are_there(name):
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    places = [place for place in LINK.findall(text) if "://" not in place]
    assert [place for place in places if not (ROOT / "docs" / place).exists()] == []
