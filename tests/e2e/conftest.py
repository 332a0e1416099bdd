"""The shipped config's cluster, for all who leave it as they find it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.serving import Serving, kvasir_serve


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with kvasir_serve(tmp_path_factory.mktemp("serve")) as serving:
        yield serving
