"""The page in a real browser, over the service's HTTP side and a bare engine in this process; no Ray.

One browser and one service serve all tests. A request to any other host, an error on the page's
console, or a part of the page wider than the screen fails the test it happens in.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cluster.serving.http_api import Admission
from cluster.serving.http_guard import Access, access_for
from gpt_core.errors import UserError
from gpt_core.inspection.inspection import MAX_TOKENS
from gpt_core.tokens.tokenizer import load_tokenizer
from gpt_core.tokens.train_tokenizer import write_ranks
from gpt_core.training import checkpoint
from tests.bare_service import BareModel, serving
from tests.reference import gpt2_numpy, gpt2_steps
from tests.tiny_checkpoint import write_tiny_checkpoint

playwright = pytest.importorskip("playwright.sync_api", reason="the browser's driver: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
CAPACITY = 4
MINUS = "\u2212"
SCREENS = {"laptop": (1280, 900), "phone": (390, 844)}
TABS = ["Next token", "Generate", "Attention", "Inside a step", "Anatomy"]


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Iterator[SimpleNamespace]:
    torch.set_num_threads(1)
    run = write_tiny_checkpoint(tmp_path_factory.mktemp("run"), num_positions=512)
    model, admission = BareModel(run), Admission(CAPACITY)
    with serving(model, Access(None, None), admission) as address:
        yield SimpleNamespace(address=address, model=model, admission=admission, run=run)
    model.close()


@contextlib.contextmanager
def service_of(run: Path) -> Iterator[str]:
    """Serve another model's page; yields the address."""
    model = BareModel(run)
    with serving(model, Access(None, None), Admission(CAPACITY)) as address:
        yield address
    model.close()


@pytest.fixture(scope="module")
def weights(service):
    return checkpoint.load(service.run).weights


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield launched
        launched.close()


class Watched:
    """A page that keeps what its console said and where it went."""

    def __init__(self, browser, size, **options):
        self.context = browser.new_context(viewport=dict(zip(("width", "height"), size, strict=True)), **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(8000)
        self.errors, self.requests = [], []
        self.page.on("console", lambda said: said.type == "error" and self.errors.append(said.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def check(self, address):
        assert self.errors == []
        assert [url for url in self.requests if not url.startswith(f"{address}/")] == []
        assert not self.is_too_wide()

    def is_too_wide(self):
        wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        return self.page.evaluate(wide)

    def open(self, address, text=None, view="next"):
        self.page.goto(f"{address}/#{view}")
        self.shown(view)
        if text is not None:
            self.page.fill("#prompt", text)
            self.shown(view, key=list(text.encode()))

    def shown(self, view, **wanted):
        """Wait until the page shows an answer; ``key`` is the token ids."""
        if "key" in wanted:
            wanted["key"] = json.dumps(wanted["key"], separators=(",", ":"))
        self.page.wait_for_function(
            """([view, wanted]) => {
                const now = JSON.parse(document.body.dataset.shown ?? "{}");
                return now.view === view && Object.entries(wanted).every(([name, value]) => now[name] === value);
            }""",
            arg=[view, wanted],
        )

    def text(self, selector):
        return self.page.inner_text(selector)


@pytest.fixture(params=["laptop"])
def watched(request, browser, service):
    made = Watched(browser, SCREENS[request.param])
    yield made
    made.check(service.address)
    made.context.close()


def candidates(page):
    rows = page.locator(".candidates li:not([hidden])")
    return [tuple(part.strip() for part in row.split("\n") if part.strip()) for row in rows.all_inner_texts()]


def as_percent(share):
    return f"{100 * share:.{2 if share < 0.01 else 1}f}%" if share >= 0.0001 else ("<0.01%" if share else "0%")


def as_number(value):
    digits = 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 4
    return f"{value:.{digits}f}".replace("-", MINUS)


def test_typing_shows_the_model_s_next_tokens(watched, service, weights):
    watched.open(service.address, "The sky is")
    probabilities = gpt2_numpy.softmax(gpt2_numpy.logits(list(b"The sky is"), weights, 2, 2)[-1])
    expected = sorted(probabilities, reverse=True)[:10]
    assert [row[-1] for row in candidates(watched.page)] == [as_percent(share) for share in expected]
    assert watched.text("#count") == f"10 of {MAX_TOKENS} tokens"
    assert watched.page.locator("#strip .chip").count() == 10


def test_a_click_and_enter_append_the_token_chosen(watched, service, weights):
    watched.open(service.address, "The sky is")
    ids = list(b"The sky is")
    for use in ("click", "enter"):
        best = int(gpt2_numpy.logits(ids, weights, 2, 2)[-1].argmax())
        row = watched.page.locator(".candidate").first
        if use == "click":
            row.click()
        else:
            row.focus()
            watched.page.keyboard.press("Enter")
        ids.append(best)
        watched.shown("next", key=ids)
    assert watched.page.input_value("#prompt").startswith("The sky is")


def test_sliders_show_what_drawing_makes_of_the_distribution(watched, service, weights):
    watched.open(service.address, "The sky is")
    logits = gpt2_numpy.logits(list(b"The sky is"), weights, 2, 2)[-1]
    watched.page.fill("#next-temperature", "0.5")
    colder = sorted(gpt2_numpy.softmax(logits / 0.5), reverse=True)
    assert [row[-1] for row in candidates(watched.page)] == [as_percent(share) for share in colder[:10]]
    watched.page.fill("#next-top-k", "3")
    kept = [share / sum(colder[:3]) for share in colder[:3]] + [0.0] * 7
    assert [row[-1] for row in candidates(watched.page)] == [as_percent(share) for share in kept]
    watched.page.fill("#next-top-p", "0.5")
    # Of the three, the fewest that hold half of what the three hold together.
    few = 1 + (colder[0] < 0.5 * sum(colder[:3])) + (colder[0] + colder[1] < 0.5 * sum(colder[:3]))
    kept = [share / sum(colder[:few]) if index < few else 0.0 for index, share in enumerate(colder[:10])]
    assert [row[-1] for row in candidates(watched.page)] == [as_percent(share) for share in kept]
    watched.page.fill("#next-top-k", "201")
    watched.page.fill("#next-temperature", "1")
    watched.page.fill("#next-top-p", "0.6")
    plain, held, count = sorted(gpt2_numpy.softmax(logits), reverse=True), 0.0, 0
    while held < 0.6:
        held, count = held + plain[count], count + 1
    assert watched.text(".summary").startswith(f"{count} of 257 tokens can be drawn, with {as_percent(held)}")
    watched.page.fill("#next-temperature", "0")
    assert candidates(watched.page)[0][-1] == "100.0%"


def test_top_p_shows_its_effect_where_more_tokens_remain_than_are_sent(watched, service, weights):
    watched.open(service.address, "q")
    logits = gpt2_numpy.logits(list(b"q"), weights, 2, 2)[-1]
    flat = np.array(sorted(gpt2_numpy.softmax(logits / 2), reverse=True))
    count = int((flat.cumsum() < 0.95).sum()) + 1
    assert 200 < count < 257
    watched.page.fill("#next-temperature", "2")
    plain = [float(row[-1].rstrip("%")) for row in candidates(watched.page)]
    assert plain == pytest.approx(100 * flat[:10], abs=0.051)
    watched.page.fill("#next-top-p", "0.95")
    kept = [float(row[-1].rstrip("%")) for row in candidates(watched.page)]
    assert kept == pytest.approx(100 * flat[:10] / flat[:count].sum(), rel=0.01, abs=0.051)
    assert sum(kept) / sum(plain) == pytest.approx(1 / 0.95, abs=0.02)
    assert watched.text(".summary") == "More than 200 of 257 tokens can be drawn."


def test_a_click_right_behind_typing_leaves_what_was_typed(watched, service):
    watched.open(service.address, "The sky is")
    watched.page.locator("#prompt").press_sequentially(" blue", delay=0)
    watched.page.locator(".candidate").first.click()
    watched.shown("next", key=list(b"The sky is blue"))
    assert watched.page.input_value("#prompt") == "The sky is blue"


def test_layers_and_heads_are_switched_by_slider_and_by_their_small_maps(watched, service, weights):
    watched.open(service.address, "abcdef", "attention")
    layers = gpt2_steps.forward(list(b"abcdef"), weights, 2, 2)["layers"]
    watched.page.fill("#attention-layer", "2")
    watched.shown("attention", layer=1, head=0)
    watched.page.locator(".small-map").nth(1).click()
    watched.shown("attention", layer=0, head=1)
    watched.page.keyboard.press("ArrowDown")
    watched.shown("attention", layer=1, head=1)
    strongest = max(range(6), key=lambda index: layers[1]["weights"][1, 5, index])
    assert f"looks at {'abcdef'[strongest]} {as_percent(layers[1]['weights'][1, 5, strongest])}" in " ".join(
        watched.text("#view-attention .reading").split()
    )
    watched.page.locator("#strip .chip").nth(2).hover()
    row = layers[1]["weights"][1, 2, :3]
    assert f"c looks at {'abc'[row.argmax()]} {as_percent(row.max())}" in " ".join(
        watched.text("#view-attention .reading").split()
    )


def test_halves_are_marked_where_a_separator_is(watched, service):
    watched.open(service.address, "long TL;DR: short", "attention")
    assert "TL;DR:" in watched.text("#view-attention .halves")
    halves = [chip.get_attribute("data-half") for chip in watched.page.locator("#strip .chip").all()]
    assert halves == ["source"] * 5 + ["separator"] * 6 + ["target"] * 6


def test_halves_are_marked_by_the_special_token_of_the_model(browser, tmp_path):
    vocabulary = tmp_path / "v.tiktoken"
    write_ranks(vocabulary, {bytes([byte]): byte for byte in range(256)}, ("<to-pt-br>",))
    with service_of(write_tiny_checkpoint(tmp_path / "run", vocabulary=str(vocabulary))) as address:
        watched = Watched(browser, SCREENS["laptop"])
        watched.page.goto(f"{address}/#attention")
        watched.page.get_by_role("button", name="Add a new page <to-pt-br>").click()
        watched.page.fill("#prompt", "cat <to-pt-br> gato")
        watched.shown("attention", key=[*b"cat ", 257, *b" gato"])
        assert "<to-pt-br>" in watched.text("#view-attention .halves")
        halves = [chip.get_attribute("data-half") for chip in watched.page.locator("#strip .chip").all()]
        assert halves == ["source"] * 4 + ["separator"] + ["target"] * 5
        watched.check(address)
        watched.context.close()


@pytest.mark.parametrize("screen", SCREENS)
def test_music_has_a_piano_roll_on_which_notes_are_chosen(browser, tmp_path, screen):
    music = "v16 on60 t50 off60 on72 t50 off72"
    with service_of(write_tiny_checkpoint(tmp_path / "run", vocabulary="music")) as address:
        watched = Watched(browser, SCREENS[screen])
        watched.page.goto(f"{address}/#attention")
        watched.page.fill("#prompt", music)
        watched.shown("attention", key=load_tokenizer("music").encode(music).tolist())
        assert watched.page.locator("#strip .chip").all_inner_texts() == music.split()
        roll = watched.page.locator(".roll")
        assert roll.get_attribute("aria-label").startswith("2 notes;")
        box = roll.bounding_box()
        # From 58 to 74 are 17 rows, high pitches above: 72 is in the third, in the second half of the time.
        roll.click(position={"x": box["width"] * 0.75, "y": box["height"] * 2.5 / 17})
        watched.shown("attention", position=4)
        roll.click(position={"x": box["width"] * 0.25, "y": box["height"] * 14.5 / 17})
        watched.shown("attention", position=1)
        watched.check(address)
        watched.context.close()


def test_a_tap_on_the_map_chooses_the_token_of_its_row(browser, service):
    watched = Watched(browser, SCREENS["phone"], has_touch=True, is_mobile=True)
    watched.open(service.address, "abcdef", "attention")
    canvas = watched.page.locator(".map")
    box = canvas.bounding_box()
    canvas.tap(position={"x": 120, "y": box["height"] * 2.5 / 6})
    watched.shown("attention", position=2)
    assert watched.text("#view-attention .reading").startswith("c looks at")
    watched.check(service.address)
    watched.context.close()


def test_a_step_shows_the_numbers_and_hides_what_lies_ahead(watched, service, weights):
    watched.open(service.address, "abcdef", "step")
    watched.page.locator("#strip .chip").nth(3).click()
    watched.shown("step", position=3)
    at = gpt2_steps.forward(list(b"abcdef"), weights, 2, 2)["layers"][0]
    rows = [row.split() for row in watched.page.locator(".scores tbody tr").all_inner_texts()]
    assert len(rows) == 6
    for index, row in enumerate(rows):
        assert row[1] == as_number(at["scores"][0, 3, index])
        assert row[2] == (MINUS + "∞" if index > 3 else row[1])
        assert row[3] == as_percent(at["weights"][0, 3, index])
    assert watched.page.locator(".lens tbody tr").count() == 3
    assert watched.page.locator(".logits tbody tr").count() == 10


def test_the_logit_lens_keeps_focus_and_scroll_and_names_the_runners_up(watched, service, weights):
    text = "abcdefghijklmnop"
    watched.open(service.address, text, "step")
    watched.page.evaluate("document.querySelector('.scroll').scrollTop = 60")
    watched.page.locator(".lens button").nth(1).focus()
    watched.page.keyboard.press("Enter")
    watched.shown("step", layer=1)
    assert watched.page.evaluate("document.activeElement.textContent") == "layer 2"
    assert watched.page.evaluate("document.querySelector('.scroll').scrollTop") == 60
    last = gpt2_steps.forward(list(text.encode()), weights, 2, 2)["lens"][-1][-1]
    shares = sorted(gpt2_numpy.softmax(last), reverse=True)
    then = watched.page.locator(".lens tbody tr").last.locator(".then").all_inner_texts()
    assert [words.split()[-1] for words in then] == [as_percent(share) for share in shares[1:3]]


def test_exact_numbers_are_reached_by_keyboard_and_by_touch(browser, service, weights):
    watched = Watched(browser, SCREENS["phone"], has_touch=True, is_mobile=True)
    watched.open(service.address, "abc", "step")
    expected = weights["wte.weight"][ord("c")].tolist()
    vector = watched.page.get_by_role("slider", name="Token", exact=True)
    said = watched.page.locator(".vector-box", has=vector).locator(".numbers")
    vector.focus()
    for key, index in (("End", 31), ("ArrowLeft", 30), ("Home", 0), ("ArrowRight", 1)):
        watched.page.keyboard.press(key)
        told, value = said.inner_text().split(" = ")
        assert (told, float(value)) == (f"[{index}]", pytest.approx(expected[index], rel=1e-6))
        assert vector.get_attribute("aria-valuetext") == said.inner_text()
    vector.tap(position={"x": vector.bounding_box()["width"] * 10.5 / 32, "y": 9})
    assert said.inner_text().startswith("[10] = ")
    watched.check(service.address)
    watched.context.close()


def test_a_text_is_written_token_by_token_and_can_be_stopped(watched, service):
    watched.open(service.address, "abc")
    watched.page.get_by_role("tab", name="Generate").click()
    write, stop = (watched.page.get_by_role("button", name=name, exact=True) for name in ("Write", "Stop"))
    watched.page.fill("#most", "20")
    texts = []
    for _ in range(2):
        write.click()
        watched.page.wait_for_function("() => document.querySelector('.rate').textContent.endsWith('allowed')")
        texts.append(watched.page.text_content(".written"))
    assert texts[0] == texts[1]
    assert texts[0].startswith("abc")
    assert watched.text(".rate").startswith("20 tokens")
    watched.page.locator(".drawn-token").first.focus()
    watched.page.keyboard.press("ArrowRight")
    told = watched.text(".told")
    assert told.endswith("% likely.")
    watched.page.locator(".drawn-token").nth(2).click()
    assert watched.page.evaluate("document.activeElement === document.querySelectorAll('.drawn-token')[2]")
    watched.page.fill("#most", "500")
    write.click()
    watched.page.wait_for_selector(".drawn-token")
    stop.click()
    watched.page.wait_for_function("() => document.querySelector('.rate').textContent.endsWith('stopped')")
    deadline = time.monotonic() + 5
    while service.admission.in_progress and time.monotonic() < deadline:
        time.sleep(0.02)
    assert service.admission.in_progress == 0


def test_the_anatomy_names_every_tensor(watched, service, weights):
    watched.open(service.address, view="anatomy")
    watched.page.get_by_role("button", name="layer 2").click()
    names = {row.split()[0] for row in watched.page.locator(".tensors tbody tr:not(.block):visible").all_inner_texts()}
    assert names == set(weights)
    total = sum(tensor.numel() for tensor in weights.values())
    assert f"{total:,}" in watched.text(".tiles")


def test_tabs_are_reached_and_turned_by_the_keyboard(watched, service):
    watched.open(service.address)
    watched.page.keyboard.press("Tab")
    watched.page.keyboard.press("Tab")
    for name in [*TABS[1:], TABS[-1]]:
        watched.page.keyboard.press("ArrowRight")
        focused = watched.page.evaluate("document.activeElement.textContent")
        assert focused == name
        assert watched.page.locator(f"[role=tab]:text-is('{name}')").get_attribute("aria-selected") == "true"
    assert watched.page.locator("[role=tabpanel]:visible").count() == 1


@pytest.mark.parametrize("watched", ["phone", "laptop"], indirect=True)
def test_no_view_is_wider_than_the_screen(watched, service):
    text = "A sentence that is rather long; an_unbroken_name_of_many_letters_in_a_row. TL;DR: short"
    watched.open(service.address, text)
    for name in TABS:
        watched.page.get_by_role("tab", name=name).click()
        if name != "Generate":
            watched.page.wait_for_function("() => !document.body.classList.contains('busy')")
        assert not watched.is_too_wide(), name


def luminance(colour):
    """Return the relative luminance of WCAG 2.2 of an rgb() or a hexadecimal colour."""
    if colour.startswith("#"):
        channels = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    else:
        channels = [float(number) for number in re.findall(r"[\d.]+", colour)[:3]]
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


READ_TEXTS = """() => {
    const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const owner = walker.currentNode.parentElement;
        const isRead = owner.checkVisibility() && !owner.closest(":disabled, noscript, script");
        if (!walker.currentNode.textContent.trim() || !isRead) continue;
        let box = owner;
        while (box && getComputedStyle(box).backgroundColor === "rgba(0, 0, 0, 0)") box = box.parentElement;
        const behind = getComputedStyle(box ?? document.body).backgroundColor;
        let opacity = 1;
        for (let at = owner; at; at = at.parentElement) opacity *= getComputedStyle(at).opacity;
        found.push([walker.currentNode.textContent.trim(), getComputedStyle(owner).color, behind, opacity]);
    }
    return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_every_text_stands_out_from_what_is_behind_it(browser, service, screen, scheme):
    watched = Watched(browser, SCREENS[screen], color_scheme=scheme, reduced_motion="reduce")
    page = watched.page
    watched.open(service.address, "long story TL;DR: short", "attention")
    page.locator("#strip .chip").nth(12).click()
    watched.shown("attention", position=12)
    for name in TABS:
        page.get_by_role("tab", name=name).click()
        if name != "Generate":
            page.wait_for_function("() => !document.body.classList.contains('busy')")
        else:
            page.fill("#most", "8")
            page.get_by_role("button", name="Write", exact=True).click()
            page.wait_for_function("() => document.querySelector('.rate').textContent.endsWith('allowed')")
        for text, ink, behind, opacity in page.evaluate(READ_TEXTS):
            if not behind.startswith("color("):  # a mixture, of the tints below
                assert opacity == 1, (name, text)
                assert contrast(ink, behind) >= 4.5, (name, text, ink, behind)
    fills = page.evaluate(
        "import('/page/colours.js').then((made) => [...Array(201).keys()].map((share) => made.fillFor(share / 200)))"
    )
    assert min(contrast(fill["colour"], fill["ink"]) for fill in fills) >= 4.5
    watched.check(service.address)
    watched.context.close()


def test_errors_of_the_service_are_sentences_and_pass(browser, service):
    watched = Watched(browser, SCREENS["laptop"])
    page = watched.page
    watched.open(service.address, "abc")
    page.fill("#prompt", "x" * (MAX_TOKENS + 1))
    page.wait_for_selector("#notice:visible")
    assert "found 129 tokens; expected 1 to 128" in watched.text("#notice")
    with service.admission.admit(CAPACITY):
        page.fill("#prompt", "abcd")
        page.wait_for_function("() => document.querySelector('#notice').textContent.startsWith('The service is busy.')")
        assert "tried again in 1 s" in watched.text("#notice")
    page.get_by_role("button", name="Try again").click()
    watched.shown("next", key=list(b"abcd"))
    assert not page.is_visible("#notice")
    page.route("**/v1/inspect", lambda route: route.abort())
    page.fill("#prompt", "abcde")
    page.wait_for_selector("#notice:visible")
    assert "does not answer" in watched.text("#notice")
    page.unroute("**/v1/inspect")
    with service.admission.admit(CAPACITY):
        page.get_by_role("tab", name="Generate").click()
        page.get_by_role("button", name="Write", exact=True).click()
        page.wait_for_function("() => document.querySelector('#notice').textContent.startsWith('The service is busy.')")
    page.get_by_role("button", name="Try again").click()
    page.wait_for_selector(".drawn-token")
    assert not page.is_visible("#notice")
    watched.context.close()


def test_a_service_with_a_key_asks_for_it_on_the_page(browser, service, monkeypatch):
    monkeypatch.setenv("HERD_API_KEY", "hush")
    with serving(service.model, access_for("127.0.0.1"), Admission(CAPACITY)) as address:
        watched = Watched(browser, SCREENS["laptop"])
        watched.page.goto(address)
        watched.page.wait_for_selector("#key-form:visible")
        watched.page.fill("#key", "hush")
        watched.page.keyboard.press("Enter")
        watched.shown("next")
        assert watched.page.is_hidden("#key-form")
        watched.page.reload()
        watched.shown("next")
        watched.context.close()


def test_a_written_file_shows_the_same_without_a_service(browser, service, tmp_path):
    file = tmp_path / "page.html"
    command = ["--checkpoint", str(service.run), "--prompt", "abcdef", "--html", str(file)]
    # With as many threads as the service, whose sums end in the same bits.
    alike = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "jobs", "inspect", *command], check=True, capture_output=True, text=True, env=alike
    )
    assert str(file) in done.stdout
    live, filed = Watched(browser, SCREENS["laptop"]), Watched(browser, SCREENS["laptop"])
    live.open(service.address, "abcdef")
    filed.page.goto(Path(file).as_uri())
    for name, part in (
        ("Next token", ".candidates"),
        ("Attention", ".reading"),
        ("Inside a step", ".way"),
        ("Anatomy", ".card"),
    ):
        for watched in (live, filed):
            watched.page.get_by_role("tab", name=name).click()
            if name in ("Attention", "Inside a step"):
                watched.page.fill(f"#{'attention' if name == 'Attention' else 'step'}-layer", "2")
            watched.page.wait_for_timeout(250)
            watched.page.wait_for_function("() => !document.body.classList.contains('busy')")
        selector = f"[role=tabpanel]:not([hidden]) {part}"
        assert filed.text(selector) == live.text(selector), name
    assert filed.errors == []
    assert filed.requests == [Path(file).as_uri()]
    live.check(service.address)
    for watched in (live, filed):
        watched.context.close()


def test_a_prompt_that_is_too_long_for_a_file_is_refused(service, tmp_path):
    from cluster.serving.inspecting import write_page
    from gpt_core.settings import InspectSettings

    settings = InspectSettings(checkpoint=str(service.run), prompt="x" * 200, html=str(tmp_path / "page.html"))
    with pytest.raises(UserError, match="200 tokens; expected 1 to 128"):
        write_page(settings)
    assert list(tmp_path.iterdir()) == []
