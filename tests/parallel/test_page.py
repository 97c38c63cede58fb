"""docs/many-processes.md: its manifest fits Kubernetes' own schemas, and its scripts are bash."""

import copy
import re
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

PAGE = (Path(__file__).parents[2] / "docs/many-processes.md").read_text(encoding="utf-8")
KUBERNETES = "1.32"
MANIFEST = list(yaml.safe_load_all(re.search(r"```yaml\n(.*?)```", PAGE, re.S)[1]))
SCRIPTS = re.findall(r"```\n(#!/bin/bash\n.*?)```", PAGE, re.S)


def check(resource):
    kubernetes_validate.validate(resource, KUBERNETES, strict=True)


def syntax(script):
    return subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)


def part(resource, path):
    """The value at ``path``, such as ``spec.containers.0``."""
    for key in path.split(".") if path else ():
        resource = resource[int(key) if key.isdigit() else key]
    return resource


def test_the_manifest_fits_the_schemas_of_kubernetes():
    assert [resource["kind"] for resource in MANIFEST] == ["Service", "NetworkPolicy", "Job"]
    for resource in MANIFEST:
        check(resource)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("spec", "completions"),
        ("spec.template.spec", "subdomain"),
        ("spec.template.spec.containers.0", "volumeMounts"),
        ("spec.template.spec.volumes.1.emptyDir", "medium"),
    ],
)
def test_a_wrong_name_or_type_in_the_manifest_is_refused(path, name):
    misspelt, mistyped = copy.deepcopy(MANIFEST[2]), copy.deepcopy(MANIFEST[2])
    part(misspelt, path)[f"{name}x"] = part(misspelt, path).pop(name)
    part(mistyped, path)[name] = True
    with pytest.raises(kubernetes_validate.ValidationError, match=f"'{name}x' was unexpected"):
        check(misspelt)
    with pytest.raises(kubernetes_validate.ValidationError, match="True is not of type"):
        check(mistyped)


def test_the_parts_of_the_manifest_name_each_other():
    service, policy, job = (resource["spec"] for resource in MANIFEST)
    pod, labels = job["template"]["spec"], job["template"]["metadata"]["labels"]
    assert service["selector"] == policy["podSelector"]["matchLabels"] == labels
    assert pod["subdomain"] == MANIFEST[0]["metadata"]["name"]
    container = pod["containers"][0]
    assert f"--master-addr={MANIFEST[2]['metadata']['name']}-0.{pod['subdomain']}" in container["args"]
    assert f"--nnodes={job['completions']}" in container["args"]
    assert f"--nproc-per-node={container['resources']['limits']['nvidia.com/gpu']}" in container["args"]
    assert [mount["name"] for mount in container["volumeMounts"]] == [volume["name"] for volume in pod["volumes"]]


def test_the_scripts_are_bash():
    assert len(SCRIPTS) == 2
    for script in SCRIPTS:
        assert syntax(script).returncode == 0, syntax(script).stderr
        assert syntax(script.replace("srun ", "srun (", 1)).returncode
