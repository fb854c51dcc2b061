"""Characters a second of a run's page, in node and in Chromium: python -m bench.web RUN.

The same script in both: texts of the run's own length, one after the other, for two seconds, after half a second that
is not counted. Each figure is the median of several rounds, node and Chromium in turn.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from data.errors import UserError, run_command

MEASURE = """
function measured(run) {
  const written = (milliseconds) => {
    const began = performance.now();
    for (let n = 0, characters = 0; ; n++) {
      for (const piece of run.generate("", { seed: n })) {
        characters += piece.length;
        const passed = performance.now() - began;
        if (passed > milliseconds) return (1000 * characters) / passed;
      }
    }
  };
  written(500);
  return Math.round(written(2000));
}
"""
IN_NODE = """
const fs = require("fs"), dir = process.argv[2], charlm = require(`${dir}/charlm.js`);
const json = (name) => JSON.parse(fs.readFileSync(`${dir}/${name}`));
const bytes = fs.readFileSync(`${dir}/model.safetensors`);
const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
console.log(`[${measured(charlm.load(json("settings.json"), json("tokenizer.json"), buffer))}]`);
"""
IN_PAGE = """<!doctype html><script src="charlm.js"></script><script src="model.js"></script><body><script>
const [settings, tokenizer, weights] = Object.values(charlmFiles).map(charlm.fromBase64);
const parse = (file) => JSON.parse(new TextDecoder().decode(file));
document.body.textContent = `[${measured(charlm.load(parse(settings), parse(tokenizer), weights))}]`;
</script>"""
CHROMIUM_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.web", description=__doc__.split("\n")[0])
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--rounds", type=int, default=5, help="of both, in turn")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "page")
        exported = subprocess.run([sys.executable, "-m", "export", args.run, "--to", "web", str(page)])
        if exported.returncode:
            return exported.returncode
        measures = commands(page)
        found: dict[str, list[int]] = {name: [] for name in measures}
        for _ in range(args.rounds):
            for name, command in measures.items():
                found[name].append(rate_of(command))
    for name, rates in found.items():
        spread = f"{len(rates)} rounds: {min(rates):,} to {max(rates):,}"
        print(f"{name:9} {statistics.median(rates):7,.0f} characters/s ({spread})")
    return 0


def commands(page: Path) -> dict[str, list[str]]:
    """What prints [characters a second] of the page in this folder, by its name."""
    (page / "measure.js").write_text(MEASURE + IN_NODE)
    (page / "measure.html").write_text(IN_PAGE.replace("<body>", f"<script>{MEASURE}</script><body>"))
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not (node := shutil.which("node")) or not chromium:
        raise UserError("there is no node or no Chromium on the path; this measures in both")
    profile = f"--user-data-dir={page.parent / 'profile'}"
    return {
        "node": [node, str(page / "measure.js"), str(page)],
        "Chromium": [chromium, *CHROMIUM_FLAGS, profile, "--dump-dom", f"file://{page}/measure.html"],
    }


def rate_of(command: list[str]) -> int:
    """The number that a command prints."""
    said = subprocess.run(command, capture_output=True, text=True).stdout
    if not (number := re.search(r"\[\d+\]", said)):
        raise UserError(f"{command[0]} measured nothing: {said[-500:]}")
    return json.loads(number[0])[0]


if __name__ == "__main__":
    sys.exit(run_command(main))
