//! How programs that measure end.

use std::process::ExitCode;

/// 0: measured and all aims met, 1: some missed, 2: could not be measured, and why.
pub fn exit(measured: anyhow::Result<bool>) -> ExitCode {
    match measured {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
