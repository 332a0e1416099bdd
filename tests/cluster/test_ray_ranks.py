"""Followers that a small Ray of our own places: their tokens, their deaths, and what is left."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.backends.ray_ranks import RayLauncher, _node_and_gpus
from tests.checkpoints import Oracle, make_checkpoint
from workers.core.errors import ConfigError, Unavailable
from workers.core.request import SamplingParams
from workers.llm import LLM

NEW_TOKENS = 12
GREEDY = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
CPUS, GPUS = 3, 2  # what Ray is told; nobody computes on the GPUs
MARK = "KVASIR_TEST_RAY"
WAIT_S = 30.0


def test_it_takes_a_ray_that_was_joined() -> None:
    assert not ray.is_initialized()
    with pytest.raises(ConfigError, match=r"ray\.init\(\)"):
        RayLauncher()
    assert not ray.is_initialized(), "it has started one of its own"


def test_it_takes_an_installed_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"install kvasir\[ray\]"):
        RayLauncher()


def until(true: Callable[[], bool], what: str) -> None:
    pause = threading.Event()
    for _ in range(int(WAIT_S / 0.05)):
        if true():
            return
        pause.wait(0.05)
    raise AssertionError(what)


class OurRay:
    """Its processes are known by a mark in their environment."""

    def __init__(self) -> None:
        self._mark = f"{MARK}={secrets.token_hex(8)}"

    def start(self, folder: str) -> None:
        name, _, value = self._mark.partition("=")
        settings = {name: value, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        settings |= {"RAY_worker_niceness": "0", "RAY_prestart_worker_first_driver": "0"}
        with pytest.MonkeyPatch.context() as patch:
            for key, setting in settings.items():
                patch.setenv(key, setting)
            ray.init(
                num_cpus=CPUS,
                num_gpus=GPUS,
                include_dashboard=False,
                object_store_memory=128 << 20,
                _temp_dir=folder,
                log_to_driver=False,
                logging_level="error",
            )

    def processes(self) -> dict[int, str]:
        """Title of each by pid, without this one."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    if self._mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                        title = (entry / "cmdline").read_bytes().strip(b"\0")
                        found[int(entry.name)] = title.decode()
                except OSError:
                    continue
        return found

    def followers(self) -> list[int]:
        return [pid for pid, title in self.processes().items() if "_Follower" in title]

    def groups(self) -> list[str]:
        """States of the placement groups that are not removed."""
        states = [group["state"] for group in ray.util.placement_group_table().values()]
        return [state for state in states if state != "REMOVED"]

    def is_free(self) -> bool:
        free = ray.available_resources()
        return not self.followers() and not self.groups() and free.get("CPU") == CPUS


@pytest.fixture(scope="module")
def our_ray() -> Iterator[OurRay]:
    # pytest's own folders have names too long for Ray's sockets.
    folder = tempfile.mkdtemp(prefix="kvasir-ray-")
    there = OurRay()
    try:
        there.start(folder)
        assert len(there.processes()) > 2, "its processes are not seen"
        yield there
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
    until(lambda: not there.processes(), f"Ray has left {there.processes()}")


@pytest.fixture
def clean_ray(our_ray: OurRay) -> Iterator[OurRay]:
    """Free before, and free again afterwards."""
    until(our_ray.is_free, "something is there already")
    yield our_ray
    until(our_ray.is_free, f"{our_ray.followers()} or {our_ray.groups()} are left")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("ray") / "model", max_position_embeddings=1024)


def open_llm(model: Path, launcher: RayLauncher) -> LLM:
    sizes: dict[str, Any] = {"kv_tokens": 2048, "step_tokens": 128, "threads": 1}
    return LLM(str(model), tensor_parallel_size=2, device="cpu", rank_launcher=launcher, **sizes)


def test_an_actor_computes_with_us_until_the_replica_is_closed(
    clean_ray: OurRay, model: Path
) -> None:
    oracle = Oracle(model)
    examples = [oracle.example(length, NEW_TOKENS) for length in (5, 300)]
    with open_llm(model, RayLauncher()) as llm:
        assert len(clean_ray.followers()) == 1 and clean_ray.groups() == ["CREATED"]
        tokens = [each.token_ids for each in llm.generate([e.prompt for e in examples], GREEDY)]
        assert tokens == [list(example.output) for example in examples]


def test_an_actor_that_is_killed_takes_the_replica_down(clean_ray: OurRay, model: Path) -> None:
    with open_llm(model, RayLauncher()) as llm:
        (follower,) = clean_ray.followers()
        os.kill(follower, signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(Unavailable, match="rank 1 of 2 is lost: .*died"):
                llm.generate([[1, 2, 3]], GREEDY)
        # Before it is closed.
        until(clean_ray.is_free, f"{clean_ray.followers()} or {clean_ray.groups()} are left")


def test_what_finds_no_place_is_said_in_time(clean_ray: OurRay, model: Path) -> None:
    too_much = RayLauncher(cpus=CPUS, place_s=0.5)
    with pytest.raises(ConfigError, match=r"within 0\.5 s for 2 ranks of 3 CPU each .*3 CPU free"):
        open_llm(model, too_much)


def where(launcher: RayLauncher, rank: int) -> tuple[str, list[str]]:
    """Node and GPUs of a rank's bundle."""
    place = launcher._in_bundle(launcher._bundles[rank])
    ask = ray.remote(_node_and_gpus).options(num_cpus=0, num_gpus=1, scheduling_strategy=place)
    found: tuple[str, list[str]] = ray.get(ask.remote(), timeout=WAIT_S)
    return found


@pytest.mark.parametrize(("own", "others"), [("0", "1"), ("1,0", "0")])
def test_no_follower_gets_the_leaders_gpu(
    own: str, others: str, clean_ray: OurRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", own)
    launcher = RayLauncher()
    launcher.reserve(2, on_gpu=True)
    node = ray.get_runtime_context().get_node_id()
    assert where(launcher, 0) == (node, [own[0]]) and where(launcher, 1) == (node, [others])
    launcher.close()


def test_a_leaders_gpu_that_ray_does_not_have_is_an_error(
    clean_ray: OurRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(ConfigError, match="GPU 7 of this process"):
        RayLauncher().reserve(2, on_gpu=True)


def test_a_leader_in_a_group_uses_its_bundles(clean_ray: OurRay) -> None:
    def lead() -> tuple[int, int]:
        def there() -> int:
            states = [group["state"] for group in ray.util.placement_group_table().values()]
            return states.count("CREATED")

        launcher = RayLauncher()
        launcher.reserve(2, on_gpu=False)
        reserved = there()
        launcher.close()
        return reserved, there()

    group = placement_group([{"CPU": 1}] * 2)
    assert group.wait(WAIT_S)
    place = PlacementGroupSchedulingStrategy(group, 0)
    leader = ray.remote(lead).options(num_cpus=1, scheduling_strategy=place).remote()
    try:
        assert ray.get(leader, timeout=WAIT_S) == (1, 1), "it has made or removed a group"
    finally:
        ray.util.remove_placement_group(group)
