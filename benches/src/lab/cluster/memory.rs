//! What a process has in its memory: the strictest way to show that a secret never reached it.

use std::{fs::File, os::unix::fs::FileExt as _, path::PathBuf};

use crate::lab::LabError;

const CHUNK: usize = 1 << 20;

/// Which of the needles (8 bytes at least, all of a length or not) lie in the process's writable memory: heap, stacks, buffers.
/// What was freed counts until it is overwritten. Needs the right to trace the process.
pub fn found_in_memory<'a>(pid: u32, needles: &[&'a str]) -> Result<Vec<&'a str>, LabError> {
    let maps = PathBuf::from(format!("/proc/{pid}/maps"));
    let text = std::fs::read_to_string(&maps).map_err(|source| LabError::file(&maps, source))?;
    let path = PathBuf::from(format!("/proc/{pid}/mem"));
    let memory = File::open(&path).map_err(|source| LabError::file(&path, source))?;
    let mut found = Vec::new();
    for (start, end) in text.lines().filter_map(writable) {
        search_region(&memory, start, end, needles, &mut found);
    }
    Ok(found)
}

/// A line of proc_pid_maps(5): `start-end perms offset dev inode path`.
fn writable(line: &str) -> Option<(u64, u64)> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    if !words.next()?.starts_with("rw") {
        return None;
    }
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

fn search_region<'a>(memory: &File, start: u64, end: u64, needles: &[&'a str], found: &mut Vec<&'a str>) {
    let overlap = needles.iter().map(|needle| needle.len()).max().unwrap_or(1) as u64;
    let mut chunk = vec![0; CHUNK];
    let mut at = start;
    while at < end {
        let want = CHUNK.min((end - at) as usize);
        // A region that was unmapped since, or that the kernel keeps (vvar), holds nothing of the process's.
        let Ok(read @ 1..) = memory.read_at(&mut chunk[..want], at) else { return };
        for needle in needles {
            if !found.contains(needle) && contains(&chunk[..read], needle.as_bytes()) {
                found.push(needle);
            }
        }
        let last = at + read as u64 >= end;
        at += if last { read as u64 } else { (read as u64).saturating_sub(overlap).max(1) };
    }
}

/// Horspool's search: memory is long, and most of it can be jumped over.
fn contains(hay: &[u8], needle: &[u8]) -> bool {
    let last = needle.len() - 1;
    let mut jumps = [needle.len(); 256];
    for (index, byte) in needle[..last].iter().enumerate() {
        jumps[usize::from(*byte)] = last - index;
    }
    let mut at = last;
    while let Some(byte) = hay.get(at) {
        if hay[at - last..=at] == *needle {
            return true;
        }
        at += jumps[usize::from(*byte)];
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_needle_is_found_wherever_it_lies() {
        for at in 0..40 {
            let mut hay = vec![b'x'; 50];
            hay[at..at + 10].copy_from_slice(b"abcabcabcd");
            assert!(contains(&hay, b"abcabcabcd"), "at {at}");
            assert!(!contains(&hay, b"abcabcabce"));
        }
        assert!(!contains(b"short", b"longer than the hay"));
    }

    #[test]
    fn a_process_is_searched_for_what_it_holds() {
        let held = format!("held-by-the-child-{}", std::process::id());
        let mut child = std::process::Command::new("sleep").arg("20").env("HELD", &held).spawn().expect("sleep starts");
        // Until it has become `sleep` it is a copy of this process, which knows both.
        let maps = format!("/proc/{}/maps", child.id());
        let is_sleep = || std::fs::read_to_string(&maps).ok().filter(|text| text.contains("/sleep"));
        crate::lab::wait_until(std::time::Duration::from_secs(5), is_sleep).expect("it becomes sleep");
        let found = found_in_memory(child.id(), &[&held, "absent-from-the-child"]);
        child.kill().and_then(|()| child.wait()).expect("it is ours");
        assert_eq!(found.expect("root, or the parent"), [&*held]);
        assert!(writable("7f00-7f10 r-xp 0 0 0 x").is_none());
    }
}
