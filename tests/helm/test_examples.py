"""The worked values are of clusters that could run: what they name fits where they put it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.config import ClusterConfig
from tests.helm.conftest import Outcome, pods_of
from tests.helm.variants import EXAMPLES
from workers.core.hardware import hardware
from workers.models.architecture import ModelConfig
from workers.models.config import read_config
from workers.models.fields import Fields
from workers.models.plan import Demand, fit
from workers.models.shapes import SHAPES
from workers.models.sizing import Split, parameters

# Those of the published config.json, by what they have in common with a shape that we know.
MODELS: dict[str, tuple[str, dict[str, Any], float]] = {
    "one-gpu": (
        "qwen3-0.6b",
        {
            "hidden_size": 4096,
            "intermediate_size": 12_288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "tie_word_embeddings": False,
        },
        8.2e9,
    ),
    "h100x8-70b": ("llama-70b", {}, 70.6e9),
    "moe-2-nodes-ray": (
        "qwen3-30b-a3b",
        {
            "hidden_size": 4096,
            "num_hidden_layers": 94,
            "num_attention_heads": 64,
            "moe_intermediate_size": 1536,
        },
        235.1e9,
    ),
}


def _model(example: str) -> ModelConfig:
    name, changes, size = MODELS[example]
    model = read_config(Fields(Path(name), SHAPES[name] | changes))
    assert parameters(model) == pytest.approx(size, rel=0.01)
    return model


def test_there_is_a_model_for_each_example_on_gpus() -> None:
    on_gpus = {name for name, values in EXAMPLES.items() if "hardware" in values["cluster"]}
    assert on_gpus == set(MODELS)


@pytest.mark.parametrize("example", MODELS)
def test_each_replica_holds_its_model_and_a_batch(outcome: Outcome, example: str) -> None:
    config = ClusterConfig.model_validate(outcome.variants[example].config())
    engine, model = config.engine, _model(example)
    context = engine.context_length or model.context_length
    for pool in config.pools:
        demand = Demand(
            memory=hardware(pool.hardware or config.hardware or "cpu").memory_bytes,
            share=0.9,
            item=2,
            kv_item=2,
            context=context,
            block_size=engine.block_size,
            step_tokens=engine.step_tokens,
            max_seqs=engine.max_seqs,
        )
        split = Split(
            pool.tensor_parallel or engine.tensor_parallel,
            pool.expert_parallel or engine.expert_parallel,
        )
        found = fit(model, split, demand)
        assert found.works, (pool.name, found)
        # Copies of experts are more weights, in which the rest of a layer is small.
        experts = found.weights * engine.redundant_experts / 128
        assert found.kv_tokens * found.kv_bytes_per_token > experts, pool.name


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_memory_of_a_pod_is_more_than_its_shared_part(outcome: Outcome, example: str) -> None:
    """What is written to a volume in memory counts against the container."""
    for pods in pods_of(outcome.variants[example]):
        limit = _bytes(str(pods.container["resources"]["limits"]["memory"]))
        for volume in pods.spec["volumes"]:
            if volume.get("emptyDir", {}).get("medium") == "Memory":
                assert _bytes(volume["emptyDir"]["sizeLimit"]) <= limit / 4, pods.name


def _bytes(quantity: str) -> int:
    number, unit = quantity[:-2], quantity[-2:]
    return int(number) << {"Mi": 20, "Gi": 30}[unit]
