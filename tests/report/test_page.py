"""The page in a real browser: it draws itself without a word in the console, wide and narrow."""

import pytest

from benchmarks.synthetic import Story, write_run
from megatron_ngpt.report.write import write
from tests.report.browser import browser, missing, show

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "there")

WIDE = "return document.documentElement.scrollWidth"
FIGURES = """const seen = [...document.querySelectorAll('.plot')].filter(div => div.offsetParent);
return seen.map(div => {
  const box = div.getBoundingClientRect(), own = div.querySelector('.main-svg');
  return [div.querySelectorAll('.scatterlayer path.js-line, .barlayer path').length,
          Math.round(box.left), Math.round(box.right), own ? own.clientWidth : 0]; })"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    first = Story(steps=600, layers=3, killed=(300,), spike=(450, 2.0), spectra_every=200)
    other = Story(steps=600, layers=3, faster=2.0, spectra_every=200)
    runs = [write_run(folder / "first", first), write_run(folder / "other", other)]
    write(runs, folder / "out", pictures=False)
    return folder / "out" / "report.html"


def test_the_page_draws_itself_at_1280_and_at_400_pixels(report):
    with browser() as driver:
        for width in (1280, 400):
            show(driver, report, width)
            assert driver.execute_script(WIDE) == width, "it scrolls sideways"
            figures = driver.execute_script(FIGURES)
            assert len(figures) > 20
            for curves, left, right, drawn in figures:
                assert curves > 0
                assert left >= 0
                assert right <= width
                assert drawn > 250
        first = driver.execute_script("return document.querySelector('.verdict strong').innerText")
        assert first.startswith("Spike at step 450")
        for axis, title in (("hours", "hours since the first start"), ("step", "steps")):
            driver.execute_script(f"document.querySelector('[data-axis={axis}]').click()")
            script = "return document.querySelector('.plot .xtitle').textContent"
            assert driver.execute_script(script) == title
        driver.execute_script("document.querySelector('[data-theme=dark]').click()")
        script = "return getComputedStyle(document.body).backgroundColor"
        assert driver.execute_script(script) == "rgb(17, 21, 27)"
        said = [entry for entry in driver.get_log("browser") if entry["level"] != "INFO"]
        assert not said, said
