//! A list of named, timed steps with a closing summary.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Runs steps one after the other and remembers how each went.
pub(crate) struct Steps {
    done: Vec<Step>,
    started: Instant,
}

struct Step {
    name: String,
    took: Duration,
    error: Option<anyhow::Error>,
}

impl Steps {
    pub(crate) fn new() -> Self {
        Self { done: Vec::new(), started: Instant::now() }
    }

    /// Runs one step; a failure is printed and kept for the summary. Returns whether it succeeded.
    pub(crate) fn run(&mut self, name: &str, step: impl FnOnce() -> Result<()>) -> bool {
        println!("==> {name}");
        let started = Instant::now();
        let error = step().err();
        let took = started.elapsed();
        match &error {
            None => println!("    {name}: ok in {:.1} s", took.as_secs_f64()),
            Some(error) => println!("    {name}: FAILED after {:.1} s: {error:#}", took.as_secs_f64()),
        }
        let succeeded = error.is_none();
        self.done.push(Step { name: name.to_owned(), took, error });
        succeeded
    }

    /// Prints the summary; an error names the steps that failed.
    pub(crate) fn finish(self) -> Result<()> {
        println!("\n==> summary");
        for step in &self.done {
            let verdict = if step.error.is_none() { "ok" } else { "FAILED" };
            println!("    {:<24} {verdict:<6} {:>7.1} s", step.name, step.took.as_secs_f64());
        }
        println!("    {:<24} {:<6} {:>7.1} s", "all", "", self.started.elapsed().as_secs_f64());
        let failed: Vec<&str> = self.done.iter().filter(|s| s.error.is_some()).map(|s| s.name.as_str()).collect();
        if failed.is_empty() {
            return Ok(());
        }
        bail!("failed: {}", failed.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_steps_run_after_a_failure_and_the_summary_names_what_failed() {
        let mut steps = Steps::new();
        assert!(!steps.run("first", || bail!("broken")));
        assert!(steps.run("second", || Ok(())));
        assert_eq!(steps.finish().expect_err("one failed").to_string(), "failed: first");
    }
}
