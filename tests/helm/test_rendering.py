"""Every worked values file and every option renders, and Kubernetes takes what comes out."""

from __future__ import annotations

import yaml

from cluster.config import load_config
from tests.helm.conftest import Outcome, Rendered
from tests.helm.variants import EXAMPLES, OPTIONS, REFUSED, WRONG

SEVERE = 2  # of Helm's lint: 1 is advice, 2 a warning, 3 an error


def test_all_values_render(outcome: Outcome) -> None:
    assert len(EXAMPLES) >= 4 and len(OPTIONS) >= 15
    assert {*EXAMPLES, *OPTIONS} <= set(outcome.variants), outcome.refusals


def test_helm_lints_it(outcome: Outcome) -> None:
    assert outcome.lint["TotalChartsLinted"] == 1
    assert not [each for each in outcome.lint["Messages"] if each["Severity"] >= SEVERE]


def test_kubernetes_takes_every_object(rendered: Rendered) -> None:
    assert len(rendered.objects) > 10
    assert not rendered.faults


def test_our_processes_take_the_config(rendered: Rendered, tmp_path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(rendered.config()))
    config = load_config(path)
    assert config.redis.given
    assert config.router.http.host == "0.0.0.0"


def test_names_are_the_releases_own(rendered: Rendered) -> None:
    named = [(each["kind"], each["metadata"]["name"]) for each in rendered.objects]
    assert len(set(named)) == len(named)
    assert all(name == "kv" or name.startswith("kv-") for _, name in named)


def test_the_notes_say_what_comes_and_how_to_reach_it(rendered: Rendered) -> None:
    assert "helm -n serving test kv" in rendered.notes
    for pool in rendered.config()["pools"]:
        assert f"{pool['name']}: " in rendered.notes


def test_wrong_values_are_refused_by_name(outcome: Outcome) -> None:
    for name, (_, said) in REFUSED.items():
        assert f"refused: {name}" in outcome.refusals, f"{name}: was rendered"
        assert said in outcome.refusals[f"refused: {name}"], name


def test_the_judges_find_what_is_wrong(outcome: Outcome) -> None:
    for (thing, said), faults in zip(WRONG, outcome.judged, strict=True):
        if said:
            assert faults and all(said in fault for fault in faults), (thing, faults)
        else:
            assert not faults
