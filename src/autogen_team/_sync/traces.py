"""Copy traces from one MLflow store to another.

A copy has the id of its original, because log lines and links name a trace by its id. Two tags describe it:

- `autogen_team.copied_from`, the id of the experiment in the source;
- `autogen_team.copied_content`, a digest of the original, set by the last request. If the original has changed since,
  or the tag is missing, the trace is sent again; a store merges repeated traces.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mlflow.entities import Run, Span, TraceData, TraceInfo
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient
from mlflow.tracing.constant import AssessmentMetadataKey, SpansLocation, TraceMetadataKey, TraceTagKey
from mlflow.utils.mlflow_tags import MLFLOW_ARTIFACT_LOCATION

from autogen_team._ship import uris
from autogen_team._sync.files import Findings, Store, Tell, pages, send_files
from autogen_team._sync.models import COPIED_CONTENT, COPIED_FROM, Models, Owner

_OF_A_COPY = frozenset({COPIED_FROM, COPIED_CONTENT})
_OF_THE_STORE = frozenset({MLFLOW_ARTIFACT_LOCATION, TraceTagKey.SPANS_LOCATION})
"""Tags that each store sets itself."""
_IN_DATABASE = frozenset({SpansLocation.TRACKING_STORE.value, "ARCHIVE_REPO"})  # MLflow 3.10 cannot archive
_COMPLETE = "mlflow.trace_schema.version"
"""Metadata that only a completely stored trace has."""
_ATTACHMENT = "mlflow-attachment://"
_ID_OF_OPENTELEMETRY = re.compile(r"tr-[0-9a-f]{32}")
_PER_PAGE = 500
_LINKS_PER_REQUEST = 100


@dataclass(slots=True)
class Sent:
    """Numbers of traces sent."""

    new: int = 0
    changed: int = 0
    """Traces that were copied before and have changed since."""


class Traces:
    """The traces of the source, and their copies on the target."""

    def __init__(
        self,
        source: Store,
        target: Store,
        models: Models,
        experiment: Callable[[str], str],
        relink: Callable[[str], str],
    ) -> None:
        """`experiment` maps the id of an experiment in the source to that on the target; `relink` is `Registry.relink`.

        `experiment` creates a missing experiment.
        """
        self._source = source
        self._target = target
        self._models = models
        self._experiment = experiment
        self._relink = relink
        self._links: dict[str, list[str]] = {}
        self._known: dict[str, TraceInfo] = {}
        self._made_by: defaultdict[str | None, list[TraceInfo]] = defaultdict(list)

    def learn(self, experiment_ids: list[str]) -> None:
        """Read the traces of these experiments, without their spans."""
        for experiment_id in experiment_ids:
            for info in sorted(_infos(self._source, [experiment_id]), key=lambda info: info.request_time):
                self._known[info.trace_id] = info
                self._made_by[info.trace_metadata.get(TraceMetadataKey.SOURCE_RUN)].append(info)

    def made_by(self, run_id: str) -> list[TraceInfo]:
        """Return the traces that were recorded in a run."""
        return self._made_by.get(run_id, [])

    def of_other_runs(self, experiment_id: str, is_copied: Callable[[str], bool]) -> list[TraceInfo]:
        """Return the traces of an experiment that were recorded outside runs, or in a run that is not copied."""
        return [
            info
            for run_id, infos in self._made_by.items()
            if run_id is None or not is_copied(run_id)
            for info in infos
            if info.experiment_id == experiment_id
        ]

    def describe(self, run: Run) -> list[object]:
        """Return a value that changes with the traces of a run and with their links; empty if there are none."""
        own = sorted((info.trace_id, _digest(info)) for info in self.made_by(run.info.run_id))
        return [*own, *self._linked(run)]

    def send_of(self, run: Run, copied: Run, owner: Owner, findings: Findings, tell: Tell) -> int:
        """Send the missing and changed traces of a run, and return their number.

        A trace that is linked to the run, but was recorded in another run, is sent too and linked to the copy.
        """
        linked = [self._known[trace_id] for trace_id in self._linked(run) if trace_id in self._known]
        infos = [*self.made_by(run.info.run_id), *linked]
        sent, there = Sent(), dict[str, TraceInfo]()
        if not infos or self._is_refused(infos, findings):
            return 0
        with findings.of("traces"):
            places = {copied.info.experiment_id, *(self._experiment(info.experiment_id or "") for info in infos)}
            there = {info.trace_id: info for info in _infos(self._target, sorted(places), run_id=copied.info.run_id)}
        for info in infos:
            self._send(info, there.get(info.trace_id), owner, sent, findings, tell)
        missing = [info.trace_id for info in linked if info.trace_id not in there]
        for start in range(0, len(missing), _LINKS_PER_REQUEST):
            with findings.of("links to traces"):
                batch = missing[start : start + _LINKS_PER_REQUEST]
                self._target.client.link_traces_to_run(batch, copied.info.run_id)
        return sent.new + sent.changed

    def send_others(self, infos: list[TraceInfo], owner: Owner, findings: Findings, tell: Tell) -> Sent:
        """Send the traces that are missing or changed on the target; all belong to one experiment."""
        sent, there = Sent(), dict[str, TraceInfo]()
        if not self._is_refused(infos, findings):
            with findings.of("traces"):
                experiment_id = infos[0].experiment_id or ""
                there = self._copied_before(experiment_id, self._experiment(experiment_id))
            for info in infos:
                self._send(info, there.get(info.trace_id), owner, sent, findings, tell)
        return sent

    def count_missing(self, infos: list[TraceInfo], experiment_id: str | None, findings: Findings) -> int:
        """Return the number of traces to send to an experiment of the target; all belong to one experiment."""
        if self._is_refused(infos, findings):
            return 0
        there = self._copied_before(infos[0].experiment_id or "", experiment_id) if experiment_id else {}
        return sum(not _is_same(info, there.get(info.trace_id)) for info in infos)

    def _is_refused(self, infos: list[TraceInfo], findings: Findings) -> bool:
        is_folder = uris.is_folder(self._target.uri)
        if is_folder and infos:
            findings.leave(f"{len(infos)} traces, because the target is a folder; copy to a database or a server")
        return is_folder

    def _linked(self, run: Run) -> list[str]:
        """Return the ids of the traces that are linked to a run, but were recorded elsewhere."""
        if not self._known or uris.is_folder(self._source.uri):  # a file store has no links
            return []
        run_id = run.info.run_id
        if run_id not in self._links:
            places = {run.info.experiment_id, *(info.experiment_id or "" for info in self._known.values())}
            found = {info.trace_id for info in _infos(self._source, sorted(places), run_id=run_id)}
            self._links[run_id] = sorted(found - {info.trace_id for info in self.made_by(run_id)})
        return self._links[run_id]

    def _copied_before(self, experiment_id: str, target_id: str) -> dict[str, TraceInfo]:
        wanted = f"tag.`{COPIED_FROM}` = '{experiment_id}'"
        return {info.trace_id: info for info in _infos(self._target, [target_id], filter_string=wanted)}

    def _send(
        self, info: TraceInfo, there: TraceInfo | None, owner: Owner, sent: Sent, findings: Findings, tell: Tell
    ) -> None:
        with findings.of(f"trace {info.trace_id}"):
            if _is_same(info, there):
                return
            if there is None and COPIED_FROM in info.tags and self._is_held(info.trace_id):
                findings.leave(f"the trace {info.trace_id}, because the target itself has it: it came from there")
                return
            if self._target.folder is None and not _ID_OF_OPENTELEMETRY.fullmatch(info.trace_id):
                findings.leave(f"the trace {info.trace_id}, because it has an id of MLflow 2, which servers replace")
                return
            tell(f"trace {info.trace_id}")
            self._bring(info, owner, findings, tell)
            if there is None:
                sent.new += 1
            else:
                sent.changed += 1

    def _is_held(self, trace_id: str) -> bool:
        try:
            found = TracingClient(self._target.uri).get_trace_info(trace_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"):
                raise
            return False
        return COPIED_FROM not in found.tags and _COMPLETE in found.trace_metadata

    def _bring(self, info: TraceInfo, owner: Owner, findings: Findings, tell: Tell) -> None:
        spans, faults = self._spans(info), len(findings.faults)
        described = self._described(info, owner, findings)
        has_files = any(_ATTACHMENT in str(value) for span in spans for value in span.attributes.values())
        if not has_files:
            described.tags[COPIED_CONTENT] = _digest(info)
        client = TracingClient(self._target.uri)
        if spans:
            client.log_spans(described.experiment_id or "", spans)
        # After the spans, as in MLflow: the token sums in the trace replace the target's own sums.
        stored = client.start_trace(described)
        if has_files:
            here, there = info.tags[MLFLOW_ARTIFACT_LOCATION], stored.tags[MLFLOW_ARTIFACT_LOCATION]
            files = self._source.files(here), self._target.files(there)
            send_files(*files, renamed={}, since=None, findings=findings, tell=tell)
            if len(findings.faults) == faults:
                client.set_trace_tag(info.trace_id, COPIED_CONTENT, _digest(info))

    def _spans(self, info: TraceInfo) -> list[Span]:
        if info.tags.get(TraceTagKey.SPANS_LOCATION) in _IN_DATABASE:
            # Partial, because the trace of a killed process may lack spans.
            return list(TracingClient(self._source.uri).store.get_trace(info.trace_id, allow_partial=True).data.spans)
        files = self._source.files(info.tags[MLFLOW_ARTIFACT_LOCATION])
        return list(TraceData.from_dict(files.download_trace_data()).spans)

    def _described(self, info: TraceInfo, owner: Owner, findings: Findings) -> TraceInfo:
        """Return the info of a trace for the target, with the ids of experiment, run and model there."""
        found = copy.deepcopy(info)
        found.experiment_id = self._experiment(info.experiment_id or "")
        found.tags = {COPIED_FROM: info.experiment_id or "", **_own_tags(info)}
        if linked := found.tags.get(TraceTagKey.LINKED_PROMPTS):
            found.tags[TraceTagKey.LINKED_PROMPTS] = self._relink(linked)
        run_id = found.trace_metadata.pop(TraceMetadataKey.SOURCE_RUN, None)
        if run_id and (copy_id := owner(run_id)):
            found.trace_metadata[TraceMetadataKey.SOURCE_RUN] = copy_id
        elif run_id:
            findings.notes.append(f"the run {run_id} of the trace {info.trace_id} is gone, so the copy has none")
        if model := self._models.get(found.trace_metadata.get(TraceMetadataKey.MODEL_ID, "")):
            found.trace_metadata[TraceMetadataKey.MODEL_ID] = self._models.copy(model, owner).model_id
        for assessment in found.assessments:
            if assessment.run_id and (copy_id := owner(assessment.run_id)):
                assessment.run_id = copy_id
                assessment.metadata = {**(assessment.metadata or {}), AssessmentMetadataKey.SOURCE_RUN_ID: copy_id}
        return found


def _infos(store: Store, experiment_ids: list[str], **wanted: str) -> Iterator[TraceInfo]:
    search = store.client.search_traces
    found = pages(search, locations=experiment_ids, max_results=_PER_PAGE, include_spans=False, **wanted)
    return (trace.info for trace in found)


def _own_tags(info: TraceInfo) -> dict[str, str]:
    return {key: value for key, value in info.tags.items() if key not in _OF_A_COPY | _OF_THE_STORE}


def _digest(info: TraceInfo) -> str:
    """Return a digest of a trace except its spans, which do not change once the trace has ended."""
    found = (
        info.request_time,
        str(info.state),
        info.execution_duration,
        info.client_request_id,
        info.request_preview,
        info.response_preview,
        sorted(info.trace_metadata.items()),
        sorted(_own_tags(info).items()),
        sorted(str(assessment.to_proto()) for assessment in info.assessments),  # type: ignore[no-untyped-call]
    )
    return hashlib.sha256(repr(found).encode(errors="surrogatepass")).hexdigest()[:16]


def _is_same(info: TraceInfo, there: TraceInfo | None) -> bool:
    return there is not None and there.tags.get(COPIED_CONTENT) == _digest(info)
