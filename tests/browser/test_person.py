"""What a user sees of runs in MLflow's pages, in a real browser: how they ended and why, charts, logs, code, traces.

The jobs are those of the tutorial, the examples and the how-tos. `make screenshots` keeps what these tests see as the
pictures of the documentation.
"""

from __future__ import annotations

import re
import signal

import pytest

expect = pytest.importorskip("playwright.sync_api").expect
expect.set_options(timeout=60_000)

MODEL = "a[href*='models/autogen_team/versions/1']"
LINE = re.compile(r"\d{4}-\d\d-\d\d [\d:.]+ \| [A-Z]+ +\| __main__:.*")
"""What the job itself logs."""
OUTPUT = re.compile(r"^output-[^/]+-\d+\.log$")


def test_the_last_run_is_one_click_away(page, tutorial, ui):
    """`autogen-team ui` links to it; the run of the user's own code has finished, with its tag and metric."""
    assert tutorial["from my own code"].status == 0, tutorial["from my own code"].text
    page.goto(ui["last_run"])

    expect(page.get_by_role("heading", name="from my own code")).to_be_visible()
    expect(page.get_by_test_id("key-value-Status")).to_contain_text("Finished")
    expect(page.get_by_title("fold").first).to_contain_text("1")
    expect(page.get_by_text("0.93", exact=True)).to_be_visible()


def test_the_runs_of_the_tutorial_are_in_the_list(page, tutorial, ui, keep_picture):
    """The run that was killed is beside those that have finished, and is marked."""
    page.goto(ui["last_run"])
    page.get_by_role("link", name="Runs").first.click()

    for name in tutorial:
        expect(page.get_by_role("link", name=name)).to_be_visible()
    keep_picture("tutorial-runs", height=560)


def test_the_run_that_was_killed_says_so_and_why(page, visit, tutorial, keep_picture):
    """Its status is not RUNNING for ever, and what it had logged is there."""
    assert tutorial["night.py"].status == 137, tutorial["night.py"].text
    visit(tutorial["night.py"])

    expect(page.get_by_test_id("key-value-Status")).to_contain_text("Killed")
    expect(page.get_by_title("autogen_team.exception").first).to_contain_text("SIGKILL")
    expect(page.get_by_text("The training of every night.")).to_be_visible()
    expect(page.get_by_title("fold").first).to_contain_text("1")
    expect(page.get_by_role("link", name="loss")).to_be_visible()
    expect(page.get_by_text("0.1", exact=True)).to_be_visible()  # of the last step
    _wait_for_all(page)
    keep_picture("run-killed", height=800)


def test_what_the_killed_job_had_printed_is_there(page, tutorial, keep_picture):
    """The output is an artifact, up to the last line."""
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("logs", exact=True).click()
    page.get_by_text(OUTPUT).last.click()

    expect(page.get_by_text("epoch 9")).to_be_visible()
    keep_picture("tutorial-log", height=520)


def test_the_run_of_the_example_says_what_it_was(page, visit, demo, keep_picture):
    """Its page has status, description, tags, and the model that it has registered."""
    assert demo.status == 0, demo.text
    visit(demo)

    expect(page.get_by_test_id("key-value-Status")).to_contain_text("Finished")
    expect(page.get_by_text("A classifier of handwritten digits.")).to_be_visible()
    expect(page.get_by_title("estimator_class").first).to_contain_text("sklearn.pipeline.Pipeline")
    expect(page.get_by_role("link", name="cross_validation_accuracy")).to_be_visible()
    expect(page.locator(MODEL).first).to_contain_text("autogen_team")
    _wait_for_all(page)
    keep_picture("run-finished", height=820)


def test_metrics_are_charts(page, demo):
    """A metric that was logged at each step is a line with each step, a single value is a bar."""
    page.get_by_role("tab", name="Model metrics").click()

    expect(page.get_by_text("cross_validation_accuracy").first).to_be_visible()
    expect(page.locator(".scatterlayer .point")).to_have_count(6)
    expect(page.locator(".barlayer .point").first).to_be_visible()


def test_system_metrics_are_charts(page, demo):
    """Each system metric has several points in time."""
    page.get_by_role("tab", name="System metrics").click()

    expect(page.get_by_text(re.compile("cpu_utilization")).first).to_be_visible()
    expect(page.locator(".scatterlayer").first.locator(".point").nth(1)).to_be_visible()


def test_the_log_of_the_run_has_the_lines_of_the_console(page, demo):
    """Each line that the job has logged is in its log, as it stood on the console."""
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("logs", exact=True).click()
    page.get_by_text(re.compile(r"^(?!output-)[^/]+-\d+\.log$")).last.click()  # its folder has that text too

    expect(page.get_by_text("is the champion")).to_be_visible()
    lines = LINE.findall(demo.text)
    seen = page.locator("body").inner_text()
    assert len(lines) == 8, demo.text
    assert [line for line in lines if line not in seen] == []


def test_the_model_is_registered_under_its_alias(page, demo):
    """The model is one click from the run, and the run is one click from the model."""
    page.get_by_role("tab", name="Overview").click()
    page.locator(MODEL).first.click()

    expect(page.get_by_role("heading", name="Version 1")).to_be_visible()
    expect(page.get_by_text("champion")).to_be_visible()
    expect(page.get_by_role("link", name="digits")).to_be_visible()
    expect(page.get_by_role("link", name="model", exact=True)).to_be_visible()


def test_both_starts_of_a_job_are_one_run(page, visit, resumed, keep_picture):
    """Its tags say which start it is, and how the one before has ended."""
    first, second = resumed
    assert (first.status, second.status) == (137, 0), second.text
    assert first.run_id == second.run_id
    visit(second)

    expect(page.get_by_test_id("key-value-Status")).to_contain_text("Finished")
    expect(page.get_by_title("autogen_team.job").first).to_contain_text("nightly")
    expect(page.get_by_title("autogen_team.attempt", exact=True).first).to_contain_text("2")
    expect(page.get_by_title("autogen_team.attempt.1").first).to_contain_text("KILLED, SIGKILL, on ")
    expect(page.get_by_title("autogen_team.exception")).to_have_count(0)
    expect(page.get_by_role("link", name="loss")).to_be_visible()
    _wait_for_all(page)
    keep_picture("run-attempts", height=700)


def test_the_second_start_goes_on_with_the_chart_of_the_first(page, resumed):
    """The chart has each step once."""
    page.get_by_role("tab", name="Model metrics").click()

    expect(page.locator(".scatterlayer .point")).to_have_count(8)


def test_each_start_has_its_own_output(page, resumed):
    """The names of later starts end in the number of the start."""
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("logs", exact=True).click()
    page.get_by_text(re.compile(r"^output-.*-attempt-2\.log$")).last.click()

    expect(page.get_by_text("step 7")).to_be_visible()
    assert "step 4" not in page.locator("body").inner_text()
    expect(page.get_by_text(OUTPUT).last).to_be_visible()


def test_the_code_of_a_run_is_beside_it(page, visit, changed, keep_picture):
    """The page shows command, packages and what differs; it has no preview of a patch."""
    assert changed.status == 0, changed.text
    visit(changed, "artifacts")
    page.get_by_text("code", exact=True).click()
    page.get_by_text("packages.txt").last.click()
    expect(page.get_by_text(re.compile(r"^mlflow==", re.MULTILINE)).first).to_be_visible()
    page.get_by_text("changes.patch").last.click()
    expect(page.get_by_text("Select a file to preview")).to_be_visible()
    page.get_by_text("run.json").last.click()

    expect(page.get_by_text('"train.py"').first).to_be_visible()
    keep_picture("run-code", height=640)


def test_a_job_that_was_ended_for_its_silence_says_so(page, visit, person, silent):
    """Its reason is for how long nothing was logged or printed."""
    ended = person.wait_for(silent)
    visit(ended)

    expect(page.get_by_test_id("key-value-Status")).to_contain_text("Killed")
    expect(page.get_by_title("autogen_team.exception").first).to_contain_text("silent for ")


def test_the_stacks_of_a_silent_job_are_on_its_page(page, silent, keep_picture):
    """They name the line at which each thread waits."""
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("stalls", exact=True).click()
    page.get_by_text(re.compile(r"^[^/]+-\d+-\d+\.txt$")).first.click()

    expect(page.get_by_text("in read_shard")).to_be_visible()
    expect(page.get_by_text("in evaluate")).to_be_visible()
    keep_picture("run-stalls", height=640)


def test_the_traces_of_an_agent_are_on_its_page(page, visit, traced):
    """Question and answer are a row of the list, which opens the trace; the spans are in the order of the calls."""
    assert traced.status == 0, traced.text
    visit(traced, "traces")
    expect(page.get_by_text("It is 24 degrees in Lisbon").first).to_be_visible()
    page.get_by_text('"client": "<openai.OpenAI').first.click()

    spans = page.get_by_test_id(re.compile("^span-text-block-"))
    expect(spans).to_contain_text(["ask", "Completions", "temperature", "temperature", "Completions"])


def test_a_call_of_the_model_holds_no_secret(page, traced, keep_picture):
    """The header of the call is masked in its inputs."""
    page.get_by_text("Completions", exact=True).first.click()

    expect(page.get_by_text("***").first).to_be_visible()
    assert "example-secret" not in page.content()
    keep_picture("run-trace", height=640, left=86)
    page.get_by_role("button", name="Close trace panel").click()


def test_a_tag_on_the_page_of_a_run_stops_its_job(page, visit, person, diverging, wait_until, keep_picture):
    """The user adds it by the pencil beside the tags."""
    wait_until(lambda: person.ids_of_runs("diverge.py"), timeout=60)
    visit(person.ids_of_runs("diverge.py")[0])
    expect(page.get_by_test_id("key-value-Status")).to_contain_text("Running")
    page.locator("[data-component-id='mlflow.run_details.overview.tags.edit_button']").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("combobox").fill("autogen_team.stop")
    dialog.get_by_role("combobox").press("Enter")
    dialog.get_by_label("Value").fill("diverges (ada)")
    keep_picture("run-stop", height=600)
    dialog.get_by_role("button", name="Add tag").click()
    dialog.get_by_role("button", name="Save tags").click()
    stopped = person.wait_for(diverging)

    assert stopped.status == 128 + signal.SIGTERM, stopped.text


def test_a_job_that_was_stopped_says_so(page, diverging, keep_picture):
    """Its reason is the text of the tag, which has another name now."""
    page.reload()
    page.get_by_role("button", name="Toggle sidebar").click()

    expect(page.get_by_test_id("key-value-Status")).to_contain_text("Killed")
    reason = "stopped from its page: diverges (ada)"
    expect(page.get_by_title("autogen_team.exception").first).to_contain_text(reason)
    expect(page.get_by_title("autogen_team.stop_requested").first).to_contain_text("diverges (ada)")
    expect(page.get_by_title("autogen_team.stop", exact=True)).to_have_count(0)
    _wait_for_all(page)
    keep_picture("run-stopped", height=700)


def _wait_for_all(page):
    """Wait until a run's first page has the answers that come last, for which grey bars stand meanwhile."""
    expect(page.get_by_test_id("key-value-Registered prompts")).to_contain_text("—")
    expect(page.get_by_test_id("key-value-Child runs")).to_have_count(0)
