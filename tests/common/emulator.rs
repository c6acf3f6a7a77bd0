//! The emulated GPU, as tests control it.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;
use std::sync::Once;

/// Whether the tests run on a real GPU.
pub fn real() -> bool {
    std::env::var_os("ABRUZZI_TEST_GPU").is_some_and(|v| v == "1")
}

/// Puts the emulator in place, once, unless the tests run on a real GPU.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if !real() {
            cuda_emulator::install::install(false).expect("the emulator");
        }
    });
}

/// Changes the emulator's settings (a JSON object of `driver::Changes`); nothing on a real GPU.
pub fn configure(settings: &str) {
    if !real() {
        call(c"cuEmulatorConfigure", settings);
    }
}

/// Writes the counters of all launches so far.
pub fn write_counters(file: &Path) {
    call(c"cuEmulatorCounters", file.to_str().unwrap());
}

fn call(name: &CStr, text: &str) {
    let argument = CString::new(text).unwrap();
    // SAFETY: both functions take a C string and return a status.
    let function: extern "C" fn(*const c_char) -> i32 = unsafe { std::mem::transmute(symbol(name)) };
    assert_eq!(function(argument.as_ptr()), 0, "{name:?} {text}");
}

fn symbol(name: &CStr) -> *mut c_void {
    // SAFETY: C strings; the library was loaded by `install` and stays.
    let address = unsafe {
        let library = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD);
        libc::dlsym(library, name.as_ptr())
    };
    assert!(!address.is_null(), "{name:?}: not the emulator");
    address
}
