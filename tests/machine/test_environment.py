"""The environment of a document: complete, JSON-clean, and without anything that names the machine or its owner."""

from __future__ import annotations

import getpass
import json
import os
import socket
import subprocess
from pathlib import Path

from kvtool import __version__
from kvtool.machine.environment import (
    describe_environment,
    driver_facts,
    git_commit,
    parse_cpuinfo,
    physical_cores,
)
from kvtool.machine.nvml import open_card
from kvtool.machine.threads import usable_cpus
from kvtool.results import EnvDocument, encode
from tests.machine.test_nvml import FakeNvml

CPUINFO = """\
processor\t: 0
model name\t: Fast CPU @ 2.0GHz: 4th
flags\t\t: fpu avx2 amx_bf16

processor\t: 1
model name\t: Other CPU
"""


def test_a_cpu_environment_is_json_clean_with_every_key():
    environment = describe_environment("cpu")
    assert json.loads(encode(EnvDocument(environment=environment, roofline=None)))["environment"] == environment
    assert environment["kvtool"] == __version__
    assert environment["device"] == "cpu"
    assert environment["logical_cores"] == len(usable_cpus())
    assert environment["memory_bytes"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert environment["gpu"] is environment["gpu_driver"] is None


def test_it_names_no_host_no_user_and_no_path():
    text = json.dumps(describe_environment("cpu"))
    values = {str(v) for v in json.loads(text).values()}
    assert socket.gethostname() not in values
    assert getpass.getuser() not in values
    assert str(Path.home()) not in text
    assert str(Path(__file__).parents[2]) not in text


def test_the_first_processor_is_described():
    fields = parse_cpuinfo(CPUINFO)
    assert fields["model name"] == "Fast CPU @ 2.0GHz: 4th"
    assert fields["flags"].split() == ["fpu", "avx2", "amx_bf16"]
    assert parse_cpuinfo("") == {}


def test_hyper_threads_of_one_core_count_once(tmp_path):
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        (tmp_path / f"cpu{cpu}/topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}/topology/thread_siblings_list").write_text(siblings + "\n")
    assert physical_cores({0, 1, 2, 3}, tmp_path) == 2
    assert physical_cores({0, 9}, tmp_path) is None


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_the_commit_of_a_checkout_says_when_files_differ(tmp_path):
    assert git_commit(tmp_path) is None
    git(tmp_path, "init")
    assert git_commit(tmp_path) is None
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "a")
    clean = git_commit(tmp_path)
    assert len(clean) == 12
    (tmp_path / "a").write_text("2")
    assert git_commit(tmp_path) == f"{clean}-dirty"


def test_what_only_the_driver_knows():
    fake = FakeNvml()
    fake.nvmlDeviceGetMaxClockInfo = lambda handle, kind: {1: 1980, 2: 2619}[kind]
    fake.nvmlDeviceGetEnforcedPowerLimit = lambda handle: 700_000
    assert driver_facts(open_card("cuda", fake)) == {
        "gpu_driver": "570.1",
        "gpu_sm_clock_max_mhz": 1980,
        "gpu_memory_clock_max_mhz": 2619,
        "gpu_power_limit_w": 700.0,
    }
    assert driver_facts(None) == {}
