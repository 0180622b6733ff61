"""Renders the Helm chart with every set of values in its ci/ folder and says what is wrong with what comes out.

check.py CHART OUT: writes OUT/SET.yaml, and each configuration file in it to OUT/SET.NAME.config.yaml for the binary to check.
check.py CHART --render [VALUES]: prints what `kubectl apply` takes.
"""

import json
import pathlib
import sys

import helm_python as helm
import kubernetes_validate
import yaml

# The oldest version that Chart.yaml names, and the newest whose schemas are here.
VERSIONS = ["1.25", kubernetes_validate.latest_version()]
# Kinds of the Prometheus operator, of which there is no schema here.
OTHERS = {"PodMonitor", "PrometheusRule"}
NAME, NAMESPACE = "pondhawk", "pondhawk"


def render(chart, values):
    """The documents by template, as text."""
    chart.validate_schema(values)
    rendered = chart.render(values, name=NAME, namespace=NAMESPACE)
    texts = {path: text.strip() for path, text in sorted(rendered.items()) if not path.endswith(".txt")}
    return {path: text for path, text in texts.items() if any(yaml.safe_load_all(text))}


def documents(texts):
    return [document for text in texts.values() for document in yaml.safe_load_all(text) if document]


def invalid(objects):
    """What Kubernetes would not take."""
    for one in objects:
        if one["kind"] in OTHERS:
            continue
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(one, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                where = ".".join(str(step) for step in error.path)
                yield f"{one['kind']} {one['metadata']['name']} in {version}: {where}: {error.message}"
            except kubernetes_validate.SchemaNotFoundError as error:
                yield error.message


def pod_or_service(host, objects):
    """What a name inside the cluster stands for: a pod of a StatefulSet, by way of its Service, or a Service."""
    first, second = host.split(".")[:2]
    for one in objects:
        if one["kind"] == "StatefulSet" and one["spec"]["serviceName"] == second:
            if first in [f"{one['metadata']['name']}-{index}" for index in range(one["spec"]["replicas"])]:
                return "Service", second
    return "Service", first


def dangling(objects, values):
    """Names that lead nowhere, and selectors that select nothing."""
    there = {(one["kind"], one["metadata"]["name"]) for one in objects}
    there.add(("Secret", values.get("join", {}).get("existingSecret")))
    wanted = []
    for one in objects:
        kind, spec = one["kind"], one.get("spec", {})
        if kind in ("Role", "ClusterRole"):
            plural = {"secrets": "Secret", "configmaps": "ConfigMap", "mutatingwebhookconfigurations": "MutatingWebhookConfiguration"}
            for rule in one["rules"]:
                wanted += [(plural[resource], name) for resource in rule["resources"] for name in rule["resourceNames"]]
        if kind in ("RoleBinding", "ClusterRoleBinding"):
            wanted.append((one["roleRef"]["kind"], one["roleRef"]["name"]))
            wanted += [(subject["kind"], subject["name"]) for subject in one["subjects"]]
        if kind == "MutatingWebhookConfiguration":
            wanted += [("Service", webhook["clientConfig"]["service"]["name"]) for webhook in one["webhooks"]]
        if kind in ("DaemonSet", "StatefulSet"):
            labels, pod = spec["template"]["metadata"]["labels"], spec["template"]["spec"]
            if not spec["selector"]["matchLabels"].items() <= labels.items():
                yield f"{kind} {one['metadata']['name']}: its selector is not of its pods"
            if "serviceAccountName" in pod:
                wanted.append(("ServiceAccount", pod["serviceAccountName"]))
            if "serviceName" in spec:
                wanted.append(("Service", spec["serviceName"]))
            given = [volume["name"] for part in ("node", "seeds") for volume in values.get(part, {}).get("extraVolumes", [])]
            for volume in (volume for volume in pod.get("volumes", []) if volume["name"] not in given):
                wanted += [("ConfigMap", volume["configMap"]["name"])] if "configMap" in volume else []
                wanted += [("Secret", volume["secret"]["secretName"])] if "secret" in volume else []
            mounts = {volume["name"] for volume in pod.get("volumes", []) + [c["metadata"] for c in spec.get("volumeClaimTemplates", [])]}
            for container in pod["containers"]:
                for mount in container["volumeMounts"]:
                    if mount["name"] not in mounts:
                        yield f"{kind} {one['metadata']['name']}: no volume {mount['name']}"
        if kind == "ConfigMap" and "config.yaml" in one.get("data", {}):
            join = yaml.safe_load(one["data"]["config.yaml"])["scheduler"]["join"]
            wanted += [pod_or_service(place.split(":")[0], objects) for place in join.split(",") if ".svc:" in place]
        if kind in ("Service", "NetworkPolicy", "PodDisruptionBudget"):
            selector = spec["selector"] if kind == "Service" else spec["podSelector" if kind == "NetworkPolicy" else "selector"]["matchLabels"]
            pods = [other["spec"]["template"]["metadata"]["labels"] for other in objects if "template" in other.get("spec", {})]
            if not any(selector.items() <= labels.items() for labels in pods):
                yield f"{kind} {one['metadata']['name']} selects no pod"
    yield from (f"no {kind} {name}" for kind, name in wanted if (kind, name) not in there)


def undocumented(schema, values, path=""):
    """Keys that the schema takes and values.yaml does not show."""
    for key, below in schema.get("properties", {}).items():
        if key == "global":
            continue
        if key not in values:
            yield f"values.yaml does not show {path}{key}"
        elif isinstance(values[key], dict):
            yield from undocumented(below, values[key], f"{path}{key}.")


def wrong(chart, values):
    """Why these values are refused: by the chart, or by Kubernetes; None where they are not."""
    try:
        objects = documents(render(chart, values))
    except helm.HelmError as error:
        return str(error)
    return "; ".join([*invalid(objects), *dangling(objects, values)]) or None


def check(folder, out):
    problems = [str(message) for message in helm.lint(folder, {}, strict=True)["errors"]]
    with helm.Chart.load(folder) as chart:
        problems += undocumented(json.loads((folder / "values.schema.json").read_text()), chart.values)
        for path in sorted(folder.glob("ci/*-values.yaml")):
            values, name = yaml.safe_load(path.read_text()), path.name.removesuffix("-values.yaml")
            try:
                texts = render(chart, values)
            except helm.HelmError as error:
                problems.append(f"{name}: {error}")
                continue
            objects = documents(texts)
            problems += [f"{name}: {problem}" for problem in [*invalid(objects), *dangling(objects, values)]]
            (out / f"{name}.yaml").write_text("\n---\n".join(texts.values()) + "\n")
            for one in objects:
                if one["kind"] == "ConfigMap" and "config.yaml" in one.get("data", {}):
                    (out / f"{name}.{one['metadata']['name']}.config.yaml").write_text(one["data"]["config.yaml"])
        for path in sorted(folder.glob("examples/*.yaml")):
            problems += [f"{path.name}: {problem}" for problem in invalid(yaml.safe_load_all(path.read_text()))]
        for case in yaml.safe_load((folder / "ci/refused.yaml").read_text()):
            why = wrong(chart, case["values"])
            if why is None or case["says"] not in why:
                problems.append(f"{case['values']} should be refused with {case['says']!r}, but: {why}")
    return problems


def main():
    folder = pathlib.Path(sys.argv[1])
    if sys.argv[2] == "--render":
        with helm.Chart.load(folder) as chart:
            values = yaml.safe_load(pathlib.Path(sys.argv[3]).read_text()) if len(sys.argv) > 3 else {}
            text = "\n---\n".join(render(chart, values).values())
        # Nobody manages it but who applies it.
        print("\n".join(line for line in text.splitlines() if "app.kubernetes.io/managed-by" not in line))
        return
    out = pathlib.Path(sys.argv[2])
    problems = check(folder, out)
    print("\n".join(problems))
    sys.exit(1 if problems else 0)


main()
