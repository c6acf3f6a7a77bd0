//! The Chrome trace: one row for each engine and each stream (chrome://tracing, Perfetto).

use serde_json::{Value, json};

use super::{Clock, Engine};

const ENGINES: u32 = 1;
const STREAMS: u32 = 2;

/// The trace-event document of all operations the clock kept.
pub fn chrome_trace(clock: &mut Clock) -> Value {
    let mut events = vec![
        json!({"ph": "M", "name": "process_name", "pid": ENGINES, "args": {"name": "engines (modelled)"}}),
        json!({"ph": "M", "name": "process_name", "pid": STREAMS, "args": {"name": "streams (modelled)"}}),
    ];
    for engine in Engine::ROWS {
        events.push(json!({"ph": "M", "name": "thread_name", "pid": ENGINES, "tid": engine as u32,
            "args": {"name": engine.name()}}));
    }
    let names = clock.stream_names().to_vec();
    let row = |stream| names.iter().position(|(id, _)| *id == stream).unwrap_or(0);
    for (tid, (_, name)) in names.iter().enumerate() {
        events.push(json!({"ph": "M", "name": "thread_name", "pid": STREAMS, "tid": tid,
            "args": {"name": name}}));
    }
    for span in clock.spans() {
        let rows = [(ENGINES, span.engine as usize), (STREAMS, row(span.stream))];
        for (pid, tid) in rows {
            events.push(
                json!({"ph": "X", "name": span.label, "cat": span.engine.name(), "pid": pid, "tid": tid,
                "ts": span.start, "dur": span.end - span.start}),
            );
        }
    }
    json!({"displayTimeUnit": "ns", "traceEvents": events})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Profile, Work};

    #[test]
    fn each_operation_has_a_row_of_its_engine_and_one_of_its_stream() {
        let mut clock = Clock::new(&Profile::named("h200").unwrap());
        clock.keep_spans();
        let stream = clock.stream("decode".into(), 0);
        let work = Work { engine: Engine::Sm, duration: 5.0, issued: 2.0, label: "gemm".into() };
        clock.submit(stream, work, Vec::new());
        let trace = chrome_trace(&mut clock);
        let ops: Vec<&Value> =
            trace["traceEvents"].as_array().unwrap().iter().filter(|e| e["ph"] == "X").collect();
        assert_eq!(ops.len(), 2);
        for op in ops {
            assert_eq!((&op["name"], &op["ts"], &op["dur"]), (&json!("gemm"), &json!(2.0), &json!(5.0)));
        }
        let row =
            json!({"ph": "M", "name": "thread_name", "pid": STREAMS, "tid": 0, "args": {"name": "decode"}});
        assert!(trace["traceEvents"].as_array().unwrap().contains(&row));
    }
}
