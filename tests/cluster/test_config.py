from __future__ import annotations

import os
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from cluster.config import ClusterConfig, Overrides, example_config, load_config
from cluster.model_source import resolve_model
from router.config import Address
from workers.core.errors import CheckpointError, ConfigError
from workers.wire.redis_endpoint import RedisEndpoint

REDIS = RedisEndpoint(url="redis://r")
DOCS = Path(__file__).parents[2] / "docs" / "config.md"


def write(folder: Path, text: str) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("model: demo\nengin: {}\n", 2, "unknown key 'engin'; known here: name, model,"),
        (
            "model: demo\nengine:\n  dtype: auto\n  kv_tokns: 3\n",
            4,
            "unknown key 'engine.kv_tokns'; known here: dtype, block_size, kv_tokens",
        ),
        (
            "model: demo\npools:\n- name: a\n  role: prefill\n- name: b\n  replcas: 2\n"
            "  role: decode\n",
            6,
            "unknown key 'pools.1.replcas'; known here: name, role, starts_as, replicas",
        ),
        ("model: demo\nengine: {kv_tokens: many}\n", 2, "engine.kv_tokens: input should be a va"),
        ("model: demo\nengine:\n  kv_tokens: -1\n", 3, "engine.kv_tokens: input should be great"),
        ("model: 7\n", 1, "model: input should be a valid string (got 7)"),
        ("engine: {}\n", 1, "model is missing"),
        (
            "model: demo\npools:\n- {name: a, role: other}\n",
            3,
            "'aggregated' or 'flex' (got 'other')",
        ),
        ("model: demo\nrouter:\n  http: here\n", 3, "router.http: expected host:port"),
        ("model: demo\nrouter:\n  http: 99999\n", 3, "router.http.port: input should be less"),
        ("model: demo\nredis: {url: 'http://x'}\n", 2, "redis.url: expected a URL"),
        ("model: demo\nhardware: abacus\n", 2, "unknown hardware 'abacus'; known: a100"),
        ("model: demo\nticket_ttl_s: 5\n", 2, "ticket_ttl_s: input should be greater than or eq"),
        ("model: demo\nslo: {classes: {}}\n", 2, "slo.classes: dictionary should have at least 1"),
        ("model: demo\nslo:\n  default: gold\n", 2, "slo: default is 'gold', which is none of the"),
        (
            "model: demo\nslo:\n  default: a\n  classes:\n    a:\n      tttf: 1\n",
            6,
            "unknown key 'slo.classes.a.tttf'; known here: ttft, itl, weight",
        ),
        (
            "model: demo\nslo: {default: a, classes: {a: {ttft: soon}}}\n",
            2,
            "slo.classes.a.ttft: 'soon' is no duration; write 200ms, 1.5s or 2m",
        ),
        ("model: demo\nmodel: other\n", 2, "the key 'model' stands here twice"),
        ("model: demo\npools: [\n", 3, "not valid YAML"),
        ("model: demo\n[1]: 2\n", 2, "a key must be a word"),
        ("model: demo\n{a: 1}: 2\n", 2, "a key must be a word"),
        ("model: demo\nt: 2026-99-99\n", 2, "'2026-99-99' is no timestamp"),
        ("model: demo\nt: !!int ''\n", 2, "'' is no int"),
        ("model: demo\nt: !!timestamp x\n", 2, "'x' is no timestamp"),
        ("model: demo\na: &a [*a]\n", 2, "aliases (*a) are not taken here"),
        ("model: demo\na: &a {}\nb: *a\n", 3, "aliases (*a) are not taken here"),
        ("a: " + "[" * 5000, None, "nested too deeply"),
        ("model: demo\n1: 2\n", 2, "1: "),
        ("model: demo\nredis: {url: 'http://:secret@x'}\n", 2, "(got 'http://x')"),
        ("- model\n", None, "expected keys and values, found a list"),
        ("", None, "model is missing"),
    ],
)
def test_faults_name_key_and_line(tmp_path: Path, text: str, line: int | None, says: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert says in caught.value.message
    if line is not None:
        assert f"{path}:{line}: " in caught.value.message


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, "modle: demo\nengine: {dtype: int3}\n"))
    assert len(caught.value.message.splitlines()) == 3


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read .*nowhere.yaml: No such file"):
        load_config(tmp_path / "nowhere.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\x00")
    with pytest.raises(ConfigError, match="is not a text file"):
        load_config(binary)


def test_ipv6_listeners(tmp_path: Path) -> None:
    text = 'model: demo\nrouter: {http: "[::1]:80", grpc: {host: "[::]", port: 90}}\n'
    router = load_config(write(tmp_path, text)).router
    assert (router.http, router.grpc) == (
        Address(host="::1", port=80),
        Address(host="::", port=90),
    )


def test_pools_must_be_able_to_answer(tmp_path: Path) -> None:
    only_prefill = "model: demo\npools:\n- {name: a, role: prefill}\n"
    with pytest.raises(ConfigError, match="no pool has a decode replica"):
        load_config(write(tmp_path, only_prefill))
    nobody = "model: demo\npools:\n- {name: a, role: aggregated, replicas: 0}\n"
    with pytest.raises(ConfigError, match="a prefill or a decode replica.*or one aggregated rep"):
        load_config(write(tmp_path, nobody))
    twins = "model: demo\npools:\n- {name: a, role: prefill}\n- {name: a, role: decode}\n"
    with pytest.raises(ConfigError, match="two pools have the same name"):
        load_config(write(tmp_path, twins))


def test_the_example_is_valid_and_cut_into_slices() -> None:
    config = load_config(example_config(), Overrides(prefill=2, http_port=0, dtype="bfloat16"))
    workers = config.worker_slices(model_dir=Path("/m"), redis=REDIS, ports=[1, 2, 3])
    assert [(w.replica, w.role, w.port) for w in workers] == [
        ("prefill-0", "prefill", 1),
        ("prefill-1", "prefill", 2),
        ("decode-0", "decode", 3),
    ]
    assert {(w.model, w.redis, w.engine.dtype) for w in workers} == {("/m", REDIS, "bfloat16")}
    assert all(w.engine.threads for w in workers)
    router = config.router_slice(model="/m", redis=REDIS)
    assert (router.served_name, router.http.port, router.grpc.port) == ("kvasir-demo", 0, 9000)
    assert (router.cluster, router.model) == (workers[0].cluster, workers[0].model)


def test_pools_choose_how_many_ranks_a_replica_has(tmp_path: Path) -> None:
    text = (
        "model: demo\nengine: {tensor_parallel: 2}\npools:\n"
        "- {name: p, role: prefill, tensor_parallel: 4, expert_parallel: 2}\n"
        "- {name: d, role: decode, replicas: 2, expert_parallel: 4}\n"
    )
    config = load_config(write(tmp_path, text))
    workers = config.worker_slices(model_dir=Path("/m"), redis=REDIS, ports=[1, 2, 3])
    sizes = [(w.engine.tensor_parallel, w.engine.expert_parallel) for w in workers]
    assert sizes == [(4, 2), (2, 4), (2, 4)]
    cores = len(os.sched_getaffinity(0))
    assert {w.engine.threads for w in workers} == {max(1, cores // 12)}
    with pytest.raises(ConfigError, match="pool p: tensor_parallel 4 and expert_parallel 3"):
        load_config(write(tmp_path, text.replace("expert_parallel: 2", "expert_parallel: 3")))


def test_pools_may_run_on_different_hardware(tmp_path: Path) -> None:
    text = (
        "model: demo\nhardware: H200\npools:\n"
        "- {name: p, role: prefill, hardware: h100}\n- {name: d, role: decode}\n"
    )
    config = load_config(write(tmp_path, text))
    workers = config.worker_slices(model_dir=Path("/m"), redis=REDIS, ports=[1, 2])
    assert [w.hardware for w in workers] == ["h100", "h200"]
    with pytest.raises(ConfigError, match=r"pools.*hardware.*unknown hardware 'h101'"):
        load_config(write(tmp_path, text.replace("h100", "h101")))


def test_overrides() -> None:
    two_pools = ClusterConfig.model_validate(
        {
            "model": "demo",
            "pools": [
                {"name": "a", "role": "prefill"},
                {"name": "b", "role": "prefill"},
                {"name": "c", "role": "decode"},
            ],
        }
    )
    assert two_pools.num_workers == 3
    named = load_config(example_config(), Overrides(model="owner/name"))
    assert named.model_name == "owner/name"  # the file's served_name belongs to the file's model
    both = load_config(example_config(), Overrides(model="owner/name", served_name="mine"))
    assert both.model_name == "mine"
    with pytest.raises(ConfigError, match="command line: engine.dtype: input should be 'auto'"):
        load_config(example_config(), Overrides(dtype="int3"))


def pools(config: ClusterConfig) -> list[tuple[str, str, int]]:
    return [(pool.name, pool.role, pool.replicas) for pool in config.pools]


def test_one_aggregated_replica_is_a_cluster_with_all_cores() -> None:
    path = example_config().with_name("aggregated.yaml")
    config = load_config(path)
    assert pools(config) == [("aggregated", "aggregated", 1)]
    assert pools(load_config(path, Overrides(aggregated=3))) == [("aggregated", "aggregated", 3)]
    (one,) = config.worker_slices(model_dir=Path("/m"), redis=REDIS, ports=[1])
    assert (one.replica, one.role) == ("aggregated-0", "aggregated")
    assert one.engine.threads == len(os.sched_getaffinity(0))
    with pytest.raises(ConfigError, match="the only prefill pool, but the config has 0"):
        load_config(path, Overrides(prefill=1))


def test_aggregated_on_the_command_line_stands_for_pools_that_it_does_not_name() -> None:
    split = [("prefill", "prefill", 1), ("decode", "decode", 1)]
    alone = [("aggregated", "aggregated", 2)]
    assert pools(load_config(example_config(), Overrides(aggregated=2))) == alone
    beside = load_config(example_config(), Overrides(aggregated=2, prefill=1))
    assert pools(beside) == [*split, *alone]
    many = Overrides(aggregated=2, prefill=3, decode=4)
    assert [replicas for *_, replicas in pools(load_config(example_config(), many))] == [3, 4, 2]


def test_a_mix_in_the_file_keeps_its_other_pools(tmp_path: Path) -> None:
    text = (
        "model: demo\npools:\n- {name: a, role: prefill}\n- {name: b, role: decode}\n"
        "- {name: c, role: aggregated}\n"
    )
    config = load_config(write(tmp_path, text), Overrides(aggregated=5))
    assert pools(config) == [("a", "prefill", 1), ("b", "decode", 1), ("c", "aggregated", 5)]


def test_ambiguous_pool_size(tmp_path: Path) -> None:
    text = (
        "model: demo\npools:\n- {name: a, role: prefill}\n- {name: b, role: prefill}\n"
        "- {name: c, role: decode}\n"
    )
    with pytest.raises(ConfigError, match="the only prefill pool, but the config has 2"):
        load_config(write(tmp_path, text), Overrides(prefill=2))


def test_model_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    config = load_config(write(tmp_path, "model: weights\n"))
    assert config.model == str(tmp_path / "weights")
    assert config.model_name == "weights"


def test_models(tmp_path: Path) -> None:
    assert (resolve_model("demo") / "config.json").is_file()
    with pytest.raises(CheckpointError, match="neither a directory nor"):
        resolve_model(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        resolve_model(str(tmp_path))


def test_the_docs_list_every_key() -> None:
    cells = re.findall(r"^\| (`[^|]+) \|", DOCS.read_text(), flags=re.MULTILINE)
    listed = {key for cell in cells for key in re.findall(r"`([^`]+)`", cell)}
    assert listed == set(keys(ClusterConfig))


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of the leaves; an address is one."""
    for name, field in model.model_fields.items():
        inner = next(iter(typing.get_args(field.annotation)), field.annotation)
        many = "[]" if typing.get_origin(field.annotation) is tuple else ""
        if typing.get_origin(field.annotation) is dict:
            inner, many = typing.get_args(field.annotation)[1], ".<name>"
        if isinstance(inner, type) and issubclass(inner, BaseModel) and inner is not Address:
            yield from keys(inner, f"{prefix}{name}{many}.")
        else:
            yield f"{prefix}{name}"


FLEX = {"name": "flex", "role": "flex", "replicas": 2, "starts_as": "prefill"}


def test_replicas_of_a_flex_pool_begin_in_the_role_that_is_given(tmp_path: Path) -> None:
    config = ClusterConfig.model_validate({"model": "demo", "pools": [FLEX]})
    slices = config.worker_slices(model_dir=tmp_path, redis=REDIS, ports=[1, 2])
    assert [(each.replica, each.role) for each in slices] == [
        ("flex-0", "prefill"),
        ("flex-1", "prefill"),
    ]


def test_one_flex_replica_cannot_have_both_roles() -> None:
    with pytest.raises(ValidationError, match="no pool has a prefill or a decode replica"):
        ClusterConfig.model_validate({"model": "demo", "pools": [FLEX | {"replicas": 1}]})


@pytest.mark.parametrize(("least", "most"), [(3, 5), (0, 1), (4, 1)])
def test_bounds_that_contradict_the_size_are_refused(least: int, most: int) -> None:
    pool = FLEX | {"min": least, "max": most}
    with pytest.raises(ValidationError, match=f"pool flex: min {least}, replicas 2 and max {most}"):
        ClusterConfig.model_validate({"model": "demo", "pools": [pool]})
