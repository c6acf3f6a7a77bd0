//! What is known of an address.

use crate::driver::args::{In, Out};
use crate::driver::session::Session;
use crate::driver::status::{Result, Status};

/// CU_POINTER_ATTRIBUTE_*: a value and its bytes.
fn attribute(session: &Session, attribute: i32, address: u64) -> Result<(u64, usize)> {
    // Start, bytes, whether on the device, context.
    let (start, len, device, context) = match session.memory.arena().allocation(address) {
        Some((a, false)) if address - a.start < a.len => (a.start, a.len, true, session.context),
        _ => match session.pinned_at(address) {
            Some((start, pinned)) => (start, pinned.len, false, pinned.context),
            None => return Err(Status::INVALID_VALUE),
        },
    };
    Ok(match attribute {
        1 => (context, 8),
        // CU_MEMORYTYPE_HOST and _DEVICE.
        2 => (1 + u64::from(device), 4),
        3 => (address, 8),
        4 if device => return Err(Status::INVALID_VALUE),
        4 => (address, 8),
        6 => (0, 4),
        7 => (start, 8),
        8 => (0, 4),
        9 => (0, 4),
        10 => (0, 4),
        11 => (start, 8),
        12 => (len, 8),
        13 => (1, 4),
        14 => (0, 8),
        15 => (0, 4),
        // CU_POINTER_ATTRIBUTE_ACCESS_FLAG_READWRITE.
        16 => (3, 4),
        17 => (0, 8),
        _ => return Err(Status::INVALID_VALUE),
    })
}

fn put(out: &Out<u8>, value: u64, bytes: usize) -> Result {
    for (i, byte) in value.to_le_bytes().into_iter().take(bytes).enumerate() {
        out.set_at(i, byte)?;
    }
    Ok(())
}

api! {
    context fn cuPointerGetAttribute(out: Out<u8>, which: i32, address: u64) |s| {
        let (value, bytes) = attribute(s, which, address)?;
        put(&out, value, bytes)
    }

    // Of an address nobody knows, everything is 0.
    context fn cuPointerGetAttributes(count: u32, which: In<i32>, outs: In<Out<u8>>, address: u64) |s| {
        for i in 0..count as usize {
            let (value, bytes) = attribute(s, which.at(i)?, address).unwrap_or((0, 4));
            put(&outs.at(i)?, value, bytes)?;
        }
        Ok(())
    }

    // CU_POINTER_ATTRIBUTE_SYNC_MEMOPS is the only one that can be set, and holds anyway.
    context fn cuPointerSetAttribute(value: In<i32>, which: i32, address: u64) |s| {
        value.get()?;
        attribute(s, which, address)?;
        if which == 6 { Ok(()) } else { Err(Status::INVALID_VALUE) }
    }
}
