"""Draw docs/images/packages.svg and pass.svg: the rooms of the packages, and one pass through them.

The arrows are the imports in the source. The steps of a pass are listed here and checked against the source.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = {
    "workqueue_operator": ROOT / "operator" / "workqueue_operator",
    "workqueue_web": ROOT / "operator" / "workqueue_web",
    "workqueue_kubectl": ROOT / "kubectl" / "workqueue_kubectl",
    "workqueue": ROOT / "worker" / "workqueue",
}
"""From left to right."""

CENTRES: Final = (280, 640, 870, 1100)
"""Of the packages, in pixels."""

ROOMS: Final = {
    "workqueue_operator.api": "the resource and its reasons",
    "workqueue_operator.broker": "RabbitMQ: connection, doorbell",
    "workqueue_operator.kube": "Kubernetes: watch, store, Lease",
    "workqueue_operator.reconcile": "queue, pass, status",
    "workqueue_operator.scaling": "gather, decide, scale",
    "workqueue_operator.workers": "Deployment, pods, retirement",
    "workqueue_web": "the web page",
    "workqueue_kubectl": "the kubectl plugin",
    "workqueue.amqp": "pika, TLS, publisher",
    "workqueue.cli": "run, send, dead, peek, stats",
    "workqueue.contract": "what both sides agree on",
    "workqueue.worker": "slots, deliveries, handlers",
}
"""What each room is for, for the picture. Loose modules at the root of a package are not drawn."""


class Step(NamedTuple):
    """A step of a pass: the module and name it is found at, and what happens there."""

    phase: str
    module: str
    name: str
    what: str


STEPS: Final = (
    Step("wake", "kube.watch", "registry", "an event of the Kubernetes watch updates the store"),
    Step("wake", "broker.doorbell", "Doorbells", "the first message on an idle queue"),
    Step("wake", "broker.depth_poller", "DepthPoller", "a depth that changed"),
    Step("wake", "reconcile.queue", "ReconcileQueue", "rings first; one pass per WorkQueue at a time"),
    Step("gather", "kube.store", "Store", "WorkQueue, Deployment and pods, without a request"),
    Step("gather", "broker.declare", "declare", "the queues, if anything changed since"),
    Step("gather", "workers.target", "Targets", "the Deployment: applied, repaired or found"),
    Step("gather", "scaling.gather", "Gatherer", "counts of RabbitMQ, /status of the workers"),
    Step("gather", "scaling.depth", "judge", "the depth, or Unknown with a reason"),
    Step("decide", "scaling.decide", "decide", "Hold, ScaleOut or Retire (pure)"),
    Step("scale", "scaling.scale", "Scaler", "one guarded write of spec.replicas"),
    Step("scale", "workers.retire", "Retirer", "ask idle workers, mark them, lower the count"),
    Step("scale", "scaling.wake", "adjust_doorbell", "install or remove the doorbell"),
    Step("report", "reconcile.status", "conditions", "one finding per condition (pure)"),
    Step("report", "reconcile.reporter", "Reporter", "after the pass: status and Events, the last one wins"),
)

_STYLE: Final = """  <style>
    .page { fill: #ffffff; stroke: #d0d7de; }
    .box { fill: #ffffff; stroke: #57606a; }
    .workqueue_operator { fill: #ddf4ff; stroke: #0969da; }
    .workqueue { fill: #dafbe1; stroke: #1a7f37; }
    .workqueue_kubectl { fill: #fff1e5; stroke: #bc4c00; }
    .workqueue_web { fill: #fbefff; stroke: #8250df; }
    .name { font-weight: 600; }
    .note { font-size: 12px; fill: #57606a; }
    .left { text-anchor: start; }
    .line { fill: none; stroke: #57606a; stroke-width: 1.5; }
    .tip { fill: #57606a; }
    rect { stroke-width: 1.5; }
    text { font: 15px system-ui, "DejaVu Sans", sans-serif; fill: #1f2328; text-anchor: middle; }
    @media (prefers-color-scheme: dark) {
      .page { fill: #0d1117; stroke: #30363d; }
      .box { fill: #0d1117; stroke: #8b949e; }
      .workqueue_operator { fill: #051d4d; stroke: #58a6ff; }
      .workqueue { fill: #04260f; stroke: #3fb950; }
      .workqueue_kubectl { fill: #3d1300; stroke: #f0883e; }
      .workqueue_web { fill: #271052; stroke: #a371f7; }
      .note { fill: #9da7b3; }
      .line { stroke: #9da7b3; }
      .tip { fill: #9da7b3; }
      text { fill: #e6edf3; }
    }
  </style>
  <defs>
    <marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">
      <path class="tip" d="M0 1 L10 5 L0 9 z"/>
    </marker>
  </defs>
"""


def packages_picture() -> str:
    """Return the picture of the packages: an arrow for each import that no other path of arrows implies."""
    graph = imports()
    if unknown := set(graph) - set(ROOMS):
        raise ValueError(f"hack/generate/packages.py: describe {', '.join(sorted(unknown))} in ROOMS.")
    levels = {room: _level(room, graph) for room in graph}
    height = 130 + 90 * max(levels.values())
    boxes = _places(graph, levels)
    parts = [
        f'  <text class="name" x="{x}" y="34">{package}</text>'
        for package, x in zip(PACKAGES, CENTRES, strict=True)
    ]
    for room, (x, y) in sorted(boxes.items()):
        for target in sorted(_direct(room, graph)):
            to_x, to_y = boxes[target]
            parts.append(f'  <path class="line" marker-end="url(#tip)" d="M{x} {y + 46} L{to_x} {to_y}"/>')
    for room, (x, y) in sorted(boxes.items()):
        package, _, name = room.partition(".")
        parts += [
            f'  <rect class="{package}" x="{x - 106}" y="{y}" width="212" height="46" rx="8"/>',
            f'  <text class="name" x="{x}" y="{y + 19}">{name or package.removeprefix("workqueue_")}</text>',
            f'  <text class="note" x="{x}" y="{y + 37}">{ROOMS[room]}</text>',
        ]
    return _svg(1220, height, "The packages", "Each arrow is an import; all of them lead down.", parts)


def pass_picture() -> str:
    """Return the picture of one pass.

    Raises:
        ValueError: a step names something that the source does not have.
    """
    parts, y, phase = [], 20, ""
    for step in STEPS:
        _check(step)
        if step.phase != phase:
            phase, y = step.phase, y + 12
            parts.append(f'  <text class="name left" x="24" y="{y + 20}">{phase}</text>')
        place = f"{step.module.replace('.', '/')}.py: {step.name}"
        parts += [
            f'  <rect class="workqueue_operator" x="110" y="{y}" width="330" height="30" rx="6"/>',
            f'  <text class="left" x="124" y="{y + 20}">{place}</text>',
            f'  <text class="left" x="460" y="{y + 20}">{escape(step.what)}</text>',
        ]
        y += 38
    parts.append(f'  <path class="line" marker-end="url(#tip)" d="M94 32 L94 {y - 8}"/>')
    return _svg(900, y + 12, "One pass", "The steps of a pass over one WorkQueue, from top to bottom.", parts)


def imports() -> dict[str, set[str]]:
    """Return the rooms that each room imports."""
    graph: dict[str, set[str]] = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            room = _room(".".join((package, *path.relative_to(folder).with_suffix("").parts)))
            if room is not None:
                targets = {_room(name) for name in _imported(path)}
                graph.setdefault(room, set()).update(target for target in targets if target)
    return {room: targets - {room} for room, targets in graph.items()}


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _room(module: str) -> str | None:
    """Return the room of a module, None for a loose module and for other packages."""
    package, *rest = module.split(".")
    if package not in PACKAGES:
        return None
    if package in ROOMS:
        return package
    return f"{package}.{rest[0]}" if rest and (PACKAGES[package] / rest[0]).is_dir() else None


def _level(room: str, graph: dict[str, set[str]], path: tuple[str, ...] = ()) -> int:
    """Return how many rooms are below this one. import-linter forbids cycles; here they are cut."""
    below = graph[room] - {room, *path}
    return max((1 + _level(target, graph, (*path, room)) for target in below), default=0)


def _reached(room: str, graph: dict[str, set[str]], seen: set[str]) -> set[str]:
    for target in graph[room] - seen:
        seen.add(target)
        _reached(target, graph, seen)
    return seen


def _direct(room: str, graph: dict[str, set[str]]) -> set[str]:
    """Return the imported rooms that are not also reached through another one."""
    return {
        target
        for target in graph[room]
        if not any(target in _reached(other, graph, {room, other}) for other in graph[room] - {target})
    }


def _places(graph: dict[str, set[str]], levels: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Return the top centre of each box. Rooms that import another package are on the right."""
    top, boxes = max(levels.values()), {}
    for level in sorted(set(levels.values())):
        for package, centre in zip(PACKAGES, CENTRES, strict=True):
            row = sorted(
                (room for room in graph if levels[room] == level and room.partition(".")[0] == package),
                key=lambda room: (any(not target.startswith(package) for target in graph[room]), room),
            )
            for index, room in enumerate(row):
                x = centre + 240 * index - 120 * (len(row) - 1)
                boxes[room] = (x, 56 + 90 * (top - level))
    return boxes


def _check(step: Step) -> None:
    path = PACKAGES["workqueue_operator"] / f"{step.module.replace('.', '/')}.py"
    defined = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    names = {node.name for node in _tree(path).body if isinstance(node, defined)} if path.exists() else set()
    if step.name not in names:
        raise ValueError(f"hack/generate/packages.py: {path.relative_to(ROOT)} does not define {step.name}.")


def _svg(width: int, height: int, title: str, text: str, parts: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
    lines = (
        f'{head} aria-labelledby="title text">',
        f'  <title id="title">{title}</title>',
        f'  <desc id="text">{text}</desc>',
        f'{_STYLE}  <rect class="page" x="1" y="1" width="{width - 2}" height="{height - 2}" rx="12"/>',
        *parts,
        "</svg>\n",
    )
    return "\n".join(lines)
