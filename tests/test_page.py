"""The page in a browser: every tab used by mouse and keyboard, in both schemes and on a telephone."""

import json
import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from engine import load_run
from tests.conftest import NAMES
from tests.helpers import ok, quick
from tests.matrices import matrix
from tests.serve_helpers import Server, train_runs

SWITCHES = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
NEEDED = "there is no chromium, chromium-browser or google-chrome on the path, which the page is tested in"
TABS = ["Playground", "Chat", "Compare", "Curves", "Attention", "Score", "Labels"]

# By the page itself: a fast server has written everything before a test has found the button.
STOP_AT_THE_SIXTH_TOKEN = """panel => new MutationObserver((_, observer) => {
    if (panel.querySelectorAll(".t").length < 6) return;
    observer.disconnect();
    [...panel.querySelectorAll("button")].find(each => each.textContent === "Stop").click();
}).observe(panel, { childList: true, subtree: true })"""


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert program, NEEDED
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=SWITCHES.split())
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Over four runs; the curves also of the folder `others`, which is empty."""
    folder = tmp_path_factory.mktemp("shown")
    (folder / "others").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train_runs(folder)
        server = Server(folder, "names", "stream", "chat", "labels", "--curves", "others")
        server.folder = folder
        yield server
        server.end()


@pytest.fixture
def page(browser, server):
    """The page, opened; at the end it has asked nobody else, and nothing went wrong in it."""
    page = browser.new_page(viewport={"width": 1100, "height": 800})
    wrong = watch(page, server.url)
    page.goto(server.url)
    expect(page.get_by_role("tab", name="Playground")).to_be_visible()
    yield page
    page.close()
    assert wrong == []


def watch(page: Page, url: str) -> list[str]:
    """What goes wrong in a page: requests to others, errors, what its policy forbids."""
    wrong: list[str] = []
    page.on("request", lambda asked: asked.url.startswith((url, "data:")) or wrong.append(asked.url))
    page.on("console", lambda said: said.type not in ("error", "warning") or wrong.append(said.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    return wrong


def open_tab(page: Page, name: str):
    page.get_by_role("tab", name=name).click()
    return page.get_by_role("tabpanel", name=name)


def choose(panel, model: str) -> None:
    panel.get_by_label("Model").select_option(model)


def status_of(panel):
    return panel.get_by_role("status").first


def slide(panel, name: str, value: float) -> None:
    panel.get_by_label(name).fill(str(value))


def fits(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_playground_writes_what_the_seed_says_with_the_likeliest_beside(page, server):
    panel = open_tab(page, "Playground")
    choose(panel, "stream")
    panel.get_by_label("Prompt").fill("the ")
    panel.get_by_label("Seed").fill("7")
    panel.get_by_label("Stop before").fill("never said")
    slide(panel, "Most tokens", 40)
    panel.get_by_role("button", name="Write").click()
    expect(status_of(panel)).to_have_text(re.compile(r"^40 tokens, [\d,]+ a second, cut at the limit\. Seed 7\.$"))
    text = panel.get_by_role("group")
    (alone,) = load_run(server.folder / "stream").generate("the ", seed=7, max_new_tokens=40, temperature=0.8)
    assert text.locator("p").text_content() == alone
    tokens, tip = text.locator(".t"), page.get_by_role("tooltip")
    assert tokens.count() == 40
    tokens.nth(3).hover()
    expect(tip).to_be_visible()
    assert tip.locator(".bar").count() in (5, 6) and tip.locator(".own code").count() == 1
    panel.get_by_label("Prompt").hover()
    expect(tip).to_be_hidden()
    tokens.nth(0).focus()
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    expect(tip.locator(".own code")).to_have_text(re.sub("\n", "↵", tokens.nth(1).text_content()).replace(" ", "␣"))
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    background = "node => getComputedStyle(node).backgroundColor"
    coloured = tokens.nth(3).evaluate(background)
    panel.get_by_label("Colour by probability").uncheck()
    assert tokens.nth(3).evaluate(background) != coloured


@pytest.mark.exhaustive
def test_stop_ends_the_work_and_names_come_by_the_dozen(page, server):
    panel = open_tab(page, "Playground")
    expect(panel.get_by_label("Texts")).to_have_value("12")  # the first run is one of lines
    panel.get_by_role("button", name="Write").click()
    expect(status_of(panel)).to_have_text(re.compile(r"Seed \d+\.$"))
    assert panel.get_by_role("group").locator("p").count() == 12
    choose(panel, "stream")
    expect(panel.get_by_label("Texts")).to_have_value("1")
    slide(panel, "Most tokens", 2000)
    slide(panel, "Texts", 12)
    panel.evaluate(STOP_AT_THE_SIXTH_TOKEN)
    panel.get_by_label("Prompt").press("Control+Enter")
    expect(status_of(panel)).to_have_text("Stopped.")
    assert 5 < panel.locator(".t").count() < 24_000
    expect(panel.get_by_role("button", name="Write")).to_be_visible()
    server.wait_for("drawing", "stream", lambda n: n == 0)


@pytest.mark.exhaustive
def test_what_the_server_refuses_is_told(browser, server):
    page = browser.new_page()
    wrong = watch(page, server.url)
    page.goto(server.url)
    panel = open_tab(page, "Playground")
    panel.get_by_label("Prompt").fill("é")
    panel.get_by_role("button", name="Write").click()
    expect(status_of(panel)).to_have_text(re.compile("^Character 'é'"))
    page.close()
    assert len(wrong) == 1 and "400 (Bad Request)" in wrong[0]  # which Chromium says of any such answer


@pytest.mark.exhaustive
def test_a_conversation(page, server):
    panel = open_tab(page, "Chat")
    slide(panel, "Most tokens", 10)
    said, message = panel.get_by_role("log").locator("p"), panel.get_by_label("Message")
    for n, name in enumerate(NAMES[:2], 1):
        message.fill(f"Greet.\n{name}")
        message.press("Enter")
        expect(panel.get_by_role("button", name="Send")).to_be_visible()
        expect(said).to_have_count(2 * n)
        expect(said.nth(2 * n - 1)).not_to_have_text("…")
    answer = server.client.chat.completions.create(
        model="chat", messages=[{"role": "user", "content": f"Greet.\n{NAMES[0]}"}], max_tokens=10, temperature=0
    )
    assert said.nth(1).text_content() == (answer.choices[0].message.content or "(no answer)")
    panel.get_by_role("button", name="Start anew").click()
    expect(said).to_have_count(0)


@pytest.mark.exhaustive
def test_the_same_prompt_under_every_model(page):
    panel = open_tab(page, "Compare")
    panel.get_by_label("Prompt").fill("a")
    slide(panel, "Most tokens", 20)
    panel.get_by_role("button", name="Write").click()
    expect(status_of(panel)).to_have_text(re.compile(r"^Seed \d+\.$"))
    assert panel.get_by_role("heading").all_text_contents() == ["names", "stream", "chat"]
    assert panel.locator(".card", has_text="gru").count() == 2 and panel.locator(".card p.soft >> text=token").count()


@pytest.mark.exhaustive
def test_curves_follow_the_runs(page, server):
    panel, others = open_tab(page, "Curves"), server.folder / "others"
    expect(status_of(panel)).to_have_text("4 runs, 0 training")
    rows = panel.locator("tbody tr")
    assert sorted(rows.locator("strong").all_text_contents()) == ["chat", "labels", "names", "stream"]
    shutil.copytree(server.folder / "names", others / "late")
    late = panel.get_by_role("row", name="late")
    expect(late).to_contain_text("6 of 6")
    expect(panel.locator("svg path").first).to_be_attached()
    with (others / "late/metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 123, "train_loss": 1.25, "val_loss": 1.5, "tokens": 1, "seconds": 200.0}) + "\n")
    expect(late).to_contain_text("123 of 6")
    assert "1.2500" in late.inner_text() and "3 min" in late.inner_text()
    panel.locator("svg").hover(position={"x": 700, "y": 100})
    expect(panel.locator("p", has_text="late at step")).to_be_visible()
    panel.get_by_label("Horizontal axis").select_option("seconds")
    paths = panel.locator("svg path").count()
    late.get_by_role("checkbox").uncheck()
    expect(panel.locator("svg path")).to_have_count(paths - 2)
    shutil.rmtree(others / "late")
    expect(rows).to_have_count(4)


@pytest.mark.exhaustive
def test_attention_by_layer_and_head(page):
    panel = open_tab(page, "Attention")
    panel.get_by_role("textbox").fill("the cat sat")
    panel.get_by_role("button", name="Show").click()
    expect(status_of(panel)).to_have_text("2 layers of 2 heads.")
    head = panel.get_by_role("button", name="Layer 2, head 1")
    head.click()
    expect(head).to_have_attribute("aria-pressed", "true")
    letters = panel.locator("#looks .t")
    assert "".join(letters.all_text_contents()) == "the cat sat"
    letters.nth(5).hover()
    told = panel.get_by_role("status").nth(1)
    expect(told).to_have_text(re.compile(r"^Layer 2, head 1: a at 6 looks at . at \d \(\d+%\), "))
    letters.nth(5).focus()
    page.keyboard.press("ArrowLeft")
    expect(told).to_have_text(re.compile(r"c at 5 looks at"))
    assert panel.get_by_role("img").evaluate("map => map.getContext('2d').getImageData(4, 4, 1, 1).data[3]") > 200


@pytest.mark.exhaustive
def test_a_text_scored_character_by_character(page, server):
    panel = open_tab(page, "Score")
    panel.get_by_role("button", name="Score").click()
    expect(status_of(panel)).to_have_text("Write a text first.")
    panel.get_by_label("Text", exact=True).fill("emma")
    panel.get_by_role("button", name="Score").click()
    bits = load_run(server.folder / "names").score("emma").bits_per_char
    expect(status_of(panel)).to_have_text(
        re.compile(rf"^{bits:.3f} bits a character, [\d.]+ nats a token, 5 tokens\.$")
    )
    assert panel.locator(".t").all_text_contents() == [*"emma", "\n"]
    panel.locator(".t").nth(1).hover()
    expect(page.get_by_role("tooltip")).to_contain_text("bits")


@pytest.mark.exhaustive
def test_labels(page):
    panel = open_tab(page, "Labels")
    panel.get_by_label("Text").fill("emma")
    panel.get_by_role("button", name="Label").click()
    expect(status_of(panel)).to_have_text(re.compile(r"^\d+% (long|short)\.$"))
    assert sorted(panel.locator(".bar code").all_text_contents()) == ["long", "short"]


def test_tabs_by_the_keyboard_and_everything_has_a_name(page):
    tabs = page.get_by_role("tab")
    assert tabs.all_text_contents() == TABS
    tabs.first.focus()
    for key, name in (("ArrowRight", "Chat"), ("End", "Labels"), ("ArrowRight", "Playground"), ("ArrowLeft", "Labels")):
        page.keyboard.press(key)
        tab = page.get_by_role("tab", name=name)
        expect(tab).to_be_focused()
        expect(tab).to_have_attribute("aria-selected", "true")
        expect(page.get_by_role("tabpanel", name=name)).to_be_visible()
        assert page.get_by_role("tabpanel").count() == 1 and page.get_by_role("tab", selected=True).count() == 1
    named = page.locator("button, input, select, textarea, [role=img], [role=group], [role=log]")
    nameless = "nodes => nodes.filter(n => !n.labels?.length && !n.ariaLabel && !n.textContent.trim()).length"
    assert named.count() > 30 and named.evaluate_all(nameless) == 0
    page.reload()
    expect(page.get_by_role("tabpanel", name="Labels")).to_be_visible()  # where it was


@pytest.mark.parametrize("scheme", matrix(["light", "dark"], ["light"]))
def test_a_telephone_needs_no_scrolling_sideways(browser, server, scheme):
    page = browser.new_page(viewport={"width": 360, "height": 700}, color_scheme=scheme)
    wrong = watch(page, server.url)
    page.goto(server.url)
    for name in TABS:
        panel = open_tab(page, name)
        if name not in ("Curves", "Chat"):
            panel.get_by_role("textbox").first.fill("aaa")
            panel.locator("[type=submit]").click()
            expect(status_of(panel)).to_have_text(re.compile(r"^(?!Working).+"))
        assert fits(page), name
    page.close()
    assert wrong == []


@pytest.mark.exhaustive
def test_what_cannot_be_shown_is_said_and_a_key_is_asked_for(browser, server):
    keys = Path(server.folder, "keys")
    keys.write_text("secret\n")
    keys.chmod(0o600)
    locked = Server(server.folder, "names", "--api-key-file", "keys", key="secret")
    page = browser.new_page()
    wrong = watch(page, locked.url)
    page.goto(locked.url)
    page.get_by_label("API key").fill("secret")
    page.get_by_role("button", name="Use it").click()
    for name, words in (
        ("Chat", "No model here was trained on conversations"),
        ("Attention", "No model here is a Transf"),
    ):
        expect(open_tab(page, name)).to_contain_text(words)
    expect(page.get_by_role("tab", name="Labels")).to_be_hidden()
    panel = open_tab(page, "Playground")
    panel.get_by_role("button", name="Write").click()
    expect(status_of(panel)).to_contain_text("a second")
    panel = open_tab(page, "Curves")
    expect(status_of(panel)).to_have_text("1 run, 0 training")
    page.reload()  # the key is kept as long as the tab is
    expect(panel.locator("strong")).to_have_text("names")
    assert wrong == []
    assert locked.end().code == 0  # with the page open
    expect(status_of(panel)).to_have_text(re.compile(r"^Not up to date, the server .*: trying again\.$"))
    page.close()


def test_watch_shows_the_curves_alone(browser, cli, names):
    from engine.watch.server import watching

    ok(cli("train.py", *quick("mlp", data="names.txt", kind="lines", out="runs/one")))
    page = browser.new_page()
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("builtins.print", lambda *words, **how: said.append(" ".join(words)))
        with watching(0, None):
            url = said[0].split()[-1]
            wrong = watch(page, url)
            page.goto(url)
            panel = page.get_by_role("tabpanel", name="Curves")
            expect(panel.get_by_role("row", name="one")).to_contain_text("6 of 6")
            expect(page.get_by_role("tablist")).to_be_hidden()
    page.close()
    assert wrong == []
