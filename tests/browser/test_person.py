"""MLflow's web UI for two jobs, one finished and one killed.

The tests use `make demo`, `autogen-team ui` and a real browser. Screenshots are stored in `artifacts/browser`; smaller
copies of two of them are in `docs/images`.
"""

from __future__ import annotations

import re

import pytest

expect = pytest.importorskip("playwright.sync_api").expect
expect.set_options(timeout=60_000)

MODEL = "a[href*='models/autogen_team/versions/1']"
LINE = re.compile(r"\d{4}-\d\d-\d\d [\d:.]+ \| [A-Z]+ +\| __main__:.*")
"""Metrics that the job itself logs."""


def test_the_page_of_the_finished_run_describes_it(page, demo, ui, keep_picture):
    """The page has the run's status, description, tags and registered model."""
    assert demo.status == 0, demo.text
    page.goto(ui["last_run"])

    expect(page.get_by_role("heading", name="train.py")).to_be_visible()
    expect(page.get_by_test_id("key-value-Status")).to_contain_text("Finished")
    expect(page.get_by_text("A classifier of handwritten digits.")).to_be_visible()
    expect(page.get_by_title("estimator_class").first).to_contain_text("sklearn.pipeline.Pipeline")
    expect(page.get_by_role("link", name="cross_validation_accuracy")).to_be_visible()
    expect(page.locator(MODEL).first).to_contain_text("autogen_team")
    _wait_for_all(page)
    keep_picture("finished")


def test_metrics_are_charts(page, ui, keep_picture):
    """The chart of a metric logged at each step has each step."""
    page.goto(ui["last_run"])
    page.get_by_role("tab", name="Model metrics").click()

    expect(page.get_by_text("cross_validation_accuracy").first).to_be_visible()
    expect(page.locator(".scatterlayer .point")).to_have_count(6)
    expect(page.locator(".barlayer .point").first).to_be_visible()
    keep_picture("metrics")


def test_system_metrics_are_charts(page, ui, keep_picture):
    """Each chart has several points in time."""
    page.goto(ui["last_run"])
    page.get_by_role("tab", name="System metrics").click()

    expect(page.get_by_text(re.compile("cpu_utilization")).first).to_be_visible()
    expect(page.locator(".scatterlayer").first.locator(".point").nth(1)).to_be_visible()
    keep_picture("system")


def test_the_model_is_registered_under_its_alias(page, ui, keep_picture):
    """The model is one click away from the run, and the run one click from the model."""
    page.goto(ui["last_run"])
    page.locator(MODEL).first.click()

    expect(page.get_by_role("heading", name="Version 1")).to_be_visible()
    expect(page.get_by_text("champion")).to_be_visible()
    expect(page.get_by_role("link", name="train.py")).to_be_visible()
    expect(page.get_by_role("link", name="model", exact=True)).to_be_visible()
    keep_picture("model")


def test_the_log_of_the_run_has_the_lines_of_the_console(page, demo, ui, keep_picture):
    """Each line that the job has logged is there unchanged."""
    page.goto(ui["last_run"])
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("logs", exact=True).click()
    page.get_by_text(re.compile(r"^(?!output-)[^/]+-\d+\.log$")).last.click()  # its folder has that text too

    expect(page.get_by_text("is the champion")).to_be_visible()
    lines = LINE.findall(demo.text)
    seen = page.locator("body").inner_text()
    assert len(lines) == 8, demo.text
    assert [line for line in lines if line not in seen] == []
    page.get_by_text("estimator.html").hover()  # the click waits until the parent folder is expanded
    keep_picture("log")


def test_the_job_that_was_killed_is_in_the_list(page, killed, ui, keep_picture):
    """The list has both jobs."""
    assert killed.status == 137, killed.text
    page.goto(ui["last_run"])
    page.get_by_role("link", name="Runs").first.click()

    expect(page.get_by_role("link", name="night.py")).to_be_visible()
    expect(page.get_by_role("link", name="train.py")).to_be_visible()
    keep_picture("runs")


def test_the_page_of_the_killed_run_has_the_reason(page, killed, ui, keep_picture):
    """The status is not RUNNING, and the logged metrics are there."""
    page.goto(ui["last_run"])
    page.get_by_role("link", name="Runs").first.click()
    page.get_by_role("link", name="night.py").click()

    expect(page.get_by_test_id("key-value-Status")).to_contain_text("Killed")
    expect(page.get_by_title("autogen_team.exception").first).to_contain_text("SIGKILL")
    expect(page.get_by_text("The training of every night.")).to_be_visible()
    expect(page.get_by_title("fold").first).to_contain_text("1")
    expect(page.get_by_role("link", name="loss")).to_be_visible()
    expect(page.get_by_text("0.1", exact=True)).to_be_visible()  # of the last step
    _wait_for_all(page)
    keep_picture("killed")


def test_the_output_of_the_killed_job_is_there(page, killed, ui, keep_picture):
    """The output is complete up to its last line."""
    page.goto(ui["last_run"])
    page.get_by_role("link", name="Runs").first.click()
    page.get_by_role("link", name="night.py").click()
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("logs", exact=True).click()
    file = page.get_by_text(re.compile(r"^output-[^/]+-\d+\.log$")).last
    file.click()

    expect(page.get_by_text("epoch 9: loss 0.10")).to_be_visible()
    file.hover()
    keep_picture("killed-log")


def _wait_for_all(page):
    """Wait until a run's overview has its last content, which grey bars replace meanwhile."""
    expect(page.get_by_test_id("key-value-Registered prompts")).to_contain_text("—")
    expect(page.get_by_test_id("key-value-Child runs")).to_have_count(0)
