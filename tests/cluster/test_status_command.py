"""What `kvasir status` prints."""

from __future__ import annotations

from rich.console import Console

from cluster.commands.status import prediction_table
from workers.wire import admin_pb2 as admin
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker


def test_predictions_stand_beside_what_happened() -> None:
    step = admin.Prediction(
        kind="decode step", count=200, predicted_s=0.010, actual_s=0.0125, error=0.07, bias=-0.02
    )
    ttft = admin.Prediction(
        kind="TTFT", count=9, predicted_s=0.5, actual_s=0.4, error=0.25, bias=0.25
    )
    load = worker.LoadReport(replica=common.ReplicaRef(id="decode-0"))
    replica = admin.ReplicaStatus(load=load, predictions=[step])
    answer = admin.StatusResponse(replicas=[replica], requests=[ttft])
    console = Console(width=80)
    with console.capture() as captured:
        console.print(prediction_table(answer))
    rows = [line.split() for line in captured.get().splitlines() if "ms" in line]
    assert rows == [
        ["decode-0", *"decode step 200 10.0 ms 12.5 ms 7 % -2 %".split()],
        ["requests", *"TTFT 9 500.0 ms 400.0 ms 25 % +25 %".split()],
    ]
