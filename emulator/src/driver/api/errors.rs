//! Errors by name, versions, symbols by name.

use std::ffi::{CString, c_char, c_void};

use crate::driver::args::{Out, Text};
use crate::driver::status::Status;

/// CUDA 13.0, whose functions the list of exported names follows.
pub(super) const VERSION: i32 = 13000;

fn symbol(name: &str) -> *mut c_void {
    let Ok(name) = CString::new(name) else { return std::ptr::null_mut() };
    // SAFETY: dladdr fills the structure if it returns non-zero; its path is then a C string of the loader's.
    // dlopen with RTLD_NOLOAD loads nothing, and the symbol stays valid as this library stays loaded.
    unsafe {
        let mut info = std::mem::zeroed::<libc::Dl_info>();
        if libc::dladdr(cuGetErrorName as *const c_void, &mut info) == 0 {
            return std::ptr::null_mut();
        }
        let library = libc::dlopen(info.dli_fname, libc::RTLD_NOW | libc::RTLD_NOLOAD);
        if library.is_null() { library } else { libc::dlsym(library, name.as_ptr()) }
    }
}

fn newest(name: &str) -> *mut c_void {
    ["_v4", "_v3", "_v2", ""]
        .iter()
        .map(|version| symbol(&format!("{name}{version}")))
        .find(|address| !address.is_null())
        .unwrap_or(std::ptr::null_mut())
}

api! {
    plain fn cuGetErrorName(error: i32, name: Out<*const c_char>) |_| {
        match Status(error).c_name() {
            Some(text) => name.set(text.as_ptr()),
            None => name.set(std::ptr::null()).and(Err(Status::INVALID_VALUE)),
        }
    }

    plain fn cuGetErrorString(error: i32, text: Out<*const c_char>) |_| {
        match Status(error).c_text() {
            Some(sentence) => text.set(sentence.as_ptr()),
            None => text.set(std::ptr::null()).and(Err(Status::INVALID_VALUE)),
        }
    }

    plain fn cuDriverGetVersion(version: Out<i32>) |_| { version.set(VERSION) }

    plain fn cuGetProcAddress(name: Text, address: Out<*mut c_void>, _version: i32, _flags: u64) |_| {
        let found = newest(&name.get()?);
        address.set(found)?;
        if found.is_null() { Err(Status::NOT_FOUND) } else { Ok(()) }
    }

    plain fn cuGetProcAddress_v2(
        name: Text, address: Out<*mut c_void>, _version: i32, _flags: u64, status: Out<i32>,
    ) |_| {
        let found = newest(&name.get()?);
        address.set(found)?;
        // CU_GET_PROC_ADDRESS_SUCCESS and _SYMBOL_NOT_FOUND.
        status.set_some(i32::from(found.is_null()));
        if found.is_null() { Err(Status::NOT_FOUND) } else { Ok(()) }
    }
}
