"""Helm's own engine renders a chart many times, and Kubernetes' own schemas judge what comes out.
Runs under a Python of its own, which has helm-sdkpy: `python engine.py < job.json > rendered.json`.

A job is {chart, release, kubernetes, variants: {name: values}, judge: objects, later, there}. The
answer has, of each variant, its objects, notes and faults, or the error with which Helm refused it;
and the faults of each of the objects. For the variant `later` the objects `there` exist already.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import yaml
from api_server import ApiServer
from helm_sdkpy import Configuration, HelmError, Install, Lint
from judge import Judge

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


async def main() -> None:
    job = json.load(sys.stdin)
    os.environ["HELM_DRIVER"] = "memory"
    judge, rendered = Judge(), {}
    server = ApiServer(job["kubernetes"], {})
    later = ApiServer(job["kubernetes"], job["there"])
    try:
        for name, values in job["variants"].items():
            where = later if name == job["later"] else server
            rendered[name] = await _render(where, judge, job, values)
        lint = await Lint(_configuration(server)).run(job["chart"])
    finally:
        server.stop()
        later.stop()
    judged = [judge.faults(each) for each in job["judge"]]
    json.dump({"variants": rendered, "lint": lint, "judged": judged}, sys.stdout)


async def _render(
    server: ApiServer, judge: Judge, job: dict[str, Any], values: dict[str, Any]
) -> dict[str, Any]:
    install = Install(_configuration(server))
    try:
        made = await install.run(job["release"], job["chart"], values, wait=False, timeout=20)
    except HelmError as error:
        return {"error": str(error)}
    texts = [made["manifest"], *(hook["manifest"] for hook in made.get("hooks") or ())]
    objects = [each for text in texts for each in yaml.load_all(text, Loader) if each]
    faults = [fault for each in objects for fault in judge.faults(each)]
    return {"objects": objects, "notes": made["info"]["notes"], "faults": faults}


def _configuration(server: ApiServer) -> Configuration:
    return Configuration(namespace="serving", kubeconfig=server.kubeconfig())


asyncio.run(main())
