//! What a pod lacks to trust the cluster's root, as a JSON Patch (RFC 6902). [pure]
//!
//! An init container writes public roots and the cluster's into an emptyDir; every container gets that directory and the
//! variables that its clients may read. What is there already stays, so that a pod that was patched needs nothing more.

use serde_json::{Map, Value, json};

use crate::trust::variables::{Names, VARIABLES};

/// The label by which pods and namespaces ask for it (`enabled`), or a pod in such a namespace declines (`disabled`).
pub(super) const LABEL: &str = "pondhawk/trust";
/// The volume and the init container.
const NAME: &str = "pondhawk-trust";
/// Where the volume is in every container.
const DIR: &str = "/run/pondhawk/trust";
/// The init container's user: any that is not root.
const USER: u32 = 65_100;

/// What goes into every pod.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The image that has `/usr/bin/pondhawk`.
    pub image: String,
    /// The cluster's root, PEM.
    pub root: String,
    /// The scheduler's own namespace, whose pods are left alone.
    pub own_namespace: String,
}

/// The patch for a pod of this namespace; empty where it needs none, or what came is no pod that can be patched.
pub(super) fn patch(pod: &Value, namespace: &str, settings: &Settings) -> Vec<Value> {
    if namespace == settings.own_namespace || declines(pod) {
        return Vec::new();
    }
    let Some(spec) = pod["spec"].as_object() else { return Vec::new() };
    let mut patch = Vec::new();
    if !has_ours(spec, "volumes") {
        append(&mut patch, spec, "volumes", &json!({ "name": NAME, "emptyDir": { "sizeLimit": "4Mi" } }));
    }
    patch.extend(operations(spec, "containers"));
    // Others are patched by their places, so ours takes the first one only then.
    patch.extend(operations(spec, "initContainers"));
    if !has_ours(spec, "initContainers") {
        let ours = init_container(settings);
        match spec.get("initContainers").and_then(Value::as_array) {
            Some(_) => patch.push(json!({ "op": "add", "path": "/spec/initContainers/0", "value": ours })),
            None => patch.push(json!({ "op": "add", "path": "/spec/initContainers", "value": [ours] })),
        }
    }
    patch
}

/// Pods that say so, those that kubelet made without the API server, and those of another operating system.
fn declines(pod: &Value) -> bool {
    let metadata = &pod["metadata"];
    metadata["labels"][LABEL] == "disabled"
        || metadata["annotations"].get("kubernetes.io/config.mirror").is_some()
        || pod["spec"]["os"]["name"] == "windows"
}

fn has_ours(spec: &Map<String, Value>, list: &str) -> bool {
    items(spec, list).iter().any(|item| item["name"] == NAME)
}

fn items<'a>(spec: &'a Map<String, Value>, list: &str) -> &'a [Value] {
    spec.get(list).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Adds to the end of a list that may not be there.
fn append(patch: &mut Vec<Value>, spec: &Map<String, Value>, list: &str, value: &Value) {
    match spec.get(list).and_then(Value::as_array) {
        Some(_) => patch.push(json!({ "op": "add", "path": format!("/spec/{list}/-"), "value": value })),
        None => patch.push(json!({ "op": "add", "path": format!("/spec/{list}"), "value": [value] })),
    }
}

/// The mount and the variables that the containers of a list lack.
fn operations(spec: &Map<String, Value>, list: &str) -> Vec<Value> {
    let of_one = |(index, container): (usize, &Value)| {
        let at = format!("/spec/{list}/{index}");
        let mut patch = Vec::new();
        // Only into an object can a field be added.
        if container.is_object() && container["name"] != NAME {
            let variables = variables().filter(|variable| !has(container, "env", "name", &variable["name"]));
            add_all(&mut patch, container, &at, "env", variables.collect());
            let mount = json!({ "name": NAME, "mountPath": DIR, "readOnly": true });
            let mounts = if has(container, "volumeMounts", "mountPath", &json!(DIR)) { vec![] } else { vec![mount] };
            add_all(&mut patch, container, &at, "volumeMounts", mounts);
        }
        patch
    };
    items(spec, list).iter().enumerate().flat_map(of_one).collect()
}

fn has(container: &Value, list: &str, key: &str, value: &Value) -> bool {
    container[list].as_array().is_some_and(|items| items.iter().any(|item| item[key] == *value))
}

fn add_all(patch: &mut Vec<Value>, container: &Value, at: &str, list: &str, values: Vec<Value>) {
    if values.is_empty() {
        return;
    }
    if container[list].is_array() {
        let each =
            values.into_iter().map(|value| json!({ "op": "add", "path": format!("{at}/{list}/-"), "value": value }));
        patch.extend(each);
    } else {
        patch.push(json!({ "op": "add", "path": format!("{at}/{list}"), "value": values }));
    }
}

fn variables() -> impl Iterator<Item = Value> {
    VARIABLES.iter().map(|variable| {
        let file = match variable.names {
            Names::Bundle => "bundle.pem",
            Names::OursAlone => "root.pem",
        };
        json!({ "name": variable.name, "value": format!("{DIR}/{file}") })
    })
}

/// As the strictest of the Pod Security Standards wants it, and with the limits that a quota of the namespace may ask for.
fn init_container(settings: &Settings) -> Value {
    let resources = json!({ "cpu": "100m", "memory": "32Mi" });
    json!({
        "name": NAME,
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/usr/bin/pondhawk", "ca", "trust", "--out", DIR],
        "env": [{ "name": "POD_TRUST_ROOT", "value": settings.root }],
        "resources": { "requests": resources, "limits": resources },
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": USER,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "volumeMounts": [{ "name": NAME, "mountPath": DIR }],
    })
}

#[cfg(test)]
#[path = "patch_tests.rs"]
mod tests;
