//! The `pondhawk` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    pondhawk::cli::main()
}
