"""Insert metrics directly into the tables of MLflow's database, many rows per statement.

SQLAlchemy's inserts of many rows release the interpreter lock after each row, and `log_batch` does so even more often.
If the job computes in Python, it takes up to 5 ms (`sys.getswitchinterval`) to get the lock back each time: 250 metrics
took 1.4 s to reach SQLite. A statement with many rows releases the lock once, and the database works beside the job.

`mlflow_names.SQL` names the parts of MLflow's SqlAlchemyStore that are used here. They are guarded by
`test_our_statement_writes_the_same_rows_as_log_batch` in `tests/io/tracking/test_write_behind.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, TypeAlias

Row: TypeAlias = tuple[str, str, float, int, int, bool]
"""One row: the values of `_COLUMNS`."""

_COLUMNS = ("run_uuid", "key", "value", "timestamp", "step", "is_nan")
_ROWS = 125
"""Rows per statement; their values stay below the 999 that an old SQLite accepts."""
_PLACES = {"sqlite": "?", "postgresql": "%s"}
"""Placeholder of a value, by database; otherwise the statements of these databases are the same."""
_OVERWRITE = ", ".join(f"{column} = excluded.{column}" for column in _COLUMNS[2:])
_AGE = ("step", "timestamp", "value")
_NEWER = "({}) > ({})".format(
    ", ".join(f"excluded.{column}" for column in _AGE), ", ".join(f"latest_metrics.{column}" for column in _AGE)
)


def insert_metrics(store: Any, run_id: str, metrics: Iterable[dict[str, Any]]) -> bool:
    """Write plain metrics to the tables of a database, in one transaction; return False if MLflow has to write them.

    Each metric has `key`, `value`, `timestamp` and `step`. Existing rows stay, and a latest value is replaced only by a
    newer one, as in MLflow.

    Raises:
        AttributeError: the tables or methods are not as expected.

    """
    from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric

    place = _PLACES.get(store.engine.dialect.name)
    if place is None:
        return False
    if not all(set(table.__table__.columns.keys()) == set(_COLUMNS) for table in (SqlMetric, SqlLatestMetric)):
        raise AttributeError("columns of the tables metrics and latest_metrics")
    rows: list[Row] = []
    latest: dict[str, Row] = {}
    for metric in metrics:
        key = metric["key"]
        is_nan, value = store.sanitize_metric_value(metric["value"])
        row = (run_id, key, value, metric["timestamp"], metric["step"], is_nan)
        rows.append(row)
        before = latest.get(key)
        if before is None or (row[4], row[3], row[2]) > (before[4], before[3], before[2]):
            latest[key] = row
    with _writing_session(store) as session:
        connection = session.connection()
        found = connection.exec_driver_sql(f"SELECT lifecycle_stage FROM runs WHERE run_uuid = {place}", (run_id,))
        if found.scalar() != "active":
            return False  # MLflow raises its own error
        for statement, values in _statements("metrics", place, rows, "NOTHING"):
            connection.exec_driver_sql(statement, values)
        # Sorted by key, so that two processes that write the same keys do not deadlock.
        newest = [latest[key] for key in sorted(latest)]
        update = f"UPDATE SET {_OVERWRITE} WHERE {_NEWER}"
        for statement, values in _statements("latest_metrics", place, newest, update):
            connection.exec_driver_sql(statement, values)
    return True


def count_points(store: Any) -> dict[str, int] | None:
    """Return the number of metric points of each run in a database; None if the store is not a database."""
    import sqlalchemy

    engine = getattr(store, "engine", None)
    if engine is None:
        return None
    with engine.connect() as connection:
        found = connection.execute(sqlalchemy.text("SELECT run_uuid, count(*) FROM metrics GROUP BY run_uuid"))
        return {str(run_id): int(count) for run_id, count in found}


def _statements(table: str, place: str, rows: Sequence[Row], conflict: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    target = "(key, run_uuid) " if table == "latest_metrics" else ""
    one = f"({', '.join([place] * len(_COLUMNS))})"
    left = iter(rows)
    while some := list(islice(left, _ROWS)):
        into = f"INSERT INTO {table} ({', '.join(_COLUMNS)}) VALUES {', '.join([one] * len(some))}"
        yield f"{into} ON CONFLICT {target}DO {conflict}", tuple(chain.from_iterable(some))


def _writing_session(store: Any) -> Any:
    try:
        return store.ManagedSessionMaker(read_only=False)
    except TypeError:  # in older versions of MLflow, every session can write
        return store.ManagedSessionMaker()
