//! Questions of the API server about pods: always answered with yes, and with a patch that fits the pod.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use pondhawk_scheduler::webhook::Settings;
use serde_json::Value;

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let Ok(review) = serde_json::from_slice::<Value>(bytes) else { return };
    let settings = Settings { image: "image".into(), root: "root".into(), own_namespace: "pondhawk".into() };
    let Some(answer) = pondhawk_scheduler::fuzz::review(&review, &settings) else { return };
    let response = &answer["response"];
    assert_eq!(response["allowed"], true);
    assert_eq!(response["uid"], review["request"]["uid"]);
    let Some(patch) = response["patch"].as_str() else { return };
    let patch = STANDARD.decode(patch).expect("the patch is base64");
    let patch: Vec<Value> = serde_json::from_slice(&patch).expect("the patch is a list");
    let mut pod = review["request"]["object"].clone();
    for operation in &patch {
        apply(&mut pod, operation);
    }
}

/// RFC 6902's `add`, the only operation that is used. Panics where the API server would refuse the patch.
fn apply(pod: &mut Value, operation: &Value) {
    assert_eq!(operation["op"], "add");
    let path = operation["path"].as_str().expect("a path");
    let (parent, name) = path.rsplit_once('/').expect("a path below the pod");
    let parent = pod.pointer_mut(parent).unwrap_or_else(|| panic!("{path} has no parent"));
    let value = operation["value"].clone();
    match parent {
        Value::Object(map) => drop(map.insert(name.replace("~1", "/").replace("~0", "~"), value)),
        Value::Array(items) if name == "-" => items.push(value),
        Value::Array(items) => {
            let at: usize = name.parse().expect("an index");
            assert!(at <= items.len(), "{path} is past the end");
            items.insert(at, value);
        }
        _ => panic!("{path} leads into a plain value"),
    }
}
