//! What a node says it has moved.

use serde::Serialize;
use serde_json::Value;

/// From a node's status. What a node does not say is zero or false, so that nodes of different versions can be compared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Account {
    /// Bytes from origins.
    pub origin_bytes: u64,
    /// Bytes of pieces from other nodes.
    pub from_peers: u64,
    /// Bytes of pieces to other nodes.
    pub to_peers: u64,
    /// Bytes to clients.
    pub client_bytes: u64,
    /// Requests of clients answered from the store.
    pub hits: u64,
    /// Requests of clients.
    pub requests: u64,
    /// Other nodes it is linked to now.
    pub links: u64,
    /// Whether it has a session with the scheduler.
    pub joined: bool,
}

impl Account {
    /// Reads the JSON of `/v1/status`.
    pub fn of(status: &Value) -> Self {
        let total = |key: &str| status["totals"][key].as_u64().unwrap_or(0);
        Self {
            origin_bytes: total("origin_bytes"),
            from_peers: total("peer_bytes"),
            to_peers: status["swarm"]["sent_bytes"].as_u64().unwrap_or(0),
            client_bytes: total("client_bytes"),
            hits: total("hits"),
            requests: total("requests"),
            links: status["swarm"]["links"].as_array().map_or(0, |links| links.len() as u64),
            joined: status["swarm"]["session"] == "up",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_without_a_swarm_is_read_as_a_node_alone() {
        let status = serde_json::json!({ "totals": { "origin_bytes": 7, "hits": 2 } });
        assert_eq!(Account::of(&status), Account { origin_bytes: 7, hits: 2, ..Account::default() });
    }
}
