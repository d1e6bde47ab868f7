"""Loaded by Python at startup in the process of a supervised job, before the job's own code.

It removes its traces from the path and the environment, runs the `sitecustomize` that Python would have run, and waits.
`inside` sets up the context when the job imports a library that needs it. Before that, this module loads only modules
that every Python has loaded at this point.

The import hook must not leave frames in the traceback of a failing import. So it does not wrap the loader. It replaces
the class of the module's spec, because importlib sets the spec's attribute `_initializing` before and after it executes
a module.
"""

import _thread
import atexit
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec as _ModuleSpec
    from types import ModuleType
    from typing import Any

    from autogen_team.cli._supervisor.inside import Inside
else:
    _ModuleSpec = type(sys.__spec__)  # the class of all specs, without another import

ADDRESS = "AUTOGEN_TEAM_JOB_SOCKET"
"""The variable with the path of the supervisor's socket."""
PATH = "AUTOGEN_TEAM_JOB_PYTHONPATH"
"""The variable with the PYTHONPATH of the job; not set if the job has no PYTHONPATH."""
LIBRARIES = frozenset(
    {
        "mlflow",
        # libraries supported by `mlflow.autolog`
        "agno",
        "anthropic",
        "autogen",
        "autogen_agentchat",
        "boto3",
        "crewai",
        "dspy",
        "google.genai",
        "google.generativeai",
        "groq",
        "haystack",
        "keras",
        "langchain",
        "lightgbm",
        "lightning",
        "litellm",
        "llama_index.core",
        "mistralai",
        "openai",
        "pydantic_ai",
        "pyspark",
        "pyspark.ml",
        "pytorch_lightning",
        "setfit",
        "sklearn",
        "smolagents",
        "statsmodels",
        "strands",
        "tensorflow",
        "transformers",
        "typesafe_sdk",
        "xgboost",
    }
)
"""Modules whose import sets up MLflow in the job."""
_OURS, _CONTEXT = "autogen_team", "autogen_team.context"


class _Spec(_ModuleSpec):
    """A spec that notifies the hook when the execution of its module begins and ends."""

    @property
    def _initializing(self) -> bool:
        return bool(self.__dict__.get("_initializing"))

    @_initializing.setter
    def _initializing(self, value: bool) -> None:
        self.__dict__["_initializing"] = value
        if value:
            _job.began()
        else:
            self.__class__ = _ModuleSpec  # type: ignore[assignment]
            module = sys.modules.get(self.name)
            _job.ended(self.name, None if getattr(module, "__spec__", None) is not self else module)


class _Job:
    """A finder in `sys.meta_path` that watches imports but finds no modules itself, and later holds the context."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._pid = os.getpid()
        self._depth: dict[int, int] = {}
        """Number of watched modules that each thread is executing."""
        self._wanted: list[str] = []
        self._is_busy = False
        self._inside: Inside | None = None
        self._give_back_logging: Callable[[], None] | None = None
        sys.meta_path.insert(0, self)
        if "logging" in sys.modules:
            self._watch_logging(sys.modules["logging"])
        atexit.register(self._finish)  # registered first, so it is called last
        os.register_at_fork(after_in_child=self._leave)

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> _ModuleSpec | None:
        """Return the spec from the other finders, with our hook in it, if the module is watched."""
        if name in LIBRARIES or name in ("loguru", "logging") or name.partition(".")[0] == _OURS:
            for finder in sys.meta_path:
                spec = None if finder is self else finder.find_spec(name, path, target)
                if spec is not None:
                    if type(spec) is _ModuleSpec:
                        spec.__class__ = _Spec
                    return spec
        return None

    def began(self) -> None:
        """Note that this thread executes a watched module."""
        thread = _thread.get_ident()
        self._depth[thread] = self._depth.get(thread, 0) + 1

    def ended(self, name: str, module: "ModuleType | None") -> None:
        """Note the end of the execution; set up what the module needs, unless a half-loaded module imports it."""
        thread = _thread.get_ident()
        self._depth[thread] -= 1
        is_for_tracking = name in LIBRARIES or (name == _CONTEXT and not self._is_busy)  # busy: we import it ourselves
        if module is not None and is_for_tracking:
            self._wanted.append("tracking")
        elif module is not None and name == "loguru":
            self._wanted.append("logging")
        elif module is not None and name == "logging":
            self._watch_logging(module)
        if not self._depth[thread]:
            del self._depth[thread]
            if self._wanted:
                self._start()

    def _start(self) -> None:
        """Set up the requested parts; the first thread also handles the requests of other threads."""
        if self._is_busy or os.getpid() != self._pid:
            return
        self._is_busy = True
        try:
            if self._give_back_logging is not None:
                self._give_back_logging()
            while self._wanted:
                if self._inside is None:
                    from autogen_team.cli._supervisor.inside import Inside

                    self._inside = Inside(self._address)
                getattr(self._inside, f"start_{self._wanted.pop(0)}")()
        except Exception as error:
            self._wanted.clear()
            _say(f"the job runs without its context: {type(error).__name__}: {error}")
        finally:
            self._is_busy = False

    def _watch_logging(self, logging: "Any") -> None:
        """Start logging before the first record is handled, and before handlers are configured."""
        handle, configure = logging.Logger.callHandlers, logging.basicConfig

        def give_back() -> None:
            self._give_back_logging = None
            logging.Logger.callHandlers, logging.basicConfig = handle, configure

        def start() -> None:
            if self._give_back_logging is not None:
                give_back()
                self._wanted.append("logging")
                self._start()

        def callHandlers(logger: "Any", record: object) -> None:  # noqa: N802 - logging's own name
            start()
            logger.callHandlers(record)

        def basicConfig(**settings: "Any") -> None:  # noqa: N802 - logging's own name
            start()
            logging.basicConfig(**settings)

        self._give_back_logging = give_back
        logging.Logger.callHandlers, logging.basicConfig = callHandlers, basicConfig

    def _leave(self) -> None:
        """Stop watching in a process that the job has forked."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        if self._give_back_logging is not None:
            self._give_back_logging()

    def _finish(self) -> None:
        """Report to the supervisor how the job ends, after all of the job's exit handlers."""
        if os.getpid() != self._pid:
            return
        self._leave()
        error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
        if self._inside is None and error is None:
            return
        try:
            if self._inside is None:
                from autogen_team.cli._supervisor.asking import tell_end

                tell_end(self._address, error)
            else:
                self._inside.finish(error)
        except Exception as fault:
            _say(f"the end of the job could not be reported: {type(fault).__name__}: {fault}")
        if isinstance(error, KeyboardInterrupt):
            # Python ends itself by SIGINT, unless `exec` or `eval` ran since the interrupt, as when modules are loaded.
            try:
                exec("raise KeyboardInterrupt")  # noqa: S102  # nosec B102
            except KeyboardInterrupt:
                return


def _say(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)  # noqa: T201 - no other module of ours is loaded


_job: _Job
"""Set only in a job."""


def _begin() -> None:
    """Restore the path and the environment of the job, watch imports, and run the job's own `sitecustomize`."""
    global _job
    folder = os.path.dirname(__file__)  # noqa: PTH120 - avoids loading pathlib
    sys.path[:] = [entry for entry in sys.path if entry != folder]
    sys.path_importer_cache.pop(folder, None)
    del os.environ["PYTHONPATH"]
    if PATH in os.environ:
        os.environ["PYTHONPATH"] = os.environ.pop(PATH)
    _job = _Job(os.environ.pop(ADDRESS))
    del sys.modules["sitecustomize"]
    import sitecustomize  # type: ignore[import-not-found]  # noqa: F401 - Python expects an ImportError if there is none


if ADDRESS in os.environ:  # not if the supervisor or a test imports this module for its names
    _begin()
