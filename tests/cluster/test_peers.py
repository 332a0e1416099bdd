"""load_tests/peers without the peers: its client, its table of commands, its figures."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.bench.client import Sample, Target
from cluster.bench.interference import Plan
from cluster.bench.runner import Run
from cluster.config import Overrides, load_config
from load_tests.peers import compare, machine, measure, systems
from load_tests.peers.process import PeerFailed, running
from load_tests.peers.systems import SYSTEMS, Setting, System, find
from load_tests.peers.table import spread, table
from load_tests.peers.workloads import BATCHES, WARM_UP, Batch, prompts
from tests.cluster.fake_openai import FakeOpenAI
from workers.core.clock import SystemClock

ROOT = Path(__file__).parents[2]
QWEN = {"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8}
QWEN |= {"head_dim": 128, "hidden_size": 1024}
FAKE_SERVER = """
import sys, uvicorn
from starlette.responses import Response
from starlette.routing import Route
from tests.cluster.fake_openai import FakeOpenAI
app = FakeOpenAI().app
app.routes.append(Route("/health", lambda request: Response("ok")))
uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
"""
FAKE_BATCHES = """
import json, sys
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    job = json.loads(line)
    times = [10.1 + 0.1 * number for number in range(job["output_tokens"])]
    arrivals = [times] * len(job["prompts"])
    print(json.dumps({"sent": 10.0, "ended": times[-1], "arrivals": arrivals}), flush=True)
"""


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    model = tmp_path / "q06"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(QWEN))
    return Setting(peers=tmp_path / "peers", model=model, threads=2, port=8123)


def value_of(system: System, option: str) -> str:
    return system.command[system.command.index(option) + 1]


# -- workloads -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BATCHES)
def test_prompts_have_exact_lengths_and_share_only_what_they_should(name: str) -> None:
    batch = BATCHES[name]
    first, again = prompts(batch.jobs("run 1")), prompts(batch.jobs("run 2"))
    assert {len(ids) for ids in first + again} == {batch.input_tokens}
    assert len({tuple(ids[: batch.shared]) for ids in first}) == 1
    starts = {tuple(ids[batch.shared : batch.shared + 16]) for ids in first}
    assert len(starts) == batch.requests
    # nothing that an earlier run left in a cache helps: not even the first block is the same
    assert not {tuple(ids[:16]) for ids in first} & {tuple(ids[:16]) for ids in again}


# -- the table of commands -----------------------------------------------------------------------


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_serves_the_checkpoint_with_the_threads_it_may_use(
    name: str, setting: Setting
) -> None:
    system = find(name, setting)
    told = [*system.command, *system.prepare]
    assert str(setting.model) in told
    if system.ready is not None:
        assert any(str(setting.port) == word for word in system.command)
    if name == "llama-cpp":
        assert value_of(system, "--threads") == value_of(system, "--threads-batch") == "2"
    elif name.startswith("vllm"):
        assert system.env["VLLM_CPU_OMP_THREADS_BIND"] == "0-1"
    elif name.startswith("transformers"):
        assert system.env["OMP_NUM_THREADS"] == "2"


def test_vllms_kv_memory_is_that_of_the_others(setting: Setting) -> None:
    # 28 layers x 2 x 8 heads x 128 x 2 bytes x 32,768 tokens = 3.5 GiB
    assert find("vllm", setting).env["VLLM_CPU_KVCACHE_SPACE"] == "4"
    assert find("vllm:float32", setting).env["VLLM_CPU_KVCACHE_SPACE"] == "7"
    assert value_of(find("vllm-256:float32", setting), "--max-num-batched-tokens") == "256"
    assert "--max-num-batched-tokens" not in find("vllm", setting).command


def test_dtypes_reach_the_command(setting: Setting) -> None:
    for name in ("kvasir", "kvasir-pd", "vllm"):
        assert value_of(find(name, setting), "--dtype") == "bfloat16"
        assert value_of(find(f"{name}:float32", setting), "--dtype") == "float32"
    assert find("llama-cpp", setting).makes == setting.peers / "llama-cpp/q06-bf16.gguf"
    assert find("llama-cpp:float32", setting).prepare[-1] == "f32"


def test_unknown_names_are_refused(setting: Setting) -> None:
    with pytest.raises(ValueError, match="no system 'sglang'; there are kvasir, "):
        find("sglang", setting)
    with pytest.raises(ValueError, match="dtype is one of bfloat16, float32"):
        find("vllm:int4", setting)


@pytest.mark.parametrize(
    ("config", "roles"),
    [("kvasir.yaml", ["aggregated"]), ("kvasir-pd.yaml", ["prefill", "decode"])],
)
def test_our_own_configs_are_valid(config: str, roles: list[str]) -> None:
    loaded = load_config(systems.HERE / config, Overrides())
    assert [pool.role for pool in loaded.pools] == roles
    assert loaded.engine.kv_tokens == systems.KV_TOKENS
    assert loaded.engine.max_seqs == systems.MAX_SEQS
    assert loaded.engine.context_length == systems.CONTEXT
    assert sum(pool.replicas for pool in loaded.pools) * (loaded.engine.threads or 0) == 2


# -- figures -------------------------------------------------------------------------------------


async def test_a_batch_through_the_client_has_exact_counts() -> None:
    batch = Batch(3, 20, 5, shared=8)
    fake = FakeOpenAI()
    async with fake.client() as client:
        run = Run(Target(client, SystemClock(), "fake"), SystemClock(), lambda: None)
        await run.open_loop(batch.jobs("seed"))
    row = measure.batch_row(batch, run.samples)
    assert [len(body["prompt"]) for body in fake.bodies] == [20, 20, 20]
    assert all(body["ignore_eos"] and body["max_tokens"] == 5 for body in fake.bodies)
    assert (row["chunk_tokens"], row["cached_tokens"]) == (1.0, 3)


def test_figures_of_a_batch() -> None:
    samples = [
        Sample(0.0, 0.0, [0.2, 0.3, 0.4], ended=0.4, input_tokens=6, output_tokens=3),
        Sample(0.0, 0.0, [0.4, 0.6, 1.0], ended=1.0, input_tokens=6, output_tokens=3),
    ]
    row = measure.batch_row(Batch(2, 6, 3), samples)
    assert row["tok_s"] == pytest.approx(6.0)
    assert (row["ttft_p50_ms"], row["ttft_max_ms"]) == pytest.approx((300, 400))
    assert row["token_ms"] == pytest.approx((100 + 300) / 2)
    assert row["itl_p50_ms"] == pytest.approx(150)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (Sample(0, 0, [1.0], input_tokens=6, output_tokens=3), "6 in, 3 out instead of 6 in, 4"),
        (Sample(0, 0, [1.0], input_tokens=5, output_tokens=4), "5 in, 4 out instead of 6 in, 4"),
        (Sample(0, 0, error="HTTP 500"), "a request failed: HTTP 500"),
    ],
)
def test_wrong_answers_are_no_figures(sample: Sample, message: str) -> None:
    with pytest.raises(PeerFailed, match=message):
        measure.check([sample], Batch(1, 6, 4))
    with pytest.raises(PeerFailed, match="1 answers for 2"):
        measure.check([sample], Batch(2, 6, 4))


def test_table_has_medians_ranges_and_ratios() -> None:
    figures = dict.fromkeys(["token_ms", "ttft_max_ms", "itl_p50_ms", "itl_p99_ms"], 1.0)
    figures |= {"cpu_s": 1.0, "memory_gb": 1.0}

    def row(system: str, tok_s: float, ttft: float, others: float = 0.0) -> dict[str, object]:
        about = {"system": system, "workload": "a", "tok_s": tok_s, "ttft_p50_ms": ttft}
        return figures | about | {"others": others}

    rows = [row("ours", 10, 100), row("vllm", 8, 200), row("ours", 14, 90, 0.25)]
    rows += [row("ours", 11, 120), {"system": "x", "workload": "b"}]
    lines = table(rows, "a", "vllm").splitlines()
    assert len(lines) == 4
    ours = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    assert ours[:3] == ["ours", "11.0 (10.0-14.0)", "100 (90-120)"]
    assert ours[-4:] == ["0 (0-25)", "3", "1.38", "0.50"]
    assert "/ vllm" not in table(rows, "a", None)
    assert spread([1234.5], 1) == "1,234.5"


# -- the machine ---------------------------------------------------------------------------------


def test_others_share_is_what_our_tree_did_not_take() -> None:
    before, after = machine.Usage(100.0, 10.0), machine.Usage(115.0, 22.0)
    assert machine.others_share(before, after, wall_s=10.0, cores=2) == pytest.approx(0.15)
    assert machine.others_share(after, after, wall_s=10.0, cores=2) == 0.0


def test_usage_counts_a_process_its_children_and_those_that_have_ended(tmp_path: Path) -> None:
    def process(pid: int, name: str, parent: int, *ticks: int) -> None:
        folder = tmp_path / str(pid)
        folder.mkdir()
        words = ["S", str(parent), *["0"] * 9, *map(str, ticks), *["0"] * 4, "77", "0"]
        (folder / "stat").write_text(f"{pid} ({name}) {' '.join(words)}")

    (tmp_path / "stat").write_text("cpu  100 20 30 4000 50 6 7 8 9 9\ncpu0 0\n")
    process(10, "driver", 1, 1, 2, 30, 40)
    process(11, "a ) server", 10, 100, 0, 0, 0)
    process(12, "worker", 11, 1000, 0, 0, 0)
    process(13, "stranger", 1, 5000, 0, 0, 0)
    tick = machine.usage(10, tmp_path).tree / 1173
    assert machine.usage(10, tmp_path).everybody == pytest.approx(171 * tick)
    assert machine.usage(11, tmp_path).tree == pytest.approx(1100 * tick)
    assert machine.descendants(10, tmp_path) == {11: 77, 12: 77}
    assert machine.still_there(12, 77, tmp_path)
    assert not machine.still_there(12, 78, tmp_path)


def test_memory_of_a_real_process_is_more_than_nothing() -> None:
    program = [sys.executable, "-c", "print('up', flush=True); input()"]
    child = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None and child.stdout.readline() == b"up\n"
        assert 1e6 < machine.memory(child.pid) < 1e9
    finally:
        child.communicate(b"\n")


# -- processes -----------------------------------------------------------------------------------


async def test_batches_come_back_as_samples(tmp_path: Path) -> None:
    system = System("fake", (sys.executable, "-c", FAKE_BATCHES), ready=None)
    async with running(system, 0, tmp_path / "log") as up:
        row = await measure.measure(up, "a", "seed")
        assert await measure.measure(up, "e", "seed") is None
    assert row is not None
    assert row["ttft_p50_ms"] == pytest.approx(100)
    assert row["tok_s"] == pytest.approx(10)


async def test_a_system_that_does_not_start_says_why(tmp_path: Path) -> None:
    code = "import sys; print('no such kernel', file=sys.stderr); sys.exit(3)"
    system = System("broken", (sys.executable, "-c", code))
    with pytest.raises(PeerFailed, match="ended with 3 while starting\nno such kernel"):
        async with running(system, 9, tmp_path / "log"):
            pytest.fail("it is not up")


async def test_stopping_ends_children_that_outlive_their_parent(tmp_path: Path) -> None:
    child = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); signal.pause()"
    code = f"""
import json, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {child!r}], start_new_session=True)
print(json.dumps({{"ready": child.pid}}), flush=True)
sys.stdin.read()
"""
    async with running(
        System("x", (sys.executable, "-c", code), ready=None), 0, tmp_path / "l"
    ) as up:
        (orphan,) = machine.descendants(up.pid).items()
    for _ in range(100):  # a kill takes a moment
        if not machine.still_there(*orphan):
            break
        await asyncio.sleep(0.05)
    assert not machine.still_there(*orphan)


def test_the_driver_alternates_and_writes_what_it_measured(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    setting: Setting,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fake(name: str, dtype: str, setting: Setting) -> System:
        return System(name, (sys.executable, "-c", FAKE_SERVER, str(setting.port)))

    def broken(name: str, dtype: str, setting: Setting) -> System:
        return System(name, (sys.executable, "-c", "raise SystemExit('broken')"))

    for name, make in {"one": fake, "two": fake, "three": broken}.items():
        monkeypatch.setitem(SYSTEMS, name, make)
    short = Plan(
        streams=2, stream_output=40, prompt_input=50, every_s=0.1, quiet_s=0.1, loaded_s=0.3
    )
    monkeypatch.setitem(measure.INTERFERENCES, "e", short)
    monkeypatch.chdir(ROOT)
    out = tmp_path / "out.json"
    argv = ["compare", "--model", str(setting.model), "--peers", str(setting.peers)]
    argv += ["--systems", "one,three,two", "--workloads", "c,e", "--repeats", "2"]
    argv += ["--against", "two", "--json", str(out), "--logs", str(tmp_path / "logs")]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as end:
        compare.main()
    assert end.value.code == 1  # one system is broken; the others are measured all the same
    report = json.loads(out.read_text())
    assert [(row["system"], row["repeat"]) for row in report["rows"] if row["workload"] == "c"] == [
        ("one", 0),
        ("two", 0),
        ("one", 1),
        ("two", 1),
    ]
    assert [failure["system"] for failure in report["failures"]] == ["three", "three"]
    loaded = next(row for row in report["rows"] if row["workload"] == "e")
    assert loaded["prompts"] == 3
    assert loaded["quiet_itl_p99_ms"] > 0
    printed = capsys.readouterr().out
    assert "tok/s / two" in printed
    assert "FAILED three in repeat 0" in printed


def test_warm_up_is_shaped_like_what_is_measured() -> None:
    assert max(batch.requests for batch in WARM_UP) > 1
    assert all(batch.output_tokens > 1 for batch in WARM_UP)
