//! AdmissionReview of admission.k8s.io/v1: a question about a pod, and the answer with its patch. [pure]

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::patch::{Settings, patch};

/// Why a document is no question that can be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReviewError {
    #[error("this is no AdmissionReview of admission.k8s.io/v1 with a request")]
    NoReview,
}

/// The answer: always yes, and a patch where the pod needs one. What is no pod, or is not being made, is let through as it is.
///
/// # Errors
/// The document asks nothing.
pub(crate) fn answer(review: &Value, settings: &Settings) -> Result<Value, ReviewError> {
    let request = &review["request"];
    let ours = review["apiVersion"] == "admission.k8s.io/v1" && review["kind"] == "AdmissionReview";
    let Some(uid) = request["uid"].as_str().filter(|_| ours) else { return Err(ReviewError::NoReview) };
    let mut response = json!({ "uid": uid, "allowed": true });
    if request["kind"]["kind"] == "Pod" && request["operation"] == "CREATE" {
        let operations = patch(&request["object"], request["namespace"].as_str().unwrap_or_default(), settings);
        if !operations.is_empty() {
            response["patchType"] = json!("JSONPatch");
            response["patch"] = json!(STANDARD.encode(Value::Array(operations).to_string()));
        }
    }
    Ok(json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings { image: "i".to_owned(), root: "PEM".to_owned(), own_namespace: "pondhawk".to_owned() }
    }

    fn review(kind: &str, operation: &str) -> Value {
        let object = json!({ "metadata": {}, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
        json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
            "uid": "705ab4f5", "kind": { "group": "", "version": "v1", "kind": kind }, "namespace": "ai",
            "operation": operation, "object": object } })
    }

    #[test]
    fn a_pod_that_is_made_gets_its_patch_under_its_own_uid() {
        let answer = answer(&review("Pod", "CREATE"), &settings()).unwrap();
        assert_eq!(answer["response"]["uid"], "705ab4f5");
        assert_eq!(answer["response"]["allowed"], true);
        let patch = STANDARD.decode(answer["response"]["patch"].as_str().unwrap()).unwrap();
        let patch: Vec<Value> = serde_json::from_slice(&patch).unwrap();
        assert!(patch.iter().any(|operation| operation["path"] == "/spec/initContainers"));
    }

    #[test]
    fn everything_else_is_allowed_as_it_is() {
        for (kind, operation) in [("Pod", "UPDATE"), ("Pod", "DELETE"), ("Deployment", "CREATE")] {
            let answer = answer(&review(kind, operation), &settings()).unwrap();
            assert_eq!(answer["response"], json!({ "uid": "705ab4f5", "allowed": true }), "{kind} {operation}");
        }
    }

    #[test]
    fn what_asks_nothing_is_refused() {
        let mut other = review("Pod", "CREATE");
        other["apiVersion"] = json!("admission.k8s.io/v1beta1");
        for document in [json!({}), json!([]), json!("x"), other, json!({ "kind": "AdmissionReview" })] {
            assert_eq!(answer(&document, &settings()), Err(ReviewError::NoReview));
        }
    }
}
