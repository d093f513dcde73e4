"""Whether traces are requested. This module is light: most workers and their processes only ask."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Final

_ASK_FOR_TRACES: Final = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_TRACES_EXPORTER",
)
_SDK: Final = "opentelemetry.sdk.trace"


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether traces are requested by OpenTelemetry's own variables, or the SDK is already in use."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if environment.get("OTEL_TRACES_EXPORTER", "").lower() == "none":
        return False
    return _SDK in sys.modules or asked(environment)


def asked(environment: Mapping[str, str]) -> bool:
    """Whether one of OpenTelemetry's own variables asks for traces."""
    return any(environment.get(name) for name in _ASK_FOR_TRACES)
