//! The kernel's accounting of BPF programs.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result, ensure};

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";
/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR` (linux/bpf.h): the connect programs.
const SOCK_ADDR: u64 = 18;

/// Accounting is on as long as this lives; then it is as it was.
pub(super) struct Accounting {
    before: String,
}

impl Accounting {
    pub(super) fn switch_on() -> Result<Self> {
        let before = fs::read_to_string(SWITCH).context(SWITCH)?;
        fs::write(SWITCH, "1").context(SWITCH)?;
        Ok(Self { before })
    }
}

impl Drop for Accounting {
    fn drop(&mut self) {
        if let Err(error) = fs::write(SWITCH, self.before.trim()) {
            eprintln!("{SWITCH} could not be set back to {}: {error}", self.before.trim());
        }
    }
}

/// What the programs of a process have run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ran {
    /// Runs of the connect programs.
    pub(super) connects: u64,
    /// Their time.
    pub(super) connect_ns: u64,
    /// That of all programs.
    pub(super) all_ns: u64,
}

impl Ran {
    /// Of the programs that this process holds open, from /proc/PID/fdinfo.
    pub(super) fn of(pid: u32) -> Result<Self> {
        let folder = format!("/proc/{pid}/fdinfo");
        let entries = fs::read_dir(&folder).with_context(|| folder.clone())?;
        // A descriptor may be closed while we look.
        let infos = entries.flatten().filter_map(|entry| fs::read_to_string(entry.path()).ok());
        let programs: BTreeMap<u64, Program> = infos.filter_map(|info| Program::parse(&info)).collect();
        ensure!(!programs.is_empty(), "process {pid} holds no BPF program");
        let mut ran = Self::default();
        for program in programs.values() {
            ran.all_ns += program.ns;
            if program.kind == SOCK_ADDR {
                ran.connects += program.runs;
                ran.connect_ns += program.ns;
            }
        }
        Ok(ran)
    }

    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            connects: self.connects - before.connects,
            connect_ns: self.connect_ns - before.connect_ns,
            all_ns: self.all_ns - before.all_ns,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Program {
    kind: u64,
    runs: u64,
    ns: u64,
}

impl Program {
    /// Its id as well; none: the descriptor is no program's.
    fn parse(info: &str) -> Option<(u64, Self)> {
        let field = |key: &str| {
            let value = info.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            value?.trim().parse::<u64>().ok()
        };
        Some((
            field("prog_id")?,
            Self { kind: field("prog_type")?, runs: field("run_cnt")?, ns: field("run_time_ns")? },
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_of_a_program_is_told_from_others() {
        let info = "pos:\t0\nflags:\t02000002\nprog_type:\t18\nprog_jited:\t1\nprog_tag:\tabc\nmemlock:\t4096\nprog_id:\t77\n\
                    run_time_ns:\t6600\nrun_cnt:\t100\nrecursion_misses:\t0\nverified_insns:\t99\n";
        assert_eq!(Program::parse(info), Some((77, Program { kind: SOCK_ADDR, runs: 100, ns: 6600 })));
        let link = "pos:\t0\nlink_type:\tcgroup\nlink_id:\t3\nprog_tag:\tabc\nprog_id:\t77\n";
        assert_eq!(Program::parse(link), None);
    }
}
