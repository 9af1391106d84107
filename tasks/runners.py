"""Where the tasks of a flow run: threads of its process, or processes of a Dask or Ray cluster (worker.runner)."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.utilities.annotations import allow_failure

from ferry.errors import ConfigurationError
from ferry.profiles import WorkerSettings
from ferry.settings import load_settings

if TYPE_CHECKING:
    from prefect import Task

AnyRunner = TaskRunner[PrefectFuture[Any]]

# Threads that wait for an earlier step of their lane hold a place, so there are more places than lanes.
THREADS = 64


class _BySettings(AnyRunner):
    """Stands for the task runner that the settings name. Prefect asks it for a duplicate when a run begins, which is on
    the machine of that run; a flow's decorator is evaluated wherever its module is imported."""

    def duplicate(self) -> Any:
        """The task runner for one run."""
        try:
            worker = load_settings().worker
        except ConfigurationError:  # the run's first step reads them again, and its error says what is wrong
            worker = WorkerSettings()
        return _RUNNERS[worker.runner](worker)

    def submit(self, *_arguments: Any, **_named: Any) -> Any:
        """Nothing is ever submitted to a stand-in."""
        raise NotImplementedError


def task_runner() -> AnyRunner:
    """The task runner of Ferry's flows: worker.runner and worker.runner_address, read when a run begins.

    The run raises ConfigurationError when the package that the setting needs is not installed.
    """
    return _BySettings()  # type: ignore[no-untyped-call]


def _threads(_worker: WorkerSettings) -> AnyRunner:
    return cast("AnyRunner", ThreadPoolTaskRunner(max_workers=THREADS))


def _dask(worker: WorkerSettings) -> AnyRunner:
    try:
        from prefect_dask.task_runners import DaskTaskRunner
    except ImportError as error:
        raise _missing("dask", "prefect-dask") from error

    class LaneTaskRunner(DaskTaskRunner):
        """Dask with ``allow_failure`` in ``wait_for``. prefect-dask 0.3.7 hands that annotation, a tuple, to Dask,
        which takes tuples apart, so that a step that failed would end its whole lane."""

        def submit(
            self,
            task: "Task[Any, Any]",
            parameters: dict[str, Any],
            wait_for: Iterable[Any] | None = None,
            dependencies: dict[str, Any] | None = None,
        ) -> Any:
            ordered = [self._ended(earlier) for earlier in wait_for or ()]
            return super().submit(task, parameters, wait_for=ordered or None, dependencies=dependencies)

        def _ended(self, earlier: Any) -> Any:
            if not isinstance(earlier, allow_failure):
                return earlier
            client: Any = self.client
            before: Any = earlier.unwrap()
            return client.submit(_forget, before.wrapped_future, pure=False)

    if worker.runner_address:
        return cast("AnyRunner", LaneTaskRunner(address=worker.runner_address))
    # Steps of one lane wait for bytes most of the time, so a process takes several lanes.
    local = {"processes": True, "threads_per_worker": max(2, worker.parallel_nodes), "dashboard_address": "127.0.0.1:0"}
    return cast("AnyRunner", LaneTaskRunner(cluster_kwargs=local))


def _forget(_state: Any) -> None:
    """Turn the end of a step, however it ended, into nothing but the fact that it has ended."""


def _ray(worker: WorkerSettings) -> AnyRunner:
    try:
        from prefect_ray.task_runners import RayTaskRunner  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise _missing("ray", "prefect-ray") from error
    return cast("AnyRunner", RayTaskRunner(address=worker.runner_address))


_RUNNERS: dict[str, Callable[[WorkerSettings], AnyRunner]] = {"threads": _threads, "dask": _dask, "ray": _ray}


def _missing(extra: str, package: str) -> ConfigurationError:
    msg = f"worker.runner is {extra}, but {package} is not installed on this machine; nothing was changed."
    return ConfigurationError(msg, f"Install it where flows and their tasks run: pip install 'ferry[{extra}]'")
