"""A replica gets another role through the router."""

from __future__ import annotations

import pytest

from router import roles
from router.pool import Pool
from tests.router.fleet import LIMITS, Fleet, until
from workers.core.errors import KvasirError, ReplicaNotFound, Unavailable
from workers.wire import common_pb2 as common


async def test_the_pool_knows_the_new_role_when_it_is_answered() -> None:
    fleet = Fleet()
    await fleet.add("flex-1", "decode")
    async with Pool(LIMITS.worker_silence_s) as pool:
        pool.sync(fleet.records())
        await until(lambda: pool.count_up("decode") == 1)
        was = await roles.set_role(pool, "flex-1", common.ROLE_PREFILL)
        assert was == common.ROLE_DECODE
        assert (pool.count_up("prefill"), pool.count_up("decode")) == (1, 0)
    await fleet.close()


async def test_what_cannot_be_is_said() -> None:
    fleet = Fleet()
    await fleet.add("flex-1", "decode")
    async with Pool(LIMITS.worker_silence_s) as pool:
        pool.sync(fleet.records())
        await until(lambda: pool.count_up("decode") == 1)
        with pytest.raises(ReplicaNotFound, match=r"no replica 'flex-2'; there are: flex-1"):
            await roles.set_role(pool, "flex-2", common.ROLE_PREFILL)
        with pytest.raises(KvasirError, match="no such role"):
            await roles.set_role(pool, "flex-1", common.ROLE_UNSPECIFIED)
        assert pool.count_up("decode") == 1
    await fleet.close()


async def test_a_worker_that_never_says_so_is_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(roles, "REPORT_S", 0.2)
    fleet = Fleet()
    fake = await fleet.add("flex-1", "decode")
    async with Pool(LIMITS.worker_silence_s) as pool:
        pool.sync(fleet.records())
        await until(lambda: pool.count_up("decode") == 1)
        fake.silent = True
        with pytest.raises(Unavailable, match="does not report its new role"):
            await roles.set_role(pool, "flex-1", common.ROLE_PREFILL)
    await fleet.close()
