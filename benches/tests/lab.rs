//! The lab's hosts reach each other, and nothing of them stays.

use std::{fs, path::Path, time::Duration};

use pondhawk_bench::{
    hub::{Fault, FaultKind},
    lab::{Cgroup, Daemon, HubProcess, Lab, Netns, clean_command, root_or_skip, run, sweep, wait_until},
};

#[test]
fn hosts_of_a_lab_reach_each_other_over_both_protocols() {
    if !root_or_skip("hosts_of_a_lab_reach_each_other_over_both_protocols") {
        return;
    }
    let lab = Lab::new().unwrap();
    let pod = lab.pod().unwrap();
    let _hub = HubProcess::start(lab.hub(), &[]).unwrap();
    for to in lab.hub().addresses() {
        for from in [&lab.node().netns, &pod.netns] {
            assert!(from.reaches((to, 443).into()), "{to} from {}", from.name());
            assert!(!from.reaches((to, 444).into()));
        }
    }
    lab.node().netns.shape("eth0", 1_000_000_000).unwrap();
    assert!(lab.node().netns.ip("link show eth0").unwrap().contains("tbf"));
}

#[test]
fn a_hosts_file_holds_within_its_namespace_only() {
    if !root_or_skip("a_hosts_file_holds_within_its_namespace_only") {
        return;
    }
    let netns = Netns::new("test").unwrap();
    netns.set_hosts(&[([10, 9, 8, 7].into(), "cdn.example")]).unwrap();
    netns.set_nameserver(Some([10, 9, 8, 53].into())).unwrap();
    let out = run(netns.command("getent").args(["hosts", "cdn.example"])).unwrap();
    assert!(out.starts_with("10.9.8.7"), "{out}");
    assert!(run(netns.command("cat").arg("/etc/resolv.conf")).unwrap().contains("10.9.8.53"));
    assert!(!fs::read_to_string("/etc/hosts").unwrap().contains("cdn.example"));
    assert!(!fs::read_to_string("/etc/resolv.conf").unwrap().contains("10.9.8.53"));
    let environment = run(&mut netns.command("env")).unwrap();
    assert!(!environment.contains("SSL_") && !environment.contains("PROXY"), "{environment}");
}

#[test]
fn a_program_in_a_namespace_sees_the_cgroups_and_is_in_the_wanted_one() {
    if !root_or_skip("a_program_in_a_namespace_sees_the_cgroups_and_is_in_the_wanted_one") {
        return;
    }
    let netns = Netns::new("test").unwrap();
    let group = Cgroup::new("test").unwrap();
    let mut list = group.wrap(netns.command("cat").arg(group.path().join("cgroup.procs")).env("LC_ALL", "C"));
    let pids = run(&mut list).unwrap();
    assert_eq!(pids.lines().count(), 1, "{pids}");
    assert!(group.pids().is_empty());
}

#[test]
fn what_a_killed_run_left_is_swept_away() {
    if !root_or_skip("what_a_killed_run_left_is_swept_away") {
        return;
    }
    let name = format!("phlab-lost-4000000000-{}", std::process::id());
    run(clean_command("ip").args(["netns", "add", &name])).unwrap();
    let group = Cgroup::new("test").unwrap();
    let lost = group.path().with_file_name(format!("pondhawk-lab-lost-4000000000-{}", std::process::id()));
    fs::create_dir(&lost).unwrap();
    sweep();
    assert!(!run(clean_command("ip").args(["netns", "list"])).unwrap().contains(&name));
    assert!(!lost.exists());
    assert!(group.path().exists(), "a living process keeps its own");
}

#[test]
fn a_panic_leaves_no_namespace_no_group_and_no_process() {
    if !root_or_skip("a_panic_leaves_no_namespace_no_group_and_no_process") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let log = folder.path().join("log");
    let panicked = std::thread::spawn(move || {
        let netns = Netns::new("panic").unwrap();
        let group = Cgroup::new("test").unwrap();
        let child = group.child("inner").unwrap();
        let mut sleeper = group.wrap(netns.command("sleep").arg("1000"));
        let daemon = Daemon::spawn("sleep", &mut sleeper, &log).unwrap();
        let mut orphan = child.command("setsid");
        run(orphan.args(["sh", "-c", "sleep 1000 >/dev/null 2>&1 &"])).unwrap();
        wait_until(Duration::from_secs(10), || (group.pids().len() == 2).then_some(())).expect("both are in the group");
        tell.send((netns.name().to_owned(), group.path().to_owned(), daemon.pid(), child.pids())).unwrap();
        panic!("on purpose");
    });
    assert!(panicked.join().is_err());
    let (netns, group, pid, orphans) = told.recv().unwrap();
    assert!(!run(clean_command("ip").args(["netns", "list"])).unwrap().contains(&netns));
    assert!(!Path::new("/etc/netns").join(&netns).exists());
    assert!(!group.exists());
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(orphans.len(), 1);
    // An orphan is reaped by whoever adopts it; a zombie has no command line.
    let command = fs::read(format!("/proc/{}/cmdline", orphans[0])).unwrap_or_default();
    assert!(command.is_empty());
}

#[test]
fn a_daemon_is_watched_frozen_and_killed() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let script = "echo started; while :; do :; done";
    let mut daemon = Daemon::spawn("loop", clean_command("sh").args(["-c", script]), &log).unwrap();
    daemon.wait_for_log("started", Duration::from_secs(10)).unwrap();
    wait_until(Duration::from_secs(30), || (daemon.usage()?.cpu_seconds > 0.0).then_some(())).expect("it uses the CPU");
    assert!(daemon.usage().unwrap().rss_peak > 0);
    daemon.freeze().unwrap();
    let state = || fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap().contains("T (stopped)");
    wait_until(Duration::from_secs(10), || state().then_some(())).expect("it is stopped");
    daemon.thaw().unwrap();
    daemon.kill().unwrap();
    assert!(!daemon.is_running());
    let mut failing = Daemon::spawn("false", clean_command("sh").args(["-c", "echo oops; exit 3"]), &log).unwrap();
    let error = failing.wait_for_log("never", Duration::from_secs(10)).unwrap_err().to_string();
    assert!(error.contains("exit status: 3") && error.contains("oops"), "{error}");
}

#[test]
fn a_hub_process_is_found_by_dns_and_controlled_from_outside() {
    if !root_or_skip("a_hub_process_is_found_by_dns_and_controlled_from_outside") {
        return;
    }
    let lab = Lab::new().unwrap();
    let hub = HubProcess::start(lab.hub(), &["--file", "acme/tiny/model.bin:1MiB:7"]).unwrap();
    let node = &lab.node().netns;
    node.set_nameserver(Some(lab.hub().v4.into())).unwrap();
    let (sha256, url) = hub.object("acme/tiny/model.bin").unwrap().unwrap();
    assert!(url.starts_with("https://cdn-lfs.huggingface.co/repos/"), "{url}");
    let ca = hub.ca();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.bin");
    for family in ["-4", "-6"] {
        node.curl(&[family, "--cacert", ca.to_str().unwrap(), "-o", file.to_str().unwrap(), &url]).unwrap();
        let sum = run(clean_command("sha256sum").arg(&file)).unwrap();
        assert!(sum.starts_with(&sha256), "{sum}");
    }
    assert_eq!(hub.stats().unwrap().object("acme/tiny/model.bin").body_bytes, 2 << 20);
    hub.add_fault(&Fault::new(FaultKind::Forbidden)).unwrap();
    assert!(node.curl(&["--cacert", ca.to_str().unwrap(), &url]).is_err());
    hub.clear_faults().unwrap();
    hub.reset_stats().unwrap();
    assert_eq!(hub.stats().unwrap().body_bytes, 0);
}
