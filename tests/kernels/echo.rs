//! Host and device agree on where every field of every parameter struct stands.

use crate::harness::session;

#[test]
fn every_field_arrives_where_it_was_put() {
    let session = session();
    let mut structs = 0;
    abruzzi::device::cuda::kernels::echo::check_all(&session.gpu, |name, sent, received| {
        assert_eq!(received, sent, "{name}");
        let mut distinct = sent.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), sent.len(), "{name}: values must be distinct");
        structs += 1;
    })
    .unwrap();
    assert!(structs > 0);
}
