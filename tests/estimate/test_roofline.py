"""Times of operators worked by hand from a profile with round numbers."""

from __future__ import annotations

import numpy as np
import pytest

from edgekd._estimate_profile import Cores, DeviceProfile, Memory, Rates
from edgekd._roofline import Operator, operator_us, total_ms, work_of


def profile_of(**changes) -> DeviceProfile:
    """Two cores with 10 float32 and 40 int8 products a ns, one slower; 1 GB/s, 1000 bytes of cache at 10 GB/s."""
    share = {"conv": 0.5, "depthwise": 0.1, "gemm": 0.25, "elementwise": 0.1, "pool": 0.1, "move": 0.1}
    values = {
        "name": "round",
        "title": "Round numbers",
        "runtime": "none",
        "basis": "assumed",
        "threads": 1,
        "cores": [
            Cores(name="fast", count=2, clock_ghz=1.0, macs_per_cycle={"float32": 10.0, "int8": 40.0}, source="-"),
            Cores(name="slow", count=1, clock_ghz=0.5, macs_per_cycle={"float32": 4.0, "int8": 8.0}, source="-"),
        ],
        "memory": Memory(gb_per_s=1.0, cache_bytes=1000, cache_gb_per_s_of_one_core=10.0, source="-"),
        "rates": Rates(utilisation={"float32": share, "int8": share}, memory_share=1.0, overhead_us=2.0, source="-"),
    }
    return DeviceProfile.model_validate({**values, **changes})


def operator(kind="conv", macs=0, weights=0, reads=0, writes=0, element_type="float32") -> Operator:
    return Operator("n", "Op", kind, "float32", macs, macs, weights, reads, writes, 0, 0, 0).as_type(element_type)


def test_computing_decides_where_there_is_much_of_it() -> None:
    # 10 products a cycle at 1 GHz, half of it reached: 5e9 a second; 5e6 take 1000 us, and 2 us for the operator
    found = operator_us(work_of([operator(macs=5_000_000, reads=10, writes=10)]), profile_of(), threads=1)
    assert found == pytest.approx([1002.0])


def test_bytes_decide_where_there_are_many() -> None:
    # 1e6 elements of 4 bytes are past the cache: 4e6 bytes at 1e9 a second are 4000 us
    found = operator_us(work_of([operator(macs=1000, reads=500_000, writes=500_000)]), profile_of(), threads=1)
    assert found == pytest.approx([4002.0])


def test_activations_that_fit_come_from_the_cache_and_weights_from_memory() -> None:
    # 200 elements are 800 bytes at 10e9 a second: 0.08 us; 1000 weights are 4000 bytes at 1e9: 4 us
    found = operator_us(work_of([operator(weights=1000, reads=100, writes=100)]), profile_of(), threads=1)
    assert found == pytest.approx([6.08])


def test_a_model_that_fits_whole_reads_its_weights_from_the_cache() -> None:
    # 100 weights and 100 activations are 800 bytes together
    found = operator_us(work_of([operator(weights=100, reads=50, writes=50)]), profile_of(), threads=1)
    assert found == pytest.approx([2.0 + 0.08])


def test_int8_has_its_own_peak_and_a_quarter_of_the_bytes() -> None:
    one = operator(macs=20_000_000, reads=10, writes=10, element_type="int8")
    assert operator_us(work_of([one]), profile_of(), threads=1) == pytest.approx([1002.0])
    many = operator(reads=500_000, writes=500_000, element_type="int8")
    assert operator_us(work_of([many]), profile_of(), threads=1) == pytest.approx([1002.0])


def test_a_type_without_a_peak_runs_as_float32() -> None:
    half = operator(macs=5_000_000, element_type="float16")
    assert operator_us(work_of([half]), profile_of(), threads=1) == pytest.approx([1002.0])


@pytest.mark.parametrize(("threads", "peak"), [(1, 10e9), (2, 20e9), (3, 22e9), (9, 22e9)])
def test_threads_take_the_fastest_cores_first(threads: int, peak: float) -> None:
    assert profile_of().peak("float32", threads) == pytest.approx(peak)


def test_threads_add_less_where_the_profile_says_so() -> None:
    rates = profile_of().rates.model_copy(update={"parallel": 0.5})
    assert profile_of(rates=rates.model_dump()).peak("float32", 3) == pytest.approx(10e9 + 0.5 * 12e9)


def test_a_gpu_uses_all_it_has_whatever_the_threads() -> None:
    gpu = profile_of(processor="gpu")
    assert gpu.peak("float32", 1) == pytest.approx(22e9)
    assert gpu.bandwidth_gb_s(1) == pytest.approx((1.0, 30.0))


def test_one_core_cannot_have_all_the_bandwidth() -> None:
    memory = {**profile_of().memory.model_dump(), "gb_per_s_of_one_core": 0.4}
    profile = profile_of(memory=memory)
    assert [profile.bandwidth_gb_s(threads)[0] for threads in (1, 2, 3, 8)] == pytest.approx([0.4, 0.8, 1.0, 1.0])


def test_the_whole_is_the_sum_and_one_call() -> None:
    rates = profile_of().rates.model_copy(update={"call_us": 30.0}).model_dump()
    work = work_of([operator(macs=5_000_000), operator(macs=10_000_000)])
    assert total_ms(work, profile_of(rates=rates), threads=1) == pytest.approx((1002.0 + 2002.0 + 30.0) / 1e3)


def test_more_work_is_never_faster() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        macs, weights, reads, writes = (int(one) for one in rng.integers(0, 10**6, 4))
        less = operator(macs=macs, weights=weights, reads=reads, writes=writes)
        more = operator(macs=macs + 1000, weights=weights + 10, reads=reads + 10, writes=writes)
        assert total_ms(work_of([more]), profile_of(), threads=1) >= total_ms(work_of([less]), profile_of(), threads=1)
