//! The shared library: installed under the driver's name, with every symbol a program may look up.
#![allow(clippy::undocumented_unsafe_blocks, reason = "every block is a call of the loader with C strings")]

use std::ffi::CString;

use cuda_emulator::install;

#[test]
fn every_name_is_found_under_the_drivers_name() {
    let path = install::install(true).unwrap();
    let library = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD) };
    assert!(!library.is_null(), "{} is not libcuda.so.1", path.display());
    let names: Vec<&str> = include_str!("driver-symbols.txt").lines().collect();
    assert_eq!(names.len(), 514);
    for name in names {
        let c = CString::new(name).unwrap();
        assert!(!unsafe { libc::dlsym(library, c.as_ptr()) }.is_null(), "{name} is missing");
    }
}
