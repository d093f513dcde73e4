"""Models: a specification with constants, and what TLC must find in it. `docs/specs/models.toml` lists them."""

from __future__ import annotations

import re
import resource
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from hack.specs import tools

SPECS: Final = Path(__file__).parents[2] / "docs/specs"
MEMORY: Final = "3g"

_STATES: Final = re.compile(
    r"^(\d+) states generated, (\d+) distinct states found, 0 states left", re.MULTILINE
)
_SOME_STATES: Final = re.compile(r"(\d+) states generated, (\d+) distinct states found")
_ACTION: Final = re.compile(r"^<(\w+) line .*>: (\d+):(\d+)$", re.MULTILINE)
_VIOLATED: Final = re.compile(r"Invariant (\w+) is violated|(Temporal properties were violated)")


@dataclass(frozen=True, slots=True)
class Model:
    """One run of TLC.

    Attributes:
        title: of the model, and of the variant if it is one.
        module: the specification.
        constants: in TLA+.
        invariants: must hold in each state.
        properties: must hold in each behaviour. Then the specification is Fair instead of Spec.
        symmetry: the name of a symmetry set; empty for none. TLC's liveness check does not allow one.
        unreached: actions that cannot happen with these constants.
        violates: the property that TLC must find violated; empty if all must hold.
        by_day: whether the short form is part of `make test`.
    """

    title: str
    module: str
    constants: Mapping[str, Any]
    invariants: tuple[str, ...] = ()
    properties: tuple[str, ...] = ()
    symmetry: str = ""
    unreached: frozenset[str] = frozenset()
    violates: str = ""
    by_day: bool = True

    def config(self) -> str:
        """Return the configuration file for TLC."""
        lines = [f"SPECIFICATION {'Fair' if self.properties else 'Spec'}", "CHECK_DEADLOCK FALSE"]
        lines += [f"INVARIANT {name}" for name in self.invariants]
        lines += [f"PROPERTY {name}" for name in self.properties]
        lines += [f"SYMMETRY {self.symmetry}"] * bool(self.symmetry)
        lines += [f"CONSTANT {name} = {_tla(value)}" for name, value in self.constants.items()]
        return "\n".join([*lines, ""])


@dataclass(frozen=True, slots=True)
class Result:
    """What TLC found.

    Attributes:
        states: distinct states.
        seconds: of processor time, which other programs of the machine do not lengthen.
        violated: the violated property; empty when all hold.
        unreached: actions that never happened.
        output: everything that TLC printed, with the trace of a violation.
    """

    model: Model
    states: int
    seconds: float
    violated: str
    unreached: frozenset[str] = field(default_factory=frozenset)
    output: str = ""

    @property
    def problem(self) -> str:
        """What differs from what the model expects; empty if nothing."""
        expected = self.model.violates
        if self.violated != expected:
            found = f"violates {self.violated}" if self.violated else "holds"
            wanted = f"violate {expected}" if expected else "hold"
            return f"{self.model.title} {found}, and should {wanted}"
        extra, missing = self.unreached - self.model.unreached, self.model.unreached - self.unreached
        if not expected and extra:
            never = ", ".join(sorted(extra))
            return f"{self.model.title}: {never} can never happen, so the properties say nothing about it"
        if not expected and missing:
            return f"{self.model.title}: {', '.join(sorted(missing))} can happen; remove it from `unreached`"
        return ""


def _tla(value: Any) -> str:
    return str(value).upper() if isinstance(value, bool) else str(value)


def models(*, short: bool = False) -> list[Model]:
    """Return all models and their variants, in the order of the file."""
    return list(_models(tomllib.loads((SPECS / "models.toml").read_text()), short=short))


def _models(document: Mapping[str, Any], *, short: bool) -> Iterator[Model]:
    for title, table in document.items():
        small = table["constants"] | table.get("short", {})
        model = Model(
            title,
            table["module"],
            small if short else table["constants"],
            tuple(table.get("invariants", ())),
            tuple(table.get("properties", ())),
            table.get("symmetry", ""),
            frozenset() if short else frozenset(table.get("unreached", ())),
            by_day=table.get("by_day", True),
        )
        yield model
        for variant in table.get("variants", ()):
            violates = variant["violates"]
            yield replace(
                model,
                title=f"{title}: {variant['title']}",
                constants=small | variant["constants"],
                invariants=(violates,) if violates in model.invariants else (),
                properties=(violates,) if violates in model.properties else (),
                violates=violates,
                by_day=variant.get("by_day", False),
            )


def check(model: Model, *, workers: int = 2, short: bool = False) -> Result:
    """Run TLC on a model.

    Args:
        short: the run takes seconds. It then saves time at the start of Java, and does not count actions.

    Raises:
        RuntimeError: TLC did not finish. The message is its output.
    """
    before = _processor_seconds()
    with tempfile.TemporaryDirectory(prefix="specs-") as folder:
        config = Path(folder) / "model.cfg"
        config.write_text(model.config())
        quick = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"] if short else ["-XX:+UseParallelGC"]
        command = [
            # TLC unpacks its modules in the folder for temporary files, where two runs would meet.
            *(
                tools.java(),
                *quick,
                f"-Djava.io.tmpdir={folder}",
                f"-Xmx{MEMORY}",
                "-cp",
                str(tools.tlc()),
                "tlc2.TLC",
            ),
            *("-workers", str(workers), "-metadir", folder, "-config", str(config)),
            *(() if short or model.violates else ("-coverage", "1000")),
            f"{model.module}.tla",
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=SPECS, check=False)
    return read(model, done.stdout + done.stderr, _processor_seconds() - before)


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def read(model: Model, output: str, seconds: float) -> Result:
    """Read what TLC printed."""
    violated = _VIOLATED.search(output)
    complete = _STATES.search(output)
    if violated is None and (complete is None or "No error has been found" not in output):
        raise RuntimeError(f"TLC could not check {model.title}:\n{output[-4000:]}")
    counted = complete or _SOME_STATES.search(output)
    # The name of a violated temporal property is not printed. A variant checks one property only.
    name = (
        ""
        if violated is None
        else violated[1] or (model.properties[0] if len(model.properties) == 1 else "a property")
    )
    totals: dict[str, int] = {}
    for action, _, generated in _ACTION.findall(output):
        totals[action] = max(totals.get(action, 0), int(generated))
    never = frozenset(action for action, number in totals.items() if not number)
    return Result(model, int(counted[2]) if counted else 0, seconds, name, never, output)
