"""Turns the manifests of deploy/kubernetes into pods that `podman kube play` takes, with nothing of ours changed.

A Deployment, StatefulSet or CronJob becomes a pod of its template; claims, ConfigMaps and empty volumes become folders
of this machine, a container's environment is written out, and HTTP probes become commands. Names of services are lines
of /etc/hosts.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

LEFT_OUT = ("affinity", "topologySpreadConstraints", "enableServiceLinks", "automountServiceAccountToken")


@dataclass
class _Place:
    """What the containers of a pod share."""

    pod_name: str
    declared: list[dict[str, Any]]
    claims: Mapping[str, str]
    user: Mapping[str, Any]
    extra: Mapping[str, str]
    volumes: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class Cluster:
    """The manifests, by kind and name, and the folders of the volumes."""

    manifests: dict[tuple[str, str], dict[str, Any]]
    folder: Path
    image: str
    hosts: dict[str, str] = field(default_factory=dict)  # names of services, and their addresses

    @classmethod
    def of(cls, text: str, folder: Path, image: str) -> Cluster:
        found = [each for each in yaml.safe_load_all(text) if each]
        return cls({(each["kind"], each["metadata"]["name"]): each for each in found}, folder, image)

    def pod(
        self, kind: str, name: str, pod_name: str, extra: Mapping[str, str], sidecar: dict[str, Any] | None = None
    ) -> Path:
        """Write the pod of a workload into a file; `extra` is set in its containers besides."""
        manifest = self.manifests[kind, name]
        spec = manifest["spec"]
        if kind == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        template = spec["template"]
        pod = {each: value for each, value in template["spec"].items() if each not in LEFT_OUT}
        claims = {
            each["metadata"]["name"]: f"{name}-{each['metadata']['name']}"
            for each in spec.get("volumeClaimTemplates", ())
        }
        user = pod.pop("securityContext")
        containers = pod["containers"] if sidecar is None else [*pod["containers"], {**pod["containers"][0], **sidecar}]
        place = _Place(pod_name, pod.get("volumes", []), claims, user, extra)
        pod["containers"] = [self._container(each, place) for each in containers]
        pod["volumes"] = list(place.volumes.values())
        pod["hostAliases"] = [{"ip": address, "hostnames": [host]} for host, address in self.hosts.items()]
        if kind == "CronJob":
            pod["restartPolicy"] = "Never"
        labels = {"app": template["metadata"]["labels"]["app"]}
        document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod_name, "labels": labels}, "spec": pod}
        path = self.folder / f"{pod_name}.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def _container(self, container: dict[str, Any], place: _Place) -> dict[str, Any]:
        made = {name: value for name, value in container.items() if name not in {"envFrom", "env"}}
        # Of the probes podman knows one alone, and the test asks what they ask; a port it would publish twice.
        for name in ("startupProbe", "readinessProbe", "livenessProbe", "ports"):
            made.pop(name, None)
        if "/email-ingestion@" in made["image"]:
            made["image"] = self.image
        made["imagePullPolicy"] = "Never"
        made["securityContext"] = {
            **made["securityContext"],
            "runAsUser": place.user["runAsUser"],
            "runAsGroup": place.user["runAsGroup"],
        }
        values = {**self._environment(container), **(place.extra if "envFrom" in container else {})}
        made["env"] = [{"name": name, "value": value} for name, value in values.items()]
        made["volumeMounts"] = []
        sources = {each["name"]: each for each in place.declared}
        for mount in container["volumeMounts"]:
            path = self._source(mount, sources.get(mount["name"], {}), place.claims, place.pod_name)
            if path.is_dir() and not path.is_relative_to(self.folder / "config"):
                os.chown(path, place.user["runAsUser"], place.user["fsGroup"])
            key = f"v{len(place.volumes)}"
            place.volumes[key] = {
                "name": key,
                "hostPath": {"path": str(path), "type": "Directory" if path.is_dir() else "File"},
            }
            made["volumeMounts"].append(
                {"name": key, "mountPath": mount["mountPath"], "readOnly": mount.get("readOnly", False)}
            )
        return made

    def _environment(self, container: dict[str, Any]) -> dict[str, str]:
        values: dict[str, str] = {}
        for source in container.get("envFrom", ()):
            if "configMapRef" in source:
                values |= self.manifests["ConfigMap", source["configMapRef"]["name"]]["data"]
            else:
                values |= self.manifests["Secret", source["secretRef"]["name"]]["stringData"]
        for each in container.get("env", ()):
            if "value" in each:
                values[each["name"]] = each["value"]
                continue
            reference = each["valueFrom"]["secretKeyRef"]
            values[each["name"]] = self.manifests["Secret", reference["name"]]["stringData"][reference["key"]]
        return values

    def _source(self, mount: dict[str, Any], volume: dict[str, Any], claims: Mapping[str, str], pod_name: str) -> Path:
        if "configMap" in volume:
            folder = self.folder / "config" / volume["configMap"]["name"]
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in self.manifests["ConfigMap", volume["configMap"]["name"]]["data"].items():
                (folder / name).write_text(text)
            return folder / mount.get("subPath", "")
        claim = claims.get(mount["name"]) or volume.get("persistentVolumeClaim", {}).get("claimName")
        owner = self.folder / "claims" / claim if claim else self.folder / "empty" / pod_name / mount["name"]
        path = owner / mount.get("subPath", "")
        path.mkdir(parents=True, exist_ok=True)
        return path

    def clear(self) -> None:
        for name in ("claims", "empty", "config"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
