//! A text whose every token is known, to be generated while something goes wrong.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Once};
use std::time::Duration;

use abruzzi::{DeviceChoice, Engine, Error, Sampling, Session, SessionOptions};

use super::common::{GREEDY_PROMPT, checkpoint, golden};

/// Tokens that are generated.
pub const STEPS: usize = 64;
/// Bytes of an expert of the demo model.
pub const RECORD_BYTES: u64 = 102_400;

/// Ends the process if a step takes so long that it must be a deadlock: a test that hangs says nothing.
pub struct Watchdog {
    beats: Arc<AtomicU64>,
}

impl Watchdog {
    pub fn new(what: &'static str) -> Watchdog {
        let beats = Arc::new(AtomicU64::new(0));
        let watched = Arc::downgrade(&beats);
        std::thread::spawn(move || {
            let mut last = (u64::MAX, 0);
            loop {
                std::thread::sleep(Duration::from_secs(1));
                let Some(beats) = watched.upgrade() else { return };
                let now = beats.load(Ordering::Relaxed);
                last = if now == last.0 { (now, last.1 + 1) } else { (now, 0) };
                if last.1 == 180 {
                    eprintln!("{what}: no step has ended for three minutes, after {now} steps");
                    std::process::abort();
                }
            }
        });
        Watchdog { beats }
    }

    pub fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }
}

/// Threads of the engine that panic on purpose do so quietly.
pub fn quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let of_engine = std::thread::current().name().is_some_and(|n| n.starts_with("abruzzi-"));
            if !of_engine {
                loud(info);
            }
        }));
    });
}

/// The prompt and the CPU's greedy tokens after it.
pub fn timeline() -> &'static [u32] {
    static TOKENS: LazyLock<Vec<u32>> = LazyLock::new(|| {
        let engine = Engine::builder(checkpoint("demo")).device(DeviceChoice::Cpu).load().unwrap();
        let mut session = session(&engine);
        let prompt = golden("demo").greedy[..GREEDY_PROMPT].to_vec();
        let tokens: Result<Vec<_>, _> = session.generate_tokens(&prompt, &greedy(STEPS)).unwrap().collect();
        assert_eq!(tokens.unwrap().len(), STEPS);
        session.tokens().to_vec()
    });
    &TOKENS
}

pub fn greedy(tokens: usize) -> Sampling {
    let mut sampling = Sampling::greedy(tokens);
    sampling.ignore_eos = true;
    sampling
}

pub fn session(engine: &Engine) -> Session {
    engine.session(SessionOptions::default()).unwrap()
}

/// Generates token `step` of the timeline in a session that holds what is before it, or nothing. A wrong token fails the test;
/// after an error the session still holds what it held.
pub fn generate(session: &mut Session, step: usize, what: &dyn std::fmt::Debug) -> Result<(), Error> {
    let want = timeline();
    let next = GREEDY_PROMPT + step;
    // The last token before it is computed again.
    session.rewind(next - 1);
    let held = session.tokens().len();
    let token = session.generate_tokens(&want[held..next], &greedy(1)).unwrap().next().unwrap();
    match token {
        Ok(_) => assert_eq!(session.tokens(), &want[..=next], "{what:?} at step {step}"),
        Err(_) => assert_eq!(session.tokens(), &want[..next], "{what:?} at step {step}"),
    }
    token.map(drop)
}
