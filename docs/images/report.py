"""Take the pictures of docs/report.md: ``python docs/images/report.py --data FOLDER``, from the root of a clone.

They are of the models of ``benchmarks/report.py``, which fits them where they are not there yet, and of digits, whose
number of clusters the fit finds. Needs Chromium.
"""

import argparse
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

import skdiec
from skdiec.datasets import load_dataset
from skdiec.report import write_report

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))

from common import BACKBONES  # noqa: E402 - of the benchmarks
from report import SETTINGS, chromium, fitted, images_of  # noqa: E402


def taken(page, selector, dy=0):
    """Return what is seen where an element is at the top."""
    scroll = "(own, dy) => scrollTo({top: own.getBoundingClientRect().top + scrollY + dy, behavior: 'instant'})"
    page.locator(selector).evaluate(scroll, dy)
    page.wait_for_timeout(1500)
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def save(image, name):
    image.save(HERE / name, quality=86, method=6)
    print(name, f"{(HERE / name).stat().st_size / 1e3:.0f} kB")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    data = parser.parse_args().data
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        files = {}
        for name in ("signs", "mnist"):
            images = images_of(name, data)
            model = skdiec.load(fitted(name, images))
            title = {"signs": "hand signs", "mnist": "MNIST"}[name]
            files[name] = write_report(model, images, Path(folder) / f"{name}.html", title=title).as_uri()
        images = load_dataset("digits").images
        settings = {"backbone": BACKBONES / "digits", "random_state": 0, **SETTINGS}
        model = skdiec.DiffusionEmbeddedClustering("auto", **settings).fit(images)
        files["digits"] = write_report(model, images, Path(folder) / "digits.html").as_uri()
        browser = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])

        page = browser.new_page(viewport={"width": 1180, "height": 1010})
        page.goto(files["signs"])
        save(taken(page, "#clusters", -60), "report.webp")

        page = browser.new_page(viewport={"width": 1180, "height": 860}, color_scheme="dark")
        page.goto(files["mnist"])
        taken(page, "#map", -60)
        page.mouse.move(*page.locator("#canvas").evaluate("(canvas) => canvas.placeOf(25)"))
        save(taken(page, "#map", -60), "report_dark.webp")

        page = browser.new_page(viewport={"width": 390, "height": 780}, device_scale_factor=1.5)
        page.goto(files["signs"])
        screens = [taken(page, selector, dy) for selector, dy in (("body", 0), ("#cards", -100), ("#map", -100))]
        both = Image.new("RGB", (sum(screen.width for screen in screens) + 40, screens[0].height), "white")
        for place, screen in enumerate(screens):
            both.paste(screen, (place * (screen.width + 20), 0))
        save(both.resize((both.width * 2 // 3, both.height * 2 // 3), Image.Resampling.LANCZOS), "report_phone.webp")

        page = browser.new_page(viewport={"width": 1180, "height": 860})
        page.goto(files["digits"])
        page.wait_for_timeout(1500)
        panel = page.locator(".panel:has(#number)").screenshot()
        save(Image.open(io.BytesIO(panel)).convert("RGB"), "report_number.webp")
        browser.close()


if __name__ == "__main__":
    main()
