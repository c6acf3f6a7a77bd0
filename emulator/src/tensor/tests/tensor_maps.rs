use super::super::swizzle::Swizzle;
use super::super::tensor_map::{DataType, Request, TensorMap, encode};
use crate::num::tests::Random;

fn request<'a>(dims: &'a [u64], strides: &'a [u64], box_dims: &'a [u32], steps: &'a [u32]) -> Request<'a> {
    Request {
        data_type: DataType::Bf16 as u32,
        rank: dims.len() as u32,
        address: 0x7_0000_0100,
        dims,
        strides,
        box_dims,
        element_strides: steps,
        interleave: 0,
        swizzle: 0,
        l2_promotion: 2,
        oob_fill: 0,
    }
}

#[test]
fn maps_survive_encoding() {
    let mut r = request(&[4096, 1 << 32, 3], &[8192, 1 << 39], &[64, 128, 2], &[1, 2, 1]);
    r.swizzle = 3;
    r.oob_fill = 1;
    let map = TensorMap::decode(&encode(&r).unwrap()).unwrap();
    assert_eq!(map, TensorMap::new(&r).unwrap());
    assert_eq!((map.rank, map.dims, map.swizzle), (3, [4096, 1 << 32, 3, 1, 1], Swizzle::B128));
    assert_eq!(map.box_bytes(), 64 * 64 * 2 * 2);
    let mut fill = [1u8; 6];
    map.fill(&mut fill);
    assert_eq!(fill, [0xff, 0x7f, 0xff, 0x7f, 0xff, 0x7f]);
    assert_eq!(TensorMap::decode(&[0; 128]), None);
    let mut bytes = encode(&r).unwrap();
    bytes[8] = 77;
    assert_eq!(TensorMap::decode(&bytes), None);
}

/// Each limit, broken alone, is named.
#[test]
fn limits_are_checked() {
    let good = request(&[64, 64], &[128], &[64, 64], &[1, 1]);
    assert!(encode(&good).is_ok());
    let broken = |change: &dyn Fn(&mut Request), word: &str| {
        let mut r = good.clone();
        change(&mut r);
        let message = encode(&r).unwrap_err();
        assert!(message.contains(word), "{message:?} does not name {word}");
    };
    broken(&|r| r.data_type = 13, "tensorDataType");
    broken(&|r| r.rank = 0, "tensorRank");
    broken(&|r| r.rank = 6, "tensorRank");
    broken(&|r| r.rank = 3, "shorter");
    broken(&|r| r.address += 8, "globalAddress");
    broken(&|r| r.address = 0, "globalAddress");
    broken(&|r| r.dims = &[64, 0], "globalDim[1]");
    broken(&|r| r.dims = &[64, (1 << 32) + 1], "globalDim[1]");
    broken(&|r| r.strides = &[136], "multiple of 16");
    broken(&|r| r.strides = &[1 << 40], "2^40");
    broken(&|r| r.strides = &[112], "dimension 0");
    broken(&|r| r.box_dims = &[64, 0], "boxDim[1]");
    broken(&|r| r.box_dims = &[64, 257], "boxDim[1]");
    broken(&|r| r.box_dims = &[63, 4], "multiple of 16");
    broken(&|r| r.element_strides = &[1, 0], "elementStrides[1]");
    broken(&|r| r.element_strides = &[1, 9], "elementStrides[1]");
    broken(&|r| r.interleave = 1, "interleave");
    broken(&|r| r.swizzle = 4, "swizzle");
    broken(&|r| r.swizzle = 2, "swizzle");
    broken(&|r| r.l2_promotion = 4, "l2Promotion");
    broken(&|r| r.oob_fill = 2, "oobFill");
    broken(
        &|r| {
            r.data_type = DataType::U16 as u32;
            r.oob_fill = 1;
        },
        "float",
    );
}

/// Element by element from the definition.
fn naive(map: &TensorMap, coords: &[i32]) -> Vec<Option<u64>> {
    let rank = map.rank as usize;
    let taken = map.taken();
    let total: u32 = taken.iter().product();
    (0..total)
        .map(|mut index| {
            let mut address = map.address;
            for d in 0..rank {
                let step = index % taken[d];
                index /= taken[d];
                let stride = if d == 0 { 1 } else { map.element_strides[d] };
                let at = i64::from(coords[d]) + i64::from(step * stride);
                if at < 0 || at >= map.dims[d] as i64 {
                    return None;
                }
                address += at as u64 * if d == 0 { map.data_type.size() } else { map.strides[d - 1] };
            }
            Some(address)
        })
        .collect()
}

#[test]
fn runs_are_the_elements_of_the_box() {
    let mut random = Random(12);
    let mut outside = 0;
    for _ in 0..3_000 {
        let rank = 1 + random.next() as usize % 5;
        let data_type = DataType::from_raw((random.next() % 13) as u32).unwrap();
        let size = data_type.size();
        let dims: Vec<u64> = (0..rank).map(|_| 1 + random.next() % 40).collect();
        let mut strides = Vec::new();
        let mut extent = (dims[0] * size).next_multiple_of(16);
        for dim in &dims[1..] {
            strides.push(extent);
            extent *= dim + random.next() % 2;
        }
        let inner = (16 / size).max(1) as u32;
        let mut box_dims = vec![inner * (1 + random.next() as u32 % 3)];
        box_dims.extend((1..rank).map(|_| 1 + random.next() as u32 % 5));
        let steps: Vec<u32> = (0..rank).map(|_| 1 + random.next() as u32 % 3).collect();
        let mut r = request(&dims, &strides, &box_dims, &steps);
        r.data_type = data_type as u32;
        let map = TensorMap::new(&r).unwrap();
        let coords: Vec<i32> = dims.iter().map(|d| (random.next() % (d + 12)) as i32 - 6).collect();
        let mut got = Vec::new();
        map.for_each_run(&coords, |offset, address, bytes| {
            assert_eq!(offset, got.len() as u64 * size, "runs are in order and without gaps");
            assert!(bytes > 0 && bytes % size == 0);
            got.extend((0..bytes / size).map(|i| address.map(|a| a + i * size)));
        });
        assert_eq!(got, naive(&map, &coords), "{map:?} {coords:?}");
        assert_eq!(got.len() as u64 * size, map.box_bytes());
        outside += got.iter().filter(|a| a.is_none()).count();
    }
    assert!(outside > 1000);
    // Extremes do not overflow.
    let map = TensorMap::new(&request(&[64, 64], &[128], &[64, 64], &[1, 1])).unwrap();
    for corner in [i32::MIN, i32::MAX] {
        map.for_each_run(&[corner, corner], |_, address, _| assert_eq!(address, None));
    }
}
