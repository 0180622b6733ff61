//! The small things that a node does for every request, piece and byte: instructions of the first two, which are the same on a busy
//! machine, and CPU time of the last.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};

use super::{Context, Metric, Need, Report, Scenario, say};
use crate::lab::{binary, clean_command};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "micro",
    summary: "instructions of the head parser, ranges, the bitmap and the picker; CPU time of hashing, writing, encrypting and passing on a piece",
    needs: &[Need::Program("valgrind"), Need::Binary("pondhawk-micro")],
    run,
};

/// By name: what it is called here, and how often it is done to be counted.
const COUNTED: [(&str, &str, u64); 4] = [
    ("head", "request head", 200),
    ("range", "Range field", 1_000),
    ("bitmap", "1,000 pieces set", 50),
    ("picker", "1,000 pieces picked", 2),
];
/// By name: what it is called here, and how often it is done to be timed.
const TIMED: [(&str, &str, u64); 6] = [
    ("blake3", "BLAKE3", 4_000),
    ("blake3-write", "BLAKE3 and write", 4_000),
    ("sha256", "SHA-256", 2_000),
    ("encrypt", "TLS records", 4_000),
    ("encrypt-send", "TLS records and send", 4_000),
    ("splice", "splice, both ends with it", 4_000),
];
const ROUNDS: usize = 5;
/// Bytes of a piece.
const PIECE: f64 = (1_u64 << 20) as f64;

fn run(context: &Context) -> Result<Report> {
    let mut report = Report::new(
        "The peer's own functions in a loop. Instructions are counted by callgrind, as the difference of two runs of which one does twice as \
         much; valgrind knows no AVX-512. CPU time is that of the process, in pieces of 1 MiB.",
    );
    report.chart = "CPU-s/GB".to_owned();
    for (name, label, times) in COUNTED {
        let each = (instructions(name, 2 * times)? - instructions(name, times)?) as f64 / times as f64;
        say(format!("{label}: {each:.0} instructions"));
        report.add(format!("instructions_{name}"), Metric::counted("instructions", &[each]));
    }
    for (name, label, times) in TIMED {
        let times = context.pick(times, 100);
        let mut runs = Vec::new();
        for _ in 0..context.rounds(ROUNDS) {
            context.go_on()?;
            // What starting takes is in both.
            let cpu = cpu_seconds(context, name, 2 * times)? - cpu_seconds(context, name, times)?;
            runs.push(cpu / (times as f64 * PIECE / 1e9));
        }
        let metric = Metric::timed("CPU-s/GB", &runs);
        report.bars.push((label.to_owned(), metric.value, format!("{:.3} CPU-s/GB", metric.value)));
        report.add(format!("cpu_s_per_gb_{name}"), metric);
    }
    Ok(report)
}

/// What callgrind counts: `Collected : 12345` (its manual, "Basic usage").
fn instructions(what: &str, times: u64) -> Result<i64> {
    let mut command = clean_command("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(binary("pondhawk-micro")?);
    let output = command.args([what, &times.to_string()]).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "valgrind failed: {said}");
    collected(&said).with_context(|| format!("valgrind told no count: {said}"))
}

fn collected(said: &str) -> Option<i64> {
    let (_, count) = said.lines().find(|line| line.contains("Collected"))?.rsplit_once(':')?;
    count.trim().parse().ok()
}

/// User and system time of a process that does this so often.
fn cpu_seconds(context: &Context, what: &str, times: u64) -> Result<f64> {
    let mut command = clean_command("sh");
    // The shell's own `times`: the last line is the children's user and system time.
    command.args(["-c", r#""$@" && times"#, "sh"]).arg(binary("pondhawk-micro")?);
    command.args([what, &times.to_string(), "--data-in"]).arg(&context.data_in).stdin(Stdio::null());
    let output = command.output()?;
    ensure!(output.status.success(), "{what} failed: {}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout);
    said.lines().last().and_then(of_children).with_context(|| format!("no times in {said:?}"))
}

/// `0m1.230000s 0m0.120000s`
fn of_children(line: &str) -> Option<f64> {
    line.split_whitespace().try_fold(0.0, |sum, time| {
        let (minutes, seconds) = time.trim_end_matches('s').split_once('m')?;
        Some(sum + minutes.parse::<f64>().ok()? * 60.0 + seconds.parse::<f64>().ok()?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tools_print_is_read() {
        assert_eq!(collected("==7== \n==7== Collected : 123456\n==7== \n"), Some(123_456));
        assert_eq!(of_children("0m1.500000s 1m0.250000s"), Some(61.75));
        assert_eq!((collected("nothing"), of_children("x")), (None, None));
    }
}
