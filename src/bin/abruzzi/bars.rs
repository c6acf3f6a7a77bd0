//! Progress of work that has several steps.

use std::sync::{Arc, Mutex, PoisonError};

use abruzzi::compress::Step;
use indicatif::ProgressBar;

use crate::ui;

/// One bar after the other, each for a step of a stage.
#[derive(Clone, Default)]
pub struct Bars(Arc<Mutex<Option<(String, ProgressBar)>>>);

impl Bars {
    /// Shows how far a step is.
    pub fn advance(&self, stage: usize, stages: usize, step: Step) {
        let of = if stages > 1 { format!(" (stage {} of {stages})", stage + 1) } else { String::new() };
        match step {
            Step::Measure(done, all) => self.count(format!("measuring{of}"), "layers", done, all),
            Step::Heal(done, all) => self.count(format!("healing{of}"), "layers", done, all),
            Step::Evaluate(done, all) => self.count(format!("evaluating{of}"), "windows", done, all),
            Step::Write(progress) => {
                let bar = self.bar(format!("writing and verifying{of}"), ui::progress_bar);
                ui::advance(&bar, progress);
            }
            // Steps to come need no bar to be shown.
            _ => {}
        }
    }

    fn count(&self, message: String, unit: &'static str, done: usize, all: usize) {
        let bar = self.bar(message, || ui::count_bar(unit, all));
        bar.set_position(done as u64);
    }

    /// The bar of that message; another one makes way for it.
    fn bar(&self, message: String, new: impl FnOnce() -> ProgressBar) -> ProgressBar {
        let mut shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*shown {
            Some((said, bar)) if *said == message => bar.clone(),
            _ => {
                if let Some((_, bar)) = shown.take() {
                    bar.finish_and_clear();
                }
                let bar = new().with_message(message.clone());
                *shown = Some((message, bar.clone()));
                bar
            }
        }
    }

    /// Takes the last bar away.
    pub fn finish(&self) {
        let mut shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bar)) = shown.take() {
            bar.finish_and_clear();
        }
    }
}
