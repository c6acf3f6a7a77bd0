//! One call's hold on the driver.

use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Condvar, Mutex, MutexGuard};

use super::options::Options;
use super::state::{Context, Driver};
use super::status::{Result, Status};

static DRIVER: Mutex<Option<Driver>> = Mutex::new(None);
/// Signalled when an operation that ran outside the lock is done.
static DONE: Condvar = Condvar::new();

/// The locked driver, with the context of the call.
pub(super) struct Session {
    /// None only within [`Session::outside`] and [`Session::wait`].
    guard: Option<MutexGuard<'static, Option<Driver>>>,
    /// Handle of the current context.
    pub context: u64,
    /// Name of the called function.
    pub call: &'static str,
}

impl Session {
    /// Makes the driver, from the environment, if there is none.
    pub fn initialise() -> Result {
        let mut guard = DRIVER.lock().unwrap_or_else(|e| e.into_inner());
        if guard.is_some() {
            return Ok(());
        }
        let driver = Options::from_variables(|name| std::env::var(name).ok()).and_then(Driver::new);
        match driver {
            Ok(driver) => *guard = Some(driver),
            Err(error) => {
                eprintln!("cuda-emulator: {error}");
                return Err(Status::INVALID_VALUE);
            }
        }
        drop(guard);
        super::output::write_at_exit();
        Ok(())
    }

    /// Locks the driver.
    pub fn lock() -> Result<Session> {
        let guard = DRIVER.lock().unwrap_or_else(|e| e.into_inner());
        if guard.is_none() {
            return Err(Status::NOT_INITIALIZED);
        }
        Ok(Session { guard: Some(guard), context: 0, call: "" })
    }

    /// Locks the driver unless somebody holds it: for the end of the process.
    pub fn try_lock() -> Option<Session> {
        let guard = DRIVER.try_lock().ok()?;
        guard.is_some().then_some(Session { guard: Some(guard), context: 0, call: "exit" })
    }

    /// Makes `context` the call's.
    pub fn enter(&mut self, context: u64) -> Result {
        if context == 0 {
            return Err(Status::INVALID_CONTEXT);
        }
        if !self.contexts.contains_key(&context) {
            return Err(Status::CONTEXT_IS_DESTROYED);
        }
        self.context = context;
        Ok(())
    }

    /// The error that stuck to the call's context.
    pub fn check_sticky(&self) -> Result {
        self.contexts.get(&self.context).and_then(|c| c.sticky).map_or(Ok(()), Err)
    }

    /// The call's context.
    pub fn state(&mut self) -> Result<&mut Context> {
        let context = self.context;
        self.contexts.get_mut(&context).ok_or(Status::INVALID_CONTEXT)
    }

    /// Runs something that takes long or calls back, without the lock. Panics pass through with the lock held again.
    pub fn outside<T>(&mut self, work: impl FnOnce() -> T) -> T {
        self.guard = None;
        let result = catch_unwind(AssertUnwindSafe(work));
        self.guard = Some(DRIVER.lock().unwrap_or_else(|e| e.into_inner()));
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Lets others have the lock until one of them is done with an operation.
    pub fn wait(&mut self) {
        if let Some(guard) = self.guard.take() {
            self.guard = Some(DONE.wait(guard).unwrap_or_else(|e| e.into_inner()));
        }
    }

    /// Wakes those in [`Session::wait`].
    pub fn done(&self) {
        DONE.notify_all();
    }
}

impl Deref for Session {
    type Target = Driver;

    fn deref(&self) -> &Driver {
        match self.guard.as_deref() {
            Some(Some(driver)) => driver,
            _ => unreachable!("a session holds the lock of an initialised driver"),
        }
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Driver {
        match self.guard.as_deref_mut() {
            Some(Some(driver)) => driver,
            _ => unreachable!("a session holds the lock of an initialised driver"),
        }
    }
}
