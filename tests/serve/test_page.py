"""The page in headless Chromium: search, play at the moment, filter, similar, picture, phone, keyboard."""

import io
import shutil

import pytest
from PIL import Image
from serve.conftest import HOSTILE
from serve.live_server import serving

from pipeline.serve.settings import ServeSettings

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def server(double, settings):
    with serving(double, settings) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def open_page(browser, server):
    """Opens a page of the server; at the end nothing may have gone wrong in any."""
    pages, problems, addresses = [], [], []

    def opened(url="/", **options):
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | options))
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.on(
            "request",
            lambda request: problems.append(request.url) if not request.url.startswith((server, "blob:")) else None,
        )
        page.goto(server + url)
        pages.append(context)
        return page

    yield opened
    for context in pages:
        context.close()
    assert [text for text in problems if not text.startswith("Failed to load resource")] == []  # broken and gone files
    assert [url for url in addresses if not url.startswith((server, "blob:"))] == []


def until(page, expression):
    """Waits for an expression to hold; as a function, for the page's policy forbids evaluating strings."""
    page.wait_for_function(f"() => {expression}")


def search(page, text):
    page.fill("#q", text)
    page.press("#q", "Enter")
    page.wait_for_selector(".hit")


def names(page):
    until(page, "!document.querySelector('#results').classList.contains('busy')")
    return page.locator(".hit-name").evaluate_all("all => all.map(name => name.title)")


def playing(page, selector, least):
    """Waits until a video has played beyond a second; its time and source."""
    page.wait_for_function(
        "([s, t]) => { const v = document.querySelector(s); return v && v.readyState >= 2 && v.currentTime >= t; }",
        arg=[selector, least],
    )
    return page.locator(selector).evaluate("v => [v.currentTime, v.currentSrc, v.duration]")


def test_search_and_play_at_the_moment(open_page):
    page = open_page()
    until(page, "document.querySelector('#stats').textContent.startsWith('9 clips')")
    search(page, "a red ring moves")
    assert names(page)[0] == "plays.mp4"
    until(page, "document.querySelector('.shot img').naturalWidth > 0")
    page.locator(".shot").first.click()
    seconds, source, duration = playing(page, ".stage video", 2.0)
    assert 2.0 <= seconds < duration
    assert source.endswith("/media/plays.mp4#t=2.000")
    assert page.locator("#player-captions li").inner_text() == "a red ring moves"
    assert page.locator("#player-metadata").inner_text().split() == ["camera", "left"]
    page.keyboard.press("Escape")
    page.wait_for_selector("#player", state="hidden")
    assert page.evaluate("document.activeElement.className") == "shot"


def test_hovering_plays_the_clip(open_page):
    page = open_page("/?q=a+red+ring+stops")
    page.wait_for_selector(".hit")
    page.locator(".shot").first.hover()
    seconds, source, _ = playing(page, ".shot video", 1.5)
    assert 1.5 <= seconds <= 3.1  # within the clip
    assert source.endswith("/media/plays.mp4%23t%3D1%2C3#t=1.500")
    page.mouse.move(5, 5)
    page.wait_for_selector(".shot video", state="detached")


def test_what_the_browser_cannot_play_is_converted(open_page):
    page = open_page("/?q=a+grey+cat+sleeps")
    page.locator(".shot").first.click()
    seconds, source, duration = playing(page, ".stage video", 0.5)  # the film begins at 0.5 s of the file
    assert source.endswith("#t=0.500")
    assert 0.5 <= seconds <= duration == pytest.approx(1.0, abs=0.1)
    until(page, "document.querySelector('#player-where').textContent.includes('converted')")
    page = open_page("/?q=something+broken")
    page.locator(".shot").first.click()
    assert "cannot be played" in page.locator(".stage [role=alert]").inner_text()


def test_filters_and_shareable_url(open_page):
    page = open_page()
    search(page, "a")
    assert len(names(page)) == 9
    page.click("#filter-toggle")
    page.get_by_role("button", name="camera").click()
    page.keyboard.type("right")
    page.keyboard.press("Enter")
    until(page, "document.querySelectorAll('.hit').length === 2")
    shared = page.url.partition("/?")[2]
    again = open_page(f"/?{shared}")
    again.wait_for_selector(".hit")
    assert set(names(again)) == {"deep/plays too.mp4", "remux.mkv"}
    assert again.input_value("#where") == "camera = 'right'"
    page.go_back()
    until(page, "document.querySelectorAll('.hit').length === 9")
    page.fill("#where", "nonsense")
    page.click("#where-apply")
    page.wait_for_selector("#problem:visible")
    assert "cannot be read" in page.inner_text("#problem")


def test_not_per_file_and_merge(open_page):
    page = open_page()
    search(page, "a red ring")
    page.click("#filter-toggle")
    assert names(page)[0] == "plays.mp4"
    page.fill("#not", "moves")
    page.press("#not", "Enter")
    until(page, "document.querySelector('#subject').textContent.endsWith('not moves')")
    assert names(page)[0] == "plays.mp4#t=1,3"
    page.fill("#not", "")
    page.fill("#per-file", "1")
    page.press("#per-file", "Enter")
    until(page, "document.querySelectorAll('.hit').length === 7")  # three of the nine are of one file
    page.check("#merge")
    until(page, "document.querySelector('#results').classList.contains('busy') || location.search.includes('merge')")
    again = open_page("/?" + page.url.partition("/?")[2])
    again.wait_for_selector(".hit")
    assert again.is_checked("#merge")
    assert again.input_value("#per-file") == "1"
    again.click("#where-clear")
    until(again, "document.querySelectorAll('.hit').length === 9")
    assert again.url.partition("/?")[2] == "q=a+red+ring"


def test_similar(open_page):
    page = open_page("/?q=a+red+ring+moves")
    page.wait_for_selector(".hit")
    page.locator(".similar").first.click()
    until(page, "document.querySelector('#subject').textContent.startsWith('Like')")
    assert names(page)[0] == "plays.mp4#t=1,3"
    assert "plays.mp4" not in names(page)
    assert "like=plays.mp4" in page.url


def test_search_by_picture(open_page):
    buffer = io.BytesIO()
    Image.new("RGB", (300, 200), (0, 0, 255)).save(buffer, "PNG")
    picture = {"name": "blue.png", "mimeType": "image/png", "buffer": buffer.getvalue()}
    page = open_page()
    page.set_input_files("#file", picture)
    page.wait_for_selector(".hit")
    assert names(page)[0] == "deep/plays too.mp4"
    assert page.locator("#subject img").evaluate("image => image.naturalWidth") == 300
    other = open_page()
    other.evaluate(
        """async (bytes) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "blue.png", { type: "image/png" }));
            const options = { dataTransfer: data, bubbles: true, cancelable: true };
            for (const kind of ["dragenter", "dragover", "drop"])
                document.body.dispatchEvent(new DragEvent(kind, options));
        }""",
        list(buffer.getvalue()),
    )
    other.wait_for_selector(".hit")
    assert names(other)[0] == "deep/plays too.mp4"


def test_without_a_mouse(open_page):
    page = open_page()
    page.locator("body").click(position={"x": 5, "y": 400})
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "q"
    page.keyboard.type("a red ring")
    page.keyboard.press("Enter")
    page.wait_for_selector(".hit")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("[...document.querySelectorAll('.shot')].indexOf(document.activeElement)") == 1
    page.keyboard.press("Enter")
    page.wait_for_selector("#player[open] video")
    title = page.inner_text("#player-title")
    page.focus("#player-close")
    page.keyboard.press("ArrowLeft")
    until(page, "document.querySelector('#player-previous').disabled")
    assert title == page.inner_text("#player-title")  # two clips of one file
    page.keyboard.press("Escape")
    page.keyboard.press("s")
    until(page, "document.querySelector('#subject').textContent.startsWith('Like')")
    assert page.evaluate(
        "[...document.querySelectorAll('button, a, input:not([type=file])')].every(e => e.tabIndex >= 0)"
    )


def test_everything_has_a_name_for_screen_readers(open_page):
    page = open_page("/?q=a")
    page.wait_for_selector(".hit")
    unnamed = page.evaluate(
        """[...document.querySelectorAll("button, input:not([type=file]), a")].filter((e) =>
            !(e.getAttribute("aria-label") || e.textContent.trim() || document.querySelector(`label[for="${e.id}"]`))
        ).map((e) => e.outerHTML)"""
    )
    assert unnamed == []
    assert page.get_by_role("search").count() == 1
    assert page.get_by_role("status").inner_text() == "9 moments"
    assert page.get_attribute("html", "lang") == "en"


def test_hostile_names_and_captions_stay_text(open_page):
    page = open_page()
    search(page, f"hostile {HOSTILE}")
    assert names(page)[0] == f"{HOSTILE}.mp4"
    page.locator(".shot").first.click()
    page.wait_for_selector("#player-captions li")
    assert page.inner_text("#player-captions li") == f"hostile {HOSTILE}"
    assert page.inner_text("#player-metadata dd") == HOSTILE
    page.click("#player-similar")
    until(page, "document.querySelector('#subject').textContent.startsWith('Like')")
    assert page.title() != "owned"
    assert page.locator("main script, main img[onerror], dialog script").count() == 0


def test_on_a_phone(browser, open_page):
    page = open_page("/?q=a", viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    page.wait_for_selector(".hit")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    small = page.evaluate(
        """[...document.querySelectorAll("button, #q")].filter((e) => e.offsetParent)
            .filter((e) => e.getBoundingClientRect().height < 36).map((e) => e.outerHTML)"""
    )
    assert small == []
    page.locator(".shot").first.tap()
    page.wait_for_selector("#player[open]")
    assert page.locator("#player").bounding_box()["width"] == 360
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_dark_and_light(open_page):
    def brightness(page):
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in colour[4:-1].split(","))

    dark, light = open_page(color_scheme="dark"), open_page(color_scheme="light")
    assert brightness(dark) < 100 < 600 < brightness(light)
    dark.click("#theme")
    assert brightness(dark) > 600
    dark.reload()
    assert brightness(dark) > 600


def test_the_reference_of_the_api_is_drawn(open_page):
    page = open_page("/docs")
    page.wait_for_selector("article")
    assert "/api/search/image" in page.inner_text("#operations")


def test_the_login_form(browser, double, tmp_path):
    with serving(double, ServeSettings(cache_dir=tmp_path, token=TOKEN)) as port:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/?q=a")
        page.fill("#token", "wrong-wrong-wrong-wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("[role=alert]:visible")
        page.fill("#token", TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_selector("#q")
        search(page, "a red ring")
        page.close()
