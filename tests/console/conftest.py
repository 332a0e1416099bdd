"""One cluster and one browser for everything an operator touches."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.console.browser import Browser, chromium
from tests.e2e.serving import Serving, kvasir_serve

WORKERS = 3


@dataclass
class Operated:
    serving: Serving
    console: str  # URL of the admin port, which stays when the router is started again


def admin_url(serving: Serving) -> str:
    log = (serving.log_dir / "router.log").read_text()
    (where,) = set(re.findall(r"router listening: .*admin (\S+)", log))
    return f"http://{where}/"


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    folder = tmp_path_factory.mktemp("cluster")
    with kvasir_serve(folder, "--decode=2", workers=WORKERS) as serving:
        yield Operated(serving, admin_url(serving))


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found
