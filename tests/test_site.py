"""The built site: it builds without a warning, asks no other host for anything, and reads well in a browser, also on a
telephone. `.ci/run` installs MkDocs and Chromium; elsewhere the tests that need one are skipped where it is missing."""

import functools
import http.server
import importlib.util
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from docs import outline
from tests.conftest import ROOT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_mkdocs = pytest.mark.skipif(not importlib.util.find_spec("mkdocs"), reason="pip install -r requirements-docs.txt")
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no chromium, chromium-browser or google-chrome on the path")
WIDTHS = (1280, 480)
LONGEST = 300  # seconds that a busy machine may take

# Put before everything else in a page: what goes wrong in it from then on.
WATCH = """<script>
  window.problems = [];
  const complain = console.error;
  console.error = (...words) => { problems.push("console: " + words.join(" ")); complain(...words); };
  addEventListener("error", (event) => {
    problems.push(event.message || "not loaded: " + (event.target.src || event.target.href));
  }, true);
  addEventListener("unhandledrejection", (event) => problems.push("rejected: " + event.reason));
</script>"""

# Opens one page after the other in a frame, looks at it in each width, and reports.
LOOK = """<!doctype html><title>look</title><iframe id="frame" height="900"></iframe><script>
const frame = document.getElementById("frame"), found = {};
const settled = () => new Promise((done) => setTimeout(done, 60));
async function look(page) {
  frame.width = WIDTHS[0];
  await new Promise((done) => { frame.onload = done; frame.src = page; });
  const view = frame.contentWindow, every = (what) => [...view.document.querySelectorAll(what)];
  await Promise.all(every("img").map((image) => image.decode().catch(() => {})));
  const problems = view.problems;
  for (const element of every(".katex-error")) problems.push("formula: " + element.textContent);
  for (const element of every(".arithmatex")) {
    if (!element.querySelector(".katex")) problems.push("not drawn: " + element.textContent);
  }
  for (const image of every("img")) if (!image.naturalWidth) problems.push("no picture: " + image.src);
  for (const each of view.performance.getEntriesByType("resource")) {
    if (!each.name.startsWith(location.origin) && !each.name.startsWith("data:")) problems.push("asks " + each.name);
  }
  for (const width of WIDTHS) {
    frame.width = width;
    await settled();
    const body = view.document.documentElement;
    if (body.scrollWidth > body.clientWidth) problems.push(`at ${width} it is ${body.scrollWidth} wide`);
    for (const image of every("article img")) {
      if (image.offsetWidth < 1 || image.offsetWidth > width) problems.push(`at ${width} ${image.src}`);
    }
  }
  found[page] = { problems, formulas: every(".katex").length, images: every("article img").length };
}
(async () => {
  for (const page of PAGES) await look(page).catch((error) => { found[page] = { problems: [String(error)] }; });
  await fetch("/report", { method: "POST", body: JSON.stringify(found) });
})();
</script>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0 and not re.search("WARNING|ERROR", done.stderr), done.stdout + done.stderr
    return folder


class Server(http.server.ThreadingHTTPServer):
    """The site with the watching script in each page, the page that looks at them, and what it reported."""

    def __init__(self, folder: Path, pages: list[str]):
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.reports: queue.Queue[dict] = queue.Queue()
        self.look = LOOK.replace("PAGES", json.dumps(pages)).replace("WIDTHS", json.dumps(WIDTHS))


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if self.path == "/look":
            self.answer(self.server.look)
        elif (path / "index.html").is_file():
            self.answer((path / "index.html").read_text("utf-8").replace("<head>", f"<head>{WATCH}", 1))
        else:
            super().do_GET()

    def do_POST(self) -> None:
        self.server.reports.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.answer("")

    def answer(self, page: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(page.encode())

    def log_message(self, *words) -> None:
        pass


def looked_at(folder: Path, pages: list[str], profile: Path) -> dict[str, dict]:
    """What a browser finds in each of these pages of a site. It knows no host but this one."""
    server = Server(folder, pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    rules = "MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--host-resolver-rules={rules}"]
    address = f"http://127.0.0.1:{server.server_port}/look"
    said = profile.with_name(f"{profile.name}.log")
    with open(said, "w") as log:
        browser = subprocess.Popen(
            [CHROMIUM, *flags, f"--user-data-dir={profile}", address], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        return server.reports.get(timeout=LONGEST)
    except queue.Empty:
        pytest.fail(f"{CHROMIUM} reported nothing in {LONGEST} s. It said:\n{said.read_text()[-2000:]}")
    finally:
        browser.terminate()
        browser.wait()
        server.shutdown()
        server.server_close()


def pages_of(folder: Path) -> list[str]:
    """The addresses of a site's pages."""
    return sorted(f"/{path.parent.relative_to(folder)}/".replace("/./", "/") for path in folder.rglob("index.html"))


@needs_mkdocs
def test_every_page_is_built_and_in_the_navigation(site):
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert len(pages_of(site)) == len(pages)
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert {*re.findall(r": ([\w/.-]+\.md)$", navigation, re.MULTILINE)} == pages


@needs_mkdocs
def test_no_page_asks_another_host(site):
    for path in [path for path in site.rglob("*") if path.suffix in (".html", ".css")]:
        text = path.read_text("utf-8")
        asked = re.findall(r"<(?:script|img|iframe|source|video|audio)[^>]*\ssrc=[\"']?((?:https?:)?//[^\"'> ]*)", text)
        asked += re.findall(r"<link[^>]*\shref=[\"']?((?:https?:)?//[^\"'> ]*)", text)
        asked += re.findall(r"(?:url\(|@import )\s*[\"']?((?:https?:)?//[^\"') ]*)", text)
        assert not asked, f"{path.relative_to(site)} asks {asked[0]}"


@needs_mkdocs
def test_the_site_has_no_sources_and_no_data(site):
    assert not [path for path in site.rglob("*") if path.suffix in (".py", ".pyc", ".jsonl")]
    assert [path.name for path in site.rglob("*.json")] == ["search_index.json"]


@needs_mkdocs
@needs_browser
@pytest.mark.exhaustive
def test_every_page_reads_well_in_a_browser_and_on_a_telephone(site, tmp_path):
    pages = pages_of(site)
    found = looked_at(site, pages, tmp_path / "profile")
    assert {page: found[page]["problems"] for page in pages if found[page]["problems"]} == {}
    for article in outline.articles():
        page = found[f"/articles/{article.path.stem}/"]
        assert page["formulas"] > 5 and page["images"] >= 1


FAULTS = {
    "script": ("<script>nowhere()</script>", "nowhere is not defined"),
    "console": ("<script>console.error('oh')</script>", "console: oh"),
    "missing script": ("<script src='/no.js'></script>", "not loaded: "),
    "picture": ("<article><img src='/no.png'></article>", "no picture: "),
    "formula": ("<span class='katex-error'>x_</span>", "formula: x_"),
    "formula not drawn": ("<span class='arithmatex'>x^2</span>", "not drawn: x^2"),
    "wide": ("<div style='width: 900px'>wide</div>", "at 480 it is 9"),
    "other host": ("<img src='http://example.org/x.png'>", "not loaded: http://example.org/x.png"),
}


@needs_browser
def test_the_browser_finds_each_fault(tmp_path):
    for name, (body, _) in FAULTS.items():
        (tmp_path / "site" / name).mkdir(parents=True)
        (tmp_path / "site" / name / "index.html").write_text(f"<!doctype html><html><head></head><body>{body}</html>")
    found = looked_at(tmp_path / "site", [f"/{name}/" for name in FAULTS], tmp_path / "profile")
    for name, (_, words) in FAULTS.items():
        assert any(words in problem for problem in found[f"/{name}/"]["problems"]), (name, found[f"/{name}/"])
