"""The context in pools and processes of the standard library."""

from __future__ import annotations

import json
import signal

import pytest

METHODS = ("spawn", "fork", "forkserver")


@pytest.mark.parametrize("method", METHODS)
def test_bound_functions_log_to_the_run(run_job, store, log_lines, journals, method):
    """Metrics are in the run; lines have the run's id and the worker's name, in one file per process."""
    out, err = run_job(
        """
        with make_context() as context, context.run("train"), pool(sys.argv[1]) as workers:
            logger.info("here")
            print(*set(workers.map(context.bind(fold), range(6))))
        """,
        argument=method,
    )

    [run] = store.runs()
    assert (run.info.run_name, run.info.status, store.steps(run)) == ("train", "FINISHED", [0, 1, 2, 3, 4, 5])
    pids = out.split()
    lines = [line for line in log_lines("job-*.log") if line["function"] == "fold"]
    assert sorted(line["message"] for line in lines) == [f"fold {number}" for number in range(6)]
    assert {line["run_id"] for line in lines} == {run.info.run_id}
    assert {line["worker"].rpartition("-")[2] for line in lines} == set(pids)
    [here] = [line for line in log_lines("job.log") if line["message"] == "here"]
    assert here["run_id"] == run.info.run_id
    assert "worker" not in here
    assert {name.rpartition("-")[2].partition(".")[0] for name in store.logs(run)} > set(pids)
    assert journals() == []
    assert err == ""


@pytest.mark.parametrize("method", METHODS)
def test_nested_functions_have_their_own_runs(run_job, store, method):
    """Each call has a child run named after the function; a failed call's run is FAILED, and alerts."""
    out, _ = run_job(
        """
        with make_context() as context, context.run("train"), pool(sys.argv[1]) as workers:
            list(workers.map(context.bind(fold, nested=True), range(3)))
            failed = workers.submit(context.bind(fail, nested="doomed"), 7)
            assert isinstance(failed.exception(), ValueError), failed
        """,
        """
        def fail(number):
            mlflow.log_param("number", number)
            raise ValueError(f"bad fold {number}")
        """,
        argument=method,
    )

    children = store.children()
    assert [run.info.run_name for run in children] == ["fold"] * 3 + ["doomed"]
    assert sorted(store.steps(run) for run in children) == [[], [0], [1], [2]]
    assert all("autogen_team.worker" in run.data.tags for run in children)
    doomed = children[-1]
    assert (doomed.info.status, doomed.data.params) == ("FAILED", {"number": "7"})
    assert doomed.data.tags["autogen_team.exception"] == "ValueError: bad fold 7"
    assert store.run("train").info.status == "FINISHED"
    alert, *_ = out.splitlines()
    assert alert.startswith("[job] doomed failed: ")


@pytest.mark.parametrize("method", METHODS)
def test_an_initializer_makes_a_whole_process_join_the_context(run_job, store, journals, method):
    """With the initializer, unchanged functions log to the run in pools of both modules."""
    run_job(
        """
        method = multiprocessing.get_context(sys.argv[1])
        with make_context() as context, context.run("train"):
            with pool(sys.argv[1], initializer=context.initializer()) as workers:
                list(workers.map(fold, range(4)))
            with method.Pool(2, context.initializer()) as workers:
                workers.map(fold, range(4, 8))
                workers.close()
                workers.join()
        """,
        argument=method,
    )

    [run] = store.runs()
    assert store.steps(run) == list(range(8))
    assert journals() == []


@pytest.mark.slow
def test_an_initializer_can_give_each_process_a_run(run_job, store):
    """The child run of a process contains the metrics of all its tasks."""
    run_job(
        """
        with make_context() as context, context.run("train"):
            with pool("spawn", initializer=context.initializer(nested=True)) as workers:
                list(workers.map(fold, range(8)))
        """
    )

    children = store.children()
    assert children
    names = {f"worker {run.data.tags['autogen_team.worker']}" for run in children}
    assert {run.info.run_name for run in children} == names
    assert {run.info.status for run in children} == {"FINISHED"}
    assert sorted(step for run in children for step in store.steps(run)) == list(range(8))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_terminated_worker_leaves_its_child_killed(run_job, store, journals, method):
    """`Process.terminate` and schedulers send SIGTERM; the job continues."""
    run_job(
        """
        method = multiprocessing.get_context(sys.argv[1])
        with make_context() as context, context.run("train"):
            here, there = method.Pipe()
            worker = method.Process(target=context.bind(wait, nested=True), args=(there,))
            worker.start()
            here.recv()
            worker.terminate()
            worker.join()
            assert worker.exitcode == 128 + signal.SIGTERM, worker.exitcode
            mlflow.log_metric("accuracy", 1.0, step=1)
            mine = mlflow.get_run(mlflow.active_run().info.run_id)
            assert (mine.info.status, mine.data.tags.get("autogen_team.exception")) == ("RUNNING", None), mine
        """,
        """
        def wait(begun):
            mlflow.log_metric("accuracy", 0.5, step=5)
            begun.send("begun")
            time.sleep(60)
        """,
        argument=method,
    )

    [child] = store.children()
    assert (child.info.run_name, child.info.status, store.steps(child)) == ("wait", "KILLED", [5])
    assert child.data.tags["autogen_team.exception"] == "SIGTERM"
    parent = store.run("train")
    assert (parent.info.status, store.steps(parent)) == ("FINISHED", [1])
    assert journals() == []


@pytest.mark.parametrize("method", METHODS)
def test_the_death_of_a_worker_is_recovered(run_job, run_python, store, journals, wait_until, method):
    """Entries of the dead worker arrive in both runs, and its child does not stay RUNNING."""
    run_job(
        """
        method = multiprocessing.get_context(sys.argv[1])
        with make_context() as context, context.run("train"):
            for nested in (False, "child"):
                worker = method.Process(target=context.bind(die, nested=nested))
                worker.start()
                worker.join()
                assert worker.exitcode == -signal.SIGKILL, worker.exitcode
        """,
        """
        def die():
            for step in range(200):
                mlflow.log_metric("accuracy", 0.5, step=step)
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        argument=method,
    )
    status, _, err = run_python("-m", "autogen_team", "recover")

    assert status == 0, err
    wait_until(lambda: journals() == [])  # an agent finishes a recovery that it has begun
    [child] = store.children()
    assert (child.info.run_name, child.info.status, store.steps(child)) == ("child", "KILLED", list(range(200)))
    parent = store.run("train")
    assert (parent.info.status, store.steps(parent)) == ("FINISHED", list(range(200)))


@pytest.mark.slow
def test_a_worker_sends_only_alerts_about_errors(run_job, store, log_lines):
    """There may be a thousand workers; their other alerts are logged."""
    out, _ = run_job(
        """
        with make_context() as context, context.run("train"), pool("spawn") as workers:
            workers.submit(context.bind(tell)).result()
        """,
        """
        def tell():
            context = GlobalContext.current()
            context.notify("done", "one of many")
            context.notify("broken", "look here", level="error")
        """,
    )

    assert out == "[job] broken: look here\n"
    assert "alert from a worker, not sent: done: one of many" in [line["message"] for line in log_lines("job-*.log")]


@pytest.mark.slow
def test_an_exception_in_a_worker_is_in_its_log(run_job, store, log_lines):
    """Pools shorten or drop the traceback; in the worker's log it is complete, and masked."""
    run_job(
        """
        with make_context() as context, context.run("train"), pool("spawn") as workers:
            assert workers.submit(context.bind(int), "https://bob:hunter2@host").exception()
        """
    )

    [line] = [line for line in log_lines("job-*.log") if line["level"] == "ERROR"]
    assert line["message"] == "int failed"
    assert "invalid literal" in line["exception"]
    assert "hunter2" not in json.dumps(line)


def test_threads_log_to_the_open_run(run_job, store):
    """In the same process nothing is started; with `nested` each call has a child run."""
    run_job(
        """
        with make_context() as context, context.run("train"), ThreadPoolExecutor(4) as workers:
            list(workers.map(context.bind(fold), range(6)))
            list(workers.map(context.bind(fold, nested=True), range(10, 14)))
        """
    )

    assert store.steps(store.run("train")) == list(range(6))
    assert sorted(store.steps(run) for run in store.children()) == [[10], [11], [12], [13]]
    assert {run.info.status for run in store.children()} == {"FINISHED"}


def test_coroutines_and_generators_have_the_context_while_they_run(run_job, store):
    """The caller's context is unchanged between their steps."""
    run_job(
        """
        with make_context() as context, context.run("train"), pool("spawn") as workers:
            workers.submit(use, context.bind(wait, nested=True), context.bind(count, nested=True)).result()
        """,
        """
        async def wait(number):
            await asyncio.sleep(0.01)
            fold(number)

        def count(number):
            for each in range(number):
                fold(each)
                yield each

        def use(wait, count):
            async def both():
                await asyncio.gather(wait(1), wait(2))
            asyncio.run(both())
            assert list(count(3)) == [0, 1, 2]
            assert mlflow.active_run() is None
        """,
    )

    found = sorted((run.info.run_name, store.steps(run)) for run in store.children())
    assert found == [("count", [0, 1, 2]), ("wait", [1]), ("wait", [2])]


@pytest.mark.slow
def test_a_worker_can_have_workers(run_job, store):
    """They work for the run that is open in the outer worker."""
    run_job(
        """
        with make_context() as context, context.run("train"), pool("spawn") as workers:
            workers.submit(context.bind(search, nested=True)).result()
        """,
        """
        def search():
            with pool("spawn") as workers:
                list(workers.map(GlobalContext.current().bind(fold, nested=True), range(2)))
        """,
    )

    assert sorted(store.steps(run) for run in store.children("search")) == [[0], [1]]
    assert [run.info.run_name for run in store.children("train")] == ["search"]


@pytest.mark.slow
def test_a_worker_works_for_one_run_after_another(run_job, store):
    """A pool can outlive a run, and each bound function refers to its own run."""
    run_job(
        """
        with make_context() as context, pool("spawn") as workers:
            for name in ("first", "second"):
                with context.run(name):
                    list(workers.map(context.bind(fold), range(3)))
        """
    )

    assert [(run.info.run_name, store.steps(run)) for run in store.runs()] == [
        ("first", [0, 1, 2]),
        ("second", [0, 1, 2]),
    ]


def test_the_logs_of_runs_are_closed_although_the_worker_is_never_idle(run_job, store):
    """If one thread works for a run for days, the logs of other runs are still closed."""
    out, _ = run_job(
        """
        with make_context() as context, pool("spawn") as workers:
            with context.run("long"):
                long = context.bind(wait_long)
            bound = []
            for name in ("first", "second"):
                with context.run(name):
                    bound.append(context.bind(fold))
            print("logs", *workers.submit(work, long, bound).result())
        """,
        """
        over = threading.Event()


        def wait_long():
            over.wait(60)


        def work(long, bound):
            from autogen_team import _propagation

            with ThreadPoolExecutor(1) as beside:
                waiting = beside.submit(long)
                counts = []
                for number in range(6):
                    bound[number % 2](number)
                    [started] = _propagation._Process.here()._started
                    counts.append(len(started.logs))
                over.set()
                waiting.result()
            return counts
        """,
    )

    assert max(map(int, out.split()[1:])) == 2  # the logs of the long run and of the previous run
    assert store.steps(store.run("first")) == [0, 2, 4]


@pytest.mark.slow
def test_autologging_works_only_in_a_worker_s_own_runs(run_job, store):
    """Several workers would set a parameter of one run differently, which MLflow rejects."""
    run_job(
        """
        with make_context(autolog_log_models=False) as context, context.run("train"), pool("spawn") as workers:
            for nested in (False, True):
                list(workers.map(context.bind(fit, nested=nested), (0.1, 1.0)))
        """,
        """
        def fit(strength):
            from sklearn.linear_model import LogisticRegression
            LogisticRegression(C=strength).fit([[0.0], [1.0]], [0, 1])
        """,
    )

    assert store.run("train").data.params == {}
    assert sorted(run.data.params["C"] for run in store.children()) == ["0.1", "1.0"]


@pytest.mark.slow
def test_an_unreachable_server_does_not_stop_a_worker(start_python, run_python, write_job, server, store, journals):
    """Its entries wait on disk, and are delivered when the store is back."""
    job = write_job(
        f"""
        with make_context(tracking_uri={server.uri!r}) as context, context.run("train", log_system_metrics=False):
            print("begun")
            sys.stdin.readline()
            with pool("spawn") as workers:
                list(workers.map(context.bind(fold), range(4)))
            print("done")
            sys.stdin.readline()
        """
    )
    process = start_python(job, stdin=-1)
    process.wait_for("begun")
    server.kill()
    process.popen.stdin.write("\n")
    process.popen.stdin.flush()
    process.wait_for("done")
    assert journals()
    server.start()
    status, _, err = process.finish("\n")
    assert status == 0, err
    status, _, err = run_python("-m", "autogen_team", "sync")

    assert status == 0, err
    client = server.client()
    [run] = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert run.info.status == "FINISHED"
    assert sorted(metric.step for metric in client.get_metric_history(run.info.run_id, "accuracy")) == [0, 1, 2, 3]
    assert journals() == []


@pytest.mark.slow
def test_ctrl_c_is_handled_once(start_python, write_job, store):
    """Ctrl-C reaches the workers too; the run is KILLED once, and the job ends as without us."""
    job = write_job(
        """
        with make_context() as context, context.run("train"), pool("fork") as workers:
            list(workers.map(context.bind(fold), range(2)))
            print("begun")
            time.sleep(60)
        """
    )
    process = start_python(job)
    process.wait_for("begun")
    process.send(signal.SIGINT)
    status, out, _ = process.finish()

    assert status in (-signal.SIGINT, 130)
    [run] = store.runs()
    assert (run.info.status, store.steps(run)) == ("KILLED", [0, 1])
    assert out.count("train was killed") == 1
