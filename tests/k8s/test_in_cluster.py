"""In a pod: the service account's token and authority, over TLS."""

from __future__ import annotations

import random
import ssl
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from kubernetes.aio.config import incluster_config
from prometheus_client import CollectorRegistry

from cluster.backends.kubernetes.api import connected
from cluster.backends.kubernetes.measures import Measures
from tests.certificates import Authority
from tests.k8s.stand_in import NAMESPACE, WORKERS, stand_in
from workers.core.clock import SystemClock


async def test_the_service_accounts_token_is_read_again_when_the_kubelet_has_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.sign("server"))
    token = tmp_path / "token"
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(authority.ca))
    # Read again after no time, not after a minute.
    hurried = SimpleNamespace(datetime=datetime, timedelta=lambda minutes: timedelta(0))
    monkeypatch.setattr(incluster_config, "datetime", hurried)
    async with stand_in(context) as server:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
        token.write_text("first")
        measures = Measures(CollectorRegistry())
        async with connected(NAMESPACE, None, measures, SystemClock(), random.Random(7)) as api:
            for each in ("first", "second"):
                token.write_text(each)
                listing = api.core.list_namespaced_pod
                await api.call("list pods", listing, NAMESPACE, label_selector=WORKERS)
    assert [asked.who for asked in server.calls("list pods")] == ["first", "second"]
