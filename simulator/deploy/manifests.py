"""Kubernetes objects of a design: plain, for Dynamo, and as values for llm-d's ModelService chart.

Key names were read in the wheel ai-dynamo 1.6.1 (DynamoGraphDeployment nvidia.com/v1beta1), llm-d-modelservice@024c0f2
and lws@060ab4d.
"""

from __future__ import annotations

import shlex
from typing import Any

from simulator.deploy.launch import (
    PORT,
    Engine,
    command,
    config_name,
    config_text,
    several_nodes,
    sglang_flags,
    vllm_flags,
)
from simulator.deploy.parts import Role
from simulator.scenario import ScenarioError

IMAGES: dict[Engine, str] = {
    "vllm": "vllm/vllm-openai:latest",
    "sglang": "lmsysorg/sglang:latest",
    "trtllm": "nvcr.io/nvidia/tensorrt-llm/release:latest",
}
DYNAMO_IMAGE = "nvcr.io/nvidia/ai-dynamo/{engine}-runtime:latest"
LEADER, NODE = "$LWS_LEADER_ADDRESS", "$LWS_WORKER_INDEX"  # as LeaderWorkerSet sets them in every pod


def kubernetes(name: str, model: str, engine: Engine, roles: tuple[Role, ...]) -> list[dict[str, Any]]:
    """A LeaderWorkerSet (instances of several nodes) or a Deployment for each role, and a Service in front."""
    found: list[dict[str, Any]] = []
    if engine == "trtllm":
        found.append(_configs(name, roles))
    for role in roles:
        labels = {"app": name, "role": role.name}
        pod = {"metadata": {"labels": labels}, "spec": _pod(name, model, engine, role)}
        title = f"{name}-{role.name}"
        if role.nodes > 1:
            found.append(
                {
                    "apiVersion": "leaderworkerset.x-k8s.io/v1",
                    "kind": "LeaderWorkerSet",
                    "metadata": {"name": title, "labels": labels},
                    "spec": {
                        "replicas": role.pool.instances,
                        "leaderWorkerTemplate": {
                            "size": role.nodes,
                            "restartPolicy": "RecreateGroupOnPodRestart",
                            "workerTemplate": pod,
                        },
                    },
                }
            )
        else:
            found.append(
                {
                    "apiVersion": "apps/v1",
                    "kind": "Deployment",
                    "metadata": {"name": title, "labels": labels},
                    "spec": {
                        "replicas": role.pool.instances,
                        "selector": {"matchLabels": labels},
                        "template": pod,
                    },
                }
            )
        found.append(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": title},
                "spec": {"selector": labels, "ports": [{"port": PORT, "targetPort": PORT}]},
            }
        )
    return found


def _pod(name: str, model: str, engine: Engine, role: Role) -> dict[str, Any]:
    words = [*map(shlex.quote, command(engine, role, model)), *several_nodes(engine, role, LEADER, NODE)]
    count = {role.resource: role.gpus_per_node}
    container: dict[str, Any] = {
        "name": engine,
        "image": IMAGES[engine],
        "command": ["/bin/sh", "-c"],
        "args": [" ".join(words)],
        "ports": [{"containerPort": PORT}],
        "resources": {"limits": count, "requests": count},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    if engine == "trtllm":
        container["workingDir"] = "/config"
        container["volumeMounts"].append({"name": "config", "mountPath": "/config"})
        volumes.append({"name": "config", "configMap": {"name": f"{name}-engine"}})
    return {"nodeSelector": role.node_selector, "containers": [container], "volumes": volumes}


def _configs(name: str, roles: tuple[Role, ...]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{name}-engine"},
        "data": {config_name(role): config_text(role) for role in roles},
    }


def dynamo(name: str, model: str, engine: Engine, roles: tuple[Role, ...]) -> list[dict[str, Any]]:
    """A DynamoGraphDeployment, with the engine's files before it where the engine reads such."""
    image = DYNAMO_IMAGE.format(engine="tensorrtllm" if engine == "trtllm" else engine)
    frontend = {
        "name": "Frontend",
        "type": "frontend",
        "replicas": 1,
        "podTemplate": {
            "spec": {"containers": [{"name": "main", "image": image, "command": ["python3", "-m", "dynamo.frontend"]}]}
        },
    }
    graph = {
        "apiVersion": "nvidia.com/v1beta1",
        "kind": "DynamoGraphDeployment",
        "metadata": {"name": name},
        "spec": {
            "backendFramework": engine,
            "components": [frontend, *(_component(name, model, engine, role, image) for role in roles)],
        },
    }
    return [_configs(name, roles), graph] if engine == "trtllm" else [graph]


def _component(name: str, model: str, engine: Engine, role: Role, image: str) -> dict[str, Any]:
    mode = role.name.partition("-")[0]
    args = {
        "vllm": lambda: ["--model", model, *vllm_flags(role)],
        "sglang": lambda: ["--model-path", model, *sglang_flags(role)],
        "trtllm": lambda: ["--model-path", model, "--extra-engine-args", f"/workspace/{config_name(role)}"],
    }[engine]()
    if mode != "colocated" and engine != "sglang":
        args += ["--disaggregation-mode", mode]
    main: dict[str, Any] = {
        "name": "main",
        "image": image,
        "command": ["python3", "-m", f"dynamo.{engine}"],
        "args": args,
        "resources": {"limits": {role.resource: str(role.gpus_per_node)}},
    }
    spec: dict[str, Any] = {"nodeSelector": role.node_selector, "containers": [main]}
    if engine == "trtllm":
        main["volumeMounts"] = [
            {"name": "config", "mountPath": f"/workspace/{config_name(role)}", "subPath": config_name(role)}
        ]
        spec["volumes"] = [{"name": "config", "configMap": {"name": f"{name}-engine"}}]
    several = {"multinode": {"nodeCount": role.nodes}} if role.nodes > 1 else {}
    kind = mode if engine == "sglang" and mode != "colocated" else "worker"
    return {
        "name": role.name,
        "type": kind,
        "replicas": role.pool.instances,
        **several,
        "podTemplate": {"spec": spec},
    }


def llm_d(name: str, model: str, roles: tuple[Role, ...]) -> dict[str, Any]:
    """Values of llm-d's ModelService chart, whose engine is vLLM; a colocated pool is its decode."""
    values: dict[str, Any] = {
        "multinode": any(role.nodes > 1 for role in roles),
        "modelArtifacts": {"name": model, "uri": f"hf://{model}", "labels": {"llm-d.ai/model": name}},
        "accelerator": {"type": roles[0].hardware.accelerator.vendor.lower(), "dra": False},
        "routing": {"servicePort": PORT, "proxy": {"enabled": True, "targetPort": 8200, "connector": "nixlv2"}},
        "prefill": {"create": False},
    }
    for role in roles:
        key = "decode" if role.name == "colocated" else role.name
        if key not in ("prefill", "decode"):
            raise ScenarioError(
                f"llm-d has one pool a role, and this design has {role.name}; export it to kubernetes or dynamo"
            )
        if role.pool.pp > 1 or role.pool.cp > 1:
            raise ScenarioError(
                f"{role.name} has PP{role.pool.pp} and CP{role.pool.cp}, which llm-d's values have no key for; choose "
                "another design, or export it to kubernetes"
            )
        if role.pool.dp % role.nodes:
            raise ScenarioError(
                f"{role.name}: TP{role.pool.tp} spans {role.nodes} nodes, which llm-d's values have no key for; choose "
                "another design, or export it to kubernetes"
            )
        sizes = {"tensor": role.pool.tp, "data": role.pool.dp, "dataLocal": role.pool.dp // role.nodes}
        flags = vllm_flags(role)[4:]  # the chart gives the sizes
        values[key] = {
            "create": True,
            "replicas": role.pool.instances,
            "parallelism": {**sizes, "workers": role.nodes},
            "acceleratorTypes": {
                "labelKey": next(iter(role.node_selector)),
                "labelValues": list(role.node_selector.values()),
            },
            "containers": [
                {
                    "name": "vllm",
                    "image": IMAGES["vllm"],
                    "modelCommand": "vllmServe",
                    "args": flags,
                    "resources": {"limits": {role.resource: role.gpus_per_node}},
                    "mountModelVolume": True,
                }
            ],
        }
    return values
