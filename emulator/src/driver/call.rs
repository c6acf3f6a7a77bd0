//! The way into every exported function: no panic gets out, the lock is held, what must be there is there.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::session::Session;
use super::status::{Result, Status};

thread_local! {
    /// Contexts pushed on this thread; the last is current.
    static CONTEXTS: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
    /// Whether this thread is in a function of cuLaunchHostFunc.
    static IN_HOST_FUNCTION: Cell<bool> = const { Cell::new(false) };
}

/// The current context's handle, 0 if there is none.
pub(super) fn current() -> u64 {
    CONTEXTS.with_borrow(|stack| stack.last().copied().unwrap_or(0))
}

/// Replaces the current context; 0 removes it.
pub(super) fn set_current(context: u64) {
    CONTEXTS.with_borrow_mut(|stack| {
        stack.pop();
        if context != 0 {
            stack.push(context);
        }
    });
}

/// Makes a context current, above the one that was.
pub(super) fn push_current(context: u64) {
    CONTEXTS.with_borrow_mut(|stack| stack.push(context));
}

/// Removes the current context.
pub(super) fn pop_current() -> Option<u64> {
    CONTEXTS.with_borrow_mut(Vec::pop)
}

/// Runs a host function; calls into the driver fail meanwhile, as CUDA has it.
pub(super) fn in_host_function(function: impl FnOnce()) {
    IN_HOST_FUNCTION.set(true);
    function();
    IN_HOST_FUNCTION.set(false);
}

/// A function that needs nothing, not even cuInit.
pub(super) fn plain(name: &str, body: impl FnOnce(()) -> Result) -> i32 {
    let result = catch_unwind(AssertUnwindSafe(|| body(()))).unwrap_or(Err(Status::UNKNOWN));
    result
        .err()
        .unwrap_or_else(|| {
            let _ = name;
            Status::SUCCESS
        })
        .0
}

/// A function that needs cuInit.
pub(super) fn device(name: &'static str, body: impl FnOnce(&mut Session) -> Result) -> i32 {
    guarded(name, |session| body(session))
}

/// A function that needs a current context free of errors.
pub(super) fn context(name: &'static str, body: impl FnOnce(&mut Session) -> Result) -> i32 {
    guarded(name, |session| {
        session.enter(current())?;
        session.check_sticky()?;
        session.stir()?;
        body(session)
    })
}

/// A function that gives something back: it runs even after an error, and then tells of it.
pub(super) fn release(name: &'static str, body: impl FnOnce(&mut Session) -> Result) -> i32 {
    guarded(name, |session| {
        session.enter(current())?;
        body(session)?;
        session.check_sticky()
    })
}

fn guarded(name: &'static str, body: impl FnOnce(&mut Session) -> Result) -> i32 {
    if IN_HOST_FUNCTION.get() {
        eprintln!("cuda-emulator: {name} called from a function of cuLaunchHostFunc");
        return Status::NOT_PERMITTED.0;
    }
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut session = Session::lock()?;
        session.call = name;
        session.clock.call();
        let result = body(&mut session);
        if session.options.log {
            let status = result.err().unwrap_or(Status::SUCCESS);
            eprintln!("cuda-emulator: {:12.3} us  {name}: {}", session.clock.now(), status.name());
        }
        result
    }));
    match result {
        Ok(result) => result.err().unwrap_or(Status::SUCCESS).0,
        Err(_) => {
            eprintln!("cuda-emulator: internal error in {name}");
            Status::UNKNOWN.0
        }
    }
}

/// Defines exported functions: how each comes in, its C arguments, its body. A body has no unsafe code of its own but
/// what it marks; pointers are wrapped by [`super::args`].
macro_rules! api {
    ($($kind:ident fn $name:ident($($arg:ident: $type:ty),* $(,)?) |$session:tt| $body:block)*) => {
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name($($arg: $type),*) -> i32 {
                $crate::driver::call::$kind(stringify!($name), |$session| $body)
            }
        )*
    };
}
