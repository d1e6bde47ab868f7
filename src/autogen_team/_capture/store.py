"""A tracking store that returns at once: logged data goes to the journal, other calls to MLflow's own store.

It replaces MLflow's store, so it receives every call that logs: from the fluent functions, clients,
autologgers and system metrics. MLflow's own rules check a value at the call. Earlier entries are delivered before a
read, so that this process sees its own writes.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow.entities import LoggedModelStatus, Metric, Param, Run, RunInfo, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME
from mlflow.utils.proto_json_utils import message_to_json
from orjson import loads

from autogen_team._capture import claims, manifest, mlflow_internals, redact_entities, trace_sums
from autogen_team._capture.journal_writer import Writer
from autogen_team._capture.metrics import MetricEntries
from autogen_team._capture.redacting_store import RedactingStore
from autogen_team._capture.run_cache import CachedRun, run_to_be_made
from autogen_team._capture.trace_journal import TraceJournal
from autogen_team._process import identity, run_events
from autogen_team._redact import mask
from autogen_team._ship import signs, ui_url
from autogen_team._ship.availability import Availability, StoreUnavailableError
from autogen_team._ship.backend import OPENED_BY
from autogen_team._ship.error_text import with_kind
from autogen_team._ship.owners import latest_claim
from autogen_team._ship.shipper import Shipper
from autogen_team._spool import records
from autogen_team._spool.journal import Journal

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, LoggedModel, LoggedModelInput
    from mlflow.utils.async_logging.run_operations import RunOperations

    from autogen_team._capture.artifacts import Artifacts

LOCAL_ID = "autogen_team.local_run_id"
"""Tag with the local id of a run that began while its store was unreachable."""
_TRACES_PATIENCE = 5.0
"""Seconds that MLflow's threads have to export ended spans."""
_READ_SOON, _READ_PATIENCE = 1.0, 20.0
"""Seconds that a read waits for the delivery of earlier writes: first for any store, then for one that answers."""

_report = logging.getLogger("autogen_team")


def _body(op: str, **fields: Any) -> str:
    """Return the body of an entry.

    Raises:
        MlflowException: a value cannot be written, such as a text with a lone surrogate, as in a file name that is not
            valid UTF-8.

    """
    try:
        return records.body(op, **fields)
    except TypeError as error:
        raise MlflowException(f"{op}: {error}", error_code=INVALID_PARAMETER_VALUE) from None


def _now() -> int:
    return round(time.time() * 1000)


class DurableStore(RedactingStore):
    """Replacement for a tracking store that writes to a journal."""

    def __init__(
        self, inner: Any, journal: Journal, shipper: Shipper, availability: Availability, ids: dict[str, str]
    ) -> None:
        """Write to `journal`; `ids` maps local ids of runs that began while the store was unreachable to real ids."""
        super().__init__(inner, manifest.TRACKING)
        self._ids = ids
        self._journal = journal
        self._shipper = shipper
        self._availability = availability
        self._known: dict[str, CachedRun] = {}
        self._earlier_traces = trace_sums.Earlier()
        self._metrics = MetricEntries(is_remote=availability.is_remote)
        self._writer = Writer(journal, shipper)
        self.traces = TraceJournal(inner, journal, self._writer.write)
        self._has_reported_rejection = False
        self._has_reported_change = False
        self._just_read: Run | None = None
        self.artifacts: Artifacts | None = None
        """The uploads to the store; None until they are set up."""
        self.skips_replayed = False
        """Whether metrics of a resumed run are skipped if an earlier attempt has logged their step."""
        self._replayed: dict[str, dict[str, Any]] = {}
        """The last step of each metric in earlier attempts, by run id."""

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        if not callable(found) or name == "get_host_creds":
            return found

        rule = self._rule(name)
        flushes = rule is manifest.UNKNOWN or (rule is not None and (rule.of_traces or rule.treatment == "flush first"))

        def call(*arguments: Any, **fields: Any) -> Any:
            if rule is not None and rule.of_traces:
                mlflow_internals.wait_for_traces_within(_TRACES_PATIENCE)
            if flushes:
                self.flush()
            self._require()
            if self._ids:
                arguments = tuple(map(self._real, arguments))
                fields = {name: self._real(value) for name, value in fields.items()}
            return found(*arguments, **fields)

        return call

    def flush(self) -> bool:
        """Deliver everything written so far; return whether the store has it.

        The call waits for more than a second only if the store answers.
        """
        if self._shipper.flush(_READ_SOON, give_up_when_cut=True):
            return True
        is_there = not self._availability.is_remote or self._availability.answers()
        return is_there and self._shipper.flush(_READ_PATIENCE, give_up_when_cut=True)

    # Logging

    def log_metric(self, run_id: str, metric: Metric) -> None:
        """Write a metric to the journal."""
        self._knows(run_id)
        if self.skips_replayed and self._was_there(run_id, metric.key, metric.step):
            return
        self._writer.write(self._metrics.of_one(run_id, metric))

    def log_floats(self, run_id: str, metrics: Mapping[str, Any], timestamp: int, step: float) -> None:
        """Write metrics given as plain numbers; raise the error of an invalid one after the others are written."""
        self._knows(run_id)
        if self.skips_replayed:
            metrics = {key: value for key, value in metrics.items() if not self._was_there(run_id, key, step)}
        self._write_metrics(*self._metrics.of_floats(run_id, metrics, timestamp, step))

    def log_param(self, run_id: str, param: Param) -> None:
        """Write a parameter to the journal; if the run has another value of it, the store rejects the change."""
        known = self._knows(run_id)
        param = redact_entities.item(mlflow_internals.check_param(param.key, param.value))
        before = None if known is None else known.params.get(param.key)
        if known is not None and before is not None and before != param.value:
            if self._keep_change(run_id, known, param):
                return
            self._refuse_change(run_id, param, before, partial(self._inner.log_param, self._real(run_id), param))
        self._write_params(run_id, known, [param])

    def set_tag(self, run_id: str, tag: RunTag) -> None:
        """Write a tag to the journal."""
        known = self._knows(run_id)
        try:
            checked = mlflow_internals.check_tag(tag.key, tag.value)
        except TypeError:  # the key is not text; each store has its own error for that
            self._require()
            self._inner.set_tag(self._real(run_id), tag)
            raise
        self._write_tags(run_id, known, [redact_entities.item(checked)])

    def log_batch(
        self, run_id: str, metrics: Sequence[Metric], params: Sequence[Param], tags: Sequence[RunTag]
    ) -> None:
        """Write everything to the journal; valid metrics are written even if another item is invalid."""
        mlflow_internals.check_limits(metrics, params, tags)
        known = self._knows(run_id)
        if self.skips_replayed:
            metrics = [metric for metric in metrics if not self._was_there(run_id, metric.key, metric.step)]
        self._write_metrics(*self._metrics.of_many(run_id, metrics))
        params = [
            redact_entities.item(mlflow_internals.check_param(p.key, p.value, path=f"params[{at}]"))
            for at, p in enumerate(params)
        ]
        tags = [
            redact_entities.item(mlflow_internals.check_tag(t.key, t.value, path=f"tags[{at}]"))
            for at, t in enumerate(tags)
        ]
        mlflow_internals.check_unique(params)
        for param in list(params):
            before = None if known is None else known.params.get(param.key)
            if known is not None and before is not None and before != param.value:
                if self._keep_change(run_id, known, param):
                    params.remove(param)
                    continue
                ask = partial(self._inner.log_batch, self._real(run_id), [], params, [])
                self._refuse_change(run_id, param, before, ask)
        if params:
            self._write_params(run_id, known, params)
        if tags:
            self._write_tags(run_id, known, tags)

    def log_inputs(
        self,
        run_id: str,
        datasets: list[DatasetInput] | None = None,
        models: list[LoggedModelInput] | None = None,
    ) -> None:
        """Write datasets and input models to the journal."""
        mlflow_internals.check_run_id(run_id)
        self._knows(run_id)
        if datasets is not None:
            if not isinstance(datasets, list):
                raise TypeError(f"Argument 'datasets' should be a list, got '{type(datasets)}'")
            mlflow_internals.check_datasets(datasets)
        datasets = redact_entities.value(datasets)
        try:
            written = [loads(message_to_json(dataset.to_proto())) for dataset in datasets or ()]
        except (TypeError, UnicodeError) as error:
            raise MlflowException(f"inputs: {error}", error_code=INVALID_PARAMETER_VALUE) from None
        named = [model.model_id for model in models or ()]
        self._writer.write(_body("inputs", run=run_id, t=_now(), datasets=written, models=named))

    def delete_tag(self, run_id: str, key: str) -> None:
        """Write the removal to the journal; the store itself handles the removal of a tag that is not cached."""
        known = self._knows(run_id)
        if known is None or key not in known.tags:
            self.flush()
            self._require()
            self._inner.delete_tag(self._real(run_id), key)
            return
        del known.tags[key]
        self._writer.write(_body("untag", run=run_id, key=key))

    def log_metric_async(self, run_id: str, metric: Metric) -> RunOperations:
        """Write the metric to the journal and report it as done; `wait` raises the error of a rejected call."""
        return self._operations(partial(self.log_metric, run_id, metric))

    def log_param_async(self, run_id: str, param: Param) -> RunOperations:
        """Write the parameter to the journal and report it as done; `wait` raises the error of a rejected call."""
        return self._operations(partial(self.log_param, run_id, param))

    def set_tag_async(self, run_id: str, tag: RunTag) -> RunOperations:
        """Write the tag to the journal and report it as done; `wait` raises the error of a rejected call."""
        return self._operations(partial(self.set_tag, run_id, tag))

    def log_batch_async(
        self, run_id: str, metrics: Sequence[Metric], params: Sequence[Param], tags: Sequence[RunTag]
    ) -> RunOperations:
        """Write everything to the journal and report it as done; `wait` raises the error of a rejected call."""
        return self._operations(partial(self.log_batch, run_id, metrics, params, tags))

    def _operations(self, write: Callable[[], None]) -> RunOperations:
        """Write now, and return MLflow's handle, whose `wait` raises the error of the write."""
        try:
            write()
        except Exception as error:
            if not self._has_reported_rejection:  # a job that never waits does not see the error
                self._has_reported_rejection = True
                _report.warning("a call with synchronous=False was rejected: %s", mask(with_kind(error)))
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return mlflow_internals.operations(failed)
        return mlflow_internals.operations()

    def flush_async_logging(self) -> None:
        """Deliver everything written so far."""
        self.flush()

    def shut_down_async_logging(self) -> None:
        """Do nothing: MLflow calls this before it ends a run, and the journal keeps the end after everything else."""

    def end_async_logging(self) -> None:
        """Do nothing, for the same reason as `shut_down_async_logging`."""

    def set_trace_tag(self, trace_id: str, key: str, value: str) -> None:
        """Set a tag of a trace in the store, or write it to the journal while the trace itself waits there."""
        mlflow_internals.wait_for_traces_within(_TRACES_PATIENCE)
        if not self.traces.tag(trace_id, key, value):
            self.__getattr__("set_trace_tag")(trace_id, key, value)

    # Runs

    def create_run(
        self, experiment_id: str, user_id: str, start_time: int, tags: Sequence[RunTag], run_name: str | None
    ) -> Run:
        """Create the run in the store; a tag identifies the run if this process dies in the meantime.

        An unreachable store creates the run later, under another id. In this process, the id returned here refers to
        that run before and after that.
        """
        mark = uuid.uuid4().hex
        # The name is redacted like the tag that holds it too, because MLflow refuses two different names.
        run_name = None if run_name is None else redact_entities.text(run_name)
        ours = {OPENED_BY: mark, **(signs.tags(identity.job()) if self._shipper.signs.is_wanted else {})}
        tags = [*map(redact_entities.item, tags), *(RunTag(*tag) for tag in ours.items())]
        try:
            self._require()
        except StoreUnavailableError:
            return self._create_later(str(experiment_id), user_id, start_time, tags, run_name)
        with self._writer.noting():
            self._journal.run_opening(mark, str(experiment_id))
        try:
            run: Run = self._inner.create_run(experiment_id, user_id, start_time, tags, run_name)
        except Exception:
            if not self._availability.is_remote or self._availability.answers():
                raise
            # If the store has created the run after all, it is found by its mark, so no second run is created.
            return self._create_later(str(experiment_id), user_id, start_time, tags, run_name)
        self._note_open(run.info, mark)
        self._known[run.info.run_id] = CachedRun(run)
        return run

    def _create_later(
        self, experiment_id: str, user_id: str, start_time: int, tags: Sequence[RunTag], run_name: str | None
    ) -> Run:
        local = uuid.uuid4().hex
        name = run_name or f"run-{local[:8]}"
        given = {tag.key: tag.value for tag in tags}
        values = {**given, LOCAL_ID: local, MLFLOW_RUN_NAME: name}
        described = {"experiment": experiment_id, "user": user_id, "start": start_time, "name": name}
        self._journal.append(_body("create", run=local, tags=values, **described))
        run = run_to_be_made(local, experiment_id, user_id, start_time, name, values)
        self._known[local] = CachedRun(run)
        self._note_open(run.info, given[OPENED_BY])
        return run

    def is_to_be_made(self, run_id: str) -> bool:
        """Return whether the store has yet to create this run."""
        return self._to_be_made(run_id) is not None

    def _to_be_made(self, run_id: str) -> CachedRun | None:
        known = self._known.get(run_id)
        if known is None or run_id in self._ids:
            return None
        return known if known.tags.get(LOCAL_ID) == run_id else None  # a created run has this tag, and another id

    def info_of(self, run_id: str) -> RunInfo | None:
        """Return the cached info of a run; None if this process has not logged to it."""
        known = self._known.get(run_id)
        return None if known is None else known.info

    @property
    def _is_stuck(self) -> bool:
        return self._availability.is_cut and self._shipper.has_more

    def _require(self) -> None:
        """Check that the store can be used now.

        Raises:
            StoreUnavailableError: the store does not answer, or it answers but accepts no deliveries.

        """
        if self._shipper.is_asking:  # the delivering thread finds that out itself
            return
        if self._is_stuck:
            self._shipper.flush(_READ_SOON, give_up_when_cut=True)
        if self._is_stuck:
            self._availability.refuse()
        self._availability.require()

    def _real(self, value: Any) -> Any:
        """Return the store's id of a run, or of each run in a list; return any other value as it is."""
        if isinstance(value, list):
            return [self._real(one) for one in value]
        return self.real_id(value) if isinstance(value, str) else value

    def real_id(self, run_id: str) -> str:
        """Return the store's id of a run; it differs from `run_id` if the run began while the store was unreachable."""
        return self._ids.get(run_id, run_id)

    def update_run_info(
        self, run_id: str, run_status: int | None, end_time: int | None, run_name: str | None
    ) -> RunInfo:
        """Write status, end time and name to the journal, and return the run's future info."""
        known = self._knows(run_id)
        run_name = None if run_name is None else redact_entities.text(run_name)
        status = None if run_status is None else RunStatus.to_string(run_status)
        if known is None:
            self.flush()
            self._require()
            info: RunInfo = self._inner.update_run_info(self.real_id(run_id), run_status, end_time, run_name)
            return info
        try:
            changed = mlflow_internals.changed(known.info, run_status, end_time, run_name)
        except (TypeError, ValueError, UnicodeError) as error:
            raise MlflowException(f"run {run_id}: {error}", error_code=INVALID_PARAMETER_VALUE) from None
        if status == "RUNNING":  # resumed: this process will close it
            self._earlier_traces.resumed(run_id)
            self._note_open(known.info, None)
            if self._shipper.signs.is_wanted and self._just_read is None:  # otherwise the claim has set these tags
                self._writer.write(_body("tags", run=run_id, values=signs.tags(identity.job())))
        if status in ("FINISHED", "FAILED", "KILLED"):
            self.log_sums_of_traces(run_id, end_time)
        self._writer.write(_body("info", run=run_id, status=status, end=end_time, name=run_name))
        if status in ("FINISHED", "FAILED", "KILLED"):
            self._journal.run_closed(run_id)
            link = ui_url.of_run(self._availability.uri, known.info.experiment_id, run_id)
            if link is not None:  # MLflow prints it on stdout, which belongs to the job
                _report.info("run %s ended as %s: %s", known.info.run_name, status, link)
        known.info = changed
        return changed

    def log_sums_of_traces(self, run_id: str, end_time: int | None = None) -> None:
        """Write the sums of the run's traces; `end_time` is in milliseconds since 1970, now by default."""
        mlflow_internals.wait_for_traces_within(_TRACES_PATIENCE)
        trace_sums.end_run(run_id, partial(self._log_sums, run_id, end_time or int(time.time() * 1000)))

    def _log_sums(self, run_id: str, timestamp: int, sums: dict[str, float]) -> None:
        known = self._known.get(run_id)
        if known is not None and run_id in self._earlier_traces:
            try:
                self._require()
                self._earlier_traces.add(sums, run_id, self._inner, known.info.experiment_id, self.real_id(run_id))
            except Exception as error:
                text = "the sums of the traces of run %s lack those of earlier starts: %s"
                _report.warning(text, run_id, mask(with_kind(error)))
        self._write_metrics(*self._metrics.of_floats(run_id, sums, timestamp, 0))

    def get_run(self, run_id: str) -> Run:
        """Return the run from the store after a flush; if the store is unreachable, return the cached run."""
        if self._just_read is not None and run_id == self._just_read.info.run_id:
            return self._known[run_id].as_run(mlflow_internals.metrics_of(self._just_read))
        delivered = self.flush()
        known = self._known.get(run_id)
        try:
            self._require()
        except StoreUnavailableError:
            if known is None:
                raise
            return known.as_run()
        to_be_made = self._to_be_made(run_id)
        if to_be_made is not None:  # the store answers again, and will create the run soon
            return to_be_made.as_run()
        try:
            run: Run = self._inner.get_run(self._real(run_id))
        except Exception:
            if known is None or not self._availability.is_remote or self._availability.answers():
                raise
            return known.as_run()
        if delivered and run_id in self._known:  # a run that is only read is not cached
            self._known[run_id] = CachedRun(run)
        return run

    def delete_run(self, run_id: str) -> None:
        """Delete the run after a flush, and drop it from the cache."""
        self._known.pop(run_id, None)
        self.__getattr__("delete_run")(run_id)

    def restore_run(self, run_id: str) -> None:
        """Restore the run after a flush, and drop it from the cache."""
        self._known.pop(run_id, None)
        self.__getattr__("restore_run")(run_id)

    # Models

    def finalize_logged_model(self, model_id: str, status: LoggedModelStatus) -> LoggedModel:
        """Set the status of the model once its files are uploaded; until then, only this process sees it."""
        artifacts = self.artifacts
        if artifacts is not None and artifacts.count():
            model = self.get_logged_model(model_id)
            if artifacts.mark_later(model.artifact_location, model_id, str(status)):
                model.status = status
                return model
        found: LoggedModel = self.__getattr__("finalize_logged_model")(model_id, status)
        return found

    def get_logged_model(self, model_id: str, *arguments: Any, **fields: Any) -> LoggedModel:
        """Return the model from the store after a flush, with the status that it gets after its uploads."""
        found: LoggedModel = self.__getattr__("get_logged_model")(model_id, *arguments, **fields)
        status = None if self.artifacts is None else self.artifacts.status_of(model_id)
        if status is not None:
            found.status = LoggedModelStatus(status)
        return found

    # Helpers

    def after_fork(self) -> None:
        """Drop the database connections, which belong to the parent."""
        engine = getattr(self._inner, "engine", None)
        if engine is not None:
            engine.dispose(close=False)

    def _note_open(self, info: RunInfo, mark: str | None) -> None:
        known = self._known.get(info.run_id)
        attempt = 1 if known is None else run_events.attempt_of(known.tags)
        described = {"name": info.run_name or "", "experiment": info.experiment_id}
        with self._writer.noting():
            self._journal.run_opened(info.run_id, mark=mark, **described, attempt=attempt)

    @contextmanager
    def opening(self, run: Run) -> Iterator[None]:
        """Answer requests for a run from memory inside the block, because it was just read from the store."""
        self.remember(run)
        self._just_read = run
        if self.skips_replayed:
            self._replayed[run.info.run_id] = claims.steps_of(run)
        try:
            yield
        finally:
            self._just_read = None

    def remember(self, run: Run) -> None:
        """Cache a run that another process has opened, so that the store is not asked for it."""
        self._known[run.info.run_id] = CachedRun(run)
        if run_events.attempt_of(run.data.tags) > 1:
            self._earlier_traces.resumed(run.info.run_id)

    def _knows(self, run_id: str) -> CachedRun | None:
        """Return the cached run, which is first read from the store; None if the store cannot be asked.

        Raises:
            MlflowException: the run does not exist, or is deleted.

        """
        try:
            known = self._known[run_id]
        except KeyError:
            mlflow_internals.check_run_id(run_id)
            if self._availability.is_cut:
                return None  # do not wait: the store is asked once it answers
            try:
                self._require()
            except StoreUnavailableError:
                return None
            known = self._known[run_id] = CachedRun(self._inner.get_run(self.real_id(run_id)))
        if known.is_deleted:
            self._require()
            self._inner.log_batch(self.real_id(run_id), [], [], [])  # raises MLflow's error
        return known

    def _keep_change(self, run_id: str, known: CachedRun, param: Param) -> bool:
        """Record a changed parameter of a resumed run as a tag of the attempt; return False if that is not possible."""
        attempt = run_events.attempt_of(known.tags)
        name, value = claims.param_tag(attempt, param.key), claims.as_tag(param.value)
        if attempt == 1 or known.tags.get(name, value) != value:
            return False
        if name not in known.tags:
            self._write_tags(run_id, known, [RunTag(name, value)])
        if not self._has_reported_change:
            self._has_reported_change = True
            text = "the parameter %s keeps its value %s from an earlier attempt; changed values are logged as tags (%s)"
            _report.warning(text, param.key, known.params[param.key], name)
        return True

    def _was_there(self, run_id: str, key: str, step: Any) -> bool:
        """Return whether an earlier attempt of the job has logged the metric at this step or at a later one."""
        steps = self._replayed.get(run_id)
        if steps is None:
            steps = self._replayed[run_id] = self._earlier_steps(run_id)
        last = steps.get(key)
        return last is not None and isinstance(step, (int, float)) and step <= last

    def _earlier_steps(self, run_id: str) -> dict[str, Any]:
        known = self._known.get(run_id)
        if known is None or run_events.attempt_of(known.tags) == 1:
            return {}
        try:
            self._require()
            run = self._inner.get_run(self.real_id(run_id))
        except Exception as error:
            _report.warning("metrics of earlier attempts cannot be skipped: %s", mask(with_kind(error)))
            return {}
        claim = latest_claim(run.data.params)
        return {} if claim is None else claims.steps_of(run, claim.at * 1000)

    def _refuse_change(self, run_id: str, param: Param, before: str, ask: Callable[[], object]) -> None:
        """Make the store raise its own error for the change; raise one here if the store cannot be asked."""
        self.flush()
        try:
            self._require()
        except StoreUnavailableError:
            text = f"the parameter {param.key!r} of run {run_id} is {before!r} and cannot be changed to {param.value!r}"
            raise MlflowException(text, error_code=INVALID_PARAMETER_VALUE) from None
        ask()

    def _write_metrics(self, bodies: list[str], fault: Exception | None) -> None:
        """Write the valid metrics, and raise the error of the first invalid one."""
        for body in bodies:
            self._writer.write(body)
        if fault is not None:
            raise fault

    def _write_params(self, run_id: str, known: CachedRun | None, params: Sequence[Param]) -> None:
        values = {param.key: param.value for param in params}
        self._writer.write(_body("params", run=run_id, t=_now(), values=values))
        if known is not None:
            known.params |= values

    def _write_tags(self, run_id: str, known: CachedRun | None, tags: Sequence[RunTag]) -> None:
        values = {tag.key: tag.value for tag in tags}
        self._writer.write(_body("tags", run=run_id, t=_now(), values=values))
        if known is not None:
            known.tags |= values
