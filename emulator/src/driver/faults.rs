//! Findings: kept, printed, and turned into the errors CUDA would return.

use super::session::Session;
use super::status::Status;
use crate::Finding;
use crate::check::{Kind, Place};

impl Session {
    /// A finding of the host side.
    pub fn fault(&self, kind: Kind, message: String, details: Vec<String>) -> Finding {
        Finding { kind, message: format!("{}: {message}", self.call), place: Place::default(), details }
    }

    /// Keeps and prints a finding that costs no more than its call.
    pub fn report(&mut self, finding: Finding) {
        for line in finding.to_string().lines() {
            eprintln!("cuda-emulator: {line}");
        }
        self.findings.push(finding);
    }

    /// Keeps and prints a finding, and fails every later call of `context`. An earlier error stays.
    pub fn poison(&mut self, context: u64, finding: Finding) {
        let status = status_of(finding.kind);
        self.report(finding);
        if let Some(context) = self.contexts.get_mut(&context) {
            context.sticky.get_or_insert(status);
        }
    }

    /// Reports an invalid argument.
    pub fn refuse(&mut self, kind: Kind, message: String) -> Status {
        let finding = self.fault(kind, message, Vec::new());
        self.report(finding);
        Status::INVALID_VALUE
    }
}

/// What CUDA returns after a fault of this kind.
fn status_of(kind: Kind) -> Status {
    match kind {
        Kind::OutOfBounds | Kind::UseAfterFree | Kind::HostCopy => Status::ILLEGAL_ADDRESS,
        Kind::Misaligned => Status::MISALIGNED_ADDRESS,
        Kind::Deadlock | Kind::RunawaySpin => Status::LAUNCH_TIMEOUT,
        Kind::Assertion => Status::ASSERT,
        _ => Status::LAUNCH_FAILED,
    }
}
