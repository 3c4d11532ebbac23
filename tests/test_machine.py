"""Cores and memory as a container or a batch system allows them, in the words of Linux's control groups."""

import os

import pytest

from rs_biformer import machine


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A made-up machine of 16 cores, of which this process may use `allowed`; `files` are those of its groups."""

    def make(files, ours="0::/\n", allowed=16):
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (tmp_path / "ours").write_text(ours)
        monkeypatch.setattr(machine, "_GROUPS", tmp_path / "cgroup")
        monkeypatch.setattr(machine, "_OURS", tmp_path / "ours")
        monkeypatch.setattr(os, "cpu_count", lambda: 16)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)), raising=False)

    return make


@pytest.mark.parametrize(
    ("files", "ours", "allowed", "cores"),
    [
        ({}, "0::/\n", 16, 16),
        ({}, "0::/\n", 3, 3),  # taskset, Slurm
        ({"cpu.max": "max 100000\n"}, "0::/\n", 16, 16),
        ({"cpu.max": "400000 100000\n"}, "0::/\n", 16, 4),  # docker run --cpus 4
        ({"cpu.max": "400000 100000\n"}, "0::/\n", 2, 2),
        ({"cpu.max": "250000 100000\n"}, "0::/\n", 16, 2),
        ({"cpu.max": "50000 100000\n"}, "0::/\n", 16, 1),
        # systemd on the host: the limit is that of a slice above ours
        ({"a/cpu.max": "600000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b\n", 16, 6),
        # version 1, and the path of the host in a container
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, "1:cpu:/docker/1\n0::/\n", 16, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "1:cpu:/\n", 16, 16),
        (
            {"cpu,cpuacct/j/cpu.cfs_quota_us": "500000", "cpu,cpuacct/j/cpu.cfs_period_us": "100000"},
            "4:cpu,cpuacct:/j\n",
            16,
            5,
        ),
        ({"cpuset/cpu.max": "100000 100000"}, "3:cpuset:/\n", 16, 16),  # a group of something else
    ],
)
def test_cores_are_those_that_are_allowed_and_paid_for(system, files, ours, allowed, cores):
    system(files, ours, allowed)
    assert machine.machine_cores() == cores


def test_a_system_without_affinity_and_groups_has_all_its_cores(system, monkeypatch, tmp_path):
    system({})
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(machine, "_OURS", tmp_path / "nowhere")
    assert machine.machine_cores() == 16
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.machine_cores() == 1


@pytest.mark.parametrize(
    ("files", "ours"),
    [
        ({"memory.max": "1000000\n"}, "0::/\n"),
        ({"a/memory.max": "1000000", "a/b/memory.max": "max"}, "0::/a/b\n"),
        ({"memory/x/memory.limit_in_bytes": "1000000"}, "4:memory:/x\n0::/\n"),
    ],
)
def test_memory_is_what_the_groups_allow(system, files, ours):
    system(files, ours)
    assert machine.machine_memory() == 10**6


def test_openmp_is_told_of_a_quota_unless_the_user_has_said_a_number(system, monkeypatch):
    system({"cpu.max": "400000 100000"})
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    machine.limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "3"
    monkeypatch.delenv("OMP_NUM_THREADS")
    machine.limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "4"


def test_openmp_is_left_alone_without_a_quota(system, monkeypatch):
    system({}, allowed=4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    machine.limit_threads()
    assert "OMP_NUM_THREADS" not in os.environ
