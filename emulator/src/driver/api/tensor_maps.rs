//! Tensor maps: the driver reads the arguments, the engine knows what its kernels want to find.

use crate::check::Kind;
use crate::driver::args::{In, Out};
use crate::driver::engine::{TensorMapRequest, engine};
use crate::driver::status::Status;

api! {
    context fn cuTensorMapEncodeTiled(
        map: Out<[u8; 128]>, data_type: u32, rank: u32, address: u64, dims: In<u64>, strides: In<u64>,
        boxes: In<u32>, element_strides: In<u32>, interleave: u32, swizzle: u32, l2_promotion: u32, oob_fill: u32,
    ) |s| {
        map.check()?;
        if !map.address().is_multiple_of(64) {
            return Err(s.refuse(Kind::TensorMap, format!("the map at {:#x} is not 64-byte aligned", map.address())));
        }
        if !(1..=5).contains(&rank) {
            return Err(s.refuse(Kind::TensorMap, format!("rank {rank} is not 1 to 5")));
        }
        let mut request = TensorMapRequest {
            data_type, rank, address, interleave, swizzle, l2_promotion, oob_fill, ..TensorMapRequest::default()
        };
        for i in 0..rank as usize {
            request.dims[i] = dims.at(i)?;
            request.boxes[i] = boxes.at(i)?;
            request.element_strides[i] = element_strides.at(i)?;
            if i + 1 < rank as usize {
                request.strides[i] = strides.at(i)?;
            }
        }
        match engine().and_then(|engine| engine.encode_tensor_map(&request)) {
            Some(Ok(bytes)) => map.set(bytes),
            Some(Err(message)) => Err(s.refuse(Kind::TensorMap, message)),
            None => Err(Status::NOT_SUPPORTED),
        }
    }
}
