//! Tensor maps: what `cuTensorMapEncodeTiled` checks, an encoding of our own, and the copies a box stands for.
//!
//! NVIDIA's 128 bytes are opaque, so ours only have to survive the trip through kernel parameters or global memory; a
//! magic number tells them from anything else. The limits are those of the driver API's page for
//! `cuTensorMapEncodeTiled`, restricted to what an sm_90a kernel here may use: tiled mode, no interleave.

use super::swizzle::Swizzle;

const MAGIC: u64 = u64::from_le_bytes(*b"abrzTMAP");

/// Element types, with the numbers of `CUtensorMapDataType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum DataType {
    U8 = 0,
    U16 = 1,
    U32 = 2,
    I32 = 3,
    U64 = 4,
    I64 = 5,
    F16 = 6,
    F32 = 7,
    F64 = 8,
    Bf16 = 9,
    F32Ftz = 10,
    Tf32 = 11,
    Tf32Ftz = 12,
}

impl DataType {
    const ALL: [DataType; 13] = [
        DataType::U8,
        DataType::U16,
        DataType::U32,
        DataType::I32,
        DataType::U64,
        DataType::I64,
        DataType::F16,
        DataType::F32,
        DataType::F64,
        DataType::Bf16,
        DataType::F32Ftz,
        DataType::Tf32,
        DataType::Tf32Ftz,
    ];

    /// The type of a `CUtensorMapDataType` value, or none for Blackwell's packed ones.
    pub fn from_raw(value: u32) -> Option<DataType> {
        DataType::ALL.get(value as usize).copied()
    }

    /// Bytes of an element.
    pub fn size(self) -> u64 {
        match self {
            DataType::U8 => 1,
            DataType::U16 | DataType::F16 | DataType::Bf16 => 2,
            DataType::U64 | DataType::I64 | DataType::F64 => 8,
            _ => 4,
        }
    }

    /// Whether NaN fill is possible.
    pub fn is_float(self) -> bool {
        self as u8 >= DataType::F16 as u8
    }

    /// NaN, for the bytes outside the tensor.
    fn nan(self) -> u64 {
        match self.size() {
            2 => 0x7fff,
            4 => 0x7fff_ffff,
            _ => 0x7fff_ffff_ffff_ffff,
        }
    }
}

/// A tiled tensor map. Dimension 0 is the innermost; unused entries are 1 (strides: 0).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorMap {
    /// Element type.
    pub data_type: DataType,
    /// 1–5 dimensions.
    pub rank: u32,
    /// Global address of element 0.
    pub address: u64,
    /// Elements a dimension.
    pub dims: [u64; 5],
    /// Bytes between neighbours in dimension i + 1; dimension 0 is dense.
    pub strides: [u64; 4],
    /// Extent of the box a dimension.
    pub box_dims: [u32; 5],
    /// Every how many elements one is taken; dimension 0 takes all whatever is given.
    pub element_strides: [u32; 5],
    /// Swizzle of the box in shared memory.
    pub swizzle: Swizzle,
    /// Whether elements outside the tensor read as NaN rather than zero.
    pub nan_fill: bool,
}

/// The arguments of `cuTensorMapEncodeTiled`, as numbers.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// `CUtensorMapDataType`.
    pub data_type: u32,
    /// `tensorRank`.
    pub rank: u32,
    /// `globalAddress`.
    pub address: u64,
    /// `globalDim`, `rank` values.
    pub dims: &'a [u64],
    /// `globalStrides`, `rank − 1` values.
    pub strides: &'a [u64],
    /// `boxDim`, `rank` values.
    pub box_dims: &'a [u32],
    /// `elementStrides`, `rank` values.
    pub element_strides: &'a [u32],
    /// `CUtensorMapInterleave`.
    pub interleave: u32,
    /// `CUtensorMapSwizzle`.
    pub swizzle: u32,
    /// `CUtensorMapL2promotion`; checked and forgotten.
    pub l2_promotion: u32,
    /// `CUtensorMapFloatOOBfill`.
    pub oob_fill: u32,
}

/// Checks a request and encodes it. The error says which argument breaks which limit.
pub fn encode(request: &Request) -> Result<[u8; 128], String> {
    TensorMap::new(request).map(|map| map.to_bytes())
}

/// Fails with a message unless a limit is kept.
fn check(kept: bool, message: impl FnOnce() -> String) -> Result<(), String> {
    if kept { Ok(()) } else { Err(message()) }
}

impl TensorMap {
    /// Checks a request.
    pub fn new(request: &Request) -> Result<TensorMap, String> {
        let data_type = DataType::from_raw(request.data_type)
            .ok_or_else(|| format!("tensorDataType {} does not exist on sm_90", request.data_type))?;
        check((1..=5).contains(&request.rank), || format!("tensorRank is {}, not 1 to 5", request.rank))?;
        let rank = request.rank as usize;
        check(request.interleave == 0, || "interleaved layouts are not supported".to_string())?;
        let swizzle = Swizzle::from_tensor_map(request.swizzle)
            .ok_or_else(|| format!("swizzle {} does not exist on sm_90", request.swizzle))?;
        check(request.l2_promotion <= 3, || format!("l2Promotion {} does not exist", request.l2_promotion))?;
        check(request.oob_fill <= 1, || format!("oobFill {} does not exist", request.oob_fill))?;
        let lengths = [request.dims.len(), request.box_dims.len(), request.element_strides.len()];
        check(lengths.iter().all(|l| *l >= rank) && request.strides.len() + 1 >= rank, || {
            format!("arrays are shorter than tensorRank {rank} asks")
        })?;
        let mut map = TensorMap {
            data_type,
            rank: request.rank,
            address: request.address,
            dims: [1; 5],
            strides: [0; 4],
            box_dims: [1; 5],
            element_strides: [1; 5],
            swizzle,
            nan_fill: request.oob_fill == 1,
        };
        map.dims[..rank].copy_from_slice(&request.dims[..rank]);
        map.strides[..rank - 1].copy_from_slice(&request.strides[..rank - 1]);
        map.box_dims[..rank].copy_from_slice(&request.box_dims[..rank]);
        map.element_strides[..rank].copy_from_slice(&request.element_strides[..rank]);
        map.validate()?;
        Ok(map)
    }

    fn validate(&self) -> Result<(), String> {
        let (rank, size) = (self.rank as usize, self.data_type.size());
        check((1..=5).contains(&rank), || format!("tensorRank is {rank}, not 1 to 5"))?;
        check(self.address != 0 && self.address.is_multiple_of(16), || {
            format!("globalAddress {:#x} is null or not aligned to 16", self.address)
        })?;
        for (i, dim) in self.dims.iter().enumerate().take(rank) {
            check((1..=1 << 32).contains(dim), || format!("globalDim[{i}] is {dim}, not 1 to 2^32"))?;
        }
        let row = self.dims[0].saturating_mul(size);
        for (i, stride) in self.strides.iter().enumerate().take(rank - 1) {
            check(stride.is_multiple_of(16), || {
                format!("globalStrides[{i}] is {stride}, not a multiple of 16")
            })?;
            check(*stride < 1 << 40, || format!("globalStrides[{i}] is {stride}, not below 2^40"))?;
            check(*stride >= row, || {
                format!("globalStrides[{i}] is {stride}, less than the {row} bytes of dimension 0")
            })?;
        }
        for (i, extent) in self.box_dims.iter().enumerate().take(rank) {
            check((1..=256).contains(extent), || format!("boxDim[{i}] is {extent}, not 1 to 256"))?;
        }
        for (i, stride) in self.element_strides.iter().enumerate().take(rank) {
            check((1..=8).contains(stride), || format!("elementStrides[{i}] is {stride}, not 1 to 8"))?;
        }
        let inner = u64::from(self.box_dims[0]) * size;
        check(inner.is_multiple_of(16), || format!("boxDim[0] is {inner} bytes, not a multiple of 16"))?;
        let limit = u64::from(self.swizzle.row_bytes());
        check(self.swizzle == Swizzle::None || inner <= limit, || {
            format!("boxDim[0] is {inner} bytes, more than the {limit} of the swizzle")
        })?;
        check(!self.nan_fill || self.data_type.is_float(), || {
            format!("oobFill with NaN needs a float type, not {:?}", self.data_type)
        })
    }

    /// Our encoding.
    pub fn to_bytes(&self) -> [u8; 128] {
        let mut out = [0u8; 128];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&MAGIC.to_le_bytes());
        put(&[self.data_type as u8, self.rank as u8, self.swizzle as u8, u8::from(self.nan_fill)]);
        put(&self.address.to_le_bytes());
        // 2^32 does not fit 32 bits; its predecessor does.
        self.dims.iter().for_each(|d| put(&(d.wrapping_sub(1) as u32).to_le_bytes()));
        self.strides.iter().for_each(|s| put(&s.to_le_bytes()));
        self.box_dims.iter().for_each(|b| put(&(*b as u16).to_le_bytes()));
        self.element_strides.iter().for_each(|s| put(&[*s as u8]));
        out
    }

    /// Reads our encoding back; none if the bytes are anything else.
    pub fn decode(bytes: &[u8; 128]) -> Option<TensorMap> {
        let mut rest: &[u8] = bytes;
        let mut take = |n: usize| {
            let (head, tail) = rest.split_at_checked(n)?;
            rest = tail;
            Some(head.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte)))
        };
        if take(8)? != MAGIC {
            return None;
        }
        let data_type = DataType::from_raw(take(1)? as u32)?;
        let rank = take(1)? as u32;
        let swizzle = Swizzle::from_tensor_map(take(1)? as u32)?;
        let nan_fill = take(1)? == 1;
        let address = take(8)?;
        let mut map = TensorMap {
            data_type,
            rank,
            address,
            dims: [1; 5],
            strides: [0; 4],
            box_dims: [1; 5],
            element_strides: [1; 5],
            swizzle,
            nan_fill,
        };
        for dim in &mut map.dims {
            *dim = take(4)? + 1;
        }
        for stride in &mut map.strides {
            *stride = take(8)?;
        }
        for extent in &mut map.box_dims {
            *extent = take(2)? as u32;
        }
        for stride in &mut map.element_strides {
            *stride = take(1)? as u32;
        }
        map.validate().ok()?;
        Some(map)
    }

    /// Elements the box takes a dimension: its extent, divided by the element stride except in dimension 0.
    pub fn taken(&self) -> [u32; 5] {
        std::array::from_fn(|i| {
            let stride = if i == 0 { 1 } else { self.element_strides[i].max(1) };
            self.box_dims[i].div_ceil(stride)
        })
    }

    /// Bytes of a box in shared memory: what a copy adds to its mbarrier, out-of-bounds elements included.
    pub fn box_bytes(&self) -> u64 {
        self.taken().iter().map(|n| u64::from(*n)).product::<u64>() * self.data_type.size()
    }

    /// Writes what elements outside the tensor read as.
    pub fn fill(&self, out: &mut [u8]) {
        out.fill(0);
        if self.nan_fill {
            let nan = self.data_type.nan().to_le_bytes();
            for element in out.chunks_mut(self.data_type.size() as usize) {
                element.copy_from_slice(&nan[..element.len()]);
            }
        }
    }

    /// Walks the box at `coords` (missing ones are 0) in the order of shared memory: for each piece the byte offset in
    /// the box before swizzling, its global address or none outside the tensor, and its bytes. A row of dimension 0
    /// is one piece, or up to three where it crosses the tensor's edge.
    pub fn for_each_run(&self, coords: &[i32], mut f: impl FnMut(u64, Option<u64>, u64)) {
        let size = self.data_type.size();
        let start: [i64; 5] = std::array::from_fn(|i| coords.get(i).copied().map_or(0, i64::from));
        let [n0, n1, n2, n3, n4] = self.taken().map(i64::from);
        // How much of a row lies before, in and behind the tensor.
        let dim = self.dims[0] as i64;
        let before = (-start[0]).clamp(0, n0);
        let inside = (dim - start[0]).clamp(0, n0) - before;
        let behind = n0 - before - inside.max(0);
        let mut offset = 0u64;
        for i4 in 0..n4 {
            for i3 in 0..n3 {
                for i2 in 0..n2 {
                    for i1 in 0..n1 {
                        let row = self.row(&start, [i1, i2, i3, i4]);
                        let first = row.map(|row| row + (start[0].max(0) as u64) * size);
                        let pieces = match first {
                            Some(_) => [(None, before), (first, inside), (None, behind)],
                            None => [(None, n0), (None, 0), (None, 0)],
                        };
                        for (address, count) in pieces {
                            let bytes = count.max(0) as u64 * size;
                            if bytes > 0 {
                                f(offset, address, bytes);
                                offset += bytes;
                            }
                        }
                    }
                }
            }
        }
    }

    /// Address of coordinate 0 of dimension 0 in the row at steps `step` of the outer dimensions; none if it is outside.
    #[inline]
    fn row(&self, start: &[i64; 5], step: [i64; 4]) -> Option<u64> {
        let mut address = self.address;
        for d in 1..self.rank as usize {
            let at = start[d] + step[d - 1] * i64::from(self.element_strides[d]);
            if at < 0 || at as u64 >= self.dims[d] {
                return None;
            }
            address = address.wrapping_add((at as u64).wrapping_mul(self.strides[d - 1]));
        }
        Some(address)
    }
}
