//! Copies and kernels of a cudarc program on two streams: the modelled times are those that the profile's constants
//! give on paper, and the trace shows the engines at work at the same time.

#[path = "../examples/streams.rs"]
#[allow(dead_code, reason = "its main is the example's")]
mod program;

use serde_json::Value;

/// Constants of profiles/h100-80gb.toml, in microseconds and bytes a microsecond.
const COPY_LATENCY: f64 = 2.0;
const LINK: f64 = 55e3;
const LAUNCH: f64 = 3.0;
const DRAM: f64 = 3350e3;
/// What the example moves: four chunks of 2^22 floats.
const CHUNK: f64 = (4 << 22) as f64;

fn close(got: f64, expected: f64, what: &str) {
    println!("{what}: {got:.1} us, on paper {expected:.1} us");
    assert!((got / expected - 1.0).abs() < 0.01, "{what}: {got} for {expected}");
}

#[test]
fn overlap_is_what_the_constants_say() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace.json");
    let times = program::run(trace.to_str().unwrap()).unwrap();
    let program::Times { copies, kernels, together, .. } = times;

    let copy = COPY_LATENCY + CHUNK / LINK;
    // Every byte is read and written once.
    let kernel = LAUNCH + 2.0 * CHUNK / DRAM;
    close(copies, 8.0 * copy, "copies");
    close(kernels, 4.0 * kernel, "kernels");
    // Each stream is in order and each direction has one engine: in0, in1 | k0, out0, out1, then in2 as soon as out0 is
    // done, in3 as soon as out1 is; the last kernel and copy stand alone.
    close(together, 5.0 * copy + 2.0 * kernel, "together");

    let events: Value = serde_json::from_slice(&std::fs::read(&trace).unwrap()).unwrap();
    let spans = |name: &str| -> Vec<(f64, f64)> {
        // Process 1 of the trace has a row an engine.
        let of_engine = |e: &&Value| e["ph"] == "X" && e["pid"] == 1 && e["cat"] == name;
        let span = |e: &Value| {
            let start = e["ts"].as_f64().unwrap();
            (start, start + e["dur"].as_f64().unwrap())
        };
        events["traceEvents"].as_array().unwrap().iter().filter(of_engine).map(span).collect()
    };
    let (inwards, outwards, kernels) = (spans("copy engine H2D"), spans("copy engine D2H"), spans("SMs"));
    assert_eq!((inwards.len(), outwards.len(), kernels.len()), (4, 4, 4), "{events}");
    let first = inwards.iter().fold(f64::INFINITY, |t, s| t.min(s.0));
    let last = outwards.iter().fold(0f64, |t, s| t.max(s.1));
    close(last - first, 5.0 * copy + 2.0 * kernel, "first to last in the trace");
    let overlap = |a: &[(f64, f64)], b: &[(f64, f64)]| -> f64 {
        let pairs = a.iter().flat_map(|x| b.iter().map(move |y| x.1.min(y.1) - x.0.max(y.0)));
        pairs.filter(|o| *o > 0.0).sum()
    };
    println!(
        "overlap: H2D with SM {:.1} us, D2H with SM {:.1} us, H2D with D2H {:.1} us",
        overlap(&inwards, &kernels),
        overlap(&outwards, &kernels),
        overlap(&inwards, &outwards)
    );
    assert!(overlap(&inwards, &kernels) > 0.9 * kernel);
    assert!(overlap(&outwards, &kernels) > 0.9 * kernel);
    assert!(overlap(&inwards, &outwards) > 0.9 * copy);
}
