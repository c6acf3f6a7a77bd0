//! Pointer arguments of the exported functions.
//!
//! CUDA's callers promise that pointers are null or valid for what the function does with them; nobody can check more.
//! These wrappers are the only places that rely on it. They have no constructors: values come in from C.

use std::ffi::{CStr, c_char};

use super::status::{Result, Status};

/// Where a result goes.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// A pointer that was itself an argument.
    pub fn from_argument(pointer: *mut T) -> Out<T> {
        Out(pointer)
    }

    /// Writes it; null is refused.
    pub fn set(&self, value: T) -> Result {
        if self.0.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        self.set_some(value);
        Ok(())
    }

    /// Writes it unless the pointer is null.
    pub fn set_some(&self, value: T) {
        if !self.0.is_null() {
            // SAFETY: not null, and the C caller promises room for a T; alignment is not relied on.
            unsafe { self.0.write_unaligned(value) };
        }
    }

    /// Writes the `i`th of an array.
    pub fn set_at(&self, i: usize, value: T) -> Result {
        if self.0.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: not null, and the C caller promises an array longer than `i`.
        unsafe { self.0.add(i).write_unaligned(value) };
        Ok(())
    }

    /// Refuses null before anything is done.
    pub fn check(&self) -> Result {
        if self.0.is_null() { Err(Status::INVALID_VALUE) } else { Ok(()) }
    }

    /// The address.
    pub fn address(&self) -> usize {
        self.0 as usize
    }
}

/// Where an argument comes from.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct In<T>(*const T);

impl<T: Copy> In<T> {
    /// A pointer that was itself an argument.
    pub fn from_argument(pointer: *const T) -> In<T> {
        In(pointer)
    }

    /// The value; null is refused.
    pub fn get(&self) -> Result<T> {
        self.at(0)
    }

    /// The `i`th of an array.
    pub fn at(&self, i: usize) -> Result<T> {
        if self.0.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: not null, and the C caller promises an array longer than `i` of Ts; alignment is not relied on.
        Ok(unsafe { self.0.add(i).read_unaligned() })
    }

    /// Whether there is none.
    pub fn is_null(&self) -> bool {
        self.0.is_null()
    }
}

impl In<u8> {
    /// `len` bytes.
    pub fn bytes(&self, len: usize) -> Result<Vec<u8>> {
        if self.0.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: not null, and the C caller promises `len` readable bytes.
        Ok(unsafe { std::slice::from_raw_parts(self.0, len) }.to_vec())
    }
}

/// A C string.
#[repr(transparent)]
pub(super) struct Text(*const c_char);

impl Text {
    /// The string; null and what is not UTF-8 are refused.
    pub fn get(&self) -> Result<String> {
        if self.0.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: not null, and the C caller promises a terminating 0.
        let text = unsafe { CStr::from_ptr(self.0) };
        text.to_str().map(str::to_owned).map_err(|_| Status::INVALID_VALUE)
    }
}

/// Writes a C string into a buffer of `len` bytes, cut to fit.
pub(super) fn put_text(buffer: &Out<u8>, len: usize, text: &[u8]) -> Result {
    if len == 0 {
        return Err(Status::INVALID_VALUE);
    }
    let kept = &text[..text.len().min(len - 1)];
    for (i, &byte) in kept.iter().enumerate() {
        buffer.set_at(i, byte)?;
    }
    buffer.set_at(kept.len(), 0)
}
