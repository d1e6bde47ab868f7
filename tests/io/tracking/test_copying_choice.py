"""Which runs are copied, and which are deleted in the source."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from mlflow.entities import ViewType

from autogen_team._sync import copying
from testkit.copies import EXPERIMENT, client_of, copy, current, files_of, happened, make_experiment, runs_of, write


def break_artifact(uri, run_id, path):
    """Replace an artifact by a dangling link, and return its path."""
    broken = Path(client_of(uri).get_run(run_id).info.artifact_uri, path)
    broken.unlink()
    broken.symlink_to("/nowhere")
    return broken


def test_nested_runs_stay_nested(source, target, make_run):
    """Copied runs point to the new ids of their parents, also if those are copied later or in another experiment."""
    make_experiment(source, "another")
    outer = make_run(source, "outer", experiment="another")
    inner = make_run(source, "inner", parent=outer)
    make_run(source, "innermost", parent=inner)

    outcomes = copy(source, target)

    assert set(happened(outcomes).values()) == {"copied"}
    runs = {**runs_of(target), **runs_of(target, "another")}
    parents = {name: run.data.tags.get("mlflow.parentRunId") for name, run in runs.items()}
    ids = {name: run.info.run_id for name, run in runs.items()}
    assert parents == {"outer": None, "inner": ids["outer"], "innermost": ids["inner"]}


def test_a_run_with_a_deleted_parent_is_copied_without_it(source, target, make_run):
    """A run whose parent was deleted is copied without a parent, and the outcome says so."""
    parent = make_run(source, "parent")
    make_run(source, "child", parent=parent)
    client_of(source).delete_run(parent)

    (outcome,) = copy(source, target)

    assert outcome.happened == "copied"
    assert f"its parent {parent} is gone" in outcome.reason
    assert "mlflow.parentRunId" not in runs_of(target)["child"].data.tags


def test_a_run_with_an_unknown_parent_is_copied_without_it(source, target, make_run):
    """A run whose parent tag names a run that never existed is copied without a parent."""
    make_run(source, parent="f" * 32)

    (outcome,) = copy(source, target)

    assert outcome.happened == "copied"
    assert "is gone, so the copy has none" in outcome.reason


def test_a_run_that_has_not_ended_is_skipped(source, target, make_run):
    """A run that has not ended is skipped; the reason names its status and `autogen-team recover`."""
    make_run(source, "running", end=None)

    (outcome,) = copy(source, target)

    assert (outcome.happened, outcome.target_id) == ("skipped", None)
    assert "it is RUNNING" in outcome.reason
    assert "autogen-team recover" in outcome.reason
    assert runs_of(target) == {}


def test_a_child_waits_for_its_parent_to_end(source, target, make_run):
    """A child whose parent has not ended is not copied before the parent, so that it stays nested."""
    parent = make_run(source, "parent", end=None)
    make_run(source, "child", parent=parent)

    reasons = {outcome.run_name: outcome.reason for outcome in copy(source, target)}

    assert f"its parent {parent} is not copied: it is RUNNING" in reasons["child"]
    assert runs_of(target) == {}
    client_of(source).set_terminated(parent)
    assert happened(copy(source, target)) == {"parent": "copied", "child": "copied"}


def test_a_run_without_an_end_has_none_in_the_copy(source, target, make_run):
    """A run that was set to FAILED without an end time has no end time in the copy either."""
    run_id = make_run(source, end=None)
    client_of(source).update_run(run_id, "FAILED")

    outcomes = [copy(source, target), copy(source, target)]

    assert [happened(each) for each in outcomes] == [{"train": "copied"}, {"train": "unchanged"}]
    assert runs_of(target)["train"].info.end_time is None


def test_a_dry_run_skips_what_a_copy_would_skip(source, target, make_run):
    """A dry run skips a child whose parent has not ended, as a real copy would."""
    ended, running = make_run(source, "ended"), make_run(source, "running", end=None)
    make_run(source, "one", parent=ended)
    make_run(source, "two", parent=running)

    outcomes = copy(source, target, dry_run=True)

    assert happened(outcomes) == {"ended": "would copy", "running": "skipped", "one": "would copy", "two": "skipped"}


def test_a_store_behind_another_address_is_not_copied_onto_itself(source, make_database, make_run):
    """A target that already contains the source run, such as a server on the same database, gets no copy of it."""
    make_run(source)
    twin = make_database("twin")
    shutil.copy(source.removeprefix("sqlite:///"), twin.removeprefix("sqlite:///"))

    (outcome,) = copy(source, twin, delete=True)

    assert (outcome.happened, outcome.is_deleted) == ("skipped", False)
    assert "the target itself has the run" in outcome.reason
    assert list(runs_of(twin)) == ["train"]


def test_new_runs_of_a_twin_are_copied(source, make_database, make_run):
    """If the target began as a copy of the database, only new runs are copied, and they keep their parents."""
    parent = make_run(source, "parent")
    twin = make_database("twin")
    shutil.copy(source.removeprefix("sqlite:///"), twin.removeprefix("sqlite:///"))
    make_run(source, "child", parent=parent)

    assert happened(copy(source, twin)) == {"parent": "skipped", "child": "copied"}
    assert runs_of(twin)["child"].data.tags["mlflow.parentRunId"] == parent


def test_a_copy_is_not_copied_back(source, target, make_run):
    """A copy is not copied back to the store of its original."""
    make_run(source)
    copy(source, target)

    assert happened(copy(target, source)) == {"train": "skipped"}
    assert list(runs_of(source)) == ["train"]


def test_a_copy_that_was_deleted_on_the_target_stays_deleted(source, target, make_run):
    """A run whose copy was deleted on the target is skipped until the copy is restored."""
    make_run(source)
    (copied,) = copy(source, target)
    client_of(target).delete_run(copied.target_id)

    (outcome,) = copy(source, target)

    assert outcome.happened == "skipped"
    assert f"its copy {copied.target_id} was deleted" in outcome.reason
    assert runs_of(target) == {}
    client_of(target).restore_run(copied.target_id)
    assert happened(copy(source, target)) == {"train": "unchanged"}


def test_an_experiment_that_was_deleted_on_the_target_is_not_written_to(source, target, make_run):
    """Runs are skipped if their experiment was deleted on the target; the reason says how to restore it."""
    make_run(source)
    client_of(target).delete_experiment(client_of(target).get_experiment_by_name(EXPERIMENT).experiment_id)

    (outcome,) = copy(source, target)

    assert outcome.happened == "skipped"
    assert "mlflow experiments restore" in outcome.reason


def test_a_run_is_deleted_in_the_source_once_it_has_arrived(source, target, make_run):
    """With `delete`, runs that are copied or were copied before are deleted in the source, failed ones are not."""
    make_run(source, "before")
    copy(source, target)
    parent = make_run(source, "parent")
    make_run(source, "child", parent=parent)
    broken = make_run(source, "broken", fill=write({"a.txt": "a"}))
    break_artifact(source, broken, "a.txt")

    outcomes = copy(source, target, delete=True)

    assert {outcome.run_name: outcome.is_deleted for outcome in outcomes} == {
        "before": True,
        "parent": True,
        "child": True,
        "broken": False,
    }
    assert list(runs_of(source)) == ["broken"]
    assert set(runs_of(source, view=ViewType.DELETED_ONLY)) == {"before", "parent", "child"}


def test_a_run_that_cannot_be_deleted_is_named(source, target, make_run):
    """A run that cannot be deleted in the source counts as copied, and the reason names the error."""
    make_run(source)
    with contextlib.closing(copying.sqlite3.connect(source.removeprefix("sqlite:///"))) as database:
        database.execute("CREATE TRIGGER no BEFORE UPDATE ON runs BEGIN SELECT RAISE(ABORT, 'read only'); END")

    (outcome,) = copy(source, target, delete=True)

    assert (outcome.happened, outcome.is_deleted) == ("copied", False)
    assert "not deleted: (sqlite3.IntegrityError) read only" in outcome.reason


def test_children_find_the_copy_of_a_parent_that_was_deleted(source, target, make_run):
    """A new child is nested in the copy of its parent, although the parent was deleted in the source."""
    parent = make_run(source, "parent")
    (copied,) = copy(source, target, delete=True)
    make_run(source, "child", parent=parent)

    (outcome,) = copy(source, target)

    assert outcome.reason is None
    assert runs_of(target)["child"].data.tags["mlflow.parentRunId"] == copied.target_id


def test_what_was_added_to_a_run_after_its_copy_arrives_before_it_is_deleted(source, target, make_run):
    """A tag and a file added after the first copy are copied before the run is deleted in the source."""
    run_id = make_run(source)
    copy(source, target)
    client_of(source).set_tag(run_id, "late", "1")
    with current(source):
        client_of(source).log_text(run_id, "late", "late.txt")

    (outcome,) = copy(source, target, delete=True)

    assert outcome.is_deleted
    [copied] = runs_of(target).values()
    assert copied.data.tags["late"] == "1"
    assert files_of(target, copied.info.artifact_uri)["late.txt"] == b"late"
