//! Patches on pods as a cluster has them, applied as the API server does.

use super::*;

fn settings() -> Settings {
    Settings {
        image: "registry.example/pondhawk:1".to_owned(),
        root: "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n".to_owned(),
        own_namespace: "pondhawk".to_owned(),
    }
}

/// RFC 6902, section 4.1; strict about what must be there.
fn apply(pod: &Value, patch: &[Value]) -> Value {
    let mut pod = pod.clone();
    for operation in patch {
        assert_eq!(operation["op"], "add");
        let (parent, last) = operation["path"].as_str().unwrap().rsplit_once('/').unwrap();
        let value = operation["value"].clone();
        match pod.pointer_mut(parent).expect("the parent is there") {
            Value::Array(items) if last == "-" => items.push(value),
            Value::Array(items) => items.insert(last.parse().unwrap(), value),
            Value::Object(map) => {
                assert!(map.insert(last.to_owned(), value).is_none(), "{last} would be replaced");
            }
            other => panic!("{other} takes nothing"),
        }
    }
    pod
}

/// A pod as a controller makes it and admission has completed it.
fn deployed() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "generateName": "train-5d4f-", "labels": { "app": "train", "pondhawk/trust": "enabled" } },
        "spec": {
            "serviceAccountName": "default",
            "initContainers": [
                { "name": "fetch", "image": "python:3.13", "command": ["hf", "download", "gpt2"],
                  "volumeMounts": [{ "name": "models", "mountPath": "/models" }] },
            ],
            "containers": [
                { "name": "train", "image": "pytorch", "env": [
                    { "name": "HF_TOKEN", "valueFrom": { "secretKeyRef": { "name": "hf", "key": "token" } } },
                    { "name": "SSL_CERT_FILE", "value": "/etc/corp/roots.pem" } ],
                  "volumeMounts": [{ "name": "models", "mountPath": "/models" },
                    { "name": "kube-api-access-x", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true }] },
                { "name": "proxy", "image": "envoy" },
            ],
            "volumes": [{ "name": "models", "emptyDir": {} }, { "name": "kube-api-access-x", "projected": { "sources": [] } }],
        },
    })
}

fn value<'a>(container: &'a Value, name: &str) -> Option<&'a str> {
    let mut found = container["env"].as_array().unwrap().iter().filter(|variable| variable["name"] == name);
    let value = found.next().and_then(|variable| variable["value"].as_str());
    assert!(found.next().is_none(), "{name} is there twice");
    value
}

#[test]
fn every_container_gets_the_directory_and_the_variables_and_keeps_its_own() {
    let before = deployed();
    let pod = apply(&before, &patch(&before, "ai", &settings()));
    let spec = &pod["spec"];
    for container in [&spec["containers"][0], &spec["containers"][1], &spec["initContainers"][1]] {
        assert_eq!(value(container, "REQUESTS_CA_BUNDLE"), Some("/run/pondhawk/trust/bundle.pem"));
        assert_eq!(value(container, "NODE_EXTRA_CA_CERTS"), Some("/run/pondhawk/trust/root.pem"));
        let mount = json!({ "name": "pondhawk-trust", "mountPath": "/run/pondhawk/trust", "readOnly": true });
        assert!(container["volumeMounts"].as_array().unwrap().contains(&mount));
    }
    assert_eq!(value(&spec["containers"][0], "SSL_CERT_FILE"), Some("/etc/corp/roots.pem"));
    assert_eq!(value(&spec["containers"][1], "SSL_CERT_FILE"), Some("/run/pondhawk/trust/bundle.pem"));
    assert_eq!(spec["containers"][0]["volumeMounts"].as_array().unwrap().len(), 3);
    assert_eq!(spec["volumes"].as_array().unwrap().len(), 3);
}

#[test]
fn the_init_container_comes_before_those_that_download() {
    let before = deployed();
    let pod = apply(&before, &patch(&before, "ai", &settings()));
    let containers = pod["spec"]["initContainers"].as_array().unwrap();
    let names: Vec<_> = containers.iter().map(|container| container["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["pondhawk-trust", "fetch"]);
    assert_eq!(containers[0]["image"], "registry.example/pondhawk:1");
    assert_eq!(value(&containers[0], "POD_TRUST_ROOT"), Some(settings().root.as_str()));
    assert_eq!(
        containers[0]["volumeMounts"],
        json!([{ "name": "pondhawk-trust", "mountPath": "/run/pondhawk/trust" }])
    );
}

#[test]
fn a_pod_with_nothing_but_a_container_gets_the_lists_too() {
    let before = json!({ "metadata": {}, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    let pod = apply(&before, &patch(&before, "ai", &settings()));
    assert_eq!(pod["spec"]["initContainers"].as_array().unwrap().len(), 1);
    assert_eq!(pod["spec"]["containers"][0]["env"].as_array().unwrap().len(), VARIABLES.len());
}

#[test]
fn what_was_patched_needs_nothing_more_and_a_container_that_came_later_only_its_part() {
    let before = deployed();
    let mut pod = apply(&before, &patch(&before, "ai", &settings()));
    assert_eq!(patch(&pod, "ai", &settings()), Vec::<Value>::new());
    pod["spec"]["containers"].as_array_mut().unwrap().push(json!({ "name": "sidecar", "image": "s" }));
    let more = patch(&pod, "ai", &settings());
    assert!(
        more.iter().all(|operation| operation["path"].as_str().unwrap().starts_with("/spec/containers/2/")),
        "{more:?}"
    );
    assert_eq!(patch(&apply(&pod, &more), "ai", &settings()), Vec::<Value>::new());
}

#[test]
fn some_pods_are_left_alone() {
    let with = |pointer: &str, key: &str, value: Value| {
        let mut pod = deployed();
        pod.pointer_mut(pointer).unwrap()[key] = value;
        pod
    };
    let declining = with("/metadata/labels", LABEL, json!("disabled"));
    let mirrored = with("/metadata", "annotations", json!({ "kubernetes.io/config.mirror": "x" }));
    let windows = with("/spec", "os", json!({ "name": "windows" }));
    for pod in [declining, mirrored, windows] {
        assert_eq!(patch(&pod, "ai", &settings()), Vec::<Value>::new());
    }
    assert_eq!(patch(&deployed(), "pondhawk", &settings()), Vec::<Value>::new());
}

#[test]
fn what_is_no_pod_is_left_alone() {
    for pod in [json!(null), json!([]), json!({ "spec": 1 }), json!({ "metadata": 7, "spec": [] })] {
        assert_eq!(patch(&pod, "ai", &settings()), Vec::<Value>::new(), "{pod}");
    }
}

#[test]
fn what_is_no_container_is_left_alone() {
    let pod = json!({ "metadata": {}, "spec": { "containers": [null, "x", { "name": "c" }] } });
    let patched = apply(&pod, &patch(&pod, "ai", &settings()));
    assert_eq!(patched["spec"]["containers"][0], Value::Null);
    assert_eq!(patched["spec"]["containers"][1], "x");
}
