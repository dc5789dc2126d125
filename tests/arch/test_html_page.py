"""The HTML report in a real browser: what it draws, how it filters, what a click explains.

The page is opened in headless Chromium with a script appended that acts as a user would and
writes what it saw into the page; the browser's dump of the page is then read.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bitsanywhere.arch.present import as_html
from bitsanywhere.arch.report import audit
from tests.arch.binaries import PTX, container, elf, entry, wheel

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here (apt-get install chromium)"
)

EVIL = "kit/</script><script>document.title='broken'</script>.so"

HELPERS = """
const all = (what) => [...document.querySelectorAll(what)];
const rows = () => all("tbody tr").map((row) => row.dataset.device);
const columns = () => all("thead th").map((cell) => cell.textContent);
const cell = (key) => all("button[data-cell]").find((each) => each.dataset.cell === key);
const type = (id, value) => {
  const field = document.getElementById(id);
  if (field.type === "checkbox") field.checked = value; else field.value = value;
  field.dispatchEvent(new Event("input", {bubbles: true}));
};
const why = () => document.getElementById("why");
const colour = (key) => getComputedStyle(cell(key)).backgroundColor;
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit of a wheel with two variants, whose names try to break out of the page."""

    def linked(*arches: int, ptx: int) -> bytes:
        code = [entry(arch) for arch in arches]
        objects = container(*code, entry(ptx, PTX, isa=(8, 4)))
        return elf({"__nv_relfatbin": objects, ".nv_fatbin": container(*code)})

    folder = tmp_path_factory.mktemp("page")
    path = folder / "kit<b>-1-py3-none-manylinux_2_24_aarch64.whl"
    members = {
        "kit/lib_cuda124.so": linked(75, 80, 90, ptx=90),
        "kit/lib_cuda126.so": linked(75, 80, 87, 90, ptx=90),
        EVIL: linked(70, 80, 87, 90, 100, ptx=80),
    }
    path.write_bytes(wheel(members))
    devices = ["orin-nano", "h100", "b200", "v100"]
    made = folder / "report.html"
    made.write_text(as_html(audit([str(path)], devices, "12.4")), encoding="utf-8")
    return made


def act(page: Path, script: str, fragment: str = "") -> object:
    """What ``script`` returns after acting on the page."""
    acting = page.with_name("acting.html")
    run = f"{HELPERS}\nconst seen = (() => {{ {script} }})();"
    report = "document.body.append(Object.assign(document.createElement('output'), "
    report += "{id: 'seen', textContent: JSON.stringify(seen)}));"
    text = page.read_text(encoding="utf-8")
    text = text.replace("</body>", f"<script>{run}\n{report}</script></body>")
    acting.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={page.parent / 'profile'}",
            "--virtual-time-budget=2000",
            "--dump-dom",
            f"{acting.as_uri()}{fragment}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'<output id="seen">(.*?)</output>', done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


def test_draws_the_matrix(page: Path) -> None:
    seen = act(
        page,
        "return {title: document.title, head: document.querySelector('h2').textContent,"
        " rows: rows(), columns: columns().map((text) => text.slice(-12)),"
        " cells: all('button[data-cell]').length, hidden: why().hidden,"
        " loads: performance.getEntriesByType('resource').length};",
    )
    assert isinstance(seen, dict)
    assert seen["title"] == "GPU code audit"
    assert seen["head"].endswith("kit<b>-1-py3-none-manylinux_2_24_aarch64.whl")
    assert seen["rows"] == ["orin-nano", "h100", "b200", "v100"]
    assert seen["columns"][3:5] == ["b_cuda124.so", "b_cuda126.so"]
    assert seen["cells"] == 4 * (1 + 3)
    assert seen["hidden"] is True
    assert seen["loads"] == 0


def test_colours_tell_the_verdicts_apart(page: Path) -> None:
    seen = act(
        page,
        "return ['h100|kit/lib_cuda124.so', 'b200|kit/lib_cuda124.so', "
        "'orin-nano|kit/lib_cuda124.so', 'v100|kit/lib_cuda124.so', 'orin-nano|kit/lib_cuda126.so']"
        ".map((key) => [cell('0|' + key).textContent, colour('0|' + key)]);",
    )
    assert isinstance(seen, list)
    assert [text for text, _ in seen] == [
        "✓ sass-exact",
        "✓ rdc-jit-link",
        "? tegra-undocumented",
        "✗ no-symbol",
        "✓ sass-exact",
    ]
    colours = [colour for _, colour in seen]
    assert len(set(colours[:4])) == 4
    assert colours[4] == colours[0]


def test_filters(page: Path) -> None:
    seen = act(
        page,
        "const seen = {};"
        "type('device', 'orin'); seen.name = rows();"
        "type('device', '9.0'); seen.capability = rows();"
        "type('device', ''); type('show', 'uncovered'); seen.uncovered = rows();"
        "type('show', 'covered'); seen.covered = rows();"
        "type('show', 'all'); type('library', 'cuda126'); seen.library = columns().slice(3);"
        "type('library', ''); type('loaded', true); seen.loaded = columns().slice(3);"
        "type('device', 'nothing'); seen.nothing = all('section p').length;"
        "return seen;",
    )
    assert seen == {
        "name": ["orin-nano"],
        "capability": ["h100"],
        "uncovered": ["orin-nano", "v100"],
        "covered": ["h100", "b200"],
        "library": ["lib_cuda126.so"],
        "loaded": ["lib_cuda124.so", "script>.so"],
        "nothing": 1,
    }


def test_a_click_explains_the_cell(page: Path) -> None:
    seen = act(
        page,
        "cell('0|orin-nano|').click();"
        "const first = {text: why().innerText, hidden: why().hidden, hash: location.hash,"
        " links: all('#why a').map((link) => link.href),"
        " pressed: all('button[aria-pressed=true]').length};"
        "cell('0|h100|kit/lib_cuda124.so').click();"
        "return {first, second: why().innerText};",
    )
    assert isinstance(seen, dict)
    first = seen["first"]
    assert first["hidden"] is False
    for words in (
        "Jetson Orin Nano (8.7)",
        "tegra-undocumented, not covered",
        "CUDA error 500 (cudaErrorSymbolNotFound): named symbol not found",
        "compute_87,code=sm_87",
        "Reported otherwise",
        "JetPack 7.2",
    ):
        assert words in first["text"], words
    assert any("bitsandbytes/issues/1930" in link for link in first["links"])
    assert first["pressed"] == 1
    assert "orin-nano" in first["hash"]
    assert "sass-exact, covered" in seen["second"]
    assert "named symbol" not in seen["second"]


def test_a_link_opens_the_explained_cell(page: Path) -> None:
    seen = act(page, "return why().innerText;", "#0%7Cb200%7Ckit%2Flib_cuda124.so")
    assert "rdc-jit-link" in str(seen)
    assert act(page, "return why().hidden;", "#9%7Cnobody%7C") is True
