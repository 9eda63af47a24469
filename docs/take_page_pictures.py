"""Take the pictures of docs/page.md: ``python -m docs.take_page_pictures CHECKPOINT``.

Writes the page for one prompt with what ``herd inspect`` uses, opens two of its views in headless
Chromium, and keeps the pictures alone.
"""

import sys
import tempfile
from pathlib import Path

from cluster.serving.inspecting import write_page
from docs.take_screenshot import photograph
from gpt_core.settings import InspectSettings

FOLDER = Path(__file__).with_name("images")
_PROMPT = "ROMEO:\nBut soft, what light through yonder window b"
_WINDOWS = {"attention": "1240,1340", "next": "1240,880"}


def take(checkpoint: Path, folder: Path) -> None:
    """Write page-attention.png and page-next.png into a folder."""
    with tempfile.TemporaryDirectory(prefix="herd-picture-", ignore_cleanup_errors=True) as place:
        html = Path(place) / "page.html"
        write_page(InspectSettings(checkpoint=str(checkpoint), prompt=_PROMPT, html=str(html)))
        for view, window in _WINDOWS.items():
            photograph(f"{html.as_uri()}#{view}", folder / f"page-{view}.png", Path(place) / "profile", window)


if __name__ == "__main__":
    take(Path(sys.argv[1]), FOLDER)
