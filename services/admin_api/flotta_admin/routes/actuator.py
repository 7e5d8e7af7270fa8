"""/admin/actuator (the shapes of Spring's), and the probes and metrics that every Flotta service has."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

from fastapi import APIRouter, Path, Response
from flotta_runtime.errors import NotFound
from flotta_runtime.metrics import CONTENT_TYPE
from prometheus_client.metrics_core import Metric

from flotta_admin.core import models
from flotta_admin.json_response import PrettyJson
from flotta_admin.routes import UNKNOWN, Context, Responses

_NOT_READY: Responses = {503: {"description": "No coordinator leader answers."}}


def router(context: Context) -> APIRouter:
    """The routes over `context`."""
    routes = APIRouter()

    @routes.get("/admin/actuator/health", tags=["actuator"], responses=_NOT_READY, response_model=models.ActuatorHealth)
    async def health() -> Response:
        """UP while a coordinator leader answers."""
        ready, _ = context.readiness()
        return PrettyJson({"status": "UP" if ready else "DOWN"}, status_code=200 if ready else 503)

    @routes.get("/admin/actuator/info", tags=["actuator"])
    async def info() -> models.ActuatorInfo:
        """Name and version."""
        return models.ActuatorInfo(app=models.AppInfo(name="flotta-admin", version=metadata.version("flotta")))

    @routes.get("/admin/actuator/metrics", tags=["actuator"])
    async def metric_names() -> models.MetricNames:
        """The names of this service's metrics."""
        return models.MetricNames(names=sorted(found.name for found in context.metrics.registry.collect()))

    @routes.get("/admin/actuator/metrics/{name}", tags=["actuator"], responses=UNKNOWN)
    async def metric(name: Annotated[str, Path(description="One of the names.")]) -> models.MetricDetail:
        """One metric, summed over its labels."""
        for found in context.metrics.registry.collect():
            if found.name == name:
                return _detail(found)
        raise NotFound(f"Metric not found: {name}")

    @routes.get("/livez", tags=["probes"])
    async def livez() -> dict[str, str]:
        """The process turns its event loop."""
        return {"status": "ok", "reason": "alive"}

    @routes.get("/readyz", tags=["probes"], responses=_NOT_READY)
    async def readyz() -> Response:
        """A coordinator leader answers."""
        ready, reason = context.readiness()
        content = {"status": "ok" if ready else "unavailable", "reason": reason}
        return PrettyJson(content, status_code=200 if ready else 503)

    @routes.get("/metrics", tags=["probes"], response_class=Response)
    async def prometheus() -> Response:
        """This service's metrics for Prometheus."""
        return Response(context.metrics.render(), media_type=CONTENT_TYPE)

    return routes


def _detail(found: Metric) -> models.MetricDetail:
    values: dict[str, float] = {}
    tags: dict[str, set[str]] = {}
    for sample in found.samples:
        if sample.name.endswith("_bucket"):
            continue
        statistic = {"_count": "COUNT", "_sum": "TOTAL"}.get(sample.name.removeprefix(found.name), "VALUE")
        values[statistic] = values.get(statistic, 0.0) + sample.value
        for tag, value in sample.labels.items():
            tags.setdefault(tag, set()).add(value)
    return models.MetricDetail(
        name=found.name,
        description=found.documentation,
        baseUnit=found.unit or None,
        measurements=[models.Measurement(statistic=name, value=value) for name, value in sorted(values.items())],
        availableTags=[models.MetricTag(tag=tag, values=sorted(seen)) for tag, seen in sorted(tags.items())],
    )
