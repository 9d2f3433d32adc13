import functools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from joblib import parallel_config
from threadpoolctl import threadpool_info, threadpool_limits

from skdiec.parallel import in_order, in_parallel


def limits_and_thread(wait=None):
    if wait is not None:
        wait()
    return [pool["num_threads"] for pool in threadpool_info()], threading.current_thread()


@pytest.mark.parametrize("n_jobs", [2, None])
def test_calls_run_at_the_same_time_with_one_thread_each(n_jobs):
    together = threading.Barrier(2, timeout=60)  # passed by two at a time only
    with threadpool_limits(limits=2):
        before = [pool["num_threads"] for pool in threadpool_info()]
        calls = [functools.partial(limits_and_thread, together.wait)] * 4
        found = in_parallel(calls, n_jobs, threads=True)
        assert [pool["num_threads"] for pool in threadpool_info()] == before
    assert max(before) == 2
    assert all(set(limits) == {1} and thread is not threading.main_thread() for limits, thread in found)


@pytest.mark.parametrize(("n_jobs", "busy"), [(1, False), (None, True)])
def test_one_job_and_busy_cores_leave_calls_in_the_thread_of_the_caller(n_jobs, busy):
    with threadpool_limits(limits=2):
        ((limits, thread),) = in_parallel([limits_and_thread], n_jobs, busy=busy)
    assert thread is threading.main_thread()
    assert set(limits) == {1}


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_results_are_in_the_order_of_the_calls(n_jobs):
    calls = [functools.partial(int, number) for number in "31415"]
    with parallel_config("threading"):  # of processes, which take seconds to start, the search has a test
        assert in_parallel(calls, n_jobs) == [3, 1, 4, 1, 5]


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_a_pool_works_so_many_items_ahead_and_no_further(ahead):
    begun = []

    def function(item):
        begun.append(item)
        return -item

    with ThreadPoolExecutor(1) as pool:
        for place, result in enumerate(in_order(pool, function, range(6), ahead=ahead)):
            assert result == -place
            assert len(begun) <= place + 1 + ahead
    assert begun == list(range(6))
