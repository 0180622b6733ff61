//! Removes what runs left that were killed before they could clean up.

use std::{fs, path::Path};

use super::{
    Cgroup, Netns,
    cgroup::{self, GROUPS},
    netns::NAMESPACES,
    tool,
};

/// Deletes namespaces and cgroups of labs whose process has ended, with the processes in them; gives their names. Best effort: what
/// another run removes at the same time is not there any more.
pub fn sweep() -> Vec<String> {
    let listed = tool("ip netns list").unwrap_or_default();
    let mut gone = Vec::new();
    for name in listed.lines().filter_map(|line| line.split_whitespace().next()) {
        if name.starts_with(NAMESPACES) && is_orphan(name) {
            drop(Netns::adopt(name));
            gone.push(name.to_owned());
        }
    }
    let groups = cgroup::mount_point().ok().and_then(|top| fs::read_dir(top).ok());
    for entry in groups.into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(GROUPS) && is_orphan(&name) {
            drop(Cgroup::adopt(entry.path()));
            gone.push(name);
        }
    }
    gone
}

/// `{what}-{pid}-{number}` of a process that is no more.
fn is_orphan(name: &str) -> bool {
    let mut parts = name.rsplitn(3, '-');
    let number = parts.next().and_then(|text| text.parse::<u64>().ok());
    let pid = parts.next().and_then(|text| text.parse::<u32>().ok());
    match (number, pid, parts.next()) {
        (Some(_), Some(pid), Some(_)) => !Path::new(&format!("/proc/{pid}")).exists(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_dead_processes_are_orphans() {
        assert!(is_orphan("phnode-4000000000-3"));
        assert!(!is_orphan(&format!("phnode-{}-3", std::process::id())));
        assert!(!is_orphan("pondhawk-xt"));
        assert!(!is_orphan("phnode"));
        assert!(!is_orphan("4000000000-3"));
    }
}
