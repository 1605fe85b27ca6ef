"""What KubeRay's v1 resources may hold, written down from its API reference; strict about unknown fields.

The pod templates in them are Kubernetes' own, and are validated by its schemas.
"""

from __future__ import annotations

from typing import Any

_STRING = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_STRINGS = {"type": "object", "additionalProperties": _STRING}
_TEMPLATE: dict[str, Any] = {"type": "object", "required": ["spec"]}


def _fields(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


_HEAD = _fields(
    ["rayStartParams", "template"],
    rayStartParams=_STRINGS,
    template=_TEMPLATE,
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    enableIngress={"type": "boolean"},
)

_WORKERS = _fields(
    ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
    groupName=_STRING,
    replicas=_COUNT,
    minReplicas=_COUNT,
    maxReplicas=_COUNT,
    numOfHosts=_COUNT,
    idleTimeoutSeconds=_COUNT,
    rayStartParams=_STRINGS,
    template=_TEMPLATE,
)

_CLUSTER = _fields(
    ["headGroupSpec"],
    rayVersion=_STRING,
    # Of KubeRay 1.5.1, for Ray 2.52 and later.
    authOptions=_fields([], mode={"enum": ["token", "disabled"]}, secretName=_STRING),
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=_fields(
        [],
        idleTimeoutSeconds=_COUNT,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        version={"enum": ["v1", "v2"]},
        resources={"type": "object"},
    ),
    headGroupSpec=_HEAD,
    workerGroupSpecs={"type": "array", "items": _WORKERS},
    suspend={"type": "boolean"},
)

_JOB = _fields(
    ["entrypoint", "rayClusterSpec"],
    entrypoint=_STRING,
    runtimeEnvYAML=_STRING,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
    backoffLimit=_COUNT,
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    shutdownAfterJobFinishes={"type": "boolean"},
    ttlSecondsAfterFinished=_COUNT,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    rayClusterSpec=_CLUSTER,
    suspend={"type": "boolean"},
)

_METADATA = _fields([], name=_STRING, generateName=_STRING, labels=_STRINGS, annotations=_STRINGS)

SCHEMAS = {
    kind: _fields(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=_METADATA,
        spec=spec,
    )
    for kind, spec in (("RayCluster", _CLUSTER), ("RayJob", _JOB))
}
